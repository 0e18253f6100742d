//! Reads the command line and environment of `uvxlan run` as flannel reads its own.
//!
//! flannel uses Go's `flag` package: `-x` and `--x` are the same, a boolean takes its value
//! only behind `=`, and the last one given counts. Environment variables `FLANNELD_*` set flags
//! that are not on the command line (coreos `flagutil.SetFlagsFromEnv`).
//!
//! Three differences are deliberate: a word that is not an option does not end the parsing, an
//! argument that holds several options is split at its blanks, and a mistake ends with status 2
//! instead of flannel's 0.

use std::ffi::OsString;

mod assign;
mod scan;
#[cfg(test)]
mod tests;

pub(crate) use self::assign::refusal;
use self::assign::{Assignment, Environment};
use self::scan::Scan;
use super::flags;
use crate::cli::{CONFIG, USAGE};
pub(crate) use crate::daemon::options::RunOptions;

/// What a command line of `run` asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Invocation {
    /// Run the daemon.
    Run(Box<RunOptions>),
    /// `-h`.
    ShortHelp,
    /// `--help` or `-help`.
    LongHelp,
    /// `--version` or `-version`.
    Version,
}

/// Why a command line is refused. Never contains a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ArgsError {
    #[error("unknown flag {flag}{}", suggestion(*nearest))]
    UnknownFlag {
        /// As written, without its value.
        flag: String,
        /// Name of the most similar flag, without dashes.
        nearest: Option<&'static str>,
    },
    #[error("{flag} needs a value")]
    MissingValue { flag: String },
    #[error("{source_name}={value:?} cannot be used: expected {expected}")]
    BadValue {
        /// Flag or environment variable.
        source_name: String,
        /// The value, masked if it is secret.
        value: String,
        expected: String,
    },
    /// Dashes without a name.
    #[error("{argument} is not a flag: expected --name or --name=value")]
    BadSyntax { argument: String },
    #[error("argument {position} is not valid UTF-8")]
    NotUnicode {
        /// 1 for the first argument of `run`.
        position: usize,
    },
    #[error(
        "{source_name}: leases in the Kubernetes API are not supported yet; use etcd \
         (--etcd-endpoints) or a shared directory (--store=dir:PATH)"
    )]
    KubeSubnetManager {
        /// Flag or environment variable.
        source_name: String,
    },
}

fn suggestion(nearest: Option<&str>) -> String {
    match nearest {
        Some(name) => format!("; did you mean {}?", flags::dashed(name)),
        None => String::new(),
    }
}

impl ArgsError {
    pub(crate) const fn exit_code(&self) -> u8 {
        match self {
            Self::KubeSubnetManager { .. } => CONFIG,
            _ => USAGE,
        }
    }
}

/// Reads the arguments that follow `run` (or the program name `flanneld`) and the environment.
/// Pure: it prints and opens nothing.
///
/// A malformed boolean or number in the environment is a notice, not an error, as in flannel.
pub(crate) fn parse<A, E>(arguments: A, environment: E) -> Result<Invocation, ArgsError>
where
    A: IntoIterator<Item = OsString>,
    E: IntoIterator<Item = (OsString, OsString)>,
{
    let mut scan = Scan::default();
    for (index, argument) in arguments.into_iter().enumerate() {
        let text = argument.into_string().map_err(|_| ArgsError::NotUnicode {
            position: index + 1,
        })?;
        scan.push(text);
    }
    if let Some(help) = scan.read_all()? {
        return Ok(help);
    }
    let mut result = Assignment::new(scan.notices);
    result.command_line(&scan.given)?;
    if result.version {
        return Ok(Invocation::Version);
    }
    result.environment(&Environment::new(environment))?;
    result.remark();
    Ok(Invocation::Run(Box::new(result.options)))
}
