//! By which words an answer from a cache would be wrong rather than old: those that ask for the server's own state, and
//! for what nobody else may get.

use super::super::lexer::Token;

/// Databases whose tables are the server's own state.
const SERVER_STATE: &[&str] = &["system", "information_schema"];
/// Table functions that take the name of a database as a text. In small letters.
const BY_NAME: &[&str] = &["cluster", "clusterallreplicas", "merge", "remote", "remotesecure"];
/// Functions whose results nobody else may get: they are random, or say who asks and by which request. In small letters.
const ONCE_ONLY: &[&str] = &[
    "arraypartialshuffle",
    "arrayrandomsample",
    "arrayshuffle",
    "connection_id",
    "connectionid",
    "current_query_id",
    "currentqueryid",
    "datetimetouuidv7",
    "fuzzbits",
    "fuzzjson",
    "fuzzquery",
    "getclienthttpheader",
    "initial_query_id",
    "initial_query_start_time",
    "initialqueryid",
    "initialquerystarttime",
    "obfuscatequery",
    "query_id",
    "queryid",
    "transactionid",
];
/// What the names of others begin with: `randNormal`, `generateUUIDv4`, `generateRandom`.
const ONCE_ONLY_BEGINNINGS: &[&str] = &["generate", "rand"];

/// Whether the tables of this database are the server's own state.
pub(crate) fn is_server_state(database: &str) -> bool {
    SERVER_STATE.iter().any(|own| own.eq_ignore_ascii_case(database))
}

/// Whether a text names such a database, as far as texts with marks between names do.
pub(super) fn has_state(text: &str) -> bool {
    let is_mark = |c: char| !c.is_alphanumeric() && c != '_';
    text.split(is_mark).any(is_server_state)
}

/// Calls of table functions that take the name of a database as a text, as the tokens of a query pass by.
#[derive(Debug, Default)]
pub(super) struct Calls {
    /// There is one.
    pub(super) is_made: bool,
    /// One has a database whose tables are the server's own state, as far as that shows.
    pub(super) names_state: bool,
}

impl Calls {
    /// Looks at a token and the one before it.
    pub(super) fn pass(&mut self, before: Token<'_>, token: Token<'_>) {
        self.names_state |= self.is_made
            && match token {
                // By a pattern it may be any.
                Token::Word(word) => is_server_state(word) || word.eq_ignore_ascii_case("REGEXP"),
                Token::Quoted(text) | Token::Text(text) => has_state(text),
                Token::Mark(_) => false,
            };
        self.is_made |= token == Token::Mark('(') && is_by_name(before);
    }
}

fn is_by_name(token: Token<'_>) -> bool {
    let (Token::Word(name) | Token::Quoted(name)) = token else { return false };
    let name = name.trim_matches(['`', '"']);
    BY_NAME.iter().any(|known| known.eq_ignore_ascii_case(name))
}

/// Whether a function gives nobody else the same.
pub(super) fn is_once_only(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ONCE_ONLY.contains(&name.as_str())
        || ONCE_ONLY_BEGINNINGS.iter().any(|beginning| name.starts_with(beginning))
            && !matches!(&*name, "generateseries" | "generate_series")
}
