//! The forms in which a queued call is stored where that is not the caller's own.
//!
//! | form | what it is |
//! | --- | --- |
//! | `FUSEBOX.UNTIL <count> <time> <key> … <the caller's words>` | a call to keys that had deadlines when it was accepted, which fusebox had carried to the server |
//! | `FUSEBOX.DEADLINE <time> <key> …` | a residue: the keys are there, and this is their deadline, still to be set ([`super::residue`]) |
//! | `FUSEBOX.PERHAPS <time> <key> …` | a residue of which it is not certain that the keys are there and have this deadline |
//!
//! Times are in milliseconds since the epoch. A caller's call under such a name is refused as unknown before
//! it is planned, and what is sent live is never taken for one.

use bytes::Bytes;

use super::resp;

const PREFIX: &[u8] = b"FUSEBOX.";
const UNTIL: &[u8] = b"FUSEBOX.UNTIL";
const DEADLINE: &[u8] = b"FUSEBOX.DEADLINE";
const PERHAPS: &[u8] = b"FUSEBOX.PERHAPS";

/// A queued call as it is stored.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Form<'a> {
    /// A caller's call.
    Call {
        /// Its words.
        args: Vec<&'a [u8]>,
        /// Its keys that had a deadline when it was accepted, with that.
        deadlines: Vec<(&'a [u8], u64)>,
    },
    /// What is left of a call whose deadline waits.
    Deadline {
        /// When the keys end.
        at: u64,
        keys: Vec<&'a [u8]>,
        /// Whether they are there and end then, unless a write that stands behind settles it otherwise.
        sure: bool,
    },
}

impl<'a> Form<'a> {
    /// Reads a stored body; `None` for what is no command.
    pub(crate) fn of(body: &'a [u8]) -> Option<Self> {
        let args = resp::arguments(body).ok()?;
        match args.as_slice() {
            [name @ (DEADLINE | PERHAPS), at, keys @ ..] => {
                let sure = *name == DEADLINE;
                Some(Self::Deadline { at: time(at)?, keys: keys.to_vec(), sure })
            }
            [UNTIL, count, rest @ ..] => {
                let count = usize::try_from(time(count)?).ok()?.checked_mul(2)?;
                let (pairs, args) = rest.split_at_checked(count)?;
                let deadlines = pairs.chunks_exact(2).map(|pair| match pair {
                    [at, key] => Some((*key, time(at)?)),
                    _ => None,
                });
                Some(Self::Call {
                    args: args.to_vec(),
                    deadlines: deadlines.collect::<Option<_>>()?,
                })
            }
            _ => Some(Self::Call { args, deadlines: Vec::new() }),
        }
    }
}

/// Whether `args` bear a name that is fusebox's own.
pub(crate) fn is_reserved(args: &[&[u8]]) -> bool {
    let name = args.first().and_then(|name| name.get(..PREFIX.len()));
    name.is_some_and(|name| name.eq_ignore_ascii_case(PREFIX))
}

/// `args` as a call to keys that have these deadlines.
pub(crate) fn until(deadlines: &[(&[u8], u64)], args: &[&[u8]]) -> Bytes {
    let times: Vec<String> = deadlines.iter().map(|(_, at)| at.to_string()).collect();
    let count = deadlines.len().to_string();
    let mut words: Vec<&[u8]> = vec![UNTIL, count.as_bytes()];
    for ((key, _), at) in deadlines.iter().zip(&times) {
        words.extend([at.as_bytes(), key]);
    }
    words.extend(args);
    resp::command(&words)
}

/// The deadline of `keys` as a residue.
pub(crate) fn deadline(at: u64, keys: &[&[u8]], sure: bool) -> Bytes {
    let at = at.to_string();
    let mut words: Vec<&[u8]> = vec![if sure { DEADLINE } else { PERHAPS }, at.as_bytes()];
    words.extend(keys);
    resp::command(&words)
}

/// The caller's own call in a stored one.
pub(crate) fn original(body: &Bytes) -> Bytes {
    match Form::of(body) {
        Some(Form::Call { args, deadlines }) if !deadlines.is_empty() => resp::command(&args),
        _ => body.clone(),
    }
}

fn time(word: &[u8]) -> Option<u64> {
    std::str::from_utf8(word).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_is_read_as_it_was_written() {
        let args: [&[u8]; 3] = [b"APPEND", b"k", b"v"];
        let stored = until(&[(b"k", 7), (b"j", 8)], &args);
        let expected =
            Form::Call { args: args.to_vec(), deadlines: vec![(&b"k"[..], 7), (&b"j"[..], 8)] };
        assert_eq!(Form::of(&stored), Some(expected));
        assert_eq!(original(&stored), resp::command(&args));
        let plain = resp::command(&args);
        let expected = Form::Call { args: args.to_vec(), deadlines: vec![] };
        assert_eq!(Form::of(&plain), Some(expected));
        assert_eq!(original(&plain), plain);
        for sure in [true, false] {
            let residue = deadline(9, &[b"k"], sure);
            let expected = Form::Deadline { at: 9, keys: vec![b"k"], sure };
            assert_eq!(Form::of(&residue), Some(expected));
            assert_eq!(original(&residue), residue);
        }
        for bad in ["FUSEBOX.UNTIL 9 1 k SET", "FUSEBOX.UNTIL 1 x k SET", "FUSEBOX.DEADLINE x k"] {
            let body = resp::command(&bad.split(' ').collect::<Vec<_>>());
            assert_eq!(Form::of(&body), None, "{bad}");
        }
        assert!(is_reserved(&[b"fusebox.deadline"]) && !is_reserved(&[b"FUSEBOX"]));
    }
}
