//! Orders and other settings while it is not at rest.

use super::*;

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

#[test]
fn a_force_that_ends_does_not_wait_for_the_probes_of_before() {
    let (breaker, mut now) = (breaker(), 0);
    timeline(&breaker, &mut now, &format!("{TRIP} 30s"));
    let early = breaker.try_acquire(at(now)).unwrap();
    breaker.force(false, "we know".into(), None, at(now));
    assert_eq!(breaker.record(early, Outcome::SUCCESS, at(now + 100)), None);
    now += 60_000;
    let told = breaker.release(at(now)).unwrap();
    assert_eq!((told.to, told.exponent), (State::HalfOpen, 0));
    assert_eq!(timeline(&breaker, &mut now, "60s"), [], "no probe is out");
    assert_eq!(timeline(&breaker, &mut now, "S S S"), [(State::Closed, Reason::ProbesSucceeded)]);
}

#[test]
fn a_forgotten_exponent_is_to_be_remembered() {
    let (breaker, mut now) = (breaker(), 0);
    timeline(&breaker, &mut now, &format!("{TRIP} 30s F 60s F 120s S S S 119s"));
    let exponent = |now| breaker.memory(at(now), UnixMillis::new(now)).exponent;
    assert_eq!((breaker.take_unremembered(), exponent(now)), (false, 2));
    timeline(&breaker, &mut now, "1s");
    assert_eq!((breaker.take_unremembered(), exponent(now)), (true, 0));
    timeline(&breaker, &mut now, "1s");
    assert!(!breaker.take_unremembered(), "once");
}

#[test]
fn another_window_keeps_the_failures_in_it() {
    let (breaker, mut now) = (breaker(), 0);
    assert_eq!(timeline(&breaker, &mut now, "10s F F F F"), []);
    breaker.configure(BreakerSettings { window: secs(600), ..settings() }, at(now));
    breaker.configure(BreakerSettings { window: secs(30), ..settings() }, at(now));
    assert_eq!(timeline(&breaker, &mut now, "F"), [(State::Open, Reason::FailureRate)]);
}

#[test]
fn another_recovery_timeout_counts_from_when_it_opened() {
    let (breaker, mut now) = (breaker(), 0);
    timeline(&breaker, &mut now, &format!("{TRIP} 30s F 20s"));
    let with = |recovery_timeout| BreakerSettings { recovery_timeout, ..settings() };
    assert_eq!(breaker.next_tick(), Some(at(90_000)));
    breaker.configure(with(secs(20)), at(now));
    assert_eq!(breaker.next_tick(), Some(at(70_000)));
    assert!(breaker.take_unremembered());
    breaker.configure(with(secs(45)), at(now));
    assert_eq!(breaker.next_tick(), Some(at(120_000)));
    breaker.configure(BreakerSettings { failure_threshold: 9, ..with(secs(45)) }, at(now));
    assert!(breaker.take_unremembered() && !breaker.take_unremembered());
    breaker.configure(with(secs(5)), at(now));
    assert_eq!(timeline(&breaker, &mut now, "0s"), [(State::HalfOpen, Reason::RecoveryTimeout)]);
}

#[test]
fn the_chance_in_an_open_time_is_drawn_once() {
    let jitter = Ratio::new(0.5).unwrap();
    let breaker = Breaker::new(BreakerSettings { jitter, ..settings() }, 3, at(0));
    let mut now = 0;
    timeline(&breaker, &mut now, &format!("{TRIP} 30s F"));
    let until = breaker.next_tick();
    let with = |secs| BreakerSettings { jitter, recovery_timeout: self::secs(secs), ..settings() };
    breaker.configure(with(60), at(now));
    assert_ne!(breaker.next_tick(), until);
    breaker.configure(with(30), at(now));
    assert_eq!(breaker.next_tick(), until);
}

#[test]
fn a_cap_counts_from_when_it_opened_and_follows_the_setting() {
    let (breaker, mut now) = (breaker(), 0);
    timeline(&breaker, &mut now, &format!("{TRIP} 30s F 60s F 40s"));
    assert_eq!(breaker.next_tick(), Some(at(210_000)));
    breaker.cap_open_time(true);
    assert!(breaker.take_unremembered());
    assert_eq!(
        timeline(&breaker, &mut now, "0s F"),
        [(State::HalfOpen, Reason::RecoveryTimeout), (State::Open, Reason::ProbeFailed)]
    );
    assert_eq!(breaker.next_tick(), Some(at(now + 30_000)));
    let patched = BreakerSettings { recovery_timeout: secs(4), ..settings() };
    breaker.configure(patched, at(now));
    assert_eq!(breaker.next_tick(), Some(at(now + 4_000)));
    let memory = BreakerMemory { open_until: Some(90_000), ..BreakerMemory::default() };
    breaker.restore(&memory, at(now), UnixMillis::new(0));
    assert_eq!(breaker.next_tick(), Some(at(now + 4_000)), "of what is taken up, from then on");
}

#[test]
fn the_end_of_an_open_time_of_an_earlier_run_is_only_brought_forward() {
    let breaker = breaker();
    let memory =
        BreakerMemory { exponent: 5, open_until: Some(11_000), force: None, offline: false };
    breaker.restore(&memory, at(1_000), UnixMillis::new(1_000));
    assert_eq!(breaker.next_tick(), Some(at(11_000)));
    let with = |recovery_timeout_max| BreakerSettings { recovery_timeout_max, ..settings() };
    breaker.configure(with(secs(599)), at(1_000));
    assert_eq!(breaker.next_tick(), Some(at(11_000)), "nobody knows when it began");
    let shorter = BreakerSettings { recovery_timeout: secs(2), ..with(secs(2)) };
    breaker.configure(shorter, at(1_000));
    assert!(breaker.next_tick() <= Some(at(3_000)));
}
