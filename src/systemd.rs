//! What systemd wants to hear, and the socket that it may hand over. Without it all of this is silent.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use listenfd::ListenFd;
use sd_notify::NotifyState;
use tokio::net::UnixListener;

use crate::daemon::Daemon;

/// The name of the socket in `fusebox.socket` (`FileDescriptorName=`).
const SOCKET: &str = "fusebox";

/// The command socket, where systemd (or whoever started the process) hands one over by that name, or
/// hands over exactly one without a name. It is never unlinked: it belongs to who made it.
///
/// # Errors
/// What was handed over is no Unix listener.
pub(crate) fn inherited() -> anyhow::Result<Option<UnixListener>> {
    let names: Vec<String> = match sd_notify::listen_fds_with_names() {
        Ok(sockets) => sockets.map(|(_, name)| name).collect(),
        Err(error) => {
            tracing::debug!(%error, "no sockets are handed over");
            Vec::new()
        }
    };
    let by_name = names.iter().position(|name| name == SOCKET);
    let only = (names.len() == 1).then_some(0);
    let Some(index) = by_name.or(only) else { return Ok(None) };
    let handed = ListenFd::from_env().take_unix_listener(index);
    let listener = handed.context("the socket that was handed over is no Unix listener")?;
    let Some(listener) = listener else { return Ok(None) };
    listener.set_nonblocking(true).context("the socket that was handed over")?;
    Ok(Some(UnixListener::from_std(listener)?))
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd was not told");
    }
}

/// Started, or done with a reload.
pub(crate) fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// A reload has begun.
pub(crate) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::debug!(%error, "systemd was not told"),
    }
}

/// Stopping has begun and takes at most `grace`.
pub(crate) fn stopping(grace: Duration) {
    let micros = u32::try_from((grace + Duration::from_secs(5)).as_micros()).unwrap_or(u32::MAX);
    tell(&[NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(micros)]);
}

/// Feeds the watchdog, where there is one, for as long as the actors' own loop runs.
pub(crate) async fn watchdog(daemon: Arc<Daemon>) {
    let Some(patience) = sd_notify::watchdog_enabled() else { return };
    let mut beat = tokio::time::interval((patience / 3).max(Duration::from_millis(10)));
    loop {
        beat.tick().await;
        if daemon.fusebox.is_alive() {
            tell(&[NotifyState::Watchdog]);
        } else {
            tracing::error!("the actors do not look around: the watchdog goes hungry");
        }
    }
}
