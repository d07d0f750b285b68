//! Faults on purpose, applied to the attempts of one backend.
//!
//! Which attempts are struck, and when faults end, is decided in [`fusebox_state::chaos`]. This is what an attempt
//! checks, and what it then meets.
//!
//! ```text
//!   permit, place, timeout ──▶ [switch] ── off ──────────────────────────────▶ connector
//!                                 │ on
//!                                 ▼            before: it waits
//!                            strike ── hit ──▶ not executed: ends here, as the server or the network would end it
//!                                              unknown: its passage has a fate ───▶ connector ──▶ the answer comes
//!                                                                                    and is lost, or late
//! ```
//! # One place
//! Every attempt that a caller waits for goes through [`BackendShared::attempt`](crate::backend_shared::BackendShared),
//! those of replay through `recovery/replay/attempt.rs`, pings through `health/pings.rs`; each looks at the switch
//! behind its permit and its place. A door that sends for itself looks in `admit`: a call that is struck there
//! [takes the other way](crate::OtherWay::Struck) with what strikes it, and meets it on that way. What can take no
//! other way (a connection that belongs to one client, a stream) is not struck.
//!
//! # An outcome that is unknown
//! `reset_after` and `timeout` do not end the attempt themselves. They give its passage a [`Fate`], which goes with it
//! onto the wire. When the answer arrives, the connector asks for it ([`Aboard::fate`](crate::connector::Aboard::fate))
//! and does what it does when the connection breaks or nothing comes in time: evidence is noted, the connection is
//! reset, the fence is raised. A connector that never asks has its answer thrown away here.
//!
//! # Invariants
//! 1. Off, it costs an attempt one relaxed load.
//! 2. A hit is counted when it takes effect. What would reset a connection within a second of the last one, or hold up
//!    more attempts than may be, is suppressed, and counted as that.
//! 3. Faults that were cleared strike nobody who was chosen before: a [`Strike`] is of one generation.
//! 4. Health alone sets, suspends and ends faults; see `health/chaos.rs`. They are nowhere but in memory.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use fusebox_state::{
    Moment, OpId, UnixMillis,
    chaos::{
        Class, Conditions, Ending, FailedShare, Faults, Hit, Kind, Number, Seen, Strike, Struck,
        judge,
    },
};
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;

use crate::{
    clock::Clock,
    view::{ChaosFaultView, ChaosView},
};

/// A connection is reset at most once in this time.
const RESET_EVERY: Duration = Duration::from_secs(1);

/// Faults that strike one attempt, and are counted. What it meets is in [`struck`](crate::struck).
pub(crate) struct Acting {
    pub(crate) armed: Arc<Armed>,
    pub(crate) struck: Struck,
    /// Its place among those that are held up.
    pub(crate) place: Option<Delayed>,
}

/// The faults of one backend.
pub struct Chaos {
    /// Faults are in effect.
    is_on: AtomicBool,
    armed: ArcSwapOption<Armed>,
    /// Those that were set before.
    generations: AtomicU64,
    /// Hits by kind, since the start.
    injected: [Counter; Kind::ALL.len()],
}

/// Faults that were set.
pub(crate) struct Armed {
    pub(crate) faults: Faults,
    generation: u64,
    by: String,
    since: UnixMillis,
    until: Moment,
    until_unix: UnixMillis,
    /// Attempts that were shown to them, by class.
    seen: [AtomicU64; Class::ALL.len()],
    delayed: Arc<AtomicU32>,
    /// When a connection was last reset, in milliseconds of the clock, + 1.
    reset_at: AtomicU64,
    counts: Box<[Counts]>,
    suspended: Mutex<Option<&'static str>>,
    share: Mutex<FailedShare>,
}

/// What became of the hits of one fault.
#[derive(Default)]
struct Counts {
    hits: AtomicU64,
    suppressed: AtomicU64,
}

/// A place among the attempts that are held up.
pub(crate) struct Delayed(Arc<AtomicU32>);

impl Drop for Delayed {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Chaos {
    /// No faults. What strikes is counted by these, in the order of [`Kind::ALL`].
    pub(crate) fn new(injected: [Counter; Kind::ALL.len()]) -> Self {
        Self {
            is_on: AtomicBool::new(false),
            armed: ArcSwapOption::empty(),
            generations: AtomicU64::new(0),
            injected,
        }
    }

    /// What strikes an attempt that is let through now; `op_id` is the name that its caller gave it.
    #[inline]
    pub(crate) fn strike<'a>(
        &self,
        now: Moment,
        op_id: Option<OpId>,
        seen: impl FnOnce() -> Seen<'a>,
    ) -> Option<Strike> {
        if !self.is_on.load(Ordering::Relaxed) {
            return None;
        }
        self.chosen(now, op_id, &seen())
    }

    #[cold]
    fn chosen(&self, now: Moment, op_id: Option<OpId>, seen: &Seen<'_>) -> Option<Strike> {
        let armed = self.armed.load();
        let armed = armed.as_deref().filter(|armed| now < armed.until)?;
        let arrival = armed.seen.get(seen.class.index())?.fetch_add(1, Ordering::Relaxed);
        let number = op_id.map_or(Number::Arrival(arrival), Number::Named);
        let struck = armed.faults.strike(seen, number);
        (struck != Struck::default()).then_some(Strike { generation: armed.generation, struck })
    }

    /// Lets what was chosen take effect. `None` if the faults have ended meanwhile, or all of it is suppressed.
    pub(crate) fn act(&self, Strike { generation, struck }: Strike, now: Moment) -> Option<Acting> {
        let armed = self.armed.load_full().filter(|armed| armed.generation == generation)?;
        if !self.is_on.load(Ordering::Relaxed) || now >= armed.until {
            return None;
        }
        let mut place = None;
        let mut takes_effect = |hit: &Hit| {
            let may = (!hit.kind.delays() || place.is_some() || {
                place = armed.place();
                place.is_some()
            }) && (hit.kind != Kind::ResetAfter || armed.may_reset(now));
            if let Some(counts) = armed.counts.get(hit.index) {
                let count = if may { &counts.hits } else { &counts.suppressed };
                count.fetch_add(1, Ordering::Relaxed);
            }
            if let (true, Some(counter)) = (may, self.injected.get(hit.kind.index())) {
                counter.inc();
            }
            may
        };
        let struck = Struck {
            before: struck.before.filter(&mut takes_effect),
            end: struck.end.filter(&mut takes_effect),
            after: struck.after.filter(&mut takes_effect),
        };
        (struck != Struck::default()).then(|| Acting { armed, struck, place })
    }

    /// Sets faults in place of those that there are.
    pub(crate) fn set(&self, faults: Faults, by: String, clock: Clock) {
        let now = clock.now();
        let until = now.plus(faults.lasting);
        let counts = faults.as_slice().iter().map(|_| Counts::default()).collect();
        let armed = Armed {
            generation: self.generations.fetch_add(1, Ordering::Relaxed),
            by,
            since: clock.unix(),
            until,
            until_unix: clock.to_unix(until),
            seen: Default::default(),
            delayed: Arc::default(),
            reset_at: AtomicU64::new(0),
            counts,
            suspended: Mutex::new(None),
            share: Mutex::default(),
            faults,
        };
        self.armed.store(Some(Arc::new(armed)));
        self.is_on.store(true, Ordering::Relaxed);
    }

    /// Ends the faults; false if there were none.
    pub(crate) fn clear(&self) -> bool {
        self.is_on.store(false, Ordering::Relaxed);
        self.armed.swap(None).is_some()
    }

    /// The faults that are set, be they suspended.
    pub(crate) fn armed(&self) -> Option<Arc<Armed>> {
        self.armed.load_full()
    }

    /// Suspends the faults for that reason, or lets them go on. True if that changes something.
    pub(crate) fn suspend(&self, why: Option<&'static str>) -> bool {
        let Some(armed) = self.armed.load_full() else { return false };
        self.is_on.store(why.is_none(), Ordering::Relaxed);
        std::mem::replace(&mut *armed.suspended.lock(), why) != why
    }

    /// What is shown of the faults; `None` if none are set.
    pub(crate) fn view(&self) -> Option<ChaosView> {
        self.armed.load_full().map(|armed| armed.view())
    }
}

impl Armed {
    /// A place among those that are held up; `None` if there are as many as may be.
    pub(crate) fn place(&self) -> Option<Delayed> {
        let most = self.faults.delayed_max;
        let more = |count: u32| (count < most).then_some(count + 1);
        let taken = self.delayed.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        taken.is_ok().then(|| Delayed(Arc::clone(&self.delayed)))
    }

    /// Whether a connection may be reset now; then it is.
    fn may_reset(&self, now: Moment) -> bool {
        let next = |last: u64| {
            let is_over = last == 0 || now.since(Moment::from_millis(last - 1)) >= RESET_EVERY;
            is_over.then_some(now.as_millis() + 1)
        };
        self.reset_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).is_ok()
    }

    /// Why they end now; `calls` of the backend have ended so far, `failed` of them without an answer.
    pub(crate) fn ending(
        &self,
        now: Moment,
        (calls, failed): (u64, u64),
        found: Conditions,
    ) -> Option<Ending> {
        let failed = self.share.lock().count(calls, failed, now);
        judge(&self.faults, self.until, now, &Conditions { failed, ..found })
    }

    /// How the health of the system names them.
    pub(crate) fn told(&self, backend: &str) -> String {
        format!("{backend}: {}", self.told_alone())
    }

    /// The same without the backend's name.
    pub(crate) fn told_alone(&self) -> String {
        let told = fusebox_state::chaos::told(self.until_unix, &self.faults.reason);
        match *self.suspended.lock() {
            Some(why) => format!("{told}, suspended: {why}"),
            None => told,
        }
    }

    /// When they end, on the wall clock.
    pub(crate) fn until(&self) -> UnixMillis {
        self.until_unix
    }

    fn view(&self) -> ChaosView {
        let order = self.faults.order();
        let faults = order.faults.iter().zip(&*self.counts);
        let shown = |time: Duration| time.as_millis().try_into().unwrap_or(u64::MAX);
        ChaosView {
            until: self.until_unix,
            since: self.since,
            by: self.by.clone(),
            reason: self.faults.reason.clone(),
            seed: self.faults.seed,
            count: self.faults.counts,
            force: self.faults.forced,
            max_active: self.faults.delayed_max,
            abort_on: self.faults.abort_on.as_str().into(),
            abort_above: self.faults.abort_above,
            suspended: self.suspended.lock().map(str::to_owned),
            attempts: self.seen.iter().map(|seen| seen.load(Ordering::Relaxed)).sum(),
            lasting_ms: shown(self.faults.lasting),
            faults: faults
                .map(|(order, counts)| ChaosFaultView {
                    kind: order.kind.clone(),
                    rate: order.rate.unwrap_or_default(),
                    latency: order.latency.clone(),
                    jitter: order.jitter.clone(),
                    code: order.code.clone(),
                    class: order.class.clone(),
                    only: order.only.clone(),
                    hits: counts.hits.load(Ordering::Relaxed),
                    suppressed: counts.suppressed.load(Ordering::Relaxed),
                })
                .collect(),
        }
    }
}
