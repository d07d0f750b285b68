//! What a request of the HTTP interface is, as far as its beginning says.
//!
//! | request | is | lanes |
//! | --- | --- | --- |
//! | GET, HEAD, OPTIONS without a statement | a read | none |
//! | a GET of a SELECT | a read, on any path | none |
//! | a SELECT that is here whole | a read, and [cached](super::door_read) | none |
//! | an INSERT | a write, and [queued](super::door_insert) if it may be | as [`plan`](super::plan) says |
//! | another statement that is here whole | as [`plan`](super::plan) says | |
//! | an INSERT whose rows have not begun in what is looked at | a write | all |
//! | anything else: a form, what cannot be unpacked, longer than what is looked at | a write | all |
//! | anything else on a path that is [not one of queries](RequestHead::is_query) | a write | all |
//!
//! A server runs the query of a GET as one that may change nothing (`readonly`), but lets it insert into a table function
//! such as `url(…)`, `file(…)` or `s3(…)`. So a GET is what its statement is.
//!
//! What a server does on such a path is in its configuration (`http_handlers`), and servers of 2018 take any path for
//! one of queries. These also write what HEAD and OPTIONS say.
//!
//! A packed body is unpacked as far as its statement goes ([`decoded`](super::decoded)), and sent on as it is.
//!
//! No other write is queued or given a token: in an outage it is an error. What the server makes of a request is
//! the server's affair; this only says what may be sent again, what waits for what, and what an outage lets one answer.

use std::time::Duration;

use bytes::Bytes;
use fusebox_actors::connector::{Access, Outage, Plan, Read, Refused, Write};
use fusebox_state::Lanes;

#[cfg(doc)]
use super::http_form::RequestHead;
use super::{
    door_insert, door_read,
    elsewhere::Elsewhere,
    http_form::{Fields, HttpRequest},
    sql::{Statement, Verb},
    stated::statement,
    wire::WireError,
};
use crate::kinds::clickhouse::settings::ClickHouseSettings;

/// The settings by which a server tells its progress in the head of an answer.
const PROGRESS: [&str; 2] = ["send_progress_in_http_headers", "http_headers_progress_interval_ms"];
/// Why other writes are not queued.
const REASON: &str = "it does not insert data";

/// Reads what a request is; `is_dirty` says whether something was put into a session, which ends after such a silence.
pub(crate) fn plan(
    body: Bytes,
    request: Result<HttpRequest, WireError>,
    is_dirty: impl FnOnce(&str, Duration) -> bool,
    usual: Option<&str>,
    settings: &ClickHouseSettings,
) -> Result<Plan, Refused> {
    let request = request.map_err(|error| Refused {
        code: "malformed",
        message: error.to_string(),
        malformed: true,
    })?;
    let statement = statement(&request);
    let is_safe = is_safe(&request, statement.as_ref().map(|(statement, _)| statement));
    let none = || Lanes::new([]);
    let session = door_read::session_of(&request);
    let is_dirty = session.is_some_and(|(id, timeout)| is_dirty(&id, timeout));
    // What is in a session is in its answers.
    let slot = statement
        .as_ref()
        .filter(|_| !is_dirty)
        .and_then(|(statement, text)| door_read::slot(&request, statement, text, settings));
    let read =
        || Access::Read(Read { keyed: false, slots: slot.into_iter().collect(), miss: None });
    let write = || Access::Write(Write::new(Outage::Never(REASON)));
    let verb = statement.as_ref().map(|(statement, text)| (&statement.verb, text.as_str()));
    let (lanes, admin, access) = match verb {
        _ if is_safe => (none(), false, read()),
        Some((Verb::Other(other), _)) if !request.head.is_query => {
            (Lanes::All, other.admin, write())
        }
        _ if !request.head.is_query => (Lanes::All, false, write()),
        Some((Verb::Read, _)) => (none(), false, read()),
        Some((Verb::Insert(insert), text)) => {
            let insert = (insert, text);
            let (label, lanes, access) =
                door_insert::plan(&request, insert, is_dirty, usual, settings);
            return Ok(Plan { body, label, lanes, admin: false, access });
        }
        Some((Verb::Other(other), _)) => {
            (if other.barrier { Lanes::All } else { none() }, other.admin, write())
        }
        Some((Verb::Refused(_), _)) | None => (Lanes::All, false, write()),
    };
    let statement = statement.map(|(statement, _)| statement);
    let label =
        statement.filter(|it| !it.word.is_empty()).map_or(request.head.method, |it| it.word);
    Ok(Plan { body, label, lanes, admin, access })
}

/// The operation's name, of the words that ClickHouse and HTTP have.
pub(crate) fn operation(request: &HttpRequest) -> &'static str {
    match statement(request) {
        Some((statement, _)) => statement.operation(),
        None if is_safe(request, None) => "GET",
        None => "unknown",
    }
}

/// By what of the request its answer is read.
#[derive(Debug, Default)]
pub(crate) struct OwnWords {
    /// The settings that it brings itself: what a query limits itself to says nothing of the server.
    pub(crate) settings: Vec<String>,
    /// Other servers that it names.
    pub(crate) elsewhere: Elsewhere,
    /// Whether the head of its answer may be long: it asks for progress in headers, or is no query or insert that is
    /// read.
    pub(crate) has_long_head: bool,
    /// Whether it does several things one after the other, or may do so; an insert does not.
    pub(crate) in_parts: bool,
}

/// See [`OwnWords`].
pub(crate) fn own_words(request: &HttpRequest) -> OwnWords {
    let statement = statement(request).map(|(statement, _)| statement);
    let elsewhere = Elsewhere::of_request(request, statement.as_ref());
    let verb = statement.as_ref().map(|it| &it.verb);
    let is_read = request.head.is_query && matches!(verb, Some(Verb::Read | Verb::Insert(_)));
    let is_insert = matches!(verb, Some(Verb::Insert(_)));
    let in_parts = !is_insert && statement.as_ref().is_none_or(|it| it.in_parts);
    let of_statement = statement.map(|it| it.settings).unwrap_or_default();
    let of_statement = of_statement.into_iter().map(|(name, _)| name);
    let of_request = request.head.parameters.iter().map(|(name, _)| name.clone());
    let has_long_head = !is_read || asks_for_progress(&request.head.parameters);
    let settings = of_request.chain(of_statement).collect();
    OwnWords { settings, elsewhere, has_long_head, in_parts }
}

/// Whether a parameter asks for progress in headers. A setting of the statement comes too late for that.
pub(crate) fn asks_for_progress(parameters: &Fields) -> bool {
    parameters.iter().any(|(name, _)| PROGRESS.contains(&name.as_str()))
}

/// Whether no server changes anything for its sake, on whatever path. `statement` is what is known of its statement.
fn is_safe(request: &HttpRequest, statement: Option<&Statement>) -> bool {
    let HttpRequest { head, body } = request;
    let says_nothing =
        || head.is_clear && head.query.trim_ascii().is_empty() && body.is_empty() && head.is_whole;
    match head.method.as_str() {
        "GET" => statement.map_or_else(says_nothing, |it| it.verb == Verb::Read),
        "HEAD" | "OPTIONS" => !head.target.contains('?') && says_nothing(),
        _ => false,
    }
}

/// Whether it is known to change nothing, so that a caller who may only read may send it.
pub(crate) fn only_reads(request: &HttpRequest) -> bool {
    let statement = statement(request).map(|(statement, _)| statement);
    let is_read = statement.as_ref().is_some_and(|it| it.verb == Verb::Read);
    request.head.is_query && is_read || is_safe(request, statement.as_ref())
}

/// The session that a request names, after which silence that ends, and whether the request may put something into it.
pub(crate) fn session(request: &HttpRequest) -> Option<(String, Duration, bool)> {
    let (id, timeout) = door_read::session_of(request)?;
    let statement = statement(request);
    let statement = statement.as_ref().map(|(statement, _)| statement);
    let puts = !request.head.is_query || door_read::puts_into_session(statement);
    Some((id, timeout, puts))
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            decoded::{self, Coding, MOST, PACKED_MOST, Packing},
            http_form::{RequestHead, Unpacked},
            stated::{self, unpacked},
        },
        *,
    };

    fn request(method: &str, query: &str, body: &'static [u8]) -> HttpRequest {
        let head = RequestHead {
            method: method.into(),
            query: query.into(),
            is_query: true,
            is_plain: true,
            is_whole: true,
            is_clear: true,
            ..RequestHead::default()
        };
        HttpRequest { head, body: Bytes::from_static(body) }
    }

    fn planned(bytes: Bytes, request: &HttpRequest) -> Plan {
        let settings = ClickHouseSettings::new("http://ada@h/logs".parse().unwrap(), "i", "r");
        plan(bytes, Ok(request.clone()), |_, _| false, None, &settings).unwrap()
    }

    #[track_caller]
    fn is(request: &HttpRequest, read: bool, all: bool) {
        let bytes = request.to_bytes();
        let plan = planned(bytes.clone(), request);
        assert_eq!(matches!(plan.access, Access::Read(_)), read, "{request:?}");
        assert_eq!(plan.lanes.is_all(), all, "{request:?}");
        assert_eq!(plan.body, bytes);
        if let Access::Read(read) = plan.access {
            assert!(read.miss.is_none(), "what is not known is never made up");
        }
    }

    #[test]
    fn what_cannot_write_and_what_reads_is_a_read_and_the_rest_is_a_write() {
        is(&request("GET", "SELECT 1", b""), true, false);
        is(&request("GET", "", b""), true, false);
        // The server lets one of these into a table function.
        is(&request("GET", "INSERT INTO FUNCTION file('x.csv') SELECT 1", b""), false, false);
        is(&request("GET", "DROP TABLE t", b""), false, true);
        is(&request("GET", "SELECT 'a", b""), false, true);
        is(&request("GET", "", b"\xff"), false, true);
        is(&request("HEAD", "", b""), true, false);
        is(&request("HEAD", "SELECT 1", b""), true, false);
        is(&request("POST", "", b"SELECT 1"), true, false);
        is(&request("POST", "SELECT 1 ", b"FORMAT CSV"), true, false);
        is(&request("POST", "INSERT INTO t FORMAT Native", b"\xff\0"), false, false);
        is(&request("POST", "", b"INSERT INTO t FORMAT RowBinary\n\xff\0"), false, false);
        is(&request("POST", "", b"CREATE TABLE t (a Int8)"), false, false);
        is(&request("POST", "", b"DROP TABLE t"), false, true);
        is(&request("POST", "", b"SET max_threads = 1"), false, true);
        is(&request("POST", "", b"SELECT '\xff'"), false, true);
        is(&request("POST", "", b""), false, true);
        is(&request("PUT", "", b""), false, true);
    }

    #[test]
    fn a_server_of_2018_writes_what_head_and_options_say() {
        for method in ["HEAD", "OPTIONS"] {
            let mut asked = request(method, "INSERT INTO t SELECT 1", b"");
            asked.head.target = "/?query=INSERT%20INTO%20t%20SELECT%201".into();
            is(&asked, false, false);
            is(&request(method, "", b"INSERT INTO t SELECT 1"), false, false);
        }
    }

    #[test]
    fn on_a_path_that_is_not_one_of_queries_nothing_but_a_get_is_known() {
        let with = |method: &str, query: &str, body: &'static [u8]| {
            let mut request = request(method, query, body);
            request.head.is_query = false;
            request.head.target = "/custom".into();
            request
        };
        is(&with("GET", "", b""), true, false);
        is(&with("GET", "SELECT 1", b""), true, false);
        is(&with("GET", "INSERT INTO t SELECT 1", b""), false, true);
        is(&with("HEAD", "", b""), true, false);
        for (query, body) in [("SELECT 1", &b""[..]), ("", b"SELECT 1"), ("", b"CREATE TABLE t")] {
            is(&with("POST", query, body), false, true);
        }
        let insert = with("POST", "", b"INSERT INTO t VALUES (1)");
        is(&insert, false, true);
        assert!(planned(Bytes::new(), &with("POST", "", b"SYSTEM SHUTDOWN")).admin);
        let mut in_session = with("GET", "", b"");
        in_session.head.parameters = vec![("session_id".into(), "s".into())];
        assert!(session(&in_session).unwrap().2, "it may put something into its session");
    }

    #[test]
    fn a_session_that_something_was_put_into_is_live_only() {
        let settings = ClickHouseSettings::new("http://ada@h/logs".parse().unwrap(), "i", "r");
        let planned = |text: &'static str, dirty: &str| {
            let mut request = request("POST", "", text.as_bytes());
            request.head.parameters = [("session_id", "s"), ("session_timeout", "7")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .to_vec();
            let is_dirty =
                |id: &str, timeout: Duration| id == dirty && timeout == Duration::from_secs(7);
            plan(request.to_bytes(), Ok(request), is_dirty, None, &settings).unwrap().access
        };
        let slots = |access| match access {
            Access::Read(read) => read.slots.len(),
            Access::Write(_) => 0,
        };
        assert_eq!(slots(planned("SELECT 1", "another")), 1);
        assert_eq!(slots(planned("SELECT 1", "s")), 0);
        let insert = "INSERT INTO d.t VALUES (1)";
        let is_queued = |access| match access {
            Access::Write(write) => !matches!(write.outage, Outage::Never(_)),
            Access::Read(_) => false,
        };
        assert!(is_queued(planned(insert, "another")) && !is_queued(planned(insert, "s")));
    }

    #[test]
    fn of_what_is_not_here_as_text_nothing_is_known_but_an_insert() {
        let with = |query: &str, body: &'static [u8], plain: bool, whole: bool| {
            let mut request = request("POST", query, body);
            (request.head.is_plain, request.head.is_whole) = (plain, whole);
            request
        };
        is(&with("", b"SELECT 1", true, false), false, true);
        is(&with("SELECT 1", b"x", false, true), false, true);
        is(&with("SELECT 1", b"", false, true), true, false);
        // Another statement may be in there.
        is(&with("INSERT INTO t FORMAT CSV", b"\x1f\x8b", false, false), false, true);
        is(&with("INSERT INTO t VALUES (1)", b"\x1f\x8b", false, false), false, false);
        is(&with("", b"INSERT INTO t FORMAT CSV\n1", true, false), false, false);
        is(&with("", b"INSERT INTO t FORMAT CSV\nPARAL", true, false), false, true);
        is(&with("", b"INSERT INTO t FORMAT CSV\n-- \xff", true, false), false, true);
        is(&with("", b"INSERT INTO t FORMAT CSV\n-- \xff", true, true), false, false);
        let joined = b"INSERT INTO t FORMAT CSV\n-- \xff\nPARALLEL WITH DROP TABLE v";
        is(&with("", joined, true, true), false, true);
        is(&with("", joined, true, false), false, true);
        // Rows whose first number is 47, before a text that begins with a slash.
        let binary = b"INSERT INTO t FORMAT RowBinary\n//usr\xff\n\0";
        is(&with("", binary, true, true), false, false);
        is(&with("", binary, true, false), false, false);
        // The last byte may be a part of a blank.
        is(&with("", b"INSERT INTO t FORMAT CSV\n//\xff\n\xc2", true, false), false, true);
        is(&with("", b"INSERT INTO t FORMAT CSV\nPARALLEL \xff", true, false), false, false);
        is(&with("", b"INSERT INTO t SELECT 1", true, false), false, true);
    }

    #[test]
    fn a_packed_statement_is_known_as_a_plain_one_is() {
        let packing = Packing { coding: None, blocks: true };
        let with = |query: &str, text: &[u8], cut: usize, whole: bool| {
            let mut body = [&[0; 16][..], &[2]].concat();
            let size = u32::try_from(text.len()).unwrap();
            body.extend_from_slice(&(size + 9).to_le_bytes());
            body.extend_from_slice(&size.to_le_bytes());
            body.extend_from_slice(text);
            body.truncate(body.len() - cut);
            let mut request = request("POST", query, b"");
            request.head.unpacked = unpacked(query, packing, (&body, whole));
            (request.head.is_plain, request.head.is_whole) = (false, whole);
            HttpRequest { body: body.into(), ..request }
        };
        is(&with("", b"SELECT 1", 0, true), true, false);
        is(&with("SELECT", b"1", 0, true), true, false);
        is(&with("", b"SELECT 1", 1, true), false, true);
        is(&with("", b"SELECT 1", 0, false), false, true);
        is(&with("", b"SELECT '\xff'", 0, true), false, true);
        is(&with("", b"DROP TABLE t", 0, true), false, true);
        is(&with("", b"INSERT INTO t FORMAT Native\n\xff\0", 1, false), false, false);
        is(&with("INSERT INTO t FORMAT CSV", b"1,2", 0, true), false, false);
        is(&with("INSERT INTO t FORMAT CSV", b"PARALLEL WITH DROP TABLE v", 0, true), false, true);
        is(&with("INSERT INTO t FORMAT CSV", b"PARALLEL WITH DROP TABLE v", 9, true), false, true);
        let joined = b"INSERT INTO t FORMAT CSV PARALLEL WITH GRANT ALL ON *.* TO eve";
        assert!(planned(Bytes::new(), &with("", joined, 0, true)).admin);
        let joined = with("INSERT INTO t FORMAT CSV", b"PARALLEL WITH KILL QUERY WHERE 1", 0, true);
        assert!(planned(Bytes::new(), &joined).admin);
        // What is behind the cut is not known.
        for begin in ["INSERT INTO t SELECT 1 ", "INSERT INTO t FORMAT CSV "] {
            let long = format!("{begin}{}PARALLEL WITH DROP TABLE v", " ".repeat(70 << 10));
            is(&with("", long.as_bytes(), 0, true), false, true);
            is(&request("POST", "", long.leak().as_bytes()), false, true);
        }
        assert!(planned(Bytes::new(), &with("", b"KILL QUERY WHERE 1", 0, true)).admin);
        let insert = with("INSERT INTO t", b"/* ! */ FORMAT CSV\n1,2", 0, true);
        let expected = Unpacked { text: "/* ! */ FORMAT CSV".into(), is_known: true };
        assert_eq!(insert.head.unpacked, Some(expected), "rows are not carried twice");
    }

    #[test]
    fn of_a_packed_insert_so_much_is_awaited_that_its_rows_begin() {
        // A block of zstd that does not become smaller.
        let block = |text: &[u8]| {
            let [low, middle, high, _] = u32::try_from(text.len() << 3).unwrap().to_le_bytes();
            [&[low, middle, high][..], text].concat()
        };
        let head = [0x28, 0xb5, 0x2f, 0xfd, 0, 7 << 3];
        let with = |query: &str, blocks: &[Vec<u8>], len: usize| {
            let body = [&head[..], &blocks.concat()].concat();
            let body = &body[..len.min(body.len())];
            let packing = Packing { coding: Some(Coding::Zstd), blocks: false };
            let mut request = request("POST", query, b"");
            request.head.unpacked = unpacked(query, packing, (body, false));
            (request.head.is_plain, request.head.is_whole) = (false, false);
            HttpRequest { body: Bytes::copy_from_slice(body), ..request }
        };
        let rows = block(&b"1,2\n".repeat(32 << 10));
        let csv = "INSERT INTO t FORMAT CSV";
        let text = format!("{csv}\n{}", "1\n".repeat(60_000));
        for (query, first) in [(csv, rows.clone()), ("", block(text.as_bytes()))] {
            let blocks = [first, rows.clone()];
            let begun = with(query, &blocks, MOST);
            assert!(stated::is_to_be_found(&begun));
            is(&begun, false, true);
            let found = with(query, &blocks, PACKED_MOST);
            assert!(!stated::is_to_be_found(&found));
            is(&found, false, false);
        }
        let joined = format!("{}PARALLEL WITH DROP TABLE v", " ".repeat(66_000));
        let joined = with(csv, &[block(joined.as_bytes()), rows], PACKED_MOST);
        assert!(!stated::is_to_be_found(&joined), "no more of it helps");
        is(&joined, false, true);
        // What can be unpacked from its first byte on needs no more.
        let mut raw = decoded::testing::lz4_head();
        raw.extend_from_slice(&(0x8000_0000_u32 | (4 << 20)).to_le_bytes());
        raw.extend_from_slice(&b"1,2\n".repeat(1_000));
        let packing = Packing { coding: Some(Coding::Lz4), blocks: false };
        assert!(unpacked(csv, packing, (&raw, false)).unwrap().is_known);
    }

    #[test]
    fn what_needs_admin_rights_is_known_of_text_alone() {
        let admin = |request: &HttpRequest| planned(Bytes::new(), request).admin;
        assert!(admin(&request("POST", "SYSTEM SHUTDOWN", b"")));
        assert!(admin(&request("GET", "SYSTEM SHUTDOWN", b"")));
        assert!(admin(&request("GET", "EXECUTE AS root SELECT 1", b"")));
        assert!(admin(&request("POST", "DROP TABLE t PARALLEL WITH", b"GRANT r TO ada")));
        let csv = "INSERT INTO t FORMAT CSV";
        assert!(admin(&request("POST", csv, b"PARALLEL WITH SYSTEM SHUTDOWN")));
        let body = b"INSERT INTO t FORMAT CSV PARALLEL WITH GRANT ALL ON *.* TO eve";
        assert!(admin(&request("POST", "", body)));
        assert!(!admin(&request("POST", csv, b"PARALLEL,WITH")));
        assert!(!admin(&request("POST", "DROP TABLE t", b"")));
    }

    #[test]
    fn a_limit_of_its_own_is_found_in_the_parameters_and_in_the_statement() {
        let mut request = request("POST", "", b"SELECT 1 SETTINGS max_execution_time = 1");
        request.head.parameters = vec![("max_memory_usage".into(), "1".into())];
        assert_eq!(own_words(&request).settings, ["max_memory_usage", "max_execution_time"]);
        request.head.is_plain = false;
        assert_eq!(own_words(&request).settings, ["max_memory_usage"]);
    }

    #[test]
    fn an_answer_may_have_a_long_head_if_progress_is_asked_for_or_the_request_is_not_read() {
        let has_long_head = |request: &HttpRequest| own_words(request).has_long_head;
        let mut asked = request("POST", "", b"SELECT 1");
        assert!(!has_long_head(&asked));
        asked.head.parameters = vec![("http_headers_progress_interval_ms".into(), "1".into())];
        assert!(has_long_head(&asked));
        assert!(!has_long_head(&request("POST", "INSERT INTO t FORMAT CSV", b"1")));
        for other in ["SELECT /* /* */ */ 1", "SET send_progress_in_http_headers = 1", "x"] {
            assert!(has_long_head(&request("POST", other, b"")), "{other}");
        }
        let mut form = request("POST", "", b"SELECT 1");
        form.head.is_plain = false;
        assert!(has_long_head(&form), "its settings may be in the form");
        let mut bytes = request("POST", "", b"SELECT 1");
        bytes.head.is_clear = false;
        assert!(has_long_head(&bytes));
        let mut elsewhere = request("POST", "", b"SELECT 1");
        elsewhere.head.is_query = false;
        assert!(has_long_head(&elsewhere), "its settings are the server's own");
    }

    #[test]
    fn what_may_fail_when_a_part_of_it_is_done_is_known_or_not_read() {
        let in_parts = |text: &'static str| {
            let request = request("POST", "", text.as_bytes());
            own_words(&request).in_parts
        };
        for text in ["DROP TABLE a, b", "DROP DATABASE d", "NEWWORD t", "DROP TABLE '"] {
            assert!(in_parts(text), "{text}");
        }
        for text in ["DROP TABLE a", "INSERT INTO t FORMAT CSV\n1", "CREATE TABLE t (a Int8)"] {
            assert!(!in_parts(text), "{text}");
        }
        let mut form = request("POST", "", b"DROP TABLE a");
        form.head.is_plain = false;
        assert!(own_words(&form).in_parts, "its statement is not known");
    }

    #[test]
    fn an_operation_is_named_by_words_that_no_caller_made_up() {
        let name = |method, query| operation(&request(method, query, b""));
        assert_eq!(name("POST", "select 1"), "SELECT");
        assert_eq!((name("GET", ""), name("POST", "")), ("GET", "unknown"));
        assert_eq!(name("POST", "hunter2"), "unknown");
    }
}
