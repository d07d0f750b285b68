//! The process that is killed: it fills a store, and says what is durable.
//!
//! Lines on its standard output: `open LAST` once, with the highest number that the store has given out; `kept N` when
//! the call N is durable. Calls have ascending numbers, from `LAST + 1`.

use std::{
    io::{self, Write},
    path::Path,
    sync::{Arc, mpsc},
};

use bytes::Bytes;
use fusebox_state::{
    LaneId, Lanes, OpId, Target, UnixMillis,
    store::{
        CallHeader, CallStore, Faults, NewCall, Opened, Store, StoreSettings, TokenKind, Traits,
    },
};
use xxhash_rust::xxh3::xxh3_64;

/// Calls that are on their way at once.
const AT_ONCE: u64 = 16;

fn target() -> Target {
    Target::new("selftest", "here", "")
}

/// The store's settings.
pub(super) fn settings(dir: &Path) -> StoreSettings {
    StoreSettings {
        dir: dir.to_owned(),
        target: target(),
        disk_floor: 0,
        unix_now: Arc::new(|| UnixMillis::new(0)),
        on_event: Arc::new(|_| {}),
        packed: false,
        faults: Faults::default(),
    }
}

/// The body of the call of that number: of many lengths, and of no other call.
pub(super) fn body(seq: u64) -> Vec<u8> {
    let hash = xxh3_64(&seq.to_le_bytes());
    let length = usize::try_from(if seq.is_multiple_of(13) { hash % 30_000 } else { hash % 600 })
        .unwrap_or(0);
    hash.to_le_bytes().into_iter().cycle().take(8 + length).collect()
}

fn call(seq: u64) -> NewCall {
    let header = CallHeader {
        op_id: OpId::from_u128(u128::from(seq)),
        digest: seq,
        uid: 0,
        lanes: Lanes::One(LaneId(seq % 16)),
        token: TokenKind::Absolute,
        traits: Traits::default(),
        accepted_at: UnixMillis::new(0),
    };
    let (label, body) = ("SET selftest".into(), Bytes::from(body(seq)));
    NewCall { seq, header, target: target(), label, traceparent: None, note: None, body }
}

/// Fills the store in `dir` until it is killed.
///
/// # Errors
/// What the store, or the standard output, says.
pub(crate) fn run(dir: &Path) -> Result<(), String> {
    let Opened { store, last_seq, .. } =
        Store::open(settings(dir)).map_err(|error| error.to_string())?;
    let mut out = io::stdout().lock();
    let mut say = |line: String| {
        writeln!(out, "{line}").and_then(|()| out.flush()).map_err(|error| error.to_string())
    };
    say(format!("open {last_seq}"))?;
    let (tell, told) = mpsc::channel();
    let append = |seq: u64| {
        let tell = tell.clone();
        store.append(call(seq), Box::new(move |result| drop(tell.send((seq, result)))));
    };
    (1..=AT_ONCE).for_each(|more| append(last_seq + more));
    for (next, (seq, result)) in (last_seq + AT_ONCE + 1..).zip(told) {
        result.map_err(|error| format!("call {seq}: {error}"))?;
        say(format!("kept {seq}"))?;
        append(next);
    }
    Ok(())
}
