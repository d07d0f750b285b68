//! A deadline that waits: what is left of a replayed write whose key may not end yet.
//!
//! A write with a deadline may be replayed when writes that were accepted *before* the deadline are still
//! behind it. Those must meet the key alive, however late they come. So the key gets, in place of its
//! deadline, the same time and 40,000 days ([`FAR_MILLIS`]), and the deadline stays in the line as a *residue*:
//!
//! ```text
//!  SET k v PX 800        ──▶ SET k v PXAT (deadline + FAR)   ──▶ residue: FUSEBOX.DEADLINE <deadline> k
//!  SETRANGE k 0 w        ──▶ meets k alive, keeps its far time
//!  (the residue)         ──▶ is k's time still the far one? then it gets what remains of its own, or ends
//! ```
//! **The server itself keeps the account.** A write that settles the time to live (SET, PERSIST, EXPIRE) or
//! removes the key, be it another client's, takes the far time away, and the residue finds nothing to do; one that
//! keeps it (KEEPTTL, INCR) keeps the far one; RENAME and COPY take it along. So the residue is safe to send at
//! any time, twice, or after the key has been written by others, and [`after`] needs to know only which keys to
//! look at, not what became of them. A crash at any step leaves a key that ends in about a century, and
//! the queued call or its residue, which puts that right.
//!
//! The far time is an absolute one, so it is recognised to the millisecond, whatever the clocks say
//! (`PEXPIRETIME`). Servers before 7.0 do not know that command: there, deadlines are not followed, and each call
//! is judged alone.
//!
//! A call may leave keys with different deadlines. They are one residue, which is due at the first of them, settles
//! that, and leaves the others as a residue again.
//!
//! A transaction that is refused after it was applied in part leaves no residue. Its keys are settled at once; those
//! whose time a write behind it settles, for which it must meet them alive (PERSIST, EXPIRE, GETEX, GETSET), get a week
//! ([`Settled::Week`]). If that write is refused too, as GETEX of another type is, the key ends then.
//!
//! Without the right to EVAL, the residue asks and sets in two steps; a client of another program may
//! come in between.

use bytes::Bytes;

use super::{
    commands::Commands,
    deadlines::Written,
    internal::{Ends, Form, Step},
    resp,
    ttl::{self, Fate},
};

/// How much longer a key lives while writes that are to meet it alive are on their way: 40,000 days.
const FAR_MILLIS: u64 = 40_000 * 24 * 3600 * 1000;

/// Gives each key whose time is the far one what remains of its own.
/// ARGV: for each key the far time, and what remains of its own (not above zero: it ends).
pub(crate) const SCRIPT: &str = "\
for i = 1, #KEYS do
  if redis.call('PEXPIRETIME', KEYS[i]) == tonumber(ARGV[2 * i - 1]) then
    redis.call('PEXPIRE', KEYS[i], ARGV[2 * i])
  end
end
return redis.status_reply('OK')
";

/// What keys get that have a far time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Settled {
    /// What remains of their own time.
    Own,
    /// A week more than that: a write behind is to meet them alive and settles their time, unless it is refused.
    Week,
}

impl Settled {
    /// What a key gets at `now` that ends at `at`, in milliseconds. Not above zero: it ends.
    fn left(self, at: u64, now: u64) -> i64 {
        const WEEK_MILLIS: i64 = 7 * 24 * 3600 * 1000;
        let (at, now) =
            (i64::try_from(at).unwrap_or(i64::MAX), i64::try_from(now).unwrap_or(i64::MAX));
        let own = at.saturating_sub(now);
        match self {
            Self::Own => own,
            Self::Week => own.max(0).saturating_add(WEEK_MILLIS),
        }
    }
}

/// The call that settles the deadlines of `keys` at `now`.
pub(crate) fn script(keys: &[(&[u8], u64)], settled: Settled, now: u64) -> Bytes {
    let count = keys.len().to_string();
    let times: Vec<[String; 2]> = keys
        .iter()
        .map(|(_, at)| [far(*at).to_string(), settled.left(*at, now).to_string()])
        .collect();
    let mut words: Vec<&[u8]> = vec![b"EVAL", SCRIPT.as_bytes(), count.as_bytes()];
    words.extend(keys.iter().map(|(key, _)| *key));
    words.extend(times.iter().flatten().map(String::as_bytes));
    resp::command(&words)
}

/// The call that settles it for `key`, if its PEXPIRETIME is `time`.
pub(crate) fn step(
    (key, at): (&[u8], u64),
    time: i64,
    settled: Settled,
    now: u64,
) -> Option<Bytes> {
    let left = settled.left(at, now).to_string();
    (u64::try_from(time) == Ok(far(at))).then(|| resp::command(&[b"PEXPIRE", key, left.as_bytes()]))
}

/// The time that a key gets which ends at `at` and may not end yet.
pub(crate) fn far(at: u64) -> u64 {
    at.saturating_add(FAR_MILLIS)
}

/// Which keys a residue is about after the replayed write `applied`, and whether it is still sure that they are there
/// and end then: the overlay reads that.
pub(crate) fn after<'a>(commands: &Commands, ends: &Ends<'a>, applied: &'a [u8]) -> Ends<'a> {
    let form = Form::of(applied);
    let steps = form.as_ref().map(Form::steps).unwrap_or_default();
    steps.iter().fold(ends.clone(), |ends, step| after_step(commands, ends, step))
}

/// The same, after a command.
pub(crate) fn after_step<'a>(commands: &Commands, ends: Ends<'a>, step: &Step<'a>) -> Ends<'a> {
    let Ends { keys: mut left, mut sure } = ends.clone();
    let Some(spec) = commands.find(&step.args) else { return Ends { keys: left, sure: false } };
    let places = spec.keys(&step.args).unwrap_or_default();
    // It leaves a residue of its own for these.
    left.retain(|end| !step.deadlines.contains(end));
    let mut more: Vec<(&[u8], u64)> = Vec::new();
    for (key, touch) in (Written { name: &spec.name, args: &step.args, places: &places }).touches()
    {
        let settles =
            matches!(touch.fate, Fate::Sets(_) | Fate::Clears | Fate::Takes(_) | Fate::Leaves(_));
        let neutral = matches!(touch.fate, Fate::Keeps | Fate::Inherits);
        if settles && touch.sure {
            left.retain(|(other, _)| *other != key);
        } else if !neutral && ends.of(key).is_some() {
            sure = false;
        }
        if let Fate::Takes(from) = touch.fate
            && let Some(at) = step.args.get(from).and_then(|from| ends.of(from))
        {
            more.push((key, at));
            sure &= touch.sure;
        }
    }
    more.retain(|end| !left.contains(end));
    left.extend(more);
    Ends { keys: left, sure }
}

/// What a command that inherited `deadlines` may have given its keys: no far time to one that it has moved away. `done`
/// says whether it has done its work, if that is known.
pub(crate) fn given<'a>(
    written: Written<'_, 'a>,
    deadlines: &[(&'a [u8], u64)],
    done: Option<bool>,
) -> Ends<'a> {
    let leaves = |key: &[u8]| {
        let mut touches = written.touches();
        touches.find_map(|(other, touch)| match touch.fate {
            Fate::Leaves(_) if other == key => Some(touch.sure),
            _ => None,
        })
    };
    let mut ends = Ends { keys: Vec::new(), sure: true };
    for (key, at) in deadlines {
        match leaves(key) {
            Some(sure) if sure || done == Some(true) => continue,
            Some(_) => ends.sure &= done.is_some(),
            None => {}
        }
        ends.keys.push((*key, *at));
    }
    ends
}

/// What a command does to the time to live of a key.
enum Settling {
    /// It may take it along to another key (RENAME, COPY), and does not settle it there.
    Takes,
    /// It settles it, whatever it meets: a key that has ended, or one of another type.
    Overwrites,
    /// It settles it, and must meet the key alive for that.
    Needs,
}

fn settling(commands: &Commands, step: &Step<'_>, key: &[u8]) -> Option<Settling> {
    let spec = commands.find(&step.args)?;
    let places = spec.keys(&step.args).unwrap_or_default();
    let written = Written { name: &spec.name, args: &step.args, places: &places };
    let is_taken = |(_, touch): (&[u8], ttl::Touch)| match touch.fate {
        Fate::Takes(from) => step.args.get(from) == Some(&key),
        _ => false,
    };
    let is_settled = |(other, touch): (&[u8], ttl::Touch)| {
        other == key && touch.sure && matches!(touch.fate, Fate::Sets(_) | Fate::Clears)
    };
    if written.touches().any(is_taken) {
        Some(Settling::Takes)
    } else if !written.touches().any(is_settled) {
        None
    } else if overwrites(written, key) {
        Some(Settling::Overwrites)
    } else {
        Some(Settling::Needs)
    }
}

/// Whether writes, in their order, are to meet `key` alive, and one of them settles its time to live before another
/// takes that along to another key.
pub(crate) fn is_met<'a>(
    commands: &Commands,
    bodies: impl Iterator<Item = &'a [u8]>,
    key: &[u8],
) -> bool {
    let mut is_read = false;
    for form in bodies.filter_map(Form::of) {
        for step in form.steps() {
            match settling(commands, step, key) {
                Some(Settling::Takes) => return false,
                Some(Settling::Overwrites) => return is_read,
                Some(Settling::Needs) => return true,
                None => is_read |= touches(commands, step, key),
            }
        }
    }
    false
}

/// Whether a command that settles the time to live of `key` leaves the same there whatever it meets: a key that has
/// ended, or one of another type.
fn overwrites(Written { name, args, places }: Written<'_, '_>, key: &[u8]) -> bool {
    let reads_it = places.iter().filter(|place| args.get(**place) == Some(&key)).count() > 1
        || args.iter().skip(3).any(|word| word.eq_ignore_ascii_case(b"GET"));
    let is_blind = matches!(name, "set" | "setex" | "psetex" | "mset" | "del" | "unlink" | "bitop");
    (is_blind || name.ends_with("store")) && !reads_it
}

/// Whether `body`, a write behind it, touches `key`.
pub(crate) fn concerns(commands: &Commands, body: &[u8], key: &[u8]) -> bool {
    Form::of(body).is_some_and(|form| form.steps().iter().any(|step| touches(commands, step, key)))
}

/// Whether a command touches `key`.
pub(crate) fn touches(commands: &Commands, step: &Step<'_>, key: &[u8]) -> bool {
    let args = &step.args;
    let Some(places) = commands.find(args).and_then(|spec| spec.keys(args)) else { return true };
    places.iter().any(|place| args.get(*place) == Some(&key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn left(keys: &str, applied: &str, expected: &str, still_sure: bool) {
        let keys: Vec<&[u8]> = keys.split(' ').map(str::as_bytes).collect();
        let applied = resp::command(&applied.split(' ').collect::<Vec<_>>());
        let ends = Ends { keys: keys.iter().map(|key| (*key, 5)).collect(), sure: true };
        let left = after(&Commands::default(), &ends, &applied);
        let expected: Vec<(&[u8], u64)> = expected
            .split(' ')
            .filter(|key| !key.is_empty())
            .map(|key| (key.as_bytes(), 5))
            .collect();
        assert_eq!(left.keys, expected, "{keys:?} after {applied:?}");
        assert_eq!(left.sure || left.keys.is_empty(), still_sure, "{keys:?} after {applied:?}");
    }

    #[test]
    fn what_settles_the_time_to_live_ends_a_residue_and_what_moves_the_key_moves_it() {
        for write in ["SET k v", "SET k v PX 9", "DEL k", "PERSIST k", "EXPIRE k 9", "GETDEL k"] {
            left("k", write, "", true);
        }
        for write in ["SET k v KEEPTTL", "INCR k", "GETEX k", "SET j v"] {
            left("k", write, "k", true);
        }
        for write in ["SET k v NX", "LPOP k", "EXPIRE k 9 NX", "X k", "RESTORE k 0 x"] {
            left("k", write, "k", false);
        }
        left("k", "RENAME k j", "j", true);
        left("k", "RENAME j k", "", true);
        left("k j", "RENAME k j", "j", true);
        left("k", "RENAMENX k j", "k j", false);
        left("k", "COPY k j", "k j", false);
        left("j k", "COPY k j REPLACE", "j k", false);
        left("j", "COPY k j REPLACE", "j", false);
        left("k j", "DEL j", "k", true);
        left("k", "FUSEBOX.UNTIL 1 5 k HSET k f v", "", true);
        left("k", "FUSEBOX.UNTIL 1 6 k HSET k f v", "k", true);
        left("k", "FUSEBOX.DEADLINE 9 k", "k", true);
        left("k", "FUSEBOX.UNTIL 1 5 k RENAME k j", "j", true);
        left("k i", "FUSEBOX.MULTI 3 0 RENAME k j 3 0 RENAME j i 3 0 SET j v", "i", true);
        left("k", "FUSEBOX.MULTI 2 0 DEL k 4 0 HSET k f v", "", true);
        left("k", "FUSEBOX.MULTI 2 0 LPOP k 4 1 5 j HSET j f v", "k", false);
    }

    #[test]
    fn a_key_that_was_moved_away_is_given_nothing() {
        for (command, done, expected, sure) in [
            ("APPEND k x", None, Some(5), true),
            ("COPY k j", Some(true), Some(5), true),
            ("RENAME k j", Some(true), None, true),
            ("RENAME k j", None, None, true),
            ("RENAMENX k j", Some(true), None, true),
            ("RENAMENX k j", Some(false), Some(5), true),
            ("RENAMENX k j", None, Some(5), false),
        ] {
            let args: Vec<&[u8]> = command.split(' ').map(str::as_bytes).collect();
            let spec = Commands::default().find(&args).unwrap();
            let places = spec.keys(&args).unwrap();
            let written = Written { name: &spec.name, args: &args, places: &places };
            let ends = given(written, &[(b"k", 5)], done);
            assert_eq!((ends.of(b"k"), ends.sure), (expected, sure), "{command}, {done:?}");
        }
    }

    #[test]
    fn the_far_time_is_recognised_and_no_other() {
        let far = i64::try_from(far(1000)).unwrap();
        let words = |time: i64, now: u64| {
            let call = step((b"k", 1000), time, Settled::Own, now)?;
            let words = resp::arguments(&call).unwrap();
            Some(words.iter().map(|w| String::from_utf8_lossy(w)).collect::<Vec<_>>().join(" "))
        };
        assert_eq!(words(far, 700).as_deref(), Some("PEXPIRE k 300"));
        assert_eq!(words(far, 1500).as_deref(), Some("PEXPIRE k -500"));
        let week = 7 * 24 * 3600 * 1000;
        assert_eq!(Settled::Week.left(1000, 700), week + 300);
        assert_eq!(Settled::Week.left(1000, 1500), week, "it does not end before its week");
        for time in [-1, -2, 1000, far - 1, far + 1] {
            assert_eq!(words(time, 700), None, "{time}");
        }
    }
}
