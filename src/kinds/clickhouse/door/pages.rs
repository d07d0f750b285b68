//! Requests that a page in a browser sends in its user's name.
//!
//! A page of another origin cannot read an answer that it is not let read, but a request alone can do harm. A browser
//! names the origin of whatever may change something, and a page that was rebound to this address brings a host of its
//! own. Programs name no origin, and a host of this machine.

use std::net::IpAddr;

use hyper::header::{HOST, HeaderMap, ORIGIN};

/// Whether a request comes from a page of another origin. Over a Unix socket only the origin tells: clients write there
/// what they like for a host.
pub(super) fn is_foreign(headers: &HeaderMap, is_local: bool, address: &str) -> bool {
    let host = headers.get(HOST).map(|host| host.to_str().unwrap_or_default());
    let is_ours = |host: &str| host == address || is_loopback(host);
    if !is_local && host.is_some_and(|host| !is_ours(host)) {
        return true;
    }
    let Some(origin) = headers.get(ORIGIN) else { return false };
    let origin = origin.to_str().unwrap_or_default();
    let from = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
    !from.is_some_and(|from| Some(from) == host && is_ours(from))
}

/// Whether a host is this one under a name that nobody else can have.
fn is_loopback(host: &str) -> bool {
    let name = host.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok());
    let name = name.map_or(host, |(name, _)| name);
    let ip = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    name == "localhost" || ip.is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_foreign_by_its_origin_and_over_tcp_by_its_host() {
        let foreign = |host: Option<&str>, origin: Option<&str>, is_local| {
            let mut headers = HeaderMap::new();
            for (name, value) in [(HOST, host), (ORIGIN, origin)] {
                if let Some(value) = value {
                    headers.insert(name, value.parse().unwrap());
                }
            }
            is_foreign(&headers, is_local, "10.0.0.7:8123")
        };
        for host in ["localhost", "127.0.0.1:8123", "[::1]:8123", "10.0.0.7:8123"] {
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
}
