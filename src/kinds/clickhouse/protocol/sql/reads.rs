//! A read, from its first word to its end.
//!
//! Its tokens are looked at one after the other, and none is kept: a token takes many times its length.

use super::{
    super::{
        lexer::{Lexer, Token, Unread},
        reach,
    },
    settings,
    volatile::{Calls, is_once_only, is_server_state},
};

/// What is known of it.
#[expect(clippy::struct_excessive_bools, reason = "independent facts about one statement")]
#[derive(Debug, Default)]
pub(super) struct Rest {
    /// Another server is named.
    pub(super) elsewhere: bool,
    /// Another statement follows.
    pub(super) is_followed: bool,
    /// The answer is to go into a file of the client's.
    pub(super) to_file: bool,
    /// An answer from a cache would be wrong.
    pub(super) volatile: bool,
    /// A parameter may be the name of a database.
    pub(super) takes_names: bool,
    /// The settings that it sets, up to what is none.
    pub(super) settings: Vec<(String, String)>,
    /// The format that it names.
    pub(super) format: Option<String>,
}

/// Reads what follows the `first` word of a read, which is in so many `brackets`.
pub(super) fn rest<'a>(
    mut lexer: Lexer<'a>,
    first: Token<'a>,
    brackets: usize,
) -> Result<Rest, Unread> {
    let mut rest = Rest { volatile: first.is("CHECK"), ..Rest::default() };
    let mut depth = i64::try_from(brackets).unwrap_or(i64::MAX);
    let (mut before, mut calls) = (first, Calls::default());
    let (mut is_over, mut is_clause_seen) = (false, false);
    while let Some(token) = lexer.next()? {
        rest.elsewhere |= reach::names(before, token);
        let before = std::mem::replace(&mut before, token);
        if is_over || token == Token::Mark(';') {
            is_over = true;
            rest.is_followed |= token != Token::Mark(';');
            continue;
        }
        calls.pass(before, token);
        let named = |is: fn(&str) -> bool| before.name().is_some_and(|name| is(&name));
        rest.volatile |= match token {
            Token::Mark('.') => named(is_server_state),
            Token::Mark('(') => named(is_once_only),
            _ => token.is("PROCESSLIST") && first.is("SHOW"),
        };
        rest.to_file |= before.is("INTO") && token.is("OUTFILE");
        rest.takes_names |= token == Token::Word("Identifier");
        match token {
            Token::Mark('(' | '[' | '{') => depth += 1,
            Token::Mark(')' | ']' | '}') => depth -= 1,
            _ if depth != 0 => {}
            // A column may be called so. The clause is read once, whatever is in it.
            _ if token.is("SETTINGS") && !is_clause_seen && settings::begins(lexer.clone()) => {
                is_clause_seen = true;
                let found = settings::of_clause(lexer.clone(), settings::BEHIND);
                rest.settings = found.into_iter().map_while(std::convert::identity).collect();
            }
            _ if token.is("FORMAT") => rest.format = last_format(lexer.clone()).or(rest.format),
            _ => {}
        }
    }
    rest.volatile |= calls.names_state;
    rest.takes_names |= calls.is_made;
    Ok(rest)
}

/// The name behind FORMAT, if nothing but SETTINGS follows it.
fn last_format(mut lexer: Lexer<'_>) -> Option<String> {
    let Ok(Some(Token::Word(format))) = lexer.next() else { return None };
    let is_last = match lexer.next() {
        Ok(Some(token)) => token == Token::Mark(';') || token.is("SETTINGS"),
        Ok(None) => true,
        Err(_) => false,
    };
    is_last.then(|| format.to_owned())
}
