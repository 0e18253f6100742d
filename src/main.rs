//! `uvxlan`, also called as `flanneld`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    uvxlan::cli::main(std::env::args_os(), std::env::vars_os())
}
