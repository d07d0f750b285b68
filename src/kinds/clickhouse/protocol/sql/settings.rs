//! The clause of settings in a statement: `SETTINGS a = 1, b = 'x', c`.

use super::super::lexer::{Lexer, Token};

/// How much of a clause is read, in bytes: much more than all settings of a server. What is read is held in pieces, each
/// of which takes many times its length.
pub(super) const LEN_MAX: usize = 64 << 10;
/// What ends the clause of a read.
pub(super) const BEHIND: &[&str] = &["FORMAT", "VALUES", "SELECT", "WITH"];
/// What ends the clause of an INSERT.
pub(super) const BEFORE_ROWS: &[&str] = &["FORMAT", "VALUES", "SELECT", "WITH", "WATCH", "FROM"];

/// A setting with its value as written; `None` for what is none.
pub(super) type Setting = Option<(String, String)>;

/// A setting as far as it was read.
#[derive(Default)]
struct Piece<'a> {
    name: Option<Token<'a>>,
    tokens: usize,
    value: String,
    is_wrong: bool,
}

impl<'a> Piece<'a> {
    fn add(&mut self, token: Token<'a>) {
        match self.tokens {
            0 => self.name = Some(token),
            1 => self.is_wrong = token != Token::Mark('='),
            _ => token.write(&mut self.value),
        }
        self.tokens += 1;
    }

    /// A name alone is 1.
    fn ended(self) -> Setting {
        let Self { name, tokens, value, is_wrong } = self;
        let name = name.and_then(Token::name).filter(|_| !is_wrong)?;
        Some((name, if tokens == 1 { "1".to_owned() } else { value }))
    }
}

/// Whether the first thing of a clause, whose first word is passed, is a setting. Two tokens say so: a text may have the
/// word SETTINGS everywhere.
pub(super) fn begins(mut lexer: Lexer<'_>) -> bool {
    let mut token = || lexer.next().ok().flatten().filter(|it| *it != Token::Mark(';'));
    let is_name =
        |it: Token<'_>| matches!(it, Token::Word(_) | Token::Quoted(_)) && !it.is_any(BEHIND);
    token().is_some_and(is_name)
        && token().is_none_or(|it| matches!(it, Token::Mark('=' | ',')) || it.is_any(BEHIND))
}

/// The settings of a clause, whose first word is passed, up to one of the words `ends`. What is beyond [`LEN_MAX`] is
/// not read.
pub(super) fn of_clause(mut lexer: Lexer<'_>, ends: &[&str]) -> Vec<Setting> {
    let len = lexer.rest().len();
    let (mut found, mut piece, mut depth) = (Vec::new(), Piece::default(), 0_i64);
    while let Ok(Some(token)) = lexer.next() {
        if token == Token::Mark(';') {
            break;
        }
        if len.saturating_sub(lexer.rest().len()) > LEN_MAX {
            found.push(None);
            return found;
        }
        match token {
            Token::Mark('(' | '[' | '{') => depth += 1,
            Token::Mark(')' | ']' | '}') => depth -= 1,
            _ => {}
        }
        let is_end = depth == 0 && token.is_any(ends);
        if is_end || depth == 0 && token == Token::Mark(',') {
            found.push(std::mem::take(&mut piece).ended());
        } else {
            piece.add(token);
        }
        if is_end {
            return found;
        }
    }
    if piece.tokens > 0 {
        found.push(piece.ended());
    }
    found
}
