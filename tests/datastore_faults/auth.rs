//! Passwords and tokens (T24).

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::lab::{Lab, losing_nothing};

use crate::support::need;
use crate::support::nodes::{NodeUnderTest, PREFIX, eventually, possible};

/// Enables authentication, with a `node` that has the documented rights.
fn enable(lab: &mut Lab) {
    let key = format!("{PREFIX}/");
    let subnets = format!("{PREFIX}/subnets/");
    for command in [
        &["user", "add", "root:rootpass"][..],
        &["user", "grant-role", "root", "root"],
        &["role", "add", "flannel"],
        &[
            "role",
            "grant-permission",
            "flannel",
            "read",
            &key,
            "--prefix",
        ],
        &[
            "role",
            "grant-permission",
            "flannel",
            "readwrite",
            &subnets,
            "--prefix",
        ],
        &["user", "add", "node:geheim"],
        &["user", "grant-role", "node", "flannel"],
    ] {
        // The role root may exist already.
        if command[..2] == ["user", "grant-role"] && command[2] == "root" {
            let _ = lab.run_ctl(&["role", "add", "root"]);
        }
        lab.ctl(command);
    }
    lab.ctl(&["auth", "enable"]);
    lab.login = vec!["--user=root:rootpass".into()];
}

/// Logins that the member has refused since it started, by its own count.
fn refused_logins(lab: &Lab) -> u64 {
    let namespace = lab.topology.hosts()[2].namespace();
    let address = lab.topology.hosts()[2].address();
    let ask = move || -> std::io::Result<String> {
        let mut stream = TcpStream::connect((address, 2379))?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: etcd\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    let text = namespace.run(ask).unwrap().unwrap();
    let of_login = |line: &&str| {
        line.starts_with("grpc_server_handled_total")
            && line.contains("\"Authenticate\"")
            && !line.contains("\"OK\"")
    };
    let counts = text.lines().filter(of_login);
    counts
        .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
        .sum()
}

/// An etcd that requires passwords, and two nodes that have one.
fn with_passwords() -> (Lab, [NodeUnderTest; 2]) {
    let mut lab = Lab::new(1);
    // etcd forgets a token five seconds after its last use.
    lab.members[0].arguments = vec!["--auth-token-ttl=5".into()];
    lab.start();
    lab.put_config();
    enable(&mut lab);
    let flags = [
        lab.endpoints(),
        "--etcd-username=node".into(),
        "--etcd-password=geheim".into(),
        "--lease-ttl=12".into(),
        "--insecure-etcd".into(),
    ];
    let nodes = lab.nodes(&flags);
    (lab, nodes)
}

fn assert_no_password_is_logged(nodes: &[NodeUnderTest; 2]) {
    for node in nodes {
        let log = node.log();
        assert!(!log.contains("geheim"), "{log}");
    }
}

#[test]
fn tokens_expire_and_passwords_change_without_loss() {
    need!(possible(&["etcd", "etcdctl"]));
    let (mut lab, nodes) = with_passwords();
    let before = lab.leases();
    losing_nothing(&nodes, || {
        // Keepalives are sent every four seconds; tokens of other calls have expired by then.
        std::thread::sleep(Duration::from_secs(14));
        lab.news_arrive(&nodes[0]);
        // Each change invalidates all tokens.
        for number in 0..3 {
            lab.ctl(&["user", "add", &format!("user{number}:x")]);
            lab.news_arrive(&nodes[number % 2]);
        }
        // The process takes all tokens with it.
        lab.members[0].restart();
        lab.wait();
        lab.news_arrive(&nodes[0]);
        lab.news_arrive(&nodes[1]);
    });
    assert_eq!(lab.leases(), before, "no lease was lost or duplicated");
    assert_no_password_is_logged(&nodes);
}

/// It is logged and retried, without flooding etcd.
#[test]
fn a_user_deleted_for_a_while_costs_no_packet_and_few_logins() {
    need!(possible(&["etcd", "etcdctl"]));
    let (mut lab, nodes) = with_passwords();
    let before = lab.leases();
    losing_nothing(&nodes, || {
        lab.ctl(&["user", "delete", "node"]);
        lab.members[0].restart();
        let since = Instant::now();
        lab.wait();
        eventually("the log names what is refused", || {
            nodes[0].log().contains("authentication failed")
        });
        std::thread::sleep(Duration::from_secs(12));
        // Each of the two: one attempt, and one more every 30 seconds.
        let refused = refused_logins(&lab);
        let most = 2 * (1 + since.elapsed().as_secs() / 30);
        assert!(
            (1..=most).contains(&refused),
            "{refused} tries, {most} allowed"
        );
        lab.ctl(&["user", "add", "node:geheim"]);
        lab.ctl(&["user", "grant-role", "node", "flannel"]);
        // A watch whose login was refused retries after 30 seconds.
        std::thread::sleep(Duration::from_secs(20));
        lab.news_arrive(&nodes[0]);
        lab.news_arrive(&nodes[1]);
    });
    assert_eq!(lab.leases(), before);
    assert_no_password_is_logged(&nodes);
}
