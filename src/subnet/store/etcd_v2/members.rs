//! HTTP to one etcd member at a time, replaced by the next one when it fails: flannel
//! v0.11's client does the same (`etcd/client/client.go`).

use std::error::Error as StdError;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base64::Engine;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, LOCATION};
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::debug;

use super::super::etcd::{
    CONNECT_TIMEOUT, EtcdOptions, EtcdOptionsError, MAX_ANSWER, TlsFiles, is_loopback,
};
use super::super::login::RefusedLogin;
use super::super::{Secret, StoreError};

/// Longest time for one try at one member.
const ATTEMPT: Duration = Duration::from_secs(7);
/// All members failed: time to wait before asking all of them once more.
const SECOND_ROUND: Duration = Duration::from_millis(250);
/// Redirections followed for one request: flannel's number.
const MAX_REDIRECTS: usize = 10;
/// A connection that is silent this long is probed by TCP.
const TCP_KEEPALIVE: Duration = Duration::from_secs(10);

type HttpClient = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// Any failure on the way to a member, in words.
type Cause = Box<dyn StdError + Send + Sync>;

/// A request, the same for every member.
#[derive(Debug, Clone)]
pub(super) struct Ask {
    pub(super) method: Method,
    /// Path and query, encoded.
    pub(super) path: String,
    /// Form of a PUT, encoded.
    pub(super) form: String,
}

/// What a member answered.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    /// `X-Etcd-Index`: the store's index when the answer was made.
    pub(super) index: i64,
    pub(super) body: Bytes,
    /// Whether an earlier try of the same request may have been carried out.
    pub(super) unsure: bool,
}

/// An answer whose head has come.
pub(super) struct Pending {
    /// `X-Etcd-Index`.
    pub(super) index: i64,
    response: Response<Incoming>,
    endpoint: usize,
    generation: u64,
}

/// The members, and a client of the one in use.
pub(super) struct Members {
    options: EtcdOptions,
    authorization: Option<HeaderValue>,
    pinned: Mutex<Pinned>,
    /// Whether the latest answer was no refused login.
    let_in: AtomicBool,
    first_login: Mutex<()>,
}

#[derive(Default)]
struct Pinned {
    endpoint: usize,
    /// Counts clients, so that a failure seen late does not end the next client.
    generation: u64,
    client: Option<HttpClient>,
    /// The latest refused login.
    refused: Option<RefusedLogin>,
}

struct Lent {
    client: HttpClient,
    endpoint: usize,
    generation: u64,
}

impl Members {
    pub(super) fn new(options: EtcdOptions) -> Result<Self, EtcdOptionsError> {
        let options = options.check()?;
        let authorization = options.username.as_ref().map(|user| {
            let password = options.password.as_ref().map_or("", Secret::expose);
            let text =
                base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
            let mut value = HeaderValue::from_str(&format!("Basic {text}"))
                .unwrap_or(HeaderValue::from_static(""));
            value.set_sensitive(true);
            value
        });
        Ok(Self {
            options,
            authorization,
            pinned: Mutex::default(),
            let_in: AtomicBool::new(false),
            first_login: Mutex::default(),
        })
    }

    pub(super) fn endpoints(&self) -> String {
        self.options.endpoints.join(",")
    }

    pub(super) fn location(&self, key: &str) -> String {
        format!("etcd {} key {key} (API v2)", self.endpoints())
    }

    fn url(&self, endpoint: usize) -> &str {
        self.options
            .endpoints
            .get(endpoint)
            .map_or("", String::as_str)
    }

    /// Asks the member in use; when it fails, the others, two rounds at most, within the
    /// operation's time.
    pub(super) async fn ask(
        &self,
        operation: &'static str,
        key: &str,
        ask: &Ask,
    ) -> Result<Reply, StoreError> {
        let deadline = Instant::now() + self.options.timeout;
        let members = self.options.endpoints.len();
        let mut failures: Vec<(usize, String)> = Vec::new();
        let mut unsure = false;
        let refused = |words: String| StoreError {
            operation,
            location: self.location(key),
            transient: false,
            source: words.into(),
        };
        if let Some(words) = self.still_refused().await {
            return Err(refused(words));
        }
        for tries in 1..=2 * members {
            let until = deadline.min(Instant::now() + ATTEMPT);
            let lent = self.client().await;
            let (endpoint, generation) = (lent.endpoint, lent.generation);
            let exchange = async {
                let response = self.send(&lent, ask).await?;
                read_body(response).await
            };
            let text = match timeout_at(until, exchange).await {
                Ok(Ok(reply)) if reply.status < 500 => return Ok(Reply { unsure, ..reply }),
                Ok(Ok(reply)) => {
                    let body = String::from_utf8_lossy(&reply.body).into_owned();
                    format!("HTTP {}: {}", reply.status, body.trim())
                }
                Ok(Err(error)) => explain(error.as_ref()),
                Err(_) => "no answer in time".to_owned(),
            };
            // Another caller's login may have been refused meanwhile: nothing was sent.
            if let Some(words) = self.still_refused().await {
                return Err(refused(words));
            }
            unsure = true;
            debug!(endpoint = self.url(endpoint), text, "etcd request failed");
            failures.retain(|(member, _)| *member != endpoint);
            failures.push((endpoint, text));
            self.give_up(generation, endpoint + 1).await;
            if Instant::now() >= deadline {
                break;
            }
            if tries == members {
                sleep(SECOND_ROUND).await;
            }
        }
        let said: Vec<_> = failures
            .iter()
            .map(|(member, text)| format!("{}: {text}", self.url(*member)))
            .collect();
        let said = said.join("; ");
        Err(StoreError {
            operation,
            location: self.location(key),
            transient: !said.to_lowercase().contains("certificate"),
            source: said.into(),
        })
    }

    /// Asks the member in use once, for an answer whose body may be long in coming.
    pub(super) async fn begin(&self, ask: &Ask) -> Result<Pending, String> {
        let lent = self.client().await;
        let sent = timeout_at(Instant::now() + ATTEMPT, self.send(&lent, ask)).await;
        let text = match sent {
            Ok(Ok(response)) => {
                let index = head_of(&response).1;
                let (endpoint, generation) = (lent.endpoint, lent.generation);
                return Ok(Pending {
                    index,
                    response,
                    endpoint,
                    generation,
                });
            }
            Ok(Err(error)) => explain(error.as_ref()),
            Err(_) => "no answer in time".into(),
        };
        self.give_up(lent.generation, lent.endpoint + 1).await;
        Err(format!("{}: {text}", self.url(lent.endpoint)))
    }

    /// The answer, or `None` where it did not come within `patience`.
    pub(super) async fn finish(
        &self,
        pending: Pending,
        patience: Duration,
    ) -> Result<Option<Reply>, String> {
        let body = read_body(pending.response);
        match timeout_at(Instant::now() + patience, body).await {
            Ok(Ok(reply)) if reply.status < 500 => Ok(Some(reply)),
            Ok(failed) => {
                let text = match failed {
                    Ok(reply) => format!("HTTP {}", reply.status),
                    Err(error) => explain(error.as_ref()),
                };
                self.give_up(pending.generation, pending.endpoint + 1).await;
                Err(format!("{}: {text}", self.url(pending.endpoint)))
            }
            Err(_) => Ok(None),
        }
    }

    async fn client(&self) -> Lent {
        let mut pinned = self.pinned.lock().await;
        let client = match &pinned.client {
            Some(client) => client.clone(),
            None => {
                pinned.generation += 1;
                let client = self.build(pinned.endpoint);
                pinned.client = Some(client.clone());
                client
            }
        };
        Lent {
            client,
            endpoint: pinned.endpoint,
            generation: pinned.generation,
        }
    }

    /// The next request goes to the member `next`, unless that has been arranged already.
    async fn give_up(&self, generation: u64, next: usize) {
        let mut pinned = self.pinned.lock().await;
        if pinned.generation == generation {
            pinned.client = None;
            pinned.endpoint = next % self.options.endpoints.len().max(1);
        }
    }

    /// A client for a member, with the TLS files as they are now.
    fn build(&self, endpoint: usize) -> HttpClient {
        let tls = self
            .options
            .tls_files(self.url(endpoint))
            .map_err(|error| error.to_string())
            .and_then(|files| tls_config(files).map_err(|error| error.to_string()));
        let config = tls.unwrap_or_else(|error| {
            // Replaced by something unreadable: without authorities every member is refused,
            // and the log says why.
            tracing::warn!(
                event = "etcd_tls",
                error,
                "the etcd TLS files can't be used"
            );
            bare_config()
        });
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_connect_timeout(Some(CONNECT_TIMEOUT));
        http.set_keepalive(Some(TCP_KEEPALIVE));
        http.set_keepalive_interval(Some(TCP_KEEPALIVE / 2));
        http.set_keepalive_retries(Some(3));
        http.set_nodelay(true);
        let https = HttpsConnectorBuilder::new()
            .with_tls_config(config)
            .https_or_http()
            .enable_http1()
            .wrap_connector(http);
        Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .build(https)
    }

    /// Sends a request; follows where a member points to another one, as flannel does.
    async fn send(&self, lent: &Lent, ask: &Ask) -> Result<Response<Incoming>, Cause> {
        // One at a time, as long as nobody has been let in.
        let proven = self.authorization.is_none() || self.let_in.load(Ordering::Relaxed);
        let _first = match proven {
            true => None,
            false => Some(self.first_login.lock().await),
        };
        if let Some(words) = self.still_refused().await {
            return Err(words.into());
        }
        let mut uri: Uri = format!("{}{}", self.url(lent.endpoint), ask.path).parse()?;
        for _ in 0..=MAX_REDIRECTS {
            let response = lent.client.request(self.request(&uri, ask)?).await?;
            self.note_login(response.status()).await;
            if !response.status().is_redirection() {
                return Ok(response);
            }
            uri = self.redirected(&uri, response.headers().get(LOCATION))?;
        }
        Err(format!("more than {MAX_REDIRECTS} redirections, the last to {uri}").into())
    }

    fn request(&self, uri: &Uri, ask: &Ask) -> Result<Request<Full<Bytes>>, Cause> {
        let mut request = Request::builder()
            .method(ask.method.clone())
            .uri(uri.clone());
        if let Some(value) = &self.authorization {
            request = request.header(AUTHORIZATION, value);
        }
        if !ask.form.is_empty() {
            request = request.header(CONTENT_TYPE, "application/x-www-form-urlencoded");
        }
        Ok(request.body(Full::new(Bytes::from(ask.form.clone())))?)
    }

    /// Where a redirection leads. Neither TLS nor the password may be lost on the way.
    fn redirected(&self, from: &Uri, location: Option<&HeaderValue>) -> Result<Uri, Cause> {
        let Some(location) = location else {
            return Err("a redirection without a place".into());
        };
        let mut to = location.to_str()?.parse::<Uri>()?.into_parts();
        if to.scheme.is_none() {
            to.scheme = from.scheme().cloned();
            to.authority = from.authority().cloned();
        }
        let to = Uri::from_parts(to)?;
        let is_tls = |uri: &Uri| uri.scheme_str() == Some("https");
        let endpoint = |uri: &Uri| {
            let (scheme, authority) = (uri.scheme_str()?, uri.authority()?);
            Some(format!("{scheme}://{authority}"))
        };
        let exposes = !is_tls(&to)
            && self.authorization.is_some()
            && !self.options.insecure_password
            && !endpoint(&to).is_some_and(|endpoint| is_loopback(&endpoint));
        if (is_tls(from) && !is_tls(&to)) || exposes {
            return Err(format!("it redirects to {to}, without TLS").into());
        }
        Ok(to)
    }

    async fn still_refused(&self) -> Option<String> {
        let pinned = self.pinned.lock().await;
        pinned.refused.as_ref().and_then(RefusedLogin::still)
    }

    async fn note_login(&self, status: StatusCode) {
        if self.authorization.is_none() {
            return;
        }
        let words = "etcd refuses user or password, or the user's rights (HTTP 401)";
        let refused = status == StatusCode::UNAUTHORIZED;
        self.let_in.store(!refused, Ordering::Relaxed);
        self.pinned.lock().await.refused = refused.then(|| RefusedLogin::now(words.into()));
    }
}

fn head_of(response: &Response<Incoming>) -> (u16, i64) {
    let index = response.headers().get("x-etcd-index");
    let index = index.and_then(|value| value.to_str().ok()?.parse().ok());
    (response.status().as_u16(), index.unwrap_or(0))
}

async fn read_body(response: Response<Incoming>) -> Result<Reply, Cause> {
    let (status, index) = head_of(&response);
    let body = Limited::new(response.into_body(), MAX_ANSWER)
        .collect()
        .await?;
    Ok(Reply {
        status,
        index,
        body: body.to_bytes(),
        unsure: false,
    })
}

pub(in super::super) fn bare_config() -> ClientConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider);
    match config.with_safe_default_protocol_versions() {
        Ok(config) => config,
        // ring has every version that rustls has.
        Err(_) => ClientConfig::builder(),
    }
    .with_root_certificates(RootCertStore::empty())
    .with_no_client_auth()
}

pub(in super::super) fn tls_config(files: Option<TlsFiles>) -> Result<ClientConfig, Cause> {
    let Some(files) = files else {
        return Ok(bare_config());
    };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&files.authorities) {
        roots.add(certificate?)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    Ok(match files.identity {
        None => config.with_no_client_auth(),
        Some((cert, key)) => {
            let chain = CertificateDer::pem_slice_iter(&cert).collect::<Result<_, _>>()?;
            config.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(&key)?)?
        }
    })
}

/// An error with its causes in one line, without repetitions.
fn explain(error: &(dyn StdError + Send + Sync + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let more = inner.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = inner.source();
    }
    text
}
