//! What a start is given.

use std::sync::Arc;
use std::time::Instant;

use crate::daemon::api::capture::Captures;
use crate::daemon::api::health::Readiness;
use crate::daemon::notify::Notifier;
use crate::daemon::options::RunOptions;
use crate::daemon::serve::repairs::Repairs;
use crate::host::netlink::Netlink;
use crate::subnet::store::Store;

/// What all phases share.
pub(super) struct Inputs<'a> {
    pub(super) options: &'a RunOptions,
    pub(super) store: &'a Arc<dyn Store>,
    pub(super) netlink: &'a Netlink,
    pub(super) captures: Captures,
    pub(super) readiness: &'a Readiness,
    pub(super) notifier: &'a Notifier,
    pub(super) repairs: Repairs,
    /// When the daemon started.
    pub(super) started: Instant,
}
