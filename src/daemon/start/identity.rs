//! The identity of this node: its VTEP MAC and its previous subnet. Pure.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::daemon::state::state_file::State;
use crate::subnet::lease::NodeId;
use crate::subnet::validate::PeerRecord;
use crate::wire::{MacAddr, Vni};

/// Where a MAC comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MacOrigin {
    StateFile,
    /// A device of flannel's kernel backend that is to be taken over.
    KernelDevice,
    /// Our own lease, from an earlier run.
    OwnLease,
    New,
}

/// What earlier runs, or flannel, left.
#[derive(Debug, Clone, Default)]
pub(super) struct KnownIdentity<'a> {
    /// The state file.
    pub(super) state: Option<&'a State>,
    /// MAC of a kernel vxlan device of our name.
    pub(super) kernel_device: Option<MacAddr>,
    /// The lease that the store holds for our public address.
    pub(super) own_lease: Option<&'a PeerRecord>,
    pub(super) subnet_file: Option<Ipv4Net>,
}

/// Chooses the VTEP MAC: the one that peers know already, if there is one.
///
/// The kernel device comes first: while it exists, its MAC is what flannel published last. A
/// state file for another VNI is another network's.
pub(super) fn choose_mac(
    known: &KnownIdentity<'_>,
    vni: Vni,
    random: [u8; 6],
) -> (MacAddr, MacOrigin) {
    let state = known.state.filter(|state| state.vni == vni);
    let candidates = [
        (known.kernel_device, MacOrigin::KernelDevice),
        (state.map(|state| state.vtep_mac), MacOrigin::StateFile),
        (
            known.own_lease.map(|lease| lease.vxlan.vtep_mac),
            MacOrigin::OwnLease,
        ),
    ];
    candidates
        .into_iter()
        .find_map(|(mac, origin)| Some((mac.filter(|mac| mac.is_valid_vtep())?, origin)))
        .unwrap_or((MacAddr::locally_administered(random), MacOrigin::New))
}

/// The subnet that this node had: the state file's, if that was written for this network and
/// address, else the subnet file's.
pub(super) fn previous_subnet(
    known: &KnownIdentity<'_>,
    network: Ipv4Net,
    public_ip: Ipv4Addr,
) -> Option<Ipv4Net> {
    let state = known
        .state
        .filter(|state| state.network == network && state.public_ip == public_ip);
    state
        .map(|state| state.subnet)
        .or(known.subnet_file)
        .filter(|subnet| network.contains(subnet))
}

/// The subnet that containers of this host may have addresses from: the subnet file's, which is
/// in `/run` and so was written since the last boot, or that of a state file written since then.
/// After a reboot all containers start with what the subnet file says then.
pub(super) fn subnet_in_use(known: &KnownIdentity<'_>, instance: NodeId) -> Option<Ipv4Net> {
    let state = known.state.filter(|state| state.instance == Some(instance));
    known.subnet_file.or(state.map(|state| state.subnet))
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
        let both = KnownIdentity {
            state: Some(&state),
            kernel_device: Some(mac(2)),
            ..KnownIdentity::default()
        };
        let only_state = KnownIdentity {
            state: Some(&state),
            ..KnownIdentity::default()
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
            let known = KnownIdentity {
                state: Some(&state),
                subnet_file,
                ..KnownIdentity::default()
            };
            subnet_in_use(&known, NodeId::of_instance("secret", boot))
        };
        assert_eq!(in_use(None, "boot"), Some(state.subnet));
        assert_eq!(in_use(Some(file), "boot"), Some(file));
        assert_eq!(in_use(None, "next boot"), None);
    }

    #[test]
    fn a_subnet_of_another_network_or_address_is_not_ours() {
        let state = state();
        let file: Ipv4Net = "10.3.9.0/24".parse().unwrap();
        let known = KnownIdentity {
            state: Some(&state),
            subnet_file: Some(file),
            ..KnownIdentity::default()
        };
        let previous = |network: &str, last| {
            let address = Ipv4Addr::new(192, 0, 2, last);
            previous_subnet(&known, network.parse().unwrap(), address).map(|net| net.to_string())
        };
        assert_eq!(previous("10.3.0.0/16", 1).as_deref(), Some("10.3.7.0/24"));
        assert_eq!(previous("10.3.0.0/16", 2).as_deref(), Some("10.3.9.0/24"));
        assert_eq!(previous("10.4.0.0/16", 1), None);
    }
}
