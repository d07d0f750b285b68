//! Tokens: a write that is not absolute is applied at most once, however often it is tried.
//!
//! It runs within one script, from the first attempt on. The script looks for the marker
//! `fusebox:<op_id>`: where it stands, the write was applied before and the reply is nil, since the
//! reply of then is gone. Else it runs the command and sets the marker, for seven days, unless the
//! command failed. A script runs as a whole or not at all, so there is no state in between.

use std::borrow::Cow;

use bytes::Bytes;
use fusebox_state::OpId;

use super::resp;

/// The most words of a command that a script can pass on: Lua's stack holds about 8,000.
pub(super) const WORDS_MAX: usize = 7000;

macro_rules! script {
    ($first:literal) => {
        concat!(
            $first,
            "if redis.call('EXISTS', KEYS[1]) == 1 then return nil end\n",
            "local reply = redis.pcall(unpack(ARGV))\n",
            "if type(reply) == 'table' and reply.err then return reply end\n",
            "redis.call('SET', KEYS[1], '1', 'PX', 604800000)\n",
            "return reply\n",
        )
    };
}

/// The script as it is sent, for a connection that speaks RESP2.
pub(crate) const SCRIPT_2: &str = script!("");
/// The same for RESP3, so that a reply keeps its type.
pub(crate) const SCRIPT_3: &str = script!("redis.setresp(3)\n");

/// The key that stands while it must be known that `token`'s write was applied.
pub(super) fn marker(token: OpId) -> String {
    format!("fusebox:{token}")
}

/// The command `body` within the script. `keys` are its keys' positions.
pub(super) fn wrap(body: &Bytes, keys: &[usize], token: OpId, resp3: bool) -> Option<Bytes> {
    let args = resp::arguments(body).ok().filter(|args| args.len() <= WORDS_MAX)?;
    let keys: Vec<&[u8]> = keys.iter().filter_map(|at| args.get(*at).copied()).collect();
    let script = if resp3 { SCRIPT_3 } else { SCRIPT_2 };
    let mut words: Vec<Cow<'_, [u8]>> = Vec::with_capacity(args.len() + keys.len() + 4);
    words.push(Cow::Borrowed(b"EVAL"));
    words.push(Cow::Borrowed(script.as_bytes()));
    words.push(Cow::Owned((keys.len() + 1).to_string().into_bytes()));
    words.push(Cow::Owned(marker(token).into_bytes()));
    words.extend(keys.into_iter().map(Cow::Borrowed));
    words.extend(args.into_iter().map(Cow::Borrowed));
    Some(resp::command(&words))
}

/// The command that removes the markers of `tokens`.
pub(super) fn forget(tokens: &[OpId]) -> Bytes {
    let words: Vec<String> =
        std::iter::once("UNLINK".to_owned()).chain(tokens.iter().map(|t| marker(*t))).collect();
    resp::command(&words)
}

/// Whether `error` says that the server will not run the script at all, rather than that the command
/// within failed.
pub(super) fn refused(code: &str, message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    match code {
        "NOPERM" => message.contains("'eval'") || message.contains("eval command"),
        "ERR" => message.contains("unknown command") && message.contains("eval"),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_gets_the_marker_the_keys_and_the_command() {
        let token = OpId::from_u128(7);
        let body = resp::command(&["INCRBY", "k", "5"]);
        let wrapped = wrap(&body, &[1], token, false).unwrap();
        let words = resp::arguments(&wrapped).unwrap();
        let marker = marker(token);
        let expected = ["EVAL", SCRIPT_2, "2", &marker, "k", "INCRBY", "k", "5"];
        assert_eq!(words, expected.map(str::as_bytes));
    }

    #[test]
    fn a_refused_script_is_told_from_a_refused_command() {
        assert!(refused("ERR", "ERR unknown command 'EVAL', with args beginning with:"));
        assert!(refused("NOPERM", "NOPERM this user has no permissions to run the 'eval' command"));
        assert!(!refused(
            "NOPERM",
            "NOPERM this user has no permissions to run the 'incr' command"
        ));
        assert!(!refused("WRONGTYPE", "WRONGTYPE eval"));
    }
}
