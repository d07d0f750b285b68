//! `fusebox simulate`: its output and its arguments. What it finds is tested with the actors.

use std::{io, process::Command};

use serde_json::Value;

use crate::support::daemon::FUSEBOX;

fn simulate(arguments: &[&str]) -> io::Result<(Option<i32>, String)> {
    let output = Command::new(FUSEBOX).arg("simulate").args(arguments).output()?;
    let said = [output.stdout, output.stderr].concat();
    Ok((output.status.code(), String::from_utf8_lossy(&said).into_owned()))
}

#[test]
fn a_simulated_hour_is_told_and_is_the_same_again() {
    let (code, said) = simulate(&["--seed", "7", "--hours", "1"]).unwrap();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.starts_with("seed 7: every invariant held for 1 simulated hour\n"), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    let (code, again) = simulate(&["--seed", "7", "--hours", "1", "--json"]).unwrap();
    assert_eq!(code, Some(0), "{again}");
    let summary: Value = serde_json::from_str(&again).unwrap();
    assert!(said.contains(summary["hash"].as_str().unwrap()), "{said}{again}");
    assert!(summary["restarts"].as_u64().unwrap() > 0, "{again}");
}

#[test]
fn what_cannot_be_simulated_is_told() {
    let (code, said) = simulate(&["--hours", "0"]).unwrap();
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("--hours"), "{said}");
}
