//! The answer to a client in place of the server's.
//!
//! The first word of an error decides what a client does with it. `LOADING` is a lost connection to most clients and
//! job frameworks, which come back later; any other word is an error of the command, on which workers quit. So what was
//! not executed is answered with `LOADING` unless the door says otherwise. What may have been applied is answered with
//! `FUSEBOX UNKNOWN`, a word that nobody repeats a command on.

use std::{borrow::Cow, time::Duration};

use bytes::{Bytes, BytesMut};
use fusebox_actors::{AckLevel, CallError, CallErrorKind, Reply, Source};
use fusebox_state::OpId;

use crate::kinds::redis::protocol::resp;

/// What Redis says if there are more clients than it takes.
pub(super) const TOO_MANY: &str = "ERR max number of clients reached";

/// The protocol that a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Resp2,
    Resp3,
}

/// The word of the answer that a command was not executed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Unavailable {
    /// `-LOADING …`: clients and workers come back later.
    #[default]
    Loading,
    /// `-FUSEBOX …`: an error of this command, at once.
    Fusebox,
    /// The connection is closed.
    Close,
}

/// What the end of a call comes to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// These bytes.
    Reply(Bytes),
    /// It was not executed, as these bytes say. Without any, the connection is closed instead.
    Unavailable(Option<Bytes>),
    /// It may have been executed: the connection is closed.
    Close,
}

/// What a door says of a command that was not executed.
pub(super) fn unavailable(how: Unavailable, why: &str, retry_after: Option<u64>) -> Answer {
    let word = match how {
        Unavailable::Loading => "LOADING",
        Unavailable::Fusebox => "FUSEBOX",
        Unavailable::Close => return Answer::Unavailable(None),
    };
    let retry = retry_after.map(|seconds| format!("; retry in {seconds} s")).unwrap_or_default();
    Answer::Unavailable(Some(line(&format!("-{word} fusebox: {why}; not executed{retry}"))))
}

/// What a door says of a command that may have been executed.
pub(super) fn unknown(why: &str, close: bool) -> Answer {
    if close {
        return Answer::Close;
    }
    Answer::Reply(line(&format!("-FUSEBOX UNKNOWN {why}; it may have been applied")))
}

/// The answer to a transaction of so many commands, MULTI and EXEC included, that its client has sent whole. If it
/// `may_have_run`, `answer` is EXEC's; else it is what each command is answered but EXEC.
pub(super) fn of_transaction(commands: usize, answer: Answer, may_have_run: bool) -> Answer {
    let of_all = |answer: Bytes| {
        let mut out = BytesMut::new();
        if may_have_run {
            out.extend_from_slice(b"+OK\r\n");
            (2..commands).for_each(|_| out.extend_from_slice(b"+QUEUED\r\n"));
            out.extend_from_slice(&answer);
        } else {
            (1..commands).for_each(|_| out.extend_from_slice(&answer));
            let text = String::from_utf8_lossy(&answer);
            let why = text.split_once(' ').map_or(&*text, |(_, why)| why).trim_end();
            out.extend_from_slice(&error(&format!(
                "EXECABORT Transaction discarded because of: {why}"
            )));
        }
        out.freeze()
    };
    match answer {
        Answer::Reply(answer) => Answer::Reply(of_all(answer)),
        Answer::Unavailable(answer) => Answer::Unavailable(answer.map(of_all)),
        Answer::Close => Answer::Close,
    }
}

/// Whether a call that has failed may have done anything: then its error is that of its last command.
pub(super) fn may_have_run(failed: &CallError) -> bool {
    let is_refused = matches!(failed.kind, CallErrorKind::Refused | CallErrorKind::Conflict);
    failed.outcome_unknown || is_refused && failed.reply.is_some()
}

/// An error line.
pub(super) fn error(text: &str) -> Bytes {
    line(&format!("-{text}"))
}

fn line(text: &str) -> Bytes {
    let mut out = String::with_capacity(text.len() + 2);
    // A line's end within it would be taken for the end of the error.
    out.extend(text.chars().map(|c| if c.is_control() { ' ' } else { c }));
    out.push_str("\r\n");
    Bytes::from(out)
}

/// The source of the previous reply, for who asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    /// `None` for a reply of the server, which is not noted.
    pub(super) source: Option<Source>,
    pub(super) ack: Option<AckLevel>,
    pub(super) age: Duration,
    pub(super) op_id: Option<OpId>,
    pub(super) pending: u64,
}

impl Told {
    /// It came from the cache.
    pub(super) fn cached(source: Source, age: Duration) -> Self {
        Self { source: Some(source), age, ..Self::default() }
    }

    /// The answer to `FUSEBOX LAST`: source, ack, age in milliseconds, `op_id`, writes that wait.
    pub(super) fn reply(&self, protocol: Protocol) -> Bytes {
        let mut out = BytesMut::new();
        resp::write_head(&mut out, '*', 5);
        resp::write_bulk(&mut out, self.source.unwrap_or(Source::Live).as_str().as_bytes());
        let nil: &[u8] = if protocol == Protocol::Resp3 { b"_\r\n" } else { b"$-1\r\n" };
        match self.ack {
            Some(AckLevel::Applied) => resp::write_bulk(&mut out, b"applied"),
            Some(AckLevel::Durable) => resp::write_bulk(&mut out, b"durable"),
            None => out.extend_from_slice(nil),
        }
        out.extend_from_slice(format!(":{}\r\n", self.age.as_millis()).as_bytes());
        match self.op_id {
            Some(op_id) => resp::write_bulk(&mut out, op_id.to_string().as_bytes()),
            None => out.extend_from_slice(nil),
        }
        out.extend_from_slice(format!(":{}\r\n", self.pending).as_bytes());
        out.freeze()
    }
}

/// What of a call's end is the caller's to know.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) protocol: Protocol,
    pub(super) unavailable: Unavailable,
    /// If an outcome is unknown, the connection is closed.
    pub(super) close_on_unknown: bool,
    /// A read of which nothing is known may be answered with nil.
    pub(super) nil_on_miss: bool,
    /// What is answered to a write that was taken and whose reply is not known.
    pub(super) assumed: Option<Bytes>,
}

/// The answer to a call that was carried otherwise than over its own connection.
pub(super) fn answer(ended: Result<Reply, CallError>, backend: &str, asked: Asked) -> Answer {
    let not_executed = |why: &str| unavailable(asked.unavailable, why, None);
    let reply = match ended {
        Ok(reply) => reply,
        Err(error) => return of_error(error, backend, asked),
    };
    if matches!(reply.source, Source::Bypass | Source::Empty) && !asked.nil_on_miss {
        let why = format!("{backend} does not answer, and the cache has no answer");
        return not_executed(&why);
    }
    let is_live = reply.source == Source::Live;
    if reply.reply_lost {
        return applied(reply.op_id.as_ref());
    }
    match (reply.value, reply.ack, reply.op_id) {
        (Some(value), ..) => {
            match in_protocol(&value, asked.protocol, is_live && is_of_both(&value)) {
                Some(told) if *told == *value => Answer::Reply(value),
                Some(told) => Answer::Reply(Bytes::copy_from_slice(&told)),
                // It was applied by replay, which has the reply in the newer protocol.
                None if is_live && reply.ack.is_some() => applied(reply.op_id.as_ref()),
                None => not_executed(&format!(
                    "{backend} does not answer, and the cached reply is in the other protocol version (RESP2 or RESP3)"
                )),
            }
        }
        (None, ..) if asked.assumed.is_some() => Answer::Reply(asked.assumed.unwrap_or_default()),
        (None, Some(AckLevel::Durable), Some(op_id)) => {
            Answer::Reply(error(&format!("FUSEBOX QUEUED {op_id} its reply is not known yet")))
        }
        (None, _, op_id) => applied(op_id.as_ref()),
    }
}

/// A write was applied, and nobody knows what the server has replied.
fn applied(op_id: Option<&OpId>) -> Answer {
    let op_id = op_id.map(|op_id| format!(" {op_id}")).unwrap_or_default();
    let why = "it was applied, but its reply was lost";
    Answer::Reply(error(&format!("FUSEBOX APPLIED{op_id} {why}")))
}

fn of_error(failed: CallError, backend: &str, asked: Asked) -> Answer {
    let CallError { kind, detail, outcome_unknown, op_id, retry_after, reply, .. } = failed;
    // What the server itself says of it, in the middle of a script perhaps, its client can judge as without a door.
    if let (true, Some(reply)) = (outcome_unknown, &reply) {
        return Answer::Reply(in_protocol_of_error(reply, asked.protocol));
    }
    if outcome_unknown {
        if asked.close_on_unknown {
            return Answer::Close;
        }
        let op_id = op_id.map(|op_id| format!(" {op_id}")).unwrap_or_default();
        return Answer::Reply(error(&format!(
            "FUSEBOX UNKNOWN{op_id} {}; it may have been applied",
            detail.whole()
        )));
    }
    let retry_after = retry_after.map(|after| after.as_secs().max(1));
    match kind {
        CallErrorKind::Refused | CallErrorKind::Conflict => match reply {
            Some(reply) => Answer::Reply(in_protocol_of_error(&reply, asked.protocol)),
            None => Answer::Reply(error(&format!("ERR fusebox: {}", detail.whole()))),
        },
        CallErrorKind::Malformed => Answer::Reply(error(&format!("ERR {}", detail.whole()))),
        CallErrorKind::Forbidden => {
            Answer::Reply(error(&format!("NOPERM fusebox: {}", detail.whole())))
        }
        CallErrorKind::Unavailable | CallErrorKind::TimedOut | CallErrorKind::Full => {
            let why = format!("{backend}: {}", detail.whole());
            unavailable(asked.unavailable, &why, retry_after)
        }
    }
}

/// A bulk error of RESP3 as a line.
fn in_protocol_of_error(frame: &Bytes, protocol: Protocol) -> Bytes {
    match (frame.first(), protocol, resp::error_of(frame)) {
        (Some(b'!'), Protocol::Resp2, Some((_, text))) => error(text),
        _ => frame.clone(),
    }
}

/// Whether a reply has nothing that only RESP3 has.
fn is_of_both(frame: &[u8]) -> bool {
    let mut left = vec![frame];
    while let Some(frame) = left.pop() {
        match (frame.first(), resp::Reply::of(frame)) {
            (Some(b'$' | b':' | b'+' | b'-'), _) => {}
            (Some(b'*'), Some(reply)) => left.extend(reply.items().into_iter().flatten()),
            _ => return false,
        }
    }
    true
}

/// A reply for a client of `protocol`. One that `is_live` has the client's protocol already, but for nils that were
/// computed here. Others are of RESP3 and are given to a client of RESP2 only if they mean the same there: strings,
/// numbers, nils, lists of these, and the map of nothing. `None` for what cannot be expressed.
pub(super) fn in_protocol(
    value: &[u8],
    protocol: Protocol,
    is_live: bool,
) -> Option<Cow<'_, [u8]>> {
    const NIL: &[u8] = b"_\r\n";
    const NIL_2: &[u8] = b"$-1\r\n";
    if protocol == Protocol::Resp3 {
        return Some(Cow::Borrowed(value));
    }
    let plain = |frame: &[u8]| matches!(frame.first(), Some(b'$' | b':' | b'+' | b'-'));
    if plain(value) {
        return Some(Cow::Borrowed(value));
    }
    if value == NIL {
        return Some(Cow::Borrowed(NIL_2));
    }
    if is_live && value == b"*-1\r\n" {
        return Some(Cow::Borrowed(value));
    }
    if value == b"%0\r\n" {
        return Some(Cow::Borrowed(b"*0\r\n"));
    }
    if !value.starts_with(b"*") {
        return is_live.then_some(Cow::Borrowed(value));
    }
    let items: Vec<&[u8]> = resp::Reply::of(value)?.items()?.collect();
    if items.iter().any(|item| !plain(item) && *item != NIL) {
        return is_live.then_some(Cow::Borrowed(value));
    }
    if !items.contains(&NIL) {
        return Some(Cow::Borrowed(value));
    }
    let mut out = BytesMut::with_capacity(value.len() + 2 * items.len());
    resp::write_head(&mut out, '*', items.len());
    for item in items {
        out.extend_from_slice(if item == NIL { NIL_2 } else { item });
    }
    Some(Cow::Owned(out.into()))
}

/// A live reply to `request` as the cache may keep it: of RESP3. `None` for one of RESP2 that is another there.
pub(super) fn cacheable<'f>(
    frame: &'f [u8],
    protocol: Protocol,
    request: &[u8],
) -> Option<&'f [u8]> {
    // Of what is cached, this alone is a string in RESP2 and a double in RESP3.
    let is_double = request.starts_with(b"*3\r\n$6\r\nZSCORE\r\n");
    match (protocol, frame) {
        (Protocol::Resp2, [b'$', b'0'..=b'9', ..]) if is_double => None,
        (Protocol::Resp3, frame) => Some(frame),
        (Protocol::Resp2, b"$-1\r\n") => Some(b"_\r\n"),
        (Protocol::Resp2, [b'$' | b':' | b'+', ..]) => Some(frame),
        _ => None,
    }
}

/// A live list as the cache may keep its items: of RESP3. `None` for anything else.
pub(super) fn cacheable_list(frame: &[u8], protocol: Protocol) -> Option<Bytes> {
    let items: Vec<&[u8]> = match resp::Reply::of(frame)? {
        resp::Reply::Array(items) => items.collect(),
        _ => return None,
    };
    // In a transaction one of them may be an error.
    if items.iter().any(|item| matches!(item.first(), Some(b'-' | b'!'))) {
        return None;
    }
    if protocol == Protocol::Resp3 {
        return Some(Bytes::copy_from_slice(frame));
    }
    let mut out = BytesMut::with_capacity(frame.len());
    resp::write_head(&mut out, '*', items.len());
    for item in items {
        out.extend_from_slice(if item == b"$-1\r\n" { b"_\r\n" } else { item });
    }
    Some(out.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_server_refused_may_have_run() {
        let failed = |code: &'static str, reply: Option<&'static [u8]>| CallError {
            kind: CallErrorKind::Refused,
            code: code.into(),
            detail: "why".into(),
            outcome_unknown: false,
            op_id: None,
            retry_after: None,
            attempts: 0,
            reply: reply.map(|reply| Box::new(Bytes::from_static(reply))),
            last_answer: None,
        };
        assert!(may_have_run(&failed("WRONGTYPE", Some(b"-WRONGTYPE\r\n"))));
        assert!(!may_have_run(&failed("queue_full", None)));
    }

    const ASKED: Asked = Asked {
        protocol: Protocol::Resp2,
        unavailable: Unavailable::Loading,
        close_on_unknown: false,
        nil_on_miss: true,
        assumed: None,
    };

    #[test]
    fn what_replay_has_got_in_the_newer_protocol_is_not_told_in_the_older_one() {
        let reply = |source, value| Reply { ack: Some(AckLevel::Applied), ..reply(source, value) };
        for value in [&b",1.5\r\n"[..], b"~1\r\n$1\r\na\r\n", b"*1\r\n*1\r\n,1\r\n", b"%0\r\n,"] {
            let told = answer(Ok(reply(Source::Live, value)), "redis", ASKED);
            let Answer::Reply(told) = told else { panic!("it is answered") };
            assert!(told.starts_with(b"-FUSEBOX APPLIED"), "{told:?}");
        }
        let plain = b"*2\r\n$1\r\na\r\n*1\r\n:1\r\n";
        let told = answer(Ok(reply(Source::Live, plain)), "redis", ASKED);
        assert!(matches!(told, Answer::Reply(told) if told == plain[..]));
        let nothing = answer(Ok(reply(Source::Live, b"*-1\r\n")), "redis", ASKED);
        assert!(matches!(nothing, Answer::Reply(told) if told == b"*-1\r\n"[..]));
        let lost = Reply { reply_lost: true, ..reply(Source::Live, b":0\r\n") };
        let Answer::Reply(told) = answer(Ok(lost), "redis", ASKED) else {
            panic!("it is answered")
        };
        assert!(told.starts_with(b"-FUSEBOX APPLIED"), "{told:?}");
    }

    fn reply(source: Source, value: &'static [u8]) -> Reply {
        Reply {
            source,
            ack: None,
            value: Some(Bytes::from_static(value)),
            age: Duration::ZERO,
            warnings: Vec::new(),
            op_id: None,
            attempts: 0,
            pending_writes: 0,
            rest: None,
            reply_lost: false,
        }
    }

    fn failed(kind: CallErrorKind, outcome_unknown: bool) -> CallError {
        CallError {
            kind,
            code: "x".into(),
            detail: "the breaker\r\nis open".into(),
            outcome_unknown,
            op_id: Some(OpId::from_u128(7)),
            retry_after: Some(Duration::from_secs(12)),
            attempts: 0,
            reply: None,
            last_answer: None,
        }
    }

    #[track_caller]
    fn says(answer: Answer, text: &str) {
        assert_eq!(answer, Answer::Reply(Bytes::copy_from_slice(text.as_bytes())));
    }

    #[track_caller]
    fn refuses(answer: Answer, text: &str) {
        assert_eq!(answer, Answer::Unavailable(Some(Bytes::copy_from_slice(text.as_bytes()))));
    }

    #[test]
    fn what_was_not_executed_is_told_in_the_doors_word() {
        let of = |unavailable| {
            let failed = Err(failed(CallErrorKind::Unavailable, false));
            answer(failed, "redis", Asked { unavailable, ..ASKED })
        };
        let rest = "fusebox: redis: the breaker  is open; not executed; retry in 12 s\r\n";
        refuses(of(Unavailable::Loading), &format!("-LOADING {rest}"));
        refuses(of(Unavailable::Fusebox), &format!("-FUSEBOX {rest}"));
        assert_eq!(of(Unavailable::Close), Answer::Unavailable(None));
    }

    #[test]
    fn an_unknown_outcome_is_told_in_a_word_that_nobody_repeats_on() {
        let of = |close_on_unknown| {
            let failed = Err(failed(CallErrorKind::TimedOut, true));
            answer(failed, "redis", Asked { close_on_unknown, ..ASKED })
        };
        let op_id = OpId::from_u128(7);
        says(
            of(false),
            &format!("-FUSEBOX UNKNOWN {op_id} the breaker  is open; it may have been applied\r\n"),
        );
        assert_eq!(of(true), Answer::Close);
    }

    #[test]
    fn what_the_server_says_itself_is_told_as_it_is() {
        let mut failed = failed(CallErrorKind::Unavailable, true);
        failed.reply = Some(Box::new(Bytes::from_static(b"-MYERR from a script\r\n")));
        says(answer(Err(failed), "redis", ASKED), "-MYERR from a script\r\n");
    }

    #[test]
    fn a_transaction_that_was_not_executed_is_refused_as_one() {
        let refused = unavailable(Unavailable::Loading, "why", None);
        refuses(
            of_transaction(3, refused, false),
            "-LOADING fusebox: why; not executed\r\n-LOADING fusebox: why; not executed\r\n\
             -EXECABORT Transaction discarded because of: fusebox: why; not executed\r\n",
        );
        let refused = unavailable(Unavailable::Close, "why", None);
        assert_eq!(of_transaction(3, refused, false), Answer::Unavailable(None));
        says(
            of_transaction(3, unknown("why", false), true),
            "+OK\r\n+QUEUED\r\n-FUSEBOX UNKNOWN why; it may have been applied\r\n",
        );
        assert_eq!(of_transaction(3, unknown("why", true), true), Answer::Close);
    }

    #[test]
    fn a_miss_is_nil_where_the_door_says_so() {
        let miss = || Ok(reply(Source::Bypass, b"_\r\n"));
        says(answer(miss(), "redis", ASKED), "$-1\r\n");
        says(answer(miss(), "redis", Asked { protocol: Protocol::Resp3, ..ASKED }), "_\r\n");
        let Answer::Unavailable(Some(told)) =
            answer(miss(), "redis", Asked { nil_on_miss: false, ..ASKED })
        else {
            panic!("it is refused")
        };
        assert!(told.starts_with(b"-LOADING "), "{told:?}");
    }

    #[test]
    fn what_is_cached_of_one_protocol_is_given_to_the_other_only_if_it_means_the_same() {
        let two = |value| in_protocol(value, Protocol::Resp2, false).map(Cow::into_owned);
        for value in [&b"$1\r\na\r\n"[..], b":1\r\n", b"+OK\r\n", b"*1\r\n$1\r\na\r\n"] {
            assert_eq!(two(value).as_deref(), Some(value));
            let three = in_protocol(value, Protocol::Resp3, false);
            assert_eq!(three.as_deref(), Some(value));
        }
        assert_eq!(two(b"_\r\n").as_deref(), Some(&b"$-1\r\n"[..]));
        let list = b"*2\r\n$1\r\na\r\n_\r\n";
        assert_eq!(two(list).as_deref(), Some(&b"*2\r\n$1\r\na\r\n$-1\r\n"[..]));
        for value in [&b"%1\r\n:1\r\n:2\r\n"[..], b"~1\r\n:1\r\n", b",1.5\r\n", b"*1\r\n*0\r\n"] {
            assert_eq!(two(value), None, "{value:?}");
        }
        assert_eq!(cacheable(b"$-1\r\n", Protocol::Resp2, b""), Some(&b"_\r\n"[..]));
        assert_eq!(cacheable(b"*0\r\n", Protocol::Resp2, b""), None);
        assert_eq!(cacheable(b"%0\r\n", Protocol::Resp3, b""), Some(&b"%0\r\n"[..]));
    }

    #[test]
    fn a_queued_write_whose_reply_is_not_known_is_told_as_an_error() {
        let op_id = OpId::from_u128(7);
        let queued = Reply {
            ack: Some(AckLevel::Durable),
            value: None,
            op_id: Some(op_id),
            ..reply(Source::Queued, b"")
        };
        says(
            answer(Ok(queued), "redis", ASKED),
            &format!("-FUSEBOX QUEUED {op_id} its reply is not known yet\r\n"),
        );
    }
}
