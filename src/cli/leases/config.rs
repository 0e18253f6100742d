//! `uvxlan config`: the network config, without etcdctl.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::store::{CommandError, StoreArgs, finish};
use crate::subnet::config::NetworkConfig;

/// Arguments of `uvxlan config`.
#[derive(clap::Args, Debug, Clone)]
pub struct ConfigArgs {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(clap::Subcommand, Debug, Clone)]
enum ConfigCommand {
    /// Check a config file; nothing is written
    Check {
        /// JSON as flannel's
        file: PathBuf,
    },
    /// Print the config that the store holds
    Show {
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Check a config file and write it to the store
    Put {
        /// JSON as flannel's
        file: PathBuf,
        #[command(flatten)]
        store: StoreArgs,
    },
}

/// Runs the command.
#[must_use]
pub fn run(args: &ConfigArgs) -> ExitCode {
    finish("uvxlan config", answer(&args.command))
}

async fn answer(command: &ConfigCommand) -> Result<String, CommandError> {
    match command {
        ConfigCommand::Check { file } => read(file).map(|(_, config)| summary(&config)),
        ConfigCommand::Show { store } => {
            let store = store.open()?;
            let Some(text) = store.config().await? else {
                return Err(CommandError::NoConfig(store.describe()));
            };
            // As found: what cannot be used must be seen too.
            Ok(format!("{}\n", String::from_utf8_lossy(&text).trim_end()))
        }
        ConfigCommand::Put { file, store } => {
            let (text, config) = read(file)?;
            let store = store.open()?;
            store.put_config(text.into()).await?;
            let summary = summary(&config);
            Ok(format!("written to {}\n{summary}", store.describe()))
        }
    }
}

fn read(file: &Path) -> Result<(Vec<u8>, NetworkConfig), CommandError> {
    let text = std::fs::read(file).map_err(|source| CommandError::File {
        path: file.to_owned(),
        source,
    })?;
    let config = NetworkConfig::parse(&text, None).map_err(|source| CommandError::Config {
        place: file.display().to_string(),
        source,
    })?;
    Ok((text, config))
}

fn summary(config: &NetworkConfig) -> String {
    let vxlan = &config.backend;
    let mut text = format!(
        "network {}, a /{} for each host from {} to {}, vxlan VNI {} port {}\n",
        config.network,
        config.subnet_len,
        config.subnet_min,
        config.subnet_max,
        vxlan.vni,
        vxlan.port
    );
    for key in config.without_effect() {
        text.push_str(&format!("{key} is accepted and has no effect yet\n"));
    }
    text
}
