//! The wire doors of a running daemon: their sockets, and the protocols behind them.
//!
//! ```text
//!   bind, before the stores open ──▶ start, once the core runs ──▶ the daemon stops: doors accept nothing more, and
//!   each ends its connections while the core still carries calls
//! ```

use std::{path::Path, sync::Arc};

use anyhow::{Context, bail};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::{net::TcpListener, sync::watch, task::JoinSet};

use crate::{
    config::{DoorAddress, DoorSettings, Family},
    ingress::{
        door::{ServedDoor, WireDoor},
        gate::Sharing,
        handed::Handed,
        listener::Listener,
        peer::Policy,
        socket::{self, OwnSocket},
    },
};

/// Open files besides those of doors: stores, backends, the command socket's connections.
const OTHER_FILES: u64 = 2_048;

/// A door that listens, and that nobody serves yet: who connects waits in the backlog.
pub(crate) struct Bound {
    settings: Arc<DoorSettings>,
    listener: Listener,
    own: Option<OwnSocket>,
}

/// Listens at the address of each door. A door that is there by default and cannot listen is left out, with a warning.
/// `socket` is the command socket's path. What is made has the mode that it is to have, whatever the umask.
///
/// # Errors
/// A door of the file cannot listen.
pub(crate) async fn bind(
    doors: &[Arc<DoorSettings>],
    socket: &Path,
    group: Option<u32>,
    handed: &mut Handed,
) -> anyhow::Result<Vec<Bound>> {
    let mut bound = Vec::new();
    for door in doors {
        let door = door.beside(socket);
        match (listen(&door, group, handed).await, &door.key) {
            (Ok(one), _) => bound.push(one),
            (Err(error), Some(key)) => return Err(error.context(format!("{key}.listen"))),
            (Err(error), None) => {
                let why = format!("{error:#}");
                tracing::warn!(backend = door.backend, why, "it has no door by default");
            }
        }
    }
    for name in handed.rest() {
        tracing::warn!(
            name,
            "systemd passes a socket that fusebox does not use: its clients get no answer"
        );
    }
    make_room(&bound);
    Ok(bound)
}

async fn listen(
    door: &DoorSettings,
    group: Option<u32>,
    handed: &mut Handed,
) -> anyhow::Result<Bound> {
    let settings = Arc::new(door.clone());
    let (listener, own) = match (handed.take(|name| door.takes(name))?, &door.listen) {
        (Some(listener), _) => return at_handed(door, listener),
        (None, DoorAddress::Unix(path)) => {
            let (listener, own) = socket::bind(path, group)?;
            (Listener::Unix(listener), Some(own))
        }
        (None, DoorAddress::Tcp(address)) => {
            let listener = TcpListener::bind(address).await;
            (Listener::Tcp(listener.with_context(|| format!("cannot listen at {address}"))?), None)
        }
        (None, DoorAddress::Handed(name)) => {
            bail!(
                "systemd passes no socket with the name {name} (FileDescriptorName=); {}",
                handed.there()
            )
        }
    };
    Ok(Bound { settings, listener, own })
}

/// What was handed over belongs to who made it; its family says who may call.
fn at_handed(door: &DoorSettings, listener: Listener) -> anyhow::Result<Bound> {
    let family = match &listener {
        Listener::Unix(_) => Family::Unix,
        Listener::Tcp(listener) => Family::Tcp(listener.local_addr()?),
    };
    let (settings, warning) = door.handed(family).map_err(anyhow::Error::msg)?;
    if let Some(warning) = warning {
        tracing::warn!("{warning}");
    }
    Ok(Bound { settings: Arc::new(settings), listener, own: None })
}

/// Lets the process open as many files as its doors may have connections, as far as it may.
fn make_room(doors: &[Bound]) {
    if doors.is_empty() {
        return;
    }
    let each = doors.iter().map(|door| u64::from(door.settings.connections + door.settings.pinned));
    let wanted = each.sum::<u64>() + OTHER_FILES;
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return };
    let most = wanted.min(hard);
    if soft < most
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, most, hard)
    {
        tracing::debug!(%error, "cannot raise the limit of open files");
    }
    if soft.max(most) < wanted {
        tracing::info!(
            files = soft.max(most),
            wanted,
            "the process may open fewer files than its doors may have connections; raise LimitNOFILE or ulimit -n"
        );
    }
}

/// Doors that are served.
#[derive(Default)]
pub(crate) struct Serving {
    /// Each of them.
    pub(crate) doors: Vec<Arc<ServedDoor>>,
    /// The sockets that the daemon made for them, to be dropped when it stops.
    pub(crate) own: Vec<OwnSocket>,
}

/// Serves the doors, each behind what `make` makes of its settings, in tasks of `tasks` that end when `stopping` turns
/// true and their connections have ended.
///
/// # Errors
/// A door of the file cannot be made.
pub(crate) fn start(
    bound: Vec<Bound>,
    policy: Policy,
    make: impl Fn(&Arc<DoorSettings>) -> Result<Arc<dyn WireDoor>, String>,
    stopping: &watch::Receiver<bool>,
    tasks: &mut JoinSet<()>,
) -> anyhow::Result<Serving> {
    let mut serving = Serving::default();
    for Bound { settings, listener, own } in bound {
        let door = match (make(&settings), &settings.key) {
            (Ok(door), _) => door,
            (Err(why), Some(key)) => bail!("{key}: {why}"),
            (Err(why), None) => {
                tracing::warn!(backend = settings.backend, why, "it has no door by default");
                continue;
            }
        };
        let sharing = match &listener {
            Listener::Unix(_) => Sharing::Users,
            Listener::Tcp(_) => Sharing::Nobody,
        };
        tracing::info!(door = %settings.listen, backend = settings.backend, "a door is open");
        let door = Arc::new(ServedDoor::new(settings, policy, door, sharing));
        tasks.spawn(Arc::clone(&door).serve(listener, stopping.clone()));
        serving.doors.push(door);
        serving.own.extend(own);
    }
    Ok(serving)
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::UnixStream,
    };

    use super::*;
    use crate::{
        config::{Auth, doors_testing},
        ingress::door::testing::Echo,
    };

    #[tokio::test]
    async fn a_default_door_that_cannot_listen_is_left_out_and_one_of_the_file_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("fusebox.sock");
        let mut handed = Handed::of_process();
        let mut door = doors_testing::door(Auth::Peer, 4);
        door.key = None;
        let by_default = [Arc::new(door.clone())];
        let bound = bind(&by_default, &socket, None, &mut handed).await.unwrap();
        assert_eq!(bound.len(), 1);
        let path = dir.path().join("redis.sock");
        assert_eq!(bound[0].settings.listen, DoorAddress::Unix(path.clone()));
        let again = bind(&by_default, &socket, None, &mut handed).await.unwrap();
        assert!(again.is_empty(), "somebody listens there");
        door.key = Some("doors[0]".to_owned());
        door.listen = DoorAddress::Unix(path.clone());
        let of_the_file = [Arc::new(door.clone())];
        let error = bind(&of_the_file, &socket, None, &mut handed).await.map(|_| ()).unwrap_err();
        let said = format!("{error:#}");
        assert!(said.starts_with("doors[0].listen: another process listens at /"), "{said}");
        drop(bound);
        assert!(!path.try_exists().unwrap(), "it goes with the door");

        door.listen = DoorAddress::Handed("redis".to_owned());
        let error = bind(&[Arc::new(door)], &socket, None, &mut handed).await.map(|_| ());
        let said = format!("{:#}", error.unwrap_err());
        assert!(said.contains("systemd passes no socket with the name redis"), "{said}");
    }

    #[tokio::test]
    async fn a_door_is_served_until_the_daemon_stops() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("fusebox.sock");
        let mut door = doors_testing::door(Auth::Token, 4);
        door.key = None;
        let mut handed = Handed::of_process();
        let bound = bind(&[Arc::new(door)], &socket, None, &mut handed).await.unwrap();
        let (stop, mut tasks) = (watch::channel(false).0, JoinSet::new());
        let make = |_: &Arc<DoorSettings>| Ok(Arc::new(Echo::default()) as Arc<dyn WireDoor>);
        let policy = Policy::default();
        let serving = start(bound, policy, make, &stop.subscribe(), &mut tasks).unwrap();
        let mut stream = UnixStream::connect(dir.path().join("redis.sock")).await.unwrap();
        stream.write_all(b"hello").await.unwrap();
        let mut said = [0; 5];
        stream.read_exact(&mut said).await.unwrap();
        assert_eq!(&said, b"hello");
        let status = serving.doors[0].status();
        assert_eq!((status.connections_open, &*status.auth), (1, "token"));
        stop.send_replace(true);
        tasks.join_all().await;
        assert_eq!(stream.read(&mut said).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_door_that_cannot_be_made_is_left_out_by_default_and_an_error_of_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("fusebox.sock");
        let mut door = doors_testing::door(Auth::Peer, 4);
        let (stop, mut tasks) = (watch::channel(false).0, JoinSet::new());
        for key in [None, Some("doors[0]".to_owned())] {
            door.key = key;
            door.listen = DoorAddress::Unix(dir.path().join("redis.sock"));
            let doors = [Arc::new(door.clone())];
            let bound = bind(&doors, &socket, None, &mut Handed::of_process()).await.unwrap();
            let make = |_: &Arc<DoorSettings>| Err("it is broken".to_owned());
            let begun = start(bound, Policy::default(), make, &stop.subscribe(), &mut tasks);
            let begun = begun.map(|serving| serving.doors.len()).map_err(|why| why.to_string());
            let told = Err("doors[0]: it is broken".to_owned());
            assert_eq!(begun, if door.key.is_none() { Ok(0) } else { told });
        }
    }
}
