//! Percent-encoding of URLs, both ways.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

/// What is encoded: all but the unreserved characters of RFC 3986, section 2.3.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// The text that `text` encodes; `None` for a `%` without two hexadecimal digits, and for what is not
/// UTF-8.
pub(crate) fn decoded(text: &str) -> Option<String> {
    let has_two_digits = |rest: &str| {
        rest.as_bytes().get(..2).is_some_and(|two| two.iter().all(u8::is_ascii_hexdigit))
    };
    if !text.split('%').skip(1).all(has_two_digits) {
        return None;
    }
    percent_decode_str(text).decode_utf8().ok().map(Into::into)
}

/// Adds `text` to `out` so that it can be a name or a value of a query string.
pub(crate) fn encode(text: &str, out: &mut String) {
    out.extend(utf8_percent_encode(text, RESERVED));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_decoded_to_itself() {
        let text = "a b&c=d/é%\n\0";
        let mut encoded = String::new();
        encode(text, &mut encoded);
        assert_eq!(encoded, "a%20b%26c%3Dd%2F%C3%A9%25%0A%00");
        assert_eq!(decoded(&encoded).as_deref(), Some(text));
        assert_eq!((decoded("%4"), decoded("%zz"), decoded("%ff")), (None, None, None));
    }
}
