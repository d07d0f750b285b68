//! The real actors through simulated days of faults: `fusebox simulate`.
//!
//! ```text
//!  callers ──calls──▶ ┌──────────────────────────────┐ ──attempts──▶ model backends ──▶ ledger
//!  operator ─orders─▶ │ Fusebox: the product's actors │                                   ▲
//!  faults ──────────▶ │ on one thread, clock paused   │ ──commits──▶ stores in memory     │
//!                     └──────────────┬───────────────┘                                    │
//!                                    └──events, queues, states──▶ watch ──── invariants ──┘
//! ```
//! Time is tokio's paused clock: it stops while anything can run, and jumps to the next timer when nothing can. An hour
//! so takes a second or less, and the order of what happens is the same each time.
//!
//! # What is simulated, and what is not
//! The call path, the actors and their supervision, replay, the breaker, the queue's index and the records of its store
//! are the product's own. Beneath them is another ground (`ground.rs`): stores in memory whose committer is a task
//! (sled, its files and its threads have tests of their own), no cron jobs, no caches on the disk, no journal. Above
//! them there is no door: callers call [`crate::Backend::call`]. A backend is a model: a register for each key, the
//! tokens that it knows, and what is on its way to it. There are three, as the kinds are: keys (a token for what is not
//! absolute), documents (calls in batches), rows (inserts in groups, without an order).
//!
//! # Chance
//! The seed is all there is. It seeds the thread's `fastrand`, of which the product takes its jitter, its names and the
//! length of work that may block, and the world's own generator, of which everything else comes. Every `select!` of the
//! actors is biased, nothing that decides goes through a map in the order of its hashes, and there is one thread. What
//! is left to chance: ractor takes either first of a message and a child's end that reach health in the same instant.
//! So the hash of what happened is over instants, the events of each in the order of their text.
//!
//! # What happens
//! A backend answers, is slow, hangs, loses answers, breaks connections, refuses, is overloaded, is unreachable,
//! refuses everybody, flaps, or answers with errors that nobody knows. A store's sync fails, with or without what was
//! to be synced, and the store is down for a while; a store does not open at once. A backend's actor, a replay, a ping
//! panics. The operator takes backends offline, forces and resets breakers, recovers, changes settings, sets faults on
//! purpose, nudges replay, requeues dead letters. The wall clock is set. The daemon is killed, or stopped, and started
//! over what its stores had made durable; what was on its way to a backend arrives.
//!
//! # Invariants, each with its place
//! 1. A write that was acknowledged was applied, or waits, or is a dead letter; or, being absolute, a write of its
//!    key's whole value was applied in its place (`ledger`).
//! 2. Nothing is applied behind a write of its lane that was begun after its own call had ended, unless that one became
//!    a dead letter: the lane goes on as if it had not been. What is absolute may come back after a crash, with all
//!    that is newer behind it.
//! 3. What is not absolute is applied once at most; what its caller learnt to be not executed is not applied.
//! 4. A keyed read sees what was acknowledged before it began.
//! 5. No call takes longer than its deadline and a second (`caller`).
//! 6. Breakers make only allowed transitions, each from its previous state (`watch`).
//! 7. The system state is what follows from the backends: at once if that is worse, after five seconds if it is better.
//! 8. The counters of a queue are what its index holds.
//! 9. If nothing is asked for and nothing waits, no permit, no place and no call is held.
//! 10. Once the faults have ended, everything drains and the system is HEALTHY.
//!
//! They are looked at after every step: each act of the operator and of the faults, and each second; all that the
//! queues hold, after every tenth, and before each end of the daemon.

use std::panic;

mod act;
mod body;
mod caller;
mod connector;
mod daemon;
mod disk;
mod ledger;
mod log;
pub(crate) mod overlay;
mod report;
mod scene;
mod server;
mod settings;
mod store;
#[cfg(test)]
mod tests;
mod watch;
mod world;

use daemon::{Ended, Incarnation};
pub use report::{Broken, Scenario, Summary};
use world::World;

/// Runs one simulation on the thread that calls, which must not be one of a runtime.
///
/// # Errors
/// [`Broken`] is the first invariant that did not hold.
pub fn run(scenario: Scenario) -> Result<Summary, Box<Broken>> {
    let world = World::new(scenario);
    fastrand::seed(scenario.seed);
    loop {
        let ended = match Incarnation::live(&world) {
            Ok(ended) => ended,
            Err(error) => {
                world.broken(format!("the daemon does not start: {error}"));
                Ended::Over
            }
        };
        if let Some(broken) = world.take_broken() {
            return Err(broken);
        }
        match ended {
            Ended::Killed => world.daemon_ended(),
            Ended::Over => return Ok(world.summary()),
        }
    }
}

/// Has the process say nothing of the panics that simulations want; other panics are reported as before.
pub fn silence_wanted_panics() {
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        let said = panic.payload().downcast_ref::<&str>();
        if !said.is_some_and(|said| said.starts_with("told to panic")) {
            usual(panic);
        }
    }));
}
