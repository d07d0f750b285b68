//! Which reads are cached, under what, and what answers a miss.
//!
//! A read of one key is one entry under its canonical form (the command's name in upper case). MGET and
//! EXISTS are as many entries as they have keys: MGET shares those of GET. (MGET says nil of a key that
//! holds no string, while GET would be an error; an entry filled by the one answers the other so.)

use std::borrow::Cow;

use bytes::{Bytes, BytesMut};
use fusebox_actors::connector::Slot;
use fusebox_state::LaneId;

use super::{
    commands::{Flags, Spec},
    resp::{self, Reply},
};

/// A nil of RESP3.
const NIL: &[u8] = b"_\r\n";
/// A nil of RESP2.
const NIL_2: &[u8] = b"$-1\r\n";

/// The nil of the protocol that is spoken.
pub(crate) fn nil(resp3: bool) -> Bytes {
    Bytes::from_static(if resp3 { NIL } else { NIL_2 })
}

/// The cache entries that together answer the read, each in the `lane` of its key; none if it is not cached.
pub(crate) fn slots(
    spec: &Spec,
    args: &[&[u8]],
    keys: &[&[u8]],
    lane: impl Fn(&[u8]) -> LaneId,
) -> Vec<Slot> {
    let per_key = |name: &[u8]| {
        let slot = |key: &&[u8]| Slot { lane: lane(key), key: resp::command(&[name, key]) };
        keys.iter().map(slot).collect()
    };
    match (&*spec.name, keys) {
        ("mget", _) => per_key(b"GET"),
        ("exists", _) => per_key(b"EXISTS"),
        (name, [key]) if !spec.flags.has(Flags::RANDOM) && !changes_by_itself(name) => {
            vec![Slot { lane: lane(key), key: canonical(args) }]
        }
        _ => Vec::new(),
    }
}

/// Reads whose reply changes without a write to their key, or that are not of its value. Those that
/// the server itself marks so are known by [`Flags::RANDOM`].
fn changes_by_itself(name: &str) -> bool {
    const MORE: [&str; 16] = [
        "dump",
        "expiretime",
        "hexpiretime",
        "hpexpiretime",
        "hpttl",
        "hrandfield",
        "hscan",
        "httl",
        "pexpiretime",
        "pttl",
        "sscan",
        "srandmember",
        "touch",
        "ttl",
        "xpending",
        "zscan",
    ];
    let families = ["object|", "xinfo|", "memory|", "debug|"];
    MORE.contains(&name)
        || matches!(name, "xread" | "zrandmember")
        || families.iter().any(|family| name.starts_with(family))
}

fn canonical(args: &[&[u8]]) -> Bytes {
    let mut words: Vec<Cow<'_, [u8]>> = args.iter().map(|arg| Cow::Borrowed(*arg)).collect();
    if let Some(name) = words.first_mut() {
        name.to_mut().make_ascii_uppercase();
    }
    resp::command(&words)
}

/// What replaces one missing entry in an outage: a nil in the read's own shape. `None` if a nil
/// could be taken for an answer.
pub(crate) fn miss(name: &str, args: &[&[u8]], resp3: bool) -> Option<Bytes> {
    match name {
        "get" | "mget" | "hget" => Some(nil(resp3)),
        "hmget" => {
            let fields = args.len().saturating_sub(2);
            let nil = if resp3 { NIL } else { NIL_2 };
            let mut out = BytesMut::with_capacity(16 + fields * nil.len());
            resp::write_head(&mut out, '*', fields);
            (0..fields).for_each(|_| out.extend_from_slice(nil));
            Some(out.freeze())
        }
        "hgetall" => Some(Bytes::from_static(if resp3 { b"%0\r\n" } else { b"*0\r\n" })),
        _ => None,
    }
}

/// The parts of `reply`, one for each slot.
///
/// EXISTS of several keys tells their parts only if it found none or all.
pub(crate) fn split(body: &[u8], slots: &[Slot], reply: &Bytes) -> Option<Vec<Bytes>> {
    let read = Reply::of(reply)?;
    if matches!(read, Reply::Error(_)) {
        return None;
    }
    let name = resp::arguments(body).ok()?.first()?.to_ascii_uppercase();
    let parts: Vec<Bytes> = match (name.as_slice(), read) {
        (b"MGET", Reply::Array(items)) => items.map(Bytes::copy_from_slice).collect(),
        (b"EXISTS", Reply::Int(found)) if slots.len() > 1 => {
            let part: &'static [u8] = match usize::try_from(found).ok()? {
                0 => b":0\r\n",
                all if all == slots.len() => b":1\r\n",
                _ => return None,
            };
            vec![Bytes::from_static(part); slots.len()]
        }
        _ => vec![reply.clone()],
    };
    (parts.len() == slots.len()).then_some(parts)
}

/// The reply that `parts` make.
pub(crate) fn join(body: &[u8], mut parts: Vec<Bytes>) -> Bytes {
    let args = resp::arguments(body).unwrap_or_default();
    let name = args.first().map(|name| name.to_ascii_uppercase()).unwrap_or_default();
    match name.as_slice() {
        b"MGET" => {
            let length = parts.iter().map(Bytes::len).sum::<usize>() + 16;
            let mut out = BytesMut::with_capacity(length);
            resp::write_head(&mut out, '*', parts.len());
            for part in &parts {
                out.extend_from_slice(part);
            }
            out.freeze()
        }
        b"EXISTS" if parts.len() > 1 => {
            let found = |part: &Bytes| i64::from(matches!(Reply::of(part), Some(Reply::Int(1))));
            Bytes::from(format!(":{}\r\n", parts.iter().map(found).sum::<i64>()))
        }
        _ => parts.pop().unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::commands::Commands;
    use super::super::deadlines::Deadlines;
    use super::super::plan::{Context, plan};
    use super::*;
    use fusebox_actors::connector::Access;

    fn read(command: &str, resp3: bool, on_miss_error: bool) -> (Bytes, Vec<Slot>, Option<Bytes>) {
        let (commands, deadlines) = (Commands::default(), Deadlines::new("0"));
        let context = Context {
            commands: &commands,
            database: b"0",
            on_miss_error,
            scripts_are_barriers: false,
            resp3,
            deadlines: &deadlines,
        };
        let args: Vec<&[u8]> = command.split(' ').map(str::as_bytes).collect();
        let plan = plan(resp::command(&args), &context).unwrap();
        let Access::Read(read) = plan.access else { panic!("{command} is a read") };
        (plan.body, read.slots, read.miss)
    }

    #[test]
    fn a_read_of_one_key_is_one_entry_under_its_canonical_form() {
        let (_, slots, _) = read("get k", true, false);
        assert_eq!(slots[0].key, read("GET k", true, false).1[0].key);
        assert_eq!(slots[0].key, resp::command(&["GET", "k"]));
        for command in ["HGETALL h", "SISMEMBER s a", "LRANGE l 0 1", "XRANGE x - +", "STRLEN k"] {
            assert_eq!(read(command, true, false).1.len(), 1, "{command}");
        }
        for command in [
            "TTL k",
            "PTTL k",
            "SRANDMEMBER s",
            "HRANDFIELD h",
            "ZRANDMEMBER z",
            "RANDOMKEY",
            "SCAN 0",
            "HSCAN h 0",
            "SSCAN s 0",
            "ZSCAN z 0",
            "OBJECT ENCODING k",
            "DUMP k",
            "TIME",
            "TOUCH k",
            "SINTER a b",
            "DBSIZE",
            "KEYS *",
            "XPENDING x g",
            "XINFO STREAM x",
            "MEMORY USAGE k",
            "EXPIRETIME k",
            "SORT_RO k",
            "XREAD STREAMS x 0",
            "EVAL_RO s 1 k",
        ] {
            assert!(read(command, true, false).1.is_empty(), "{command}");
        }
    }

    #[test]
    fn mget_is_split_into_gets_and_joined_again() {
        let (body, slots, miss) = read("MGET a b", true, false);
        assert_eq!(slots[1], read("GET b", true, false).1[0]);
        let reply = Bytes::from_static(b"*2\r\n$1\r\nx\r\n_\r\n");
        let parts = split(&body, &slots, &reply).unwrap();
        assert_eq!(parts, [&b"$1\r\nx\r\n"[..], b"_\r\n"]);
        assert_eq!(join(&body, parts.clone()), reply);
        assert_eq!(miss.as_deref(), Some(NIL));
        assert_eq!(split(&body, &slots[..1], &reply), None, "as many parts as slots");
        assert_eq!(split(&body, &slots, &Bytes::from_static(b"-ERR x\r\n")), None);
    }

    #[test]
    fn exists_is_split_where_its_sum_tells_the_parts() {
        let (body, slots, miss) = read("EXISTS a b", true, false);
        assert_eq!(miss, None);
        let split = |sum| split(&body, &slots, &Bytes::from(format!(":{sum}\r\n")));
        assert_eq!(split(0).unwrap(), [":0\r\n", ":0\r\n"]);
        assert_eq!(split(2).unwrap(), [":1\r\n", ":1\r\n"]);
        assert_eq!(split(1), None);
        let parts = vec![Bytes::from_static(b":1\r\n"), Bytes::from_static(b":0\r\n")];
        assert_eq!(join(&body, parts), ":1\r\n");
        let (body, slots, _) = read("EXISTS a", true, false);
        let one = Bytes::from_static(b":1\r\n");
        assert_eq!(super::split(&body, &slots, &one).unwrap(), std::slice::from_ref(&one));
        assert_eq!(join(&body, vec![one.clone()]), one);
    }

    #[test]
    fn a_miss_is_a_nil_only_where_a_nil_says_nothing() {
        let miss = |command, resp3| read(command, resp3, false).2;
        assert_eq!(miss("GET k", true).as_deref(), Some(NIL));
        assert_eq!(miss("HGET h f", false).as_deref(), Some(NIL_2));
        assert_eq!(miss("HMGET h a b", true).unwrap(), "*2\r\n_\r\n_\r\n");
        assert_eq!(miss("HGETALL h", false).unwrap(), "*0\r\n");
        assert_eq!(miss("HGETALL h", true).unwrap(), "%0\r\n");
        for command in ["SISMEMBER s a", "EXISTS k", "LRANGE l 0 1", "STRLEN k"] {
            assert_eq!(miss(command, true), None, "{command}");
        }
        for command in ["GET k", "MGET a b", "HGET h f", "HMGET h f", "HGETALL h"] {
            assert_eq!(read(command, true, true).2, None, "{command} of a store");
        }
    }
}
