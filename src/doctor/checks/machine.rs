//! The machine itself: TUN, capabilities, kernel, forwarding.

use std::io;

use crate::doctor::Finding;
use crate::doctor::facts::Facts;
use crate::sys::kernel::Version;

/// Whether `/dev/net/tun` can be opened.
pub(crate) fn tun(facts: &Facts) -> Finding {
    const CHECK: &str = "tun";
    let Err(error) = &facts.machine.tun else {
        return Finding::ok(CHECK, "/dev/net/tun can be opened");
    };
    let (cause, fix) = match error.kind() {
        io::ErrorKind::NotFound => (
            "the TUN device file does not exist: the tun module is not loaded, or the container was \
             not given the device",
            "modprobe tun; in a container: --device /dev/net/tun",
        ),
        io::ErrorKind::PermissionDenied => (
            "this process is not allowed to open the TUN device file",
            "run as root, or: chmod 0666 /dev/net/tun; in a container: --device /dev/net/tun",
        ),
        _ => ("the kernel has no working TUN driver", "modprobe tun"),
    };
    Finding::error(
        CHECK,
        format!("cannot open /dev/net/tun: {error}"),
        cause,
        fix,
    )
}

/// Whether this process holds `CAP_NET_ADMIN` and `CAP_NET_RAW`.
pub(crate) fn capabilities(facts: &Facts) -> Finding {
    const CHECK: &str = "capabilities";
    let (admin, raw) = match &facts.machine.capabilities {
        Ok(held) => *held,
        Err(error) => {
            return Finding::skipped(CHECK, format!("cannot read the capabilities: {error}"));
        }
    };
    let missing: Vec<_> = [(admin, "CAP_NET_ADMIN"), (raw, "CAP_NET_RAW")]
        .into_iter()
        .filter_map(|(held, name)| (!held).then_some(name))
        .collect();
    if missing.is_empty() {
        return Finding::ok(CHECK, "this process has CAP_NET_ADMIN and CAP_NET_RAW");
    }
    Finding::error(
        CHECK,
        format!("this process does not have {}", missing.join(" and ")),
        "the daemon needs them for its device, routes, firewall rules and probes",
        "run as root; in a container: --cap-add NET_ADMIN --cap-add NET_RAW",
    )
}

/// Known bugs of this kernel. Distributions fix kernels without changing the version, so this is
/// only a warning; the daemon tests what it uses.
pub(crate) fn kernel(facts: &Facts) -> Finding {
    const CHECK: &str = "kernel";
    let version = facts.machine.kernel;
    let Version(major, minor, patch) = version;
    let seen = format!("Linux {version}");
    let cause = match (major, minor, patch) {
        (6, 6, 44..=46) | (6, 1, 103..=105) | (6, 10, 3..=5) => {
            "kernels around this version refuse to write some merged packets to a TUN device \
             (EINVAL); the daemon then writes them one by one, which is slower"
        }
        (7, 0, _) | (7, 1, 0..=4) => {
            "this kernel corrupts equally long datagrams sent with UDP_SEGMENT (fixed in 7.1.5); \
             the daemon sends them one by one, which is slower"
        }
        _ if version < Version(6, 8, 5) => {
            let note =
                "before 6.8.5: inner datagrams to ports of well-known tunnels are not merged";
            return Finding::ok(CHECK, format!("{seen} ({note})"));
        }
        _ => return Finding::ok(CHECK, seen),
    };
    let fix = "install the distribution's newest kernel and reboot";
    Finding::warning(CHECK, seen, cause, fix)
}

/// Which offloads this kernel supports.
pub(crate) fn offloads(facts: &Facts) -> Finding {
    const CHECK: &str = "offloads";
    let running = facts
        .status()
        .and_then(|status| status.packet_loop.as_ref());
    let (seen, lacking) = match (running, &facts.machine.offloads) {
        (Some(packets), _) => (
            format!("in use: {}", packets.offloads),
            packets.lacking.clone(),
        ),
        (None, Some((usable, lacking))) => (
            format!("usable: {usable}"),
            lacking
                .iter()
                .map(|lacking| format!("{}: {}", lacking.part, lacking.reason))
                .collect(),
        ),
        (None, None) => return Finding::skipped(CHECK, "they could not be tested here"),
    };
    if lacking.is_empty() {
        return Finding::ok(CHECK, seen);
    }
    Finding::warning(
        CHECK,
        format!("{seen}; without {}", lacking.join("; ")),
        "without an offload packets pass one by one, which is correct but slower",
        "install a newer kernel and reboot",
    )
}

/// Whether this host and the interfaces of the overlay forward packets.
pub(crate) fn forwarding(facts: &Facts) -> Finding {
    const CHECK: &str = "forwarding";
    match facts.sysctl("net/ipv4/ip_forward") {
        None => return Finding::skipped(CHECK, "net.ipv4.ip_forward cannot be read"),
        Some("0") if !facts.daemon_runs() => {
            return Finding::warning(
                CHECK,
                "net.ipv4.ip_forward is 0",
                "the daemon turns it on when it starts, unless /proc/sys is read-only, as in many \
                 containers",
                "sysctl -w net.ipv4.ip_forward=1",
            );
        }
        Some("0") => {
            return Finding::error(
                CHECK,
                "net.ipv4.ip_forward is 0: something turned it off after the daemon had started",
                "no packet passes between containers and the overlay",
                "sysctl -w net.ipv4.ip_forward=1, and put the setting into /etc/sysctl.d/99-uvxlan.conf",
            );
        }
        Some(_) => {}
    }
    let off: Vec<_> = facts
        .overlay_links()
        .into_iter()
        .map(|link| format!("net/ipv4/conf/{link}/forwarding"))
        .filter(|path| facts.sysctl(path) == Some("0"))
        .collect();
    if off.is_empty() {
        return Finding::ok(CHECK, "net.ipv4.ip_forward is 1");
    }
    let commands: Vec<_> = off
        .iter()
        .map(|path| format!("sysctl -w {path}=1"))
        .collect();
    Finding::error(
        CHECK,
        format!("{} is 0", off.join(" and ")),
        "packets that arrive on this interface are not forwarded",
        commands.join("; "),
    )
}

/// Whether reverse path filtering drops packets from the overlay.
pub(crate) fn rp_filter(facts: &Facts) -> Finding {
    const CHECK: &str = "rp-filter";
    let Some(device) = facts.device() else {
        return Finding::skipped(CHECK, format!("{} does not exist", facts.device_name()));
    };
    let value = |interface: &str| {
        let text = facts.sysctl(&format!("net/ipv4/conf/{interface}/rp_filter"))?;
        text.parse::<u8>().ok()
    };
    // The kernel uses the larger of the two values (ip-sysctl.rst).
    let name = &device.name;
    let effective = value("all").unwrap_or(0).max(value(name).unwrap_or(0));
    if effective != 1 {
        return Finding::ok(CHECK, format!("{effective} on {name}"));
    }
    Finding::warning(
        CHECK,
        format!("rp_filter is 1 (strict) on {name}"),
        "packets from the overlay are dropped if this host's route back to their source uses \
         another interface (direct routing, several uplinks)",
        format!(
            "sysctl -w net.ipv4.conf.all.rp_filter=2; sysctl -w net/ipv4/conf/{name}/rp_filter=2"
        ),
    )
}

/// Whether bridged packets pass through iptables, as kube-proxy needs.
pub(crate) fn bridge_filter(facts: &Facts) -> Finding {
    const CHECK: &str = "bridge-filter";
    let has_kube_proxy = [&facts.firewall.iptables, &facts.firewall.nft]
        .into_iter()
        .flatten()
        .flatten()
        .any(|rules| rules.contains("KUBE-SERVICES") || rules.contains("\"kube-proxy\""));
    let seen = match facts.sysctl("net/bridge/bridge-nf-call-iptables") {
        Some("0") => "net.bridge.bridge-nf-call-iptables is 0",
        Some(_) => return Finding::ok(CHECK, "bridged packets pass through iptables"),
        None => "br_netfilter is not loaded",
    };
    if !has_kube_proxy {
        return Finding::ok(CHECK, format!("{seen}; only kube-proxy would need it"));
    }
    Finding::warning(
        CHECK,
        format!("{seen}, but kube-proxy has rules here"),
        "packets between containers of one host bypass kube-proxy's rules, so a service does not \
         answer if its backend is on the same host",
        "modprobe br_netfilter; sysctl -w net.bridge.bridge-nf-call-iptables=1",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::offloads::{MissingOffload, Offloads};
    use crate::doctor::FindingStatus;
    use crate::doctor::facts::DaemonFacts;
    use crate::doctor::samples;

    fn set(facts: &mut Facts, path: &str, value: &str) {
        facts.machine.sysctls.insert(path.into(), value.into());
    }

    #[test]
    fn a_missing_tun_device_is_an_error_with_a_fix() {
        let mut facts = samples::healthy();
        facts.machine.tun = Err(io::ErrorKind::NotFound.into());
        let finding = tun(&facts);
        assert_eq!(finding.status, FindingStatus::Error);
        assert!(finding.fix.contains("modprobe tun"));
        facts.machine.tun = Err(io::ErrorKind::PermissionDenied.into());
        assert!(tun(&facts).fix.contains("root"));
    }

    #[test]
    fn the_missing_capability_is_named() {
        let mut facts = samples::healthy();
        facts.machine.capabilities = Ok((true, false));
        let finding = capabilities(&facts);
        assert_eq!(finding.status, FindingStatus::Error);
        assert_eq!(finding.seen, "this process does not have CAP_NET_RAW");
        facts.machine.capabilities = Err("no".into());
        assert_eq!(capabilities(&facts).status, FindingStatus::Skipped);
    }

    #[test]
    fn kernels_with_known_bugs_cause_a_warning() {
        let mut facts = samples::healthy();
        let mut judged = |version| {
            facts.machine.kernel = version;
            kernel(&facts).status
        };
        for bad in [(6, 6, 44), (6, 1, 103), (6, 10, 3), (7, 0, 0), (7, 1, 4)] {
            let version = Version(bad.0, bad.1, bad.2);
            assert_eq!(judged(version), FindingStatus::Warning, "{version}");
        }
        for good in [(5, 10, 0), (6, 1, 0), (6, 8, 4), (6, 12, 0), (7, 1, 5)] {
            let version = Version(good.0, good.1, good.2);
            assert_eq!(judged(version), FindingStatus::Ok, "{version}");
        }
    }

    #[test]
    fn missing_offloads_are_named_with_and_without_a_daemon() {
        let mut facts = samples::before_the_first_start();
        let lacking = MissingOffload {
            part: "send",
            reason: "no UDP_SEGMENT".into(),
        };
        facts.machine.offloads = Some((Offloads::OFF, vec![lacking]));
        let finding = offloads(&facts);
        assert_eq!(finding.status, FindingStatus::Warning);
        assert!(finding.seen.contains("send: no UDP_SEGMENT"), "{finding:?}");
        assert_eq!(offloads(&samples::healthy()).seen, "in use: read,send");
    }

    #[test]
    fn forwarding_that_is_off_matters_most_while_a_daemon_runs() {
        let mut facts = samples::healthy();
        set(&mut facts, "net/ipv4/conf/flannel.1/forwarding", "0");
        let finding = forwarding(&facts);
        assert_eq!(finding.status, FindingStatus::Error);
        let command = "sysctl -w net/ipv4/conf/flannel.1/forwarding=1";
        assert_eq!(finding.fix, command);
        set(&mut facts, "net/ipv4/ip_forward", "0");
        assert_eq!(forwarding(&facts).status, FindingStatus::Error);
        facts.daemon = DaemonFacts::Absent(String::new());
        assert_eq!(forwarding(&facts).status, FindingStatus::Warning);
    }

    #[test]
    fn strict_filtering_counts_from_all_interfaces_too() {
        let mut facts = samples::healthy();
        set(&mut facts, "net/ipv4/conf/all/rp_filter", "1");
        assert_eq!(rp_filter(&facts).status, FindingStatus::Warning);
        set(&mut facts, "net/ipv4/conf/flannel.1/rp_filter", "2");
        assert_eq!(rp_filter(&facts).status, FindingStatus::Ok);
    }

    #[test]
    fn only_kube_proxy_makes_an_unfiltered_bridge_a_finding() {
        let mut facts = samples::healthy();
        assert_eq!(bridge_filter(&facts).status, FindingStatus::Ok);
        let rules = "*nat\n:KUBE-SERVICES - [0:0]\nCOMMIT\n";
        facts.firewall.iptables = Some(Ok(rules.into()));
        assert_eq!(bridge_filter(&facts).status, FindingStatus::Warning);
        set(&mut facts, "net/bridge/bridge-nf-call-iptables", "1");
        assert_eq!(bridge_filter(&facts).status, FindingStatus::Ok);
    }
}
