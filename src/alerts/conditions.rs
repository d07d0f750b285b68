//! Which alerts hold, read from the view that `/health/resilience` shows.

use std::{collections::BTreeMap, time::Duration};

use fusebox_actors::view::{BackendView, ResilienceView};
use fusebox_state::{Moment, breaker::State, predict, system::SystemState};

use crate::config::Severity;

/// An alert that there can be. Names, severities and times are those of docs/prometheus/fusebox.rules.yml.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Kind {
    /// Its name.
    pub(crate) name: &'static str,
    /// How soon somebody must look.
    pub(crate) severity: Severity,
    /// For how many seconds its condition must hold, unless a setting says so.
    pub(crate) seconds: u64,
}

impl Kind {
    const fn new(name: &'static str, severity: Severity, seconds: u64) -> Self {
        Self { name, severity, seconds }
    }
}

/// Writes count as refused for this long.
const REFUSED_FOR: Duration = Duration::from_secs(5 * 60);
/// Dead letters count as growing for this long after a new one.
const GROWING_FOR: Duration = Duration::from_secs(15 * 60);
/// Nothing was replayed for this long.
const STALLED_AFTER: Duration = Duration::from_secs(5 * 60);
/// The share of a queue's limits, in percent, above which it is nearly full.
const NEARLY_FULL: f64 = 85.0;

const EMERGENCY: Kind = Kind::new("FuseboxEmergency", Severity::Critical, 30);
const CRITICAL: Kind = Kind::new("FuseboxCritical", Severity::Critical, 60);
const DEGRADED: Kind = Kind::new("FuseboxDegraded", Severity::Warning, 600);
const BREAKER_OPEN: Kind = Kind::new("FuseboxBreakerOpen", Severity::Warning, 60);
const AT_RISK: Kind = Kind::new("FuseboxBreakerAtRisk", Severity::Info, 0);
const HOST_CAUSE: Kind = Kind::new("FuseboxHostCause", Severity::Critical, 30);
const HELD: Kind = Kind::new("FuseboxBackendHeld", Severity::Info, 3_600);
const LEFT_OUT: Kind = Kind::new("FuseboxSettingsLeftOut", Severity::Warning, 60);
const MUST_ACT: Kind = Kind::new("FuseboxOperatorMustAct", Severity::Warning, 60);
const QUEUE_NEARLY_FULL: Kind = Kind::new("FuseboxQueueNearlyFull", Severity::Critical, 60);
const WRITES_REFUSED: Kind = Kind::new("FuseboxWritesRefused", Severity::Critical, 0);
const DEAD_GROWING: Kind = Kind::new("FuseboxDeadLettersGrowing", Severity::Warning, 0);
const DEAD_WAITING: Kind = Kind::new("FuseboxDeadLettersWaiting", Severity::Info, 86_400);
const STORE_REFUSES: Kind = Kind::new("FuseboxStoreRefusesWrites", Severity::Critical, 30);
const REPLAY_STALLED: Kind = Kind::new("FuseboxReplayStalled", Severity::Warning, 120);

/// Every alert.
#[cfg(test)]
pub(super) const ALL: [&Kind; 15] = [
    &EMERGENCY,
    &CRITICAL,
    &DEGRADED,
    &BREAKER_OPEN,
    &AT_RISK,
    &HOST_CAUSE,
    &HELD,
    &LEFT_OUT,
    &MUST_ACT,
    &QUEUE_NEARLY_FULL,
    &WRITES_REFUSED,
    &DEAD_GROWING,
    &DEAD_WAITING,
    &STORE_REFUSES,
    &REPLAY_STALLED,
];

/// What makes an alert one, and not another of its kind.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    /// The kind.
    pub(crate) kind: &'static Kind,
    /// The backend, if it is about one.
    pub(crate) backend: Option<String>,
    /// Which of several about the same: a subject of `alert_active`, or a part of the host.
    pub(crate) subject: Option<String>,
}

/// What was found of an alert.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// Its condition holds: a sentence about it.
    Holds(String),
    /// A worse condition has taken its place: it neither begins nor is over.
    Overtaken,
}

/// Finds the conditions that hold. Remembers of earlier looks when counters last rose.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    backends: BTreeMap<String, Counters>,
}

/// What counters were at the last look, and when they rose.
#[derive(Debug, Default)]
struct Counters {
    refused: Rising,
    became_dead: Rising,
    replayed: Rising,
    /// Since when calls wait and may be sent.
    may_replay: Option<Moment>,
}

/// A counter, and when it was last seen to rise.
#[derive(Debug, Default)]
struct Rising {
    count: Option<u64>,
    rose: Option<Moment>,
}

impl Rising {
    fn look(&mut self, count: u64, now: Moment) {
        if self.count.is_some_and(|before| count > before) {
            self.rose = Some(now);
        }
        self.count = Some(count);
    }

    /// Whether it has risen within `span`.
    fn within(&self, span: Duration, now: Moment) -> bool {
        self.rose.is_some_and(|rose| now.since(rose) < span)
    }
}

impl Watch {
    /// What holds now.
    pub(crate) fn look(&mut self, view: &ResilienceView, now: Moment) -> BTreeMap<Key, Found> {
        let mut found = of_the_whole(view);
        for (name, backend) in &view.backends {
            let counters = self.backends.entry(name.clone()).or_default();
            counters.look(backend, now);
            let mut add = |kind, subject: Option<&str>, what: String| {
                let (backend, subject) = (Some(name.clone()), subject.map(str::to_owned));
                found.insert(Key { kind, backend, subject }, Found::Holds(what));
            };
            of_breaker(view, backend, &mut add);
            of_queue(backend, &mut add);
            if counters.refused.within(REFUSED_FOR, now) {
                let why = backend.queue.store_refuses.as_deref();
                let why =
                    why.unwrap_or("its queue is full, or too full for writes of low priority");
                add(&WRITES_REFUSED, None, format!("writes of {name} are refused: {why}"));
            }
            if counters.became_dead.within(GROWING_FOR, now) {
                let dead = backend.queue.dead_letters;
                let what = format!(
                    "queued calls of {name} are becoming dead letters; there are {dead} now"
                );
                add(&DEAD_GROWING, None, what);
            }
            if counters.is_stalled(now) {
                let calls = backend.queue.calls;
                let what = format!("{calls} calls of {name} wait, and none is replayed");
                add(&REPLAY_STALLED, None, what);
            }
        }
        found
    }
}

impl Counters {
    fn look(&mut self, backend: &BackendView, now: Moment) {
        let queue = &backend.queue;
        self.refused.look(queue.refused, now);
        self.became_dead.look(queue.became_dead, now);
        self.replayed.look(queue.replayed, now);
        let is_closed = backend.breaker.state.known() == Some(State::Closed);
        let may = queue.calls > 0 && is_closed && !backend.offline;
        self.may_replay = may.then(|| self.may_replay.unwrap_or(now));
    }

    fn is_stalled(&self, now: Moment) -> bool {
        let since =
            self.may_replay.map(|since| self.replayed.rose.map_or(since, |at| at.max(since)));
        since.is_some_and(|since| now.since(since) >= STALLED_AFTER)
    }
}

/// The conditions of the whole daemon and of its host.
fn of_the_whole(view: &ResilienceView) -> BTreeMap<Key, Found> {
    let mut found = BTreeMap::new();
    let mut add = |kind, subject: Option<&str>, what: Found| {
        found.insert(Key { kind, backend: None, subject: subject.map(str::to_owned) }, what);
    };
    let states: &[&Kind] = match view.state.known() {
        Some(SystemState::Emergency) => &[&EMERGENCY, &CRITICAL, &DEGRADED],
        Some(SystemState::Critical) => &[&CRITICAL, &DEGRADED],
        Some(SystemState::Degraded) => &[&DEGRADED],
        Some(SystemState::Healthy) | None => &[],
    };
    if let Some((worst, lesser)) = states.split_first() {
        let what = format!("fusebox is {}: {}", view.state, view.reasons.join("; "));
        add(worst, None, Found::Holds(what));
        for kind in lesser {
            add(kind, None, Found::Overtaken);
        }
    }
    for root in view.root_causes.iter().filter(|root| root.backend.starts_with("host:")) {
        let what = format!("{} is the likely cause of the outage: {}", root.backend, root.because);
        add(&HOST_CAUSE, Some(&root.backend), Found::Holds(what));
    }
    if !view.settings_left_out.is_empty() {
        let count = view.settings_left_out.len();
        let what = format!("changes of settings at run time that are not in effect: {count}");
        add(&LEFT_OUT, None, Found::Holds(what));
    }
    found
}

/// The conditions that follow from a backend's breaker.
fn of_breaker(
    view: &ResilienceView,
    backend: &BackendView,
    add: &mut dyn FnMut(&'static Kind, Option<&str>, String),
) {
    let (name, breaker) = (&backend.name, &backend.breaker);
    let is_closed = breaker.state.known() == Some(State::Closed);
    // What another backend is to blame for is part of that one's alert.
    if !is_closed && breaker.forced.is_none() && backend.impaired_by.is_empty() {
        let with_it = view.root_causes.iter().find(|root| root.backend == *name);
        let with_it = with_it.map(|root| root.impairs.join(", ")).filter(|it| !it.is_empty());
        let with_it =
            with_it.map(|it| format!("; also down because of it: {it}")).unwrap_or_default();
        add(&BREAKER_OPEN, None, format!("the breaker of {name} is {}{with_it}", breaker.state));
    }
    if backend.prediction.state.known() == Some(predict::State::AtRisk) {
        let because = backend.prediction.because.as_deref().unwrap_or("a limit is near");
        add(&AT_RISK, None, format!("{name} is likely to fail soon: {because}"));
    }
    if let Some(forced) = &breaker.forced {
        add(&HELD, None, format!("the breaker of {name} is forced {}", forced.state));
    } else if backend.offline {
        add(&HELD, None, format!("{name} is offline"));
    }
}

/// The conditions that follow from a backend's queue and store.
fn of_queue(backend: &BackendView, add: &mut dyn FnMut(&'static Kind, Option<&str>, String)) {
    let (name, queue) = (&backend.name, &backend.queue);
    // Each with its words, in the same order; the one of the store has an alert of its own.
    for (subject, words) in backend.alert_subjects.iter().zip(&backend.alerts) {
        if subject != "store" {
            add(&MUST_ACT, Some(subject), format!("{name} needs an operator: {}", words.said()));
        }
    }
    if queue.fill_percent > NEARLY_FULL {
        let fill = queue.fill_percent;
        add(&QUEUE_NEARLY_FULL, None, format!("the queue of {name} is {fill:.0} % full"));
    }
    if queue.dead_letters > 0 {
        let dead = queue.dead_letters;
        add(
            &DEAD_WAITING,
            None,
            format!(
                "{dead} dead letters of {name} wait for an operator to requeue or discard them"
            ),
        );
    }
    if let Some(why) = &queue.store_refuses {
        add(&STORE_REFUSES, None, format!("the store of {name} takes no writes: {why}"));
    }
}
