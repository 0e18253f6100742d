//! The regular check of the host: repairs what others have changed, and follows the underlay.

use std::time::Instant;

use super::mtu::device_mtu;
use super::{CHECK_INTERVAL, Serving};
use crate::host::interface::ExternalInterface;

impl Serving {
    pub(super) async fn check_host(&mut self) {
        if let Some(slept) = self.suspend_detector.since_last_call() {
            let seconds = slept.as_secs();
            tracing::warn!(
                event = "suspended",
                seconds,
                "this machine was suspended: renewing the lease"
            );
            // Meanwhile it came closer to its expiry.
            self.unpublished = Some(self.attrs.clone());
        }
        if self.device_repair.is_none()
            && let Err(error) = self.overlay.reconcile().await
        {
            tracing::warn!(event = "reconcile_failed", %error, "trying again soon");
        }
        match self.underlay.refresh(&self.netlink).await {
            Ok(before) => self.follow_underlay(before).await,
            Err(error) => {
                tracing::warn!(event = "underlay_unseen", %error, "trying again soon");
            }
        }
        let subnet = self.state.subnet;
        self.bridge_mtus
            .check(&self.netlink, subnet, self.mtu)
            .await;
        let now = Instant::now();
        self.note_received(now);
        // Next hops may have changed.
        self.update_probes();
        self.watchdog.feed(&self.overlay.progress(), now);
        if self.manager.own.has_changed().unwrap_or(false) {
            self.manager.own.mark_unchanged();
            self.report_status();
        }
        self.timers.checked = Some(now);
        self.timers.check = now + CHECK_INTERVAL;
    }

    fn note_received(&mut self, now: Instant) {
        let mut before = std::mem::take(&mut self.received);
        for (peer, counted) in self.overlay.peer_totals() {
            let mut received = before.remove(&peer.subnet).unwrap_or_default();
            if counted.in_packets != received.packets {
                received.packets = counted.in_packets;
                received.last = (counted.in_packets > 0).then_some(now);
            }
            self.received.insert(peer.subnet, received);
        }
    }

    /// Follows the external interface. `before` is what it was, if it has changed.
    async fn follow_underlay(&mut self, before: Option<ExternalInterface>) {
        let now = self.underlay.current().clone();
        let has_changed = before.is_some();
        if let Some(before) = before {
            if (now.address, now.public_ip) != (before.address, before.public_ip) {
                self.change_address(&before, &now).await;
            } else if now.index != before.index
                && self.overlay.options().ingress_policy.interface.is_some()
            {
                tracing::warn!(
                    event = "interface_changed",
                    old = before.name,
                    new = now.name,
                    "our address moved to another interface: receiving there"
                );
                self.move_overlay(&now).await;
            }
        }
        match device_mtu(&self.config, &now) {
            // The last attempt may have failed, so this does not depend on a change.
            Ok(mtu) if mtu != self.mtu && self.device_repair.is_none() => {
                self.change_mtu(mtu, &now).await;
            }
            Err(error) if has_changed => {
                let device_mtu = self.mtu;
                tracing::error!(event = "mtu", %error, device_mtu, "the device keeps its MTU");
            }
            _ => {}
        }
    }

    /// Sends from the new address, and publishes it in the lease.
    async fn change_address(&mut self, before: &ExternalInterface, now: &ExternalInterface) {
        tracing::warn!(
            event = "address_changed", old = %before.address, new = %now.address,
            public_ip = %now.public_ip, interface = now.name,
            "this host has another address: publishing it, and sending from it"
        );
        self.move_overlay(now).await;
        self.probes.set_source(now.address);
        if self.attrs.public_ip == now.public_ip {
            return;
        }
        self.attrs.public_ip = now.public_ip;
        self.state.public_ip = now.public_ip;
        self.unpublished = Some(self.attrs.clone());
        self.offline_cache.changed(Instant::now());
        if let Err(error) = self.files.save_state(&self.state) {
            tracing::error!(event = "state_file", %error, "the next start will not know our address");
        }
    }

    async fn change_mtu(&mut self, mtu: u16, now: &ExternalInterface) {
        let (old, outer) = (self.mtu, now.mtu);
        if let Err(error) = self.overlay.set_mtu(mtu).await {
            tracing::error!(event = "mtu", old, new = mtu, %error, "cannot change the device's MTU");
            return;
        }
        self.mtu = mtu;
        self.probes.set_mtu(mtu);
        tracing::warn!(
            event = "mtu_changed",
            old,
            new = mtu,
            interface = now.name,
            interface_mtu = outer,
            "the device's MTU follows the interface; containers keep theirs until docker is \
             restarted, and learn the new one by ICMP until then"
        );
        if let Err(error) = self.files.rewrite_subnet_file(&self.state, mtu) {
            tracing::error!(event = "subnet_file", %error, "the subnet file has the old MTU");
        }
    }
}
