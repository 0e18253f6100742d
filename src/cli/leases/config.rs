//! `uvxlan config`: checks, shows and writes the network config.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::store::{CommandError, StoreArgs, finish};
use crate::subnet::config::NetworkConfig;

/// Arguments of `uvxlan config`.
#[derive(clap::Args, Debug)]
pub(crate) struct ConfigArgs {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(clap::Subcommand, Debug)]
enum ConfigCommand {
    /// Check a config file without writing it
    Check {
        /// File with the config, in flannel's JSON
        file: PathBuf,
    },
    /// Print the config that is in the datastore
    Show {
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Check a config file and write it to the datastore
    Put {
        /// File with the config, in flannel's JSON
        file: PathBuf,
        #[command(flatten)]
        store: StoreArgs,
    },
}

pub(crate) fn run(args: &ConfigArgs) -> ExitCode {
    finish("uvxlan config", execute(&args.command))
}

async fn execute(command: &ConfigCommand) -> Result<String, CommandError> {
    match command {
        ConfigCommand::Check { file } => read(file).map(|(_, config)| summary(&config)),
        ConfigCommand::Show { store } => {
            let store = store.open()?;
            let Some(text) = store.config().await? else {
                return Err(CommandError::NoConfig(store.describe()));
            };
            // Unchanged, so that an unusable config is shown too.
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
        text.push_str(&format!("{key} is accepted but has no effect yet\n"));
    }
    text
}
