//! A relay in front of a server that can keep what passes through it: a network that dies, and comes
//! back with what it held.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// Connections made while it holds pass; those from before are held in both directions.
pub(super) struct Relay {
    pub(super) port: u16,
    /// Connections up to this number are held.
    held: Arc<watch::Sender<u64>>,
    made: Arc<AtomicU64>,
    /// Bytes towards the server that were kept, in total.
    pub(super) kept: Arc<watch::Sender<usize>>,
    /// Bytes of those that a server has been handed later.
    pub(super) released: Arc<watch::Sender<usize>>,
}

impl Relay {
    /// A relay to a server on `port`.
    pub(super) async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let relay = Self {
            port: listener.local_addr().unwrap().port(),
            held: Arc::default(),
            made: Arc::default(),
            kept: Arc::default(),
            released: Arc::default(),
        };
        let (held, made) = (Arc::clone(&relay.held), Arc::clone(&relay.made));
        let (kept, released) = (Arc::clone(&relay.kept), Arc::clone(&relay.released));
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let number = made.fetch_add(1, Ordering::SeqCst) + 1;
                let server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                let (held, kept, released) = (held.subscribe(), kept.clone(), released.clone());
                tokio::spawn(pass(number, client, server, held, kept, released));
            }
        });
        relay
    }

    /// Holds the connections that were made so far.
    pub(super) fn hold(&self) {
        self.held.send_replace(self.made.load(Ordering::SeqCst));
    }

    /// Lets go of all.
    pub(super) fn release(&self) {
        self.held.send_replace(0);
    }
}

/// Passes bytes between the two; while held it reads what the client sends and keeps it, and does not
/// let the server know that the client has gone.
async fn pass(
    number: u64,
    client: TcpStream,
    server: TcpStream,
    mut held: watch::Receiver<u64>,
    kept: Arc<watch::Sender<usize>>,
    released: Arc<watch::Sender<usize>>,
) {
    let (mut client_out, mut client_in) = client.into_split();
    let (mut server_out, mut server_in) = server.into_split();
    let mut held_back = held.clone();
    tokio::spawn(async move {
        let mut buffer = vec![0; 4096];
        while let Ok(count @ 1..) = server_out.read(&mut buffer).await {
            held_back.wait_for(|upto| number > *upto).await.ok();
            if client_in.write_all(&buffer[..count]).await.is_err() {
                break;
            }
        }
    });
    let mut buffer = vec![0; 4096];
    loop {
        let count = client_out.read(&mut buffer).await.unwrap_or(0);
        let holding = *held.borrow() >= number;
        if holding {
            kept.send_modify(|kept| *kept += count);
        }
        held.wait_for(|upto| number > *upto).await.ok();
        if count == 0 {
            return;
        }
        let written = server_in.write_all(&buffer[..count]).await;
        if holding {
            released.send_modify(|released| *released += count);
        }
        if written.is_err() {
            return;
        }
    }
}
