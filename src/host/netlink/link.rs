//! Finds, changes and deletes links.

use futures_util::TryStreamExt;
use netlink_packet_route::link::{InfoVxlan, LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::{LinkMessageBuilder, LinkUnspec};

use super::{Netlink, NetlinkError, request};
use crate::wire::MacAddr;

/// A network device as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkInfo {
    /// Interface index, unique within the namespace.
    pub index: u32,
    /// Interface name.
    pub name: String,
    /// Largest packet in bytes, without the link-layer header.
    pub mtu: u32,
    /// Driver kind (`vxlan`, `tun`, `veth`, `bridge`, ...); none for hardware and `lo`.
    pub kind: Option<String>,
    /// UDP port of a kernel vxlan device that receives over IPv4.
    pub vxlan_port: Option<u16>,
    /// MAC address; a TUN has none.
    pub mac: Option<MacAddr>,
    /// Administratively up (`IFF_UP`), with or without carrier.
    pub up: bool,
    /// `IFF_*` of `netdevice(7)`.
    pub flags: u32,
    /// Index of the bridge or bond that the device is a port of.
    pub master: Option<u32>,
    /// Length of the transmit queue in packets.
    pub tx_queue_len: u32,
}

impl LinkInfo {
    fn parse(message: LinkMessage) -> Self {
        use netlink_packet_route::link::{InfoData, LinkInfo as Info};

        let flags = message.header.flags;
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            mtu: 0,
            kind: None,
            vxlan_port: None,
            mac: None,
            up: flags.contains(LinkFlags::Up),
            flags: flags.bits(),
            master: None,
            tx_queue_len: 0,
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::Address(bytes) => link.mac = bytes.try_into().ok().map(MacAddr),
                LinkAttribute::Controller(index) => link.master = Some(index),
                LinkAttribute::TxQueueLen(length) => link.tx_queue_len = length,
                LinkAttribute::LinkInfo(infos) => {
                    for info in infos {
                        match info {
                            Info::Kind(kind) => link.kind = Some(kind.to_string()),
                            Info::Data(InfoData::Vxlan(parts)) => {
                                link.vxlan_port = vxlan_port(&parts);
                            }
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        link
    }
}

/// The port, unless the device tunnels over IPv6: then its socket receives no IPv4.
fn vxlan_port(parts: &[InfoVxlan]) -> Option<u16> {
    let is_ipv6 = |part: &InfoVxlan| matches!(part, InfoVxlan::Local6(_) | InfoVxlan::Group6(_));
    if parts.iter().any(is_ipv6) {
        return None;
    }
    parts.iter().find_map(|part| match part {
        InfoVxlan::Port(port) => Some(*port),
        _ => None,
    })
}

impl Netlink {
    /// All links of the namespace, by index.
    ///
    /// # Errors
    ///
    /// [`NetlinkError::Request`].
    pub async fn links(&self) -> Result<Vec<LinkInfo>, NetlinkError> {
        let dump = self.handle.link().get().execute();
        let links = dump.map_ok(LinkInfo::parse).try_collect();
        let mut links: Vec<LinkInfo> = request(links, || "list links".into()).await?;
        links.sort_by_key(|link| link.index);
        Ok(links)
    }

    /// The link of this name, if there is one.
    ///
    /// # Errors
    ///
    /// [`NetlinkError::Request`] for other failures than absence.
    pub async fn link_by_name(&self, name: &str) -> Result<Option<LinkInfo>, NetlinkError> {
        let request = self.handle.link().get().match_name(name);
        let found = one_link(request, format!("find link {name}")).await?;
        // The kernel also answers to alternative names (`ip link property add altname`).
        Ok(found.filter(|link| link.name == name))
    }

    /// The link with this index, if there is one.
    ///
    /// # Errors
    ///
    /// [`NetlinkError::Request`] for other failures than absence.
    pub async fn link_by_index(&self, index: u32) -> Result<Option<LinkInfo>, NetlinkError> {
        let request = self.handle.link().get().match_index(index);
        one_link(request, format!("find link {index}")).await
    }

    /// The link of this name.
    ///
    /// # Errors
    ///
    /// [`NetlinkError::Missing`] if there is none, else as [`Self::link_by_name`].
    pub async fn expect_link(&self, name: &str) -> Result<LinkInfo, NetlinkError> {
        let found = self.link_by_name(name).await?;
        found.ok_or_else(|| NetlinkError::Missing(format!("network device {name}")))
    }

    pub(crate) async fn delete_link(&self, index: u32) -> Result<(), NetlinkError> {
        let delete = self.handle.link().del(index);
        request(delete.execute(), || format!("delete link {index}")).await
    }

    /// Sets a link up or down.
    ///
    /// # Errors
    ///
    /// [`NetlinkError::Request`].
    pub async fn set_up(&self, index: u32, up: bool) -> Result<(), NetlinkError> {
        let link = LinkUnspec::new_with_index(index);
        let (link, word) = if up {
            (link.up(), "up")
        } else {
            (link.down(), "down")
        };
        self.change(link, || format!("set link {index} {word}"))
            .await
    }

    /// Sets the MTU of a link, in bytes.
    ///
    /// # Errors
    ///
    /// [`NetlinkError::Request`].
    pub async fn set_mtu(&self, index: u32, mtu: u32) -> Result<(), NetlinkError> {
        self.change(LinkUnspec::new_with_index(index).mtu(mtu), || {
            format!("set the MTU of link {index} to {mtu}")
        })
        .await
    }

    /// Sets the length of a link's transmit queue, in packets.
    pub(crate) async fn set_tx_queue_len(
        &self,
        index: u32,
        length: u32,
    ) -> Result<(), NetlinkError> {
        self.change(LinkUnspec::new_with_index(index).txqueuelen(length), || {
            format!("set the transmit queue of link {index} to {length} packets")
        })
        .await
    }

    /// Makes a link a port of a bridge.
    pub(crate) async fn set_master(&self, index: u32, bridge: u32) -> Result<(), NetlinkError> {
        self.change(LinkUnspec::new_with_index(index).controller(bridge), || {
            format!("make link {index} a port of link {bridge}")
        })
        .await
    }

    async fn change(
        &self,
        link: LinkMessageBuilder<LinkUnspec>,
        operation: impl FnOnce() -> String,
    ) -> Result<(), NetlinkError> {
        let set = self.handle.link().set(link.build());
        request(set.execute(), operation).await
    }
}

async fn one_link(
    request: rtnetlink::LinkGetRequest,
    operation: String,
) -> Result<Option<LinkInfo>, NetlinkError> {
    match request.execute().try_next().await {
        Ok(found) => Ok(found.map(LinkInfo::parse)),
        Err(error) => {
            let error = NetlinkError::request(operation, error);
            // Nor does a device have a name that is longer than the kernel allows (15 bytes).
            if error.is_missing() || error.errno() == Some(libc::ERANGE) {
                Ok(None)
            } else {
                Err(error)
            }
        }
    }
}
