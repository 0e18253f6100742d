//! Links, addresses, routes and neighbours of one network namespace, over rtnetlink.
//!
//! A thin layer: one method is one request of `rtnetlink(7)`. Replies are reduced to what this
//! program needs, errors name the operation and the object. The callers make the decisions:
//! [`super::link`], [`super::routes`], [`super::interface`].

mod address;
mod create;
mod error;
mod events;
mod link;
mod neighbour;
mod route;

use std::future::Future;

use futures_util::{StreamExt, stream};
use rtnetlink::sys::AsyncSocket;

pub use address::AddressInfo;
pub use create::VxlanSettings;
pub use error::NetlinkError;
pub use events::Changes;
pub use link::LinkInfo;
pub use route::{Route, RouteLookup};

/// Protocol number of the routes that this program installs, by which it recognizes them.
///
/// 158 is assigned neither in the kernel's `include/uapi/linux/rtnetlink.h` nor in
/// iproute2's `rt_protos`. flannel uses `boot` (3), as does every `ip route add`, so it cannot
/// distinguish its own routes from an administrator's.
pub const ROUTE_PROTOCOL: u8 = 158;

/// Requests in flight at a time.
const CONCURRENT_REQUESTS: usize = 64;

/// Makes many requests, in a bounded number at a time: the kernel takes less time to answer one
/// than the answer takes to arrive. Returns the results in order.
pub(crate) async fn concurrently<T>(
    requests: impl IntoIterator<Item = impl Future<Output = T>>,
) -> Vec<T> {
    stream::iter(requests)
        .buffered(CONCURRENT_REQUESTS)
        .collect()
        .await
}

/// Awaits the reply to a request; `operation` describes it in the error.
async fn request<T>(
    reply: impl Future<Output = Result<T, rtnetlink::Error>>,
    operation: impl FnOnce() -> String,
) -> Result<T, NetlinkError> {
    let result = reply.await;
    result.map_err(|error| NetlinkError::request(operation(), error))
}

/// A connection to rtnetlink. Clones share it.
#[derive(Debug, Clone)]
pub struct Netlink {
    handle: rtnetlink::Handle,
    /// Our netlink address. The kernel puts it into notifications of our own changes.
    port: u32,
}

impl Netlink {
    /// Opens a netlink socket and spawns the task that serves it on the current tokio runtime.
    ///
    /// The socket stays in the network namespace of the calling thread. On a runtime with
    /// several threads all of them must be in that namespace.
    ///
    /// # Errors
    ///
    /// [`NetlinkError::Open`].
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime, as [`tokio::spawn`] does.
    pub fn connect() -> Result<Self, NetlinkError> {
        let (mut connection, handle, _unsolicited) =
            rtnetlink::new_connection().map_err(NetlinkError::Open)?;
        let socket = connection.socket_mut().socket_mut();
        let address = socket.bind_auto().map_err(NetlinkError::Open)?;
        // The task ends when the last clone of the handle is dropped.
        tokio::spawn(connection);
        let port = address.port_number();
        Ok(Self { handle, port })
    }
}
