//! Whether a call's own words name another server: then what goes wrong says nothing of this one.
//!
//! `remote('h:9000', …)`, `url('http://h/', …)`, `ENGINE = MySQL('h:3306', …)` or `ON CLUSTER c` make the server ask
//! another. If that one is down, slow, or does not let us in, the server fails with a code that it has for failures of
//! its own (86, 209, 210, 279, 516, 519, 1000 …), or does not answer in time. Counted as the backend's, a few of those
//! would open the breaker for everybody. So they are neutral, as is what cannot be read.
//!
//! A table or a dictionary at another server is not distinguished from any other: what was put into the server is its
//! own.
//!
//! The rows of `FORMAT Values` may have such words in them, because the server takes expressions there. They are looked
//! at only once something has failed.

use bytes::Bytes;
use fusebox_state::Verdict;

use super::{
    http_form::HttpRequest,
    lexer::Lexer,
    reach,
    sql::{Statement, Verb},
    stated,
    wire::Call,
};

/// What of a call may name another server.
#[derive(Clone, Debug, Default)]
pub(crate) struct Elsewhere {
    /// Its statement does, or may.
    is_named: bool,
    /// Rows in which there may be expressions.
    rows: [Bytes; 2],
}

impl Elsewhere {
    /// Of a call, of whose data more may follow.
    pub(crate) fn of_call(statement: &Statement, call: &Call, is_whole: bool) -> Self {
        let format = statement.format.as_ref().or(call.header.format.as_ref());
        let Some(insert) = takes_expressions(statement, format) else {
            return Self { is_named: statement.elsewhere, ..Self::default() };
        };
        if !is_whole || call.header.raw.as_ref().is_some_and(|raw| raw.packing != <_>::default()) {
            return Self { is_named: true, ..Self::default() };
        }
        let inline = call.header.query.get(insert..).unwrap_or_default();
        let rows = [Bytes::copy_from_slice(inline.as_bytes()), call.data.clone()];
        Self { is_named: statement.elsewhere, rows }
    }

    /// Of a request of a client's own.
    pub(crate) fn of_request(request: &HttpRequest, statement: Option<&Statement>) -> Self {
        let HttpRequest { head, body } = request;
        let Some(statement) = statement else {
            // A handler of the server's own is not the caller's words.
            return Self { is_named: head.is_query, ..Self::default() };
        };
        if takes_expressions(statement, statement.format.as_ref()).is_none() {
            return Self { is_named: statement.elsewhere, ..Self::default() };
        }
        if !head.is_plain || !head.is_whole {
            return Self { is_named: true, ..Self::default() };
        }
        let rows = [Bytes::copy_from_slice(head.query.as_bytes()), body.clone()];
        Self { is_named: statement.elsewhere, rows }
    }

    /// Whether another server is named.
    pub(crate) fn is_named(&self) -> bool {
        self.is_named || self.rows.iter().any(|rows| in_rows(rows))
    }

    /// What it says of the backend that no answer came in time, if the call had the time that a backend may take.
    pub(crate) fn silence(&self, had_time: bool) -> Verdict {
        if had_time && !self.is_named() { Verdict::Failure } else { Verdict::Neutral }
    }
}

/// The beginning of the rows if expressions may be in them.
pub(super) fn takes_expressions(statement: &Statement, format: Option<&String>) -> Option<usize> {
    let Verb::Insert(insert) = &statement.verb else { return None };
    // The server takes the names of formats in whatever case.
    format.is_some_and(|format| format.eq_ignore_ascii_case("Values")).then_some(insert.head)
}

fn in_rows(rows: &[u8]) -> bool {
    let (text, is_text) = stated::text_of(rows);
    // What cannot be read may name any.
    !is_text || reach::in_rest(Lexer::new(text))
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            decoded::Packing,
            http_form::RequestHead,
            sql,
            wire::{Header, Raw},
        },
        *,
    };

    #[test]
    fn words_that_reach_another_server_are_known_wherever_they_stand() {
        for text in [
            "SELECT * FROM remote('h', system.one)",
            "SELECT 1; SELECT * FROM remote('h', system.one)",
            "WITH x AS (SELECT * FROM url('http://h/')) SELECT * FROM x",
            "WITH x AS (SELECT * FROM url('http://h/')) INSERT INTO t SELECT * FROM x",
            "SELECT (SELECT count() FROM `s3Cluster` ('c', 'http://h/'))",
            "(SELECT 1 FROM REMOTE /* ! */ ('h', system.one))",
            "DESCRIBE TABLE postgresql('h:5432', 'd', 't', 'u', 'p')",
            "INSERT INTO FUNCTION url('http://h/', CSV, 'a Int8') VALUES (1)",
            "INSERT INTO t SELECT * FROM mysql('h:3306', 'd', 't', 'u', 'p')",
            "INSERT INTO t (a) (SELECT * FROM icebergS3Cluster('c', 'http://h/'))",
            "CREATE TABLE t (a Int8) ENGINE = MySQL('h:3306', 'd', 't', 'u', 'p')",
            "CREATE TABLE t ON CLUSTER c (a Int8) ENGINE = Memory",
            "CREATE TABLE t (a Int8) ENGINE = ReplicatedReplacingMergeTree('/t', 'r') ORDER BY a",
            "CREATE DICTIONARY d (a UInt64) PRIMARY KEY a SOURCE(HTTP(url 'http://h/')) LAYOUT(FLAT())",
            "BACKUP TABLE t TO S3('http://h/', 'a', 'b')",
            "DROP TABLE t ON CLUSTER c",
            "SELECT 'a quote that does not end",
        ] {
            assert!(sql::read(text).elsewhere, "{text}");
        }
        for text in [
            "SELECT remote, url FROM cluster WHERE s3 IN (1)",
            "SELECT 'remote(1)' -- url(2)",
            "SELECT * FROM numbers(3), generateRandom('a Int8')",
            "INSERT INTO url (a) VALUES (1)",
            "INSERT INTO t FORMAT CSV\nremote(1)",
            "CREATE TABLE url.t (remote Int8) ENGINE = MergeTree ORDER BY remote",
        ] {
            assert!(!sql::read(text).elsewhere, "{text}");
        }
    }

    #[test]
    fn of_rows_only_those_that_are_expressions_are_looked_at() {
        let reaching = "(1, (SELECT count() FROM remote('h', system.one)))";
        let call = |query: &str, data: &str, raw: Option<Raw>| {
            let header = Header { query: query.into(), raw, ..Header::default() };
            Call { header, data: Bytes::copy_from_slice(data.as_bytes()) }
        };
        let of = |call: &Call, is_whole| {
            Elsewhere::of_call(&sql::read(&call.header.query), call, is_whole).is_named()
        };
        assert!(of(&call(&format!("INSERT INTO t VALUES {reaching}"), "", None), true));
        assert!(of(&call("INSERT INTO t FORMAT Values", reaching, None), true));
        assert!(of(&call("INSERT INTO t FORMAT vALUES", reaching, None), true));
        assert!(!of(&call("INSERT INTO t FORMAT CSV", reaching, None), true));
        assert!(!of(&call("INSERT INTO t VALUES", "(1, 'remote(')", None), true));
        assert!(of(&call("INSERT INTO t VALUES", "(1)", None), false), "more follows");
        let packed = Raw { packing: Packing { coding: None, blocks: true }, query: String::new() };
        assert!(of(&call("INSERT INTO t VALUES", "zip", Some(packed)), true));

        let request = |query: &str, body: &str, plain: bool, whole: bool| {
            let head = RequestHead {
                query: query.into(),
                is_query: true,
                is_plain: plain,
                is_whole: whole,
                is_clear: true,
                ..RequestHead::default()
            };
            HttpRequest { head, body: Bytes::copy_from_slice(body.as_bytes()) }
        };
        let of = |request: &HttpRequest| {
            let statement = stated::statement(request).map(|(statement, _)| statement);
            Elsewhere::of_request(request, statement.as_ref()).is_named()
        };
        assert!(of(&request("", &format!("INSERT INTO t VALUES {reaching}"), true, true)));
        assert!(of(&request("INSERT INTO t VALUES", reaching, true, true)));
        assert!(!of(&request("INSERT INTO t VALUES", "(1)", true, true)));
        assert!(of(&request("INSERT INTO t VALUES", "(1)", true, false)));
        assert!(!of(&request("INSERT INTO t FORMAT CSV", "1", true, false)));
        assert!(of(&request("", "what this is", false, true)), "it cannot be read");
        assert!(!of(&request("SELECT 1", "", true, true)));
    }
}
