//! Numbers from the environment, so that a failed run can be repeated and a long one asked for.

use std::env;

/// How many rounds a storm has: `FUSEBOX_TEST_ROUNDS`, or as many as are enough for every run of the tests.
pub(crate) fn rounds(default: u64) -> u64 {
    number("FUSEBOX_TEST_ROUNDS").unwrap_or(default)
}

/// The seed of chance: `FUSEBOX_TEST_SEED`, or anywhere. It is printed.
pub(crate) fn seed() -> u64 {
    let seed = number("FUSEBOX_TEST_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("repeat with FUSEBOX_TEST_SEED={seed}");
    seed
}

fn number(variable: &str) -> Option<u64> {
    env::var(variable).ok().map(|text| text.parse().expect("a whole number"))
}
