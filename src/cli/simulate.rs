//! `fusebox simulate`.

use std::{fmt::Write as _, process::ExitCode};

use fusebox_actors::simulation::{self, Scenario, Summary};

use super::args::Simulated;
use crate::terminal::{
    failure::{Done, Failure},
    print::{say, say_json},
};

/// Simulates hours of faults, a seed after the other, and tells the first invariant that does not hold.
pub(super) fn run(wanted: Simulated) -> Done {
    let Simulated { seed, hours, runs, events, output } = wanted;
    simulation::silence_wanted_panics();
    let seed = seed.unwrap_or_else(|| fastrand::u32(..).into());
    let tells: Option<fn(&str)> = events.then_some(tell);
    for seed in seed..seed.saturating_add(runs.into()) {
        let ended = simulation::run(Scenario { seed, hours, tells });
        match ended {
            Ok(summary) if output.json => {
                say_json(&serde_json::to_value(&summary).map_err(anyhow::Error::from)?)?;
            }
            Ok(summary) => say(&told(&summary))?,
            Err(broken) if output.json => {
                say_json(&serde_json::to_value(&broken).map_err(anyhow::Error::from)?)?;
                return Ok(ExitCode::FAILURE);
            }
            Err(broken) => return Err(Failure::failed(broken.to_string())),
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// If nobody reads any further, there is no need to print.
fn tell(line: &str) {
    say(&format!("{line}\n")).ok();
}

fn told(summary: &Summary) -> String {
    let Summary { seed, hours, hash, events, calls, acknowledged, applied, .. } = summary;
    let Summary { faults, restarts, transitions, states, dead_letters, .. } = summary;
    let of = if *hours == 1 { "hour" } else { "hours" };
    let mut text = format!("seed {seed}: every invariant held for {hours} simulated {of}\n");
    writeln!(text, "  hash          {hash} of {events} events").ok();
    writeln!(
        text,
        "  calls         {calls}, {acknowledged} writes acknowledged, {applied} applied"
    )
    .ok();
    writeln!(text, "  faults        {faults}, {restarts} restarts of the daemon").ok();
    writeln!(text, "  transitions   {transitions}, {states} of the system's state").ok();
    writeln!(text, "  dead letters  {dead_letters}").ok();
    text
}
