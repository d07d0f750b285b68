//! Cuts SQL into words, quoted names, texts and marks; comments and white space fall out.
//!
//! Just enough of ClickHouse's own lexer to tell what a statement is: the Unicode spaces that it passes over (as
//! tried on 26.7; the server of 2018 refuses them), `/* */`, `--`, `//`, `#!` and `# ` comments, `'…'` with
//! backslashes and doubled quotes, `` `…` `` and `"…"`, heredocs (`$tag$…$tag$`). It yields tokens one by one, because
//! what follows VALUES or FORMAT in an INSERT is data, no SQL, and must not be looked at.
//!
//! What is cut differently by some release is [not read](Unread::Unclear): typographic quotes, which quote since 24.5;
//! comments within comments, which the server of 2018 does not know; heredocs with other tags; and numbers before `--`
//! whose exponent may have a sign.

/// One token; the text is as in the query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Token<'a> {
    /// A bare word: a keyword, a name or a number.
    Word(&'a str),
    /// A name in backticks or double quotes, with them.
    Quoted(&'a str),
    /// A text in single quotes or a heredoc, with its marks.
    Text(&'a str),
    /// Any other character.
    Mark(char),
}

impl<'a> Token<'a> {
    /// Whether this is the bare word `keyword`, in whatever case.
    pub(crate) fn is(self, keyword: &str) -> bool {
        matches!(self, Token::Word(word) if word.eq_ignore_ascii_case(keyword))
    }

    /// Whether this is one of the bare words `keywords`.
    pub(crate) fn is_any(self, keywords: &[&str]) -> bool {
        keywords.iter().any(|keyword| self.is(keyword))
    }

    /// The name that this is, unquoted.
    pub(crate) fn name(self) -> Option<String> {
        match self {
            Token::Word(word) => Some(word.to_owned()),
            Token::Quoted(quoted) => Some(unquoted(quoted)),
            Token::Text(_) | Token::Mark(_) => None,
        }
    }

    /// The token as in the query.
    pub(crate) fn write(self, out: &mut String) {
        match self {
            Token::Word(text) | Token::Quoted(text) | Token::Text(text) => out.push_str(text),
            Token::Mark(mark) => out.push(mark),
        }
    }

    /// The text of a bare word.
    pub(crate) fn word(self) -> Option<&'a str> {
        match self {
            Token::Word(word) => Some(word),
            _ => None,
        }
    }
}

/// Why a text is not read on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unread {
    /// A quote, comment or heredoc does not end: no server takes that.
    Unterminated,
    /// What follows depends on the server.
    Unclear,
}

/// The tokens of a text, from its beginning.
#[derive(Clone, Debug)]
pub(crate) struct Lexer<'a> {
    rest: &'a str,
    has_passed_comment: bool,
}

impl<'a> Lexer<'a> {
    /// The tokens of `text`.
    pub(crate) fn new(text: &'a str) -> Self {
        Self { rest: text, has_passed_comment: false }
    }

    /// Whether a comment has fallen out.
    pub(crate) fn has_passed_comment(&self) -> bool {
        self.has_passed_comment
    }

    /// What has not been cut yet.
    pub(crate) fn rest(&self) -> &'a str {
        self.rest
    }

    /// The next token; `None` at the end.
    pub(crate) fn next(&mut self) -> Result<Option<Token<'a>>, Unread> {
        self.skip_blank()?;
        let Some(first) = self.rest.chars().next() else { return Ok(None) };
        let token = match first {
            '\'' => Token::Text(self.take(quoted_len(self.rest, b'\'')?)),
            '`' => Token::Quoted(self.take(quoted_len(self.rest, b'`')?)),
            '"' => Token::Quoted(self.take(quoted_len(self.rest, b'"')?)),
            '$' if self.rest.get(1..).is_some_and(|rest| rest.contains('$')) => {
                Token::Text(self.take(heredoc_len(self.rest)?))
            }
            '0'..='9' => {
                let number = self.take(number_len(self.rest));
                // `1e-` before `-`, and `0x1p` before `--`.
                let may_be_comment = match number.chars().next_back() {
                    Some('-') => self.rest.starts_with('-'),
                    Some('p' | 'P') => self.rest.starts_with("--"),
                    _ => false,
                };
                if may_be_comment {
                    return Err(Unread::Unclear);
                }
                Token::Word(number)
            }
            '#' => return Err(Unread::Unclear),
            quote if is_typographic(quote) => return Err(Unread::Unclear),
            _ if is_word(first) => Token::Word(self.take(word_len(self.rest))),
            mark => {
                self.take(mark.len_utf8());
                Token::Mark(mark)
            }
        };
        Ok(Some(token))
    }

    fn take(&mut self, len: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at_checked(len).unwrap_or((self.rest, ""));
        self.rest = rest;
        taken
    }

    fn skip_blank(&mut self) -> Result<(), Unread> {
        loop {
            self.rest = self.rest.trim_start_matches(is_blank);
            let len = match self.rest.as_bytes() {
                [b'-', b'-', ..] | [b'/', b'/', ..] | [b'#', b'!' | b' ', ..] => {
                    Ok(self.rest.find('\n').unwrap_or(self.rest.len()))
                }
                [b'/', b'*', ..] => comment_len(self.rest),
                _ => return Ok(()),
            };
            self.has_passed_comment = true;
            self.take(len?);
        }
    }
}

/// What the server passes over between two words.
pub(crate) fn is_blank(c: char) -> bool {
    matches!(
        c,
        ' ' | '\t'..='\r' | '\u{85}' | '\u{a0}' | '\u{180e}' | '\u{2000}'..='\u{200d}' | '\u{2028}'
            | '\u{2029}' | '\u{202f}' | '\u{205f}' | '\u{2060}' | '\u{3000}' | '\u{feff}'
    )
}

fn is_word(c: char) -> bool {
    let is_other = || !c.is_ascii() && !is_blank(c) && !is_typographic(c);
    c.is_ascii_alphanumeric() || c == '_' || c == '$' || is_other()
}

fn word_len(text: &str) -> usize {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$');
    let end = text.bytes().position(|byte| !is_plain(byte)).unwrap_or(text.len());
    match text.as_bytes().get(end) {
        Some(byte) if !byte.is_ascii() => text.find(|c| !is_word(c)).unwrap_or(text.len()),
        _ => end,
    }
}

/// Quotes for servers since 24.5.
fn is_typographic(c: char) -> bool {
    matches!(c, '\u{2018}' | '\u{2019}' | '\u{201c}' | '\u{201d}')
}

/// A number's length, with fraction and exponent: `1`, `0x1F`, `1.5e-3`.
fn number_len(text: &str) -> usize {
    let mut before = ' ';
    text.find(|c: char| {
        let exponent = matches!(c, '+' | '-') && matches!(before, 'e' | 'E');
        before = c;
        !(c.is_ascii_alphanumeric() || c == '_' || c == '.' || exponent)
    })
    .unwrap_or(text.len())
}

/// A quoted text's length with its quotes: a backslash takes the next character with it, a doubled quote
/// is one that belongs to the text.
fn quoted_len(text: &str, quote: u8) -> Result<usize, Unread> {
    let bytes = text.as_bytes();
    let mut at = 1;
    loop {
        match bytes.get(at) {
            None => return Err(Unread::Unterminated),
            Some(b'\\') => at += 2,
            Some(byte) if *byte == quote => {
                if bytes.get(at + 1) != Some(&quote) {
                    return Ok(at + 1);
                }
                at += 2;
            }
            Some(_) => at += 1,
        }
    }
}

/// A comment's length. In some releases comments nest.
fn comment_len(text: &str) -> Result<usize, Unread> {
    let inner = text.get(2..).unwrap_or_default();
    let end = inner.find("*/").ok_or(Unread::Unterminated)?;
    let is_nested = inner.get(..=end).is_some_and(|comment| comment.contains("/*"));
    if is_nested { Err(Unread::Unclear) } else { Ok(2 + end + 2) }
}

/// The length of a heredoc that begins with `$tag$`. If the tag does not come again, it is a word to a server.
fn heredoc_len(text: &str) -> Result<usize, Unread> {
    let (_, behind) = text.split_at_checked(1).unwrap_or_default();
    let len = behind.find('$').ok_or(Unread::Unterminated)? + 2;
    let (tag, body) = text.split_at_checked(len).ok_or(Unread::Unterminated)?;
    if !tag.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$')) {
        return Err(Unread::Unclear);
    }
    body.find(tag).map(|end| len + end + len).ok_or(Unread::Unclear)
}

fn unquoted(quoted: &str) -> String {
    let mut chars = quoted.chars();
    let quote = chars.next();
    let mut name = String::with_capacity(quoted.len());
    while let Some(c) = chars.next() {
        match c {
            '\\' => name.extend(chars.next()),
            c if Some(c) == quote => match chars.next() {
                Some(doubled) => name.push(doubled),
                None => break,
            },
            c => name.push(c),
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(text: &str) -> Result<Vec<String>, Unread> {
        let mut lexer = Lexer::new(text);
        let mut found = Vec::new();
        while let Some(token) = lexer.next()? {
            let mut text = String::new();
            token.write(&mut text);
            found.push(text);
        }
        Ok(found)
    }

    #[test]
    fn comments_and_white_space_fall_out() {
        for text in [
            "a b",
            "  a\n\tb ",
            "a--x\nb",
            "a /* x * y / z */ b",
            "#! sh\na b",
            "# x\na b -- end",
            "a/**/b",
            "a // x\nb",
            "\u{feff}a\u{a0}b\u{2028}",
            "a\u{b}b\u{200b}\u{3000}",
        ] {
            assert_eq!(tokens(text).unwrap(), ["a", "b"], "{text}");
        }
    }

    #[test]
    fn quotes_hide_what_stands_in_them() {
        assert_eq!(
            tokens(r"'a''b\'c' `d``e` x$y $t$ -- ' $t$ 1.5e-3+2").unwrap(),
            [r"'a''b\'c'", "`d``e`", "x$y", "$t$ -- ' $t$", "1.5e-3", "+", "2"]
        );
        assert_eq!(tokens("'ä' größe→").unwrap(), ["'ä'", "größe→"]);
    }

    #[test]
    fn what_does_not_end_is_an_error() {
        for text in ["'a", "`a", "\"a\\\"", "/* *", "'a\\"] {
            assert_eq!(tokens(text), Err(Unread::Unterminated), "{text}");
        }
    }

    #[test]
    fn what_servers_cut_in_different_ways_is_an_error() {
        for text in [
            "url = \u{2018}http://a\u{2019} AND u = 1",
            "a\u{201c}b\u{201d}",
            "/* /* */ b */",
            "/*/* */",
            "$t$ $u$",
            "$-$ -- $-$",
            "$a b$ -- $a b$",
            "0xe--1\n",
            "x.1e--1\n",
            "0x1p--1\n",
            "1_0E--1\n",
            "#a",
        ] {
            assert_eq!(tokens(text), Err(Unread::Unclear), "{text}");
        }
        for text in [
            "'\u{2018}'",
            "`\u{201c}`",
            "-- \u{2018}\n1",
            "/* \u{2018} $-$ */1",
            "$a",
            "1e-1",
            "1e - -1",
            "a--b",
        ] {
            assert!(tokens(text).is_ok(), "{text}");
        }
    }

    #[test]
    fn a_quoted_name_is_unquoted() {
        let name = |text| Lexer::new(text).next().unwrap().unwrap().name().unwrap();
        assert_eq!(name("`a``b`"), "a`b");
        assert_eq!(name(r#""a\"b""#), "a\"b");
        assert_eq!(name("plain"), "plain");
    }
}
