//! One connection to one etcd member at a time, replaced by the next member's when it fails.
//!
//! The client library balances over all members, but then an error does not say which
//! member it came from, and a dead one costs every other request. So one is pinned, as
//! flannel v0.11 does, until it fails.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use etcd_client::{Certificate, Client, ConnectOptions, Error as EtcdError, Identity, TlsOptions};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{debug, warn};

use super::super::StoreError;
use super::super::etcd::{CONNECT_TIMEOUT, EtcdOptions, EtcdOptionsError};
use super::super::login::RefusedLogin;

/// Longest time for one try at one member: etcd itself gives up a request after some 5 s.
const ATTEMPT: Duration = Duration::from_secs(7);
/// All members failed: time to wait before asking all of them once more.
const SECOND_ROUND: Duration = Duration::from_millis(250);
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

/// A client and where it comes from.
pub(super) struct Lent {
    pub(super) client: Client,
    pub(super) endpoint: usize,
    generation: u64,
}

/// What to do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// The member or the way to it is at fault.
    NextEndpoint,
    /// The login is out of date: a new one may help.
    LogIn,
    /// etcd has answered, and another member would say the same.
    Final,
}

/// A failed call.
#[derive(Debug)]
pub(super) struct CallError {
    lease_gone: bool,
    error: StoreError,
}

impl CallError {
    /// Whether etcd does not know the lease (any more).
    pub(super) fn is_lease_gone(&self) -> bool {
        self.lease_gone
    }

    /// Whether the answer was larger than what is read.
    pub(super) fn is_too_large(&self) -> bool {
        is_too_large(&self.error.source.to_string())
    }

    /// Whether the revision that was asked for is compacted.
    pub(super) fn is_compacted(&self) -> bool {
        let text = self.error.source.to_string();
        text.contains("required revision has been compacted")
    }
}

impl From<CallError> for StoreError {
    fn from(error: CallError) -> Self {
        error.error
    }
}

/// What the members said, for a person.
#[derive(Debug, Default, thiserror::Error)]
struct Failures(Vec<(String, String)>);

impl Failures {
    /// Notes the latest word of a member.
    fn note(&mut self, endpoint: &str, text: String) {
        match self.0.iter_mut().find(|(known, _)| known == endpoint) {
            Some((_, old)) => *old = text,
            None => self.0.push((endpoint.to_owned(), text)),
        }
    }
}

impl fmt::Display for Failures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (endpoint, text)) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{endpoint}: {text}")?;
        }
        Ok(())
    }
}

/// State of one call over its tries.
struct Progress {
    deadline: Instant,
    failures: Failures,
    tries: usize,
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
            let until = progress.deadline.min(Instant::now() + ATTEMPT);
            let mut lent = None;
            let attempt = async {
                let got = self.client().await?;
                let client = got.client.clone();
                lent = Some(got);
                request(client, unsure).await
            };
            let error = match timeout_at(until, attempt).await {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(error)) => Some(error),
                Err(_) => None,
            };
            // Before a client existed, nothing was sent.
            unsure |= lent.is_some();
            if let Some(failed) = self.judge(&mut progress, error.as_ref(), lent).await {
                let error = StoreError {
                    operation,
                    location: self.location(key),
                    transient: failed && progress.transient,
                    source: Box::new(progress.failures),
                };
                let lease_gone = error_is_lease_gone(&error);
                return Err(CallError { lease_gone, error });
            }
        }
    }

    /// Takes note of a failed try. `None`: try again. `Some`: give up; whether it is the
    /// members' or the way's fault, rather than etcd's own answer.
    async fn judge(
        &self,
        progress: &mut Progress,
        error: Option<&EtcdError>,
        lent: Option<Lent>,
    ) -> Option<bool> {
        let (generation, endpoint) = match &lent {
            Some(lent) => (lent.generation, lent.endpoint),
            None => {
                let pinned = self.pinned.lock().await;
                (pinned.generation, pinned.endpoint)
            }
        };
        let text = error.map_or_else(|| "no answer in time".to_owned(), explain);
        debug!(endpoint = self.url(endpoint), %text, "etcd request failed");
        progress.transient |= error.is_none_or(is_transient);
        progress.failures.note(self.url(endpoint), text);
        match error.map_or(Verdict::NextEndpoint, verdict) {
            Verdict::LogIn if !progress.logged_in_again => {
                progress.logged_in_again = true;
                self.discard(generation, endpoint).await;
                return None;
            }
            // The last word is etcd's: what other members said before is of no interest.
            last @ (Verdict::LogIn | Verdict::Final) => {
                // Without a user, no login will ever be fresh.
                let hopeless = last == Verdict::LogIn && self.options.username.is_none();
                progress.transient = !hopeless && error.is_some_and(is_transient);
                let last = self.url(endpoint);
                progress.failures.0.retain(|(from, _)| from == last);
                return Some(true);
            }
            Verdict::NextEndpoint => {}
        }
        self.discard(generation, endpoint + 1).await;
        progress.tries += 1;
        let members = self.options.endpoints.len();
        if progress.tries >= 2 * members || Instant::now() >= progress.deadline {
            return Some(true);
        }
        if progress.tries == members {
            sleep(SECOND_ROUND).await;
        }
        None
    }

    /// The client of the member in use, logged in. Without a user, this sends nothing.
    pub(super) async fn client(&self) -> Result<Lent, EtcdError> {
        let mut pinned = self.pinned.lock().await;
        if pinned.client.is_none() {
            if let Some(words) = pinned.refused.as_ref().and_then(RefusedLogin::still) {
                return Err(EtcdError::Internal(words));
            }
            let connected = self.connect(self.url(pinned.endpoint)).await;
            pinned.refused = match &connected {
                Err(error) if is_refused_login(&message(error)) => {
                    Some(RefusedLogin::now(message(error)))
                }
                _ => None,
            };
            pinned.client = Some(connected?);
            pinned.generation += 1;
        }
        let (endpoint, generation) = (pinned.endpoint, pinned.generation);
        match &pinned.client {
            Some(client) => Ok(Lent {
                client: client.clone(),
                endpoint,
                generation,
            }),
            None => Err(EtcdError::Internal("no client".into())),
        }
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

    /// Gives up a client whose watch ended; `log_in` keeps the member.
    pub(super) async fn give_back(&self, lent: &Lent, log_in: bool) {
        let next = if log_in {
            lent.endpoint
        } else {
            lent.endpoint + 1
        };
        self.discard(lent.generation, next).await;
    }

    /// After a failed [`Self::client`]: the next call goes to the next member.
    pub(super) async fn skip(&self) {
        let (generation, endpoint) = {
            let pinned = self.pinned.lock().await;
            (pinned.generation, pinned.endpoint)
        };
        self.discard(generation, endpoint + 1).await;
    }

    async fn connect(&self, url: &str) -> Result<Client, EtcdError> {
        let options = connect_options(&self.options, url)
            .map_err(|error| EtcdError::IoError(std::io::Error::other(error)))?;
        let (Some(user), Some(password)) = (&self.options.username, &self.options.password) else {
            return Client::connect([url], Some(options)).await;
        };
        let logged_in = options.clone().with_user(user, password.expose());
        match Client::connect([url], Some(logged_in)).await {
            // As Go's client does: a user where auth is off is no error.
            Err(error) if message(&error).contains("authentication is not enabled") => {
                warn!(
                    event = "etcd_no_auth",
                    endpoint = url,
                    "etcd has no authentication enabled: user and password are unused"
                );
                Client::connect([url], Some(options)).await
            }
            other => other,
        }
    }
}

/// The library's options for one endpoint, without the user.
fn connect_options(
    options: &EtcdOptions,
    endpoint: &str,
) -> Result<ConnectOptions, EtcdOptionsError> {
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

/// etcd's own words in an error, or the library's.
fn message(error: &EtcdError) -> String {
    match error {
        EtcdError::GRpcStatus(status) => status.message().to_owned(),
        // Ours, of a login that was not tried again.
        EtcdError::Internal(words) => words.clone(),
        other => other.to_string(),
    }
}

/// Whether a text of etcd's says that user or password are wrong.
fn is_refused_login(text: &str) -> bool {
    text.contains("authentication failed")
}

/// Whether a text says that an answer was larger than what is read.
pub(super) fn is_too_large(text: &str) -> bool {
    text.contains("message length too large")
}

/// Whether a text of etcd's says that the login is out of date.
pub(super) fn is_stale_login(text: &str) -> bool {
    text.contains("invalid auth token")
        || text.contains("revision of auth store is old")
        || text.contains("revision in header is old")
        // Auth was enabled after we connected without.
        || text.contains("user name is empty")
}

fn error_is_lease_gone(error: &StoreError) -> bool {
    error
        .source
        .to_string()
        .contains("requested lease not found")
}

/// gRPC code of an answer (the numbers of `google.rpc.Code`).
fn code(error: &EtcdError) -> Option<i32> {
    match error {
        EtcdError::GRpcStatus(status) => Some(status.code() as i32),
        _ => None,
    }
}

const UNAUTHENTICATED: i32 = 16;
/// Cancelled, Unknown, DeadlineExceeded, Aborted, Internal, Unavailable, DataLoss.
const OF_ONE_MEMBER: [i32; 7] = [1, 2, 4, 10, 13, 14, 15];
/// ResourceExhausted: too many requests, or the database is full.
const RESOURCE_EXHAUSTED: i32 = 8;

fn verdict(error: &EtcdError) -> Verdict {
    let Some(code) = code(error) else {
        return match error {
            EtcdError::InvalidArgs(_) | EtcdError::InvalidUri(_) => Verdict::Final,
            EtcdError::Internal(words) if is_refused_login(words) => Verdict::Final,
            _ => Verdict::NextEndpoint,
        };
    };
    if code == UNAUTHENTICATED || is_stale_login(&message(error)) {
        Verdict::LogIn
    } else if OF_ONE_MEMBER.contains(&code) {
        Verdict::NextEndpoint
    } else {
        Verdict::Final
    }
}

/// Whether the same request may succeed later without anybody changing a setting.
fn is_transient(error: &EtcdError) -> bool {
    // "invalid peer certificate: …" of ours, "BadCertificate" of the member's.
    if explain(error).to_lowercase().contains("certificate") {
        return false;
    }
    match verdict(error) {
        Verdict::NextEndpoint | Verdict::LogIn => true,
        Verdict::Final => code(error) == Some(RESOURCE_EXHAUSTED),
    }
}

/// An error with its causes in one line, without the repetitions that the layers of the
/// HTTP stack add.
pub(super) fn explain(error: &EtcdError) -> String {
    let mut text = message(error);
    let mut cause: Option<&(dyn StdError + 'static)> = match error {
        EtcdError::GRpcStatus(status) => status.source(),
        EtcdError::TransportError(transport) => transport.source(),
        EtcdError::IoError(io) => io.source(),
        _ => None,
    };
    while let Some(inner) = cause {
        let more = inner.to_string();
        if more != "transport error" && !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = inner.source();
    }
    text
}
