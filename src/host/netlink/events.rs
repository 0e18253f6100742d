//! When something about links, addresses or routes changes: not what, only that.

use std::sync::Arc;

use futures_util::StreamExt;
use rtnetlink::MulticastGroup;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::NetlinkError;

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
    /// Listens to the kernel, in the network namespace of the calling thread.
    ///
    /// # Errors
    ///
    /// [`NetlinkError::Open`] when the socket can't be made.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime, as [`tokio::spawn`] does.
    pub fn listen() -> Result<Self, NetlinkError> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv4Route,
        ];
        let (connection, handle, mut messages) =
            rtnetlink::new_multicast_connection(&groups).map_err(NetlinkError::Open)?;
        let happened = Arc::new(Notify::new());
        let notify = Arc::clone(&happened);
        let reading = tokio::spawn(async move {
            // Whatever it is: who listens compares everything anyway.
            while messages.next().await.is_some() {
                notify.notify_one();
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
