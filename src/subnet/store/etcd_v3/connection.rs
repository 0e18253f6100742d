//! One connection to one etcd member at a time, replaced by the next member's when it fails.
//!
//! The client library balances over all members, but then an error does not say which
//! member it came from, and a dead one costs every other request. So one is pinned, as
//! flannel v0.11 does, until it fails.

use std::time::Duration;

use etcd_client::{Certificate, Client, ConnectOptions, Error as EtcdError, Identity, TlsOptions};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{debug, warn};

use super::super::etcd::{
    CONNECT_TIMEOUT, EtcdOptions, EtcdOptionsError, Failures, RefusedLogin, TlsFileError,
};
use super::super::{StoreError, StoreErrorKind};
use super::failure::{Failure, Fault};

/// For one try at one member: etcd itself gives up a request after some 5 s.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(7);
/// Pause before all members are tried a second time.
const ROUND_INTERVAL: Duration = Duration::from_millis(250);
/// Ping an idle stream after this time. etcd ends connections that are pinged more often
/// than every 5 s (its `--grpc-keepalive-min-time`).
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// A connection whose ping is not answered this long is dead.
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// The members, and a client of the one in use.
pub(super) struct Connection {
    options: EtcdOptions,
    pinned: Mutex<Pinned>,
}

#[derive(Default)]
struct Pinned {
    /// Index of the member in use.
    endpoint: usize,
    /// Counts clients, so that a failure seen late does not end the next client.
    generation: u64,
    client: Option<Client>,
    /// The latest refused login.
    refused: Option<RefusedLogin>,
}

/// A clone of the pinned client.
pub(super) struct Borrowed {
    pub(super) client: Client,
    pub(super) endpoint: usize,
    generation: u64,
}

/// A failed call.
#[derive(Debug)]
pub(super) struct CallError {
    pub(super) fault: Fault,
    error: StoreError,
}

impl From<CallError> for StoreError {
    fn from(error: CallError) -> Self {
        error.error
    }
}

/// State of one call over its tries.
struct Progress {
    deadline: Instant,
    failures: Failures,
    tries: usize,
    /// Whether any failed try may succeed later.
    transient: bool,
    logged_in_again: bool,
}

impl Connection {
    pub(super) fn new(options: EtcdOptions) -> Result<Self, EtcdOptionsError> {
        let options = options.check()?;
        Ok(Self {
            options,
            pinned: Mutex::default(),
        })
    }

    /// The endpoints, for a log line.
    pub(super) fn endpoints(&self) -> String {
        self.options.endpoints.join(",")
    }

    /// Endpoints and key, for an error.
    pub(super) fn location(&self, key: &str) -> String {
        format!("etcd {} key {key}", self.endpoints())
    }

    /// The URL of the member with this index.
    pub(super) fn url(&self, endpoint: usize) -> &str {
        self.options
            .endpoints
            .get(endpoint)
            .map_or("", String::as_str)
    }

    /// Runs `request` against the member in use; on its failure against the others, two
    /// rounds at most, within the operation's time. The flag tells `request` that an
    /// earlier try may have been carried out without an answer.
    pub(super) async fn call<T, F>(
        &self,
        operation: &'static str,
        key: &str,
        request: impl Fn(Client, bool) -> F + Send + Sync,
    ) -> Result<T, CallError>
    where
        F: Future<Output = Result<T, EtcdError>> + Send,
    {
        let mut progress = Progress {
            deadline: Instant::now() + self.options.timeout,
            failures: Failures::default(),
            tries: 0,
            transient: false,
            logged_in_again: false,
        };
        let mut unsure = false;
        loop {
            let until = progress.deadline.min(Instant::now() + ATTEMPT_TIMEOUT);
            let mut borrowed = None;
            let attempt = async {
                let got = self.client().await?;
                let client = got.client.clone();
                borrowed = Some(got);
                request(client, unsure).await.map_err(Failure::from)
            };
            let failure = match timeout_at(until, attempt).await {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(failure)) => failure,
                Err(_) => Failure::timeout(),
            };
            // Before a client existed, nothing was sent.
            unsure |= borrowed.is_some();
            let fault = failure.fault;
            if let Some(kind) = self.give_up_after(&mut progress, failure, borrowed).await {
                let error = StoreError {
                    operation,
                    location: self.location(key),
                    kind,
                    source: Box::new(progress.failures),
                };
                return Err(CallError { fault, error });
            }
        }
    }

    /// Notes a failed try. `None`: try again. `Some`: give up, with this kind of error.
    async fn give_up_after(
        &self,
        progress: &mut Progress,
        failure: Failure,
        borrowed: Option<Borrowed>,
    ) -> Option<StoreErrorKind> {
        let (generation, endpoint) = match &borrowed {
            Some(borrowed) => (borrowed.generation, borrowed.endpoint),
            None => self.current().await,
        };
        let Failure { fault, text } = failure;
        let url = self.url(endpoint);
        debug!(endpoint = url, %text, "etcd request failed");
        progress.transient |= fault.kind() == StoreErrorKind::Transient;
        progress.failures.note(url, text);
        if fault == Fault::StaleLogin && !progress.logged_in_again {
            progress.logged_in_again = true;
            self.discard(generation, endpoint).await;
            return None;
        }
        if !fault.is_of_one_member() {
            // etcd has answered: what other members said before is of no interest.
            progress.failures.keep_only(url);
            // Without a user, no login will ever be fresh.
            let hopeless = fault == Fault::StaleLogin && self.options.username.is_none();
            return Some(match hopeless {
                true => StoreErrorKind::Permanent,
                false => fault.kind(),
            });
        }
        self.discard(generation, endpoint + 1).await;
        progress.tries += 1;
        let members = self.options.endpoints.len();
        if progress.tries >= 2 * members || Instant::now() >= progress.deadline {
            return Some(match progress.transient {
                true => StoreErrorKind::Transient,
                false => StoreErrorKind::Permanent,
            });
        }
        if progress.tries == members {
            sleep(ROUND_INTERVAL).await;
        }
        None
    }

    /// The client of the member in use, logged in. Without a user, this sends nothing.
    pub(super) async fn client(&self) -> Result<Borrowed, Failure> {
        let mut pinned = self.pinned.lock().await;
        let client = match &pinned.client {
            Some(client) => client.clone(),
            None => {
                if let Some(text) = pinned.refused.as_ref().and_then(RefusedLogin::still) {
                    let fault = Fault::LoginRefused;
                    return Err(Failure { fault, text });
                }
                let connected = self.connect(self.url(pinned.endpoint)).await;
                pinned.refused = match &connected {
                    Err(Failure { fault, text }) if *fault == Fault::LoginRefused => {
                        Some(RefusedLogin::now(text.clone()))
                    }
                    _ => None,
                };
                let connected = connected?;
                pinned.generation += 1;
                pinned.client.insert(connected).clone()
            }
        };
        Ok(Borrowed {
            client,
            endpoint: pinned.endpoint,
            generation: pinned.generation,
        })
    }

    async fn current(&self) -> (u64, usize) {
        let pinned = self.pinned.lock().await;
        (pinned.generation, pinned.endpoint)
    }

    /// Gives up a client for the member `next`, unless that has happened already.
    async fn discard(&self, generation: u64, next: usize) {
        let mut pinned = self.pinned.lock().await;
        if pinned.generation == generation {
            // A count of its own for each try, also where no client came about.
            pinned.generation += 1;
            pinned.client = None;
            pinned.endpoint = next % self.options.endpoints.len().max(1);
        }
    }

    /// Gives up a client whose watch ended; after a stale login the member is kept.
    pub(super) async fn give_back(&self, borrowed: &Borrowed, fault: Fault) {
        let next = match fault {
            Fault::StaleLogin => borrowed.endpoint,
            _ => borrowed.endpoint + 1,
        };
        self.discard(borrowed.generation, next).await;
    }

    /// After a failed [`Self::client`]: the next call goes to the next member.
    pub(super) async fn skip(&self) {
        let (generation, endpoint) = self.current().await;
        self.discard(generation, endpoint + 1).await;
    }

    async fn connect(&self, url: &str) -> Result<Client, Failure> {
        let options = connect_options(&self.options, url)
            .map_err(|error| EtcdError::IoError(std::io::Error::other(error)))?;
        let connect = async |options| Client::connect([url], Some(options)).await;
        let (Some(user), Some(password)) = (&self.options.username, &self.options.password) else {
            return Ok(connect(options).await?);
        };
        let with_user = options.clone().with_user(user, password.expose());
        match connect(with_user).await.map_err(Failure::from) {
            // As Go's client does: a user where auth is off is no error.
            Err(failure) if failure.fault == Fault::AuthDisabled => {
                warn!(
                    event = "etcd_no_auth",
                    endpoint = url,
                    "etcd has no authentication enabled: user and password are unused"
                );
                Ok(connect(options).await?)
            }
            other => other,
        }
    }
}

/// The library's options for one endpoint, without the user.
fn connect_options(options: &EtcdOptions, endpoint: &str) -> Result<ConnectOptions, TlsFileError> {
    let connect = ConnectOptions::new()
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_keep_alive(PING_INTERVAL, PING_TIMEOUT)
        // etcd takes pings on a connection without streams for an attack.
        .with_keep_alive_while_idle(false)
        .with_require_leader(true);
    let Some(files) = options.tls_files(endpoint)? else {
        return Ok(connect);
    };
    let mut tls = TlsOptions::new().ca_certificate(Certificate::from_pem(files.authorities));
    if let Some((cert, key)) = files.identity {
        tls = tls.identity(Identity::from_pem(cert, key));
    }
    Ok(connect.with_tls(tls))
}
