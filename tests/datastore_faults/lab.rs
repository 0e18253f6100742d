//! Hosts, etcd members that can be killed and changed, and a steady ping.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use uvxlan::testbed::{Host, Topology};

pub(crate) use crate::support::nodes::losing_nothing;

use crate::support::etcd::with_client;
use crate::support::nodes::{self, NodeUnderTest, PREFIX, eventually};

/// A subnet that no daemon leases: `SubnetMax` is below it.
pub(crate) const FOREIGN_SUBNET: &str = "10.5.253.0";

/// An etcd member on a host, on the usual ports. Killed on drop.
pub(crate) struct Member {
    host: Host,
    folder: PathBuf,
    name: String,
    /// URLs of all members: `name=http://…:2380,…`.
    cluster: String,
    /// TLS files for clients: certificate and key.
    pub(crate) tls: Option<(PathBuf, PathBuf)>,
    /// The clients' port, if not the usual one.
    pub(crate) port: u16,
    pub(crate) arguments: Vec<String>,
    child: Option<Child>,
}

impl Member {
    pub(crate) fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}:{}", self.host.address(), self.port)
    }

    /// Starts it on its data; does not wait.
    pub(crate) fn start(&mut self) {
        let log = File::create(self.folder.join("log")).unwrap();
        let peer = format!("http://{}:2380", self.host.address());
        let mut command = Command::new("etcd");
        command
            .args(["--name", &self.name, "--data-dir"])
            .arg(self.folder.join("data"))
            .args(["--listen-client-urls", &self.url()])
            .args(["--advertise-client-urls", &self.url()])
            .args(["--listen-peer-urls", &peer])
            .args(["--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &self.cluster])
            .args(["--heartbeat-interval=50", "--election-timeout=500"])
            .args(&self.arguments);
        if let Some((certificate, key)) = &self.tls {
            command.arg("--cert-file").arg(certificate);
            command.arg("--key-file").arg(key);
        }
        command.stdout(Stdio::null()).stderr(log);
        let command = uvxlan::sys::process::dies_with_parent(command);
        self.child = Some(self.host.namespace().command(command).spawn().unwrap());
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub(crate) fn restart(&mut self) {
        self.kill();
        self.start();
    }

    /// Removes all of its data; it must not run.
    pub(crate) fn wipe(&self) {
        assert!(self.child.is_none(), "kill first");
        std::fs::remove_dir_all(self.folder.join("data")).unwrap();
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Two hosts for daemons, and one for each etcd member.
pub(crate) struct Lab {
    pub(crate) topology: Topology,
    pub(crate) folder: tempfile::TempDir,
    pub(crate) members: Vec<Member>,
    /// Arguments of etcdctl other than the endpoints.
    pub(crate) login: Vec<String>,
}

impl Lab {
    /// Members, not started yet.
    pub(crate) fn new(members: usize) -> Self {
        let topology = Topology::with_hosts(2 + members).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let hosts: Vec<Host> = topology.hosts().iter().skip(2).cloned().collect();
        let cluster: Vec<_> = hosts
            .iter()
            .enumerate()
            .map(|(number, host)| format!("m{number}=http://{}:2380", host.address()))
            .collect();
        let members = hosts
            .into_iter()
            .enumerate()
            .map(|(number, host)| {
                let name = format!("m{number}");
                let folder = folder.path().join(&name);
                std::fs::create_dir_all(&folder).unwrap();
                Member {
                    host,
                    folder,
                    name,
                    cluster: cluster.join(","),
                    tls: None,
                    port: 2379,
                    arguments: Vec::new(),
                    child: None,
                }
            })
            .collect();
        Self {
            topology,
            folder,
            members,
            login: Vec::new(),
        }
    }

    /// The same with the network config in it.
    pub(crate) fn with_config(members: usize) -> Self {
        let mut lab = Self::new(members);
        lab.start();
        lab.put_config();
        lab
    }

    /// Starts all members, and waits until they answer.
    pub(crate) fn start(&mut self) {
        self.members.iter_mut().for_each(Member::start);
        self.wait();
    }

    pub(crate) fn wait(&self) {
        eventually("etcd answers", || self.try_ctl(&["get", "x"]).is_some());
    }

    pub(crate) fn put_config(&self) {
        self.ctl(&["put", &format!("{PREFIX}/config"), nodes::CONFIG]);
    }

    /// Runs etcdctl on the first member's host.
    pub(crate) fn run_ctl(&self, arguments: &[&str]) -> Output {
        let urls: Vec<_> = self.members.iter().map(Member::url).collect();
        let mut command = Command::new("etcdctl");
        command
            .env("ETCDCTL_API", "3")
            .arg(format!("--endpoints={}", urls.join(",")))
            .args(["--command-timeout=3s"])
            .args(&self.login)
            .args(arguments);
        let host = &self.members[0].host;
        host.namespace().command(command).output().unwrap()
    }

    pub(crate) fn try_ctl(&self, arguments: &[&str]) -> Option<String> {
        let output = self.run_ctl(arguments);
        let text = String::from_utf8(output.stdout).unwrap();
        output.status.success().then_some(text)
    }

    pub(crate) fn ctl(&self, arguments: &[&str]) -> String {
        let output = self.run_ctl(arguments);
        assert!(output.status.success(), "etcdctl {arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) fn endpoints(&self) -> String {
        let urls: Vec<_> = self.members.iter().map(Member::url).collect();
        format!("--etcd-endpoints={}", urls.join(","))
    }

    /// A daemon on each of the first two hosts, with containers that reach each other.
    pub(crate) fn nodes(&self, flags: &[String]) -> [NodeUnderTest; 2] {
        let nodes = [0, 1].map(|number| {
            let host = &self.topology.hosts()[number];
            NodeUnderTest::start(host, self.folder.path(), flags)
        });
        eventually("the containers reach each other", || {
            nodes[0].reaches(&nodes[1])
        });
        nodes
    }

    /// Adds a peer to the datastore and removes it again; the node must notice both.
    pub(crate) fn news_arrive(&self, node: &NodeUnderTest) {
        let key = format!("{PREFIX}/subnets/{FOREIGN_SUBNET}-24");
        let value = r#"{"PublicIP":"192.0.2.99","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0e:00:00:00:00:99"}}"#;
        // After a member has started or stopped, etcdctl may fail once.
        let change = |arguments: &[&str]| {
            eventually("etcd takes a write", || self.try_ctl(arguments).is_some());
        };
        change(&["put", &key, value]);
        let routed = || node.output("ip", &["route", "show", &format!("{FOREIGN_SUBNET}/24")]);
        eventually("a new peer gets a route", || !routed().is_empty());
        change(&["del", &key]);
        eventually("its route is removed with it", || routed().is_empty());
    }

    /// Runs `work` with a client of the first member.
    pub(crate) fn with_client(&self, work: impl AsyncFnOnce(etcd_client::Client) + Send) {
        let member = &self.members[0];
        with_client(&member.host, member.url(), work);
    }

    /// The leases, by key.
    pub(crate) fn leases(&self) -> Vec<String> {
        let text = self.ctl(&[
            "get",
            "--prefix",
            "--keys-only",
            &format!("{PREFIX}/subnets/"),
        ]);
        let keys = text.lines().filter(|line| !line.is_empty());
        keys.map(str::to_owned).collect()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for host in self.topology.hosts().iter().take(2) {
                let name = host.node().name();
                let log = std::fs::read_to_string(self.folder.path().join(name).join("log"));
                eprintln!("log of {name}:\n{}", log.unwrap_or_default());
            }
        }
    }
}
