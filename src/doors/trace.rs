//! The W3C trace context of a call.

use axum::http::HeaderMap;

/// A trace context: the caller's, or a new one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trace {
    /// The header to pass on.
    pub(crate) traceparent: String,
}

impl Trace {
    /// The context that the request brings, or a new one where it brings none that is well formed.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        headers
            .get("traceparent")
            .and_then(|value| value.to_str().ok())
            .filter(|text| well_formed(text))
            .map_or_else(Self::random, |text| Self { traceparent: text.to_owned() })
    }

    /// The trace's id: 32 hexadecimal digits.
    pub(crate) fn id(&self) -> &str {
        self.traceparent.get(3..35).unwrap_or_default()
    }

    fn random() -> Self {
        // Neither id may be all zeros.
        let trace = fastrand::u128(1..);
        let span = fastrand::u64(1..);
        Self { traceparent: format!("00-{trace:032x}-{span:016x}-00") }
    }
}

fn well_formed(text: &str) -> bool {
    let hex = |part: &str, length: usize| {
        part.len() == length && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    let id = |part: &str, length| hex(part, length) && part.bytes().any(|b| b != b'0');
    let parts: Vec<&str> = text.split('-').collect();
    matches!(parts.as_slice(), [version, trace, span, flags]
        if *version == "00" && id(trace, 32) && id(span, 16) && hex(flags, 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_good_context_is_passed_on_and_a_bad_one_replaced() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let of = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("traceparent", text.parse().unwrap());
            Trace::of(&headers)
        };
        assert_eq!(of(good).traceparent, good);
        assert_eq!(of(good).id(), "4bf92f3577b34da6a3ce929d0e0e4736");
        for bad in [
            "",
            "x",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
        ] {
            let made = of(bad);
            assert_ne!(made.traceparent, bad);
            assert!(well_formed(&made.traceparent), "{made:?}");
        }
    }
}
