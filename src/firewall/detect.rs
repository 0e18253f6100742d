//! Finds a tool for the rules that works on this host.

use std::fmt;

use ipnet::Ipv4Net;

use super::command::{self, ToolError};
use super::iptables::{self, TABLES};
use super::nftables;
use super::rules::{Prefixes, Wanted};

/// From this version iptables has `--random-fully`, and iptables-restore `--wait`.
const WITH_WAIT: (u32, u32, u32) = (1, 6, 2);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tool {
    /// iptables, with either of its backends.
    Iptables,
    Nftables,
}

impl fmt::Display for Tool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
        })
    }
}

/// A tool that works on this host.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DetectedTool {
    pub(crate) tool: Tool,
    /// Whether the tool can randomize ports: nft, and iptables from [`WITH_WAIT`] on.
    pub(super) random_ports: bool,
    /// Whether iptables-restore takes the lock itself. With nft it removes old rules.
    pub(super) restore_locks: bool,
}

impl DetectedTool {
    /// Finds a tool for rules of `network`: `preferred` or, if that does not work and
    /// `may_fall_back`, the other. Changes nothing.
    pub(crate) async fn detect(
        preferred: Tool,
        may_fall_back: bool,
        network: Ipv4Net,
        wanted: Wanted,
    ) -> Result<Self, ToolError> {
        let first = match Self::probe(preferred, network, wanted).await {
            Err(error) if may_fall_back => error,
            probed => return probed,
        };
        let other = match preferred {
            Tool::Iptables => Tool::Nftables,
            Tool::Nftables => Tool::Iptables,
        };
        let second = Self::probe(other, network, wanted).await;
        second.map_err(|second| ToolError::Neither {
            first: Box::new(first),
            second: Box::new(second),
        })
    }

    /// Whether the tool is installed and the kernel supports it.
    async fn probe(tool: Tool, network: Ipv4Net, wanted: Wanted) -> Result<Self, ToolError> {
        let version = command::run("iptables", &["--version"], "").await;
        let text = version.as_deref().unwrap_or_default();
        let restore_locks = iptables::version(text).is_none_or(|version| version >= WITH_WAIT);
        let random_ports = match tool {
            Tool::Iptables => {
                version?;
                for table in TABLES.into_iter().filter(|table| table.is_wanted(wanted)) {
                    command::iptables_save(table.name()).await?;
                }
                restore_locks
            }
            Tool::Nftables => {
                // The kernel checks the transaction as it would the real one, and discards it.
                let prefixes = Prefixes {
                    network,
                    subnet: network,
                };
                let text = nftables::transaction(prefixes, wanted);
                command::run("nft", &["--check", "-f", "-"], &text).await?;
                true
            }
        };
        Ok(Self {
            tool,
            random_ports,
            restore_locks,
        })
    }
}
