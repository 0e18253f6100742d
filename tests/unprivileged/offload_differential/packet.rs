//! Packets built and parsed byte by byte, independently of the code under test.

use uvxlan::wire::vnet_hdr::VnetHdr;

pub(crate) const FIN: u8 = 0x01;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const PSH: u8 = 0x08;
pub(crate) const ACK: u8 = 0x10;
pub(crate) const URG: u8 = 0x20;
pub(crate) const ECE: u8 = 0x40;
pub(crate) const CWR: u8 = 0x80;

/// Everything in a packet except its payload.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    pub(crate) v6: bool,
    pub(crate) udp: bool,
    /// Last byte of the source address, which distinguishes the flows of a test.
    pub(crate) flow: u8,
    pub(crate) tos: u8,
    pub(crate) ttl: u8,
    pub(crate) id: u16,
    /// The IPv4 flag bits: 0x40 is DF.
    pub(crate) ip_flags: u8,
    pub(crate) dst_port: u16,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) flags: u8,
    pub(crate) window: u16,
    pub(crate) options: Vec<u8>,
}

impl Head {
    pub(crate) fn new(v6: bool, udp: bool) -> Self {
        Self {
            v6,
            udp,
            flow: 1,
            tos: 0,
            ttl: 63,
            id: 0xfffe,
            ip_flags: 0x40,
            dst_port: 5201,
            seq: 0xffff_f000,
            ack: 0x0102_0304,
            flags: ACK,
            window: 502,
            options: Vec::new(),
        }
    }

    pub(crate) fn ip_len(&self) -> usize {
        if self.v6 { 40 } else { 20 }
    }

    pub(crate) fn len(&self) -> usize {
        self.ip_len() + if self.udp { 8 } else { 20 + self.options.len() }
    }

    pub(crate) fn csum_offset(&self) -> usize {
        if self.udp { 6 } else { 16 }
    }

    /// The complete packet.
    pub(crate) fn packet(&self, payload: &[u8]) -> Vec<u8> {
        let mut packet = self.without_checksum(payload);
        seal(&mut packet, true);
        packet
    }

    /// The packet as a kernel passes it on for checksum offload.
    pub(crate) fn partial(&self, payload: &[u8]) -> Vec<u8> {
        let mut packet = self.without_checksum(payload);
        seal(&mut packet, false);
        packet
    }

    fn without_checksum(&self, payload: &[u8]) -> Vec<u8> {
        let transport_len = (self.len() - self.ip_len() + payload.len()) as u16;
        let protocol = if self.udp { 17 } else { 6 };
        let mut packet = Vec::with_capacity(self.len() + payload.len());
        if self.v6 {
            packet.extend([0x60 | self.tos >> 4, self.tos << 4, 0xab, 0xcd]);
            packet.extend(transport_len.to_be_bytes());
            packet.extend([protocol, self.ttl]);
            packet.extend([0xfd, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, self.flow]);
            packet.extend([0xfd, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 9]);
        } else {
            packet.extend([0x45, self.tos]);
            packet.extend((transport_len + 20).to_be_bytes());
            packet.extend(self.id.to_be_bytes());
            packet.extend([self.ip_flags, 0, self.ttl, protocol, 0, 0]);
            packet.extend([10, 244, 1, self.flow, 10, 244, 2, 9]);
        }
        packet.extend([0xc3, 0x50]);
        packet.extend(self.dst_port.to_be_bytes());
        if self.udp {
            packet.extend(transport_len.to_be_bytes());
            packet.extend([0, 0]);
        } else {
            packet.extend(self.seq.to_be_bytes());
            packet.extend(self.ack.to_be_bytes());
            packet.extend([(5 + self.options.len() as u8 / 4) << 4, self.flags]);
            packet.extend(self.window.to_be_bytes());
            packet.extend([0, 0, 0, 0]);
            packet.extend(&self.options);
        }
        packet.extend(payload);
        packet
    }
}

/// The vnet header that a TUN gives a super-packet that starts with `head`.
pub(crate) fn vnet(head: &Head, gso_size: usize) -> VnetHdr {
    let ecn = if head.flags & CWR != 0 && !head.udp {
        0x80
    } else {
        0
    };
    let gso_type = match (head.udp, head.v6) {
        (true, _) => 5,
        (false, false) => 1,
        (false, true) => 4,
    };
    VnetHdr {
        flags: 1,
        gso_type: gso_type | ecn,
        hdr_len: head.len() as u16,
        gso_size: gso_size as u16,
        csum_start: head.ip_len() as u16,
        csum_offset: head.csum_offset() as u16,
    }
}

/// The segments of a super-packet, each built from scratch, with fields incremented by hand.
pub(crate) fn split(head: &Head, payload: &[u8], gso_size: usize) -> Vec<Vec<u8>> {
    let count = payload.chunks(gso_size).count();
    let segment = |(index, chunk): (usize, &[u8])| {
        let mut head = head.clone();
        head.id = head.id.wrapping_add(index as u16);
        head.seq = head.seq.wrapping_add((index * gso_size) as u32);
        if index > 0 {
            head.flags &= !CWR;
        }
        if index + 1 < count {
            head.flags &= !(FIN | PSH);
        }
        head.packet(chunk)
    };
    payload.chunks(gso_size).enumerate().map(segment).collect()
}

/// Splits a merged packet by its bytes and its vnet header alone.
pub(crate) fn resegment(vnet: &VnetHdr, merged: &[u8]) -> Vec<Vec<u8>> {
    let v6 = merged[0] >> 4 == 6;
    let ip_len = usize::from(vnet.csum_start);
    let udp = vnet.csum_offset == 6;
    let head_len = ip_len
        + if udp {
            8
        } else {
            usize::from(merged[ip_len + 12] >> 4) * 4
        };
    let id = u16::from_be_bytes([merged[4], merged[5]]);
    let seq = be32(&merged[ip_len + 4..]);
    let gso_size = usize::from(vnet.gso_size);
    let chunks = merged[head_len..].chunks(gso_size);
    let count = chunks.len();
    let segment = |(index, chunk): (usize, &[u8])| {
        let mut packet = [&merged[..head_len], chunk].concat();
        let total = packet.len() as u16;
        if v6 {
            packet[4..6].copy_from_slice(&(total - 40).to_be_bytes());
        } else {
            packet[2..4].copy_from_slice(&total.to_be_bytes());
            packet[4..6].copy_from_slice(&id.wrapping_add(index as u16).to_be_bytes());
        }
        if udp {
            packet[ip_len + 4..ip_len + 6].copy_from_slice(&(total - ip_len as u16).to_be_bytes());
        } else {
            let seq = seq.wrapping_add((index * gso_size) as u32);
            packet[ip_len + 4..ip_len + 8].copy_from_slice(&seq.to_be_bytes());
            if index + 1 < count {
                packet[ip_len + 13] &= !(FIN | PSH);
            }
        }
        seal(&mut packet, true);
        packet
    };
    chunks.enumerate().map(segment).collect()
}

fn be32(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes[..4].try_into().unwrap())
}

/// Sets both checksums of a packet without IP options: that of the transport completely or, if not
/// `whole`, as the folded pseudo-header sum.
pub(crate) fn seal(packet: &mut [u8], whole: bool) {
    let v6 = packet[0] >> 4 == 6;
    let ip_len = if v6 { 40 } else { 20 };
    if !v6 {
        seal_ipv4(packet);
    }
    let protocol = packet[if v6 { 6 } else { 9 }];
    let at = ip_len + if protocol == 17 { 6 } else { 16 };
    packet[at..at + 2].fill(0);
    let mut pseudo = packet[if v6 { 8..40 } else { 12..20 }].to_vec();
    pseudo.extend([0, protocol]);
    pseudo.extend(((packet.len() - ip_len) as u16).to_be_bytes());
    let check = if whole {
        pseudo.extend(&packet[ip_len..]);
        match !sum(&pseudo) {
            0 if protocol == 17 => 0xffff,
            check => check,
        }
    } else {
        sum(&pseudo)
    };
    packet[at..at + 2].copy_from_slice(&check.to_be_bytes());
}

/// Sets the header checksum of an IPv4 packet without options.
pub(crate) fn seal_ipv4(packet: &mut [u8]) {
    packet[10..12].fill(0);
    let check = !sum(&packet[..20]);
    packet[10..12].copy_from_slice(&check.to_be_bytes());
}

/// RFC 1071, word by word.
fn sum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([
            pair[0],
            pair.get(1).copied().unwrap_or(0),
        ]));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Whether etherparse computes the same checksums as in the packet.
pub(crate) fn check_with_etherparse(packet: &[u8]) -> Result<(), String> {
    use etherparse::{NetHeaders, PacketHeaders, TransportHeader};
    let parsed = PacketHeaders::from_ip_slice(packet).map_err(|error| error.to_string())?;
    let payload = parsed.payload.slice();
    let (found, computed) = match (parsed.net, parsed.transport) {
        (Some(NetHeaders::Ipv4(ip, _)), Some(transport)) => {
            if ip.header_checksum != ip.calc_header_checksum() {
                return Err(format!("IPv4 header checksum of {ip:?}"));
            }
            match transport {
                TransportHeader::Tcp(tcp) => (tcp.checksum, tcp.calc_checksum_ipv4(&ip, payload)),
                TransportHeader::Udp(udp) => (udp.checksum, udp.calc_checksum_ipv4(&ip, payload)),
                other => return Err(format!("{other:?}")),
            }
        }
        (Some(NetHeaders::Ipv6(ip, _)), Some(transport)) => match transport {
            TransportHeader::Tcp(tcp) => (tcp.checksum, tcp.calc_checksum_ipv6(&ip, payload)),
            TransportHeader::Udp(udp) => (udp.checksum, udp.calc_checksum_ipv6(&ip, payload)),
            other => return Err(format!("{other:?}")),
        },
        other => return Err(format!("{other:?}")),
    };
    match computed {
        Ok(computed) if computed == found => Ok(()),
        computed => Err(format!(
            "transport checksum {found:#06x}, computed {computed:?}"
        )),
    }
}
