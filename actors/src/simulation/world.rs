//! What outlives the daemon in a simulation: time, chance, the backends, the disks, and what is known of it all.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use fastrand::Rng;
use fusebox_state::UnixMillis;
use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

use super::{
    disk::Disk,
    ledger::Ledger,
    log::Log,
    report::{Broken, Scenario, Summary},
    scene::BACKENDS,
    server::Server,
};

/// The wall clock at the beginning.
const UNIX: u64 = 1_800_000_000_000;

/// See the [module](self).
pub(super) struct World {
    pub(super) scenario: Scenario,
    /// What of time was before the daemon of the moment, in milliseconds; and when that one began.
    began: Mutex<(u64, Option<Instant>)>,
    /// How far the wall clock was set in all, in milliseconds.
    set: &'static AtomicI64,
    rng: Mutex<Rng>,
    log: Mutex<Log>,
    pub(super) ledger: Mutex<Ledger>,
    servers: [Mutex<Server>; BACKENDS.len()],
    pub(super) disks: [Disk; BACKENDS.len()],
    /// The next replay of that backend panics.
    pub(super) panics: [Mutex<Option<Panics>>; BACKENDS.len()],
    pub(super) step: AtomicU64,
    pub(super) tally: Tally,
    broken: Mutex<Option<Box<Broken>>>,
}

/// The world of one simulation, as its parts share it.
pub(super) type Shared = Arc<World>;

/// When a replay panics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Panics {
    /// Before anything is sent.
    Before,
    /// After it was answered.
    After,
}

/// What is counted for the summary.
#[derive(Default)]
pub(super) struct Tally {
    pub(super) faults: AtomicU64,
    pub(super) restarts: AtomicU64,
    pub(super) transitions: AtomicU64,
    pub(super) states: AtomicU64,
    pub(super) dead_letters: AtomicU64,
}

impl World {
    pub(super) fn new(scenario: Scenario) -> Arc<Self> {
        Arc::new(Self {
            scenario,
            began: Mutex::default(),
            // Eight bytes for each simulation of a process: the clock that reads it is copied everywhere.
            set: Box::leak(Box::default()),
            rng: Mutex::new(Rng::with_seed(scenario.seed)),
            log: Mutex::new(Log::new(scenario.tells)),
            ledger: Mutex::default(),
            servers: std::array::from_fn(|_| Mutex::new(Server::new())),
            disks: std::array::from_fn(|_| Disk::default()),
            panics: std::array::from_fn(|_| Mutex::default()),
            step: AtomicU64::new(0),
            tally: Tally::default(),
            broken: Mutex::default(),
        })
    }

    /// A daemon begins at this instant. Returns its clock.
    pub(super) fn daemon_begins(&self) -> crate::Clock {
        let now = self.now();
        *self.began.lock() = (now, Some(Instant::now()));
        let unix = UnixMillis::new((UNIX + now).saturating_add_signed(self.set.load(Relaxed)));
        // From now on the clock itself reports what it is set by.
        self.set.store(0, Relaxed);
        crate::Clock::simulated(unix, self.set)
    }

    /// The daemon ends at this instant, and its time with it: nothing happens until the next one begins.
    pub(super) fn daemon_ends(&self) {
        let now = self.now();
        *self.began.lock() = (now, None);
    }

    /// What the daemon had is gone.
    pub(super) fn daemon_ended(&self) {
        let now = self.now();
        self.arrive();
        self.servers.iter().for_each(|server| server.lock().sender_ended(now));
        self.ledger.lock().daemon_ended();
        self.tally.restarts.fetch_add(1, Relaxed);
    }

    /// Milliseconds since the beginning.
    pub(super) fn now(&self) -> u64 {
        let (before, began) = *self.began.lock();
        let since = began.map_or(Duration::ZERO, |began| began.elapsed());
        before + u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    /// Sets the wall clock forward or back.
    pub(super) fn set_wall_clock(&self, millis: i64) {
        self.set.fetch_add(millis, Relaxed);
    }

    pub(super) fn rng(&self) -> MutexGuard<'_, Rng> {
        self.rng.lock()
    }

    /// A backend as it is now.
    pub(super) fn server(&self, at: usize) -> Option<MutexGuard<'_, Server>> {
        self.arrive();
        self.servers.get(at).map(Mutex::lock)
    }

    /// Everything that has arrived by now is applied.
    pub(super) fn arrive(&self) {
        let now = self.now();
        for (at, server) in self.servers.iter().enumerate() {
            let applied = server.lock().arrive(now);
            for (_, body) in applied {
                self.note(|| format!("{} applied {body:?}", BACKENDS.get(at).unwrap_or(&"")));
                let checked = self.ledger.lock().applied(at, body);
                self.check(checked);
            }
        }
    }

    /// Something happened.
    pub(super) fn note(&self, line: impl FnOnce() -> String) {
        let now = self.now();
        self.log.lock().note(now, &line());
    }

    /// A fault, or an order, takes effect.
    pub(super) fn fault(&self, line: String) {
        self.tally.faults.fetch_add(1, Relaxed);
        self.note(|| line);
    }

    pub(super) fn check(&self, checked: Result<(), String>) {
        if let Err(what) = checked {
            self.broken(what);
        }
    }

    /// An invariant does not hold. The first one counts.
    pub(super) fn broken(&self, what: String) {
        let Scenario { seed, hours, .. } = self.scenario;
        let step = self.step.load(Relaxed);
        let last = self.log.lock().last();
        let broken = Box::new(Broken { seed, hours, what, step, last });
        self.broken.lock().get_or_insert(broken);
    }

    pub(super) fn is_broken(&self) -> bool {
        self.broken.lock().is_some()
    }

    pub(super) fn take_broken(&self) -> Option<Box<Broken>> {
        self.broken.lock().take()
    }

    pub(super) fn summary(&self) -> Summary {
        let Tally { faults, restarts, transitions, states, dead_letters } = &self.tally;
        let (mut log, ledger) = (self.log.lock(), self.ledger.lock());
        Summary {
            seed: self.scenario.seed,
            hours: self.scenario.hours,
            hash: log.hash(),
            events: log.count,
            calls: ledger.calls,
            acknowledged: ledger.acknowledged,
            applied: ledger.applied,
            faults: faults.load(Relaxed),
            restarts: restarts.load(Relaxed),
            transitions: transitions.load(Relaxed),
            states: states.load(Relaxed),
            dead_letters: dead_letters.load(Relaxed),
        }
    }
}
