//! What browsers add to every request.

use hyper::header::HeaderMap;

/// Whether a browser sends this. Over plain HTTP to a host name, browsers send no `Sec-Fetch-*`, and no `Origin` with a GET
/// to the same origin. But they do send `Accept-Language`, which no page can leave out. Monitoring systems send none of
/// the three.
///
/// A browser that sends `Sec-Fetch-Mode` says `Sec-Fetch-Site`, too, and no page can set or remove either of them. So
/// the one without the other is a program, whatever else it sends: the `fetch` of Node also sends `Accept-Language: *`.
/// That value alone shows nothing, because a page may set it.
pub(crate) fn is_of_browser(headers: &HeaderMap) -> bool {
    let has = |name: &str| headers.contains_key(name);
    has("sec-fetch-site") || (!has("sec-fetch-mode") && (has("accept-language") || has("origin")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_browser_is_told_from_the_fetch_of_node() {
        let is_of_browser = |names: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in names {
                headers.insert(*name, value.parse().unwrap());
            }
            is_of_browser(&headers)
        };
        let node = [
            ("host", "fusebox:9180"),
            ("connection", "keep-alive"),
            ("accept", "*/*"),
            ("accept-language", "*"),
            ("sec-fetch-mode", "cors"),
            ("user-agent", "node"),
            ("accept-encoding", "gzip, deflate"),
        ];
        assert!(!is_of_browser(&node));
        let with_site: Vec<_> = node.into_iter().chain([("sec-fetch-site", "none")]).collect();
        assert!(is_of_browser(&with_site), "a browser says both");
        for name in ["accept-language", "origin", "sec-fetch-site"] {
            assert!(is_of_browser(&[("accept", "*/*"), (name, "*")]), "{name}");
        }
        assert!(!is_of_browser(&[("accept", "*/*"), ("user-agent", "Prometheus/3")]));
    }
}
