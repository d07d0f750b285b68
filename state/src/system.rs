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

use crate::{
    dependencies::{Findings, Head, Shared, What},
    units::Moment,
};

/// How long a better condition holds before it is believed.
pub const HOLD: Duration = Duration::from_secs(5);
/// The share of operational backends below which the system is DEGRADED, in percent.
const HEALTHY_PERCENT: f64 = 80.0;
/// The share below which that is a critical condition of its own, in percent.
const CRITICAL_PERCENT: f64 = 50.0;
/// The fill of a queue above which the system is DEGRADED, in percent.
const QUEUE_PERCENT: f64 = 70.0;

/// How many of those that are down with something are named.
const NAMED: usize = 5;

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

/// Assesses the enabled backends. What is down is told by `findings`, which are of the same moment and name backends
/// by their places: each head once, with those that are down for its sake. How many critical conditions there are
/// does not depend on them.
pub fn assess(backends: &[BackendCondition], findings: &Findings) -> Assessment {
    let operational = backends.iter().filter(|backend| backend.operational).count();
    let percent = match backends.len() {
        0 => 100.0,
        #[expect(clippy::cast_precision_loss, reason = "a handful of backends")]
        all => operational as f64 * 100.0 / all as f64,
    };
    let mut conditions = backends.iter().filter(|it| it.critical && !it.operational).count();
    let (mut critical, mut reasons) = (Vec::new(), Vec::new());
    for head in &findings.heads {
        let Some((sentence, is_critical)) = told(head, backends) else { continue };
        if is_critical { &mut critical } else { &mut reasons }.push(sentence);
    }
    for backend in backends {
        let BackendCondition { name, queue_percent, .. } = backend;
        if backend.operational && backend.full {
            conditions += 1;
            critical.push(format!("the queue or the dead letters of {name} are full"));
        }
        if *queue_percent >= QUEUE_PERCENT {
            reasons.push(format!("the queue of {name} is {queue_percent:.0} % full"));
        }
    }
    let ordinary_down = backends.iter().any(|backend| !backend.operational && !backend.critical);
    if percent < CRITICAL_PERCENT && ordinary_down {
        conditions += 1;
        critical.push(format!("only {percent:.0} % of the backends are operational"));
    }
    if let Some((name, why)) =
        backends.iter().find_map(|backend| Some((&backend.name, backend.store_trouble.as_ref()?)))
    {
        conditions += 1;
        critical.push(format!("the store of {name} {why}"));
    }
    let state = match conditions {
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

/// What `head` is told as, and whether a critical backend is down with it. `None` for a disk: its stores tell.
fn told(head: &Head, backends: &[BackendCondition]) -> Option<(String, bool)> {
    let with: Vec<&BackendCondition> =
        head.impairs.iter().filter_map(|at| backends.get(*at)).collect();
    let is_critical = with.iter().any(|it| it.critical);
    let at = match head.what {
        What::Here(Shared::Disk) => return None,
        What::Here(shared) => {
            return Some((format!("{}{}", shared.said(), others(&with, "backend")), is_critical));
        }
        What::Backend(at) => backends.get(at)?,
    };
    let BackendCondition { name, cause, critical, .. } = at;
    let critical = if *critical { "critical " } else { "" };
    let names = |places: &[usize]| -> Vec<&str> {
        places.iter().filter_map(|at| Some(backends.get(*at)?.name.as_str())).collect()
    };
    let after = match head.after.as_slice() {
        [] => String::new(),
        [one] => format!(", though {} is up again", names(&[*one]).concat()),
        more => format!(", though {} are up again", names(more).join(", ")),
    };
    let others = others(&with, "other");
    let sentence = format!("{critical}backend {name} is down ({cause}){after}{others}");
    Some((sentence, is_critical || at.critical))
}

/// Those that are down with something, as the end of a sentence about it.
fn others(with: &[&BackendCondition], word: &str) -> String {
    let plural = match with.len() {
        0 => return String::new(),
        1 => "",
        _ => "s",
    };
    let name = |it: &&BackendCondition| {
        format!("{}{}", it.name, if it.critical { " (critical)" } else { "" })
    };
    let mut names: Vec<String> = with.iter().take(NAMED).map(name).collect();
    if let Some(more) = with.len().checked_sub(NAMED).filter(|more| *more > 0) {
        names.push(format!("{more} more"));
    }
    format!("; {} {word}{plural} with it: {}", with.len(), names.join(", "))
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
    use crate::dependencies::{Causes, Declared, Down, Graph, Sight};

    fn backend(name: &str, critical: bool, operational: bool) -> BackendCondition {
        BackendCondition {
            name: name.into(),
            critical,
            operational,
            cause: "OPEN".into(),
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
        assert_eq!(told_of(&list, &[]).state, expected, "{backends}");
    }

    /// What is told of these backends, which need each other like this: (who, on whom).
    fn told_of(backends: &[BackendCondition], edges: &[(&str, &str)]) -> Assessment {
        let needs = |name: &str| -> Vec<String> {
            let on = edges.iter().filter(|(who, _)| *who == name);
            on.map(|(_, on)| (*on).to_owned()).collect()
        };
        let needs: Vec<Vec<String>> = backends.iter().map(|it| needs(&it.name)).collect();
        let declared: Vec<Declared<'_>> = backends
            .iter()
            .zip(&needs)
            .map(|(it, required)| Declared { name: &it.name, required, optional: &[] })
            .collect();
        let sight = |it: &BackendCondition| Sight {
            down: (!it.operational).then(Down::default),
            ..Sight::default()
        };
        let sights: Vec<Sight> = backends.iter().map(sight).collect();
        let now = Moment::from_millis(1);
        assess(backends, &Causes::default().observe(&Graph::new(&declared), &sights, now))
    }

    #[test]
    fn one_root_cause_is_named_once() {
        let up = |name| backend(name, false, true);
        let found = told_of(
            &[
                backend("root", false, false),
                backend("leaf", false, false),
                backend("twig", false, false),
                up("d"),
                up("e"),
                up("f"),
            ],
            &[("leaf", "root"), ("twig", "leaf")],
        );
        assert_eq!(found.reasons, ["backend root is down (OPEN); 2 others with it: leaf, twig"]);
        let both = [backend("root", false, false), backend("leaf", true, false)];
        let found = told_of(&both, &[("leaf", "root")]);
        assert_eq!(found.state, SystemState::Emergency);
        assert_eq!(
            found.reasons,
            [
                "backend root is down (OPEN); 1 other with it: leaf (critical)",
                "only 0 % of the backends are operational"
            ]
        );
    }

    #[test]
    fn what_is_needed_changes_what_is_told_and_never_the_state() {
        for down in 0..8_u8 {
            let list: Vec<_> = ["a", "b", "c"]
                .into_iter()
                .enumerate()
                .map(|(at, name)| backend(name, name == "c", down & (1 << at) == 0))
                .collect();
            let alone = told_of(&list, &[]);
            let bound = told_of(&list, &[("b", "a"), ("c", "b")]);
            assert_eq!(alone.state, bound.state, "{down:b}");
            let heads = bound.reasons.iter().filter(|it| it.contains(" is down ("));
            let wanted = match down {
                0 => 0,
                // What stands between is up, and all is a's fault all the same.
                _ => 1,
            };
            assert_eq!(heads.count(), wanted, "{down:b}: {:?}", bound.reasons);
        }
    }

    #[test]
    fn a_part_of_this_host_is_told_in_the_place_of_what_it_takes_down() {
        let head = |what, impairs: &[usize], after: &[usize]| Head {
            what,
            since: Moment::from_millis(1),
            impairs: impairs.to_vec(),
            after: after.to_vec(),
            uses: Vec::new(),
            seen_by: Vec::new(),
        };
        let list: Vec<_> =
            "abcdefgh".chars().map(|it| backend(&it.to_string(), false, false)).collect();
        let told = |head: Head| {
            let findings = Findings { heads: vec![head], returned: Vec::new() };
            assess(&list, &findings).reasons.concat()
        };
        let network = told(head(What::Here(Shared::Network), &[0, 1, 2, 3, 4, 5, 6], &[]));
        let wanted = "this host's network is down; 7 backends with it: a, b, c, d, e, 2 more";
        assert!(network.contains(wanted), "{network}");
        let left = told(head(What::Backend(0), &[], &[1, 2]));
        assert!(left.contains("backend a is down (OPEN), though b, c are up again"), "{left}");
        assert!(!told(head(What::Here(Shared::Disk), &[0, 1], &[])).contains("disk"));
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
        assert_eq!(told_of(&list(full(true)), &[]).state, SystemState::Critical);
        assert_eq!(told_of(&list(full(false)), &[]).state, SystemState::Critical);
    }

    #[test]
    fn refusing_stores_count_once() {
        let refusing = |name| BackendCondition {
            store_trouble: Some("disk".into()),
            ..backend(name, false, true)
        };
        assert_eq!(told_of(&[refusing("a"), refusing("b")], &[]).state, SystemState::Critical);
    }

    #[test]
    fn a_filling_queue_degrades_at_seventy_percent() {
        let list =
            |queue_percent| [BackendCondition { queue_percent, ..backend("a", false, true) }];
        assert_eq!(told_of(&list(69.9), &[]).state, SystemState::Healthy);
        assert_eq!(told_of(&list(70.0), &[]).state, SystemState::Degraded);
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
