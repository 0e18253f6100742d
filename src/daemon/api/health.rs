//! `/healthz` and `/readyz`: flannel's health endpoint, and whether a subnet is served.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::{Method, Response, StatusCode};
use tokio::net::TcpListener;

use super::http;
use crate::daemon::failure::Failure;

/// Whether the daemon serves a subnet: it has said so, device and packet loop are there, and so
/// are the rules that were asked for.
#[derive(Debug, Clone, Default)]
pub struct Readiness(Arc<Parts>);

#[derive(Debug, Default)]
struct Parts {
    serving: AtomicBool,
    broken: AtomicBool,
    without_rules: AtomicBool,
}

impl Readiness {
    /// From now on it does, or does not.
    pub fn set(&self, ready: bool) {
        self.0.serving.store(ready, Ordering::Relaxed);
    }

    /// Whether device and packet loop are there, which they are until somebody says otherwise.
    pub fn set_device(&self, there: bool) {
        self.0.broken.store(!there, Ordering::Relaxed);
    }

    /// Whether the rules that were asked for are in place.
    ///
    /// Without them the daemon goes on: containers reach each other. But those that reach the
    /// world through this host's address do not, since the subnet file keeps docker from
    /// masquerading, so whoever asks before sending work here is told to wait.
    pub fn set_rules(&self, in_place: bool) {
        self.0.without_rules.store(!in_place, Ordering::Relaxed);
    }

    fn is_ready(&self) -> bool {
        let is = |part: &AtomicBool| part.load(Ordering::Relaxed);
        is(&self.0.serving) && !is(&self.0.broken) && !is(&self.0.without_rules)
    }
}

/// Listens on `ip` and `port`, and answers until the runtime ends; port 0 is off.
///
/// # Errors
/// When the address cannot be listened on.
pub(crate) async fn serve(ip: &str, port: u16, readiness: Readiness) -> Result<(), Failure> {
    if port == 0 {
        return Ok(());
    }
    let address = format!("{ip}:{port}");
    let failed = |source| Failure::Health {
        address: address.clone(),
        source,
    };
    let listener = TcpListener::bind((ip, port)).await.map_err(failed)?;
    let local = listener.local_addr().map_err(failed)?;
    tracing::info!(event = "health", address = %local, "answering /healthz and /readyz");
    tokio::spawn(http::serve(listener, move |request| {
        std::future::ready(answer(request.method(), request.uri().path(), &readiness))
    }));
    Ok(())
}

fn answer(method: &Method, path: &str, readiness: &Readiness) -> Response<Full<Bytes>> {
    let (status, text) = match (method, path) {
        (&Method::GET | &Method::HEAD, "/healthz") => (StatusCode::OK, "flanneld is running"),
        (&Method::GET | &Method::HEAD, "/readyz") if readiness.is_ready() => {
            (StatusCode::OK, "flanneld is ready")
        }
        (&Method::GET | &Method::HEAD, "/readyz") => {
            (StatusCode::SERVICE_UNAVAILABLE, "flanneld is not ready yet")
        }
        (&Method::GET | &Method::HEAD, _) => {
            (StatusCode::NOT_FOUND, "there are /healthz and /readyz")
        }
        _ => (StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD"),
    };
    http::plain(status, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_shows_at_readyz_alone() {
        let readiness = Readiness::default();
        let status = |path: &str| answer(&Method::GET, path, &readiness).status().as_u16();
        assert_eq!(
            [status("/healthz"), status("/readyz"), status("/")],
            [200, 503, 404]
        );
        readiness.set(true);
        assert_eq!(
            [status("/healthz"), status("/readyz"), status("/")],
            [200, 200, 404]
        );
        for part in [Readiness::set_device, Readiness::set_rules] {
            part(&readiness, false);
            assert_eq!([status("/healthz"), status("/readyz")], [200, 503]);
            part(&readiness, true);
            assert_eq!(status("/readyz"), 200);
        }
        assert_eq!(answer(&Method::POST, "/healthz", &readiness).status(), 405);
    }
}
