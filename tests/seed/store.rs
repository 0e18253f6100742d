//! The datastore of the guide: three etcd members, one on each host, with TLS.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use uvxlan::testbed::Host;

use crate::support::etcd::{PREFIX, certificates_for};
use crate::support::nodes::eventually;

/// Which of etcd's two independent stores has the config and the leases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Api {
    /// That of the guide's flannel v0.11.
    V2,
    /// That of the newest flannel.
    V3,
}

impl Api {
    /// Its name for etcdctl.
    fn number(self) -> &'static str {
        match self {
            Self::V2 => "2",
            Self::V3 => "3",
        }
    }

    /// A lease as flannel writes it with this API, without the last brace.
    pub(crate) fn lease(self, public_ip: std::net::Ipv4Addr, mac: &str) -> String {
        match self {
            Self::V2 => format!(
                "{{\"PublicIP\":\"{public_ip}\",\"BackendType\":\"vxlan\",\
                 \"BackendData\":{{\"VtepMAC\":\"{mac}\"}}"
            ),
            Self::V3 => format!(
                "{{\"PublicIP\":\"{public_ip}\",\"PublicIPv6\":null,\"BackendType\":\"vxlan\",\
                 \"BackendData\":{{\"VNI\":1,\"VtepMAC\":\"{mac}\"}}"
            ),
        }
    }
}

/// A running cluster. Killed on drop.
pub(crate) struct Store {
    api: Api,
    ssl: PathBuf,
    hosts: Vec<Host>,
    members: Vec<Child>,
}

impl Store {
    /// Creates `ca.pem`, `server.pem` and `server-key.pem` in the folder `ssl`, starts a member on
    /// each host, and waits until the cluster answers.
    pub(crate) fn start(api: Api, hosts: &[Host], folder: &Path) -> Self {
        let ssl = folder.join("ssl");
        std::fs::create_dir_all(&ssl).unwrap();
        let names: Vec<String> = hosts
            .iter()
            .map(|host| host.address().to_string())
            .collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let tls = certificates_for(&ssl, &names, true);
        std::fs::rename(tls.cert, ssl.join("server.pem")).unwrap();
        std::fs::rename(tls.key, ssl.join("server-key.pem")).unwrap();
        let mut this = Self {
            api,
            ssl,
            hosts: hosts.to_vec(),
            members: Vec::new(),
        };
        for number in 0..hosts.len() {
            let member = this.member(number, folder);
            this.members.push(member);
        }
        eventually("etcd has a leader", || {
            this.try_ctl(Api::V3, &["get", "nothing"], None).is_ok()
        });
        this
    }

    fn member(&self, number: usize, folder: &Path) -> Child {
        let url = |host: &Host, port: u16| format!("https://{}:{port}", host.address());
        let host = &self.hosts[number];
        let numbered = self.hosts.iter().enumerate();
        let cluster: Vec<String> = numbered
            .map(|(number, host)| format!("etcd-{number}={}", url(host, 2380)))
            .collect();
        let name = format!("etcd-{number}");
        let log = File::create(folder.join(format!("{name}.log"))).unwrap();
        // A leader that is terminated transfers its leadership first.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "etcd"]);
        let file = |name: &str| self.ssl.join(name);
        for side in ["", "peer-"] {
            command
                .arg(format!("--{side}cert-file"))
                .arg(file("server.pem"))
                .arg(format!("--{side}key-file"))
                .arg(file("server-key.pem"))
                .arg(format!("--{side}trusted-ca-file"))
                .arg(file("ca.pem"))
                .arg(format!("--{side}client-cert-auth"));
        }
        command
            .args(["--name", &name, "--data-dir"])
            .arg(folder.join(&name))
            .args(["--initial-cluster", &cluster.join(",")])
            .args(["--enable-v2=true", "--heartbeat-interval=100"])
            .args(["--election-timeout=1000"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let clients = ["--listen-client-urls", "--advertise-client-urls"];
        let peers = ["--listen-peer-urls", "--initial-advertise-peer-urls"];
        for (flags, port) in [(clients, 2379), (peers, 2380)] {
            for flag in flags {
                command.args([flag, &url(host, port)]);
            }
        }
        host.namespace().command(command).spawn().unwrap()
    }

    /// As the guide passes them to every program: all members, separated by commas.
    pub(crate) fn endpoints(&self) -> String {
        let hosts = self.hosts.iter();
        let urls: Vec<_> = hosts
            .map(|host| format!("https://{}:2379", host.address()))
            .collect();
        urls.join(",")
    }

    /// The folder with the certificates.
    pub(crate) fn ssl(&self) -> &Path {
        &self.ssl
    }

    /// The store that has the config and the leases.
    pub(crate) fn api(&self) -> Api {
        self.api
    }

    fn try_ctl(&self, api: Api, words: &[&str], input: Option<&Path>) -> Result<String, String> {
        // The guide's flags are those of etcdctl for v2; those for v3 differ.
        let flags = match api {
            Api::V2 => ["--ca-file", "--cert-file", "--key-file"],
            Api::V3 => ["--cacert", "--cert", "--key"],
        };
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", api.number());
        for (flag, file) in flags.iter().zip(["ca.pem", "server.pem", "server-key.pem"]) {
            command.arg(flag).arg(self.ssl.join(file));
        }
        command.arg(format!("--endpoints={}", self.endpoints()));
        command.args(words);
        command.stdin(match input {
            Some(file) => Stdio::from(File::open(file).unwrap()),
            None => Stdio::null(),
        });
        let host = &self.hosts[0];
        let output = host.namespace().command(command).output().unwrap();
        if output.status.success() {
            Ok(String::from_utf8(output.stdout).unwrap())
        } else {
            Err(format!("etcdctl {words:?}: {output:?}"))
        }
    }

    fn ctl(&self, words: &[&str]) -> String {
        self.try_ctl(self.api, words, None).unwrap()
    }

    /// Step 5: writes the network config from a file to the store.
    pub(crate) fn set_config(&self, file: &Path) {
        let verb = match self.api {
            Api::V2 => "set",
            Api::V3 => "put",
        };
        let key = format!("{PREFIX}/config");
        self.try_ctl(self.api, &[verb, &key], Some(file)).unwrap();
    }

    /// Step 14: the keys of the leases, sorted.
    pub(crate) fn lease_keys(&self) -> Vec<String> {
        let folder = format!("{PREFIX}/subnets");
        let text = match self.api {
            Api::V2 => self.ctl(&["ls", &folder]),
            Api::V3 => self.ctl(&["get", "--keys-only", "--prefix", &format!("{folder}/")]),
        };
        let lines = text.lines().filter(|line| !line.is_empty());
        let mut keys: Vec<_> = lines.map(str::to_owned).collect();
        // API v2 returns them in no order.
        keys.sort();
        keys
    }

    /// Step 14: the value of a key.
    pub(crate) fn value(&self, key: &str) -> String {
        let text = match self.api {
            Api::V2 => self.ctl(&["get", key]),
            Api::V3 => self.ctl(&["get", "--print-value-only", key]),
        };
        text.trim_end_matches('\n').to_owned()
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        for member in &mut self.members {
            let _ = member.kill();
            let _ = member.wait();
        }
    }
}
