//! The state of the whole system, from the state of its backends.
//!
//! ```text
//! HEALTHY    no critical condition, at least 80 % operational
//! DEGRADED   no critical condition, but less than 80 %, or a queue at least 70 % full
//! CRITICAL   exactly one critical condition
//! EMERGENCY  two or more
//! ```
//!
//! A critical condition is: each critical backend that is not operational; fewer than half of the
//! backends operational, if at least one of those down is not critical; each operational backend
//! whose queue or dead letters are full; a store that refuses writes or was found damaged (once). No
//! backend is counted twice. Getting worse is immediate; getting better needs the better condition to
//! hold for [`HOLD`], so that a flapping backend does not make the system flap.

use std::{fmt, time::Duration};

use crate::{
    dependencies::{Findings, Head, Shared, What},
    units::Moment,
};

#[cfg(test)]
mod tests;

/// How long a better condition holds before it is believed.
pub const HOLD: Duration = Duration::from_secs(5);
/// The share of operational backends below which the system is DEGRADED, in percent.
const HEALTHY_PERCENT: f64 = 80.0;
/// The share below which that is a critical condition of its own, in percent.
const CRITICAL_PERCENT: f64 = 50.0;
/// The fill of a queue from which on the system is DEGRADED, in percent.
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
    schemars::JsonSchema,
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
    /// Why it is not, in a few words: `OPEN`, `OPEN, forced`, `offline`, `its queue is being opened`.
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
    /// Operational backends among the enabled ones, in percent; 100 if there are none.
    pub operational_percent: f64,
    /// Why the state is not HEALTHY, in sentences.
    pub reasons: Vec<String>,
}

/// Assesses the enabled backends. What is down is in `findings`, which are of the same moment and name backends
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

/// What `head` is shown as, and whether a critical backend is down with it. `None` for a disk: its stores report it.
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
        [one] => format!(", although {} is up again", names(&[*one]).concat()),
        more => format!(", although {} are up again", names(more).join(", ")),
    };
    let others = others(&with, "other backend");
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
    format!("; this affects {} {word}{plural}: {}", with.len(), names.join(", "))
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
