//! Masquerading, forward rules and forwarding, as the options and the network config ask.

use std::sync::Arc;
use std::time::Duration;

use ipnet::Ipv4Net;
use tokio::task::JoinHandle;

use crate::daemon::api::health::Readiness;
use crate::daemon::options::{FirewallChoice, RunOptions};
use crate::daemon::serve::repairs::Mended;
use crate::daemon::state::state_file::State;
use crate::daemon::state::subnet_env;
use crate::firewall::keeper::{Before, Firewall, Found, Tool};
use crate::firewall::rules::{Subject, Wanted};
use crate::firewall::tools::ToolError;
use crate::host::forwarding::{self, Forwarding};
use crate::subnet::config::NetworkConfig;

/// Pause between two looks for a tool, where the rules are never looked at again.
const LOOK_FOR_TOOL: Duration = Duration::from_secs(5);

/// Which rules there shall be, and who will hold them.
#[derive(Debug)]
pub struct Plan {
    wanted: Wanted,
    every: Duration,
    network: Ipv4Net,
    former: Vec<Subject>,
    holder: Holder,
}

#[derive(Debug)]
enum Holder {
    /// Nobody.
    None,
    /// A person.
    Print(Tool),
    /// A tool, or the lack of one.
    Tool(Choice, Result<Found, ToolError>),
}

#[derive(Debug, Clone, Copy)]
struct Choice {
    preferred: Tool,
    may_change: bool,
}

impl Plan {
    /// Looks what the host has; nothing is changed.
    pub async fn look(options: &RunOptions, config: &NetworkConfig, state: Option<&State>) -> Self {
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
        let choice = |preferred, may_change| Choice {
            preferred,
            may_change,
        };
        let choice = match options.firewall {
            FirewallChoice::None => None,
            FirewallChoice::Print => None,
            FirewallChoice::Auto => Some(choice(by_config, true)),
            FirewallChoice::Iptables => Some(choice(Tool::Iptables, false)),
            FirewallChoice::Nftables => Some(choice(Tool::Nftables, false)),
        };
        let holder = match choice {
            Some(choice) => Holder::Tool(choice, choice.look(config.network, wanted).await),
            None if options.firewall == FirewallChoice::Print => Holder::Print(by_config),
            None => Holder::None,
        };
        Self {
            wanted,
            every: options.iptables_resync,
            network: config.network,
            former: former(options, state),
            holder,
        }
    }

    /// Logs what will not work for want of a tool.
    pub fn tell_what_is_missing(&self) {
        let Holder::Tool(_, Err(error)) = &self.holder else {
            return;
        };
        if self.wanted.is_nothing() {
            tracing::debug!(event = "firewall_missing", %error, "no rules are wanted");
        } else {
            let lost = lost(self.wanted);
            tracing::error!(event = "firewall_missing", %error, "no rules can be installed, looking again and again: {lost}");
        }
    }

    /// Whether it is iptables that bridged packets shall pass.
    #[must_use]
    pub const fn are_of_iptables(&self) -> bool {
        let tool = match &self.holder {
            Holder::Tool(_, Ok(found)) => found.tool,
            Holder::Tool(choice, Err(_)) => choice.preferred,
            Holder::None | Holder::Print(_) => return false,
        };
        matches!(tool, Tool::Iptables)
    }

    /// Puts the rules in place. What cannot be done is logged and tried again: containers that
    /// reach each other are worth more than none.
    pub async fn establish(self, subnet: Ipv4Net, readiness: Readiness) -> RulesKept {
        let mut kept = RulesKept::default();
        kept.switched_on = forward_packets();
        let subject = Subject {
            network: self.network,
            subnet,
        };
        let (wanted, every) = (self.wanted, self.every);
        let mut former = self.former;
        former.retain(|other| *other != subject);
        let (choice, found) = match self.holder {
            Holder::None => return kept,
            Holder::Print(tool) => {
                print(&Firewall::text(tool, subject, wanted));
                return kept;
            }
            Holder::Tool(choice, found) => (choice, found),
        };
        let Ok(found) = found else {
            if wanted.is_nothing() {
                return kept;
            }
            readiness.set_rules(false);
            let task = async move {
                let found = choice.look_until_found(subject, wanted, every).await;
                let firewall = Firewall::new(found, subject, wanted, former);
                let in_place = first(&firewall, wanted, &readiness).await;
                if in_place {
                    firewall.sweep_ipv6().await;
                }
                keep(&firewall, every, in_place, &readiness).await;
            };
            kept.task = Some(tokio::spawn(task));
            return kept;
        };
        let firewall = Firewall::new(found, subject, wanted, former);
        let before = firewall.remember().await;
        let in_place = first(&firewall, wanted, &readiness).await;
        kept.in_place = in_place;
        let firewall = Arc::new(firewall);
        kept.before = Some((Arc::clone(&firewall), before));
        let task = async move { keep(&firewall, every, in_place, &readiness).await };
        kept.task = Some(tokio::spawn(task));
        kept
    }
}

impl Choice {
    async fn look(self, network: Ipv4Net, wanted: Wanted) -> Result<Found, ToolError> {
        Found::look(self.preferred, self.may_change, network, wanted).await
    }

    /// A tool that is installed later is used from then on.
    async fn look_until_found(self, subject: Subject, wanted: Wanted, every: Duration) -> Found {
        let pause = every.max(LOOK_FOR_TOOL);
        loop {
            tokio::time::sleep(pause).await;
            match self.look(subject.network, wanted).await {
                Ok(found) => return found,
                Err(error) => tracing::debug!(event = "firewall_missing", %error),
            }
        }
    }
}

/// Installs the rules, and tells whether that was done.
async fn first(firewall: &Firewall, wanted: Wanted, readiness: &Readiness) -> bool {
    let done = firewall.establish().await;
    match &done {
        Ok(()) => tracing::info!(
            event = "firewall", tool = %firewall.tool(), masquerade = wanted.masquerade,
            forward = wanted.forward, "rules are in place"
        ),
        Err(error) => {
            let lost = lost(wanted);
            tracing::error!(event = "firewall_failed", tool = %firewall.tool(), %error, "rules are not in place, trying again: {lost}");
        }
    }
    // What was to be removed and could not be keeps nobody from anything.
    readiness.set_rules(done.is_ok() || wanted.is_nothing());
    done.is_ok()
}

async fn keep(firewall: &Firewall, every: Duration, in_place: bool, readiness: &Readiness) {
    if every.is_zero() {
        // They are not looked at again, once they are there.
        let mut in_place = in_place;
        while !in_place {
            tokio::time::sleep(LOOK_FOR_TOOL).await;
            in_place = firewall.establish().await.is_ok();
            readiness.set_rules(in_place);
        }
    } else {
        let tell = |in_place| readiness.set_rules(in_place);
        firewall
            .keep(every, in_place, tell, || Mended::Rules.note())
            .await;
    }
}

/// Keeps the rules in place until it is dropped. The rules stay, as flannel's do.
#[derive(Debug, Default)]
pub struct RulesKept {
    task: Option<JoinHandle<()>>,
    /// What this start found.
    before: Option<(Arc<Firewall>, Before)>,
    /// Whether the rules could be made.
    in_place: bool,
    /// Whether this start switched forwarding on.
    switched_on: bool,
}

impl RulesKept {
    /// The start has succeeded: there is nothing to take back any more.
    pub async fn settle(&mut self) {
        self.switched_on = false;
        if let Some((firewall, _)) = self.before.take()
            && self.in_place
        {
            firewall.sweep_ipv6().await;
        }
    }

    /// Takes back what this start changed.
    pub async fn undo(mut self) {
        self.stop();
        if let Some((firewall, before)) = &self.before
            && let Err(error) = firewall.put_back(before).await
        {
            tracing::error!(event = "firewall_left", %error, "cannot take back the rules of a start that failed");
        }
        if self.switched_on
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

impl Drop for RulesKept {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What does not work without the rules.
const fn lost(wanted: Wanted) -> &'static str {
    if wanted.masquerade {
        "containers do not reach addresses outside of the overlay"
    } else {
        "where the policy of FORWARD is DROP (Docker sets that) containers do not reach each other"
    }
}

/// The networks of earlier lives, as far as the subnet file and our own state tell: the one may
/// have been overwritten by docker's options, the other may be flannel's.
fn former(options: &RunOptions, state: Option<&State>) -> Vec<Subject> {
    let mut found = Vec::new();
    let file = subnet_env::read(&options.subnet_file).unwrap_or_default();
    let state = state.map(|state| (state.network, state.subnet));
    let file = file
        .network
        .map(|network| (network, file.subnet.unwrap_or(network)));
    for (network, subnet) in [file, state].into_iter().flatten() {
        let subject = Subject { network, subnet };
        if !found.contains(&subject) {
            found.push(subject);
        }
    }
    found
}

/// Whether it was this call that switched it on.
fn forward_packets() -> bool {
    match forwarding::ensure() {
        Forwarding::On => false,
        Forwarding::SwitchedOn => {
            tracing::info!(
                event = "ip_forward",
                "switched on net.ipv4.ip_forward: without it containers reach nobody"
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
    // Nobody reads it when stdout is closed.
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}
