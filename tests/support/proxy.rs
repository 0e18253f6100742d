//! A TCP relay that can stop forwarding without closing anything, like a lost network, or close
//! everything and refuse connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

#[derive(Default)]
struct State {
    frozen: AtomicBool,
    shut: AtomicBool,
    /// Accepted connections.
    taken: AtomicUsize,
}

pub(crate) struct Proxy {
    port: u16,
    state: Arc<State>,
    relays: Arc<std::sync::Mutex<JoinSet<()>>>,
    task: JoinHandle<()>,
}

impl Proxy {
    pub(crate) async fn start(to: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::<State>::default();
        let relays = Arc::<std::sync::Mutex<JoinSet<()>>>::default();
        let (of_task, spawned) = (state.clone(), relays.clone());
        let task = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                of_task.taken.fetch_add(1, Ordering::Relaxed);
                if of_task.shut.load(Ordering::Relaxed) {
                    continue;
                }
                let Ok(far) = TcpStream::connect(("127.0.0.1", to)).await else {
                    continue;
                };
                let (near_read, near_write) = near.into_split();
                let (far_read, far_write) = far.into_split();
                let mut relays = spawned.lock().unwrap();
                relays.spawn(relay(near_read, far_write, of_task.clone()));
                relays.spawn(relay(far_read, near_write, of_task.clone()));
            }
        });
        Self {
            port,
            state,
            relays,
            task,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(crate) fn freeze(&self) {
        self.state.frozen.store(true, Ordering::Relaxed);
    }

    /// Closes all connections; new ones are closed at once.
    pub(crate) fn shut(&self) {
        self.state.shut.store(true, Ordering::Relaxed);
        self.cut();
    }

    /// Closes all connections.
    pub(crate) fn cut(&self) {
        self.relays.lock().unwrap().abort_all();
    }

    pub(crate) fn open(&self) {
        self.state.shut.store(false, Ordering::Relaxed);
    }

    /// Number of connection attempts.
    pub(crate) fn tries(&self) -> usize {
        self.state.taken.load(Ordering::Relaxed)
    }
}

async fn relay(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, state: Arc<State>) {
    let mut buffer = [0; 4096];
    while let Ok(length) = from.read(&mut buffer).await {
        if state.frozen.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        if length == 0 || to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}
