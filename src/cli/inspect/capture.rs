//! `uvxlan capture`: packets as the daemon sees them, for Wireshark and other readers of pcapng.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::OwnedReadHalf;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};

use super::socket::{Socket, unanswered};
use crate::capture::pcapng;
use crate::cli::{CANT_CREATE, FAILURE, OK, USAGE, fail, print_err, runtime};
use crate::control::{CaptureRequest, CaptureView, Request, client};

/// How long the daemon may take to start a capture.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a capture may make no progress after its end was requested.
const STALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Most bytes to copy at once.
const CHUNK: usize = 64 * 1024;
/// The end of a stream, which contains its statistics, in bytes.
const TAIL: usize = 256;

/// Arguments of `uvxlan capture`.
#[derive(clap::Args, Debug)]
#[command(after_help = NOTES)]
pub(crate) struct CaptureArgs {
    /// File to write, readable by its owner only; - is stdout [default: stdout]
    #[arg(short, long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// What to capture: inner (packets at the device), outer (VXLAN at the socket), or both
    #[arg(long, value_name = "VIEW", default_value = "both", value_parser = PossibleValuesParser::new(["both", "inner", "outer"]).map(view))]
    view: CaptureView,
    /// Only packets to or from this peer: its public IP or its subnet; or any sender's IP
    #[arg(long, value_name = "PEER")]
    peer: Option<String>,
    /// Only packets to or from this container
    #[arg(long, value_name = "IP")]
    host: Option<Ipv4Addr>,
    /// Only dropped packets, each with the reason as a comment
    #[arg(long)]
    dropped: bool,
    /// Stop after this many packets
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Stop after this many seconds
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    seconds: Option<u32>,
    /// Keep at most this many bytes of each packet
    #[arg(short, long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1..))]
    snap_length: Option<u32>,
    #[command(flatten)]
    socket: Socket,
}

fn view(word: String) -> CaptureView {
    match word.as_str() {
        "inner" => CaptureView::Inner,
        "outer" => CaptureView::Outer,
        _ => CaptureView::Both,
    }
}

/// Exit status after a second Ctrl-C, as shells report it.
const INTERRUPTED: u8 = 130;

const NOTES: &str = "\
Examples:
  uvxlan capture | wireshark -k -i -
  uvxlan capture --dropped --seconds 10 -w drops.pcapng
  uvxlan capture --peer 192.0.2.7 --view outer | tshark -r -

The file is pcapng, with one interface for each view. A dropped packet's comment has the name of
its counter and what that means (tshark: -T fields -e frame.comment). Forwarding does not wait for
a slow reader; packets that were missed are counted, in the file and at the end. While a capture
runs the socket filter is off, so that packets of unknown senders are seen before they are dropped.";

pub(crate) fn run(args: &CaptureArgs) -> ExitCode {
    let file = args.write.as_ref().filter(|path| path.as_os_str() != "-");
    if file.is_none() && io::stdout().is_terminal() {
        return fail(
            "capture",
            USAGE,
            "will not write binary data to a terminal; name a file (-w FILE) or pipe the output: \
             uvxlan capture | tshark -r -",
        );
    }
    let request = CaptureRequest {
        view: Some(args.view),
        peer: args.peer.clone(),
        host: args.host,
        dropped: args.dropped,
        snap_len: args.snap_length,
        count: args.count,
    };
    let begun = client::open_stream(args.socket.path(), Request::Capture(request), START_TIMEOUT);
    let (head, stream) = match begun {
        Ok((_, rest)) => rest,
        Err(error) => return unanswered("capture", &error),
    };
    let output: Box<dyn Write + Send> = match file.map(|path| (path, create(path))) {
        None => Box::new(io::stdout()),
        Some((_, Ok(file))) => Box::new(file),
        Some((path, Err(error))) => {
            let path = path.display();
            return fail(
                "capture",
                CANT_CREATE,
                format_args!("cannot write {path}: {error}"),
            );
        }
    };
    match copy(head, stream, output, args.seconds) {
        Ok(None) => fail(
            "capture",
            INTERRUPTED,
            "interrupted; the file is incomplete",
        ),
        Ok(Some(tail)) => {
            let summary = pcapng::totals(&tail).map_or_else(
                || "the daemon has gone away; the capture ends early".to_owned(),
                |(seen, missed)| format!("{} packets captured, {missed} missed", seen - missed),
            );
            print_err(&format!("{summary}\n"));
            ExitCode::from(OK)
        }
        // The reader has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::from(OK),
        Err(error) => fail("capture", FAILURE, error),
    }
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
}

/// Copies the stream until it ends, and requests its end at Ctrl-C and when the time is over.
/// Returns its last bytes, or nothing if a second Ctrl-C ended it at once.
fn copy(
    head: Vec<u8>,
    stream: UnixStream,
    output: Box<dyn Write + Send>,
    seconds: Option<u32>,
) -> io::Result<Option<Vec<u8>>> {
    stream.set_nonblocking(true)?;
    runtime()?.block_on(async {
        let (reading, mut writing) = tokio::net::UnixStream::from_std(stream)?.into_split();
        let mut stops = Stops::new(seconds)?;
        let (progress, mut progressed) = watch::channel(());
        let mut pump = std::pin::pin!(pump(head, reading, output, progress));
        tokio::select! {
            ended = &mut pump => return ended.map(Some),
            () = stops.wanted() => {}
        }
        // It may have ended by itself just now.
        let _ = writing.shutdown().await;
        loop {
            tokio::select! {
                ended = &mut pump => return ended.map(Some),
                () = stops.interrupted() => return Ok(None),
                Ok(()) = progressed.changed() => {}
                () = tokio::time::sleep(STALL_TIMEOUT) => return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!(
                        "no progress for {} s after the end was requested; the file is incomplete",
                        STALL_TIMEOUT.as_secs()
                    ),
                )),
            }
        }
    })
}

/// What ends a capture.
struct Stops {
    interrupt: Signal,
    terminate: Signal,
    seconds: Option<u32>,
}

impl Stops {
    fn new(seconds: Option<u32>) -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            seconds,
        })
    }

    async fn interrupted(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    /// Waits for a signal or the end of the time.
    async fn wanted(&mut self) {
        let seconds = self.seconds;
        let over = async {
            match seconds {
                Some(seconds) => tokio::time::sleep(Duration::from_secs(seconds.into())).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = over => {}
            () = self.interrupted() => {}
        }
    }
}

/// Copies until the stream ends, and returns its last bytes. A thread of its own writes, so that
/// a slow reader does not delay the response to signals.
async fn pump(
    head: Vec<u8>,
    mut reading: OwnedReadHalf,
    mut output: Box<dyn Write + Send>,
    progress: watch::Sender<()>,
) -> io::Result<Vec<u8>> {
    let (chunks, mut pending) = mpsc::channel::<Vec<u8>>(1);
    let (done, written) = oneshot::channel();
    std::thread::spawn(move || {
        let mut write = || {
            while let Some(bytes) = pending.blocking_recv() {
                output.write_all(&bytes)?;
                output.flush()?;
            }
            io::Result::Ok(())
        };
        let result = write();
        drop(pending);
        // Nobody waits for it after a second signal.
        let _ = done.send(result);
    });
    let mut tail = Vec::new();
    let mut bytes = head;
    loop {
        let from = bytes.len().saturating_sub(TAIL);
        tail.extend_from_slice(bytes.get(from..).unwrap_or_default());
        let surplus = tail.len().saturating_sub(TAIL);
        tail.drain(..surplus);
        if !bytes.is_empty() && chunks.send(bytes).await.is_err() {
            break;
        }
        progress.send_replace(());
        bytes = vec![0; CHUNK];
        let read = tokio::select! {
            read = reading.read(&mut bytes) => read?,
            () = chunks.closed() => break,
        };
        if read == 0 {
            break;
        }
        bytes.truncate(read);
    }
    drop(chunks);
    written.await.map_err(|_| io::ErrorKind::Other)??;
    Ok(tail)
}
