//! How long a command waits for others, which is one of its words.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::telling::Protocol;
use crate::kinds::redis::protocol::resp;

/// A time that is longer than any connection lasts: what says more waits for ever.
const EVER: Duration = Duration::from_secs(365 * 86_400);

/// In what a command says how long it waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    Seconds,
    Milliseconds,
}

/// How long a command waits for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Waiting {
    /// Which of its words says so.
    at: usize,
    unit: Unit,
    /// `None` for ever.
    time: Option<Duration>,
    /// It asks for what comes from the moment on in which it is read.
    from_now: bool,
}

impl Waiting {
    /// What the words of a command say. `None` if it does not wait, or if they are wrong: then the server says why.
    pub(super) fn of(args: &[&[u8]]) -> Option<Self> {
        use Unit::{Milliseconds, Seconds};
        let last = args.len().checked_sub(1)?;
        let (at, unit) = match args.first()?.to_ascii_uppercase().as_slice() {
            b"BLPOP" | b"BRPOP" | b"BLMOVE" | b"BRPOPLPUSH" | b"BZPOPMIN" | b"BZPOPMAX" => {
                (last, Seconds)
            }
            b"BLMPOP" | b"BZMPOP" => (1, Seconds),
            b"XREAD" => (behind_block(args, 1)?, Milliseconds),
            // GROUP, its name and its consumer's.
            b"XREADGROUP" => (behind_block(args, 4)?, Milliseconds),
            _ => return None,
        };
        let word = str::from_utf8(args.get(at)?).ok()?;
        let time = match unit {
            Seconds => {
                let seconds: f64 = word.parse().ok()?;
                let time = Duration::try_from_secs_f64(seconds).ok()?;
                // The least that a server waits; nothing at all is for ever.
                if seconds > 0.0 { time.max(Duration::from_millis(1)) } else { time }
            }
            Milliseconds => Duration::from_millis(word.parse().ok()?),
        };
        let from_now = unit == Milliseconds && args.contains(&&b"$"[..]);
        let time = (!time.is_zero() && time < EVER).then_some(time);
        Some(Self { at, unit, time, from_now })
    }

    /// Whether it asks for the same if it is sent again later. XREAD with `$` does not: what came meanwhile is missed.
    pub(super) fn may_be_sent_again(self) -> bool {
        !self.from_now
    }

    /// Until when it waits if it begins `now`; `None` for ever.
    pub(super) fn until(self, now: Instant) -> Option<Instant> {
        self.time.and_then(|time| now.checked_add(time))
    }

    /// The same command, waiting for what is left of its time.
    pub(super) fn with_time(self, args: &[&[u8]], left: Option<Duration>) -> Bytes {
        let left = left.map(|left| left.max(Duration::from_millis(1)));
        let time = match (left, self.unit) {
            (None, _) => "0".to_owned(),
            (Some(left), Unit::Seconds) => format!("{:.3}", left.as_secs_f64()),
            (Some(left), Unit::Milliseconds) => left.as_millis().to_string(),
        };
        let mut args = args.to_vec();
        if let Some(word) = args.get_mut(self.at) {
            *word = time.as_bytes();
        }
        resp::command(&args)
    }
}

/// The place of the word behind BLOCK, which is among those from `first` on.
fn behind_block(args: &[&[u8]], first: usize) -> Option<usize> {
    let mut at = first;
    loop {
        match args.get(at)?.to_ascii_uppercase().as_slice() {
            b"BLOCK" => return Some(at + 1),
            b"COUNT" => at += 2,
            b"NOACK" => at += 1,
            _ => return None,
        }
    }
}

/// What a command is answered whose time is over.
pub(super) fn nothing_came(protocol: Protocol) -> &'static [u8] {
    if protocol == Protocol::Resp3 { b"_\r\n" } else { b"*-1\r\n" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(command: &str) -> Vec<&[u8]> {
        command.split(' ').map(str::as_bytes).collect()
    }

    #[test]
    fn the_word_that_says_how_long_is_found_and_replaced() {
        let half = Duration::from_millis(500);
        for (command, time, left) in [
            ("BLPOP a b 2", Some(2_000), "BLPOP a b 0.500"),
            ("brpop a 0.25", Some(250), "brpop a 0.500"),
            ("BLMOVE a b LEFT RIGHT 1", Some(1_000), "BLMOVE a b LEFT RIGHT 0.500"),
            ("BLMPOP 3 1 k LEFT", Some(3_000), "BLMPOP 0.500 1 k LEFT"),
            ("BZPOPMIN z 0", None, "BZPOPMIN z 0.500"),
            ("BLPOP k 1e17", None, "BLPOP k 0.500"),
            ("BLPOP k 0.0000000001", Some(1), "BLPOP k 0.500"),
            ("XREAD COUNT 2 BLOCK 40 STREAMS s $", Some(40), "XREAD COUNT 2 BLOCK 500 STREAMS s $"),
            (
                "XREADGROUP GROUP BLOCK BLOCK NOACK BLOCK 0 STREAMS s >",
                None,
                "XREADGROUP GROUP BLOCK BLOCK NOACK BLOCK 500 STREAMS s >",
            ),
        ] {
            let args = words(command);
            let waiting = Waiting::of(&args).expect(command);
            assert_eq!(waiting.time, time.map(Duration::from_millis), "{command}");
            let expected = resp::command(&words(left));
            assert_eq!(waiting.with_time(&args, Some(half)), expected, "{command}");
        }
        for (command, again) in [
            ("XREAD BLOCK 5 STREAMS s $", false),
            ("XREAD BLOCK 5 STREAMS s 0-1", true),
            ("BLPOP $ 5", true),
        ] {
            assert_eq!(
                Waiting::of(&words(command)).unwrap().may_be_sent_again(),
                again,
                "{command}"
            );
        }
        let args = words("BLPOP k 5");
        let forever = Waiting::of(&args).unwrap().with_time(&args, None);
        assert_eq!(forever, resp::command(&words("BLPOP k 0")));
        let none_left = Waiting::of(&args).unwrap().with_time(&args, Some(Duration::ZERO));
        assert_eq!(none_left, resp::command(&words("BLPOP k 0.001")), "0 would be for ever");
    }

    #[test]
    fn wrong_words_are_the_servers_affair() {
        for command in [
            "BLPOP k -1",
            "BLPOP k inf",
            "BLPOP k nan",
            "BLPOP k x",
            "BLPOP",
            "XREAD BLOCK 1.5 STREAMS s $",
            "XREAD BLOCK -1 STREAMS s $",
            "XREAD STREAMS BLOCK 0",
            "XREAD BLOCK",
            "GET k",
        ] {
            assert_eq!(Waiting::of(&words(command)), None, "{command}");
        }
    }
}
