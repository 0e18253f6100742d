//! The command line and environment of `uvxlan run`, read as flannel reads its own.
//!
//! flannel uses Go's `flag` package: `-x` and `--x` are the same, a boolean takes its value
//! only behind `=`, the last one given counts. Environment variables `FLANNELD_*` stand in
//! for flags that are not on the command line (coreos `flagutil.SetFlagsFromEnv`).
//!
//! Departures, all on purpose: a word that is no option does not end the parsing, an
//! argument that holds several options is split at its blanks, and a mistake ends with
//! status 2 instead of flannel's 0.

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
pub use crate::daemon::options::{
    LogFormat, Notice, NoticeLevel, Origin, ReceiveOn, RunOptions, Setting,
};

/// What a command line of `run` asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Invocation {
    /// Run the daemon.
    Run(Box<RunOptions>),
    /// `-h`.
    ShortHelp,
    /// `--help` or `-help`.
    LongHelp,
    /// `--version` or `-version`.
    Version,
}

/// Why a command line cannot be honoured. Never holds a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArgsError {
    /// No flag has this name.
    #[error("unknown flag {flag}{}", suggestion(*nearest))]
    UnknownFlag {
        /// As written, without its value.
        flag: String,
        /// Name of the nearest flag, without dashes.
        nearest: Option<&'static str>,
    },
    /// A flag that needs a value is the last word.
    #[error("{flag} needs a value")]
    MissingValue {
        /// As in the help.
        flag: String,
    },
    /// The value is not one.
    #[error("{value:?} is not a value for {source_name}: expected {expected}")]
    BadValue {
        /// Flag or environment variable.
        source_name: String,
        /// The value, masked where it is secret.
        value: String,
        /// What would be one.
        expected: String,
    },
    /// Dashes without a name.
    #[error("{argument} is not a flag: expected --name or --name=value")]
    BadSyntax {
        /// As written.
        argument: String,
    },
    /// An argument is not UTF-8.
    #[error("argument {position} is not valid UTF-8")]
    NotUnicode {
        /// 1 for the first argument of `run`.
        position: usize,
    },
    /// Kubernetes mode was asked for.
    #[error(
        "{source_name}: leases from the Kubernetes API are not supported yet; use etcd \
         (--etcd-endpoints) or a shared directory (--store dir:PATH)"
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
    /// The status the program ends with.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::KubeSubnetManager { .. } => CONFIG,
            _ => USAGE,
        }
    }
}

/// Reads the arguments behind `run` (or behind the program name `flanneld`) and the
/// environment. Pure: nothing is printed, opened or asked.
///
/// # Errors
/// When a flag is unknown, a value is missing or cannot be used, or Kubernetes mode is
/// asked for. A boolean or number that is malformed in the environment is no error but a
/// notice, as in flannel.
pub fn parse<A, E>(arguments: A, environment: E) -> Result<Invocation, ArgsError>
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
