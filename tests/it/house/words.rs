//! Words that make sentences hard to read, counted in all comments and pages.
//!
//! `where` says a place; a condition is said by `if`, a time by `when`. The others are the marks of a word order that
//! is not English.

use super::{
    pages::{Pages, prose, without_code},
    source::Sources,
};

/// A word, and how often it may be there.
const WORDS: &[(&str, usize)] =
    &[("where", 20), ("anew", 5), ("bears", 5), ("stands", 5), ("lies", 5), ("told", 5)];

/// The words that are there too often, with the places.
pub(super) fn complaints(sources: &Sources, pages: &Pages) -> Vec<String> {
    let mut lines: Vec<(String, String)> = Vec::new();
    for (path, text) in sources {
        let comments = text.lines().enumerate();
        let comments = comments.filter_map(|(at, line)| Some((at, comment(line)?)));
        lines.extend(comments.map(|(at, text)| (format!("{path}:{}", at + 1), without_code(text))));
    }
    for (path, text) in pages {
        let prose = prose(text).map(|(at, line)| (format!("{path}:{at}"), without_code(line)));
        lines.extend(prose);
    }
    let too_often = WORDS.iter().filter_map(|(word, most)| {
        let places: Vec<&str> = lines
            .iter()
            .flat_map(|(place, line)| vec![place.as_str(); times(word, line)])
            .collect();
        let count = places.len();
        (count > *most).then(|| {
            format!(
                "{word:?} is there {count} times, at most {most} are wanted: {}",
                places.join(" ")
            )
        })
    });
    too_often.collect()
}

/// The comment in a line of code: what follows the first `//` that is neither in a text nor in an address.
fn comment(line: &str) -> Option<&str> {
    let begins = |code: &str| !code.ends_with(':') && code.matches('"').count().is_multiple_of(2);
    let at = line.match_indices("//").find(|(at, _)| begins(&line[..*at]))?.0;
    Some(&line[at + 2..])
}

fn times(word: &str, line: &str) -> usize {
    let words = line.split(|c: char| !c.is_alphanumeric() && c != '_');
    words.filter(|other| other.eq_ignore_ascii_case(word)).count()
}

#[test]
fn a_word_that_is_there_too_often_is_found() {
    let text =
        "//! Told, told.\n/// It is told `told`.\nlet told = \"// told\"; // as told\n// retold\n";
    let sources = Sources::from([("src/a.rs".into(), text.into())]);
    let page = "told\n```\ntold\n```\n";
    let pages = Pages::from([("a.md".into(), page.into())]);
    assert!(complaints(&sources, &Pages::new()).is_empty());
    let mut more = sources.clone();
    more.insert("tests/b.rs".into(), "// told\n".into());
    assert_eq!(
        complaints(&more, &pages),
        [
            "\"told\" is there 6 times, at most 5 are wanted: src/a.rs:1 src/a.rs:1 src/a.rs:2 src/a.rs:3 \
          tests/b.rs:1 a.md:1"
        ]
    );
}
