//! The peers: those that the daemon cannot send to, or that do not answer, and what fits the
//! way to them.

use super::daemon::listed;
use crate::control::PeerState;
use crate::doctor::facts::{Facts, Reach};
use crate::doctor::{Finding, Outcome};
use crate::wire::vxlan::OVERHEAD;

fn named(reach: &Reach) -> String {
    format!("{} at {}", reach.subnet, reach.public_ip)
}

/// Peers that nothing is sent to, or that answer nothing, and whether anything comes from
/// them.
#[must_use]
pub fn answers(facts: &Facts) -> Finding {
    const CHECK: &str = "peers";
    let Some(status) = facts.status() else {
        return Finding::skipped(CHECK, "only a running daemon knows which peers answer");
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
            "ip route get PEER; correct that route, or the peer's --public-ip",
        );
    }
    let reached = match &facts.reach {
        Ok(reached) => reached,
        Err(why) => return Finding::skipped(CHECK, why.clone()),
    };
    let mute = |heard| -> Vec<_> {
        let mute = reached.iter().filter(|reach| reach.answers_nothing());
        mute.filter(|reach| reach.heard == heard)
            .map(named)
            .collect()
    };
    let (one_way, silent) = (mute(true), mute(false));
    let (all, asked) = (status.peers.len(), reached.len());
    let not_all = match all > asked {
        true => format!(" ({asked} of {all} peers were asked)"),
        false => String::new(),
    };
    if !one_way.is_empty() {
        return Finding::error(
            CHECK,
            format!(
                "one way only: packets come in from {}, and no echo request of ours is answered{not_all}",
                listed(&one_way)
            ),
            "what this host sends does not arrive there, or is dropped there: a firewall on the way or \
             on the peer drops UDP from here or ICMP, or the peer believes another record of us",
            format!(
                "on the peer: uvxlan doctor, uvxlan status; tcpdump -ni any udp port {}",
                facts.port()
            ),
        );
    }
    if !silent.is_empty() {
        return Finding::new(
            CHECK,
            Outcome::Warning,
            format!("silent: {}{not_all}", listed(&silent)),
            "the peer is down, or a firewall on the way drops VXLAN's UDP packets",
            "uvxlan doctor, on the silent node; uvxlan trace IP, here",
        );
    }
    let seen = match (all, asked) {
        (0, _) => "no peers".to_owned(),
        (1, _) => "the one peer answers".to_owned(),
        (all, asked) if all == asked => format!("all {all} peers answer"),
        (all, asked) => format!("all {asked} peers that were asked answer, of {all}"),
    };
    Finding::ok(CHECK, seen)
}

/// Whether packets that fill the device's MTU reach the peers.
#[must_use]
pub fn sizes(facts: &Facts) -> Finding {
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
        let whole = reached.iter().filter(|reach| !reach.answers_nothing());
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
        .map(|(reach, largest)| format!("to {} none larger than {largest} bytes", named(reach)))
        .collect();
    let outer = least.saturating_add(u32::from(OVERHEAD));
    Finding::error(
        CHECK,
        listed(&seen),
        "somewhere on the way the MTU is less than this host's: small packets pass (ping, DNS), \
         transfers hang",
        format!(
            "\"MTU\": {outer} in the network config's Backend, then systemctl restart uvxlan docker, on \
             all nodes; or find the link with the small MTU: tracepath -n {}",
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
    use crate::doctor::facts::{Daemon, Size};
    use crate::doctor::samples;

    fn reach(facts: &mut Facts) -> &mut Reach {
        facts.reach.as_mut().unwrap().first_mut().unwrap()
    }

    fn size(bytes: u32, answered: bool) -> Size {
        Size { bytes, answered }
    }

    #[test]
    fn silent_peers_and_those_heard_one_way_are_told_apart() {
        let mut facts = samples::healthy();
        reach(&mut facts).sizes = vec![size(84, false)];
        let finding = answers(&facts);
        assert_eq!(finding.status, Outcome::Warning);
        assert!(finding.seen.contains("silent: 10.5.2.0/24 at 192.0.2.2"));
        assert_eq!(sizes(&facts).status, Outcome::Skipped);
        let Daemon::Answers(status) = &mut facts.daemon else {
            panic!()
        };
        let more = vec![status.peers[0].clone(); 40];
        let few = std::mem::replace(&mut status.peers, more);
        let seen = answers(&facts).seen;
        assert!(seen.ends_with("(1 of 40 peers were asked)"), "{seen}");
        let Daemon::Answers(status) = &mut facts.daemon else {
            panic!()
        };
        status.peers = few;
        reach(&mut facts).heard = true;
        let finding = answers(&facts);
        assert_eq!(finding.status, Outcome::Error);
        assert!(finding.seen.starts_with("one way"), "{finding:?}");
    }

    #[test]
    fn blocked_peers_are_named() {
        let mut facts = samples::healthy();
        let Daemon::Answers(status) = &mut facts.daemon else {
            panic!()
        };
        status.peers[0].state = PeerState::Blocked;
        assert_eq!(answers(&facts).status, Outcome::Error);
    }

    #[test]
    fn a_way_that_carries_less_is_named_with_the_mtu_that_fits() {
        let mut facts = samples::healthy();
        assert_eq!(sizes(&facts).seen, "packets of 1450 bytes pass");
        *reach(&mut facts) = Reach {
            sizes: vec![size(84, true), size(1280, true), size(1450, false)],
            largest: Some(1350),
            ..reach(&mut facts).clone()
        };
        let finding = sizes(&facts);
        assert_eq!(finding.status, Outcome::Error);
        assert!(finding.seen.contains("larger than 1350"), "{finding:?}");
        assert!(finding.remedy.contains("\"MTU\": 1400"), "{finding:?}");
        assert_eq!(answers(&facts).status, Outcome::Ok);
    }
}
