//! What a write does to the times to live of its keys.
//!
//! One table, read by everything that follows a deadline along a lane: what is sent at replay
//! ([`super::replay`]), what is stored with a queued call ([`super::deadlines`]), what becomes of a residue
//! ([`super::residue`]) and what a queued read answers ([`super::overlay`]).
//!
//! A command that is not in the table is [`Fate::Unknown`]: no deadline is followed past it.

use super::effect::{self, Expiry, SetOptions};

/// What becomes of one key's time to live if the write does its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// The key is only read.
    Keeps,
    /// The key keeps it if it is there. The write may make the key, which has none then. It never removes it.
    Inherits,
    /// The key keeps it as long as it is there. The write may remove the key and never makes it.
    Shrinks,
    /// The key has this one.
    Sets(Expiry),
    /// The key has none, or is gone.
    Clears,
    /// The key has the one of the key at this place.
    Takes(usize),
    /// The key has moved to the place given, with its time to live.
    Leaves(usize),
    /// It is not known.
    Unknown,
}

/// What a write does to one of its keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Touch {
    pub(crate) fate: Fate,
    /// Whether a write that did not fail has done its work: it has no condition.
    pub(crate) sure: bool,
}

impl Touch {
    const UNKNOWN: Self = Self { fate: Fate::Unknown, sure: false };

    fn sure(fate: Fate) -> Self {
        Self { fate, sure: true }
    }
}

/// What the write `name` with `args`, its name included, does to the key at `place`.
pub(crate) fn touch(name: &str, args: &[&[u8]], place: usize) -> Touch {
    let arg = |index: usize| args.get(index).copied().unwrap_or_default();
    let first = place == 1;
    match name {
        "set" => set(args),
        "setex" => sets(effect::seconds(arg(2)).map(Expiry::After), true),
        "psetex" => sets(effect::positive(arg(2)).map(Expiry::After), true),
        "setnx" | "msetnx" => Touch { fate: Fate::Clears, sure: false },
        "mset" | "getset" | "getdel" | "del" | "unlink" | "persist" => Touch::sure(Fate::Clears),
        "getex" => getex(args),
        "expire" | "pexpire" | "expireat" | "pexpireat" => {
            sets(lifetime(name, arg(2)), args.len() == 3)
        }
        "rename" | "renamenx" if arg(1) == arg(2) => Touch::sure(Fate::Keeps),
        "rename" | "renamenx" => {
            let fate = if first { Fate::Leaves(2) } else { Fate::Takes(1) };
            Touch { fate, sure: name == "rename" }
        }
        "copy" if args.iter().skip(3).any(|arg| arg.eq_ignore_ascii_case(b"DB")) => Touch::UNKNOWN,
        "copy" if first => Touch::sure(Fate::Keeps),
        // Without a source it answers 0.
        "copy" => Touch { fate: Fate::Takes(1), sure: false },
        "sdiffstore" | "sinterstore" | "sunionstore" | "zdiffstore" | "zinterstore"
        | "zunionstore" | "zrangestore" | "geosearchstore" => {
            Touch::sure(if first { Fate::Clears } else { Fate::Keeps })
        }
        "bitop" => Touch::sure(if place == 2 { Fate::Clears } else { Fate::Keeps }),
        "pfmerge" => Touch::sure(if first { Fate::Inherits } else { Fate::Keeps }),
        "lmove" | "rpoplpush" | "smove" => {
            Touch::sure(if first { Fate::Shrinks } else { Fate::Inherits })
        }
        "append" | "bitfield" | "decr" | "decrby" | "geoadd" | "hincrby" | "hincrbyfloat"
        | "hmset" | "hset" | "hsetnx" | "incr" | "incrby" | "incrbyfloat" | "linsert" | "lpush"
        | "lpushx" | "lset" | "pfadd" | "rpush" | "rpushx" | "sadd" | "setbit" | "setrange"
        | "xadd" | "zadd" | "zincrby" => Touch::sure(Fate::Inherits),
        "hdel" | "lpop" | "lrem" | "ltrim" | "rpop" | "spop" | "srem" | "xdel" | "xtrim"
        | "zpopmax" | "zpopmin" | "zrem" | "zremrangebylex" | "zremrangebyrank"
        | "zremrangebyscore" => Touch::sure(Fate::Shrinks),
        _ => Touch::UNKNOWN,
    }
}

/// Whether a COPY overwrites what is there.
pub(crate) fn replaces(args: &[&[u8]]) -> bool {
    args.iter().skip(3).any(|arg| arg.eq_ignore_ascii_case(b"REPLACE"))
}

/// The deadline of what was accepted at `accepted` with `expiry`, in milliseconds since the epoch.
pub(crate) fn deadline(expiry: Expiry, accepted: u64) -> Option<u64> {
    match expiry {
        Expiry::After(time) => Some(accepted.saturating_add(time)),
        Expiry::At(time) => Some(time),
        Expiry::Never | Expiry::Keep => None,
    }
}

/// The deadline that the write sets for its only key, if it sets one.
pub(crate) fn carried(name: &str, args: &[&[u8]], accepted: u64) -> Option<u64> {
    match touch(name, args, 1).fate {
        Fate::Sets(expiry) => deadline(expiry, accepted),
        _ => None,
    }
}

/// The time to live that an EXPIRE and its like set. One that has passed already is a deadline in the past.
fn lifetime(name: &str, time: &[u8]) -> Option<Expiry> {
    let time = effect::integer(time)?;
    let millis = if name.starts_with('p') { Some(time) } else { time.checked_mul(1000) }?;
    let millis = u64::try_from(millis).unwrap_or(0);
    Some(if name.ends_with("at") { Expiry::At(millis) } else { Expiry::After(millis) })
}

fn set(args: &[&[u8]]) -> Touch {
    let Some(options) = args.get(3..).and_then(SetOptions::parse) else { return Touch::UNKNOWN };
    let fate = match options.expiry {
        Expiry::Never => Fate::Clears,
        Expiry::Keep => Fate::Inherits,
        expiry => Fate::Sets(expiry),
    };
    Touch { fate, sure: !options.conditional }
}

fn getex(args: &[&[u8]]) -> Touch {
    match args.get(2..) {
        Some([]) => Touch::sure(Fate::Keeps),
        Some([word]) if word.eq_ignore_ascii_case(b"PERSIST") => Touch::sure(Fate::Clears),
        Some([word, time]) => sets(effect::expiry(word, time), true),
        _ => Touch::UNKNOWN,
    }
}

fn sets(expiry: Option<Expiry>, sure: bool) -> Touch {
    expiry.map_or(Touch::UNKNOWN, |expiry| Touch { fate: Fate::Sets(expiry), sure })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn reads(command: &str, place: usize, fate: Fate, sure: bool) {
        let args: Vec<&[u8]> = command.split(' ').map(str::as_bytes).collect();
        let name = command.split(' ').next().unwrap().to_ascii_lowercase();
        assert_eq!(touch(&name, &args, place), Touch { fate, sure }, "{command}");
    }

    #[test]
    fn the_table_is_read_as_it_is_meant() {
        use Fate::{Clears, Inherits, Keeps, Leaves, Sets, Shrinks, Takes, Unknown};
        reads("SET k v", 1, Clears, true);
        reads("SET k v NX", 1, Clears, false);
        reads("SET k v KEEPTTL", 1, Inherits, true);
        reads("SET k v PX 5 GET", 1, Sets(Expiry::After(5)), true);
        reads("SET k v XX EXAT 5", 1, Sets(Expiry::At(5000)), false);
        reads("SET k v EX x", 1, Unknown, false);
        reads("PSETEX k 5 v", 1, Sets(Expiry::After(5)), true);
        reads("EXPIRE k 5", 1, Sets(Expiry::After(5000)), true);
        reads("EXPIRE k 5 NX", 1, Sets(Expiry::After(5000)), false);
        reads("PEXPIRE k -5", 1, Sets(Expiry::After(0)), true);
        reads("PEXPIREAT k 5", 1, Sets(Expiry::At(5)), true);
        reads("EXPIREAT k -5", 1, Sets(Expiry::At(0)), true);
        reads("GETEX k", 1, Keeps, true);
        reads("GETEX k persist", 1, Clears, true);
        reads("GETEX k EX 5", 1, Sets(Expiry::After(5000)), true);
        reads("RENAME a b", 1, Leaves(2), true);
        reads("RENAME a b", 2, Takes(1), true);
        reads("RENAMENX a b", 2, Takes(1), false);
        reads("RENAME a a", 2, Keeps, true);
        reads("COPY a b", 1, Keeps, true);
        reads("COPY a b", 2, Takes(1), false);
        reads("COPY a b REPLACE", 2, Takes(1), false);
        reads("COPY a b DB 1", 2, Unknown, false);
        reads("SUNIONSTORE d a", 1, Clears, true);
        reads("SUNIONSTORE d a", 2, Keeps, true);
        reads("BITOP AND d a", 2, Clears, true);
        reads("HSET h f v", 1, Inherits, true);
        reads("LPOP l", 1, Shrinks, true);
        reads("LMOVE a b LEFT LEFT", 1, Shrinks, true);
        reads("LMOVE a b LEFT LEFT", 2, Inherits, true);
        reads("RESTORE k 0 x", 1, Unknown, false);
    }
}
