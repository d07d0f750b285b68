//! One life of the daemon: from its start until it is killed, stopped or everything is over.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use fusebox_state::system::SystemState;
use tokio::runtime::Builder;

use super::{
    act::{Act, Operator},
    caller::Caller,
    connector::Model,
    scene::{BACKENDS, ms},
    settings::settings,
    store::Stores,
    watch::Watch,
    world::Shared,
};
use crate::{BackendSpec, Fusebox, PingSettings, SystemSettings, ground::Ground};

/// Programs that call.
const CALLERS: u64 = 3;
/// The time between two looks, in milliseconds.
const LOOK_EVERY: u64 = 1_000;
/// How long all may take that is left once the faults have ended.
const CALM: Duration = Duration::from_secs(40 * 60);
/// The looks for which nothing happens at the end: what is on the wire is over by then.
const IDLE_LOOKS: u64 = 10;
/// How long a stop may take.
const GRACE: Duration = Duration::from_secs(25);

/// How a life of the daemon ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// Another one follows.
    Killed,
    /// The simulation is over.
    Over,
}

/// See the [module](self).
pub(super) struct Incarnation {
    world: Shared,
    fusebox: Fusebox,
    operator: Operator,
    watch: Watch,
    stopping: Arc<AtomicBool>,
}

impl Incarnation {
    /// Lives one life. What ran is dropped wherever it is.
    ///
    /// # Errors
    /// Why the daemon does not start.
    pub(super) fn live(world: &Shared) -> Result<Ended, String> {
        let runtime = Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .map_err(|error| error.to_string())?;
        runtime.block_on(async {
            let mut own = Self::start(world).await?;
            let ended = own.run().await;
            world.daemon_ends();
            Ok(ended)
        })
    }

    async fn start(world: &Shared) -> Result<Self, String> {
        let clock = world.daemon_begins();
        let stores = Arc::new(Stores(Arc::clone(world)));
        let ground = Ground::simulated(clock, stores);
        let system = SystemSettings {
            state_dir: "/".into(),
            pings: PingSettings::every(Duration::from_secs(10)),
            instance: "simulated".into(),
            copied: None,
        };
        let specs = (0..BACKENDS.len()).map(|at| {
            let settings = settings(at);
            let connector = Arc::new(Model::new(Arc::clone(world), at, settings.timeout));
            BackendSpec { settings, connector }
        });
        world.note(|| "the daemon starts".into());
        let fusebox = Fusebox::start_on(ground, system, specs.collect(), None).await;
        let fusebox = fusebox.map_err(|error| error.to_string())?;
        let stopping = Arc::new(AtomicBool::new(false));
        for _ in 0..CALLERS {
            let caller = Caller::new(world, &fusebox, &stopping);
            tokio::spawn(caller.run());
        }
        Ok(Self {
            world: Arc::clone(world),
            operator: Operator::new(world, &fusebox),
            watch: Watch::new(world, &fusebox),
            fusebox,
            stopping,
        })
    }

    async fn run(&mut self) -> Ended {
        let end = u64::from(self.world.scenario.hours) * 3_600_000;
        let mut next_look = self.world.now() + LOOK_EVERY;
        let mut next_act = self.operator.next();
        while self.world.now() < end {
            let next = next_look.min(next_act).min(end);
            tokio::time::sleep(ms(next.saturating_sub(self.world.now()).max(1))).await;
            let now = self.world.now();
            if now >= next_act {
                match self.operator.act() {
                    Act::Done => {}
                    Act::Kill => return self.ends(),
                    Act::Stop => {
                        self.fusebox.shutdown(GRACE).await;
                        return self.ends();
                    }
                }
                next_act = self.operator.next();
            }
            if now >= next_look {
                next_look = now + LOOK_EVERY;
            }
            if !self.looks() {
                return Ended::Over;
            }
        }
        self.calm().await;
        Ended::Over
    }

    fn ends(&mut self) -> Ended {
        self.looks();
        self.watch.look_at_queues();
        self.world.note(|| "the daemon ends".into());
        Ended::Killed
    }

    /// Whether every invariant holds.
    fn looks(&mut self) -> bool {
        self.world.step.fetch_add(1, Relaxed);
        self.watch.look();
        !self.world.is_broken()
    }

    /// The faults are over: what is left is to come to its end.
    async fn calm(&mut self) {
        self.world.note(|| "the faults are over".into());
        self.stopping.store(true, Relaxed);
        self.operator.calm().await;
        let until = self.world.now() + u64::try_from(CALM.as_millis()).unwrap_or(u64::MAX);
        let mut looks_left = IDLE_LOOKS;
        while looks_left > 0 {
            looks_left = if self.is_calm() { looks_left - 1 } else { IDLE_LOOKS };
            if self.world.now() > until {
                let left = self.watch.left();
                return self.world.broken(format!(
                    "all faults have ended, but the queues do not become empty: {left}"
                ));
            }
            tokio::time::sleep(ms(LOOK_EVERY)).await;
            if !self.looks() {
                return;
            }
        }
        self.watch.look_at_queues();
        self.watch.all_is_given_back();
        let in_order = self.world.ledger.lock().ended_in_order();
        self.world.check(in_order);
        self.fusebox.shutdown(GRACE).await;
        self.world.note(|| "every invariant holds".into());
    }

    fn is_calm(&self) -> bool {
        self.fusebox.health().state == SystemState::Healthy.into()
            && self.watch.is_drained()
            && self.world.ledger.lock().is_idle()
    }
}
