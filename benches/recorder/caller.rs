//! The callers whose calls are recorded.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::{
    cause,
    client::Client,
    scenario::{Scenario, Shape},
    server::Kind,
    support::recording::{Call, Ended, TIMEOUT},
};

/// The mean pause between two calls of one caller.
const GAP: Duration = Duration::from_millis(50);

/// A recording in a line.
pub(crate) fn summary(calls: &[Call]) -> String {
    let mut line = format!("{:5} calls; p90 in ms and failures of each 5 s:", calls.len());
    for five in 0..15 {
        let of = |call: &&Call| call.ended.as_secs() / 5 == five;
        let mut took: Vec<Duration> = calls.iter().filter(of).map(|call| call.took).collect();
        took.sort();
        let p90 = took.get(took.len() * 9 / 10).copied().unwrap_or_default();
        let failed = calls.iter().filter(of).filter(|call| call.how != Ended::Answered);
        line.extend([" ", &p90.as_millis().to_string(), "/", &failed.count().to_string()]);
    }
    line
}

/// What one caller does, from the recording's beginning to its end.
pub(crate) fn calls(
    client: &mut Client,
    scenario: &Scenario,
    number: usize,
    begin: Instant,
    length: Duration,
) -> Vec<Call> {
    let mut random = fastrand::Rng::with_seed(scenario.seed * 10 + number as u64);
    let mut calls = Vec::new();
    while begin.elapsed() < length {
        let question = cause::question(scenario, &mut random);
        let asked = Instant::now();
        let how = client.ask(&question, TIMEOUT);
        if asked < begin {
            thread::sleep(GAP);
            continue;
        }
        calls.push(Call { ended: begin.elapsed(), took: asked.elapsed(), how });
        // By day, as a minute has it, four times as many calls as by night.
        let mut busy = match scenario.shape {
            Shape::Diurnal(_) => 0.4 + 1.2 * Shape::day(begin.elapsed()),
            _ => 1.0,
        };
        if scenario.server == Kind::ClickHouse26 {
            busy /= 2.0;
        }
        thread::sleep(GAP.mul_f64((-random.f64().max(1e-9).ln()).min(5.0) / busy));
    }
    calls
}
