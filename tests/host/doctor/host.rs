//! Faults of the machine, its links, its firewall and its files.

use std::process::Command;

use super::{Findings, Lab, Paused, doctor, lab, until_healthy};

use crate::support::need;
use crate::support::nodes::{PROGRAM, possible};

/// A fault, injected and reverted by commands on node `a`.
struct Fault {
    check: &'static str,
    status: &'static str,
    /// Part of the expected finding.
    word: &'static str,
    make: &'static str,
    mend: &'static str,
}

const fn fault(
    check: &'static str,
    status: &'static str,
    word: &'static str,
    make: &'static str,
    mend: &'static str,
) -> Fault {
    Fault {
        check,
        status,
        word,
        make,
        mend,
    }
}

/// What a running daemon cannot, or may not, repair.
const BESIDE_THE_DAEMON: &[Fault] = &[
    fault(
        "routes",
        "error",
        "go",
        "ip route add blackhole $PEER_NET/25",
        "ip route del blackhole $PEER_NET/25",
    ),
    fault(
        "rp-filter",
        "warning",
        "strict",
        "echo 0 >/proc/sys/net/ipv4/conf/all/rp_filter; echo 1 >/proc/sys/net/ipv4/conf/flannel.1/rp_filter",
        "echo 0 >/proc/sys/net/ipv4/conf/flannel.1/rp_filter",
    ),
    fault(
        "bridge-filter",
        "warning",
        "kube-proxy",
        "f=/proc/sys/net/bridge/bridge-nf-call-iptables; test ! -e $f || echo 0 >$f
         iptables -N KUBE-SERVICES",
        "iptables -X KUBE-SERVICES",
    ),
    fault(
        "firewall-input",
        "error",
        "8472",
        "iptables -A INPUT -p udp --dport 8472 -j DROP",
        "iptables -D INPUT -p udp --dport 8472 -j DROP",
    ),
    fault(
        "firewall-input",
        "error",
        "8472",
        "nft add table inet wall
         nft 'add chain inet wall in { type filter hook input priority 0; policy drop; }'
         nft add rule inet wall in tcp dport 22 accept",
        "nft delete table inet wall",
    ),
    fault(
        "firewall-forward",
        "error",
        "to the overlay",
        "iptables -I FORWARD -o flannel.1 -j DROP",
        "iptables -D FORWARD -o flannel.1 -j DROP",
    ),
    fault(
        "firewall-forward",
        "error",
        "from the overlay",
        "iptables -I FORWARD -i flannel.1 -j DROP",
        "iptables -D FORWARD -i flannel.1 -j DROP",
    ),
    fault(
        "firewall-output",
        "error",
        "8472",
        "iptables -A OUTPUT -p udp --dport 8472 -j DROP",
        "iptables -D OUTPUT -p udp --dport 8472 -j DROP",
    ),
    fault(
        "firewall-output",
        "error",
        "policy drop",
        "nft add table inet wall
         nft 'add chain inet wall out { type filter hook output priority 0; policy drop; }'",
        "nft delete table inet wall",
    ),
    fault(
        "bridge-mtu",
        "warning",
        "9000",
        "ip link set cni0 mtu 9000",
        "ip link set cni0 mtu 1450",
    ),
    fault(
        "bridge-address",
        "warning",
        "172.17.0.1/16",
        // The containers' own bridge is taken for docker's, once that has another address.
        "ip address show dev cni0 | sed -n 's/.*inet \\([^ ]*\\).*/\\1/p' >$FOLDER/bridge
         ip address del $(cat $FOLDER/bridge) dev cni0; ip link add docker0 type bridge
         ip address add 172.17.0.1/16 dev docker0",
        "ip link del docker0; ip address add $(cat $FOLDER/bridge) dev cni0",
    ),
    fault(
        "duplicate-address",
        "error",
        "10.5.251.0-24",
        "sed \"s/\\\"Node\\\":[0-9]*/\\\"Node\\\":7/\" $LEASE >$STORE/subnets/10.5.251.0-24",
        "rm $STORE/subnets/10.5.251.0-24",
    ),
    fault(
        "refused-records",
        "warning",
        "10.9.1.0-24",
        "sed s/$OWN_IP/192.0.2.77/ $LEASE >$STORE/subnets/10.9.1.0-24; sleep 1",
        "rm $STORE/subnets/10.9.1.0-24; sleep 1",
    ),
];

/// Faults that the daemon repairs by itself: checked while its process is stopped.
const BEHIND_THE_DAEMON: &[Fault] = &[
    fault("daemon", "error", "does not answer", "true", "true"),
    fault(
        "device",
        "error",
        "does not exist",
        "ip link delete flannel.1",
        "true",
    ),
    fault(
        "device",
        "error",
        "is down",
        "ip link set flannel.1 down",
        "true",
    ),
    fault(
        "device-mtu",
        "warning",
        "MTU 1400",
        "ip link set flannel.1 mtu 1400",
        "true",
    ),
    fault(
        "device-address",
        "warning",
        "10.5.252.1/32",
        "ip address add 10.5.252.1/32 dev flannel.1",
        "ip address del 10.5.252.1/32 dev flannel.1",
    ),
    fault(
        "underlay-mtu",
        "error",
        "MTU 1400 on eth0",
        "ip link set eth0 mtu 1400",
        "ip link set eth0 mtu 1500",
    ),
    fault(
        "routes",
        "error",
        "no route to",
        "ip route del $PEER",
        "true",
    ),
    fault(
        "forwarding",
        "error",
        "ip_forward is 0",
        "echo 0 >/proc/sys/net/ipv4/ip_forward",
        "echo 1 >/proc/sys/net/ipv4/ip_forward",
    ),
    fault(
        "kernel-vxlan",
        "error",
        "flannel.1",
        "ip link delete flannel.1; ip link add flannel.1 type vxlan id 1 dstport 8472 dev eth0",
        "ip link delete flannel.1",
    ),
    fault(
        "subnet-file",
        "error",
        "does not exist",
        "mv $FOLDER/subnet.env $FOLDER/kept",
        "mv $FOLDER/kept $FOLDER/subnet.env",
    ),
    fault(
        "subnet-file",
        "error",
        "10.5.253.0/24",
        "cp $FOLDER/subnet.env $FOLDER/kept; sed -i s,^FLANNEL_SUBNET=.*,FLANNEL_SUBNET=10.5.253.1/24, $FOLDER/subnet.env",
        "mv $FOLDER/kept $FOLDER/subnet.env",
    ),
    fault(
        "subnet-file",
        "warning",
        "docker's options",
        "mv $FOLDER/subnet.env $FOLDER/kept; echo 'DOCKER_OPT_BIP=\"--bip=10.5.1.1/24\"' >$FOLDER/subnet.env",
        "mv $FOLDER/kept $FOLDER/subnet.env",
    ),
    fault(
        "own-lease",
        "error",
        "there is no lease for",
        "mv $LEASE $FOLDER/lease",
        "mv $FOLDER/lease $LEASE",
    ),
    fault(
        "own-lease",
        "error",
        "leased to 192.0.2.9",
        "cp $LEASE $FOLDER/lease; sed -i s/$OWN_IP/192.0.2.9/ $LEASE",
        "mv $FOLDER/lease $LEASE",
    ),
];

/// Injects and reverts each fault. The doctor mostly waits, so several labs share the work.
fn each_is_named(faults: &[Fault], look: impl Fn(&Lab, &Fault) -> Findings + Sync) {
    let look = &look;
    std::thread::scope(|scope| {
        for part in faults.chunks(5) {
            scope.spawn(move || {
                let lab = lab();
                until_healthy("a healthy pair", || lab.examine());
                for fault in part {
                    let found = look(&lab, fault);
                    found.expect(fault.check, fault.status, fault.word);
                    until_healthy(fault.check, || lab.examine());
                }
            });
        }
    });
}

#[test]
fn a_healthy_pair_has_no_finding_and_each_fault_beside_the_daemon_is_named() {
    need!(possible(&["ip", "iptables", "nft"]));
    each_is_named(BESIDE_THE_DAEMON, |lab, fault| {
        lab.shell(&lab.a, fault.make);
        let found = lab.examine();
        lab.shell(&lab.a, fault.mend);
        found
    });
    let lab = lab();
    until_healthy("a healthy pair", || lab.examine());
    assert!(lab.examine().success);
    lab.examine_with(&["--iface=nope0"])
        .expect("interface", "error", "nope0");
    lab.shell(&lab.a, "ip link set cni0 mtu 9000");
    let found = lab.examine_with(&["--fail-on=error"]);
    assert_eq!(found.get("bridge-mtu")["status"], "warning");
    assert!(found.success, "then a warning alone does not fail");
}

#[test]
fn rules_of_the_older_iptables_are_read_too() {
    need!(possible(&["ip", "iptables", "iptables-legacy"]));
    let lab = lab();
    until_healthy("a healthy pair", || lab.examine());
    let rule = "iptables-legacy -A INPUT -p udp --dport 8472 -j DROP";
    lab.shell(&lab.a, rule);
    let found = lab.examine();
    lab.shell(&lab.a, &rule.replace("-A", "-D"));
    found.expect(
        "firewall-input",
        "error",
        "the iptables-legacy rule -A INPUT",
    );
    let fix = found.get("firewall-input")["fix"].as_str().unwrap();
    assert!(fix.starts_with("iptables-legacy -I INPUT"), "{fix}");
    until_healthy("after the rule is gone", || lab.examine());
}

#[test]
fn each_fault_that_the_daemon_would_repair_is_named_while_it_hangs() {
    need!(possible(&["ip", "iptables", "nft"]));
    each_is_named(BEHIND_THE_DAEMON, |lab, fault| {
        let _paused = Paused::new(&lab.a);
        lab.shell(&lab.a, fault.make);
        let found = lab.examine();
        lab.shell(&lab.a, fault.mend);
        found
    });
}

#[test]
fn what_keeps_a_daemon_from_starting_is_named() {
    need!(possible(&["ip", "iptables", "unshare", "setpriv"]));
    let mut lab = lab();
    drop(lab.a.daemon.take());
    lab.examine().expect("daemon", "warning", "not running");
    // The killed daemon left its state file; the doctor does not fail if it is damaged.
    let state = lab.a.folder.join("state/state.json");
    let kept = std::fs::read(&state).unwrap();
    std::fs::write(&state, "{").unwrap();
    lab.examine().expect("state-file", "warning", "state.json");
    std::fs::write(&state, kept).unwrap();

    lab.shell(
        &lab.a,
        "ip link add flannel.1 type vxlan id 1 dstport 8472 dev eth0",
    );
    lab.examine()
        .expect("kernel-vxlan", "warning", "kernel vxlan");
    lab.shell(
        &lab.a,
        "ip link delete flannel.1; ip link add flannel.1 type bridge",
    );
    lab.examine().expect("device", "error", "kind bridge");
    lab.shell(
        &lab.a,
        "ip link delete flannel.1; ip link set eth0 mtu 1280",
    );
    lab.shell(&lab.a, "ip link set eth0 mtu 1500; ip link set eth0 down");
    lab.examine_with(&["--iface=eth0"])
        .expect("interface", "error", "down");
    lab.shell(&lab.a, "ip link set eth0 up");

    let namespace = lab.a.host.namespace();
    let taken = namespace
        .run(|| std::net::UdpSocket::bind("0.0.0.0:8472"))
        .unwrap()
        .unwrap();
    let own = format!("(pid {})", std::process::id());
    lab.examine().expect("udp-port", "error", &own);
    drop(taken);

    let through = |program: &str, arguments: &[&str]| {
        let store = lab.store.flag();
        let mut command = Command::new(program);
        command
            .args(arguments)
            .args(doctor(&lab.a, &[store.as_str()]));
        Findings::of(&namespace.command(command).output().unwrap())
    };
    let script = "mount -t tmpfs none /dev/net && exec \"$@\"";
    through("unshare", &["-m", "sh", "-c", script, "sh", PROGRAM]).expect(
        "tun",
        "error",
        "/dev/net/tun",
    );
    // A kernel with known faults, according to /proc.
    let script = "echo $1-test >$2/release && mount --bind $2/release /proc/sys/kernel/osrelease \
                  && shift 2 && exec \"$@\"";
    let folder = lab.store.folder.path().to_str().unwrap();
    let on_kernel = |version: &str| {
        through(
            "unshare",
            &["-m", "sh", "-c", script, "sh", version, folder, PROGRAM],
        )
    };
    on_kernel("6.6.45").expect("kernel", "warning", "Linux 6.6.45");
    let found = on_kernel("7.1.2");
    found.expect("kernel", "warning", "Linux 7.1.2");
    found.expect("offloads", "warning", "corrupts datagrams");
    let without = "--bounding-set=-net_admin,-net_raw";
    through(
        "setpriv",
        &[without, "--inh-caps=-net_admin,-net_raw", PROGRAM],
    )
    .expect("capabilities", "error", "CAP_NET_ADMIN");
}
