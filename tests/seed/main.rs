//! The deployment of a widely copied installation guide, step by step and with real programs:
//! three etcd members with TLS, flanneld as systemd runs it, mk-docker-opts.sh, dockerd with its
//! output, containers. Each step is checked as the guide checks it.

#[path = "../support/mod.rs"]
mod support;

mod docker;
mod service;
mod store;

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use docker::{Container, docker_possible};
use ipnet::Ipv4Net;
use service::SeedNode;
use store::{Api, Store};
use uvxlan::testbed::{Node, Topology};

use crate::support::need;
use crate::support::nodes::{self, TIMEOUT, eventually, possible};

/// Step 5.
const CONFIG: &str = r#"{
  "Network": "172.20.0.0/16",
  "SubnetMin": "172.20.10.0",
  "SubnetMax": "172.20.254.0",
  "Backend": {
    "Type":"vxlan"
  }
}
"#;
/// A server behind the master, outside of the overlay (TEST-NET-2 of RFC 5737).
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
const OUTSIDE_ROUTER: &str = "198.51.100.1/24";
const OUTSIDE_NET: &str = "198.51.100.0/24";
const TRANSFER: &str = "8388608";

/// The master and two nodes. The nodes have daemons; all three have etcd.
struct Deployment {
    // Processes on the hosts are dropped first.
    nodes: [SeedNode; 2],
    store: Store,
    _topology: Topology,
    outside: Node,
    _folder: tempfile::TempDir,
}

fn prerequisites() -> Result<(), String> {
    possible(&["etcd", "etcdctl", "ip", "iptables", "dockerd", "docker"])?;
    possible(&["tar", "setpriv", "timeout"])?;
    docker_possible()
}

impl Deployment {
    fn new(api: Api) -> Self {
        // There are sockets in it, and the path of a unix socket has at most 107 bytes.
        let folder = tempfile::Builder::new().prefix("sd").tempdir().unwrap();
        let topology = Topology::with_hosts(3).unwrap();
        let hosts = topology.hosts();
        let store = Store::start(api, hosts, folder.path());
        let config = folder.path().join("flannel-config.json");
        std::fs::write(&config, CONFIG).unwrap();
        store.set_config(&config);
        let nodes = [("1", &hosts[0]), ("2", &hosts[1])]
            .map(|(name, host)| SeedNode::install(host, &folder.path().join(name), &store));
        let outside = add_outside(&topology, &nodes);
        Self {
            nodes,
            store,
            _topology: topology,
            outside,
            _folder: folder,
        }
    }

    /// Step 10, then the image and containers of step 13.
    fn start(&mut self) {
        for (node, name) in self.nodes.iter_mut().zip(["linux_1", "linux_2"]) {
            node.start_flanneld();
            node.start_docker();
            node.docker().import_busybox();
            let run = ["run", "-d", "-it", "--rm", "--name", name, "busybox"];
            node.docker().run(&run);
        }
    }

    fn containers(&self) -> [Container<'_>; 2] {
        let [a, b] = &self.nodes;
        [(a, "linux_1"), (b, "linux_2")].map(|(node, name)| Container {
            docker: node.docker(),
            name,
        })
    }
}

/// A server behind the third host, without a route back to containers.
fn add_outside(topology: &Topology, nodes: &[SeedNode]) -> Node {
    let router = &topology.hosts()[2];
    let outside = Node::new("outside").unwrap();
    let peer = outside.namespace().as_fd();
    let join = async |netlink: &uvxlan::host::netlink::Netlink| {
        netlink.create_veth("outside", "eth0", peer).await
    };
    router.node().netlink(join).unwrap();
    let ip = |node: &Node, words: &str| {
        let mut command = std::process::Command::new("ip");
        command.args(words.split(' '));
        let status = node.namespace().command(command).status().unwrap();
        assert!(status.success(), "ip {words} on {}", node.name());
    };
    ip(
        router.node(),
        &format!("addr add {OUTSIDE_ROUTER} dev outside"),
    );
    ip(router.node(), "link set outside up");
    ip(&outside, &format!("addr add {OUTSIDE}/24 dev eth0"));
    ip(&outside, "link set eth0 up");
    let underlay = "192.0.2.0/24";
    ip(&outside, &format!("route add {underlay} via 198.51.100.1"));
    for node in nodes {
        let way = format!("route add {OUTSIDE_NET} via {}", router.address());
        ip(node.host.node(), &way);
    }
    outside
}

/// The subnet in `--bip`, that of the lease.
fn subnet(node: &SeedNode) -> Ipv4Net {
    let options = node.docker_options();
    let bip = options.iter().find_map(|word| word.strip_prefix("--bip="));
    bip.unwrap().parse().unwrap()
}

/// The address that docker gives its first container.
fn first_container(node: &SeedNode) -> Ipv4Addr {
    subnet(node).hosts().nth(1).unwrap()
}

/// Step 11: docker0 and flannel.1 are in the same subnet.
fn check_devices(node: &SeedNode) {
    let subnet = subnet(node);
    let third = subnet.network().octets()[2];
    assert!((10..=254).contains(&third), "{subnet} is in the range");
    assert_eq!(subnet.prefix_len(), 24);
    let own = [
        ("docker0", subnet.to_string()),
        ("flannel.1", format!("{}/32", subnet.network())),
    ];
    for (device, address) in own {
        let shown = node.output("ip", &["-o", "-4", "addr", "show", device]);
        assert!(shown.contains(&format!("inet {address} ")), "{shown}");
        let link = node.output("ip", &["-o", "link", "show", device]);
        assert!(link.contains(" mtu 1450 "), "{link}");
    }
}

/// Step 12: dockerd has the options.
fn check_command_line(node: &SeedNode) {
    let words = node.docker().command_line();
    assert!(words[0].ends_with("dockerd"), "{words:?}");
    let bip = format!("--bip={}", subnet(node));
    for option in [&bip, "--ip-masq=false", "--mtu=1450"] {
        assert!(
            words.iter().any(|word| word == option),
            "{option}: {words:?}"
        );
    }
}

/// Step 13: the container's address, and the path to the other one and back.
fn check_ping(node: &SeedNode, from: &Container, other: &SeedNode) {
    let shown = from.exec(&["ip", "addr", "show", "eth0"]);
    let own = format!("inet {}/24 ", first_container(node));
    assert!(
        shown.contains(&own) && shown.contains(" mtu 1450 "),
        "{shown}"
    );
    let to = first_container(other).to_string();
    eventually("the other container answers", || {
        from.try_exec(&["ping", "-c", "1", "-W", "1", &to]).is_ok()
    });
    // Small ones, and the largest that fit the MTU unfragmented.
    for size in ["56", "1422"] {
        let report = from.exec(&["ping", "-c", "5", "-i", "0.2", "-s", size, &to]);
        assert!(report.contains("5 packets received"), "{report}");
        assert_eq!(report.matches(" ttl=62 ").count(), 5, "{report}");
    }
}

/// Some MiB of random data arrive unchanged.
fn check_tcp(from: &Container, to: &Container, address: Ipv4Addr) {
    let receive = "nc -l -p 9002 | sha256sum";
    let receiver = to.spawn(&["sh", "-c", receive]);
    to.until_listening(9002);
    let send = format!(
        "head -c {TRANSFER} /dev/urandom > /noise; sha256sum < /noise; nc {address} 9002 < /noise"
    );
    let sent = from.exec(&["sh", "-c", &send]);
    let received = receiver.wait_with_output().unwrap();
    let received = String::from_utf8(received.stdout).unwrap();
    assert_eq!(sent.trim_end().len(), "  -".len() + 64, "{sent}");
    assert_eq!(sent, received);
}

/// Step 14: etcd contains what flannel would have written.
fn check_leases(deployment: &Deployment) {
    let store = &deployment.store;
    let name = |node: &SeedNode| format!("{}/subnets/{}-24", nodes::PREFIX, subnet(node).network());
    let mut expected: Vec<_> = deployment.nodes.iter().map(name).collect();
    expected.sort();
    assert_eq!(store.lease_keys(), expected);
    for node in &deployment.nodes {
        let value = store.value(&name(node));
        let state = std::fs::read(node.folder.join("state/state.json")).unwrap();
        let state: serde_json::Value = serde_json::from_slice(&state).unwrap();
        let mac = state["vtep_mac"].as_str().unwrap();
        let lease = store.api().lease(node.host.address(), mac);
        // Our fields follow flannel's.
        let flannels = nodes::without_writer(&value);
        assert_eq!(flannels, format!("{lease}}}"));
    }
}

/// Outside of the overlay a container appears with its host's address.
fn check_masquerade(deployment: &Deployment, node: &SeedNode, from: &Container) {
    let bind = || TcpListener::bind((OUTSIDE, 9000));
    let listener = deployment.outside.namespace().run(bind).unwrap().unwrap();
    listener.set_nonblocking(true).unwrap();
    let mut client = from.spawn(&["nc", "-w", "5", &OUTSIDE.to_string(), "9000"]);
    let deadline = Instant::now() + TIMEOUT;
    let (mut stream, peer) = loop {
        if let Ok(accepted) = listener.accept() {
            break accepted;
        }
        if Instant::now() > deadline {
            let _ = client.kill();
            panic!("no connection from {}", from.name);
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(peer.ip(), IpAddr::V4(node.host.address()));
    stream.write_all(b"welcome").unwrap();
    drop(stream);
    let mut heard = String::new();
    let mut output = client.stdout.take().unwrap();
    output.read_to_string(&mut heard).unwrap();
    client.wait().unwrap();
    assert_eq!(heard, "welcome");
}

/// Inside the overlay it appears with its own.
fn check_source(from: &Container, source: Ipv4Addr, to: &Container, address: Ipv4Addr) {
    let mut server = to.spawn(&["nc", "-l", "-p", "9001", "-e", "netstat", "-tn"]);
    to.until_listening(9001);
    let table = from.exec(&["nc", "-w", "5", &address.to_string(), "9001"]);
    server.wait().unwrap();
    // Debian's busybox listens on IPv6.
    let table = table.replace("::ffff:", "");
    let local = format!("{address}:9001");
    let row = table.lines().find(|row| row.contains(&local));
    let row = row.unwrap_or_else(|| panic!("no {local} in {table}"));
    assert!(row.contains(&format!(" {source}:")), "{row}");
}

/// What must not change when the daemon is restarted.
#[derive(Debug, PartialEq)]
struct Untouched {
    /// Keys and values in etcd.
    leases: Vec<(String, String)>,
    /// The output of mk-docker-opts.sh.
    options: [Vec<String>; 2],
    /// PID of dockerd, and Docker's report on the containers.
    lives: [(u32, String); 2],
}

impl Untouched {
    fn of(deployment: &Deployment) -> Self {
        let keys = deployment.store.lease_keys().into_iter();
        let with_value = |key: String| {
            let value = deployment.store.value(&key);
            (key, value)
        };
        Self {
            leases: keys.map(with_value).collect(),
            options: deployment.nodes.each_ref().map(SeedNode::docker_options),
            lives: deployment
                .containers()
                .map(|container| (container.docker.pid(), container.life())),
        }
    }
}

/// A new daemon takes over: the subnet stays, nothing else is restarted, and a connection between
/// containers continues.
fn check_restart(deployment: &mut Deployment) {
    let before = Untouched::of(deployment);
    assert!(
        before
            .lives
            .iter()
            .all(|(_, life)| life.starts_with("true "))
    );
    let two = first_container(&deployment.nodes[1]).to_string();
    let [linux_1, linux_2] = deployment.containers();
    let mut receiver = linux_2.spawn(&["nc", "-l", "-p", "9003"]);
    linux_2.until_listening(9003);
    let mut sender = linux_1.spawn(&["nc", &two, "9003"]);
    let mut words = sender.stdin.take().unwrap();
    words.write_all(b"before, ").unwrap();
    eventually("data flows between them", || {
        let table = linux_2.exec(&["netstat", "-tn"]);
        let mut rows = table.lines();
        rows.any(|row| row.contains(":9003 ") && row.contains("ESTABLISHED"))
    });
    for node in &mut deployment.nodes {
        node.stop_flanneld();
        node.start_flanneld();
    }
    words.write_all(b"after").unwrap();
    // Docker may lose input that is written just before its stdin is closed: wait until it arrives.
    let mut heard = receiver.stdout.take().unwrap();
    let (arrived, arrives) = std::sync::mpsc::channel();
    let listener = std::thread::spawn(move || {
        let mut all = [0; "before, after".len()];
        let _ = arrived.send(heard.read_exact(&mut all).map(|()| all));
        let mut rest = String::new();
        heard.read_to_string(&mut rest).map(|_| rest)
    });
    let all = arrives.recv_timeout(TIMEOUT).unwrap().unwrap();
    assert_eq!(&all, b"before, after");
    drop(words);
    assert_eq!(listener.join().unwrap().unwrap(), "");
    receiver.wait().unwrap();
    sender.wait().unwrap();

    assert_eq!(Untouched::of(deployment), before);
    let [a, b] = &deployment.nodes;
    let [linux_1, linux_2] = deployment.containers();
    check_ping(a, &linux_1, b);
    check_ping(b, &linux_2, a);
}

/// The whole guide.
fn follow_the_guide(api: Api) {
    need!(prerequisites());
    let mut deployment = Deployment::new(api);
    deployment.start();
    let [a, b] = &deployment.nodes;
    assert_ne!(subnet(a), subnet(b));
    for node in &deployment.nodes {
        check_devices(node);
        check_command_line(node);
    }
    let [linux_1, linux_2] = deployment.containers();
    let [one, two] = [first_container(a), first_container(b)];
    check_ping(a, &linux_1, b);
    check_ping(b, &linux_2, a);
    check_tcp(&linux_1, &linux_2, two);
    check_tcp(&linux_2, &linux_1, one);
    check_leases(&deployment);
    check_masquerade(&deployment, a, &linux_1);
    check_masquerade(&deployment, b, &linux_2);
    check_source(&linux_1, one, &linux_2, two);
    check_source(&linux_2, two, &linux_1, one);
    check_restart(&mut deployment);
    check_leases(&deployment);
}

#[test]
fn the_guides_deployment_works_with_the_newest_api() {
    follow_the_guide(Api::V3);
}

#[test]
fn the_guides_deployment_works_with_the_guides_api() {
    follow_the_guide(Api::V2);
}
