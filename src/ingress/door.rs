//! The port of a wire door, and the listener before it.
//!
//! ```text
//!   accept ──▶ who is it? ──▶ is there room? ──▶ WireDoor::take
//!                  │ may not       │ no
//!                  ▼               ▼
//!                closed     answered, closed
//! ```
//! A wire door is a protocol behind listeners. What comes before the first byte is the same for all of them and is
//! here: who connected ([`Policy`]), whether they may, and a place among the door's connections ([`Gate::of_door`]).
//! Nothing here reads or writes, so that no client delays the next one.
//!
//! What clients do against the protocol, floods among it, is counted by it, and logged here once a minute: a line for
//! each of them would be a flood of the log.
//!
//! When the daemon stops, the door accepts nothing more at once. Who is in the backlog has sent nothing that anybody
//! read: if the socket is the daemon's own, they are reset as it closes; if it was handed over, they wait for the next
//! daemon.

use std::{
    convert::Infallible,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use fusebox_actors::view::{DoorStatus, DoorView, counts};
use tokio::{
    sync::{Semaphore, watch},
    time::sleep,
};

pub(crate) use super::listener::{DoorStream, Listener};
use super::{
    gate::{Account, Gate, Part, Pooled, Sharing, holder_of},
    peer::{Access, Caller, NOBODY, Policy, Who, may},
    rates::{Earlier, NOTED_EVERY},
    seldom::Seldom,
};
use crate::config::{Auth, DoorSettings};

/// How often the log says what clients do against the protocol, if they do.
const TOLD_EVERY: Duration = Duration::from_secs(60);
/// How a protocol calls a connection that it has closed because its client broke a rule.
const PROTOCOL: &str = "protocol";
/// Connections at once that get the answer that there is no room for them.
const FAREWELLS: usize = 64;

/// What accepts for a door hands over, once it is known who connected.
pub(crate) struct Connection {
    /// The connection.
    pub(crate) stream: DoorStream,
    /// Who that counts as before it has shown a name or a secret. `None` if it must show one first.
    pub(crate) who: Option<Who>,
    /// What its caller has of the door's bounds.
    pub(crate) account: Arc<Account>,
    /// Its place at the gate, held for as long as it is open.
    pub(crate) part: Part,
}

/// A protocol behind listeners.
pub(crate) trait WireDoor: Send + Sync {
    /// Serves a connection until it ends. Does not block and does not wait.
    fn take(&self, connection: Connection);

    /// The answer to a connection for which there is no room, in the protocol's own words.
    fn no_room(&self) -> &'static [u8];

    /// Begins to stop: answers what was read, and closes between requests. Resolves once every connection has ended.
    fn stop(&self) -> Pin<Box<dyn Future<Output = ()> + Send>>;

    /// What `status` and the metrics show of it.
    fn view(&self) -> DoorView;
}

/// A door that is being served.
pub(crate) struct ServedDoor {
    settings: Arc<DoorSettings>,
    policy: Policy,
    gate: Gate,
    door: Arc<dyn WireDoor>,
    counts: Accepted,
    earlier: Earlier,
    /// Connections that get the answer that there is no room.
    farewells: Arc<Semaphore>,
}

/// What became of those who connected.
struct Accepted {
    taken: AtomicU64,
    /// There was no room for them.
    no_room: AtomicU64,
    /// They have no right here.
    no_right: AtomicU64,
    full_told: Seldom,
    denied_told: Seldom,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl ServedDoor {
    /// The protocol `door` with these settings.
    pub(crate) fn new(
        settings: Arc<DoorSettings>,
        policy: Policy,
        door: Arc<dyn WireDoor>,
        sharing: Sharing,
    ) -> Self {
        let gate = Gate::of_door(settings.connections.into(), settings.in_bytes, sharing);
        let farewells = Arc::new(Semaphore::new(FAREWELLS));
        let counts = Accepted {
            taken: AtomicU64::new(0),
            no_room: AtomicU64::new(0),
            no_right: AtomicU64::new(0),
            full_told: Seldom::new(),
            denied_told: Seldom::new(),
        };
        let earlier = Earlier::new();
        Self { settings, policy, gate, door, counts, earlier, farewells }
    }

    /// Serves who connects to `listener` until `stopping` turns true, then waits until every connection has ended.
    pub(crate) async fn serve(
        self: Arc<Self>,
        listener: Listener,
        stopping: watch::Receiver<bool>,
    ) {
        let told = AtomicU64::new(0);
        tokio::select! {
            () = listener.accept_until(stopping, |stream| self.start(stream)) => {}
            never = self.tells_of_faults(&told) => match never {},
            never = self.notes() => match never {},
        }
        drop(listener);
        self.door.stop().await;
        self.tell_of_faults(&told);
    }

    /// Notes what was counted, for the rates.
    async fn notes(&self) -> Infallible {
        loop {
            sleep(NOTED_EVERY).await;
            self.earlier.note(self.door.view().by_source());
        }
    }

    /// Tells what clients do against the protocol, now and again.
    async fn tells_of_faults(&self, told: &AtomicU64) -> Infallible {
        loop {
            sleep(TOLD_EVERY).await;
            self.tell_of_faults(told);
        }
    }

    /// The same of what was not `told` yet.
    fn tell_of_faults(&self, told: &AtomicU64) {
        let count = self.door.view().closed.get(PROTOCOL).copied().unwrap_or_default();
        let new = count.saturating_sub(told.swap(count, Ordering::Relaxed));
        if new > 0 {
            tracing::warn!(
                door = %self.settings.listen,
                connections = new,
                "closed, because their clients broke the protocol or sent a flood"
            );
        }
    }

    /// Tells a connection that there is no room for it. Of many at once some are closed without a word.
    fn refuse(&self, stream: DoorStream) {
        let words = self.door.no_room();
        if let Ok(place) = Arc::clone(&self.farewells).try_acquire_owned() {
            tokio::spawn(async move {
                stream.farewell(words).await;
                drop(place);
            });
        }
    }

    /// Lets a connection in, or not.
    fn start(&self, stream: DoorStream) {
        let caller = match &stream {
            DoorStream::Unix(stream) => self.policy.local(stream).ok(),
            DoorStream::Tcp(_) => Some(Caller::Network),
        };
        let Some((caller, who)) = caller.and_then(|it| Some((it, self.admit(it).ok()?))) else {
            count(&self.counts.no_right);
            return;
        };
        let account = self.gate.account(holder_of(caller));
        let place = account.take(Pooled::Connections, 1);
        // A fault of the protocol costs that connection, and not the listener.
        let done = catch_unwind(AssertUnwindSafe(|| match place {
            Ok(part) => {
                count(&self.counts.taken);
                self.door.take(Connection { stream, who, account, part });
            }
            Err(full) => {
                count(&self.counts.no_room);
                if let Some(times) = self.counts.full_told.again() {
                    tracing::warn!(door = %self.settings.listen, why = full.0, times, "refused");
                }
                self.refuse(stream);
            }
        }));
        if done.is_err() {
            tracing::error!(door = %self.settings.listen, "a connection was lost because of an internal error of fusebox");
        }
    }

    /// Who a caller counts as before it has shown a name or a secret.
    ///
    /// # Errors
    /// It has no right to connect.
    fn admit(&self, caller: Caller) -> Result<Option<Who>, ()> {
        match (self.settings.auth, caller) {
            (Auth::Peer, Caller::Local { uid, rights }) => {
                may(Access::Client, uid, rights).map(Some).map_err(|denied| {
                    if let Some(times) = self.counts.denied_told.again() {
                        tracing::warn!(door = %self.settings.listen, ?denied, times, "refused");
                    }
                })
            }
            // Nobody can be known as a peer there: the configuration does not let this be.
            (Auth::Peer, Caller::Network) => Err(()),
            (Auth::Token, _) => Ok(None),
            (Auth::Open, _) => Ok(Some(Who { uid: NOBODY, admin: false, by_token: false })),
        }
    }

    /// What is shown of it.
    pub(crate) fn status(&self) -> DoorStatus {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut view = self.door.view();
        // What is held is counted by the protocol or by the gate.
        view.buffered_in += self.gate.bytes();
        let per_second = self.earlier.rates(&view.by_source());
        DoorStatus {
            address: self.settings.listen.to_string(),
            kind: self.settings.kind.into(),
            backend: self.settings.backend.clone(),
            auth: self.settings.auth.as_str().into(),
            connections_open: self.gate.connections(),
            connections_max: self.settings.connections.into(),
            accepted: read(&self.counts.taken),
            refused: counts([
                ("no_room", read(&self.counts.no_room)),
                ("no_right", read(&self.counts.no_right)),
            ]),
            per_second,
            view,
        }
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use std::time::Duration;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        sync::watch,
        task::JoinSet,
    };

    use super::*;

    /// A door that says everything again, and "full" to who finds no room.
    pub(crate) struct Echo {
        connections: parking_lot::Mutex<JoinSet<()>>,
        stop: watch::Sender<bool>,
    }

    impl Default for Echo {
        fn default() -> Self {
            Self { connections: parking_lot::Mutex::default(), stop: watch::channel(false).0 }
        }
    }

    impl WireDoor for Echo {
        fn take(&self, connection: Connection) {
            let mut stop = self.stop.subscribe();
            self.connections.lock().spawn(async move {
                let Connection { stream, part, .. } = connection;
                let DoorStream::Unix(mut stream) = stream else { panic!("not of this host") };
                let mut bytes = [0; 64];
                loop {
                    let read = tokio::select! {
                        read = stream.read(&mut bytes) => read.unwrap_or(0),
                        _ = stop.wait_for(|stop| *stop) => 0,
                    };
                    if read == 0 || stream.write_all(&bytes[..read]).await.is_err() {
                        break;
                    }
                }
                drop(part);
            });
        }

        fn no_room(&self) -> &'static [u8] {
            b"full"
        }

        fn stop(&self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
            self.stop.send_replace(true);
            let connections = std::mem::take(&mut *self.connections.lock());
            Box::pin(async { drop(connections.join_all().await) })
        }

        fn view(&self) -> DoorView {
            DoorView::default()
        }
    }

    /// Waits until `holds`, for ten seconds at most.
    pub(crate) async fn until(holds: impl Fn() -> bool) {
        let waiting = async {
            while !holds() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), waiting)
            .await
            .expect("it does not come true");
    }
}

#[cfg(test)]
mod tests;
