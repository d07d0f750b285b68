//! What follows VALUES, or behind the name of a format: rows, as far as they are no statement.
//!
//! A server reads an INSERT up to there. Then it looks for `PARALLEL WITH` and another statement, as it does behind
//! every statement, and passes over blanks and comments. Before that it looks for a clause of settings, if it has to
//! (`allow_settings_after_format_in_insert`, which may be in a profile).

use super::super::lexer::{Lexer, Token, Unread};

const SETTINGS: &str = "SETTINGS";
const PARALLEL: &str = "PARALLEL";
const WITH: &str = "WITH";

/// What is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Behind {
    /// Rows, or nothing.
    Rows,
    /// `PARALLEL WITH`.
    Statement,
    /// One or the other: that is not here, or servers do not agree on it.
    Unread,
}

/// Looks at what follows the head of an INSERT; `is_cut` says that there is more of it.
pub(super) fn behind(rest: &str, is_cut: bool) -> Behind {
    let mut lexer = Lexer::new(rest);
    let (mut is_first, mut is_clause, mut is_parallel) = (true, false, false);
    loop {
        let token = match lexer.next() {
            Ok(Some(token)) => token,
            Ok(None) => return if is_cut { Behind::Unread } else { Behind::Rows },
            Err(why) => {
                // Whatever else is not read is no keyword, and no server goes on behind what does not end.
                let may_be_comment =
                    lexer.rest().starts_with("/*") || is_cut && lexer.rest() == "#";
                let may_go_on = is_clause || may_be_comment;
                let ends = why == Unread::Unclear || is_cut;
                return if may_go_on && ends { Behind::Unread } else { Behind::Rows };
            }
        };
        if is_cut && lexer.rest().is_empty() && may_go_on(token) {
            return Behind::Unread;
        }
        if is_parallel && token.is(WITH) {
            return Behind::Statement;
        }
        is_clause |= is_first && token.is(SETTINGS) && may_be_clause(lexer.clone(), is_cut);
        is_parallel = (is_first || is_clause) && token.is(PARALLEL);
        if !is_clause && !is_parallel {
            return Behind::Rows;
        }
        is_first = false;
    }
}

/// Whether a clause may follow the word SETTINGS, which is passed: a name, alone or with its value. A column of the rows
/// may be called so, too.
fn may_be_clause(mut lexer: Lexer<'_>, is_cut: bool) -> bool {
    let mut next = || {
        let token = lexer.next().ok().flatten();
        // The last one may go on.
        token.filter(|_| !(is_cut && lexer.rest().is_empty()))
    };
    match (next(), next()) {
        (Some(Token::Mark(mark)), _) => mark == '{',
        (Some(_), Some(second)) => matches!(second, Token::Mark(_)) || second.is(PARALLEL),
        _ => true,
    }
}

/// Whether the last token of a text that is cut off may be the beginning of a word that is looked for, or of a comment.
fn may_go_on(token: Token<'_>) -> bool {
    match token {
        Token::Word(word) => [SETTINGS, PARALLEL, WITH].iter().any(|keyword| {
            keyword.get(..word.len()).is_some_and(|beginning| beginning.eq_ignore_ascii_case(word))
        }),
        Token::Mark(mark) => matches!(mark, '-' | '/'),
        Token::Quoted(_) | Token::Text(_) => false,
    }
}
