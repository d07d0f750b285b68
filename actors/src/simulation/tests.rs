//! Simulated hours. A seed that fails prints the command that repeats it.

use super::*;

/// Seeds that are run for every change: hours in all.
const SEEDS: u64 = 500;

fn seeds() -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let first = number("FUSEBOX_SIMULATE_FROM").unwrap_or(1);
    first..first + number("FUSEBOX_SIMULATE_SEEDS").unwrap_or(SEEDS)
}

#[test]
fn every_invariant_holds_in_every_hour() {
    let next = std::sync::Mutex::new(seeds());
    let broken = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let Some(seed) = next.lock().unwrap().next() else { return };
                    let began = std::time::Instant::now();
                    let it = run(Scenario { seed, hours: 1, tells: None });
                    eprintln!(
                        "{seed} {:?} {}",
                        began.elapsed(),
                        it.as_ref().map_or_else(|it| it.what.clone(), |it| format!("{it:?}"))
                    );
                    if let Err(it) = it {
                        broken.lock().unwrap().push(it);
                    }
                }
            });
        }
    });
    let broken = broken.into_inner().unwrap();
    let told: Vec<String> = broken.iter().take(3).map(ToString::to_string).collect();
    assert!(broken.is_empty(), "{} of {:?}:\n{}", broken.len(), seeds(), told.join("\n\n"));
}

/// Prints all that happens in one hour.
#[test]
#[ignore]
fn tell() {
    let seed = seeds().start;
    println!("{:?}", run(Scenario { seed, hours: 1, tells: Some(|line| println!("{line}")) }));
}

#[test]
fn a_seed_says_all_that_happens() {
    for seed in 1..=3 {
        let once =
            run(Scenario { seed, hours: 1, tells: None }).unwrap_or_else(|it| panic!("{it}"));
        let again =
            run(Scenario { seed, hours: 1, tells: None }).unwrap_or_else(|it| panic!("{it}"));
        assert_eq!(once, again);
    }
}
