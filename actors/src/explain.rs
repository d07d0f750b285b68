//! Why a backend is as it is, in sentences: what happened, since when, what will happen next and when,
//! and what an operator can do.

use std::time::Duration;

use fusebox_state::{
    UnixMillis, Words,
    breaker::{ErrorRecord, Reason, Snapshot, State, Transition, TransitionRecord},
    window::Horizon,
    words::with_code,
};

use crate::{
    backend_shared::BackendShared,
    dependencies,
    roster::Roster,
    view::{BreakerView, ExplainView, QueueView, RecentView, TraceView},
};

/// Transitions that are shown.
const EXPLAINED: usize = 5;
/// How many are looked through for the one that an outage began with: a breaker that half-opens every five
/// minutes adds two of them.
const LOOKED_THROUGH: usize = 200;

impl BackendShared {
    /// Why the breaker is in its state; `entries` are all backends, for what impairs it.
    pub(crate) fn explain(&self, entries: &Roster) -> ExplainView {
        let clock = self.circuit.clock;
        let shot = self.circuit.breaker.snapshot(clock.now());
        let breaker = self.breaker_view();
        let mut transitions = self.transitions(LOOKED_THROUGH);
        let outage = began(&transitions).cloned();
        transitions.drain(..transitions.len().saturating_sub(EXPLAINED));
        let sample = self.sample();
        let settings = self.circuit.settings.load();
        let (queue, recent) =
            (self.queue_view(&settings, &sample), self.circuit.recent.view(&sample));
        let told = Sentences { shared: self, shot: &shot, breaker: &breaker, now: clock.unix() };
        let chaos = self.circuit.chaos.armed();
        let chaos =
            chaos.map(|armed| format!("Faults on purpose are set for it: {}.", armed.told_alone()));
        let story = [
            ours(told.present()),
            ours(chaos.into_iter().collect()),
            ours(told.causes(&transitions, outage.as_ref())),
            told.errors(outage.as_ref()),
            ours(told.next()),
            ours(waiting(&queue)),
            ours(answers(&recent)),
            ours(told.impaired(entries)),
            ours(told.limits()),
            ours(self.circuit.forecast.view(clock).story()),
        ];
        let alerts = self.alerts();
        let alerts = alerts.iter().map(|alert| alert.within(|text| format!("Alert: {text}.")));
        ExplainView {
            backend: self.circuit.name.clone(),
            story: story.into_iter().flatten().chain(alerts).collect(),
            advice: told.advice(&queue),
            traces: traces(outage.as_ref(), &shot.last_errors),
            breaker,
            last_errors: shot.last_errors,
            transitions,
            outage,
            queue,
            recent,
            next_ping_at: self.circuit.next_ping().map(|at| clock.to_unix(at)),
        }
    }
}

/// Sentences of our own.
fn ours(sentences: Vec<String>) -> Vec<Words> {
    sentences.into_iter().map(Words::from).collect()
}

/// The transition that the present outage began with: the newest out of CLOSED, unless CLOSED came later.
fn began(transitions: &[TransitionRecord]) -> Option<&TransitionRecord> {
    let outage = |record: &&TransitionRecord| record.transition.to != State::Closed;
    let mut newest = transitions.iter().rev().take_while(outage);
    newest.find(|record| record.transition.from == State::Closed)
}

/// The traces of the errors, each once.
fn traces(outage: Option<&TransitionRecord>, last: &[ErrorRecord]) -> Vec<TraceView> {
    let led = outage.map_or(&[][..], |outage| &outage.transition.last_errors);
    let mut traces: Vec<TraceView> = Vec::new();
    for trace_id in led.iter().chain(last).filter_map(|error| error.trace_id.clone()) {
        if traces.iter().all(|trace| trace.trace_id != trace_id) {
            traces.push(TraceView { trace_id, url: None });
        }
    }
    traces
}

/// The sources of the answers of the last minute.
fn answers(recent: &RecentView) -> Vec<String> {
    if recent.calls == 0 {
        return Vec::new();
    }
    let mut sources: Vec<_> = recent.by_source.iter().filter(|(_, calls)| **calls > 0).collect();
    sources.sort_by(|(_, a), (_, b)| b.cmp(a));
    let words: Vec<String> = sources
        .into_iter()
        .map(|(source, calls)| match &**source {
            "error" => format!("{calls} with an error"),
            source => format!("{calls} {source}"),
        })
        .collect();
    let span = lasting(Duration::from_secs_f64(recent.seconds.max(0.0)));
    let were = match recent.calls {
        1 => "1 call was".to_owned(),
        calls => format!("{calls} calls were"),
    };
    vec![format!("{were} answered in the last {span}: {}.", words.join(", "))]
}

/// What waits, and when it will be gone.
fn waiting(queue: &QueueView) -> Vec<String> {
    if queue.calls == 0 {
        return Vec::new();
    }
    let age = lasting(Duration::from_millis(queue.oldest_age_ms));
    let (waits, them) = match queue.calls {
        1 => ("1 write waits".to_owned(), "it"),
        calls => (format!("{calls} writes wait"), "them"),
    };
    let mut told = vec![format!("{waits} in its queue, the oldest for {age}.")];
    let about = |seconds: f64| lasting(Duration::from_secs_f64(seconds.max(0.0)));
    match (&queue.replay_paused, queue.drain_seconds) {
        (Some(why), _) => {
            told.push(format!("Replay does not send {them}: {why}."));
            match queue.full_seconds {
                _ if queue.fill_percent >= 100.0 => told.push("The queue is full.".to_owned()),
                Some(full) => {
                    told.push(format!(
                        "At this pace, the queue will be full in about {}.",
                        about(full)
                    ));
                }
                None => {}
            }
        }
        (None, Some(seconds)) => told.push(format!(
            "{:.0} a second are replayed: the queue will be empty in about {}.",
            queue.replayed_per_second,
            about(seconds)
        )),
        (None, None) => told.push("Replay is running.".to_owned()),
    }
    told
}

/// What the sentences are made of.
struct Sentences<'a> {
    shared: &'a BackendShared,
    shot: &'a Snapshot,
    breaker: &'a BreakerView,
    now: UnixMillis,
}

impl Sentences<'_> {
    fn present(&self) -> Vec<String> {
        let (name, state, since) =
            (&self.shared.circuit.name, &self.breaker.state, self.breaker.since);
        let lasts = lasting(self.now.since(since));
        vec![format!(
            "The breaker of {name} has been {state} since {}, for {lasts}.",
            seconds_of(since)
        )]
    }

    /// What brought the breaker into its state, and what the outage began with if that is another.
    fn causes(
        &self,
        transitions: &[TransitionRecord],
        outage: Option<&TransitionRecord>,
    ) -> Vec<String> {
        let Some(last) = transitions.last() else { return Vec::new() };
        let mut told = vec![format!("{}.", self.cause(&last.transition))];
        if let Some(outage) = outage.filter(|outage| outage.at != last.at) {
            let cause = self.cause(&outage.transition);
            let (at, ago) = (seconds_of(outage.at), lasting(self.now.since(outage.at)));
            told.push(format!("The outage began at {at}, {ago} ago: {}.", lower(&cause)));
        }
        told
    }

    fn cause(&self, transition: &Transition) -> String {
        let window = self.shared.circuit.settings.load().breaker.window;
        let Transition { calls, failures, failure_threshold, exponent, .. } = transition;
        let percent = |rate: f64| format!("{:.0} %", rate * 100.0);
        match transition.reason {
            Reason::FailureRate | Reason::Burst => {
                let (part, at) = match transition.horizon {
                    Horizon::Whole => (1, transition.failure_rate_threshold),
                    Horizon::Sixth => (6, fusebox_state::breaker::BURST_RATE),
                    Horizon::Thirtieth => (30, fusebox_state::breaker::BURST_RATE),
                };
                let rate = match at {
                    at if at > 0.0 => format!(" and {}", percent(at)),
                    _ => String::new(),
                };
                format!(
                    "It opened because {failures} of {calls} calls failed within {} ({}; it trips at \
                     {failure_threshold} failures{rate} in this time)",
                    lasting(window / part),
                    percent(transition.failure_rate)
                )
            }
            Reason::SlowCalls => {
                let after = self.shared.circuit.settings.load().breaker.slow.after;
                format!(
                    "It opened because {} of {calls} calls took longer than {} ms (it trips at {failure_threshold} \
                     slow calls and {})",
                    transition.slow,
                    after.as_millis(),
                    percent(transition.slow_rate_threshold)
                )
            }
            Reason::PingsFailed => {
                format!(
                    "It opened because {failure_threshold} pings in a row were not answered, or two of them and calls \
                     that callers gave up in the meantime"
                )
            }
            Reason::ProbeFailed | Reason::ProbeTimeout | Reason::ProbeSlow => {
                let what = match transition.reason {
                    Reason::ProbeFailed => "failed",
                    Reason::ProbeSlow => "was slow",
                    _ => "did not report in time",
                };
                let row = match exponent {
                    0 | 1 => String::new(),
                    exponent => {
                        format!(", the {} recovery in a row that failed", ordinal(*exponent))
                    }
                };
                format!("It opened again because a probe {what}{row}")
            }
            Reason::RecoveryTimeout => {
                "It went half-open because its open time was over".to_owned()
            }
            Reason::PingsAnswered => {
                "It went half-open because its pings are answered again".to_owned()
            }
            Reason::DependencyReturned => {
                "It went half-open because the backends that it depends on are back".to_owned()
            }
            Reason::ForcedRecovery => {
                "It went half-open because an operator asked for a recovery".to_owned()
            }
            Reason::ProbesSucceeded => format!(
                "It closed because {} probes in a row succeeded",
                self.breaker.success_threshold
            ),
            Reason::ForcedOpen => "An operator forced it open".to_owned(),
            Reason::ForcedClosed => "An operator forced it closed".to_owned(),
            Reason::Released => "An operator released it".to_owned(),
            Reason::ForceExpired => "The time for which it was forced was over".to_owned(),
            Reason::Reset => "An operator reset it".to_owned(),
        }
    }

    /// Which errors, how often.
    fn errors(&self, outage: Option<&TransitionRecord>) -> Vec<Words> {
        let led = outage.map_or(&[][..], |outage| &outage.transition.last_errors);
        let mut told = Vec::new();
        if !led.is_empty() {
            let mut codes: Vec<(&str, usize)> = Vec::new();
            for error in led {
                match codes.iter_mut().find(|(code, _)| *code == error.code) {
                    Some((_, count)) => *count += 1,
                    None => codes.push((&error.code, 1)),
                }
            }
            let codes: Vec<String> =
                codes.into_iter().map(|(code, count)| format!("{count} \u{d7} {code}")).collect();
            let codes = codes.join(", ");
            told.push(format!("The last {} errors before the outage: {codes}.", led.len()).into());
        }
        let last = self.shot.last_errors.last().or(led.last());
        told.extend(last.map(|last| {
            let (at, ago) = (seconds_of(last.at), lasting(self.now.since(last.at)));
            let by = last
                .door
                .as_ref()
                .map_or_else(String::new, |door| format!(" of a call by the door {door},"));
            let said = format!("The last error,{by} at {at}, {ago} ago, was");
            last.message.within(|text| format!("{said} {}.", with_code(&last.code, text)))
        }));
        told
    }

    /// What will happen next, and when.
    fn next(&self) -> Vec<String> {
        let mut told = vec![self.outlook()];
        if let Some(at) = self.shared.circuit.next_ping() {
            let clock = self.shared.circuit.clock;
            let failed = match self.shot.pings_failed {
                0 => String::new(),
                failed => format!("; {failed} in a row were not answered"),
            };
            told.push(format!("The next ping is in {}{failed}.", lasting(at.since(clock.now()))));
        }
        told
    }

    fn outlook(&self) -> String {
        if self.shared.circuit.holds().opening {
            return "Its queue is large and is still being opened: until it is open, there are no calls, pings or \
                    replay."
                .into();
        }
        if self.shot.offline {
            return "It is offline: there are no calls, pings or replay until an operator takes it online."
                .to_owned();
        }
        if let Some(force) = &self.breaker.forced {
            let until = force.until.map_or_else(
                || "until it is released".to_owned(),
                |until| format!("until {}, for another {}", seconds_of(until), self.left(until)),
            );
            return format!("It is forced {} {until}: {:?}.", force.state, force.reason);
        }
        let breaker = self.breaker;
        match (self.shot.state, breaker.open_until) {
            (State::Open, Some(until)) => format!(
                "It becomes half-open at {}, in {}, and then lets {} probes through; if they all succeed, it closes.",
                seconds_of(until),
                self.left(until),
                breaker.success_threshold
            ),
            (State::Open, None) => {
                "It stays open until an operator forces a recovery (auto_recovery is off)."
                    .to_owned()
            }
            (State::HalfOpen, _) => format!(
                "It closes after {} successful probes in a row, and opens again if a probe fails.",
                breaker.success_threshold
            ),
            (State::Closed, _) => {
                let rate = match breaker.failure_rate_threshold {
                    rate if rate > 0.0 => {
                        format!(" that are at least {:.0} % of the calls", rate * 100.0)
                    }
                    _ => String::new(),
                };
                let slow = match breaker.window_slow {
                    0 => String::new(),
                    slow => format!(
                        " {slow} took longer than {} ms{}.",
                        breaker.slow_call_ms,
                        match breaker.slow_rate_threshold {
                            rate if rate > 0.0 => format!(
                                "; it would trip at {} that are at least {:.0} % of the calls",
                                breaker.failure_threshold,
                                rate * 100.0
                            ),
                            _ => ", which does not trip the breaker (breaker.slow_call_rate is 0)"
                                .to_owned(),
                        }
                    ),
                };
                format!(
                    "{} of {} calls failed within the last {}; it would trip at {} failures{rate}.{slow}",
                    breaker.window_failures,
                    breaker.window_calls,
                    lasting(Duration::from_secs_f64(breaker.window_seconds.max(0.0))),
                    breaker.failure_threshold,
                )
            }
        }
    }

    fn left(&self, until: UnixMillis) -> String {
        lasting(until.since(self.now))
    }

    fn impaired(&self, entries: &Roster) -> Vec<String> {
        let causes = entries.impaired_by(self.shared);
        let mut told = match causes.as_slice() {
            [] => Vec::new(),
            causes => vec![format!("It is impaired by {}.", causes.join(", "))],
        };
        told.extend(
            entries
                .place(self.shared)
                .into_iter()
                .flat_map(|at| dependencies::told_of(entries, at)),
        );
        told
    }

    /// What adaptive limits would be, beside the one that holds.
    fn limits(&self) -> Vec<String> {
        let would_be = self.shared.would_be();
        let classes = [("reads", would_be.read), ("writes", would_be.write)];
        let known = classes.iter().filter_map(|(of, limit)| Some(format!("{} {of}", (*limit)?)));
        let known: Vec<String> = known.collect();
        let max = self.shared.circuit.bulkhead.max();
        match known.as_slice() {
            [] => Vec::new(),
            known => vec![format!(
                "At most {max} attempts are in flight at once; an adaptive limit, which is only shown, would be {}.",
                known.join(" and ")
            )],
        }
    }

    /// What an operator can do.
    fn advice(&self, queue: &QueueView) -> Vec<String> {
        let (name, holds) = (&self.shared.circuit.name, self.shared.circuit.holds());
        let mut advice = Vec::new();
        if holds.operator || holds.given_up {
            advice.push(format!("`fusebox online {name}` takes it online again."));
        }
        if holds.retarget {
            advice.push(format!(
                "`fusebox backend accept-retarget {name}` lets the waiting calls go to the new address."
            ));
        }
        if self.shot.forced.is_some() {
            advice.push(format!("`fusebox breaker {name} release` ends the forced state."));
        } else if self.shot.state == State::Open && !self.shot.offline {
            advice.push(format!("`fusebox recover {name}` tries a recovery now."));
        }
        if queue.replay_paused.is_some() && self.shared.circuit.replay_barred().is_none() {
            advice.push(format!(
                "`fusebox queue replay {name}` resumes replay once you have removed the cause."
            ));
        }
        if queue.dead_letters > 0 {
            advice.push(format!(
                "`fusebox queue ls {name} --dead` lists the dead letters; use `queue requeue` or `queue discard` for \
                 each."
            ));
        }
        advice
    }
}

/// `text` with a small first letter.
fn lower(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().map(|first| first.to_lowercase().collect::<String>());
    first.unwrap_or_default() + letters.as_str()
}

fn ordinal(number: u32) -> String {
    match number {
        2 => "second".to_owned(),
        3 => "third".to_owned(),
        other => match (other % 10, other % 100) {
            (1, teen) if teen != 11 => format!("{other}st"),
            (2, teen) if teen != 12 => format!("{other}nd"),
            (3, teen) if teen != 13 => format!("{other}rd"),
            _ => format!("{other}th"),
        },
    }
}

/// A time to the second.
fn seconds_of(at: UnixMillis) -> String {
    let whole = UnixMillis::new(at.get() / 1_000 * 1_000).to_string();
    whole.replace(".000Z", "Z")
}

/// A duration for people, in its two greatest units.
fn lasting(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let two = |great: u64, unit: &str, small: u64, below: &str| match small {
        0 => format!("{great} {unit}"),
        small => format!("{great} {unit} {small} {below}"),
    };
    match seconds {
        0..10 => format!("{:.1} s", duration.as_secs_f64()),
        10..60 => format!("{seconds} s"),
        60..3_600 => two(seconds / 60, "min", seconds % 60, "s"),
        3_600..86_400 => two(seconds / 3_600, "h", seconds / 60 % 60, "min"),
        _ => two(seconds / 86_400, "d", seconds / 3_600 % 24, "h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_two_units() {
        let of = |millis| lasting(Duration::from_millis(millis));
        for (millis, said) in [
            (7_140, "7.1 s"),
            (48_900, "48 s"),
            (60_000, "1 min"),
            (125_000, "2 min 5 s"),
            (11_520_000, "3 h 12 min"),
            (180_000_000, "2 d 2 h"),
        ] {
            assert_eq!(of(millis), said);
        }
        assert_eq!(seconds_of(UnixMillis::new(1_789_999_999_999)), "2026-09-21T14:13:19Z");
        assert_eq!([2, 4, 11, 21, 112].map(ordinal), ["second", "4th", "11th", "21st", "112th"]);
    }

    #[test]
    fn one_call_is_not_calls() {
        let of = |calls| RecentView {
            calls,
            by_source: [("live".into(), calls)].into(),
            seconds: 25.0,
            ..RecentView::default()
        };
        assert_eq!(answers(&of(1)), ["1 call was answered in the last 25 s: 1 live."]);
        assert_eq!(answers(&of(2)), ["2 calls were answered in the last 25 s: 2 live."]);
    }

    #[test]
    fn a_queue_that_is_full_is_not_about_to_be() {
        let of = |fill_percent, full_seconds| QueueView {
            calls: 20,
            fill_percent,
            replay_paused: Some("the breaker is open".to_owned()),
            full_seconds: Some(full_seconds),
            ..QueueView::default()
        };
        let last = |queue: &QueueView| waiting(queue).pop().unwrap();
        assert_eq!(last(&of(95.0, 7.0)), "At this pace, the queue will be full in about 7.0 s.");
        assert_eq!(last(&of(100.0, 0.0)), "The queue is full.");
    }

    #[test]
    fn an_outage_begins_with_the_newest_way_out_of_closed() {
        let step = |at, from, to| TransitionRecord {
            at: UnixMillis::new(at),
            transition: Transition {
                from,
                to,
                reason: Reason::Reset,
                horizon: Horizon::Whole,
                calls: 0,
                failures: 0,
                failure_rate: 0.0,
                failure_threshold: 1,
                failure_rate_threshold: 0.5,
                slow: 0,
                slow_rate_threshold: 0.0,
                open_for_ms: None,
                exponent: 0,
                note: None,
                last_errors: Vec::new(),
            },
        };
        let (closed, open, half) = (State::Closed, State::Open, State::HalfOpen);
        let mut past = vec![step(1, closed, open), step(2, open, half), step(3, half, closed)];
        assert_eq!(began(&past), None);
        past.extend([step(4, closed, open), step(5, open, half), step(6, half, open)]);
        assert_eq!(began(&past).map(|record| record.at.get()), Some(4));
    }
}
