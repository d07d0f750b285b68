//! What systemd wants to hear. Without it all of this is silent.

use std::{sync::Arc, time::Duration};

use sd_notify::NotifyState;

use crate::daemon::Daemon;

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd was not notified");
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
        Err(error) => tracing::debug!(%error, "systemd was not notified"),
    }
}

/// Stopping has begun and takes at most `grace`.
pub(crate) fn stopping(grace: Duration) {
    let micros = u32::try_from((grace + Duration::from_secs(5)).as_micros()).unwrap_or(u32::MAX);
    tell(&[NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(micros)]);
}

/// Feeds the watchdog, if there is one, for as long as the actors' own loop runs.
pub(crate) async fn watchdog(daemon: Arc<Daemon>) {
    let Some(patience) = sd_notify::watchdog_enabled() else { return };
    let mut beat = tokio::time::interval((patience / 3).max(Duration::from_millis(10)));
    loop {
        beat.tick().await;
        if daemon.fusebox.is_alive() {
            tell(&[NotifyState::Watchdog]);
        } else {
            tracing::error!("the actors do not answer: the watchdog is not notified");
        }
    }
}
