//! Installs the rules and keeps them installed.

use std::time::Duration;

use super::command::{self, Lock, ToolError, iptables_save, nft};
use super::detect::{DetectedTool, Tool};
use super::iptables::{self, TABLES, Table};
use super::nftables;
use super::rules::{Prefixes, Wanted};

/// The rules of one overlay.
#[derive(Debug)]
pub(crate) struct Firewall {
    tool: Tool,
    prefixes: Prefixes,
    wanted: Wanted,
    former: Vec<Prefixes>,
    restore_locks: bool,
}

/// The rules of ours and of flannel that a start found.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    iptables: Vec<(Table, String)>,
    nftables: String,
}

impl Firewall {
    /// `former` are earlier networks and subnets, of which rules may be left.
    pub(crate) fn new(
        detected: DetectedTool,
        prefixes: Prefixes,
        wanted: Wanted,
        former: Vec<Prefixes>,
    ) -> Self {
        let random_ports = wanted.random_ports && detected.random_ports;
        Self {
            tool: detected.tool,
            prefixes,
            wanted: Wanted {
                random_ports,
                ..wanted
            },
            former,
            restore_locks: detected.restore_locks,
        }
    }

    pub(crate) const fn tool(&self) -> Tool {
        self.tool
    }

    /// The rules as they are now, for [`Self::roll_back`]. A table that cannot be read counts
    /// as absent.
    pub(crate) async fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for table in TABLES {
            if let Ok(present) = iptables_save(table.name()).await {
                snapshot.iptables.push((table, present));
            }
        }
        snapshot.nftables = list_table().await.unwrap_or_default();
        snapshot
    }

    /// Restores our rules from a snapshot; rules of others stay as they are now. Goes on after
    /// a failure, and returns the first one.
    pub(crate) async fn roll_back(&self, snapshot: &Snapshot) -> Result<(), ToolError> {
        let _lock = self.lock().await?;
        let mut result = self.roll_back_tables(&snapshot.iptables).await;
        if list_table().await.unwrap_or_default() != snapshot.nftables {
            let text = nftables::restoration(&snapshot.nftables);
            result = result.and(nft(&text).await);
        }
        result
    }

    async fn roll_back_tables(&self, before: &[(Table, String)]) -> Result<(), ToolError> {
        let mut result = Ok(());
        for (table, before) in before {
            let present = match iptables_save(table.name()).await {
                Ok(present) => present,
                Err(error) => {
                    result = result.and(Err(error));
                    continue;
                }
            };
            let (prefixes, former) = (self.prefixes, &self.former);
            if let Some(text) = iptables::restoration(*table, prefixes, former, before, &present) {
                result = result.and(self.restore("iptables-restore", &text).await);
            }
        }
        result
    }

    /// Installs the rules, all or none, and removes what is left of the other tool and of
    /// flannel. May be retried.
    pub(crate) async fn install(&self) -> Result<(), ToolError> {
        match self.tool {
            Tool::Iptables => {
                self.install_tables(self.wanted).await?;
                // It does no harm if there is no nft, or its table cannot be removed.
                let _ = nft(&nftables::removal()).await;
            }
            Tool::Nftables => {
                nft(&nftables::transaction(self.prefixes, self.wanted)).await?;
                // Without iptables there are no rules of it to remove.
                let _ = self.install_tables(Wanted::NOTHING).await;
            }
        }
        Ok(())
    }

    /// Removes the IPv6 rules that flannel installs beside those of IPv4, which have no use
    /// here. Without tools for IPv6 there are none. Since this cannot be rolled back, it is
    /// for after a successful start.
    pub(crate) async fn remove_ipv6_rules(&self) {
        let Ok(_lock) = self.lock().await else { return };
        let _ = nft(&nftables::removal_of_ipv6()).await;
        for table in TABLES {
            let saved = command::run("ip6tables-save", &["-t", table.name()], "").await;
            let Ok(present) = saved else { continue };
            let removal =
                iptables::transaction(table, self.prefixes, Wanted::NOTHING, &[], &present);
            if let Some(text) = removal {
                let _ = self.restore("ip6tables-restore", &text).await;
            }
        }
    }

    /// Takes the lock for an iptables-restore that is too old to take it itself.
    async fn lock(&self) -> Result<Option<Lock>, ToolError> {
        Ok(match self.restore_locks {
            true => None,
            false => Some(command::lock().await?),
        })
    }

    /// Each table is a transaction of its own, so the first is rolled back if the second is
    /// refused.
    async fn install_tables(&self, wanted: Wanted) -> Result<(), ToolError> {
        let _lock = self.lock().await?;
        let mut before = Vec::new();
        for table in TABLES {
            match iptables_save(table.name()).await {
                Ok(present) => before.push((table, present)),
                // A kernel without this table has no rules in it.
                Err(_) if !table.is_wanted(wanted) => {}
                Err(error) => return Err(error),
            }
        }
        let (prefixes, former) = (self.prefixes, &self.former);
        for (table, present) in &before {
            let text = iptables::transaction(*table, prefixes, wanted, former, present);
            let Some(text) = text else { continue };
            if let Err(error) = self.restore("iptables-restore", &text).await {
                if let Err(second) = self.roll_back_tables(&before).await {
                    tracing::error!(event = "firewall_half", error = %second, "cannot roll back the rules that were installed before another table failed");
                }
                return Err(error);
            }
        }
        Ok(())
    }

    async fn restore(&self, program: &'static str, text: &str) -> Result<(), ToolError> {
        let arguments: &[&str] = match self.restore_locks {
            true => &["--noflush", "--wait", "5"],
            false => &["--noflush"],
        };
        let done = command::run(program, arguments, text).await;
        done.map(drop)
    }

    async fn is_installed(&self) -> Result<bool, ToolError> {
        match self.tool {
            Tool::Iptables => {
                for table in TABLES {
                    let present = match iptables_save(table.name()).await {
                        Ok(present) => present,
                        Err(_) if !table.is_wanted(self.wanted) => continue,
                        Err(error) => return Err(error),
                    };
                    if !iptables::is_complete(table, self.prefixes, self.wanted, &present) {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            Tool::Nftables => match list_table().await {
                Ok(present) => Ok(nftables::is_complete(self.prefixes, self.wanted, &present)),
                // There is no such table.
                Err(ToolError::Refused { .. }) => Ok(self.wanted.is_nothing()),
                Err(error) => Err(error),
            },
        }
    }

    /// Checks the rules at every interval, and reinstalls them; never returns. A failure is
    /// logged when it begins. `on_state` gets whether the rules are installed, whenever that is
    /// known; `on_repair` is called each time that they had been changed and were reinstalled.
    pub(crate) async fn resync(
        &self,
        interval: Duration,
        mut installed: bool,
        on_state: impl Fn(bool),
        on_repair: impl Fn(),
    ) {
        let mut failed = !installed;
        loop {
            tokio::time::sleep(interval).await;
            let (tool, checked) = (self.tool, self.is_installed().await);
            let missing = matches!(checked, Ok(false));
            let result = match checked {
                Ok(false) => self.install().await,
                Ok(true) => Ok(()),
                Err(error) => Err(error),
            };
            match &result {
                Ok(()) if missing && installed => {
                    tracing::warn!(event = "firewall_repaired", %tool, "rules had been changed; reinstalled them");
                    on_repair();
                }
                Ok(()) if missing => {
                    tracing::info!(event = "firewall", %tool, "rules are in place now");
                }
                Err(error) if !failed => {
                    tracing::error!(event = "firewall_failed", %tool, %error, "cannot keep the rules in place; retrying");
                }
                Ok(()) | Err(_) => {}
            }
            failed = result.is_err();
            // A failed check says nothing about the rules.
            if missing || !failed {
                installed = !failed;
                on_state(installed);
            }
        }
    }

    /// The rules as text, for a person to install.
    pub(crate) fn text(tool: Tool, prefixes: Prefixes, wanted: Wanted) -> String {
        match tool {
            Tool::Iptables => TABLES
                .into_iter()
                .filter_map(|table| iptables::transaction(table, prefixes, wanted, &[], ""))
                .collect(),
            Tool::Nftables => nftables::transaction(prefixes, wanted),
        }
    }
}

async fn list_table() -> Result<String, ToolError> {
    command::run("nft", &["list", "table", "ip", nftables::TABLE], "").await
}
