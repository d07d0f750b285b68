//! Recordings of calls to real servers, and what they are labelled as. `benches/recorder.rs` makes them.

use std::fs;

mod score;

use crate::support::recording::{Call, Ended, folder, labels, packed, read};

/// All recordings together may take so much.
const BYTES_MAX: u64 = 3 << 19;

#[test]
fn a_recording_is_read_as_it_was_written() {
    let tenths = |tenths: u64| std::time::Duration::from_micros(tenths * 100);
    let calls = [
        Call { ended: tenths(0), took: tenths(0), how: Ended::Answered },
        Call { ended: tenths(127), took: tenths(32), how: Ended::Failed },
        Call { ended: tenths(127), took: tenths(2_000), how: Ended::TimedOut },
        Call { ended: tenths(750_000), took: tenths(1), how: Ended::Answered },
    ];
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), packed(&calls)).unwrap();
    assert_eq!(read(file.path()), calls);
}

/// A failure is what the product's own breaker takes for one.
#[test]
fn each_recording_bears_the_label_that_the_breaker_gives_it() {
    let (labels, lines) = labels(&folder());
    let shipped = fs::read_to_string(folder().join("labels.tsv")).unwrap();
    assert_eq!(lines, shipped, "cargo bench --bench recorder -- label tests/recordings");
    let count = |tuning: bool, sudden: bool, opens: bool| {
        let is = |one: &&crate::support::recording::Label| {
            (one.tuning, one.sudden, one.opens.is_some()) == (tuning, sudden, opens)
        };
        labels.iter().filter(is).count()
    };
    let both = |sudden, opens| (count(true, sudden, opens), count(false, sudden, opens));
    println!(
        "gradual {:?}, without {:?}, sudden {:?}",
        both(false, true),
        both(false, false),
        both(true, true)
    );
    for (sudden, opens, least) in [(false, true, 30), (false, false, 30), (true, true, 6)] {
        let (tuning, held_out) = both(sudden, opens);
        assert!(tuning + held_out >= least, "{tuning} and {held_out}, of {least}");
        assert!(tuning >= least / 3 && held_out >= least / 3, "{tuning} and {held_out}");
    }
}

#[test]
fn the_recordings_are_small() {
    let files = fs::read_dir(folder()).unwrap();
    let bytes: u64 = files.map(|file| file.unwrap().metadata().unwrap().len()).sum();
    assert!(bytes <= BYTES_MAX, "{bytes}");
}
