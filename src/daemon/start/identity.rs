//! Who this node is: its VTEP MAC and the subnet it had. Pure.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::daemon::state::state_file::State;
use crate::subnet::lease::NodeId;
use crate::subnet::validate::PeerRecord;
use crate::wire::{MacAddr, Vni};

/// Where a MAC was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MacOrigin {
    /// The state file.
    StateFile,
    /// A device of flannel's kernel backend that is to be taken over.
    KernelDevice,
    /// Our own lease, written in an earlier life.
    OwnLease,
    /// Made now.
    New,
}

/// What is known of earlier lives.
#[derive(Debug, Clone, Default)]
pub struct Traces<'a> {
    /// The state file.
    pub state: Option<&'a State>,
    /// MAC of a kernel vxlan device of our name.
    pub kernel_device: Option<MacAddr>,
    /// The lease that the store holds for our public address.
    pub own_lease: Option<&'a PeerRecord>,
    /// Subnet named by the subnet file.
    pub subnet_file: Option<Ipv4Net>,
}

/// Chooses the VTEP MAC: the one that peers know already, if there is any.
///
/// The kernel device comes first: while it is there, its MAC is what flannel published
/// last. A state file for another VNI is another network's.
pub fn choose_mac(traces: &Traces<'_>, vni: Vni, random: [u8; 6]) -> (MacAddr, MacOrigin) {
    let state = traces.state.filter(|state| state.vni == vni);
    let known = [
        (traces.kernel_device, MacOrigin::KernelDevice),
        (state.map(|state| state.vtep_mac), MacOrigin::StateFile),
        (
            traces.own_lease.map(|lease| lease.vxlan.vtep_mac),
            MacOrigin::OwnLease,
        ),
    ];
    known
        .into_iter()
        .find_map(|(mac, origin)| Some((mac.filter(|mac| mac.is_valid_vtep())?, origin)))
        .unwrap_or((MacAddr::locally_administered(random), MacOrigin::New))
}

/// The subnet that this node had: by the state file, if it was written for this network
/// and address, else by the subnet file.
#[must_use]
pub fn previous_subnet(
    traces: &Traces<'_>,
    network: Ipv4Net,
    public_ip: Ipv4Addr,
) -> Option<Ipv4Net> {
    let state = traces
        .state
        .filter(|state| state.network == network && state.public_ip == public_ip);
    state
        .map(|state| state.subnet)
        .or(traces.subnet_file)
        .filter(|subnet| network.contains(subnet))
}

/// The subnet that containers of this host may have addresses of: the one of the subnet file,
/// which lies in `/run` and so was written in this boot, or of a state file of this boot.
/// After a reboot all containers start anew, with what the subnet file says then.
#[must_use]
pub fn subnet_in_use(traces: &Traces<'_>, instance: NodeId) -> Option<Ipv4Net> {
    let state = traces
        .state
        .filter(|state| state.instance == Some(instance));
    traces.subnet_file.or(state.map(|state| state.subnet))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mac(last: u8) -> MacAddr {
        MacAddr([2, 0, 0, 0, 0, last])
    }

    fn state() -> State {
        State {
            vtep_mac: mac(1),
            subnet: "10.3.7.0/24".parse().unwrap(),
            public_ip: Ipv4Addr::new(192, 0, 2, 1),
            network: "10.3.0.0/16".parse().unwrap(),
            vni: Vni::DEFAULT,
            instance: Some(NodeId::of_instance("secret", "boot")),
        }
    }

    #[test]
    fn the_mac_that_peers_know_is_kept() {
        let state = state();
        let both = Traces {
            state: Some(&state),
            kernel_device: Some(mac(2)),
            ..Traces::default()
        };
        let only_state = Traces {
            state: Some(&state),
            ..Traces::default()
        };
        let random = [0xff; 6];
        assert_eq!(
            choose_mac(&both, Vni::DEFAULT, random),
            (mac(2), MacOrigin::KernelDevice)
        );
        assert_eq!(
            choose_mac(&only_state, Vni::DEFAULT, random),
            (mac(1), MacOrigin::StateFile)
        );
        let (made, origin) = choose_mac(&only_state, Vni::MAX, random);
        assert_eq!(
            (made.is_valid_vtep(), origin),
            (true, MacOrigin::New),
            "another network's state"
        );
    }

    #[test]
    fn what_was_served_in_this_boot_is_in_use() {
        let state = state();
        let file: Ipv4Net = "10.3.9.0/24".parse().unwrap();
        let in_use = |subnet_file, boot| {
            let traces = Traces {
                state: Some(&state),
                subnet_file,
                ..Traces::default()
            };
            subnet_in_use(&traces, NodeId::of_instance("secret", boot))
        };
        assert_eq!(in_use(None, "boot"), Some(state.subnet));
        assert_eq!(in_use(Some(file), "boot"), Some(file));
        assert_eq!(in_use(None, "next boot"), None);
    }

    #[test]
    fn a_subnet_of_another_network_or_address_is_not_ours() {
        let state = state();
        let file: Ipv4Net = "10.3.9.0/24".parse().unwrap();
        let traces = Traces {
            state: Some(&state),
            subnet_file: Some(file),
            ..Traces::default()
        };
        let previous = |network: &str, last| {
            let address = Ipv4Addr::new(192, 0, 2, last);
            previous_subnet(&traces, network.parse().unwrap(), address).map(|net| net.to_string())
        };
        assert_eq!(previous("10.3.0.0/16", 1).as_deref(), Some("10.3.7.0/24"));
        assert_eq!(previous("10.3.0.0/16", 2).as_deref(), Some("10.3.9.0/24"));
        assert_eq!(previous("10.4.0.0/16", 1), None);
    }
}
