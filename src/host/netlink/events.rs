//! When something about links, addresses or routes changes: not what, only that. Of what
//! this program changes itself, nothing is told: five hundred leases a second would be as
//! many reasons to look at everything.

use std::sync::Arc;

use futures_util::StreamExt;
use rtnetlink::MulticastGroup;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::{Netlink, NetlinkError};

/// Tells of changes until it is dropped.
#[derive(Debug)]
pub struct Changes {
    happened: Arc<Notify>,
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
    /// Listens to the kernel, in the network namespace of the calling thread; what comes of
    /// requests of `ours` is left out.
    ///
    /// # Errors
    ///
    /// [`NetlinkError::Open`] when the socket can't be made.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime, as [`tokio::spawn`] does.
    pub fn listen(ours: &Netlink) -> Result<Self, NetlinkError> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv4Route,
        ];
        let (connection, handle, mut messages) =
            rtnetlink::new_multicast_connection(&groups).map_err(NetlinkError::Open)?;
        let happened = Arc::new(Notify::new());
        let notify = Arc::clone(&happened);
        let own_port = ours.port;
        let reading = tokio::spawn(async move {
            // Whatever it is: who listens compares everything anyway. The kernel's own
            // doings, and lost messages, have port 0.
            while let Some((message, _)) = messages.next().await {
                let port = message.header.port_number;
                if port == 0 || port != own_port {
                    notify.notify_one();
                }
            }
        });
        Ok(Self {
            happened,
            tasks: [tokio::spawn(connection), reading],
            _handle: handle,
        })
    }

    /// Waits for the next change; several before it is called again count as one.
    pub async fn next(&self) {
        self.happened.notified().await;
    }
}
