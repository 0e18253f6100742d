//! The metrics page for Prometheus: what `uvxlan status` shows, as metrics.

mod exporter;
mod peer_labels;
mod process;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, CONTENT_TYPE};
use hyper::{Method, StatusCode};
use tokio::net::TcpListener;

pub use self::exporter::Exporter;
use super::control::{self, Requests};
use super::http;
use crate::control::{Request, Response};

/// Content type of OpenMetrics, which Prometheus prefers.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Content type of the older text format, for all other clients.
const CLASSIC: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Listens until the runtime ends; an empty address is off. A daemon forwards without metrics
/// too, so a failure is only logged.
pub(crate) async fn serve(address: &str, requests: Requests) {
    if address.is_empty() {
        return;
    }
    match TcpListener::bind(address).await {
        Ok(listener) => {
            tracing::info!(event = "metrics", address, "answering /metrics");
            let exporter = Arc::new(Mutex::new(Exporter::default()));
            tokio::spawn(http::serve(listener, move |request| {
                let (requests, exporter) = (requests.clone(), Arc::clone(&exporter));
                async move { respond(&request, &requests, &exporter).await }
            }));
        }
        Err(error) => tracing::warn!(
            event = "no_metrics", address, %error,
            "cannot serve metrics (--metrics-listen)"
        ),
    }
}

async fn respond(
    request: &hyper::Request<Incoming>,
    requests: &Requests,
    exporter: &Mutex<Exporter>,
) -> hyper::Response<Full<Bytes>> {
    match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/metrics") => {}
        (&Method::GET | &Method::HEAD, _) => {
            return http::plain(StatusCode::NOT_FOUND, "try /metrics");
        }
        _ => {
            return http::plain(
                StatusCode::METHOD_NOT_ALLOWED,
                "only GET and HEAD are supported",
            );
        }
    }
    let response = control::send(requests, Request::Status).await;
    let Some(Response::Status(status)) = response else {
        return http::plain(StatusCode::SERVICE_UNAVAILABLE, "the daemon is stopping");
    };
    let page = {
        // No panic can leave it half changed.
        let mut exporter = exporter.lock().unwrap_or_else(PoisonError::into_inner);
        exporter.render(&status)
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

/// Converts an OpenMetrics page to Prometheus' older text format: it describes a counter under the
/// name of its samples, and has neither units nor an end mark.
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
    fn the_older_format_has_other_names_for_counters_and_no_end_mark() {
        let text = Exporter::default().render(&Status::default());
        assert!(text.ends_with("# EOF\n"));
        let classic = classic(&text);
        assert!(classic.contains("# TYPE uvxlan_encap_packets_total counter\n"));
        assert!(classic.contains("# TYPE uvxlan_peers gauge\n"));
        assert!(!classic.contains("# EOF") && !classic.contains("# UNIT"));
    }
}
