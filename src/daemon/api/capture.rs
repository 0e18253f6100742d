//! Captures over the control socket: after the response, the connection carries a pcapng stream
//! until the client closes it.

use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ipnet::Ipv4Net;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::capture::{Encoder, Names};
use crate::control::{CaptureRequest, CaptureView, PeerStatus, Status};
use crate::dataplane::tap::{CaptureFilter, OpenTap, Taps};

/// Captures at a time.
const MAX_CAPTURES: usize = 4;
/// The queue is polled: packet threads wake no reader.
const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// Approximate size of one write, in bytes.
const CHUNK: usize = 256 * 1024;
/// At its end, a capture has this long to write what is queued; the rest counts as missed.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(3);
/// How long one write may take before the connection is dropped.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Longer than any packet.
const MAX_SNAP_LEN: u32 = 256 * 1024;

/// The captures of this daemon; clones share their state.
#[derive(Debug, Clone)]
pub(crate) struct Captures {
    taps: Taps,
    changed: Arc<Notify>,
    slots: Arc<Semaphore>,
}

impl Default for Captures {
    fn default() -> Self {
        Self {
            taps: Taps::default(),
            changed: Arc::default(),
            slots: Arc::new(Semaphore::new(MAX_CAPTURES)),
        }
    }
}

impl Captures {
    /// For the packet loop.
    pub(crate) fn taps(&self) -> Taps {
        self.taps.clone()
    }

    /// Returns when a capture has begun or ended.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Begins a capture. An error is in words, for the client.
    pub(super) fn begin(
        &self,
        request: &CaptureRequest,
        status: &Status,
    ) -> Result<Capture, String> {
        let Some(node) = &status.node else {
            return Err(format!("not serving yet: {}", status.phase));
        };
        let filter = filter(request, &status.peers)?;
        let slot = Arc::clone(&self.slots)
            .try_acquire_owned()
            .map_err(|_| format!("{MAX_CAPTURES} captures are running already"))?;
        let names = Names {
            program: format!("uvxlan {}", status.version),
            device: node.device.clone(),
            interface: node.interface.clone(),
            address: node.public_ip,
        };
        let capture = Capture {
            encoder: Encoder::new(names, filter.inner, filter.outer),
            tap: Some(self.taps.open(filter)),
            left: request.count.unwrap_or(u64::MAX),
            changed: Arc::clone(&self.changed),
            _slot: slot,
        };
        self.changed.notify_one();
        Ok(capture)
    }
}

fn filter(request: &CaptureRequest, peers: &[PeerStatus]) -> Result<CaptureFilter, String> {
    let peer = match &request.peer {
        None => None,
        Some(text) => Some(peer(text, peers)?),
    };
    let snap_len = request
        .snap_len
        .unwrap_or(MAX_SNAP_LEN)
        .clamp(1, MAX_SNAP_LEN);
    Ok(CaptureFilter {
        inner: request.view != Some(CaptureView::Outer),
        outer: request.view != Some(CaptureView::Inner),
        peer,
        host: request.host,
        dropped: request.dropped,
        snap_len: usize::try_from(snap_len).unwrap_or(usize::MAX),
    })
}

/// A peer by its address or its subnet. The address need not be a peer's: unknown senders are
/// worth a capture.
fn peer(text: &str, peers: &[PeerStatus]) -> Result<(Ipv4Addr, Option<Ipv4Net>), String> {
    if let Ok(address) = text.parse::<Ipv4Addr>() {
        let known = peers.iter().find(|peer| peer.public_ip == address);
        return Ok((address, known.map(|peer| peer.subnet)));
    }
    let subnet = text.parse::<Ipv4Net>().map(|subnet| subnet.trunc());
    let known = subnet.map(|subnet| peers.iter().find(|peer| peer.subnet == subnet));
    match known {
        Ok(Some(peer)) => Ok((peer.public_ip, Some(peer.subnet))),
        Ok(None) => Err(format!("no peer leases {text}; see uvxlan status")),
        Err(_) => Err(format!(
            "{text:?} is neither a peer's address nor its subnet"
        )),
    }
}

#[derive(Debug)]
pub(super) struct Capture {
    encoder: Encoder,
    tap: Option<OpenTap>,
    /// Packets that are still wanted.
    left: u64,
    changed: Arc<Notify>,
    _slot: OwnedSemaphorePermit,
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.tap = None;
        self.changed.notify_one();
    }
}

impl Capture {
    /// Writes the stream until the client closes its half or has all packets that it wanted.
    /// A slow client only fills the queue. Fails if the client is gone.
    pub(super) async fn stream(mut self, stream: UnixStream) -> io::Result<()> {
        let (reading, mut writing) = stream.into_split();
        let mut chunk = Vec::new();
        self.encoder.begin(&mut chunk);
        write_all(&mut writing, &chunk).await?;
        let mut closed = std::pin::pin!(closed(reading));
        let mut ending = false;
        while !ending && self.left > 0 {
            tokio::select! {
                end = &mut closed => {
                    end?;
                    ending = true;
                }
                () = tokio::time::sleep(POLL_INTERVAL) => {}
            }
            while !ending && self.collect(&mut chunk) {
                // If the client closes its half during the write, the rest follows it.
                let mut rest = &chunk[..];
                tokio::select! {
                    written = writing.write_all_buf(&mut rest) => written?,
                    end = &mut closed => {
                        end?;
                        ending = true;
                    }
                }
                write_all(&mut writing, rest).await?;
            }
        }
        let missed = self.drain(&mut writing).await?;
        chunk.clear();
        self.encoder.end(&mut chunk, now(), missed);
        write_all(&mut writing, &chunk).await?;
        writing.shutdown().await
    }

    /// Writes what is queued now, and nothing that comes later. Returns the number of packets that
    /// were missed in total.
    async fn drain(&mut self, writing: &mut OwnedWriteHalf) -> io::Result<u64> {
        let (waiting, missed) = self
            .tap
            .as_ref()
            .map_or((0, 0), |tap| (tap.waiting(), tap.missed()));
        let wanted = self.left.min(waiting);
        self.left = wanted;
        let deadline = Instant::now() + DRAIN_TIMEOUT;
        let mut chunk = Vec::new();
        while Instant::now() < deadline && self.collect(&mut chunk) {
            write_all(writing, &chunk).await?;
        }
        Ok(missed + self.left)
    }

    /// Fills a chunk from the queue. Returns whether there is something in it.
    fn collect(&mut self, chunk: &mut Vec<u8>) -> bool {
        chunk.clear();
        while self.left > 0 && chunk.len() < CHUNK {
            let Some(captured) = self.tap.as_ref().and_then(|tap| tap.next()) else {
                break;
            };
            self.encoder.packet(chunk, &captured);
            self.left -= 1;
        }
        !chunk.is_empty()
    }
}

/// Returns when the client closes its half. Fails if it is gone.
async fn closed(mut reading: OwnedReadHalf) -> io::Result<()> {
    let mut ignored = [0; 64];
    while reading.read(&mut ignored).await? > 0 {}
    Ok(())
}

/// Writes all of it. Fails if the client stops reading.
async fn write_all(writing: &mut OwnedWriteHalf, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = tokio::time::timeout(WRITE_TIMEOUT, writing.write_buf(&mut bytes)).await;
        if written.map_err(|_| io::ErrorKind::TimedOut)?? == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
    }
    Ok(())
}

fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let nanoseconds = now.ok().map(|since| since.as_nanos());
    nanoseconds
        .and_then(|nanoseconds| u64::try_from(nanoseconds).ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> CaptureRequest {
        CaptureRequest::default()
    }

    fn known() -> Vec<PeerStatus> {
        let text = r#"{"subnet":"10.5.24.0/24","public_ip":"192.0.2.2","vtep_mac":"","way":"tunnel",
            "state":"ok","rtt_us":null,"loss_percent":null,"path_mtu":null,"seen_seconds_ago":null,
            "out_packets":0,"out_bytes":0,"in_packets":0,"in_bytes":0}"#;
        vec![serde_json::from_str(text).unwrap()]
    }

    #[test]
    fn a_peer_is_found_by_address_or_subnet_and_a_stranger_by_address() {
        let subnet = "10.5.24.0/24".parse().ok();
        let address = Ipv4Addr::new(192, 0, 2, 2);
        assert_eq!(peer("192.0.2.2", &known()), Ok((address, subnet)));
        assert_eq!(peer("10.5.24.7/24", &known()), Ok((address, subnet)));
        let stranger = Ipv4Addr::new(192, 0, 2, 9);
        assert_eq!(peer("192.0.2.9", &known()), Ok((stranger, None)));
        assert!(
            peer("10.5.25.0/24", &known())
                .unwrap_err()
                .contains("leases")
        );
        assert!(peer("host-b", &known()).unwrap_err().contains("neither"));
    }

    #[test]
    fn both_views_are_captured_by_default() {
        let views = |view| {
            let request = CaptureRequest { view, ..request() };
            filter(&request, &[]).map(|filter| (filter.inner, filter.outer))
        };
        assert_eq!(views(None), Ok((true, true)));
        assert_eq!(views(Some(CaptureView::Both)), Ok((true, true)));
        assert_eq!(views(Some(CaptureView::Inner)), Ok((true, false)));
        assert_eq!(views(Some(CaptureView::Outer)), Ok((false, true)));
    }

    #[test]
    fn only_a_serving_daemon_captures() {
        let captures = Captures::default();
        let error = captures.begin(&request(), &Status::default()).unwrap_err();
        assert!(error.contains("not serving"), "{error}");
    }
}
