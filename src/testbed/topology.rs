//! Hosts on one underlay, containers on the hosts.
//!
//! Two hosts are joined by a veth pair; more are attached to a bridge in a namespace of its own.
//! Addresses exist only inside the namespaces.
//!
//! ```text
//! container ── cni0 ── host ═══ underlay ═══ host ── cni0 ── container
//!   eth0       .1      eth0  192.0.2.0/24    eth0     .1       eth0
//!   .2                 .1                     .2                .2
//! ```

use std::net::Ipv4Addr;
use std::os::fd::AsFd;

use super::host::{
    DefaultRoute, Host, UNDERLAY_DEVICE, UNDERLAY_MTU, UNDERLAY_PREFIX, bring_up, create_bridge,
    join_bridge, net,
};
use super::namespace::{Node, TestbedError};

/// TEST-NET-1 of RFC 5737, which no real network uses.
const UNDERLAY: [u8; 3] = [192, 0, 2];
/// TEST-NET-2, likewise: the segment behind the router.
const FAR_SEGMENT: [u8; 3] = [198, 51, 100];
/// Host part of the router's address in each segment.
const ROUTER: u8 = 254;
const MAX_HOSTS: usize = 250;

/// Hosts on one underlay network.
#[derive(Debug)]
pub struct Topology {
    hosts: Vec<Host>,
    /// Switches and, as the last, the router; they live as long as their nodes.
    others: Vec<Node>,
}

impl Topology {
    /// Two hosts, `host-a` and `host-b`, joined by a veth pair.
    ///
    /// # Errors
    ///
    /// See [`super::available`].
    pub fn two_hosts() -> Result<Self, TestbedError> {
        Self::with_hosts(2)
    }

    /// `count` hosts, 2 to 250, named `host-a`, `host-b`, ..., `host-27`, ...
    ///
    /// # Errors
    ///
    /// For any other count; see also [`super::available`].
    pub fn with_hosts(count: usize) -> Result<Self, TestbedError> {
        if !(2..=MAX_HOSTS).contains(&count) {
            return Err(TestbedError::Request(format!(
                "a topology cannot have {count} hosts: 2 to {MAX_HOSTS} are possible"
            )));
        }
        let nodes = named(0..count)?;
        let others = if let [a, b] = nodes.as_slice() {
            join_pair(a, b)?;
            Vec::new()
        } else {
            vec![join_by_switch(&on_underlay(&nodes))?]
        };
        Ok(Self {
            hosts: start_all(nodes, UNDERLAY, None)?,
            others,
        })
    }

    /// Hosts in two segments with a prefix each, `near` of them in the first and `far` in the
    /// second, joined by a router that is the default gateway of each.
    ///
    /// # Errors
    ///
    /// For more hosts than a segment has addresses; see also [`super::available`].
    pub fn two_segments(near: usize, far: usize) -> Result<Self, TestbedError> {
        if near.max(far) > MAX_HOSTS {
            return Err(TestbedError::Request(format!(
                "a segment has at most {MAX_HOSTS} hosts"
            )));
        }
        let router = Node::new("router")?;
        let mut this = Self {
            hosts: Vec::new(),
            others: Vec::new(),
        };
        for (numbers, segment, device) in [
            (0..near, UNDERLAY, "near"),
            (near..near + far, FAR_SEGMENT, "far"),
        ] {
            let nodes = named(numbers)?;
            let mut ports = on_underlay(&nodes);
            ports.push((&router, device));
            this.others.push(join_by_switch(&ports)?);
            let gateway = address(segment, ROUTER);
            let own = net(gateway, UNDERLAY_PREFIX)?;
            router.netlink(async |netlink| {
                bring_up(netlink, device, own, UNDERLAY_MTU, DefaultRoute::None).await
            })?;
            this.hosts.extend(start_all(nodes, segment, Some(gateway))?);
        }
        router.sysctl("net/ipv4/ip_forward", "1")?;
        this.others.push(router);
        Ok(this)
    }

    /// The hosts, in the order of their addresses.
    #[must_use]
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// The router between two segments; its devices are `near` and `far`.
    #[must_use]
    pub fn router(&self) -> Option<&Node> {
        self.others.last().filter(|node| node.name() == "router")
    }

    /// The first two hosts.
    ///
    /// # Errors
    ///
    /// Never for a topology created here.
    pub fn pair(&self) -> Result<(&Host, &Host), TestbedError> {
        match self.hosts.as_slice() {
            [a, b, ..] => Ok((a, b)),
            _ => Err(TestbedError::Request("there are no two hosts".into())),
        }
    }
}

fn named(numbers: std::ops::Range<usize>) -> Result<Vec<Node>, TestbedError> {
    numbers.map(|index| Node::new(host_name(index))).collect()
}

fn on_underlay(nodes: &[Node]) -> Vec<(&Node, &'static str)> {
    nodes.iter().map(|node| (node, UNDERLAY_DEVICE)).collect()
}

/// Hosts with the addresses of a segment, and its router, if any, as the default gateway.
fn start_all(
    nodes: Vec<Node>,
    segment: [u8; 3],
    gateway: Option<Ipv4Addr>,
) -> Result<Vec<Host>, TestbedError> {
    let numbered = nodes.into_iter().zip(1u8..);
    numbered
        .map(|(node, number)| Host::start(node, address(segment, number), gateway))
        .collect()
}

const fn address([a, b, c]: [u8; 3], number: u8) -> Ipv4Addr {
    Ipv4Addr::new(a, b, c, number)
}

fn host_name(index: usize) -> String {
    match u8::try_from(index) {
        Ok(letter @ 0..26) => format!("host-{}", char::from(b'a' + letter)),
        _ => format!("host-{}", index + 1),
    }
}

fn join_pair(a: &Node, b: &Node) -> Result<(), TestbedError> {
    let peer = b.namespace().as_fd();
    a.netlink(async |netlink| {
        netlink
            .create_veth(UNDERLAY_DEVICE, UNDERLAY_DEVICE, peer)
            .await
    })
}

/// Attaches devices of nodes to a bridge in a namespace of its own.
fn join_by_switch(ports: &[(&Node, &str)]) -> Result<Node, TestbedError> {
    let switch = Node::new("switch")?;
    switch.netlink(async |netlink| {
        let bridge = create_bridge(netlink, "br0", UNDERLAY_MTU).await?;
        for (port, (node, device)) in ports.iter().enumerate() {
            let name = format!("port{port}");
            let peer = node.namespace().as_fd();
            netlink.create_veth(&name, device, peer).await?;
            join_bridge(netlink, &name, bridge, UNDERLAY_MTU).await?;
        }
        Ok(())
    })?;
    Ok(switch)
}
