//! The faults, and the operator: what is done to the world, and when.

use std::{sync::Arc, time::Duration};

use fusebox_state::chaos::{FaultOrder, Kind, Order};

use super::{
    body::Body,
    disk::Disk,
    scene::{BACKENDS, ms},
    server::Mode,
    settings::settings,
    world::{Panics, Shared},
};
use crate::{AdminError, Backend, Fusebox};

/// The mean time between two acts, in milliseconds.
const EVERY: u64 = 12_000;

/// What an act leaves to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    Done,
    /// The daemon is killed.
    Kill,
    /// It is stopped.
    Stop,
}

/// See the [module](self).
pub(super) struct Operator {
    world: Shared,
    fusebox: Fusebox,
    backends: Vec<Arc<Backend>>,
}

impl Operator {
    pub(super) fn new(world: &Shared, fusebox: &Fusebox) -> Self {
        Self { world: Arc::clone(world), fusebox: fusebox.clone(), backends: fusebox.backends() }
    }

    /// When the next act is, in milliseconds of the world.
    pub(super) fn next(&self) -> u64 {
        self.world.now() + self.world.rng().u64(1..EVERY * 2)
    }

    /// Does something.
    pub(super) fn act(&self) -> Act {
        let (what, at) = {
            let mut rng = self.world.rng();
            (rng.u8(..100), rng.usize(..BACKENDS.len()))
        };
        let Some(backend) = self.backends.get(at).cloned() else { return Act::Done };
        match what {
            0..50 => self.backend_fails(at),
            50..55 => self.backend_is_well(at),
            55..61 => self.disk_fails(at),
            61..65 => self.actor_panics(at, &backend),
            65..68 => self.wall_clock_is_set(),
            68..72 => return self.daemon_ends(at),
            _ => self.orders(what, at, backend),
        }
        Act::Done
    }

    fn tell(&self, at: usize, what: &str) {
        let name = BACKENDS.get(at).unwrap_or(&"");
        self.world.fault(format!("-- {name}: {what}"));
    }

    fn backend_fails(&self, at: usize) {
        let (mode, lasts) = {
            let mut rng = self.world.rng();
            let lasts = if rng.u8(..4) == 0 { 240_000 } else { 30_000 };
            (rng.choice(Mode::FAULTY).unwrap_or(Mode::Down), rng.u64(1_000..lasts))
        };
        self.tell(at, &format!("{mode:?} for {lasts} ms"));
        let until = self.world.now() + lasts;
        if let Some(mut server) = self.world.server(at) {
            server.fails(mode, until);
        }
    }

    fn backend_is_well(&self, at: usize) {
        self.tell(at, "Up");
        if let Some(mut server) = self.world.server(at) {
            server.fails(Mode::Up, 0);
        }
    }

    fn disk_fails(&self, at: usize) {
        let (is_kept, lasts) = {
            let mut rng = self.world.rng();
            (rng.bool(), rng.u64(500..30_000))
        };
        self.tell(at, &format!("its disk fails, what is synced is kept: {is_kept}"));
        if let Some(disk) = self.world.disks.get(at) {
            disk.fails(is_kept, self.world.now() + lasts);
        }
    }

    fn actor_panics(&self, at: usize, backend: &Backend) {
        if self.world.rng().bool() {
            self.tell(at, "its actor panics");
            backend.panic_for_test();
        } else if let Some(panics) = self.world.panics.get(at) {
            let when = if self.world.rng().bool() { Panics::Before } else { Panics::After };
            self.tell(at, &format!("its next replay panics: {when:?}"));
            *panics.lock() = Some(when);
        }
    }

    fn wall_clock_is_set(&self) {
        let by = {
            let mut rng = self.world.rng();
            let most = if rng.bool() { 5_000 } else { 7_200_000 };
            rng.i64(-most..most)
        };
        self.world.fault(format!("-- the wall clock is set by {by} ms"));
        self.world.set_wall_clock(by);
    }

    fn daemon_ends(&self, at: usize) -> Act {
        let (kills, refuses) = {
            let mut rng = self.world.rng();
            (rng.u8(..4) > 0, if rng.bool() { rng.u8(..4) } else { 0 })
        };
        self.tell(at, &format!("will not open {refuses} times"));
        if let Some(disk) = self.world.disks.get(at) {
            disk.refuses(refuses);
        }
        let how = if kills { "killed" } else { "stopped" };
        self.world.fault(format!("-- the daemon is {how}"));
        if kills { Act::Kill } else { Act::Stop }
    }

    /// Orders go on beside everything else.
    fn orders(&self, what: u8, at: usize, backend: Arc<Backend>) {
        let (lasting, number, class) = {
            let mut rng = self.world.rng();
            (ms(rng.u64(1_000..60_000)), rng.u8(..8), rng.usize(..8))
        };
        let world = Arc::clone(&self.world);
        let fusebox = self.fusebox.clone();
        tokio::spawn(async move {
            let reason = || "simulated".to_owned();
            let (order, done): (&str, Result<(), AdminError>) = match what {
                72..74 => ("offline", backend.set_offline(true).await),
                74..79 => ("online", backend.set_offline(false).await),
                79..81 => ("force open", backend.force(true, reason(), Some(lasting)).await),
                81..83 => ("force closed", backend.force(false, reason(), Some(lasting)).await),
                83 => ("force open for good", backend.force(true, reason(), None).await),
                84..87 => ("release", backend.release().await),
                87 => ("reset", backend.reset().await),
                88..91 => ("recover all", fusebox.recover(None).await.map(drop)),
                91..94 => {
                    backend.configure(changed(at, number));
                    ("settings", Ok(()))
                }
                94..97 => {
                    let order = faults(number, class, lasting);
                    ("chaos", backend.set_chaos(order, reason()).await.map(drop))
                }
                97 => ("end chaos", backend.clear_chaos(reason()).await.map(drop)),
                98 => ("replay", backend.replay().map(drop)),
                _ => ("requeue", requeue(&world, at, &backend).await),
            };
            let name = backend.name();
            let said = done.map_or_else(|error| format!(": {error}"), |()| String::new());
            world.fault(format!("-- {name}: {order}{said}"));
        });
    }

    /// All faults end, and all orders are taken back.
    pub(super) async fn calm(&self) {
        self.world.disks.iter().for_each(Disk::heals);
        for (at, backend) in self.backends.iter().enumerate() {
            self.backend_is_well(at);
            if let Some(panics) = self.world.panics.get(at) {
                *panics.lock() = None;
            }
            // A store that is down does not remember anything, an actor that is started again does not answer.
            for _ in 0..100 {
                let known = self.calm_one(at, backend).await;
                if known.is_ok() {
                    break;
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }

    async fn calm_one(&self, at: usize, backend: &Backend) -> Result<(), AdminError> {
        backend.set_offline(false).await?;
        backend.clear_chaos("simulated".into()).await?;
        // There is room for more dead letters: if they are full, what replay gives up on holds its lanes for ever.
        let mut roomy = settings(at);
        (roomy.queue.dead_items, roomy.queue.dead_bytes) = (1_000_000, 1 << 30);
        backend.configure(roomy);
        match backend.release().await {
            Ok(()) | Err(AdminError::Conflict(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Other settings of the backend at that place.
fn changed(at: usize, number: u8) -> crate::BackendSettings {
    let mut settings = settings(at);
    match number {
        0 => settings.in_flight_max = 2,
        1 => settings.queue.items = 20,
        2 => settings.breaker.failure_threshold = 6,
        3 => settings.breaker.auto_recovery = false,
        4 => settings.retry.attempts = 1,
        5 => settings.queue.dead_items = 3,
        6 => settings.critical = !settings.critical,
        _ => {}
    }
    settings
}

/// A fault on purpose of the kind of that number, mostly for calls.
fn faults(number: u8, class: usize, lasting: Duration) -> Order {
    let kind = Kind::ALL.get(usize::from(number)).copied().unwrap_or(Kind::Error);
    let fault = FaultOrder {
        kind: kind.as_str().into(),
        rate: Some(0.5),
        latency: matches!(kind, Kind::Latency | Kind::SlowDrip).then(|| "300ms".into()),
        class: ["ping", "replay"].get(class).map(|class| (*class).into()),
        ..FaultOrder::default()
    };
    Order {
        faults: vec![fault],
        lasting: Some(format!("{}s", lasting.as_secs().max(1))),
        force: true,
        ..Order::default()
    }
}

/// Sends the oldest dead letter again.
async fn requeue(world: &Shared, at: usize, backend: &Backend) -> Result<(), AdminError> {
    let queue = &backend.entry.shared.queue;
    let oldest = queue.index().page(true, 0).next().map(|(seq, entry)| (seq, entry.header.op_id));
    let Some((seq, op_id)) = oldest else { return Ok(()) };
    let body = queue.store().ok().and_then(|store| store.body(seq).ok());
    if let Some(body) = body.and_then(|body| Body::decode(&body)) {
        world.ledger.lock().unsettled(at, body.id, true);
    }
    backend.requeue(op_id, true, false).await
}
