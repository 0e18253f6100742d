//! One end of a tunnel: the packet loop with a fixed list of peers and no datastore.
//!
//! ```text
//! static_tunnel DEVICE NETWORK/SUBNET_LEN OWN_MAC LOCAL_IP SUBNET=PEER_IP/PEER_MAC...
//! # on 192.0.2.1
//! static_tunnel vx0 10.9.0.0/16/24 02:00:00:00:00:01 192.0.2.1 10.9.2.0/24=192.0.2.2/02:00:00:00:00:02
//! ip addr add 10.9.1.0/32 dev vx0; ip link set vx0 mtu 1450 up; ip route add 10.9.2.0/24 dev vx0
//! ```
//!
//! Stops at end of input (Ctrl-D) and prints its counters.

use std::io::Read;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use anyhow::Context;
use ipnet::Ipv4Net;
use uvxlan::dataplane::counters::Counter;
use uvxlan::dataplane::inbound::header_checks::LocalVtep;
use uvxlan::dataplane::ingress_policy::IngressPolicy;
use uvxlan::dataplane::tap::Taps;
use uvxlan::dataplane::{Dataplane, Options, Tuning};
use uvxlan::route::peer::{PeerId, RemoteVtep};
use uvxlan::route::publish::Routes;
use uvxlan::route::table::RouteTable;
use uvxlan::sys::tun::{self, TunOffload, TunOptions};
use uvxlan::wire::vxlan::DEFAULT_PORT;
use uvxlan::wire::{MacAddr, Vni};

const USAGE: &str =
    "usage: static_tunnel DEVICE NETWORK/SUBNET_LEN OWN_MAC LOCAL_IP SUBNET=PEER_IP/PEER_MAC...";

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [device, network, mac, local, peers @ ..] = arguments.as_slice() else {
        anyhow::bail!(USAGE);
    };
    let (network, subnet_len) = network.rsplit_once('/').context(USAGE)?;
    let table = RouteTable::empty(network.parse()?, subnet_len.parse()?);
    let changes = peers
        .iter()
        .enumerate()
        .map(|(number, text)| peer(number, text))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let options = TunOptions {
        name: device.clone(),
        queues: 2,
        offload: TunOffload::TcpUdp,
    };
    let options_loop = Options {
        vtep: LocalVtep {
            vni: Vni::DEFAULT,
            mac: mac.parse::<MacAddr>()?,
        },
        mtu: 1450,
        source: local.parse::<Ipv4Addr>()?,
        receive: SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, DEFAULT_PORT),
        routes: Routes::new(table.with(changes)),
        ingress_policy: IngressPolicy::off(),
        tuning: Tuning {
            spin: Duration::ZERO,
            ..Tuning::default()
        },
        taps: Taps::default(),
        probes: None,
    };
    let dataplane = Dataplane::start(tun::open(&options)?, &options_loop, |gone| {
        eprintln!("{gone}")
    })?;
    println!(
        "running with {} workers; end of input stops",
        dataplane.workers()
    );
    std::io::stdin().read_to_end(&mut Vec::new())?;
    let totals = dataplane.totals();
    for counter in Counter::ALL
        .iter()
        .filter(|counter| totals.get(**counter) > 0)
    {
        println!("{:>20} {}", counter.label(), totals.get(*counter));
    }
    Ok(())
}

fn peer(number: usize, text: &str) -> anyhow::Result<(Ipv4Net, Option<RemoteVtep>)> {
    let (subnet, rest) = text.split_once('=').context(USAGE)?;
    let (address, mac) = rest.split_once('/').context(USAGE)?;
    let endpoint = SocketAddrV4::new(address.parse()?, DEFAULT_PORT);
    let id = PeerId(u32::try_from(number)?);
    Ok((subnet.parse()?, RemoteVtep::new(endpoint, mac.parse()?, id)))
}
