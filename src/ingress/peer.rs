//! Who is at the door, and what they may do.
//!
//! On the Unix socket the kernel says who connected (`SO_PEERCRED`, as of `connect`); the groups are
//! looked up by the user's name, because a process's own list can be read only by racing its id. On
//! TCP nobody is known: health, metrics and the status page are open, the rest wants a token.

use std::{
    collections::HashMap,
    ffi::CString,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use axum::http::{HeaderMap, StatusCode, header};
use nix::unistd::{Gid, Group, Uid, User, getgrouplist};
use parking_lot::Mutex;

use crate::{
    config::{GroupName, HttpSettings},
    http_api::problem::Problem,
};

/// What a route asks of its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Open on TCP; for clients on the socket.
    Public,
    /// For clients.
    Client,
    /// For admins.
    Admin,
}

/// What a local user may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rights {
    /// Call, look and listen.
    pub(crate) client: bool,
    /// Give orders and see payloads.
    pub(crate) admin: bool,
}

/// Whoever opened a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Caller {
    /// A process of this host.
    Local {
        /// Its effective user.
        uid: u32,
        /// What that user may do.
        rights: Rights,
    },
    /// Somebody on TCP.
    Network,
}

/// Whoever sends a request, once let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Who {
    /// The user, or [`NOBODY`] on TCP.
    pub(crate) uid: u32,
    /// Whether they may give orders and see payloads.
    pub(crate) admin: bool,
}

/// The user id of callers on TCP, as kernels write "nobody".
pub(crate) const NOBODY: u32 = 65_534;
/// How long a user's groups are believed.
const GROUPS_FOR: Duration = Duration::from_secs(60);
/// Users whose groups are remembered at once.
const USERS: usize = 1_024;

/// Who counts as what.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Policy {
    /// The daemon's own user.
    pub(crate) own: u32,
    /// The group of clients, where the host knows it.
    pub(crate) clients: Option<u32>,
    /// The group of admins, where the host knows it.
    pub(crate) admins: Option<u32>,
}

impl Policy {
    /// The policy of these groups, and a warning for each that was asked for and does not exist.
    pub(crate) fn resolve(clients: &GroupName, admins: &GroupName) -> (Self, Vec<String>) {
        let mut warnings = Vec::new();
        let mut gid = |key: &str, group: &GroupName| {
            let found = Group::from_name(&group.name).ok().flatten();
            if found.is_none() && group.asked {
                warnings.push(format!(
                    "{key} names {:?}, which this host does not know: only root and the daemon's \
                     own user are let in by it",
                    group.name
                ));
            }
            found.map(|group| group.gid.as_raw())
        };
        let clients = gid("client_group", clients);
        let admins = gid("admin_group", admins);
        (Self { own: Uid::effective().as_raw(), clients, admins }, warnings)
    }

    /// What the user `uid` with these groups may do.
    pub(crate) fn rights(&self, uid: u32, groups: &[u32]) -> Rights {
        let member = |group: Option<u32>| group.is_some_and(|gid| groups.contains(&gid));
        let admin = uid == 0 || uid == self.own || member(self.admins);
        Rights { client: admin || member(self.clients), admin }
    }
}

/// Knows callers by their ids, and remembers their groups for a while.
pub(crate) struct Peers {
    policy: Policy,
    known: Mutex<HashMap<(u32, u32), (Instant, Rights)>>,
}

impl Peers {
    /// Nobody known yet.
    pub(crate) fn new(policy: Policy) -> Self {
        Self { policy, known: Mutex::default() }
    }

    /// The process with these ids. May look in the host's user database, on a blocking thread.
    pub(crate) async fn local(&self, uid: u32, gid: u32) -> Caller {
        if uid == 0 || uid == self.policy.own {
            return Caller::Local { uid, rights: self.policy.rights(uid, &[]) };
        }
        let now = Instant::now();
        if let Some((since, rights)) = self.known.lock().get(&(uid, gid)).copied()
            && now.duration_since(since) < GROUPS_FOR
        {
            return Caller::Local { uid, rights };
        }
        let groups = tokio::task::spawn_blocking(move || groups(uid, gid)).await;
        let rights = self.policy.rights(uid, &groups.unwrap_or_else(|_| vec![gid]));
        let mut known = self.known.lock();
        if known.len() >= USERS {
            known.clear();
        }
        known.insert((uid, gid), (now, rights));
        Caller::Local { uid, rights }
    }
}

/// The primary group of the connection and the groups that the host's database lists for the user.
fn groups(uid: u32, gid: u32) -> Vec<u32> {
    let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
    let listed = user
        .and_then(|user| CString::new(user.name).ok())
        .and_then(|name| getgrouplist(&name, Gid::from_raw(gid)).ok())
        .unwrap_or_default();
    let mut groups: Vec<u32> = listed.into_iter().map(Gid::as_raw).collect();
    groups.push(gid);
    groups
}

/// Lets a request in, or says why not. Reads nothing of its body.
pub(crate) fn admit(
    access: Access,
    caller: Caller,
    headers: &HeaderMap,
    http: Option<&HttpSettings>,
) -> Result<Who, Problem> {
    if access != Access::Public {
        own_origin(headers, caller)?;
    }
    match caller {
        Caller::Local { uid, rights } => match access {
            Access::Public | Access::Client if rights.client => {
                Ok(Who { uid, admin: rights.admin })
            }
            Access::Admin if rights.admin => Ok(Who { uid, admin: true }),
            Access::Admin => Err(Problem::forbidden(format!(
                "user {uid} may not give orders: that takes root, the daemon's own user or a member \
                 of admin_group"
            ))),
            Access::Public | Access::Client => Err(Problem::forbidden(format!(
                "user {uid} may not call: that takes a member of client_group or admin_group"
            ))),
        },
        Caller::Network if access == Access::Public => Ok(Who { uid: NOBODY, admin: false }),
        Caller::Network => admit_by_token(headers, http),
    }
}

fn admit_by_token(headers: &HeaderMap, http: Option<&HttpSettings>) -> Result<Who, Problem> {
    let unauthorized =
        |detail: &str| Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", detail);
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let Some((http, token)) = http.and_then(|http| Some((http, http.token.as_ref()?))) else {
        return Err(unauthorized("over TCP this wants a token, and http.token_file names none"));
    };
    host_matches(headers, http)?;
    let bearer = text(header::AUTHORIZATION).and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
    });
    match bearer {
        Some(given) if same(given.as_bytes(), token.expose().as_bytes()) => {
            Ok(Who { uid: NOBODY, admin: true })
        }
        Some(_) => Err(unauthorized("the token is not the one in http.token_file")),
        None => Err(unauthorized("over TCP this wants Authorization: Bearer and a token")),
    }
}

/// Refuses a page in a browser that was rebound to this address: it brings its own host name.
///
/// # Errors
/// 403 where the host is not the one that `http.listen` names.
pub(crate) fn host_matches(headers: &HeaderMap, http: &HttpSettings) -> Result<(), Problem> {
    let listen = http.listen;
    let host = headers.get(header::HOST).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let matches = host == listen.to_string()
        || host.strip_prefix("localhost:").and_then(|port| port.parse().ok())
            == Some(listen.port())
        || (listen.ip().is_unspecified()
            && host.parse::<SocketAddr>().is_ok_and(|a| a.port() == listen.port()));
    let refused =
        || Problem::forbidden("the Host header must be the address that http.listen names");
    matches.then_some(()).ok_or_else(refused)
}

/// Refuses what a page of another origin sends in its user's name. A browser names the origin of
/// whatever may change something; programs name none. Where the socket is forwarded to a port, nothing
/// else would tell such a page from its user, and a rebound one brings a host of its own.
fn own_origin(headers: &HeaderMap, caller: Caller) -> Result<(), Problem> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
    let origin = origin.to_str().unwrap_or_default();
    let from = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
    let host = text(header::HOST).unwrap_or_default();
    let same = from.is_some_and(|from| from == host && !host.is_empty());
    if same && (caller == Caller::Network || is_loopback(host)) {
        return Ok(());
    }
    Err(Problem::forbidden("a page of another origin may not do this"))
}

/// Whether a `Host` is this host under a name that nobody else can have.
fn is_loopback(host: &str) -> bool {
    let name = host.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok());
    let name = name.map_or(host, |(name, _)| name);
    let ip = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    name == "localhost" || ip.is_ok_and(|ip| ip.is_loopback())
}

/// Compares without leaving early, so that time says nothing about where two texts differ.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |sum, (x, y)| sum | (x ^ y)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;

    const POLICY: Policy = Policy { own: 900, clients: Some(50), admins: Some(60) };

    #[test]
    fn rights_follow_user_and_groups() {
        for (uid, groups, client, admin) in [
            (0, vec![0], true, true),
            (900, vec![900], true, true),
            (1_000, vec![1_000, 60], true, true),
            (1_000, vec![1_000, 50], true, false),
            (1_000, vec![1_000], false, false),
            (1_000, vec![], false, false),
        ] {
            assert_eq!(POLICY.rights(uid, &groups), Rights { client, admin }, "{uid} {groups:?}");
        }
        let unknown = Policy { own: 900, clients: None, admins: None };
        assert!(!unknown.rights(1_000, &[50, 60]).client);
    }

    fn local(client: bool, admin: bool) -> Caller {
        Caller::Local { uid: 7, rights: Rights { client, admin } }
    }

    #[test]
    fn routes_admit_by_rights() {
        let status = |access, caller| {
            admit(access, caller, &HeaderMap::new(), None)
                .map_err(|problem| problem.status().as_u16())
        };
        let who = |admin| Ok(Who { uid: 7, admin });
        for (caller, public, client, admin) in [
            (local(true, true), who(true), who(true), who(true)),
            (local(true, false), who(false), who(false), Err(403)),
            (local(false, false), Err(403), Err(403), Err(403)),
            (Caller::Network, Ok(Who { uid: NOBODY, admin: false }), Err(401), Err(401)),
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
            token_file: None,
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
        assert_eq!(status(Caller::Network, "a:1", "http://a:1"), Err(401), "the token is next");
        let foreign = HeaderMap::from_iter([(header::ORIGIN, "http://b".parse().unwrap())]);
        assert!(admit(Access::Public, own, &foreign, None).is_ok(), "nothing is changed there");
    }

    #[tokio::test]
    async fn this_process_is_an_admin_of_its_own_daemon() {
        let own = Uid::effective().as_raw();
        let peers = Peers::new(Policy { own, clients: None, admins: None });
        let Caller::Local { rights, .. } = peers.local(own, 0).await else { panic!("local") };
        assert!(rights.admin);
        let Caller::Local { rights, .. } = peers.local(4_000_000, 4_000_000).await else {
            panic!("local")
        };
        assert!(!rights.client);
    }
}
