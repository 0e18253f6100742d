//! Pings the peers through the tunnel: echo requests of three sizes to the network address of each
//! subnet, which every VTEP of flannel's and ours has on its device.

use std::io;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use super::status;
use crate::control::{PeerState, PeerStatus, Status};
use crate::doctor::facts::{EchoSize, Facts, Reachability};
use crate::host::echo::{EchoResult, EchoSocket, HEADERS, SMALL};

/// Most peers to ping, all at once.
const MAX_PEERS: usize = 32;
/// Most requests of one size; the first reply ends them.
const TRIES: u32 = 3;
const REPLY_TIMEOUT: Duration = Duration::from_millis(700);
/// How long to listen for a peer that does not reply: daemons probe each other every five seconds.
const LISTEN_TIME: Duration = Duration::from_secs(7);
/// The middle one of the sizes. IPv6 requires it of every link, so any path should carry it.
const MIDDLE: u32 = 1280;

/// Pings the peers of a daemon that serves.
pub(super) async fn ping(socket: &Path, facts: &Facts) -> Result<Vec<Reachability>, String> {
    let Some(before) = facts.status() else {
        return Err("only a running daemon has peers to ping".into());
    };
    let Some(node) = &before.node else {
        return Err("the daemon serves no subnet yet".into());
    };
    let (own, mtu) = (node.subnet.network(), u32::from(node.mtu));
    let threads: Vec<_> = before
        .peers
        .iter()
        .filter(|peer| peer.state != PeerState::Blocked)
        .take(MAX_PEERS)
        .map(|peer| {
            let peer = peer.clone();
            tokio::task::spawn_blocking(move || ping_peer(own, mtu, &peer))
        })
        .collect();
    let mut reached = Vec::new();
    for thread in threads {
        let pinged = thread.await.map_err(|error| error.to_string())?;
        reached.push(pinged.map_err(|error| format!("cannot send echo requests: {error}"))?);
    }
    if reached.iter().any(Reachability::is_mute) {
        listen(socket, before, &mut reached).await;
    }
    Ok(reached)
}

fn ping_peer(own: Ipv4Addr, mtu: u32, peer: &PeerStatus) -> io::Result<Reachability> {
    let mut socket = EchoSocket::open(own)?;
    let to = peer.subnet.network();
    let small = u32::try_from(SMALL + HEADERS).unwrap_or(MIDDLE);
    let mut sizes = vec![small, MIDDLE.min(mtu), mtu.max(small)];
    sizes.dedup();
    let mut reach = Reachability {
        subnet: peer.subnet,
        public_ip: peer.public_ip,
        sizes: Vec::new(),
        largest: None,
        heard: false,
    };
    for bytes in sizes {
        // If no small packet passes, larger ones need not be tried.
        if reach.is_mute() && !reach.sizes.is_empty() {
            break;
        }
        reach.sizes.push(EchoSize {
            bytes,
            answered: passes(&mut socket, to, bytes)?,
        });
    }
    if let Some((good, bad)) = reach.limits() {
        reach.largest = Some(largest(good, bad, |bytes| passes(&mut socket, to, bytes))?);
    }
    Ok(reach)
}

fn passes(socket: &mut EchoSocket, to: Ipv4Addr, bytes: u32) -> io::Result<bool> {
    let length = usize::try_from(bytes).unwrap_or(usize::MAX);
    for _ in 0..TRIES {
        if let EchoResult::Reply { .. } = socket.ping(to, length, REPLY_TIMEOUT)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Finds the largest size that passes, between one that does and one that does not.
fn largest(
    mut good: u32,
    mut bad: u32,
    mut passes: impl FnMut(u32) -> io::Result<bool>,
) -> io::Result<u32> {
    while bad - good > 1 {
        let middle = good + (bad - good) / 2;
        if passes(middle)? {
            good = middle;
        } else {
            bad = middle;
        }
    }
    Ok(good)
}

/// Waits for packets from the peers that did not reply.
async fn listen(socket: &Path, before: &Status, reached: &mut [Reachability]) {
    let received = |status: &Status, reach: &Reachability| {
        let peer = status
            .peers
            .iter()
            .find(|peer| peer.subnet == reach.subnet)?;
        Some((peer.in_packets, peer.seen_seconds_ago))
    };
    let start = Instant::now();
    let deadline = start + LISTEN_TIME;
    loop {
        let path = socket.to_owned();
        if let Ok(Ok(now)) = tokio::task::spawn_blocking(move || status(&path)).await {
            for reach in reached.iter_mut().filter(|reach| reach.is_mute()) {
                let (Some((packets, seen)), Some((earlier, _))) =
                    (received(&now, reach), received(before, reach))
                else {
                    continue;
                };
                // A peer's probe counts as seen, though not as a packet.
                let lately = seen.is_some_and(|ago| ago < start.elapsed().as_secs());
                reach.heard |= packets > earlier || lately;
            }
        }
        let waiting = reached.iter().any(|reach| reach.is_mute() && !reach.heard);
        if !waiting || Instant::now() >= deadline {
            return;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_size_is_found_in_few_steps() {
        for limit in [84, 85, 1000, 1399, 1449] {
            let mut asked = 0;
            let found = largest(84, 1450, |bytes| {
                asked += 1;
                Ok(bytes <= limit)
            });
            assert_eq!(found.unwrap(), limit);
            assert!(asked <= 11, "{asked}");
        }
    }
}
