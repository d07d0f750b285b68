//! Two sides, measured in turns.

use std::time::Instant;

/// Rounds of a comparison; a figure is the median.
const ROUNDS: usize = 15;
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
    let rounds: Vec<(f64, f64)> = (0..ROUNDS).map(|_| (first(), second())).collect();
    let over = |of: fn(&(f64, f64)) -> f64| median(rounds.iter().map(of).collect());
    (over(|it| it.0), over(|it| it.1), over(|it| it.1 / it.0))
}

pub(crate) fn median_of(mut read: impl FnMut()) -> f64 {
    median((0..READS).map(|_| seconds(&mut read)).collect())
}

pub(crate) fn millis(seconds: f64) -> String {
    format!("{:.3} ms", seconds * 1e3)
}
