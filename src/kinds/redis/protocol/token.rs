//! Tokens: a write that is not absolute is applied at most once, however often it is tried.
//!
//! Such a write runs within one script (`token/carry.lua`) from the first attempt on. A script runs as a
//! whole or not at all, and nothing else runs in between:
//!
//! 1. **GET** the marker `fusebox:<op_id>`. If it exists, the write was applied before: the script answers
//!    with the marker and does nothing else.
//! 2. **SET** the marker as *pending*. If the server refuses this or the GET (the account may not use the
//!    marker, the memory is full), nothing was applied, and the script says so.
//! 3. Run the command. If it fails, the marker is overwritten with `-`, which counts as no marker, for one
//!    millisecond; so the account needs GET and SET and no other command.
//! 4. SET the marker to the reply, for seven days. This cannot fail any more: once a script has written,
//!    the server holds nothing against its further writes.
//!
//! A marker is `<digest><kind><text>`:
//!
//! | part | meaning |
//! | --- | --- |
//! | digest | 16 hexadecimal digits of the call's digest: another call under the same name is a conflict |
//! | kind | `+` status, `:` integer, `$` string of at most 4 KiB, `_` nil: the reply, read under either protocol |
//! | | `!` the reply was not kept (an array, a double, a long string) |
//! | | `~` of a transaction: the number of a command that has failed, and with which error, if others have not |
//! | | `?` pending; seen only if the script ended in its middle, which no server does: the outcome is unknown |
//!
//! The marker of an older release is `1`: it matches any call and keeps no reply.
//!
//! **No wrong number.** A script sees integers as doubles. One of 2^53 or more is read back from the key
//! as text after INCR and its like and HINCRBY; after other commands, and within arrays, the reply is
//! given up as lost. Lua loses a nil within an array of RESP3, so commands that answer such arrays are run
//! under RESP2, in which their replies are otherwise the same.
//!
//! A transaction runs within a script of the same form (`token/multi.lua`). As EXEC does, it runs every command,
//! whichever fails; if one fails and another does not, the script says which, and the marker stays.
//!
//! The same script carries writes that inherit a deadline ([`crate::kinds::redis::connector::stored`]): a key that is
//! missing before the command and there after it gets the deadline in the same step.

use std::borrow::Cow;

use bytes::Bytes;
use fusebox_actors::connector::{AttemptError, Attempted, ErrorCode, OwnCode};
use fusebox_state::{ErrorClass, OpId, Verdict, Words};

use super::{
    cache, outcome,
    resp::{self, Reply},
    server_code::ServerCode,
};

/// The most words of a command that a script can pass on: Lua's stack holds about 8,000.
pub(crate) const WORDS_MAX: usize = 7000;

/// The script as it is sent.
pub(crate) const SCRIPT: &str =
    concat!(include_str!("token/marker.lua"), include_str!("token/carry.lua"));

/// The script that carries a transaction: its marker keeps no reply.
const MULTI_SCRIPT: &str =
    concat!(include_str!("token/marker.lua"), include_str!("token/multi.lua"));

/// The code of a transaction of which a command has failed, and others have not.
pub(crate) const APPLIED_IN_PART: &str = "applied_in_part";

/// Commands whose arrays may hold a nil.
const NILS_WITHIN: [&[u8]; 4] = [b"bitfield", b"hgetex", b"hgetdel", b"xclaim"];

/// A command within the script.
pub(crate) struct Wrapped<'a> {
    /// The command.
    pub(crate) args: &'a [&'a [u8]],
    /// Its keys.
    pub(crate) keys: &'a [&'a [u8]],
    /// By what it is recognised: its name and its digest. `None` for an absolute write.
    pub(crate) token: Option<(OpId, u64)>,
    /// Keys that get a deadline if the command makes them, in milliseconds since the epoch.
    pub(crate) deadlines: &'a [(&'a [u8], u64)],
}

impl Wrapped<'_> {
    /// The call of the script; `None` if the command has too many words.
    pub(crate) fn command(&self, resp3: bool) -> Option<Bytes> {
        if self.args.len() > WORDS_MAX {
            return None;
        }
        let name = self.args.first()?.to_ascii_lowercase();
        let protocol = if resp3 && !NILS_WITHIN.contains(&name.as_slice()) { "3" } else { "2" };
        let marker = self.token.map(|(token, _)| marker(token));
        let digest = self.token.map(|(_, digest)| format!("{digest:016x}")).unwrap_or_default();
        let keys = self.keys.len() + usize::from(marker.is_some());
        let mut words: Vec<Cow<'_, [u8]>> =
            Vec::with_capacity(self.args.len() + keys + 6 + 2 * self.deadlines.len());
        words.extend([Cow::Borrowed(&b"EVAL"[..]), Cow::Borrowed(SCRIPT.as_bytes())]);
        words.push(text(keys.to_string()));
        words.extend(marker.map(text));
        words.extend(self.keys.iter().map(|key| Cow::Borrowed(*key)));
        words.extend([Cow::Borrowed(protocol.as_bytes()), text(digest)]);
        words.push(text(self.deadlines.len().to_string()));
        for (key, time) in self.deadlines {
            words.extend([Cow::Borrowed(*key), text(time.to_string())]);
        }
        words.extend(self.args.iter().map(|arg| Cow::Borrowed(*arg)));
        Some(resp::command(&words))
    }
}

/// A command of a transaction, as the server is to run it.
pub(crate) struct Running<'a> {
    /// Its words.
    pub(crate) words: Vec<Cow<'a, [u8]>>,
    /// Keys that get a deadline if the command makes them, in milliseconds since the epoch.
    pub(crate) deadlines: Vec<(&'a [u8], u64)>,
}

/// The call of the script that runs `commands`, whose keys these are.
pub(crate) fn multi(commands: &[Running<'_>], keys: &[&[u8]], token: Option<(OpId, u64)>) -> Bytes {
    let marker = token.map(|(token, _)| marker(token));
    let digest = token.map(|(_, digest)| format!("{digest:016x}")).unwrap_or_default();
    let count = keys.len() + usize::from(marker.is_some());
    let mut words: Vec<Cow<'_, [u8]>> = vec![
        Cow::Borrowed(b"EVAL"),
        Cow::Borrowed(MULTI_SCRIPT.as_bytes()),
        text(count.to_string()),
    ];
    words.extend(marker.map(text));
    words.extend(keys.iter().map(|key| Cow::Borrowed(*key)));
    words.extend([Cow::Borrowed(&b"2"[..]), text(digest)]);
    for command in commands {
        let (count, deadlines) = (command.words.len(), command.deadlines.len());
        words.extend([text(count.to_string()), text(deadlines.to_string())]);
        for (key, time) in &command.deadlines {
            words.extend([Cow::Borrowed(*key), text(time.to_string())]);
        }
        words.extend(command.words.iter().map(|word| Cow::Borrowed(&**word)));
    }
    resp::command(&words)
}

fn text(text: String) -> Cow<'static, [u8]> {
    Cow::Owned(text.into_bytes())
}

/// The key that exists while it must be known that `token`'s write was applied.
pub(crate) fn marker(token: OpId) -> String {
    format!("fusebox:{token}")
}

/// How the attempt ended that the script answered with `frame`. `digest` is the call's own.
pub(crate) fn read(frame: &Bytes, digest: u64, resp3: bool) -> Ran {
    let Some(mut items) = Reply::of(frame).and_then(|reply| reply.items()) else {
        return Ran::Ended(Box::new(unforeseen(frame)));
    };
    let tag = items.next().and_then(Reply::of).and_then(|tag| tag.text()).unwrap_or_default();
    let rest = items.next();
    let said = rest.and_then(Reply::of).and_then(|reply| reply.text()).unwrap_or_default();
    match tag {
        b"new" => {
            let reply = rest.map_or_else(|| cache::nil(resp3), |reply| frame.slice_ref(reply));
            Ran::Ended(Box::new(Attempted::answered(reply)))
        }
        b"integer" => {
            Ran::Ended(Box::new(Attempted::answered([b":", said, b"\r\n"].concat().into())))
        }
        b"lost" => Ran::Ended(Box::new(Attempted::recognised(cache::nil(resp3)))),
        b"old" => Ran::Ended(Box::new(found(said, digest, resp3))),
        b"error" => Ran::Failed(error(said)),
        b"marker" => Ran::Unmarked(error(said)),
        b"partly" => {
            let number = match items.next().and_then(Reply::of) {
                Some(Reply::Int(number)) => number.to_string(),
                _ => String::new(),
            };
            Ran::Ended(Box::new(applied_in_part(&number, said)))
        }
        _ => Ran::Ended(Box::new(unforeseen(frame))),
    }
}

/// What became of a run of the script.
pub(crate) enum Ran {
    /// The command was carried out, now or before, or it is not known whether it was.
    Ended(Box<Attempted>),
    /// The command failed with this error reply.
    Failed(Bytes),
    /// The server refused the marker with this error reply; the command was not run.
    Unmarked(Bytes),
}

fn error(said: &[u8]) -> Bytes {
    [b"-", said, b"\r\n"].concat().into()
}

/// The command of this number in a transaction has failed, and others have not.
fn applied_in_part(number: &str, said: &[u8]) -> Attempted {
    let own = format!("command {number} of the transaction has failed, but others were applied");
    let message = Words::quoting(own.clone(), format!("{own}: {}", String::from_utf8_lossy(said)));
    let error = AttemptError {
        doubt: Some(Bytes::new()),
        reply: Some(error(said)),
        ..AttemptError::own(ErrorClass::Rejected, ErrorCode::OfKind(APPLIED_IN_PART), message)
    };
    Attempted::failed(Verdict::Success, error)
}

/// The write was applied before: what its `marker` says of it.
fn found(marker: &[u8], digest: u64, resp3: bool) -> Attempted {
    let Some((own, kept)) = marker.split_at_checked(16) else {
        // Of an older release, which kept neither.
        return Attempted::recognised(cache::nil(resp3));
    };
    if own != format!("{digest:016x}").as_bytes() {
        let message = "this op_id belongs to another call, which was applied";
        let error = AttemptError::own(ErrorClass::Conflict, OwnCode::OpIdConflict, message);
        return Attempted::failed(Verdict::Success, error);
    }
    let reply: Bytes = match kept.split_first() {
        Some((b'+' | b':', _)) => [kept, b"\r\n"].concat().into(),
        Some((b'$', text)) => {
            let mut out = bytes::BytesMut::with_capacity(text.len() + 16);
            resp::write_bulk(&mut out, text);
            out.freeze()
        }
        Some((b'_', _)) => cache::nil(resp3),
        Some((b'?', _)) => {
            let message = "the marker says that the write was begun, but not that it was applied";
            let error = AttemptError::own(
                ErrorClass::Ambiguous,
                ErrorCode::OfKind("pending_marker"),
                message,
            );
            return Attempted::failed(Verdict::Success, error);
        }
        Some((b'~', failed)) => {
            let failed = String::from_utf8_lossy(failed);
            let (number, said) = failed.split_once(' ').unwrap_or(("", &failed));
            return applied_in_part(number, said.as_bytes());
        }
        _ => return Attempted::recognised(cache::nil(resp3)),
    };
    Attempted::answered(reply)
}

/// The script answered what it never answers.
fn unforeseen(frame: &Bytes) -> Attempted {
    let whole = format!("the script ended unexpectedly: {}", String::from_utf8_lossy(frame));
    let message = Words::quoting("the script ended unexpectedly", whole);
    let error = AttemptError::own(ErrorClass::Unknown, ErrorCode::OfKind("script"), message);
    Attempted::failed(Verdict::Success, AttemptError { unclassified: true, ..error })
}

/// The command that removes the markers of `tokens`.
pub(crate) fn forget(tokens: &[OpId]) -> Bytes {
    let words: Vec<String> =
        std::iter::once("UNLINK".to_owned()).chain(tokens.iter().map(|t| marker(*t))).collect();
    resp::command(&words)
}

/// Whether `error` says that the server will not run the script at all, rather than that the command
/// within failed.
pub(crate) fn is_script_refused(error: &AttemptError) -> bool {
    let message = error.message.whole().to_ascii_lowercase();
    match outcome::server_code(error) {
        Some(ServerCode::NoPerm) => message.contains("'eval'") || message.contains("eval command"),
        Some(ServerCode::Err) => message.contains("unknown command") && message.contains("eval"),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn old(marker: &[u8], resp3: bool) -> Attempted {
        let mut frame = bytes::BytesMut::from(&b"*2\r\n$3\r\nold\r\n"[..]);
        resp::write_bulk(&mut frame, marker);
        match read(&frame.freeze(), 0xab, resp3) {
            Ran::Ended(ended) => *ended,
            _ => panic!("it was found"),
        }
    }

    #[test]
    fn the_script_gets_the_marker_the_keys_and_the_command() {
        let token = OpId::from_u128(7);
        let args: [&[u8]; 3] = [b"INCRBY", b"k", b"5"];
        let keys: [&[u8]; 1] = [b"k"];
        let deadlines = [(keys[0], 9)];
        let mut wrapped =
            Wrapped { args: &args, keys: &keys, token: Some((token, 0xab)), deadlines: &[] };
        let words = |wrapped: &Wrapped<'_>, resp3| {
            let body = wrapped.command(resp3).unwrap();
            let words: Vec<String> = resp::arguments(&body)
                .unwrap()
                .into_iter()
                .map(|word| String::from_utf8(word.to_vec()).unwrap())
                .collect();
            words
        };
        let (marker, digest) = (marker(token), "00000000000000ab");
        let expected = ["EVAL", SCRIPT, "2", &marker, "k", "2", digest, "0", "INCRBY", "k", "5"];
        assert_eq!(words(&wrapped, false), expected);
        assert_eq!(words(&wrapped, true)[5], "3");
        (wrapped.token, wrapped.deadlines) = (None, &deadlines);
        let expected = ["EVAL", SCRIPT, "1", "k", "3", "", "1", "k", "9", "INCRBY", "k", "5"];
        assert_eq!(words(&wrapped, true), expected);
        let many = vec![&b"x"[..]; WORDS_MAX + 1];
        assert!(Wrapped { args: &many, ..wrapped }.command(true).is_none());
    }

    #[test]
    fn a_marker_reads_under_either_protocol() {
        for (kept, in_2, in_3) in [
            ("+OK", "+OK\r\n", "+OK\r\n"),
            (":-7", ":-7\r\n", ":-7\r\n"),
            ("$a\r\nb", "$4\r\na\r\nb\r\n", "$4\r\na\r\nb\r\n"),
            ("$", "$0\r\n\r\n", "$0\r\n\r\n"),
            ("_", "$-1\r\n", "_\r\n"),
        ] {
            for (resp3, expected) in [(false, in_2), (true, in_3)] {
                let ended = old(format!("00000000000000ab{kept}").as_bytes(), resp3);
                assert!(!ended.reply_lost, "{kept}");
                assert_eq!(ended.result.unwrap(), expected, "{kept}");
            }
        }
    }

    #[test]
    fn what_a_marker_does_not_keep_is_lost_and_another_call_is_a_conflict() {
        for marker in ["1", "00000000000000ab!", "00000000000000ab", "00000000000000ab&new"] {
            let ended = old(marker.as_bytes(), true);
            assert!(ended.reply_lost, "{marker}");
            assert_eq!(ended.result.unwrap(), "_\r\n");
        }
        let error = old(b"00000000000000ab~2 WRONGTYPE of it", true).result.unwrap_err();
        assert_eq!((error.class, error.doubt), (ErrorClass::Rejected, Some(Bytes::new())));
        assert_eq!(error.reply.unwrap(), "-WRONGTYPE of it\r\n");
        assert!(error.message.said().starts_with("command 2 of"), "{}", error.message.said());
        let error = old(b"00000000000000ac+OK", true).result.unwrap_err();
        assert_eq!((error.class, error.doubt), (ErrorClass::Conflict, None));
        assert_eq!(error.code.as_str(), "op_id_conflict");
        let error = old(b"00000000000000ab?", true).result.unwrap_err();
        assert_eq!((error.class, error.doubt), (ErrorClass::Ambiguous, Some(Bytes::new())));
    }

    #[test]
    fn a_refused_script_is_told_from_a_refused_command() {
        let refused = |message: &str| {
            let ended = outcome::of([b"-", message.as_bytes(), b"\r\n"].concat().into());
            is_script_refused(&ended.result.unwrap_err())
        };
        assert!(refused("ERR unknown command 'EVAL', with args beginning with:"));
        assert!(refused("NOPERM this user has no permissions to run the 'eval' command"));
        assert!(!refused("NOPERM this user has no permissions to run the 'incr' command"));
        assert!(!refused("WRONGTYPE eval"));
    }
}
