//! `uvxlan capture`: packets as the daemon sees them, for Wireshark and its kin.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::OwnedReadHalf;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};

use super::status::{Socket, failed};
use crate::capture::pcapng;
use crate::control::{CaptureRequest, CaptureView, Request, client};

/// How long the daemon may take to begin, and, once the end is asked for, how long nothing may
/// come or be taken by whoever reads.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes that are copied at once, at most.
const PIECE: usize = 64 * 1024;
/// Bytes at the end of a stream that its statistics lie in.
const TAIL: usize = 256;

/// Arguments of `uvxlan capture`.
#[derive(clap::Args, Debug, Clone)]
#[command(after_help = NOTES)]
pub struct CaptureArgs {
    /// File to write, for its owner's eyes only; without it, or with -, stdout is written to
    #[arg(short, long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// inner (packets at the device), outer (VXLAN at the socket), or both
    #[arg(long, value_name = "VIEW", default_value = "both", value_parser = PossibleValuesParser::new(["both", "inner", "outer"]).map(view))]
    view: CaptureView,
    /// Only packets of this peer: its public IP or its subnet (or a stranger's IP)
    #[arg(long, value_name = "PEER")]
    peer: Option<String>,
    /// Only packets from or to this container
    #[arg(long, value_name = "IP")]
    host: Option<Ipv4Addr>,
    /// Only packets that are dropped; each has its reason as a comment
    #[arg(long)]
    dropped: bool,
    /// End after so many packets
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// End after so many seconds
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    seconds: Option<u32>,
    /// Keep so many bytes of each packet
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

/// Ended by a second Ctrl-C, as shells say it.
const INTERRUPTED: u8 = 130;

const NOTES: &str = "\
Examples:
  uvxlan capture | wireshark -k -i -
  uvxlan capture --dropped --seconds 10 -w drops.pcapng
  uvxlan capture --peer 192.0.2.7 --view outer | tshark -r -

The file is pcapng, with an interface for each view. Dropped packets carry the name of the
counter and its meaning as a comment (tshark: -T fields -e frame.comment). Forwarding does
not wait for a slow reader; what was missed is counted, in the file and at the end.
Meanwhile the socket filter is lifted: strangers' datagrams are seen, and dropped later.";

/// Runs the command.
#[must_use]
pub fn run(args: &CaptureArgs) -> ExitCode {
    let to_stdout = args
        .write
        .as_ref()
        .is_none_or(|path| path.as_os_str() == "-");
    if to_stdout && io::stdout().is_terminal() {
        crate::cli::print_err(
            "uvxlan capture: a capture is no text; name a file (-w FILE), or pipe it: uvxlan \
             capture | tshark -r -\n",
        );
        return ExitCode::from(crate::cli::USAGE);
    }
    let request = CaptureRequest {
        view: Some(args.view),
        peer: args.peer.clone(),
        host: args.host,
        dropped: args.dropped,
        snap_len: args.snap_length,
        count: args.count,
    };
    let begun = client::open_stream(args.socket.path(), Request::Capture(request), PATIENCE);
    let (head, stream) = match begun {
        Ok((_, rest)) => rest,
        Err(error) => return failed("capture", &error),
    };
    let output: Box<dyn Write + Send> = match &args.write {
        Some(path) if !to_stdout => match create(path) {
            Ok(file) => Box::new(file),
            Err(error) => {
                crate::cli::print_err(&format!(
                    "uvxlan capture: writing {}: {error}\n",
                    path.display()
                ));
                return ExitCode::from(crate::cli::CANT_CREATE);
            }
        },
        _ => Box::new(io::stdout()),
    };
    match copy(head, stream, output, args.seconds) {
        Ok(None) => {
            crate::cli::print_err("uvxlan capture: ended at once: the capture is cut short\n");
            ExitCode::from(INTERRUPTED)
        }
        Ok(Some(tail)) => {
            let said = pcapng::totals(&tail).map_or_else(
                || "the daemon went away: the capture ends early".to_owned(),
                |(seen, missed)| format!("{} packets captured, {missed} missed", seen - missed),
            );
            crate::cli::print_err(&format!("{said}\n"));
            ExitCode::from(crate::cli::OK)
        }
        // Whoever read it has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::from(crate::cli::OK),
        Err(error) => {
            crate::cli::print_err(&format!("uvxlan capture: {error}\n"));
            ExitCode::from(crate::cli::FAILURE)
        }
    }
}

fn create(path: &PathBuf) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
}

/// Copies the stream until it ends; asks for its end at Ctrl-C and when the time is over.
/// Returns its last bytes, or nothing where a second Ctrl-C ended it at once.
fn copy(
    head: Vec<u8>,
    stream: UnixStream,
    output: Box<dyn Write + Send>,
    seconds: Option<u32>,
) -> io::Result<Option<Vec<u8>>> {
    stream.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let (reading, mut writing) = tokio::net::UnixStream::from_std(stream)?.into_split();
        let mut stops = Stops::new(seconds)?;
        let (progress, mut progressed) = watch::channel(());
        let mut pump = std::pin::pin!(pump(head, reading, output, progress));
        tokio::select! {
            ended = &mut pump => return ended.map(Some),
            () = stops.wanted() => {}
        }
        // It may be gone by itself just now.
        let _ = writing.shutdown().await;
        loop {
            tokio::select! {
                ended = &mut pump => return ended.map(Some),
                () = stops.interrupted() => return Ok(None),
                Ok(()) = progressed.changed() => {}
                () = tokio::time::sleep(PATIENCE) => return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!(
                        "nothing moved for {} s after the end was asked for: the capture is cut short",
                        PATIENCE.as_secs()
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

    /// A signal, or the time is over.
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

/// Copies until the stream ends; returns its last bytes. A thread writes, for whoever reads may
/// be slow, and signals are heard meanwhile.
async fn pump(
    head: Vec<u8>,
    mut reading: OwnedReadHalf,
    mut output: Box<dyn Write + Send>,
    progress: watch::Sender<()>,
) -> io::Result<Vec<u8>> {
    let (pieces, mut waiting) = mpsc::channel::<Vec<u8>>(1);
    let (done, written) = oneshot::channel();
    std::thread::spawn(move || {
        let mut write = || {
            while let Some(bytes) = waiting.blocking_recv() {
                output.write_all(&bytes)?;
                output.flush()?;
            }
            io::Result::Ok(())
        };
        let outcome = write();
        drop(waiting);
        // Nobody waits where a signal ended it.
        let _ = done.send(outcome);
    });
    let mut tail = Vec::new();
    let mut bytes = head;
    loop {
        let from = bytes.len().saturating_sub(TAIL);
        tail.extend_from_slice(bytes.get(from..).unwrap_or_default());
        let surplus = tail.len().saturating_sub(TAIL);
        tail.drain(..surplus);
        if !bytes.is_empty() && pieces.send(bytes).await.is_err() {
            break;
        }
        progress.send_replace(());
        bytes = vec![0; PIECE];
        let read = tokio::select! {
            read = reading.read(&mut bytes) => read?,
            () = pieces.closed() => break,
        };
        if read == 0 {
            break;
        }
        bytes.truncate(read);
    }
    drop(pieces);
    written.await.map_err(|_| io::ErrorKind::Other)??;
    Ok(tail)
}
