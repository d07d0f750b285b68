//! The listener of a stand-in, and the connections that it took there.

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
pub(crate) struct Port {
    open: Mutex<Option<Open>>,
}

#[derive(Debug)]
struct Open {
    line: Arc<Line>,
    accepting: JoinHandle<()>,
}

/// What those who serve a connection must know of the port that took it.
#[derive(Debug, Default)]
pub(crate) struct Line {
    closed: AtomicBool,
    loses_answers: AtomicBool,
}

impl Line {
    /// Whether the port is closed. What came over it must change nothing any more: a task of its own may
    /// outlive its connection.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Whether what is asked is done, and the connection broken in place of an answer.
    pub(crate) fn loses_answers(&self) -> bool {
        self.loses_answers.load(Ordering::Acquire)
    }
}

impl Port {
    /// Begins to listen, and serves each connection in a task of its own. Port 0 takes a free one.
    /// Returns the address at which it listens.
    ///
    /// # Errors
    /// The address is taken or not this host's.
    pub(crate) async fn start<S, F>(&self, address: SocketAddr, serve: S) -> io::Result<SocketAddr>
    where
        S: Fn(TcpStream, Arc<Line>) -> F + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let line = Arc::new(Line::default());
        let lent = Arc::clone(&line);
        let accepting = tokio::spawn(async move {
            // Dropped with this task, and every connection with it.
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                // Without it answers are only slower.
                stream.set_nodelay(true).unwrap_or_default();
                connections.spawn(serve(stream, Arc::clone(&lent)));
                while connections.try_join_next().is_some() {}
            }
        });
        self.stop();
        *self.open.lock() = Some(Open { line, accepting });
        Ok(address)
    }

    /// From now on, until it is started again, answers are lost.
    pub(crate) fn lose_answers(&self) {
        if let Some(open) = &*self.open.lock() {
            open.line.loses_answers.store(true, Ordering::Release);
        }
    }

    /// Stops listening and drops every connection.
    pub(crate) fn stop(&self) {
        if let Some(Open { line, accepting }) = self.open.lock().take() {
            line.closed.store(true, Ordering::Release);
            accepting.abort();
        }
    }
}
