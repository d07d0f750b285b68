//! Empty results, for reads that nothing can answer and whose callers can do without.
//!
//! Formats that say nothing of their columns have one empty result. If the columns are in the answer,
//! the empty result is the beginning of an earlier answer to the same query: it is remembered, for the
//! [`QUERIES_MAX`] queries that were last answered. If neither helps there is none: columns are never
//! invented, and Parquet, Arrow, Native and the like are files that would have to be.

use std::collections::HashMap;

use bytes::Bytes;
use memchr::memmem;
use parking_lot::Mutex;
use xxhash_rust::xxh3::xxh3_128_with_seed;

use super::wire;

/// Queries whose columns are remembered.
const QUERIES_MAX: usize = 512;
/// The longest beginning that is.
const LEN_MAX: usize = 64 * 1024;

/// The empty results of queries that were answered, by the key of their cache entry. Such a key has all of the query in
/// it, so that only its digest is kept.
pub(crate) struct Learnt {
    /// So that nobody can prepare a query whose digest is another's.
    seed: u64,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// Counts what was learnt.
    turn: u64,
    /// When each was last learnt, and what.
    empty: HashMap<u128, (u64, Bytes)>,
}

impl Default for Learnt {
    fn default() -> Self {
        Self { seed: fastrand::u64(..), known: Mutex::default() }
    }
}

impl Learnt {
    fn digest(&self, key: &Bytes) -> u128 {
        xxh3_128_with_seed(key, self.seed)
    }

    /// Remembers the empty form of `reply`.
    pub(crate) fn learn(&self, key: &Bytes, reply: &Bytes) {
        let (format, body) = wire::parts_of(reply);
        let Some(empty) = of_answer(&format, &body) else { return };
        let digest = self.digest(key);
        let Known { turn, empty: known } = &mut *self.known.lock();
        *turn += 1;
        if let Some((used, before)) = known.get_mut(&digest) {
            *used = *turn;
            if *before == empty {
                return;
            }
        }
        if known.len() >= QUERIES_MAX
            && let Some(oldest) =
                known.iter().min_by_key(|(_, (used, _))| *used).map(|(digest, _)| *digest)
        {
            known.remove(&oldest);
        }
        known.insert(digest, (*turn, empty));
    }

    /// The empty result of the query, in wire form.
    pub(crate) fn get(&self, key: Option<&Bytes>, format: &str) -> Option<Bytes> {
        if let Some(key) = key
            && let Some((_, empty)) = self.known.lock().empty.get(&self.digest(key))
        {
            return Some(empty.clone());
        }
        without_columns(format).map(|body| wire::reply(format, body.as_bytes()))
    }
}

/// The empty result of formats that need not name their columns.
fn without_columns(format: &str) -> Option<&'static str> {
    Some(match format {
        "JSON" | "JSONCompact" | "JSONStrings" | "JSONCompactStrings" => {
            r#"{"meta":[],"data":[],"rows":0}"#
        }
        "JSONColumns" | "JSONObjectEachRow" => "{}",
        "JSONCompactColumns" => "[]",
        "JSONEachRow"
        | "JSONLines"
        | "NDJSON"
        | "JSONStringsEachRow"
        | "JSONCompactEachRow"
        | "JSONCompactStringsEachRow"
        | "CSV"
        | "TabSeparated"
        | "TSV"
        | "TabSeparatedRaw"
        | "TSVRaw"
        | "Raw"
        | "TSKV"
        | "Values"
        | "RowBinary"
        | "Null"
        | "LineAsString"
        | "RawBLOB"
        | "MsgPack"
        | "BSONEachRow" => "",
        _ => return None,
    })
}

/// The empty form of an answer that contains its columns, in wire form.
fn of_answer(format: &str, body: &[u8]) -> Option<Bytes> {
    let lines = |count| lines(body, count, format.starts_with("CSV"));
    let empty: Vec<u8> = match format {
        "JSON" | "JSONCompact" | "JSONStrings" | "JSONCompactStrings" => document(body)?,
        "CSVWithNames"
        | "TabSeparatedWithNames"
        | "TSVWithNames"
        | "TabSeparatedRawWithNames"
        | "TSVRawWithNames"
        | "JSONCompactEachRowWithNames"
        | "JSONCompactStringsEachRowWithNames" => lines(1)?.to_vec(),
        "CSVWithNamesAndTypes"
        | "TabSeparatedWithNamesAndTypes"
        | "TSVWithNamesAndTypes"
        | "TabSeparatedRawWithNamesAndTypes"
        | "TSVRawWithNamesAndTypes"
        | "JSONCompactEachRowWithNamesAndTypes"
        | "JSONCompactStringsEachRowWithNamesAndTypes" => lines(2)?.to_vec(),
        "RowBinaryWithNames" => binary(body, 1)?.to_vec(),
        "RowBinaryWithNamesAndTypes" => binary(body, 2)?.to_vec(),
        _ => return None,
    };
    (empty.len() <= LEN_MAX).then(|| wire::reply(format, &empty))
}

/// A document up to its rows, then none.
fn document(body: &[u8]) -> Option<Vec<u8>> {
    const ROWS: &[u8] = b"\"data\":";
    let beginning = body.get(..body.len().min(LEN_MAX))?;
    // No text within it looks so: there a quote would have a backslash.
    let at = memmem::find(beginning, ROWS)?;
    let mut empty = beginning.get(..at + ROWS.len())?.to_vec();
    empty.extend_from_slice(b" [],\n\n\t\"rows\": 0\n}\n");
    serde_json::from_slice::<serde_json::Value>(&empty).ok().map(|_| empty)
}

/// The first `count` lines; in CSV a quoted name may hold a line's end.
fn lines(body: &[u8], count: usize, csv: bool) -> Option<&[u8]> {
    let (mut quoted, mut left) = (false, count);
    for (at, byte) in body.iter().enumerate().take(LEN_MAX) {
        match byte {
            b'"' if csv => quoted = !quoted,
            b'\n' if !quoted => {
                left -= 1;
                if left == 0 {
                    return body.get(..=at);
                }
            }
            _ => {}
        }
    }
    None
}

/// The columns' count and `kinds` lists of so many texts: names, or names and types.
fn binary(body: &[u8], kinds: u64) -> Option<&[u8]> {
    let mut at = 0;
    let columns = varint(body, &mut at)?;
    for _ in 0..columns.checked_mul(kinds)? {
        let len = usize::try_from(varint(body, &mut at)?).ok()?;
        at = at.checked_add(len).filter(|at| *at <= body.len().min(LEN_MAX))?;
    }
    body.get(..at)
}

fn varint(body: &[u8], at: &mut usize) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = *body.get(*at)?;
        *at += 1;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn learnt(format: &str, answer: &[u8]) -> Option<String> {
        let (memory, key) = (Learnt::default(), Bytes::from_static(b"k"));
        memory.learn(&key, &wire::reply(format, answer));
        let (named, body) = wire::parts_of(&memory.get(Some(&key), format)?);
        assert_eq!(named, format);
        Some(String::from_utf8(body.to_vec()).unwrap())
    }

    #[test]
    fn columns_are_those_of_an_earlier_answer() {
        let json = b"{\n\t\"meta\":\n\t[{\"name\": \"\\\"data\\\":\", \"type\": \"UInt8\"}],\n\n\t\"data\":\n\t[[1]],\n\n\t\"rows\": 1\n}\n";
        let empty: serde_json::Value =
            serde_json::from_str(&learnt("JSONCompact", json).unwrap()).unwrap();
        assert_eq!(
            (&empty["data"], &empty["rows"]),
            (&serde_json::json!([]), &serde_json::json!(0))
        );
        assert_eq!(empty["meta"][0]["name"], "\"data\":");
        let csv = b"\"a\nb\",\"c\"\n1,2\n";
        assert_eq!(learnt("CSVWithNames", csv).unwrap(), "\"a\nb\",\"c\"\n");
        assert_eq!(learnt("TSVWithNamesAndTypes", b"a\nUInt8\n1\n").unwrap(), "a\nUInt8\n");
        let rows = b"\x01\x01a\x05UInt8\x07";
        assert_eq!(learnt("RowBinaryWithNamesAndTypes", rows).unwrap(), "\x01\x01a\x05UInt8");
        assert_eq!(learnt("RowBinaryWithNames", b"\x01\x01a\x07").unwrap(), "\x01\x01a");
    }

    #[test]
    fn what_names_no_columns_needs_none() {
        let memory = Learnt::default();
        let empty = |format: &str| memory.get(None, format).map(|reply| wire::parts_of(&reply).1);
        for format in ["JSONEachRow", "CSV", "TSV", "RowBinary", "Values", "Null"] {
            assert_eq!(empty(format).unwrap(), "", "{format}");
        }
        assert_eq!(empty("JSONCompact").unwrap(), r#"{"meta":[],"data":[],"rows":0}"#);
        for format in
            ["CSVWithNames", "RowBinaryWithNamesAndTypes", "Parquet", "Arrow", "Native", "Pretty"]
        {
            assert_eq!(empty(format), None, "{format}");
        }
    }

    #[test]
    fn the_oldest_is_forgotten_first() {
        let memory = Learnt::default();
        let key = |n: usize| Bytes::from(format!("{n}"));
        let answer = wire::reply("CSVWithNames", b"a\n");
        for n in 0..=QUERIES_MAX {
            memory.learn(&key(n), &answer);
        }
        assert_eq!(memory.get(Some(&key(0)), "CSVWithNames"), None);
        assert!(memory.get(Some(&key(1)), "CSVWithNames").is_some());
    }

    #[test]
    fn an_answer_that_is_cut_short_teaches_nothing() {
        for (format, answer) in [
            ("JSON", &b"{\"meta\": ["[..]),
            ("CSVWithNames", b"a,b"),
            ("RowBinaryWithNamesAndTypes", b"\x02\x01a"),
        ] {
            let memory = Learnt::default();
            memory.learn(&Bytes::from_static(b"k"), &wire::reply(format, answer));
            assert!(memory.known.lock().empty.is_empty(), "{format}");
        }
    }

    #[test]
    fn of_a_long_query_only_a_digest_is_kept() {
        let memory = Learnt::default();
        let answer = wire::reply("CSVWithNames", b"a\n");
        let keys = (0..600_u32).map(|n| {
            let mut key = vec![b'x'; 1 << 20];
            key.extend_from_slice(&n.to_le_bytes());
            Bytes::from(key)
        });
        let mut last = Bytes::new();
        for key in keys {
            memory.learn(&key, &answer);
            last = key;
        }
        assert!(last.is_unique(), "the key is kept by nobody else");
        assert_eq!(memory.known.lock().empty.len(), QUERIES_MAX);
        assert!(memory.get(Some(&last), "CSVWithNames").is_some());
    }
}
