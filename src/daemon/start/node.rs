//! What this node requests from the datastore and publishes there.

use super::identity::{self, KnownIdentity, MacOrigin};
use crate::daemon::failure::Failure;
use crate::daemon::options::RunOptions;
use crate::daemon::state::state_file;
use crate::dataplane::inbound::header_checks::LocalVtep;
use crate::host::interface::ExternalInterface;
use crate::subnet::config::NetworkConfig;
use crate::subnet::lease::{LeaseAttrs, NodeId, VxlanData};
use crate::subnet::manager::{AcquireError, AcquireRequest};
use crate::wire::MacAddr;

/// A node before it has a lease.
pub(super) struct Node<'a> {
    pub(super) options: &'a RunOptions,
    pub(super) config: &'a NetworkConfig,
    pub(super) external: &'a ExternalInterface,
    /// What the host itself knows.
    pub(super) known: KnownIdentity<'a>,
    /// This installation, in this boot.
    pub(super) instance: NodeId,
}

impl Node<'_> {
    pub(super) const fn vtep(&self, mac: MacAddr) -> LocalVtep {
        let vni = self.config.backend.vni;
        LocalVtep { vni, mac }
    }

    pub(super) fn choose_mac(&self, known: &KnownIdentity<'_>) -> (MacAddr, MacOrigin) {
        identity::choose_mac(known, self.config.backend.vni, rand::random())
    }

    /// The attributes to publish.
    pub(super) fn attrs(&self, mac: MacAddr) -> Result<LeaseAttrs, Failure> {
        let data = VxlanData {
            vni: Some(self.config.backend.vni),
            vtep_mac: mac,
        };
        let attrs = LeaseAttrs::vxlan(self.external.public_ip, data)
            .map_err(AcquireError::Encode)?
            .with_instance(self.instance);
        let machine = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
        let attrs = match NodeId::of_machine(&machine) {
            Some(machine) => attrs.with_node(machine),
            None => attrs,
        };
        Ok(match self.options.probe_interval.is_zero() {
            false => attrs.with_probe(),
            true => attrs,
        })
    }

    pub(super) fn request(
        &self,
        known: &KnownIdentity<'_>,
        mac: MacAddr,
    ) -> Result<AcquireRequest, Failure> {
        let public_ip = self.external.public_ip;
        let in_use = identity::subnet_in_use(known, self.instance);
        Ok(AcquireRequest {
            public_ip,
            attrs: self.attrs(mac)?,
            in_use: in_use.filter(|_| !self.options.allow_renumber),
            device_mac: known.kernel_device,
            mixed_lengths: self.options.mixed_lengths,
            previous: identity::previous_subnet(known, self.config.network, public_ip),
            ttl: self.options.lease_ttl,
        })
    }
}

/// Identifies this installation, in this boot.
pub(super) fn instance_id(options: &RunOptions) -> NodeId {
    let secret = state_file::secret(&options.state_dir).unwrap_or_else(|(secret, error)| {
        let directory = options.state_dir.display();
        tracing::warn!(event = "state_file", %error, "cannot save this node's secret in {directory}");
        secret
    });
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    NodeId::of_instance(&secret, &boot)
}
