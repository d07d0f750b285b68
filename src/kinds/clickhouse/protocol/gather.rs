//! Which queued inserts are sent as one, and how.
//!
//! Inserts of one table, columns, format and settings have one number ([`number`]); replay takes those of one number
//! together, and [`joined`] makes one insert of them: their common statement, and the rows of each on lines of their
//! own. It has one token, so its rows must always be the same ones in one block: few enough of them ([`BYTES_MAX`]),
//! under sizes that are sent along ([`crate::kinds::clickhouse::transport::request`]).
//!
//! **What one call means must not depend on its neighbours.** So the rows of each are read to their end here, and only
//! formats take part in which the end of a row can be seen:
//!
//! | format | rows |
//! | --- | --- |
//! | `JSONEachRow` | whole JSON objects and blanks, nothing else |
//! | `TabSeparated`, `TSV` | lines; none ends in an escaped line break |
//! | `CSV` | lines; quotes balanced, at the ends of fields |
//! | `Values` | whole tuples, with commas between them or without |
//!
//! Not those that begin with a byte order mark, nor those whose first line could be the names of columns, which a
//! server may find out by itself. Not bodies that are kept as a client sent them, nor calls with parameters, nor with
//! settings that say how rows are read, how blocks are formed or how repetitions are recognised; not in an ordered
//! backend.

use std::borrow::Cow;

use bytes::{BufMut, BytesMut};
use fusebox_state::digest;

use super::{
    sql::{self, Insert, Rows, Statement, Verb},
    target,
    wire::{Call, Header},
};
use crate::kinds::clickhouse::settings::ClickHouseSettings;

/// Inserts that are sent as one at most.
pub(crate) const CALLS_MAX: usize = 1_000;
/// Bytes of them at most: one block, with room for what is put between them.
pub(crate) const BYTES_MAX: u64 = 900_000;
/// A call with more rows than this, in bytes, gains nothing by company.
const CALL_MAX: usize = 64 * 1024;
/// Parts of the names of settings that decide how rows are read, or blocks and repetitions recognised.
const BARRED: &[&str] = &[
    "allow_errors",
    "block",
    "csv",
    "tsv",
    "header",
    "dedup",
    "async_insert",
    "quorum",
    "token",
    "custom",
    "values",
    "parallel_parsing",
    "skip_first",
    "max_partitions",
    "buffer",
];
const MARK: &[u8] = b"\xef\xbb\xbf";

/// A format whose rows can be separated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Json,
    Tabs,
    Csv,
    Values,
}

/// The number of an insert: those of the same may be sent as one. `None` for one that is sent alone.
pub(crate) fn number(
    call: &Call,
    statement: &Statement,
    insert: &Insert,
    settings: &ClickHouseSettings,
) -> Option<u64> {
    let header = &call.header;
    let barred = |name: &str| BARRED.iter().any(|part| name.contains(part));
    if settings.ordered
        || header.raw.is_some()
        || !header.params.is_empty()
        || header.settings.keys().any(|name| barred(name))
        || statement.settings.iter().any(|(name, _)| barred(name))
    {
        return None;
    }
    let format = format_of(header, statement)?;
    rows(call, insert, format)?;
    let (database, table) = target::of(insert.table.as_ref()?, header, settings);
    let mut text = Vec::new();
    let prefix = sql::folded(prefix(header, insert));
    let mut parts = vec![
        header.database.as_deref().unwrap_or(&settings.database),
        &database,
        &table,
        header.format.as_deref().unwrap_or_default(),
        &prefix,
    ];
    parts.extend(header.settings.iter().flat_map(|(name, value)| [name.as_str(), value]));
    for part in parts {
        text.put_u64_le(part.len() as u64);
        text.put_slice(part.as_bytes());
    }
    Some(digest(&text))
}

/// One insert of all of them, in this order. `None` if they are not of one number, or no longer can be joined.
pub(crate) fn joined(calls: &[Call], settings: &ClickHouseSettings) -> Option<Call> {
    let mut data = BytesMut::new();
    let (mut common, mut header) = (None, None);
    for call in calls {
        let statement = sql::read(&call.header.query);
        let Verb::Insert(insert) = &statement.verb else { return None };
        let number = number(call, &statement, insert, settings)?;
        if *common.get_or_insert(number) != number {
            return None;
        }
        let format = format_of(&call.header, &statement)?;
        if format == Format::Values && !data.is_empty() {
            data.put_slice(b",\n");
        }
        data.put_slice(&rows(call, insert, format)?);
        if format != Format::Values && data.last() != Some(&b'\n') {
            data.put_u8(b'\n');
        }
        header.get_or_insert_with(|| Header {
            query: prefix(&call.header, insert).to_owned(),
            ..call.header.clone()
        });
    }
    Some(Call { header: header?, data: data.freeze() })
}

fn format_of(header: &Header, statement: &Statement) -> Option<Format> {
    match statement.format.as_deref().or(header.format.as_deref())? {
        "JSONEachRow" => Some(Format::Json),
        "TabSeparated" | "TSV" => Some(Format::Tabs),
        "CSV" => Some(Format::Csv),
        "Values" => Some(Format::Values),
        _ => None,
    }
}

/// The statement without its rows.
fn prefix<'a>(header: &'a Header, insert: &Insert) -> &'a str {
    let head = header.query.get(..insert.head).unwrap_or(&header.query);
    head.trim_ascii_end().trim_end_matches(';').trim_ascii_end()
}

/// The rows of a call, if each ends before they do.
fn rows<'a>(call: &'a Call, insert: &Insert, format: Format) -> Option<Cow<'a, [u8]>> {
    let inline = call.header.query.as_bytes().get(insert.head..).unwrap_or_default();
    let rows = match insert.rows {
        Rows::Follow | Rows::FollowUnnamed => &call.data[..],
        Rows::Inline if call.data.is_empty() => match format {
            Format::Json | Format::Values => inline,
            // They begin on the next line.
            Format::Tabs | Format::Csv => inline.trim_ascii_start_of_line().strip_prefix(b"\n")?,
        },
        Rows::Inline | Rows::Selected => return None,
    };
    if rows.is_empty() || rows.len() > CALL_MAX || rows.starts_with(MARK) {
        return None;
    }
    match format {
        Format::Json => are_objects(rows).then_some(Cow::Borrowed(rows)),
        Format::Tabs => {
            (are_lines(rows) && !may_be_names(rows, b'\t')).then_some(Cow::Borrowed(rows))
        }
        Format::Csv => (is_csv(rows) && !may_be_names(rows, b',')).then_some(Cow::Borrowed(rows)),
        Format::Values => tuples(rows).map(Cow::Borrowed),
    }
}

trait Line {
    fn trim_ascii_start_of_line(&self) -> &[u8];
}

impl Line for [u8] {
    /// Without the blanks before the first line break.
    fn trim_ascii_start_of_line(&self) -> &[u8] {
        let blanks = self.iter().take_while(|byte| matches!(**byte, b' ' | b'\t' | b'\r')).count();
        self.get(blanks..).unwrap_or_default()
    }
}

fn are_objects(rows: &[u8]) -> bool {
    let mut rest = rows.trim_ascii();
    if rest.is_empty() {
        return false;
    }
    while !rest.is_empty() {
        if rest.first() != Some(&b'{') {
            return false;
        }
        let mut values =
            serde_json::Deserializer::from_slice(rest).into_iter::<serde::de::IgnoredAny>();
        if !matches!(values.next(), Some(Ok(_))) {
            return false;
        }
        rest = rest.get(values.byte_offset()..).unwrap_or_default().trim_ascii_start();
    }
    true
}

/// Whether no line break is escaped, nor what will follow the last row.
fn are_lines(rows: &[u8]) -> bool {
    let lines = rows.strip_suffix(b"\n").unwrap_or(rows);
    lines.split(|byte| *byte == b'\n').all(|line| {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        line.iter().rev().take_while(|byte| **byte == b'\\').count() % 2 == 0
    })
}

/// Whether quotes are only around whole fields, and all end.
fn is_csv(rows: &[u8]) -> bool {
    enum At {
        Start,
        Bare,
        Quoted,
        /// Behind a quote, which may be doubled.
        Ended,
    }
    let mut at = At::Start;
    for byte in rows {
        at = match (at, byte) {
            (At::Quoted, b'"') | (At::Ended, b' ' | b'\t' | b'\r') => At::Ended,
            (At::Quoted, _) | (At::Start | At::Ended, b'"') => At::Quoted,
            (At::Start | At::Bare | At::Ended, b',' | b'\n') | (At::Start, b' ' | b'\t') => {
                At::Start
            }
            (_, b'"' | b'\'') | (At::Ended, _) => return false,
            (At::Start | At::Bare, _) => At::Bare,
        };
    }
    !matches!(at, At::Quoted)
}

/// Whether a server might take the first line for the names of columns: no field begins as a number does.
fn may_be_names(rows: &[u8], separator: u8) -> bool {
    let line = rows.split(|byte| *byte == b'\n').next().unwrap_or_default();
    !line.split(|byte| *byte == separator).any(|field| {
        let field = field.trim_ascii();
        let field = field.strip_prefix(b"\"").unwrap_or(field);
        field
            .first()
            .is_none_or(|byte| byte.is_ascii_digit() || matches!(byte, b'-' | b'+' | b'\\'))
    })
}

/// The tuples, without blanks and a semicolon around them, if there are only such.
fn tuples(rows: &[u8]) -> Option<&[u8]> {
    let rows = rows.trim_ascii();
    let rows = rows.strip_suffix(b";").unwrap_or(rows).trim_ascii_end();
    let (mut depth, mut at, mut comma) = (0_usize, 0, true);
    while let Some(byte) = rows.get(at) {
        match byte {
            b'\'' => at = end_of_text(rows, at)?,
            b'(' | b'[' | b'{' if depth > 0 || *byte == b'(' => depth += 1,
            b')' | b']' | b'}' => {
                depth = depth.checked_sub(1)?;
                comma = false;
            }
            b',' if depth == 0 && comma => return None,
            b',' if depth == 0 => comma = true,
            b' ' | b'\t' | b'\n' | b'\r' => {}
            _ if depth == 0 => return None,
            // Quoted names, comments and heredocs have ends of their own; a semicolon ends the statement.
            b'`' | b'"' | b'#' | b'$' | b';' => return None,
            b'-' if rows.get(at + 1) == Some(&b'-') => return None,
            b'/' if matches!(rows.get(at + 1), Some(b'*' | b'/')) => return None,
            b if !b.is_ascii() => return None,
            _ => {}
        }
        at += 1;
    }
    (depth == 0 && !comma).then_some(rows)
}

/// The end of the text that begins at `start` with its quote.
fn end_of_text(rows: &[u8], start: usize) -> Option<usize> {
    let mut at = start + 1;
    loop {
        match rows.get(at)? {
            b'\\' => at += 2,
            b'\'' => return Some(at),
            _ => at += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn settings() -> ClickHouseSettings {
        ClickHouseSettings::new("http://h/d".parse().unwrap(), "i", "r")
    }

    fn call(query: &str, data: &str) -> Call {
        let header = Header { query: query.to_owned(), ..Header::default() };
        Call { header, data: Bytes::copy_from_slice(data.as_bytes()) }
    }

    fn number_of(call: &Call) -> Option<u64> {
        let statement = sql::read(&call.header.query);
        let Verb::Insert(insert) = &statement.verb else { panic!("{}", call.header.query) };
        number(call, &statement, insert, &settings())
    }

    #[track_caller]
    fn is_joined(calls: &[(&str, &str)], query: &str, data: &str) {
        let calls: Vec<Call> = calls.iter().map(|(query, data)| call(query, data)).collect();
        let joined = joined(&calls, &settings()).expect("they are of one number");
        assert_eq!((joined.header.query.as_str(), &joined.data[..]), (query, data.as_bytes()));
        let statement = sql::read(&joined.header.query);
        assert!(matches!(statement.verb, Verb::Insert(insert) if insert.rows == Rows::Follow));
    }

    #[test]
    fn rows_of_several_calls_stand_on_lines_of_their_own() {
        let json = "INSERT INTO t FORMAT JSONEachRow";
        is_joined(
            &[
                (json, "{\"a\":1}"),
                ("INSERT INTO t FORMAT JSONEachRow {\"a\":2}\n", ""),
                (json, "{}\n{} "),
            ],
            json,
            "{\"a\":1}\n {\"a\":2}\n{}\n{} \n",
        );
        let tabs = "INSERT INTO t (a, b) FORMAT TSV";
        is_joined(
            &[(tabs, "1\tx"), ("INSERT INTO t (a,b)\n\nFORMAT TSV\n2\ty\\\\\n", "")],
            tabs,
            "1\tx\n2\ty\\\\\n",
        );
        let csv = "INSERT INTO t FORMAT CSV";
        is_joined(
            &[(csv, "1,\"a\nb\"\"\",\n"), (csv, "2, \"c\" ,'")][..1],
            csv,
            "1,\"a\nb\"\"\",\n",
        );
        is_joined(
            &[
                ("INSERT INTO t VALUES (1, 'a);')", ""),
                ("INSERT INTO t VALUES\n(2,'\\'') ,(3, [1, 2]);", ""),
                ("INSERT INTO t VALUES", "(4, f(5))"),
            ],
            "INSERT INTO t VALUES",
            "(1, 'a);'),\n(2,'\\'') ,(3, [1, 2]),\n(4, f(5))",
        );
    }

    #[test]
    fn whose_rows_have_no_certain_end_is_sent_alone() {
        for (format, rows) in [
            ("JSONEachRow", "{\"a\":1"),
            ("JSONEachRow", "{\"a\":\"1}"),
            ("JSONEachRow", "[{\"a\":1}]"),
            ("JSONEachRow", "{\"a\":1},{\"a\":2}"),
            ("JSONEachRow", ""),
            ("JSONEachRow", "\u{feff}{\"a\":1}"),
            ("TSV", "1\tx\\\n"),
            ("TSV", "1\tx\\"),
            ("TSV", "id\tname\n1\tx\n"),
            ("TSV", "\u{feff}1\n"),
            ("CSV", "1,\"x\n"),
            ("CSV", "1,x\"y\n"),
            ("CSV", "1,'x,y'\n"),
            ("CSV", "\"1\"|\"2\"\n"),
            ("CSV", "id,\"name\"\n1,2\n"),
            ("Values", "(1"),
            ("Values", "(1))"),
            ("Values", "(1),,(2)"),
            ("Values", "(1),"),
            ("Values", "(1); (2)"),
            ("Values", "(1 -- x)\n)"),
            ("Values", "('1)"),
            ("Values", "1"),
            ("RowBinary", "\u{1}"),
            ("CSVWithNames", "a\n1\n"),
            ("TabSeparatedRaw", "1\n"),
            ("Native", "x"),
        ] {
            let call = call(&format!("INSERT INTO t FORMAT {format}"), rows);
            assert_eq!(number_of(&call), None, "{format}: {rows:?}");
        }
        let long = "1\n".repeat(CALL_MAX);
        assert_eq!(number_of(&call("INSERT INTO t FORMAT TSV", &long)), None);
        assert_eq!(number_of(&call("INSERT INTO t FORMAT TSV 1\t2", "")), None);
    }

    #[test]
    fn only_what_says_the_same_has_one_number() {
        let base = || call("INSERT INTO t FORMAT TSV", "1\n");
        let with = |change: fn(&mut Header)| {
            let mut call = base();
            change(&mut call.header);
            call
        };
        let number = number_of(&base());
        assert!(number.is_some());
        assert_eq!(number, number_of(&with(|h| h.database = Some("d".into()))));
        assert_eq!(number, number_of(&call("INSERT  INTO t FORMAT TSV", "2\n3\n")));
        for other in [
            with(|h| h.database = Some("e".into())),
            with(|h| drop(h.settings.insert("input_format_null_as_default".into(), "0".into()))),
            call("INSERT INTO u FORMAT TSV", "1\n"),
            call("INSERT INTO t (a) FORMAT TSV", "1\n"),
            call("INSERT INTO t FORMAT CSV", "1\n"),
            call("INSERT INTO t SETTINGS max_threads = 1 FORMAT TSV", "1\n"),
        ] {
            let its = number_of(&other);
            assert!(its.is_some() && its != number, "{other:?}");
            assert_eq!(joined(&[base(), other], &settings()), None);
        }
        for alone in [
            with(|h| drop(h.params.insert("p".into(), "1".into()))),
            with(|h| drop(h.settings.insert("input_format_allow_errors_num".into(), "1".into()))),
            with(|h| drop(h.settings.insert("max_insert_block_size".into(), "1".into()))),
            call("INSERT INTO t SETTINGS format_csv_delimiter = '|' FORMAT CSV", "1\n"),
        ] {
            assert_eq!(number_of(&alone), None, "{alone:?}");
        }
        let ordered = ClickHouseSettings { ordered: true, ..settings() };
        assert_eq!(joined(&[base()], &ordered), None);
    }
}
