//! Counters: every packet ends in exactly one of them.
//!
//! Between two drains of a worker, `tun_read = sent + Σ drops out` and
//! `udp_read = delivered + probes_in + Σ drops in`. A super-packet counts as its segments.
//! Only one that a kernel peer on this machine sends unsegmented counts as one, in and out.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[doc = $doc:literal])* $name:ident => $label:literal, $kind:ident;)*) => {
        /// A counter.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Counter { $($(#[doc = $doc])* $name,)* }

        impl Counter {
            /// All counters, in the order of display.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The stable name in metrics and JSON.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self { $(Self::$name => $label,)* }
            }

            /// A description for people.
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
    /// Packets received or sent.
    Packets,
    /// Dropped packets from the TUN device.
    DropOut,
    /// Dropped packets from the tunnel.
    DropIn,
    /// Bytes received or sent.
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
    /// Probe messages of peers, passed to the control side: no tunnel traffic.
    ProbesIn => "probes_in", Packets;
    /// Bytes of the inner packets handed to a UDP socket.
    SentBytes => "sent_bytes", Bytes;
    /// Bytes of the packets written to the TUN device.
    DeliveredBytes => "delivered_bytes", Bytes;

    /// Not a complete IPv4 packet, or an invalid virtio-net header.
    OutMalformed => "out_malformed", DropOut;
    /// Not IPv4: the overlay carries nothing else yet.
    OutNotIpv4 => "out_not_ipv4", DropOut;
    /// Multicast or broadcast, which the overlay does not deliver.
    OutNotUnicast => "out_not_unicast", DropOut;
    /// No lease covers the destination.
    OutNoRoute => "out_no_route", DropOut;
    /// Larger than the MTU of the path to the peer (EMSGSIZE).
    OutTooBig => "out_too_big", DropOut;
    /// The socket's buffer or the device's queue stayed full (EAGAIN, ENOBUFS).
    OutQueueFull => "out_queue_full", DropOut;
    /// No route to the peer's address (ENETUNREACH, EHOSTUNREACH, ENETDOWN).
    OutUnreachable => "out_unreachable", DropOut;
    /// A firewall rule refused it (EPERM).
    OutForbidden => "out_forbidden", DropOut;
    /// Any other error of the socket.
    OutSendError => "out_send_error", DropOut;

    /// Longer than any datagram of this tunnel; truncated by the kernel.
    InTruncated => "in_truncated", DropIn;
    /// Shorter than VXLAN, Ethernet and IP headers.
    InShort => "in_short", DropIn;
    /// The VXLAN flag for a valid VNI is not set.
    InNoVni => "in_no_vni", DropIn;
    /// Reserved VXLAN bits are set.
    InReservedBits => "in_reserved_bits", DropIn;
    /// VNI of another network.
    InOtherVni => "in_other_vni", DropIn;
    /// Inner destination MAC is not ours.
    InOtherMac => "in_other_mac", DropIn;
    /// Inner source MAC is our own: a loop.
    InOwnMac => "in_own_mac", DropIn;
    /// Inner frame is not IPv4 (ARP, VLAN tag, IPv6).
    InNotIpv4 => "in_not_ipv4", DropIn;
    /// The ethertype of a probe, but no complete probe behind it.
    InProbeMalformed => "in_probe_malformed", DropIn;
    /// More probe messages in a second than a peer sends, or than the queue holds.
    InProbeFlood => "in_probe_flood", DropIn;
    /// Inner IPv4 header invalid or truncated.
    InMalformed => "in_malformed", DropIn;
    /// Checksum of the inner IPv4 header wrong.
    InHeaderChecksum => "in_header_checksum", DropIn;
    /// From an address that has no lease and is not in `--allow-peer`.
    InUnknownPeer => "in_unknown_peer", DropIn;
    /// On another interface than the chosen one, with `--receive-on=interface`.
    InOtherInterface => "in_other_interface", DropIn;
    /// From an inner address outside of the sending peer's subnet.
    InForeignSource => "in_foreign_source", DropIn;
    /// To an inner address outside of our subnet.
    InForeignDestination => "in_foreign_destination", DropIn;
    /// From or to a loopback, link-local, multicast, reserved or broadcast address.
    InMartian => "in_martian", DropIn;
    /// With a source route, which would bypass the rules for destinations.
    InSourceRoute => "in_source_route", DropIn;
    /// Congestion marked in the outer header, but the flow is not capable of ECN.
    InEcn => "in_ecn", DropIn;
    /// The TUN device is down or gone (EIO, EBADFD).
    InDeviceDown => "in_device_down", DropIn;
    /// The kernel had no memory, or refused the packet.
    InWriteError => "in_write_error", DropIn;

    /// System calls that sent packets.
    SendCalls => "send_calls", Event;
    /// System calls that received packets.
    ReceiveCalls => "receive_calls", Event;
    /// Datagrams that the kernel dropped at the tunnel port: refused by the socket filter, or
    /// the receive buffer was full.
    SocketDrops => "socket_drops", Event;
    /// Datagrams that the kernel dropped because the receive buffer of a UDP socket was full.
    /// It counts all UDP sockets of this host, so it is an upper bound for the tunnel port.
    SocketNoRoom => "socket_no_room", Event;
    /// Packets of containers that the kernel dropped because the device's queue was full.
    TunOverflow => "tun_overflow", Event;
    /// Messages that were sent again without segmentation by the kernel.
    SegmentFallbacks => "segment_fallbacks", Event;
    /// Packets that a kernel peer on this machine sent with a partial checksum.
    PartialChecksums => "partial_checksums", Event;
    /// Packets that violate the peer check, but passed because of `--peer-check=log`.
    PassedUnchecked => "passed_unchecked", Event;
    /// ICMP messages that told a sender the MTU of the path.
    IcmpSent => "icmp_sent", Event;
    /// System calls that wrote packets to the device.
    WriteCalls => "write_calls", Event;
    /// Merged packets that the kernel refused, so that they were written one by one.
    MergeFallbacks => "merge_fallbacks", Event;
    /// Probes sent through the tunnel.
    ProbesSent => "probes_sent", Event;
    /// Probes of peers that were answered.
    ProbesAnswered => "probes_answered", Event;
    /// Repeated probes, which are not answered again.
    ProbeReplays => "probe_replays", Event;
    /// Probes beyond the rate limit of a peer, which are not answered.
    ProbeExcess => "probe_excess", Event;
    /// Probe messages that match nothing: replies without a request, with another nonce or too
    /// late; from another MAC than the lease's, or from a lease that does not announce probes.
    ProbeStrays => "probe_strays", Event;
}

const COUNT: usize = Counter::ALL.len();

/// A kind of system call that moves packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// Sends to peers.
    Send,
    /// Receives from peers.
    Receive,
    /// Writes to the device.
    Write,
}

impl Call {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Send, Self::Receive, Self::Write];

    /// The stable name in metrics.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Send => "send",
            Self::Receive => "receive",
            Self::Write => "write",
        }
    }
}

/// Buckets of the batch sizes: 1, 2, up to 4, up to 8, and so on up to 2048, and larger.
pub const SIZES: usize = 13;

/// Largest batch in a bucket. The last bucket has no limit.
#[must_use]
pub const fn largest_of_size(size: usize) -> Option<u64> {
    if size + 1 < SIZES {
        Some(1 << size)
    } else {
        None
    }
}

/// The bucket of a batch.
#[inline]
fn size_of(packets: u64) -> usize {
    let bits = u64::BITS - packets.saturating_sub(1).leading_zeros();
    (bits as usize).min(SIZES - 1)
}

/// One worker's counters. Only the worker writes, any thread may read. A write is a plain load
/// and store: no locked instruction, and no cache line shared with another worker.
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
    /// Adds to a counter. Only the owning worker may call it.
    #[inline]
    pub(super) fn add(&self, counter: Counter, amount: u64) {
        add(&self.named[counter as usize], amount);
    }

    /// Counts a call that moved at least one packet. Only the owning worker may call it.
    #[inline]
    pub(super) fn batch(&self, call: Call, packets: u64) {
        add(&self.batches[call as usize][size_of(packets)], 1);
    }

    pub(super) fn get(&self, counter: Counter) -> u64 {
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
    /// Adds up the counters of workers.
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

    /// Adds a number that no worker counts.
    #[must_use]
    pub(super) fn with(mut self, counter: Counter, amount: u64) -> Self {
        let total = &mut self.named[counter as usize];
        *total = total.wrapping_add(amount);
        self
    }

    /// The value of a counter.
    #[must_use]
    pub fn get(&self, counter: Counter) -> u64 {
        self.named[counter as usize]
    }

    /// Number of calls for each bucket of batch sizes.
    #[must_use]
    pub const fn batches(&self, call: Call) -> &[u64; SIZES] {
        &self.batches[call as usize]
    }

    /// The sum of all counters of a kind.
    #[must_use]
    pub fn sum(&self, kind: Kind) -> u64 {
        let of_kind = Counter::ALL.iter().filter(|counter| counter.kind() == kind);
        of_kind.map(|counter| self.get(*counter)).sum()
    }
}

impl fmt::Display for Totals {
    /// Counters that are not zero: `tun_read=3 sent=3`.
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
