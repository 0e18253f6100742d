//! Third phase of a start: who this node is, and its lease.

use super::datastore::Leased;
use super::discover::Discovered;
use super::identity::KnownIdentity;
use super::inputs::Inputs;
use super::node::{self, Node};
use super::source::Source;
use crate::daemon::failure::Failure;

/// Leases a subnet, or takes the lease of the offline cache.
pub(super) async fn acquire(
    inputs: &Inputs<'_>,
    host: &Discovered,
    source: Source<'_>,
) -> Result<Leased, Failure> {
    let node = Node {
        options: inputs.options,
        config: &host.network.config,
        external: host.underlay.current(),
        known: KnownIdentity {
            state: host.state.as_ref(),
            kernel_device: host.kernel_device().and_then(|link| link.mac),
            ..KnownIdentity::default()
        },
        instance: node::instance_id(inputs.options),
    };
    source.lease(&node).await
}
