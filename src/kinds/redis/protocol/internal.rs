//! The forms in which a queued call is stored if that is not the caller's own.
//!
//! | form | what it is |
//! | --- | --- |
//! | `FUSEBOX.UNTIL <count> <time> <key> … <the caller's words>` | a call to keys that had deadlines when it was accepted, which fusebox had carried to the server |
//! | `FUSEBOX.MULTI (<words> <deadlines> <time> <key> … <the caller's words>)…` | a transaction: calls that are applied together, each with the numbers of its words and of the deadlines that its keys had |
//! | `FUSEBOX.DEADLINE <time> <key> …` | a residue: the keys are there, and this is their deadline, still to be set ([`super::residue`]) |
//! | `FUSEBOX.PERHAPS <time> <key> …` | a residue of which it is not certain that the keys are there and have this deadline |
//! | `FUSEBOX.DEADLINES <0 or 1> (<time> <key>)…` | a residue of keys with different deadlines, and whether these are certain |
//!
//! Times are in milliseconds since the epoch. A caller's call under such a name is refused as unknown: a door lets none
//! in, and makes a transaction itself.

use std::{borrow::Cow, slice, str::FromStr};

use bytes::Bytes;

use super::resp;

const PREFIX: &[u8] = b"FUSEBOX.";
const UNTIL: &[u8] = b"FUSEBOX.UNTIL";
const MULTI: &[u8] = b"FUSEBOX.MULTI";
const DEADLINE: &[u8] = b"FUSEBOX.DEADLINE";
const PERHAPS: &[u8] = b"FUSEBOX.PERHAPS";
const DEADLINES: &[u8] = b"FUSEBOX.DEADLINES";

/// Keys, and when each ends.
pub(crate) type Times<'a> = Vec<(&'a [u8], u64)>;

/// A queued call as it is stored.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Form<'a> {
    /// A caller's call.
    Call(Step<'a>),
    /// Calls that are applied together, one after the other.
    Multi(Vec<Step<'a>>),
    /// What is left of a call whose deadlines wait.
    Ends(Ends<'a>),
}

/// A command of a caller's.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Step<'a> {
    /// Its words.
    pub(crate) args: Vec<&'a [u8]>,
    /// Its keys that had a deadline when it was accepted, with that.
    pub(crate) deadlines: Times<'a>,
}

/// Keys that end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ends<'a> {
    /// When each does.
    pub(crate) keys: Times<'a>,
    /// Whether they are there and end then, unless a write behind it settles it otherwise.
    pub(crate) sure: bool,
}

impl Ends<'_> {
    /// When `key` ends.
    pub(crate) fn of(&self, key: &[u8]) -> Option<u64> {
        self.keys.iter().find(|(other, _)| *other == key).map(|(_, at)| *at)
    }
}

impl<'a> Form<'a> {
    /// Reads a stored body; `None` for what is not a command.
    pub(crate) fn of(body: &'a [u8]) -> Option<Self> {
        let args = resp::arguments(body).ok()?;
        match args.as_slice() {
            [name @ (DEADLINE | PERHAPS), at, keys @ ..] => {
                let at = number(at)?;
                let keys = keys.iter().map(|key| (*key, at)).collect();
                Some(Self::Ends(Ends { keys, sure: *name == DEADLINE }))
            }
            [DEADLINES, sure, rest @ ..] => {
                let (keys, behind) = pairs(rest, rest.len() / 2)?;
                behind.is_empty().then_some(Self::Ends(Ends { keys, sure: *sure == b"1" }))
            }
            [UNTIL, count, rest @ ..] => {
                let (deadlines, args) = pairs(rest, number(count)?)?;
                Some(Self::Call(Step { args: args.to_vec(), deadlines }))
            }
            [MULTI, rest @ ..] => {
                let (mut rest, mut steps) = (rest, Vec::new());
                while let [words, count, behind @ ..] = rest {
                    let (deadlines, behind) = pairs(behind, number(count)?)?;
                    let (args, behind) = behind.split_at_checked(number(words)?)?;
                    steps.push(Step { args: args.to_vec(), deadlines });
                    rest = behind;
                }
                rest.is_empty().then_some(Self::Multi(steps))
            }
            _ => Some(Self::Call(Step { args, deadlines: Vec::new() })),
        }
    }

    /// The commands of a call, in order. None for what is left of one.
    pub(crate) fn steps(&self) -> &[Step<'a>] {
        match self {
            Self::Call(step) => slice::from_ref(step),
            Self::Multi(steps) => steps,
            Self::Ends(_) => &[],
        }
    }
}

/// So many times, each with its key, and what is behind them.
fn pairs<'w, 'a>(words: &'w [&'a [u8]], count: usize) -> Option<(Times<'a>, &'w [&'a [u8]])> {
    let (pairs, behind) = words.split_at_checked(count.checked_mul(2)?)?;
    let pairs = pairs.chunks_exact(2).map(|pair| match pair {
        [at, key] => Some((*key, number(at)?)),
        _ => None,
    });
    Some((pairs.collect::<Option<_>>()?, behind))
}

/// Whether `args` have a name that is fusebox's own.
pub(crate) fn is_reserved(args: &[&[u8]]) -> bool {
    let name = args.first().and_then(|name| name.get(..PREFIX.len()));
    name.is_some_and(|name| name.eq_ignore_ascii_case(PREFIX))
}

/// Whether `body` is a transaction.
pub(crate) fn is_multi(body: &[u8]) -> bool {
    const HEAD: &[u8] = b"$13\r\nFUSEBOX.MULTI\r\n";
    let line = body.iter().take(16).position(|byte| *byte == b'\n');
    line.and_then(|end| body.get(end + 1..)).is_some_and(|rest| rest.starts_with(HEAD))
}

/// `step` as a call to keys that have deadlines.
pub(crate) fn until(step: &Step<'_>) -> Bytes {
    let mut words = vec![Cow::Borrowed(UNTIL), text(step.deadlines.len())];
    words.extend(timed(&step.deadlines));
    words.extend(step.args.iter().map(|arg| Cow::Borrowed(*arg)));
    resp::command(&words)
}

/// `steps` as a transaction.
pub(crate) fn multi(steps: &[Step<'_>]) -> Bytes {
    let mut words = vec![Cow::Borrowed(MULTI)];
    for step in steps {
        words.extend([text(step.args.len()), text(step.deadlines.len())]);
        words.extend(timed(&step.deadlines));
        words.extend(step.args.iter().map(|arg| Cow::Borrowed(*arg)));
    }
    resp::command(&words)
}

/// The deadlines of keys as a residue.
pub(crate) fn ends(ends: &Ends<'_>) -> Bytes {
    let mut words: Vec<Cow<'_, [u8]>> = Vec::with_capacity(2 + 2 * ends.keys.len());
    match ends.keys.as_slice() {
        [(_, first), others @ ..] if others.iter().all(|(_, at)| at == first) => {
            words.extend([Cow::Borrowed(if ends.sure { DEADLINE } else { PERHAPS }), text(*first)]);
            words.extend(ends.keys.iter().map(|(key, _)| Cow::Borrowed(*key)));
        }
        keys => {
            words.extend([Cow::Borrowed(DEADLINES), text(u8::from(ends.sure))]);
            words.extend(timed(keys));
        }
    }
    resp::command(&words)
}

/// The caller's own call in a stored one.
pub(crate) fn original(body: &Bytes) -> Bytes {
    match Form::of(body) {
        Some(Form::Call(step)) if !step.deadlines.is_empty() => resp::command(&step.args),
        Some(Form::Multi(mut steps)) => {
            for step in &mut steps {
                step.deadlines.clear();
            }
            multi(&steps)
        }
        _ => body.clone(),
    }
}

fn timed<'w>(keys: &'w [(&[u8], u64)]) -> impl Iterator<Item = Cow<'w, [u8]>> {
    keys.iter().flat_map(|(key, at)| [text(*at), Cow::Borrowed(*key)])
}

fn text(number: impl ToString) -> Cow<'static, [u8]> {
    Cow::Owned(number.to_string().into_bytes())
}

fn number<N: FromStr>(word: &[u8]) -> Option<N> {
    std::str::from_utf8(word).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_is_read_as_it_was_written() {
        let args: [&[u8]; 3] = [b"APPEND", b"k", b"v"];
        let step = |deadlines: &[(&'static [u8], u64)]| Step {
            args: args.to_vec(),
            deadlines: deadlines.to_vec(),
        };
        let both = || step(&[(b"k", 7), (b"j", 8)]);
        let stored = until(&both());
        assert_eq!(Form::of(&stored), Some(Form::Call(both())));
        assert_eq!(original(&stored), resp::command(&args));
        let plain = resp::command(&args);
        assert_eq!(Form::of(&plain), Some(Form::Call(step(&[]))));
        assert_eq!(original(&plain), plain);
        for steps in [vec![], vec![step(&[])], vec![both(), step(&[]), step(&[(b"k", 1)])]] {
            let stored = multi(&steps);
            assert!(is_multi(&stored) && !is_multi(&plain));
            let plain = steps.iter().map(|_| step(&[])).collect::<Vec<_>>();
            assert_eq!(original(&stored), multi(&plain));
            assert_eq!(Form::of(&stored), Some(Form::Multi(steps)));
        }
        for sure in [true, false] {
            for (keys, name) in [
                (
                    vec![(&b"k"[..], 9)],
                    if sure { "FUSEBOX.DEADLINE 9 k" } else { "FUSEBOX.PERHAPS 9 k" },
                ),
                (
                    vec![(&b"k"[..], 9), (b"j", 8)],
                    if sure {
                        "FUSEBOX.DEADLINES 1 9 k 8 j"
                    } else {
                        "FUSEBOX.DEADLINES 0 9 k 8 j"
                    },
                ),
            ] {
                let expected = Ends { keys, sure };
                let residue = ends(&expected);
                assert_eq!(residue, resp::command(&name.split(' ').collect::<Vec<_>>()));
                assert_eq!(Form::of(&residue), Some(Form::Ends(expected)));
                assert_eq!(original(&residue), residue);
            }
        }
        for bad in [
            "FUSEBOX.UNTIL 9 1 k SET",
            "FUSEBOX.UNTIL 1 x k SET",
            "FUSEBOX.DEADLINE x k",
            "FUSEBOX.DEADLINES 1 x k",
            "FUSEBOX.DEADLINES 1 9 k 9",
            "FUSEBOX.MULTI 3 0 SET k",
            "FUSEBOX.MULTI 2 1 k GET k",
            "FUSEBOX.MULTI 2 0 GET k 1",
        ] {
            let body = resp::command(&bad.split(' ').collect::<Vec<_>>());
            assert_eq!(Form::of(&body), None, "{bad}");
        }
        assert!(is_reserved(&[b"fusebox.deadline"]) && !is_reserved(&[b"FUSEBOX"]));
    }
}
