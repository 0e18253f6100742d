//! From received packets to the TUN device: merged where the kernel takes it, one by one
//! where it does not, and what to do when it refuses.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use crate::dataplane::DeviceGone;
use crate::dataplane::counters::{Call, Counter, Counters};
use crate::dataplane::tap::{Direction, Observer};
use crate::offload::coalesce::{
    Coalescer, MAX_MEMBERS, PacketRef, Policy, Write, classify_partial,
};
use crate::offload::segment::{self, SegmentPlan};
use crate::sys::kernel::{self, Version};
use crate::sys::tun::{TunOffload, TunQueue};
use crate::wire::checksum::Checksummer;
use crate::wire::vnet_hdr::{self, VnetHdr};

/// Room that the caller keeps before each packet, for the virtio-net header.
pub const HEADROOM: usize = vnet_hdr::LEN;

/// Pieces of a write that needs few: virtio-net header, headers, and payloads.
const FEW_PIECES: usize = 66;
const MANY_PIECES: usize = MAX_MEMBERS as usize + 2;
/// Longest header block of a segment cut here, for devices without virtio-net header.
const MAX_HEADER_LEN: usize = 256;

/// Writes the packets of a drain to a TUN queue.
pub struct Deliverer {
    tun: Arc<TunQueue>,
    vnet_hdr: bool,
    coalescer: Coalescer,
    mtu: Arc<AtomicU16>,
    counters: Arc<Counters>,
}

impl Deliverer {
    /// A deliverer to this queue of a device with this MTU, which may change. `offload` is what the kernel
    /// knows of super-packets, `vnet_hdr` whether the device has that header.
    #[must_use]
    pub fn new(
        tun: Arc<TunQueue>,
        vnet_hdr: bool,
        offload: TunOffload,
        mtu: Arc<AtomicU16>,
        checksummer: Checksummer,
        counters: Arc<Counters>,
    ) -> Self {
        let mut policy = Policy::new(usize::from(mtu.load(Ordering::Relaxed)), checksummer);
        policy.tcp = vnet_hdr && offload >= TunOffload::Tcp;
        policy.udp = vnet_hdr && offload >= TunOffload::TcpUdp;
        let kernel = kernel::version();
        // UDP_MAX_SEGMENTS grew then.
        policy.udp_max_segments = if kernel >= Version(6, 9, 0) { 128 } else { 64 };
        // Before it, tunnels inside of containers lost UDP super-packets.
        policy.spare_tunnel_ports = kernel < Version(6, 8, 5);
        Self {
            tun,
            vnet_hdr,
            coalescer: Coalescer::new(policy),
            mtu,
            counters,
        }
    }

    /// Takes the next packet; it lies in `arena` until [`Deliverer::flush`].
    pub fn push(&mut self, arena: &[u8], packet: PacketRef) {
        let taken = self.coalescer.push(arena, packet);
        debug_assert!(taken.is_ok(), "the caller's packets lie in its arena");
    }

    /// Takes a packet that must be written behind this header.
    pub fn push_whole(&mut self, arena: &[u8], packet: PacketRef, vnet: VnetHdr) {
        let taken = self.coalescer.push_whole(arena, packet, vnet);
        debug_assert!(taken.is_ok(), "the caller's packets lie in its arena");
    }

    /// Writes everything, or counts what could not be written. Uses [`HEADROOM`] bytes
    /// before each packet. What the device refuses is shown to whoever captures.
    ///
    /// # Errors
    /// Only when the device is gone for good.
    pub fn flush(&mut self, arena: &mut [u8], observer: &Observer) -> Result<(), DeviceGone> {
        if self.coalescer.is_empty() {
            return Ok(());
        }
        let mut policy = self.coalescer.policy();
        let sink = Sink {
            tun: &self.tun,
            vnet_hdr: self.vnet_hdr,
            counters: &self.counters,
            observer,
        };
        let mut outcome = Ok(());
        for write in self.coalescer.writes(arena) {
            if outcome.is_err() {
                // Nothing can be written any more; each packet has its name nonetheless.
                let packets = write.packet_count() as u64;
                self.counters.add(Counter::InDeviceDown, packets);
            } else if write.is_merged() {
                outcome = sink.merged(&write, arena, &mut policy);
            } else if let Some(packet) = write.packets().next() {
                outcome = sink.single(packet, write.vnet, arena, policy.checksummer);
            }
        }
        policy.tun_mtu = usize::from(self.mtu.load(Ordering::Relaxed));
        self.coalescer.set_policy(policy);
        self.coalescer.clear();
        outcome
    }
}

/// The device, and the books.
struct Sink<'a> {
    tun: &'a TunQueue,
    vnet_hdr: bool,
    counters: &'a Counters,
    observer: &'a Observer,
}

impl Sink<'_> {
    /// A packet that is written as it lies, the virtio-net header put before it.
    fn single(
        &self,
        packet: PacketRef,
        vnet: VnetHdr,
        arena: &mut [u8],
        checksummer: Checksummer,
    ) -> Result<(), DeviceGone> {
        let range = packet.range();
        if vnet.needs_csum() {
            self.counters.add(Counter::PartialChecksums, 1);
        }
        if !self.vnet_hdr {
            return self.finished(vnet, &mut arena[range], checksummer);
        }
        let start = range.start - HEADROOM;
        arena[start..range.start].copy_from_slice(&vnet.to_bytes());
        let bytes = range.len();
        let written = self.book(self.tun.write(&arena[start..range.end]), 1, bytes)?;
        self.show(&arena[range], written);
        Ok(())
    }

    /// Finishes here what no virtio-net header can leave to the kernel.
    fn finished(
        &self,
        vnet: VnetHdr,
        packet: &mut [u8],
        checksummer: Checksummer,
    ) -> Result<(), DeviceGone> {
        if !vnet.is_gso() {
            if segment::finish_checksum(&vnet, packet, checksummer).is_err() {
                self.counters.add(Counter::InMalformed, 1);
                self.show(packet, Counter::InMalformed);
                return Ok(());
            }
            let written = self.book(self.tun.write(packet), 1, packet.len())?;
            self.show(packet, written);
            return Ok(());
        }
        let plan = SegmentPlan::new(&vnet, packet)
            .ok()
            .filter(|plan| plan.header_len() <= MAX_HEADER_LEN);
        let Some(plan) = plan else {
            self.counters.add(Counter::InMalformed, 1);
            self.show(packet, Counter::InMalformed);
            return Ok(());
        };
        // It was received as one packet, and more of them are delivered.
        self.counters.add(Counter::UdpRead, plan.count() as u64 - 1);
        let mut block = [0; MAX_HEADER_LEN];
        for number in 0..plan.count() {
            let Ok(payload) = plan.write_header(number, &mut block, checksummer) else {
                self.counters.add(Counter::InMalformed, 1);
                continue;
            };
            let bytes = plan.header_len() + payload.len();
            let pieces = [
                IoSlice::new(&block[..plan.header_len()]),
                IoSlice::new(&packet[payload]),
            ];
            self.book(self.tun.write_gather(&pieces), 1, bytes)
                .inspect_err(|_| {
                    let left = plan.count() - number - 1;
                    self.counters.add(Counter::InDeviceDown, left as u64);
                })?;
        }
        Ok(())
    }

    fn merged(
        &self,
        write: &Write<'_>,
        arena: &mut [u8],
        policy: &mut Policy,
    ) -> Result<(), DeviceGone> {
        let packets = write.packet_count();
        let written = if packets + 2 <= FEW_PIECES {
            self.gather::<FEW_PIECES>(write, arena)
        } else {
            self.gather::<MANY_PIECES>(write, arena)
        };
        match written {
            // Some kernels refuse what they should take (6.6.44, 6.1.103, 6.10): one by
            // one it works, and from now on this kind is not merged any more.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                self.counters.add(Counter::MergeFallbacks, 1);
                let (merges, kind) = match write.vnet.gso_type {
                    vnet_hdr::GSO_UDP_L4 => (&mut policy.udp, "UDP"),
                    _ => (&mut policy.tcp, "TCP"),
                };
                // Others of this drain may have been merged before.
                if std::mem::take(merges) {
                    tracing::warn!(
                        event = "offload_fallback",
                        part = "write",
                        kind,
                        "the kernel refused a merged packet; this kind is written one by one from now on"
                    );
                }
                for (number, packet) in write.packets().enumerate() {
                    let vnet = classify_partial(&arena[packet.range()], policy.tun_mtu);
                    self.single(packet, vnet, arena, policy.checksummer)
                        .inspect_err(|_| {
                            let left = packets - number - 1;
                            self.counters.add(Counter::InDeviceDown, left as u64);
                        })?;
                }
                Ok(())
            }
            written => {
                // Each packet had the header that the merged one has once.
                let header = write.header.len();
                let bytes = written.as_ref().map_or(0, |written| {
                    (written + packets * header).saturating_sub(HEADROOM + header)
                });
                let written = self.book(written, packets as u64, bytes)?;
                if self.observer.is_open() {
                    for packet in write.packets() {
                        self.show(&arena[packet.range()], written);
                    }
                }
                Ok(())
            }
        }
    }

    fn gather<const N: usize>(&self, write: &Write<'_>, arena: &[u8]) -> io::Result<usize> {
        let vnet = write.vnet.to_bytes();
        let mut pieces = [IoSlice::new(&[]); N];
        pieces[0] = IoSlice::new(&vnet);
        pieces[1] = IoSlice::new(write.header);
        let mut used = 2;
        for (slot, range) in pieces[2..].iter_mut().zip(write.pieces()) {
            *slot = IoSlice::new(&arena[range]);
            used += 1;
        }
        self.tun.write_gather(&pieces[..used])
    }

    /// Shows a packet that was not delivered; it was shown before as one that was let in.
    fn show(&self, packet: &[u8], booked: Counter) {
        if booked != Counter::Delivered {
            self.observer
                .show_inner(Direction::In, packet, Some(booked));
        }
    }

    fn book(
        &self,
        written: io::Result<usize>,
        packets: u64,
        bytes: usize,
    ) -> Result<Counter, DeviceGone> {
        self.counters.add(Counter::WriteCalls, 1);
        let counter = match written {
            Ok(_) => {
                self.counters.add(Counter::DeliveredBytes, bytes as u64);
                self.counters.batch(Call::Write, packets);
                Counter::Delivered
            }
            Err(error) => match error.raw_os_error() {
                Some(libc::EBADFD) => {
                    self.counters.add(Counter::InDeviceDown, packets);
                    return Err(DeviceGone(error));
                }
                Some(libc::EIO) => Counter::InDeviceDown,
                _ => Counter::InWriteError,
            },
        };
        self.counters.add(counter, packets);
        Ok(counter)
    }
}
