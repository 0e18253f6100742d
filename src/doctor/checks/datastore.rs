//! The datastore: whether it can be reached and trusted, and what config it holds.

use crate::doctor::Finding;
use crate::doctor::facts::{Facts, Member, TlsFault, Trouble};
use crate::subnet::config::{ConfigError, NetworkConfig};

/// Difference of clocks, in seconds, from which on it is worth a word. Dates of HTTP are
/// whole seconds, and answers take time.
const SKEW: u64 = 60;

/// Whether the members of etcd, or the directory, can be reached.
#[must_use]
pub fn members(facts: &Facts) -> Finding {
    const CHECK: &str = "datastore";
    let store = &facts.store;
    if let Some(refused) = &store.refused {
        return if refused.tls {
            Finding::skipped(CHECK, "not asked: see datastore-tls")
        } else {
            Finding::error(
                CHECK,
                refused.text.clone(),
                "the options that name the datastore cannot be meant",
                "correct --store, --etcd-endpoints or the option that is named, here and in the \
                 daemon's options",
            )
        };
    }
    if store.members.is_empty() {
        return directory(facts);
    }
    let failed: Vec<_> = store.members.iter().filter_map(unreachable).collect();
    let answering = store.members.iter().filter(|member| member.answer.is_ok());
    let (answering, all) = (answering.count(), store.members.len());
    let Some((_, wants_tls)) = failed.first() else {
        if answering == 0 {
            return Finding::skipped(CHECK, "no member can be asked: see datastore-tls");
        }
        return refusal(facts).unwrap_or_else(|| {
            Finding::ok(CHECK, format!("{} of {all} members answer", answering))
        });
    };
    let said: Vec<_> = failed.iter().map(|(text, _)| text.clone()).collect();
    let remedy = match wants_tls {
        true => "write https:// into --etcd-endpoints, and give --etcd-cafile",
        false => {
            "on that host: systemctl status etcd, and does it listen there \
             (--listen-client-urls)? From here: curl URL/version; a firewall on the way drops TCP 2379; \
             correct --etcd-endpoints"
        }
    };
    if answering == 0 {
        return Finding::error(
            CHECK,
            said.join("; "),
            "without the datastore there is no network config, no lease and no news of peers; what is \
             running goes on",
            remedy,
        );
    }
    Finding::warning(
        CHECK,
        format!(
            "{} of {all} members do not answer: {}",
            failed.len(),
            said.join("; ")
        ),
        "the daemon uses the others; each that is asked in vain costs seconds",
        remedy,
    )
}

/// What is said of a member that could not be spoken with, and whether it wants TLS.
fn unreachable(member: &Member) -> Option<(String, bool)> {
    let url = &member.url;
    match &member.answer {
        Ok(answer) if answer.status >= 500 => {
            Some((format!("{url}: HTTP {}", answer.status), false))
        }
        Ok(_) | Err(Trouble::Tls(..)) => None,
        Err(Trouble::Connection(text)) => Some((format!("{url}: {text}"), false)),
        Err(Trouble::WantsTls) => {
            Some((format!("{url}: it speaks TLS, and the URL says http"), true))
        }
    }
}

/// Members answer, and the question for the config was refused.
fn refusal(facts: &Facts) -> Option<Finding> {
    let Some(Err(error)) = &facts.store.config else {
        return None;
    };
    Some(Finding::error(
        "datastore",
        error.clone(),
        "etcd answers, and does not hand out the network's keys",
        "check --etcd-username and --etcd-password, and the role's rights on the prefix (etcdctl role \
         get); etcdctl endpoint health",
    ))
}

fn directory(facts: &Facts) -> Finding {
    const CHECK: &str = "datastore";
    let store = &facts.store;
    let failed = [
        store.config.as_ref().and_then(|read| read.as_ref().err()),
        store.listing.as_ref().and_then(|read| read.as_ref().err()),
    ];
    match failed.into_iter().flatten().next() {
        Some(error) => Finding::error(
            CHECK,
            error.clone(),
            "the directory cannot be read: a file system that is not mounted, or rights",
            "ls -l on that directory; mount it, or correct --store=dir:PATH",
        ),
        None => Finding::ok(CHECK, format!("{} answers", store.place)),
    }
}

/// Whether TLS to each member works.
#[must_use]
pub fn tls(facts: &Facts) -> Finding {
    const CHECK: &str = "datastore-tls";
    let store = &facts.store;
    if let Some(refused) = store.refused.as_ref().filter(|refused| refused.tls) {
        return Finding::error(
            CHECK,
            refused.text.clone(),
            "without its TLS files nothing is sent to etcd",
            "ls -l the file that is named: it must be PEM, and readable for the daemon's user",
        );
    }
    let first = store
        .members
        .iter()
        .find_map(|member| match &member.answer {
            Err(Trouble::Tls(fault, text)) => Some((member, *fault, text)),
            _ => None,
        });
    let Some((member, fault, text)) = first else {
        let secure = store
            .members
            .iter()
            .filter(|member| member.url.starts_with("https://"));
        return match secure.count() {
            0 => Finding::ok(CHECK, "not in use"),
            _ if store.members.iter().all(|member| member.answer.is_err()) => {
                Finding::skipped(CHECK, "no member answers: see datastore")
            }
            count => Finding::ok(CHECK, format!("{count} members are trusted")),
        };
    };
    let url = &member.url;
    let (what, cause, remedy) = explained(fault);
    Finding::error(
        CHECK,
        format!("{url}: {what} ({text})"),
        cause,
        remedy.replace("HOST:PORT", url.trim_start_matches("https://")),
    )
}

/// What a fault means, why, and what mends it.
const fn explained(fault: TlsFault) -> (&'static str, &'static str, &'static str) {
    const SHOW: &str = "openssl s_client -connect HOST:PORT </dev/null | openssl x509 -noout -dates -issuer -ext \
                        subjectAltName";
    match fault {
        TlsFault::Expired => (
            "the member's certificate has expired",
            "it was not renewed in time, or this host's clock is ahead (see clock)",
            "renew the member's certificate and restart etcd; date; openssl s_client -connect \
             HOST:PORT </dev/null | openssl x509 -noout -dates",
        ),
        TlsFault::NotYetValid => (
            "the member's certificate is not valid yet",
            "this host's clock is behind, or the certificate was made by a host whose clock is ahead",
            "timedatectl set-ntp true; date; openssl s_client -connect HOST:PORT </dev/null | openssl \
             x509 -noout -dates",
        ),
        TlsFault::UnknownAuthority => (
            "an unknown authority signed the member's certificate",
            "--etcd-cafile holds another CA than the one that signed it, or none is given",
            "give the CA of etcd by --etcd-cafile; openssl s_client -connect HOST:PORT </dev/null | \
             openssl x509 -noout -issuer",
        ),
        TlsFault::WrongName => (
            "the member's certificate is for other names",
            "the name or address in --etcd-endpoints is not among its subjectAltName",
            "use a name that it has, or make the certificate anew with this one; openssl s_client \
             -connect HOST:PORT </dev/null | openssl x509 -noout -ext subjectAltName",
        ),
        TlsFault::ClientWanted => (
            "the member wants a certificate of ours",
            "etcd runs with --client-cert-auth, and no client certificate is given",
            "give --etcd-certfile and --etcd-keyfile",
        ),
        TlsFault::ClientRefused => (
            "the member refuses our certificate",
            "it has expired, or an authority signed it that etcd's --trusted-ca-file does not have",
            "openssl x509 -noout -dates -issuer -in the file of --etcd-certfile",
        ),
        TlsFault::NoTls => (
            "the member speaks without TLS",
            "the URL says https, and etcd listens for http there",
            "write http:// into --etcd-endpoints, or give etcd a certificate",
        ),
        TlsFault::OurFiles => (
            "our own TLS files cannot be used",
            "the certificate and the key do not belong together, or are of a kind that is not known",
            "check the files of --etcd-cafile, --etcd-certfile and --etcd-keyfile",
        ),
        TlsFault::Other => ("TLS failed", "see the words in brackets", SHOW),
    }
}

/// Whether the members' clocks and ours agree.
#[must_use]
pub fn clock(facts: &Facts) -> Finding {
    const CHECK: &str = "clock";
    let skews: Vec<_> = facts
        .store
        .members
        .iter()
        .filter_map(|member| Some((&member.url, member.answer.as_ref().ok()?.skew?)))
        .collect();
    let Some((url, skew)) = skews.iter().max_by_key(|(_, skew)| skew.unsigned_abs()) else {
        return match facts.store.members.is_empty() {
            true => Finding::ok(CHECK, "not in use: no member of etcd to compare with"),
            false => Finding::skipped(CHECK, "no member told the time"),
        };
    };
    if skew.unsigned_abs() < SKEW {
        return Finding::ok(
            CHECK,
            format!("within {} s of {url}", skew.unsigned_abs().max(1)),
        );
    }
    let direction = match *skew > 0 {
        true => "behind",
        false => "ahead of",
    };
    Finding::warning(
        CHECK,
        format!("this host is {} s {direction} {url}", skew.unsigned_abs()),
        "leases do not depend on clocks, but certificates do, and logs of several hosts cannot be laid \
         side by side",
        "timedatectl set-ntp true, on the host whose clock is wrong",
    )
}

/// Whether there is a network config, and it can be used.
#[must_use]
pub fn config(facts: &Facts) -> Finding {
    const CHECK: &str = "config";
    let store = &facts.store;
    let text = match &store.config {
        None | Some(Err(_)) => {
            return Finding::skipped(CHECK, "the datastore could not be asked");
        }
        Some(Ok(None)) => {
            return Finding::error(
                CHECK,
                format!("{} holds no network config", store.place),
                store.elsewhere.unwrap_or(
                    "nobody wrote it, or it was written under another prefix than --etcd-prefix",
                ),
                "uvxlan config put FILE, with {\"Network\": \"10.5.0.0/16\", \"Backend\": {\"Type\": \
                 \"vxlan\"}} and your network in it",
            );
        }
        Some(Ok(Some(text))) => text,
    };
    match NetworkConfig::parse(text, None) {
        Ok(config) => Finding::ok(
            CHECK,
            format!(
                "{}, subnets of /{}, VNI {}, port {}",
                config.network, config.subnet_len, config.backend.vni, config.backend.port
            ),
        ),
        // A daemon that was told to take vxlan is content.
        Err(error @ ConfigError::BackendUnclear { .. })
            if facts.status().is_some_and(|status| status.node.is_some()) =>
        {
            Finding::warning(
                CHECK,
                error.to_string(),
                "the daemon runs with --backend-default",
                PUT,
            )
        }
        Err(error) => {
            let cause = match &error {
                ConfigError::Json(_) => "it is no JSON, or a value has the wrong type",
                ConfigError::Check(_) => {
                    "a value is out of its range, or does not go with the others"
                }
                ConfigError::BackendUnclear { .. } => "flannel would take its udp backend",
                ConfigError::Backend { .. } => "the other nodes run another backend than vxlan",
            };
            Finding::error(
                CHECK,
                format!("the config in {}: {error}", store.place),
                cause,
                PUT,
            )
        }
    }
}

const PUT: &str = "uvxlan config show; uvxlan config put FILE, with the corrected one";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::facts::{Answer, OptionsRefused};
    use crate::doctor::{Outcome, samples};

    fn with_member(url: &str, answer: Result<Answer, Trouble>) -> Facts {
        let mut facts = samples::healthy();
        facts.store.members[0] = Member {
            url: url.into(),
            answer,
        };
        facts
    }

    fn refused_connection() -> Result<Answer, Trouble> {
        Err(Trouble::Connection("connection refused".into()))
    }

    #[test]
    fn each_member_that_does_not_answer_is_named() {
        let mut facts = with_member("http://10.0.0.1:2379", refused_connection());
        let finding = members(&facts);
        assert_eq!(finding.status, Outcome::Error);
        assert!(
            finding
                .seen
                .contains("http://10.0.0.1:2379: connection refused")
        );
        facts.store.members.push(Member {
            url: "http://10.0.0.2:2379".into(),
            answer: Ok(Answer {
                status: 200,
                skew: None,
            }),
        });
        let finding = members(&facts);
        assert_eq!(finding.status, Outcome::Warning);
        assert!(finding.seen.starts_with("1 of 2 members"), "{finding:?}");
    }

    #[test]
    fn a_member_that_wants_tls_is_told_apart() {
        let finding = members(&with_member("http://10.0.0.1:2379", Err(Trouble::WantsTls)));
        assert_eq!(finding.status, Outcome::Error);
        assert!(finding.remedy.contains("https://"));
    }

    #[test]
    fn etcd_that_refuses_the_keys_is_an_error() {
        let mut facts = samples::healthy();
        facts.store.config = Some(Err("reading the network config: permission denied".into()));
        let finding = members(&facts);
        assert_eq!(finding.status, Outcome::Error);
        assert!(finding.remedy.contains("--etcd-username"));
        assert_eq!(config(&facts).status, Outcome::Skipped);
    }

    #[test]
    fn each_fault_of_tls_has_words_of_its_own() {
        let faults = [
            (TlsFault::Expired, "expired", "renew"),
            (TlsFault::NotYetValid, "not valid yet", "timedatectl"),
            (
                TlsFault::UnknownAuthority,
                "unknown authority",
                "--etcd-cafile",
            ),
            (TlsFault::WrongName, "other names", "subjectAltName"),
            (
                TlsFault::ClientWanted,
                "wants a certificate",
                "--etcd-certfile",
            ),
            (TlsFault::ClientRefused, "refuses our", "openssl x509"),
            (TlsFault::NoTls, "without TLS", "http://"),
            (TlsFault::OurFiles, "our own", "--etcd-keyfile"),
            (TlsFault::Other, "TLS failed", "10.0.0.1:2379"),
        ];
        for (fault, seen, remedy) in faults {
            let trouble = Trouble::Tls(fault, "its words".into());
            let facts = with_member("https://10.0.0.1:2379", Err(trouble));
            let finding = tls(&facts);
            assert_eq!(finding.status, Outcome::Error, "{fault:?}");
            assert!(finding.seen.contains(seen), "{finding:?}");
            assert!(finding.seen.contains("its words"), "{finding:?}");
            assert!(finding.remedy.contains(remedy), "{finding:?}");
            assert_eq!(members(&facts).status, Outcome::Skipped, "told once");
        }
    }

    #[test]
    fn unreadable_tls_files_are_told_by_the_check_of_tls() {
        let mut facts = samples::healthy();
        facts.store.refused = Some(OptionsRefused {
            text: "reading the etcd CA from /x".into(),
            tls: true,
        });
        assert_eq!(tls(&facts).status, Outcome::Error);
        assert_eq!(members(&facts).status, Outcome::Skipped);
    }

    #[test]
    fn clocks_far_apart_are_a_warning_that_says_which_way() {
        let with_skew = |skew| {
            let answer = Answer {
                status: 200,
                skew: Some(skew),
            };
            clock(&with_member("http://10.0.0.1:2379", Ok(answer)))
        };
        assert_eq!(with_skew(2).status, Outcome::Ok);
        assert!(with_skew(300).seen.contains("300 s behind"));
        assert!(with_skew(-300).seen.contains("300 s ahead of"));
        assert_eq!(with_skew(-300).status, Outcome::Warning);
    }

    #[test]
    fn a_config_that_is_missing_or_wrong_is_an_error_with_its_reason() {
        let judged = |text: Option<&'static str>| {
            let mut facts = samples::healthy();
            facts.store.config = Some(Ok(text.map(|text| text.as_bytes().into())));
            config(&facts)
        };
        assert!(judged(None).seen.contains("holds no network config"));
        assert!(judged(Some("{")).cause.contains("no JSON"));
        let range = r#"{"Network": "10.5.0.0/16", "SubnetLen": 40, "Backend": {"Type": "vxlan"}}"#;
        assert!(judged(Some(range)).cause.contains("out of its range"));
        let other = r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "host-gw"}}"#;
        let finding = judged(Some(other));
        assert_eq!(finding.status, Outcome::Error);
        assert!(finding.seen.contains("host-gw"), "{finding:?}");
        let unclear = judged(Some(r#"{"Network": "10.5.0.0/16"}"#));
        assert_eq!(unclear.status, Outcome::Warning, "the daemon serves");
    }
}
