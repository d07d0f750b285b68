//! Where a stand-in listens, and the connections that it took there.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use parking_lot::Mutex;
use tokio::{
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
};

/// A port that can be closed and opened again.
#[derive(Debug, Default)]
pub(super) struct Port {
    open: Mutex<Option<Open>>,
}

#[derive(Debug)]
struct Open {
    up: Up,
    accepting: JoinHandle<()>,
}

/// Whether the port that took a connection is still open. What came over another one must change nothing:
/// a task of its own may outlive the connection.
#[derive(Clone, Debug)]
pub(super) struct Up(Arc<AtomicBool>);

impl Up {
    /// Whether it is.
    pub(super) fn is_up(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

impl Port {
    /// Begins to listen, and serves each connection in a task of its own. Port 0 takes a free one.
    /// Returns where it listens.
    ///
    /// # Errors
    /// The address is taken or not this host's.
    pub(super) async fn start<S, F>(&self, address: SocketAddr, serve: S) -> io::Result<SocketAddr>
    where
        S: Fn(TcpStream, Up) -> F + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let up = Up(Arc::new(AtomicBool::new(true)));
        let lent = up.clone();
        let accepting = tokio::spawn(async move {
            // Dropped with this task, and every connection with it.
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                // Without it answers are only slower.
                stream.set_nodelay(true).unwrap_or_default();
                connections.spawn(serve(stream, lent.clone()));
                while connections.try_join_next().is_some() {}
            }
        });
        self.stop();
        *self.open.lock() = Some(Open { up, accepting });
        Ok(address)
    }

    /// Stops listening and drops every connection.
    pub(super) fn stop(&self) {
        if let Some(Open { up, accepting }) = self.open.lock().take() {
            up.0.store(false, Ordering::Release);
            accepting.abort();
        }
    }
}
