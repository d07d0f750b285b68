//! What of a read that a client of the door sends may be cached, and as what.
//!
//! | part of a request | in the key |
//! | --- | --- |
//! | the method | yes: the server runs a GET as `readonly` |
//! | the statement | with its white space folded; as it was sent if it has comments |
//! | parameters and settings | all, but those that say how a query runs, or who asks |
//! | `X-ClickHouse-…` headers, `Accept-Encoding` | all but the query's id: bytes are kept as the server sent them |
//! | the session | no: one that something was put into is not cached |
//!
//! A statement that is not here whole, or not as text, is not cached, nor is one that asks for the server's own state
//! or for random numbers. The list of settings is the exception, because clients ask for it when they start.
//!
//! Of an answer its body is kept and those headers that tell how to read it. A packed answer is kept only if the server
//! announces by what it marks an exception behind rows (`X-ClickHouse-Exception-Tag`). Such a server also breaks the
//! answer off. An older one ends it as a complete one, and the exception is packed as the rows are. So is one in the
//! format of the rows (`http_write_exception_in_output_format`): a packed answer to a request that names this setting is
//! not kept if its format is one of these.

use std::time::Duration;

use bytes::Bytes;
use fusebox_actors::connector::Slot;
use fusebox_state::LaneId;

use super::{
    http_form::{self, AnswerHead, HttpRequest},
    outcome,
    plan::WITHOUT_EFFECT,
    sql::{self, Statement, Verb},
    stated,
};
use crate::kinds::clickhouse::settings::ClickHouseSettings;

/// Parameters that say who asks, or how the answer travels.
const OF_THE_CALL: &[&str] = &[
    "query",
    "query_id",
    "session_id",
    "session_timeout",
    "wait_end_of_query",
    "buffer_size",
    "cancel_http_readonly_queries_on_client_close",
    "http_receive_timeout",
    "http_send_timeout",
    "http_connection_timeout",
];
/// The setting by which an exception behind rows is written in their format.
const IN_ROWS: &str = "http_write_exception_in_output_format";
/// Headers of an answer that tell how to read it.
const KEPT: &[&str] = &[
    "content-encoding",
    "content-type",
    "vary",
    "x-clickhouse-exception-tag",
    "x-clickhouse-format",
    "x-clickhouse-server-display-name",
    "x-clickhouse-summary",
    "x-clickhouse-timezone",
];
/// What the keys of what clients ask for when they start begin with. The keys of [calls](super::plan::slot) begin with
/// a digit.
const START: &str = "start/";
/// What all other keys begin with.
const OTHER: &str = "door/";
/// What they ask for, besides the list of settings: without spaces, and in small letters.
const START_UP: &[&str] = &[
    "selectversion()",
    "selecttimezone()",
    "selectversion(),timezone()",
    "select1",
    "select1ascheck",
];
/// The query for the list of settings, folded and in small letters.
const SETTINGS_LIST: &str = " from system . settings";

/// The header of a query's id.
pub(crate) const QUERY_ID: &str = "x-clickhouse-query-id";
/// How long a session lasts at the server in silence, if its client does not say.
pub(crate) const USUAL_TIMEOUT: Duration = Duration::from_secs(60);

/// The session that a request names, and for how long it lasts.
pub(crate) fn session_of(request: &HttpRequest) -> Option<(String, Duration)> {
    let of = |name: &str| {
        // The server takes the first, too, in whatever case.
        let mut named =
            request.head.parameters.iter().filter(|(other, _)| other.eq_ignore_ascii_case(name));
        let found = named.next();
        found.map(|(_, value)| value.as_str())
    };
    let id = of("session_id").filter(|id| !id.is_empty())?;
    let timeout = of("session_timeout").and_then(|text| text.parse().ok());
    Some((id.to_owned(), timeout.map_or(USUAL_TIMEOUT, Duration::from_secs)))
}

/// The cache entry of a read; `None` if there is none.
pub(crate) fn slot(
    request: &HttpRequest,
    statement: &Statement,
    text: &str,
    settings: &ClickHouseSettings,
) -> Option<Slot> {
    let HttpRequest { head, .. } = request;
    let is_asked = head.is_query && matches!(head.method.as_str(), "GET" | "POST");
    let folded = sql::folded(text);
    let is_start = is_start(&folded);
    let is_of_server = statement.volatile && !is_start;
    if !is_asked || statement.verb != Verb::Read || is_of_server {
        return None;
    }
    let mut key = format!("{}{}/", if is_start { START } else { OTHER }, http_form::VERSION);
    let mut part = |text: &str| {
        // With its length, so that no two requests have one key.
        key.push_str(&text.len().to_string());
        key.push(':');
        key.push_str(text);
    };
    part(settings.username.as_deref().unwrap_or_default());
    part(&head.method);
    part(&folded);
    let mut parameters: Vec<&(String, String)> = head.parameters.iter().collect();
    // Of one that is named twice the server takes one: their order is kept.
    // A profile changes what was set before it, and not what is set after.
    if !parameters.iter().any(|(name, _)| name == "profile") {
        parameters.sort_by(|one, other| one.0.cmp(&other.0));
    }
    for (name, value) in parameters {
        match name.as_str() {
            "session_check" => return None,
            "database" if sql::is_server_state(value) => return None,
            name if name.starts_with("param_") && statement.names_state_by(value) => return None,
            name if OF_THE_CALL.contains(&name) || WITHOUT_EFFECT.contains(&name) => {}
            name => {
                part(name);
                part(value);
            }
        }
    }
    for (name, value) in &head.headers {
        if name == "x-clickhouse-database" && sql::is_server_state(value) {
            return None;
        }
        let is_id = name == QUERY_ID;
        if name.starts_with("x-clickhouse-") && !is_id || name == "accept-encoding" {
            part(name);
            part(value);
        }
    }
    Some(Slot { lane: LaneId::of(b"clickhouse", key.as_bytes()), key: key.into() })
}

/// Whether an entry holds what clients ask for when they start.
pub(crate) fn is_start_up(slot: &Slot) -> bool {
    slot.key.starts_with(START.as_bytes())
}

/// Whether clients ask for this when they start: for the version, the time zone, the list of settings, or whether the
/// server answers. clickhouse-connect asks before the first insert into a table for its columns.
fn is_start(folded: &str) -> bool {
    let plain = folded.to_ascii_lowercase().replace(' ', "");
    let asked = plain.strip_suffix(';').unwrap_or(&plain);
    let asked = asked.strip_suffix("formatnative").unwrap_or(asked);
    START_UP.contains(&asked) || is_settings_list(folded) || is_description(folded)
}

/// Whether a client asks for the columns of one table.
fn is_description(folded: &str) -> bool {
    let folded = folded.to_ascii_lowercase();
    let Some(rest) = folded.strip_prefix("describe table ") else { return false };
    let rest = rest.strip_suffix(';').unwrap_or(rest).trim_end();
    let rest = rest.strip_suffix(" format native").unwrap_or(rest);
    let words: Vec<&str> = rest.split_whitespace().collect();
    // A query and a function in the place of a table have parentheses.
    let is_of_name =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'`' | b'"' | b'.');
    matches!(words[..], [_] | [_, ".", _]) && words.iter().all(|word| word.bytes().all(is_of_name))
}

/// Whether a client asks for columns of the list of settings, as clickhouse-connect does when it starts.
fn is_settings_list(folded: &str) -> bool {
    let folded = folded.to_ascii_lowercase();
    let parts = folded.strip_prefix("select ").and_then(|it| it.split_once(SETTINGS_LIST));
    let Some((columns, behind)) = parts else { return false };
    let is_word = |it: &str| it.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    let are_columns = columns.split([' ', ',']).all(is_word);
    let mut behind = behind.split(' ').filter(|word| !word.is_empty());
    let mut is_tail = true;
    while let Some(word) = behind.next() {
        is_tail &= matches!(word, "limit" | "format") && behind.next().is_some_and(is_word);
    }
    are_columns && is_tail
}

/// What of an answer to `request` is kept. `None` for one that is not a result, or of which that is not sure.
pub(crate) fn kept(request: &Bytes, answer: &Bytes) -> Option<Bytes> {
    let (head, body) = http_form::answer_of(answer)?;
    let AnswerHead { status: 200, headers } = head else { return None };
    let has = |wanted: &str| headers.iter().any(|(name, _)| *name == wanted);
    if has("x-clickhouse-exception-code") {
        return None;
    }
    if has("content-encoding") || wants_blocks(request) {
        let format = headers.iter().find(|(name, _)| *name == "x-clickhouse-format");
        let may_hold = format.is_none_or(|(_, format)| outcome::may_hold_exceptions(format));
        if !has("x-clickhouse-exception-tag") || may_hold && names(request, IN_ROWS) {
            return None;
        }
    }
    let headers = headers.into_iter().filter(|(name, _)| KEPT.contains(name)).collect();
    Some(http_form::answer(&AnswerHead { status: 200, headers }, &body))
}

/// Whether a request names a setting.
fn names(request: &Bytes, setting: &str) -> bool {
    let Some(Ok(request)) = HttpRequest::of(request) else { return false };
    request.head.parameters.iter().any(|(name, _)| name == setting)
        || stated::statement(&request).is_none_or(|(_, text)| text.contains(setting))
}

/// Whether a request asks for an answer in ClickHouse's own blocks.
fn wants_blocks(request: &Bytes) -> bool {
    let Some(Ok(HttpRequest { head, .. })) = HttpRequest::of(request) else { return false };
    head.parameters.iter().any(|(name, value)| name == "compress" && value != "0")
}

/// Whether a request whose statement is this, if it is known, may put something into its session.
pub(crate) fn puts_into_session(statement: Option<&Statement>) -> bool {
    match statement.map(|statement| &statement.verb) {
        Some(Verb::Read | Verb::Insert(_)) => false,
        Some(Verb::Other(other)) => other.session,
        Some(Verb::Refused(_)) | None => true,
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{http_form::RequestHead, plan, wire::Header},
        *,
    };

    fn request(target: &str, headers: &[(&str, &str)]) -> HttpRequest {
        let headers = headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        let head = RequestHead {
            method: "POST".into(),
            target: target.into(),
            parameters: target
                .trim_start_matches(['/', '?'])
                .split('&')
                .filter_map(|it| it.split_once('='))
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            headers,
            is_query: true,
            is_plain: true,
            is_whole: true,
            is_clear: true,
            ..RequestHead::default()
        };
        HttpRequest { head, body: Bytes::new() }
    }

    fn key(text: &str, target: &str, headers: &[(&str, &str)]) -> Option<Bytes> {
        let settings = ClickHouseSettings::new("http://ada@h/logs".parse().unwrap(), "i", "r");
        let request = request(target, headers);
        slot(&request, &sql::read(text), text, &settings).map(|slot| slot.key)
    }

    #[test]
    fn answers_of_another_form_are_not_found() {
        // Whoever raises the version makes all answers that are kept on disk unknown.
        for (text, begins) in [("SELECT version()", "start/4/"), ("SELECT 1 + 1", "door/4/")] {
            let key = key(text, "/", &[]).unwrap();
            assert!(key.starts_with(begins.as_bytes()), "{text}: {key:?}");
        }
    }

    #[test]
    fn what_has_one_answer_has_one_key() {
        let usual = key("SELECT 1", "/?a=1&b=2", &[]).unwrap();
        for (text, target, headers) in [
            ("select  1", "/?a=1&b=2", &[][..]),
            ("SELECT\t1 ;", "/?b=2&a=1&", &[]),
            ("SELECT 1", "/?a=1&b=2&query_id=x&session_id=s&session_timeout=9", &[]),
            ("SELECT 1", "/?a=1&b=2&wait_end_of_query=1&max_memory_usage=3", &[]),
            ("SELECT 1", "/?a=1&b=2", &[("user-agent", "x"), ("content-type", "text/plain")]),
            ("SELECT 1", "/?a=1&b=2", &[("x-clickhouse-query-id", "x")]),
        ] {
            let is_same = key(text, target, headers) == Some(usual.clone());
            assert_eq!(is_same, text.starts_with("SELECT"), "{text} {target}");
        }
        for (text, target, headers) in [
            ("SELECT 2", "/?a=1&b=2", &[][..]),
            ("SELECT 1 -- now", "/?a=1&b=2", &[]),
            ("SELECT 1", "/?a=1&b=3", &[]),
            ("SELECT 1", "/?a=1&b=2&max_threads=3", &[]),
            ("SELECT 1", "/?a=1&b=2&max_block_size=3", &[]),
            ("SELECT 1", "/?a=1&b=2&role=r", &[]),
            ("SELECT 1", "/?a=1&b=2&max_execution_time=1", &[]),
            ("SELECT 1", "/?a=1&b=2&client_protocol_version=54405", &[]),
            ("SELECT 1", "/?a=1&b=2&readonly=2", &[]),
            ("SELECT 1", "/?a=1&b=2&compress=1", &[]),
            ("SELECT 1", "/?a=1&b=2", &[("accept-encoding", "gzip")]),
            ("SELECT 1", "/?a=1&b=2", &[("x-clickhouse-database", "d")]),
        ] {
            let other = key(text, target, headers);
            assert!(other.is_some() && other != Some(usual.clone()), "{text} {target} {headers:?}");
        }
        let settings = ClickHouseSettings::new("http://ada@h/logs".parse().unwrap(), "i", "r");
        let mut by_get = request("/?a=1&b=2", &[]);
        by_get.head.method = "GET".into();
        let by_get = slot(&by_get, &sql::read("SELECT 1"), "SELECT 1", &settings).unwrap();
        assert_ne!(by_get.key, usual, "the server runs it under another setting");
    }

    #[test]
    fn what_clients_ask_when_they_start_may_be_a_day_old() {
        let is_start_up = |text: &str| {
            let key = key(text, "/?a=1", &[]).unwrap();
            super::is_start_up(&Slot { lane: LaneId(1), key })
        };
        for text in [
            "SELECT version(), timezone() FORMAT Native",
            "select version()",
            "SELECT 1;",
            "SELECT 1 AS check",
            "SELECT name, value, readonly FROM system.settings LIMIT 10000",
            "DESCRIBE TABLE t",
            "DESCRIBE TABLE `local`.`t` FORMAT Native",
        ] {
            assert!(is_start_up(text), "{text}");
        }
        for text in [
            "SELECT 2",
            "SELECT 11",
            "SELECT version() || n FROM t",
            "SELECT 'SELECT 1'",
            "DESCRIBE TABLE (SELECT a FROM t)",
            "DESCRIBE TABLE file('a.csv')",
            "DESCRIBE TABLE a t",
        ] {
            assert!(!is_start_up(text), "{text}");
        }
    }

    #[test]
    fn of_a_parameter_that_is_named_twice_the_order_counts() {
        let of = |target| key("SELECT getSetting('custom_a')", target, &[]);
        assert_ne!(of("/?a=1&a=2"), of("/?a=2&a=1"));
        assert_eq!(of("/?a=1&b=3&a=2"), of("/?b=3&a=1&a=2"));
    }

    #[test]
    fn what_others_may_not_have_has_no_key() {
        for (text, target) in [
            ("SELECT * FROM system.tables", "/"),
            ("SELECT rand()", "/"),
            ("INSERT INTO t VALUES (1)", "/"),
            ("SELECT 1", "/?session_id=s&session_check=1"),
            ("SELECT * FROM tables", "/?database=system"),
            ("SELECT * FROM {d:Identifier}.processes", "/?param_d=system"),
            ("SELECT * FROM {d: Identifier}.processes", "/?param_d=System"),
            (
                "SELECT name, value, readonly AS readonly FROM system.settings, system.users LIMIT 1",
                "/",
            ),
        ] {
            assert_eq!(key(text, target, &[]), None, "{text} {target}");
        }
        assert_eq!(key("SELECT 1", "/", &[("x-clickhouse-database", "system")]), None);
        assert!(key("SELECT {d:String}", "/?param_d=system", &[]).is_some());
        for text in [
            "SELECT version(), timezone()",
            "SELECT 1 AS check",
            "SELECT name, value, readonly FROM system.settings LIMIT 10000",
            "SELECT name, value, readonly as readonly FROM system.settings LIMIT 10000 FORMAT Native",
        ] {
            assert!(key(text, "/", &[]).is_some(), "{text}");
        }
    }

    #[test]
    fn what_puts_something_into_a_session_is_known() {
        for (text, puts) in [
            ("SELECT 1", false),
            ("INSERT INTO t VALUES (1)", false),
            ("CREATE TABLE t (a UInt8) ENGINE = Null", false),
            ("CREATE OR REPLACE TEMPORARY TABLE t (a UInt8)", true),
            ("SET max_threads = 1", true),
            ("USE d", true),
            ("EXECUTE AS root", true),
            ("DROP TABLE t PARALLEL WITH SET max_threads = 1", true),
        ] {
            assert_eq!(puts_into_session(Some(&sql::read(text))), puts, "{text}");
        }
        assert!(puts_into_session(None));
        let named = session_of(&request("/?session_id=a b&session_timeout=7", &[]));
        assert_eq!(named, Some(("a b".to_owned(), Duration::from_secs(7))));
        assert_eq!(session_of(&request("/?session_id=", &[])), None);
    }

    #[test]
    fn of_an_answer_is_kept_what_tells_how_to_read_it() {
        let headers =
            [("date", "x"), ("x-clickhouse-query-id", "q"), ("x-clickhouse-format", "CSV")];
        let headers = headers.map(|(name, value)| (name, value.into())).to_vec();
        let answer = http_form::answer(&AnswerHead { status: 200, headers }, b"1\n");
        let asked = request("/?a=1", &[]).to_bytes();
        let kept_of_it = kept(&asked, &answer).unwrap();
        let (head, body) = http_form::answer_of(&kept_of_it).unwrap();
        assert_eq!(head.headers, [("x-clickhouse-format", "CSV".into())]);
        assert_eq!(body, "1\n");
        let number = ("x-clickhouse-exception-code", "395".into());
        for (status, headers) in [(404, vec![]), (200, vec![number])] {
            let error = http_form::answer(&AnswerHead { status, headers }, b"no");
            assert_eq!(kept(&asked, &error), None);
        }
    }

    #[test]
    fn a_packed_answer_is_kept_if_the_server_marks_what_went_wrong() {
        const SETS: &str = "/?http_write_exception_in_output_format=1";
        let is_kept = |target: &str, headers: &[(&str, &str)]| {
            let headers = headers.iter().map(|(name, value)| (*name, (*value).into())).collect();
            let answer = http_form::answer(&AnswerHead { status: 200, headers }, b"\x1f\x8b");
            let mut request = request(target, &[]);
            request.head.query = "SELECT 1".into();
            kept(&request.to_bytes(), &answer).is_some()
        };
        let tag = ("x-clickhouse-exception-tag", "abcdefghijklmnop");
        let gzip = ("content-encoding", "gzip");
        let (csv, json) = (("x-clickhouse-format", "CSV"), ("x-clickhouse-format", "JSON"));
        assert!(is_kept("/", &[]) && is_kept("/", &[gzip, tag, csv]));
        assert!(is_kept("/?a=1", &[gzip, tag, json]) && is_kept(SETS, &[gzip, tag, csv]));
        assert!(!is_kept(SETS, &[gzip, tag, json]) && is_kept(SETS, &[json]));
        assert!(is_kept("/?compress=1", &[tag, csv]) && is_kept("/?compress=0", &[]));
        assert!(!is_kept("/", &[gzip]) && !is_kept("/?compress=1", &[]));
    }

    #[test]
    fn no_call_over_the_api_has_an_entry_that_clients_need_when_they_start() {
        let settings = ClickHouseSettings::new("http://ada@h/logs".parse().unwrap(), "i", "r");
        for database in ["start", "start/", "http", "door/"] {
            let header = Header { database: Some(database.into()), ..Header::default() };
            let slot = plan::slot(&header, &sql::read("SELECT 1"), &settings).unwrap();
            assert!(!is_start_up(&slot), "{database}");
        }
    }
}
