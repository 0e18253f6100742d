//! IPv4 routes of the main table, and lookups in it.

use std::fmt;
use std::net::Ipv4Addr;

use futures_util::TryStreamExt;
use ipnet::Ipv4Net;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
    RouteType,
};
use rtnetlink::RouteMessageBuilder;

use super::{Netlink, NetlinkError, request};

/// An IPv4 route of the main table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Destination prefix.
    pub destination: Ipv4Net,
    /// Next hop; none for a directly connected prefix.
    pub gateway: Option<Ipv4Addr>,
    /// Index of the output link, of the first one in a multipath route; none for routes that
    /// discard.
    pub ifindex: Option<u32>,
    /// The gateway is taken to be reachable on the link, whatever its address.
    pub onlink: bool,
    /// `RTPROT_*`: which program installed it.
    pub protocol: u8,
    /// Metric; the lowest wins, the default is 0.
    pub metric: u32,
    /// Type of service that the packet must have; 0 for any.
    pub tos: u8,
    /// Whether it forwards (`RTN_UNICAST`); blackhole, unreachable and the like do not.
    pub unicast: bool,
}

impl Route {
    /// A unicast route of this program, with [`super::ROUTE_PROTOCOL`] and metric 0.
    #[must_use]
    pub fn ours(destination: Ipv4Net, gateway: Option<Ipv4Addr>, ifindex: u32) -> Self {
        Self {
            destination,
            gateway,
            ifindex: Some(ifindex),
            onlink: false,
            protocol: super::ROUTE_PROTOCOL,
            metric: 0,
            tos: 0,
            unicast: true,
        }
    }

    /// `None` for routes outside the main table, and for other families.
    fn parse(message: &RouteMessage) -> Option<Self> {
        let header = &message.header;
        let mut route = Self {
            destination: Ipv4Net::default(),
            gateway: None,
            ifindex: None,
            onlink: header.flags.contains(RouteFlags::Onlink),
            protocol: header.protocol.into(),
            metric: 0,
            tos: header.tos,
            unicast: header.kind == RouteType::Unicast,
        };
        let mut table = u32::from(header.table);
        let mut destination = Ipv4Addr::UNSPECIFIED;
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Table(id) => table = *id,
                RouteAttribute::Destination(RouteAddress::Inet(address)) => destination = *address,
                RouteAttribute::Gateway(RouteAddress::Inet(address)) => {
                    route.gateway = Some(*address);
                }
                RouteAttribute::Oif(index) => route.ifindex = Some(*index),
                RouteAttribute::Priority(metric) => route.metric = *metric,
                RouteAttribute::MultiPath(hops) => {
                    route.ifindex = hops.first().map(|hop| hop.interface_index);
                }
                _ => {}
            }
        }
        if table != u32::from(RouteHeader::RT_TABLE_MAIN) {
            return None;
        }
        route.destination = Ipv4Net::new(destination, header.destination_prefix_length).ok()?;
        Some(route)
    }

    fn message(&self) -> RouteMessage {
        let mut builder = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(self.destination.network(), self.destination.prefix_len())
            .protocol(RouteProtocol::from(self.protocol))
            .tos(self.tos);
        if let Some(index) = self.ifindex {
            builder = builder.output_interface(index);
        }
        if let Some(gateway) = self.gateway {
            builder = builder.gateway(gateway);
        } else if self.unicast {
            builder = builder.scope(RouteScope::Link);
        }
        if !self.unicast {
            builder = builder.kind(RouteType::BlackHole);
        }
        if self.onlink {
            builder = builder.onlink();
        }
        if self.metric != 0 {
            builder = builder.priority(self.metric);
        }
        builder.build()
    }
}

/// As `ip route` prints it, but with the index of the device for its name.
impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.destination)?;
        if let Some(gateway) = self.gateway {
            write!(f, " via {gateway}")?;
        }
        if let Some(index) = self.ifindex {
            write!(f, " dev #{index}")?;
        }
        if self.onlink {
            f.write_str(" onlink")?;
        }
        write!(f, " proto {}", self.protocol)?;
        if self.metric != 0 {
            write!(f, " metric {}", self.metric)?;
        }
        Ok(())
    }
}

/// How the kernel would route a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouteLookup {
    /// Index of the output link.
    pub ifindex: u32,
    /// Source address that the kernel would choose.
    pub prefsrc: Option<Ipv4Addr>,
    /// Next hop; none if the destination is directly connected or local.
    pub gateway: Option<Ipv4Addr>,
    /// The destination is an address of this host (`RTN_LOCAL`).
    pub local: bool,
}

impl Netlink {
    /// IPv4 routes of the main table in the kernel's order: the preferred route of a prefix
    /// comes first.
    ///
    /// # Errors
    ///
    /// [`NetlinkError::Request`].
    pub async fn routes(&self) -> Result<Vec<Route>, NetlinkError> {
        let filter = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let dump = self.handle.route().get(filter).execute();
        let messages: Vec<RouteMessage> =
            request(dump.try_collect(), || "list IPv4 routes".into()).await?;
        Ok(messages.iter().filter_map(Route::parse).collect())
    }

    /// Adds a route to the main table.
    ///
    /// # Errors
    ///
    /// [`NetlinkError::Request`]; [`NetlinkError::is_exists`] if there is one with the same
    /// destination, metric and type of service, of any protocol.
    pub async fn add_route(&self, route: &Route) -> Result<(), NetlinkError> {
        let add = self.handle.route().add(route.message());
        request(add.execute(), || format!("add route {route}")).await
    }

    /// Adds a route to the main table in place of the first one with the same destination,
    /// metric and type of service, **of any protocol**.
    ///
    /// # Errors
    ///
    /// [`NetlinkError::Request`].
    pub async fn replace_route(&self, route: &Route) -> Result<(), NetlinkError> {
        let replace = self.handle.route().add(route.message()).replace();
        request(replace.execute(), || format!("replace route {route}")).await
    }

    /// Deletes the route with the same destination, next hop, link, protocol and metric;
    /// [`NetlinkError::is_missing`] if there is none.
    pub(crate) async fn delete_route(&self, route: &Route) -> Result<(), NetlinkError> {
        let mut message = route.message();
        // Match any scope and any kind: the other attributes are specific enough.
        message.header.scope = RouteScope::NoWhere;
        message.header.kind = RouteType::Unspec;
        let delete = self.handle.route().del(message);
        request(delete.execute(), || format!("delete route {route}")).await
    }

    /// Index of the link of the preferred IPv4 default route, if there is one.
    ///
    /// # Errors
    ///
    /// [`NetlinkError::Request`].
    pub async fn default_route_ifindex(&self) -> Result<Option<u32>, NetlinkError> {
        let routes = self.routes().await?;
        Ok(routes
            .iter()
            .filter(|route| route.destination.prefix_len() == 0 && route.unicast)
            .find_map(|route| route.ifindex))
    }

    /// Looks up how the kernel would send to `destination` (`ip route get`); `None` if there is
    /// no route.
    ///
    /// # Errors
    ///
    /// [`NetlinkError::Request`] for other failures.
    pub async fn route_get(
        &self,
        destination: Ipv4Addr,
    ) -> Result<Option<RouteLookup>, NetlinkError> {
        let query = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(destination, 32);
        self.lookup(destination, query.build()).await
    }

    /// As [`Netlink::route_get`], for packets from `source`, an address of this host, which a
    /// rule may route differently (`ip rule add from`).
    pub(crate) async fn route_get_from(
        &self,
        source: Ipv4Addr,
        destination: Ipv4Addr,
    ) -> Result<Option<RouteLookup>, NetlinkError> {
        let query = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(destination, 32)
            .source_prefix(source, 32);
        self.lookup(destination, query.build()).await
    }

    async fn lookup(
        &self,
        destination: Ipv4Addr,
        query: RouteMessage,
    ) -> Result<Option<RouteLookup>, NetlinkError> {
        let mut reply = std::pin::pin!(self.handle.route().get(query).execute());
        match reply.try_next().await {
            Ok(found) => Ok(found.as_ref().and_then(read_lookup)),
            Err(error) => {
                let operation = format!("look up the route to {destination}");
                let error = NetlinkError::request(operation, error);
                match error.errno() {
                    // What the kernel gives for no route, for unreachable, blackhole and
                    // prohibit routes (fib_props in net/ipv4/fib_semantics.c).
                    Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EINVAL | libc::EACCES) => {
                        Ok(None)
                    }
                    _ => Err(error),
                }
            }
        }
    }
}

fn read_lookup(message: &RouteMessage) -> Option<RouteLookup> {
    let mut ifindex = None;
    let mut prefsrc = None;
    let mut gateway = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => ifindex = Some(*index),
            RouteAttribute::PrefSource(RouteAddress::Inet(address)) => prefsrc = Some(*address),
            RouteAttribute::Gateway(RouteAddress::Inet(address)) => gateway = Some(*address),
            _ => {}
        }
    }
    Some(RouteLookup {
        ifindex: ifindex?,
        prefsrc,
        gateway,
        local: message.header.kind == RouteType::Local,
    })
}
