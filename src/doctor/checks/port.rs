//! The UDP port of the tunnels, and kernel devices that use it.

use crate::doctor::Finding;
use crate::doctor::facts::{DaemonFacts, Facts};
use crate::host::netlink::LinkInfo;

fn vxlan_links(facts: &Facts) -> impl Iterator<Item = &LinkInfo> {
    let links = facts.host.links.iter();
    links.filter(|link| link.kind.as_deref() == Some("vxlan"))
}

/// Whether flannel's own device still exists.
pub(crate) fn kernel_vxlan(facts: &Facts) -> Finding {
    const CHECK: &str = "kernel-vxlan";
    let name = facts.device_name();
    if !vxlan_links(facts).any(|link| link.name == name) {
        return Finding::ok(CHECK, format!("{name} is not a kernel vxlan device"));
    }
    let seen = format!("{name} is a kernel vxlan device");
    if facts.daemon_runs() {
        return Finding::error(
            CHECK,
            seen,
            "flanneld, or another program that created it, runs at the same time; both need the same \
             device and UDP port",
            format!(
                "systemctl disable --now flanneld; ip link delete {name}; systemctl restart uvxlan"
            ),
        );
    }
    Finding::warning(
        CHECK,
        seen,
        "flanneld left it behind. The daemon takes it over at start: it keeps the MAC and deletes \
         the device. If flanneld is still running, it would create it again",
        format!(
            "systemctl disable --now flanneld; systemctl start uvxlan (or: ip link delete {name})"
        ),
    )
}

/// Whether the daemon has the UDP port, or can have it.
pub(crate) fn holder(facts: &Facts) -> Finding {
    const CHECK: &str = "udp-port";
    let port = facts.port();
    let ours = facts.daemon_pid();
    let foreign = facts.host.holders.iter().find(|holder| match holder.pid {
        Some(pid) => Some(pid) != ours,
        // Without permission to inspect processes, the daemon's own socket looks the same.
        None => !facts.daemon_runs() || vxlan_links(facts).next().is_some(),
    });
    let Some(holder) = foreign else {
        return ours_or_free(facts, port);
    };
    let device = vxlan_links(facts).find(|_| holder.pid.is_none());
    let (who, fix) = match (device, holder.pid) {
        (Some(device), _) if device.name == facts.device_name() && !facts.daemon_runs() => {
            return Finding::skipped(CHECK, "in use by the kernel device: see kernel-vxlan");
        }
        (Some(device), _) => (
            format!("the kernel's vxlan, most likely for device {}", device.name),
            format!("ip link delete {}", device.name),
        ),
        (None, Some(pid)) => (
            holder.to_string(),
            format!(
                "kill {pid}, or stop its service (systemctl status {pid}); or choose another \"Port\" \
                 in the network config, for all nodes"
            ),
        ),
        (None, None) => (
            holder.to_string(),
            format!("as root: ss -ulpn 'sport = :{port}'"),
        ),
    };
    Finding::error(
        CHECK,
        format!("UDP port {port} is in use by {who}"),
        "the daemon cannot receive packets while another program has the port",
        fix,
    )
}

fn ours_or_free(facts: &Facts, port: u16) -> Finding {
    const CHECK: &str = "udp-port";
    let serves = facts.status().is_some_and(|status| status.node.is_some());
    match (facts.host.holders.is_empty(), &facts.daemon) {
        (true, _) if serves => Finding::error(
            CHECK,
            format!("the daemon serves a subnet, but no socket is bound to UDP port {port}"),
            "the daemon lost its sockets, or runs in another network namespace than this command",
            "systemctl restart uvxlan",
        ),
        (true, _) => Finding::ok(CHECK, format!("UDP port {port} is free")),
        (false, DaemonFacts::Absent(_)) => Finding::ok(CHECK, format!("UDP port {port} is in use")),
        (false, _) => Finding::ok(CHECK, format!("UDP port {port} is the daemon's")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::{FindingStatus, samples};
    use crate::host::port::Holder;

    fn socket_of(pid: Option<u32>) -> Holder {
        Holder {
            pid,
            name: "nc".into(),
        }
    }

    #[test]
    fn another_program_on_the_port_is_named() {
        let mut facts = samples::healthy();
        facts.host.holders = vec![socket_of(Some(77))];
        let finding = holder(&facts);
        assert_eq!(finding.status, FindingStatus::Error);
        assert!(finding.seen.contains("8472 is in use by nc (pid 77)"));
        assert!(finding.fix.contains("kill 77"));
        facts.host.holders.clear();
        assert_eq!(
            holder(&facts).status,
            FindingStatus::Error,
            "a daemon without sockets"
        );
    }

    #[test]
    fn a_free_port_is_fine_without_a_daemon() {
        let facts = samples::before_the_first_start();
        assert_eq!(holder(&facts).status, FindingStatus::Ok);
    }

    #[test]
    fn a_kernel_device_is_named_once() {
        let mut facts = samples::before_the_first_start();
        facts
            .host
            .links
            .push(samples::link(9, "flannel.1", "vxlan"));
        facts.host.holders = vec![socket_of(None)];
        let found = kernel_vxlan(&facts);
        assert_eq!(found.status, FindingStatus::Warning);
        assert!(found.fix.contains("ip link delete flannel.1"));
        assert_eq!(holder(&facts).status, FindingStatus::Skipped);
    }

    #[test]
    fn a_kernel_device_of_another_name_uses_the_port() {
        let mut facts = samples::before_the_first_start();
        facts.host.links.push(samples::link(9, "vxlan0", "vxlan"));
        facts.host.holders = vec![socket_of(None)];
        assert_eq!(kernel_vxlan(&facts).status, FindingStatus::Ok);
        let found = holder(&facts);
        assert_eq!(found.status, FindingStatus::Error);
        assert_eq!(found.fix, "ip link delete vxlan0");
    }

    #[test]
    fn a_kernel_device_beside_a_daemon_is_an_error() {
        let mut facts = samples::healthy();
        let name = facts.device_name();
        facts.host.links.retain(|link| link.name != name);
        facts.host.links.push(samples::link(9, &name, "vxlan"));
        assert_eq!(kernel_vxlan(&facts).status, FindingStatus::Error);
    }
}
