//! What a reply says: of the backend, of what may be done next, and of what may have been written.
//!
//! | codes | class | verdict |
//! | --- | --- | --- |
//! | no exception | | success |
//! | 202, 203, 252, 225, 242, 243, 364, 439, 745, 749, 762, 1019; HTTP 429 and 503 | not executed (a write: see below) | failure |
//! | 209 if the query says how long the server waits for its client | unknown | neutral |
//! | 341 of a mutation that fails by its own expressions | unknown | success |
//! | 74–76 (the server's disk), 159 (its time was up), 209, 210, 236, 279, 285, 286, 289, 319, 999, 1017 … | unknown | failure |
//! | 285, 286 (too few replicas for the quorum of an insert) if nothing was written | not executed; in replay blocked: object | success |
//! | 241 (memory) of the whole server or user | unknown | failure |
//! | 394, 735 (killed) | unknown | neutral |
//! | 192–195, 516, 700, 720 … (who we are), TLS; HTTP 401 and 407 | blocked: server | failure |
//! | 60, 81, 218 (no such table, database), 115, 452 (a setting: see below), 164, 291, 392, 497 (rights), 201 (quota) | blocked: object | success |
//! | syntax, types, names, values; limits that a query ran into by itself, 241 of the query | rejected | success |
//! | any other | unknown, `unclassified` | success |
//!
//! **A write has a column of its own**: what proves that nothing of it was written is in [`proof`]. Without such a
//! proof it is in doubt whatever its class: a rejection stays one, and what would be "not executed" of a read is
//! unknown. With it, what would be unknown is not executed.
//!
//! **Whose time was up.** Every query gets a `max_execution_time`. If it brought its own, 159 blames the
//! query: rejected. If its caller's deadline was shorter than the backend's `timeout`, it says nothing of
//! the backend: neutral. The same holds for any limit that a call sets itself (of time, memory, queries, parts, free
//! disk or processor), and for a profile that it names itself and that does not exist (180): without such words of its
//! own it is the configured user's.
//!
//! **Whose setting it was.** A setting that is not known, or that the user may not change (115, 164, 452), blames the
//! call if the message names one of its own: rejected. Else it is one that fusebox adds, or the user itself, and an
//! operator can mend it: blocked.
//!
//! **A quorum that cannot be met** says that replicas of one table are missing, and nothing of the server that was
//! asked. Its caller learns that nothing was executed; a queued insert waits, with its table, until the replicas are
//! back or an operator acts ([`wait_for_replicas`]).
//!
//! **What another server did.** What would be a
//! failure is neutral, as is silence, if the call's own words name [another server](super::elsewhere).
//!
//! **A code of no class that comes with HTTP 400** blames the query as well: that status is the server's own
//! word for it.
//!
//! **Packed words.** The server packs an error as it would have packed the rows. It is unpacked as far as that is done
//! [here](super::decoded). What is not read proves nothing, and 241 and 252 are neutral without their words.
//!
//! An exception is looked for also at the end of an answer that began with HTTP 200: a server has nothing
//! else to say it with once rows have left. Older ones write `Code: 395, e.displayText() = …` behind them,
//! later ones `Code: 395. DB::Exception: … (version …)`, the latest a block between two `__exception__`. With
//! `http_write_exception_in_output_format` it is the last value of JSON or XML: [`Marks`].

use std::time::Duration;

use bytes::Bytes;
use fusebox_actors::connector::{AttemptError, Attempted, ErrorCode};
use fusebox_state::{ErrorClass, Verdict, Words, dependencies::Fault};
use memchr::memmem;

pub(crate) use self::proof::{Came, SUMMARY_SINCE, Writing, handed_on, written_rows};
use super::{elsewhere::Elsewhere, wire};

mod proof;
mod text;

/// The end of an answer in which an exception is looked for: the longest that servers write is 16 KiB.
pub(crate) const WINDOW: usize = 32 * 1024;
/// How much of an exception is passed on.
const MESSAGE_MAX: usize = 4 * 1024;
/// Marks an exception of the latest servers.
const MARKER: &[u8] = b"__exception__";

/// By what an answer with status 200 marks an exception behind its rows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Marks {
    /// What the latest servers announce to put around it.
    tag: Option<String>,
    /// The rows are JSON or XML, so that it may be the last value among them.
    in_rows: bool,
    /// The rows are packed, and the exception with them.
    is_packed: bool,
}

impl Marks {
    /// Of an answer with this `X-ClickHouse-Exception-Tag` and `X-ClickHouse-Format`.
    pub(crate) fn of(tag: Option<&str>, format: Option<&str>, is_packed: bool) -> Self {
        let in_rows = format.is_some_and(may_hold_exceptions);
        Self { tag: tag.map(str::to_owned), in_rows, is_packed }
    }

    /// Whether there may be an exception that cannot be read in an answer that breaks off: servers that announce a tag
    /// break off behind it.
    pub(crate) fn may_hide_one(&self) -> bool {
        self.is_packed && self.tag.is_some()
    }
}

/// Whether the server may write an exception as a value of this format.
pub(crate) fn may_hold_exceptions(format: &str) -> bool {
    format.as_bytes().windows(4).any(|part| part.eq_ignore_ascii_case(b"JSON"))
        || format.eq_ignore_ascii_case("XML")
}

/// What of an attempt its exceptions are read by.
#[derive(Clone, Debug, Default)]
pub(crate) struct Asked {
    /// The settings that the call brings itself.
    pub(crate) own: Vec<String>,
    /// Whether it has the backend's whole `timeout`.
    pub(crate) whole: bool,
    /// What it writes; `None` for a read.
    pub(crate) writing: Option<Writing>,
    /// Whether it is a proof that the server's summary counts no rows ([`SUMMARY_SINCE`]).
    pub(crate) summary: bool,
    /// What of it may name another server.
    pub(crate) elsewhere: Elsewhere,
}

/// A server's exception.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Exception {
    /// Its number; 0 if it has none.
    pub(crate) code: u32,
    /// The server's own words.
    pub(crate) message: String,
    /// They cannot be read, as they are packed in another way or not there, so they may say anything.
    pub(crate) is_unread: bool,
}

impl Exception {
    /// The exception that the body of an answer with an error's status is. It may be packed as rows would be: `coding`
    /// is its `Content-Encoding`.
    pub(crate) fn of_body(code: Option<u32>, coding: Option<&str>, body: &[u8]) -> Self {
        let text = text::of(coding, body);
        // Proxies say some things by a status alone.
        let is_unread = text.is_none() && (code.is_some() || !body.is_empty());
        let text = text.unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let code = code.or_else(|| code_of(text.trim_start())).unwrap_or(0);
        let message = if is_unread { "its text cannot be read" } else { text.trim() };
        Self { code, message: message.to_owned(), is_unread }
    }

    /// The exception that the end of an answer with status 200 is.
    pub(crate) fn at_end(window: &[u8], marks: &Marks) -> Option<Self> {
        let in_rows = || Self::untagged(last_value(window));
        match (&marks.tag, marks.in_rows) {
            (Some(tag), false) => Self::tagged(window, tag),
            (Some(tag), true) => Self::tagged(window, tag).or_else(in_rows),
            (None, true) => in_rows(),
            (None, false) => Self::untagged(window),
        }
    }

    /// The exception that the end of an answer to a question of fusebox's own is, which is in `TabSeparated` or has a
    /// row of JSON on each line. It begins a line: elsewhere the same words are a value, such as a statement that was
    /// killed.
    pub(crate) fn behind_lines(answer: &str) -> Option<Self> {
        let start = answer.rfind("\nCode: ").map_or(0, |end| end + 1);
        Self::whole(answer.get(start..)?)
    }

    fn tagged(window: &[u8], tag: &str) -> Option<Self> {
        let end = window.trim_ascii_end().strip_suffix(MARKER)?;
        let start = memmem::rfind(end, MARKER)?;
        let block = String::from_utf8_lossy(end.get(start + MARKER.len()..)?).into_owned();
        let block = block.trim().strip_prefix(tag)?.trim_start();
        // The last line is the length and the tag again.
        let message = block.rsplit_once('\n').map_or(block, |(message, _)| message);
        Some(Self::read(code_of(message)?, message.trim()))
    }

    fn untagged(window: &[u8]) -> Option<Self> {
        let start = memmem::rfind(window, b"Code: ")?;
        Self::whole(&String::from_utf8_lossy(window.get(start..)?))
    }

    /// The exception that `text` is, but for blanks at its end.
    fn whole(text: &str) -> Option<Self> {
        let text = text.trim_end();
        let older = text.contains(", e.displayText() = DB::Exception")
            && text.ends_with("e.what() = DB::Exception");
        let later = text.contains(". DB::Exception: ")
            && text.ends_with(')')
            && text
                .rfind("(version ")
                .is_some_and(|at| !text.get(at..).unwrap_or("").contains('\n'));
        (older || later).then(|| Some(Self::read(code_of(text)?, text))).flatten()
    }

    fn read(code: u32, message: &str) -> Self {
        Self { code, message: message.to_owned(), is_unread: false }
    }

    /// How the attempt ended whose answer this is.
    pub(crate) fn ends(
        self,
        status: u16,
        retry_after: Option<Duration>,
        asked: &Asked,
        came: Came,
    ) -> Attempted {
        let (class, verdict) = class(self.code, &self.message, status, asked);
        // Whose limit it was is in the words.
        let is_open = self.is_unread && matches!(self.code, 241 | 252);
        let verdict = if is_open { Verdict::Neutral } else { verdict };
        let words = (!self.is_unread).then_some(self.message.as_str());
        let doubt = asked
            .writing
            .filter(|writing| !proof::wrote_nothing(self.code, words, status, *writing, came));
        let message = shortened(&self.message);
        let of_write = match (class, asked.writing.is_some(), doubt.is_some()) {
            (Some(ErrorClass::NotExecuted), true, true) => Some(ErrorClass::Unknown),
            (Some(ErrorClass::Unknown), true, false) => Some(ErrorClass::NotExecuted),
            (class, ..) => class,
        };
        let class_told = of_write.unwrap_or(ErrorClass::Unknown);
        let wrote_nothing = asked.writing.is_some() && doubt.is_none();
        let verdict = if wrote_nothing && matches!(self.code, 285 | 286) {
            Verdict::Success
        } else {
            verdict
        };
        let error = AttemptError {
            class: class_told,
            doubt: doubt.map(|_| Bytes::new()),
            code: ErrorCode::Server(
                if self.code == 0 { format!("http_{status}") } else { self.code.to_string() }
                    .into(),
            ),
            reply: Some(wire::reply("exception", message.as_bytes())),
            message: Words::quoting(class_told.said(), message),
            unclassified: class.is_none(),
            retry_after,
            fault: if is_overload(self.code, status) { Fault::Overload } else { Fault::Backend },
        };
        Attempted::failed(verdict, error)
    }
}

/// Makes a queued insert that too few replicas would take wait for them, with all that goes into its table.
pub(crate) fn wait_for_replicas(ended: &mut Attempted) {
    if let Err(error) = &mut ended.result
        && error.doubt.is_none()
        && error.class == ErrorClass::NotExecuted
        && matches!(&error.code, ErrorCode::Server(code) if matches!(&**code, "285" | "286"))
    {
        error.class = ErrorClass::BlockedObject;
    }
}

/// JSON or XML up to the end of its last text; other text as it is.
fn last_value(window: &[u8]) -> &[u8] {
    let mut end = window.trim_ascii_end();
    for closing in [&b"</result>"[..], b"</exception>"] {
        end = end.strip_suffix(closing).unwrap_or(end).trim_ascii_end();
    }
    let is_text = |byte: &u8| !matches!(byte, b'"' | b'}' | b']') && !byte.is_ascii_whitespace();
    let len = end.iter().rposition(is_text).map_or(0, |last| last + 1);
    end.get(..len).unwrap_or_default()
}

fn shortened(text: &str) -> String {
    let end = (0..=MESSAGE_MAX.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    text.get(..end.unwrap_or_default()).unwrap_or_default().to_owned()
}

/// The number behind `Code: `.
fn code_of(text: &str) -> Option<u32> {
    let rest = text.strip_prefix("Code: ")?;
    let end = rest.find(|c: char| !c.is_ascii_digit())?;
    rest.get(..end)?.parse().ok()
}

/// The words of a call's own by which it ends with `code`: limits that it sets itself, and what it names.
fn named_by(code: u32) -> &'static [&'static str] {
    match code {
        159 => &["max_execution_time", "timeout_overflow_mode", "max_estimated_execution_time"],
        241 => &["max_memory_usage", "max_memory_usage_for_user"],
        180 => &["profile"],
        // Blocks of its own; else they are the server's.
        40 | 271 => &["decompress"],
        243 => &["min_free_disk_bytes_to_perform_insert", "min_free_disk_ratio_to_perform_insert"],
        252 => &["parts_to_throw_insert"],
        745 => &["min_os_cpu_wait_time_ratio_to_throw", "max_os_cpu_wait_time_ratio_to_throw"],
        202 => &["max_concurrent_queries_for_user", "max_concurrent_queries_for_all_users"],
        _ => &[],
    }
}

/// The settings by which a query says how long the server waits for its client.
const OWN_PATIENCE: &[&str] =
    &["http_receive_timeout", "http_send_timeout", "receive_timeout", "send_timeout"];

/// Whether the message of a code that blames a setting names one of the call's own.
fn names_own(code: u32, message: &str, own: &[String]) -> bool {
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.');
    let mut words = message.split(|c: char| !is_part(c)).map(|word| word.trim_end_matches('.'));
    matches!(code, 115 | 164 | 452) && words.any(|word| own.iter().any(|own| own == word))
}

fn class(code: u32, message: &str, status: u16, asked: &Asked) -> (Option<ErrorClass>, Verdict) {
    let (class, verdict) = class_alone(code, message, status, asked);
    let is_of_another = verdict == Verdict::Failure && asked.elsewhere.is_named();
    (class, if is_of_another { Verdict::Neutral } else { verdict })
}

/// The same whatever other servers its words name.
fn class_alone(
    code: u32,
    message: &str,
    status: u16,
    asked: &Asked,
) -> (Option<ErrorClass>, Verdict) {
    let is_own = asked.own.iter().any(|name| named_by(code).contains(&name.as_str()))
        || names_own(code, message, &asked.own);
    let of_query = message.contains("(for query)") || message.contains("Query memory limit");
    let is_in = |wanted: &[&str]| asked.own.iter().any(|name| wanted.contains(&name.as_str()));
    let (class, verdict) = match code {
        _ if is_own => (ErrorClass::Rejected, Verdict::Success),
        // Its own patience with its client's connection.
        209 if is_in(OWN_PATIENCE) => (ErrorClass::Unknown, Verdict::Neutral),
        // A mutation that fails by its own expressions, and its client waits for that.
        341 if message.contains("during execution of mutation") => {
            (ErrorClass::Unknown, Verdict::Success)
        }
        // One block over more partitions than the server lets it be: it will always be.
        252 if message.contains("partitions for single INSERT block") => {
            (ErrorClass::Rejected, Verdict::Success)
        }
        241 if of_query => (ErrorClass::Rejected, Verdict::Success),
        159 if !asked.whole => (ErrorClass::Unknown, Verdict::Neutral),
        202 | 203 | 225 | 242 | 243 | 252 | 364 | 439 | 745 | 749 | 762 | 1019 => {
            (ErrorClass::NotExecuted, Verdict::Failure)
        }
        74..=76
        | 159
        | 173
        | 198
        | 204
        | 209
        | 210
        | 236
        | 241
        | 244
        | 254
        | 265
        | 279
        | 285
        | 286
        | 289
        | 297
        | 319
        | 341
        | 384
        | 410
        | 415
        | 416
        | 425
        | 473
        | 499
        | 519
        | 529
        | 568
        | 574
        | 733
        | 999
        | 1017 => (ErrorClass::Unknown, Verdict::Failure),
        394 | 677 | 735 => (ErrorClass::Unknown, Verdict::Neutral),
        180 | 192..=195 | 199 | 516 | 532 | 700 | 720 | 767 => {
            (ErrorClass::BlockedServer, Verdict::Failure)
        }
        60 | 81 | 115 | 164 | 201 | 218 | 291 | 392 | 452 | 481 | 482 | 495 | 497 | 620 | 673
        | 774 => (ErrorClass::BlockedObject, Verdict::Success),
        code if is_callers_fault(code) || cannot_unpack(code) => {
            (ErrorClass::Rejected, Verdict::Success)
        }
        0 => return by_status(status),
        _ if status == 400 => (ErrorClass::Rejected, Verdict::Success),
        _ => return (None, Verdict::Success),
    };
    (Some(class), verdict)
}

/// Whether the server has too much to do: too many queries, connections, parts or threads.
fn is_overload(code: u32, status: u16) -> bool {
    matches!((code, status), (202 | 203 | 252 | 439 | 745, _) | (0, 429 | 503))
}

/// Without a code of the server's it is a proxy that speaks, or no ClickHouse at all.
fn by_status(status: u16) -> (Option<ErrorClass>, Verdict) {
    match status {
        429 | 503 => (Some(ErrorClass::NotExecuted), Verdict::Failure),
        401 | 407 => (Some(ErrorClass::BlockedServer), Verdict::Failure),
        403 => (Some(ErrorClass::BlockedObject), Verdict::Success),
        408 | 500 | 502 | 504 => (Some(ErrorClass::Unknown), Verdict::Failure),
        400 | 405 | 411 | 413 | 414 => (Some(ErrorClass::Rejected), Verdict::Success),
        _ => (None, Verdict::Success),
    }
}

/// What came packed cannot be unpacked: it never will be.
fn cannot_unpack(code: u32) -> bool {
    // ZLIB_INFLATE, BROTLI_READ, LZMA, ZSTD, BZIP2, LZ4 and SNAPPY … _FAILED
    matches!(code, 354 | 448 | 554 | 561 | 594 | 618 | 638)
}

/// Syntax, types, names and values that are wrong, and limits that a query runs into by itself.
fn is_callers_fault(code: u32) -> bool {
    matches!(
        code,
        1..=4 | 6..=13 | 15 | 16 | 19 | 20 | 25..=28 | 32..=39 | 41..=44 | 46..=48 | 50..=53 | 55..=57
        | 59 | 62 | 63 | 69 | 70 | 72 | 73 | 78..=80 | 82 | 85 | 89 | 90 | 92 | 107 | 108 | 113 | 116
        | 117 | 119..=125 | 127..=131 | 133..=135 | 141 | 145 | 152 | 153 | 158 | 160..=162 | 165..=170
        | 174 | 179 | 181..=184 | 186 | 187 | 190 | 191 | 206..=208 | 211..=213 | 215 | 219 | 223 | 229
        | 248 | 256..=258 | 260 | 262 | 264 | 269 | 277 | 282..=284 | 288 | 290 | 306 | 307 | 309 | 321
        | 336 | 344 | 346 | 349 | 352 | 353 | 358 | 359 | 366 | 370 | 376..=378 | 386 | 387 | 393 | 395
        | 396..=399 | 403 | 406..=408 | 417..=422 | 427 | 431..=433 | 436 | 438 | 440..=444 | 446 | 450
        | 455..=457 | 467 | 469 | 471 | 472 | 474..=480 | 491..=493 | 498 | 503 | 508 | 509 | 511
        | 523 | 524 | 527 | 543..=545 | 549 | 557 | 558 | 563 | 565 | 572 | 578 | 581..=583 | 585 | 596
        | 597 | 609..=611 | 616 | 621 | 623 | 626 | 628 | 630 | 632 | 636 | 645 | 648 | 669..=671 | 675 | 676
        | 690 | 691 | 703..=705 | 715 | 717..=719 | 721 | 723 | 727 | 728 | 731 | 748 | 779
    )
}

#[cfg(test)]
mod tests {
    use super::{super::decoded::testing, *};

    #[track_caller]
    fn ends(code: u32, message: &str, own: &[&str], whole: bool) -> (ErrorClass, Verdict, bool) {
        let asked = Asked {
            own: own.iter().map(|name| (*name).to_owned()).collect(),
            whole,
            ..Asked::default()
        };
        let ended = Exception::read(code, message).ends(500, None, &asked, Came::default());
        let error = ended.result.unwrap_err();
        (error.class, ended.verdict, error.unclassified)
    }

    #[test]
    fn every_code_has_its_class() {
        use ErrorClass::{BlockedObject, BlockedServer, NotExecuted, Rejected, Unknown};
        use Verdict::{Failure, Neutral, Success};
        for (codes, class, verdict) in [
            (&[202, 203, 252, 439, 745][..], NotExecuted, Failure),
            (&[159, 209, 210, 241, 319, 999], Unknown, Failure),
            (&[394, 735], Unknown, Neutral),
            (&[192, 193, 194, 195, 516], BlockedServer, Failure),
            (&[60, 81, 164, 201, 497], BlockedObject, Success),
            (&[62, 47, 16, 27, 53, 117, 158, 395, 456], Rejected, Success),
        ] {
            for code in codes {
                assert_eq!(ends(*code, "", &[], true), (class, verdict, false), "{code}");
            }
        }
        assert_eq!(ends(49, "", &[], true), (Unknown, Success, true));
        assert_eq!(ends(12_345, "", &[], true), (Unknown, Success, true));
    }

    #[test]
    fn a_setting_that_is_refused_blames_whoever_brought_it() {
        use ErrorClass::{BlockedObject, Rejected};
        let constraint = "Setting max_memory_usage shouldn't be greater than 1000000000.";
        let unknown = "Unknown setting 'max_memory_usage'.";
        let readonly = "Setting max_memory_usage is not allowed to be set by query.";
        let modified = "Cannot modify 'max_memory_usage' setting in readonly mode.";
        for (code, message) in [(452, constraint), (115, unknown), (164, readonly), (164, modified)]
        {
            let class = |own: &[&str]| ends(code, message, own, true);
            let success = Verdict::Success;
            assert_eq!(class(&["max_memory_usage"]), (Rejected, success, false), "{message}");
            assert_eq!(class(&["max_memory", "usage"]), (BlockedObject, success, false));
            assert_eq!(class(&[]), (BlockedObject, success, false), "{message}");
        }
    }

    #[test]
    fn a_limit_blames_whoever_set_it() {
        use ErrorClass::{Rejected, Unknown};
        use Verdict::{Failure, Neutral, Success};
        assert_eq!(ends(159, "", &["max_execution_time"], true), (Rejected, Success, false));
        assert_eq!(ends(159, "", &["max_memory_usage"], true), (Unknown, Failure, false));
        for (code, name) in [
            (243, "min_free_disk_bytes_to_perform_insert"),
            (252, "parts_to_throw_insert"),
            (745, "max_os_cpu_wait_time_ratio_to_throw"),
        ] {
            assert_eq!(ends(code, "", &[name], true), (Rejected, Success, false), "{name}");
        }
        assert_eq!(ends(159, "", &[], false), (Unknown, Neutral, false));
        assert_eq!(ends(209, "", &["http_receive_timeout"], true), (Unknown, Neutral, false));
        let of_mutation =
            "Exception happened during execution of mutation 'mutation_3.txt' with part";
        assert_eq!(ends(341, of_mutation, &[], true), (Unknown, Success, false));
        assert_eq!(ends(341, "", &[], true), (Unknown, Failure, false));
        let query = "Memory limit (for query) exceeded: would use";
        assert_eq!(ends(241, query, &[], true), (Rejected, Success, false));
        assert_eq!(
            ends(241, "Memory limit (total) exceeded", &[], true),
            (Unknown, Failure, false)
        );
        assert_eq!(ends(241, "", &["max_memory_usage"], true), (Rejected, Success, false));
    }

    #[test]
    fn a_profile_that_is_not_there_blames_whoever_named_it() {
        use ErrorClass::{BlockedServer, Rejected};
        use Verdict::{Failure, Success};
        assert_eq!(ends(180, "", &["profile"], true), (Rejected, Success, false));
        assert_eq!(ends(180, "", &["max_threads"], true), (BlockedServer, Failure, false));
        assert_eq!(ends(180, "", &[], true), (BlockedServer, Failure, false));
    }

    #[test]
    fn what_another_server_does_that_a_call_names_says_nothing_of_this_one() {
        use Verdict::{Failure, Neutral, Success};
        let verdict = |query: &str, code: u32| {
            let call = wire::Call {
                header: wire::Header { query: query.to_owned(), ..wire::Header::default() },
                data: Bytes::new(),
            };
            let statement = crate::kinds::clickhouse::protocol::sql::read(query);
            let elsewhere = Elsewhere::of_call(&statement, &call, true);
            let asked = Asked { elsewhere, whole: true, ..Asked::default() };
            let exception = Exception::read(code, "");
            let ended = exception.ends(500, None, &asked, Came::default());
            assert_eq!(asked.elsewhere.silence(false), Neutral);
            (ended.verdict, asked.elsewhere.silence(true))
        };
        let remote = "SELECT * FROM remote('h:9000', system.one)";
        for code in [86, 198, 209, 210, 225, 279, 499, 516, 519, 999] {
            let is_known = verdict("SELECT 1", code).0 == Failure;
            assert_eq!(is_known, code != 86, "{code}");
            assert_eq!(verdict(remote, code), (if is_known { Neutral } else { Success }, Neutral));
        }
        assert_eq!(verdict("SELECT 1", 210), (Failure, Failure));
        assert_eq!(verdict(remote, 62), (Success, Neutral));
    }

    #[test]
    fn what_cannot_be_unpacked_blames_whoever_packed_it() {
        use ErrorClass::Rejected;
        use Verdict::Success;
        for code in [354, 448, 554, 561, 594, 618, 638] {
            assert_eq!(ends(code, "", &[], true), (Rejected, Success, false), "{code}");
        }
        for code in [40, 271] {
            assert_eq!(ends(code, "", &["decompress"], true), (Rejected, Success, false), "{code}");
            assert_ne!(ends(code, "", &[], true), (Rejected, Success, false), "{code}");
        }
    }

    #[test]
    fn a_status_speaks_where_no_code_does() {
        let ends = |status: u16, code: u32| {
            let exception = Exception::read(code, "");
            let ended = exception.ends(status, None, &Asked::default(), Came::default());
            (ended.result.unwrap_err().class, ended.verdict)
        };
        assert_eq!(ends(429, 0), (ErrorClass::NotExecuted, Verdict::Failure));
        assert_eq!(ends(503, 0), (ErrorClass::NotExecuted, Verdict::Failure));
        assert_eq!(ends(401, 0), (ErrorClass::BlockedServer, Verdict::Failure));
        assert_eq!(ends(502, 0), (ErrorClass::Unknown, Verdict::Failure));
        assert_eq!(ends(400, 12_345), (ErrorClass::Rejected, Verdict::Success));
    }

    #[test]
    fn a_write_is_not_executed_only_where_that_is_proven() {
        use ErrorClass::{BlockedObject, NotExecuted, Rejected, Unknown};
        let writing = Some(Writing::Rows { one_block: false, at_once: true });
        let asked = Asked { whole: true, writing, ..Asked::default() };
        let ends = |code: u32, handed_on| {
            let exception = Exception::read(code, "");
            let ended = exception.ends(500, None, &asked, Came { late: false, handed_on });
            let error = ended.result.unwrap_err();
            (error.class, error.doubt.is_some(), error.unclassified)
        };
        assert_eq!(ends(202, None), (NotExecuted, false, false));
        for code in [225, 242, 243, 252, 439] {
            assert_eq!(ends(code, None), (Unknown, true, false), "{code}");
            assert_eq!(ends(code, Some(100)), (Unknown, true, false), "{code}");
            assert_eq!(ends(code, Some(0)), (NotExecuted, false, false), "{code}");
        }
        assert_eq!(ends(159, Some(0)), (NotExecuted, false, false));
        assert_eq!(ends(27, Some(800)), (Rejected, true, false));
        assert_eq!(ends(27, Some(0)), (Rejected, false, false));
        assert_eq!(ends(201, None), (BlockedObject, true, false));
        assert_eq!(ends(1_001, None), (Unknown, true, true));
        assert_eq!(ends(1_001, Some(0)), (Unknown, false, true));
    }

    #[test]
    fn a_quorum_that_cannot_be_met_says_nothing_against_the_server() {
        use ErrorClass::{BlockedObject, NotExecuted, Unknown};
        use Verdict::{Failure, Success};
        let writing = Some(Writing::Rows { one_block: false, at_once: true });
        let ends = |code: u32, writing, handed_on| {
            let asked = Asked { whole: true, writing, ..Asked::default() };
            let exception = Exception::read(code, "");
            let mut ended = exception.ends(500, None, &asked, Came { late: false, handed_on });
            let (verdict, live) = (ended.verdict, ended.result.as_ref().unwrap_err().class);
            wait_for_replicas(&mut ended);
            (live, ended.result.unwrap_err().class, verdict)
        };
        for code in [285, 286] {
            assert_eq!(ends(code, writing, Some(0)), (NotExecuted, BlockedObject, Success));
            assert_eq!(ends(code, writing, Some(7)), (Unknown, Unknown, Failure), "{code}");
            assert_eq!(ends(code, writing, None), (Unknown, Unknown, Failure), "{code}");
            assert_eq!(ends(code, None, None), (Unknown, Unknown, Failure), "{code} of a read");
        }
        assert_eq!(ends(252, writing, Some(0)), (NotExecuted, NotExecuted, Failure));
    }

    #[test]
    fn a_code_is_read_from_the_text_where_no_header_has_it() {
        let old = b"Code: 60, e.displayText() = DB::Exception: Table default.x doesn't exist.";
        assert_eq!(Exception::of_body(None, None, old).code, 60);
        assert_eq!(Exception::of_body(Some(62), None, b"whatever").code, 62);
        assert_eq!(Exception::of_body(None, None, b"<html>").code, 0);
    }

    /// A block of ClickHouse's own that is not compressed.
    fn stored(text: &str) -> Vec<u8> {
        let size = u32::try_from(text.len()).unwrap();
        let mut block = vec![2];
        block.extend_from_slice(&(size + 9).to_le_bytes());
        block.extend_from_slice(&size.to_le_bytes());
        block.extend_from_slice(text.as_bytes());
        [&testing::checksum(&block)[..], &block].concat()
    }

    #[test]
    fn what_is_packed_is_read_and_what_cannot_be_read_proves_nothing() {
        let of_query =
            "Code: 241. DB::Exception: (for query) memory limit exceeded. (X) (version 26.7.2.1)";
        let far = format!("Code: 202. DB::Exception: {}: while executing (Y)", "x".repeat(8_000));
        let shard = "Code: 202. DB::Exception: Received from h:9000. DB::Exception: too many. (X)";
        let plain = "Code: 202. DB::Exception: Too many simultaneous queries. Maximum: 1. (X)";
        let writing = Some(Writing::Statement);
        let asked = Asked { whole: true, writing, ..Asked::default() };
        let ends = |code, coding, body: &[u8], asked: &Asked| {
            let exception = Exception::of_body(Some(code), coding, body);
            let ended = exception.ends(500, None, asked, Came::default());
            let error = ended.result.unwrap_err();
            (error.class, ended.verdict, error.doubt.is_some())
        };
        let read = Asked { whole: true, ..Asked::default() };
        for (coding, pack) in [
            (None, (|text| text.as_bytes().to_vec()) as fn(&str) -> Vec<u8>),
            (Some("gzip"), |text| testing::gzip(text.as_bytes())),
            (None, stored),
            (Some("gzip"), |text| testing::gzip(&stored(text))),
        ] {
            let ends = |code, text: &str, asked| ends(code, coding, &pack(text), asked);
            let of_query = ends(241, of_query, &read);
            assert_eq!(of_query, (ErrorClass::Rejected, Verdict::Success, false), "{coding:?}");
            assert!(!ends(202, plain, &asked).2, "it proves that nothing was written");
            assert!(ends(202, shard, &asked).2, "{coding:?}");
            assert!(ends(202, &far, &asked).2, "what is not passed on counts as well");
        }
        for (coding, body) in
            [(Some("xz"), &b"\xfd7zXZ\0"[..]), (Some("gzip"), b"\x1f"), (None, b"")]
        {
            let unread = ends(241, coding, body, &read);
            assert_eq!(unread, (ErrorClass::Unknown, Verdict::Neutral, false), "{coding:?}");
            assert!(ends(202, coding, body, &asked).2, "{coding:?}");
        }
    }

    #[test]
    fn an_exception_behind_lines_begins_one() {
        let code = |text: &str| Exception::behind_lines(text).map(|found| found.code);
        let later =
            "Code: 395. DB::Exception: x: Code: 210. DB::NetException: y (version 24.8.1.1)\n";
        let old = "Code: 395, e.displayText() = DB::Exception: x, e.what() = DB::Exception\n";
        for exception in [later, old] {
            assert_eq!(code(exception), Some(395));
            assert_eq!(code(&format!("1\ta\n2\tb\n{exception}")), Some(395));
            assert_eq!(code(&format!("1\ta\n2\t{exception}")), None, "it is a value");
            assert_eq!(code(&format!("{exception}1\ta\n")), None);
        }
        assert_eq!(code(""), None);
    }

    #[test]
    fn an_exception_behind_rows_is_found() {
        let of = |text: &str, tag, format| {
            let marks = Marks::of(tag, format, false);
            Exception::at_end(text.as_bytes(), &marks).map(|e| e.code)
        };
        let at_end = |text: &str, tag| of(text, tag, Some("TabSeparated"));
        let old = "1\n2\nCode: 395, e.displayText() = DB::Exception: x, e.what() = DB::Exception\n";
        assert_eq!(at_end(old, None), Some(395));
        let later = "1\nCode: 395. DB::Exception: x: while executing (F) (version 24.8.1.1)\n";
        assert_eq!(at_end(later, None), Some(395));
        let latest = "1\n\r\n__exception__\r\nabcdefghijklmnop\r\nCode: 395. DB::Exception: x\nmore. (F)\r\n\
                      45 abcdefghijklmnop\r\n__exception__\r\n";
        assert_eq!(at_end(latest, Some("abcdefghijklmnop")), Some(395));
        assert_eq!(at_end(latest, Some("ponmlkjihgfedcba")), None);
        for rows in [
            "1\n2\n",
            "Code: 395\n",
            "Code: 395. DB::Exception: x (version 1)\nand more rows\n",
            "Code: 395, e.displayText() = DB::Exception: x, e.what() = DB::Exception\n3\n",
        ] {
            assert_eq!(at_end(rows, None), None, "{rows}");
        }
        let text = "Code: 395. DB::Exception: x \\n 'y'. (F) (version 26.7.2.1)";
        for (format, rows) in [
            ("JSON", format!("\t],\n\t\"rows\": 7,\n\n\t\"exception\": \"{text}\"\n}}\n")),
            ("JSONEachRow", format!("{{\"n\":1}}\n{{\"exception\": \"{text}\"}}\n")),
            ("JSONCompactEachRow", format!("[1, 2]\n[\"{text}\"]\n")),
            ("NDJSON", format!("{{\"exception\":\"{text}\"}}")),
            ("XML", format!("\t<exception>{text}</exception>\n</result>\n")),
        ] {
            for tag in [None, Some("abcdefghijklmnop")] {
                assert_eq!(of(&rows, tag, Some(format)), Some(395), "{format}");
                assert_eq!(of(&rows, tag, Some("CSV")), None, "{format}");
                let more = rows.replace("(version", "(of version");
                assert_eq!(of(&more, tag, Some(format)), None, "{format}");
            }
            assert_eq!(of(latest, Some("abcdefghijklmnop"), Some(format)), Some(395));
        }
    }
}
