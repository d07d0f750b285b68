//! Who is at the door, and what they may do.
//!
//! On the Unix socket the kernel says who connected (`SO_PEERCRED`, as of `connect`); the groups are
//! looked up by the user's name, because a process's own list can be read only by racing its id. On
//! TCP nobody is known: health, metrics and the status page are open, the rest wants a token.

use std::{
    collections::HashMap,
    ffi::CString,
    time::{Duration, Instant},
};

use nix::unistd::{Gid, Group, Uid, User, getgrouplist};
use parking_lot::Mutex;

use super::refusal::Denied;
use crate::config::GroupName;

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

/// What a local user may do at a route.
///
/// # Errors
/// The right that is missing.
pub(crate) fn may(access: Access, uid: u32, rights: Rights) -> Result<Who, Denied> {
    match access {
        Access::Public | Access::Client if rights.client => Ok(Who { uid, admin: rights.admin }),
        Access::Admin if rights.admin => Ok(Who { uid, admin: true }),
        Access::Admin => Err(Denied::Forbidden(format!(
            "user {uid} may not give orders: that takes root, the daemon's own user or a member \
             of admin_group"
        ))),
        Access::Public | Access::Client => Err(Denied::Forbidden(format!(
            "user {uid} may not call: that takes a member of client_group or admin_group"
        ))),
    }
}

/// Whether two secrets are the same. Compares without leaving early, so that time says nothing about where they
/// differ.
pub(crate) fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |sum, (x, y)| sum | (x ^ y)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

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
