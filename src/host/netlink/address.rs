//! Addresses of links.

use std::net::{IpAddr, Ipv4Addr};

use futures_util::TryStreamExt;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use rtnetlink::AddressMessageBuilder;

use super::{Netlink, NetlinkError, request};

/// An address of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddressInfo {
    /// Index of the link that has it.
    pub ifindex: u32,
    /// The local address.
    pub address: IpAddr,
    /// Length of its prefix in bits.
    pub prefix_len: u8,
    /// `RT_SCOPE_*` of `rtnetlink(7)`: 0 is global, 253 link, 254 host.
    pub scope: u8,
    /// Past its preferred lifetime (`IFA_F_DEPRECATED`).
    pub deprecated: bool,
    /// Without a lifetime (`IFA_F_PERMANENT`).
    pub permanent: bool,
    /// `IFA_F_TEMPORARY`: a privacy address. The kernel uses the same bit as
    /// `IFA_F_SECONDARY` for a further IPv4 address in a prefix the link has already.
    pub temporary: bool,
}

impl AddressInfo {
    /// `None` for a message without an address.
    fn parse(message: &AddressMessage) -> Option<Self> {
        let mut local = None;
        let mut peer = None;
        let mut flags = AddressFlags::from_bits_retain(message.header.flags.bits().into());
        for attribute in &message.attributes {
            match attribute {
                AddressAttribute::Local(address) => local = Some(*address),
                AddressAttribute::Address(address) => peer = Some(*address),
                AddressAttribute::Flags(all) => flags = *all,
                _ => {}
            }
        }
        Some(Self {
            ifindex: message.header.index,
            // On a point-to-point link IFA_ADDRESS is the far end. On others IPv6 has no
            // IFA_LOCAL.
            address: local.or(peer)?,
            prefix_len: message.header.prefix_len,
            scope: message.header.scope.into(),
            deprecated: flags.contains(AddressFlags::Deprecated),
            permanent: flags.contains(AddressFlags::Permanent),
            temporary: flags.contains(AddressFlags::Secondary),
        })
    }
}

impl Netlink {
    /// Addresses of all links, or of the link `ifindex`, in the kernel's order.
    ///
    /// # Errors
    ///
    /// [`NetlinkError::Request`].
    pub async fn addresses(&self, ifindex: Option<u32>) -> Result<Vec<AddressInfo>, NetlinkError> {
        let dump = self.handle.address().get().execute();
        let messages: Vec<AddressMessage> =
            request(dump.try_collect(), || "list addresses".into()).await?;
        let all = messages.iter().filter_map(AddressInfo::parse);
        Ok(all
            .filter(|address| ifindex.is_none_or(|index| address.ifindex == index))
            .collect())
    }

    /// Adds an IPv4 address with its prefix to a link, scope global.
    ///
    /// # Errors
    ///
    /// [`NetlinkError::Request`]; [`NetlinkError::is_exists`] if the link has it.
    pub async fn add_address(
        &self,
        ifindex: u32,
        address: Ipv4Addr,
        prefix_len: u8,
    ) -> Result<(), NetlinkError> {
        let addresses = self.handle.address();
        let add = addresses.add(ifindex, address.into(), prefix_len);
        request(add.execute(), || {
            format!("add address {address}/{prefix_len} to link {ifindex}")
        })
        .await
    }

    /// Removes an IPv4 address from a link; [`NetlinkError::is_missing`] if it does not have it.
    pub(crate) async fn delete_address(
        &self,
        ifindex: u32,
        address: Ipv4Addr,
        prefix_len: u8,
    ) -> Result<(), NetlinkError> {
        let mut message = AddressMessageBuilder::<Ipv4Addr>::new()
            .index(ifindex)
            .build();
        message.header.prefix_len = prefix_len;
        // Without IFA_ADDRESS the kernel matches the local address alone, so this also finds
        // an address with a peer.
        message
            .attributes
            .push(AddressAttribute::Local(address.into()));
        let delete = self.handle.address().del(message);
        request(delete.execute(), || {
            format!("delete address {address}/{prefix_len} from link {ifindex}")
        })
        .await
    }
}
