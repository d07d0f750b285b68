//! Who a request comes from, by its connection and its headers, and whether that lets it in.

use std::net::{IpAddr, SocketAddr};

use axum::http::{HeaderMap, StatusCode, header};

use super::problem::Problem;
use crate::{
    config::HttpSettings,
    ingress::{
        peer::{Access, Caller, NOBODY, Who, may},
        refusal::Denied,
        same::same,
    },
    net::browser::is_of_browser,
};

/// Lets a request in, or says why not. Reads nothing of its body.
pub(crate) fn admit(
    access: Access,
    caller: Caller,
    headers: &HeaderMap,
    http: Option<&HttpSettings>,
) -> Result<Who, Problem> {
    not_rebound(headers, caller, http)?;
    if access != Access::Public {
        own_origin(headers)?;
    }
    match caller {
        Caller::Local { uid, rights } => Ok(may(access, uid, rights)?),
        Caller::Network if access == Access::Public => {
            Ok(Who { uid: NOBODY, admin: false, by_token: false })
        }
        Caller::Network => admit_by_token(access, headers, http),
    }
}

fn admit_by_token(
    access: Access,
    headers: &HeaderMap,
    http: Option<&HttpSettings>,
) -> Result<Who, Problem> {
    let is_exposed = http.is_some_and(HttpSettings::is_exposed);
    if is_exposed && access == Access::Admin {
        return Err(Problem::new(
            StatusCode::FORBIDDEN,
            "plaintext",
            "others can read the traffic of this address (http.plaintext): use the admin routes over \
             the Unix socket, over loopback, or with http.tls",
        ));
    }
    let unauthorized = |detail| Problem::from(Denied::Unknown(detail));
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let Some((http, token)) = http.and_then(|http| Some((http, http.token.as_ref()?))) else {
        return Err(unauthorized("over TCP this needs a token, and http.token_file is not set"));
    };
    host_matches(headers, http)?;
    let bearer = text(header::AUTHORIZATION).and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
    });
    match bearer {
        Some(given) if same(given.as_bytes(), token.expose().as_bytes()) => {
            Ok(Who { uid: NOBODY, admin: !is_exposed, by_token: true })
        }
        Some(_) => Err(unauthorized("the token is not the one in http.token_file")),
        None => {
            Err(unauthorized("over TCP this needs the header Authorization: Bearer and a token"))
        }
    }
}

/// Refuses a host other than the one that `http.listen` names, whoever asks for it. With TLS, any is right.
///
/// # Errors
/// 403 if the host is another one.
pub(crate) fn host_matches(headers: &HeaderMap, http: &HttpSettings) -> Result<(), Problem> {
    if http.tls.is_some() {
        return Ok(());
    }
    let listen = http.listen;
    let host = host_of(headers);
    let matches = host == listen.to_string()
        || host.strip_prefix("localhost:").and_then(|port| port.parse().ok())
            == Some(listen.port())
        || (listen.ip().is_unspecified()
            && host.parse::<SocketAddr>().is_ok_and(|a| a.port() == listen.port()));
    let refused =
        || Problem::forbidden("the Host header must be the address that http.listen names");
    matches.then_some(()).ok_or_else(refused)
}

/// Refuses what a browser sends to a host name that anybody may have. A page of that name may have led it here by DNS
/// (rebinding), and would read the answer as if it came from the page's own site: over TCP, or at a port to which the
/// command socket is forwarded, with the rights of whoever forwards it. Nobody's DNS leads an address or `localhost`
/// elsewhere. With TLS, the browser itself refuses such a page: the page's owner has no certificate that is valid here.
fn not_rebound(
    headers: &HeaderMap,
    caller: Caller,
    http: Option<&HttpSettings>,
) -> Result<(), Problem> {
    let has_tls = caller == Caller::Network && http.is_some_and(|http| http.tls.is_some());
    if has_tls || !is_of_browser(headers) || is_address(host_of(headers)) {
        return Ok(());
    }
    Err(Problem::forbidden(
        "without TLS, a browser must use an IP address or localhost as the host name, so that no other site's pages \
         can be led here by DNS",
    ))
}

/// Refuses what a page of another origin sends in its user's name. A browser names the origin of
/// whatever may change something; programs name none.
fn own_origin(headers: &HeaderMap) -> Result<(), Problem> {
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
    let origin = origin.to_str().unwrap_or_default();
    let from = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
    let host = host_of(headers);
    if !host.is_empty() && from == Some(host) {
        return Ok(());
    }
    Err(Problem::forbidden("web pages of another origin may not send this request"))
}

fn host_of(headers: &HeaderMap) -> &str {
    headers.get(header::HOST).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// Whether a `Host` is an address or `localhost`, with a port or without.
fn is_address(host: &str) -> bool {
    let name = host.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok());
    let name = name.map_or(host, |(name, _)| name);
    let ip = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    name == "localhost" || ip.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ingress::peer::Rights, net::secret::Secret};

    fn local(client: bool, admin: bool) -> Caller {
        Caller::Local { uid: 7, rights: Rights { client, admin } }
    }

    #[test]
    fn routes_admit_by_rights() {
        let status = |access, caller| {
            admit(access, caller, &HeaderMap::new(), None)
                .map_err(|problem| problem.status().as_u16())
        };
        let who = |admin| Ok(Who { uid: 7, admin, by_token: false });
        let nobody = Who { uid: NOBODY, admin: false, by_token: false };
        for (caller, public, client, admin) in [
            (local(true, true), who(true), who(true), who(true)),
            (local(true, false), who(false), who(false), Err(403)),
            (local(false, false), Err(403), Err(403), Err(403)),
            (Caller::Network, Ok(nobody), Err(401), Err(401)),
        ] {
            assert_eq!(status(Access::Public, caller), public);
            assert_eq!(status(Access::Client, caller), client);
            assert_eq!(status(Access::Admin, caller), admin);
        }
    }

    #[test]
    fn tcp_wants_token_and_host() {
        let http = HttpSettings {
            listen: "127.0.0.1:9180".parse().unwrap(),
            token: Some(Secret::new("t0ken")),
            tls: None,
        };
        for (host, authorization, expected) in [
            ("127.0.0.1:9180", "Bearer t0ken", Ok(())),
            ("localhost:9180", "bearer t0ken", Ok(())),
            ("evil.example:9180", "Bearer t0ken", Err(403)),
            ("127.0.0.1:9180", "Bearer t0keN", Err(401)),
            ("127.0.0.1:9180", "Bearer t0ken2", Err(401)),
            ("127.0.0.1:9180", "Basic t0ken", Err(401)),
            ("127.0.0.1:9180", "", Err(401)),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert("host", host.parse().unwrap());
            headers.insert("authorization", authorization.parse().unwrap());
            let got = admit(Access::Admin, Caller::Network, &headers, Some(&http));
            let got = got.map(|_| ()).map_err(|problem| problem.status().as_u16());
            assert_eq!(got, expected, "{host} {authorization}");
        }
    }

    #[test]
    fn in_plaintext_beyond_loopback_a_token_gives_no_orders() {
        let http = |listen: &str| HttpSettings {
            listen: listen.parse().unwrap(),
            token: Some(Secret::new("t0ken")),
            tls: None,
        };
        for (listen, client, admin) in [
            ("10.0.0.1:9180", Ok(false), Err(403)),
            ("[fd00::1]:9180", Ok(false), Err(403)),
            ("127.0.0.2:9180", Ok(true), Ok(true)),
            ("[::1]:9180", Ok(true), Ok(true)),
            ("[::ffff:127.0.0.1]:9180", Ok(true), Ok(true)),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert("host", listen.parse().unwrap());
            headers.insert("authorization", "Bearer t0ken".parse().unwrap());
            let http = http(listen);
            let got = |access| {
                let admitted = admit(access, Caller::Network, &headers, Some(&http));
                admitted.map(|who| who.admin).map_err(|problem| problem.status().as_u16())
            };
            assert_eq!((got(Access::Client), got(Access::Admin)), (client, admin), "{listen}");
        }
    }

    #[test]
    fn a_page_of_another_origin_gives_no_orders_in_its_users_name() {
        let status = |caller, host: &str, origin: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("host", host.parse().unwrap());
            headers.insert("origin", origin.parse().unwrap());
            let admitted = admit(Access::Admin, caller, &headers, None);
            admitted.map(|_| ()).map_err(|problem| problem.status().as_u16())
        };
        let own = local(true, true);
        for (host, origin, expected) in [
            ("localhost:9180", "http://localhost:9180", Ok(())),
            ("127.0.0.1:9180", "http://127.0.0.1:9180", Ok(())),
            ("[::1]:9180", "http://[::1]:9180", Ok(())),
            ("localhost", "http://localhost", Ok(())),
            ("localhost:9180", "http://localhost:8080", Err(403)),
            ("localhost:9180", "https://evil.example", Err(403)),
            ("localhost:9180", "null", Err(403)),
            // Rebound: the same origin by a name that anybody can have.
            ("evil.example:9180", "http://evil.example:9180", Err(403)),
            ("", "http://", Err(403)),
        ] {
            assert_eq!(status(own, host, origin), expected, "{host} {origin}");
        }
        assert_eq!(status(Caller::Network, "a:1", "http://b:1"), Err(403));
        assert_eq!(
            status(Caller::Network, "a:1", "http://a:1"),
            Err(403),
            "a may be anybody's name"
        );
        let (host, origin) = ("10.0.0.1:1", "http://10.0.0.1:1");
        assert_eq!(status(Caller::Network, host, origin), Err(401), "the token is next");
        let foreign = HeaderMap::from_iter([
            (header::HOST, "localhost:9180".parse().unwrap()),
            (header::ORIGIN, "http://b".parse().unwrap()),
        ]);
        assert!(admit(Access::Public, own, &foreign, None).is_ok(), "nothing is changed there");
    }

    #[test]
    fn a_page_that_was_rebound_reads_nothing_and_programs_may_use_any_host() {
        let http =
            HttpSettings { listen: "127.0.0.1:9180".parse().unwrap(), token: None, tls: None };
        let admitted = |access, caller, host: &str, header: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("host", host.parse().unwrap());
            headers.insert(header, "en".parse().unwrap());
            let admitted = admit(access, caller, &headers, Some(&http));
            admitted.map(|_| ()).map_err(|problem| problem.status().as_u16())
        };
        let all = [
            (Access::Public, Caller::Network),
            (Access::Public, local(true, true)),
            (Access::Client, local(true, true)),
            (Access::Admin, local(true, true)),
        ];
        for (access, caller) in all {
            let status = |host, header| admitted(access, caller, host, header);
            for browser in ["accept-language", "sec-fetch-site"] {
                for host in ["evil.example:9180", "evil.example", "localhost.evil.example", "a", ""]
                {
                    assert_eq!(status(host, browser), Err(403), "{access:?} {host} {browser}");
                }
                for host in
                    ["127.0.0.1:9180", "localhost:8080", "[::1]:9180", "10.0.0.7", "[fd00::1]"]
                {
                    assert_eq!(status(host, browser), Ok(()), "{access:?} {host} {browser}");
                }
            }
            for host in ["fusebox.monitoring.svc:9180", "evil.example", "unix", ""] {
                for program in ["accept", "sec-fetch-mode"] {
                    assert_eq!(status(host, program), Ok(()), "{access:?} {host} {program}");
                }
            }
        }
    }
}
