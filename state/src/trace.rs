//! The W3C trace context in its wire form: `version-traceid-parentid-flags`.
//!
//! <https://www.w3.org/TR/trace-context/>: version 00 in lower-case hexadecimal digits; neither id may
//! be zero; of the flags only the lowest bit, *sampled*, means anything here. A later version is read as
//! far as version 00 goes, as the recommendation asks.

use std::fmt;

/// Length of the wire form in bytes.
const LENGTH: usize = 55;

/// One span of one trace, as it is passed from program to program and kept with a queued write.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SpanRef {
    /// The trace; never zero.
    pub trace_id: u128,
    /// The span; never zero.
    pub span_id: u64,
    /// Whether whoever made the span recorded it.
    pub sampled: bool,
}

impl SpanRef {
    /// Reads the wire form; `None` if it is not well formed.
    pub fn parse(text: &str) -> Option<Self> {
        let (known, rest) = text.as_bytes().split_at_checked(LENGTH)?;
        let (version, known) = known.split_at_checked(2)?;
        let version = hexadecimal(version)?;
        let ends_well = match version {
            0 => rest.is_empty(),
            0xff => false,
            _ => rest.first().is_none_or(|byte| *byte == b'-'),
        };
        let [dash_1, trace_id @ .., dash_2] = known.get(..34)? else { return None };
        let [span_id @ .., dash_3] = known.get(34..51)? else { return None };
        let (trace_id, span_id) = (hexadecimal(trace_id)?, hexadecimal(span_id)?);
        let flags = hexadecimal(known.get(51..)?)?;
        let dashes = [dash_1, dash_2, dash_3].iter().all(|byte| **byte == b'-');
        if !ends_well || !dashes || trace_id == 0 || span_id == 0 {
            return None;
        }
        let span_id = u64::try_from(span_id).ok()?;
        Some(Self { trace_id, span_id, sampled: flags & 1 == 1 })
    }
}

/// The wire form, of version 00.
impl fmt::Display for SpanRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { trace_id, span_id, sampled } = self;
        write!(f, "00-{trace_id:032x}-{span_id:016x}-{:02x}", u8::from(*sampled))
    }
}

impl fmt::Debug for SpanRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// At most 32 lower-case digits.
fn hexadecimal(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0, |number, digit| match digit {
        b'0'..=b'9' => Some(number << 4 | u128::from(digit - b'0')),
        b'a'..=b'f' => Some(number << 4 | u128::from(digit - b'a' + 10)),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn the_wire_form_is_read_and_written() {
        let span = SpanRef::parse(GOOD).unwrap();
        assert_eq!(span.trace_id, 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736);
        assert_eq!((span.span_id, span.sampled), (0x00f0_67aa_0ba9_02b7, true));
        assert_eq!(span.to_string(), GOOD);
        let unsampled = SpanRef::parse(&format!("{}00", &GOOD[..53])).unwrap();
        assert!(!unsampled.sampled);
        let other_flags = SpanRef::parse(&format!("{}ff", &GOOD[..53])).unwrap();
        assert!(other_flags.sampled);
    }

    #[test]
    fn a_later_version_is_read_as_far_as_it_is_known() {
        let later = format!("cc{}", &GOOD[2..]);
        assert_eq!(SpanRef::parse(&later), SpanRef::parse(GOOD));
        assert_eq!(SpanRef::parse(&format!("{later}-what-follows")), SpanRef::parse(GOOD));
        assert_eq!(SpanRef::parse(&format!("{later}x")), None);
    }

    #[test]
    fn what_is_not_well_formed_is_not_read() {
        for bad in [
            "",
            "x",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
            "00-4bf92f3577b34da6a3ce929d0e0e4736_00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0",
            "00-4bf92f3577b34da6a3ce929d0e0e473é-00f067aa0ba902b7-01",
        ] {
            assert_eq!(SpanRef::parse(bad), None, "{bad}");
        }
    }
}
