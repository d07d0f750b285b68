//! Paths of documents, collections and fields.
//!
//! A call names documents and collections below the database's root, `users/ada`; their full names are
//! made when it is sent, and taken apart when an answer comes back. A field's path is a word, or
//! several parted by `.`; what is not a simple word is between backquotes, as Firestore has it.

use std::borrow::Cow;

/// Firestore's limit on a name, in bytes.
const NAME_MAX: usize = 6 * 1024;

/// The most names in the path of a field that a mask has.
pub(crate) const MASK_NAMES_MAX: usize = 20;

/// Checks a document's path: pairs of a collection and a document.
///
/// # Errors
/// What it must be.
pub(crate) fn check_document(path: &str) -> Result<(), String> {
    match segments(path) {
        Some(count) if count.is_multiple_of(2) => Ok(()),
        _ => Err(format!("a document's path must be such as users/ada, got {path:?}")),
    }
}

/// Checks a collection's path: as a document's, and a collection's name after it.
///
/// # Errors
/// What it must be.
pub(crate) fn check_collection(path: &str) -> Result<(), String> {
    match segments(path) {
        Some(count) if !count.is_multiple_of(2) => Ok(()),
        _ => Err(format!("a collection's path must be such as users, got {path:?}")),
    }
}

/// How many names the path has; `None` if one of them cannot be.
fn segments(path: &str) -> Option<usize> {
    let mut count = 0;
    for segment in path.split('/') {
        if segment.is_empty() || matches!(segment, "." | "..") || segment.len() > 1_500 {
            return None;
        }
        count += 1;
    }
    (path.len() <= NAME_MAX).then_some(count)
}

/// A path's parent and last name; the parent of a collection at the root is empty.
pub(crate) fn parent(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

/// The parts of a field's path, as a caller may write it: what is not a simple word needs no backquotes if it has no dot.
///
/// # Errors
/// It is none.
pub(crate) fn fields(path: &str) -> Result<Vec<String>, String> {
    parts(path, |_| true)
}

/// The parts of a field's path, as Firestore itself takes it.
///
/// # Errors
/// It is none.
pub(crate) fn exact_fields(path: &str) -> Result<Vec<String>, String> {
    parts(path, is_simple)
}

/// The parts of a field's path. `is_plain` is whether a name needs no backquotes.
fn parts(path: &str, is_plain: fn(&str) -> bool) -> Result<Vec<String>, String> {
    let wrong = || {
        format!(
            "a field's path must be such as a.b, with backquotes around other names, got {path:?}"
        )
    };
    let mut parts = Vec::new();
    let mut rest = path;
    loop {
        let (part, after) = if let Some(quoted) = rest.strip_prefix('`') {
            unquote(quoted).ok_or_else(wrong)?
        } else {
            let end = rest.find('.').unwrap_or(rest.len());
            let (part, after) = rest.split_at_checked(end).ok_or_else(wrong)?;
            if !is_plain(part) {
                return Err(wrong());
            }
            (part.to_owned(), after)
        };
        if part.is_empty() {
            return Err(wrong());
        }
        parts.push(part);
        if after.is_empty() {
            return Ok(parts);
        }
        rest = after.strip_prefix('.').ok_or_else(wrong)?;
    }
}

/// What is before the closing backquote, and what follows it. A backslash may be before a backquote or another
/// backslash; what else Firestore makes of one is not known here.
fn unquote(quoted: &str) -> Option<(String, &str)> {
    let mut part = String::new();
    let mut chars = quoted.char_indices();
    while let Some((index, c)) = chars.next() {
        match c {
            '`' => return Some((part, quoted.get(index + 1..)?)),
            '\\' => part.push(chars.next().map(|(_, c)| c).filter(|c| matches!(c, '`' | '\\'))?),
            c => part.push(c),
        }
    }
    None
}

/// Those of these paths that are not within another one, each of them once, in their order.
pub(crate) fn outermost(mut paths: Vec<Vec<String>>) -> Vec<Vec<String>> {
    // Sorted, a path is right before those that are within it.
    paths.sort_unstable();
    paths.dedup_by(|next, kept| next.starts_with(kept));
    paths
}

/// A field's path from its parts, in the form that Firestore compares.
pub(crate) fn field_path<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    let quoted: Vec<Cow<'_, str>> = parts.into_iter().map(quote).collect();
    quoted.join(".")
}

/// Whether a name needs no backquotes.
fn is_simple(part: &str) -> bool {
    part.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn quote(part: &str) -> Cow<'_, str> {
    if is_simple(part) {
        return Cow::Borrowed(part);
    }
    Cow::Owned(format!("`{}`", part.replace('\\', "\\\\").replace('`', "\\`")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_and_collections_are_told_apart() {
        for path in ["users/ada", "a/b/c/d"] {
            assert!(check_document(path).is_ok() && check_collection(path).is_err(), "{path}");
        }
        for path in ["users", "a/b/c"] {
            assert!(check_document(path).is_err() && check_collection(path).is_ok(), "{path}");
        }
        for path in ["", "/", "a//b", "a/..", "users/", "/users/ada"] {
            assert!(check_document(path).is_err() && check_collection(path).is_err(), "{path}");
        }
        assert_eq!(parent("a/b/c"), ("a/b", "c"));
        assert_eq!(parent("a"), ("", "a"));
    }

    #[test]
    fn field_paths_come_apart_and_together() {
        for (path, parts) in [
            ("a", vec!["a"]),
            ("a.b_1", vec!["a", "b_1"]),
            ("`a.b`.c", vec!["a.b", "c"]),
            (r"`a\`b\\`", vec![r"a`b\"]),
            ("`1`", vec!["1"]),
        ] {
            assert_eq!(fields(path).unwrap(), parts);
            assert_eq!(exact_fields(path).unwrap(), parts);
            assert_eq!(field_path(parts), path);
        }
        for path in ["", ".", "a.", ".a", "`a", "`a`b", "a..b", r"`a\x`", r"`a\`"] {
            assert!(fields(path).is_err() && exact_fields(path).is_err(), "{path}");
        }
        assert_eq!(fields("1.é").unwrap(), ["1", "é"], "on input other names need no backquotes");
        assert!(exact_fields("1.é").is_err());
    }

    #[test]
    fn of_paths_within_one_another_the_outermost_are_left() {
        let all = ["b.c.d", "a", "b.c", "a", "ab", "a.b", "b.c.e", "b.d"];
        let paths = all.iter().map(|path| fields(path).unwrap()).collect();
        let left = outermost(paths).into_iter().map(|parts| parts.join("."));
        assert_eq!(left.collect::<Vec<_>>(), ["a", "ab", "b.c", "b.d"]);
    }
}
