//! Every code of an error is on the page of the HTTP API.

use std::collections::BTreeMap;

use super::source::Sources;

/// What is before a code in the sources: its text follows, and a quote ends it.
const BEFORE: &[&str] = &[
    "ErrorCode::OfKind(\"",
    "code: \"",
    "not_found(\"",
    "refuse(\"",
    "refused(\"",
    " error(\"",
    "..error(\"",
    "(CallErrorKind::Conflict, \"",
    "(CallErrorKind::Full, \"",
    "(CallErrorKind::Malformed, \"",
    "(CallErrorKind::Refused, \"",
    "(CallErrorKind::TimedOut, \"",
    "(CallErrorKind::Unavailable, \"",
];
/// The files whose words are codes, each behind its variant.
const LISTS: &[&str] = &["actors/src/error_code.rs", "actors/src/passage.rs"];
/// Files whose errors no caller sees.
const INTERNAL: &[&str] = &["actors/src/simulation", "src/demo", "src/kinds/*/stand_in"];

/// The codes in `sources` that `page` does not have, each with a file that makes it.
pub(super) fn missing(sources: &Sources, page: &str) -> Vec<String> {
    let shown = sources.iter().filter(|(path, _)| {
        !path.starts_with("state/") && !INTERNAL.iter().any(|area| super::is_in(path, area))
    });
    let mut codes = BTreeMap::new();
    for (path, text) in shown {
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
        let lists = LISTS.contains(&path.as_str()).then_some(&" => \"");
        for before in BEFORE.iter().chain(lists) {
            let words = code.split(before).skip(1).filter_map(|rest| Some(rest.split_once('"')?.0));
            codes.extend(words.filter(|word| is_code(word)).map(|word| (word, path)));
        }
    }
    assert!(codes.len() > 20 || sources.len() < 5, "only {codes:?}");
    codes
        .iter()
        .filter(|(code, _)| !page.contains(&format!("`{code}`")))
        .map(|(code, path)| format!("{path}: the page of the HTTP API has no `{code}`"))
        .collect()
}

/// Whether `word` has the form of fusebox's own codes. Those of servers have capitals or digits.
fn is_code(word: &str) -> bool {
    word.len() > 1 && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
}

#[test]
fn a_code_that_is_not_on_the_page_is_found() {
    let error = "Err(Refused { code: \"too_odd\", x })\n..error(\"even\", y)\nerror.code == \"not_one\"\n\
         A => (CallErrorKind::Full, \"too_full\"),";
    let sources = Sources::from([
        ("src/a.rs".into(), error.into()),
        ("actors/src/passage.rs".into(), "Self::A => \"of_a\", ErrorCode::OfKind(\"WORD\")".into()),
    ]);
    assert_eq!(
        missing(&sources, "| 503 | `even` |"),
        [
            "actors/src/passage.rs: the page of the HTTP API has no `of_a`",
            "src/a.rs: the page of the HTTP API has no `too_full`",
            "src/a.rs: the page of the HTTP API has no `too_odd`"
        ]
    );
}
