//! Addresses that may hold a password, as they may be shown.

use crate::net::address::Parts;

/// `url` with its password, and whatever in its query looks like one, masked. All of it is, if nobody can tell where the
/// password ends.
pub(crate) fn mask_url(url: &str) -> String {
    let Some(parts) = Parts::of(url) else {
        return if url.contains('@') { "***".to_owned() } else { url.to_owned() };
    };
    let Parts { scheme, credentials, place, query } = parts;
    if parts.is_ambiguous() {
        return format!("{scheme}://***");
    }
    let user = credentials.map_or_else(String::new, |credentials| {
        let user = credentials.split_once(':').map(|(user, _)| format!("{user}:"));
        format!("{}***@", user.unwrap_or_default())
    });
    let query = query.map_or_else(String::new, |query| {
        let parts: Vec<String> = query
            .split('&')
            .map(|part| match part.split_once('=') {
                Some((name, _)) if name.contains("pass") || name.contains("token") => {
                    format!("{name}=***")
                }
                _ => part.to_owned(),
            })
            .collect();
        format!("?{}", parts.join("&"))
    });
    format!("{scheme}://{user}{place}{query}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_of_an_address_are_masked() {
        for (url, shown) in [
            ("redis://127.0.0.1:6379", "redis://127.0.0.1:6379"),
            ("redis://ada:s3cret@host:1/2", "redis://ada:***@host:1/2"),
            ("redis://:s3cret@host", "redis://:***@host"),
            ("redis://s3cret@host", "redis://***@host"),
            ("redis://a:b/c@d@host/0", "redis://a:***@host/0"),
            ("redis://a:b?c@d@host/0", "redis://***"),
            ("http://host/?user=a@b&password=c@d", "http://***"),
            ("a:b@host", "***"),
            ("unix:///run/redis.sock?db=1&password=x", "unix:///run/redis.sock?db=1&password=***"),
            ("nonsense", "nonsense"),
        ] {
            assert_eq!(mask_url(url), shown);
        }
    }
}
