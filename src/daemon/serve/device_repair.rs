//! Rebuilds device and packet loop when they are lost, or have to move.

use super::Serving;
use super::repairs::{DeviceRepair, Repaired};
use crate::daemon::failure::Failure;
use crate::dataplane::DeviceGone;
use crate::host::interface::ExternalInterface;

impl Serving {
    pub(super) fn device_gone(&mut self, gone: &DeviceGone) {
        if self.device_repair.is_none() {
            tracing::error!(event = "device_gone", error = %gone, "rebuilding the device");
            self.begin_repair(gone.to_string());
        }
    }

    pub(super) async fn rebuild_device(&mut self) {
        match self.overlay.restore().await {
            Ok(()) => self.rebuilt(),
            Err(error) => self.rebuild_failed(&error),
        }
    }

    /// Sends from and receives at the interface's address.
    pub(super) async fn move_overlay(&mut self, to: &ExternalInterface) {
        match self.overlay.set_source(to.address, to.index).await {
            Ok(()) => self.rebuilt(),
            Err(error) => {
                if self.device_repair.is_none() {
                    self.begin_repair(error.to_string());
                }
                self.rebuild_failed(&error);
            }
        }
    }

    /// Reports the node as not ready until the device is rebuilt.
    fn begin_repair(&mut self, error: String) {
        self.readiness.set_device(false);
        self.device_repair = Some(DeviceRepair::new(error));
    }

    fn rebuilt(&mut self) {
        // Reports are of the workers before.
        while self.device_gone.try_recv().is_ok() {}
        if self.overlay.routes_in_doubt() {
            self.timers.check_soon();
        }
        if self.device_repair.take().is_none() {
            return;
        }
        self.readiness.set_device(true);
        self.repairs.count(Repaired::Device);
        tracing::info!(
            event = "device_restored",
            "device and packet loop are rebuilt"
        );
        self.report_status();
    }

    fn rebuild_failed(&mut self, error: &Failure) {
        let Some(repair) = &mut self.device_repair else {
            return;
        };
        if repair.failed(error.to_string()) {
            tracing::error!(event = "restore_failed", %error, "trying again");
        }
        self.report_status();
    }
}
