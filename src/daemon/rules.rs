//! Masquerading, forward rules and forwarding, as the options and the network config ask.

use std::time::Duration;

use tokio::task::JoinHandle;

use super::mended::Mended;
use super::options::{FirewallChoice, RunOptions};
use super::subnet_env::Previous;
use crate::firewall::keeper::{Firewall, Tool};
use crate::firewall::rules::{Subject, Wanted};
use crate::host::forwarding::{self, Forwarding};
use crate::subnet::config::NetworkConfig;

/// Keeps the rules in place until it is dropped. The rules stay, as flannel's do.
#[derive(Debug)]
pub struct RulesKept(Option<JoinHandle<()>>);

impl Drop for RulesKept {
    fn drop(&mut self) {
        if let Some(task) = self.0.take() {
            task.abort();
        }
    }
}

/// Puts the rules in place. What cannot be done is logged and tried again: containers that
/// reach each other are worth more than none.
pub async fn establish(
    options: &RunOptions,
    config: &NetworkConfig,
    subject: Subject,
    previous: Previous,
) -> RulesKept {
    forward_packets();
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
    let (preferred, may_change) = match options.firewall {
        FirewallChoice::None => return RulesKept(None),
        FirewallChoice::Print => {
            print(&Firewall::text(by_config, subject, wanted));
            return RulesKept(None);
        }
        FirewallChoice::Auto => (by_config, true),
        FirewallChoice::Iptables => (Tool::Iptables, false),
        FirewallChoice::Nftables => (Tool::Nftables, false),
    };
    let former = former(subject, previous);
    let found = Firewall::find(preferred, may_change, subject, wanted, former).await;
    let firewall = match found {
        Ok(firewall) => firewall,
        Err(error) if wanted.is_nothing() => {
            tracing::debug!(event = "firewall_missing", %error, "no rules are wanted");
            return RulesKept(None);
        }
        Err(error) => {
            let lost = lost(wanted);
            tracing::error!(event = "firewall_missing", %error, "no rules are installed: {lost}");
            return RulesKept(None);
        }
    };
    if firewall.tool() == Tool::Iptables && !forwarding::bridges_are_filtered() {
        tracing::warn!(
            event = "br_netfilter",
            "bridged packets do not pass iptables; Docker and Kubernetes expect that: modprobe br_netfilter"
        );
    }
    match firewall.establish().await {
        Ok(()) => tracing::info!(
            event = "firewall", tool = %firewall.tool(), masquerade = wanted.masquerade,
            forward = wanted.forward, "rules are in place"
        ),
        Err(error) => {
            let lost = lost(wanted);
            tracing::error!(event = "firewall_failed", tool = %firewall.tool(), %error, "rules are not in place, trying again: {lost}");
        }
    }
    let every = options.iptables_resync;
    let task = (every > Duration::ZERO).then(|| {
        tokio::spawn(async move {
            firewall.keep(every, || Mended::Rules.note()).await;
        })
    });
    RulesKept(task)
}

/// What does not work without the rules.
const fn lost(wanted: Wanted) -> &'static str {
    if wanted.masquerade {
        "containers do not reach addresses outside of the overlay"
    } else {
        "where the policy of FORWARD is DROP (Docker sets that) containers do not reach each other"
    }
}

fn former(subject: Subject, previous: Previous) -> Vec<Subject> {
    let former = Subject {
        network: previous.network.unwrap_or(subject.network),
        subnet: previous.subnet.unwrap_or(subject.subnet),
    };
    (former != subject).then_some(former).into_iter().collect()
}

fn forward_packets() {
    match forwarding::ensure() {
        Forwarding::On => {}
        Forwarding::SwitchedOn => tracing::info!(
            event = "ip_forward",
            "switched on net.ipv4.ip_forward: without it containers reach nobody"
        ),
        Forwarding::Off(error) => tracing::error!(
            event = "ip_forward", %error,
            "net.ipv4.ip_forward is off and cannot be switched on, so containers reach nobody: sysctl -w net.ipv4.ip_forward=1"
        ),
    }
}

fn print(text: &str) {
    use std::io::Write;
    // Nobody reads it when stdout is closed.
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}
