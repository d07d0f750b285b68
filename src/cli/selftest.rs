//! `fusebox selftest`.

use std::{fmt::Write as _, path::Path, process::ExitCode, time::Duration};

use crate::{
    selftest::{self, Verdict, writer},
    terminal::{
        failure::{Done, Failure},
        print::{say, say_json},
    },
};

/// The shortest test, and the longest.
const TIMES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(86_400)];

/// Tests the disk of `state_dir`, which is made if it is missing.
pub(super) fn run(state_dir: &Path, time: Duration, json: bool) -> Done {
    if !(TIMES[0]..=TIMES[1]).contains(&time) {
        let [least, most, given] = [TIMES[0], TIMES[1], time].map(humantime::format_duration);
        return Err(Failure::usage(format!("--time must be from {least} to {most}, got {given}")));
    }
    crate::keep_private();
    std::fs::create_dir_all(state_dir).map_err(|error| {
        Failure::failed(format!("cannot make {}: {error}", state_dir.display()))
    })?;
    let verdict =
        selftest::run(state_dir, time).map_err(|error| Failure::failed(error.to_string()))?;
    if json {
        let shown = serde_json::to_value(&verdict).map_err(anyhow::Error::from)?;
        say_json(&shown)?;
    } else {
        say(&told(&verdict, state_dir))?;
    }
    Ok(if verdict.passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn told(verdict: &Verdict, state_dir: &Path) -> String {
    let Verdict { sentence, disk, kills, notes, .. } = verdict;
    let mut text = format!("{sentence}\n\n");
    writeln!(text, "state directory   {}", state_dir.display()).ok();
    writeln!(text, "syncs measured    {}", disk.count).ok();
    writeln!(
        text,
        "commits           {} for {} calls, each synced",
        kills.commits, kills.acknowledged
    )
    .ok();
    for note in notes {
        writeln!(text, "note              {note}").ok();
    }
    text.push_str(
        "A kill does not affect the operating system's cache: this test does not show whether the disk keeps \
         acknowledged data in a power failure.\n",
    );
    text
}

/// The process that is killed.
pub(super) fn write(dir: &Path) -> Done {
    writer::run(dir).map_err(Failure::failed)?;
    Ok(ExitCode::SUCCESS)
}
