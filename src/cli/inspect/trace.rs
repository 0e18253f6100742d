//! `uvxlan trace`: the way of a packet by the running daemon's tables, for people.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::process::ExitCode;

use super::status::{Paint, Socket, failed, json, unexpected};
use crate::control::client::{self, ClientError};
use crate::control::{Request, Response, Step};

/// Arguments of `uvxlan trace`.
#[derive(clap::Args, Debug, Clone)]
pub struct TraceArgs {
    /// Address of a container
    #[arg(value_name = "IP")]
    to: Ipv4Addr,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: Socket,
}

fn ask(socket: &Socket, to: Ipv4Addr) -> Result<Vec<Step>, ClientError> {
    match client::send(socket.path(), Request::Trace { to })? {
        Response::Trace(steps) => Ok(steps),
        _ => Err(unexpected()),
    }
}

/// Runs `uvxlan trace`.
#[must_use]
pub fn run(args: &TraceArgs) -> ExitCode {
    let steps = match ask(&args.socket, args.to) {
        Ok(steps) => steps,
        Err(error) => return failed("trace", &error),
    };
    let arrives = steps.iter().all(|step| step.passes);
    if args.json {
        json(&steps);
    } else {
        crate::cli::print_out(&trace_text(&steps, Paint::of_stdout()));
    }
    ExitCode::from(if arrives {
        crate::cli::OK
    } else {
        crate::cli::FAILURE
    })
}

fn trace_text(steps: &[Step], paint: Paint) -> String {
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
