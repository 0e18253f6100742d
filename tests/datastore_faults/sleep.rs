//! A daemon that sleeps past its lease's TTL (T28), and two hosts with one address (T30).

use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::lab::{Lab, losing_nothing};

use crate::support::need;
use crate::support::nodes::{NodeUnderTest, eventually, possible};

fn signal(node: &NodeUnderTest, signal: Signal) {
    let pid = node.daemon.as_ref().unwrap().pid();
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}

#[test]
fn a_daemon_that_slept_past_its_lease_takes_the_same_subnet_again() {
    need!(possible(&["etcd", "etcdctl"]));
    let lab = Lab::with_config(1);
    let nodes = lab.nodes(&[lab.endpoints(), "--lease-ttl=5".into()]);
    let before = lab.leases();
    // As on a suspended machine: its clock jumps, and its lease expires meanwhile.
    signal(&nodes[0], Signal::STOP);
    eventually("the lease expires", || lab.leases().len() == 1);
    let route = || {
        let subnet = nodes[0].env.unwrap().subnet.to_string();
        nodes[1].output("ip", &["route", "show", &subnet])
    };
    eventually("the peer's route is gone", || route().is_empty());
    signal(&nodes[0], Signal::CONT);
    eventually("the same leases are back", || lab.leases() == before);
    eventually("and the containers reach each other", || {
        nodes[0].reaches(&nodes[1])
    });
    losing_nothing(&nodes, || std::thread::sleep(Duration::from_secs(7)));
    assert_eq!(lab.leases(), before, "the new lease is kept alive");
}

#[test]
fn of_two_hosts_with_one_address_the_first_stays() {
    need!(possible(&["etcd", "etcdctl"]));
    let lab = Lab::with_config(1);
    let flags = [lab.endpoints(), "--lease-ttl=5".into()];
    let folder = lab.folder.path().join("third");
    let mut third = NodeUnderTest::start(&lab.topology.hosts()[2], &folder, &flags);
    // In both orders: the first to start stays, not the smaller number.
    for (first, second) in [(0, 1), (1, 0)] {
        let hosts = lab.topology.hosts();
        let address = hosts[first].address().to_string();
        let folder = lab.folder.path().join(format!("first{first}"));
        let holder = NodeUnderTest::start(&hosts[first], &folder, &flags);
        let nodes = [holder, third];
        eventually("the containers reach each other", || {
            nodes[0].reaches(&nodes[1])
        });
        let before = lab.leases();
        // The same address there: that of a NAT, or of a cloned machine.
        let machine = folder.join("machine-id");
        std::fs::write(&machine, format!("{:032x}\n", 0xc10e_u32)).unwrap();
        let script = format!(
            "mount --bind {} /etc/machine-id && exec \"$@\"",
            machine.display()
        );
        let mut command = std::process::Command::new("unshare");
        command
            .args([
                "-m",
                "sh",
                "-c",
                &script,
                "sh",
                crate::support::nodes::PROGRAM,
                "run",
            ])
            .args(&flags)
            .args(["--iface=eth0", &format!("--public-ip={address}")])
            .arg(format!(
                "--subnet-file={}",
                folder.join("other.env").display()
            ))
            .arg(format!("--state-dir={}", folder.join("other").display()))
            .arg(format!(
                "--control-socket={}",
                folder.join("other.sock").display()
            ))
            .arg("--metrics-listen=off");
        let command = uvxlan::sys::process::dies_with_parent(command);
        let mut command = hosts[second].namespace().command(command);
        let child = command
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, receiver) = std::sync::mpsc::channel();
        let pid = child.id();
        std::thread::spawn(move || sender.send(child.wait_with_output()));
        let output = losing_nothing(&nodes, || receiver.recv_timeout(Duration::from_secs(10)));
        if output.is_err() {
            let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
            let _ = kill_process(pid, Signal::KILL);
        }
        let output = output
            .expect("the second host refuses within seconds")
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{said}");
        assert!(
            said.contains(&address) && said.contains("--iface"),
            "{said}"
        );
        assert_eq!(lab.leases(), before, "the first is unchanged");
        let [holder, other] = nodes;
        drop(holder);
        third = other;
        eventually("the first one's lease expires", || lab.leases().len() == 1);
    }
}
