//! A real etcd on loopback with its own directory, killed on drop.

use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use uvxlan::subnet::store::Store;
use uvxlan::subnet::store::etcd::EtcdOptions;
use uvxlan::subnet::store::etcd_v2::EtcdV2Store;
use uvxlan::subnet::store::etcd_v3::EtcdStore;
use uvxlan::testbed::Host;

use super::proxy::Proxy;

/// The etcd prefix of all tests.
pub(crate) const PREFIX: &str = "/coreos.com/network";

/// Certificates for a server and its clients.
#[derive(Clone)]
pub(crate) struct Tls {
    pub(crate) ca: PathBuf,
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) client_cert: PathBuf,
    pub(crate) client_key: PathBuf,
    pub(crate) mutual: bool,
}

/// A new CA, with a certificate for 127.0.0.1 and one for a client.
pub(crate) fn certificates(dir: &Path, mutual: bool) -> Tls {
    certificates_for(dir, &["127.0.0.1"], mutual)
}

/// The same, with a certificate for a server of these names and addresses.
pub(crate) fn certificates_for(dir: &Path, server: &[&str], mutual: bool) -> Tls {
    certificates_with(dir, server, mutual, None)
}

/// As [`certificates`], valid from 1 January of one year to 1 January of another.
pub(crate) fn certificates_valid(dir: &Path, from: i32, until: i32) -> Tls {
    certificates_with(dir, &["127.0.0.1"], false, Some((from, until)))
}

fn certificates_with(dir: &Path, server: &[&str], mutual: bool, years: Option<(i32, i32)>) -> Tls {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    let ca_key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, "test CA");
    let ca = params.self_signed(&ca_key).unwrap();
    let issuer = Issuer::new(params, ca_key);
    let write = |name: &str, text: String| {
        let path = dir.join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let sign = |names: &[&str], common_name: &str| {
        let key = KeyPair::generate().unwrap();
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, common_name);
        if let Some((from, until)) = years {
            params.not_before = rcgen::date_time_ymd(from, 1, 1);
            params.not_after = rcgen::date_time_ymd(until, 1, 1);
        }
        (
            params.signed_by(&key, &issuer).unwrap().pem(),
            key.serialize_pem(),
        )
    };
    let (cert, key) = sign(server, "server");
    let (client_cert, client_key) = sign(&[], "client");
    Tls {
        ca: write("ca.pem", ca.pem()),
        cert: write("cert.pem", cert),
        key: write("key.pem", key),
        client_cert: write("client-cert.pem", client_cert),
        client_key: write("client-key.pem", client_key),
        mutual,
    }
}

/// A running (or killed) etcd.
pub(crate) struct Etcd {
    name: String,
    /// All members in the form of `--initial-cluster`; empty for a single member.
    cluster: String,
    /// Further arguments.
    pub(crate) extra: Vec<String>,
    dir: TempDir,
    client_port: u16,
    peer_port: u16,
    tls: Option<Tls>,
    child: Option<Child>,
}

/// Finds a program, or reports why the test is skipped.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|file| file.is_file());
    if found.is_none() {
        crate::support::skipped(format!("{name} is not installed"));
    }
    found
}

/// A free port that no other caller in this process gets: a server that was killed must find
/// its port free when it is restarted. Below the ephemeral range, so that no connection takes
/// it meanwhile.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 20_000 + (std::process::id() % 1000) as u16 * 10;
    loop {
        let port = first + NEXT.fetch_add(1, Ordering::Relaxed) % 2000;
        // Not by binding it: a child that another test is just starting would still have a copy of
        // the socket, and with it the port.
        if TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            return port;
        }
    }
}

impl Etcd {
    /// Starts a single member; `None`, with a line on stdout, if etcd is not installed.
    pub(crate) async fn start(tls: Option<Tls>) -> Option<Self> {
        // Both APIs, the default before etcd 3.4.
        Self::start_with(tls, &["--enable-v2=true"]).await
    }

    fn new(tls: Option<Tls>) -> Self {
        Self {
            name: "test".into(),
            cluster: String::new(),
            extra: Vec::new(),
            dir: tempfile::tempdir().unwrap(),
            client_port: 0,
            peer_port: 0,
            tls,
            child: None,
        }
    }

    /// Starts a cluster of three members.
    pub(crate) async fn start_three() -> Option<[Self; 3]> {
        program("etcd")?;
        let mut members = [(); 3].map(|()| Self::new(None));
        let mut urls = Vec::new();
        for (number, member) in members.iter_mut().enumerate() {
            member.name = format!("m{number}");
            member.client_port = free_port();
            member.peer_port = free_port();
            urls.push(format!(
                "{}=http://127.0.0.1:{}",
                member.name, member.peer_port
            ));
        }
        // None is ready before a second one runs.
        for member in &mut members {
            member.cluster = urls.join(",");
            member.spawn();
        }
        for member in &mut members {
            assert!(member.wait_ready().await, "no cluster:\n{}", member.log());
        }
        Some(members)
    }

    /// As [`Self::start`], with further arguments.
    pub(crate) async fn start_with(tls: Option<Tls>, extra: &[&str]) -> Option<Self> {
        program("etcd")?;
        let mut etcd = Self::new(tls);
        etcd.extra = extra
            .iter()
            .map(|argument| (*argument).to_owned())
            .collect();
        for _ in 0..3 {
            etcd.client_port = free_port();
            etcd.peer_port = free_port();
            if etcd.run().await {
                return Some(etcd);
            }
        }
        panic!("etcd does not start; its output:\n{}", etcd.log());
    }

    /// Starts it on its data directory and waits until it answers.
    pub(crate) async fn run(&mut self) -> bool {
        self.spawn();
        self.wait_ready().await
    }

    /// Starts it on its data directory.
    pub(crate) fn spawn(&mut self) {
        let peer = format!("http://127.0.0.1:{}", self.peer_port);
        let log = std::fs::File::create(self.dir.path().join("log")).unwrap();
        let cluster = match self.cluster.as_str() {
            "" => format!("{}={peer}", self.name),
            cluster => cluster.to_owned(),
        };
        let mut command = Command::new("etcd");
        command
            .args([
                "--name",
                &self.name,
                "--logger",
                "zap",
                "--log-level",
                "info",
            ])
            .args([
                "--listen-client-urls",
                &self.url(),
                "--advertise-client-urls",
                &self.url(),
            ])
            .args([
                "--listen-peer-urls",
                &peer,
                "--initial-advertise-peer-urls",
                &peer,
            ])
            .args(["--initial-cluster", &cluster])
            .args(&self.extra)
            .arg("--data-dir")
            .arg(self.dir.path().join("data"));
        if let Some(tls) = &self.tls {
            command
                .arg("--cert-file")
                .arg(&tls.cert)
                .arg("--key-file")
                .arg(&tls.key);
            if tls.mutual {
                command
                    .arg("--client-cert-auth")
                    .arg("--trusted-ca-file")
                    .arg(&tls.ca);
            }
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
    }

    /// An open port is not enough: etcd accepts connections before it has a leader, and a member
    /// that is killed before its first entry is committed never elects one again.
    pub(crate) async fn wait_ready(&mut self) -> bool {
        let deadline = Instant::now() + Duration::from_secs(30);
        while Instant::now() < deadline {
            if self.child.as_mut().unwrap().try_wait().unwrap().is_some() {
                return false;
            }
            if self.log().contains("published local member to cluster") {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        false
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Removes the data of a killed etcd.
    pub(crate) fn wipe(&mut self) {
        assert!(self.child.is_none(), "kill first");
        std::fs::remove_dir_all(self.dir.path().join("data")).unwrap();
    }

    pub(crate) fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.client_port)
    }

    pub(crate) fn port(&self) -> u16 {
        self.client_port
    }

    /// A directory for the test's files.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Options for this etcd, without user and TLS files.
    pub(crate) fn options(&self) -> EtcdOptions {
        EtcdOptions {
            endpoints: vec![self.url()],
            prefix: PREFIX.into(),
            ..EtcdOptions::default()
        }
    }

    /// Options for this etcd behind a proxy.
    pub(crate) async fn behind_proxy(&self) -> (Proxy, EtcdOptions) {
        let proxy = Proxy::start(self.port()).await;
        let options = EtcdOptions {
            endpoints: vec![proxy.url()],
            ..self.options()
        };
        (proxy, options)
    }

    pub(crate) fn store(&self) -> EtcdStore {
        EtcdStore::new(self.options()).unwrap()
    }

    pub(crate) fn v2_store(&self) -> EtcdV2Store {
        EtcdV2Store::new(self.options()).unwrap()
    }

    /// A client for what the store does not do.
    pub(crate) async fn client(&self) -> etcd_client::Client {
        etcd_client::Client::connect([self.url()], None)
            .await
            .unwrap()
    }

    /// Runs etcdctl, to check the store independently.
    pub(crate) fn ctl(&self, arguments: &[&str]) -> Option<Output> {
        self.ctl_api("3", arguments)
    }

    /// The same over API v2 (`2`) or v3 (`3`).
    pub(crate) fn ctl_api(&self, api: &str, arguments: &[&str]) -> Option<Output> {
        let program = program("etcdctl")?;
        let output = Command::new(program)
            .env("ETCDCTL_API", api)
            .arg("--endpoints")
            .arg(self.url())
            .args(arguments)
            .output()
            .unwrap();
        assert!(output.status.success(), "etcdctl {arguments:?}: {output:?}");
        Some(output)
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("output of etcd:\n{}", self.log());
        }
        self.kill();
    }
}

/// Runs `work` with a client of an etcd on a host.
pub(crate) fn with_client<T: Send>(
    host: &Host,
    url: String,
    work: impl AsyncFnOnce(etcd_client::Client) -> T + Send,
) -> T {
    let connected = host.node().block_on(async || {
        let client = etcd_client::Client::connect([url], None).await.unwrap();
        work(client).await
    });
    connected.unwrap()
}

/// Waits until the store answers, for tests that just started etcd.
pub(crate) async fn until_up(store: &dyn Store) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match store.list().await {
            Ok(_) => return,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
