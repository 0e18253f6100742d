//! Whether the datastore is reachable and trustworthy, and which config it holds.

use crate::doctor::Finding;
use crate::doctor::facts::{Facts, Member, MemberError, TlsFault};
use crate::subnet::config::{ConfigError, NetworkConfig};

/// Smallest difference between clocks that is reported, in seconds. HTTP dates are in whole
/// seconds, and replies take time.
const MIN_SKEW: u64 = 60;

/// Whether the members of etcd, or the directory, are reachable.
pub(crate) fn members(facts: &Facts) -> Finding {
    const CHECK: &str = "datastore";
    let store = &facts.store;
    if let Some(refused) = &store.refused {
        return if refused.tls {
            Finding::skipped(CHECK, "not tried: see datastore-tls")
        } else {
            Finding::error(
                CHECK,
                refused.text.clone(),
                "the options that select the datastore are unusable",
                "correct --store, --etcd-endpoints or the option named here, in this command and in \
                 the daemon's options",
            )
        };
    }
    if store.members.is_empty() {
        return directory(facts);
    }
    let failed: Vec<_> = store.members.iter().filter_map(unreachable).collect();
    let answering = store.members.iter().filter(|member| member.reply.is_ok());
    let (answering, all) = (answering.count(), store.members.len());
    let Some((_, wants_tls)) = failed.first() else {
        if answering == 0 {
            return Finding::skipped(CHECK, "TLS failed with every member: see datastore-tls");
        }
        return refusal(facts).unwrap_or_else(|| {
            Finding::ok(CHECK, format!("{} of {all} members answer", answering))
        });
    };
    let errors: Vec<_> = failed.iter().map(|(text, _)| text.clone()).collect();
    let errors = errors.join("; ");
    let fix = match wants_tls {
        true => "use https:// in --etcd-endpoints, and set --etcd-cafile",
        false => {
            "on that host check systemctl status etcd and its --listen-client-urls; from here try \
             curl URL/version, and look for a firewall that drops TCP port 2379; correct \
             --etcd-endpoints"
        }
    };
    if answering == 0 {
        return Finding::error(
            CHECK,
            errors,
            "without the datastore there is no network config, no lease and no change of peers; what \
             is running continues",
            fix,
        );
    }
    Finding::warning(
        CHECK,
        format!("{} of {all} members do not answer: {errors}", failed.len(),),
        "the daemon uses the others, but each attempt with one of these costs seconds",
        fix,
    )
}

/// Why a member is unreachable, and whether that is because it wants TLS.
fn unreachable(member: &Member) -> Option<(String, bool)> {
    let url = &member.url;
    match &member.reply {
        Ok(reply) if reply.status >= 500 => Some((format!("{url}: HTTP {}", reply.status), false)),
        Ok(_) | Err(MemberError::Tls(..)) => None,
        Err(MemberError::Connection(text)) => Some((format!("{url}: {text}"), false)),
        Err(MemberError::WantsTls) => Some((
            format!("{url}: the member uses TLS, but the URL says http"),
            true,
        )),
    }
}

/// The finding if members answer but refuse to return the config.
fn refusal(facts: &Facts) -> Option<Finding> {
    let Some(Err(error)) = &facts.store.config else {
        return None;
    };
    Some(Finding::error(
        "datastore",
        error.clone(),
        "etcd answers, but does not return the network's keys",
        "check --etcd-username and --etcd-password, and the role's permissions for the prefix \
         (etcdctl role get); etcdctl endpoint health",
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
            "its file system is not mounted, or permissions prevent reading it",
            "ls -l on that directory; mount it, or correct --store=dir:PATH",
        ),
        None => Finding::ok(CHECK, format!("{} is readable", store.place)),
    }
}

/// Whether TLS to each member works.
pub(crate) fn tls(facts: &Facts) -> Finding {
    const CHECK: &str = "datastore-tls";
    let store = &facts.store;
    if let Some(refused) = store.refused.as_ref().filter(|refused| refused.tls) {
        return Finding::error(
            CHECK,
            refused.text.clone(),
            "without its TLS files the daemon sends nothing to etcd",
            "check the file named here with ls -l: it must be PEM and readable by the daemon's user",
        );
    }
    let first = store.members.iter().find_map(|member| match &member.reply {
        Err(MemberError::Tls(fault, text)) => Some((member, *fault, text)),
        _ => None,
    });
    let Some((member, fault, text)) = first else {
        let secure = store
            .members
            .iter()
            .filter(|member| member.url.starts_with("https://"));
        return match secure.count() {
            0 => Finding::ok(CHECK, "not in use"),
            _ if store.members.iter().all(|member| member.reply.is_err()) => {
                Finding::skipped(CHECK, "no member answers: see datastore")
            }
            count => Finding::ok(CHECK, format!("{count} members have valid certificates")),
        };
    };
    let url = &member.url;
    let (what, cause, fix) = explain(fault);
    Finding::error(
        CHECK,
        format!("{url}: {what} ({text})"),
        cause,
        fix.replace("HOST:PORT", url.trim_start_matches("https://")),
    )
}

/// What a fault means, its cause, and how to fix it.
const fn explain(fault: TlsFault) -> (&'static str, &'static str, &'static str) {
    const SHOW: &str = "openssl s_client -connect HOST:PORT </dev/null | openssl x509 -noout -dates -issuer -ext \
                        subjectAltName";
    match fault {
        TlsFault::Expired => (
            "the member's certificate has expired",
            "it was not renewed in time, or this host's clock is ahead (see clock)",
            "renew the member's certificate and restart etcd; to check: date; openssl s_client \
             -connect HOST:PORT </dev/null | openssl x509 -noout -dates",
        ),
        TlsFault::NotYetValid => (
            "the member's certificate is not valid yet",
            "this host's clock is behind, or the clock of the host that issued it is ahead",
            "timedatectl set-ntp true; to check: date; openssl s_client -connect HOST:PORT </dev/null \
             | openssl x509 -noout -dates",
        ),
        TlsFault::UnknownAuthority => (
            "an unknown authority signed the member's certificate",
            "--etcd-cafile is not set, or contains another CA than the one that signed it",
            "set --etcd-cafile to etcd's CA; to check: openssl s_client -connect HOST:PORT \
             </dev/null | openssl x509 -noout -issuer",
        ),
        TlsFault::WrongName => (
            "the member's certificate is for other names",
            "its subjectAltName does not contain the name or address in --etcd-endpoints",
            "use a name it contains, or reissue the certificate with this one; to check: openssl \
             s_client -connect HOST:PORT </dev/null | openssl x509 -noout -ext subjectAltName",
        ),
        TlsFault::ClientWanted => (
            "the member requires a client certificate",
            "etcd runs with --client-cert-auth, but no client certificate is set",
            "set --etcd-certfile and --etcd-keyfile",
        ),
        TlsFault::ClientRefused => (
            "the member refuses our client certificate",
            "it has expired, or etcd's --trusted-ca-file does not contain the authority that signed it",
            "reissue it; to check: openssl x509 -noout -dates -issuer -in the file of --etcd-certfile",
        ),
        TlsFault::NoTls => (
            "the member does not use TLS",
            "the URL says https, but etcd listens for http there",
            "use http:// in --etcd-endpoints, or give etcd a certificate",
        ),
        TlsFault::OurFiles => (
            "our own TLS files are unusable",
            "the certificate and the key do not match, or their format is not supported",
            "check the files of --etcd-cafile, --etcd-certfile and --etcd-keyfile",
        ),
        TlsFault::Other => ("TLS failed", "see the error in parentheses", SHOW),
    }
}

/// Whether the members' clocks and ours agree.
pub(crate) fn clock(facts: &Facts) -> Finding {
    const CHECK: &str = "clock";
    let skews: Vec<_> = facts
        .store
        .members
        .iter()
        .filter_map(|member| Some((&member.url, member.reply.as_ref().ok()?.skew?)))
        .collect();
    let Some((url, skew)) = skews.iter().max_by_key(|(_, skew)| skew.unsigned_abs()) else {
        return match facts.store.members.is_empty() {
            true => Finding::ok(CHECK, "there is no etcd member to compare with"),
            false => Finding::skipped(CHECK, "no member sent its time"),
        };
    };
    if skew.unsigned_abs() < MIN_SKEW {
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
        "leases do not depend on clocks, but certificates do, and logs of different hosts are hard to \
         compare",
        "timedatectl set-ntp true, on the host whose clock is wrong",
    )
}

/// Whether there is a network config, and whether it is usable.
pub(crate) fn config(facts: &Facts) -> Finding {
    let store = &facts.store;
    let text = match &store.config {
        None | Some(Err(_)) => {
            return Finding::skipped(CONFIG, "the datastore could not be read");
        }
        Some(Ok(None)) => {
            let cause = store
                .elsewhere
                .unwrap_or("it was never written, or under another prefix than --etcd-prefix");
            let seen = format!("{} holds no network config", store.place);
            return Finding::error(CONFIG, seen, cause, PUT_CONFIG);
        }
        Some(Ok(Some(text))) => text,
    };
    match NetworkConfig::parse(text, None) {
        Ok(config) => Finding::ok(
            CONFIG,
            format!(
                "{}, subnets of /{}, VNI {}, port {}",
                config.network, config.subnet_len, config.backend.vni, config.backend.port
            ),
        ),
        Err(error) => unusable(facts, &error),
    }
}

fn unusable(facts: &Facts, error: &ConfigError) -> Finding {
    let serves = facts.status().is_some_and(|status| status.node.is_some());
    let cause = match error {
        ConfigError::BackendUnclear { .. } if serves => {
            let cause = "the daemon runs with --backend-default";
            return Finding::warning(CONFIG, error.to_string(), cause, CORRECT_CONFIG);
        }
        ConfigError::BackendUnclear { .. } => "flannel would use its udp backend",
        ConfigError::Backend { .. } => "the other nodes use another backend than vxlan",
        ConfigError::Json(_) => "it is not JSON, or a value has the wrong type",
        ConfigError::Check(_) => "a value is out of range, or contradicts another one",
    };
    let seen = format!("the config in {}: {error}", facts.store.place);
    Finding::error(CONFIG, seen, cause, CORRECT_CONFIG)
}

const CONFIG: &str = "config";
const PUT_CONFIG: &str = r#"uvxlan config put FILE; the file contains {"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}, with your network"#;
const CORRECT_CONFIG: &str = "uvxlan config show; correct it, then uvxlan config put FILE";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::facts::{MemberReply, OptionsRefused};
    use crate::doctor::{FindingStatus, samples};

    fn with_member(url: &str, reply: Result<MemberReply, MemberError>) -> Facts {
        let mut facts = samples::healthy();
        facts.store.members[0] = Member {
            url: url.into(),
            reply,
        };
        facts
    }

    fn refused_connection() -> Result<MemberReply, MemberError> {
        Err(MemberError::Connection("connection refused".into()))
    }

    #[test]
    fn each_member_that_does_not_answer_is_named() {
        let mut facts = with_member("http://10.0.0.1:2379", refused_connection());
        let finding = members(&facts);
        assert_eq!(finding.status, FindingStatus::Error);
        assert!(
            finding
                .seen
                .contains("http://10.0.0.1:2379: connection refused")
        );
        facts.store.members.push(Member {
            url: "http://10.0.0.2:2379".into(),
            reply: Ok(MemberReply {
                status: 200,
                skew: None,
            }),
        });
        let finding = members(&facts);
        assert_eq!(finding.status, FindingStatus::Warning);
        assert!(finding.seen.starts_with("1 of 2 members"), "{finding:?}");
    }

    #[test]
    fn a_member_that_wants_tls_is_recognised() {
        let finding = members(&with_member(
            "http://10.0.0.1:2379",
            Err(MemberError::WantsTls),
        ));
        assert_eq!(finding.status, FindingStatus::Error);
        assert!(finding.fix.contains("https://"));
    }

    #[test]
    fn etcd_that_refuses_the_keys_is_an_error() {
        let mut facts = samples::healthy();
        facts.store.config = Some(Err("reading the network config: permission denied".into()));
        let finding = members(&facts);
        assert_eq!(finding.status, FindingStatus::Error);
        assert!(finding.fix.contains("--etcd-username"));
        assert_eq!(config(&facts).status, FindingStatus::Skipped);
    }

    #[test]
    fn each_tls_fault_has_its_own_text() {
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
                "requires a client certificate",
                "--etcd-certfile",
            ),
            (TlsFault::ClientRefused, "refuses our", "openssl x509"),
            (TlsFault::NoTls, "does not use TLS", "http://"),
            (TlsFault::OurFiles, "our own", "--etcd-keyfile"),
            (TlsFault::Other, "TLS failed", "10.0.0.1:2379"),
        ];
        for (fault, seen, fix) in faults {
            let trouble = MemberError::Tls(fault, "its text".into());
            let facts = with_member("https://10.0.0.1:2379", Err(trouble));
            let finding = tls(&facts);
            assert_eq!(finding.status, FindingStatus::Error, "{fault:?}");
            assert!(finding.seen.contains(seen), "{finding:?}");
            assert!(finding.seen.contains("its text"), "{finding:?}");
            assert!(finding.fix.contains(fix), "{finding:?}");
            assert_eq!(
                members(&facts).status,
                FindingStatus::Skipped,
                "reported once"
            );
        }
    }

    #[test]
    fn unreadable_tls_files_are_reported_by_the_tls_check() {
        let mut facts = samples::healthy();
        facts.store.refused = Some(OptionsRefused {
            text: "reading the etcd CA from /x".into(),
            tls: true,
        });
        assert_eq!(tls(&facts).status, FindingStatus::Error);
        assert_eq!(members(&facts).status, FindingStatus::Skipped);
    }

    #[test]
    fn clocks_far_apart_are_a_warning_with_the_direction() {
        let with_skew = |skew| {
            let answer = MemberReply {
                status: 200,
                skew: Some(skew),
            };
            clock(&with_member("http://10.0.0.1:2379", Ok(answer)))
        };
        assert_eq!(with_skew(2).status, FindingStatus::Ok);
        assert!(with_skew(300).seen.contains("300 s behind"));
        assert!(with_skew(-300).seen.contains("300 s ahead of"));
        assert_eq!(with_skew(-300).status, FindingStatus::Warning);
    }

    #[test]
    fn a_config_that_is_missing_or_wrong_is_an_error_with_its_reason() {
        let judged = |text: Option<&'static str>| {
            let mut facts = samples::healthy();
            facts.store.config = Some(Ok(text.map(|text| text.as_bytes().into())));
            config(&facts)
        };
        assert!(judged(None).seen.contains("holds no network config"));
        assert!(judged(Some("{")).cause.contains("not JSON"));
        let range = r#"{"Network": "10.5.0.0/16", "SubnetLen": 40, "Backend": {"Type": "vxlan"}}"#;
        assert!(judged(Some(range)).cause.contains("out of range"));
        let other = r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "host-gw"}}"#;
        let finding = judged(Some(other));
        assert_eq!(finding.status, FindingStatus::Error);
        assert!(finding.seen.contains("host-gw"), "{finding:?}");
        let unclear = judged(Some(r#"{"Network": "10.5.0.0/16"}"#));
        assert_eq!(unclear.status, FindingStatus::Warning, "the daemon serves");
    }
}
