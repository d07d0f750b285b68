//! Bounds at their very edge, and what each step leaves for those that look.

use super::*;

fn with(change: impl FnOnce(&mut BreakerSettings)) -> Breaker {
    let mut settings = settings();
    change(&mut settings);
    Breaker::new(settings, 7, at(0))
}

/// Half-open since `now`.
fn half_open() -> (Breaker, u64) {
    let (breaker, mut now) = (breaker(), 0);
    timeline(&breaker, &mut now, &format!("{TRIP} 30s"));
    assert_eq!(breaker.state().0, State::HalfOpen);
    (breaker, now)
}

fn error(code: u64) -> ErrorRecord {
    let (code, message) = (code.to_string(), String::new());
    ErrorRecord {
        at: UnixMillis::new(1),
        code,
        message: message.into(),
        trace_id: None,
        door: None,
    }
}

#[test]
fn each_probe_is_settled_by_its_own_end() {
    for is_recorded in [true, false] {
        let (breaker, now) = half_open();
        let first = breaker.try_acquire(at(now)).unwrap();
        let second = breaker.try_acquire(at(now + 1_000)).unwrap();
        assert!(first.is_probe() && second.is_probe());
        assert_eq!(breaker.next_tick(), Some(at(now + 10_000)));
        if is_recorded {
            assert_eq!(breaker.record(first, Outcome::SUCCESS, at(now + 2_000)), None);
        } else {
            drop(first);
        }
        assert_eq!(breaker.next_tick(), Some(at(now + 11_000)), "the second is still out");
        assert_eq!(breaker.tick(at(now + 10_999)), None);
        let told = breaker.tick(at(now + 11_000)).unwrap();
        assert_eq!((told.reason, told.exponent), (Reason::ProbeTimeout, 1));
        drop(second);
    }
}

#[test]
fn a_permit_of_a_closed_breaker_is_no_probe_and_one_that_was_kept_is_what_it_was() {
    let breaker = breaker();
    let permit = breaker.try_acquire(at(0)).unwrap();
    assert!(!permit.is_probe());
    let kept = permit.keep();
    assert_eq!(breaker.record(breaker.regain(kept), Outcome::SUCCESS, at(0)), None);
    assert_eq!(breaker.snapshot(at(0)).counts, Counts { successes: 1, failures: 0, slow: 0 });
    let (breaker, now) = half_open();
    let kept: Vec<_> = (0..3).map(|_| breaker.try_acquire(at(now)).unwrap().keep()).collect();
    assert_eq!(breaker.try_acquire(at(now)).err(), Some(Rejected::Open), "they keep their places");
    for kept in kept {
        assert!(breaker.regain(kept).is_probe(), "and it gives its place back");
    }
    assert!(breaker.try_acquire(at(now)).is_ok());
}

#[test]
fn a_probe_that_goes_on_is_waited_for_anew_and_no_other_is() {
    let (breaker, now) = half_open();
    let first = breaker.try_acquire(at(now)).unwrap().keep();
    let second = breaker.try_acquire(at(now + 1_000)).unwrap().keep();
    assert_eq!(breaker.next_tick(), Some(at(now + 10_000)));
    breaker.prolong(&first, at(now + 5_000));
    assert_eq!(breaker.next_tick(), Some(at(now + 11_000)), "the second is as old as it was");
    breaker.prolong(&second, at(now + 6_000));
    assert_eq!(breaker.next_tick(), Some(at(now + 15_000)));
}

#[test]
fn a_success_while_calls_flow_takes_no_lock() {
    let breaker = breaker();
    let cold = breaker.cold.lock();
    let (tell, told) = std::sync::mpsc::channel();
    let went = std::thread::scope(|scope| {
        scope.spawn(|| {
            let permit = breaker.try_acquire(at(0)).unwrap();
            let told = breaker.record(permit, Outcome::SUCCESS, at(0));
            tell.send((told, breaker.is_operational(), breaker.state())).unwrap();
        });
        let went = told.recv_timeout(Duration::from_secs(10));
        drop(cold);
        went
    });
    assert_eq!(went, Ok((None, true, (State::Closed, false))));
}

#[test]
fn a_success_of_an_earlier_state_is_not_counted() {
    let (breaker, mut now) = (breaker(), 0);
    let early = breaker.try_acquire(at(0)).unwrap();
    timeline(&breaker, &mut now, &format!("{TRIP} 30s S S S"));
    assert_eq!(breaker.state().0, State::Closed);
    assert_eq!(breaker.record(early, Outcome::SUCCESS, at(now)), None);
    assert_eq!(breaker.snapshot(at(now)).counts, Counts::default(), "and the window was cleared");
}

#[test]
fn a_burst_takes_twice_the_threshold_of_calls_and_eight_of_ten_failures() {
    let many = "S ".repeat(5_000);
    let burst = |outcomes: &str| timeline(&breaker(), &mut 0, &format!("{many} 40s {outcomes}"));
    assert_eq!(burst("S S F F F F F F F F"), [(State::Open, Reason::Burst)]);
    assert_eq!(burst("S S S F F F F F F F F"), []);
    assert_eq!(burst("F F F F F F F F F"), [], "nine calls");
    assert_eq!(burst("S F F F F F F F F F"), [(State::Open, Reason::Burst)]);
}

#[test]
fn the_next_tick_is_the_moment_at_which_a_tick_does_something() {
    let (breaker, mut now) = half_open();
    timeline(&breaker, &mut now, "F 60s S S S");
    assert_eq!((breaker.state().0, breaker.snapshot(at(now)).exponent), (State::Closed, 1));
    let forgets = now + 120_000;
    assert_eq!(breaker.next_tick(), Some(at(forgets)));
    breaker.tick(at(forgets - 1));
    assert_eq!(breaker.snapshot(at(now)).exponent, 1);
    breaker.tick(at(forgets));
    assert_eq!((breaker.snapshot(at(now)).exponent, breaker.next_tick()), (0, None));

    breaker.force(true, "for now".into(), Some(at(500_000)), at(400_000));
    assert_eq!(breaker.next_tick(), Some(at(500_000)));
    assert_eq!(breaker.forced_since(), Some(at(400_000)));
    assert_eq!(breaker.tick(at(499_999)), None);
    let told = breaker.tick(at(500_000)).unwrap();
    assert_eq!((told.to, told.reason), (State::HalfOpen, Reason::ForceExpired));
    assert_eq!((told.note.as_deref(), breaker.forced_since()), (Some("for now"), None));
    breaker.force(false, "until released".into(), None, at(500_000));
    assert_eq!(breaker.next_tick(), None);
    breaker.reset(at(500_000));
    timeline(&breaker, &mut 500_000, TRIP);
    assert_eq!(breaker.next_tick(), Some(at(530_000)));
    breaker.set_offline(true);
    assert_eq!((breaker.next_tick(), breaker.tick(at(600_000))), (None, None));
}

#[test]
fn pings_trip_only_a_closed_breaker_that_is_neither_forced_nor_offline() {
    for (what, trips) in [("closed", true), ("forced", false), ("offline", false)] {
        let breaker = breaker();
        match what {
            "forced" => drop(breaker.force(false, String::new(), None, at(0))),
            "offline" => assert!(breaker.set_offline(true)),
            _ => {}
        }
        let told: Vec<_> = (0..7).map(|_| breaker.record_ping(false, 0, at(0)).is_some()).collect();
        assert_eq!(told, [false, false, false, false, trips, false, false], "{what}");
        assert_eq!(breaker.snapshot(at(0)).pings_failed, 7);
        assert_eq!(breaker.record_ping(true, 0, at(0)), None);
        assert_eq!(breaker.snapshot(at(0)).pings_failed, 0);
    }
}

#[test]
fn a_reset_forgets_everything() {
    let (breaker, mut now) = half_open();
    for code in 0..7 {
        breaker.note_error(error(code));
    }
    timeline(&breaker, &mut now, "F P P");
    let told = breaker.force(true, "mine".into(), None, at(now));
    let codes: Vec<&str> = told.last_errors.iter().map(|error| error.code.as_str()).collect();
    assert_eq!(codes, ["2", "3", "4", "5", "6"], "the last five");
    assert_eq!(breaker.snapshot(at(now)).last_errors, told.last_errors);
    let told = breaker.reset(at(now));
    assert_eq!((told.from, told.to, told.reason), (State::Open, State::Closed, Reason::Reset));
    let snapshot = breaker.snapshot(at(now));
    assert_eq!((snapshot.exponent, snapshot.pings_failed, snapshot.forced), (0, 0, None));
    assert_eq!((snapshot.last_errors, snapshot.counts), (vec![], Counts::default()));
    assert_eq!(breaker.release(at(now)), None);
}

#[test]
fn an_order_to_recover_counts_only_for_an_open_breaker_that_is_its_own() {
    let breaker = breaker();
    assert_eq!(breaker.recover(at(0)), None, "closed");
    timeline(&breaker, &mut 0, TRIP);
    breaker.set_offline(true);
    assert_eq!(breaker.recover(at(0)), None, "offline");
    assert!(!breaker.set_offline(true) && breaker.set_offline(false));
    breaker.force(true, String::new(), None, at(0));
    assert_eq!(breaker.recover(at(0)), None, "forced");
    breaker.release(at(0));
    assert_eq!(breaker.recover(at(0)), None, "half-open already");
}

#[test]
fn it_is_operational_only_while_it_is_closed_and_not_offline() {
    let (breaker, mut now) = (breaker(), 0);
    assert!(breaker.is_operational());
    assert!(breaker.set_offline(true) && !breaker.set_offline(true));
    assert_eq!((breaker.is_operational(), breaker.state()), (false, (State::Closed, true)));
    assert!(breaker.set_offline(false) && !breaker.set_offline(false));
    assert_eq!((breaker.is_operational(), breaker.state()), (true, (State::Closed, false)));
    timeline(&breaker, &mut now, TRIP);
    assert!(!breaker.is_operational());
    timeline(&breaker, &mut now, "30s");
    assert_eq!((breaker.is_operational(), breaker.state()), (false, (State::HalfOpen, false)));
    breaker.force(false, String::new(), None, at(now));
    assert!(breaker.is_operational());
    breaker.set_offline(true);
    breaker.force(true, String::new(), None, at(now));
    assert_eq!(breaker.state(), (State::Open, true), "a change of state leaves it offline");
}

#[test]
fn no_probe_is_lost_while_an_operator_holds_the_breaker() {
    for is_forced in [true, false] {
        let (breaker, now) = half_open();
        let probe = breaker.try_acquire(at(now)).unwrap();
        if is_forced {
            drop(breaker.force(false, String::new(), None, at(now)));
        } else {
            assert!(breaker.set_offline(true));
        }
        assert_eq!((breaker.next_tick(), breaker.tick(at(now + 60_000))), (None, None));
        drop(probe);
    }
}

#[test]
fn only_a_breaker_that_is_open_and_one_of_whose_pings_failed_awaits_a_return() {
    let (breaker, mut now) = (breaker(), 0);
    timeline(&breaker, &mut now, "P");
    assert!(!breaker.awaits_return(), "closed");
    timeline(&breaker, &mut now, TRIP);
    assert!(breaker.awaits_return());
    timeline(&breaker, &mut now, "30s");
    assert!(!breaker.awaits_return(), "half-open");
    let breaker = self::breaker();
    timeline(&breaker, &mut 0, TRIP);
    assert!(!breaker.awaits_return(), "its pings are answered");
}

#[test]
fn a_cap_shortens_open_times_and_never_lengthens_one() {
    let (breaker, mut now) = (breaker(), 0);
    timeline(&breaker, &mut now, TRIP);
    breaker.cap_open_time(true);
    assert_eq!(breaker.next_tick(), Some(at(30_000)));
    timeline(&breaker, &mut now, "30s F");
    assert_eq!(breaker.next_tick(), Some(at(60_000)), "the next one as well");
    breaker.cap_open_time(false);
    assert_eq!(breaker.next_tick(), Some(at(60_000)), "and it stays so");
    timeline(&breaker, &mut now, "30s F");
    assert_eq!(breaker.next_tick(), Some(at(now + 120_000)));
}

#[test]
fn a_transition_tells_what_led_to_it_and_how_long_it_stays_open() {
    let tripped = |breaker: &Breaker| {
        let attempt = |outcome| {
            let permit = breaker.try_acquire(at(0)).unwrap();
            breaker.record(permit, outcome, at(0)).map(|told| *told)
        };
        assert_eq!(attempt(Outcome::SUCCESS), None);
        (0..5).find_map(|_| attempt(Outcome::FAILURE)).unwrap()
    };
    let told = tripped(&breaker());
    assert_eq!((told.from, told.to, told.calls, told.failures), (State::Closed, State::Open, 6, 5));
    assert_eq!((told.failure_rate, told.failure_rate_threshold), (5.0 / 6.0, 0.5));
    assert_eq!((told.failure_threshold, told.open_for_ms), (5, Some(30_000)));
    let by_order = with(|settings| settings.auto_recovery = false);
    assert_eq!(tripped(&by_order).open_for_ms, None);
    assert_eq!((by_order.snapshot(at(0)).open_until, by_order.next_tick()), (None, None));
    let forced = breaker().force(true, String::new(), None, at(0));
    assert_eq!(forced.open_for_ms, None);
    let breaker = breaker();
    timeline(&breaker, &mut 0, TRIP);
    assert_eq!(breaker.force(true, String::new(), None, at(0)).open_for_ms, None, "and open below");
}

#[test]
fn other_settings_hold_from_then_on() {
    let trips = [(State::Open, Reason::FailureRate)];
    let breaker = breaker();
    assert_eq!(timeline(&breaker, &mut 0, "S S S F F"), []);
    breaker.configure(BreakerSettings { failure_threshold: 3, ..settings() }, at(0));
    assert_eq!(timeline(&breaker, &mut 0, "F"), trips, "three suffice");
    let (breaker, mut now) = (self::breaker(), 0);
    breaker.configure(BreakerSettings { window: Duration::from_secs(600), ..settings() }, at(0));
    assert_eq!(timeline(&breaker, &mut now, "F F F F 100s"), []);
    assert_eq!(timeline(&breaker, &mut now, "F"), trips, "the window is as long as was asked");
}

#[test]
fn jitter_spreads_over_all_that_it_may() {
    let waits = (0..200).map(|seed| {
        let jitter = Ratio::new(0.5).unwrap();
        let breaker = Breaker::new(BreakerSettings { jitter, ..settings() }, seed, at(0));
        let mut now = 0;
        timeline(&breaker, &mut now, &format!("{TRIP} 30s F"));
        breaker.snapshot(at(now)).open_until.unwrap().since(at(now)).as_secs()
    });
    let waits: std::collections::BTreeSet<u64> = waits.collect();
    assert!(waits.first() < Some(&33) && waits.last() > Some(&57) && waits.len() > 20, "{waits:?}");
}

#[test]
fn memory_tells_the_past_and_the_future_on_the_wall_clock() {
    let (breaker, mut now) = (breaker(), 0);
    timeline(&breaker, &mut now, "10s");
    breaker.force(true, "why".into(), Some(at(25_000)), at(now));
    let memory = breaker.memory(at(15_000), UnixMillis::new(1_000_000));
    let force = memory.force.clone().unwrap();
    assert_eq!((force.since, force.until), (995_000, Some(1_010_000)));
    assert_eq!((force.open, force.reason.as_str(), memory.open_until), (true, "why", None));
    let again = self::breaker();
    again.restore(&memory, at(100), UnixMillis::new(1_004_000));
    assert_eq!((again.state(), again.next_tick()), ((State::Open, false), Some(at(6_100))));
    assert_eq!(again.forced_since(), Some(at(100)));
    let late = self::breaker();
    late.restore(&memory, at(100), UnixMillis::new(2_000_000));
    assert_eq!(late.next_tick(), Some(at(100)), "it is over");

    let (half, now) = half_open();
    let memory = half.memory(at(now), UnixMillis::new(1_000_000));
    assert_eq!(memory.open_until, Some(1_000_000));
    assert_eq!(BreakerMemory::decode(&[memory.encode(), vec![0]].concat()), None);
    let early = half.try_acquire(at(now)).unwrap();
    half.restore(&BreakerMemory::default(), at(now), UnixMillis::new(1_000_000));
    assert_eq!(half.record(early, Outcome::FAILURE, at(now)), None, "of an earlier state");
    assert_eq!(half.state().0, State::Closed);
    assert_eq!(half.snapshot(at(now)).counts.failures, 5, "it is not counted");

    let fresh = self::breaker();
    let early = fresh.try_acquire(at(0)).unwrap();
    fresh.restore(&BreakerMemory::default(), at(0), UnixMillis::new(0));
    assert_eq!(fresh.record(early, Outcome::FAILURE, at(0)), None);
    assert_eq!(fresh.snapshot(at(0)).counts, Counts::default(), "of an earlier state as well");
}

#[test]
fn what_an_earlier_run_remembers_comes_second_to_what_this_one_has_seen() {
    let unix = UnixMillis::new(1_000_000);
    let force = |open| ForceMemory { open, reason: "why".into(), since: 0, until: None };
    let forced = |open| BreakerMemory { force: Some(force(open)), ..BreakerMemory::default() };
    let open = || {
        let breaker = breaker();
        for _ in 0..5 {
            breaker.record_ping(false, 0, at(0));
        }
        assert_eq!(breaker.state().0, State::Open);
        breaker
    };

    let fresh = self::breaker();
    assert_eq!(fresh.take_up(&forced(true), at(0), unix), None, "nothing changed but the process");
    assert_eq!(fresh.state().0, State::Open);

    let seen = open();
    assert_eq!(seen.take_up(&BreakerMemory::default(), at(10), unix), None);
    assert_eq!(seen.state().0, State::Open, "it was closed, and has been found down since");
    let told = seen.take_up(&forced(false), at(10), unix).unwrap();
    assert_eq!(
        (told.from, told.to, told.reason),
        (State::Open, State::Closed, Reason::ForcedClosed)
    );
    assert_eq!(told.note.as_deref(), Some("why"));

    let ordered = self::breaker();
    ordered.force(true, "now".into(), None, at(0));
    assert_eq!(ordered.take_up(&forced(false), at(10), unix), None);
    assert_eq!(ordered.state().0, State::Open, "the later order counts");
    let released = open();
    released.release(at(5));
    assert_eq!(released.take_up(&forced(false), at(10), unix), None);
    assert_eq!(released.state().0, State::Open, "a release, too");
}

#[test]
fn what_it_depends_on_half_opens_it_out_of_turn_and_only_if_it_may_leave_by_itself() {
    let mut now = 0;
    let breaker = breaker();
    assert_eq!(breaker.dependency_returned(at(now)), None, "it is closed");
    timeline(&breaker, &mut now, TRIP);
    let told = breaker.dependency_returned(at(now + 5)).unwrap();
    assert_eq!((told.to, told.reason), (State::HalfOpen, Reason::DependencyReturned));
    assert_eq!((breaker.opened_at(), breaker.dependency_returned(at(now + 6))), (None, None));
    let probe = breaker.try_acquire(at(now + 7)).unwrap();
    let told = breaker.record(probe, Outcome::FAILURE, at(now + 8)).unwrap();
    assert_eq!((told.to, told.exponent), (State::Open, 0), "no failed recovery of its own");
    assert_eq!(breaker.opened_at(), Some(at(now + 8)));
    breaker.force(true, "why".into(), None, at(now + 9));
    assert_eq!(breaker.dependency_returned(at(now + 10)), None, "by an operator's order");
    breaker.reset(at(now + 11));
    let stays = with(|settings| settings.auto_recovery = false);
    timeline(&stays, &mut now, TRIP);
    assert_eq!(stays.dependency_returned(at(now + 12)), None, "auto_recovery is off");
    assert_eq!(stays.state(), (State::Open, false));
}
