//! What a key holds once the queued writes have been replayed, where they settle it.
//!
//! Written for GET and EXISTS after the SET family, DEL and the EXPIRE family. Time is judged as replay
//! would judge it *now* (see [`super::replay`]): a value whose time has run out is gone. Whatever else
//! touches the key leaves it undetermined until a later write settles it again. Lanes are hashes, so
//! every write's own keys are looked at.

use bytes::{Bytes, BytesMut};
use fusebox_actors::connector::{QueuedWrite, Slot};
use fusebox_state::UnixMillis;

use super::{
    cache,
    commands::Commands,
    effect::{self, Expiry, SetOptions},
    resp,
};

/// What is known of the key.
#[derive(Debug, PartialEq)]
enum Held<'a> {
    Undetermined,
    Nothing,
    Value(&'a [u8]),
}

/// The reply to `slot`'s read after `writes`, or `None` where they do not determine it.
pub(super) fn overlay(
    commands: &Commands,
    slot: &Slot,
    writes: &[QueuedWrite],
    now: UnixMillis,
    resp3: bool,
) -> Option<Bytes> {
    let read = resp::arguments(&slot.key).ok()?;
    let &[name, key] = read.as_slice() else { return None };
    let mut held = Held::Undetermined;
    for write in writes {
        let args = resp::arguments(&write.body).ok()?;
        let spec = commands.find(&args);
        held = match spec.as_ref().and_then(|spec| Some((spec, spec.keys(&args)?))) {
            Some((_, keys)) if !keys.iter().any(|at| args.get(*at) == Some(&key)) => continue,
            Some((spec, _)) => {
                let accepted = write.accepted_at.get();
                apply(held, &spec.name, &args, key, accepted, now.get())
            }
            None => Held::Undetermined,
        };
    }
    match (name, held) {
        (b"GET", Held::Nothing) => Some(cache::nil(resp3)),
        (b"GET", Held::Value(value)) => {
            let mut out = BytesMut::with_capacity(value.len() + 16);
            resp::write_bulk(&mut out, value);
            Some(out.freeze())
        }
        (b"EXISTS", Held::Nothing) => Some(Bytes::from_static(b":0\r\n")),
        (b"EXISTS", Held::Value(_)) => Some(Bytes::from_static(b":1\r\n")),
        _ => None,
    }
}

/// What `held` becomes by one write to the key.
fn apply<'a>(
    held: Held<'a>,
    name: &str,
    args: &[&'a [u8]],
    key: &[u8],
    accepted: u64,
    now: u64,
) -> Held<'a> {
    let until = |expires: Option<u64>, value: Option<&'a [u8]>| match (expires, value) {
        (Some(expires), Some(value)) if expires > now => Held::Value(value),
        (Some(_), Some(_)) => Held::Nothing,
        _ => Held::Undetermined,
    };
    let arg = |index: usize| args.get(index).copied();
    let after = |ttl: Option<u64>| ttl.map(|ttl| accepted.saturating_add(ttl));
    match name {
        "set" => {
            let options = SetOptions::parse(args.get(3..).unwrap_or_default());
            let Some(SetOptions { conditional: false, expiry, .. }) = options else {
                return Held::Undetermined;
            };
            match expiry {
                // The time to live that it keeps is known only where what it keeps it of is.
                Expiry::Keep if held == Held::Undetermined => Held::Undetermined,
                Expiry::Keep | Expiry::Never => until(Some(u64::MAX), arg(2)),
                Expiry::After(ttl) => until(after(Some(ttl)), arg(2)),
                Expiry::At(time) => until(Some(time), arg(2)),
            }
        }
        "setex" => until(after(arg(2).and_then(effect::seconds)), arg(3)),
        "psetex" => until(after(arg(2).and_then(effect::positive)), arg(3)),
        "mset" => {
            let mut pairs = args.get(1..).unwrap_or_default().chunks_exact(2).rev();
            let value = pairs.find_map(|pair| match pair {
                [name, value] if *name == key => Some(*value),
                _ => None,
            });
            until(Some(u64::MAX), value)
        }
        "del" | "unlink" => Held::Nothing,
        "expire" | "pexpire" | "expireat" | "pexpireat" if args.len() == 3 => {
            let Some(time) = arg(2).and_then(effect::integer) else { return Held::Undetermined };
            let millis = if name.starts_with('p') { Some(time) } else { time.checked_mul(1000) };
            let Some(millis) = millis else { return Held::Undetermined };
            let from = if name.ends_with("at") { 0 } else { accepted };
            if from.saturating_add_signed(millis) <= now { Held::Nothing } else { held }
        }
        "persist" => held,
        _ => Held::Undetermined,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fusebox_state::LaneId;

    /// The reply to `read` at `now`, after writes given as `accepted: command`.
    #[track_caller]
    fn after(read: &str, writes: &[(u64, &str)], now: u64) -> Option<String> {
        let words = |text: &str| resp::command(&text.split(' ').collect::<Vec<_>>());
        let slot = Slot { lane: LaneId::of(b"0", b"k"), key: words(read) };
        let writes: Vec<QueuedWrite> = writes
            .iter()
            .map(|(at, text)| QueuedWrite {
                body: words(text),
                accepted_at: UnixMillis::new(*at),
                due: None,
            })
            .collect();
        overlay(&Commands::default(), &slot, &writes, UnixMillis::new(now), true)
            .map(|reply| String::from_utf8(reply.to_vec()).unwrap())
    }

    fn get(writes: &[(u64, &str)], now: u64) -> Option<String> {
        after("GET k", writes, now)
    }

    const NIL: Option<&str> = Some("_\r\n");
    const V: Option<&str> = Some("$1\r\nv\r\n");

    #[test]
    fn the_last_write_that_settles_it_counts() {
        assert_eq!(get(&[(0, "SET k v")], 9).as_deref(), V);
        assert_eq!(get(&[(0, "SET k x"), (1, "set k v")], 9).as_deref(), V);
        assert_eq!(get(&[(0, "SET k x"), (1, "DEL k")], 9).as_deref(), NIL);
        assert_eq!(get(&[(0, "INCR k"), (1, "SET k v")], 9).as_deref(), V);
        assert_eq!(get(&[(0, "MSET k x j y k v")], 9).as_deref(), V);
        assert_eq!(get(&[(0, "DEL j k"), (1, "PERSIST k")], 9).as_deref(), NIL);
    }

    #[test]
    fn another_key_of_the_lane_says_nothing() {
        assert_eq!(get(&[(0, "SET k v"), (1, "SET j x"), (2, "INCR j")], 9).as_deref(), V);
        assert_eq!(get(&[(0, "SET j v")], 9), None);
    }

    #[test]
    fn what_cannot_be_told_is_undetermined() {
        for write in [
            "INCR k",
            "APPEND k x",
            "SET k x NX",
            "SET k x XX",
            "GETEX k",
            "HSET k f v",
            "RENAME k j",
        ] {
            assert_eq!(get(&[(0, "SET k v"), (1, write)], 9), None, "{write}");
        }
        assert_eq!(get(&[], 9), None);
        assert_eq!(get(&[(0, "EXPIRE k 100")], 9), None);
        assert_eq!(get(&[(0, "SET k v KEEPTTL")], 9), None);
        assert_eq!(after("HGET k f", &[(0, "SET k v")], 9), None);
    }

    #[test]
    fn time_runs_from_acceptance() {
        assert_eq!(get(&[(1000, "SET k v EX 2")], 2999).as_deref(), V);
        assert_eq!(get(&[(1000, "SET k v EX 2")], 3000).as_deref(), NIL);
        assert_eq!(get(&[(1000, "SETEX k 2 v")], 3000).as_deref(), NIL);
        assert_eq!(get(&[(1000, "PSETEX k 2 v")], 1001).as_deref(), V);
        assert_eq!(get(&[(1000, "SET k v PXAT 5000")], 4999).as_deref(), V);
        assert_eq!(get(&[(1000, "SET k v EXAT 5")], 5000).as_deref(), NIL);
        assert_eq!(get(&[(0, "SET k v"), (1000, "PEXPIRE k 50")], 1049).as_deref(), V);
        assert_eq!(get(&[(0, "SET k v"), (1000, "PEXPIRE k 50")], 1050).as_deref(), NIL);
        assert_eq!(
            get(&[(0, "EXPIRE k -1")], 9).as_deref(),
            NIL,
            "the past removes whatever was there"
        );
        assert_eq!(get(&[(0, "INCR k"), (0, "EXPIREAT k 1")], 1000).as_deref(), NIL);
        assert_eq!(get(&[(0, "SET k x"), (0, "SET k v KEEPTTL")], 9).as_deref(), V);
        assert_eq!(get(&[(0, "SET k v"), (0, "EXPIRE k 1 NX")], 9), None);
    }

    #[test]
    fn exists_follows_the_value() {
        assert_eq!(after("EXISTS k", &[(0, "SET k v")], 9).as_deref(), Some(":1\r\n"));
        assert_eq!(after("EXISTS k", &[(0, "UNLINK k")], 9).as_deref(), Some(":0\r\n"));
    }
}
