//! `uvxlan trace`: walks a packet through the running daemon's tables.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::process::ExitCode;

use super::socket::{Socket, unanswered, wrong_response};
use super::terminal::Paint;
use crate::cli::{FAILURE, OK, print_json, print_out};
use crate::control::client::ClientError;
use crate::control::{Request, Response, Step};

/// Arguments of `uvxlan trace`.
#[derive(clap::Args, Debug)]
pub(crate) struct TraceArgs {
    /// Address of a container
    #[arg(value_name = "IP")]
    to: Ipv4Addr,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: Socket,
}

fn request(socket: &Socket, to: Ipv4Addr) -> Result<Vec<Step>, ClientError> {
    match socket.send(Request::Trace { to })? {
        Response::Trace(steps) => Ok(steps),
        _ => Err(wrong_response()),
    }
}

pub(crate) fn run(args: &TraceArgs) -> ExitCode {
    let steps = match request(&args.socket, args.to) {
        Ok(steps) => steps,
        Err(error) => return unanswered("trace", &error),
    };
    if args.json {
        print_json("trace", &steps);
    } else {
        print_out(&text(&steps, Paint::of_stdout()));
    }
    let arrives = steps.iter().all(|step| step.passes);
    ExitCode::from(if arrives { OK } else { FAILURE })
}

fn text(steps: &[Step], paint: Paint) -> String {
    let mut out = String::new();
    for step in steps {
        let mark = if step.passes {
            paint.good("ok  ")
        } else {
            paint.bad("FAIL")
        };
        let _ = writeln!(out, "{mark}  {:<13} {}", step.name, step.text);
    }
    out
}
