//! What a write does, as far as that can be known without the server.
//!
//! *Absolute*: applied twice it leaves what it leaves applied once, and it does so without a condition
//! on what was there. *Reply known*: the server can only answer so. *Effect known*: what it does to the
//! key is settled by its own words, though not the reply (a count, say). When in doubt: neither.
//!
//! | commands | absolute | outage |
//! | --- | --- | --- |
//! | SET without NX, XX, GET (KEEPTTL: not absolute), SETEX, PSETEX, MSET, HMSET | yes | reply known |
//! | DEL, UNLINK, EXPIRE family without conditions, PERSIST, HSET, HDEL, SADD, SREM, ZADD without options but CH, ZREM, GEOADD likewise, SETRANGE, SETBIT, PFADD, XDEL | yes | effect known |
//! | everything else that writes | no | effect unknown |
//!
//! A write that is not absolute is applied once by a script that carries it. One that no script can carry (it
//! has more words than a script can pass on, or the server lets no script call it) is never queued: it
//! goes live only, without a token.
//!
//! HMSET may still meet a key of another type: then its queued call becomes a dead letter, as one of an
//! effect that is known would.
//!
//! Turned down on purpose: SETNX, HSETNX, GETSET, GETDEL, GETEX (their reply is their point, and a
//! second try gives another one), LSET, LTRIM, LREM (they count from ends that others move), ZADD GT and
//! LT, the `…STORE` family (they depend on other keys), SET KEEPTTL as absolute (between two tries the
//! time to live that it keeps may run out).

use bytes::Bytes;
use fusebox_actors::connector::{Outage, Write};

use super::{
    commands::{Flags, Spec},
    token,
};

/// The longest time to live that is taken for one, in milliseconds: about 30,000 years.
const TTL_MAX: u64 = 1_000_000_000_000_000;

/// What `spec`'s write with `args` allows.
pub(crate) fn write(spec: &Spec, args: &[&[u8]]) -> Write {
    let write = of(&spec.name, args);
    if write.absolute {
        return write;
    }
    if spec.flags.has(Flags::NO_SCRIPT) {
        return Write::new(Outage::Never(
            "no script may call it, so it cannot be applied just once",
        ));
    }
    if args.len() > token::WORDS_MAX {
        return Write::new(Outage::Never(
            "it has more than 7,000 words, too many for the script that would apply it just once",
        ));
    }
    write
}

/// Whether the write `name`, in whichever case, leaves the same state however often it is applied.
pub(crate) fn is_absolute(name: &str, args: &[&[u8]]) -> bool {
    args.len() == 3 && name == "SET" || of(&name.to_ascii_lowercase(), args).absolute
}

/// The only reply that the write `args` can have.
pub(crate) fn known_reply(args: &[&[u8]]) -> Option<Bytes> {
    let name = std::str::from_utf8(args.first()?).ok()?.to_ascii_lowercase();
    match of(&name, args).outage {
        Outage::ReplyKnown(reply) => Some(reply),
        _ => None,
    }
}

/// The effect of the write `name` with `args`, its name included.
fn of(name: &str, args: &[&[u8]]) -> Write {
    let ok = || Outage::ReplyKnown(Bytes::from_static(b"+OK\r\n"));
    let (absolute, outage) = match name {
        "set" => match SetOptions::parse(args.get(3..).unwrap_or_default()) {
            Some(SetOptions { conditional: false, get: false, expiry, .. }) => {
                (expiry != Expiry::Keep, ok())
            }
            _ => (false, Outage::EffectUnknown),
        },
        "setex" if args.get(2).and_then(|ttl| seconds(ttl)).is_some() => (true, ok()),
        "psetex" if args.get(2).and_then(|ttl| positive(ttl)).is_some() => (true, ok()),
        "mset" if args.len() % 2 == 1 => (true, ok()),
        "hmset" if args.len().is_multiple_of(2) => (true, ok()),
        _ if effect_known(name, args) => (true, Outage::EffectKnown),
        _ => (false, Outage::EffectUnknown),
    };
    let settled_reply = matches!(outage, Outage::ReplyKnown(_));
    Write { absolute, whole: absolute && whole(name, args), settled_reply, ..Write::new(outage) }
}

/// Whether an absolute write sets the whole value of its only key and how long that lives.
fn whole(name: &str, args: &[&[u8]]) -> bool {
    match name {
        "set" | "setex" | "psetex" => true,
        "del" | "unlink" => args.len() == 2,
        _ => false,
    }
}

fn effect_known(name: &str, args: &[&[u8]]) -> bool {
    let number = |index: usize| args.get(index).and_then(|arg| integer(arg));
    match name {
        "del" | "unlink" | "persist" | "hdel" | "sadd" | "srem" | "zrem" | "pfadd" | "xdel" => true,
        "expire" | "expireat" => {
            args.len() == 3 && number(2).is_some_and(|time| time.unsigned_abs() < TTL_MAX / 1000)
        }
        "pexpire" | "pexpireat" => {
            args.len() == 3 && number(2).is_some_and(|time| time.unsigned_abs() < TTL_MAX)
        }
        "hset" => args.len().is_multiple_of(2),
        "zadd" => pairs(args, 2, score),
        "geoadd" => {
            let from = after_change(args);
            let places = args.get(from..).unwrap_or_default();
            places.len().is_multiple_of(3)
                && places.chunks(3).all(|place| place.iter().take(2).all(|x| score(x)))
        }
        "setrange" => number(2).is_some_and(|offset| offset >= 0),
        "setbit" => number(2).is_some_and(|offset| offset >= 0) && matches!(number(3), Some(0 | 1)),
        _ => false,
    }
}

/// Whether `args` from `size` on (after the key and an optional `CH`) go by twos and begin well.
fn pairs(args: &[&[u8]], size: usize, begins: fn(&[u8]) -> bool) -> bool {
    let rest = args.get(after_change(args)..).unwrap_or_default();
    !rest.is_empty()
        && rest.len().is_multiple_of(size)
        && rest.chunks(size).all(|pair| pair.first().is_some_and(|first| begins(first)))
}

/// The place after `NAME key [CH]`.
fn after_change(args: &[&[u8]]) -> usize {
    if args.get(2).is_some_and(|word| word.eq_ignore_ascii_case(b"CH")) { 3 } else { 2 }
}

fn score(word: &[u8]) -> bool {
    std::str::from_utf8(word).is_ok_and(|word| word.parse::<f64>().is_ok_and(|n| !n.is_nan()))
}

/// A decimal integer as Redis reads one.
pub(crate) fn integer(word: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(word).ok()?;
    if text.starts_with('+') { None } else { text.parse().ok() }
}

/// A time to live that a server accepts.
pub(crate) fn positive(word: &[u8]) -> Option<u64> {
    u64::try_from(integer(word)?).ok().filter(|ttl| (1..TTL_MAX).contains(ttl))
}

/// A time to live in seconds, as milliseconds.
pub(crate) fn seconds(word: &[u8]) -> Option<u64> {
    positive(word)?.checked_mul(1000).filter(|ttl| *ttl < TTL_MAX)
}

/// How long what is set shall live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expiry {
    /// For ever.
    Never,
    /// As long as what was there.
    Keep,
    /// So many milliseconds.
    After(u64),
    /// Until this time, in milliseconds since the epoch.
    At(u64),
}

/// The options of `SET key value`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SetOptions {
    pub(crate) expiry: Expiry,
    /// `NX`, `XX`, or a comparison of newer servers.
    pub(crate) conditional: bool,
    pub(crate) only_if_absent: bool,
    pub(crate) get: bool,
    /// The position of the time to live among the options, as a word and its number.
    pub(crate) expiry_at: Option<usize>,
}

impl SetOptions {
    /// None at all.
    pub(crate) const NONE: Self = Self {
        expiry: Expiry::Never,
        conditional: false,
        only_if_absent: false,
        get: false,
        expiry_at: None,
    };

    /// Reads the options; `None` if a server would refuse them or if one is not known.
    pub(crate) fn parse(options: &[&[u8]]) -> Option<Self> {
        let mut read = Self::NONE;
        let mut index = 0;
        while let Some(option) = options.get(index) {
            let word = option.to_ascii_uppercase();
            let expiry = match word.as_slice() {
                b"NX" if !read.conditional => {
                    (read.conditional, read.only_if_absent) = (true, true);
                    None
                }
                b"XX" if !read.conditional => {
                    read.conditional = true;
                    None
                }
                b"GET" => {
                    read.get = true;
                    None
                }
                b"KEEPTTL" => Some(Expiry::Keep),
                other => {
                    index += 1;
                    Some(expiry(other, options.get(index)?)?)
                }
            };
            if let Some(expiry) = expiry {
                if read.expiry != Expiry::Never {
                    return None;
                }
                read.expiry = expiry;
                read.expiry_at = (expiry != Expiry::Keep).then(|| index - 1);
            }
            index += 1;
        }
        Some(read)
    }
}

/// The expiry that `word` and its number say.
pub(crate) fn expiry(word: &[u8], number: &[u8]) -> Option<Expiry> {
    match word.to_ascii_uppercase().as_slice() {
        b"EX" => seconds(number).map(Expiry::After),
        b"PX" => positive(number).map(Expiry::After),
        b"EXAT" => seconds(number).map(Expiry::At),
        b"PXAT" => positive(number).map(Expiry::At),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn effect(command: &str) -> (bool, &'static str) {
        let args: Vec<&[u8]> = command.split(' ').map(str::as_bytes).collect();
        let write = of(&command.split(' ').next().unwrap().to_ascii_lowercase(), &args);
        let outage = match write.outage {
            Outage::ReplyKnown(reply) => {
                assert_eq!(reply, "+OK\r\n");
                "reply"
            }
            Outage::EffectKnown => "effect",
            Outage::EffectUnknown => "unknown",
            Outage::Never(_) => "never",
        };
        (write.absolute, outage)
    }

    #[test]
    fn the_reply_is_known_where_it_can_only_be_ok() {
        for command in [
            "SET k v",
            "set k v ex 10",
            "SET k v PX 10",
            "SET k v EXAT 9999999999",
            "SETEX k 10 v",
            "PSETEX k 10 v",
            "MSET a 1 b 2",
            "HMSET h f v",
        ] {
            assert_eq!(effect(command), (true, "reply"), "{command}");
        }
        assert_eq!(effect("SET k v KEEPTTL"), (false, "reply"));
    }

    #[test]
    fn whole_is_what_leaves_nothing_of_earlier_writes() {
        let read = |command: &str| {
            let args: Vec<&[u8]> = command.split(' ').map(str::as_bytes).collect();
            of(&command.split(' ').next().unwrap().to_ascii_lowercase(), &args)
        };
        for command in
            ["SET k v", "SET k v EX 5", "SETEX k 5 v", "PSETEX k 5 v", "DEL k", "UNLINK k"]
        {
            assert!(read(command).whole, "{command}");
        }
        for command in [
            "SET k v NX",
            "SET k v GET",
            "SET k v KEEPTTL",
            "SET k v EX x",
            "DEL a b",
            "EXPIRE k 5",
            "HSET h f v",
            "MSET a 1",
            "HMSET h f v",
        ] {
            assert!(!read(command).whole, "{command}");
        }
    }

    #[test]
    fn a_reply_is_settled_only_where_it_can_only_be_ok() {
        let settled = |command: &str| {
            let args: Vec<&[u8]> = command.split(' ').map(str::as_bytes).collect();
            of(&command.split(' ').next().unwrap().to_ascii_lowercase(), &args).settled_reply
        };
        for command in ["SET k v", "SET k v KEEPTTL", "SETEX k 5 v", "MSET a 1", "HMSET h f v"] {
            assert!(settled(command), "{command}");
        }
        for command in
            ["SET k v NX", "SET k v GET", "DEL k", "SADD s a", "HSET h f v", "EXPIRE k 5"]
        {
            assert!(!settled(command), "{command}");
        }
    }

    #[test]
    fn the_effect_is_known_where_the_words_settle_it() {
        for command in [
            "DEL a b",
            "UNLINK a",
            "EXPIRE k 10",
            "EXPIRE k -1",
            "PEXPIRE k 10",
            "EXPIREAT k 10",
            "PEXPIREAT k 10",
            "PERSIST k",
            "HSET h f v",
            "HDEL h f",
            "SADD s a",
            "SREM s a",
            "ZADD z 1 a",
            "ZADD z CH 1 a 2 b",
            "ZADD z -inf a",
            "ZREM z a",
            "SETRANGE k 0 v",
            "SETBIT k 0 1",
            "PFADD p a",
            "GEOADD g 1 2 m",
            "XDEL x 1-1",
        ] {
            assert_eq!(effect(command), (true, "effect"), "{command}");
        }
    }

    #[test]
    fn in_doubt_nothing_is_known() {
        for command in [
            "SET k v NX",
            "SET k v XX",
            "SET k v GET",
            "SET k v EX 0",
            "SET k v EX x",
            "SET k v NX XX",
            "SET k v EX 1 PX 1",
            "SET k v EX 1 KEEPTTL",
            "SET k v IFEQ x",
            "SET k v EX",
            "SETEX k 0 v",
            "SETEX k 99999999999999999 v",
            "MSET a",
            "MSET a 1 b",
            "HMSET h f",
            "INCR k",
            "INCRBY k 1",
            "APPEND k v",
            "LPUSH l a",
            "SETNX k v",
            "HSETNX h f v",
            "GETSET k v",
            "GETDEL k",
            "GETEX k",
            "XADD x * f v",
            "EXPIRE k 10 NX",
            "EXPIRE k x",
            "EXPIRE k 9999999999999999",
            "ZADD z NX 1 a",
            "ZADD z INCR 1 a",
            "ZADD z GT 1 a",
            "ZADD z nan a",
            "ZADD z a 1",
            "GEOADD g NX 1 2 m",
            "LSET l 0 v",
            "LTRIM l 0 1",
            "LREM l 0 v",
            "SETBIT k 0 2",
            "SETRANGE k -1 v",
            "SINTERSTORE d a",
            "RENAME a b",
            "RPOP l",
            "HINCRBY h f 1",
            "RESTORE k 0 v",
            "SETEX k +5 v",
        ] {
            assert_eq!(effect(command), (false, "unknown"), "{command}");
        }
    }

    #[test]
    fn the_options_of_set_are_read_whatever_their_order() {
        let parse = |options: &str| {
            let options: Vec<&[u8]> = options.split(' ').map(str::as_bytes).collect();
            SetOptions::parse(&options)
        };
        let read = parse("nx px 5 get").unwrap();
        assert!(read.only_if_absent && read.get && read.conditional);
        assert_eq!((read.expiry, read.expiry_at), (Expiry::After(5), Some(1)));
        assert_eq!(parse("KEEPTTL").unwrap().expiry_at, None);
        assert_eq!(parse("EX 2").unwrap().expiry, Expiry::After(2000));
        assert_eq!(parse("EXAT 2").unwrap().expiry, Expiry::At(2000));
    }
}
