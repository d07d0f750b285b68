//! Times to live at replay: counted from the moment at which the call was accepted.
//!
//! A relative time to live is replaced by what remains of it, in milliseconds (`SET … PX`, `PEXPIRE`,
//! `HPEXPIRE` …), and a call whose time has run out by a DEL of its key. If a condition forbids that
//! (`NX`: what exists now may be another's), it is sent with the least time that there is, so that the
//! condition decides. Everything else of a call is preserved; absolute times and KEEPTTL are left alone,
//! and so is what a server would refuse.
//!
//! If writes that were accepted before the deadline are still behind the call, its key may not end yet: it
//! gets the far time of [`super::residue`] in place of its own.

use std::borrow::Cow;

use bytes::Bytes;
use fusebox_state::UnixMillis;

use super::{
    effect::{self, Expiry, SetOptions},
    resp,
};

/// The words of a call.
pub(crate) type Words<'a> = Vec<Cow<'a, [u8]>>;

/// The call `args`, which sets a deadline for its only key, with the time `far` in place of that.
pub(crate) fn with_far_time<'a>(args: &[&'a [u8]], far: u64) -> Option<Words<'a>> {
    let far = || number(far);
    let name = args.first()?.to_ascii_lowercase();
    let words: Words<'_> = match (name.as_slice(), args) {
        (b"set", _) => {
            let at = 3 + SetOptions::parse(args.get(3..)?)?.expiry_at?;
            with_time(args, at, b"PXAT", far())
        }
        (b"getex", _) => with_time(args, 2, b"PXAT", far()),
        (b"setex" | b"psetex", &[_, key, _, value]) => {
            let words = [&b"SET"[..], key, value, b"PXAT"].into_iter().map(Cow::Borrowed);
            words.chain([far()]).collect()
        }
        (b"expire" | b"pexpire" | b"expireat" | b"pexpireat", _) => {
            let mut words = copied(args);
            *words.first_mut()? = Cow::Borrowed(b"PEXPIREAT");
            *words.get_mut(2)? = far();
            words
        }
        _ => return None,
    };
    Some(words)
}

/// `body` as it is to be sent at `now`, having been accepted at `accepted`.
pub(crate) fn rewrite(body: &Bytes, accepted: UnixMillis, now: UnixMillis) -> Bytes {
    let Ok(args) = resp::arguments(body) else { return body.clone() };
    match with_time_left(&args, accepted, now) {
        Some(words) => resp::command(&words),
        None => body.clone(),
    }
}

/// The call `args` as it is to be sent at `now`, having been accepted at `accepted`; `None` for as it is.
pub(crate) fn with_time_left<'a>(
    args: &[&'a [u8]],
    accepted: UnixMillis,
    now: UnixMillis,
) -> Option<Words<'a>> {
    let waited = u64::try_from(now.since(accepted).as_millis()).unwrap_or(u64::MAX);
    rewritten(args, waited)
}

fn rewritten<'a>(args: &[&'a [u8]], waited: u64) -> Option<Words<'a>> {
    let name = args.first()?.to_ascii_lowercase();
    match name.as_slice() {
        b"set" => set(args, waited),
        b"setex" => set_for(args, effect::seconds(args.get(2)?)?, waited),
        b"psetex" => set_for(args, effect::positive(args.get(2)?)?, waited),
        b"expire" => expire(args, b"PEXPIRE", effect::seconds(args.get(2)?)?, waited),
        b"pexpire" => expire(args, b"PEXPIRE", effect::positive(args.get(2)?)?, waited),
        b"hexpire" => expire(args, b"HPEXPIRE", effect::seconds(args.get(2)?)?, waited),
        b"hpexpire" => expire(args, b"HPEXPIRE", effect::positive(args.get(2)?)?, waited),
        b"getex" => getex(args, waited),
        b"hsetex" | b"hgetex" => {
            let fields = args.iter().position(|arg| arg.eq_ignore_ascii_case(b"FIELDS"))?;
            let at = (2..fields).find(|at| relative(args, *at).is_some())?;
            Some(with_px(args, at, relative(args, at)?.saturating_sub(waited).max(1)))
        }
        b"restore" => {
            let absolute = args.iter().skip(4).any(|arg| arg.eq_ignore_ascii_case(b"ABSTTL"));
            let ttl = effect::positive(args.get(2)?).filter(|_| !absolute)?;
            let mut words = copied(args);
            *words.get_mut(2)? = number(ttl.saturating_sub(waited).max(1));
            Some(words)
        }
        _ => None,
    }
}

/// `SET key value …`
fn set<'a>(args: &[&'a [u8]], waited: u64) -> Option<Words<'a>> {
    let options = SetOptions::parse(args.get(3..)?)?;
    let Expiry::After(ttl) = options.expiry else { return None };
    let left = ttl.saturating_sub(waited);
    if left > 0 || options.only_if_absent {
        return Some(with_px(args, 3 + options.expiry_at?, left.max(1)));
    }
    Some(removal(if options.get { b"GETDEL" } else { b"DEL" }, args.get(1)?))
}

/// `SETEX key time value` and `PSETEX`.
fn set_for<'a>(args: &[&'a [u8]], ttl: u64, waited: u64) -> Option<Words<'a>> {
    let &[_, key, _, value] = args else { return None };
    let left = ttl.saturating_sub(waited);
    if left == 0 {
        return Some(removal(b"DEL", key));
    }
    let words = [&b"SET"[..], key, value, b"PX"].into_iter().map(Cow::Borrowed);
    Some(words.chain([number(left)]).collect())
}

/// `EXPIRE key time …` and its like; a time of zero removes when the conditions hold.
fn expire<'a>(args: &[&'a [u8]], name: &'static [u8], ttl: u64, waited: u64) -> Option<Words<'a>> {
    let left = ttl.saturating_sub(waited);
    if left == 0 && args.len() == 3 {
        return Some(removal(b"DEL", args.get(1)?));
    }
    let mut words = copied(args);
    *words.first_mut()? = Cow::Borrowed(name);
    *words.get_mut(2)? = number(left);
    Some(words)
}

/// `GETEX key EX seconds`
fn getex<'a>(args: &[&'a [u8]], waited: u64) -> Option<Words<'a>> {
    let left = relative(args, 2).filter(|_| args.len() == 4)?.saturating_sub(waited);
    if left == 0 {
        return Some(removal(b"GETDEL", args.get(1)?));
    }
    Some(with_px(args, 2, left))
}

/// The relative time to live at `at`, a word and its number.
fn relative(args: &[&[u8]], at: usize) -> Option<u64> {
    match effect::expiry(args.get(at)?, args.get(at + 1)?)? {
        Expiry::After(ttl) => Some(ttl),
        _ => None,
    }
}

/// The words with `PX left` in place of the two at `at`.
fn with_px<'a>(args: &[&'a [u8]], at: usize, left: u64) -> Words<'a> {
    with_time(args, at, b"PX", number(left))
}

/// The words with `option time` in place of the two at `at`.
fn with_time<'a>(
    args: &[&'a [u8]],
    at: usize,
    option: &'static [u8],
    new: Cow<'a, [u8]>,
) -> Words<'a> {
    let mut words = copied(args);
    if let Some([word, time]) = words.get_mut(at..at + 2) {
        *word = Cow::Borrowed(option);
        *time = new;
    }
    words
}

fn copied<'a>(args: &[&'a [u8]]) -> Words<'a> {
    args.iter().map(|arg| Cow::Borrowed(*arg)).collect()
}

fn removal<'a>(name: &'static [u8], key: &'a [u8]) -> Words<'a> {
    vec![Cow::Borrowed(name), Cow::Borrowed(key)]
}

fn number(number: u64) -> Cow<'static, [u8]> {
    Cow::Owned(number.to_string().into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn sent(command: &str, waited: u64, expected: &str) {
        let body = resp::command(&command.split(' ').collect::<Vec<_>>());
        let accepted = UnixMillis::new(1_000_000);
        let rewritten = rewrite(&body, accepted, UnixMillis::new(1_000_000 + waited));
        let words = resp::arguments(&rewritten).unwrap();
        assert_eq!(
            words.iter().map(|w| String::from_utf8_lossy(w)).collect::<Vec<_>>().join(" "),
            expected
        );
    }

    #[test]
    fn what_remains_is_sent() {
        sent("SET k v EX 10", 0, "SET k v PX 10000");
        sent("SET k v EX 10", 2500, "SET k v PX 7500");
        sent("set k v px 10", 9, "set k v PX 1");
        sent("SETEX k 10 v", 2500, "SET k v PX 7500");
        sent("PSETEX k 10 v", 4, "SET k v PX 6");
        sent("EXPIRE k 10", 1, "PEXPIRE k 9999");
        sent("PEXPIRE k 10", 1, "PEXPIRE k 9");
        sent("GETEX k EX 1", 400, "GETEX k PX 600");
        sent("RESTORE k 100 dump REPLACE", 40, "RESTORE k 60 dump REPLACE");
        sent("HEXPIRE h 10 NX FIELDS 1 f", 1000, "HPEXPIRE h 9000 NX FIELDS 1 f");
        sent("HSETEX h FNX EX 10 FIELDS 1 EX 5", 1000, "HSETEX h FNX PX 9000 FIELDS 1 EX 5");
    }

    #[test]
    fn a_far_time_takes_the_place_of_every_deadline() {
        for (command, expected) in [
            ("SET k v EX 10 XX", "SET k v PXAT 77 XX"),
            ("SET k v GET EXAT 10", "SET k v GET PXAT 77"),
            ("SETEX k 10 v", "SET k v PXAT 77"),
            ("psetex k 10 v", "SET k v PXAT 77"),
            ("EXPIRE k 10", "PEXPIREAT k 77"),
            ("PEXPIREAT k 10 NX", "PEXPIREAT k 77 NX"),
            ("GETEX k EX 10", "GETEX k PXAT 77"),
        ] {
            let args: Vec<&[u8]> = command.split(' ').map(str::as_bytes).collect();
            let words = with_far_time(&args, 77).unwrap();
            let sent: Vec<_> = words.iter().map(|word| String::from_utf8_lossy(word)).collect();
            assert_eq!(sent.join(" "), expected);
        }
    }

    #[test]
    fn options_are_preserved_wherever_they_stand() {
        sent("SET k v NX EX 10", 1000, "SET k v NX PX 9000");
        sent("SET k v EX 10 NX", 1000, "SET k v PX 9000 NX");
        sent("SET k v GET PX 10 XX", 4, "SET k v GET PX 6 XX");
        sent("EXPIRE k 10 GT", 1000, "PEXPIRE k 9000 GT");
        sent("SET EX EX EX 10", 1000, "SET EX EX PX 9000");
    }

    #[test]
    fn what_has_expired_is_sent_as_a_removal() {
        sent("SET k v EX 10", 10_000, "DEL k");
        sent("SET k v EX 10 XX", 10_001, "DEL k");
        sent("SET k v EX 10 GET", 10_001, "GETDEL k");
        sent("SETEX k 10 v", 99_999, "DEL k");
        sent("PSETEX k 10 v", 10, "DEL k");
        sent("EXPIRE k 10", 10_000, "DEL k");
        sent("PEXPIRE k 10", 10, "DEL k");
        sent("GETEX k PX 10", 10, "GETDEL k");
    }

    #[test]
    fn a_condition_decides_also_of_what_has_expired() {
        sent("SET k v NX EX 10", 10_000, "SET k v NX PX 1");
        sent("EXPIRE k 10 NX", 10_000, "PEXPIRE k 0 NX");
        sent("RESTORE k 10 dump", 10_000, "RESTORE k 1 dump");
    }

    #[test]
    fn everything_else_is_left_alone() {
        for command in [
            "SET k v",
            "SET k v KEEPTTL",
            "SET k v PXAT 5",
            "SET k v EXAT 5",
            "EXPIREAT k 5",
            "PEXPIREAT k 5",
            "SET k v EX 0",
            "SET k v EX x",
            "SETEX k -1 v",
            "EXPIRE k -1",
            "EXPIRE k x",
            "GET k",
            "INCR k",
            "RESTORE k 0 dump",
            "RESTORE k 5 dump ABSTTL",
            "GETEX k PERSIST",
            "GETEX k",
            "MSET a EX b 10",
            "SET k v NX XX EX 5",
            "HSETEX h KEEPTTL FIELDS 1 EX 5",
        ] {
            sent(command, 100_000, command);
        }
    }

    #[test]
    fn a_clock_that_was_set_back_shortens_nothing() {
        let body = resp::command(&["SET", "k", "v", "EX", "1"]);
        let sent = rewrite(&body, UnixMillis::new(5000), UnixMillis::new(0));
        assert_eq!(sent, resp::command(&["SET", "k", "v", "PX", "1000"]));
    }
}
