//! An INSERT that a client of the door sends, as the call that is stored if it is queued.
//!
//! | of the request | becomes |
//! | --- | --- |
//! | statement in `query`, rows in a body that is not packed | a call as JSON callers make it |
//! | statement and rows in one text of up to 64 KiB | the same |
//! | any other body | kept as it is, packed as it is ([`Raw`]) |
//! | `database`, `param_…`, settings | the call's own |
//! | session, `query_id`, how the answer travels | nothing: replay has none of that |
//!
//! A database that the request does not name is the one that the server takes for it, if that is known by now: replay
//! must not ask again in another run. Never queued is what would mean something else without its session or its rights:
//! in a session that something was put into, with a role, `readonly`, or a parameter that is named twice.

use std::collections::BTreeMap;

use bytes::Bytes;
use fusebox_actors::connector::{Access, Outage, Write};
use fusebox_state::Lanes;

use super::{
    decoded::MOST,
    http_form::{HttpRequest, RequestHead},
    plan,
    sql::{self, Insert, Rows, Table, Verb},
    stated, target,
    wire::{Call, Header, Raw},
};
use crate::kinds::clickhouse::settings::ClickHouseSettings;

/// The most of a body that is queued, as it was sent.
pub(crate) const BODY_MAX: usize = 1 << 20;

/// Parameters that mean nothing to replay.
const DROPPED: &[&str] = &[
    "buffer_size",
    "cancel_http_readonly_queries_on_client_close",
    "close_session",
    "compress",
    "decompress",
    "default_format",
    "enable_http_compression",
    "http_connection_timeout",
    "http_headers_progress_interval_ms",
    "http_receive_timeout",
    "http_send_timeout",
    "query_id",
    "send_progress_in_http_headers",
    "session_check",
    "session_id",
    "session_timeout",
    "stacktrace",
    "wait_end_of_query",
];

/// What an INSERT with its statement in `text` is: its table, its lanes, and how it may be answered while the backend
/// is down.
pub(crate) fn plan(
    request: &HttpRequest,
    (insert, text): (&Insert, &str),
    is_dirty: bool,
    usual: Option<&str>,
    settings: &ClickHouseSettings,
) -> (String, Lanes, Access) {
    let call = if is_dirty {
        Err("its session has been changed, and replay does not have this session")
    } else {
        call_of(request, (insert, text), usual)
    };
    let reason = match call {
        Ok(call) => {
            let statement = sql::read(&call.header.query);
            if let Verb::Insert(insert) = &statement.verb {
                let (label, lanes, _, mut access) =
                    plan::insertion(&call, &statement, insert, settings);
                if let Access::Write(write) = &mut access {
                    // The server compares blocks by itself unless it is given a token.
                    write.queue_token = std::mem::take(&mut write.free_token);
                }
                return (label, lanes, access);
            }
            "fusebox does not understand its statement"
        }
        Err(reason) => reason,
    };
    let write = Access::Write(Write::new(Outage::Never(reason)));
    let Some(table) = &insert.table else {
        return ("INSERT".into(), plan::of_any_table(settings), write);
    };
    let is_certain =
        table.database.is_some() || !is_dirty && database(&request.head, table, usual).is_some();
    let header = Header { database: database(&request.head, table, usual), ..Header::default() };
    let target = target::of(table, &header, settings);
    let lanes =
        if is_certain { plan::lanes(&target, settings) } else { plan::of_any_table(settings) };
    (format!("{}.{}", target.0, target.1), lanes, write)
}

/// Whether more of its body may be waited for, so that it can be queued.
pub(crate) fn is_wanted_whole(request: &HttpRequest) -> bool {
    let whole = RequestHead { is_whole: true, ..request.head.clone() };
    let body = request.body.clone();
    // Whether its database is known makes no difference to that.
    call(&HttpRequest { head: whole, body }, Some("any")).is_ok()
}

/// The call that replay makes of a request; `usual` is the database that the server takes if none is named.
///
/// # Errors
/// Why it is not queued.
pub(crate) fn call(request: &HttpRequest, usual: Option<&str>) -> Result<Call, &'static str> {
    let found = stated::statement(request);
    let Some((Verb::Insert(insert), text)) = found.map(|(found, text)| (found.verb, text)) else {
        return Err("fusebox does not understand its statement");
    };
    call_of(request, (&insert, &text), usual)
}

/// The same of one whose statement was read.
fn call_of(
    request: &HttpRequest,
    (insert, text): (&Insert, &str),
    usual: Option<&str>,
) -> Result<Call, &'static str> {
    let HttpRequest { head, body } = request;
    if !head.is_whole || body.len() > BODY_MAX {
        return Err(
            "fusebox does not hold all of it: it is larger than 1 MiB, or writes are not queued here",
        );
    }
    if head.method != "POST" || !head.is_query {
        return Err("it is not a query");
    }
    if !head.is_plain && head.packing.is_none() {
        return Err("its body cannot be read");
    }
    let Some(table) = &insert.table else {
        return Err("its table is not clear from the statement");
    };
    match insert.rows {
        Rows::Selected => return Err(plan::SELECTED),
        Rows::FollowUnnamed => return Err("it names no format"),
        Rows::Inline | Rows::Follow => {}
    }
    let mut header = header(head)?;
    header.database = database(head, table, usual);
    if header.database.is_none() {
        return Err("the server's default database is not known yet");
    }
    let (query, raw, data) = stored(head, body, text, insert.head);
    (header.query, header.raw) = (query, raw);
    Ok(Call { header, data })
}

/// Statement, form and data.
fn stored(
    head: &RequestHead,
    body: &Bytes,
    text: &str,
    end: usize,
) -> (String, Option<Raw>, Bytes) {
    let of_query = sql::read(&head.query).verb;
    let is_in_query = matches!(
        of_query,
        Verb::Insert(insert) if matches!(insert.rows, Rows::Inline | Rows::Follow)
    );
    if head.is_plain && is_in_query {
        return (head.query.clone(), None, body.clone());
    }
    if head.is_plain
        && body.len() <= MOST
        && let (all, true) = stated::text_of(body)
    {
        return (stated::joined(&head.query, all).trim_start().to_owned(), None, Bytes::new());
    }
    let raw = Raw { query: head.query.clone(), packing: head.packing.unwrap_or_default() };
    (stated::without_rows(text, end), Some(raw), body.clone())
}

/// The database that is meant.
fn database(head: &RequestHead, table: &Table, usual: Option<&str>) -> Option<String> {
    let by_parameter = head.parameters.iter().find(|(name, _)| name == "database");
    let by_header = head.headers.iter().find(|(name, _)| name == "x-clickhouse-database");
    let by_header = by_header.filter(|(_, value)| !value.is_empty());
    // The server asks in this order.
    let told = by_header.or(by_parameter).map(|(_, value)| value.as_str());
    let usual = usual.filter(|it| !it.is_empty());
    let told = told.filter(|it| !it.is_empty()).or(usual).or(table.database.as_deref());
    told.map(str::to_owned)
}

/// Parameters and settings.
fn header(head: &RequestHead) -> Result<Header, &'static str> {
    let mut header = Header::default();
    let mut seen = BTreeMap::new();
    if head.headers.iter().any(|(name, _)| name == "x-clickhouse-quota") {
        return Err("it names a quota");
    }
    for (name, value) in &head.parameters {
        if seen.insert(name.as_str(), value.as_str()).is_some() {
            return Err("it names a parameter twice");
        }
        match name.as_str() {
            "role" | "quota_key" => return Err("it names a role or a quota"),
            "readonly" if value != "0" => return Err("it is marked as a read"),
            // The server passes over what has no name.
            "database" | "" => {}
            name if DROPPED.contains(&name) => {}
            name => {
                let (into, name) = match name.strip_prefix("param_") {
                    Some(name) if !plan::is_name(name) => {
                        return Err(
                            "the name of a parameter has other characters than letters, digits, _ and .",
                        );
                    }
                    Some(name) => (&mut header.params, name),
                    None => (&mut header.settings, name),
                };
                into.insert(name.to_owned(), value.clone());
            }
        }
    }
    Ok(header)
}

#[cfg(test)]
mod tests;
