//! The signals that stop the daemon, or have it read its configuration again.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that the daemon obeys.
pub(crate) struct Signals {
    stops: Stops,
    hangup: Signal,
}

/// Those that stop it. They are waited for by themselves: a stop waits for no reload.
struct Stops {
    terminate: Signal,
    interrupt: Signal,
}

impl Stops {
    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

impl Signals {
    /// Obeys them from here on.
    ///
    /// # Errors
    /// The system takes no handler.
    pub(crate) fn new() -> io::Result<Self> {
        let (terminate, interrupt) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let hangup = signal(SignalKind::hangup())?;
        Ok(Self { stops: Stops { terminate, interrupt }, hangup })
    }

    /// Waits for one that stops. A SIGHUP that comes meanwhile is not lost: [`Signals::obey`] sees to it.
    pub(crate) async fn stop(&mut self) {
        self.stops.next().await;
    }

    /// Does `reload` at each SIGHUP, until one that stops comes. That breaks a reload off, which is no worse than a
    /// crash.
    pub(crate) async fn obey(&mut self, mut reload: impl AsyncFnMut()) {
        let Self { stops, hangup } = self;
        let reloads = async {
            while hangup.recv().await.is_some() {
                reload().await;
            }
            // No more of them come.
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = stops.next() => {}
            () = reloads => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{future::pending, time::Duration};

    use nix::sys::signal::{Signal as Raised, raise};
    use tokio::{sync::Notify, time::timeout};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn a_stop_does_not_wait_for_a_reload_and_a_reload_that_comes_early_is_not_lost() {
        let (mut signals, begun) = (Signals::new().unwrap(), Notify::new());
        raise(Raised::SIGHUP).unwrap();
        // As a daemon does that still starts.
        assert!(timeout(Duration::from_millis(1), signals.stop()).await.is_err());
        let hangs = async || {
            begun.notify_one();
            pending::<()>().await;
        };
        let stop = async {
            begun.notified().await;
            raise(Raised::SIGTERM).unwrap();
        };
        let obeyed = async { tokio::join!(signals.obey(hangs), stop) };
        timeout(PATIENCE, obeyed).await.expect("it stops in the middle of a reload");
    }
}
