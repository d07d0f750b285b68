//! Words of a statement that reach another server: see [`elsewhere`](super::elsewhere).

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

/// Whether two tokens that stand side by side name another server.
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
