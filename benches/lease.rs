//! Leases in number, from a real etcd: time to load 5,000, delay from a change to the
//! consumer at 500 changes a second, memory, first for the manager alone, then for a whole
//! daemon and its kernel's routes; and a set of peers and a route table of 65,536.
//!
//! Prints figures; the load on etcd and the clock are this machine's. With `--test` it
//! runs once, small. An argument without dashes (`daemon`, `manager`, `table`) runs that alone.

use std::collections::HashMap;
use std::error::Error;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use uvxlan::route::peer::{PeerId, RemoteVtep};
use uvxlan::route::publish::Routes;
use uvxlan::route::table::RouteTable;
use uvxlan::subnet::key::SubnetKey;
use uvxlan::subnet::manager::{PeerChange, PeerSet, Running};
use uvxlan::subnet::store::{Listing, Record};
use uvxlan::subnet::validate::Context;
use uvxlan::wire::{MacAddr, Vni};

#[path = "../tests/support/mod.rs"]
mod support;

use support::etcd::Etcd;
use support::fleet::{attrs, follow, key, put_all, resident, subnet, value};
use support::need;
use support::nodes::{NodeUnderTest, eventually, losing_nothing, possible};
use support::scale::{Scale, memory};

const RATE: u32 = 500;

struct Size {
    leases: u32,
    seconds: u32,
    minute: u32,
    table: u32,
}

fn main() -> Result<(), Box<dyn Error>> {
    let smoke = std::env::args().any(|argument| argument == "--test");
    let wanted: Vec<_> = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    let is_wanted = |part: &str| wanted.is_empty() || wanted.iter().any(|it| it == part);
    let size = match smoke {
        true => Size {
            leases: 200,
            seconds: 1,
            minute: 1,
            table: 2048,
        },
        false => Size {
            leases: 5000,
            seconds: 20,
            minute: 60,
            table: 65_536,
        },
    };
    if is_wanted("table") {
        simulate(size.table);
        simulate_peers(size.table);
    }
    if is_wanted("daemon") {
        with_daemons(&size);
    }
    if is_wanted("manager") {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        runtime.block_on(with_etcd(&size))?;
    }
    Ok(())
}

/// A daemon in a network of many, beside another one and a ping between their containers.
fn with_daemons(size: &Size) {
    need!(possible(&["etcd", "etcdctl"]));
    let scale = Scale::new(size.leases);
    let nodes = [scale.start(0), scale.start(1)];
    scale.routes_are_the_stores(&nodes[0]);
    let pid = nodes[0].daemon.as_ref().map_or(0, |daemon| daemon.pid());
    println!(
        "lease/daemon/load: {} leases in {:?} from the store's answer to READY (config, lease, \
         device, peers, routes, rules), memory {} KiB, at most {} KiB",
        size.leases,
        to_ready(&nodes[0]),
        memory(pid).0,
        memory(pid).1,
    );
    eventually("the containers reach each other", || {
        nodes[0].reaches(&nodes[1]) && nodes[1].reaches(&nodes[0])
    });
    let churn = losing_nothing(&nodes, || scale.churn(&nodes[0], RATE, size.minute));
    scale.routes_are_the_stores(&nodes[0]);
    let at = |percent: usize| churn.delays[(churn.delays.len() - 1) * percent / 100];
    println!(
        "lease/daemon/change: {} changes in {:.1?}; {} of them change routes, from before the \
         write to etcd to the kernel's route: p50 {:?} p99 {:?} max {:?}; {} requests of two \
         daemons to etcd; CPU {:.2} s of one daemon; memory {} KiB, at most {} KiB; the ping lost \
         nothing",
        churn.events,
        churn.took,
        churn.delays.len(),
        at(50),
        at(99),
        at(100),
        churn.requests,
        churn.cpu.as_secs_f64(),
        memory(pid).0,
        memory(pid).1,
    );
}

/// How long the node's daemon took from the network config to READY, by its log.
fn to_ready(node: &NodeUnderTest) -> Duration {
    let log = node.log();
    // `2026-11-25T22:34:06.567199Z`: seconds of the day are enough here.
    let at = |event: &str| {
        let line = log.lines().find(|line| line.contains(event))?;
        let clock = line.get(11..26)?;
        let mut parts = clock.split(':').filter_map(|part| part.parse::<f64>().ok());
        Some(parts.next()? * 3600.0 + parts.next()? * 60.0 + parts.next()?)
    };
    let span = at("event=\"ready\"")
        .zip(at("event=\"config\""))
        .map(|(ready, config)| (ready - config).max(0.0));
    Duration::from_secs_f64(span.unwrap_or_default())
}

async fn with_etcd(size: &Size) -> Result<(), Box<dyn Error>> {
    let Some(etcd) = Etcd::start(None).await else {
        return Ok(());
    };
    let mut client = etcd.client().await;
    put_all(
        &mut client,
        (1..=size.leases).map(|n| (key(n), value(n, 0))),
    )
    .await;
    let (before, start) = (resident(), Instant::now());
    let stop = CancellationToken::new();
    let mut running = follow(Arc::new(etcd.store()), &stop).await;
    let first = running.changes.recv().await.ok_or("the manager ended")?;
    assert_eq!(first.len(), size.leases as usize, "all leases are seen");
    println!(
        "lease/load: {} leases in {:?} from the first request, memory {} KiB before, {} KiB after",
        size.leases,
        start.elapsed(),
        before,
        resident()
    );
    let delays = churn(size, &mut client, &mut running).await?;
    let at = |percent: usize| delays[(delays.len() - 1) * percent / 100];
    println!(
        "lease/change: {} changes at {RATE}/s, from before the put to the consumer: \
         p50 {:?} p99 {:?} max {:?}, memory {} KiB",
        delays.len(),
        at(50),
        at(99),
        at(100),
        resident()
    );
    stop.cancel();
    running.task.await?;
    Ok(())
}

/// Writes at a steady rate while the consumer takes the time of each change.
async fn churn(
    size: &Size,
    client: &mut etcd_client::Client,
    running: &mut Running,
) -> Result<Vec<Duration>, Box<dyn Error>> {
    let total = size.seconds * RATE;
    let mut writer = client.clone();
    let leases = size.leases;
    let (sent, mut times) = tokio::sync::mpsc::unbounded_channel();
    let writing = tokio::spawn(async move {
        let mut tick = tokio::time::interval(Duration::from_secs(1) / RATE);
        for change in 0..total {
            tick.tick().await;
            let number = change % leases + 1;
            let generation = (change / leases + 1) as u8;
            let _ = sent.send(((subnet(number), generation), Instant::now()));
            writer
                .put(key(number), value(number, generation), None)
                .await?;
        }
        Ok::<_, etcd_client::Error>(())
    });
    let mut begun = HashMap::new();
    let mut delays = Vec::new();
    while delays.len() < total as usize {
        let next = running.changes.recv();
        let changes = tokio::time::timeout(Duration::from_secs(60), next).await?;
        let now = Instant::now();
        while let Ok((what, when)) = times.try_recv() {
            begun.insert(what, when);
        }
        for change in changes.ok_or("the manager ended")? {
            let PeerChange::Updated { new, .. } = change else {
                return Err(format!("unexpected {change:?}").into());
            };
            let what = (new.subnet, new.vxlan.vtep_mac.0[1]);
            let when = begun.remove(&what).ok_or("a change that nobody made")?;
            delays.push(now - when);
        }
    }
    writing.await??;
    delays.sort_unstable();
    Ok(delays)
}

/// Public addresses that come in no order, as those of real hosts do.
fn scattered(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0xac10_0000 + (number.reverse_bits() >> 16))
}

/// The set of peers beyond what one etcd and one machine can show.
fn simulate_peers(leases: u32) {
    let record = |number: u32, generation: u8| {
        let mut attrs = attrs(number, generation);
        attrs.public_ip = scattered(number);
        Record {
            name: SubnetKey::from(subnet(number)).to_string(),
            value: attrs.encode().expect("JSON").into(),
            revision: i64::from(number) + 1,
            created: i64::from(number) + 1,
            expires: true,
        }
    };
    let listing = Listing {
        records: (1..leases).map(|number| record(number, 0)).collect(),
        revision: i64::from(leases),
    };
    let context = Context {
        network: "10.0.0.0/8".parse().expect("a network"),
        vni: Vni::DEFAULT,
    };
    let own = Ipv4Addr::new(192, 0, 2, 1);
    let mut set = PeerSet::new(subnet(0), own, context).with_subnet_len(24);
    let again = listing.clone();
    let (before, start) = (resident(), Instant::now());
    let added = set.resync(listing).len();
    let built = start.elapsed();
    let memory = resident().saturating_sub(before);
    assert_eq!(added, leases as usize - 1, "all are peers");
    const CHANGES: u32 = 1000;
    let start = Instant::now();
    for number in 1..=CHANGES {
        assert_eq!(set.put(record(number, 1)).len(), 1, "a change");
    }
    let one = start.elapsed() / CHANGES;
    let start = Instant::now();
    assert_eq!(set.resync(again).len(), CHANGES as usize, "changed back");
    println!(
        "lease/peers: {added} peers taken in in {built:?}, {memory} KiB more, one change {one:?}, \
         compared with a whole list in {:?}",
        start.elapsed()
    );
}

/// The route table beyond what one etcd and one machine can show.
fn simulate(leases: u32) {
    let peer = |number: u32, mac: u8| {
        let [_, _, a, b] = number.to_be_bytes();
        let address = scattered(number);
        let mac = MacAddr([2, mac, 0, 0, a, b]);
        RemoteVtep::new(SocketAddrV4::new(address, 8472), mac, PeerId(number))
    };
    let network = "10.0.0.0/8".parse().expect("a network");
    let before = resident();
    let start = Instant::now();
    let routes = Routes::new(RouteTable::empty(network, 24));
    routes.apply((0..leases).map(|number| (subnet(number), peer(number, 0))));
    let built = start.elapsed();
    let memory = resident().saturating_sub(before);
    assert_eq!(
        routes.current().len(),
        leases as usize,
        "all leases are routed"
    );
    let start = Instant::now();
    const CHANGES: u32 = 50;
    for change in 0..CHANGES {
        routes.apply([(subnet(change), peer(change, 1))]);
    }
    let one = start.elapsed() / CHANGES;
    println!(
        "lease/table: {leases} routes built in {built:?}, {memory} KiB more, one change {one:?}"
    );
}
