//! The W3C trace context of a call, as its caller sends it.

use fusebox_actors::trace::{CallTrace, Propagated, Route};
use fusebox_state::SpanRef;
use hyper::HeaderMap;

/// The longest `tracestate` that is passed on, in bytes: what the recommendation asks for at least.
const STATE_MAX: usize = 512;
/// The longest `baggage` that is passed on, in bytes, by <https://www.w3.org/TR/baggage/>.
const BAGGAGE_MAX: usize = 8_192;

/// The context that the request brings, or a new one if it brings none that is well formed. What is
/// too long to be passed on is left out, and without a `traceparent` there is no `tracestate`.
pub(crate) fn of(headers: &HeaderMap, route: impl Into<Route>) -> CallTrace {
    let route = route.into();
    let traceparent = headers.get("traceparent").and_then(|value| value.to_str().ok());
    let parent = traceparent.and_then(SpanRef::parse);
    let tracestate = parent.and_then(|_| listed(headers, "tracestate", STATE_MAX));
    let propagated = Propagated { tracestate, baggage: listed(headers, "baggage", BAGGAGE_MAX) };
    let propagated = (propagated != Propagated::default()).then(|| Box::new(propagated));
    match parent {
        Some(parent) => CallTrace { parent, is_remote: true, propagated, route },
        None => CallTrace { propagated, ..CallTrace::new(route) },
    }
}

/// A header that is a list, which may come in parts.
fn listed(headers: &HeaderMap, name: &str, max: usize) -> Option<String> {
    let mut parts = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    let mut list = parts.next()?.to_owned();
    for part in parts {
        list.push(',');
        list.push_str(part);
    }
    (!list.is_empty() && list.len() <= max).then_some(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn read(pairs: &[(&'static str, &str)]) -> CallTrace {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        of(&headers, "/call")
    }

    #[test]
    fn a_good_context_is_taken_up_and_a_bad_one_replaced() {
        let good = read(&[("traceparent", GOOD)]);
        assert_eq!((good.parent.to_string().as_str(), good.is_remote), (GOOD, true));
        assert_eq!(
            crate::agreed::trace_id(good.parent.trace_id),
            "4bf92f3577b34da6a3ce929d0e0e4736"
        );
        let made = read(&[("traceparent", "x"), ("tracestate", "a=b")]);
        assert!(!made.is_remote && made.parent.trace_id != 0 && !made.parent.sampled);
        assert_eq!(made.propagated, None, "it belongs to a context that was not taken up");
        assert_ne!(read(&[]).parent.trace_id, made.parent.trace_id);
    }

    #[test]
    fn state_and_baggage_are_passed_on_whole_or_not_at_all() {
        let read = read(&[
            ("traceparent", GOOD),
            ("tracestate", "one=1"),
            ("tracestate", "two=2"),
            ("baggage", &"b".repeat(BAGGAGE_MAX + 1)),
        ]);
        let propagated = *read.propagated.unwrap();
        assert_eq!(propagated.tracestate.as_deref(), Some("one=1,two=2"));
        assert_eq!(propagated.baggage, None);
    }
}
