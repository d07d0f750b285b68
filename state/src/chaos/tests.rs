use proptest::prelude::*;

use super::*;
use crate::{Moment, system::SystemState};

fn permitted() -> Permitted {
    Permitted { is_critical: false, timeout: Duration::from_secs(5), random: 7 }
}

fn order(json: &str) -> Order {
    serde_json::from_str(json).unwrap_or_else(|error| panic!("{json}: {error}"))
}

#[track_caller]
fn faults(json: &str) -> Faults {
    order(json).check(permitted()).unwrap_or_else(|wrong| panic!("{json}: {wrong}"))
}

#[track_caller]
fn wrong(json: &str) -> String {
    order(json).check(permitted()).expect_err(json).to_string()
}

fn seen(class: Class) -> Seen<'static> {
    Seen { class, uid: Some(1), baggage: None }
}

/// How many of `count` attempts in a row are struck.
fn struck(faults: &Faults, class: Class, count: u64) -> Vec<u64> {
    let is_struck = |number: &u64| {
        let struck = faults.strike(&seen(class), Number::Arrival(*number));
        struck != Struck::default()
    };
    (0..count).filter(is_struck).collect()
}

fn count_of(struck: &[u64]) -> f64 {
    u32::try_from(struck.len()).map_or(f64::NAN, f64::from)
}

#[test]
fn an_order_that_says_little_is_harmless() {
    let faults = faults(r#"{"faults":[{"kind":"error","rate":0.05}]}"#);
    assert_eq!(
        (faults.lasting, faults.seed, faults.delayed_max),
        (Duration::from_secs(300), 7, 10)
    );
    assert!(faults.counts && !faults.forced);
    assert_eq!((faults.abort_on, faults.abort_above), (AbortOn::Critical, None));
}

#[test]
fn the_example_of_the_docs_is_taken() {
    let faults = faults(
        r#"{"faults":[{"kind":"latency","rate":0.05,"latency":"200ms","jitter":"50ms","class":"read",
            "only":{"baggage":"chaos=1","uid":1000}},{"kind":"error","rate":0.5,"code":"LOADING"}],
            "for":"10m","seed":42,"count":true,"reason":"game day","max_active":3,"abort_above":0.3}"#,
    );
    assert_eq!(
        (faults.lasting, faults.seed, faults.delayed_max),
        (Duration::from_secs(600), 42, 3)
    );
    assert_eq!(faults.as_slice().len(), 2);
    let written = serde_json::to_string(faults.order()).unwrap();
    assert_eq!(order(&written), *faults.order(), "it is shown as it was ordered");
}

#[test]
fn what_is_wrong_is_named_by_its_key_with_what_would_be_right() {
    for (json, expected) in [
        ("{}", "faults: it must name at least one fault, got none"),
        (
            r#"{"faults":[{"kind":"erorr","rate":0.1}]}"#,
            "faults[0].kind: it must be one of error, reject, timeout, reset_before, reset_after, latency, \
             slow_drip, stale_connection, got \"erorr\"",
        ),
        (
            r#"{"faults":[{"kind":"error"}]}"#,
            "faults[0].rate: it is required: give a share above 0 and at most 0.5, or at most 1 with `force`",
        ),
        (
            r#"{"faults":[{"kind":"error","rate":0.51}]}"#,
            "faults[0].rate: it must be a share above 0 and at most 0.5, or at most 1 with `force`, got 0.51",
        ),
        (
            r#"{"faults":[{"kind":"error","rate":1.1}],"force":true}"#,
            "faults[0].rate: it must be a share above 0 and at most 1, got 1.1",
        ),
        (
            r#"{"faults":[{"kind":"error","rate":0.1},{"kind":"latency","rate":0.1}]}"#,
            "faults[1].latency: it is required for this kind: give a duration, such as 200ms",
        ),
        (
            r#"{"faults":[{"kind":"latency","rate":0.1,"latency":"soon"}]}"#,
            "faults[0].latency: \"soon\" is not a duration: give one from 1ms to 1m",
        ),
        (
            r#"{"faults":[{"kind":"latency","rate":0.1,"latency":"6s"}]}"#,
            "faults[0].latency: 6s is longer than the backend's timeout, 5s: to make attempts time out, use the kind \
             `timeout`",
        ),
        (
            r#"{"faults":[{"kind":"latency","rate":0.1,"latency":"10ms","jitter":"20ms"}]}"#,
            "faults[0].jitter: it must be 0s to 10ms, got 20ms",
        ),
        (
            r#"{"faults":[{"kind":"error","rate":0.1,"latency":"1s"}]}"#,
            "faults[0].latency: \"1s\" is only for latency, slow_drip, not for error: leave it out",
        ),
        (
            r#"{"faults":[{"kind":"timeout","rate":0.1,"code":"LOADING"}]}"#,
            "faults[0].code: \"LOADING\" is only for error, reject, not for timeout: leave it out",
        ),
        (
            r#"{"faults":[{"kind":"error","rate":0.1,"class":"scan"}]}"#,
            "faults[0].class: it must be one of read, write, ping, replay, got \"scan\"",
        ),
        (
            r#"{"faults":[{"kind":"reject","rate":0.1,"class":"replay"}]}"#,
            "faults[0].class: reject cannot be used for replay: a write that was acknowledged as durable would become \
             a dead letter",
        ),
        (
            r#"{"faults":[{"kind":"reset_after","rate":0.1,"class":"ping"}]}"#,
            "faults[0].class: reset_after cannot be used for ping: pings take only error, timeout, reset_before and \
             latency",
        ),
        (
            r#"{"faults":[{"kind":"error","rate":0.1,"class":"ping"}],"count":false}"#,
            "faults[0].class: a failed ping always counts for the breaker: leave out `count`, or choose another class \
             than `ping`",
        ),
        (
            r#"{"faults":[{"kind":"error","rate":0.1,"only":{"baggage":"a=1,b=2"}}]}"#,
            "faults[0].only.baggage: it must be one member such as chaos=1, got \"a=1,b=2\"",
        ),
        (
            r#"{"faults":[{"kind":"error","rate":0.1,"class":"replay","only":{"uid":1}}]}"#,
            "faults[0].only: pings and replay have no caller: leave out `only`",
        ),
        (
            r#"{"faults":[{"kind":"error","rate":0.1}],"for":"2h"}"#,
            "for: it must be 1s to 1h, got 2h",
        ),
        (
            r#"{"faults":[{"kind":"error","rate":0.1}],"max_active":11}"#,
            "max_active: it must be 1 to 10, or at most 1000 with `force`, got 11",
        ),
        (
            r#"{"faults":[{"kind":"error","rate":0.1}],"abort_on":"degraded"}"#,
            "abort_on: it must be critical, emergency or never, got \"degraded\"",
        ),
        (
            r#"{"faults":[{"kind":"error","rate":0.1}],"abort_on":"never"}"#,
            "abort_on: \"never\" needs `force`; without `force`, it must be critical",
        ),
        (
            r#"{"faults":[{"kind":"error","rate":0.1}],"abort_above":0}"#,
            "abort_above: it must be a share above 0 and at most 1, got 0",
        ),
    ] {
        assert_eq!(wrong(json), expected, "{json}");
    }
}

#[test]
fn a_critical_backend_is_struck_by_force_alone() {
    let of = |json: &str| order(json).check(Permitted { is_critical: true, ..permitted() });
    let error = of(r#"{"faults":[{"kind":"error","rate":0.1}]}"#).unwrap_err();
    assert_eq!(error.key, "force");
    assert!(of(r#"{"faults":[{"kind":"error","rate":1}],"force":true}"#).unwrap().forced);
}

#[test]
fn an_unknown_key_is_named() {
    let error = serde_json::from_str::<Order>(r#"{"faults":[{"kind":"error","rat":0.1}]}"#);
    assert!(error.unwrap_err().to_string().contains("unknown field `rat`"));
}

#[test]
fn the_same_seed_strikes_the_same_attempts_and_another_one_others() {
    let of = |seed: u64| {
        let json = format!(r#"{{"faults":[{{"kind":"error","rate":0.05}}],"seed":{seed}}}"#);
        struck(&faults(&json), Class::Read, 10_000)
    };
    assert_eq!(of(42), of(42));
    assert_ne!(of(42), of(43));
}

#[test]
fn a_caller_that_names_its_call_finds_it_struck_however_often_it_tries() {
    let faults = faults(r#"{"faults":[{"kind":"error","rate":0.5}],"seed":1}"#);
    let of = |number: u128| {
        let op_id = OpId::new(UnixMillis::new(1), number);
        faults.strike(&seen(Class::Write), Number::Named(op_id)).end.is_some()
    };
    assert!((0..100).all(|number| of(number) == of(number)));
    let count = (0..1_000).filter(|number| of(*number)).count();
    assert!((400..600).contains(&count), "{count}");
}

#[test]
fn faults_of_one_order_do_not_strike_together() {
    let faults = faults(
        r#"{"faults":[{"kind":"latency","rate":0.5,"latency":"1ms"},{"kind":"error","rate":0.5}],"seed":3}"#,
    );
    let both = (0..10_000)
        .map(|number| faults.strike(&seen(Class::Read), Number::Arrival(number)))
        .filter(|struck| struck.before.is_some() && struck.end.is_some());
    let both = both.count();
    assert!((2_300..2_700).contains(&both), "{both}");
}

#[test]
fn pings_and_replay_are_struck_only_by_what_names_them() {
    let of = |class: &str| {
        faults(&format!(r#"{{"faults":[{{"kind":"error","rate":1{class}}}],"force":true}}"#))
    };
    let hit = |faults: &Faults| Class::ALL.map(|class| struck(faults, class, 1).len());
    assert_eq!(hit(&of("")), [1, 1, 0, 0]);
    for (at, class) in Class::ALL.into_iter().enumerate() {
        let mut expected = [0; 4];
        expected[at] = 1;
        assert_eq!(hit(&of(&format!(r#","class":"{}""#, class.as_str()))), expected);
    }
}

#[test]
fn only_narrows_and_nothing_that_a_client_sends_widens() {
    let of = |json: &str, uid: Option<u32>, baggage: Option<&str>| {
        let json =
            format!(r#"{{"faults":[{{"kind":"error","rate":1,"only":{json}}}],"force":true}}"#);
        let seen = Seen { class: Class::Read, uid, baggage };
        faults(&json).strike(&seen, Number::Arrival(0)).end.is_some()
    };
    assert!(of(r#"{"uid":7}"#, Some(7), None));
    assert!(!of(r#"{"uid":7}"#, Some(8), Some("uid=7")));
    assert!(!of(r#"{"uid":7}"#, None, None));
    for baggage in ["chaos=1", "a=b, chaos=1;why=test", "chaos=1,a=b"] {
        assert!(of(r#"{"baggage":"chaos=1"}"#, None, Some(baggage)), "{baggage}");
    }
    for baggage in [None, Some("chaos=10"), Some("xchaos=1"), Some("a=chaos=1")] {
        assert!(!of(r#"{"baggage":"chaos=1"}"#, None, baggage), "{baggage:?}");
    }
    assert!(!of(r#"{"uid":7,"baggage":"chaos=1"}"#, Some(8), Some("chaos=1")), "both must hold");
}

#[test]
fn what_ends_them_ends_them() {
    let until = Moment::from_millis(1_000);
    let calm = Conditions { state: SystemState::Healthy, queue_percent: 0.0, failed: None };
    let of = |json: &str, now: u64, found: &Conditions| {
        judge(&faults(json), until, Moment::from_millis(now), found)
    };
    let usual = r#"{"faults":[{"kind":"error","rate":0.1}],"abort_above":0.3}"#;
    assert_eq!(of(usual, 999, &calm), None);
    assert_eq!(of(usual, 1_000, &calm), Some(Ending::Expired));
    let critical = Conditions { state: SystemState::Critical, ..calm };
    let emergency = Conditions { state: SystemState::Emergency, ..calm };
    assert_eq!(of(usual, 0, &critical), Some(Ending::State(SystemState::Critical)));
    let by_force = |word: &str| {
        format!(r#"{{"faults":[{{"kind":"error","rate":0.1}}],"abort_on":"{word}","force":true}}"#)
    };
    assert_eq!(of(&by_force("emergency"), 0, &critical), None);
    assert_eq!(
        of(&by_force("emergency"), 0, &emergency),
        Some(Ending::State(SystemState::Emergency))
    );
    assert_eq!(of(&by_force("never"), 0, &emergency), None);
    let filling = Conditions { queue_percent: 70.1, ..calm };
    assert_eq!(of(&by_force("never"), 0, &filling), Some(Ending::Queue(70.1)), "always");
    assert_eq!(of(usual, 0, &Conditions { queue_percent: 70.0, ..calm }), None);
    assert_eq!(
        of(usual, 0, &Conditions { failed: Some(0.31), ..calm }),
        Some(Ending::Failed(0.31))
    );
    assert_eq!(of(usual, 0, &Conditions { failed: Some(0.3), ..calm }), None);
}

#[test]
fn the_share_of_failed_calls_is_that_of_ten_seconds() {
    let mut share = FailedShare::default();
    let at = |second: u64| Moment::from_millis(second * 1_000);
    assert_eq!(share.count(1_000, 900, at(0)), None, "what was before does not count");
    assert_eq!(share.count(1_019, 919, at(1)), None, "too few");
    assert_eq!(share.count(1_020, 910, at(2)), Some(0.5));
    for second in 3..12 {
        share.count(1_020 + (second - 2) * 20, 910, at(second));
    }
    assert_eq!(share.count(1_220, 910, at(12)), Some(0.0), "the failures are too long ago");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn so_many_are_struck_as_the_rate_says(seed: u64, rate in 0.001_f64..0.5) {
        let json = format!(r#"{{"faults":[{{"kind":"error","rate":{rate}}}],"seed":{seed}}}"#);
        let (count, faults) = (100_000_u32, faults(&json));
        let hits = count_of(&struck(&faults, Class::Write, u64::from(count)));
        let (expected, deviation) = (f64::from(count) * rate, (f64::from(count) * rate * (1.0 - rate)).sqrt());
        // Of a thousand draws of a normal distribution one is farther away once in half a million runs.
        prop_assert!((hits - expected).abs() < 6.0 * deviation, "{hits} instead of {expected}");
    }

    #[test]
    fn a_delay_lies_within_its_jitter(seed: u64, latency in 1_u32..5_000, part in 0.0_f64..1.0) {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a part of it")]
        let jitter = (f64::from(latency) * part) as u64;
        let latency = u64::from(latency);
        let json = format!(
            r#"{{"faults":[{{"kind":"latency","rate":1,"latency":"{latency}ms","jitter":"{jitter}ms"}}],
                "seed":{seed},"force":true}}"#
        );
        let faults = faults(&json);
        for number in 0..100 {
            let hit = faults.strike(&seen(Class::Read), Number::Arrival(number)).before;
            let time = hit.map(|hit| hit.time).unwrap_or_default();
            let (least, most) = (latency - jitter, latency + jitter);
            prop_assert!(time >= Duration::from_millis(least) && time <= Duration::from_millis(most));
        }
    }

    #[test]
    fn no_order_panics(text in "[a-z0-9 .-]{0,12}", rate: f64, force: bool, active: u32) {
        let fault = FaultOrder {
            kind: text.clone(), rate: Some(rate), latency: Some(text.clone()), jitter: Some(text.clone()),
            code: Some(text.clone()), class: Some(text.clone()), only: Only::default(),
        };
        let order = Order {
            faults: vec![fault], lasting: Some(text.clone()), abort_on: Some(text), max_active: Some(active),
            abort_above: Some(rate), force, ..Order::default()
        };
        prop_assert!(order.check(permitted()).is_err());
    }
}

/// The seed of the acceptance: three deviations, and no draw of luck.
#[test]
fn a_fixed_seed_strikes_within_three_deviations() {
    for rate in [0.001_f64, 0.05, 0.5] {
        let json = format!(r#"{{"faults":[{{"kind":"error","rate":{rate}}}],"seed":42}}"#);
        let hits = count_of(&struck(&faults(&json), Class::Read, 100_000));
        let (expected, deviation) = (1e5 * rate, (1e5 * rate * (1.0 - rate)).sqrt());
        assert!((hits - expected).abs() <= 3.0 * deviation, "{rate}: {hits}");
    }
}
