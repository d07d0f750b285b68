//! `fusebox demo`: an outage, a daemon that is killed in it, and a recovery, shown as it happens.
//!
//! ```text
//! this process                                    its child, the real daemon
//!   callers ── calls over the command socket ───▶   fusebox run
//!     and stock clients ── the three doors ────────▶   │
//!   stand-ins for Redis, ClickHouse                   └ stores in a temporary folder
//!     and Firestore ◀── TCP on loopback ────────────────┘
//! ```
//!
//! Only the backends are stand-ins. The daemon is this binary's own `run`, with short times, killed with
//! SIGKILL and started again on what it left on the disk. In the end the answers to callers are compared
//! with what the stand-ins applied (`proof.rs`); the exit code is 0 only if every promise was kept.
//! What `kill -9` cannot show is a power cut: the kernel still has what was written and not synced.

use std::{process::ExitCode, sync::Arc, time::Duration};

use tokio::signal::unix::{SignalKind, signal};

mod backend;
mod call;
mod callers;
mod ledger;
mod proof;
mod screen;
mod shown;
mod stage;
mod status;
mod stock;
mod story;
mod tables;
mod watch;

use screen::Screen;
use stage::Stage;
pub(crate) use story::DemoOptions;
use story::Story;

/// Runs the demo. Whatever its end, the daemon is dead and the folder gone when this returns.
///
/// # Errors
/// It could not be played to its end.
pub(crate) async fn run(options: DemoOptions) -> anyhow::Result<ExitCode> {
    let (mut interrupt, mut terminate) =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut hangup = signal(SignalKind::hangup())?;
    let mut stage = Stage::set().await?;
    let screen = Arc::new(Screen::new(Duration::from_secs(options.seconds.into())));
    screen.print(
        "fusebox demo: a real daemon, stand-ins for Redis, ClickHouse and Firestore, and callers that do not\nknow \
         what will happen.",
    );
    let story = Box::pin(Story::new(options, Arc::clone(&screen), &mut stage).tell());
    let told = tokio::select! {
        told = story => Some(told),
        () = screen.closed.notified() => None,
        _ = interrupt.recv() => None,
        _ = terminate.recv() => None,
        _ = hangup.recv() => None,
    };
    screen.end_status();
    if !matches!(told, None | Some(Ok(true))) {
        crate::terminal::print::complain(&stage.log_end());
    }
    stage.strike().await;
    match told {
        Some(Ok(true)) => Ok(ExitCode::SUCCESS),
        Some(Ok(false)) => Ok(ExitCode::FAILURE),
        Some(Err(error)) => Err(error),
        None => {
            crate::terminal::print::complain(
                "fusebox: interrupted; the demo's daemon and folder are gone",
            );
            Ok(ExitCode::from(130))
        }
    }
}
