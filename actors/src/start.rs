//! How a backend comes up: what calls will borrow of it, and its store with what an earlier run left.

use std::{path::Path, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use fusebox_state::{breaker::BreakerMemory, cache::Cache, store::OpenError};

use crate::{
    BackendSpec, StartError, backend,
    circuit::Circuit,
    clock::Clock,
    connector::SharedConnector,
    event::EventBus,
    handle::Lent,
    lent::Member,
    metrics::Metrics,
    queue::Queue,
    recovery,
    system::SystemFlags,
    trace::{TraceSink, Tracer},
};

/// How often a store that could not be opened for want of space is tried again.
const REOPEN_EVERY: Duration = Duration::from_secs(1);

/// What calls will borrow of a backend.
pub(crate) fn lend(
    spec: BackendSpec,
    metrics: &Metrics,
    clock: Clock,
    bus: &EventBus,
    flags: &SystemFlags,
    sink: Option<Arc<dyn TraceSink>>,
) -> Lent {
    let BackendSpec { settings, connector } = spec;
    let counters = Arc::new(metrics.backend(&settings.name));
    let queue = Queue::new(&settings, Arc::clone(&counters), clock, bus.clone());
    let cache = ArcSwap::from_pointee(Cache::new(settings.cache));
    Lent {
        circuit: Arc::new(Circuit::new(settings, counters, clock)),
        queue,
        flights: Arc::default(),
        cache,
        connector: ArcSwap::from_pointee(connector),
        system: flags.clone(),
        tracer: Tracer::new(sink, clock),
    }
}

/// Opens a backend's store and takes up where an earlier run left off. A full disk is waited out in the
/// background: until then the backend refuses writes.
pub(crate) async fn open(lent: &Arc<Lent>, state_dir: &Path) -> Result<(), StartError> {
    let settings = lent.circuit.settings.load_full();
    let dir = settings
        .queue_dir
        .clone()
        .unwrap_or_else(|| state_dir.join("backends").join(&settings.name));
    let (opening, at) = (Arc::clone(lent), dir.clone());
    match run_blocking(move || open_now(&opening, &at)).await? {
        Ok(()) => Ok(()),
        Err(error @ OpenError::DiskFull { .. }) => {
            tracing::error!(backend = settings.name, %error, "the store is not open yet");
            tokio::spawn(open_later(Arc::clone(lent), dir));
            Ok(())
        }
        Err(error @ OpenError::Locked { .. }) => Err(StartError::Locked(error.to_string())),
        Err(error @ OpenError::NewerFormat { .. }) => {
            Err(StartError::NewerFormat(error.to_string()))
        }
        Err(error) => Err(StartError::Other(error.to_string())),
    }
}

/// The names of stores below `state_dir` that belong to none of `members`.
pub(crate) fn stray_stores(state_dir: &Path, members: &[Member]) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(state_dir.join("backends")) else { return Vec::new() };
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| members.iter().all(|member| member.lent.circuit.name != *name))
        .collect();
    names.sort();
    for name in &names {
        tracing::warn!(
            store = name,
            "a store's backend is not configured: what waits in it waits on"
        );
    }
    names
}

async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, StartError> {
    let ended = tokio::task::spawn_blocking(work).await;
    ended.map_err(|error| StartError::Other(format!("opening a store panicked: {error}")))
}

fn open_now(lent: &Lent, dir: &Path) -> Result<(), OpenError> {
    let settings = lent.circuit.settings.load();
    let target = SharedConnector::clone(&lent.connector.load()).target();
    let clock = lent.circuit.clock;
    lent.queue.open(dir.to_owned(), &target, settings.disk_floor, |store, previous| {
        let memory = store.fact(backend::BREAKER_FACT);
        if let Some(memory) = memory.and_then(|bytes| BreakerMemory::decode(&bytes)) {
            lent.circuit.breaker.restore(&memory, clock.now(), clock.unix());
            lent.circuit.hold(|holds| holds.operator = memory.offline);
        }
        if let Some(previous) = previous {
            lent.circuit.hold(|holds| holds.retarget = true);
            let alert = retarget_alert(&settings.name, previous, &target);
            lent.queue.alert("retarget", Some(alert));
        }
    })?;
    recovery::load_cache(lent);
    Ok(())
}

/// What an operator is told while calls wait for another target.
pub(crate) fn retarget_alert(name: &str, previous: &str, target: &str) -> String {
    format!(
        "calls wait for {previous}, but {name} is {target} now: `fusebox backend accept-retarget {name}` \
         lets them go there"
    )
}

async fn open_later(lent: Arc<Lent>, dir: std::path::PathBuf) {
    loop {
        tokio::time::sleep(REOPEN_EVERY).await;
        let (opening, at) = (Arc::clone(&lent), dir.clone());
        match run_blocking(move || open_now(&opening, &at)).await {
            Ok(Ok(())) => {
                tracing::info!(backend = lent.circuit.name, "the store is open");
                return;
            }
            Ok(Err(OpenError::DiskFull { .. })) => {}
            Ok(Err(error)) => {
                tracing::error!(backend = lent.circuit.name, %error, "the store does not open");
                return;
            }
            Err(error) => {
                tracing::error!(backend = lent.circuit.name, %error, "the store does not open");
                return;
            }
        }
    }
}
