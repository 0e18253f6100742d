//! The life of `uvxlan run`, from the first question to the datastore to the last packet.
//!
//! A start has five phases, in flannel's order where that can be seen from outside:
//!
//! 1. [`discover`](discover()): network config and interface.
//! 2. [`preflight`]: a check that the start can succeed. Nothing has been changed yet.
//! 3. [`acquire`](acquire()): identity and lease. The host is still unchanged.
//! 4. [`bring_up`](bring_up()): device, packet loop, peers and their routes.
//! 5. [`announce`](announce()): rules, state file, subnet file, READY=1.
//!
//! Config, lease and peers are the datastore's, or the offline cache's if the datastore does not
//! answer ([`source`]).

mod acquire;
mod announce;
mod bring_up;
mod datastore;
mod discover;
mod identity;
mod inputs;
mod node;
mod preflight;
mod source;

use std::time::Instant;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::acquire::acquire;
use self::announce::announce;
use self::bring_up::bring_up;
use self::discover::discover;
use self::inputs::Inputs;
use self::source::Source;
use super::failure::Failure;
use super::options::RunOptions;
use crate::control::{Request, Response, Status};
use crate::daemon::api::capture::Captures;
use crate::daemon::api::control::{self, PendingRequest};
use crate::daemon::api::health::{self, Readiness};
use crate::daemon::api::metrics;
use crate::daemon::api::status;
use crate::daemon::notify::Notifier;
use crate::daemon::serve::repairs::Repairs;
use crate::daemon::serve::{Serving, privileges};
use crate::daemon::state::state_file;
use crate::host::netlink::Netlink;

/// Runs until `stop` is cancelled or the start fails.
pub(crate) async fn run(options: &RunOptions, stop: CancellationToken) -> Result<(), Failure> {
    let store = options.store.open()?;
    let netlink = Netlink::connect()?;
    let readiness = Readiness::default();
    health::serve(&options.healthz_ip, options.healthz_port, readiness.clone()).await?;
    let started = Instant::now();
    let notifier = Notifier::of_environment();
    let (requests, mut pending) = mpsc::channel(16);
    let captures = Captures::default();
    let _socket = control::serve(&options.control_socket, requests.clone(), captures.clone());
    metrics::serve(&options.metrics_listen, requests).await;
    let inputs = Inputs {
        options,
        store: &store,
        netlink: &netlink,
        captures,
        readiness: &readiness,
        notifier: &notifier,
        repairs: Repairs::default(),
        started,
    };
    let status = || status::starting(started, store.as_ref(), &notifier);
    let serving = tokio::select! {
        () = stop.cancelled() => return Ok(()),
        serving = start(inputs) => serving?,
        never = answer_while_starting(&mut pending, status) => match never {},
    };
    privileges::serving();
    readiness.set_serving(true);
    serving.serve(stop, &mut pending).await;
    readiness.set_serving(false);
    Ok(())
}

/// Answers requests during the start. Never returns.
async fn answer_while_starting(
    requests: &mut mpsc::Receiver<PendingRequest>,
    status: impl Fn() -> Status,
) -> std::convert::Infallible {
    while let Some(pending) = requests.recv().await {
        let status = status();
        let response = match pending.request {
            Request::Status => Response::Status(Box::new(status)),
            _ => Response::Error(format!("not serving yet: {}", status.phase)),
        };
        let _ = pending.respond.send(response);
    }
    std::future::pending().await
}

/// Starts the daemon. Each phase builds on what those before it returned, and a failure in any
/// of them ends the start.
async fn start(inputs: Inputs<'_>) -> Result<Serving, Failure> {
    let state = state_file::load(&inputs.options.state_dir).unwrap_or_else(|error| {
        tracing::warn!(event = "state_file", %error);
        None
    });
    let mut source = Source::new(&inputs, state.as_ref());
    let host = discover(&inputs, &mut source, state).await?;
    preflight::check(&inputs, &host)?;
    let leased = acquire(&inputs, &host, source).await?;
    let running = bring_up(&inputs, &host, leased).await?;
    announce(inputs, host, running).await
}
