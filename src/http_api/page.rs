//! The status page: a few files in the binary, and the stream on which it lives.
//!
//! Everything here is open on TCP, so that the page works without a token; what it shows and does
//! beyond that it asks of the other routes, with the token that its user gives it. The page is bound
//! by its `Content-Security-Policy` to this origin and to its own files, and may not make markup of
//! text (`require-trusted-types-for`).

use std::sync::Arc;

use axum::{
    extract::{Path, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::{
    api::Api,
    problem::{Checked, Problem},
    views,
};

pub(crate) mod board;
pub(crate) mod stream;

/// What a browser may do for the page: fetch its own files, speak to the daemon, and nothing else.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
    connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
    require-trusted-types-for 'script'; trusted-types 'none'";

const SCRIPT: &str = "text/javascript; charset=utf-8";

/// A file of the page.
struct Asset {
    name: &'static str,
    kind: &'static str,
    bytes: &'static [u8],
}

macro_rules! asset {
    ($name:literal, $kind:expr) => {
        Asset { name: $name, kind: $kind, bytes: include_bytes!(concat!("page/", $name)) }
    };
}

const INDEX: Asset = asset!("index.html", "text/html; charset=utf-8");

/// What the page is made of besides.
const ASSETS: &[Asset] = &[
    asset!("style.css", "text/css; charset=utf-8"),
    asset!("icon.svg", "image/svg+xml"),
    asset!("page.js", SCRIPT),
    asset!("backends.js", SCRIPT),
    asset!("charts.js", SCRIPT),
    asset!("letters.js", SCRIPT),
    asset!("stream.js", SCRIPT),
    asset!("timeline.js", SCRIPT),
    asset!("words.js", SCRIPT),
];

/// GET /: the page for a browser, text for everybody else.
pub(crate) async fn root(State(api): State<Arc<Api>>, headers: HeaderMap) -> Response {
    if wants_html(&headers) {
        INDEX.answer(&headers)
    } else {
        let vary = [(header::VARY, HeaderValue::from_static("accept"))];
        (vary, views::root(&api)).into_response()
    }
}

/// GET /page/{file}
pub(crate) async fn file(
    Checked(Path(name)): Checked<Path<String>>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let found = ASSETS.iter().find(|asset| asset.name == name);
    let asset = found.ok_or_else(|| {
        Problem::not_found("no_such_file", format!("the page has no file {name:?}"))
    })?;
    Ok(asset.answer(&headers))
}

/// Tells one version of the page from another.
pub(crate) fn version() -> String {
    let mut hash = Xxh3::new();
    for asset in std::iter::once(&INDEX).chain(ASSETS) {
        hash.update(asset.bytes);
    }
    format!("{:016x}", hash.digest())
}

impl Asset {
    /// The file, or 304 to whoever has it.
    fn answer(&self, asked: &HeaderMap) -> Response {
        let tag = format!("\"{:016x}\"", xxh3_64(self.bytes));
        let mut response = if has(asked, &tag) {
            StatusCode::NOT_MODIFIED.into_response()
        } else {
            self.bytes.into_response()
        };
        let headers = response.headers_mut();
        let fixed: [(HeaderName, &'static str); 7] = [
            (header::CONTENT_TYPE, self.kind),
            (header::CONTENT_SECURITY_POLICY, POLICY),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (header::REFERRER_POLICY, "no-referrer"),
            (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
            // Kept, and asked about every time: the next version of the daemon brings another.
            (header::CACHE_CONTROL, "no-cache"),
            (header::VARY, "accept"),
        ];
        for (name, value) in fixed {
            headers.insert(name, HeaderValue::from_static(value));
        }
        if let Ok(tag) = HeaderValue::from_str(&tag) {
            headers.insert(header::ETAG, tag);
        }
        response
    }
}

/// Whether `tag` is among those of `If-None-Match`.
fn has(headers: &HeaderMap, tag: &str) -> bool {
    let values = headers.get_all(header::IF_NONE_MATCH).iter();
    let mut tags = values.filter_map(|value| value.to_str().ok()).flat_map(|text| text.split(','));
    tags.any(|one| {
        let one = one.trim();
        one == "*" || one.strip_prefix("W/").unwrap_or(one) == tag
    })
}

/// Whether `text/html` is asked for by name, as browsers do; `*/*` is what curl sends.
fn wants_html(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::ACCEPT).iter();
    let mut kinds = values.filter_map(|value| value.to_str().ok()).flat_map(|text| text.split(','));
    kinds.any(|kind| {
        let mut parts = kind.split(';').map(str::trim);
        let named = parts.next().is_some_and(|name| name.eq_ignore_ascii_case("text/html"));
        let refused = |part: &str| {
            part.strip_prefix("q=").and_then(|q| q.parse::<f32>().ok()).is_some_and(|q| q <= 0.0)
        };
        named && !parts.any(refused)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, value.parse().unwrap())])
    }

    #[test]
    fn a_browser_gets_markup_and_everybody_else_text() {
        for (accept, html) in [
            ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", true),
            ("application/json, Text/HTML;q=0.1", true),
            ("*/*", false),
            ("text/plain", false),
            ("text/html;q=0, text/plain", false),
            ("text/htmlx", false),
            ("", false),
        ] {
            assert_eq!(wants_html(&headers(header::ACCEPT, accept)), html, "{accept}");
        }
        assert!(!wants_html(&HeaderMap::new()));
    }

    #[test]
    fn a_tag_is_found_among_others() {
        for (asked, found) in [
            ("\"a\"", true),
            ("\"b\", \"a\"", true),
            ("W/\"a\"", true),
            ("*", true),
            ("\"b\"", false),
            ("a", false),
            ("", false),
        ] {
            assert_eq!(has(&headers(header::IF_NONE_MATCH, asked), "\"a\""), found, "{asked}");
        }
    }

    #[test]
    fn the_page_is_small_and_makes_no_markup_of_text() {
        let all: Vec<&Asset> = std::iter::once(&INDEX).chain(ASSETS).collect();
        let bytes: usize = all.iter().map(|asset| asset.bytes.len()).sum();
        assert!(bytes < 60 << 10, "{bytes} bytes");
        for asset in all {
            let text = std::str::from_utf8(asset.bytes).unwrap();
            for word in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("]
            {
                assert!(!text.contains(word), "{word} in {}", asset.name);
            }
            let other = text.replace("http://www.w3.org/2000/svg", "");
            assert!(!other.contains("://"), "{} names another place", asset.name);
        }
    }
}
