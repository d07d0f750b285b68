//! The request that an attempt is: its statement, its data, and the settings beside them.
//!
//! **Blocks are formed alike** whenever an insert is sent: a token names the blocks by their place in it, so the
//! same rows must fall into the same blocks when it is sent again, whatever the user's profile says by then. So the
//! sizes are sent ([`BLOCKS`], ClickHouse's own defaults), except those that the call brings itself.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use fusebox_actors::{
    connector::{Attempt, Upload},
    trace::PassedOn,
};
use fusebox_state::OpId;
use hyper::header::{CONTENT_ENCODING, HeaderValue};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{exchange::Sending, http::Outgoing, server::Server, shared::Shared};
use crate::kinds::clickhouse::protocol::{
    decoded::{Coding, Packing},
    elsewhere::Elsewhere,
    outcome::{Asked, SUMMARY_SINCE, Writing},
    sql::{Rows, Statement, Verb},
    stated,
    wire::Call,
};

/// What a server may hold of an answer before it begins to send, if it is to hold it all back.
const BUFFER_SIZE: &str = "4194304";
/// How a server forms blocks of the rows of an insert.
const BLOCKS: [(&str, &str); 6] = [
    ("max_insert_block_size", "1048449"),
    ("max_insert_block_size_bytes", "0"),
    ("min_insert_block_size_rows", "1048449"),
    ("min_insert_block_size_bytes", "268402944"),
    ("min_chunk_bytes_for_parallel_parsing", "10485760"),
    ("input_format_max_block_wait_ms", "0"),
];
/// So many bytes of rows in [`PLAIN_ROWS`] are one block: a piece that is parsed by itself has more.
const ONE_BLOCK: usize = 1_000_000;
/// Formats whose rows follow one another, each with a byte at least; in small letters, without what says that names
/// and types come first. Others pack many rows into few bytes (Parquet, ORC, Avro, Arrow), bring blocks of their own
/// (Native), or have separators that may be empty (`CustomSeparated`).
const PLAIN_ROWS: &[&str] = &[
    "bsoneachrow",
    "csv",
    "json",
    "jsonasobject",
    "jsonasstring",
    "jsoncompact",
    "jsoncompacteachrow",
    "jsoncompactstringseachrow",
    "jsoneachrow",
    "jsonlines",
    "jsonobjecteachrow",
    "jsonstringseachrow",
    "lineasstring",
    "ndjson",
    "rowbinary",
    "rowbinarywithdefaults",
    "tabseparated",
    "tabseparatedraw",
    "tskv",
    "tsv",
    "tsvraw",
    "values",
];

/// What is asked.
pub(crate) struct Asking<'a> {
    pub(crate) attempt: Attempt<'a>,
    pub(crate) call: Call,
    pub(crate) statement: Statement,
    pub(crate) server: Arc<Server>,
    /// Under which of its tokens it is sent: 0 is the usual one.
    pub(crate) turn: u8,
    /// Whether it has the backend's whole `timeout`.
    pub(crate) whole: bool,
}

/// The request, under the query id `id`.
pub(crate) fn sending(shared: &Shared, asking: Asking<'_>, id: &str, limit: Duration) -> Sending {
    let own = own_settings(&asking);
    let writing = writing(&asking, &own);
    let settings = settings(&asking, &own);
    let elsewhere = elsewhere(&asking);
    let Asking { attempt, call, statement, server, whole, .. } = asking;
    let header = &call.header;
    let streams = attempt.streams && !attempt.write;
    let upload = attempt.upload.and_then(Upload::take);
    let progress = upload.as_ref().map(|_| Arc::new(Mutex::new(Instant::now())));
    let mut pairs = vec![
        ("query_id".to_owned(), id.to_owned()),
        (
            "database".to_owned(),
            header.database.as_ref().unwrap_or(&shared.settings.database).clone(),
        ),
    ];
    if let Some(format) = &header.format {
        pairs.push(("default_format".to_owned(), format.clone()));
    }
    if !streams {
        pairs.push(("wait_end_of_query".to_owned(), "1".to_owned()));
        pairs.push(("buffer_size".to_owned(), BUFFER_SIZE.to_owned()));
    }
    pairs
        .extend(header.params.iter().map(|(name, value)| (format!("param_{name}"), value.clone())));
    pairs.extend(settings);
    let format = statement.format.clone().or_else(|| header.format.clone());
    let mut sent: Vec<_> = attempt.trace.iter().flat_map(headers).collect();
    if let Some(raw) = &header.raw {
        if !raw.query.is_empty() {
            pairs.push(("query".to_owned(), raw.query.clone()));
        }
        if raw.packing.blocks {
            pairs.push(("decompress".to_owned(), "1".to_owned()));
        }
        let coding = raw.packing.coding.map(Coding::name);
        sent.extend(coding.map(|it| (CONTENT_ENCODING.as_str(), HeaderValue::from_static(it))));
    }
    let outgoing = Outgoing {
        pairs,
        body: body(&call, &statement, upload.is_some()),
        upload: upload.zip(progress.clone()),
        headers: sent,
    };
    Sending {
        outgoing,
        format: format.unwrap_or_else(|| "TabSeparated".to_owned()),
        asked: Asked { own, whole, writing, summary: server.since(SUMMARY_SINCE), elsewhere },
        write: attempt.write,
        streams,
        limit,
        progress,
        aboard: attempt.board(),
    }
}

/// The names of the settings that the call brings itself, and of the parameter that says how it is packed.
fn own_settings(asking: &Asking<'_>) -> Vec<String> {
    let header = &asking.call.header;
    let has_blocks = header.raw.as_ref().is_some_and(|raw| raw.packing.blocks);
    let of_statement = asking.statement.settings.iter().map(|(name, _)| name.clone());
    let own = header.settings.keys().cloned().chain(of_statement);
    own.chain(has_blocks.then(|| "decompress".to_owned())).collect()
}

/// The settings of the request: the call's own, and those that are sent with it.
fn settings(asking: &Asking<'_>, own: &[String]) -> BTreeMap<String, String> {
    let Asking { attempt, call, statement, server, turn, .. } = asking;
    let mut settings = call.header.settings.clone();
    let mut set =
        |name: &str, value: &str| drop(settings.insert(name.to_owned(), value.to_owned()));
    let is_own = |name: &str| own.iter().any(|own| own == name);
    let by_pieces = attempt.upload.is_some() || attempt.streams && !attempt.write;
    // What comes or goes piece by piece may take as long as pieces come; the idle time bounds it.
    if !by_pieces && !server.read_only && !is_own("max_execution_time") {
        let seconds = attempt.timeout.as_secs() + u64::from(attempt.timeout.subsec_nanos() > 0);
        set("max_execution_time", &seconds.max(1).to_string());
    }
    for (name, value) in [
        ("cancel_http_readonly_queries_on_client_close", "1"),
        ("http_write_exception_in_output_format", "0"),
    ] {
        if server.knows(name) {
            set(name, value);
        }
    }
    if matches!(&statement.verb, Verb::Insert(insert) if insert.rows != Rows::Selected) {
        for (name, value) in blocks(server) {
            if !is_own(name) {
                set(name, value);
            }
        }
    }
    if let Some(token) = attempt.token.filter(|_| attempt.write && server.takes_tokens()) {
        set("insert_deduplication_token", &token_of(token, *turn));
        for (name, value) in recognised(server) {
            set(name, value);
        }
    }
    settings
}

/// The token under which it is sent in its `turn`.
fn token_of(token: OpId, turn: u8) -> String {
    if turn == 0 { token.to_string() } else { format!("{token}-{turn}") }
}

/// How the server forms blocks, as far as it lets us say.
fn blocks(server: &Server) -> impl Iterator<Item = (&'static str, &'static str)> {
    BLOCKS.into_iter().filter(|(name, _)| server.knows(name))
}

/// What lets the server recognise a repetition by its token.
fn recognised(server: &Server) -> impl Iterator<Item = (&'static str, &'static str)> {
    let foreground = ["distributed_foreground_insert", "insert_distributed_sync"];
    let foreground = foreground.into_iter().find(|name| server.knows(name));
    let known = |name: &'static str| Some(name).filter(|name| server.knows(name));
    let all = [
        (known("insert_deduplicate"), "1"),
        (known("deduplicate_insert"), "enable"),
        (known("async_insert"), "0"),
        (known("deduplicate_blocks_in_dependent_materialized_views"), "1"),
        (foreground, "1"),
    ];
    all.into_iter().filter_map(|(name, value)| Some((name?, value)))
}

/// What a client's own INSERT is sent with, so that replay may repeat it: the same as [`settings`] adds to a call.
/// What the client says itself stays.
pub(super) fn repeatable(asking: &Asking<'_>) -> Vec<(&'static str, String)> {
    let Asking { attempt, server, .. } = asking;
    let own = own_settings(asking);
    let mut pairs: Vec<(&str, String)> = Vec::new();
    pairs.extend(blocks(server).map(|(name, value)| (name, value.to_owned())));
    if let Some(token) = attempt.token.filter(|_| server.takes_tokens()) {
        pairs.push(("insert_deduplication_token", token.to_string()));
        pairs.extend(recognised(server).map(|(name, value)| (name, value.to_owned())));
    }
    pairs.retain(|(name, _)| !own.iter().any(|own| own == name));
    pairs
}

/// How the exceptions of a client's own INSERT are read.
pub(super) fn asked(asking: &Asking<'_>) -> Asked {
    let own = own_settings(asking);
    let (writing, elsewhere) = (writing(asking, &own), elsewhere(asking));
    let summary = asking.server.since(SUMMARY_SINCE);
    Asked { own, whole: asking.whole, writing, summary, elsewhere }
}

/// Other servers that it may name.
fn elsewhere(asking: &Asking<'_>) -> Elsewhere {
    Elsewhere::of_call(&asking.statement, &asking.call, asking.attempt.upload.is_none())
}

/// What the attempt writes, as its exceptions are read.
fn writing(asking: &Asking<'_>, own: &[String]) -> Option<Writing> {
    let Asking { attempt, call, statement, server, .. } = asking;
    if !attempt.write {
        return None;
    }
    let Verb::Insert(insert) = &statement.verb else {
        let does_one_thing = !statement.in_parts;
        return Some(if does_one_thing { Writing::Statement } else { Writing::Parts });
    };
    let sizes_are_sent = BLOCKS.iter().all(|(name, _)| !own.iter().any(|own| own == name))
        && server.knows("max_insert_block_size")
        && server.knows("min_insert_block_size_rows");
    let bytes = call.header.query.len() + call.data.len();
    // What a packed body becomes is not known.
    let is_packed = call.header.raw.as_ref().is_some_and(|raw| raw.packing != Packing::default());
    let bytes = if is_packed { usize::MAX } else { bytes };
    let selected = insert.rows == Rows::Selected;
    let format = statement.format.as_ref().or(call.header.format.as_ref());
    let is_short = bytes <= ONE_BLOCK && format.is_some_and(|format| has_plain_rows(format));
    Some(Writing::Rows {
        one_block: !selected && sizes_are_sent && attempt.upload.is_none() && is_short,
        at_once: selected || attempt.token.is_some() && server.takes_tokens(),
    })
}

/// Whether each row in this format takes a byte of the body. The server takes the names of formats in whatever case.
fn has_plain_rows(format: &str) -> bool {
    let format = format.to_ascii_lowercase();
    let bare = format.strip_suffix("withnamesandtypes");
    let bare = bare.or_else(|| format.strip_suffix("withnames")).unwrap_or(&format);
    PLAIN_ROWS.contains(&bare)
}

/// The statement, and its data on the next line.
fn body(call: &Call, statement: &Statement, more: bool) -> Vec<Bytes> {
    if call.header.raw.is_some() {
        return vec![call.data.clone()];
    }
    let mut query = stated::sent(&call.header, statement);
    if call.data.is_empty() && !more {
        return vec![query.into()];
    }
    query.push('\n');
    vec![query.into(), call.data.clone()]
}

/// The headers of a trace; what cannot be in one is left out.
pub(super) fn headers<'a>(
    trace: &'a PassedOn<'_>,
) -> impl Iterator<Item = (&'static str, HeaderValue)> + use<'a> {
    trace.headers().filter_map(|(name, text)| Some((name, HeaderValue::from_str(&text).ok()?)))
}

#[cfg(test)]
mod tests {
    use fusebox_actors::connector::Origin;
    use fusebox_state::{Lanes, UnixMillis};

    use super::*;
    use crate::kinds::clickhouse::protocol::{sql, wire::Header};

    /// What `query` writes, at a server that knows every setting about blocks.
    fn writing_of(query: &str, data: Bytes) -> Writing {
        let known = BLOCKS.map(|(name, _)| format!("setting {name}\n")).concat();
        let header = Header { query: query.to_owned(), ..Header::default() };
        let call = Call { header, data };
        let (body, lanes, at) = (call.to_bytes(), Lanes::new([]), UnixMillis::new(1));
        let attempt = Attempt {
            body: &body,
            lanes: &lanes,
            write: true,
            origin: Origin::Live,
            token: None,
            digest: 0,
            doubt: None,
            following: &[],
            streams: false,
            upload: None,
            dialect: 0,
            accepted_at: at,
            now: at,
            timeout: Duration::from_secs(1),
            left: Duration::from_secs(1),
            fence_patience: Duration::from_secs(1),
            trace: None,
            passage: None,
        };
        let (statement, server) = (sql::read(query), Arc::new(Server::of_lines(&known)));
        let asking = Asking { attempt, call, statement, server, turn: 0, whole: true };
        writing(&asking, &own_settings(&asking)).unwrap()
    }

    #[test]
    fn rows_that_their_format_packs_may_be_many_blocks_however_short_they_are() {
        let is_one_block = |format: &str, len: usize| {
            let rows = Bytes::from(vec![b'x'; len]);
            let writing = writing_of(&format!("INSERT INTO t FORMAT {format}"), rows);
            writing == Writing::Rows { one_block: true, at_once: false }
        };
        for format in [
            "CSVWithNames",
            "JSONEachRow",
            "RowBinaryWithNamesAndTypes",
            "TSV",
            "TabSeparated",
            "Values",
            "jsoneachrow",
        ] {
            assert!(is_one_block(format, 900_000), "{format}");
            assert!(!is_one_block(format, ONE_BLOCK), "{format}: with the statement it is longer");
        }
        for format in [
            "Arrow",
            "ArrowStream",
            "Avro",
            "CustomSeparated",
            "Later",
            "Native",
            "ORC",
            "Parquet",
            "parquet",
        ] {
            assert!(!is_one_block(format, 10), "{format}");
        }
    }

    #[test]
    fn a_statement_that_does_several_things_is_read_as_one_that_may_be_half_done() {
        let of = |query: &str| writing_of(query, Bytes::new());
        assert_eq!(of("DROP TABLE a"), Writing::Statement);
        assert_eq!(of("DROP TABLE a, b"), Writing::Parts);
        assert_eq!(of("DROP TABLE a PARALLEL WITH DROP TABLE b"), Writing::Parts);
    }
}
