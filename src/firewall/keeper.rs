//! Puts the rules in place and keeps them there.

use std::fmt;
use std::time::Duration;

use super::iptables::{self, TABLES, Table};
use super::nftables;
use super::rules::{Subject, Wanted};
use super::tools::{self, Lock, ToolError};

/// From this version iptables has `--random-fully`, and iptables-restore `--wait`.
const WITH_WAIT: (u32, u32, u32) = (1, 6, 2);
const NOTHING: Wanted = Wanted {
    masquerade: false,
    forward: false,
    random_ports: false,
};

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

/// A tool that works on this host.
#[derive(Debug, Clone, Copy)]
pub struct Found {
    /// Which.
    pub tool: Tool,
    /// Whether it is nft, or iptables from [`WITH_WAIT`] on, which know of random ports.
    random_ports: bool,
    /// Whether iptables-restore takes the lock itself; beside nft it removes old rules.
    locks: bool,
}

impl Found {
    /// Finds a tool for rules of `network`: `preferred`, or where that does not work and
    /// `may_change` the other. Changes nothing.
    ///
    /// # Errors
    /// What the tools say, when none works.
    pub async fn look(
        preferred: Tool,
        may_change: bool,
        network: ipnet::Ipv4Net,
        wanted: Wanted,
    ) -> Result<Self, ToolError> {
        let first = match Self::probe(preferred, network, wanted).await {
            Err(error) if may_change => error,
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

    /// Whether the tool is there, and the kernel's side of it.
    async fn probe(tool: Tool, network: ipnet::Ipv4Net, wanted: Wanted) -> Result<Self, ToolError> {
        let version = tools::run("iptables", &["--version"], "").await;
        let text = version.as_deref().unwrap_or_default();
        let locks = iptables::version(text).is_none_or(|version| version >= WITH_WAIT);
        let random_ports = match tool {
            Tool::Iptables => {
                version?;
                for table in TABLES.into_iter().filter(|table| table.is_wanted(wanted)) {
                    save(table).await?;
                }
                locks
            }
            Tool::Nftables => {
                // The kernel looks at it as at the real one, and forgets it.
                let subject = Subject {
                    network,
                    subnet: network,
                };
                let text = nftables::transaction(subject, wanted);
                tools::run("nft", &["--check", "-f", "-"], &text).await?;
                true
            }
        };
        Ok(Self {
            tool,
            random_ports,
            locks,
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
    /// Whether iptables-restore takes the lock itself.
    locks: bool,
}

/// What was there of our rules, and of flannel's, before we changed them.
#[derive(Debug, Default)]
pub struct Before {
    iptables: Vec<(Table, String)>,
    nftables: Option<String>,
}

impl Firewall {
    /// Rules for `subject`, held by what was found. `former` are earlier networks and
    /// subnets, of which rules may be left.
    #[must_use]
    pub fn new(found: Found, subject: Subject, wanted: Wanted, former: Vec<Subject>) -> Self {
        let random_ports = wanted.random_ports && found.random_ports;
        Self {
            tool: found.tool,
            subject,
            wanted: Wanted {
                random_ports,
                ..wanted
            },
            former,
            locks: found.locks,
        }
    }

    /// Which tool it is.
    #[must_use]
    pub const fn tool(&self) -> Tool {
        self.tool
    }

    /// Reads what is there, for [`Self::put_back`]. What cannot be read is taken for absent.
    pub async fn remember(&self) -> Before {
        let mut before = Before::default();
        for table in TABLES {
            if let Ok(present) = save(table).await {
                before.iptables.push((table, present));
            }
        }
        before.nftables = Some(list().await.unwrap_or_default());
        before
    }

    /// Puts our rules back to what they were; others' are left as they are now.
    ///
    /// # Errors
    /// The first thing that could not be put back; the others were all the same.
    pub async fn put_back(&self, before: &Before) -> Result<(), ToolError> {
        let _lock = self.lock().await?;
        let mut outcome = self.put_tables_back(&before.iptables).await;
        if let Some(before) = &before.nftables
            && list().await.unwrap_or_default() != *before
        {
            let text = nftables::restoration(before);
            outcome = outcome.and(tools::run("nft", &["-f", "-"], &text).await.map(drop));
        }
        outcome
    }

    async fn put_tables_back(&self, before: &[(Table, String)]) -> Result<(), ToolError> {
        let mut outcome = Ok(());
        for (table, before) in before {
            let present = match save(*table).await {
                Ok(present) => present,
                Err(error) => {
                    outcome = outcome.and(Err(error));
                    continue;
                }
            };
            let (subject, former) = (self.subject, &self.former);
            if let Some(text) = iptables::restoration(*table, subject, former, before, &present) {
                outcome = outcome.and(self.restore("iptables-restore", &text).await);
            }
        }
        outcome
    }

    /// Makes the rules what they should be, and removes what is left of the other tool and
    /// of flannel. All rules, or none.
    ///
    /// # Errors
    /// What the tool says; it can be tried again.
    pub async fn establish(&self) -> Result<(), ToolError> {
        match self.tool {
            Tool::Iptables => {
                self.establish_tables(self.wanted).await?;
                // Nothing is lost when there is no nft, or its table cannot be removed.
                let _ = tools::run("nft", &["-f", "-"], &nftables::removal()).await;
            }
            Tool::Nftables => {
                let text = nftables::transaction(self.subject, self.wanted);
                tools::run("nft", &["-f", "-"], &text).await?;
                // Where there is no iptables, there is nothing of it to remove.
                let _ = self.establish_tables(NOTHING).await;
            }
        }
        Ok(())
    }

    /// Removes what flannel made for IPv6 beside its rules for IPv4: it has no use here. Where
    /// there are no tools for IPv6, there is nothing of it. It cannot be put back, so it is for
    /// when a start has succeeded.
    pub async fn sweep_ipv6(&self) {
        let Ok(_lock) = self.lock().await else { return };
        let _ = tools::run("nft", &["-f", "-"], &nftables::removal_of_ipv6()).await;
        for table in TABLES {
            let saved = tools::run("ip6tables-save", &["-t", table.name()], "").await;
            let Ok(present) = saved else { continue };
            let subject = self.subject;
            if let Some(text) = iptables::transaction(table, subject, NOTHING, &[], &present) {
                let _ = self.restore("ip6tables-restore", &text).await;
            }
        }
    }

    /// What an iptables-restore that is too old to do so itself needs of us.
    async fn lock(&self) -> Result<Option<Lock>, ToolError> {
        Ok(match self.locks {
            true => None,
            false => Some(tools::lock().await?),
        })
    }

    /// Each table is a transaction of its own, so the first is put back where the second is
    /// refused.
    async fn establish_tables(&self, wanted: Wanted) -> Result<(), ToolError> {
        let _lock = self.lock().await?;
        let mut before = Vec::new();
        for table in TABLES {
            match save(table).await {
                Ok(present) => before.push((table, present)),
                // A kernel without this table has no rules in it.
                Err(_) if !table.is_wanted(wanted) => {}
                Err(error) => return Err(error),
            }
        }
        let (subject, former) = (self.subject, &self.former);
        for (table, present) in &before {
            let text = iptables::transaction(*table, subject, wanted, former, present);
            let Some(text) = text else { continue };
            if let Err(error) = self.restore("iptables-restore", &text).await {
                if let Err(second) = self.put_tables_back(&before).await {
                    tracing::error!(event = "firewall_half", error = %second, "cannot take back the rules that were made before another table failed");
                }
                return Err(error);
            }
        }
        Ok(())
    }

    async fn restore(&self, program: &'static str, text: &str) -> Result<(), ToolError> {
        let arguments: &[&str] = match self.locks {
            true => &["--noflush", "--wait", "5"],
            false => &["--noflush"],
        };
        let done = tools::run(program, arguments, text).await;
        done.map(drop)
    }

    /// Whether everything is in place.
    ///
    /// # Errors
    /// What the tool says.
    pub async fn is_established(&self) -> Result<bool, ToolError> {
        match self.tool {
            Tool::Iptables => {
                for table in TABLES {
                    let present = match save(table).await {
                        Ok(present) => present,
                        Err(_) if !table.is_wanted(self.wanted) => continue,
                        Err(error) => return Err(error),
                    };
                    if !iptables::is_complete(table, self.subject, self.wanted, &present) {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            Tool::Nftables => match list().await {
                Ok(present) => Ok(nftables::is_complete(self.subject, self.wanted, &present)),
                // There is no such table.
                Err(ToolError::Refused { .. }) => Ok(self.wanted.is_nothing()),
                Err(error) => Err(error),
            },
        }
    }

    /// Looks every so often, and mends; never returns. A failure is logged when it is news.
    /// Whether the rules are in place is told to `tell`, where it is known, and each time that
    /// they were put back to `mended_again`.
    pub async fn keep(
        &self,
        every: Duration,
        mut were_there: bool,
        tell: impl Fn(bool),
        mended_again: impl Fn(),
    ) {
        let mut failed = !were_there;
        loop {
            tokio::time::sleep(every).await;
            let (tool, looked) = (self.tool, self.is_established().await);
            let missing = matches!(looked, Ok(false));
            let mended = match looked {
                Ok(false) => self.establish().await,
                Ok(true) => Ok(()),
                Err(error) => Err(error),
            };
            match &mended {
                Ok(()) if missing && were_there => {
                    tracing::warn!(event = "firewall_mended", %tool, "rules had been changed; put them back");
                    mended_again();
                }
                Ok(()) if missing => {
                    tracing::info!(event = "firewall", %tool, "rules are in place now");
                }
                Err(error) if !failed => {
                    tracing::error!(event = "firewall_failed", %tool, %error, "cannot keep the rules in place; trying again");
                }
                Ok(()) | Err(_) => {}
            }
            failed = mended.is_err();
            // A look that failed tells nothing of the rules.
            if missing || !failed {
                were_there = !failed;
                tell(were_there);
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

/// Our table of nftables.
async fn list() -> Result<String, ToolError> {
    tools::run("nft", &["list", "table", "ip", nftables::TABLE], "").await
}
