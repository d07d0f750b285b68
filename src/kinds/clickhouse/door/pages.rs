//! Requests that a page in a browser sends in its user's name, to a door that lets them in without a secret.
//!
//! A page of another origin cannot read an answer that it is not let read, but a request alone can do harm. Programs name
//! no origin, and a host of this machine: a TCP door that asks for no secret listens at loopback. What betrays a page:
//!
//! - its `Origin`, which a browser sends with everything but GET and HEAD;
//! - a `Host` of its own, if DNS has led it here (rebinding);
//! - `Sec-Fetch-Site`, by which newer browsers say whether a page of another site or port asks.
//!
//! An older browser sends a GET for a page without any of them, such as for an image. So what a browser sends by GET or
//! HEAD without an `Origin` may only read.

use std::net::IpAddr;

use hyper::{
    Method,
    header::{HOST, HeaderMap, ORIGIN},
};

use crate::net::browser::is_of_browser;

/// By it a browser says who asks.
const SITE: &str = "sec-fetch-site";

/// Whether a request comes from a page of another origin. Over a Unix socket the host says nothing: clients write there
/// what they like.
pub(super) fn is_foreign(headers: &HeaderMap, is_local: bool) -> bool {
    let host = headers.get(HOST).map(|host| host.to_str().unwrap_or_default());
    if !is_local && host.is_some_and(|host| !is_loopback(host)) {
        return true;
    }
    let mut sites = headers.get_all(SITE).iter();
    if sites.any(|site| !matches!(site.as_bytes(), b"same-origin" | b"none")) {
        return true;
    }
    let Some(origin) = headers.get(ORIGIN) else { return false };
    let origin = origin.to_str().unwrap_or_default();
    let from = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
    !from.is_some_and(|from| Some(from) == host && is_loopback(from))
}

/// Whether a page of another origin may have sent this though nothing says so.
pub(super) fn may_be_foreign(method: &Method, headers: &HeaderMap) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
        && !headers.contains_key(ORIGIN)
        && is_of_browser(headers)
}

/// Whether a host is this one under a name that nobody else can have.
fn is_loopback(host: &str) -> bool {
    let name = host.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok());
    let name = name.map_or(host, |(name, _)| name);
    let ip = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    name == "localhost" || ip.is_ok_and(|ip| ip.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Headers of these names, if they have a value.
    fn headers(all: &[(&'static str, Option<&str>)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in all {
            if let Some(value) = value {
                headers.insert(*name, value.parse().unwrap());
            }
        }
        headers
    }

    #[test]
    fn a_page_is_foreign_by_its_origin_and_over_tcp_by_its_host() {
        let foreign = |host: Option<&str>, origin: Option<&str>, is_local| {
            is_foreign(&headers(&[("host", host), ("origin", origin)]), is_local)
        };
        for host in ["localhost", "127.0.0.1:8123", "[::1]:8123", "[::ffff:127.0.0.1]:8123"] {
            assert!(!foreign(Some(host), None, false), "{host}");
            assert!(!foreign(Some(host), Some(&format!("http://{host}")), false), "{host}");
        }
        assert!(!foreign(None, None, false) && !foreign(Some("clickhouse"), None, true));
        for host in ["evil.example", "10.0.0.7", "localhost.evil.example:8123", ""] {
            assert!(foreign(Some(host), None, false), "{host}");
        }
        for origin in ["http://evil.example", "null", "http://localhost:1", ""] {
            assert!(foreign(Some("localhost:8123"), Some(origin), false), "{origin}");
            assert!(foreign(Some("localhost:8123"), Some(origin), true), "{origin}");
        }
        assert!(foreign(Some("evil.example"), Some("http://evil.example"), true));
    }

    #[test]
    fn a_page_is_foreign_by_what_its_browser_says_and_may_be_if_it_says_nothing() {
        for (site, expected) in [
            (None, false),
            (Some("none"), false),
            (Some("same-origin"), false),
            (Some("same-site"), true),
            (Some("cross-site"), true),
        ] {
            let headers = headers(&[("host", Some("localhost:8123")), (SITE, site)]);
            for is_local in [false, true] {
                assert_eq!(is_foreign(&headers, is_local), expected, "{site:?}");
            }
        }
        let browser = headers(&[("accept-language", Some("en"))]);
        assert!(may_be_foreign(&Method::GET, &browser) && may_be_foreign(&Method::HEAD, &browser));
        assert!(!may_be_foreign(&Method::POST, &browser), "it would name its origin");
        let named = headers(&[("accept-language", Some("en")), ("origin", Some("http://[::1]"))]);
        assert!(!may_be_foreign(&Method::GET, &named));
        assert!(!may_be_foreign(&Method::GET, &headers(&[("accept", Some("*/*"))])), "a program");
        let node = headers(&[("accept-language", Some("*")), ("sec-fetch-mode", Some("cors"))]);
        assert!(!may_be_foreign(&Method::GET, &node), "the fetch of Node");
    }
}
