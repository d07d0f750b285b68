//! The callers: writers, counters and readers that know nothing of an outage and use what the daemon's
//! sockets offer to anyone. Their answers are written down in the [`Ledger`].

use std::{ops::Range, path::PathBuf, sync::Arc, time::Duration};

use fastrand::Rng;
use hyper::Method;
use parking_lot::Mutex;
use tokio::{sync::watch, task::JoinSet};

use super::{
    backend::Backend,
    call::Call,
    ledger::{Ended, Ledger},
    stock::StockClients,
};
use crate::terminal::client::Client;

/// Who calls one backend.
struct Crew {
    backend: Backend,
    /// Writers, each of keys or rows of its own.
    writers: u64,
    /// How long one waits after an answer, in milliseconds.
    pause: Range<u64>,
    /// Writers of counters, each of one of its own.
    counters: u64,
    readers: u64,
}

/// Everybody. Documents and rows are fewer than keys, as they are elsewhere.
const CREWS: [Crew; 3] = [
    Crew { backend: Backend::Keys, writers: 5, pause: 4..16, counters: 3, readers: 2 },
    Crew { backend: Backend::Rows, writers: 2, pause: 15..45, counters: 0, readers: 1 },
    Crew { backend: Backend::Documents, writers: 3, pause: 8..32, counters: 2, readers: 1 },
];
/// Keys of each writer.
const KEYS: u64 = 3;
/// As [`Crew::pause`], for counters: each of their writes has a token and is synced on its own in replay,
/// so that many of them would make the demo longer, not better.
const COUNTER_PAUSE: Range<u64> = 30..90;
/// A caller that was turned away waits longer.
const PAUSE_AFTER_FAILURE: Range<u64> = 40..80;
/// The ids of a writer's rows begin with its number times this.
const IDS: u64 = 1_000_000_000;
/// The most rows of an insert.
const ROWS_MAX: u64 = 3;

/// Keys, or documents, that are written at the start and never again.
pub(super) fn fixed(backend: Backend) -> String {
    name(backend, "fixed")
}

/// A key of Redis, or a document of Firestore.
pub(super) fn name(backend: Backend, name: &str) -> String {
    let mark = if backend == Backend::Documents { '/' } else { ':' };
    format!("demo{mark}{name}")
}

/// Calls the daemon, and writes down the answer: as a stock client of the backend's door if that can say it all,
/// else over the command socket.
pub(super) struct Caller {
    socket: PathBuf,
    stock: StockClients,
    /// The answers so far.
    pub(super) ledger: Arc<Mutex<Ledger>>,
}

impl Caller {
    /// A caller of the daemon at `socket` with a ledger of its own.
    pub(super) fn new(socket: PathBuf) -> Self {
        Self::with(socket, Arc::default())
    }

    fn with(socket: PathBuf, ledger: Arc<Mutex<Ledger>>) -> Self {
        let stock = StockClients::new(socket.parent().unwrap_or(&socket));
        Self { socket, stock, ledger }
    }

    /// Another program that writes its answers down in the same ledger.
    pub(super) fn another(&self) -> Self {
        Self::with(self.socket.clone(), Arc::clone(&self.ledger))
    }

    /// Makes a call.
    pub(super) async fn make(&self, call: &Call) -> Ended {
        let ended = if let Some(ended) = self.stock.make(call).await {
            ended
        } else {
            let client = Client::new(self.socket.clone());
            Ended::of(client.exchange(Method::POST, &call.path(), Some(&call.json())).await)
        };
        self.ledger.lock().get_mut(call.backend).note(call, &ended);
        ended
    }
}

/// Writers, counters and readers at work.
pub(super) struct Workload {
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

impl Workload {
    /// Sets them to work. Their choices and pauses follow from `seed`.
    pub(super) fn start(caller: &Caller, seed: u64) -> Self {
        let stop = watch::channel(false).0;
        let mut tasks = JoinSet::new();
        let mut seeds = Rng::with_seed(seed);
        let mut worker = || Worker {
            caller: caller.another(),
            rng: Rng::with_seed(seeds.u64(..)),
            stop: stop.subscribe(),
        };
        for Crew { backend, writers, pause, counters, readers } in CREWS {
            for writer in 1..=writers {
                tasks.spawn(write(worker(), backend, writer, pause.clone()));
            }
            for counter in 1..=counters {
                tasks.spawn(count(worker(), backend, counter));
            }
            for _ in 0..readers {
                tasks.spawn(read(worker(), backend, writers, pause.clone()));
            }
        }
        Self { stop, tasks }
    }

    /// Lets them end their calls, and waits until they have.
    pub(super) async fn stop(mut self) {
        self.stop.send_replace(true);
        while self.tasks.join_next().await.is_some() {}
    }
}

/// One of them.
struct Worker {
    caller: Caller,
    rng: Rng,
    stop: watch::Receiver<bool>,
}

impl Worker {
    /// Makes a call and waits until the next one is due, in the rhythm of `pause` as long as calls are
    /// answered. False at the end.
    async fn make(&mut self, call: Call, pause: Range<u64>) -> bool {
        let ended = self.caller.make(&call).await;
        let answered = matches!(ended, Ended::Answered(_));
        let millis = self.rng.u64(if answered { pause } else { PAUSE_AFTER_FAILURE });
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(millis)) => true,
            _ = self.stop.wait_for(|stop| *stop) => false,
        }
    }
}

fn key(backend: Backend, writer: u64, key: u64) -> String {
    name(backend, &format!("writer-{writer}-{key}"))
}

async fn write(mut worker: Worker, backend: Backend, writer: u64, pause: Range<u64>) {
    let (mut value, mut id) = (0, writer * IDS);
    loop {
        let call = if backend == Backend::Rows {
            let ids = id..id + worker.rng.u64(1..=ROWS_MAX);
            id = ids.end;
            Call::insert(ids)
        } else {
            value += 1;
            Call::set(backend, &key(backend, writer, worker.rng.u64(1..=KEYS)), value)
        };
        if !worker.make(call, pause.clone()).await {
            return;
        }
    }
}

async fn count(mut worker: Worker, backend: Backend, counter: u64) {
    let counter = name(backend, &format!("counter-{counter}"));
    while worker.make(Call::increment(backend, &counter).durable(), COUNTER_PAUSE).await {}
}

async fn read(mut worker: Worker, backend: Backend, writers: u64, pause: Range<u64>) {
    loop {
        let call = if backend == Backend::Rows {
            let what = ["count() AS rows", "count() AS rows, sum(amount) AS total"];
            Call::select(worker.rng.choice(what).unwrap_or_default())
        } else if worker.rng.u8(0..3) == 0 {
            Call::get(backend, &fixed(backend))
        } else {
            let (writer, number) = (worker.rng.u64(1..=writers), worker.rng.u64(1..=KEYS));
            Call::get(backend, &key(backend, writer, number))
        };
        if !worker.make(call, pause.clone()).await {
            return;
        }
    }
}
