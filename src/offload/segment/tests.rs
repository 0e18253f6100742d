use super::*;
use etherparse::{
    IpHeaders, Ipv4Header, Ipv6Header, PacketHeaders, TcpHeader, TransportHeader, UdpHeader,
};
use proptest::prelude::*;

#[derive(Debug, Clone)]
struct Super {
    v6: bool,
    tcp: bool,
    options: usize,
    flags: u8,
    sequence: u32,
    identification: u16,
    tos: u8,
    payload: Vec<u8>,
    segment_len: u16,
}

impl Super {
    fn transport_header_len(&self) -> usize {
        if self.tcp { 20 + self.options * 4 } else { 8 }
    }

    fn network_header_len(&self) -> usize {
        if self.v6 { 40 } else { 20 }
    }

    /// One packet with this payload, built and summed by another library.
    fn packet(&self, payload: &[u8], sequence: u32, identification: u16, flags: u8) -> Vec<u8> {
        let len = u16::try_from(self.transport_header_len() + payload.len()).unwrap();
        let protocol = if self.tcp {
            etherparse::IpNumber::TCP
        } else {
            etherparse::IpNumber::UDP
        };
        let (source, destination) = ([10, 0, 0, 1], [10, 0, 1, 2]);
        let mut v4 = Ipv4Header::new(len, 63, protocol, source, destination).unwrap();
        v4.identification = identification;
        v4.dont_fragment = true;
        v4.dscp = etherparse::IpDscp::try_new(self.tos >> 2).unwrap();
        v4.ecn = etherparse::IpEcn::try_new(self.tos & 3).unwrap();
        v4.header_checksum = v4.calc_header_checksum();
        let v6 = Ipv6Header {
            payload_length: len,
            next_header: protocol,
            hop_limit: 63,
            source: [1; 16],
            destination: [2; 16],
            ..Default::default()
        };
        let mut bytes = if self.v6 {
            v6.to_bytes().to_vec()
        } else {
            v4.to_bytes().to_vec()
        };
        if self.tcp {
            let mut header = TcpHeader::new(4000, 5000, sequence, 500);
            header.acknowledgment_number = 77;
            header.ack = flags & tcp::ACK != 0;
            header.fin = flags & tcp::FIN != 0;
            header.psh = flags & tcp::PSH != 0;
            header.cwr = flags & tcp::CWR != 0;
            header.ece = flags & tcp::ECE != 0;
            header.set_options_raw(&vec![1; self.options * 4]).unwrap();
            header.checksum = if self.v6 {
                header.calc_checksum_ipv6(&v6, payload).unwrap()
            } else {
                header.calc_checksum_ipv4(&v4, payload).unwrap()
            };
            bytes.extend(header.to_bytes());
        } else {
            let header = if self.v6 {
                UdpHeader::with_ipv6_checksum(4000, 5000, &v6, payload).unwrap()
            } else {
                UdpHeader::with_ipv4_checksum(4000, 5000, &v4, payload).unwrap()
            };
            bytes.extend(header.to_bytes());
        }
        bytes.extend(payload);
        bytes
    }

    /// The naive cut: one packet after the other.
    fn packets(&self) -> Vec<Vec<u8>> {
        let chunks: Vec<&[u8]> = self.payload.chunks(usize::from(self.segment_len)).collect();
        let last = chunks.len() - 1;
        chunks
            .iter()
            .enumerate()
            .map(|(number, payload)| {
                let mut flags = self.flags;
                if number != last {
                    flags &= !(tcp::FIN | tcp::PSH);
                }
                if number != 0 {
                    flags &= !tcp::CWR;
                }
                let sequence = self
                    .sequence
                    .wrapping_add((number * usize::from(self.segment_len)) as u32);
                self.packet(
                    payload,
                    sequence,
                    self.identification.wrapping_add(number as u16),
                    flags,
                )
            })
            .collect()
    }

    /// The super-packet as the kernel hands it over, with its checksum unfinished.
    fn handed_over(&self) -> (VnetHdr, Vec<u8>) {
        let mut packet = self.packet(
            &self.payload,
            self.sequence,
            self.identification,
            self.flags,
        );
        let start = self.network_header_len();
        let offset = if self.tcp { 16 } else { 6 };
        packet[start + offset..start + offset + 2].copy_from_slice(&[0xde, 0xad]);
        let gso = match (self.tcp, self.v6) {
            (true, false) => GsoKind::TcpV4,
            (true, true) => GsoKind::TcpV6,
            (false, _) => GsoKind::UdpL4,
        };
        let header = VnetHdr {
            flags: crate::wire::vnet_hdr::NEEDS_CSUM,
            gso,
            ecn: self.flags & tcp::CWR != 0,
            hdr_len: 0,
            gso_size: self.segment_len,
            csum_start: start as u16,
            csum_offset: offset as u16,
        };
        (header, packet)
    }
}

prop_compose! {
    fn supers()(
        v6: bool, tcp: bool, options in 0usize..=10,
        flags in prop::sample::select(vec![tcp::ACK, tcp::ACK | tcp::PSH, tcp::ACK | tcp::PSH | tcp::FIN,
            tcp::ACK | tcp::CWR, tcp::ACK | tcp::ECE | tcp::PSH]),
        sequence: u32, identification: u16, tos: u8,
        payload in proptest::collection::vec(any::<u8>(), 1..9000), segment_len in 1u16..1500,
    ) -> Super {
        Super { v6, tcp, options, flags, sequence, identification, tos, payload, segment_len }
    }
}

fn cut(header: &VnetHdr, packet: &[u8]) -> Result<Vec<Vec<u8>>, SegmentError> {
    let cut = Cut::new(header, packet)?;
    Ok((0..cut.count())
        .map(|number| {
            let mut bytes = vec![0; cut.header_len()];
            cut.write_header(number, packet, &mut bytes, Summer::PORTABLE);
            bytes.extend(&packet[cut.payload(number)]);
            bytes
        })
        .collect())
}

proptest! {
    #[test]
    fn cuts_as_one_packet_at_a_time(packet in supers()) {
        let (header, bytes) = packet.handed_over();
        prop_assert_eq!(cut(&header, &bytes).unwrap(), packet.packets());
    }

    #[test]
    fn a_single_packet_is_finished_as_another_library_would(packet in supers()) {
        let whole = packet.packet(&packet.payload, packet.sequence, packet.identification, packet.flags);
        let (header, mut bytes) = packet.handed_over();
        let start = packet.network_header_len();
        let protocol = if packet.tcp { 6 } else { 17 };
        let len = bytes.len() - start;
        let pseudo = if packet.v6 {
            checksum::pseudo_v6([1; 16].into(), [2; 16].into(), protocol, len as u32)
        } else {
            checksum::pseudo_v4([10, 0, 0, 1].into(), [10, 0, 1, 2].into(), protocol, len as u16)
        };
        let at = start + usize::from(header.csum_offset);
        bytes[at..at + 2].copy_from_slice(&pseudo.folded().to_be_bytes());
        finish_checksum(&header, &mut bytes, Summer::PORTABLE).unwrap();
        prop_assert_eq!(bytes, whole);
    }

    #[test]
    fn no_bytes_panic(
        header: [u8; crate::wire::vnet_hdr::LEN],
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        if let Some(header) = VnetHdr::parse(&header) {
            let _ = cut(&header, &bytes);
            let _ = finish_checksum(&header, &mut bytes.clone(), Summer::PORTABLE);
        }
    }

    #[test]
    fn no_damage_to_a_good_packet_panics(
        packet in supers(), at in 0usize..70, value: u8, start in 0u16..80, size in 0u16..100, len in 0usize..120,
    ) {
        let (mut header, mut bytes) = packet.handed_over();
        (header.csum_start, header.gso_size) = (start, size);
        if let Some(byte) = bytes.get_mut(at) {
            *byte = value;
        }
        bytes.truncate(len);
        let _ = cut(&header, &bytes);
    }
}

#[test]
fn a_kernels_64_kib_packet_gives_46_segments() {
    let packet = Super {
        v6: false,
        tcp: true,
        options: 3,
        flags: tcp::ACK | tcp::PSH,
        sequence: u32::MAX - 5000,
        identification: u16::MAX - 3,
        tos: 0,
        payload: (0..46 * 1398u32).map(|i| i as u8).collect(),
        segment_len: 1398,
    };
    let (header, bytes) = packet.handed_over();
    let segments = cut(&header, &bytes).unwrap();
    assert_eq!(segments.len(), 46);
    for segment in &segments {
        let headers = PacketHeaders::from_ip_slice(segment).unwrap();
        assert!(matches!(
            headers.net,
            Some(etherparse::NetHeaders::Ipv4(..))
        ));
        assert!(matches!(headers.transport, Some(TransportHeader::Tcp(_))));
        assert!(IpHeaders::from_slice(segment).is_ok());
    }
}
