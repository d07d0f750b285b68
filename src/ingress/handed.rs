//! The sockets that systemd hands over, or whoever started the process.

use std::sync::Arc;

use anyhow::{Context, bail};
use listenfd::ListenFd;
use tokio::net::{TcpListener, UnixListener};

use super::listener::Listener;
use crate::config::DoorSettings;

/// The name of the command socket in `fusebox.socket` (`FileDescriptorName=`).
const SOCKET: &str = "fusebox";

/// The sockets that are handed over. They are never unlinked: they belong to who made them.
pub(crate) struct Handed {
    /// `None` of those that are taken.
    names: Vec<Option<String>>,
    sockets: ListenFd,
}

impl Handed {
    /// Those of this process. Ask once.
    pub(crate) fn of_process() -> Self {
        let names = match sd_notify::listen_fds_with_names() {
            Ok(sockets) => sockets.map(|(_, name)| Some(name)).collect(),
            Err(error) => {
                tracing::debug!(%error, "systemd passes no sockets");
                Vec::new()
            }
        };
        Self { names, sockets: ListenFd::from_env() }
    }

    /// The command socket: the one of that name, or the only one, unless a door takes it.
    ///
    /// # Errors
    /// It is no Unix listener.
    pub(crate) fn command(
        &mut self,
        doors: &[Arc<DoorSettings>],
    ) -> anyhow::Result<Option<UnixListener>> {
        let is_only = self.names.len() == 1;
        let found = self
            .take(|name| name == SOCKET || is_only && !doors.iter().any(|door| door.takes(name)))?;
        match found {
            None => Ok(None),
            Some(Listener::Unix(listener)) => Ok(Some(listener)),
            Some(Listener::Tcp(_)) => {
                bail!("the command socket that systemd passes is not a Unix socket")
            }
        }
    }

    /// The first one whose name is `wanted`, if there is any.
    ///
    /// # Errors
    /// It does not listen.
    pub(crate) fn take(
        &mut self,
        wanted: impl Fn(&str) -> bool,
    ) -> anyhow::Result<Option<Listener>> {
        let is_wanted = |name: &Option<String>| name.as_deref().is_some_and(&wanted);
        let Some(index) = self.names.iter().position(is_wanted) else { return Ok(None) };
        let name = self.names.get_mut(index).and_then(Option::take).unwrap_or_default();
        // One of another family is left at its place.
        if let Ok(Some(listener)) = self.sockets.take_unix_listener(index) {
            listener.set_nonblocking(true)?;
            return Ok(Some(Listener::Unix(UnixListener::from_std(listener)?)));
        }
        let listener = self.sockets.take_tcp_listener(index);
        let no_listener = || format!("the socket {name} that systemd passes is not a listener");
        let Some(listener) = listener.with_context(no_listener)? else { return Ok(None) };
        listener.set_nonblocking(true)?;
        Ok(Some(Listener::Tcp(TcpListener::from_std(listener)?)))
    }

    /// The names of those that nobody has taken.
    pub(crate) fn rest(&self) -> impl Iterator<Item = &str> {
        self.names.iter().flatten().map(String::as_str)
    }

    /// What there is to take, for people.
    pub(crate) fn there(&self) -> String {
        let names: Vec<&str> = self.rest().collect();
        format!(
            "there are: {}",
            if names.is_empty() { "none".to_owned() } else { names.join(", ") }
        )
    }
}
