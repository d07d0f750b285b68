//! What is recorded: each scenario is a server, a cause, and how strong the cause is when.

use std::{f64::consts::TAU, time::Duration};

use crate::{
    cause::Cause::{
        self, Cpu, Crashed, Disk, Flood, Freeze, Hung, Keys, Killed, Locks, Lua, None, Parts,
        Queries, Replica, Scan, Stopped, Values,
    },
    server::Kind::{self, ClickHouse18, ClickHouse26, Postgres15, Redis7, Valkey9},
};

/// When the disturbance begins, in seconds.
const BEGIN: f64 = 12.0;
/// When a server that dies does so, in seconds.
pub(crate) const DEATH: f64 = 40.0;

/// How strong the cause is over time, between 0 and 1.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Shape {
    /// Grows to its full strength within so many seconds, by this power of the time.
    Ramp(f64, f64),
    /// Not at all, and then so strong.
    Step(f64),
    /// Grows for 33 seconds, and stays so strong.
    Plateau(f64),
    /// So strong for half a second out of seven.
    Spikes(f64),
    /// Between nothing and so strong, and back within 20 seconds.
    Wave(f64),
    /// Between nothing and so strong, and back, once; the callers' rate with it.
    Diurnal(f64),
    /// Nothing.
    Steady,
}

impl Shape {
    /// The strength so long after the recording's beginning.
    pub(crate) fn strength(self, at: Duration) -> f64 {
        let at = at.as_secs_f64();
        let since = at - BEGIN;
        match self {
            Self::Ramp(seconds, power) => (since / seconds).clamp(0.0, 1.0).powf(power),
            Self::Step(strength) => {
                if at > 25.0 {
                    strength
                } else {
                    0.0
                }
            }
            Self::Plateau(strength) => strength * (since / 33.0).clamp(0.0, 1.0),
            Self::Spikes(strength) => {
                if since > 0.0 && at % 7.0 < 0.5 {
                    strength
                } else {
                    0.0
                }
            }
            Self::Wave(strength) => {
                if since > 0.0 {
                    strength * (0.5 - 0.5 * (TAU * since / 20.0).cos())
                } else {
                    0.0
                }
            }
            Self::Diurnal(strength) => strength * Self::day(Duration::from_secs_f64(at)),
            Self::Steady => 0.0,
        }
    }

    /// How much of a day it is: 0 by night, 1 at noon.
    pub(crate) fn day(at: Duration) -> f64 {
        0.5 - 0.5 * (TAU * at.as_secs_f64() / 75.0).cos()
    }

    fn name(self) -> &'static str {
        match self {
            Self::Ramp(..) => "ramp",
            Self::Step(_) => "step",
            Self::Plateau(_) => "plateau",
            Self::Spikes(_) => "spikes",
            Self::Wave(_) => "wave",
            Self::Diurnal(_) => "diurnal",
            Self::Steady => "steady",
        }
    }
}

pub(crate) struct Scenario {
    pub(crate) server: Kind,
    pub(crate) cause: Cause,
    pub(crate) shape: Shape,
    pub(crate) seed: u64,
}

impl Scenario {
    /// Its name, which is that of its file.
    pub(crate) fn name(&self) -> String {
        let Self { server, cause, shape, seed } = self;
        let cause = format!("{cause:?}").to_lowercase();
        format!("{}-{cause}-{}-{seed:02}", server.name(), shape.name())
    }
}

/// All of them. Tuning and held-out recordings share neither a server nor a cause nor, if nothing fails, a shape.
pub(crate) fn scenarios() -> Vec<Scenario> {
    use Shape::{Diurnal, Plateau, Ramp, Spikes, Steady, Step, Wave};
    let of = [
        // For tuning.
        (
            Redis7,
            Cpu,
            &[Ramp(40.0, 1.0), Ramp(50.0, 1.0), Ramp(45.0, 1.5), Ramp(30.0, 1.0), Step(0.35)][..],
        ),
        (Redis7, Lua, &[Ramp(45.0, 1.0), Ramp(40.0, 2.0), Ramp(30.0, 1.0), Step(0.05), Step(0.1)]),
        (Redis7, Keys, &[Ramp(45.0, 1.0), Ramp(40.0, 1.5), Ramp(55.0, 1.0), Step(0.2)]),
        (Redis7, Freeze, &[Ramp(45.0, 1.0), Ramp(40.0, 2.0), Spikes(0.3), Spikes(0.45)]),
        (ClickHouse18, Cpu, &[Ramp(40.0, 1.0), Ramp(50.0, 1.0), Ramp(45.0, 1.5), Step(0.25)]),
        (
            ClickHouse18,
            Queries,
            &[
                Ramp(45.0, 1.0),
                Ramp(40.0, 1.5),
                Ramp(30.0, 1.0),
                Ramp(55.0, 1.0),
                Step(0.1),
                Step(0.2),
                Step(0.3),
            ],
        ),
        (
            ClickHouse18,
            Freeze,
            &[Ramp(45.0, 1.0), Ramp(40.0, 1.5), Ramp(30.0, 1.0), Spikes(0.3), Spikes(0.45)],
        ),
        (Redis7, None, &[Steady, Steady]),
        (ClickHouse18, None, &[Steady, Steady]),
        (Redis7, Killed, &[Steady, Steady]),
        (Redis7, Stopped, &[Steady]),
        (ClickHouse18, Killed, &[Steady]),
        (ClickHouse18, Stopped, &[Steady]),
        // Held out.
        (Valkey9, Disk, &[Ramp(45.0, 1.0), Ramp(40.0, 1.0), Ramp(50.0, 1.5), Wave(0.4), Wave(0.5)]),
        (
            Valkey9,
            Flood,
            &[Ramp(45.0, 1.0), Ramp(40.0, 1.5), Ramp(30.0, 1.0), Plateau(0.1), Plateau(0.2)],
        ),
        (
            Valkey9,
            Values,
            &[Ramp(45.0, 1.0), Ramp(55.0, 1.0), Ramp(40.0, 1.5), Diurnal(0.4), Diurnal(0.6)],
        ),
        (Valkey9, Replica, &[Ramp(45.0, 1.0), Ramp(40.0, 1.5), Wave(0.07)]),
        (
            ClickHouse26,
            Flood,
            &[Ramp(45.0, 1.0), Ramp(40.0, 1.5), Wave(0.15), Diurnal(0.1), Diurnal(0.2)],
        ),
        (ClickHouse26, Values, &[Ramp(45.0, 1.0), Ramp(55.0, 1.0), Plateau(0.2)]),
        (ClickHouse26, Parts, &[Ramp(30.0, 1.0), Ramp(40.0, 1.0), Ramp(50.0, 1.0)]),
        (Postgres15, Disk, &[Ramp(45.0, 1.0), Ramp(40.0, 1.0), Ramp(50.0, 1.5), Wave(0.4)]),
        (
            Postgres15,
            Locks,
            &[
                Ramp(45.0, 1.0),
                Ramp(40.0, 1.5),
                Ramp(30.0, 1.0),
                Ramp(50.0, 2.0),
                Plateau(0.05),
                Plateau(0.08),
                Wave(0.07),
            ],
        ),
        (Postgres15, Scan, &[Ramp(45.0, 1.0), Ramp(40.0, 1.0), Diurnal(0.2)]),
        (Postgres15, Flood, &[Ramp(45.0, 1.0), Ramp(40.0, 1.5), Diurnal(0.15), Plateau(0.1)]),
        (Valkey9, None, &[Diurnal(0.0)]),
        (ClickHouse26, None, &[Diurnal(0.0)]),
        (Postgres15, None, &[Diurnal(0.0)]),
        (Valkey9, Crashed, &[Steady]),
        (Valkey9, Hung, &[Steady]),
        (ClickHouse26, Crashed, &[Steady]),
        (Postgres15, Crashed, &[Steady]),
        (Postgres15, Hung, &[Steady]),
    ];
    let each = of.into_iter().flat_map(|(server, cause, shapes)| {
        shapes.iter().map(move |shape| (server, cause, *shape))
    });
    // In turns, so that no two heavy servers are recorded at once if that can be helped.
    let mut turns = std::collections::BTreeMap::new();
    let mut all: Vec<(u32, Scenario)> = each
        .zip(1..)
        .map(|((server, cause, shape), seed)| {
            let turn = turns.entry(server.name()).or_insert(0);
            *turn += 1;
            (*turn, Scenario { server, cause, shape, seed })
        })
        .collect();
    all.sort_by_key(|(turn, _)| *turn);
    all.into_iter().map(|(_, scenario)| scenario).collect()
}
