//! The parts of an address that may hold a password.

/// An address taken apart: `scheme://[credentials@]place[?query]`. Only the scheme is never a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Parts<'u> {
    /// Letters, digits and `+-.`.
    pub(crate) scheme: &'u str,
    /// All before the last `@`: a password may hold an unescaped `/` or `@`.
    pub(crate) credentials: Option<&'u str>,
    /// Host, port and path.
    pub(crate) place: &'u str,
    /// All after the first `?`.
    pub(crate) query: Option<&'u str>,
}

impl<'u> Parts<'u> {
    /// The parts of `url`; `None` if it does not begin with a scheme.
    pub(crate) fn of(url: &'u str) -> Option<Self> {
        let (scheme, rest) = url.split_once("://")?;
        if scheme.is_empty()
            || !scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
        {
            return None;
        }
        let (rest, query) = rest.split_once('?').map_or((rest, None), |(a, b)| (a, Some(b)));
        let (credentials, place) =
            rest.rsplit_once('@').map_or((None, rest), |(a, b)| (Some(a), b));
        Some(Self { scheme, credentials, place, query })
    }

    /// Whether an `@` follows the `?`. Then place and query may be parts of a password that holds a `?`.
    pub(crate) fn is_ambiguous(&self) -> bool {
        self.query.is_some_and(|query| query.contains('@'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_taken_apart_and_says_where_it_may_mean_something_else() {
        let of = |url| {
            let parts = Parts::of(url).unwrap();
            let Parts { scheme, credentials, place, query } = parts;
            (scheme, credentials, place, query, parts.is_ambiguous())
        };
        assert_eq!(of("redis://h:1/2"), ("redis", None, "h:1/2", None, false));
        assert_eq!(
            of("a+b://u:p/w@x@h/0?db=1"),
            ("a+b", Some("u:p/w@x"), "h/0", Some("db=1"), false)
        );
        assert_eq!(of("http://u:p?w@h"), ("http", None, "u:p", Some("w@h"), true));
        for none in ["u:p@h", "u:p://x@h", "://h", "nonsense", ""] {
            assert_eq!(Parts::of(none), None, "{none}");
        }
    }
}
