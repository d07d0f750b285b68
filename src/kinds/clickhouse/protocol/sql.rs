//! What a statement is, as far as that is clear without a grammar.
//!
//! The rules, each on the safe side: **if that is not clear, it is a write** over every lane.
//!
//! - The first word decides, after leading `(`. Behind WITH, every word may be an alias: so INSERT INTO anywhere outside
//!   of brackets makes it an insert, and SELECT or FROM a read only without that. A second statement, or a quote that
//!   does not end, makes it a write.
//! - An INSERT's target may come after INTO and TABLE, bare or quoted, with its database or without.
//!   `FUNCTION …` and `{name:Identifier}` are no table that is known.
//! - An INSERT is *plain* if its rows are data: VALUES or FORMAT, in the query or behind it. Behind VALUES or the format's
//!   name only `PARALLEL WITH` is [looked for](behind).
//! - FORMAT counts only if nothing but SETTINGS follows it, so that a column may be called `format`.
//! - Statements that are joined by `PARALLEL WITH` are one write, which may do whatever one of them does.
//!
//! Each text is read in a time that grows with its length and not faster: it is a caller's, and is read where all
//! callers are served. What is held of it beside the text does not grow with it: no list of its tokens is made, and of a
//! clause of settings only [so much](settings::LEN_MAX) is read.

pub(crate) use self::volatile::is_server_state;
use self::{behind::Behind, volatile::has_state};
use super::{
    lexer::{Lexer, Token, Unread},
    reach,
};

mod behind;
mod reads;
mod settings;
mod volatile;

/// What a statement does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    /// Changes nothing.
    Read,
    /// Adds rows.
    Insert(Insert),
    /// Changes something else.
    Other(Other),
    /// Is not carried: why.
    Refused(&'static str),
}

/// The target of an INSERT, and the source of its rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Insert {
    /// The table, if it is known.
    pub(crate) table: Option<Table>,
    /// The source of the rows.
    pub(crate) rows: Rows,
    /// The beginning of the rows in the query that has them in it; its length for any other.
    pub(crate) head: usize,
}

/// The source of an INSERT's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rows {
    /// They are in the query.
    Inline,
    /// They follow the query, whose format is named.
    Follow,
    /// They follow the query, which names no format.
    FollowUnnamed,
    /// The server has them itself: INSERT … SELECT.
    Selected,
}

/// A table's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Table {
    /// Its database, if it is named.
    pub(crate) database: Option<String>,
    /// Its own name.
    pub(crate) name: String,
}

/// What a write that is not an INSERT touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Other {
    /// Whether it must wait until no earlier write is left: what it does depends on the rows there are.
    pub(crate) barrier: bool,
    /// Whether it needs admin rights.
    pub(crate) admin: bool,
    /// Whether it may change the session that it is sent in, so that later statements mean something else.
    pub(crate) session: bool,
}

/// A statement as far as it was read.
#[expect(clippy::struct_excessive_bools, reason = "independent facts about one statement")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Statement {
    /// What it does.
    pub(crate) verb: Verb,
    /// The first word, in capitals; empty if there is none.
    pub(crate) word: String,
    /// The format that it names.
    pub(crate) format: Option<String>,
    /// The settings that it sets itself, each with its value as written.
    pub(crate) settings: Vec<(String, String)>,
    /// Whether the clause of settings of an INSERT has something in it that is none, or is too long to be read.
    pub(crate) has_unread_settings: bool,
    /// Whether an answer from a cache would be wrong rather than old: it asks for the server's own state,
    /// or for numbers that nobody else has.
    pub(crate) volatile: bool,
    /// Whether it names another server ([`reach`]), rows aside; or cannot be read.
    pub(crate) elsewhere: bool,
    /// Whether a write that is no insert may fail when a part of it is done: it does several things, or nobody knows
    /// what it does.
    pub(crate) in_parts: bool,
    /// Whether a parameter may be the name of a database in it.
    takes_names: bool,
}

/// First words of statements that change nothing.
const READS: &[&str] =
    &["SELECT", "EXPLAIN", "SHOW", "DESCRIBE", "DESC", "EXISTS", "CHECK", "FROM"];
/// First words of writes that need not wait for earlier ones, but for a CREATE that [takes rows](takes_rows). BACKUP
/// takes what there is, as a query does.
const FREE: &[&str] =
    &["CREATE", "ATTACH", "UNDROP", "GRANT", "REVOKE", "SYSTEM", "KILL", "BACKUP"];
/// First words that need admin rights. EXECUTE AS makes the statement behind it another user's, or the whole session.
const ADMIN: &[&str] = &["GRANT", "REVOKE", "SYSTEM", "KILL", EXECUTE];
const EXECUTE: &str = "EXECUTE";
/// First words that need them for [`ACCESS`].
const ON_ACCESS: &[&str] = &["CREATE", "ALTER", "DROP", "MOVE", "ATTACH"];
/// What CREATE, ALTER and DROP need admin rights for.
const ACCESS: &[&str] =
    &["USER", "ROLE", "QUOTA", "PROFILE", "SETTINGS", "ROW", "POLICY", "MASKING", "NAMED"];
/// First words of what belongs to a session; there is none.
const SESSION: &[&str] = &["SET", "USE", "BEGIN", "START", "COMMIT", "ROLLBACK"];
const INSERT: &str = "INSERT";
const PARALLEL: &str = "PARALLEL";

/// First words of other statements that change something.
const CHANGES: &[&str] = &[
    "ALTER", "DELETE", "DETACH", "DROP", "EXCHANGE", EXECUTE, "MOVE", "OPTIMIZE", "RENAME",
    "TRUNCATE", "UPDATE",
];
/// First words of statements that do one thing, however many names they list.
const ONE_THING: &[&str] = &["ATTACH", "CREATE", "OPTIMIZE", "UPDATE"];
/// By what DROP, DETACH and TRUNCATE take the tables of a whole database, one after the other.
const ALL_TABLES: &[&str] = &["ALL", "DATABASE", "TABLES"];

impl Statement {
    /// Whether it asks for the server's own state if a parameter of it has this value.
    pub(crate) fn names_state_by(&self, value: &str) -> bool {
        self.takes_names && has_state(value)
    }

    /// Its first word if it is one of ClickHouse's own, and never what a caller made up.
    pub(crate) fn operation(&self) -> &'static str {
        if matches!(self.verb, Verb::Insert(_)) {
            return INSERT;
        }
        let known = [READS, FREE, CHANGES].into_iter().flatten();
        let mut named = known.filter(|known| **known == self.word);
        named.next().copied().unwrap_or(match self.verb {
            Verb::Read => "SELECT",
            _ => "unknown",
        })
    }
}

/// Reads `query`, which is all that a server reads.
pub(crate) fn read(query: &str) -> Statement {
    read_text(query, false).unwrap_or_else(|| unknown(query))
}

/// Reads the beginning of a text. `None` unless it is an INSERT whose rows have begun: what follows may make anything
/// else of it.
pub(crate) fn read_beginning(text: &str) -> Option<Statement> {
    read_text(text, true)
}

/// A statement of which nothing but words is known.
pub(crate) fn unknown(text: &str) -> Statement {
    let verb = Verb::Other(Other { barrier: true, admin: may_need_admin(text), session: true });
    Statement { verb, ..unread() }
}

fn read_text(text: &str, is_cut: bool) -> Option<Statement> {
    let first = read_one(text);
    let rows = match &first.verb {
        Verb::Insert(insert) if matches!(insert.rows, Rows::Inline | Rows::Follow) => {
            Some(behind::behind(text.get(insert.head..).unwrap_or_default(), is_cut))
        }
        _ => None,
    };
    match rows {
        Some(Behind::Rows) => return Some(first),
        Some(Behind::Unread) => return None,
        Some(Behind::Statement) | None if is_cut => return None,
        None if !may_have(text, PARALLEL) => return Some(first),
        Some(Behind::Statement) | None => {}
    }
    let (mut parts, mut admin, mut elsewhere) = (0_usize, false, false);
    each_part(text, |part| {
        let part = read_one(part);
        parts += 1;
        admin |= matches!(part.verb, Verb::Other(Other { admin: true, .. }));
        elsewhere |= part.elsewhere;
    });
    if parts < 2 {
        return Some(first);
    }
    let verb = Verb::Other(Other { barrier: true, admin, session: true });
    Some(Statement { verb, settings: Vec::new(), format: None, elsewhere, in_parts: true, ..first })
}

/// Whether the word `word` could be in `query`; most texts are not cut for what they do not have.
fn may_have(query: &str, word: &str) -> bool {
    let word = word.as_bytes();
    query.as_bytes().windows(word.len()).any(|it| it.eq_ignore_ascii_case(word))
}

/// Gives `each` part of `query` that `PARALLEL WITH` joins, as far as it can be cut. In brackets it means nothing, and
/// counts all the same.
fn each_part(query: &str, mut each: impl FnMut(&str)) {
    let (mut lexer, mut from, mut end) = (Lexer::new(query), 0, None);
    loop {
        let at = query.len() - lexer.rest().len();
        let Ok(Some(token)) = lexer.next() else { break };
        match end {
            Some(end) if token.is("WITH") => {
                each(query.get(from..end).unwrap_or_default());
                from = query.len() - lexer.rest().len();
            }
            _ => {}
        }
        end = token.is(PARALLEL).then_some(at);
    }
    each(query.get(from..).unwrap_or_default());
}

/// A statement of which nothing is known.
fn unread() -> Statement {
    Statement {
        verb: Verb::Other(Other { barrier: true, admin: false, session: true }),
        word: String::new(),
        format: None,
        settings: Vec::new(),
        has_unread_settings: false,
        volatile: false,
        elsewhere: true,
        in_parts: true,
        takes_names: false,
    }
}

fn read_one(query: &str) -> Statement {
    try_read(query, unread()).unwrap_or_else(|why| match why {
        Unread::Unclear => unknown(query),
        Unread::Unterminated => unread(),
    })
}

/// Whether a statement may need admin rights of which only the words are known.
fn may_need_admin(query: &str) -> bool {
    let has = |wanted: &[&str]| {
        let mut words = query.split(|c: char| !c.is_ascii_alphanumeric());
        words.any(|word| wanted.iter().any(|wanted| wanted.eq_ignore_ascii_case(word)))
    };
    has(ADMIN)
        || has(ON_ACCESS) && has(ACCESS)
        || ["SET", "DEFAULT", "ROLE"].map(|it| has(&[it])) == [true; 3]
}

/// `query` with white space folded: what two spellings of one query have in common. One with comments stays as it is:
/// servers do not agree on where a comment ends, so that two queries might become one.
pub(crate) fn folded(query: &str) -> String {
    let (mut lexer, mut text) = (Lexer::new(query), String::with_capacity(query.len()));
    while let Ok(Some(token)) = lexer.next() {
        if !text.is_empty() {
            text.push(' ');
        }
        token.write(&mut text);
    }
    if lexer.has_passed_comment() {
        return query.to_owned();
    }
    text.truncate(text.trim_end_matches([' ', ';']).len());
    text
}

fn try_read(query: &str, unknown: Statement) -> Result<Statement, Unread> {
    let mut lexer = Lexer::new(query);
    let mut first = lexer.next()?;
    let mut brackets = 0_usize;
    while first == Some(Token::Mark('(')) {
        brackets += 1;
        first = lexer.next()?;
    }
    let Some(word) = first.and_then(Token::word) else { return Ok(unknown) };
    let mut statement = Statement { word: word.to_ascii_uppercase(), ..unknown };
    statement.elsewhere = false;
    let first = Token::Word(word);
    if brackets > 0 && !first.is_any(&["SELECT", "WITH"]) {
        statement.elsewhere = reach::in_rest(lexer);
        return Ok(statement);
    }
    if first.is(INSERT) {
        return insert(lexer, statement, query.len());
    }
    if first.is("WITH") {
        let mut seen = lexer.clone();
        if may_have(query, INSERT) && passes_insert(&mut seen)? {
            let is_elsewhere = reach::in_rest(lexer);
            let mut statement = insert(seen, statement, query.len())?;
            statement.elsewhere |= is_elsewhere;
            return Ok(statement);
        }
        if find(&mut lexer.clone(), |token| token.is_any(&["SELECT", "FROM"]))?.is_some() {
            return rest_of_read(lexer, first, brackets, statement);
        }
        statement.elsewhere = reach::in_rest(lexer);
        return Ok(statement);
    }
    if first.is_any(READS) {
        return rest_of_read(lexer, first, brackets, statement);
    }
    let of_users = first.is("SET") && lexer.clone().next()?.is_some_and(|it| it.is("DEFAULT"));
    if first.is_any(SESSION) && !of_users {
        statement.verb = Verb::Refused(
            "there is no session: send settings and the database with each call, in `settings` and `database`",
        );
        return Ok(statement);
    }
    statement.elsewhere = reach::in_rest(lexer.clone());
    let is_temporary = has_soon(lexer.clone(), "TEMPORARY")?;
    let of_access = first.is_any(ON_ACCESS)
        && after(lexer.clone(), &["OR", "REPLACE"])?.is_some_and(|next| next.is_any(ACCESS));
    let over_rows = first.is("CREATE") && !of_access && takes_rows(lexer.clone()).unwrap_or(true);
    let is_one_thing = first.is_any(ONE_THING) && !of_access;
    statement.in_parts = over_rows || !is_one_thing && does_several(first, lexer).unwrap_or(true);
    statement.verb = Verb::Other(Other {
        barrier: (over_rows || !first.is_any(FREE)) && !of_access && !of_users,
        admin: first.is_any(ADMIN) || of_access || of_users,
        session: first.is(EXECUTE) || is_temporary || !first.is_any(FREE) && !first.is_any(CHANGES),
    });
    Ok(statement)
}

/// Whether one of the next three tokens is `word`.
fn has_soon(mut lexer: Lexer<'_>, word: &str) -> Result<bool, Unread> {
    for _ in 0..3 {
        if lexer.next()?.is_some_and(|token| token.is(word)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The first token that is none of the words `passed`.
fn after<'a>(mut lexer: Lexer<'a>, passed: &[&str]) -> Result<Option<Token<'a>>, Unread> {
    loop {
        match lexer.next()? {
            Some(token) if token.is_any(passed) => {}
            other => return Ok(other),
        }
    }
}

/// Goes on to an INSERT outside of brackets that INTO follows. No release takes another one. One behind a `;` is
/// another statement.
fn passes_insert(lexer: &mut Lexer<'_>) -> Result<bool, Unread> {
    let end = Token::Mark(';');
    while let Some(found) = find(lexer, |token| token == end || token.is(INSERT))? {
        if found == end {
            return Ok(false);
        }
        if lexer.clone().next()?.is_some_and(|next| next.is("INTO")) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether a CREATE, whose first word is passed, takes the place of what has rows, or makes a table of rows that there
/// are: OR REPLACE; CLONE AS and AS SELECT of a table; POPULATE.
fn takes_rows(mut lexer: Lexer<'_>) -> Result<bool, Unread> {
    let mut kind = lexer.next()?;
    if kind.is_some_and(|kind| kind.is("OR")) {
        return Ok(true);
    }
    if kind.is_some_and(|kind| kind.is("TEMPORARY")) {
        kind = lexer.next()?;
    }
    let is_table = kind.is_some_and(|kind| kind.is("TABLE"));
    let words: &[&str] = if is_table { &["AS", "CLONE"] } else { &["POPULATE"] };
    let begins_query =
        |token: Token<'_>| token == Token::Mark('(') || token.is_any(&["SELECT", "WITH", "FROM"]);
    while let Some(found) = find(&mut lexer, |token| token.is_any(words))? {
        if !found.is("AS") || lexer.clone().next()?.is_some_and(begins_query) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether a write with this first word, which is passed, does several things one after the other, or may do so.
fn does_several(first: Token<'_>, mut lexer: Lexer<'_>) -> Result<bool, Unread> {
    let is_known = first.is_any(FREE) || first.is_any(CHANGES);
    if !is_known || first.is(EXECUTE) {
        return Ok(true);
    }
    let takes_tables = first.is_any(&["DETACH", "DROP", "TRUNCATE"]);
    if takes_tables && lexer.clone().next()?.is_some_and(|it| it.is_any(ALL_TABLES)) {
        return Ok(true);
    }
    Ok(find(&mut lexer, |token| token == Token::Mark(','))?.is_some())
}

/// Goes on to the first token outside of brackets that `is` what is looked for.
fn find<'a>(
    lexer: &mut Lexer<'a>,
    is: impl Fn(Token<'a>) -> bool,
) -> Result<Option<Token<'a>>, Unread> {
    let mut depth = 0_i64;
    while let Some(token) = lexer.next()? {
        match token {
            Token::Mark('(' | '[' | '{') => depth += 1,
            Token::Mark(')' | ']' | '}') => depth -= 1,
            token if depth == 0 && is(token) => return Ok(Some(token)),
            _ => {}
        }
    }
    Ok(None)
}

/// A read, once its first word is known.
fn rest_of_read(
    lexer: Lexer<'_>,
    first: Token<'_>,
    brackets: usize,
    mut statement: Statement,
) -> Result<Statement, Unread> {
    let rest = reads::rest(lexer, first, brackets)?;
    statement.elsewhere = rest.elsewhere;
    if rest.is_followed {
        // Who knows by which statement.
        return Ok(statement);
    }
    statement.verb = if rest.to_file {
        Verb::Refused(
            "only the command line client supports INTO OUTFILE: fusebox returns the answer to the caller",
        )
    } else {
        Verb::Read
    };
    statement.volatile = rest.volatile;
    statement.takes_names = rest.takes_names;
    statement.settings = rest.settings;
    statement.format = rest.format;
    Ok(statement)
}

/// An INSERT, once its first word is passed.
fn insert(mut lexer: Lexer<'_>, mut statement: Statement, len: usize) -> Result<Statement, Unread> {
    let table = table(&mut lexer)?;
    let (mut rows, mut head) = (Rows::FollowUnnamed, len);
    let mut depth = 0_i64;
    let mut is_clause_seen = false;
    let mut before = None;
    while let Some(token) = lexer.next()? {
        statement.elsewhere |= before.is_some_and(|before| reach::names(before, token));
        before = Some(token);
        match token {
            Token::Mark('(' | '[' | '{') => {
                depth += 1;
                if begins_query(lexer.clone())? {
                    rows = Rows::Selected;
                    statement.elsewhere |= reach::in_rest(lexer);
                    break;
                }
            }
            Token::Mark(')' | ']' | '}') => depth -= 1,
            _ if depth > 0 => {}
            _ if token.is("VALUES") => {
                rows = rows_behind(&lexer);
                head = len.saturating_sub(lexer.rest().len());
                statement.format = Some("Values".to_owned());
                break;
            }
            _ if token.is("FORMAT") => {
                statement.format = lexer.next()?.and_then(Token::name);
                rows = rows_behind(&lexer);
                head = len.saturating_sub(lexer.rest().len());
                break;
            }
            // FROM INFILE is the client's own; the server says so.
            _ if token.is_any(&["SELECT", "WITH", "WATCH", "FROM"]) => {
                rows = Rows::Selected;
                statement.elsewhere |= reach::in_rest(lexer);
                break;
            }
            _ if token.is("SETTINGS") && !is_clause_seen => {
                is_clause_seen = true;
                let found = settings::of_clause(lexer.clone(), settings::BEFORE_ROWS);
                statement.has_unread_settings = found.iter().any(Option::is_none);
                statement.settings = found.into_iter().flatten().collect();
            }
            _ => {}
        }
    }
    statement.verb = Verb::Insert(Insert { table, rows, head });
    Ok(statement)
}

/// Whether a query begins behind an opening bracket. A column may have the name of its first word.
fn begins_query(mut inner: Lexer<'_>) -> Result<bool, Unread> {
    if !inner.next()?.is_some_and(|first| first.is_any(&["SELECT", "WITH", "FROM"])) {
        return Ok(false);
    }
    Ok(!matches!(inner.next()?, Some(Token::Mark(',' | ')'))))
}

fn rows_behind(lexer: &Lexer<'_>) -> Rows {
    if lexer.rest().trim_ascii().trim_matches(';').is_empty() { Rows::Follow } else { Rows::Inline }
}

/// The table that comes next, if it is known; its tokens are passed.
fn table(lexer: &mut Lexer<'_>) -> Result<Option<Table>, Unread> {
    let mut token = lexer.next()?;
    for optional in ["INTO", "TABLE"] {
        if token.is_some_and(|token| token.is(optional)) {
            token = lexer.next()?;
        }
    }
    if token.is_some_and(|token| token.is("FUNCTION")) {
        return Ok(None);
    }
    let Some(mut name) = token.and_then(Token::name) else { return Ok(None) };
    let (mut database, mut parts) = (None, 1_usize);
    while lexer.clone().next()? == Some(Token::Mark('.')) {
        lexer.next()?;
        let Some(part) = lexer.next()?.and_then(Token::name) else { return Ok(None) };
        database = Some(std::mem::replace(&mut name, part));
        parts += 1;
    }
    Ok((parts <= 2).then_some(Table { database, name }))
}

#[cfg(test)]
mod tests;
