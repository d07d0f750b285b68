//! Cuts SQL into words, quoted names, texts and marks; comments and white space fall out.
//!
//! Just enough of ClickHouse's own lexer to tell what a statement is: the Unicode spaces that it passes over (as
//! tried on 26.7; the server of 2018 refuses them), nested `/* */`, `--`, `//`, `#!` and `# ` comments, `'…'` with
//! backslashes and doubled quotes, `` `…` `` and `"…"`, heredocs (`$tag$…$tag$`). It yields tokens one by one, because
//! what follows VALUES or FORMAT in an INSERT is data, no SQL, and must not be looked at.

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

/// A quote, comment or heredoc that does not end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unterminated;

/// The tokens of a text, from its beginning.
#[derive(Clone, Debug)]
pub(crate) struct Lexer<'a> {
    rest: &'a str,
}

impl<'a> Lexer<'a> {
    /// The tokens of `text`.
    pub(crate) fn new(text: &'a str) -> Self {
        Self { rest: text }
    }

    /// What has not been cut yet.
    pub(crate) fn rest(&self) -> &'a str {
        self.rest
    }

    /// The next token; `None` at the end.
    pub(crate) fn next(&mut self) -> Result<Option<Token<'a>>, Unterminated> {
        self.skip_blank()?;
        let Some(first) = self.rest.chars().next() else { return Ok(None) };
        let token = match first {
            '\'' => Token::Text(self.take(quoted_len(self.rest, b'\'')?)),
            '`' => Token::Quoted(self.take(quoted_len(self.rest, b'`')?)),
            '"' => Token::Quoted(self.take(quoted_len(self.rest, b'"')?)),
            '$' if heredoc_tag(self.rest).is_some() => {
                Token::Text(self.take(heredoc_len(self.rest)?))
            }
            '0'..='9' => Token::Word(self.take(number_len(self.rest))),
            _ if is_word(first) => {
                let len = self.rest.find(|c| !is_word(c)).unwrap_or(self.rest.len());
                Token::Word(self.take(len))
            }
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

    fn skip_blank(&mut self) -> Result<(), Unterminated> {
        loop {
            self.rest = self.rest.trim_start_matches(is_blank);
            let line = ["--", "//", "#!", "# "].iter().any(|mark| self.rest.starts_with(mark));
            if line {
                let len = self.rest.find('\n').unwrap_or(self.rest.len());
                self.take(len);
            } else if self.rest.starts_with("/*") {
                self.take(comment_len(self.rest)?);
            } else {
                return Ok(());
            }
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
    c.is_ascii_alphanumeric() || c == '_' || c == '$' || !c.is_ascii() && !is_blank(c)
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
fn quoted_len(text: &str, quote: u8) -> Result<usize, Unterminated> {
    let bytes = text.as_bytes();
    let mut at = 1;
    loop {
        match bytes.get(at) {
            None => return Err(Unterminated),
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

/// A comment's length; comments nest.
fn comment_len(text: &str) -> Result<usize, Unterminated> {
    let (mut depth, mut at) = (0_usize, 0);
    let bytes = text.as_bytes();
    loop {
        match (bytes.get(at), bytes.get(at + 1)) {
            (Some(b'/'), Some(b'*')) => {
                depth += 1;
                at += 2;
            }
            (Some(b'*'), Some(b'/')) => {
                depth -= 1;
                at += 2;
                if depth == 0 {
                    return Ok(at);
                }
            }
            (None, _) => return Err(Unterminated),
            _ => at += 1,
        }
    }
}

/// The `$tag$` with which `text` begins.
fn heredoc_tag(text: &str) -> Option<&str> {
    let len = text.get(1..)?.find('$')? + 2;
    let tag = text.get(..len)?;
    tag.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '$').then_some(tag)
}

fn heredoc_len(text: &str) -> Result<usize, Unterminated> {
    let tag = heredoc_tag(text).ok_or(Unterminated)?;
    let body = text.get(tag.len()..).ok_or(Unterminated)?;
    body.find(tag).map(|end| tag.len() + end + tag.len()).ok_or(Unterminated)
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

    fn tokens(text: &str) -> Result<Vec<String>, Unterminated> {
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
            "a /* x /* y */ z */ b",
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
        for text in ["'a", "`a", "\"a\\\"", "/* /* */", "$t$ $u$", "'a\\"] {
            assert_eq!(tokens(text), Err(Unterminated), "{text}");
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
