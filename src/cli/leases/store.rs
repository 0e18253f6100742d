//! How the commands that read or write a store find it: the daemon's flags and environment.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Command, FromArgMatches};

use crate::cli::inspect::running;
use crate::cli::run::flags::STORE_FLAGS;
use crate::cli::run::flannel_args::refusal;
use crate::cli::run::help;
use crate::daemon::options::RunOptions;
use crate::subnet::config::ConfigError;
use crate::subnet::store::etcd::EtcdOptionsError;
use crate::subnet::store::{Store, StoreConfig, StoreError};

/// Longest time for one operation: a person waits.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(5);

const HEADING: &str = "Datastore (default: that of the daemon running here)";

/// Which store. Where neither a flag nor the environment says so, it is that of the daemon that
/// runs here; without one, etcd at flannel's defaults.
#[derive(Debug, Clone)]
pub(crate) struct StoreArgs(Option<StoreConfig>);

impl Args for StoreArgs {
    fn augment_args(command: Command) -> Command {
        command.args(STORE_FLAGS.iter().map(|flag| {
            help::plain_argument(flag)
                .help(flag.headline())
                .help_heading(HEADING)
                .env(flag.variable(flag.name))
                .hide_env_values(flag.secret)
                .value_parser(clap::value_parser!(String))
        }))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for StoreArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut options = RunOptions::default();
        let mut given = false;
        for flag in STORE_FLAGS {
            let source = match matches.value_source(flag.name) {
                Some(ValueSource::CommandLine) => flag.dashed(),
                Some(ValueSource::EnvVariable) => flag.variable(flag.name),
                _ => continue,
            };
            let values = matches.get_many::<String>(flag.name).into_iter().flatten();
            for value in values.filter(|value| flag.is_enabled_by(value)) {
                given = true;
                (flag.set)(&mut options, value).map_err(|invalid| {
                    let text = format!("{}\n", refusal(flag, &source, value, invalid));
                    clap::Error::raw(ErrorKind::ValueValidation, text)
                })?;
            }
        }
        Ok(Self(given.then_some(options.store)))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl StoreArgs {
    /// Opens the store; nothing is sent yet.
    ///
    /// # Errors
    /// When the etcd options cannot work.
    pub(crate) fn open(&self) -> Result<Arc<dyn Store>, CommandError> {
        Ok(self.config().open()?)
    }

    /// The store's settings.
    pub(crate) fn config(&self) -> StoreConfig {
        let mut config = match &self.0 {
            Some(given) => given.clone(),
            None => running::options().map_or_else(StoreConfig::default, |it| it.store.clone()),
        };
        config.etcd.timeout = OPERATION_TIMEOUT;
        config
    }
}

/// Why a command failed. Each message names the remedy.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandError {
    /// Options of etcd that cannot work.
    #[error(transparent)]
    Options(#[from] EtcdOptionsError),
    /// The store failed.
    #[error("{0}; is it running, and do --etcd-endpoints (or --store) name it?")]
    Unreachable(StoreError),
    /// The store refused.
    #[error(transparent)]
    Refused(StoreError),
    /// There is no config.
    #[error("{0} holds no network config; write one with 'uvxlan config put FILE'")]
    NoConfig(String),
    /// The config cannot be used.
    #[error("network config in {place}: {source}")]
    Config {
        /// Store or file.
        place: String,
        /// What is wrong.
        source: ConfigError,
    },
    /// Something else, in words.
    #[error("{0}")]
    Other(String),
    /// A file.
    #[error("cannot read {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What came back.
        source: std::io::Error,
    },
    /// The runtime.
    #[error("cannot start: {0}")]
    Runtime(std::io::Error),
}

impl From<StoreError> for CommandError {
    fn from(error: StoreError) -> Self {
        if error.is_transient() {
            Self::Unreachable(error)
        } else {
            Self::Refused(error)
        }
    }
}

impl CommandError {
    pub(crate) fn exit_status(&self) -> u8 {
        match self {
            Self::Options(_) | Self::NoConfig(_) | Self::Config { .. } => crate::cli::CONFIG,
            Self::Unreachable(_) => crate::cli::UNAVAILABLE,
            _ => crate::cli::FAILURE,
        }
    }
}

/// Runs a command, and prints its answer or its error.
pub(crate) fn finish(
    name: &str,
    command: impl Future<Output = Result<String, CommandError>>,
) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(CommandError::Runtime);
    match runtime.and_then(|runtime| runtime.block_on(command)) {
        Ok(answer) => {
            crate::cli::print_out(&answer);
            ExitCode::from(crate::cli::OK)
        }
        Err(error) => {
            crate::cli::print_err(&format!("{name}: {error}\n"));
            ExitCode::from(error.exit_status())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<StoreArgs, clap::Error> {
        let command = StoreArgs::augment_args(Command::new("x"))
            // The environment of the test run is none of its business.
            .mut_args(|argument| argument.env(None::<&str>));
        let words = std::iter::once(&"x").chain(words);
        StoreArgs::from_arg_matches(&command.try_get_matches_from(words)?)
    }

    #[test]
    fn flags_are_read_as_the_daemon_reads_them() {
        assert_eq!(parse(&[]).unwrap().0, None);
        assert_eq!(parse(&["--etcd-cafile="]).unwrap().0, None);
        let words = ["--etcd-endpoints=a:1, b:2", "--insecure-etcd"];
        let given = parse(&words).unwrap().0.unwrap();
        assert_eq!(given.etcd.endpoints, ["a:1", "b:2"]);
        assert!(given.etcd.insecure_password && given.directory.is_none());
        let given = parse(&["--store", "dir:/x"]).unwrap();
        assert_eq!(given.config().directory, Some("/x".into()));
        assert_eq!(given.config().etcd.timeout, OPERATION_TIMEOUT);
        let error = parse(&["--etcd-endpoints=ftp://u:geheim@h"]).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("--etcd-endpoints=") && !text.contains("geheim"),
            "{text}"
        );
    }
}
