mod changes;
mod edges;

use proptest::prelude::*;

use super::*;
use crate::{units::UnixMillis, window::Counts};

fn settings() -> BreakerSettings {
    BreakerSettings {
        failure_threshold: 5,
        failure_rate: Ratio::new(0.5).unwrap(),
        recovery_timeout: Duration::from_secs(30),
        recovery_timeout_max: Duration::from_secs(300),
        success_threshold: 3,
        window: Duration::from_secs(60),
        auto_recovery: true,
        attempt_timeout: Duration::from_secs(5),
        jitter: Ratio::new(0.0).unwrap(),
        slow: SlowCalls::default(),
    }
}

fn at(millis: u64) -> Moment {
    Moment::from_millis(millis)
}

fn breaker() -> Breaker {
    Breaker::new(settings(), 7, at(0))
}

/// Runs a script: `F`, `S` and `N` are attempts that fail, succeed, or say nothing (skipped if
/// rejected), `P` and `p` a failed and an answered ping, `5s` lets time pass and ticks. Returns the
/// states passed through with their reasons.
#[track_caller]
fn timeline(breaker: &Breaker, now: &mut u64, script: &str) -> Vec<(State, Reason)> {
    let mut seen = Vec::new();
    let mut tell = |transition: Option<Transition>| {
        seen.extend(transition.map(|told| (told.to, told.reason)));
    };
    for step in script.split_whitespace() {
        let outcome = match step {
            "F" => Outcome::FAILURE,
            "S" => Outcome::SUCCESS,
            "N" => Outcome::NEUTRAL,
            "P" | "p" => {
                tell(breaker.record_ping(step == "p", 0, at(*now)));
                continue;
            }
            wait => {
                *now += wait.trim_end_matches('s').parse::<u64>().unwrap() * 1_000;
                tell(breaker.tick(at(*now)));
                continue;
            }
        };
        if let Ok(permit) = breaker.try_acquire(at(*now)) {
            tell(breaker.record(permit, outcome, at(*now)).map(|told| *told));
        }
    }
    seen
}

#[track_caller]
fn check(script: &str, expected: &[(State, Reason)]) {
    assert_eq!(timeline(&breaker(), &mut 0, script), expected, "script {script:?}");
}

const TRIP: &str = "F F F F F";

#[test]
fn trips_at_the_threshold_of_failures_and_rate() {
    check("F F F F", &[]);
    check(TRIP, &[(State::Open, Reason::FailureRate)]);
    check("S S S S S F F F F F", &[(State::Open, Reason::FailureRate)]);
    check("S S S S S S F F F F F", &[]);
}

#[test]
fn a_rate_of_zero_turns_the_rate_test_off() {
    let breaker = Breaker::new(
        BreakerSettings { failure_rate: Ratio::new(0.0).unwrap(), ..settings() },
        7,
        at(0),
    );
    let script = format!("{} {TRIP}", "S ".repeat(500));
    let seen = timeline(&breaker, &mut 0, &script);
    assert_eq!(seen, [(State::Open, Reason::FailureRate)]);
}

#[test]
fn a_dead_backend_under_load_trips_in_a_short_horizon() {
    let script = format!("{} 20s {}", "S ".repeat(5_000), "F ".repeat(10));
    check(&script, &[(State::Open, Reason::Burst)]);
}

#[test]
fn one_failure_in_ten_does_not_trip() {
    let script = "S S S S S S S S S F 1s ".repeat(200);
    check(&script, &[]);
}

#[test]
fn failures_age_out_of_the_window() {
    check("F F F F 61s F F F F", &[]);
}

#[test]
fn half_opens_and_closes_after_enough_successes_in_a_row() {
    check(
        &format!("{TRIP} 29s S 1s S S N S"),
        &[
            (State::Open, Reason::FailureRate),
            (State::HalfOpen, Reason::RecoveryTimeout),
            (State::Closed, Reason::ProbesSucceeded),
        ],
    );
}

#[test]
fn a_failed_probe_reopens_and_doubles_the_wait() {
    let expected = [
        (State::Open, Reason::FailureRate),
        (State::HalfOpen, Reason::RecoveryTimeout),
        (State::Open, Reason::ProbeFailed),
        (State::HalfOpen, Reason::RecoveryTimeout),
        (State::Open, Reason::ProbeFailed),
    ];
    check(&format!("{TRIP} 30s S F 30s S 29s 1s F"), &expected);
}

#[test]
fn the_wait_is_capped_and_forgotten_only_after_two_quiet_windows() {
    let (breaker, mut now) = (breaker(), 0);
    timeline(&breaker, &mut now, TRIP);
    for _ in 0..8 {
        timeline(&breaker, &mut now, "300s F");
    }
    let open_for = |breaker: &Breaker, now| {
        breaker.snapshot(at(now)).open_until.map(|until| until.since(at(now)).as_secs())
    };
    assert_eq!(open_for(&breaker, now), Some(300));
    timeline(&breaker, &mut now, &format!("300s S S S 100s {TRIP}"));
    assert_eq!(open_for(&breaker, now), Some(300), "closed for less than two windows");
    timeline(&breaker, &mut now, &format!("300s S S S 120s {TRIP}"));
    assert_eq!(open_for(&breaker, now), Some(30));
}

#[test]
fn jitter_keeps_the_wait_in_its_upper_half_from_the_second_time_on() {
    let jitter = Ratio::new(0.5).unwrap();
    for seed in 0..50 {
        let breaker = Breaker::new(BreakerSettings { jitter, ..settings() }, seed, at(0));
        let mut now = 0;
        timeline(&breaker, &mut now, TRIP);
        let first = breaker.snapshot(at(now)).open_until.unwrap().since(at(now));
        assert_eq!(first, Duration::from_secs(30));
        timeline(&breaker, &mut now, "30s F");
        let second = breaker.snapshot(at(now)).open_until.unwrap().since(at(now)).as_secs();
        assert!((30..=60).contains(&second), "{second}");
    }
}

#[test]
fn half_open_admits_no_more_probes_than_the_threshold_and_takes_neutral_ones_back() {
    let (breaker, mut now) = (breaker(), 0);
    timeline(&breaker, &mut now, &format!("{TRIP} 30s"));
    let mut permits: Vec<_> = (0..3).map(|_| breaker.try_acquire(at(now)).unwrap()).collect();
    assert_eq!(breaker.try_acquire(at(now)).err(), Some(Rejected::Open));
    drop(permits.pop());
    assert!(breaker.try_acquire(at(now)).is_ok_and(|permit| permit.is_probe()));
}

#[test]
fn a_probe_that_never_reports_reopens_it() {
    let (breaker, mut now) = (breaker(), 0);
    timeline(&breaker, &mut now, &format!("{TRIP} 30s"));
    let lost = breaker.try_acquire(at(now)).unwrap();
    assert_eq!(breaker.next_tick(), Some(at(now + 10_000)));
    assert_eq!(timeline(&breaker, &mut now, "9s"), []);
    assert_eq!(timeline(&breaker, &mut now, "1s"), [(State::Open, Reason::ProbeTimeout)]);
    assert_eq!(breaker.record(lost, Outcome::SUCCESS, at(now)), None);
}

#[test]
fn outcomes_of_an_earlier_state_change_nothing() {
    let (breaker, mut now) = (breaker(), 0);
    let early: Vec<_> = (0..20).map(|_| breaker.try_acquire(at(0)).unwrap()).collect();
    timeline(&breaker, &mut now, &format!("{TRIP} 30s"));
    for (index, permit) in early.into_iter().enumerate() {
        let outcome = if index % 2 == 0 { Outcome::FAILURE } else { Outcome::SUCCESS };
        assert_eq!(breaker.record(permit, outcome, at(now)), None);
    }
    assert_eq!(breaker.state().0, State::HalfOpen);
    assert_eq!(timeline(&breaker, &mut now, "S S"), []);
}

#[test]
fn a_panic_settles_its_permit() {
    let (breaker, mut now) = (breaker(), 0);
    timeline(&breaker, &mut now, &format!("{TRIP} 30s"));
    for _ in 0..5 {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _permit = breaker.try_acquire(at(now)).unwrap();
            panic!("the attempt panics");
        }));
        assert!(result.is_err());
    }
    assert!(breaker.try_acquire(at(now)).is_ok());
}

#[test]
fn what_callers_gave_up_counts_with_the_second_failed_ping_however_well_things_went_before() {
    let breaker = breaker();
    timeline(&breaker, &mut 0, &"S ".repeat(1_000));
    assert_eq!(breaker.record_ping(false, 9, at(0)), None, "one ping alone proves little");
    let tripped = breaker.record_ping(false, 3, at(0)).unwrap();
    assert_eq!((tripped.to, tripped.reason), (State::Open, Reason::PingsFailed));
    let other = self::breaker();
    let told: Vec<_> = [2, 2, 0].map(|up| other.record_ping(false, up, at(0)).is_some()).into();
    assert_eq!(
        told, [false; 3],
        "two pings and two attempts are four; what was answered counts no more"
    );
}

#[test]
fn failed_pings_in_a_row_trip_an_idle_breaker_and_stay_out_of_the_window() {
    check("P P P P p P P P P P", &[(State::Open, Reason::PingsFailed)]);
    let breaker = breaker();
    timeline(&breaker, &mut 0, "P P P P");
    assert_eq!(breaker.snapshot(at(0)).counts, Counts::default());
}

#[test]
fn without_auto_recovery_only_an_order_leaves_open() {
    let breaker = Breaker::new(BreakerSettings { auto_recovery: false, ..settings() }, 7, at(0));
    let mut now = 0;
    timeline(&breaker, &mut now, &format!("{TRIP} 3600s"));
    assert_eq!(breaker.state().0, State::Open);
    assert_eq!(breaker.recover(at(now)).map(|told| told.to), Some(State::HalfOpen));
}

#[test]
fn a_recovery_by_order_that_fails_does_not_lengthen_the_wait() {
    let (breaker, mut now) = (breaker(), 0);
    timeline(&breaker, &mut now, TRIP);
    for _ in 0..4 {
        breaker.recover(at(now)).unwrap();
        timeline(&breaker, &mut now, "F");
        assert_eq!(breaker.snapshot(at(now)).open_until, Some(at(now + 30_000)));
    }
    timeline(&breaker, &mut now, "30s F");
    assert_eq!(breaker.snapshot(at(now)).open_until, Some(at(now + 60_000)));
}

#[test]
fn a_force_open_outlasts_its_window_and_releases_into_half_open() {
    let (breaker, mut now) = (breaker(), 0);
    let told = breaker.force(true, "maintenance".into(), None, at(0));
    assert_eq!((told.to, told.note.as_deref()), (State::Open, Some("maintenance")));
    assert_eq!(timeline(&breaker, &mut now, "3600s"), []);
    assert_eq!(breaker.release(at(now)).map(|told| told.to), Some(State::HalfOpen));
    assert_eq!(breaker.release(at(now)), None);
}

#[test]
fn a_force_closed_records_on_and_releases_into_what_its_window_says() {
    let (breaker, mut now) = (breaker(), 0);
    breaker.force(false, "we know".into(), Some(at(10_000)), at(0));
    assert_eq!(timeline(&breaker, &mut now, &format!("{TRIP} {TRIP}")), []);
    assert_eq!(breaker.state().0, State::Closed);
    assert_eq!(timeline(&breaker, &mut now, "10s"), [(State::Open, Reason::ForceExpired)]);
}

#[test]
fn offline_outranks_a_force_and_stops_the_timers() {
    let (breaker, mut now) = (breaker(), 0);
    timeline(&breaker, &mut now, TRIP);
    assert!(breaker.set_offline(true));
    breaker.force(false, "on".into(), None, at(now));
    assert_eq!(breaker.try_acquire(at(now)).err(), Some(Rejected::Offline));
    breaker.release(at(now));
    assert_eq!(timeline(&breaker, &mut now, "60s"), []);
    assert!(breaker.set_offline(false));
    assert_eq!(breaker.tick(at(now)).map(|told| told.to), Some(State::HalfOpen));
}

#[test]
fn memory_keeps_the_open_time_the_exponent_the_force_and_offline() {
    let (breaker, mut now) = (breaker(), 0);
    timeline(&breaker, &mut now, &format!("{TRIP} 30s F 20s"));
    let memory = breaker.memory(at(now), UnixMillis::new(1_000_000));
    assert_eq!((memory.open_until, memory.exponent), (Some(1_040_000), 1));
    let memory = BreakerMemory::decode(&memory.encode()).unwrap();

    let again = self::breaker();
    again.restore(&memory, at(5), UnixMillis::new(1_015_000));
    assert_eq!(again.state().0, State::Open);
    assert_eq!(again.next_tick(), Some(at(25_005)));
    assert_eq!(again.tick(at(25_005)).map(|told| told.to), Some(State::HalfOpen));

    again.force(true, "kept".into(), None, at(30_000));
    again.set_offline(true);
    let memory = again.memory(at(30_000), UnixMillis::new(2_000_000));
    let third = self::breaker();
    third.restore(&memory, at(0), UnixMillis::new(2_000_000));
    let snapshot = third.snapshot(at(0));
    assert!(snapshot.offline && snapshot.forced.is_some_and(|force| force.open));
    assert_eq!(third.state(), (State::Open, true));
    assert_eq!(third.try_acquire(at(0)).err(), Some(Rejected::Offline));
}

#[test]
fn a_clock_set_back_cannot_keep_it_open_for_ever() {
    let memory = BreakerMemory { open_until: Some(10_000_000), ..BreakerMemory::default() };
    let breaker = breaker();
    breaker.restore(&memory, at(0), UnixMillis::new(0));
    assert_eq!(breaker.next_tick(), Some(at(300_000)));
}

#[test]
fn a_clock_set_back_gives_a_force_no_more_time_than_it_had() {
    let force =
        ForceMemory { open: true, reason: "why".into(), since: 9_400_000, until: Some(10_000_000) };
    let memory = BreakerMemory { force: Some(force), ..BreakerMemory::default() };
    let first = breaker();
    first.restore(&memory, at(0), UnixMillis::new(0));
    assert_eq!(first.next_tick(), Some(at(600_000)));
    // A later run has the rest.
    let memory = first.memory(at(200_000), UnixMillis::new(200_000));
    let second = breaker();
    second.restore(&memory, at(0), UnixMillis::new(300_000));
    assert_eq!(second.next_tick(), Some(at(300_000)));
    assert_eq!(second.tick(at(300_000)).map(|told| told.to), Some(State::HalfOpen));
}

#[test]
fn an_open_cap_shortens_a_wait_under_way() {
    let (breaker, mut now) = (breaker(), 0);
    timeline(&breaker, &mut now, &format!("{TRIP} 30s F"));
    assert!(breaker.cap_open_time(true) && !breaker.cap_open_time(true));
    assert_eq!(breaker.next_tick(), Some(at(now + 30_000)));
}

#[test]
fn many_threads_settle_every_permit() {
    let breaker = breaker();
    std::thread::scope(|scope| {
        for thread in 0..8_u64 {
            let breaker = &breaker;
            scope.spawn(move || {
                for step in 0..2_000_u64 {
                    let now = at(step * 50);
                    drop(breaker.tick(now));
                    if let Ok(permit) = breaker.try_acquire(now) {
                        let outcome = match (step + thread) % 3 {
                            0 => Outcome::FAILURE,
                            1 => Outcome::SUCCESS,
                            _ => Outcome::NEUTRAL,
                        };
                        drop(breaker.record(permit, outcome, now));
                    }
                }
            });
        }
    });
    breaker.reset(at(200_000));
    breaker.force(true, String::new(), None, at(200_000));
    breaker.release(at(200_000));
    let permits: Vec<_> = (0..4).map(|_| breaker.try_acquire(at(200_000))).collect();
    assert_eq!(permits.iter().filter(|permit| permit.is_ok()).count(), 3);
}

proptest! {
    /// However it is driven, it never has more probes out than allowed, and time alone always brings
    /// it out of OPEN.
    #[test]
    fn it_always_finds_its_way_back(steps in proptest::collection::vec(0u8..7, 0..200)) {
        let (breaker, mut now) = (breaker(), 0);
        for step in steps {
            let script = ["F", "S", "N", "P", "p", "1s", "31s"][usize::from(step)];
            timeline(&breaker, &mut now, script);
        }
        for _ in 0..12 {
            timeline(&breaker, &mut now, "300s S S S");
        }
        prop_assert_eq!(breaker.state().0, State::Closed);
    }
}

#[test]
fn a_backend_whose_pings_return_is_tried_as_soon_as_the_first_open_time_is_over() {
    use Reason::{PingsAnswered, PingsFailed, ProbeFailed, RecoveryTimeout};
    use State::{HalfOpen, Open};
    // The second open time, of a minute, ends after half of it.
    check(
        "P P P P P 30s F 10s p p P p p p 19s 1s",
        &[
            (Open, PingsFailed),
            (HalfOpen, RecoveryTimeout),
            (Open, ProbeFailed),
            (HalfOpen, PingsAnswered),
        ],
    );
    // It answered all the while: it is sick, not away.
    check(
        "F F F F F p p p 30s F p p p 40s 19s 1s",
        &[
            (Open, Reason::FailureRate),
            (HalfOpen, RecoveryTimeout),
            (Open, ProbeFailed),
            (HalfOpen, RecoveryTimeout),
        ],
    );
    // It came back, and failed all the same: answered pings prove nothing until one fails again.
    check(
        "P P P P P 30s F p p p 30s F p p p 60s 59s 1s F P p p 30s p",
        &[
            (Open, PingsFailed),
            (HalfOpen, RecoveryTimeout),
            (Open, ProbeFailed),
            (HalfOpen, PingsAnswered),
            (Open, ProbeFailed),
            (HalfOpen, RecoveryTimeout),
            (Open, ProbeFailed),
            (HalfOpen, PingsAnswered),
        ],
    );
}

#[test]
fn the_next_tick_of_a_breaker_whose_backend_returned_is_the_end_of_the_first_open_time() {
    let (breaker, mut now) = (breaker(), 0);
    timeline(&breaker, &mut now, "P P P P P 30s F");
    assert!(breaker.awaits_return());
    assert_eq!(breaker.next_tick(), Some(at(90_000)));
    timeline(&breaker, &mut now, "p p p");
    assert_eq!(breaker.next_tick(), Some(at(60_000)));
    timeline(&breaker, &mut now, "30s S S S");
    assert!(!breaker.awaits_return());
}

#[test]
fn states_and_reasons_go_by_the_same_words_everywhere() {
    for (state, word) in
        [(State::Closed, "CLOSED"), (State::Open, "OPEN"), (State::HalfOpen, "HALF_OPEN")]
    {
        assert_eq!((state.as_str(), state.to_string().as_str()), (word, word));
        assert_eq!(serde_json::to_value(state).unwrap(), word);
    }
    let reasons = [
        (Reason::FailureRate, "failure_rate"),
        (Reason::Burst, "burst"),
        (Reason::PingsFailed, "pings_failed"),
        (Reason::ProbeFailed, "probe_failed"),
        (Reason::ProbeTimeout, "probe_timeout"),
        (Reason::RecoveryTimeout, "recovery_timeout"),
        (Reason::ForcedRecovery, "forced_recovery"),
        (Reason::ProbesSucceeded, "probes_succeeded"),
        (Reason::ForcedOpen, "forced_open"),
        (Reason::ForcedClosed, "forced_closed"),
        (Reason::Released, "released"),
        (Reason::ForceExpired, "force_expired"),
        (Reason::Reset, "reset"),
        (Reason::PingsAnswered, "pings_answered"),
        (Reason::SlowCalls, "slow_calls"),
        (Reason::ProbeSlow, "probe_slow"),
    ];
    for (reason, word) in reasons {
        assert_eq!((reason.as_str(), reason.to_string().as_str()), (word, word));
        assert_eq!(serde_json::to_value(reason).unwrap(), word);
    }
}

/// A breaker that slow calls trip once they are half of all.
fn wary() -> Breaker {
    let slow = SlowCalls { after: Duration::from_millis(250), rate: Ratio::new(0.5).unwrap() };
    Breaker::new(BreakerSettings { slow, ..settings() }, 7, at(0))
}

fn ends(breaker: &Breaker, verdict: Verdict, slow: bool, now: u64) -> Option<Box<Transition>> {
    let permit = breaker.try_acquire(at(now)).unwrap();
    breaker.record(permit, Outcome { verdict, slow }, at(now))
}

#[test]
fn slow_calls_are_counted_and_trip_a_breaker_only_if_it_is_told_so() {
    let deaf = breaker();
    for now in 0..100 {
        assert!(ends(&deaf, Verdict::Success, true, now).is_none());
    }
    assert_eq!(deaf.snapshot(at(100)).counts, Counts { successes: 100, failures: 0, slow: 100 });

    let breaker = wary();
    for now in 0..5 {
        assert!(ends(&breaker, Verdict::Success, false, now).is_none());
        assert!(ends(&breaker, Verdict::Neutral, true, now).is_none());
    }
    for now in 5..9 {
        assert!(ends(&breaker, Verdict::Success, true, now).is_none());
    }
    // A failure that was slow counts as both.
    let opened = ends(&breaker, Verdict::Failure, true, 9).unwrap();
    assert_eq!((opened.to, opened.reason), (State::Open, Reason::SlowCalls));
    assert_eq!((opened.calls, opened.failures, opened.slow), (10, 1, 5));
    assert!((opened.slow_rate_threshold - 0.5).abs() < f64::EPSILON);
}

#[test]
fn what_is_slow_is_told_by_a_setting_that_may_change() {
    let breaker = wary();
    let is_slow = |millis| breaker.is_slow(Duration::from_millis(millis));
    assert_eq!((is_slow(250), is_slow(251)), (false, true));
    let slow = SlowCalls { after: Duration::from_millis(300), ..SlowCalls::default() };
    breaker.configure(BreakerSettings { slow, ..settings() }, at(0));
    assert_eq!((is_slow(300), is_slow(301)), (false, true));
    assert!(!Breaker::new(settings(), 7, at(0)).is_slow(Duration::MAX));
}

#[test]
fn a_slow_probe_has_failed_where_slow_calls_trip() {
    for (breaker, expected) in [(wary(), Some(Reason::ProbeSlow)), (breaker(), None)] {
        for now in 0..5 {
            drop(ends(&breaker, Verdict::Failure, false, now));
        }
        assert_eq!(breaker.recover(at(10)).unwrap().to, State::HalfOpen);
        let reason = ends(&breaker, Verdict::Success, true, 11).map(|it| it.reason);
        assert_eq!(reason, expected);
    }
}
