//! Peers that are blocked or do not answer, and the packet size that reaches them.

use super::daemon::listed;
use crate::control::PeerState;
use crate::doctor::facts::{Facts, Reachability};
use crate::doctor::{Finding, FindingStatus};
use crate::wire::vxlan::OVERHEAD;

fn named(reach: &Reachability) -> String {
    format!("{} at {}", reach.subnet, reach.public_ip)
}

/// Whether the daemon sends to each peer, and whether each peer answers.
pub(crate) fn answers(facts: &Facts) -> Finding {
    const CHECK: &str = "peers";
    let Some(status) = facts.status() else {
        return Finding::skipped(CHECK, "only a running daemon has peers to ping");
    };
    let blocked: Vec<_> = status
        .peers
        .iter()
        .filter(|peer| peer.state == PeerState::Blocked)
        .map(|peer| format!("{} at {} ({})", peer.subnet, peer.public_ip, peer.route))
        .collect();
    if !blocked.is_empty() {
        return Finding::error(
            CHECK,
            format!("nothing is sent to {}", listed(&blocked)),
            "the datagrams would come back to this host",
            "check with ip route get PEER; correct that route, or the peer's --public-ip",
        );
    }
    let reached = match &facts.reach {
        Ok(reached) => reached,
        Err(why) => return Finding::skipped(CHECK, why.clone()),
    };
    let mute = |heard| -> Vec<_> {
        let mute = reached.iter().filter(|reach| reach.is_mute());
        mute.filter(|reach| reach.heard == heard)
            .map(named)
            .collect()
    };
    let (one_way, silent) = (mute(true), mute(false));
    let (all, asked) = (status.peers.len(), reached.len());
    let not_all = match all > asked {
        true => format!(" ({asked} of {all} peers were pinged)"),
        false => String::new(),
    };
    if !one_way.is_empty() {
        return Finding::error(
            CHECK,
            format!(
                "one way only: packets arrive from {}, but our echo requests are not answered{not_all}",
                listed(&one_way)
            ),
            "what this host sends does not arrive there or is dropped there: a firewall in between or \
             on the peer drops UDP from here, or ICMP, or the peer uses an outdated lease of ours",
            format!(
                "on the peer: uvxlan doctor; uvxlan status; tcpdump -ni any udp port {}",
                facts.port()
            ),
        );
    }
    if !silent.is_empty() {
        return Finding::new(
            CHECK,
            FindingStatus::Warning,
            format!("silent: {}{not_all}", listed(&silent)),
            "the peer is down, or a firewall in between drops the UDP packets of the tunnel",
            "on the silent node: uvxlan doctor; here: uvxlan trace IP",
        );
    }
    let seen = match (all, asked) {
        (0, _) => "no peers".to_owned(),
        (1, _) => "the only peer answers".to_owned(),
        (all, asked) if all == asked => format!("all {all} peers answer"),
        (all, asked) => format!("all {asked} pinged peers answer, of {all}"),
    };
    Finding::ok(CHECK, seen)
}

/// Whether packets as large as the device's MTU reach the peers.
pub(crate) fn sizes(facts: &Facts) -> Finding {
    const CHECK: &str = "path-mtu";
    let reached = match &facts.reach {
        Ok(reached) => reached,
        Err(why) => return Finding::skipped(CHECK, why.clone()),
    };
    let limited: Vec<_> = reached
        .iter()
        .filter_map(|reach| Some((reach, reach.largest?)))
        .collect();
    let Some((_, least)) = limited.iter().min_by_key(|(_, largest)| *largest) else {
        let whole = reached.iter().filter(|reach| !reach.is_mute());
        return match (whole.count(), reached.first()) {
            (0, None) => Finding::skipped(CHECK, "no peers"),
            (0, Some(_)) => Finding::skipped(CHECK, "no peer answers: see peers"),
            _ => {
                let sizes = reached.iter().flat_map(|reach| &reach.sizes);
                let most = sizes.map(|size| size.bytes).max().unwrap_or_default();
                Finding::ok(CHECK, format!("packets of {most} bytes pass"))
            }
        };
    };
    let seen: Vec<_> = limited
        .iter()
        .map(|(reach, largest)| format!("at most {largest} bytes reach {}", named(reach)))
        .collect();
    let outer = least.saturating_add(u32::from(OVERHEAD));
    Finding::error(
        CHECK,
        listed(&seen),
        "somewhere on the path the MTU is smaller than this host's: small packets pass (ping, DNS), \
         transfers hang",
        format!(
            "set \"MTU\": {outer} in the network config's Backend, then systemctl restart uvxlan docker \
             on all nodes; or find the link with the small MTU: tracepath -n {}",
            limited
                .first()
                .map(|(reach, _)| reach.public_ip.to_string())
                .unwrap_or_default()
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::facts::{DaemonFacts, EchoSize};
    use crate::doctor::samples;

    fn reach(facts: &mut Facts) -> &mut Reachability {
        facts.reach.as_mut().unwrap().first_mut().unwrap()
    }

    fn size(bytes: u32, answered: bool) -> EchoSize {
        EchoSize { bytes, answered }
    }

    #[test]
    fn silent_and_one_way_peers_are_distinguished() {
        let mut facts = samples::healthy();
        reach(&mut facts).sizes = vec![size(84, false)];
        let finding = answers(&facts);
        assert_eq!(finding.status, FindingStatus::Warning);
        assert!(finding.seen.contains("silent: 10.5.2.0/24 at 192.0.2.2"));
        assert_eq!(sizes(&facts).status, FindingStatus::Skipped);
        let DaemonFacts::Answers(status) = &mut facts.daemon else {
            panic!()
        };
        let more = vec![status.peers[0].clone(); 40];
        let few = std::mem::replace(&mut status.peers, more);
        let seen = answers(&facts).seen;
        assert!(seen.ends_with("(1 of 40 peers were pinged)"), "{seen}");
        let DaemonFacts::Answers(status) = &mut facts.daemon else {
            panic!()
        };
        status.peers = few;
        reach(&mut facts).heard = true;
        let finding = answers(&facts);
        assert_eq!(finding.status, FindingStatus::Error);
        assert!(finding.seen.starts_with("one way"), "{finding:?}");
    }

    #[test]
    fn blocked_peers_are_named() {
        let mut facts = samples::healthy();
        let DaemonFacts::Answers(status) = &mut facts.daemon else {
            panic!()
        };
        status.peers[0].state = PeerState::Blocked;
        assert_eq!(answers(&facts).status, FindingStatus::Error);
    }

    #[test]
    fn a_narrow_path_is_named_with_the_mtu_that_fits() {
        let mut facts = samples::healthy();
        assert_eq!(sizes(&facts).seen, "packets of 1450 bytes pass");
        *reach(&mut facts) = Reachability {
            sizes: vec![size(84, true), size(1280, true), size(1450, false)],
            largest: Some(1350),
            ..reach(&mut facts).clone()
        };
        let finding = sizes(&facts);
        assert_eq!(finding.status, FindingStatus::Error);
        assert!(finding.seen.contains("at most 1350 bytes"), "{finding:?}");
        assert!(finding.fix.contains("\"MTU\": 1400"), "{finding:?}");
        assert_eq!(answers(&facts).status, FindingStatus::Ok);
    }
}
