//! The breaker's permit and success against `recloser`, in one run, as ratios.
//!
//! Both guard a call that does nothing. Ours is handed the time, as calls hand it theirs (the clock is
//! read once per call, for everything); recloser counts calls and needs none while it is closed. Rounds
//! alternate between the two, each thread is timed by the processor time that it used, and medians are
//! compared, so that a noisy machine affects both alike. Two threads contend only while both cores are
//! free for them: run it on a quiet machine.
//!
//! `cargo bench --bench breaker -- --gate` fails if the ratio is above 0.5 on one thread or above
//! 0.1 on two.

use std::{hint::black_box, sync::Barrier, time::Duration};

use fusebox_state::{
    Moment, Outcome, Ratio,
    breaker::{Breaker, BreakerSettings, SlowCalls},
};
use recloser::Recloser;
use rustix::time::{ClockId, clock_gettime};

const ROUNDS: usize = 15;
const CALLS: u32 = 2_000_000;

fn main() -> Result<(), String> {
    let gate = std::env::args().any(|argument| argument == "--gate");
    let ours = ours()?;
    let peer = Recloser::default();
    let mut failed = Vec::new();
    say("threads   fusebox ns   recloser ns   ratio   gate");
    for (threads, limit) in [(1, 0.5), (2, 0.1)] {
        let (mut own, mut other) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            own.push(measure(threads, || permit_and_success(&ours)));
            other.push(measure(threads, || {
                black_box(peer.call(|| Ok::<(), ()>(()))).ok();
            }));
        }
        let (own, other) = (median(own), median(other));
        let ratio = own / other;
        say(&format!("{threads:>7}   {own:>10.2}   {other:>11.2}   {ratio:>5.2}   <= {limit}"));
        if ratio > limit {
            failed.push(format!("{ratio:.2} > {limit} on {threads} threads"));
        }
    }
    if gate && !failed.is_empty() {
        return Err(failed.join(", "));
    }
    Ok(())
}

fn ours() -> Result<Breaker, String> {
    let ratio = |value| Ratio::new(value).ok_or("not a ratio");
    let settings = BreakerSettings {
        failure_threshold: 5,
        failure_rate: ratio(0.5)?,
        recovery_timeout: Duration::from_secs(30),
        recovery_timeout_max: Duration::from_secs(300),
        success_threshold: 3,
        window: Duration::from_secs(60),
        auto_recovery: true,
        attempt_timeout: Duration::from_secs(5),
        jitter: ratio(0.5)?,
        slow: SlowCalls::default(),
    };
    Ok(Breaker::new(settings, 1, Moment::from_millis(1_000)))
}

#[inline]
fn permit_and_success(breaker: &Breaker) {
    let now = black_box(Moment::from_millis(5_000));
    if let Ok(permit) = breaker.try_acquire(now) {
        black_box(breaker.record(permit, Outcome::SUCCESS, now));
    }
}

/// Nanoseconds per call, with `threads` calling at once.
fn measure(threads: usize, call: impl Fn() + Sync) -> f64 {
    let barrier = Barrier::new(threads);
    let elapsed = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    barrier.wait();
                    let start = processor_time();
                    for _ in 0..CALLS {
                        call();
                    }
                    processor_time().saturating_sub(start)
                })
            })
            .collect();
        workers.into_iter().filter_map(|worker| worker.join().ok()).max().unwrap_or_default()
    });
    elapsed.as_secs_f64() * 1e9 / f64::from(CALLS)
}

/// Processor time that this thread has used.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let part = |value: i64| u64::try_from(value).unwrap_or(0);
    Duration::from_secs(part(time.tv_sec)) + Duration::from_nanos(part(time.tv_nsec))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

#[expect(clippy::print_stdout, reason = "a benchmark prints its result")]
fn say(line: &str) {
    println!("{line}");
}
