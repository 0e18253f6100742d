//! Pages that others fetch by HTTP: a bounded number of connections, each for a bounded time.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// Connections at a time; more wait.
const CONNECTIONS: usize = 32;
/// How long one connection may last.
const PATIENCE: Duration = Duration::from_secs(10);

/// Answers who connects, until the runtime ends.
pub async fn serve<F, A>(listener: TcpListener, answer: F)
where
    F: Fn(Request<Incoming>) -> A + Clone + Send + Sync + 'static,
    A: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let answer = answer.clone();
                tokio::spawn(async move {
                    let service = service_fn(move |request| {
                        let answer = answer(request);
                        async move { Ok::<_, Infallible>(answer.await) }
                    });
                    let talk =
                        http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                    // Whoever is slow, or speaks something else, is nobody to report.
                    let _ = tokio::time::timeout(PATIENCE, talk).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::debug!(event = "http_failed", address = ?listener.local_addr(), %error);
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// An answer of one line.
#[must_use]
pub fn plain(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    response
}
