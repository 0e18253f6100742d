//! First phase of a start: the network config and what this host has. Nothing is changed.

use std::net::Ipv4Addr;

use super::datastore::Network;
use super::inputs::Inputs;
use super::source::Source;
use crate::daemon::failure::Failure;
use crate::daemon::instance::{self, InstanceLock};
use crate::daemon::options::{ReceiveOn, RunOptions};
use crate::daemon::serve::mtu::device_mtu;
use crate::daemon::serve::rules::FirewallSetup;
use crate::daemon::serve::underlay::Underlay;
use crate::daemon::state::files::Files;
use crate::daemon::state::state_file::State;
use crate::host::interface::{self, ExternalInterface, Selection};
use crate::host::netlink::{LinkInfo, Netlink};

/// What the later phases build on.
pub(super) struct Discovered {
    /// What an earlier run left.
    pub(super) state: Option<State>,
    pub(super) network: Network,
    pub(super) underlay: Underlay,
    /// MTU of the overlay device.
    pub(super) mtu: u16,
    /// Name of the overlay device.
    pub(super) device: String,
    pub(super) lock: InstanceLock,
    pub(super) files: Files,
    pub(super) rules: FirewallSetup,
    /// The links before the start.
    pub(super) links: Vec<LinkInfo>,
}

impl Discovered {
    /// A device of flannel's kernel backend, which is to be taken over.
    pub(super) fn kernel_device(&self) -> Option<&LinkInfo> {
        let mut links = self.links.iter();
        links.find(|link| link.name == self.device && link.kind.as_deref() == Some("vxlan"))
    }
}

/// Waits for the network config, and chooses the interface.
pub(super) async fn discover(
    inputs: &Inputs<'_>,
    source: &mut Source<'_>,
    state: Option<State>,
) -> Result<Discovered, Failure> {
    let (options, netlink) = (inputs.options, inputs.netlink);
    let found = source.datastore_config().await?;
    let underlay = choose_interface(options, netlink).await?;
    let external = underlay.current();
    let network = source.config(found, external).await?;
    let config = &network.config;
    let mtu = device_mtu(config, external)?;
    let device = format!("flannel.{}", config.backend.vni);
    let lock = instance::claim(&device)?;
    let files = Files::new(options);
    let rules = FirewallSetup::detect(options, config, state.as_ref()).await;
    let links = netlink.links().await?;
    Ok(Discovered {
        state,
        network,
        underlay,
        mtu,
        device,
        lock,
        files,
        rules,
        links,
    })
}

async fn choose_interface(options: &RunOptions, netlink: &Netlink) -> Result<Underlay, Failure> {
    let selection = Selection {
        interfaces: options.iface.clone(),
        patterns: options.iface_regex.clone(),
        can_reach: options.iface_can_reach,
        public_ip: options.public_ip,
    };
    let snapshot = interface::snapshot(netlink, &selection).await?;
    let external = interface::choose(&selection, &snapshot)?;
    tracing::info!(
        event = "interface", interface = external.name, address = %external.address,
        public_ip = %external.public_ip, mtu = external.mtu, "using this interface"
    );
    Ok(Underlay::new(selection, external))
}

/// The address to receive datagrams on.
pub(super) const fn receive_address(
    options: &RunOptions,
    external: &ExternalInterface,
) -> Ipv4Addr {
    match options.receive_on {
        ReceiveOn::Any => Ipv4Addr::UNSPECIFIED,
        ReceiveOn::Public | ReceiveOn::Interface => external.address,
    }
}
