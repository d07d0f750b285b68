//! Who is at the door, and what they may do.
//!
//! On the Unix socket the kernel says who connected and which groups that process had, both as of `connect`
//! (`SO_PEERCRED`, `SO_PEERGROUPS`). The host's user database is not asked: what counts is what the process was
//! given (`SupplementaryGroups=`, `--group-add`, another user of the same pod), and a right that it has given up
//! is gone. So nothing is remembered from one connection to the next either. On TCP nobody is known: health,
//! metrics and the status page are open, the rest wants a token.
//!
//! The kernel writes an id that this user namespace cannot express as the *overflow* id (65534, usually). Many
//! users and groups look like that one, so it never grants anything.

use std::{
    fmt, io,
    os::fd::{AsFd, AsRawFd},
};

use nix::unistd::{Group, Uid};
use tokio::net::UnixStream;

use super::{
    callers::{Known, Right},
    refusal::Denied,
};
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
    /// Whether they are known by the token alone.
    pub(crate) by_token: bool,
}

impl From<&Known> for Who {
    fn from(known: &Known) -> Self {
        Self { uid: NOBODY, admin: known.right == Right::Admin, by_token: true }
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.by_token { f.write_str("the token") } else { write!(f, "user {}", self.uid) }
    }
}

/// The user id of callers on TCP, as kernels write "nobody".
pub(crate) const NOBODY: u32 = 65_534;
/// Groups that most processes have at most.
const FEW_GROUPS: usize = 256;
/// The most groups that a process can have.
const MOST_GROUPS: usize = 65_536;

/// Who counts as what.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Policy {
    /// The daemon's own user, if it is not the overflow user.
    pub(crate) own: Option<u32>,
    /// The group of clients, if the host knows it.
    pub(crate) clients: Option<u32>,
    /// The group of admins, if the host knows it.
    pub(crate) admins: Option<u32>,
}

impl Policy {
    /// The policy of these groups, and a warning for each that was asked for and grants nothing.
    pub(crate) fn resolve(clients: &GroupName, admins: &GroupName) -> (Self, Vec<String>) {
        let mut warnings = Vec::new();
        let mut gid = |key: &str, group: &GroupName| {
            let found = group.name.parse().ok().or_else(|| {
                let named = Group::from_name(&group.name).ok().flatten();
                named.map(|group| group.gid.as_raw())
            });
            let overflows = found == Some(overflow("gid"));
            if group.asked && (found.is_none() || overflows) {
                let why = if overflows {
                    "which represents every group that is not known here"
                } else {
                    "which this host does not know"
                };
                warnings.push(format!(
                    "{key} names {:?}, {why}: it gives rights only to root and the daemon's own user",
                    group.name
                ));
            }
            found.filter(|_| !overflows)
        };
        let clients = gid("client_group", clients);
        let admins = gid("admin_group", admins);
        let uid = Uid::effective().as_raw();
        let own = (uid != overflow("uid")).then_some(uid);
        if own.is_none() {
            warnings.push(format!(
                "the daemon's own user {uid} represents every user that is not known here: it gives no rights"
            ));
        }
        (Self { own, clients, admins }, warnings)
    }

    /// What the user `uid` with these groups may do.
    pub(crate) fn rights(&self, uid: u32, groups: &[u32]) -> Rights {
        let member = |group: Option<u32>| group.is_some_and(|gid| groups.contains(&gid));
        let admin = uid == 0 || self.own == Some(uid) || member(self.admins);
        Rights { client: admin || member(self.clients), admin }
    }

    /// The process at the other end of `stream`.
    ///
    /// # Errors
    /// The kernel does not say who it is.
    pub(crate) fn local(&self, stream: &UnixStream) -> io::Result<Caller> {
        let peer = stream.peer_cred()?;
        // If the kernel does not say (a sandbox that imitates one), the first group is all that is known.
        let mut groups = groups(stream).unwrap_or_default();
        groups.push(peer.gid());
        Ok(Caller::Local { uid: peer.uid(), rights: self.rights(peer.uid(), &groups) })
    }
}

/// The id for all those that this user namespace cannot express.
fn overflow(kind: &str) -> u32 {
    let told = std::fs::read_to_string(format!("/proc/sys/kernel/overflow{kind}"));
    told.ok().and_then(|told| told.trim().parse().ok()).unwrap_or(NOBODY)
}

/// The groups of the process at the other end but its first, as of its `connect`.
fn groups(stream: &impl AsFd) -> io::Result<Vec<u32>> {
    let ask = |most: usize| {
        let mut groups = vec![0_u32; most];
        let socket = stream.as_fd().as_raw_fd();
        let read = uapi::getsockopt(
            socket,
            uapi::c::SOL_SOCKET,
            uapi::c::SO_PEERGROUPS,
            groups.as_mut_slice(),
        )?;
        groups.truncate(read / size_of::<u32>());
        Ok(groups)
    };
    match ask(FEW_GROUPS) {
        Err(uapi::Errno(uapi::c::ERANGE)) => ask(MOST_GROUPS).map_err(io::Error::from),
        asked => asked.map_err(io::Error::from),
    }
}

/// What a local user may do at a route.
///
/// # Errors
/// The right that is missing.
pub(crate) fn may(access: Access, uid: u32, rights: Rights) -> Result<Who, Denied> {
    match access {
        Access::Public | Access::Client if rights.client => {
            Ok(Who { uid, admin: rights.admin, by_token: false })
        }
        Access::Admin if rights.admin => Ok(Who { uid, admin: true, by_token: false }),
        Access::Admin => Err(Denied::Forbidden(format!(
            "user {uid} has no admin rights: these are for root, the daemon's own user and \
             members of admin_group"
        ))),
        Access::Public | Access::Client => Err(Denied::Forbidden(format!(
            "user {uid} may not call: that is for members of client_group or admin_group"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use nix::unistd::{Gid, getgid, getgroups};

    use super::*;

    const POLICY: Policy = Policy { own: Some(900), clients: Some(50), admins: Some(60) };

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
        let unknown = Policy { own: Some(900), clients: None, admins: None };
        assert!(!unknown.rights(1_000, &[50, 60]).client);
    }

    #[test]
    fn a_group_is_named_or_numbered_and_the_overflow_group_grants_nothing() {
        let group = |name: &str| GroupName { name: name.to_owned(), asked: true };
        let resolve = |clients: &str| {
            let (policy, warnings) = Policy::resolve(&group(clients), &group("root"));
            (policy.clients, warnings.len())
        };
        assert_eq!(resolve("2000"), (Some(2_000), 0));
        assert_eq!(resolve("root"), (Some(0), 0));
        assert_eq!(resolve("no-such-group"), (None, 1));
        assert_eq!(resolve(&overflow("gid").to_string()), (None, 1));
        let (policy, warnings) = Policy::resolve(&group(&overflow("gid").to_string()), &group("0"));
        assert!(!policy.rights(1_000, &[overflow("gid")]).client);
        assert!(warnings[0].contains("every group that is not known here"), "{warnings:?}");
    }

    #[tokio::test]
    async fn a_processs_own_groups_are_read_from_its_connection() {
        let (one, _other) = UnixStream::pair().unwrap();
        let own: Vec<u32> = getgroups().unwrap().into_iter().map(Gid::as_raw).collect();
        assert_eq!(groups(&one).unwrap(), own);
        let policy = Policy { own: None, clients: Some(getgid().as_raw()), admins: None };
        let Caller::Local { rights, uid } = policy.local(&one).unwrap() else { panic!("local") };
        assert_eq!((uid, rights.client), (Uid::current().as_raw(), true));
    }

    #[test]
    fn who_gave_an_order_is_named_by_what_is_known_of_them() {
        let user = Who { uid: 7, admin: true, by_token: false };
        assert_eq!(format!("by {user}"), "by user 7");
        let token = Who { uid: NOBODY, admin: true, by_token: true };
        assert_eq!(format!("by {token}"), "by the token");
    }
}
