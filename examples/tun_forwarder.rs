//! Forwards packets between two TUN devices through a VXLAN tunnel in memory.
//!
//! ```text
//! sudo cargo run --example tun_forwarder -- tunA tunB &
//! sudo ip addr add 10.9.1.1/32 dev tunA && sudo ip link set tunA up && sudo ip route add 10.9.2.0/24 dev tunA
//! sudo ip link set tunB up && sudo tcpdump -ni tunB &
//! ping -c 3 10.9.2.1
//! ```
//!
//! Each packet is encapsulated as for another host, checked as that host would check it, and
//! leaves through the other device.

use std::net::Ipv4Addr;
use std::os::fd::AsFd;

use anyhow::Context;
use uvxlan::dataplane::inbound::header_checks::{self, LocalVtep};
use uvxlan::sys::poll;
use uvxlan::sys::tun::{self, Tun, TunOffload, TunOptions, TunQueue, VNET_HDR_LEN};
use uvxlan::wire::ipv4::Packet;
use uvxlan::wire::vxlan::{ENCAP_LEN, EncapTemplate};
use uvxlan::wire::{MacAddr, Vni};

const LEFT: LocalVtep = LocalVtep {
    vni: Vni::DEFAULT,
    mac: MacAddr([2, 0, 0, 0, 0, 1]),
};
const RIGHT: LocalVtep = LocalVtep {
    vni: Vni::DEFAULT,
    mac: MacAddr([2, 0, 0, 0, 0, 2]),
};
const LONGEST: usize = 65_535;

fn main() -> anyhow::Result<()> {
    let mut names = std::env::args().skip(1);
    let (Some(left), Some(right)) = (names.next(), names.next()) else {
        anyhow::bail!("usage: tun_forwarder DEVICE DEVICE");
    };
    let (left, right) = (device(left)?, device(right)?);
    loop {
        let ready = [left.queues[0].as_fd(), right.queues[0].as_fd()];
        poll::wait_readable(ready, None)?;
        while forward(&left, LEFT, &right, RIGHT)? || forward(&right, RIGHT, &left, LEFT)? {}
    }
}

fn device(name: String) -> anyhow::Result<Tun> {
    let options = TunOptions {
        name,
        queues: 1,
        offload: TunOffload::None,
    };
    tun::open(&options).context("opening a TUN device")
}

/// Moves one packet; returns false if there is none.
fn forward(
    from: &Tun,
    source: LocalVtep,
    to: &Tun,
    destination: LocalVtep,
) -> anyhow::Result<bool> {
    // The encapsulation overwrites the virtio-net header and the bytes before it.
    let mut frame = [0; ENCAP_LEN + LONGEST];
    let header = if from.vnet_hdr { VNET_HDR_LEN } else { 0 };
    let len = match from.queues[0].read(&mut frame[ENCAP_LEN - header..]) {
        Ok(len) => len - header,
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(false),
        Err(error) => return Err(error).context("reading a TUN device"),
    };
    let template = EncapTemplate::ipv4(source.vni, source.mac);
    frame[..ENCAP_LEN].copy_from_slice(&template.towards(destination.mac));
    match header_checks::check_frame(&destination, &frame[..ENCAP_LEN + len]) {
        Ok(packet) => {
            println!(
                "{} -> {} ({} bytes)",
                packet.source(),
                packet.destination(),
                packet.total_len()
            );
            deliver(&to.queues[0], to.vnet_hdr, &packet)?;
        }
        Err(reason) => println!("dropped: {}", reason.label()),
    }
    Ok(true)
}

fn deliver(queue: &TunQueue, vnet_hdr: bool, packet: &Packet<'_>) -> anyhow::Result<()> {
    let header = [0; VNET_HDR_LEN];
    let header = if vnet_hdr { &header[..] } else { &[] };
    let pieces = [
        std::io::IoSlice::new(header),
        std::io::IoSlice::new(packet.bytes()),
    ];
    queue.write_gather(&pieces).with_context(|| {
        let to: Ipv4Addr = packet.destination();
        format!("writing a packet for {to}; is the device up?")
    })?;
    Ok(())
}
