//! HTTP to one etcd member at a time, replaced by the next one when it fails: flannel
//! v0.11's client does the same (`etcd/client/client.go`).

use std::error::Error as StdError;
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
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::debug;

use super::super::error::{is_about_certificate, with_causes};
use super::super::etcd::{
    CONNECT_TIMEOUT, EtcdOptions, EtcdOptionsError, Failures, MAX_ANSWER, RefusedLogin, TlsFiles,
    is_loopback, trusting_nobody,
};
use super::super::{Secret, StoreError, StoreErrorKind};

/// For one try at one member.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(7);
/// Pause before all members are tried a second time.
const ROUND_INTERVAL: Duration = Duration::from_millis(250);
/// Redirections followed for one request: flannel's number.
const MAX_REDIRECTS: usize = 10;
/// A connection that is silent this long is probed by TCP.
const TCP_KEEPALIVE: Duration = Duration::from_secs(10);

type HttpClient = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// Why an exchange with a member failed.
type Cause = Box<dyn StdError + Send + Sync>;

/// A request, the same for every member.
#[derive(Debug, Clone)]
pub(super) struct Call {
    pub(super) method: Method,
    /// Path and query, encoded.
    pub(super) path: String,
    /// Form of a PUT, encoded.
    pub(super) form: String,
}

/// A response, unparsed.
#[derive(Debug)]
pub(super) struct RawResponse {
    pub(super) status: u16,
    /// `X-Etcd-Index`: the store's index at the time of the response.
    pub(super) index: i64,
    pub(super) body: Bytes,
    /// Whether an earlier try of the same request may have been carried out.
    pub(super) unsure: bool,
}

/// A response whose body is still to be read.
pub(super) struct OpenResponse {
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
    /// Whether the latest response accepted our login.
    logged_in: AtomicBool,
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

/// A clone of the pinned client.
struct Borrowed {
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
            logged_in: AtomicBool::new(false),
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

    /// Asks the member in use; if it fails, the others, at most two rounds, within the
    /// operation's time.
    pub(super) async fn call(
        &self,
        operation: &'static str,
        key: &str,
        call: &Call,
    ) -> Result<RawResponse, StoreError> {
        let deadline = Instant::now() + self.options.timeout;
        let members = self.options.endpoints.len();
        let mut failures = Failures::default();
        let mut unsure = false;
        let refused = |text: String| StoreError {
            operation,
            location: self.location(key),
            kind: StoreErrorKind::LoginRefused,
            source: text.into(),
        };
        if let Some(text) = self.still_refused().await {
            return Err(refused(text));
        }
        for tries in 1..=2 * members {
            let until = deadline.min(Instant::now() + ATTEMPT_TIMEOUT);
            let borrowed = self.client().await;
            let (endpoint, generation) = (borrowed.endpoint, borrowed.generation);
            let exchange = async {
                let response = self.send(&borrowed, call).await?;
                read_body(response).await
            };
            let text = match timeout_at(until, exchange).await {
                Ok(Ok(response)) if response.status < 500 => {
                    return Ok(RawResponse { unsure, ..response });
                }
                Ok(Ok(response)) => {
                    let body = String::from_utf8_lossy(&response.body).into_owned();
                    format!("HTTP {}: {}", response.status, body.trim())
                }
                Ok(Err(error)) => explain(error.as_ref()),
                Err(_) => "no answer in time".to_owned(),
            };
            // Another caller's login was refused meanwhile: nothing was sent.
            if let Some(text) = self.still_refused().await {
                return Err(refused(text));
            }
            unsure = true;
            debug!(endpoint = self.url(endpoint), text, "etcd request failed");
            failures.note(self.url(endpoint), text);
            self.give_up(generation, endpoint + 1).await;
            if Instant::now() >= deadline {
                break;
            }
            if tries == members {
                sleep(ROUND_INTERVAL).await;
            }
        }
        Err(StoreError {
            operation,
            location: self.location(key),
            kind: match is_about_certificate(&failures.to_string()) {
                true => StoreErrorKind::Permanent,
                false => StoreErrorKind::Transient,
            },
            source: Box::new(failures),
        })
    }

    /// Asks the member in use once, for a response whose body may take long.
    pub(super) async fn open(&self, call: &Call) -> Result<OpenResponse, String> {
        let borrowed = self.client().await;
        let sent = timeout_at(Instant::now() + ATTEMPT_TIMEOUT, self.send(&borrowed, call)).await;
        let text = match sent {
            Ok(Ok(response)) => {
                let index = head_of(&response).1;
                let (endpoint, generation) = (borrowed.endpoint, borrowed.generation);
                return Ok(OpenResponse {
                    index,
                    response,
                    endpoint,
                    generation,
                });
            }
            Ok(Err(error)) => explain(error.as_ref()),
            Err(_) => "no answer in time".into(),
        };
        self.give_up(borrowed.generation, borrowed.endpoint + 1)
            .await;
        Err(format!("{}: {text}", self.url(borrowed.endpoint)))
    }

    /// The response, or `None` if it takes longer than `limit`.
    pub(super) async fn read(
        &self,
        open: OpenResponse,
        limit: Duration,
    ) -> Result<Option<RawResponse>, String> {
        let body = read_body(open.response);
        match timeout_at(Instant::now() + limit, body).await {
            Ok(Ok(response)) if response.status < 500 => Ok(Some(response)),
            Ok(failed) => {
                let text = match failed {
                    Ok(response) => format!("HTTP {}", response.status),
                    Err(error) => explain(error.as_ref()),
                };
                self.give_up(open.generation, open.endpoint + 1).await;
                Err(format!("{}: {text}", self.url(open.endpoint)))
            }
            Err(_) => Ok(None),
        }
    }

    async fn client(&self) -> Borrowed {
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
        Borrowed {
            client,
            endpoint: pinned.endpoint,
            generation: pinned.generation,
        }
    }

    /// Sends the next request to the member `next`, unless another caller has switched already.
    async fn give_up(&self, generation: u64, next: usize) {
        let mut pinned = self.pinned.lock().await;
        if pinned.generation == generation {
            pinned.client = None;
            pinned.endpoint = next % self.options.endpoints.len().max(1);
        }
    }

    /// A client for a member, with the TLS files as they are now.
    fn build(&self, endpoint: usize) -> HttpClient {
        let files = self.options.tls_files(self.url(endpoint));
        let tls = files
            .map_err(Cause::from)
            .and_then(|files| files.map(TlsFiles::client).transpose());
        let config = tls.unwrap_or_else(|error| {
            // Replaced by something unusable: without authorities every member is refused, and
            // the log says why.
            tracing::warn!(event = "etcd_tls", %error, "the etcd TLS files cannot be used");
            None
        });
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_connect_timeout(Some(CONNECT_TIMEOUT));
        http.set_keepalive(Some(TCP_KEEPALIVE));
        http.set_keepalive_interval(Some(TCP_KEEPALIVE / 2));
        http.set_keepalive_retries(Some(3));
        http.set_nodelay(true);
        let https = HttpsConnectorBuilder::new()
            .with_tls_config(config.unwrap_or_else(trusting_nobody))
            .https_or_http()
            .enable_http1()
            .wrap_connector(http);
        Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .build(https)
    }

    /// Sends a request; follows where a member points to another one, as flannel does.
    async fn send(&self, borrowed: &Borrowed, call: &Call) -> Result<Response<Incoming>, Cause> {
        // One at a time until a login has succeeded.
        let proven = self.authorization.is_none() || self.logged_in.load(Ordering::Relaxed);
        let _first = match proven {
            true => None,
            false => Some(self.first_login.lock().await),
        };
        if let Some(text) = self.still_refused().await {
            return Err(text.into());
        }
        let mut uri: Uri = format!("{}{}", self.url(borrowed.endpoint), call.path).parse()?;
        for _ in 0..=MAX_REDIRECTS {
            let response = borrowed.client.request(self.request(&uri, call)?).await?;
            self.note_login(response.status()).await;
            if !response.status().is_redirection() {
                return Ok(response);
            }
            uri = self.redirected(&uri, response.headers().get(LOCATION))?;
        }
        Err(format!("more than {MAX_REDIRECTS} redirections, the last to {uri}").into())
    }

    fn request(&self, uri: &Uri, call: &Call) -> Result<Request<Full<Bytes>>, Cause> {
        let mut request = Request::builder()
            .method(call.method.clone())
            .uri(uri.clone());
        if let Some(value) = &self.authorization {
            request = request.header(AUTHORIZATION, value);
        }
        if !call.form.is_empty() {
            request = request.header(CONTENT_TYPE, "application/x-www-form-urlencoded");
        }
        Ok(request.body(Full::new(Bytes::from(call.form.clone())))?)
    }

    /// The target of a redirection. It must not drop TLS or expose the password.
    fn redirected(&self, from: &Uri, location: Option<&HeaderValue>) -> Result<Uri, Cause> {
        let Some(location) = location else {
            return Err("a redirection without a Location".into());
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
        let text = "etcd refuses user or password, or the user's rights (HTTP 401)";
        let refused = status == StatusCode::UNAUTHORIZED;
        self.logged_in.store(!refused, Ordering::Relaxed);
        self.pinned.lock().await.refused = refused.then(|| RefusedLogin::now(text.into()));
    }
}

fn head_of(response: &Response<Incoming>) -> (u16, i64) {
    let index = response.headers().get("x-etcd-index");
    let index = index.and_then(|value| value.to_str().ok()?.parse().ok());
    (response.status().as_u16(), index.unwrap_or(0))
}

async fn read_body(response: Response<Incoming>) -> Result<RawResponse, Cause> {
    let (status, index) = head_of(&response);
    let body = Limited::new(response.into_body(), MAX_ANSWER)
        .collect()
        .await?;
    Ok(RawResponse {
        status,
        index,
        body: body.to_bytes(),
        unsure: false,
    })
}

fn explain(error: &(dyn StdError + Send + Sync + 'static)) -> String {
    with_causes(error.to_string(), error.source())
}
