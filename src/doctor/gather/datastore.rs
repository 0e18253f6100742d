//! Reads the datastore: each member of etcd by itself, then the store as the daemon does.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::{REPLY_TIMEOUT, member};
use crate::control::RefusedRecord;
use crate::doctor::facts::{Member, MemberError, OptionsRefused, PeerFacts, StoreFacts};
use crate::subnet::config::NetworkConfig;
use crate::subnet::manager::PeerSet;
use crate::subnet::store::etcd::EtcdOptions;
use crate::subnet::store::{StoreConfig, StoreError};
use crate::subnet::validate::Context;
use crate::wire::MacAddr;

/// Stands for our subnet if we have none: nobody can have this one.
const NO_SUBNET: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::BROADCAST, 32);

pub(super) async fn read(config: StoreConfig) -> StoreFacts {
    let store = match config.open() {
        Ok(store) => store,
        Err(error) => return StoreFacts::refused(OptionsRefused::of(&error)),
    };
    let members = match config.directory {
        Some(_) => Vec::new(),
        None => match members(config.etcd).await {
            Ok(members) => members,
            Err(refused) => return StoreFacts::refused(refused),
        },
    };
    let mut facts = StoreFacts {
        place: store.describe(),
        members,
        ..StoreFacts::default()
    };
    // If no member answers, the store would only try all of them again.
    if !facts.members.is_empty() && facts.members.iter().all(|member| member.reply.is_err()) {
        let error = "no member answers".to_owned();
        facts.config = Some(Err(error.clone()));
        facts.listing = Some(Err(error));
        return facts;
    }
    let config = store.config().await.map_err(text_of);
    if matches!(config, Ok(None)) {
        facts.elsewhere = store.why_no_config().await;
    }
    // Only now is it known which API is used.
    facts.place = store.describe();
    if let Ok(Some(text)) = &config {
        facts.network = NetworkConfig::parse(text, Some("vxlan")).ok();
    }
    facts.config = Some(config);
    facts.listing = Some(store.list().await.map_err(text_of));
    facts
}

fn text_of(error: StoreError) -> String {
    error.to_string()
}

/// Asks all members at once.
async fn members(options: EtcdOptions) -> Result<Vec<Member>, OptionsRefused> {
    let urls = options
        .members()
        .map_err(|error| OptionsRefused::of(&error))?;
    let mut asked = Vec::new();
    for url in urls {
        let tls = options.client_tls(&url).map_err(|error| error.to_string());
        let has_identity = options.cert_file.is_some();
        let task = {
            let url = url.clone();
            tokio::task::spawn_blocking(move || member::probe(&url, tls, has_identity))
        };
        asked.push((url, task));
    }
    let mut members = Vec::new();
    for (url, task) in asked {
        // Resolving a name has no timeout of its own.
        let reply = match tokio::time::timeout(3 * REPLY_TIMEOUT, task).await {
            Ok(Ok(reply)) => reply,
            Ok(Err(error)) => Err(MemberError::Connection(error.to_string())),
            Err(_) => Err(MemberError::Connection("no reply in time".into())),
        };
        members.push(Member { url, reply });
    }
    Ok(members)
}

/// Sorts the records into peers and refused ones, as the daemon would.
pub(super) fn sort_records(
    facts: &mut StoreFacts,
    own_subnet: Option<Ipv4Net>,
    own_ip: Option<Ipv4Addr>,
    own_mac: Option<MacAddr>,
) {
    let (Some(config), Some(Ok(listing))) = (&facts.network, &facts.listing) else {
        return;
    };
    let context = Context {
        network: config.network,
        vni: config.backend.vni,
    };
    let own_ip = own_ip.unwrap_or(Ipv4Addr::UNSPECIFIED);
    let mut set = PeerSet::new(own_subnet.unwrap_or(NO_SUBNET), own_ip, context)
        .with_subnet_len(config.subnet_len);
    if let Some(mac) = own_mac {
        set = set.with_own_mac(mac);
    }
    let _ = set.resync(listing.clone());
    // With direct routing only the daemon knows which peers are on the same link.
    let tunnel = !config.backend.direct_routing;
    facts.peers = set
        .peers()
        .map(|peer| PeerFacts {
            subnet: peer.subnet,
            public_ip: peer.public_ip,
            tunnel,
        })
        .collect();
    facts.refusals = set
        .refused()
        .map(|refused| RefusedRecord {
            name: refused.name.clone(),
            reason: refused.reason.label().to_owned(),
            text: refused.reason.text().to_owned(),
            rival: refused.rival.clone(),
        })
        .collect();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::samples;

    #[test]
    fn records_are_sorted_into_peers_and_refused_ones() {
        let mut facts = samples::healthy().store;
        facts.peers.clear();
        if let Some(Ok(listing)) = &mut facts.listing {
            listing
                .records
                .push(samples::record("10.9.1.0-24", "192.0.2.3"));
        }
        let own = "10.5.1.0/24".parse().ok();
        let address = "192.0.2.1".parse().ok();
        sort_records(&mut facts, own, address, None);
        assert_eq!(facts.peers.len(), 1);
        assert_eq!(facts.peers[0].subnet, "10.5.2.0/24".parse().unwrap());
        assert_eq!(facts.refusals.len(), 1);
        assert_eq!(facts.refusals[0].reason, "outside_network");
    }
}
