//! Memory of the daemon, with a thousand peers and under load.

use std::path::Path;
use std::time::Duration;

use uvxlan::testbed::Topology;
use uvxlan::testbed::traffic::{StreamRequest, tcp_streams};

use crate::alone::alone;
use crate::support::need;
use crate::support::nodes::{NodeUnderTest, eventually, possible};

const CONFIG: &str = r#"{"Network": "10.0.0.0/8", "SubnetMin": "10.200.0.0", "SubnetMax": "10.250.0.0", "Backend": {"Type": "vxlan"}}"#;
const PEERS: usize = 1000;
const MIB: u64 = 1 << 20;

/// Resident memory of a process in bytes.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib * 1024
}

fn write_leases(store: &Path) {
    let subnets = store.join("subnets");
    std::fs::create_dir_all(&subnets).unwrap();
    std::fs::write(store.join("config"), CONFIG).unwrap();
    for number in 0..PEERS {
        let (high, low) = (number / 250, number % 250);
        let value = format!(
            "{{\"PublicIP\":\"198.18.{high}.{}\",\"PublicIPv6\":null,\"BackendType\":\"vxlan\",\
             \"BackendData\":{{\"VNI\":1,\"VtepMAC\":\"0e:00:00:00:{high:02x}:{low:02x}\"}}}}",
            low + 1
        );
        std::fs::write(subnets.join(format!("10.{}.{low}.0-24", 10 + high)), value).unwrap();
    }
}

#[test]
fn a_thousand_peers_and_full_load_fit() {
    need!(possible(&["ip"]));
    let _machine = alone();
    let topology = Topology::two_hosts().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    write_leases(&store);
    let flags = [
        format!("--store=dir:{}", store.display()),
        "--workers=2".into(),
    ];
    let [a, b] = [0, 1].map(|n| NodeUnderTest::start(&topology.hosts()[n], folder.path(), &flags));
    eventually("there is a route for each peer", || {
        a.output("ip", &["route"]).matches("flannel.1").count() > PEERS
    });
    eventually("the containers reach each other", || a.reaches(&b));
    let pid = a.daemon.as_ref().unwrap().pid();
    let idle = resident(pid);
    for (from, to) in [(&a, &b), (&b, &a)] {
        let request = StreamRequest {
            address: to.container().address(),
            streams: 4,
            duration: Duration::from_secs(1),
        };
        let (from, to) = (from.container().namespace(), to.container().namespace());
        assert!(tcp_streams(from, to, request).unwrap().bytes > 0);
    }
    let loaded = resident(pid);
    println!(
        "resident with {PEERS} peers: idle {:.1} MiB, after load {:.1} MiB",
        idle as f64 / MIB as f64,
        loaded as f64 / MIB as f64
    );
    assert!(idle <= 32 * MIB, "{idle} bytes");
    assert!(loaded <= 64 * MIB, "{loaded} bytes");
}
