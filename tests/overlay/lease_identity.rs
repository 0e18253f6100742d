//! The owner of a subnet: hosts with the same address, and hosts that must keep their containers'
//! subnet (T30). All hosts here have the same machine-id, like clones, and the same boot.

use std::time::{Duration, Instant};

use uvxlan::testbed::DaemonProcess;

use crate::support::need;
use crate::support::nodes::{
    CONFIG, Cluster, NodeUnderTest, PREFIX, PROGRAM, TIMEOUT, eventually, possible, without_writer,
};

impl Cluster {
    /// Starts a daemon that must refuse to serve; returns how it ended, and how soon.
    fn refused(&self, number: usize, flags: &[String]) -> (String, Duration) {
        let host = &self.topology.hosts()[number];
        let folder = self.folder.path().join(host.node().name());
        let endpoints = format!("--etcd-endpoints={}", self.etcd.url());
        let flags = flags.iter().chain([&endpoints]).map(String::as_str);
        let before = Instant::now();
        let mut daemon = DaemonProcess::start(PROGRAM.as_ref(), host, &folder, flags).unwrap();
        let error = daemon.ready(TIMEOUT).unwrap_err().to_string();
        assert!(error.contains("exit status: 78"), "{error}");
        (error, before.elapsed())
    }
}

fn key(subnet: ipnet::Ipv4Net) -> String {
    format!("{}-{}", subnet.network(), subnet.prefix_len())
}

#[test]
fn the_second_host_with_one_public_ip_is_refused_and_the_first_goes_on() {
    need!(possible(&["etcd", "etcdctl"]));
    let lab = Cluster::new(3, CONFIG);
    let (a, b) = (lab.start(0), lab.start(1));
    eventually("the containers reach each other", || a.reaches(&b));
    let before = lab.etcd.leases();
    std::thread::scope(|scope| {
        let talks = [(&a, &b), (&b, &a)].map(|(from, to)| scope.spawn(|| from.ping(to, 120)));
        let address = format!("--public-ip={}", a.host.address());
        for _ in 0..2 {
            let (text, took) = lab.refused(2, std::slice::from_ref(&address));
            assert!(text.contains("with our public IP"), "{text}");
            assert!(took < Duration::from_secs(5), "{took:?}");
        }
        for talk in talks {
            let report = talk.join().unwrap();
            assert!(report.is_complete(), "{report:?}");
        }
    });
    assert_eq!(lab.etcd.leases(), before, "the leases are unchanged");
    let other = lab.topology.hosts()[2].namespace();
    let links = other
        .command(std::process::Command::new("ip"))
        .arg("link")
        .output()
        .unwrap();
    let links = String::from_utf8_lossy(&links.stdout).into_owned();
    assert!(!links.contains("flannel.1"), "nothing was changed: {links}");
    let c = lab.start(2);
    eventually("it joins with an address of its own", || {
        c.reaches(&a) && b.reaches(&c)
    });
}

#[test]
fn a_dead_hosts_lease_goes_to_its_successor() {
    need!(possible(&["etcd", "etcdctl"]));
    let lab = Cluster::new(2, CONFIG);
    let mut a = lab.start(0);
    let before = lab.etcd.leases();
    drop(a.daemon.take());
    // The host was reinstalled, on another machine with the same id and address.
    let host = &lab.topology.hosts()[1];
    let flags = [
        format!("--etcd-endpoints={}", lab.etcd.url()),
        format!("--public-ip={}", a.host.address()),
    ];
    let _b = NodeUnderTest::start(host, lab.folder.path(), &flags);
    let after = lab.etcd.leases();
    assert_eq!(after.len(), 1);
    assert_eq!(after[0].0, before[0].0);
    assert_eq!(without_writer(&after[0].1), without_writer(&before[0].1));
    assert_ne!(after[0].1, before[0].1, "written by another host");
}

#[test]
fn a_subnet_in_use_is_kept_or_refused_and_never_changed_silently() {
    need!(possible(&["etcd", "etcdctl"]));
    let lab = Cluster::new(2, CONFIG);
    let theirs = format!("{PREFIX}/subnets/10.5.250.0-24");
    let value = r#"{"PublicIP":"192.0.2.51","BackendType":"vxlan","BackendData":{"VtepMAC":"0e:00:00:00:00:51"}}"#;
    lab.etcd.ctl(&["put", &theirs, value]);
    let (mut a, b) = (lab.start(0), lab.start(1));
    let subnet = a.env.unwrap().subnet;
    a.stop_daemon();

    // DHCP gives us the address of a former flannel host, whose lease still exists.
    let address = ["--public-ip=192.0.2.51".to_owned()];
    let before = lab.etcd.leases();
    let (text, _) = lab.refused(0, &address);
    assert!(
        text.contains("uvxlan lease release 10.5.250.0-24"),
        "{text}"
    );
    assert_eq!(lab.etcd.leases(), before);
    // Without the subnet file too, since the state is of this boot.
    std::fs::remove_file(a.folder.join("subnet.env")).unwrap();
    lab.refused(0, &address);
    assert_eq!(lab.etcd.leases(), before);

    // The network config has another range of subnets.
    let narrow = r#"{"Network": "10.5.0.0/16", "SubnetLen": 26, "Backend": {"Type": "vxlan"}}"#;
    let config = format!("{PREFIX}/config");
    lab.etcd.ctl(&["put", &config, narrow]);
    let (text, _) = lab.refused(0, &[]);
    assert!(
        text.contains("network config") && text.contains("--allow-renumber"),
        "{text}"
    );
    assert_eq!(lab.etcd.leases(), before);

    // With the old config: the same subnet, even with another address than before.
    lab.etcd.ctl(&["put", &config, CONFIG]);
    lab.etcd.ctl(&["del", &theirs]);
    a.flags.push("--public-ip=192.0.2.52".into());
    a.start_daemon();
    assert_eq!(a.env.unwrap().subnet, subnet);
    let leases = lab.etcd.leases();
    let own = leases.iter().find(|(name, _)| *name == key(subnet));
    assert!(own.unwrap().1.contains("192.0.2.52"), "{leases:?}");
    a.stop_daemon();
    a.flags.pop();
    a.start_daemon();
    assert_eq!(a.env.unwrap().subnet, subnet);
    eventually("traffic flows", || a.reaches(&b) && b.reaches(&a));

    // With permission to renumber, it does.
    a.stop_daemon();
    lab.etcd.ctl(&["put", &config, narrow]);
    a.flags.push("--allow-renumber".into());
    a.start_daemon();
    let now = a.env.unwrap().subnet;
    assert_eq!((now.prefix_len(), now == subnet), (26, false));
}
