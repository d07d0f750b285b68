//! What a durable call costs the disk, counted: bytes that are written, and syncs.

#[cfg(test)]
mod written {
    use std::{fs, path::Path, sync::Arc, sync::mpsc};

    use bytes::Bytes;
    use fusebox_state::{
        LaneId, Lanes, OpId, UnixMillis,
        store::{CallHeader, CallStore, Faults, NewCall, Store, StoreSettings, TokenKind, Traits},
    };

    const CALLERS: u64 = 64;
    const ROUNDS: u64 = 100;
    const BODY: usize = 256;
    const TARGET: &str = "redis://test:6379/0";

    fn open(dir: &Path, packed: bool) -> Store {
        let settings = StoreSettings {
            dir: dir.to_owned(),
            target: TARGET.into(),
            disk_floor: 0,
            unix_now: Arc::new(|| UnixMillis::new(1_790_000_000_000)),
            on_event: Arc::new(|_| ()),
            packed,
            faults: Faults::default(),
        };
        Store::open(settings).unwrap().store
    }

    fn call(seq: u64) -> NewCall {
        let key = format!("user:{seq}");
        let header = CallHeader {
            op_id: OpId::new(UnixMillis::new(1_790_000_000_000 + seq), u128::from(seq)),
            digest: seq,
            uid: 1_000,
            lanes: Lanes::One(LaneId::of(b"0", key.as_bytes())),
            token: TokenKind::Absolute,
            traits: Traits::of(true, false),
            accepted_at: UnixMillis::new(1_790_000_000_000 + seq),
        };
        let body = Bytes::from(vec![b'v'; BODY]);
        let label = format!("SET {key}").into();
        let target = TARGET.into();
        NewCall { seq, header, target, label, traceparent: None, note: None, body }
    }

    /// Bytes that this process has written by system calls.
    fn written() -> u64 {
        let text = fs::read_to_string("/proc/self/io").unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("wchar:")).unwrap();
        line.trim().parse().unwrap()
    }

    /// Bytes written for each byte of a body, and the median of the syncs of a round, of calls by [`CALLERS`] at once: a
    /// round in which another process takes the processor needs more. Then all are removed, a hundred at a time: bytes
    /// written for each byte of a body.
    #[expect(clippy::cast_precision_loss, reason = "a ratio")]
    fn cost(packed: bool) -> (f64, u64, f64) {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path(), packed);
        let bodies = CALLERS * ROUNDS * BODY as u64;
        let mut syncs = Vec::new();
        let before = written();
        for round in 0..ROUNDS {
            let commits = store.status().commits;
            let (sender, receiver) = mpsc::channel();
            for seq in round * CALLERS + 1..=(round + 1) * CALLERS {
                let sender = sender.clone();
                let done = move |result: Result<(), _>| {
                    result.unwrap();
                    sender.send(()).unwrap();
                };
                store.append(call(seq), Box::new(done));
            }
            drop(sender);
            assert_eq!(receiver.iter().count() as u64, CALLERS);
            syncs.push(store.status().commits - commits);
        }
        let added = written() - before;
        syncs.sort_unstable();
        let before = written();
        let all: Vec<u64> = (1..=CALLERS * ROUNDS).collect();
        for group in all.chunks(100) {
            let (sender, receiver) = mpsc::channel();
            store.remove(group.to_vec(), Box::new(move |result| sender.send(result).unwrap()));
            receiver.recv().unwrap().unwrap();
        }
        let removed = written() - before;
        let a_byte = |bytes: u64| bytes as f64 / bodies as f64;
        (a_byte(added), syncs[syncs.len() / 2], a_byte(removed))
    }

    /// Both in one test: what the process has written is counted.
    #[test]
    fn calls_that_share_values_write_less_than_three_bytes_for_each_and_two_syncs_a_round() {
        let (alone, syncs, removed) = cost(false);
        println!("alone: {alone:.2} bytes, {syncs} syncs, removed {removed:.2}");
        assert!(alone <= 8.0 && syncs <= 2 && removed <= 2.0, "{alone} {syncs} {removed}");
        let (packed, syncs, removed) = cost(true);
        println!("packed: {packed:.2} bytes, {syncs} syncs, removed {removed:.2}");
        assert!(packed <= 3.0 && syncs <= 2 && removed <= 3.0, "{packed} {syncs} {removed}");
    }
}
