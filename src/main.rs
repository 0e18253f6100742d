//! `uvxlan`, also called as `flanneld`: arguments in, exit status out.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use uvxlan::cli::args;

fn main() -> ExitCode {
    args::execute(args::interpret(std::env::args_os(), std::env::vars_os()))
}
