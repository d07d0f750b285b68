//! What is answered to a queued write whose effect is known and whose reply is not: an integer that says how much there
//! was to change, which only the server knows.
//!
//! Every client wants an integer there. What can be assumed is that each thing named is there to be removed, or not
//! there yet to be added. A program that only wants the effect is right with it. One that asks *whether it was the one*
//! (`if r.srem(…)`, `if r.zrem(…)`, `if r.sadd(…)`) would be wrong, as every caller would believe that it was: so only
//! a few commands are assumed by default.
//!
//! What the queue itself determines is not assumed: a key that a queued write has removed is not there to be removed
//! again.

use bytes::{Bytes, BytesMut};

use crate::kinds::redis::protocol::{effect, internal::Form, resp};

/// Which replies a door assumes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum EffectReply {
    /// Those of DEL, UNLINK, the EXPIRE family, PERSIST and HSET.
    #[default]
    Assume,
    /// Those of every write whose effect is known.
    All,
    /// None: such a write is not queued.
    Error,
}

/// The keys of which it matters to the reply whether they are there.
pub(super) fn keys<'a>(args: &[&'a [u8]]) -> Vec<&'a [u8]> {
    let [name, rest @ ..] = args else { return Vec::new() };
    let mut keys = match name.to_ascii_uppercase().as_slice() {
        b"DEL" | b"UNLINK" => rest.to_vec(),
        b"EXPIRE" | b"PEXPIRE" | b"EXPIREAT" | b"PEXPIREAT" | b"PERSIST" => {
            rest.first().copied().into_iter().collect()
        }
        _ => Vec::new(),
    };
    // A key that is named twice is there once.
    keys.sort_unstable();
    keys.dedup();
    keys
}

/// The keys of which it is known whether they are there after a write.
pub(super) fn leaves<'a>(args: &[&'a [u8]]) -> Vec<(&'a [u8], bool)> {
    let [name, rest @ ..] = args else { return Vec::new() };
    let first = || rest.first().map(|key| (*key, true)).into_iter().collect();
    match name.to_ascii_uppercase().as_slice() {
        b"DEL" | b"UNLINK" => rest.iter().map(|key| (*key, false)).collect(),
        b"MSET" => rest.iter().step_by(2).map(|key| (*key, true)).collect(),
        b"SET" | b"SETEX" | b"PSETEX" | b"HSET" | b"HMSET" | b"SADD" | b"ZADD" | b"GEOADD"
        | b"SETBIT" | b"PFADD" => first(),
        _ => Vec::new(),
    }
}

/// What is assumed of a write whose effect is known; `None` if it is not to be queued. Of the [`keys`] of each of its
/// commands, `absent` tells how many are not there.
pub(super) fn reply_to(which: EffectReply, call: &Form<'_>, absent: &[usize]) -> Option<Bytes> {
    let absent = |number: usize| absent.get(number).copied().unwrap_or(0);
    let Form::Multi(steps) = call else {
        return reply(which, &call.steps().first()?.args, absent(0));
    };
    let mut out = BytesMut::new();
    resp::write_head(&mut out, '*', steps.len());
    for (number, step) in steps.iter().enumerate() {
        let known = effect::known_reply(&step.args);
        out.extend_from_slice(&known.or_else(|| reply(which, &step.args, absent(number)))?);
    }
    Some(out.freeze())
}

/// The same of one command.
fn reply(which: EffectReply, args: &[&[u8]], absent: usize) -> Option<Bytes> {
    let [name, rest @ ..] = args else { return None };
    let there = keys(args).len().saturating_sub(absent);
    let behind_key = rest.len().saturating_sub(1);
    // ZADD and GEOADD may have CH before their members.
    let is_change = |word: &&[u8]| word.eq_ignore_ascii_case(b"CH");
    let members = behind_key - usize::from(rest.get(1).is_some_and(is_change));
    let usual = match name.to_ascii_uppercase().as_slice() {
        b"DEL" | b"UNLINK" | b"EXPIRE" | b"PEXPIRE" | b"EXPIREAT" | b"PEXPIREAT" | b"PERSIST" => {
            Some(there)
        }
        b"HSET" => Some(behind_key / 2),
        _ => None,
    };
    let more = || match name.to_ascii_uppercase().as_slice() {
        b"HDEL" | b"SADD" | b"SREM" | b"ZREM" | b"XDEL" => Some(behind_key),
        b"ZADD" => Some(members / 2),
        b"GEOADD" => Some(members / 3),
        b"PFADD" => Some(1),
        b"SETBIT" => Some(0),
        b"SETRANGE" => {
            let [_, offset, value] = rest else { return None };
            usize::try_from(effect::integer(offset)?).ok()?.checked_add(value.len())
        }
        _ => None,
    };
    let count = match which {
        EffectReply::Assume => usual,
        EffectReply::All => usual.or_else(more),
        EffectReply::Error => None,
    }?;
    Some(Bytes::from(format!(":{count}\r\n")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_is_assumed_if_each_of_its_commands_is() {
        let of = |words: &str, absent: &[usize]| {
            let body = resp::command(&words.split(' ').collect::<Vec<_>>());
            let reply = reply_to(EffectReply::Assume, &Form::of(&body).unwrap(), absent)?;
            Some(String::from_utf8(reply.to_vec()).unwrap())
        };
        let some = "FUSEBOX.MULTI 3 0 SET k v 3 0 DEL k j 3 0 EXPIRE k 9";
        assert_eq!(of(some, &[]).as_deref(), Some("*3\r\n+OK\r\n:2\r\n:1\r\n"));
        assert_eq!(of(some, &[0, 1, 1]).as_deref(), Some("*3\r\n+OK\r\n:1\r\n:0\r\n"));
        assert_eq!(of("FUSEBOX.MULTI 3 0 SET k v 3 0 SADD s m", &[]), None);
        assert_eq!(of("DEL k j", &[1]).as_deref(), Some(":1\r\n"));
    }

    #[test]
    fn a_count_is_as_if_all_was_there_or_nothing_was() {
        use EffectReply::{All, Assume, Error};
        for (command, usual, all) in [
            ("DEL a", Some(1), Some(1)),
            ("unlink a b c", Some(3), Some(3)),
            ("DEL a b a", Some(2), Some(2)),
            ("EXPIRE a 10", Some(1), Some(1)),
            ("PEXPIREAT a 10", Some(1), Some(1)),
            ("PERSIST a", Some(1), Some(1)),
            ("HSET h f v g w", Some(2), Some(2)),
            ("HDEL h f g", None, Some(2)),
            ("SADD s a b", None, Some(2)),
            ("SREM s a", None, Some(1)),
            ("ZADD z 1 a 2 b", None, Some(2)),
            ("ZADD z CH 1 a", None, Some(1)),
            ("GEOADD g 1 2 a", None, Some(1)),
            ("XDEL s 1-1", None, Some(1)),
            ("PFADD p a b", None, Some(1)),
            ("SETBIT b 7 1", None, Some(0)),
            ("SETRANGE r 3 abc", None, Some(6)),
            ("INCR n", None, None),
        ] {
            let args: Vec<&[u8]> = command.split(' ').map(str::as_bytes).collect();
            let told = |which| reply(which, &args, 0);
            let line = |count: Option<u32>| count.map(|it| Bytes::from(format!(":{it}\r\n")));
            assert_eq!(told(Assume), line(usual), "{command}");
            assert_eq!(told(All), line(all), "{command}");
            assert_eq!(told(Error), None, "{command}");
        }
    }
}
