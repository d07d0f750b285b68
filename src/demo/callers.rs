//! The callers: writers, counters and readers that know nothing of an outage and use what the daemon's
//! socket offers to anyone. What they are told is written down in the [`Ledger`].

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use fastrand::Rng;
use hyper::Method;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::{sync::watch, task::JoinSet};

use super::proof::Told;
use crate::cli::{client::Client, table::text};

/// Writers, each of keys of its own.
const WRITERS: u64 = 6;
/// Keys of each.
const KEYS: u64 = 3;
/// Writers of counters, each of one of its own.
const COUNTERS: u64 = 2;
/// Readers of any writer's keys, and of what is not written again.
const READERS: u64 = 3;
/// How long a caller waits after an answer, in milliseconds.
const PAUSE: std::ops::Range<u64> = 4..16;
/// As [`PAUSE`], for counters: each of their writes bears a token and is synced on its own in replay, so
/// that many of them would make the demo longer, not better.
const COUNTER_PAUSE: std::ops::Range<u64> = 20..60;
/// A caller that was turned away waits longer.
const PAUSE_AFTER_FAILURE: std::ops::Range<u64> = 40..80;
/// Keys that are written at the start and never again.
pub(super) const FIXED: [&str; 2] = ["demo:fixed-1", "demo:fixed-2"];
/// The exit code of a client that finds nobody at the socket.
const NO_DAEMON: u8 = 3;

/// How a call ended for its caller.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Ended {
    /// It was answered: with a status, from this source, and perhaps with an acknowledgement.
    Answered {
        /// 200 or 202.
        status: u16,
        /// `live`, `cache`, `stale`, `queued`, `empty` or `bypass`.
        source: String,
        /// `applied`, `durable` or nothing.
        ack: String,
        /// The value.
        value: Value,
    },
    /// It was not executed, for this reason.
    Refused(String),
    /// Nobody listened at the socket, so that it was not executed.
    NoDaemon,
    /// It may have been executed or not.
    Unknown(String),
}

impl Ended {
    fn of(answer: Result<(u16, Value), crate::cli::Failure>) -> Self {
        match answer {
            Ok((status @ (200 | 202), reply)) => Self::Answered {
                status,
                source: text(&reply, "source"),
                ack: text(&reply, "ack"),
                value: reply.get("value").cloned().unwrap_or_default(),
            },
            Ok((status, problem)) => {
                let why = format!("{status} {}", text(&problem, "detail"));
                let unknown = problem.get("outcome_unknown") == Some(&Value::Bool(true));
                if unknown { Self::Unknown(why) } else { Self::Refused(why) }
            }
            Err(failure) if failure.code == NO_DAEMON => Self::NoDaemon,
            Err(failure) => Self::Unknown(failure.to_string()),
        }
    }

    /// The word under which it is counted.
    fn word(&self) -> &str {
        match self {
            Self::Answered { source, .. } => source,
            Self::Refused(_) => "refused",
            Self::NoDaemon => "no daemon",
            Self::Unknown(_) => "outcome unknown",
        }
    }
}

/// What callers were told.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// Of each write.
    pub(super) told: Told,
    /// Calls by how they ended: reads and writes.
    pub(super) ended: BTreeMap<String, (u64, u64)>,
    /// Writes that were acknowledged as applied.
    pub(super) applied: u64,
    /// Writes that were acknowledged as durable.
    pub(super) durable: u64,
}

impl Ledger {
    fn count(&mut self, ended: &Ended, write: bool) {
        let (reads, writes) = self.ended.entry(ended.word().to_owned()).or_default();
        *(if write { writes } else { reads }) += 1;
        match ended {
            Ended::Answered { ack, .. } if ack == "applied" => self.applied += 1,
            Ended::Answered { ack, .. } if ack == "durable" => self.durable += 1,
            _ => {}
        }
    }

    fn set(&mut self, key: &str, value: u64, ended: &Ended) {
        self.count(ended, true);
        let key = self.told.keys.entry(key.to_owned()).or_default();
        let told = match ended {
            Ended::Answered { .. } => &mut key.acknowledged,
            Ended::Unknown(_) => &mut key.unknown,
            Ended::Refused(_) | Ended::NoDaemon => &mut key.refused,
        };
        told.insert(value);
    }

    fn increment(&mut self, counter: &str, ended: &Ended) {
        self.count(ended, true);
        let counter = self.told.counters.entry(counter.to_owned()).or_default();
        match ended {
            Ended::Answered { .. } => counter.acknowledged += 1,
            Ended::Unknown(_) => counter.unknown += 1,
            Ended::Refused(_) | Ended::NoDaemon => {}
        }
    }
}

/// Calls the daemon at a socket, and writes down what it is told.
#[derive(Clone)]
pub(super) struct Caller {
    socket: PathBuf,
    /// What was told so far.
    pub(super) ledger: Arc<Mutex<Ledger>>,
}

impl Caller {
    /// A caller of the daemon at `socket` with a ledger of its own.
    pub(super) fn new(socket: PathBuf) -> Self {
        Self { socket, ledger: Arc::default() }
    }

    async fn ask(&self, command: &[&str], options: Value) -> Ended {
        let body = json!({ "command": command, "options": options });
        let client = Client::new(self.socket.clone());
        Ended::of(client.exchange(Method::POST, "/v1/backends/redis/call", Some(&body)).await)
    }

    /// Sets a key of which this is the only writer to a value above all earlier ones.
    pub(super) async fn set(&self, key: &str, value: u64) -> Ended {
        let ended = self.ask(&["SET", key, &value.to_string()], json!({})).await;
        self.ledger.lock().set(key, value, &ended);
        ended
    }

    /// Increments a counter; with `durable`, consents to being queued for an answer without a value.
    pub(super) async fn increment(&self, counter: &str, durable: bool) -> Ended {
        let options = if durable { json!({ "min_ack": "durable" }) } else { json!({}) };
        let ended = self.ask(&["INCR", counter], options).await;
        self.ledger.lock().increment(counter, &ended);
        ended
    }

    /// Reads a key.
    pub(super) async fn get(&self, key: &str) -> Ended {
        let ended = self.ask(&["GET", key], json!({})).await;
        self.ledger.lock().count(&ended, false);
        ended
    }
}

/// Writers, counters and readers at work.
pub(super) struct Workload {
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

impl Workload {
    /// Sets them to work. Their choices of keys and pauses follow from `seed`.
    pub(super) fn start(caller: &Caller, seed: u64) -> Self {
        let stop = watch::channel(false).0;
        let mut tasks = JoinSet::new();
        let mut seeds = Rng::with_seed(seed);
        let mut rng = || Rng::with_seed(seeds.u64(..));
        for writer in 1..=WRITERS {
            tasks.spawn(write(caller.clone(), writer, rng(), stop.subscribe()));
        }
        for counter in 1..=COUNTERS {
            tasks.spawn(count(caller.clone(), counter, rng(), stop.subscribe()));
        }
        for _ in 0..READERS {
            tasks.spawn(read(caller.clone(), rng(), stop.subscribe()));
        }
        Self { stop, tasks }
    }

    /// Lets them end their calls, and waits until they have.
    pub(super) async fn stop(mut self) {
        self.stop.send_replace(true);
        while self.tasks.join_next().await.is_some() {}
    }
}

fn key(writer: u64, key: u64) -> String {
    format!("demo:writer-{writer}:{key}")
}

/// Waits from one call to the next, in the rhythm of `usual` as long as calls are answered. False at the
/// end.
async fn pause(
    usual: std::ops::Range<u64>,
    rng: &mut Rng,
    ended: &Ended,
    stop: &mut watch::Receiver<bool>,
) -> bool {
    let answered = matches!(ended, Ended::Answered { .. });
    let millis = rng.u64(if answered { usual } else { PAUSE_AFTER_FAILURE });
    tokio::select! {
        () = tokio::time::sleep(Duration::from_millis(millis)) => true,
        _ = stop.wait_for(|stop| *stop) => false,
    }
}

async fn write(caller: Caller, writer: u64, mut rng: Rng, mut stop: watch::Receiver<bool>) {
    for value in 1.. {
        let key = key(writer, rng.u64(1..=KEYS));
        let ended = caller.set(&key, value).await;
        if !pause(PAUSE, &mut rng, &ended, &mut stop).await {
            return;
        }
    }
}

async fn count(caller: Caller, counter: u64, mut rng: Rng, mut stop: watch::Receiver<bool>) {
    let counter = format!("demo:counter-{counter}");
    loop {
        let ended = caller.increment(&counter, true).await;
        if !pause(COUNTER_PAUSE, &mut rng, &ended, &mut stop).await {
            return;
        }
    }
}

async fn read(caller: Caller, mut rng: Rng, mut stop: watch::Receiver<bool>) {
    loop {
        let written = key(rng.u64(1..=WRITERS), rng.u64(1..=KEYS));
        let fixed = rng.choice(FIXED).filter(|_| rng.u8(0..3) == 0);
        let ended = caller.get(fixed.unwrap_or(&written)).await;
        if !pause(PAUSE, &mut rng, &ended, &mut stop).await {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_caller_is_told_decides_what_the_proof_expects() {
        let mut ledger = Ledger::default();
        let answer = |status, body| Ended::of(Ok((status, body)));
        ledger.set("k", 1, &answer(200, json!({ "source": "live", "ack": "applied" })));
        ledger.set("k", 2, &answer(202, json!({ "source": "queued", "ack": "durable" })));
        ledger.set("k", 3, &answer(503, json!({ "detail": "the breaker is open" })));
        ledger.set("k", 4, &answer(504, json!({ "outcome_unknown": true })));
        ledger.set("k", 5, &Ended::of(Err(crate::cli::Failure::no_daemon("refused"))));
        ledger.set("k", 6, &Ended::of(Err(crate::cli::Failure::failed("broke"))));
        let key = &ledger.told.keys["k"];
        assert_eq!(key.acknowledged, [1, 2].into());
        assert_eq!(key.refused, [3, 5].into());
        assert_eq!(key.unknown, [4, 6].into());
        assert_eq!((ledger.applied, ledger.durable), (1, 1));
        assert_eq!(ledger.ended["outcome unknown"], (0, 2));
    }
}
