//! A lane with 45,000 calls: what is done of each costs the same however many there are.

use std::time::{Duration, Instant};

use super::*;

const LENGTH: u64 = 45_000;

#[expect(clippy::disallowed_methods, reason = "it measures")]
fn now() -> Instant {
    Instant::now()
}

/// Admits as many calls as a queue takes by default into one lane and replays them.
fn replay(absolute: bool, whole: bool) -> Duration {
    let limits = QueueLimits { items: 50_000, bytes: 1 << 40, dead_items: 10, dead_bytes: 1 << 40 };
    let mut index = QueueIndex::new(limits, 0);
    let began = now();
    for op in 1..=LENGTH {
        let traits = Traits::of(whole, false);
        let entry = entry_with((op, 1, absolute), |it| it.traits = traits);
        let seq = index.admit(entry, false, None).unwrap();
        index.committed(seq);
        index.is_stuck(&Lanes::One(LaneId(1)), false);
    }
    let mut sent = 0;
    while let Some(seq) = index.take(at(0)) {
        let turn = index.turn(seq, 1, 0);
        sent += 1;
        let gone: Vec<u64> = turn.overtaken.into_iter().chain(turn.seqs).collect();
        for seq in &gone {
            index.applied(*seq);
        }
        for seq in gone {
            index.removed(seq);
        }
    }
    assert!(index.is_empty() && (whole || sent == LENGTH), "{sent} were sent");
    began.elapsed()
}

#[test]
fn a_long_lane_is_replayed_in_a_time_that_goes_with_its_length() {
    for (absolute, whole) in [(false, false), (true, false), (true, true)] {
        let took = replay(absolute, whole);
        println!("absolute {absolute}, whole {whole}: {took:?}");
        assert!(took < Duration::from_secs(20), "absolute {absolute}, whole {whole}: {took:?}");
    }
}

#[test]
fn a_place_in_a_long_lane_is_claimed_and_given_up_at_once() {
    let mut index = QueueIndex::new(
        QueueLimits { items: 50_000, bytes: 1 << 40, dead_items: 10, dead_bytes: 1 << 40 },
        0,
    );
    for op in 1..=LENGTH {
        push(&mut index, op, 1, true);
    }
    let began = now();
    for _ in 0..LENGTH {
        let (seq, behind) = index.claim(&Lanes::One(LaneId(1)));
        assert!(behind);
        index.unclaim(seq);
    }
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}
