//! `uvxlan capture`: packets as the daemon sees them, for Wireshark and its kin.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::net::{Ipv4Addr, Shutdown};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use tokio::io::AsyncReadExt;

use super::status::{Socket, failed};
use crate::capture::pcapng;
use crate::control::{Ask, CaptureRequest, client};

/// How long the daemon may take to begin, and then between two pieces of its last words.
const PATIENCE: Duration = Duration::from_secs(10);
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
    #[arg(long, value_name = "VIEW", default_value = "both", value_parser = ["both", "inner", "outer"])]
    view: String,
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
        super::print_err(
            "uvxlan capture: a capture is no text; name a file (-w FILE), or pipe it: uvxlan \
             capture | tshark -r -\n",
        );
        return ExitCode::from(super::USAGE);
    }
    let request = CaptureRequest {
        view: Some(args.view.clone()),
        peer: args.peer.clone(),
        host: args.host,
        dropped: args.dropped,
        snap_len: args.snap_length,
        count: args.count,
    };
    let begun = client::begin(args.socket.path(), Ask::Capture(request), PATIENCE);
    let (head, stream) = match begun {
        Ok((_, rest)) => rest,
        Err(error) => return failed("capture", &error),
    };
    let output: Box<dyn Write> = match &args.write {
        Some(path) if !to_stdout => match create(path) {
            Ok(file) => Box::new(file),
            Err(error) => {
                super::print_err(&format!(
                    "uvxlan capture: writing {}: {error}\n",
                    path.display()
                ));
                return ExitCode::from(super::CANT_CREATE);
            }
        },
        _ => Box::new(io::stdout()),
    };
    match copy(&head, stream, output, args.seconds) {
        Ok(tail) => {
            let said = pcapng::totals(&tail).map_or_else(
                || "the daemon went away: the capture ends early".to_owned(),
                |(seen, missed)| format!("{} packets captured, {missed} missed", seen - missed),
            );
            super::print_err(&format!("{said}\n"));
            ExitCode::from(super::OK)
        }
        // Whoever read it has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::from(super::OK),
        Err(error) => {
            super::print_err(&format!("uvxlan capture: {error}\n"));
            ExitCode::from(super::FAILURE)
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
/// Returns its last bytes.
fn copy(
    head: &[u8],
    stream: UnixStream,
    mut output: Box<dyn Write>,
    seconds: Option<u32>,
) -> io::Result<Vec<u8>> {
    stream.set_nonblocking(true)?;
    let closer = stream.try_clone()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut tail = Vec::new();
    let mut write = |bytes: &[u8]| {
        output.write_all(bytes)?;
        output.flush()?;
        tail.extend_from_slice(
            bytes
                .get(bytes.len().saturating_sub(TAIL)..)
                .unwrap_or(bytes),
        );
        let surplus = tail.len().saturating_sub(TAIL);
        tail.drain(..surplus);
        io::Result::Ok(())
    };
    write(head)?;
    runtime.block_on(async {
        let mut stream = tokio::net::UnixStream::from_std(stream)?;
        let mut buffer = vec![0; 256 * 1024];
        let over = async {
            match seconds {
                Some(seconds) => tokio::time::sleep(Duration::from_secs(seconds.into())).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(over);
        let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
        let mut ending = false;
        loop {
            let read = tokio::select! {
                read = stream.read(&mut buffer) => read?,
                () = &mut over, if !ending => {
                    ending = true;
                    closer.shutdown(Shutdown::Write)?;
                    continue;
                }
                _ = &mut interrupted, if !ending => {
                    ending = true;
                    closer.shutdown(Shutdown::Write)?;
                    continue;
                }
            };
            match buffer.get(..read) {
                None | Some([]) => return io::Result::Ok(()),
                Some(bytes) => write(bytes)?,
            }
        }
    })?;
    Ok(tail)
}
