//! Links, addresses, routes and neighbours of one network namespace, over rtnetlink.
//!
//! A thin layer: one method is one request of `rtnetlink(7)`, its answer in types that
//! hold what this program needs, its failure with what was tried on what. Decisions live
//! in the callers: [`super::link`], [`super::routes`], [`super::interface`].

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

/// Protocol number of the routes this program installs, by which it knows them again.
///
/// 158 is assigned neither in the kernel's `include/uapi/linux/rtnetlink.h` nor in
/// iproute2's `rt_protos`. flannel uses `boot` (3), which every `ip route add` typed by a
/// person gets too, so it can't tell its own routes from theirs.
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

/// A connection to rtnetlink. Clones share it.
#[derive(Debug, Clone)]
pub struct Netlink {
    handle: rtnetlink::Handle,
    /// Our address as the kernel knows it: what we changed ourselves is told to everybody
    /// with it. 0 where it could not be learned.
    port: u32,
}

impl Netlink {
    /// Opens a netlink socket and starts the task that serves it on the current tokio
    /// runtime.
    ///
    /// The socket belongs for good to the network namespace of the calling thread. On a
    /// runtime with several threads all of them must be in that namespace.
    ///
    /// # Errors
    ///
    /// [`NetlinkError::Open`] when the socket can't be made.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime, as [`tokio::spawn`] does.
    pub fn connect() -> Result<Self, NetlinkError> {
        let (mut connection, handle, _unsolicited) =
            rtnetlink::new_connection().map_err(NetlinkError::Open)?;
        let socket = connection.socket_mut().socket_mut();
        let address = socket.bind_auto().map_err(NetlinkError::Open)?;
        // The task ends when the last clone of the handle is gone.
        tokio::spawn(connection);
        let port = address.port_number();
        Ok(Self { handle, port })
    }
}
