//! A client's request as it goes on: without what belongs to its connection, and without credentials.

use std::collections::HashSet;

use bytes::Bytes;
use hyper::{
    HeaderMap, Method,
    header::{
        CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, TRANSFER_ENCODING,
    },
    http::request::Parts,
};

use crate::{
    kinds::clickhouse::protocol::{
        decoded::{Coding, Packing},
        door_read::QUERY_ID as QUERY_ID_HEADER,
        http_form::{Fields, HttpRequest, RequestHead, text_of},
        stated,
    },
    net::percent::{self, decoded},
};

/// What is held of a body, in bytes, beside a piece of it: more of one that is queued, or in which the statement is still
/// to be found. A request that is not longer may be sent again.
pub(super) const HELD: usize = 64 << 10;
/// Headers that belong to a connection, or are ours to say.
const NOT_PASSED_ON: &[&str] = &[
    "authorization",
    "connection",
    "expect",
    "host",
    "keep-alive",
    "proxy-authorization",
    "proxy-connection",
    "transfer-encoding",
    "upgrade",
    "x-clickhouse-key",
    "x-clickhouse-ssl-certificate-auth",
    "x-clickhouse-user",
];
/// What options of fusebox's own begin with.
const OPTIONS: &str = "x-fusebox-";
/// The paths of queries: with a query string, the server takes a request to one of them for a query.
const OF_QUERIES: &[&str] = &["/", "/query"];
/// The parameter of a query's id.
const QUERY_ID: &str = "query_id";
/// How long a session lasts in silence if its client does not say: [`USUAL_TIMEOUT`].
///
/// [`USUAL_TIMEOUT`]: crate::kinds::clickhouse::protocol::door_read::USUAL_TIMEOUT
const USUAL_SESSION: &str = "session_timeout=60";
/// Parameters that say who the client is.
const CREDENTIALS: &[&str] = &["user", "password"];

/// Parameters that this door or the server reads for itself; all others are settings.
const OWN: &[&str] = &[
    "buffer_size",
    "compress",
    "database",
    "decompress",
    "default_format",
    "password",
    "query",
    "query_id",
    "quota_key",
    "role",
    "session_check",
    "session_id",
    "session_timeout",
    "stacktrace",
    "user",
    "wait_end_of_query",
];
/// The only parameter that is there for each of its values.
const REPEATED: &str = "role";

/// The parameters of a query string, as they were sent and decoded.
///
/// The server looks for names whatever their case, and takes the first value of some parameters and the last of others,
/// by its version. What it does is known only if each name is there once, in lower case.
pub(super) struct Parameters<'a>(Vec<Parameter<'a>>);

struct Parameter<'a> {
    raw: &'a str,
    name: String,
    value: String,
}

impl Parameter<'_> {
    fn is_text(&self) -> bool {
        self.raw.split('=').all(|part| decoded(&part.replace('+', " ")).is_some())
    }
}

impl<'a> Parameters<'a> {
    /// The parameters of `query`.
    pub(super) fn of(query: &'a str) -> Self {
        let text = |raw: &str| decoded(&raw.replace('+', " ")).unwrap_or_else(|| raw.to_owned());
        let read = |raw: &'a str| {
            let (name, value) = raw.split_once('=').unwrap_or((raw, ""));
            Parameter { raw, name: text(name), value: text(value) }
        };
        Self(query.split('&').filter(|raw| !raw.is_empty()).map(read).collect())
    }

    /// The first value of a name, which is the one that the server takes of what is not a setting.
    pub(super) fn value(&self, name: &str) -> Option<&str> {
        let mut found = self.0.iter().filter(|it| it.name.eq_ignore_ascii_case(name));
        found.next().map(|it| it.value.as_str())
    }

    /// Whether they name a session and not how long it lasts in silence.
    fn has_usual_session(&self) -> bool {
        self.value("session_id").is_some_and(|id| !id.is_empty())
            && self.value("session_timeout").is_none()
    }

    /// Whether it is known what the server takes them for: all of them are text, and none is there twice or in another
    /// case than the server's.
    fn are_clear(&self) -> bool {
        let mut seen = HashSet::with_capacity(self.0.len());
        self.0.iter().all(|it| {
            let name = it.name.to_ascii_lowercase();
            let is_in_its_case = name == it.name || !OWN.contains(&name.as_str());
            it.is_text() && is_in_its_case && (name == REPEATED || seen.insert(name))
        })
    }

    fn is_on(&self, name: &str) -> bool {
        self.value(name).is_some_and(|value| !matches!(value, "" | "0" | "false"))
    }

    /// What is shown of them: neither credentials nor the text of the query. One who may only read says nothing of
    /// `readonly`.
    fn told(&self, reads_only: bool) -> Vec<(String, String)> {
        let is_told = |it: &&Parameter<'_>| {
            let name = it.name.as_str();
            let is_readonly = reads_only && is_one_of(name, &["readonly"]);
            !is_readonly && name_is_told(name)
        };
        let told = self.0.iter().filter(is_told).map(|it| (it.name.clone(), it.value.clone()));
        told.chain(reads_only.then(|| ("readonly".to_owned(), "2".to_owned()))).collect()
    }

    /// The query string without some of them.
    fn without(&self, names: &[&str]) -> String {
        let left = self.0.iter().filter(|it| !is_one_of(&it.name, names));
        left.map(|it| it.raw).collect::<Vec<&str>>().join("&")
    }
}

/// Whether what a name says is shown: neither credentials nor the text of the query.
fn name_is_told(name: &str) -> bool {
    !is_one_of(name, CREDENTIALS) && !is_one_of(name, &["query"])
}

/// Whether a name is one of these, for the server.
fn is_one_of(name: &str, names: &[&str]) -> bool {
    names.iter().any(|it| it.eq_ignore_ascii_case(name))
}

/// The request as it is sent on. `is_whole` says whether `body` is all of it, and `reads_only` whether its caller may
/// not write, which is for the server to see to.
pub(super) fn of(
    parts: &Parts,
    parameters: &Parameters<'_>,
    (body, is_whole): (Bytes, bool),
    reads_only: bool,
) -> HttpRequest {
    let path = parts.uri.path();
    let query = parts.uri.query();
    let (query_id, is_id_in_header) = query_id(&parts.headers, parameters);
    let mut dropped = CREDENTIALS.to_vec();
    dropped.extend(reads_only.then_some("readonly"));
    // The server takes no other id once there is this parameter, even if it is empty.
    dropped.extend(query_id.is_none().then_some(QUERY_ID));
    let mut left = query.map_or_else(String::new, |_| parameters.without(&dropped));
    // Without a query string, `/` is a page, and `/query` is nothing.
    let is_query = OF_QUERIES.contains(&path) && query.is_some()
        || path == "/" && parts.method == Method::POST;
    let mut add = |pair: &str| {
        left.push_str(if left.is_empty() { "" } else { "&" });
        left.push_str(pair);
    };
    if reads_only && is_query {
        add("readonly=2");
    }
    // The server may have another default: then it would not be known here when the session ends.
    if is_query && parameters.has_usual_session() {
        add(USUAL_SESSION);
    }
    // Older servers do not know the header.
    if let Some(id) = query_id.as_deref().filter(|_| is_query && is_id_in_header) {
        add("query_id=");
        percent::encode(id, &mut left);
    }
    let target = if query.is_some() || !left.is_empty() {
        format!("{path}?{left}")
    } else {
        path.to_owned()
    };
    let text = parameters.value("query").unwrap_or_default();
    let packing = packing(&parts.headers, parameters);
    let unpacked = packing.filter(|_| is_query);
    let unpacked = unpacked.and_then(|packing| stated::unpacked(text, packing, (&body, is_whole)));
    let head = RequestHead {
        method: parts.method.as_str().to_owned(),
        target,
        headers: fields(&parts.headers, is_whole.then_some(body.len())),
        query: text.to_owned(),
        query_id,
        is_query,
        is_clear: parameters.are_clear(),
        parameters: parameters.told(reads_only && is_query),
        is_plain: is_plain(&parts.headers, parameters),
        packing,
        unpacked,
        is_whole,
    };
    HttpRequest { head, body }
}

/// The id that a client gives its query, and whether the header has it. Like the server, this takes the first parameter
/// of the name, and the header only without one. What is empty is no id, and neither is what is not text: by such an id
/// no query could be found.
fn query_id(headers: &HeaderMap, parameters: &Parameters<'_>) -> (Option<String>, bool) {
    let first = parameters.0.iter().find(|it| is_one_of(&it.name, &[QUERY_ID]));
    let id = match first {
        Some(it) => it.is_text().then(|| it.value.clone()),
        None => headers.get(QUERY_ID_HEADER).and_then(|it| it.to_str().ok()).map(str::to_owned),
    };
    (id.filter(|id| !id.is_empty()), first.is_none())
}

/// The headers that go on. A body that is here whole, and so long, goes in one piece however it came.
fn fields(headers: &HeaderMap, whole: Option<usize>) -> Fields {
    let of_connection: Vec<String> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .collect();
    let goes_on = |name: &str| {
        let is_length = whole.is_some() && name == CONTENT_LENGTH.as_str();
        let stays = NOT_PASSED_ON.contains(&name) || name.starts_with(OPTIONS) || is_length;
        !stays && !of_connection.iter().any(|it| it == name)
    };
    let passed_on = headers.iter().filter(|(name, _)| goes_on(name.as_str()));
    let field =
        |name: &HeaderName, value: &[u8]| (name.as_str().to_owned(), text_of(value).into_owned());
    let passed_on = passed_on.map(|(name, value)| field(name, value.as_bytes()));
    let has_body = headers.contains_key(CONTENT_LENGTH) || headers.contains_key(TRANSFER_ENCODING);
    let length = whole.filter(|_| has_body).map(|length| length.to_string());
    passed_on.chain(length.map(|length| field(&CONTENT_LENGTH, length.as_bytes()))).collect()
}

/// Whether the body is text without decoding.
fn is_plain(headers: &HeaderMap, parameters: &Parameters<'_>) -> bool {
    !is_form(headers) && coding(headers).is_none() && !parameters.is_on("decompress")
}

/// How the body is packed, if it is packed and can be unpacked here.
fn packing(headers: &HeaderMap, parameters: &Parameters<'_>) -> Option<Packing> {
    let coding = coding(headers).map(Coding::of);
    let packing = Packing { coding: coding.flatten(), blocks: parameters.is_on("decompress") };
    let is_known = coding.is_none() || packing.coding.is_some();
    (is_known && packing != Packing::default() && !is_form(headers)).then_some(packing)
}

/// What the body is encoded in.
fn coding(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(CONTENT_ENCODING).iter();
    let value = values.next()?.to_str().unwrap_or_default();
    // The server takes one of several; which is its own affair.
    let value = if values.next().is_some() { "" } else { value };
    (value != "identity").then_some(value)
}

/// The server reads no other kind of form; curl says that of any body.
fn is_form(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    kind.unwrap_or_default().trim_ascii_start().to_ascii_lowercase().starts_with("multipart/")
}

#[cfg(test)]
mod tests {
    use hyper::Request;

    use super::*;

    fn made(method: &str, uri: &str, headers: &[(&str, &str)], reads_only: bool) -> RequestHead {
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        let parameters = Parameters::of(parts.uri.query().unwrap_or_default());
        of(&parts, &parameters, (Bytes::new(), true), reads_only).head
    }

    #[test]
    fn credentials_and_what_belongs_to_the_connection_go_no_further() {
        let headers = [
            ("host", "h"),
            ("authorization", "Basic x"),
            ("x-clickhouse-user", "ada"),
            ("x-clickhouse-key", "hush"),
            ("x-clickhouse-ssl-certificate-auth", "on"),
            ("connection", "close, X-Hop"),
            ("x-hop", "1"),
            ("expect", "100-continue"),
            ("transfer-encoding", "chunked"),
            ("x-fusebox-deadline", "1s"),
            ("x-clickhouse-database", "d"),
            ("accept-encoding", "gzip"),
        ];
        let uri = "/?us%65r=ada&query=SELECT+%271%27&password=hush&%70assword=hush&max_threads=2";
        let head = made("POST", uri, &headers, false);
        assert_eq!(head.target, "/?query=SELECT+%271%27&max_threads=2");
        let names: Vec<&str> = head.headers.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["x-clickhouse-database", "accept-encoding", "content-length"]);
        assert_eq!(head.query, "SELECT '1'");
        assert_eq!(head.parameters, [("max_threads".to_owned(), "2".to_owned())]);
        assert!(!format!("{head:?}").contains("hush"));
    }

    #[test]
    fn a_page_is_no_query_and_keeps_its_address() {
        let target = |uri: &str, reads_only| {
            let head = made("GET", uri, &[], reads_only);
            (head.target, head.is_query)
        };
        assert_eq!(target("/", true), ("/".into(), false));
        assert_eq!(target("/?", false), ("/?".into(), true));
        assert_eq!(target("/play?user=ada", true), ("/play?".into(), false));
        assert_eq!(target("/?a&&b=%zz", false), ("/?a&b=%zz".into(), true));
        assert_eq!(target("/query?a", true), ("/query?a&readonly=2".into(), true));
        for no_query in ["/query", "/query/?a", "//?a", "/Query?a", "/%71uery?a", "/unknown?a"] {
            assert!(!target(no_query, true).1, "{no_query}");
        }
        let head = made("POST", "/", &[], true);
        assert_eq!((head.target.as_str(), head.is_query), ("/?readonly=2", true));
        let head = made("POST", "/?readonly=0&query=x", &[], true);
        assert_eq!(head.target, "/?query=x&readonly=2");
    }

    #[test]
    fn how_long_a_session_lasts_is_always_said() {
        for (uri, expected) in [
            ("/?session_id=s", "/?session_id=s&session_timeout=60"),
            ("/query?session_id=s&a=1", "/query?session_id=s&a=1&session_timeout=60"),
            ("/?session_id=s&session_timeout=7", "/?session_id=s&session_timeout=7"),
            ("/?session_id=", "/?session_id="),
            ("/custom?session_id=s", "/custom?session_id=s"),
        ] {
            assert_eq!(made("POST", uri, &[], false).target, expected);
        }
    }

    #[test]
    fn a_body_is_plain_unless_something_says_otherwise() {
        let plain =
            |uri: &str, headers: &[(&str, &str)]| made("POST", uri, headers, false).is_plain;
        assert!(plain("/", &[]) && plain("/?decompress=0", &[("content-type", "text/plain")]));
        assert!(plain("/", &[("content-type", "application/x-www-form-urlencoded")]));
        assert!(!plain("/?decompress=1", &[]));
        assert!(!plain("/", &[("content-encoding", "gzip")]));
        assert!(!plain("/", &[("content-type", "Multipart/form-data; boundary=x")]));
        let packed =
            |uri: &str, headers: &[(&str, &str)]| made("POST", uri, headers, false).packing;
        let zstd = |blocks| Some(Packing { coding: Some(Coding::Zstd), blocks });
        assert_eq!(packed("/", &[("content-encoding", "zstd")]), zstd(false));
        assert_eq!(packed("/?decompress=1", &[("content-encoding", "zstd")]), zstd(true));
        let blocks = Packing { coding: None, blocks: true };
        assert_eq!(packed("/?decompress=1", &[("content-encoding", "identity")]), Some(blocks));
        let twice = [("content-encoding", "zstd"), ("content-encoding", "gzip")];
        let form = [("content-encoding", "gzip"), ("content-type", "multipart/form-data")];
        for headers in [&[][..], &[("content-encoding", "snappy")], &twice, &form] {
            assert_eq!(packed("/", headers), None, "{headers:?}");
        }
        assert_eq!(made("POST", "/?query_id=mine", &[], false).query_id.as_deref(), Some("mine"));
        // Of two the server takes the first; what is not a text is not read.
        assert_eq!(made("POST", "/?query=SELECT+1&query=SELECT+2", &[], false).query, "SELECT 1");
        let is_clear = |uri: &str| made("POST", uri, &[], false).is_clear;
        assert!(
            is_clear("/?param_x=%C3%A9=%25FF") && !is_clear("/?param_x=%FF") && !is_clear("/?%zz")
        );
        assert!(is_clear("/?decompress=1&role=a&role=b&max_threads=1"));
        let unclear = [
            "/?decompress=1&decompress=0",
            "/?decompress=0&DECOMPRESS=1",
            "/?Decompress=1",
            "/?query=SELECT+1&query=SELECT+2",
            "/?QUERY=SELECT+1",
            "/?Session_Id=s",
            "/?max_threads=1&max_threads=2",
        ];
        for uri in unclear {
            assert!(!is_clear(uri), "{uri}");
        }
        let head = made("POST", "/?USER=ada&Password=x&query=SELECT+1", &[], false);
        assert!(!head.is_clear && head.target == "/?query=SELECT+1", "{}", head.target);
        assert!(head.parameters.is_empty(), "{:?}", head.parameters);
    }

    #[test]
    fn a_query_has_the_id_that_the_server_takes_or_none() {
        let made = |uri: &str, headers: &[(&str, &str)]| {
            let head = made("POST", uri, headers, false);
            (head.query_id, head.target)
        };
        let id = |id: &str| Some(id.to_owned());
        let header = [("x-clickhouse-query-id", "it's")];
        for (uri, headers, expected, target) in [
            ("/?query_id=a", &[][..], id("a"), "/?query_id=a"),
            ("/?query_id=a&query_id=b", &header, id("a"), "/?query_id=a&query_id=b"),
            ("/?query_id=&b=1", &[], None, "/?b=1"),
            ("/?query_id&query_id=late", &header, None, "/?"),
            ("/?query_id=%FF", &[], None, "/?"),
            ("/", &header, id("it's"), "/?query_id=it%27s"),
            ("/?b=1", &header, id("it's"), "/?b=1&query_id=it%27s"),
            ("/?b=1", &[("x-clickhouse-query-id", "")], None, "/?b=1"),
            ("/?b=1", &[("x-clickhouse-query-id", "caf\u{e9}")], None, "/?b=1"),
            ("/custom?query_id=", &[], None, "/custom?"),
            ("/custom", &header, id("it's"), "/custom"),
        ] {
            assert_eq!(made(uri, headers), (expected, target.to_owned()), "{uri} {headers:?}");
        }
    }
}
