//! Simulated hours. A seed that fails prints the command that repeats it.

use std::{env::var, ops::Range, thread};

use parking_lot::Mutex;

use super::*;

/// Seeds that are run for every change, an hour each. How many, and from which on, is said by
/// `FUSEBOX_TEST_HOURS` and `FUSEBOX_TEST_SEED`.
const SEEDS: u64 = 300;

fn seeds() -> Range<u64> {
    let number = |name: &str| var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let first = number("FUSEBOX_TEST_SEED").unwrap_or(1);
    first..first + number("FUSEBOX_TEST_HOURS").unwrap_or(SEEDS)
}

fn hour(seed: u64) -> Result<Summary, Box<Broken>> {
    run(Scenario { seed, hours: 1, tells: None })
}

#[test]
fn every_invariant_holds_in_every_hour() {
    silence_wanted_panics();
    let (seeds, broken) = (Mutex::new(seeds()), Mutex::new(None));
    let next = || if broken.lock().is_some() { None } else { seeds.lock().next() };
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(seed) = next() {
                    if let Err(found) = hour(seed) {
                        broken.lock().get_or_insert(found);
                    }
                }
            });
        }
    });
    if let Some(broken) = broken.into_inner() {
        panic!("{broken}");
    }
}

/// The watch took dead letters that waited for a failing disk for a lane that is never given back. The seed does that as
/// long as it draws the same.
#[test]
fn what_waits_for_a_disk_that_fails_is_not_forgotten() {
    silence_wanted_panics();
    hour(11_296_821_721_509).unwrap_or_else(|broken| panic!("{broken}"));
}

#[test]
fn a_seed_says_all_that_happens() {
    silence_wanted_panics();
    let mut hashes = Vec::new();
    for seed in 1..=3 {
        let once = hour(seed).unwrap_or_else(|broken| panic!("{broken}"));
        assert_eq!(hour(seed).as_ref(), Ok(&once));
        assert!(once.restarts > 0 && once.transitions > 0 && once.dead_letters > 0, "{once:?}");
        hashes.push(once.hash);
    }
    hashes.dedup();
    assert_eq!(hashes.len(), 3, "{hashes:?}");
}
