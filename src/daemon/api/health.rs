//! `/healthz`, as flannel has it, and `/readyz`: whether a subnet is served.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::{Method, Response, StatusCode};
use tokio::net::TcpListener;

use super::http;
use crate::daemon::failure::Failure;

/// Whether the daemon serves a subnet with everything that belongs to it: device, packet loop, and
/// the wanted rules. Clones share their state.
#[derive(Debug, Clone, Default)]
pub(crate) struct Readiness(Arc<Parts>);

#[derive(Debug, Default)]
struct Parts {
    serving: AtomicBool,
    without_device: AtomicBool,
    without_rules: AtomicBool,
}

impl Readiness {
    pub(crate) fn set_serving(&self, serving: bool) {
        self.0.serving.store(serving, Ordering::Relaxed);
    }

    /// Whether device and packet loop run; they do unless this says otherwise.
    pub(crate) fn set_device(&self, runs: bool) {
        self.0.without_device.store(!runs, Ordering::Relaxed);
    }

    /// Whether the wanted rules are in place; they are unless this says otherwise.
    ///
    /// Without them containers reach each other, but not the world: the subnet file keeps docker
    /// from masquerading. So the daemon continues, and schedulers should send no work here.
    pub(crate) fn set_rules(&self, in_place: bool) {
        self.0.without_rules.store(!in_place, Ordering::Relaxed);
    }

    fn is_ready(&self) -> bool {
        let is = |part: &AtomicBool| part.load(Ordering::Relaxed);
        is(&self.0.serving) && !is(&self.0.without_device) && !is(&self.0.without_rules)
    }
}

/// Listens on `ip` and `port`, and answers until the runtime ends; port 0 is off.
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
        std::future::ready(respond(request.method(), request.uri().path(), &readiness))
    }));
    Ok(())
}

fn respond(method: &Method, path: &str, readiness: &Readiness) -> Response<Full<Bytes>> {
    let (status, text) = match (method, path) {
        (&Method::GET | &Method::HEAD, "/healthz") => (StatusCode::OK, "flanneld is running"),
        (&Method::GET | &Method::HEAD, "/readyz") if readiness.is_ready() => {
            (StatusCode::OK, "flanneld is ready")
        }
        (&Method::GET | &Method::HEAD, "/readyz") => {
            (StatusCode::SERVICE_UNAVAILABLE, "flanneld is not ready yet")
        }
        (&Method::GET | &Method::HEAD, _) => (StatusCode::NOT_FOUND, "try /healthz or /readyz"),
        _ => (
            StatusCode::METHOD_NOT_ALLOWED,
            "only GET and HEAD are supported",
        ),
    };
    http::plain(status, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_affects_readyz_alone() {
        let readiness = Readiness::default();
        let status = |path: &str| respond(&Method::GET, path, &readiness).status().as_u16();
        assert_eq!(
            [status("/healthz"), status("/readyz"), status("/")],
            [200, 503, 404]
        );
        readiness.set_serving(true);
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
        assert_eq!(respond(&Method::POST, "/healthz", &readiness).status(), 405);
    }
}
