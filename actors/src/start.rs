//! How a backend comes up: what calls will borrow of it, and its store with what an earlier run left.

use std::{
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::Path,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use fusebox_state::{Target, breaker::BreakerMemory, cache::Cache, store::OpenError};
use parking_lot::Mutex;

use crate::{
    alert::Alert,
    backend_entry::BackendEntry,
    backend_shared::{BREAKER_FACT, BackendShared},
    circuit::Circuit,
    connector::SharedConnector,
    event::EventBus,
    ground::Ground,
    kept_cache,
    metrics::Metrics,
    queue::Queue,
    settings::BackendSettings,
    system::SystemFlags,
    trace::{TraceSink, Tracer},
};

/// How long after the first attempt to open a store in vain the second one is made; doubled up to
/// [`REOPEN_MAX`], except while the disk is full.
const REOPEN_MIN: Duration = Duration::from_secs(1);
const REOPEN_MAX: Duration = Duration::from_secs(30);
/// A store whose log is larger is opened behind the doors: that takes seconds, and no health check waits for it.
/// Smaller ones are waited for, so that a start means that they are recovered.
const LARGE_LOG: u64 = 32 << 20;
/// What is in a store's folder besides `db` and names that begin with `db.`.
const OURS: [&str; 10] = [
    "lock",
    "name",
    "name.next",
    "mark",
    "mark.new",
    "mark.next",
    "ballast",
    "suspect",
    "untold",
    "untold.new",
];
/// What may be in one in which there was no store yet.
const EMPTY: [&str; 4] = ["lock", "name", "name.next", "ballast"];

/// A backend as it is configured, with the connector that speaks its protocol.
pub struct BackendSpec {
    /// Its settings.
    pub settings: BackendSettings,
    /// Its connector.
    pub connector: SharedConnector,
}

/// What calls will borrow of a backend.
pub(crate) fn lend(
    spec: BackendSpec,
    metrics: &Metrics,
    ground: &Ground,
    bus: &EventBus,
    flags: &SystemFlags,
    sink: Option<Arc<dyn TraceSink>>,
) -> BackendShared {
    let BackendSpec { settings, connector } = spec;
    let clock = ground.clock;
    let counters = Arc::new(metrics.backend(&settings.name));
    let queue = Queue::new(&settings, Arc::clone(&counters), ground.clone(), bus.clone());
    let cache = ArcSwap::from_pointee(Cache::new(settings.cache));
    BackendShared {
        circuit: Arc::new(Circuit::new(settings, counters, clock)),
        queue,
        flights: Arc::default(),
        cache,
        start_up_file: OnceLock::new(),
        kept_is_loaded: AtomicBool::new(false),
        saving: Mutex::default(),
        remembering: Mutex::default(),
        start_up_saved: AtomicU64::new(0),
        connector: ArcSwap::from_pointee(connector),
        system: flags.clone(),
        tracer: Tracer::new(sink, clock),
    }
}

/// Opens a backend's store and continues an earlier run. One that does not open is tried again in
/// the background, for as long as it takes. Until then what would be queued is refused, and so is what would
/// have to wait for calls that may be in it. No other backend is affected.
///
/// One that is large is opened in the background from the beginning. Its backend is offline for as long as that takes.
pub(crate) async fn open(shared: &Arc<BackendShared>, state_dir: &Path) {
    let settings = shared.circuit.settings.load_full();
    let dir = settings
        .queue_dir
        .clone()
        .unwrap_or_else(|| state_dir.join("backends").join(&settings.name));
    if shared.queue.ground().is_machine() {
        kept_cache::place(shared, state_dir);
    }
    let log_bytes = std::fs::metadata(dir.join("db").join("db")).map_or(0, |log| log.len());
    if log_bytes <= LARGE_LOG || !shared.queue.ground().is_machine() {
        open_first(shared, dir).await;
        return;
    }
    let megabytes = log_bytes >> 20;
    tracing::info!(backend = shared.circuit.name, megabytes, "the queue is being opened");
    shared.queue.closed_because(format!("its queue of {megabytes} MiB is being opened"));
    shared.circuit.hold(|holds| holds.opening = true);
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        open_first(&shared, dir).await;
        // What was found, and ordered, meanwhile.
        shared.remember(|_| ());
        shared.circuit.hold(|holds| holds.opening = false);
        let is_open = shared.queue.store().is_ok();
        tracing::info!(backend = shared.circuit.name, is_open, "the queue was opened");
    });
}

/// The first attempt, and if it is in vain others in the background.
async fn open_first(shared: &Arc<BackendShared>, dir: std::path::PathBuf) {
    let Err(why) = try_open(shared, &dir).await else { return };
    let mut told = String::new();
    tell_closed(shared, &why, &mut told);
    tokio::spawn(open_later(Arc::clone(shared), dir, told));
}

/// Why a store did not open this time.
enum NotOpen {
    Refused(OpenError),
    Panicked(String),
}

impl NotOpen {
    /// A word for its kind: it is reported again only when it changes.
    fn word(&self) -> &'static str {
        match self {
            Self::Refused(OpenError::DiskFull { .. }) => "the disk is full",
            Self::Refused(OpenError::Locked { .. }) => "it is in use",
            Self::Refused(OpenError::NewerFormat { .. }) => "it is of a newer version",
            Self::Refused(OpenError::Io { .. }) => "the file system refuses",
            Self::Panicked(_) => "opening it panicked",
        }
    }
}

impl std::fmt::Display for NotOpen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Refused(error) => error.fmt(f),
            Self::Panicked(why) => f.write_str(why),
        }
    }
}

fn tell_closed(shared: &BackendShared, why: &NotOpen, told: &mut String) {
    if told == why.word() {
        return;
    }
    why.word().clone_into(told);
    tracing::error!(backend = shared.circuit.name, %why, "the store does not open");
    let alert = format!("the store does not open ({told}: {why}); fusebox keeps trying");
    shared.queue.alert(Alert::Closed, Some(alert.into()));
}

/// Makes the store's folder if it is missing, and takes others their rights on one that holds nothing but a
/// store. Says whether there is nothing in it.
fn prepare_folder(dir: &Path) -> std::io::Result<bool> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        names.push(entry?.file_name());
    }
    let is_open = std::fs::metadata(dir)?.mode() & 0o077 != 0;
    let is_ours = |name: &std::ffi::OsString| {
        let name = name.to_string_lossy();
        OURS.contains(&&*name) || name == "db" || name.starts_with("db.")
    };
    if is_open && names.iter().all(is_ours) {
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))?;
    } else if is_open {
        tracing::warn!(
            path = %dir.display(),
            "other users can read the store's folder, which contains what callers wrote; set its mode to 0700"
        );
    }
    Ok(names.iter().all(|name| EMPTY.iter().any(|it| name == it)))
}

async fn try_open(shared: &Arc<BackendShared>, dir: &Path) -> Result<(), NotOpen> {
    let (opening, dir) = (Arc::clone(shared), dir.to_owned());
    let ended = shared.queue.ground().run(move || open_now(&opening, &dir)).await;
    match ended {
        Ok(opened) => opened.map_err(NotOpen::Refused),
        Err(error) => Err(NotOpen::Panicked(format!("opening the store panicked: {error}"))),
    }
}

/// The names of stores below `state_dir` that belong to none of `entries`.
pub(crate) fn stray_stores(state_dir: &Path, entries: &[BackendEntry]) -> Vec<String> {
    let Ok(folders) = std::fs::read_dir(state_dir.join("backends")) else { return Vec::new() };
    let mut names: Vec<String> = folders
        .filter_map(|folder| folder.ok()?.file_name().into_string().ok())
        .filter(|name| entries.iter().all(|entry| entry.shared.circuit.name != *name))
        .collect();
    names.sort();
    for name in &names {
        tracing::warn!(
            store = name,
            "a store belongs to no configured backend: its calls keep waiting"
        );
    }
    names
}

fn open_now(shared: &BackendShared, dir: &Path) -> Result<(), OpenError> {
    let settings = shared.circuit.settings.load();
    let target = SharedConnector::clone(&shared.connector.load()).target();
    let has_files = shared.queue.ground().is_machine();
    // If that is not known, opening says why.
    if has_files && prepare_folder(dir).unwrap_or(false) {
        shared.queue.holds_nothing();
    }
    shared.queue.open(dir.to_owned(), &target, settings.disk_floor, |store, previous| {
        let memory = store.fact(BREAKER_FACT);
        if let Some(memory) = memory.and_then(|bytes| BreakerMemory::decode(&bytes)) {
            take_up(&shared.circuit, &memory);
        }
        if let Some(previous) = previous {
            shared.circuit.hold(|holds| holds.retarget = true);
            let alert = retarget_alert(&settings.name, previous, &target);
            shared.queue.alert(Alert::Retarget, Some(alert.into()));
        }
    })?;
    if has_files {
        kept_cache::load(shared);
    }
    Ok(())
}

/// What an earlier run remembers, as far as this one knows no better: a store may open late.
fn take_up(circuit: &Circuit, memory: &BreakerMemory) {
    let clock = circuit.clock;
    if let Some(transition) = circuit.breaker.take_up(memory, clock.now(), clock.unix()) {
        circuit.publish(transition);
    }
    circuit.hold(|holds| {
        if !holds.ordered {
            holds.operator = memory.offline;
        }
    });
}

/// Keeps replay back until an operator accepts that the state directory is a copy.
pub(crate) fn hold_copied(shared: &BackendShared, told: &str) {
    shared.circuit.hold(|holds| holds.copied = true);
    shared.queue.alert(Alert::Copied, Some(told.to_owned().into()));
}

/// The alert while calls wait for another target.
pub(crate) fn retarget_alert(name: &str, previous: &Target, target: &Target) -> String {
    format!(
        "calls wait for {previous}, but {name} is {target} now: `fusebox backend accept-retarget {name}` lets them go \
         to the new address"
    )
}

async fn open_later(shared: Arc<BackendShared>, dir: std::path::PathBuf, mut told: String) {
    let mut wait = REOPEN_MIN;
    loop {
        tokio::time::sleep(wait).await;
        match try_open(&shared, &dir).await {
            Ok(()) => {
                tracing::info!(backend = shared.circuit.name, "the store is open");
                // What was found, and ordered, while nothing could be remembered.
                shared.remember(|_| ());
                return;
            }
            Err(why) => {
                tell_closed(&shared, &why, &mut told);
                let is_full = matches!(why, NotOpen::Refused(OpenError::DiskFull { .. }));
                // Looking for room costs little.
                wait = if is_full { REOPEN_MIN } else { (wait * 2).min(REOPEN_MAX) };
            }
        }
    }
}
