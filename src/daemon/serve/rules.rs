//! Installs masquerading and forward rules, and enables forwarding, as the options and the
//! network config ask.

use std::sync::Arc;
use std::time::Duration;

use ipnet::Ipv4Net;
use tokio::task::JoinHandle;

use crate::daemon::api::health::Readiness;
use crate::daemon::options::{FirewallChoice, RunOptions};
use crate::daemon::serve::repairs::{Repaired, Repairs};
use crate::daemon::state::state_file::State;
use crate::daemon::state::subnet_env;
use crate::firewall::command::ToolError;
use crate::firewall::detect::{DetectedTool, Tool};
use crate::firewall::manager::{Firewall, Snapshot};
use crate::firewall::rules::{Prefixes, Wanted};
use crate::host::forwarding::{self, Forwarding};
use crate::subnet::config::NetworkConfig;

/// Pause between two searches for a tool, or two attempts to install, without a resync.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// Which rules are wanted, and who installs them.
#[derive(Debug)]
pub(crate) struct FirewallSetup {
    wanted: Wanted,
    resync: Duration,
    network: Ipv4Net,
    former: Vec<Prefixes>,
    installer: Installer,
}

#[derive(Debug)]
enum Installer {
    Nobody,
    /// A person, who gets the rules on stdout.
    Person(Tool),
    /// A tool, or why there is none.
    Tool(ToolChoice, Result<DetectedTool, ToolError>),
}

#[derive(Debug, Clone, Copy)]
struct ToolChoice {
    preferred: Tool,
    may_fall_back: bool,
}

impl FirewallSetup {
    /// Finds a tool on the host; changes nothing.
    pub(crate) async fn detect(
        options: &RunOptions,
        config: &NetworkConfig,
        state: Option<&State>,
    ) -> Self {
        let wanted = Wanted {
            masquerade: options.ip_masq,
            forward: options.iptables_forward_rules,
            random_ports: !options.ip_masq_fully_random_disable,
        };
        let by_config = if config.enable_nftables {
            Tool::Nftables
        } else {
            Tool::Iptables
        };
        let choice = |preferred, may_fall_back| {
            Some(ToolChoice {
                preferred,
                may_fall_back,
            })
        };
        let choice = match options.firewall {
            FirewallChoice::None | FirewallChoice::Print => None,
            FirewallChoice::Auto => choice(by_config, true),
            FirewallChoice::Iptables => choice(Tool::Iptables, false),
            FirewallChoice::Nftables => choice(Tool::Nftables, false),
        };
        let installer = match choice {
            Some(choice) => Installer::Tool(choice, choice.detect(config.network, wanted).await),
            None if options.firewall == FirewallChoice::Print => Installer::Person(by_config),
            None => Installer::Nobody,
        };
        Self {
            wanted,
            resync: options.iptables_resync,
            network: config.network,
            former: former(options, state),
            installer,
        }
    }

    /// Logs what will not work without a tool.
    pub(crate) fn log_missing_tool(&self) {
        let Installer::Tool(_, Err(error)) = &self.installer else {
            return;
        };
        if self.wanted.is_nothing() {
            tracing::debug!(event = "firewall_missing", %error, "no rules are wanted");
        } else {
            let impact = impact(self.wanted);
            tracing::error!(event = "firewall_missing", %error, "cannot install rules, retrying: {impact}");
        }
    }

    /// Whether the rules are those of iptables, which bridged packets have to pass.
    pub(crate) const fn uses_iptables(&self) -> bool {
        let tool = match &self.installer {
            Installer::Tool(_, Ok(detected)) => detected.tool,
            Installer::Tool(choice, Err(_)) => choice.preferred,
            Installer::Nobody | Installer::Person(_) => return false,
        };
        matches!(tool, Tool::Iptables)
    }

    /// Installs the rules. A failure is logged and retried: containers that reach only each
    /// other are worth more than none.
    pub(crate) async fn install(
        self,
        subnet: Ipv4Net,
        readiness: Readiness,
        repairs: Repairs,
    ) -> InstalledRules {
        let mut rules = InstalledRules::default();
        rules.switched_on_forwarding = enable_forwarding();
        let prefixes = Prefixes {
            network: self.network,
            subnet,
        };
        let (wanted, resync) = (self.wanted, self.resync);
        let mut former = self.former;
        former.retain(|other| *other != prefixes);
        let (choice, detected) = match self.installer {
            Installer::Nobody => return rules,
            Installer::Person(tool) => {
                print(&Firewall::text(tool, prefixes, wanted));
                return rules;
            }
            Installer::Tool(choice, detected) => (choice, detected),
        };
        let Ok(detected) = detected else {
            if wanted.is_nothing() {
                return rules;
            }
            readiness.set_rules(false);
            let task = async move {
                let detected = choice.wait_for_tool(prefixes, wanted, resync).await;
                let firewall = Firewall::new(detected, prefixes, wanted, former);
                let installed = install_first(&firewall, wanted, &readiness).await;
                if installed {
                    firewall.remove_ipv6_rules().await;
                }
                keep_installed(&firewall, resync, installed, &readiness, &repairs).await;
            };
            rules.task = Some(tokio::spawn(task));
            return rules;
        };
        let firewall = Firewall::new(detected, prefixes, wanted, former);
        let before = firewall.snapshot().await;
        let installed = install_first(&firewall, wanted, &readiness).await;
        rules.installed = installed;
        let firewall = Arc::new(firewall);
        rules.before = Some((Arc::clone(&firewall), before));
        let task =
            async move { keep_installed(&firewall, resync, installed, &readiness, &repairs).await };
        rules.task = Some(tokio::spawn(task));
        rules
    }
}

impl ToolChoice {
    async fn detect(self, network: Ipv4Net, wanted: Wanted) -> Result<DetectedTool, ToolError> {
        DetectedTool::detect(self.preferred, self.may_fall_back, network, wanted).await
    }

    /// Waits until a tool is installed.
    async fn wait_for_tool(
        self,
        prefixes: Prefixes,
        wanted: Wanted,
        resync: Duration,
    ) -> DetectedTool {
        loop {
            tokio::time::sleep(resync.max(RETRY_INTERVAL)).await;
            match self.detect(prefixes.network, wanted).await {
                Ok(detected) => return detected,
                Err(error) => tracing::debug!(event = "firewall_missing", %error),
            }
        }
    }
}

/// Installs the rules for the first time; returns whether that succeeded.
async fn install_first(firewall: &Firewall, wanted: Wanted, readiness: &Readiness) -> bool {
    let result = firewall.install().await;
    match &result {
        Ok(()) => tracing::info!(
            event = "firewall", tool = %firewall.tool(), masquerade = wanted.masquerade,
            forward = wanted.forward, "rules are in place"
        ),
        Err(error) => {
            let impact = impact(wanted);
            tracing::error!(event = "firewall_failed", tool = %firewall.tool(), %error, "rules are not in place, retrying: {impact}");
        }
    }
    // Rules that could not be removed break nothing.
    readiness.set_rules(result.is_ok() || wanted.is_nothing());
    result.is_ok()
}

async fn keep_installed(
    firewall: &Firewall,
    resync: Duration,
    mut installed: bool,
    readiness: &Readiness,
    repairs: &Repairs,
) {
    if resync.is_zero() {
        while !installed {
            tokio::time::sleep(RETRY_INTERVAL).await;
            installed = firewall.install().await.is_ok();
            readiness.set_rules(installed);
        }
    } else {
        let on_state = |installed| readiness.set_rules(installed);
        firewall
            .resync(resync, installed, on_state, || {
                repairs.count(Repaired::Rules)
            })
            .await;
    }
}

/// Keeps the rules installed until it is dropped. The rules themselves stay, as flannel's do.
#[derive(Debug, Default)]
pub(crate) struct InstalledRules {
    task: Option<JoinHandle<()>>,
    /// What this start found.
    before: Option<(Arc<Firewall>, Snapshot)>,
    installed: bool,
    switched_on_forwarding: bool,
}

impl InstalledRules {
    /// The start has succeeded: from now on nothing is rolled back.
    pub(crate) async fn commit(&mut self) {
        self.switched_on_forwarding = false;
        if let Some((firewall, _)) = self.before.take()
            && self.installed
        {
            firewall.remove_ipv6_rules().await;
        }
    }

    /// Rolls back what this start changed.
    pub(crate) async fn roll_back(mut self) {
        self.stop();
        if let Some((firewall, before)) = &self.before
            && let Err(error) = firewall.roll_back(before).await
        {
            tracing::error!(event = "firewall_left", %error, "cannot roll back the rules of a start that failed");
        }
        if self.switched_on_forwarding
            && let Err(error) = forwarding::switch_off()
        {
            tracing::warn!(event = "ip_forward", %error, "net.ipv4.ip_forward stays on");
        }
    }

    fn stop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}

impl Drop for InstalledRules {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What does not work without the rules.
const fn impact(wanted: Wanted) -> &'static str {
    if wanted.masquerade {
        "containers do not reach addresses outside of the overlay"
    } else {
        "if the policy of FORWARD is DROP (Docker sets that), containers do not reach each other"
    }
}

/// The networks of earlier runs, from the subnet file and our own state: the former may have
/// been overwritten by Docker's options, or be flannel's.
fn former(options: &RunOptions, state: Option<&State>) -> Vec<Prefixes> {
    let mut found = Vec::new();
    let file = subnet_env::read(&options.subnet_file).unwrap_or_default();
    let state = state.map(|state| (state.network, state.subnet));
    let file = file
        .network
        .map(|network| (network, file.subnet.unwrap_or(network)));
    for (network, subnet) in [file, state].into_iter().flatten() {
        let prefixes = Prefixes { network, subnet };
        if !found.contains(&prefixes) {
            found.push(prefixes);
        }
    }
    found
}

/// Switches forwarding on; returns whether it was off.
fn enable_forwarding() -> bool {
    match forwarding::ensure() {
        Forwarding::On => false,
        Forwarding::SwitchedOn => {
            tracing::info!(
                event = "ip_forward",
                "switched on net.ipv4.ip_forward: without it containers reach nothing"
            );
            true
        }
        Forwarding::Off(error) => {
            tracing::debug!(event = "ip_forward", %error, "still off");
            false
        }
    }
}

fn print(text: &str) {
    use std::io::Write;
    // With stdout closed there is no reader.
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}
