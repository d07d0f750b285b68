//! Words of a statement that reach another server: see [`elsewhere`](super::elsewhere); and words of an insert's rows
//! that read at the server: see [`storable`](super::storable).

use super::lexer::{Lexer, Token};

/// Table functions, engines, places of backups and sources of dictionaries, in small letters.
const NAMES: &[&str] = &[
    "arrowflight",
    "azure",
    "azureblobstorage",
    "azurequeue",
    "cassandra",
    "clickhouse",
    "cluster",
    "clusterallreplicas",
    "cosn",
    "datalakecatalog",
    "distributed",
    "gcs",
    "hdfs",
    "http",
    "hudi",
    "jdbc",
    "kafka",
    "keepermap",
    "mongo",
    "mongodb",
    "mysql",
    "nats",
    "odbc",
    "oss",
    "postgresql",
    "rabbitmq",
    "redis",
    "remote",
    "remotesecure",
    "replicated",
    "s3",
    "s3queue",
    "url",
    "ytsaurus",
];
/// What the names of others begin with: `icebergS3`, `ReplicatedReplacingMergeTree`, `MaterializedPostgreSQL`.
const BEGINNINGS: &[&str] = &["deltalake", "iceberg", "materialized", "paimon", "replicated"];
/// What the name of one may end with, so that many servers read it.
const MANY: &str = "cluster";

/// Functions that read data of the server, in small letters; and all that begin with `dict`.
const READING: &[&str] = &["file", "hascolumnintable", "joinget", "joingetornull"];

/// Whether two tokens side by side name another server.
pub(super) fn names(one: Token<'_>, next: Token<'_>) -> bool {
    if one.is("ON") && next.is("CLUSTER") {
        return true;
    }
    let name = if next == Token::Mark('(') { one.name() } else { None };
    name.is_some_and(|name| {
        let name = name.to_ascii_lowercase();
        let is_known = |name: &str| NAMES.contains(&name);
        is_known(&name)
            || name.strip_suffix(MANY).is_some_and(is_known)
            || BEGINNINGS.iter().any(|beginning| name.starts_with(beginning))
    })
}

/// Whether what is left of a text names another server, or does not end.
pub(super) fn in_rest(mut lexer: Lexer<'_>) -> bool {
    let mut before = None;
    loop {
        let Ok(token) = lexer.next() else { return true };
        let Some(token) = token else { return false };
        if before.is_some_and(|before| names(before, token)) {
            return true;
        }
        before = Some(token);
    }
}

/// Whether expressions ask for something at a server, this one or another.
pub(super) fn reads(expressions: &str) -> bool {
    let mut lexer = Lexer::new(expressions);
    let mut before = None;
    // What does not end is for the server to say.
    while let Ok(Some(token)) = lexer.next() {
        if token.is("SELECT") || before.is_some_and(|before| is_reading(before, token)) {
            return true;
        }
        before = Some(token);
    }
    false
}

fn is_reading(one: Token<'_>, next: Token<'_>) -> bool {
    let name = if next == Token::Mark('(') { one.name() } else { None };
    let is_known = name.is_some_and(|name| {
        let name = name.to_ascii_lowercase();
        READING.contains(&name.as_str()) || name.starts_with("dict")
    });
    is_known || names(one, next) || one.is("IN") && next.name().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_that_read_are_told_from_texts_and_names_that_look_so() {
        for rows in [
            "(1, (SELECT 1))",
            "(1, (select count() from remote('h', system.one)))",
            "(1), ((WITH 1 AS x SELECT x))",
            "(1 IN t)",
            "(1 NOT IN `t`)",
            "(dictGet('d', 'a', 1))",
            "(joinGet(t, 'a', 1))",
            "(`file`('x'))",
            "(1 IN url('http://h/', CSV, 'a Int8'))",
        ] {
            assert!(reads(rows), "{rows}");
        }
        for rows in [
            "(1, 'SELECT 1')",
            "(1 IN (1, 2), now(), {a:String}, 'a quote that does not end)",
            "(1 IN [1], selected, $$ SELECT $$) -- SELECT",
            "(generateUUIDv4(), toDate('2020-01-01'), dict, file)",
        ] {
            assert!(!reads(rows), "{rows}");
        }
    }
}
