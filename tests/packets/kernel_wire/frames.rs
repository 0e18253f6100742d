//! Captured frames, and the golden files, whose tests need neither privileges nor kernel vxlan.

use std::fs;
use std::path::{Path, PathBuf};

use etherparse::{IpNumber, Ipv4Header, UdpHeader};
use uvxlan::dataplane::inbound::header_checks::{self, LocalVtep};
use uvxlan::wire::Vni;
use uvxlan::wire::vxlan::{DEFAULT_PORT, ENCAP_LEN, EncapTemplate};

use crate::support::inner::{self, Sample, samples};
use crate::support::wire::{KERNEL_MAC, OUR_MAC, kernel_subnet, our_subnet};

/// Longer frames are left out: they show nothing more.
const LONGEST_GOLDEN: usize = 250;
/// Set to rewrite the golden files.
const WRITE: &str = "UVXLAN_WRITE_GOLDEN";

/// A captured tunnel datagram, parsed by an independent library.
#[derive(Debug, Clone)]
pub(crate) struct Outer {
    /// The outer IPv4 header.
    pub(crate) ip: Ipv4Header,
    /// The outer UDP header.
    pub(crate) udp: UdpHeader,
    /// VXLAN header and inner frame.
    pub(crate) payload: Vec<u8>,
    bytes: Vec<u8>,
}

impl Outer {
    /// Parses a captured IPv4 packet; `None` if it is not complete UDP over IPv4.
    pub(crate) fn of(bytes: Vec<u8>) -> Option<Self> {
        let (ip, rest) = Ipv4Header::from_slice(&bytes).ok()?;
        if ip.protocol != IpNumber::UDP {
            return None;
        }
        let (udp, payload) = UdpHeader::from_slice(rest).ok()?;
        let payload = payload.to_vec();
        Some(Self {
            ip,
            udp,
            payload,
            bytes,
        })
    }

    /// The inner packet, from its IPv4 header on; empty if the frame is too short.
    pub(crate) fn inner(&self) -> &[u8] {
        self.payload.get(ENCAP_LEN..).unwrap_or_default()
    }

    /// Both headers without what may differ between two senders: identification, source port and
    /// the checksums, which depend on them.
    pub(crate) fn fixed(&self) -> Vec<u8> {
        let mut header = self.bytes[..28].to_vec();
        for field in [4..6, 10..12, 20..22, 26..28] {
            header[field].fill(0);
        }
        header
    }
}

fn golden_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/packets/kernel_wire/golden")
}

/// Writes the kernel's frames to the golden files, if that was requested.
pub(crate) fn write_golden(samples: &[Sample], outers: &[Outer], finished: bool) {
    if std::env::var_os(WRITE).is_none() {
        return;
    }
    assert!(finished, "golden frames need complete checksums");
    for (sample, outer) in samples.iter().zip(outers) {
        if outer.bytes.len() <= LONGEST_GOLDEN {
            let path = golden_dir().join(format!("{}.hex", sample.name));
            fs::write(path, to_hex(&outer.bytes)).unwrap();
        }
    }
}

fn to_hex(bytes: &[u8]) -> String {
    let line = |chunk: &[u8]| {
        chunk
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    };
    let lines: Vec<String> = bytes.chunks(32).map(line).collect();
    lines.join("\n") + "\n"
}

fn from_hex(text: &str) -> Vec<u8> {
    let digits: String = text.split_whitespace().collect();
    let pairs = digits.as_bytes().chunks(2);
    let pairs = pairs.map(|pair| std::str::from_utf8(pair).unwrap());
    pairs
        .map(|pair| u8::from_str_radix(pair, 16).unwrap())
        .collect()
}

/// Our encapsulation of a sample after its host has forwarded it.
fn encoded(sample: &Sample) -> Vec<u8> {
    let encapsulation = EncapTemplate::ipv4(Vni::DEFAULT, KERNEL_MAC).towards(OUR_MAC);
    [&encapsulation, sample.bytes.as_slice()].concat()
}

#[test]
fn our_encoder_reproduces_the_golden_frames_and_our_checks_accept_them() {
    let address = |net: ipnet::Ipv4Net| net.hosts().nth(1).unwrap();
    let (from, to) = (address(kernel_subnet()), address(our_subnet()));
    let vtep = LocalVtep {
        vni: Vni::DEFAULT,
        mac: OUR_MAC,
    };
    let mut compared = 0;
    for sample in samples(from, to, inner::TTL - 1) {
        let path = golden_dir().join(format!("{}.hex", sample.name));
        if 28 + ENCAP_LEN + sample.bytes.len() > LONGEST_GOLDEN {
            continue;
        }
        let text = fs::read_to_string(&path)
            .unwrap_or_else(|error| panic!("golden frame {}: {error}", sample.name));
        let outer = Outer::of(from_hex(&text)).unwrap();
        assert_eq!(outer.udp.destination_port, DEFAULT_PORT);
        assert_eq!(outer.payload, encoded(&sample), "{}", sample.name);
        let packet = header_checks::check_frame(&vtep, &outer.payload);
        let packet = packet.unwrap_or_else(|reason| panic!("{}: {reason:?}", sample.name));
        assert_eq!(packet.bytes(), sample.bytes, "{}", sample.name);
        compared += 1;
    }
    assert!(compared >= 15, "only {compared} golden frames");
}
