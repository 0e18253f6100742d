//! `uvxlan trace`: the path of a packet by the tables of a daemon that serves.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::control::Step;
use crate::daemon::serve::Serving;
use crate::dataplane::counters::Counter;
use crate::dataplane::ingress_policy::Enforcement;
use crate::host::routes::NextHop;
use crate::subnet::key::SubnetKey;
use crate::wire::{flow, ipv4};

/// Protocol number of ICMP.
const ICMP: u8 = 1;

impl Serving {
    /// Follows a packet to `to` from the container to the wire, and checks a reply.
    pub(crate) async fn trace(&self, to: Ipv4Addr) -> Vec<Step> {
        let (network, own) = (self.state.network, self.state.subnet);
        if own.contains(&to) {
            let text =
                format!("{to} is in our own subnet {own}: a container of this host, no tunnel");
            let overlay = Step::passed("overlay", text);
            return vec![overlay, self.kernel_route(to, None).await];
        }
        if !network.contains(&to) {
            let text = format!("{to} is outside of the overlay {network}: not our traffic");
            let overlay = Step::failed("overlay", text);
            return vec![overlay, self.kernel_route(to, None).await];
        }
        let text = format!("{to} is in the overlay {network}");
        let mut steps = vec![Step::passed("overlay", text)];

        let table = self.overlay.table();
        let Some(peer) = table.lookup(to) else {
            steps.push(self.no_lease(to));
            return steps;
        };
        let records = self.overlay.peer_totals();
        let record = records.iter().find(|(peer, _)| peer.subnet.contains(&to));
        let subnet = record.map_or(own, |(record, _)| record.subnet);
        let address = *peer.endpoint().ip();
        let mac = record.map_or_else(String::new, |(record, _)| record.vxlan.vtep_mac.to_string());
        let text = format!("{subnet} is leased by {address}, VTEP {mac}");
        steps.push(Step::passed("lease", text));
        let next_hop = self.overlay.next_hop(subnet).unwrap_or(NextHop::Tunnel);
        steps.push(self.kernel_route(to, Some(next_hop)).await);
        steps.push(self.underlay_route(address).await);
        if let NextHop::Tunnel = next_hop {
            steps.push(self.tunnel(to, address));
            steps.push(self.size(subnet));
        }
        steps.push(self.reply(to, address));
        steps
    }

    fn no_lease(&self, to: Ipv4Addr) -> Step {
        let refused = self.manager.view.with(|set| {
            let covers = |name: &str| {
                let key: Option<SubnetKey> = name.parse().ok();
                key.is_some_and(|key| key.v4.contains(&to))
            };
            let found = set.refused().find(|refused| covers(&refused.name));
            found.map(|refused| (refused.name.clone(), refused.reason.text()))
        });
        let mut looping = self.overlay.looping();
        let looping = looping.find(|(subnet, ..)| subnet.contains(&to));
        let text = match (looping, refused) {
            (Some((subnet, public_ip, reason)), _) => format!(
                "{subnet} is leased by {public_ip}, and nothing is sent there: {reason}; dropped as \
                 out_no_route"
            ),
            (None, Some((name, reason))) => {
                format!("record {name} is refused: {reason}; dropped as out_no_route")
            }
            (None, None) => format!(
                "no lease covers {to}: dropped as out_no_route; 'uvxlan lease list' shows all leases"
            ),
        };
        Step::failed("lease", text)
    }

    /// The kernel's route to `to`, compared with the wanted one.
    async fn kernel_route(&self, to: Ipv4Addr, wanted: Option<NextHop>) -> Step {
        let name = "kernel route";
        let found = match self.netlink.route_get(to).await {
            Ok(Some(found)) => found,
            Ok(None) => return Step::failed(name, format!("the kernel has no route to {to}")),
            Err(error) => return Step::failed(name, error.to_string()),
        };
        let device = self.link_name(found.ifindex).await;
        let via = found
            .gateway
            .map(|gateway| format!(" via {gateway}"))
            .unwrap_or_default();
        let text = format!("{to}{via} dev {device}");
        let expected = match wanted {
            None => return Step::passed(name, text),
            Some(NextHop::Tunnel) => self.overlay.ifindex(),
            Some(NextHop::Direct { ifindex, .. }) => ifindex,
        };
        if found.ifindex == expected {
            return Step::passed(name, text);
        }
        let wanted = self.link_name(expected).await;
        let text = format!(
            "{text}, and not dev {wanted}: another route is in the way (ip route get {to})"
        );
        Step::failed(name, text)
    }

    async fn underlay_route(&self, peer: Ipv4Addr) -> Step {
        let name = "underlay";
        match self.netlink.route_get(peer).await {
            Ok(Some(found)) if found.ifindex == self.overlay.ifindex() => Step::failed(
                name,
                format!("the route to {peer} leads into the overlay device itself: a loop"),
            ),
            Ok(Some(found)) => {
                let device = self.link_name(found.ifindex).await;
                let via = found
                    .gateway
                    .map_or("on the link".into(), |gateway| format!("via {gateway}"));
                let source = self.underlay.current().address;
                Step::passed(name, format!("{peer} {via} dev {device}, from {source}"))
            }
            Ok(None) => Step::failed(name, format!("this host has no route to {peer}")),
            Err(error) => Step::failed(name, error.to_string()),
        }
    }

    fn tunnel(&self, to: Ipv4Addr, peer: Ipv4Addr) -> Step {
        let port = self.config.backend.port;
        let Some(dataplane) = self.overlay.dataplane() else {
            return Step::failed("tunnel", "the packet loop does not run");
        };
        let packet = icmp_packet(self.state.subnet.network(), to);
        let source = ipv4::Packet::new_checked(&packet)
            .ok()
            .and_then(|packet| dataplane.source_port(flow::hash(&packet)));
        let source = source.map_or_else(String::new, |port| format!(" from port {port}"));
        let text = format!(
            "VNI {} in UDP to {peer}:{port}{source} (for a ping from this host; each flow has one of {})",
            self.config.backend.vni,
            dataplane.source_ports()
        );
        Step::passed("tunnel", text)
    }

    fn size(&self, subnet: Ipv4Net) -> Step {
        let mtu = self.mtu;
        let health = self.probes.health(subnet);
        let probed = match health.and_then(|health| health.path_mtu) {
            Some(largest) if largest < mtu => {
                format!("; the longest probe answered had {largest}")
            }
            Some(_) => ", which a probe confirms".into(),
            None => ", not probed".into(),
        };
        Step::passed("size", format!("packets up to {mtu} bytes{probed}"))
    }

    /// Whether the peer check accepts a packet from `from`, sent by that peer, to us.
    fn reply(&self, from: Ipv4Addr, peer: Ipv4Addr) -> Step {
        let name = "way back";
        let mut policy = self.overlay.options().ingress_policy.clone();
        policy.refresh();
        if policy.mode == Enforcement::Off {
            return Step::passed(name, "everything passes (--peer-check=off)");
        }
        let table = self.overlay.table();
        let packet = icmp_packet(from, self.state.subnet.network());
        let checked = match ipv4::Packet::new_checked(&packet) {
            Ok(packet) => policy
                .check_sender(&table, peer)
                .and_then(|known| policy.check_packet(&table, peer, known.is_none(), &packet)),
            Err(_) => Err(Counter::InMalformed),
        };
        let packet = format!("a packet from {from}, sent by {peer},");
        match checked {
            Ok(()) => Step::passed(name, format!("{packet} passes the peer check")),
            Err(counter) => {
                let text = format!("{packet} would be dropped as {}", counter.label());
                Step::failed(name, text)
            }
        }
    }

    async fn link_name(&self, index: u32) -> String {
        match self.netlink.link_by_index(index).await {
            Ok(Some(link)) => link.name,
            _ => format!("#{index}"),
        }
    }
}

/// The header of an ICMP packet, for checks that read its addresses.
fn icmp_packet(source: Ipv4Addr, destination: Ipv4Addr) -> [u8; 28] {
    let mut packet = [0; 28];
    packet[0] = 0x45;
    packet[3] = 28;
    packet[8] = 64;
    packet[9] = ICMP;
    packet[12..16].copy_from_slice(&source.octets());
    packet[16..20].copy_from_slice(&destination.octets());
    packet
}
