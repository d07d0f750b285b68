//! Redis behind the connector port.
//!
//! A body and a reply are RESP frames ([`resp`]), carried untouched. What a command is follows from a
//! table that is built in and completed by the server (`protocol/commands.rs`): its keys are its
//! lanes, its words say what an outage lets one know of it. Three links carry the commands of all callers in pipelines:
//! one for writes, one for reads and pings, and a second one for both, which speaks RESP2, for calls of Redis doors.
//!
//! ```text
//!  plan ── commands, rules, effect, cache        attempt ── replay ── token
//!  overlay                                              │
//!                             link (writes)─┬───────────┴────┬─link (reads, pings)
//!                               │ fence     link (RESP2)     │
//!                             driver          │ fence      driver ── handshake ── stream
//!                                           driver
//! ```
//! What keeps an abandoned write from landing late is in `transport/fence.rs`; which
//! commands are carried, queued and cached in `protocol/{rules,effect,cache}.rs`; what an error means in
//! `protocol/outcome.rs`.

use std::{
    any::Any,
    borrow::Cow,
    slice,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use fusebox_actors::connector::{
    Answer, Attempt, AttemptError, Attempted, Connector, ConnectorStatus, Overlay, Plan,
    QueuedWrite, Refused, ResidueAfter, Said, Slot, Stored, UsualErrors,
};
use fusebox_state::{LaneId, Lanes, OpId, Target, UnixMillis, Verdict, Words};

use super::{
    protocol::{
        cache,
        deadlines::Written,
        internal::{self, Form},
        outcome,
        overlay::Followed,
        plan, residue, resp, token,
    },
    settings::RedisSettings,
    transport::{
        carry::Links,
        handshake::Protocol,
        link::{Link, Purpose},
        shared::Shared,
    },
};

/// What an error of the server says that it has not sent.
const INJECTED: &str = "chaos: a fault on purpose, nothing was sent";

/// Queued calls of different lanes that are sent in one go: as many as fill a few segments, and no more than live
/// calls can wait behind for a millisecond.
const BATCH_MAX: usize = 64;
/// So many markers are removed by one command.
const FORGET_AT_ONCE: usize = 256;

/// What is known of a key by its queued writes, as the commands read in this edition.
#[derive(Clone)]
struct KeyOverlay {
    key: Followed,
    shared: Arc<Shared>,
    edition: u64,
}

impl Overlay for KeyOverlay {
    fn write(&mut self, write: &QueuedWrite) -> bool {
        self.key.write(&self.shared.commands, write)
    }

    fn serves(&self, slot: &Slot) -> bool {
        self.edition == self.shared.commands.edition()
            && self.key.is_of(&self.shared.commands, slot)
    }

    fn says(&self, slot: &Slot, now: UnixMillis) -> Said {
        self.key.says(slot, now, self.shared.resp3.load(Ordering::Relaxed))
    }

    fn fork(&self) -> Box<dyn Overlay> {
        Box::new(self.clone())
    }

    fn bytes(&self) -> u64 {
        self.key.bytes() as u64
    }
}

/// A Redis backend's connector. Made without a server; it connects when it is first needed.
pub struct RedisConnector {
    target: Target,
    links: Links,
    /// Whether a value read that finds nothing in an outage is an error; it may change at run time.
    misses_are_errors: AtomicBool,
}

impl RedisConnector {
    /// A connector for `settings`. Nothing is sent yet.
    ///
    /// One that takes another's place within a run is made after that one's [`Connector::close`]: the
    /// fence spares what lives, and what was closed no longer does.
    pub fn new(settings: RedisSettings) -> Arc<Self> {
        let namespace = settings.database.to_string();
        let target = Target::new("redis", &settings.endpoint, settings.database);
        let misses_are_errors = AtomicBool::new(settings.on_miss_error);
        let shared = Arc::new(Shared::new(settings));
        let reads = Link::new(Arc::clone(&shared), Purpose::Reads, Protocol::Newest);
        let writes = Link::new(Arc::clone(&shared), Purpose::Writes, Protocol::Newest);
        let second = Link::new(Arc::clone(&shared), Purpose::Writes, Protocol::Two);
        let deadlines = OnceLock::new();
        Arc::new(Self {
            target,
            links: Links { shared, reads, writes, second, namespace, deadlines },
            misses_are_errors,
        })
    }

    /// Whether a value read that finds nothing in an outage is an error from now on.
    pub(crate) fn take_misses_for_errors(&self, they_are: bool) {
        self.misses_are_errors.store(they_are, Ordering::Relaxed);
    }

    /// What it carries its calls over.
    pub(crate) fn links(&self) -> &Links {
        &self.links
    }

    fn warnings(&self) -> Vec<Words> {
        let mut warnings: Vec<Words> =
            self.links.shared.warnings.lock().values().cloned().collect();
        let server = self.links.shared.server.lock();
        let eviction = server.as_ref().and_then(|server| server.eviction.as_deref());
        if let Some(policy) = eviction.filter(|policy| *policy != "noeviction")
            && self.links.shared.tokens_used.load(Ordering::Relaxed)
        {
            let told = format!(
                "maxmemory-policy is {policy}: the server may evict the markers by which repeated writes are \
                 recognised; noeviction keeps them"
            );
            warnings.push(told.into());
        }
        warnings
    }
}

impl std::fmt::Debug for RedisConnector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisConnector").field("target", &self.target).finish_non_exhaustive()
    }
}

impl Connector for RedisConnector {
    fn plan(&self, body: Bytes) -> Result<Plan, Refused> {
        let context = plan::Context {
            commands: &self.links.shared.commands,
            database: self.links.namespace.as_bytes(),
            on_miss_error: self.misses_are_errors.load(Ordering::Relaxed),
            scripts_are_barriers: self.links.shared.settings.scripts_are_barriers,
            resp3: self.links.resp3(),
            deadlines: self.links.deadlines(),
        };
        plan::plan(body, &context)
    }

    fn stored_lanes(&self, body: &Bytes) -> Option<Lanes> {
        let lane = |key: &[u8]| LaneId::of(self.links.namespace.as_bytes(), key);
        let steps = match Form::of(body)? {
            Form::Ends(ends) => {
                return Some(Lanes::new(ends.keys.iter().map(|(key, _)| lane(key))));
            }
            Form::Multi(steps) => steps,
            Form::Call(step) => vec![step],
        };
        let mut lanes = Vec::new();
        for step in steps {
            let spec = self.links.shared.commands.find(&step.args)?;
            let places = spec.keys(&step.args)?;
            lanes.extend(places.iter().filter_map(|at| Some(lane(step.args.get(*at)?))));
        }
        Some(Lanes::new(lanes))
    }

    fn operation(&self, body: &Bytes) -> Cow<'static, str> {
        let args = match Form::of(body) {
            Some(Form::Call(step)) => step.args,
            Some(Form::Multi(_)) => return Cow::Borrowed("MULTI"),
            Some(Form::Ends(_)) => return Cow::Borrowed("deadline"),
            None => Vec::new(),
        };
        let spec = self.links.shared.commands.find(&args);
        spec.map_or(Cow::Borrowed("unknown"), |spec| {
            Cow::Owned(spec.name.to_ascii_uppercase().replace('|', " "))
        })
    }

    fn stored(&self, body: &Bytes) -> Option<Stored> {
        let mut form = Form::of(body)?;
        let steps = match &mut form {
            Form::Call(step) => slice::from_mut(step),
            Form::Multi(steps) => steps,
            Form::Ends(_) => return None,
        };
        for (place, step) in steps.iter_mut().enumerate() {
            let Some(spec) = self.links.shared.commands.find(&step.args) else { continue };
            let places = spec.keys(&step.args).unwrap_or_default();
            let written = Written { name: &spec.name, args: &step.args, places: &places };
            let owner = self.links.deadlines().owner(body, place);
            let inherited = self.links.deadlines().stored(written, owner);
            if step.args.len() + 2 * inherited.len() <= token::WORDS_MAX {
                step.deadlines = inherited;
            }
        }
        if steps.iter().all(|step| step.deadlines.is_empty()) {
            return None;
        }
        let body = match &form {
            Form::Call(step) => internal::until(step),
            Form::Multi(steps) => internal::multi(steps),
            Form::Ends(_) => return None,
        };
        Some(Stored { body, timed: true })
    }

    fn prepare<'a>(
        &'a self,
        attempts: &'a [Attempt<'a>],
    ) -> Answer<'a, Result<Vec<Bytes>, (Verdict, AttemptError)>> {
        Box::pin(async move {
            let time = attempts.iter().map(|attempt| attempt.timeout).min().unwrap_or_default();
            match self.links.writes.ready(time).await {
                Ok(()) => Ok(vec![Bytes::new(); attempts.len()]),
                Err(Attempted { verdict, result: Err(error), .. }) => Err((verdict, error)),
                // It cannot: what is not ready has an error.
                Err(_) => Ok(Vec::new()),
            }
        })
    }

    fn residue_after(&self, residue: &QueuedWrite, applied: &Bytes) -> ResidueAfter {
        let Some(Form::Ends(ends)) = Form::of(&residue.body) else { return ResidueAfter::Kept };
        let left = residue::after(&self.links.shared.commands, &ends, applied);
        if left == ends {
            return ResidueAfter::Kept;
        }
        self.links.residue(&left).map_or(ResidueAfter::Void, ResidueAfter::Changed)
    }

    fn attempt<'a>(&'a self, attempt: Attempt<'a>) -> Answer<'a, Attempted> {
        Box::pin(self.links.carry(attempt))
    }

    fn batch_max(&self) -> usize {
        BATCH_MAX
    }

    fn attempt_batch<'a>(&'a self, attempts: Vec<Attempt<'a>>) -> Answer<'a, Vec<Attempted>> {
        // They meet on the connection for writes, and go out in as few segments as they fit.
        Box::pin(self.links.carry_batch(attempts))
    }

    fn ping(&self, timeout: Duration) -> Answer<'_, Attempted> {
        let ping = Bytes::from_static(b"*1\r\n$4\r\nPING\r\n");
        // An idle connection for writes is kept from being forgotten by routers on the way, and a dead
        // one is found out before a write is lost on it.
        self.links.writes.send_and_forget(ping.clone());
        Box::pin(async move {
            let ended = self.links.reads.ping(ping, timeout).await;
            if ended.result.is_ok() {
                self.links.writes.end_pause();
            }
            ended
        })
    }

    fn overlay(&self, slot: &Slot) -> Option<Box<dyn Overlay>> {
        let shared = Arc::clone(&self.links.shared);
        let edition = shared.commands.edition();
        let key = Followed::of(&shared.commands, slot)?;
        Some(Box::new(KeyOverlay { key, shared, edition }))
    }

    fn split(&self, body: &Bytes, slots: &[Slot], reply: &Bytes) -> Option<Vec<Bytes>> {
        cache::split(body, slots, reply)
    }

    fn may_land(&self, _: LaneId) -> bool {
        self.links.shared.may_land()
    }

    fn bars_what_is_left(&self) -> bool {
        // The fence spares a connection that lives, and writes take several.
        true
    }

    fn succeed(&self, before: &dyn Connector) {
        let before: &dyn Any = before;
        if let Some(before) = before.downcast_ref::<Self>() {
            self.links.take_deadlines(&before.links);
        }
    }

    fn expires(&self, slot: &Slot) -> Option<Duration> {
        let read = resp::arguments(&slot.key).ok()?;
        let spec = self.links.shared.commands.find(&read)?;
        let places = spec.keys(&read)?;
        let lately = self.links.shared.settings.timeout + Duration::from_secs(1);
        let keys = places.iter().filter_map(|place| read.get(*place));
        keys.filter_map(|key| self.links.deadlines().left(key, lately)).min()
    }

    fn join(&self, body: &Bytes, parts: Vec<Bytes>) -> Bytes {
        cache::join(body, parts)
    }

    fn forget_tokens(&self, tokens: Vec<OpId>) {
        for tokens in tokens.chunks(FORGET_AT_ONCE) {
            self.links.writes.send_and_forget(token::forget(tokens));
        }
    }

    fn status(&self) -> ConnectorStatus {
        ConnectorStatus {
            connections: self.links.shared.others.len()
                + [&self.links.reads, &self.links.writes, &self.links.second]
                    .into_iter()
                    .filter(|link| link.is_up())
                    .count(),
            warnings: self.warnings(),
            server_version: self
                .links
                .shared
                .server
                .lock()
                .as_ref()
                .and_then(|server| server.version.clone()),
        }
    }

    fn target(&self) -> Target {
        self.target.clone()
    }

    fn view(&self) -> Target {
        self.target.seen_by(self.links.shared.settings.username.as_deref())
    }

    fn answered_with(&self, code: &str, _: &Bytes) -> Option<Attempted> {
        let is_word = !code.is_empty() && code.bytes().all(|byte| byte.is_ascii_uppercase());
        let reply = format!("-{code} {INJECTED}\r\n");
        is_word.then(|| outcome::of(reply.into()))
    }

    fn usual_errors(&self) -> UsualErrors {
        UsualErrors { overloaded: "LOADING", refuses: "ERR" }
    }

    fn give_up_connections(&self) {
        let Links { reads, writes, second, .. } = &self.links;
        for link in [reads, writes, second] {
            link.retire();
        }
    }

    fn close(&self) -> Answer<'_, ()> {
        Box::pin(async {
            let Links { shared, reads, writes, second, .. } = &self.links;
            shared.closing.cancel();
            shared.others.close();
            tokio::join!(reads.close(), writes.close(), second.close(), shared.others.wait());
        })
    }
}
