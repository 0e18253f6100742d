//! The UDP port of the tunnels, and kernel devices that hold it.

use crate::doctor::Finding;
use crate::doctor::facts::{Daemon, Facts};
use crate::host::netlink::LinkInfo;

fn vxlan_links(facts: &Facts) -> impl Iterator<Item = &LinkInfo> {
    let links = facts.host.links.iter();
    links.filter(|link| link.kind.as_deref() == Some("vxlan"))
}

/// Whether flannel's own device is still there.
#[must_use]
pub fn kernel_vxlan(facts: &Facts) -> Finding {
    const CHECK: &str = "kernel-vxlan";
    let name = facts.device_name();
    if !vxlan_links(facts).any(|link| link.name == name) {
        return Finding::ok(CHECK, format!("{name} is no device of the kernel's vxlan"));
    }
    let seen = format!("{name} is a device of the kernel's vxlan");
    if facts.alive() {
        return Finding::error(
            CHECK,
            seen,
            "flanneld, or whoever made it, runs beside this daemon; both want one device and one \
             UDP port",
            format!(
                "systemctl disable --now flanneld; ip link delete {name}; systemctl restart uvxlan"
            ),
        );
    }
    Finding::warning(
        CHECK,
        seen,
        "flanneld left it; the daemon takes it over at its start (keeps its MAC, deletes it), but a \
         flanneld that still runs would make it again",
        format!(
            "systemctl disable --now flanneld; systemctl start uvxlan (or: ip link delete {name})"
        ),
    )
}

/// Whether the UDP port is the daemon's, or free for it.
#[must_use]
pub fn holder(facts: &Facts) -> Finding {
    const CHECK: &str = "udp-port";
    let port = facts.port();
    let ours = facts.daemon_pid();
    let foreign = facts.host.holders.iter().find(|holder| match holder.pid {
        Some(pid) => Some(pid) != ours,
        // Without rights to look into other processes, the daemon's own socket looks alike.
        None => !facts.alive() || vxlan_links(facts).next().is_some(),
    });
    let Some(holder) = foreign else {
        return ours_or_free(facts, port);
    };
    let device = vxlan_links(facts).find(|_| holder.pid.is_none());
    let (who, remedy) = match (device, holder.pid) {
        (Some(device), _) if device.name == facts.device_name() && !facts.alive() => {
            return Finding::skipped(CHECK, "held by the kernel device that kernel-vxlan names");
        }
        (Some(device), _) => (
            format!("the kernel's vxlan, most likely for device {}", device.name),
            format!("ip link delete {}", device.name),
        ),
        (None, Some(pid)) => (
            holder.to_string(),
            format!(
                "kill {pid}, or stop its service (systemctl status {pid}); or another \"Port\" in the \
                 network config, on all nodes"
            ),
        ),
        (None, None) => (
            holder.to_string(),
            format!("as root: ss -ulpn 'sport = :{port}'"),
        ),
    };
    Finding::error(
        CHECK,
        format!("UDP port {port} is held by {who}"),
        "the daemon cannot receive tunnels while somebody else does",
        remedy,
    )
}

fn ours_or_free(facts: &Facts, port: u16) -> Finding {
    const CHECK: &str = "udp-port";
    let serves = facts.status().is_some_and(|status| status.node.is_some());
    match (facts.host.holders.is_empty(), &facts.daemon) {
        (true, _) if serves => Finding::error(
            CHECK,
            format!("nobody receives on UDP port {port}, though the daemon serves"),
            "the daemon lost its sockets, or runs in another network namespace than this command",
            "systemctl restart uvxlan",
        ),
        (true, _) => Finding::ok(CHECK, format!("UDP port {port} is free")),
        (false, Daemon::Absent(_)) => Finding::ok(CHECK, format!("UDP port {port} is held")),
        (false, _) => Finding::ok(CHECK, format!("UDP port {port} is the daemon's")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::{Outcome, samples};
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
        assert_eq!(finding.status, Outcome::Error);
        assert!(finding.seen.contains("8472 is held by nc (pid 77)"));
        assert!(finding.remedy.contains("kill 77"));
        facts.host.holders.clear();
        assert_eq!(holder(&facts).status, Outcome::Error, "a deaf daemon");
    }

    #[test]
    fn a_free_port_is_fine_without_a_daemon() {
        let facts = samples::before_the_first_start();
        assert_eq!(holder(&facts).status, Outcome::Ok);
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
        assert_eq!(found.status, Outcome::Warning);
        assert!(found.remedy.contains("ip link delete flannel.1"));
        assert_eq!(holder(&facts).status, Outcome::Skipped);
    }

    #[test]
    fn a_kernel_device_of_another_name_holds_the_port() {
        let mut facts = samples::before_the_first_start();
        facts.host.links.push(samples::link(9, "vxlan0", "vxlan"));
        facts.host.holders = vec![socket_of(None)];
        assert_eq!(kernel_vxlan(&facts).status, Outcome::Ok);
        let found = holder(&facts);
        assert_eq!(found.status, Outcome::Error);
        assert_eq!(found.remedy, "ip link delete vxlan0");
    }

    #[test]
    fn a_kernel_device_beside_a_daemon_is_an_error() {
        let mut facts = samples::healthy();
        let name = facts.device_name();
        facts.host.links.retain(|link| link.name != name);
        facts.host.links.push(samples::link(9, &name, "vxlan"));
        assert_eq!(kernel_vxlan(&facts).status, Outcome::Error);
    }
}
