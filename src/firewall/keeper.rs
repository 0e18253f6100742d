//! Puts the rules in place and keeps them there.

use std::fmt;
use std::time::Duration;

use super::iptables::{self, TABLES, Table};
use super::nftables;
use super::rules::{Subject, Wanted};
use super::tools::{self, ToolError};

/// From this version iptables has `--random-fully`, and iptables-restore `--wait`.
const WITH_WAIT: (u32, u32, u32) = (1, 6, 2);

/// The program that holds the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tool {
    /// iptables, over whichever of its backends is installed.
    Iptables,
    /// nft.
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

/// The rules of one overlay.
#[derive(Debug)]
pub struct Firewall {
    tool: Tool,
    subject: Subject,
    wanted: Wanted,
    former: Vec<Subject>,
    wait: bool,
}

impl Firewall {
    /// Finds the tool: `preferred`, or where it is missing and `may_change` the other.
    ///
    /// # Errors
    /// When there is none.
    pub async fn find(
        preferred: Tool,
        may_change: bool,
        subject: Subject,
        wanted: Wanted,
        former: Vec<Subject>,
    ) -> Result<Self, ToolError> {
        let mut this = Self {
            tool: preferred,
            subject,
            wanted,
            former,
            wait: false,
        };
        match (this.probe().await, preferred) {
            (Err(error), _) if error.is_missing() && may_change => {
                this.tool = match preferred {
                    Tool::Iptables => Tool::Nftables,
                    Tool::Nftables => Tool::Iptables,
                };
                this.probe().await.map_err(|_| error)?;
            }
            (probed, _) => probed?,
        }
        Ok(this)
    }

    /// Which tool it is.
    #[must_use]
    pub const fn tool(&self) -> Tool {
        self.tool
    }

    async fn probe(&mut self) -> Result<(), ToolError> {
        match self.tool {
            Tool::Iptables => {
                let text = tools::run("iptables", &["--version"], "").await?;
                let modern = iptables::version(&text).is_none_or(|version| version >= WITH_WAIT);
                self.wait = modern;
                self.wanted.random_ports &= modern;
            }
            Tool::Nftables => {
                tools::run("nft", &["--version"], "").await?;
            }
        }
        Ok(())
    }

    /// Makes the rules what they should be, and removes what is left of the other tool and
    /// of flannel. All of a table's rules, or none.
    ///
    /// # Errors
    /// What the tool says; it can be tried again.
    pub async fn establish(&self) -> Result<(), ToolError> {
        match self.tool {
            Tool::Iptables => {
                for table in TABLES {
                    self.establish_table(table, self.wanted).await?;
                }
                // Nothing is lost when there is no nft, or its table cannot be removed.
                let _ = tools::run("nft", &["-f", "-"], &nftables::removal()).await;
            }
            Tool::Nftables => {
                let text = nftables::transaction(self.subject, self.wanted);
                tools::run("nft", &["-f", "-"], &text).await?;
                let nothing = Wanted {
                    masquerade: false,
                    forward: false,
                    ..self.wanted
                };
                for table in TABLES {
                    // Where there is no iptables, there is nothing of it to remove.
                    let _ = self.establish_table(table, nothing).await;
                }
            }
        }
        Ok(())
    }

    async fn establish_table(&self, table: Table, wanted: Wanted) -> Result<(), ToolError> {
        let present = save(table).await?;
        let text = iptables::transaction(table, self.subject, wanted, &self.former, &present);
        let Some(text) = text else { return Ok(()) };
        let arguments: &[&str] = if self.wait {
            &["--noflush", "--wait", "5"]
        } else {
            &["--noflush"]
        };
        tools::run("iptables-restore", arguments, &text).await?;
        Ok(())
    }

    /// Whether everything is in place.
    ///
    /// # Errors
    /// What the tool says.
    pub async fn is_established(&self) -> Result<bool, ToolError> {
        match self.tool {
            Tool::Iptables => {
                for table in TABLES {
                    let present = save(table).await?;
                    if !iptables::is_complete(table, self.subject, self.wanted, &present) {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            Tool::Nftables => {
                match tools::run("nft", &["list", "table", "ip", nftables::TABLE], "").await {
                    Ok(present) => Ok(nftables::is_complete(self.subject, self.wanted, &present)),
                    // There is no such table.
                    Err(ToolError::Refused { .. }) => Ok(self.wanted.is_nothing()),
                    Err(error) => Err(error),
                }
            }
        }
    }

    /// Looks every so often, and mends, and calls back each time it did; never returns. A failure is logged when it is news.
    pub async fn keep(&self, every: Duration, mended_again: impl Fn()) {
        let mut failed = false;
        loop {
            tokio::time::sleep(every).await;
            let mended = match self.is_established().await {
                Ok(true) => Ok(false),
                Ok(false) => self.establish().await.map(|()| true),
                Err(error) => Err(error),
            };
            match mended {
                Ok(true) => {
                    tracing::warn!(event = "firewall_mended", tool = %self.tool, "rules had been changed; put them back");
                    mended_again();
                    failed = false;
                }
                Ok(false) => failed = false,
                Err(error) if !failed => {
                    tracing::error!(event = "firewall_failed", tool = %self.tool, %error, "cannot keep the rules in place; trying again");
                    failed = true;
                }
                Err(_) => {}
            }
        }
    }

    /// The rules as text, for a person to install.
    #[must_use]
    pub fn text(tool: Tool, subject: Subject, wanted: Wanted) -> String {
        match tool {
            Tool::Iptables => TABLES
                .into_iter()
                .filter_map(|table| iptables::transaction(table, subject, wanted, &[], ""))
                .collect(),
            Tool::Nftables => nftables::transaction(subject, wanted),
        }
    }
}

async fn save(table: Table) -> Result<String, ToolError> {
    tools::run("iptables-save", &["-t", table.name()], "").await
}
