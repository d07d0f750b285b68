//! A program that calls, and compares the answers with what it knows.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use fusebox_state::{OpId, UnixMillis};

use super::{
    body::{Body, Word},
    ledger::End,
    scene::{BACKENDS, KEYS, ms},
    world::Shared,
};
use crate::{
    AckLevel, Backend, Call, CallError, CallOptions, Fusebox, Priority, Reply, Source,
    trace::CallTrace,
};

/// What a call may take beyond its deadline.
const GRACE: Duration = Duration::from_secs(1);

/// See the [module](self).
pub(super) struct Caller {
    world: Shared,
    backends: Vec<Arc<Backend>>,
    stopping: Arc<AtomicBool>,
}

/// What a caller is about to do.
struct Intent {
    at: usize,
    backend: Arc<Backend>,
    body: Body,
    options: CallOptions,
    /// When it leaves without an answer.
    leaves: Option<Duration>,
}

impl Caller {
    pub(super) fn new(world: &Shared, fusebox: &Fusebox, stopping: &Arc<AtomicBool>) -> Self {
        let (world, stopping) = (Arc::clone(world), Arc::clone(stopping));
        Self { world, backends: fusebox.backends(), stopping }
    }

    /// Calls until it is to stop.
    pub(super) async fn run(self) {
        loop {
            let pause = {
                let mut rng = self.world.rng();
                if rng.u8(..3) > 0 { rng.u64(..40) } else { rng.u64(..24_000) }
            };
            tokio::time::sleep(ms(pause)).await;
            if self.stopping.load(Relaxed) {
                return;
            }
            let Some(intent) = self.intent() else { return };
            if intent.body.word == Word::Get {
                self.read(intent).await;
            } else {
                self.write(intent).await;
            }
        }
    }

    fn intent(&self) -> Option<Intent> {
        let mut rng = self.world.rng();
        let at = rng.usize(..BACKENDS.len());
        let backend = Arc::clone(self.backends.get(at)?);
        let word = match (at, rng.u8(..100)) {
            (_, 0) => Word::Bad,
            (2, _) => Word::Row,
            (_, 1..35) => Word::Get,
            (_, 35..60) => Word::Set,
            (_, 60..75) => Word::All,
            _ => Word::Add,
        };
        let is_read = word == Word::Get;
        let key = if word == Word::Row { 0 } else { rng.u8(..KEYS) };
        let deadline = (rng.u8(..3) > 0).then(|| ms(rng.u64(20..5_000)));
        let min_ack = match rng.u8(..4) {
            0 => Some(AckLevel::Applied),
            1 | 2 => Some(AckLevel::Durable),
            _ => None,
        };
        let names_it = !is_read && rng.u8(..6) == 0;
        let priority = if rng.u8(..10) == 0 { Priority::Low } else { Priority::Normal };
        let leaves = (rng.u8(..25) == 0).then(|| ms(rng.u64(..800)));
        let random = rng.u128(..);
        drop(rng);
        let now = UnixMillis::new(self.world.now());
        let options = CallOptions {
            deadline,
            priority,
            min_ack: min_ack.filter(|_| !is_read),
            op_id: names_it.then(|| OpId::new(now, random)),
            ..CallOptions::default()
        };
        let id = if is_read { 0 } else { self.world.ledger.lock().new_id() };
        Some(Intent { at, backend, body: Body { word, key, id }, options, leaves })
    }

    async fn read(&self, intent: Intent) {
        let Intent { at, body, .. } = &intent;
        let must_see = self.world.ledger.lock().read_begins(*at, body.key);
        let told = self.call(&intent).await;
        self.world.ledger.lock().read_ended();
        self.note(&intent, told.as_ref());
        let Some(Ok(reply)) = told else { return };
        if matches!(reply.source, Source::Bypass | Source::Empty) {
            return;
        }
        let value =
            reply.value.as_deref().and_then(|it| std::str::from_utf8(it).ok()?.parse().ok());
        self.world.arrive();
        match value {
            Some(seen) => {
                self.world.ledger.lock().read((*at, body.key), must_see, seen, reply.source);
            }
            None => self.world.broken(format!("{body:?} was answered with {:?}", reply.value)),
        }
    }

    async fn write(&self, intent: Intent) {
        let tries = if intent.options.op_id.is_some() { 3 } else { 1 };
        let mut may_be_done = false;
        for _ in 0..tries {
            self.world.ledger.lock().begins(intent.at, intent.body);
            let told = self.call(&intent).await;
            self.note(&intent, told.as_ref());
            let (end, op_id) = match &told {
                None => (End::Unknown, None),
                Some(Ok(reply)) => match reply.ack {
                    Some(AckLevel::Applied) => (End::Applied, reply.op_id),
                    Some(AckLevel::Durable) => (End::Durable, reply.op_id),
                    None => (End::Unknown, None),
                },
                Some(Err(error)) => (end_of(error, may_be_done), error.op_id),
            };
            self.world.arrive();
            let checked = self.world.ledger.lock().ends(intent.body.id, end, op_id);
            self.world.check(checked);
            if end != End::Unknown {
                return;
            }
            may_be_done = true;
            let pause = self.world.rng().u64(..3_000);
            tokio::time::sleep(ms(pause)).await;
        }
    }

    /// Makes the call; `None` if it left before it ended.
    async fn call(&self, intent: &Intent) -> Option<Result<Reply, CallError>> {
        let call = Call {
            body: intent.body.encode(),
            options: intent.options.clone(),
            uid: 0,
            admin: false,
            trace: CallTrace::new("simulated"),
            streams: false,
            upload: None,
        };
        let began = self.world.now();
        let most = intent.options.deadline.unwrap_or_else(|| intent.backend.timeout() * 3) + GRACE;
        let patience = intent.leaves.unwrap_or(Duration::MAX);
        let told = tokio::time::timeout(patience, intent.backend.call(call)).await.ok();
        let took = ms(self.world.now().saturating_sub(began));
        if took > most {
            let Intent { body, options, .. } = intent;
            self.world
                .broken(format!("{body:?} took {took:?}, its deadline was {:?}", options.deadline));
        }
        told
    }

    fn note(&self, intent: &Intent, told: Option<&Result<Reply, CallError>>) {
        let Intent { at, body, options, .. } = intent;
        let name = BACKENDS.get(*at).unwrap_or(&"");
        self.world.note(|| {
            let told = match told {
                None => "its caller left".to_owned(),
                Some(Ok(reply)) => format!("{} {:?} {:?}", reply.source, reply.ack, reply.value),
                Some(Err(error)) => {
                    let unknown = if error.outcome_unknown { ", outcome unknown" } else { "" };
                    format!("{}{unknown}", error.code)
                }
            };
            format!("{name} call {body:?} min_ack {:?}: {told}", options.min_ack)
        });
    }
}

/// What a caller knows of its write after that error; of one that was tried before, that it may be applied.
fn end_of(error: &CallError, may_be_done: bool) -> End {
    match error.code.as_ref() {
        "dead_letter" => End::DeadLetter,
        _ if error.outcome_unknown => End::Unknown,
        _ if may_be_done => End::Unknown,
        _ => End::NotExecuted,
    }
}
