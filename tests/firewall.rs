//! The rules on a host: as flannel's, mended, cleaned up after flannel and ourselves, and doing
//! what they are for.

#[path = "support/nodes.rs"]
mod nodes;

use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use ipnet::Ipv4Net;
use nodes::{NodeUnderTest, PROGRAM, eventually, need, possible};
use uvxlan::testbed::{Host, Node, Topology};

const CONFIG: &str = r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}"#;
const IPTABLES: [&str; 2] = ["iptables-nft", "iptables-legacy"];

fn write_config(folder: &Path, config: &str) -> String {
    let store = folder.join("store");
    std::fs::create_dir_all(&store).unwrap();
    std::fs::write(store.join("config"), config).unwrap();
    format!("--store=dir:{}", store.display())
}

/// A folder in which `iptables` and the like are those of one backend, put before the PATH.
fn only_backend(folder: &Path, backend: &str) -> String {
    let bin = folder.join("bin");
    std::fs::create_dir_all(&bin).unwrap();
    let multi = match backend {
        "iptables-nft" => "xtables-nft-multi",
        _ => "xtables-legacy-multi",
    };
    let path = ["/usr/sbin", "/sbin"]
        .iter()
        .map(|place| Path::new(place).join(multi))
        .find(|path| path.exists())
        .unwrap_or_else(|| panic!("no {multi}"));
    for name in ["iptables", "iptables-save", "iptables-restore"] {
        let link = bin.join(name);
        let _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink(&path, link).unwrap();
    }
    let rest = std::env::var("PATH").unwrap();
    format!("{}:{rest}", bin.display())
}

/// Runs a shell line in the host's namespace, with this PATH.
fn shell(host: &Host, path: &str, line: &str) -> String {
    let mut command = Command::new("sh");
    command.args(["-c", line]).env("PATH", path);
    let output = host.namespace().command(command).output().unwrap();
    assert!(output.status.success(), "{line}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Rules without comments of the program and counters.
fn saved(host: &Host, path: &str) -> String {
    let text = shell(host, path, "iptables-save -t nat; iptables-save -t filter");
    let rules = text.lines().filter(|line| line.starts_with("-A"));
    rules.map(|line| format!("{line}\n")).collect()
}

fn expected(subnet: Ipv4Net) -> String {
    let n = "10.5.0.0/16";
    let masq = "-m comment --comment \"flanneld masq\"";
    let forward = "-m comment --comment \"flanneld forward\"";
    format!(
        "-A POSTROUTING {masq} -j FLANNEL-POSTRTG\n\
         -A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 {masq} -j RETURN\n\
         -A FLANNEL-POSTRTG -s {subnet} -d {n} {masq} -j RETURN\n\
         -A FLANNEL-POSTRTG -s {n} -d {subnet} {masq} -j RETURN\n\
         -A FLANNEL-POSTRTG ! -s {n} -d {subnet} {masq} -j RETURN\n\
         -A FLANNEL-POSTRTG -s {n} ! -d 224.0.0.0/4 {masq} -j MASQUERADE --random-fully\n\
         -A FLANNEL-POSTRTG ! -s {n} -d {n} {masq} -j MASQUERADE --random-fully\n\
         -A FORWARD {forward} -j FLANNEL-FWD\n\
         -A FLANNEL-FWD -s {n} {forward} -j ACCEPT\n\
         -A FLANNEL-FWD -d {n} {forward} -j ACCEPT\n"
    )
}

/// A node whose daemon sees this PATH.
fn node(host: &Host, folder: &Path, flags: &[String], path: &str) -> NodeUnderTest {
    // Programs are looked up in the PATH of the process, so the daemon gets it by env(1).
    let wrapper = folder.join("uvxlan-with-path");
    std::fs::write(
        &wrapper,
        format!("#!/bin/sh\nPATH='{path}' exec {PROGRAM} \"$@\"\n"),
    )
    .unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&wrapper, mode).unwrap();
    NodeUnderTest::start_program(&wrapper, host, folder, flags)
}

#[test]
fn rules_are_flannels_stay_and_leave_nothing_behind() {
    need!(possible(&["iptables", "nft"]));
    for backend in IPTABLES {
        let topology = Topology::two_hosts().unwrap();
        let host = &topology.hosts()[0];
        let folder = tempfile::tempdir().unwrap();
        let path = only_backend(folder.path(), backend);
        let store = write_config(folder.path(), CONFIG);
        // Left by flannel v0.11, by the newest in nftables mode, and somebody else's.
        for rule in [
            "-t nat -A POSTROUTING -s 10.5.0.0/16 -d 10.5.0.0/16 -j RETURN",
            "-t nat -A POSTROUTING -s 10.5.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE --random-fully",
            "-t nat -A POSTROUTING ! -s 10.5.0.0/16 -d 10.5.0.0/16 -j MASQUERADE --random-fully",
            "-t nat -A POSTROUTING -s 198.18.0.0/24 ! -o docker0 -j MASQUERADE",
            "-A FORWARD -s 10.5.0.0/16 -j ACCEPT",
            "-A FORWARD -d 10.5.0.0/16 -j ACCEPT",
        ] {
            shell(host, &path, &format!("iptables {rule}"));
        }
        shell(host, &path, "nft add table ip flannel-ipv4");

        let stranger = "-A POSTROUTING -s 198.18.0.0/24 ! -o docker0 -j MASQUERADE\n";
        let flags = [store, "--ip-masq".into(), "--iptables-resync=1".into()];
        let mut node = node(host, folder.path(), &flags, &path);
        let wanted = format!("{stranger}{}", expected(node.env.unwrap().subnet));
        assert_eq!(saved(host, &path), wanted, "{backend}, at start");
        let tables = shell(host, &path, "nft list tables");
        assert!(!tables.contains("flannel-ipv4"), "{tables}");

        shell(
            host,
            &path,
            "iptables -F FLANNEL-FWD; iptables -t nat -D FLANNEL-POSTRTG 2",
        );
        eventually("rules are mended", || saved(host, &path) == wanted);

        node.stop_daemon();
        assert_eq!(
            saved(host, &path),
            wanted,
            "{backend}: they stay, as flannel's"
        );
        node.start_daemon();
        assert_eq!(saved(host, &path), wanted, "{backend}, at a second start");
        node.stop_daemon();

        node.flags.push("--firewall=nftables".into());
        node.start_daemon();
        assert_eq!(saved(host, &path), stranger, "{backend}: moved to nftables");
        let table = shell(host, &path, "nft list table ip flannel-ipv4");
        assert!(table.contains("masquerade fully-random"), "{table}");
        shell(host, &path, "nft delete table ip flannel-ipv4");
        eventually("the table is mended", || {
            shell(host, &path, "nft list tables").contains("flannel-ipv4")
        });
        node.stop_daemon();

        // Without masquerading, and with a new network: nothing of the old one is left.
        let config = CONFIG.replace("10.5.", "10.6.");
        write_config(folder.path(), &config);
        std::fs::remove_dir_all(folder.path().join("store/subnets")).unwrap();
        node.flags = vec![node.flags[0].clone()];
        node.start_daemon();
        let rules = saved(host, &path);
        assert!(
            rules.starts_with(stranger) && !rules.contains("10.5."),
            "{rules}"
        );
        assert!(
            rules.contains("FLANNEL-FWD") && !rules.contains("FLANNEL-POSTRTG"),
            "{rules}"
        );
    }
}

/// Where a datagram from the container seems to come from.
fn source_seen(container: &uvxlan::testbed::Container, to: &Node, address: Ipv4Addr) -> Ipv4Addr {
    let receiver = to
        .namespace()
        .run(|| UdpSocket::bind((address, 0)).unwrap())
        .unwrap();
    receiver
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    let destination = receiver.local_addr().unwrap();
    container
        .namespace()
        .run(|| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
            socket.send_to(b"who am I", destination).unwrap();
        })
        .unwrap();
    match receiver.recv_from(&mut [0; 64]).unwrap().1.ip() {
        std::net::IpAddr::V4(address) => address,
        other => panic!("{other}"),
    }
}

#[test]
fn what_leaves_the_overlay_is_masqueraded_and_nothing_else() {
    need!(possible(&["iptables", "nft"]));
    for config in [
        CONFIG.to_owned(),
        CONFIG.replacen('{', r#"{"EnableNFTables": true, "#, 1),
    ] {
        let topology = Topology::with_hosts(3).unwrap();
        let [first, second, outside] = topology.hosts() else {
            panic!("three hosts were asked for")
        };
        let folder = tempfile::tempdir().unwrap();
        let store = write_config(folder.path(), &config);
        let flags = [store, "--ip-masq".into()];
        for host in [first, second] {
            // As Docker leaves it.
            let path = std::env::var("PATH").unwrap();
            shell(host, &path, "sysctl -qw net.ipv4.ip_forward=0");
        }
        let [a, b] = [first, second].map(|host| NodeUnderTest::start(host, folder.path(), &flags));
        eventually("the containers reach each other", || a.reaches(&b));
        let container = a.container();
        assert_eq!(
            source_seen(container, outside.node(), outside.address()),
            first.address(),
            "masqueraded"
        );
        assert_eq!(
            source_seen(container, b.container().node(), b.container().address()),
            container.address(),
            "as it is"
        );
    }
}

#[test]
fn a_policy_that_drops_does_not_stop_the_overlay() {
    need!(possible(&["iptables"]));
    let topology = Topology::two_hosts().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let store = write_config(folder.path(), CONFIG);
    let path = std::env::var("PATH").unwrap();
    for host in topology.hosts() {
        shell(host, &path, "iptables -P FORWARD DROP");
    }
    let flags = [store];
    let [a, b] = [0, 1].map(|n| NodeUnderTest::start(&topology.hosts()[n], folder.path(), &flags));
    eventually("the containers reach each other", || a.reaches(&b));
}

#[test]
fn without_a_tool_it_goes_on_and_says_what_is_missing() {
    need!(possible(&[]));
    let topology = Topology::two_hosts().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let store = write_config(folder.path(), CONFIG);
    let empty = folder.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    let flags = [store, "--ip-masq".into()];
    let host = &topology.hosts()[0];
    let node = node(host, folder.path(), &flags, empty.to_str().unwrap());
    let log = node.log();
    assert!(log.contains("install the package iptables"), "{log}");
    assert!(log.contains("do not reach addresses outside"), "{log}");
}

#[test]
fn rules_can_be_printed_instead() {
    need!(possible(&["iptables"]));
    let topology = Topology::two_hosts().unwrap();
    let host = &topology.hosts()[0];
    let folder = tempfile::tempdir().unwrap();
    let store = write_config(folder.path(), CONFIG);
    let flags = [store, "--ip-masq".into(), "--firewall=print".into()];
    let path = std::env::var("PATH").unwrap();
    let wrapper = folder.path().join("keeps-stdout");
    let printed = folder.path().join("printed");
    std::fs::write(
        &wrapper,
        format!("#!/bin/sh\nexec {PROGRAM} \"$@\" >{}\n", printed.display()),
    )
    .unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&wrapper, mode).unwrap();
    let node = NodeUnderTest::start_program(&wrapper, host, folder.path(), &flags);
    assert_eq!(saved(host, &path), "", "nothing is installed");
    shell(
        host,
        &path,
        &format!("iptables-restore --noflush {}", printed.display()),
    );
    assert_eq!(saved(host, &path), expected(node.env.unwrap().subnet));
}
