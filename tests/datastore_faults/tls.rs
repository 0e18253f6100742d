//! Certificates that are replaced, expire, or have another name (T25).

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use super::lab::{Lab, losing_nothing};

use crate::support::need;
use crate::support::nodes::{NodeUnderTest, eventually, possible};

/// A CA, and the folder of its certificates.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let pem = params.self_signed(&key).unwrap().pem();
        Self {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    /// Writes a certificate for a server or client of this name, and its key.
    fn write(&self, folder: &Path, name: &str, subject: &str, until: i32) -> (PathBuf, PathBuf) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![subject.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(until, 1, 1);
        let paths = ["pem", "key"].map(|kind| folder.join(format!("{name}.{kind}")));
        let pem = params.signed_by(&key, &self.issuer).unwrap().pem();
        // Replaced atomically, as renewal tools do: a reader sees the old file or the new one.
        for (path, text) in paths.iter().zip([pem, key.serialize_pem()]) {
            let new = path.with_extension("new");
            std::fs::write(&new, text).unwrap();
            std::fs::rename(new, path).unwrap();
        }
        let [certificate, key] = paths;
        (certificate, key)
    }
}

fn log_names(node: &NodeUnderTest, words: &str) {
    eventually(words, || {
        let log = node.log().to_lowercase();
        log.contains(&words.to_lowercase())
    });
}

#[test]
fn certificates_are_replaced_and_bad_ones_named_without_loss() {
    need!(possible(&["etcd", "etcdctl"]));
    let mut lab = Lab::new(1);
    let folder = lab.folder.path().to_owned();
    let server = lab.topology.hosts()[2].address().to_string();
    let (authority, other_ca) = (Authority::new("our CA"), Authority::new("another CA"));
    let ca = folder.join("ca.pem");
    std::fs::write(&ca, &authority.pem).unwrap();
    let ca = ca.display();
    lab.members[0].tls = Some(authority.write(&folder, "server", &server, 4000));
    let (cert, key) = authority.write(&folder, "client", "client", 4000);
    let (cert, key) = (cert.display(), key.display());
    lab.members[0].arguments = vec![
        "--client-cert-auth".into(),
        format!("--trusted-ca-file={ca}"),
    ];
    lab.login = vec![
        format!("--cacert={ca}"),
        format!("--cert={cert}"),
        format!("--key={key}"),
    ];
    lab.start();
    lab.put_config();
    let nodes = lab.nodes(&[
        lab.endpoints(),
        format!("--etcd-cafile={ca}"),
        format!("--etcd-certfile={cert}"),
        format!("--etcd-keyfile={key}"),
        "--lease-ttl=60".into(),
    ]);
    let before = lab.leases();
    let renew = |lab: &mut Lab, authority: &Authority, subject: &str, until: i32| {
        authority.write(&folder, "server", subject, until);
        lab.members[0].restart();
    };
    losing_nothing(&nodes, || {
        for _ in 0..3 {
            authority.write(&folder, "client", "client", 4000);
            renew(&mut lab, &authority, &server, 4000);
            lab.wait();
            lab.news_arrive(&nodes[0]);
            lab.news_arrive(&nodes[1]);
        }
        renew(&mut lab, &authority, &server, 2021);
        log_names(&nodes[0], "expired");
        renew(&mut lab, &authority, "elsewhere.example", 4000);
        log_names(&nodes[0], "elsewhere.example");
        renew(&mut lab, &other_ca, &server, 4000);
        log_names(&nodes[0], "UnknownIssuer");
        renew(&mut lab, &authority, &server, 4000);
        lab.wait();
        lab.news_arrive(&nodes[0]);
        lab.news_arrive(&nodes[1]);
    });
    assert_eq!(lab.leases(), before, "no lease was lost or duplicated");
}
