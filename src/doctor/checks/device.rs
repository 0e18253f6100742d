//! The overlay device, the interface below it and the containers' bridges.

use super::daemon::listed;
use crate::doctor::facts::Facts;
use crate::doctor::{Finding, FindingStatus};
use crate::host::netlink::LinkInfo;
use crate::wire::vxlan::OVERHEAD;

const DOCKER_BRIDGE: &str = "docker0";

/// Whether there is an interface to the other hosts.
pub(crate) fn interface(facts: &Facts) -> Finding {
    const CHECK: &str = "interface";
    if let Some(error) = &facts.host.unread {
        return Finding::error(
            CHECK,
            format!("links, addresses and routes cannot be read: {error}"),
            "this process may not use netlink, because of a container or a system call filter",
            "run this on the host, as root",
        );
    }
    let external = match &facts.host.external {
        None => return Finding::skipped(CHECK, "not determined"),
        Some(Err(error)) => {
            return Finding::error(
                CHECK,
                error.clone(),
                "the daemon does not know at which address other hosts reach this one",
                "choose it with --iface=NAME or --iface=ADDRESS, here and in the daemon's options",
            );
        }
        Some(Ok(external)) => external,
    };
    let seen = format!(
        "{} {}, MTU {}",
        external.name, external.public_ip, external.mtu
    );
    let up = facts
        .host
        .links
        .iter()
        .find(|link| link.index == external.index);
    if up.is_some_and(|link| !link.up) {
        return Finding::error(
            CHECK,
            format!("{seen}, is down"),
            "nothing can be sent through an interface that is down",
            format!("ip link set {} up", external.name),
        );
    }
    Finding::ok(CHECK, seen)
}

/// The device if it is a TUN device, otherwise the finding that its checks are skipped.
fn tun_device<'a>(facts: &'a Facts, check: &'static str) -> Result<&'a LinkInfo, Finding> {
    let name = facts.device_name();
    match facts.device() {
        None => Err(Finding::skipped(check, format!("{name} does not exist"))),
        Some(link) if link.kind.as_deref() != Some("tun") => Err(Finding::skipped(
            check,
            format!("{name} is not the daemon's device"),
        )),
        Some(link) => Ok(link),
    }
}

/// Whether the device exists and is up.
pub(crate) fn device(facts: &Facts) -> Finding {
    const CHECK: &str = "device";
    let name = facts.device_name();
    let serves = facts.daemon_runs() && facts.served().is_some();
    let Some(link) = facts.device() else {
        return if serves {
            Finding::error(
                CHECK,
                format!("the daemon serves a subnet, but {name} does not exist"),
                "something deleted it and thereby its routes (a network manager, a script, ip link \
                 delete)",
                "systemctl restart uvxlan; exclude it from network managers (NetworkManager: \
                 unmanaged-devices=interface-name:flannel.*)",
            )
        } else {
            Finding::skipped(
                CHECK,
                format!("{name} does not exist, and no daemon serves a subnet"),
            )
        };
    };
    match link.kind.as_deref() {
        Some("tun") => {}
        Some("vxlan") => {
            return Finding::skipped(
                CHECK,
                format!("{name} is a kernel device: see kernel-vxlan"),
            );
        }
        kind => {
            return Finding::error(
                CHECK,
                format!("{name} is a device of kind {}", kind.unwrap_or("hardware")),
                "the daemon does not touch devices that are not its own, and cannot create its own \
                 under this name",
                format!(
                    "ip link delete {name}; or choose another \"VNI\" in the network config, for all \
                     nodes"
                ),
            );
        }
    }
    if !link.up {
        return Finding::error(
            CHECK,
            format!("{name} is down"),
            "something set it down, and the kernel then removed its routes",
            format!("ip link set {name} up; systemctl restart uvxlan"),
        );
    }
    Finding::ok(CHECK, format!("{name} is up"))
}

/// Whether the device's MTU matches the network config and the interface.
pub(crate) fn mtu(facts: &Facts) -> Finding {
    const CHECK: &str = "device-mtu";
    let link = match tun_device(facts, CHECK) {
        Ok(link) => link,
        Err(finding) => return finding,
    };
    let Some(wanted) = facts.served().and_then(|served| served.mtu) else {
        return Finding::skipped(CHECK, "the right MTU is unknown");
    };
    let (name, found) = (&link.name, link.mtu);
    if found == wanted {
        return Finding::ok(CHECK, format!("MTU {found} on {name}"));
    }
    // underlay-mtu names an interface with a smaller MTU.
    let too_small_below = facts
        .external()
        .is_some_and(|external| external.mtu < found.saturating_add(u32::from(OVERHEAD)));
    if too_small_below && found > wanted {
        return Finding::skipped(CHECK, format!("MTU {found} on {name}: see underlay-mtu"));
    }
    Finding::warning(
        CHECK,
        format!("MTU {found} on {name}, but it should be {wanted}"),
        "something changed it. A larger one causes datagrams that do not fit the interface below; \
         with a smaller one, packets of containers that use the old one are dropped",
        format!("ip link set {name} mtu {wanted}"),
    )
}

/// Whether the device has our subnet's address, and no other address of the network.
pub(crate) fn address(facts: &Facts) -> Finding {
    const CHECK: &str = "device-address";
    let link = match tun_device(facts, CHECK) {
        Ok(link) => link,
        Err(finding) => return finding,
    };
    let Some(served) = facts.served() else {
        return Finding::skipped(CHECK, "our subnet is unknown");
    };
    let name = &link.name;
    let wanted = (served.subnet.network(), 32);
    let found: Vec<_> = facts
        .addresses_of(link.index)
        .filter(|(address, _)| served.network.contains(address))
        .collect();
    if found == [wanted] {
        return Finding::ok(CHECK, format!("{}/32 on {name}", wanted.0));
    }
    let shown: Vec<_> = found
        .iter()
        .map(|(address, length)| format!("{address}/{length}"))
        .collect();
    let mut commands: Vec<_> = found
        .iter()
        .zip(&shown)
        .filter(|(entry, _)| **entry != wanted)
        .map(|(_, text)| format!("ip address delete {text} dev {name}"))
        .collect();
    if !found.contains(&wanted) {
        commands.push(format!("ip address add {}/32 dev {name}", wanted.0));
    }
    let seen = match shown.is_empty() {
        true => format!("no address of {} on {name}", served.network),
        false => format!(
            "{} on {name}, but it should be {}/32",
            listed(&shown),
            wanted.0
        ),
    };
    Finding::warning(
        CHECK,
        seen,
        "packets that this host itself sends into the overlay have a source address to which peers \
         cannot reply",
        commands.join("; "),
    )
}

/// Whether a full-sized inner packet and its encapsulation fit the interface below.
pub(crate) fn underlay_mtu(facts: &Facts) -> Finding {
    const CHECK: &str = "underlay-mtu";
    let Some(external) = facts.external() else {
        return Finding::skipped(CHECK, "the interface to the other hosts is unknown");
    };
    let by_config = || {
        let mtu = facts.store.network.as_ref()?.backend.mtu?;
        Some(u32::from(mtu).saturating_sub(u32::from(OVERHEAD)))
    };
    let device = facts
        .device()
        .filter(|link| link.kind.as_deref() == Some("tun"))
        .map(|link| link.mtu)
        .or_else(by_config);
    let (below, name) = (external.mtu, &external.name);
    let Some(inner) = device else {
        return Finding::ok(CHECK, format!("MTU {below} on {name}"));
    };
    let outer = inner.saturating_add(u32::from(OVERHEAD));
    if outer <= below {
        return Finding::ok(
            CHECK,
            format!("MTU {below} on {name} is enough for {inner} and {OVERHEAD} of encapsulation"),
        );
    }
    Finding::error(
        CHECK,
        format!("MTU {below} on {name} is too small for {inner} and {OVERHEAD} of encapsulation"),
        "full-sized packets do not fit: small ones pass (ping, DNS), transfers hang",
        format!(
            "ip link set {name} mtu {outer}; or \"MTU\": {below} in the network config's Backend, then \
             systemctl restart uvxlan docker"
        ),
    )
}

/// Whether a bridge in our subnet has a larger MTU than the tunnel.
pub(crate) fn bridge_mtu(facts: &Facts) -> Finding {
    const CHECK: &str = "bridge-mtu";
    let Some(served) = facts.served() else {
        return Finding::skipped(CHECK, "our subnet is unknown");
    };
    let link = match tun_device(facts, CHECK) {
        Ok(link) => link,
        Err(finding) => return finding,
    };
    let bridges: Vec<_> = facts.bridges_in(served.subnet).collect();
    let larger: Vec<_> = bridges
        .iter()
        .filter(|bridge| bridge.mtu > link.mtu)
        .collect();
    let Some(first) = larger.first() else {
        let seen = match bridges.first() {
            Some(bridge) => format!("MTU {} on {}", bridge.mtu, bridge.name),
            None => format!("no bridge has an address in {}", served.subnet),
        };
        return Finding::ok(CHECK, seen);
    };
    Finding::warning(
        CHECK,
        format!(
            "MTU {} on {}, larger than {} on {}",
            first.mtu, first.name, link.mtu, link.name
        ),
        "containers send packets that do not fit the tunnel; connections that ignore ICMP's \
         \"fragmentation needed\" hang",
        format!(
            "start docker with --mtu={0} (mk-docker-opts.sh takes it from the subnet file) and \
             recreate the containers; for now: ip link set {1} mtu {0}",
            link.mtu, first.name
        ),
    )
}

/// Whether docker's bridge is in our subnet, unless another bridge is.
pub(crate) fn bridge_address(facts: &Facts) -> Finding {
    const CHECK: &str = "bridge-address";
    let Some(served) = facts.served() else {
        return Finding::skipped(CHECK, "our subnet is unknown");
    };
    let inside = facts.bridges_in(served.subnet).next();
    if let Some(bridge) = inside {
        return Finding::ok(CHECK, format!("{} is in {}", bridge.name, served.subnet));
    }
    let links = &facts.host.links;
    let Some(docker) = links.iter().find(|link| link.name == DOCKER_BRIDGE) else {
        return Finding::ok(CHECK, format!("{DOCKER_BRIDGE} does not exist"));
    };
    let has: Vec<_> = facts
        .addresses_of(docker.index)
        .map(|(address, length)| format!("{address}/{length}"))
        .collect();
    let has = match has.is_empty() {
        true => "no address".to_owned(),
        false => listed(&has),
    };
    Finding::new(
        CHECK,
        FindingStatus::Warning,
        format!("{DOCKER_BRIDGE} has {has}, outside of {}", served.subnet),
        "docker was started without this node's subnet, or before the lease: other hosts cannot \
         reach its containers",
        "pass the options from mk-docker-opts.sh to docker (DOCKER_NETWORK_OPTIONS in its unit), \
         then systemctl restart docker",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::facts::DaemonFacts;
    use crate::doctor::samples;

    fn change(facts: &mut Facts, name: &str, change: impl FnOnce(&mut LinkInfo)) {
        let mut links = facts.host.links.iter_mut();
        change(links.find(|link| link.name == name).unwrap());
    }

    #[test]
    fn no_interface_is_an_error_that_names_the_flag() {
        let mut facts = samples::healthy();
        facts.host.external = Some(Err("there is no IPv4 default route".into()));
        let finding = interface(&facts);
        assert_eq!(finding.status, FindingStatus::Error);
        assert!(finding.fix.contains("--iface"));
        facts.host.unread = Some("EPERM".into());
        assert!(interface(&facts).seen.contains("EPERM"));
    }

    #[test]
    fn an_interface_that_is_down_is_an_error() {
        let mut facts = samples::healthy();
        change(&mut facts, "eth0", |link| link.up = false);
        assert_eq!(interface(&facts).fix, "ip link set eth0 up");
    }

    #[test]
    fn a_missing_or_down_device_is_an_error_while_a_daemon_serves() {
        let mut facts = samples::healthy();
        change(&mut facts, "flannel.1", |link| link.up = false);
        assert!(device(&facts).seen.contains("is down"));
        facts.host.links.retain(|link| link.name != "flannel.1");
        assert_eq!(device(&facts).status, FindingStatus::Error);
        facts.daemon = DaemonFacts::Silent(String::new(), None);
        assert_eq!(device(&facts).status, FindingStatus::Error);
        facts.daemon = DaemonFacts::Absent(String::new());
        assert_eq!(device(&facts).status, FindingStatus::Skipped);
    }

    #[test]
    fn a_foreign_device_of_our_name_is_an_error() {
        let mut facts = samples::healthy();
        change(&mut facts, "flannel.1", |link| {
            link.kind = Some("dummy".into())
        });
        assert!(device(&facts).seen.contains("kind dummy"));
        assert_eq!(mtu(&facts).status, FindingStatus::Skipped);
    }

    #[test]
    fn a_wrong_mtu_is_named_with_the_right_one() {
        let mut facts = samples::healthy();
        change(&mut facts, "flannel.1", |link| link.mtu = 1400);
        let finding = mtu(&facts);
        assert_eq!(finding.status, FindingStatus::Warning);
        assert_eq!(finding.fix, "ip link set flannel.1 mtu 1450");
        assert_eq!(underlay_mtu(&facts).status, FindingStatus::Ok);
    }

    #[test]
    fn a_wrong_address_is_named_with_the_right_one() {
        let mut facts = samples::healthy();
        facts.host.addresses.retain(|entry| entry.ifindex != 3);
        assert_eq!(
            address(&facts).fix,
            "ip address add 10.5.1.0/32 dev flannel.1"
        );
        facts
            .host
            .addresses
            .push(samples::address(3, "10.5.9.0", 32));
        let finding = address(&facts);
        assert_eq!(finding.status, FindingStatus::Warning);
        assert!(finding.fix.contains("delete 10.5.9.0/32"), "{finding:?}");
    }

    #[test]
    fn an_interface_with_a_too_small_mtu_is_one_error() {
        let mut facts = samples::healthy();
        if let Some(Ok(external)) = &mut facts.host.external {
            external.mtu = 1400;
        }
        let finding = underlay_mtu(&facts);
        assert_eq!(finding.status, FindingStatus::Error);
        assert!(finding.fix.contains("mtu 1500"));
        // The expected MTU follows the interface then, so that there is one finding, not two.
        facts.daemon = DaemonFacts::Silent(String::new(), None);
        assert_eq!(mtu(&facts).status, FindingStatus::Skipped);
    }

    #[test]
    fn a_larger_bridge_is_a_warning() {
        let mut facts = samples::healthy();
        change(&mut facts, "docker0", |link| link.mtu = 1500);
        let finding = bridge_mtu(&facts);
        assert_eq!(finding.status, FindingStatus::Warning);
        assert!(finding.fix.contains("ip link set docker0 mtu 1450"));
    }

    #[test]
    fn docker_outside_of_our_subnet_is_a_warning_unless_another_bridge_is_in_it() {
        let mut facts = samples::healthy();
        for entry in &mut facts.host.addresses {
            if entry.ifindex == 4 {
                entry.address = "172.17.0.1".parse().unwrap();
            }
        }
        assert_eq!(bridge_address(&facts).status, FindingStatus::Warning);
        facts.host.links.push(samples::link(8, "cni0", "bridge"));
        let gateway = samples::address(8, "10.5.1.1", 24);
        facts.host.addresses.push(gateway);
        assert_eq!(bridge_address(&facts).status, FindingStatus::Ok);
    }
}
