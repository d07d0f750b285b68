//! What an adaptive limit on what is in flight would be. It is shown, and limits nothing.
//!
//! Two rules, of Netflix's concurrency-limits, each computed once a second:
//!
//! ```text
//!   Gradient2   limit ← 0.8 limit + 0.2 (limit × gradient + 4)     gradient = base / time, in [0.5, 1]
//!   AIMD        limit ← 0.9 limit if a call within it met overload, else limit + 1
//!   a look of a second takes ten calls at least; neither grows while less than half of the limit is in flight
//! ```
//! Gradient2 is for servers whose time says how much they have to do. For one whose time depends on what it is asked,
//! AIMD looks at its overload codes alone.
//!
//! **It holds nothing back, so it has to reckon with what would be if it did.** Of `n` in flight, `limit` would be let
//! through. By Little's law they would take `time × limit / n` at the same rate, and no less than `base`, which is what
//! a call takes while the server has little to do. Netflix takes a long average for that: there the limit itself keeps
//! the server from being overloaded for long; here the average would soon be that of an overloaded server, whatever
//! `n` is. So `base` is the average of calls that began while at most [`LIGHT`] were in flight, the older ones with the
//! weight of ten, and falls with any second that is faster. In the same way only calls that began within the limit tell
//! of overload: others would not have been sent.
//!
//! **What it cannot see.** A server that is never without load shows nobody what it would do without. If it becomes
//! faster, as much as its rate rises is seen at once; whether its calls would be faster too, only when load falls.
//!
//! The fixed point of the rules: a server that works on `k` calls at once reads `k + 4`.

use std::time::Duration;

/// A call that began with at most so many in flight, itself included, says what the server takes without load.
pub const LIGHT: u32 = 4;
/// The value with which both rules begin; Netflix's own.
const INITIAL: f64 = 20.0;
/// The room for a queue, and what keeps a limit growing.
const QUEUE: f64 = 4.0;
/// The weight of the newest second in the limit.
const SMOOTHING: f64 = 0.2;
/// Calls that a look must have; and as many light calls as weigh as much as all that is known of the base.
const ENOUGH: u64 = 10;
/// What is left of a limit after overload.
const BACKOFF: f64 = 0.9;
/// The range of a limit.
const RANGE: (f64, f64) = (1.0, 100_000.0);

/// Which of the two rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// By response times.
    Gradient,
    /// By overload codes.
    Aimd,
}

/// What the calls that ended in one look's time came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// How long that time was.
    pub span: Duration,
    /// Calls that were answered.
    pub calls: u64,
    /// How long they took, all together.
    pub time: Duration,
    /// Those of them that began with at most [`LIGHT`] in flight.
    pub light: u64,
    /// How long these took, all together.
    pub light_time: Duration,
    /// Calls that began within the limit and met overload.
    pub overloaded: u64,
}

/// A limit that is followed.
#[derive(Clone, Copy, Debug)]
pub struct WouldBe {
    limit: f64,
    /// Seconds that a call takes without load.
    base: Option<f64>,
    looked: bool,
}

impl Default for WouldBe {
    /// One of which nothing is known yet.
    fn default() -> Self {
        Self { limit: INITIAL, base: None, looked: false }
    }
}

impl WouldBe {
    /// The limit, a whole number of calls, at least 1; `None` while there was never a look with ten calls.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 1 and 100,000"
    )]
    pub fn limit(&self) -> Option<u32> {
        self.looked.then_some(self.limit.round() as u32)
    }

    /// Takes what was seen since the last look. Fewer than ten calls say nothing.
    pub fn look(&mut self, rule: Rule, seen: &Seen) {
        let span = seen.span.as_secs_f64();
        if span <= 0.0 || seen.calls + seen.overloaded < ENOUGH {
            return;
        }
        self.looked = true;
        // Little's law: calls a second times seconds a call.
        let in_flight = seen.time.as_secs_f64() / span;
        let wanted = match rule {
            Rule::Aimd if seen.overloaded > 0 => self.limit * BACKOFF,
            Rule::Aimd => self.limit + 1.0,
            Rule::Gradient => self.gradient(seen, in_flight),
        };
        let most = if in_flight * 2.0 < self.limit { self.limit } else { RANGE.1 };
        self.limit = wanted.clamp(RANGE.0, most);
    }

    fn gradient(&mut self, seen: &Seen, in_flight: f64) -> f64 {
        let time = average(seen.time, seen.calls);
        let base = self.learn(seen);
        let would_take =
            if in_flight > self.limit { (time * self.limit / in_flight).max(base) } else { time };
        let gradient = (base / would_take).clamp(0.5, 1.0);
        let wanted = self.limit * gradient + QUEUE;
        self.limit * (1.0 - SMOOTHING) + wanted * SMOOTHING
    }

    /// Learns what a call takes without load.
    fn learn(&mut self, seen: &Seen) -> f64 {
        if seen.light > 0 {
            let light = average(seen.light_time, seen.light);
            let before = self.base.unwrap_or(light);
            #[expect(clippy::cast_precision_loss, reason = "calls of a second")]
            let weight = seen.light as f64 / (seen.light + ENOUGH) as f64;
            self.base = Some(before + (light - before) * weight);
        }
        let time = average(seen.time, seen.calls);
        let base = self.base.map_or(time, |base| base.min(time));
        self.base = Some(base);
        base
    }
}

#[expect(clippy::cast_precision_loss, reason = "calls of a second")]
fn average(time: Duration, calls: u64) -> f64 {
    time.as_secs_f64() / calls.max(1) as f64
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, VecDeque};

    use super::*;

    /// A server that works on `slots` calls at once, each for `takes` microseconds and a little more or less; callers
    /// who send the next call when they have the answer of the last.
    struct World {
        slots: usize,
        takes: u64,
        now: u64,
        random: u64,
        /// When each call that is worked on ends, who sent it, when, and how many were in flight then.
        busy: BTreeSet<(u64, usize, u64, u32)>,
        waiting: VecDeque<(usize, u64, u32)>,
        callers: usize,
        would_be: WouldBe,
    }

    impl World {
        fn new(slots: usize, takes: u64, callers: usize, would_be: WouldBe) -> Self {
            let mut world = Self {
                slots,
                takes,
                now: 0,
                random: 7,
                busy: BTreeSet::new(),
                waiting: VecDeque::new(),
                callers: 0,
                would_be,
            };
            world.come(callers);
            world
        }

        fn in_flight(&self) -> u32 {
            u32::try_from(self.busy.len() + self.waiting.len()).unwrap()
        }

        fn come(&mut self, callers: usize) {
            for caller in self.callers..callers {
                self.send(caller);
            }
            self.callers = callers;
        }

        fn send(&mut self, caller: usize) {
            self.waiting.push_back((caller, self.now, self.in_flight() + 1));
            self.work();
        }

        fn work(&mut self) {
            while self.busy.len() < self.slots {
                let Some((caller, sent, in_flight)) = self.waiting.pop_front() else { return };
                self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let takes = self.takes * (80 + (self.random >> 33) % 41) / 100;
                self.busy.insert((self.now + takes, caller, sent, in_flight));
            }
        }

        /// A second; callers beyond `callers` go when they have their answer.
        fn second(&mut self, callers: usize) -> u32 {
            self.come(callers.max(self.callers));
            self.callers = callers;
            let (end, mut seen) = (self.now + 1_000_000, Seen { span: SECOND, ..Seen::default() });
            while let Some(call) = self.busy.first().copied().filter(|call| call.0 <= end) {
                let (at, caller, sent, in_flight) = call;
                self.busy.remove(&call);
                self.now = at;
                let took = Duration::from_micros(at - sent);
                seen.calls += 1;
                seen.time += took;
                if in_flight <= LIGHT {
                    seen.light += 1;
                    seen.light_time += took;
                }
                if caller < callers {
                    self.send(caller);
                }
                self.work();
            }
            self.now = end;
            self.would_be.look(Rule::Gradient, &seen);
            self.would_be.limit().unwrap()
        }

        fn seconds(&mut self, seconds: usize, callers: usize) -> u32 {
            (0..seconds).map(|_| self.second(callers)).last().unwrap_or(0)
        }
    }

    const SECOND: Duration = Duration::from_secs(1);

    fn from(limit: f64) -> WouldBe {
        WouldBe { limit, ..WouldBe::default() }
    }

    #[test]
    fn it_finds_the_knee_within_half_a_minute_wherever_it_begins() {
        for begin in [2.0, 20.0, 64.0, 200.0] {
            let mut world = World::new(16, 10_000, 64, from(begin));
            let limit = world.seconds(30, 64);
            assert!((12..=24).contains(&limit), "{limit} from {begin}");
            let limit = world.seconds(600, 64);
            assert!((12..=24).contains(&limit), "{limit} ten minutes later");
        }
    }

    #[test]
    fn it_follows_a_server_that_does_twice_as_much_at_once_within_a_minute() {
        let mut world = World::new(16, 10_000, 64, from(20.0));
        world.seconds(60, 64);
        world.slots = 32;
        let limit = world.seconds(60, 64);
        assert!((24..=48).contains(&limit), "{limit}");
        world.slots = 16;
        let limit = world.seconds(60, 64);
        assert!((12..=24).contains(&limit), "{limit} of the old one again");
    }

    #[test]
    fn it_follows_a_server_whose_calls_take_half_as_long_once_load_has_fallen_for_a_second() {
        let mut world = World::new(16, 10_000, 64, from(20.0));
        world.seconds(60, 64);
        world.takes = 5_000;
        let blind = world.seconds(60, 64);
        assert!(
            (24..=48).contains(&blind),
            "{blind}: the rate has doubled, and that is all it sees"
        );
        world.second(2);
        let limit = world.seconds(59, 64);
        assert!((12..=24).contains(&limit), "{limit}");
    }

    #[test]
    fn what_nobody_asks_for_does_not_grow() {
        let mut world = World::new(16, 10_000, 3, from(20.0));
        assert_eq!(world.seconds(120, 3), 20);
        let mut idle = WouldBe::default();
        idle.look(Rule::Gradient, &Seen { span: SECOND, ..Seen::default() });
        idle.look(
            Rule::Gradient,
            &Seen { span: SECOND, calls: 9, time: SECOND, ..Seen::default() },
        );
        assert_eq!(idle.limit(), None);
    }

    #[test]
    fn overload_within_the_limit_takes_a_tenth_and_its_absence_gives_one() {
        let mut would_be = WouldBe::default();
        let busy = Seen { span: SECOND, calls: 100, time: SECOND * 64, ..Seen::default() };
        let mut seconds = 0;
        // A server that takes 16 at once, and tells the others of overload.
        for _ in 0..100 {
            let overloaded = u64::from(would_be.limit().is_none_or(|limit| limit > 16));
            would_be.look(Rule::Aimd, &Seen { overloaded, ..busy });
            seconds += usize::from((14..=17).contains(&would_be.limit().unwrap()));
        }
        assert!(seconds > 90, "{seconds}");
        let quick = Seen { time: SECOND, ..busy };
        let before = would_be.limit();
        would_be.look(Rule::Aimd, &quick);
        assert_eq!(would_be.limit(), before, "less than half of it is in flight");
        for _ in 0..100 {
            would_be.look(Rule::Aimd, &Seen { overloaded: 1, ..quick });
        }
        assert_eq!(would_be.limit(), Some(1), "one is always let through");
    }
}
