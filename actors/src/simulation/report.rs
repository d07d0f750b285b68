//! What a simulation is of, and what comes of it.

use std::fmt;

/// What a simulation is of.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// The seed of all chance.
    pub seed: u64,
    /// Simulated hours of faults; at least 1.
    pub hours: u32,
    /// Receives everything that happens, a line each.
    pub tells: Option<fn(&str)>,
}

/// What happened in a simulation in which every invariant held.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Summary {
    /// The seed.
    pub seed: u64,
    /// Simulated hours of faults.
    pub hours: u32,
    /// Hash of all that happened: the same for the same seed and version.
    pub hash: String,
    /// Things that happened.
    pub events: u64,
    /// Calls that ended.
    pub calls: u64,
    /// Writes that were acknowledged.
    pub acknowledged: u64,
    /// Writes that a backend applied.
    pub applied: u64,
    /// Faults and orders.
    pub faults: u64,
    /// Times that the daemon was killed or stopped, and started.
    pub restarts: u64,
    /// Transitions of breakers.
    pub transitions: u64,
    /// Changes of the system state.
    pub states: u64,
    /// Calls that became dead letters.
    pub dead_letters: u64,
}

/// An invariant that did not hold.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Broken {
    /// The seed.
    pub seed: u64,
    /// Simulated hours of faults.
    pub hours: u32,
    /// What should not be.
    pub what: String,
    /// In which step it was seen.
    pub step: u64,
    /// What happened before, oldest first.
    pub last: Vec<String>,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}, step {}: {}", self.seed, self.step, self.what)?;
        writeln!(f, "the last events:")?;
        for line in &self.last {
            writeln!(f, "  {line}")?;
        }
        write!(f, "to repeat it: fusebox simulate --seed {} --hours {}", self.seed, self.hours)
    }
}

impl std::error::Error for Broken {}
