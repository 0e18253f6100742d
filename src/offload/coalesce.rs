//! Many segments of a flow into one super-packet.
//!
//! The inner packets of a drain lie in the worker's receive buffers. A [`Coalescer`] is
//! told where, in order of arrival, and then lists the writes to the TUN: packets as they
//! are, and super-packets made of a patched header and the payload ranges of several
//! packets. It keeps places and no references, so that the buffers stay the worker's, and
//! reuses its lists, so that a drain allocates nothing once they have grown.
//!
//! The rules are those of the kernel's own aggregation (`tcp_gro_receive`,
//! `inet_gro_receive`, `ipv6_gro_receive`, `udp_gro_receive_segment`): what is merged
//! here comes apart again into the same packets. Packets of one flow never change order;
//! those of different flows may.

mod candidate;
mod single;
mod writes;

use std::ops::Range;

use self::candidate::{Candidate, Seen};
use self::writes::{Entry, Member};
use crate::wire::checksum::Checksummer;
use crate::wire::vnet_hdr::VnetHdr;

pub use self::single::{classify_partial, classify_unsegmented_udp};
pub use self::writes::{Packets, Pieces, Write, Writes};

/// How many flows can be merged at a time; the one idle for longest makes room.
pub const MAX_OPEN_GROUPS: usize = 8;

/// How many packets go into one super-packet at most. With the vnet header and the header
/// block it stays below the 1024 pieces which one `writev` takes (`UIO_MAXIOV`).
pub const MAX_MEMBERS: u16 = 512;

/// Longest super-packet in bytes: what the IPv4 total length can say.
const MAX_TOTAL_LEN: usize = 65_535;

/// End of a chain of members.
const NONE: u32 = u32::MAX;

/// What may be merged.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// MTU of the TUN in bytes. A longer packet is no segment of anything (see
    /// [`classify_partial`]).
    pub tun_mtu: usize,
    /// Merge TCP. Off after the kernel refused such a write.
    pub tcp: bool,
    /// Merge UDP. Needs `TUN_F_USO4|TUN_F_USO6` to be known to the kernel (6.2).
    pub udp: bool,
    /// Datagrams in one UDP super-packet: 64, from kernel 6.9 on 128 (`UDP_MAX_SEGMENTS`).
    pub udp_max_segments: u16,
    /// Leave datagrams to well-known tunnel ports alone: kernels before 6.8.5 drop UDP
    /// super-packets which reach a tunnel socket.
    pub spare_tunnel_ports: bool,
    /// How payload is summed.
    pub checksummer: Checksummer,
}

impl Policy {
    /// Merges all that can be merged into a TUN with this MTU in bytes.
    #[must_use]
    pub const fn new(tun_mtu: usize, checksummer: Checksummer) -> Self {
        Self {
            tun_mtu,
            tcp: true,
            udp: true,
            udp_max_segments: 64,
            spare_tunnel_ports: true,
            checksummer,
        }
    }
}

/// Where a packet lies: bytes of the arena, which is one slice over all receive buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketRef {
    /// Bytes from the start of the arena.
    pub offset: u32,
    /// Bytes of the packet, from its IP header on.
    pub len: u32,
}

impl PacketRef {
    /// The packet as a range of the arena.
    #[inline]
    #[must_use]
    pub const fn range(self) -> Range<usize> {
        self.offset as usize..self.offset as usize + self.len as usize
    }
}

/// A packet that is not inside of the arena: a mistake of the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("packet at {}..{} is outside of the arena of {arena} bytes", .packet.range().start, .packet.range().end)]
pub struct OutsideArena {
    /// What was pushed.
    pub packet: PacketRef,
    /// Bytes of the arena.
    pub arena: usize,
}

/// A group that still takes packets.
#[derive(Clone, Copy, Debug)]
struct Open {
    /// The entry it became.
    entry: u32,
    /// Its first packet, which all others are compared with.
    first: Candidate,
    first_packet: PacketRef,
    /// Whether the checksum of the first packet was looked at. It is not before a second
    /// one wants to join, since single packets are verified by the kernel anyway.
    verified: bool,
    /// Sequence number that the next packet must have.
    next_seq: u32,
    /// Identification of the last packet, and the step that two of them have established.
    last_id: u16,
    id_step: Option<u16>,
    /// When it last took a packet, in pushes.
    used: u64,
}

/// Turns the packets of a drain into writes; see the module.
///
/// Per drain: [`Self::clear`], [`Self::push`] for each packet, [`Self::writes`].
#[derive(Debug)]
pub struct Coalescer {
    policy: Policy,
    open: Vec<Open>,
    entries: Vec<Entry>,
    members: Vec<Member>,
    headers: Vec<u8>,
    pushes: u64,
}

impl Coalescer {
    /// An empty coalescer.
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            open: Vec::with_capacity(MAX_OPEN_GROUPS),
            entries: Vec::with_capacity(256),
            members: Vec::with_capacity(256),
            headers: Vec::with_capacity(64 * 60),
            pushes: 0,
        }
    }

    /// What may be merged at present.
    #[must_use]
    pub const fn policy(&self) -> Policy {
        self.policy
    }

    /// Changes what may be merged. Groups that are open stay as they are.
    pub const fn set_policy(&mut self, policy: Policy) {
        self.policy = policy;
    }

    /// Forgets all packets, so that the arena can be used anew. Keeps its memory.
    pub fn clear(&mut self) {
        self.open.clear();
        self.entries.clear();
        self.members.clear();
        self.headers.clear();
    }

    /// Whether no packet is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Takes the next inner packet that arrived. `arena` is the same at every call until
    /// [`Self::clear`], with the same bytes in all packets pushed so far.
    ///
    /// Anything is taken: what is no mergeable packet becomes a write of its own.
    ///
    /// # Errors
    /// If `packet` is not inside of `arena`. Nothing is changed then.
    pub fn push(&mut self, arena: &[u8], packet: PacketRef) -> Result<(), OutsideArena> {
        let outside = OutsideArena {
            packet,
            arena: arena.len(),
        };
        let bytes = arena.get(packet.range()).ok_or(outside)?;
        self.pushes += 1;
        match candidate::look(bytes, &self.policy) {
            Seen::Segment(candidate) => self.join_or_open(arena, packet, bytes, candidate),
            other => {
                self.close_for(&other);
                self.add_entry(packet, 0, None);
            }
        }
        Ok(())
    }

    /// Takes the next packet as one to be written as it is, behind `vnet`: a super-packet
    /// which a peer's kernel handed over whole (see [`classify_unsegmented_udp`]).
    ///
    /// # Errors
    /// If `packet` is not inside of `arena`. Nothing is changed then.
    pub fn push_whole(
        &mut self,
        arena: &[u8],
        packet: PacketRef,
        vnet: VnetHdr,
    ) -> Result<(), OutsideArena> {
        let outside = OutsideArena {
            packet,
            arena: arena.len(),
        };
        let bytes = arena.get(packet.range()).ok_or(outside)?;
        self.close_for(&candidate::look(bytes, &self.policy));
        self.add_entry(packet, 0, Some(vnet));
        Ok(())
    }

    /// Ends all groups and lists what is to be written, in an order that keeps that of
    /// every flow. Can be called again; more packets can be pushed after it, then all are
    /// listed again.
    pub fn writes(&mut self, arena: &[u8]) -> Writes<'_> {
        self.open.clear();
        self.headers.clear();
        for entry in &mut self.entries {
            let packet = writes::packet_of(&self.members, entry.first_member())
                .and_then(|packet| arena.get(packet.range()))
                .unwrap_or_default();
            entry.complete(packet, &self.policy, &mut self.headers);
        }
        Writes::new(&self.entries, &self.members, &self.headers)
    }

    fn join_or_open(
        &mut self,
        arena: &[u8],
        packet: PacketRef,
        bytes: &[u8],
        candidate: Candidate,
    ) {
        if let Some(slot) = self
            .open
            .iter()
            .position(|open| open.first.key == candidate.key)
        {
            match self.join(slot, arena, packet, bytes, &candidate) {
                Joined::Yes => return,
                Joined::Damaged => {
                    self.open.swap_remove(slot);
                    self.add_entry(packet, 0, None);
                    return;
                }
                Joined::No => {
                    self.open.swap_remove(slot);
                }
            }
        }
        let entry = self.add_entry(packet, candidate.payload_len, None);
        if !candidate.ends_group {
            self.open_group(entry, packet, candidate);
        }
    }

    /// Appends a packet to an open group, if all rules hold.
    fn join(
        &mut self,
        slot: usize,
        arena: &[u8],
        packet: PacketRef,
        bytes: &[u8],
        candidate: &Candidate,
    ) -> Joined {
        let (Some(open), pushes) = (self.open.get_mut(slot), self.pushes) else {
            return Joined::No;
        };
        let Some(entry) = self.entries.get_mut(open.entry as usize) else {
            return Joined::No;
        };
        let Some(first) = arena.get(open.first_packet.range()) else {
            return Joined::No;
        };
        let id_step = match open.id_step_to(candidate) {
            Some(step) if entry.has_room(&open.first, candidate, &self.policy) => step,
            _ => return Joined::No,
        };
        if candidate.seq != open.next_seq || !open.first.same_headers(first, candidate, bytes) {
            return Joined::No;
        }
        if !open.verified {
            if !open.first.is_undamaged(first, self.policy.checksummer) {
                return Joined::No;
            }
            open.verified = true;
        }
        if !candidate.is_undamaged(bytes, self.policy.checksummer) {
            return Joined::Damaged;
        }
        open.id_step = id_step;
        open.last_id = candidate.ip_id;
        open.next_seq = candidate.next_seq();
        open.used = pushes;
        let ends = candidate.ends_group || candidate.payload_len < open.first.payload_len;
        entry.append(&mut self.members, packet, candidate);
        if ends {
            self.open.swap_remove(slot);
        }
        Joined::Yes
    }

    fn open_group(&mut self, entry: u32, packet: PacketRef, candidate: Candidate) {
        if self.open.len() >= MAX_OPEN_GROUPS {
            let oldest = self
                .open
                .iter()
                .enumerate()
                .min_by_key(|(_, open)| open.used);
            if let Some((slot, _)) = oldest {
                self.open.swap_remove(slot);
            }
        }
        if let Some(entry) = self.entries.get_mut(entry as usize) {
            entry.begin_group(candidate);
        }
        self.open.push(Open {
            entry,
            first: candidate,
            first_packet: packet,
            verified: false,
            next_seq: candidate.next_seq(),
            last_id: candidate.ip_id,
            id_step: None,
            used: self.pushes,
        });
    }

    /// Ends the groups that a packet which cannot be merged must not overtake.
    fn close_for(&mut self, seen: &Seen) {
        match seen {
            Seen::Segment(Candidate { key, .. }) | Seen::Flow(key) => {
                self.open.retain(|open| open.first.key != *key);
            }
            // Ports unknown, as in a later fragment: it may belong to any flow between the two.
            Seen::Addresses(addresses) => {
                self.open
                    .retain(|open| open.first.key.addresses != *addresses);
            }
            Seen::Opaque => {}
        }
    }

    fn add_entry(&mut self, packet: PacketRef, payload_len: u16, vnet: Option<VnetHdr>) -> u32 {
        let member = self.members.len() as u32;
        self.members.push(Member::new(packet, payload_len));
        self.entries.push(Entry::new(member, vnet));
        self.entries.len() as u32 - 1
    }
}

/// What became of a packet that met an open group of its flow.
enum Joined {
    Yes,
    /// It differs, but may begin a group of its own.
    No,
    /// Its checksum is wrong; the kernel shall see, drop and count it.
    Damaged,
}

impl Open {
    /// What the step between identifications is with `candidate` appended; `None` if it
    /// does not fit.
    ///
    /// Without DF it must be 1, as it will be after the kernel segments again. With DF the
    /// field means nothing (RFC 6864), and a fixed one is taken too, as the kernel does.
    fn id_step_to(&self, candidate: &Candidate) -> Option<Option<u16>> {
        if candidate.key.v6 {
            return Some(None);
        }
        let step = candidate.ip_id.wrapping_sub(self.last_id);
        let allowed = step == 1 || (step == 0 && candidate.dont_fragment);
        (allowed && self.id_step.is_none_or(|known| known == step)).then_some(Some(step))
    }
}

#[cfg(test)]
mod tests;
