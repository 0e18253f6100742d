//! The page for Prometheus, by HTTP: what `uvxlan status` shows, as metrics.

pub mod page;
mod peers;
mod process;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, CONTENT_TYPE};
use hyper::{Method, StatusCode};
use tokio::net::TcpListener;

pub use self::page::Metrics;
use super::control::{self, Requests};
use super::http;
use crate::control::{Request, Response};

/// The content type of OpenMetrics, which Prometheus asks for.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// The content type of the older text format, for everybody else.
const CLASSIC: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Listens until the runtime ends; nothing where the address is empty. A daemon without
/// metrics forwards as well, so a failure is only logged.
pub(crate) async fn serve(address: &str, requests: Requests) {
    if address.is_empty() {
        return;
    }
    match TcpListener::bind(address).await {
        Ok(listener) => {
            tracing::info!(event = "metrics", address, "answering /metrics");
            let metrics = Arc::new(Mutex::new(Metrics::default()));
            tokio::spawn(http::serve(listener, move |request| {
                let (requests, metrics) = (requests.clone(), Arc::clone(&metrics));
                async move { answer(&request, &requests, &metrics).await }
            }));
        }
        Err(error) => tracing::warn!(
            event = "no_metrics", address, %error,
            "no page for Prometheus (--metrics-listen)"
        ),
    }
}

async fn answer(
    request: &hyper::Request<Incoming>,
    requests: &Requests,
    metrics: &Mutex<Metrics>,
) -> hyper::Response<Full<Bytes>> {
    match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/metrics") => {}
        (&Method::GET | &Method::HEAD, _) => {
            return http::plain(StatusCode::NOT_FOUND, "there is /metrics");
        }
        _ => return http::plain(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD"),
    }
    let response = control::send(requests, Request::Status).await;
    let Some(Response::Status(status)) = response else {
        return http::plain(StatusCode::SERVICE_UNAVAILABLE, "the daemon is stopping");
    };
    let page = {
        // No panic can leave it half changed.
        let mut metrics = metrics.lock().unwrap_or_else(PoisonError::into_inner);
        metrics.page(&status)
    };
    let accepted = request.headers().get(ACCEPT);
    let accepted = accepted.and_then(|value| value.to_str().ok());
    let (kind, text) = match accepted {
        Some(kinds) if kinds.contains("openmetrics") => (OPENMETRICS, page),
        _ => (CLASSIC, classic(&page)),
    };
    let mut response = hyper::Response::new(Full::new(Bytes::from(text)));
    let kind = hyper::header::HeaderValue::from_static(kind);
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

/// An OpenMetrics page in Prometheus' older text format: there a counter is described under
/// the name of its samples, and there are no units and no end.
fn classic(openmetrics: &str) -> String {
    let mut text = String::with_capacity(openmetrics.len());
    let counters: BTreeSet<&str> = openmetrics
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter"))
        .collect();
    for line in openmetrics.lines() {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some("EOF" | "UNIT"), ..) => continue,
            (Some("#"), Some(what), Some(name), Some(rest)) if counters.contains(name) => {
                text.push_str(&format!("# {what} {name}_total {rest}"));
            }
            _ => text.push_str(line),
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Status;

    #[test]
    fn the_older_format_has_other_names_for_counters_and_no_end() {
        let text = Metrics::default().page(&Status::default());
        assert!(text.ends_with("# EOF\n"));
        let classic = classic(&text);
        assert!(classic.contains("# TYPE uvxlan_encap_packets_total counter\n"));
        assert!(classic.contains("# TYPE uvxlan_peers gauge\n"));
        assert!(!classic.contains("# EOF") && !classic.contains("# UNIT"));
    }
}
