//! How old an answer is, as HTTP itself says it.

use fusebox_actors::{Reply, Source};
use hyper::{
    HeaderMap,
    header::{AGE, HeaderValue, WARNING},
};

/// Says of an answer from the cache how old it is, and of one older than its `ttl` that it is stale.
///
/// `Age` is in whole seconds (RFC 9111, 5.1). `Warning: 110` is of RFC 7234, 5.5.1; the later RFC does not have it any
/// more, but clients show it.
pub(crate) fn say(headers: &mut HeaderMap, reply: &Reply) {
    if !matches!(reply.source, Source::Cache | Source::Stale) {
        return;
    }
    headers.insert(AGE, HeaderValue::from(reply.age.as_secs()));
    if reply.source == Source::Stale {
        let warning = HeaderValue::from_static("110 fusebox \"Response is Stale\"");
        headers.append(WARNING, warning);
    }
}
