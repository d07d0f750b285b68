//! Two sides, measured in turns.

use std::time::Instant;

/// Rounds of a comparison; a figure is the median. A server in a virtual machine of its own, such as Google's emulator,
/// takes up to a tenth more or less from one request to the next.
const ROUNDS: usize = 31;
/// Repetitions within a round, of which the median counts.
const READS: usize = 40;

pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

pub(crate) fn seconds(work: impl FnOnce()) -> f64 {
    let begun = Instant::now();
    work();
    begun.elapsed().as_secs_f64()
}

/// Measures both sides in turns. Returns the medians of each, and of the second to the first within a round.
pub(crate) fn in_turns(
    mut first: impl FnMut() -> f64,
    mut second: impl FnMut() -> f64,
) -> (f64, f64, f64) {
    // The first round of each warms up.
    first();
    second();
    // Neither side is always the one after the other.
    let rounds: Vec<(f64, f64)> = (0..ROUNDS)
        .map(|round| {
            if round % 2 == 0 {
                let first = first();
                (first, second())
            } else {
                let second = second();
                (first(), second)
            }
        })
        .collect();
    let over = |of: fn(&(f64, f64)) -> f64| median(rounds.iter().map(of).collect());
    (over(|it| it.0), over(|it| it.1), over(|it| it.1 / it.0))
}

pub(crate) fn median_of(mut read: impl FnMut()) -> f64 {
    median((0..READS).map(|_| seconds(&mut read)).collect())
}

pub(crate) fn millis(seconds: f64) -> String {
    format!("{:.3} ms", seconds * 1e3)
}
