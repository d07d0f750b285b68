//! The state of the whole system, from the state of its backends.
//!
//! ```text
//! HEALTHY    no critical condition, at least 80 % operational
//! DEGRADED   no critical condition, but less than 80 %, or a queue above 70 %
//! CRITICAL   exactly one critical condition
//! EMERGENCY  two or more
//! ```
//!
//! A critical condition is: each critical backend that is not operational; fewer than half of the
//! backends operational, where at least one of those down is not critical; each operational backend
//! whose queue or dead letters are full; a store that refuses writes or was found damaged (once). No
//! backend is counted twice. Getting worse is immediate; getting better needs the better condition to
//! hold for [`HOLD`], so that a flapping backend does not make the system flap.

use std::{fmt, time::Duration};

use crate::units::Moment;

/// How long a better condition holds before it is believed.
pub const HOLD: Duration = Duration::from_secs(5);
/// The share of operational backends below which the system is DEGRADED, in percent.
const HEALTHY_PERCENT: f64 = 80.0;
/// The share below which that is a critical condition of its own, in percent.
const CRITICAL_PERCENT: f64 = 50.0;
/// The fill of a queue above which the system is DEGRADED, in percent.
const QUEUE_PERCENT: f64 = 70.0;

/// The state of the system, from good to bad.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum SystemState {
    /// All is well.
    #[default]
    Healthy,
    /// Fallbacks answer for some backends.
    Degraded,
    /// One critical condition: emergency recovery, low priority is shed.
    Critical,
    /// Several: read-only.
    Emergency,
}

impl SystemState {
    /// The word of the API and the metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "HEALTHY",
            Self::Degraded => "DEGRADED",
            Self::Critical => "CRITICAL",
            Self::Emergency => "EMERGENCY",
        }
    }

    /// 0 for HEALTHY to 3 for EMERGENCY, as `status --exit-code` ends.
    pub fn severity(self) -> u8 {
        self as u8
    }
}

impl fmt::Display for SystemState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What the system state needs to know of an enabled backend.
#[derive(Clone, Debug)]
pub struct BackendCondition {
    /// Its name.
    pub name: String,
    /// Whether the system is CRITICAL without it.
    pub critical: bool,
    /// Effectively CLOSED and not offline.
    pub operational: bool,
    /// Why it is not, in a word or two: `OPEN`, `OPEN, forced`, `offline`.
    pub cause: String,
    /// The root causes among what it depends on, which are down themselves.
    pub impaired_by: Vec<String>,
    /// Its queue or its dead letters are full.
    pub full: bool,
    /// Fill of its queue in percent.
    pub queue_percent: f64,
    /// Its store refuses writes or was found damaged: what follows "the store of NAME".
    pub store_trouble: Option<String>,
}

/// What follows from the conditions of one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Assessment {
    /// The state that they amount to.
    pub state: SystemState,
    /// Operational backends among the enabled ones, in percent; 100 where there are none.
    pub operational_percent: f64,
    /// Why the state is not HEALTHY, in sentences.
    pub reasons: Vec<String>,
}

/// Assesses the enabled backends.
pub fn assess(backends: &[BackendCondition]) -> Assessment {
    let operational = backends.iter().filter(|backend| backend.operational).count();
    let percent = match backends.len() {
        0 => 100.0,
        #[expect(clippy::cast_precision_loss, reason = "a handful of backends")]
        all => operational as f64 * 100.0 / all as f64,
    };
    let mut critical = Vec::new();
    let mut reasons = Vec::new();
    for backend in backends {
        let BackendCondition { name, cause, .. } = backend;
        match (backend.operational, backend.critical) {
            (false, true) => critical
                .push(format!("critical backend {name} is down ({cause}){}", with(name, backends))),
            // Named with its root cause, which is down too.
            (false, false) if !backend.impaired_by.is_empty() => {}
            (false, false) => {
                reasons.push(format!("backend {name} is down ({cause}){}", with(name, backends)));
            }
            (true, _) if backend.full => {
                critical.push(format!("the queue or the dead letters of {name} are full"));
            }
            (true, _) => {}
        }
        if backend.queue_percent >= QUEUE_PERCENT {
            reasons.push(format!("the queue of {name} is {:.0} % full", backend.queue_percent));
        }
    }
    let ordinary_down = backends.iter().any(|backend| !backend.operational && !backend.critical);
    if percent < CRITICAL_PERCENT && ordinary_down {
        critical.push(format!("only {percent:.0} % of the backends are operational"));
    }
    if let Some((name, why)) =
        backends.iter().find_map(|backend| Some((&backend.name, backend.store_trouble.as_ref()?)))
    {
        critical.push(format!("the store of {name} {why}"));
    }
    let state = match critical.len() {
        0 if percent < HEALTHY_PERCENT => SystemState::Degraded,
        0 if backends.iter().any(|backend| backend.queue_percent >= QUEUE_PERCENT) => {
            SystemState::Degraded
        }
        0 => SystemState::Healthy,
        1 => SystemState::Critical,
        _ => SystemState::Emergency,
    };
    critical.append(&mut reasons);
    Assessment { state, operational_percent: percent, reasons: critical }
}

/// The backends that are down for the sake of `cause`, as the end of a sentence about it; those that are critical
/// have sentences of their own.
fn with(cause: &str, backends: &[BackendCondition]) -> String {
    let dependents: Vec<&str> = backends
        .iter()
        .filter(|it| !it.operational && !it.critical)
        .filter(|it| it.impaired_by.first().is_some_and(|first| first == cause))
        .map(|it| it.name.as_str())
        .collect();
    match dependents.as_slice() {
        [] => String::new(),
        names => format!(", and {} for its sake", names.join(", ")),
    }
}

/// A change of the system state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Before.
    pub from: SystemState,
    /// After.
    pub to: SystemState,
}

/// Follows the assessments over time: worse at once, better once it has held for [`HOLD`].
#[derive(Debug, Default)]
pub struct Tracker {
    state: SystemState,
    /// Since when every assessment was HEALTHY, at worst DEGRADED, at worst CRITICAL.
    since: [Option<Moment>; 3],
}

/// What is better than EMERGENCY, best first.
const BETTER: [SystemState; 3] =
    [SystemState::Healthy, SystemState::Degraded, SystemState::Critical];

impl Tracker {
    /// The state that holds.
    pub fn state(&self) -> SystemState {
        self.state
    }

    /// Takes an assessment; returns the change that it brings.
    pub fn observe(&mut self, assessed: SystemState, now: Moment) -> Option<Change> {
        for (state, since) in BETTER.into_iter().zip(&mut self.since) {
            *since = (assessed <= state).then(|| since.unwrap_or(now));
        }
        let from = self.state;
        let held = self.better().find(|(_, since)| now.since(*since) >= HOLD);
        self.state = held.map_or(from.max(assessed), |(state, _)| state);
        (self.state != from).then_some(Change { from, to: self.state })
    }

    /// When to assess again although nothing was heard.
    pub fn next_look(&self) -> Option<Moment> {
        self.better().map(|(_, since)| since.plus(HOLD)).min()
    }

    /// What is better than the state that holds and was not surpassed since then, best first.
    fn better(&self) -> impl Iterator<Item = (SystemState, Moment)> {
        let since = BETTER.into_iter().zip(self.since);
        since
            .take_while(|(state, _)| *state < self.state)
            .filter_map(|(state, at)| Some((state, at?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backend(name: &str, critical: bool, operational: bool) -> BackendCondition {
        BackendCondition {
            name: name.into(),
            critical,
            operational,
            cause: "OPEN".into(),
            impaired_by: Vec::new(),
            full: false,
            queue_percent: 0.0,
            store_trouble: None,
        }
    }

    /// `C` and `c` are a critical backend that is up or down, `O` and `o` an ordinary one.
    #[track_caller]
    fn check(backends: &str, expected: SystemState) {
        let list: Vec<_> = backends
            .chars()
            .map(|letter| backend("b", letter.eq_ignore_ascii_case(&'c'), letter.is_uppercase()))
            .collect();
        assert_eq!(assess(&list).state, expected, "{backends}");
    }

    #[test]
    fn one_root_cause_is_named_once() {
        let needs = |name: &str, on: &str, critical| BackendCondition {
            impaired_by: vec![on.to_owned()],
            ..backend(name, critical, false)
        };
        let found = assess(&[
            backend("root", false, false),
            needs("leaf", "root", false),
            needs("twig", "root", false),
            backend("d", false, true),
            backend("e", false, true),
            backend("f", false, true),
        ]);
        assert_eq!(found.reasons, ["backend root is down (OPEN), and leaf, twig for its sake"]);
        let found = assess(&[backend("root", true, false), needs("leaf", "root", true)]);
        assert_eq!(found.state, SystemState::Emergency);
        assert_eq!(
            found.reasons,
            ["critical backend root is down (OPEN)", "critical backend leaf is down (OPEN)"]
        );
    }

    #[test]
    fn the_four_states() {
        check("COO", SystemState::Healthy);
        check("OOOOo", SystemState::Healthy);
        check("COo", SystemState::Degraded);
        check("COOOo", SystemState::Healthy);
        check("Coo", SystemState::Critical);
        check("cOO", SystemState::Critical);
        check("cOo", SystemState::Emergency);
        check("ccO", SystemState::Emergency);
        check("c", SystemState::Critical);
        check("o", SystemState::Critical);
        check("O", SystemState::Healthy);
    }

    #[test]
    fn a_full_queue_counts_only_while_its_backend_is_operational() {
        let full = |operational| BackendCondition {
            full: true,
            queue_percent: 100.0,
            ..backend("redis", true, operational)
        };
        let rest = [backend("a", false, true), backend("b", false, true)];
        let list = |first: BackendCondition| [vec![first], rest.to_vec()].concat();
        assert_eq!(assess(&list(full(true))).state, SystemState::Critical);
        assert_eq!(assess(&list(full(false))).state, SystemState::Critical);
    }

    #[test]
    fn refusing_stores_count_once() {
        let refusing = |name| BackendCondition {
            store_trouble: Some("disk".into()),
            ..backend(name, false, true)
        };
        assert_eq!(assess(&[refusing("a"), refusing("b")]).state, SystemState::Critical);
    }

    #[test]
    fn a_filling_queue_degrades_at_seventy_percent() {
        let list =
            |queue_percent| [BackendCondition { queue_percent, ..backend("a", false, true) }];
        assert_eq!(assess(&list(69.9)).state, SystemState::Healthy);
        assert_eq!(assess(&list(70.0)).state, SystemState::Degraded);
    }

    #[test]
    fn worse_is_immediate_and_better_waits() {
        let at = Moment::from_millis;
        let mut tracker = Tracker::default();
        let to = |change: Option<Change>| change.map(|change| change.to);
        assert_eq!(
            to(tracker.observe(SystemState::Emergency, at(0))),
            Some(SystemState::Emergency)
        );
        assert_eq!(to(tracker.observe(SystemState::Healthy, at(1_000))), None);
        assert_eq!(tracker.next_look(), Some(at(6_000)));
        assert_eq!(to(tracker.observe(SystemState::Degraded, at(2_000))), None);
        assert_eq!(to(tracker.observe(SystemState::Healthy, at(5_999))), None);
        // It was never worse than DEGRADED for 5 s, and HEALTHY for one millisecond.
        assert_eq!(
            to(tracker.observe(SystemState::Healthy, at(6_000))),
            Some(SystemState::Degraded)
        );
        assert_eq!(tracker.next_look(), Some(at(10_999)));
        assert_eq!(
            to(tracker.observe(SystemState::Healthy, at(10_999))),
            Some(SystemState::Healthy)
        );
        assert_eq!(tracker.next_look(), None);
    }

    #[test]
    fn two_that_recover_together_are_believed_together() {
        let at = Moment::from_millis;
        let mut tracker = Tracker::default();
        tracker.observe(SystemState::Emergency, at(0));
        tracker.observe(SystemState::Critical, at(1_000));
        tracker.observe(SystemState::Healthy, at(1_300));
        let to = |change: Option<Change>| change.map(|change| change.to);
        assert_eq!(
            to(tracker.observe(SystemState::Healthy, at(6_000))),
            Some(SystemState::Critical)
        );
        assert_eq!(
            to(tracker.observe(SystemState::Healthy, at(6_300))),
            Some(SystemState::Healthy)
        );
    }

    #[test]
    fn a_flapping_backend_does_not_make_the_system_flap() {
        let mut tracker = Tracker::default();
        let changes = (0..600_u64)
            .filter_map(|second| {
                let state =
                    if second % 2 == 0 { SystemState::Critical } else { SystemState::Healthy };
                tracker.observe(state, Moment::from_millis(second * 1_000))
            })
            .count();
        assert_eq!(changes, 1);
    }
}
