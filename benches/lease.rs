//! Leases in number, from a real etcd: time to load 5,000, delay from a change to the
//! consumer at 500 changes a second, memory; and a route table of 65,536.
//!
//! Prints figures; the load on etcd and the clock are this machine's. With `--test` it
//! runs once, small.

use std::collections::HashMap;
use std::error::Error;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use uvxlan::route::peer::{Peer, PeerId};
use uvxlan::route::publish::Routes;
use uvxlan::route::table::RouteTable;
use uvxlan::subnet::manager::{PeerChange, Running};
use uvxlan::wire::MacAddr;

#[path = "../tests/support/mod.rs"]
mod support;

use support::etcd::Etcd;
use support::fleet::{follow, key, put_all, resident, subnet, value};

const RATE: u32 = 500;

struct Size {
    leases: u32,
    seconds: u32,
    table: u32,
}

fn main() -> Result<(), Box<dyn Error>> {
    let smoke = std::env::args().any(|argument| argument == "--test");
    let size = match smoke {
        true => Size {
            leases: 200,
            seconds: 1,
            table: 2048,
        },
        false => Size {
            leases: 5000,
            seconds: 20,
            table: 65_536,
        },
    };
    simulate(size.table);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(with_etcd(&size))
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

/// The route table beyond what one etcd and one machine can show.
fn simulate(leases: u32) {
    let peer = |number: u32, mac: u8| {
        let [_, _, a, b] = number.to_be_bytes();
        let address = Ipv4Addr::from_bits(0xac10_0000 + number);
        let mac = MacAddr([2, mac, 0, 0, a, b]);
        Peer::new(SocketAddrV4::new(address, 8472), mac, PeerId(number))
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
