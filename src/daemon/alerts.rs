//! Runs the operator's command on alerts: see [`crate::alerts`].

use std::{sync::Arc, time::Duration};

use fusebox_actors::Clock;
use fusebox_state::Words;
use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};

use super::Daemon;
use crate::alerts::{
    command::{self, Around},
    conditions::Watch,
    ledger::{Ledger, Notice, PAUSE},
};

/// The time between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// The most commands at once.
const AT_ONCE: usize = 4;

/// Runs the command of the settings in effect, for as long as the daemon runs.
pub(crate) async fn run_on_alerts(daemon: Arc<Daemon>) {
    let clock = Clock::system();
    let (mut watch, mut ledger) = (Watch::default(), Ledger::new(daemon.alert_pause()));
    let mut running: JoinSet<(Notice, Result<(), Words>)> = JoinSet::new();
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            Some(ended) = running.join_next() => {
                if let Ok((notice, result)) = ended {
                    ledger.settle(&notice, result.is_ok());
                    daemon.alert_command_ended(result);
                }
                continue;
            }
            _ = looks.tick() => {}
        }
        let config = daemon.config.load_full();
        let settings = &config.alerts;
        if settings.command.is_empty() {
            ledger.clear();
            daemon.alert_command_fails.store(None);
            continue;
        }
        let (view, now) = (daemon.resilience(), clock.now());
        let around =
            Around { at: view.at, chaos: view.backends.values().any(|it| it.chaos.is_some()) };
        ledger.note(watch.look(&view, now), now, view.at);
        let room = AT_ONCE.saturating_sub(running.len());
        for notice in ledger.take(settings, now, room) {
            let argv = settings.command.clone();
            running.spawn(async move {
                let result = command::run(&argv, &notice, around).await;
                (notice, result)
            });
        }
    }
}

impl Daemon {
    /// The least time between two commands for the same alert; a test may have less.
    fn alert_pause(&self) -> Duration {
        let env = &self.sources.env;
        let hooks = env.get("FUSEBOX_TEST_HOOKS") == Some("1");
        let shorter = env.get("FUSEBOX_TEST_ALERT_PAUSE").filter(|_| hooks);
        shorter.and_then(|text| humantime::parse_duration(text).ok()).unwrap_or(PAUSE)
    }

    /// The alert command has ended. The first failure is logged, and the first success after it.
    fn alert_command_ended(&self, result: Result<(), Words>) {
        let failed_before = self.alert_command_fails.load().is_some();
        match result {
            Ok(()) if failed_before => {
                tracing::info!("the alert command works again");
                self.alert_command_fails.store(None);
            }
            Ok(()) => {}
            Err(why) => {
                if !failed_before {
                    tracing::warn!(
                        %why,
                        "the alert command fails: it is tried again once a minute, and further failures are not logged"
                    );
                }
                self.alert_command_fails.store(Some(Arc::new(why)));
            }
        }
    }
}
