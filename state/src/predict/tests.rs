use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const TIMEOUT: Duration = Duration::from_millis(200);

fn bounds() -> Bounds {
    Bounds { timeout: TIMEOUT, failure_rate: Ratio::new(0.5).unwrap(), in_flight_max: 100 }
}

/// A predictor, its clock, and what was scored.
struct World {
    predictor: Predictor,
    now: Moment,
    bounds: Bounds,
}

impl World {
    fn new() -> Self {
        let now = Moment::from_millis(1_000_000);
        Self { predictor: Predictor::default(), now, bounds: bounds() }
    }

    fn look(&mut self, seen: &Seen) -> Scored {
        self.now = self.now.plus(SECOND);
        self.predictor.look(seen, &self.bounds, self.now)
    }

    /// So many seconds of forty calls each, with this p90 in milliseconds and so many failures.
    fn seconds(&mut self, seconds: u32, p90: u64, failures: u64) -> State {
        for _ in 0..seconds {
            self.look(&calls(40, p90, failures));
        }
        self.state()
    }

    fn state(&self) -> State {
        self.predictor.prediction(self.now).state
    }

    fn score(&self) -> [u64; 4] {
        let Score { hits, false_alarms, missed, unpredictable } =
            self.predictor.prediction(self.now).score;
        [hits, false_alarms, missed, unpredictable]
    }

    fn opens(&mut self) -> Option<Opening> {
        let scored = self.look(&Seen { opened: true, is_off: true, ..calls(40, 200, 40) });
        for _ in 0..5 {
            self.look(&Seen { is_off: true, ..Seen::default() });
        }
        scored.opening
    }
}

fn calls(calls: u64, p90: u64, failures: u64) -> Seen {
    let p90 = (calls > 0).then(|| Duration::from_millis(p90));
    Seen { calls, failures, p90, ..Seen::default() }
}

#[test]
fn three_seconds_at_half_the_timeout_raise_an_alarm() {
    let mut world = World::new();
    assert_eq!(world.seconds(20, 79, 0), State::Ok);
    assert_eq!(world.seconds(2, 100, 0), State::Ok, "not yet");
    assert_eq!(world.seconds(1, 99, 0), State::Ok, "not in a row");
    assert_eq!(world.seconds(2, 100, 0), State::Watch, "five seconds above 0.4");
    assert_eq!(world.seconds(1, 100, 0), State::AtRisk);
    let told = world.predictor.prediction(world.now);
    assert_eq!(told.since, world.now);
    let slow = Because::Slow(Duration::from_millis(100), TIMEOUT);
    assert_eq!(told.because, Some((slow, SECOND * 3)), "as long as it is that near");
}

#[test]
fn two_seconds_with_a_failure_in_twenty_raise_an_alarm() {
    let mut world = World::new();
    assert_eq!(world.seconds(20, 3, 1), State::Ok, "one of forty");
    assert_eq!(world.seconds(1, 3, 2), State::Ok);
    assert_eq!(world.seconds(1, 3, 2), State::AtRisk);
    let because = world.predictor.prediction(world.now).because;
    assert_eq!(because, Some((Because::Failing(0.05, 0.5), SECOND * 2)));
    world.seconds(5, 70, 0);
    let because = world.predictor.prediction(world.now).because;
    let failing = Because::Failing(0.05, 0.5);
    assert_eq!(because, Some((failing, Duration::ZERO)), "what it was: no bound is reached now");
}

#[test]
fn a_second_in_which_no_call_ends_takes_no_reason_away_and_is_no_sign_of_calm() {
    let hung = Seen { in_flight: 3, ..Seen::default() };
    let slow = Because::Slow(Duration::from_millis(150), TIMEOUT);
    let failing = Because::Failing(0.25, 0.5);
    for (second, wanted) in
        [(calls(40, 150, 0), (slow, SECOND * 3)), (calls(40, 3, 10), (failing, SECOND * 3))]
    {
        let mut world = World::new();
        world.seconds(20, 3, 0);
        for _ in 0..3 {
            world.look(&second);
        }
        for _ in 0..8 {
            world.look(&hung);
            assert_eq!(world.state(), State::AtRisk);
            assert_eq!(world.predictor.prediction(world.now).because, Some(wanted));
        }
        // Calm for one second in three only.
        for _ in 0..14 {
            world.look(&hung);
            world.look(&calls(40, 3, 0));
            assert_eq!(world.state(), State::AtRisk);
        }
        world.look(&calls(40, 3, 0));
        assert_eq!(world.state(), State::Ok);
        assert_eq!(world.predictor.prediction(world.now).because, None);
    }
}

#[test]
fn a_state_is_left_fifteen_seconds_after_it_is_far_from_its_bound() {
    let mut world = World::new();
    world.seconds(20, 3, 0);
    assert_eq!(world.seconds(3, 120, 0), State::AtRisk);
    assert_eq!(world.seconds(30, 70, 0), State::AtRisk, "0.7 of the bound is not below it");
    assert_eq!(world.seconds(14, 69, 0), State::AtRisk);
    assert_eq!(world.seconds(1, 69, 0), State::Ok);
    assert_eq!(world.seconds(5, 81, 0), State::Watch);
    assert_eq!(world.seconds(60, 57, 0), State::Watch);
    assert_eq!(world.seconds(14, 55, 0), State::Watch);
    assert_eq!(world.seconds(1, 55, 0), State::Ok);
}

#[test]
fn five_calls_are_needed_and_a_call_a_second() {
    let mut world = World::new();
    world.seconds(20, 3, 0);
    for _ in 0..3 {
        world.look(&calls(1, 150, 0));
    }
    assert_eq!(world.state(), State::Ok, "three calls");
    world.look(&calls(0, 0, 0));
    for _ in 0..2 {
        world.look(&calls(1, 150, 0));
    }
    assert_eq!(world.state(), State::AtRisk, "five, and a second without calls says nothing");
    for _ in 0..10 {
        world.look(&calls(0, 150, 0));
    }
    assert_eq!(world.state(), State::TooLittleTraffic);
    assert_eq!(World::new().state(), State::Off, "before the first look");
}

#[test]
fn places_and_a_queue_that_fills_are_worth_watching_and_no_alarm() {
    let crowded = Seen { in_flight: 100, ..calls(40, 3, 0) };
    let filling = Seen { full_in: Some(Duration::from_secs(30)), ..calls(40, 3, 0) };
    for seen in [crowded, filling] {
        let mut world = World::new();
        for _ in 0..60 {
            world.look(&seen);
        }
        assert_eq!(world.state(), State::Watch);
    }
    let mut world = World::new();
    for _ in 0..60 {
        world.look(&Seen { full_in: Some(Duration::from_secs(361)), ..calls(40, 3, 0) });
    }
    assert_eq!(world.state(), State::Ok, "full in six minutes is 0.4");
}

#[test]
fn the_settings_are_those_of_the_moment() {
    let mut world = World::new();
    world.seconds(20, 120, 0);
    assert_eq!(world.state(), State::AtRisk);
    world.bounds.timeout = Duration::from_secs(5);
    assert_eq!(world.seconds(16, 120, 0), State::Ok);
    world.bounds.timeout = Duration::from_millis(150);
    assert_eq!(world.seconds(3, 120, 0), State::AtRisk);
}

#[test]
fn an_alarm_is_a_hit_within_thirty_seconds_and_false_afterwards() {
    let mut world = World::new();
    world.seconds(20, 3, 0);
    world.seconds(30, 120, 0);
    assert_eq!(world.opens(), Some(Opening::Hit(SECOND * 28)));
    assert_eq!(world.score(), [1, 0, 0, 0]);
    world.seconds(20, 3, 0);
    world.seconds(33, 120, 0);
    assert_eq!(world.score(), [1, 0, 0, 0], "thirty seconds after the alarm");
    world.seconds(1, 120, 0);
    assert_eq!(world.score(), [1, 1, 0, 0]);
    assert_eq!(world.opens(), Some(Opening::Missed), "the alarm was for sooner");
    assert_eq!(world.score(), [1, 1, 1, 0]);
}

#[test]
fn an_opening_out_of_the_blue_is_unpredictable_also_after_an_alarm_of_its_last_seconds() {
    let mut world = World::new();
    world.seconds(40, 3, 0);
    assert_eq!(world.opens(), Some(Opening::Unpredictable));
    world.seconds(40, 3, 0);
    assert_eq!(world.seconds(2, 200, 40), State::AtRisk);
    assert_eq!(world.opens(), Some(Opening::Unpredictable));
    world.seconds(60, 3, 0);
    assert_eq!(world.score(), [0, 0, 0, 2], "nor is that alarm a false one");
    world.seconds(3, 200, 40);
    assert_eq!(world.opens(), Some(Opening::Hit(SECOND * 2)), "three seconds");
    world.seconds(20, 3, 0);
    world.seconds(2, 90, 0);
    world.seconds(5, 3, 0);
    assert_eq!(world.opens(), Some(Opening::Missed), "there was a risk");
}

#[test]
fn what_somebody_ordered_is_not_scored() {
    let mut world = World::new();
    world.seconds(20, 3, 0);
    assert_eq!(world.seconds(3, 120, 0), State::AtRisk);
    world.look(&Seen { is_off: true, ..calls(40, 200, 40) });
    assert_eq!(world.state(), State::Off);
    world.seconds(60, 3, 0);
    assert_eq!(world.score(), [0; 4], "the alarm is forgotten");
}

#[test]
fn it_is_unproven_while_fewer_than_half_of_its_last_twenty_alarms_were_hits() {
    let mut world = World::new();
    let alarm = |world: &mut World, is_hit: bool| {
        world.seconds(20, 3, 0);
        world.seconds(3, 120, 0);
        let state = world.state();
        if is_hit {
            world.opens();
        } else {
            world.seconds(40, 3, 0);
        }
        state
    };
    for number in 0..5 {
        assert_eq!(alarm(&mut world, false), State::AtRisk, "{number} say nothing yet");
    }
    for number in 0..5 {
        assert_eq!(alarm(&mut world, true), State::Unproven, "{number} of {}", 5 + number);
    }
    for _ in 0..11 {
        assert_eq!(alarm(&mut world, false), State::AtRisk, "half");
        if world.score()[1] >= 15 {
            break;
        }
        alarm(&mut world, true);
    }
}

#[test]
fn the_trend_says_when_p90_reaches_the_timeout() {
    let mut world = World::new();
    world.seconds(20, 10, 0);
    // A tenth more each second: from 10 ms to 200 ms in 31 seconds.
    let p90 = |second: i32| Duration::from_secs_f64(0.01 * 1.1_f64.powi(second));
    let mut told = Vec::new();
    for second in 0..31 {
        world.look(&Seen { p90: Some(p90(second)), ..calls(40, 0, 0) });
        let eta = world.predictor.prediction(world.now).eta;
        told.extend(eta.map(|eta| eta.as_secs_f64() - f64::from(31 - second)));
    }
    assert!(told.len() >= 5, "{told:?}");
    assert!(told.iter().all(|off| off.abs() < 5.0), "{told:?}");
    world.seconds(20, 120, 0);
    world.seconds(2, 110, 0);
    assert_eq!(world.predictor.prediction(world.now).eta, None, "it does not rise any more");
}

#[test]
fn it_is_small() {
    assert!(size_of::<Predictor>() <= 512, "{}", size_of::<Predictor>());
}

proptest! {
    #[test]
    fn every_opening_is_scored_once_and_every_alarm_at_most_once(
        seconds in prop::collection::vec((0_u64..60, 0_u64..400, 0_u64..8, 0..40_u8), 1..400),
    ) {
        let mut world = World::new();
        let (mut openings, mut alarms) = (0, 0);
        for (count, p90, failures, what) in seconds {
            let before = world.predictor.state;
            let opened = what == 0 && before != State::Off;
            let is_off = opened || what == 1;
            let seen = Seen { opened, is_off, ..calls(count, p90, failures.min(count)) };
            world.look(&seen);
            openings += u64::from(opened);
            alarms += u64::from(world.predictor.state == State::AtRisk && before != State::AtRisk);
            let told = world.predictor.prediction(world.now);
            prop_assert!((0.0..=1.0).contains(&told.risk));
            prop_assert!(told.since <= world.now);
            prop_assert!(told.eta.is_none_or(|eta| eta <= Duration::from_secs(120)));
            let [hits, false_alarms, missed, unpredictable] = world.score();
            prop_assert_eq!(hits + missed + unpredictable, openings);
            prop_assert!(hits + false_alarms <= alarms);
        }
    }
}
