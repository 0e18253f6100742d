//! Notifies that links, addresses or routes have changed, but not how. Changes of this program
//! itself are left out: at five hundred leases a second they would cause as many checks of the
//! whole host.

use std::sync::Arc;

use futures_util::StreamExt;
use rtnetlink::MulticastGroup;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::{Netlink, NetlinkError};

/// A subscription to changes; ends on drop.
#[derive(Debug)]
pub struct Changes {
    changed: Arc<Notify>,
    tasks: [JoinHandle<()>; 2],
    /// Keeps the connection open.
    _handle: rtnetlink::Handle,
}

impl Drop for Changes {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Changes {
    /// Subscribes in the network namespace of the calling thread, but not to changes that `ours`
    /// requests.
    pub(crate) fn listen(ours: &Netlink) -> Result<Self, NetlinkError> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv4Route,
        ];
        let (connection, handle, mut messages) =
            rtnetlink::new_multicast_connection(&groups).map_err(NetlinkError::Open)?;
        let changed = Arc::new(Notify::new());
        let notify = Arc::clone(&changed);
        let own_port = ours.port;
        let reading = tokio::spawn(async move {
            // The subscriber compares everything, whatever the message says. Changes by the
            // kernel itself, and overruns, have port 0.
            while let Some((message, _)) = messages.next().await {
                let port = message.header.port_number;
                if port == 0 || port != own_port {
                    notify.notify_one();
                }
            }
        });
        Ok(Self {
            changed,
            tasks: [tokio::spawn(connection), reading],
            _handle: handle,
        })
    }

    /// Waits for a change; several between two calls count as one.
    pub(crate) async fn next(&self) {
        self.changed.notified().await;
    }
}
