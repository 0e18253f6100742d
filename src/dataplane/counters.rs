//! Every packet under one name: a closed list of counters for each worker.
//!
//! Both invariants hold at any time when the worker is between two drains:
//! `tun_read = sent + Σ drops out` and `udp_read = delivered + probes_in + Σ drops in`.
//! A packet is what fits the tunnel: a super-packet counts as its segments. Only what a
//! kernel peer on this machine hands over uncut counts as one, in and out.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[doc = $doc:literal])* $name:ident => $label:literal, $kind:ident;)*) => {
        /// A counter's name.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Counter { $($(#[doc = $doc])* $name,)* }

        impl Counter {
            /// All counters, in the order in which they are shown.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The stable name, for people and machines.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self { $(Self::$name => $label,)* }
            }

            /// What it means, in words.
            #[must_use]
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc,)*).trim_ascii(),)* }
            }

            /// What it counts.
            #[must_use]
            pub const fn kind(self) -> Kind {
                match self { $(Self::$name => Kind::$kind,)* }
            }
        }
    };
}

/// What a counter counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Packets that came in or went out.
    Packets,
    /// Packets from the TUN device that went nowhere.
    DropOut,
    /// Packets from the tunnel that went nowhere.
    DropIn,
    /// Bytes of packets that came in or went out.
    Bytes,
    /// Events that are not packets.
    Event,
}

counters! {
    /// Packets read from the TUN device.
    TunRead => "tun_read", Packets;
    /// Packets handed to a UDP socket.
    Sent => "sent", Packets;
    /// Packets received from the tunnel port.
    UdpRead => "udp_read", Packets;
    /// Packets written to the TUN device.
    Delivered => "delivered", Packets;
    /// Probe messages of peers, handed to the control side: no tunnel traffic.
    ProbesIn => "probes_in", Packets;
    /// Bytes of the inner packets handed to a UDP socket.
    SentBytes => "sent_bytes", Bytes;
    /// Bytes of the packets written to the TUN device.
    DeliveredBytes => "delivered_bytes", Bytes;

    /// Not a whole IPv4 packet, or an impossible virtio-net header.
    OutMalformed => "out_malformed", DropOut;
    /// Not IPv4: the overlay carries nothing else yet.
    OutNotIpv4 => "out_not_ipv4", DropOut;
    /// Multicast or broadcast: the overlay has no such delivery.
    OutNotUnicast => "out_not_unicast", DropOut;
    /// No lease covers the destination.
    OutNoRoute => "out_no_route", DropOut;
    /// Larger than the path to the peer takes (EMSGSIZE).
    OutTooBig => "out_too_big", DropOut;
    /// The socket's buffer or the device's queue stayed full (EAGAIN, ENOBUFS).
    OutQueueFull => "out_queue_full", DropOut;
    /// No way to the peer's address (ENETUNREACH, EHOSTUNREACH, ENETDOWN).
    OutUnreachable => "out_unreachable", DropOut;
    /// A firewall rule refused it (EPERM).
    OutForbidden => "out_forbidden", DropOut;
    /// Any other error of the socket.
    OutSendError => "out_send_error", DropOut;

    /// Longer than any datagram that this tunnel carries; cut by the kernel.
    InTruncated => "in_truncated", DropIn;
    /// Shorter than VXLAN, Ethernet and IP headers.
    InShort => "in_short", DropIn;
    /// VXLAN flag for a valid VNI missing.
    InNoVni => "in_no_vni", DropIn;
    /// Reserved VXLAN bits set.
    InReservedBits => "in_reserved_bits", DropIn;
    /// VNI of another network.
    InOtherVni => "in_other_vni", DropIn;
    /// Inner destination MAC is not ours.
    InOtherMac => "in_other_mac", DropIn;
    /// Inner source MAC is our own: a loop.
    InOwnMac => "in_own_mac", DropIn;
    /// Inner frame is not IPv4 (ARP, VLAN tag, IPv6).
    InNotIpv4 => "in_not_ipv4", DropIn;
    /// A probe's ethertype from a peer, and no whole probe behind it.
    InProbeMalformed => "in_probe_malformed", DropIn;
    /// More probe messages in a second than a peer of ours sends, or than may wait here.
    InProbeFlood => "in_probe_flood", DropIn;
    /// Inner IPv4 header impossible or truncated.
    InMalformed => "in_malformed", DropIn;
    /// Checksum of the inner IPv4 header wrong.
    InHeaderChecksum => "in_header_checksum", DropIn;
    /// From an address that no lease names, and that is not allowed either.
    InUnknownPeer => "in_unknown_peer", DropIn;
    /// Over another interface than the chosen one, with `--receive-on=interface`.
    InOtherInterface => "in_other_interface", DropIn;
    /// From an inner address that is not of the sending peer's subnet.
    InForeignSource => "in_foreign_source", DropIn;
    /// To an inner address that is not of our subnet.
    InForeignDestination => "in_foreign_destination", DropIn;
    /// From or to loopback, link-local, group, reserved or broadcast addresses.
    InMartian => "in_martian", DropIn;
    /// With a source route, which would lead it on past the rules for destinations.
    InSourceRoute => "in_source_route", DropIn;
    /// Congestion marked outside on a flow that is not capable of ECN inside.
    InEcn => "in_ecn", DropIn;
    /// The TUN device is down or gone (EIO, EBADFD).
    InDeviceDown => "in_device_down", DropIn;
    /// The kernel had no memory or refused the packet.
    InWriteError => "in_write_error", DropIn;

    /// Calls that sent packets.
    SendCalls => "send_calls", Event;
    /// Calls that received packets.
    ReceiveCalls => "receive_calls", Event;
    /// Datagrams that the kernel dropped at the tunnel port before we saw them: of senders
    /// that the socket filter refuses, and when the buffer was full.
    SocketDrops => "socket_drops", Event;
    /// Datagrams that found no room in the receive buffer of a UDP socket: of all such sockets
    /// of this host, so that ours are at most so many of the dropped.
    SocketNoRoom => "socket_no_room", Event;
    /// Packets of containers that found no room in the device's queue, before we read them.
    TunOverflow => "tun_overflow", Event;
    /// Times that a batch was sent again without segmentation by the kernel.
    SegmentFallbacks => "segment_fallbacks", Event;
    /// Packets that a kernel peer on this machine sent with an unfinished checksum.
    PartialChecksums => "partial_checksums", Event;
    /// Packets that do not belong, and passed because of `--peer-check=log`.
    PassedUnchecked => "passed_unchecked", Event;
    /// Senders that were told that their packets are too long for the path.
    IcmpSent => "icmp_sent", Event;
    /// Calls that wrote packets to the device.
    WriteCalls => "write_calls", Event;
    /// Times that the kernel refused a merged packet, and it was written in parts.
    MergeFallbacks => "merge_fallbacks", Event;
    /// Probes sent through the tunnel.
    ProbesSent => "probes_sent", Event;
    /// Probes of peers answered.
    ProbesAnswered => "probes_answered", Event;
    /// Probes that came before, not answered again.
    ProbeReplays => "probe_replays", Event;
    /// Probes beyond what one peer may ask in a second, not answered.
    ProbeExcess => "probe_excess", Event;
    /// Probe messages that fit nothing: answers to nobody's question, with another nonce, or
    /// too late; from another MAC than the lease's, or of a lease that promises no answers.
    ProbeStrays => "probe_strays", Event;
}

const COUNT: usize = Counter::ALL.len();

/// A system call that moves packets, many at once where it can.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// Sends to peers.
    Send,
    /// Receives from them.
    Receive,
    /// Writes to the device.
    Write,
}

impl Call {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Send, Self::Receive, Self::Write];

    /// The stable name.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Send => "send",
            Self::Receive => "receive",
            Self::Write => "write",
        }
    }
}

/// Sizes of batches are told apart by powers of two: 1, 2, up to 4, up to 8, and so on up to
/// 2048, and what is above.
pub const SIZES: usize = 13;

/// Largest batch that a size counts; none for the last one, which has no end.
#[must_use]
pub const fn largest_of_size(size: usize) -> Option<u64> {
    if size + 1 < SIZES {
        Some(1 << size)
    } else {
        None
    }
}

/// The size that counts a batch of so many packets.
#[inline]
fn size_of(packets: u64) -> usize {
    let bits = u64::BITS - packets.saturating_sub(1).leading_zeros();
    (bits as usize).min(SIZES - 1)
}

/// One worker's counters. Only the worker writes; anybody reads. A write is a plain
/// load and store: no locked instruction, and no cache line shared with another worker.
#[derive(Debug)]
#[repr(align(128))]
pub struct Counters {
    named: [AtomicU64; COUNT],
    batches: [[AtomicU64; SIZES]; Call::ALL.len()],
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            named: [const { AtomicU64::new(0) }; COUNT],
            batches: [const { [const { AtomicU64::new(0) }; SIZES] }; Call::ALL.len()],
        }
    }
}

#[inline]
fn add(cell: &AtomicU64, amount: u64) {
    cell.store(
        cell.load(Ordering::Relaxed).wrapping_add(amount),
        Ordering::Relaxed,
    );
}

impl Counters {
    /// Adds to a counter; for the owning worker only.
    #[inline]
    pub fn add(&self, counter: Counter, amount: u64) {
        add(&self.named[counter as usize], amount);
    }

    /// Counts a call that moved so many packets, at least one; for the owning worker only.
    #[inline]
    pub fn batch(&self, call: Call, packets: u64) {
        add(&self.batches[call as usize][size_of(packets)], 1);
    }

    /// The current value.
    #[must_use]
    pub fn get(&self, counter: Counter) -> u64 {
        self.named[counter as usize].load(Ordering::Relaxed)
    }
}

/// Counters of all workers, added up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Totals {
    named: [u64; COUNT],
    batches: [[u64; SIZES]; Call::ALL.len()],
}

impl Totals {
    /// Adds up.
    #[must_use]
    pub fn of<'a>(workers: impl IntoIterator<Item = &'a Counters>) -> Self {
        let mut totals = Self {
            named: [0; COUNT],
            batches: [[0; SIZES]; Call::ALL.len()],
        };
        for worker in workers {
            let named = totals.named.iter_mut().zip(&worker.named);
            let batches = totals.batches.as_flattened_mut().iter_mut();
            for (total, cell) in named.chain(batches.zip(worker.batches.as_flattened())) {
                *total = total.wrapping_add(cell.load(Ordering::Relaxed));
            }
        }
        totals
    }

    /// Adds what no worker counts.
    #[must_use]
    pub(super) fn with(mut self, counter: Counter, amount: u64) -> Self {
        let total = &mut self.named[counter as usize];
        *total = total.wrapping_add(amount);
        self
    }

    /// One counter.
    #[must_use]
    pub fn get(&self, counter: Counter) -> u64 {
        self.named[counter as usize]
    }

    /// Calls that moved packets, by the size of their batches.
    #[must_use]
    pub const fn batches(&self, call: Call) -> &[u64; SIZES] {
        &self.batches[call as usize]
    }

    /// Sum of all counters of a kind.
    #[must_use]
    pub fn sum(&self, kind: Kind) -> u64 {
        let of_kind = Counter::ALL.iter().filter(|counter| counter.kind() == kind);
        of_kind.map(|counter| self.get(*counter)).sum()
    }
}

impl fmt::Display for Totals {
    /// All counters that are not zero: `tun_read=3 sent=3`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for counter in Counter::ALL
            .iter()
            .filter(|counter| self.get(**counter) > 0)
        {
            write!(f, "{separator}{}={}", counter.label(), self.get(*counter))?;
            separator = " ";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn labels_are_unique_and_follow_their_kind() {
        let labels: HashSet<_> = Counter::ALL.iter().map(|counter| counter.label()).collect();
        assert_eq!(labels.len(), COUNT);
        for counter in Counter::ALL {
            assert_eq!(
                counter.label().starts_with("out_"),
                counter.kind() == Kind::DropOut
            );
            assert_eq!(
                counter.label().starts_with("in_"),
                counter.kind() == Kind::DropIn
            );
        }
    }

    #[test]
    fn totals_add_all_workers() {
        let workers = [Counters::default(), Counters::default()];
        workers[0].add(Counter::InEcn, 2);
        workers[1].add(Counter::InEcn, 3);
        workers[1].add(Counter::InShort, 1);
        workers[1].add(Counter::Sent, 9);
        workers[0].batch(Call::Write, 4);
        workers[1].batch(Call::Write, 3);
        let totals = Totals::of(&workers);
        assert_eq!(totals.get(Counter::InEcn), 5);
        assert_eq!(totals.sum(Kind::DropIn), 6);
        assert_eq!(totals.sum(Kind::Packets), 9);
        assert_eq!(totals.batches(Call::Write)[2], 2);
        assert_eq!(totals.batches(Call::Send), &[0; SIZES]);
    }

    #[test]
    fn a_batch_is_counted_under_the_first_size_that_holds_it() {
        for packets in 1..5000 {
            let size = size_of(packets);
            assert!(largest_of_size(size).is_none_or(|largest| packets <= largest));
            let smaller = size.checked_sub(1).and_then(largest_of_size);
            assert!(smaller.is_none_or(|smaller| packets > smaller), "{packets}");
        }
        assert_eq!(largest_of_size(SIZES - 2), Some(2048));
        assert_eq!(largest_of_size(SIZES - 1), None);
    }
}
