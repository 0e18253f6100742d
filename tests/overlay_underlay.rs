//! What happens below the tunnels: peers on the same link, interfaces that change.

#[path = "support/nodes.rs"]
mod nodes;

use nodes::{EtcdOnHost, NodeUnderTest, PREFIX, eventually, need, possible, soon};
use uvxlan::testbed::{Host, Topology};

const DIRECT: &str = r#"{"Network": "10.5.0.0/16", "SubnetMin": "10.5.10.0", "SubnetMax": "10.5.250.0", "Backend": {"Type": "vxlan", "DirectRouting": true}}"#;

struct Cluster {
    topology: Topology,
    etcd: EtcdOnHost,
    folder: tempfile::TempDir,
}

impl Cluster {
    /// The last host has etcd, and can route between the others.
    fn new(daemons: usize, config: &str) -> Self {
        let topology = Topology::with_hosts(daemons + 1).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let etcd = EtcdOnHost::start(topology.hosts().last().unwrap(), folder.path());
        etcd.ctl(&["put", &format!("{PREFIX}/config"), config]);
        Self {
            topology,
            etcd,
            folder,
        }
    }

    fn start(&self, number: usize) -> NodeUnderTest {
        self.start_with(number, &[])
    }

    fn start_with(&self, number: usize, more: &[&str]) -> NodeUnderTest {
        // No probes: frames in the tunnel are counted here.
        let mut flags = vec![
            format!("--etcd-endpoints={}", self.etcd.url()),
            "--probe-interval=0".into(),
        ];
        flags.extend(more.iter().map(|flag| (*flag).to_owned()));
        NodeUnderTest::start(&self.topology.hosts()[number], self.folder.path(), &flags)
    }

    fn router(&self) -> &Host {
        self.topology.hosts().last().unwrap()
    }
}

fn tools() -> Result<(), String> {
    possible(&["etcd", "etcdctl"])
}

/// The routes to a node's subnet, as `ip route` shows them.
fn route(from: &NodeUnderTest, to: &NodeUnderTest) -> String {
    let subnet = to.env.unwrap().subnet.to_string();
    from.output("ip", &["route", "show", &subnet])
}

/// Frames that went through the tunnel, by the daemon's own device.
fn tunnelled(node: &NodeUnderTest) -> u64 {
    let text = node.output("cat", &["/proc/net/dev"]);
    let line = text
        .lines()
        .find(|line| line.contains("flannel.1"))
        .unwrap();
    let fields: Vec<_> = line.split_whitespace().collect();
    // Received from us, and sent to us.
    fields[2].parse::<u64>().unwrap() + fields[10].parse::<u64>().unwrap()
}

#[test]
fn peers_on_the_link_are_reached_directly_and_others_through_the_tunnel() {
    need!(tools());
    let cluster = Cluster::new(3, DIRECT);
    let router = cluster.router();
    for name in ["all", "eth0"] {
        let name = format!("net/ipv4/conf/{name}/send_redirects");
        router.node().sysctl(&name, "0").unwrap();
    }
    // Host c is in another segment: to reach it, the others go through the router.
    let hosts = cluster.topology.hosts();
    let via = |from: &Host, to: &Host| {
        let index = from.node().netlink(async |netlink| {
            let index = netlink.expect_link("eth0").await?.index;
            let route = uvxlan::host::netlink::Route {
                protocol: 3,
                ..uvxlan::host::netlink::Route::ours(
                    to.address().into(),
                    Some(router.address()),
                    index,
                )
            };
            netlink.add_route(&route).await.map(|()| index)
        });
        index.unwrap();
    };
    for near in &hosts[..2] {
        via(near, &hosts[2]);
        via(&hosts[2], near);
    }
    let (a, b, c) = (cluster.start(0), cluster.start(1), cluster.start(2));
    let gateway = format!("via {} dev eth0", b.host.address());
    eventually("a plain route to b", || route(&a, &b).contains(&gateway));
    eventually("all routes", || {
        route(&b, &a).contains("dev eth0")
            && route(&a, &c).contains("dev flannel.1")
            && route(&c, &b).contains("dev flannel.1")
    });
    let before = tunnelled(&a);
    assert!(a.ping(&b, 10).is_complete());
    assert!(b.ping(&a, 10).is_complete());
    a.transfer(&b, 4 << 20);
    assert_eq!(tunnelled(&a), before, "nothing of it in the tunnel");
    assert!(a.ping(&c, 10).is_complete());
    assert!(c.ping(&b, 10).is_complete());
    assert!(tunnelled(&a) > before, "and that is in it");

    // The way to b changes: it is not on the link any more, and then it is again.
    let far = format!("{}/32", b.host.address());
    let near = format!("{}/32", a.host.address());
    let router_address = router.address().to_string();
    a.change(&["route", "add", &far, "via", &router_address, "dev", "eth0"]);
    b.change(&["route", "add", &near, "via", &router_address, "dev", "eth0"]);
    eventually("b through the tunnel", || {
        route(&a, &b).contains("dev flannel.1") && route(&b, &a).contains("dev flannel.1")
    });
    assert!(a.ping(&b, 5).is_complete());
    a.change(&["route", "del", &far]);
    b.change(&["route", "del", &near]);
    eventually("b directly again", || {
        route(&a, &b).contains(&gateway) && route(&b, &a).contains("dev eth0")
    });
    assert!(a.ping(&b, 5).is_complete());
}

#[test]
fn the_underlays_mtu_is_followed() {
    need!(tools());
    let cluster = Cluster::new(2, nodes::CONFIG);
    let (a, b) = (cluster.start(0), cluster.start(1));
    eventually("the containers reach each other", || a.reaches(&b));
    assert_eq!(a.env.unwrap().mtu, 1450);
    a.change(&["link", "set", "eth0", "mtu", "1400"]);
    soon("the device follows", || {
        a.output("ip", &["link", "show", "flannel.1"])
            .contains("mtu 1350")
    });
    eventually("and so does the subnet file", || {
        let text = std::fs::read_to_string(a.folder.join("subnet.env")).unwrap();
        text.contains("FLANNEL_MTU=1350\n")
    });
    a.transfer(&b, 4 << 20);
    b.transfer(&a, 4 << 20);
    // docker's bridge still has the old one.
    eventually("a word about the bridge", || a.log().contains("bridge_mtu"));

    // What mk-docker-opts.sh -d leaves there is docker's, and stays.
    let file = a.folder.join("subnet.env");
    std::fs::write(&file, "DOCKER_NETWORK_OPTIONS=\" --mtu=1350\"\n").unwrap();
    a.change(&["link", "set", "eth0", "mtu", "1500"]);
    eventually("the device follows back", || {
        a.output("ip", &["link", "show", "flannel.1"])
            .contains("mtu 1450")
    });
    eventually("it says so", || a.log().contains("holds docker's options"));
    assert!(
        std::fs::read_to_string(&file)
            .unwrap()
            .starts_with("DOCKER_NETWORK_OPTIONS")
    );
    a.transfer(&b, 4 << 20);
}

#[test]
fn an_interface_that_goes_down_or_loses_its_address_for_a_while_is_survived() {
    need!(tools());
    let cluster = Cluster::new(2, nodes::CONFIG);
    let (a, b) = (cluster.start(0), cluster.start(1));
    eventually("the containers reach each other", || a.reaches(&b));
    let before = cluster.etcd.leases();
    let address = a.host.address().to_string();
    let listed = a.output("ip", &["-o", "-4", "address", "show", "dev", "eth0"]);
    let prefix = listed
        .split_whitespace()
        .find(|word| word.starts_with(&address))
        .unwrap();
    // As a network manager puts it back.
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
    assert_eq!(cluster.etcd.leases(), before, "no lease was touched");
    a.transfer(&b, 4 << 20);
}

#[test]
fn another_address_is_published_and_used() {
    need!(tools());
    let cluster = Cluster::new(2, nodes::CONFIG);
    let (a, b) = (cluster.start(0), cluster.start(1));
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
    // A further address is no reason to move.
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
    // Gone with the old address.
    b.output(
        "ip",
        &["address", "add", &format!("{new}/{length}"), "dev", "eth0"],
    );
    b.output("ip", &["route", "replace", "default", "dev", "eth0"]);
    let key = b.env.unwrap().subnet.to_string().replace('/', "-");
    eventually(
        "the lease tells the new address, under the same subnet",
        || {
            let leases = cluster.etcd.leases();
            leases.iter().any(|(name, value)| {
                *name == key && value.contains(&format!("\"PublicIP\":\"{new}\""))
            })
        },
    );
    assert_eq!(cluster.etcd.leases().len(), 2);
    eventually("the containers reach each other again", || {
        a.reaches(&b) && b.reaches(&a)
    });
    a.transfer(&b, 1 << 20);
    // The next start knows who it is.
    let mut b = b;
    b.stop_daemon();
    b.start_daemon();
    assert_eq!(b.env.unwrap().subnet.to_string().replace('/', "-"), key);
    assert_eq!(cluster.etcd.leases().len(), 2);
}

#[test]
fn addresses_that_change_while_etcd_hangs_hold_up_nothing() {
    need!(tools());
    let cluster = Cluster::new(2, nodes::CONFIG);
    let (a, b) = (cluster.start(0), cluster.start(1));
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
    // Whatever is in the way of the lease, the host is still looked after.
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
        cluster.start_with(0, &["--ip-blackhole-route"]),
        cluster.start(1),
    );
    eventually("the containers reach each other", || a.reaches(&b));
    let subnet = a.env.unwrap().subnet.to_string();
    let shown = || a.output("ip", &["route", "show", "type", "blackhole"]);
    assert!(shown().contains(&subnet), "{}", shown());
    // Without the bridge, nothing leaves by the default route.
    let inside = subnet.replace("0/24", "9");
    let way = |node: &NodeUnderTest| node.output("ip", &["route", "get", &inside]);
    assert!(way(&a).contains("dev"), "{}", way(&a));
    a.change(&["link", "set", "cni0", "down"]);
    assert_eq!(way(&a), "");
    a.change(&["link", "set", "cni0", "up"]);
    a.output("ip", &["route", "del", "blackhole", &subnet]);
    eventually("it is put back", || shown().contains(&subnet));
    // Started without the flag, it goes.
    a.stop_daemon();
    a.flags.pop();
    a.start_daemon();
    let gone = a.output("ip", &["route", "show", "type", "blackhole"]);
    assert_eq!(gone, "");
}
