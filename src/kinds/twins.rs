//! Another daemon under our name: how it is distinguished from what our own last run left.
//!
//! The fences of the kinds kill whatever has this installation's name and is none of this run's: connections, or
//! queries. What an earlier run left is dead, and stays so once it is killed. A daemon with a
//! copy of our state directory lives, and comes back; and it kills what is ours. That it comes back
//! `COMEBACKS` times is the proof. Then one of the two must take another name, and the one that found the proof
//! does, whichever it is.
//!
//! **Why once is no proof:** what a dead run had sent may still be on its way, or be in the socket of a server that
//! was frozen, and show itself after the first kill. So the connectors tell of it only what cannot be older than
//! this process (`since_start`), and once is not enough.

use std::{
    collections::HashMap,
    sync::LazyLock,
    time::{Duration, Instant, SystemTime},
};

use parking_lot::Mutex;
use tokio::sync::watch;

/// How often another run comes back before it is proven to live.
const COMEBACKS: u32 = 3;
/// Runs that are remembered: more than a daemon ever leaves behind.
const RUNS_MAX: usize = 64;

/// When this process began, on the clock that does not step and on the wall.
static START: LazyLock<(Instant, SystemTime)> =
    LazyLock::new(|| (Instant::now(), SystemTime::now()));

/// How long this process has run, and when it began on the wall clock.
pub(crate) fn since_start() -> (Duration, SystemTime) {
    (START.0.elapsed(), START.1)
}

/// What is known of other runs under our name.
#[derive(Debug)]
pub struct Twins {
    runs: Mutex<HashMap<String, Run>>,
    proof: watch::Sender<bool>,
}

#[derive(Debug)]
struct Run {
    /// The newest of what it made that was killed.
    newest: u128,
    comebacks: u32,
}

impl Default for Twins {
    fn default() -> Self {
        LazyLock::force(&START);
        Self { runs: Mutex::default(), proof: watch::channel(false).0 }
    }
}

impl Twins {
    /// Something of another run was met and killed: what it makes is numbered in rising order, and this was
    /// number `newest`, made since this process began if `young`.
    pub(crate) fn met(&self, run: &str, newest: u128, young: bool) {
        let mut runs = self.runs.lock();
        let Some(known) = runs.get_mut(run) else {
            if runs.len() < RUNS_MAX {
                runs.insert(run.to_owned(), Run { newest, comebacks: 0 });
            }
            return;
        };
        if newest <= known.newest {
            return;
        }
        known.newest = newest;
        if !young {
            return;
        }
        known.comebacks += 1;
        if known.comebacks == COMEBACKS {
            tracing::warn!(run, "another daemon under our name comes back after it was killed");
            self.proof.send_replace(true);
        }
    }

    /// Resolves once another daemon is proven to have our name.
    pub(crate) async fn proven(&self) {
        let mut proof = self.proof.subscribe();
        // It lives as long as this does.
        drop(proof.wait_for(|proven| *proven).await);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_proven(twins: &Twins) -> bool {
        *twins.proof.borrow()
    }

    #[test]
    fn only_what_comes_back_again_and_again_is_a_twin() {
        let twins = Twins::default();
        // What a run left, found one after the other in falling order: no proof, however much it is.
        for number in (1..100).rev() {
            twins.met("dead", number, true);
        }
        // What is older than this process is none either.
        for number in 100..200 {
            twins.met("dead", number, false);
        }
        // Several runs, each once or twice.
        for run in 0..50 {
            for number in 1..=COMEBACKS {
                twins.met(&format!("run {run}"), number.into(), true);
            }
        }
        assert!(!is_proven(&twins));
        twins.met("run 7", u128::from(COMEBACKS) + 1, true);
        assert!(is_proven(&twins));
    }

    #[tokio::test]
    async fn who_waits_hears_of_the_proof() {
        let twins = std::sync::Arc::new(Twins::default());
        let waiter = tokio::spawn({
            let twins = std::sync::Arc::clone(&twins);
            async move { twins.proven().await }
        });
        tokio::task::yield_now().await;
        assert!(!waiter.is_finished());
        (0..=COMEBACKS).for_each(|number| twins.met("twin", number.into(), true));
        waiter.await.unwrap();
    }
}
