//! Changes of the underlay: interfaces, addresses and MTUs.

use crate::support::need;
use crate::support::nodes::{self, Cluster, NodeUnderTest, eventually, possible, soon};

impl Cluster {
    fn quiet(&self, number: usize) -> NodeUnderTest {
        self.quiet_with(number, &[])
    }

    /// Without probes, since frames in the tunnel are counted here.
    fn quiet_with(&self, number: usize, more: &[&str]) -> NodeUnderTest {
        self.start_with(number, &[&["--probe-interval=0"], more].concat())
    }
}

fn tools() -> Result<(), String> {
    possible(&["etcd", "etcdctl"])
}

#[test]
fn the_underlays_mtu_is_followed() {
    need!(tools());
    let cluster = Cluster::new(2, nodes::CONFIG);
    let (a, b) = (cluster.quiet(0), cluster.quiet(1));
    eventually("the containers reach each other", || a.reaches(&b));
    assert_eq!(a.env.unwrap().mtu, 1450);
    a.change(&["link", "set", "eth0", "mtu", "1400"]);
    soon("the device follows", || {
        a.output("ip", &["link", "show", "flannel.1"])
            .contains("mtu 1350")
    });
    eventually("the subnet file follows", || {
        let text = std::fs::read_to_string(a.folder.join("subnet.env")).unwrap();
        text.contains("FLANNEL_MTU=1350\n")
    });
    a.transfer(&b, 4 << 20);
    b.transfer(&a, 4 << 20);
    // Docker's bridge still has the old one.
    eventually("a warning about the bridge", || {
        a.log().contains("bridge_mtu")
    });

    // What mk-docker-opts.sh -d wrote there belongs to Docker, and stays.
    let file = a.folder.join("subnet.env");
    std::fs::write(&file, "DOCKER_NETWORK_OPTIONS=\" --mtu=1350\"\n").unwrap();
    a.change(&["link", "set", "eth0", "mtu", "1500"]);
    eventually("the device returns to the old MTU", || {
        a.output("ip", &["link", "show", "flannel.1"])
            .contains("mtu 1450")
    });
    eventually("it is logged", || {
        a.log().contains("holds docker's options")
    });
    assert!(
        std::fs::read_to_string(&file)
            .unwrap()
            .starts_with("DOCKER_NETWORK_OPTIONS")
    );
    a.transfer(&b, 4 << 20);
}

#[test]
fn a_configured_mtu_is_that_of_the_underlay_whatever_the_interface_has() {
    need!(tools());
    let config = nodes::CONFIG.replace(r#""vxlan""#, r#""vxlan", "MTU": 1400"#);
    let cluster = Cluster::new(2, &config);
    let (a, b) = (cluster.quiet(0), cluster.quiet(1));
    let device = || a.output("ip", &["link", "show", "flannel.1"]);
    let file = || std::fs::read_to_string(a.folder.join("subnet.env")).unwrap();
    let check = || {
        assert!(device().contains(" mtu 1350 "), "{}", device());
        assert!(file().contains("FLANNEL_MTU=1350\n"), "{}", file());
    };
    check();
    eventually("the containers reach each other", || a.reaches(&b));
    a.change(&["link", "set", "eth0", "mtu", "1480"]);
    // Longer than the interval between two checks.
    std::thread::sleep(std::time::Duration::from_secs(4));
    check();
    a.transfer(&b, 1 << 20);
}

/// Docker starts after us, with its own options.
#[test]
fn a_later_bridge_with_a_larger_mtu_is_logged_once() {
    need!(tools());
    let cluster = Cluster::new(2, nodes::CONFIG);
    let mut a = cluster.quiet(0);
    a.container = None;
    a.change(&["link", "del", "cni0"]);
    let told = |words: &str| {
        let log = a.log();
        let lines = log.lines().filter(|line| line.contains("bridge_mtu"));
        lines.filter(|line| line.contains(words)).count()
    };
    assert_eq!(told(""), 0, "{}", a.log());
    let gateway = a.env.unwrap().subnet.hosts().next().unwrap();
    a.change(&["link", "add", "docker0", "type", "bridge"]);
    a.change(&["link", "set", "docker0", "mtu", "1500", "up"]);
    a.change(&["addr", "add", &format!("{gateway}/24"), "dev", "docker0"]);
    // Without ports, it has the kernel's default MTU, whatever Docker was told.
    std::thread::sleep(std::time::Duration::from_secs(4));
    assert_eq!(told(""), 0, "{}", a.log());
    a.change(&[
        "link",
        "add",
        "container",
        "type",
        "veth",
        "peer",
        "name",
        "inside",
    ]);
    a.change(&["link", "set", "container", "master", "docker0", "up"]);
    eventually("a warning about the bridge", || {
        told("bridge_mtu=1500") == 1
    });
    // No second warning while nothing changes.
    std::thread::sleep(std::time::Duration::from_secs(5));
    assert_eq!(told(""), 1, "{}", a.log());
    a.change(&["link", "set", "docker0", "mtu", "1480"]);
    eventually("another warning for another MTU", || {
        told("bridge_mtu=1480") == 1
    });
    a.change(&["link", "set", "docker0", "mtu", "1450"]);
    std::thread::sleep(std::time::Duration::from_secs(3));
    assert_eq!(told(""), 2, "{}", a.log());
}

#[test]
fn an_interface_that_goes_down_or_loses_its_address_for_a_while_is_survived() {
    need!(tools());
    let cluster = Cluster::new(2, nodes::CONFIG);
    let (a, b) = (cluster.quiet(0), cluster.quiet(1));
    eventually("the containers reach each other", || a.reaches(&b));
    let before = cluster.etcd.leases();
    let address = a.host.address().to_string();
    let listed = a.output("ip", &["-o", "-4", "address", "show", "dev", "eth0"]);
    let prefix = listed
        .split_whitespace()
        .find(|word| word.starts_with(&address))
        .unwrap();
    // As a network manager restores it.
    let default = ["route", "replace", "default", "dev", "eth0"];
    let repaired_soon = |what: &str| soon(what, || a.reaches(&b) && b.reaches(&a));
    for _ in 0..2 {
        a.change(&["link", "set", "eth0", "down"]);
        std::thread::sleep(std::time::Duration::from_secs(3));
        a.change(&["link", "set", "eth0", "up"]);
        a.change(&default);
        repaired_soon("after the interface was down");

        a.change(&["address", "flush", "dev", "eth0"]);
        std::thread::sleep(std::time::Duration::from_secs(3));
        a.change(&["address", "add", prefix, "dev", "eth0"]);
        a.change(&default);
        repaired_soon("after its address was gone");

        a.change(&["link", "set", "flannel.1", "down"]);
        repaired_soon("after the device was set down");
        a.change(&["address", "flush", "dev", "flannel.1"]);
        repaired_soon("after the device lost its address");
    }
    assert_eq!(cluster.etcd.leases(), before, "no lease was changed");
    a.transfer(&b, 4 << 20);
}

#[test]
fn another_address_is_published_and_used() {
    need!(tools());
    let cluster = Cluster::new(2, nodes::CONFIG);
    let (a, b) = (cluster.quiet(0), cluster.quiet(1));
    eventually("the containers reach each other", || a.reaches(&b));
    let old = b.host.address();
    let octets = old.octets();
    let new = format!("{}.{}.{}.77", octets[0], octets[1], octets[2]);
    let prefix = b.output("ip", &["-o", "-4", "address", "show", "dev", "eth0"]);
    let prefix = prefix
        .split_whitespace()
        .find(|word| word.starts_with(&old.to_string()))
        .unwrap()
        .to_owned();
    let length = prefix.split_once('/').unwrap().1;
    b.change(&["address", "add", &format!("{new}/{length}"), "dev", "eth0"]);
    // An additional address changes nothing.
    std::thread::sleep(std::time::Duration::from_secs(5));
    assert!(a.reaches(&b));
    assert!(
        !cluster
            .etcd
            .leases()
            .iter()
            .any(|(_, value)| value.contains(&new))
    );

    b.change(&["address", "del", &prefix, "dev", "eth0"]);
    // Deleted with the old address.
    b.output(
        "ip",
        &["address", "add", &format!("{new}/{length}"), "dev", "eth0"],
    );
    b.output("ip", &["route", "replace", "default", "dev", "eth0"]);
    let key = b.env.unwrap().subnet.to_string().replace('/', "-");
    eventually("the lease has the new address and the same subnet", || {
        let leases = cluster.etcd.leases();
        leases
            .iter()
            .any(|(name, value)| *name == key && value.contains(&format!("\"PublicIP\":\"{new}\"")))
    });
    assert_eq!(cluster.etcd.leases().len(), 2);
    eventually("the containers reach each other again", || {
        a.reaches(&b) && b.reaches(&a)
    });
    a.transfer(&b, 1 << 20);
    // The next start recognizes itself.
    let mut b = b;
    b.stop_daemon();
    b.start_daemon();
    assert_eq!(b.env.unwrap().subnet.to_string().replace('/', "-"), key);
    assert_eq!(cluster.etcd.leases().len(), 2);
}

#[test]
fn address_changes_while_etcd_hangs_block_nothing() {
    need!(tools());
    let cluster = Cluster::new(2, nodes::CONFIG);
    let (a, b) = (cluster.quiet(0), cluster.quiet(1));
    eventually("the containers reach each other", || a.reaches(&b));
    let octets = b.host.address().octets();
    cluster.etcd.signal(rustix::process::Signal::STOP);
    let new = |last: u8| format!("{}.{}.{}.{last}", octets[0], octets[1], octets[2]);
    let answers = || {
        let asked = std::time::Instant::now();
        let socket = b.folder.join("control").display().to_string();
        let status = b.output(nodes::PROGRAM, &["status", "--control-socket", &socket]);
        let took = asked.elapsed();
        assert!(status.contains("serving"), "{status}");
        assert!(took < std::time::Duration::from_secs(3), "after {took:?}");
    };
    for last in 70..76 {
        b.change(&["address", "flush", "dev", "eth0"]);
        let address = format!("{}/24", new(last));
        b.change(&["address", "add", &address, "dev", "eth0"]);
        b.change(&["route", "replace", "default", "dev", "eth0"]);
        soon("the new address is noticed", || {
            answers();
            b.log().contains(&format!("new={}", new(last)))
        });
        answers();
    }
    // The host is still reconciled while the lease cannot be published.
    b.change(&["link", "set", "flannel.1", "down"]);
    soon("the device is up again", || {
        b.output("ip", &["-o", "link", "show", "flannel.1"])
            .contains(",UP")
    });
    cluster.etcd.signal(rustix::process::Signal::CONT);
    eventually("the last address is published", || {
        let last = format!("\"PublicIP\":\"{}\"", new(75));
        let leases = cluster.etcd.leases();
        leases.len() == 2 && leases.iter().any(|(_, value)| value.contains(&last))
    });
    eventually("the containers reach each other again", || {
        a.reaches(&b) && b.reaches(&a)
    });
}

#[test]
fn packets_for_containers_that_are_gone_are_discarded() {
    need!(tools());
    let cluster = Cluster::new(2, nodes::CONFIG);
    let (mut a, b) = (
        cluster.quiet_with(0, &["--ip-blackhole-route"]),
        cluster.quiet(1),
    );
    eventually("the containers reach each other", || a.reaches(&b));
    let subnet = a.env.unwrap().subnet.to_string();
    let shown = || a.output("ip", &["route", "show", "type", "blackhole"]);
    assert!(shown().contains(&subnet), "{}", shown());
    // Without the bridge, no packet leaves by the default route.
    let inside = subnet.replace("0/24", "9");
    let way = |node: &NodeUnderTest| node.output("ip", &["route", "get", &inside]);
    assert!(way(&a).contains("dev"), "{}", way(&a));
    a.change(&["link", "set", "cni0", "down"]);
    assert_eq!(way(&a), "");
    a.change(&["link", "set", "cni0", "up"]);
    a.output("ip", &["route", "del", "blackhole", &subnet]);
    eventually("it is restored", || shown().contains(&subnet));
    // A start without the flag removes it.
    a.stop_daemon();
    a.flags.pop();
    a.start_daemon();
    let gone = a.output("ip", &["route", "show", "type", "blackhole"]);
    assert_eq!(gone, "");
}
