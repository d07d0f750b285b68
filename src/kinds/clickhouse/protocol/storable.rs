//! Whether any server could take an insert, as far as the insert itself shows that.
//!
//! What is about to be queued is looked at. Otherwise its caller would learn that it is durable, and it would become a
//! dead letter. Its caller gets what the server says of the same instead:
//!
//! | what is wrong | number |
//! | --- | --- |
//! | the name of a setting is none that any could have | 115 |
//! | there is no file although the format is one ([`FILES`]) | 33, 117 or 1001, as the format is |
//! | the body does not unpack to its end, with its checksums | 354, 448, 561 or 618, as it is encoded |
//! | a block of `decompress=1` does not | 271; 33 if it is cut off |
//!
//! An insert without rows is none of these, nor is a file without rows: servers take it, and write nothing. Whether
//! there is such a table, and whether its rows can be parsed, is for the server to say.
//!
//! Nor is an insert queued whose outcome depends on what is not in it: rows of `FORMAT Values` are expressions, and
//! those may read tables, dictionaries and files, here or at another server, as `INSERT … SELECT` does. What is missing
//! there later would hold up the table for ever. Any server may take it now, so its caller's answer is that it was not
//! executed.

use fusebox_actors::connector::{AttemptError, ErrorCode};
use fusebox_state::ErrorClass;

use super::{
    decoded::{
        Coding, Packing,
        whole::{self, Flaw},
    },
    elsewhere, plan, reach,
    sql::{self, Rows, Verb},
    stated,
    wire::Call,
};

/// The longest rows, unpacked, in which expressions are looked at.
const ROWS_MAX: usize = 8 << 20;

/// Numbers of the server's, its words for them, and the statuses that it gives them.
const NUMBERS: [(u16, &str, u16); 9] = [
    (33, "CANNOT_READ_ALL_DATA", 500),
    (115, "UNKNOWN_SETTING", 404),
    (117, "INCORRECT_DATA", 400),
    (271, "CANNOT_DECOMPRESS", 500),
    (354, "ZLIB_INFLATE_FAILED", 500),
    (448, "BROTLI_READ_FAILED", 500),
    (561, "ZSTD_DECODER_FAILED", 500),
    (618, "LZ4_DECODER_FAILED", 500),
    (1001, "STD_EXCEPTION", 500),
];

/// Formats that are files, with a beginning or an end of their own, and what the server says of none at all.
const FILES: [(&str, u16); 5] =
    [("Arrow", 33), ("ArrowStream", 117), ("Avro", 1001), ("ORC", 117), ("Parquet", 117)];

/// Number, word and status of the error with `code`, if it is one of these.
pub(crate) fn named(code: &str) -> Option<(u16, &'static str, u16)> {
    let number: u16 = code.parse().ok()?;
    NUMBERS.into_iter().find(|(known, ..)| *known == number)
}

/// How the body of an insert is packed; `None` if it is not.
pub(crate) fn packing(call: &Call) -> Option<Packing> {
    let packing = call.header.raw.as_ref()?.packing;
    (packing != Packing::default()).then_some(packing)
}

/// Whether its rows may contain expressions.
pub(crate) fn takes_expressions(call: &Call) -> bool {
    let header = &call.header;
    let statement = sql::read(&header.query);
    let format = statement.format.as_ref().or(header.format.as_ref());
    elsewhere::takes_expressions(&statement, format).is_some()
}

/// Looks at the names of its settings, and whether there is a file if it says so.
///
/// # Errors
/// No server takes it.
pub(crate) fn check(call: &Call) -> Result<(), AttemptError> {
    if let Some(name) = call.header.settings.keys().find(|name| !plan::is_name(name)) {
        let text = format!("{name:?} is not a setting: a name has letters, digits, _ and .");
        return Err(refused(115, text));
    }
    if !call.data.is_empty() {
        return Ok(());
    }
    let statement = sql::read(&call.header.query);
    let is_of = |rows| matches!(&statement.verb, Verb::Insert(insert) if insert.rows == rows);
    let format = statement.format.as_ref().or(call.header.format.as_ref());
    let file = format.and_then(|format| FILES.iter().find(|it| it.0.eq_ignore_ascii_case(format)));
    match file.filter(|_| !is_of(Rows::Inline)) {
        Some((format, number)) => {
            Err(refused(*number, format!("there is no {format}: the body is empty")))
        }
        None => Ok(()),
    }
}

/// Looks at a body, packed or not. That takes a while if it is packed or long: so it is for a thread that may block.
///
/// # Errors
/// No server can unpack it; or its rows depend on what is not in it.
pub(crate) fn look_into(call: &Call) -> Result<(), AttemptError> {
    let takes_expressions = takes_expressions(call);
    let Some(packing) = packing(call) else {
        return if takes_expressions { depends(call, &call.data) } else { Ok(()) };
    };
    let mut rows = Vec::new();
    unpack(packing, &call.data, |piece| {
        if takes_expressions && rows.len() < ROWS_MAX {
            rows.extend_from_slice(piece);
        }
    })?;
    if takes_expressions { depends(call, &rows) } else { Ok(()) }
}

/// Refuses rows that read something. `body` is the call's, unpacked.
fn depends(call: &Call, body: &[u8]) -> Result<(), AttemptError> {
    let header = &call.header;
    let query = header.raw.as_ref().map_or(&header.query, |raw| &raw.query);
    let text = stated::joined(query, &String::from_utf8_lossy(body));
    // Of a body that is kept as it is, the statement may be a part.
    let read = sql::read(if header.raw.is_some() { &text } else { query });
    let Verb::Insert(insert) = read.verb else { return Ok(()) };
    if !reach::reads(text.get(insert.head..).unwrap_or_default()) {
        return Ok(());
    }
    let text =
        "its values read data from this server or another one, which could be other data later";
    Err(AttemptError::own(ErrorClass::NotExecuted, ErrorCode::OfKind("values_depend"), text))
}

fn unpack(packing: Packing, body: &[u8], each: impl FnMut(&[u8])) -> Result<(), AttemptError> {
    let Err(Flaw { of, is_cut }) = whole::unpack(packing, body, each) else { return Ok(()) };
    let number = match of {
        Some(Coding::Gzip | Coding::Deflate) => 354,
        Some(Coding::Br) => 448,
        Some(Coding::Zstd) => 561,
        Some(Coding::Lz4) => 618,
        None if is_cut => 33,
        None => 271,
    };
    let of = of.map_or("the blocks of decompress=1", Coding::name);
    let what =
        if is_cut { "it is incomplete" } else { "it is damaged, or there is data after its end" };
    Err(refused(number, format!("the body cannot be unpacked ({of}): {what}")))
}

fn refused(number: u16, text: String) -> AttemptError {
    let code = ErrorCode::Server(number.to_string().into());
    AttemptError::own(ErrorClass::Rejected, code, text)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::{
        super::wire::{Header, Raw},
        *,
    };

    #[test]
    fn rows_that_depend_on_what_is_not_in_them_are_found_wherever_they_stand() {
        let call = |query: &str, data: &[u8], format: Option<&str>, raw: Option<&str>| {
            let raw = raw.map(|query| Raw { query: query.into(), packing: Packing::default() });
            let format = format.map(str::to_owned);
            let header = Header { query: query.into(), raw, format, ..Header::default() };
            Call { header, data: Bytes::copy_from_slice(data) }
        };
        let insert = "INSERT INTO t VALUES";
        let whole = b"INSERT INTO t VALUES ('\xff', (SELECT 1))";
        for call in [
            call("INSERT INTO t VALUES (1, (SELECT 1))", b"", None, None),
            call(insert, b"(1, (SELECT 1))", None, None),
            call("INSERT INTO t", b"(1, (SELECT 1))", Some("Values"), None),
            call("INSERT INTO t FORMAT values", b"('\xff', (SELECT 1))", None, None),
            call(insert, whole, None, Some("")),
            call(insert, b"t VALUES (1, (SELECT 1))", None, Some("INSERT INTO")),
        ] {
            let error = look_into(&call).unwrap_err();
            assert_eq!(error.class, ErrorClass::NotExecuted, "{call:?}");
        }
        for call in [
            call("INSERT INTO t (a, (b)) VALUES (1, 'SELECT')", b"", None, None),
            call("INSERT INTO t FORMAT CSV", b"(1, (SELECT 1))", None, None),
            call("INSERT INTO t", b"(1, (SELECT 1))", Some("CSV"), None),
            call(insert, b"INSERT INTO t VALUES ('SELECT')", None, Some("")),
        ] {
            assert!(look_into(&call).is_ok(), "{call:?}");
        }
    }
}
