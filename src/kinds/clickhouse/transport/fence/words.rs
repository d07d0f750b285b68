//! Ids of queries, in statements and in answers.

/// The bytes of conditions in one statement, if there is more than one condition. A server takes statements of 256 KiB,
/// unless it is configured to take less.
pub(super) const CONDITIONS_MAX: usize = 16 << 10;

/// The condition that a query has this id.
pub(crate) fn is_query(id: &str) -> String {
    format!("query_id = {}", quoted(id))
}

/// The conditions of the first of `ids`, of which one is enough, in a text of bounded length; and of how many ids they
/// are. What a condition says may depend on when it is sent, so those of the next statement are made later.
pub(super) fn any_of(ids: &[String], condition: impl Fn(&String) -> String) -> (String, usize) {
    let (mut any, mut count) = (String::new(), 0);
    for id in ids {
        let one = condition(id);
        if count > 0 {
            if any.len() + one.len() > CONDITIONS_MAX {
                break;
            }
            any.push_str(" OR ");
        }
        any.push_str(&one);
        count += 1;
    }
    (any, count)
}

/// An id as a text of SQL. What a client gave may hold anything.
fn quoted(id: &str) -> String {
    let mut text = String::with_capacity(id.len() + 2);
    text.push('\'');
    for c in id.chars() {
        if matches!(c, '\'' | '\\') {
            text.push('\\');
        }
        text.push(c);
    }
    text.push('\'');
    text
}

/// A field of a `TabSeparated` line as the text that it encodes; `None` for an escape that is not known here.
pub(super) fn unescaped(field: &str) -> Option<String> {
    let mut text = String::with_capacity(field.len());
    let mut rest = field.chars();
    while let Some(c) = rest.next() {
        text.push(match c {
            '\\' => match rest.next()? {
                't' => '\t',
                'n' => '\n',
                'r' => '\r',
                'b' => '\u{8}',
                'f' => '\u{c}',
                '0' => '\0',
                other @ ('\\' | '\'') => other,
                _ => return None,
            },
            other => other,
        });
    }
    Some(text)
}

/// What the ids of the queries of `instance` begin with.
pub(super) fn prefix_of(instance: &str) -> String {
    format!("fusebox:{}:", word(instance))
}

/// A part of a query's id: no space, quote or colon.
pub(super) fn word(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_quoted_and_read_as_it_is() {
        let id = "it's\\mine\t";
        assert_eq!(is_query(id), "query_id = 'it\\'s\\\\mine\t'");
        assert_eq!(unescaped("it\\'s\\\\mine\\t").as_deref(), Some(id));
        assert_eq!((unescaped("\\x"), unescaped("\\")), (None, None));
    }

    #[test]
    fn no_statement_is_longer_than_a_server_takes() {
        let long = "x".repeat(4 << 10);
        let ids: Vec<String> = (0..9).map(|number| format!("{number}{long}")).collect();
        let (mut left, mut statements) = (&ids[..], Vec::new());
        while !left.is_empty() {
            let (any, count) = any_of(left, |id| is_query(id));
            statements.push(any);
            left = &left[count..];
        }
        assert_eq!(statements.len(), 3);
        let conditions = statements.iter().flat_map(|statement| statement.split(" OR "));
        let ids: Vec<String> = conditions.map(|condition| condition[12..13].to_owned()).collect();
        assert_eq!(ids.concat(), "012345678");
        assert!(statements.iter().all(|statement| statement.len() < CONDITIONS_MAX + 9));
        let longer = ["x".repeat(CONDITIONS_MAX), "y".to_owned()];
        assert_eq!(any_of(&longer, |id| is_query(id)).1, 1, "one that is longer is alone");
    }
}
