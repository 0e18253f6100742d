//! What the running daemon's status says.

use super::{Finding, Outcome};
use crate::control::Status;

/// Peers that the daemon no longer hears.
#[must_use]
pub fn peers(status: &Status) -> Finding {
    let silent: Vec<_> = status
        .peers
        .iter()
        .filter(|peer| peer.state == "silent")
        .map(|peer| format!("{} at {}", peer.subnet, peer.public_ip))
        .collect();
    if silent.is_empty() {
        return Finding::ok(
            "peers",
            format!("{} peers, none silent", status.peers.len()),
        );
    }
    Finding::new(
        "peers",
        Outcome::Warning,
        format!("silent: {}", silent.join(", ")),
        "the peer is down, or a firewall on the way drops VXLAN's UDP packets",
        "uvxlan doctor, on the silent node; uvxlan trace IP, here",
    )
}

/// Records of the datastore that the daemon refused.
#[must_use]
pub fn refused(status: &Status) -> Finding {
    let Some(first) = status.refused.first() else {
        return Finding::ok("refused-records", "no record is refused");
    };
    let (count, name) = (status.refused.len(), first.name.escape_debug());
    Finding::new(
        "refused-records",
        Outcome::Warning,
        format!("{count} refused; first: {name}: {}", first.text),
        "the daemon sets up no route to a node whose record it refuses",
        "uvxlan status, for all of them; restart the node that wrote the record",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::RefusedRecord;

    #[test]
    fn a_refused_record_is_named_with_its_reason() {
        let mut status = Status::default();
        assert_eq!(refused(&status).status, Outcome::Ok);
        assert_eq!(peers(&status).status, Outcome::Ok);
        status.refused.push(RefusedRecord {
            name: "x".into(),
            reason: "key".into(),
            text: "no key".into(),
            rival: None,
        });
        let finding = refused(&status);
        assert_eq!(finding.status, Outcome::Warning);
        assert!(finding.seen.contains("x: no key"));
    }
}
