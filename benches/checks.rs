//! What the checks on receive cost beside all else that a packet thread does itself for a
//! packet, from the device and to the device, without system calls.
//!
//! `cargo bench --bench checks` shows nanoseconds a packet. Instructions do not depend on what
//! else the machine does; with the path of the program, which the above prints:
//!
//! `valgrind --tool=callgrind --callgrind-out-file=/dev/null PROGRAM policy 2000`
//!
//! and the same with `vxlan` (the frame is taken apart, nobody judges) and with 0 rounds.

use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Instant;

use etherparse::PacketBuilder;
use ipnet::Ipv4Net;
use uvxlan::dataplane::checksum;
use uvxlan::dataplane::inbound::header_checks::{self, LocalVtep};
use uvxlan::dataplane::ingress_policy::{Enforcement, IngressPolicy};
use uvxlan::dataplane::outbound::batch::{self, MessageKey, Span};
use uvxlan::offload::coalesce::{Coalescer, PacketRef, Policy};
use uvxlan::route::peer::{PeerId, RemoteVtep};
use uvxlan::route::publish::{RouteReader, Routes};
use uvxlan::route::table::RouteTable;
use uvxlan::wire::ipv4::Packet;
use uvxlan::wire::vxlan::{ENCAP_LEN, EncapTemplate};
use uvxlan::wire::{MacAddr, Vni, flow};

const OWN: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const PEER: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
const PEER_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const MTU: usize = 1450;
/// Packets of one receive, of as many flows: nothing is merged, so that all else costs least.
const PACKETS: usize = 64;
const PEERS: u32 = 1000;

/// How much is checked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Checks {
    /// The encapsulation is passed over unseen.
    None,
    /// As the kernel's vxlan does, with the inner header's lengths and checksum.
    Vxlan,
    /// And the peer check: who sends, from where inside, to where.
    Policy,
}

struct Bench {
    arena: Vec<u8>,
    places: Vec<PacketRef>,
    policy: IngressPolicy,
    reader: RouteReader,
    coalescer: Coalescer,
    plan: batch::SendPlan,
    template: EncapTemplate,
}

impl Bench {
    fn new() -> Self {
        let network = Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 8);
        let subnet = |number: u32| {
            let address = Ipv4Addr::from_bits(network.network().to_bits() + (number << 8));
            Ipv4Net::new_assert(address, 24)
        };
        let peers = (0..PEERS).map(|number| {
            let address = Ipv4Addr::from_bits(PEER_ADDRESS.to_bits() + number);
            let endpoint = SocketAddrV4::new(address, 8472);
            (
                subnet(number + 1),
                RemoteVtep::new(endpoint, PEER, PeerId(number)),
            )
        });
        let table = RouteTable::empty(network, 24).with(peers);
        let template = EncapTemplate::ipv4(Vni::DEFAULT, PEER);
        let (mut arena, mut places) = (Vec::new(), Vec::new());
        for number in 0..PACKETS {
            arena.extend_from_slice(&template.towards(OWN));
            let offset = arena.len() as u32;
            PacketBuilder::ipv4([10, 0, 1, 2], [10, 0, 0, 9], 63)
                .udp(40_000 + number as u16, 5201)
                .write(&mut arena, &[0x5a; 64])
                .expect("a packet");
            places.push(PacketRef {
                offset,
                len: arena.len() as u32 - offset,
            });
        }
        Self {
            arena,
            places,
            policy: IngressPolicy::new(Enforcement::Enforce, network, subnet(0)),
            reader: Routes::new(table).reader(),
            coalescer: Coalescer::new(Policy::new(MTU, checksum::checksummer())),
            plan: batch::SendPlan::new(64),
            template,
        }
    }

    /// Each packet out and in again.
    fn tick(&mut self, checks: Checks) {
        self.plan.clear();
        self.coalescer.clear();
        for place in &self.places {
            let packet = Packet::new_checked(black_box(&self.arena[place.range()]));
            let Ok(packet) = packet else { return };
            let peer = self.reader.current().lookup(Ipv4Addr::new(10, 0, 1, 2));
            let Some(peer) = peer else { return };
            let key = MessageKey {
                destination: peer.endpoint(),
                bucket: flow::bucket(flow::hash(&packet), 16) as u16,
                ecn: 0,
            };
            black_box(self.template.towards(peer.vtep_mac()));
            let frame = Span {
                start: place.offset - ENCAP_LEN as u32,
                len: place.len + ENCAP_LEN as u32,
            };
            self.plan.push(key, Span::default(), frame);
        }
        black_box(self.plan.messages().len());
        let vtep = LocalVtep {
            vni: Vni::DEFAULT,
            mac: OWN,
        };
        for place in &self.places {
            let range = place.range();
            let frame = black_box(&self.arena[range.start - ENCAP_LEN..range.end]);
            if checks != Checks::None {
                let routes = self.reader.current();
                let known = match checks {
                    Checks::Policy => self.policy.check_sender(routes, black_box(PEER_ADDRESS)),
                    _ => Ok(None),
                };
                let (Ok(packet), Ok(known)) = (header_checks::check_frame(&vtep, frame), known)
                else {
                    return;
                };
                if checks == Checks::Policy {
                    let judged =
                        self.policy
                            .check_packet(routes, PEER_ADDRESS, known.is_none(), &packet);
                    if judged.is_err() {
                        return;
                    }
                }
            }
            let _ = self.coalescer.push(&self.arena, *place);
        }
        assert_eq!(
            black_box(self.coalescer.writes(&self.arena).count()),
            PACKETS
        );
    }

    fn nanoseconds(&mut self, checks: Checks) -> f64 {
        const ROUNDS: u32 = 2000;
        let start = Instant::now();
        for _ in 0..ROUNDS {
            self.tick(checks);
        }
        start.elapsed().as_nanos() as f64 / f64::from(ROUNDS) / PACKETS as f64
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut bench = Bench::new();
    let all = [
        ("none", Checks::None),
        ("vxlan", Checks::Vxlan),
        ("policy", Checks::Policy),
    ];
    if let [name, rounds, ..] = arguments.as_slice()
        && let Some((_, checks)) = all.iter().find(|(known, _)| known == name)
        && let Ok(rounds) = rounds.parse::<u32>()
    {
        for _ in 0..rounds {
            bench.tick(*checks);
        }
        return;
    }
    // `cargo test --benches` runs this too: once is enough then.
    let repeats = if arguments.iter().any(|it| it == "--bench") {
        31
    } else {
        1
    };
    let mut found = all.map(|_| Vec::new());
    for _ in 0..repeats {
        for ((_, checks), found) in all.iter().zip(&mut found) {
            found.push(bench.nanoseconds(*checks));
        }
    }
    for ((name, _), found) in all.iter().zip(&mut found) {
        found.sort_by(f64::total_cmp);
        let [low, middle, high] = [repeats / 10, repeats / 2, repeats - 1 - repeats / 10];
        println!(
            "{name}: {:.1} ns a packet ({:.1} to {:.1})",
            found[middle], found[low], found[high]
        );
    }
    println!("program: {}", std::env::args().next().unwrap_or_default());
}
