//! What a statement is, as far as that is clear without a grammar.
//!
//! The rules, each on the safe side: **if that is not clear, it is a write** over every lane.
//!
//! - The first word decides, after leading `(`. Behind WITH, every word may be an alias: so INSERT INTO anywhere outside
//!   of brackets makes it an insert, and SELECT or FROM a read only without that. A second statement, or a quote that
//!   does not end, makes it a write.
//! - An INSERT's target may come after INTO and TABLE, bare or quoted, with its database or without.
//!   `FUNCTION …` and `{name:Identifier}` are no table that is known.
//! - An INSERT is *plain* if its rows are data: VALUES or FORMAT, in the query or behind it. Nothing
//!   behind VALUES or the format's name is looked at.
//! - FORMAT counts only if nothing but SETTINGS follows it, so that a column may be called `format`.
//! - Statements that are joined by `PARALLEL WITH` are one write, which may do whatever one of them does.
//!
//! Each text is read in a time that grows with its length and not faster: it is a caller's, and is read where all
//! callers are served.

pub(crate) use self::volatile::is_server_state;
use self::volatile::{calls_by_name, has_state, is_once_only, names_state_in_call};
use super::{
    lexer::{Lexer, Token, Unread},
    reach,
};

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
    /// Whether its clause of settings has something in it that is none.
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
/// What ends a clause of settings.
const BEHIND_SETTINGS: &[&str] = &["FORMAT", "VALUES", "SELECT", "WITH"];
/// Room for the tokens of most queries.
const TOKENS_USUAL: usize = 64;
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

/// Reads `query`.
pub(crate) fn read(query: &str) -> Statement {
    let first = read_one(query);
    // Rows are no statement.
    let has_rows = matches!(&first.verb, Verb::Insert(insert) if matches!(insert.rows, Rows::Inline | Rows::Follow));
    if has_rows || !may_have(query, PARALLEL) {
        return first;
    }
    let joined: Vec<Statement> = match parallel(query)[..] {
        [] | [_] => return first,
        ref parts => parts.iter().map(|part| read_one(part)).collect(),
    };
    let needs_admin = |it: &Statement| matches!(it.verb, Verb::Other(Other { admin: true, .. }));
    let admin = joined.iter().any(needs_admin);
    let elsewhere = joined.iter().any(|it| it.elsewhere);
    let verb = Verb::Other(Other { barrier: true, admin, session: true });
    Statement { verb, settings: Vec::new(), format: None, elsewhere, in_parts: true, ..first }
}

/// Whether the word `word` could be in `query`; most texts are not cut for what they do not have.
fn may_have(query: &str, word: &str) -> bool {
    let word = word.as_bytes();
    query.as_bytes().windows(word.len()).any(|it| it.eq_ignore_ascii_case(word))
}

/// The parts of `query` that `PARALLEL WITH` joins, as far as it can be cut. In brackets it means nothing, and counts
/// all the same.
fn parallel(query: &str) -> Vec<&str> {
    let (mut lexer, mut parts, mut from, mut end) = (Lexer::new(query), Vec::new(), 0, None);
    loop {
        let at = query.len() - lexer.rest().len();
        let Ok(Some(token)) = lexer.next() else { break };
        match end {
            Some(end) if token.is("WITH") => {
                parts.extend(query.get(from..end));
                from = query.len() - lexer.rest().len();
            }
            _ => {}
        }
        end = token.is(PARALLEL).then_some(at);
    }
    parts.extend(query.get(from..));
    parts
}

fn read_one(query: &str) -> Statement {
    let unknown = Statement {
        verb: Verb::Other(Other { barrier: true, admin: false, session: true }),
        word: String::new(),
        format: None,
        settings: Vec::new(),
        has_unread_settings: false,
        volatile: false,
        elsewhere: true,
        in_parts: true,
        takes_names: false,
    };
    try_read(query, unknown.clone()).unwrap_or_else(|why| {
        let admin = why == Unread::Unclear && may_need_admin(query);
        Statement { verb: Verb::Other(Other { barrier: true, admin, session: true }), ..unknown }
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
    mut lexer: Lexer<'_>,
    first: Token<'_>,
    brackets: usize,
    mut statement: Statement,
) -> Result<Statement, Unread> {
    let mut tokens = Vec::with_capacity(TOKENS_USUAL);
    tokens.push(first);
    while let Some(token) = lexer.next()? {
        tokens.push(token);
    }
    statement.elsewhere =
        tokens.windows(2).any(|pair| matches!(pair, [one, next] if reach::names(*one, *next)));
    let end = tokens.iter().position(|token| *token == Token::Mark(';')).unwrap_or(tokens.len());
    if tokens.iter().skip(end).any(|token| *token != Token::Mark(';')) {
        // A second statement: who knows which.
        return Ok(statement);
    }
    tokens.truncate(end);
    statement.verb = Verb::Read;
    statement.volatile = first.is("CHECK") || names_state_in_call(&tokens);
    statement.takes_names = tokens.contains(&Token::Word("Identifier")) || calls_by_name(&tokens);
    let mut is_clause_seen = false;
    let mut depth = i64::try_from(brackets).unwrap_or(i64::MAX);
    for (index, token) in tokens.iter().copied().enumerate() {
        let next = |by: usize| tokens.get(index + by).copied();
        match token {
            Token::Mark('(' | '[' | '{') => depth += 1,
            Token::Mark(')' | ']' | '}') => depth -= 1,
            _ if token.is("INTO") && next(1).is_some_and(|next| next.is("OUTFILE")) => {
                statement.verb = Verb::Refused(
                    "only the command line client supports INTO OUTFILE: fusebox returns the answer to the caller",
                );
            }
            _ if token.is("PROCESSLIST") && first.is("SHOW") => statement.volatile = true,
            _ => {}
        }
        let named = |is: fn(&str) -> bool| token.name().is_some_and(|name| is(&name));
        statement.volatile |= match next(1) {
            Some(Token::Mark('.')) => named(is_server_state),
            Some(Token::Mark('(')) => named(is_once_only),
            _ => false,
        };
        let rest = tokens.get(index + 1..).unwrap_or_default();
        if depth == 0 && token.is("SETTINGS") && !is_clause_seen && begins_with_setting(rest) {
            // A column may be called so. The rest is read once, whatever is in it.
            is_clause_seen = true;
            statement.settings =
                settings(rest).into_iter().map_while(std::convert::identity).collect();
        }
        if depth == 0
            && token.is("FORMAT")
            && let Some((Token::Word(format), behind)) = rest.split_first()
            && (behind.is_empty() || behind.first().is_some_and(|token| token.is("SETTINGS")))
        {
            statement.format = Some((*format).to_owned());
        }
    }
    Ok(statement)
}

/// Whether the first of [`settings`] is one. Two tokens say so: a text may have the word SETTINGS everywhere.
fn begins_with_setting(tokens: &[Token<'_>]) -> bool {
    let is_name = |token: Token<'_>| !token.is_any(BEHIND_SETTINGS) && token.name().is_some();
    match *tokens {
        [name] => is_name(name),
        [name, next, ..] => {
            is_name(name)
                && (matches!(next, Token::Mark('=' | ',')) || next.is_any(BEHIND_SETTINGS))
        }
        [] => false,
    }
}

/// The settings of a clause `SETTINGS a = 1, b = 'x', c`, whose first word is passed already; a name alone is 1.
/// `None` for whatever is not a setting.
fn settings(tokens: &[Token<'_>]) -> Vec<Option<(String, String)>> {
    let mut found = Vec::new();
    let mut rest = tokens;
    while !rest.is_empty() {
        let mut depth = 0_i64;
        let ends = |token: &Token<'_>| {
            match token {
                Token::Mark('(' | '[' | '{') => depth += 1,
                Token::Mark(')' | ']' | '}') => depth -= 1,
                _ => {}
            }
            depth == 0 && (*token == Token::Mark(',') || token.is_any(BEHIND_SETTINGS))
        };
        let end = rest.iter().position(ends).unwrap_or(rest.len());
        let (setting, behind) = rest.split_at_checked(end).unwrap_or((rest, &[]));
        found.push(match setting {
            [name] => name.name().map(|name| (name, "1".to_owned())),
            [name, Token::Mark('='), value @ ..] => {
                let mut written = String::new();
                for token in value {
                    token.write(&mut written);
                }
                name.name().map(|name| (name, written))
            }
            _ => None,
        });
        match behind {
            [Token::Mark(','), behind @ ..] => rest = behind,
            _ => break,
        }
    }
    found
}

/// An INSERT, once its first word is passed.
fn insert(mut lexer: Lexer<'_>, mut statement: Statement, len: usize) -> Result<Statement, Unread> {
    let table = table(&mut lexer)?;
    let (mut rows, mut head) = (Rows::FollowUnnamed, len);
    let mut depth = 0_i64;
    let mut clause = Vec::new();
    let mut in_settings = false;
    let mut before = None;
    while let Some(token) = lexer.next()? {
        statement.elsewhere |= before.is_some_and(|before| reach::names(before, token));
        before = Some(token);
        match token {
            Token::Mark('(' | '[' | '{') => {
                depth += 1;
                let inner = lexer.clone().next()?;
                if inner.is_some_and(|inner| inner.is_any(&["SELECT", "WITH"])) {
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
            _ if token.is("SETTINGS") => {
                in_settings = true;
                continue;
            }
            _ => {}
        }
        if in_settings {
            clause.push(token);
        }
    }
    let settings = settings(&clause);
    statement.has_unread_settings = settings.iter().any(Option::is_none);
    statement.settings = settings.into_iter().flatten().collect();
    statement.verb = Verb::Insert(Insert { table, rows, head });
    Ok(statement)
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
    let Some(first) = token.and_then(Token::name) else { return Ok(None) };
    let mut parts = vec![first];
    while lexer.clone().next()? == Some(Token::Mark('.')) {
        lexer.next()?;
        let Some(part) = lexer.next()?.and_then(Token::name) else { return Ok(None) };
        parts.push(part);
    }
    let name = parts.pop();
    let database = parts.pop();
    Ok(name.filter(|_| parts.is_empty()).map(|name| Table { database, name }))
}

#[cfg(test)]
mod tests;
