//! What a queued call takes in memory: the index alone, as the bodies are in the store.

use std::alloc::System;

use fusebox_state::{
    LaneId, Lanes, OpId, UnixMillis, digest, object_of,
    queue::{Entry, QueueIndex, QueueLimits},
    store::{CallHeader, TokenKind, Traits},
    write::WriteState,
};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static GLOBAL: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const CALLS: u64 = 100_000;
/// Bytes a call. With all that a call may have in each, it was 347; in plain `BTreeMap`s 771.
const BOUND: u64 = 160;

fn set(seq: u64, lane: u64) -> Entry {
    let key = format!("user:{lane}");
    let token = TokenKind::Absolute;
    let header = CallHeader {
        op_id: OpId::new(
            UnixMillis::new(1_790_000_000_000 + seq),
            u128::from(digest(key.as_bytes())),
        ),
        digest: seq,
        uid: 1_000,
        lanes: Lanes::One(LaneId::of(b"0", key.as_bytes())),
        token,
        traits: Traits::of(true, false),
        accepted_at: UnixMillis::new(1_790_000_000_000 + seq),
    };
    Entry::new(
        header,
        object_of(&format!("SET {key}")),
        WriteState::fresh(token.repeat()),
        false,
        400,
    )
}

/// Bytes a call in an index of [`CALLS`], each lane having as many calls.
fn bytes_a_call(of_lane: u64) -> u64 {
    let limits =
        QueueLimits { items: u32::MAX, bytes: u64::MAX, dead_items: 1, dead_bytes: u64::MAX };
    let region = Region::new(GLOBAL);
    let mut index = QueueIndex::new(limits, 0);
    for seq in 1..=CALLS {
        index.restore(seq, set(seq, seq / of_lane), false, false);
    }
    let held = region.change();
    let bytes = held.bytes_allocated - held.bytes_deallocated;
    assert_eq!(index.len() as u64, CALLS);
    u64::try_from(bytes).unwrap_or(u64::MAX) / CALLS
}

#[test]
fn a_queued_call_takes_a_few_hundred_bytes() {
    let (alone, together) = (bytes_a_call(1), bytes_a_call(10));
    println!("{alone} bytes each in a lane of its own, {together} with ten in a lane");
    assert!(alone <= BOUND && together <= BOUND, "{alone} and {together} bytes a call");
}
