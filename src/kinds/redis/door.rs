//! The Redis door: stock clients connect here as they would to the server.
//!
//! ```text
//!  clients ── sockets ──▶ one thread: request ─▶ dispatch ─┬─▶ upstream, shared, one for each protocol ─▶ server
//!                                                          ├─▶ upstream, pinned to one client ──────────▶ server
//!                                                          ├─▶ answered here (local, the cache)
//!                                                          └─▶ slow: the daemon's own threads, as a JSON call goes
//! ```
//! A door enters the call path by `admit` and `settle` ([`fusebox_actors::Ticket`]): breaker, bulkhead, lanes, cache
//! and write state are the same as for every other call, and nothing here is a second semantics. A command that may go
//! on the wire costs no task, no channel and no lock of others; what cannot (an occupied lane, an open breaker without
//! a cached answer, a failed attempt) goes on as any call does.
//!
//! # Threads
//! A door has one thread with a runtime of its own, which owns its clients and its connections to the server. Calls
//! that are not plain are spawned on the daemon's runtime.
//!
//! # Order
//! Replies leave in the order of the commands, and commands take effect in their order: see `client.rs`. Clients of one
//! protocol share one connection; writes that were left unanswered by any connection are fenced off before any other
//! writes again (`transport/shared.rs`).
//!
//! # Databases
//! A database is a backend with a core of its own: links, cache, queue, breaker. `SELECT` moves a client, of which
//! nothing is under way then, to the core of that database, if one of the daemon's backends is that database of the
//! same server and account; everything else that the client is stays. What all cores of a door bound together is in
//! `whole.rs`.
//!
//! # What a crash leaves behind
//! Nothing of a door is on the disk. A client whose daemon dies sees its connection reset; a command that was on the
//! wire may have been applied, as with a server that dies. What was queued was synced before it was answered.

use std::{rc::Rc, sync::Arc};

use fusebox_actors::Backend;
use tokio::{
    runtime::Handle,
    sync::{mpsc, watch},
    task::LocalSet,
};

use crate::{
    ingress::{door_thread, gate::Part, peer::Who},
    net::local::LocalStream,
};

pub(crate) mod assumed;
mod class;
mod client;
mod core;
mod counters;
mod held;
mod lane_set;
mod local;
mod pin;
pub(crate) mod port;
mod quick;
pub(crate) mod request;
pub(crate) mod settings;
mod slow;
mod socket;
pub(crate) mod telling;
mod upstream;
mod waiting;
mod whole;

use self::{
    client::Client, core::Core, counters::Counters, settings::Settings, socket::Socket,
    whole::Whole,
};

/// A client's socket, as it comes from a listener: it is registered with no runtime.
pub(crate) enum Accepted {
    Unix(std::os::unix::net::UnixStream),
    Tcp(std::net::TcpStream),
}

/// A client's socket, who it is by that, and its place among the door's connections.
type Arrival = (Accepted, Option<Who>, Option<Part>);

/// A door that is open.
pub(crate) struct RedisDoor {
    clients: mpsc::UnboundedSender<Arrival>,
    counters: Arc<Counters>,
    stop: watch::Sender<bool>,
    ended: watch::Receiver<()>,
}

impl RedisDoor {
    /// Opens a door to a backend. Of its `kin`, backends of the same kind, those that are other databases of the same
    /// server are reached by SELECT. What it needs of the daemon's runtime it gets by `main`.
    ///
    /// # Errors
    /// The backend is of another kind, or there is no thread for it.
    pub(crate) fn open(
        settings: Settings,
        backend: Arc<Backend>,
        kin: Vec<Arc<Backend>>,
        main: Handle,
    ) -> Result<Self, String> {
        let (clients, accepted) = mpsc::unbounded_channel();
        let (stop, stopping) = watch::channel(false);
        let (alive, ended) = watch::channel(());
        let counters = Arc::<Counters>::default();
        let counted = Arc::clone(&counters);
        let overhead = backend.door_overhead(settings.address);
        let name = backend.name().to_owned();
        door_thread::run(&name, move |runtime| {
            let _alive = alive;
            let whole = Whole::new(settings, kin, (counted, overhead), main);
            let local = LocalSet::new();
            runtime.block_on(local.run_until(async {
                if let Some(core) = Core::open(&whole, backend) {
                    serve(core, accepted, stopping).await;
                }
                whole.close();
            }));
        })?;
        Ok(Self { clients, counters, stop, ended })
    }

    /// Serves a client, which is `who` by its socket; `None` if it must give credentials.
    pub(crate) fn serve(&self, accepted: Accepted, who: Option<Who>, place: Option<Part>) {
        // A door that has ended drops it, which closes it.
        drop(self.clients.send((accepted, who, place)));
    }

    /// Commands that clients have sent.
    #[cfg(test)]
    pub(crate) fn commands(&self) -> u64 {
        self.counters.commands()
    }

    /// Takes no more clients, answers what was read and closes. Resolves once all have gone.
    pub(crate) fn close(&self) -> impl Future<Output = ()> + Send + use<> {
        self.stop.send_replace(true);
        let mut ended = self.ended.clone();
        // The other end goes with the thread.
        async move { while ended.changed().await.is_ok() {} }
    }
}

async fn serve(
    core: Rc<Core>,
    mut accepted: mpsc::UnboundedReceiver<Arrival>,
    mut stopping: watch::Receiver<bool>,
) {
    let mut serving = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            next = accepted.recv() => match next {
                Some(arrival) => begin(&core, arrival, &mut serving),
                None => break,
            },
            Some(ended) = serving.join_next() => drop(ended),
            stop = stopping.wait_for(|stop| *stop) => {
                drop(stop);
                break;
            }
        }
    }
    // Who has connected by now is served to its end.
    accepted.close();
    while let Ok(arrival) = accepted.try_recv() {
        begin(&core, arrival, &mut serving);
    }
    for client in core.whole.clients() {
        client.say_goodbye();
    }
    while serving.join_next().await.is_some() {}
}

fn begin(core: &Rc<Core>, (accepted, who, place): Arrival, serving: &mut tokio::task::JoinSet<()>) {
    let socket = match accepted {
        Accepted::Unix(stream) => LocalStream::new(stream).map(Socket::Unix),
        Accepted::Tcp(stream) => tokio::net::TcpStream::from_std(stream).map(Socket::Tcp),
    };
    match socket {
        Ok(socket) => {
            let client = Client::new(core, socket, who);
            core.whole.came(&client);
            core.counters.came();
            let core = Rc::clone(core);
            serving.spawn_local(async move {
                let why = Rc::clone(&client).serve().await;
                core.whole.went(&client);
                core.counters.went(why);
                drop(place);
            });
        }
        Err(error) => tracing::debug!(%error, "a connection cannot be served"),
    }
}
