//! The running daemon as its doors and signals see it: the core, the configuration in effect, and how
//! to read it again.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arc_swap::{ArcSwap, ArcSwapOption};
use fusebox_actors::{
    AdminError, Backend, BackendSettings, BackendSpec, Clock, EventKind, Fusebox,
    view::{DoorStatus, ResilienceView},
};
use fusebox_state::Words;
use tokio::{
    runtime::Handle,
    sync::{Mutex, Notify, watch},
    task::JoinSet,
};
use tokio_rustls::rustls::ServerConfig;

use crate::{
    config::{BackendConfig, Config, DoorSettings, setting::Takes},
    doors::{self, Bound},
    ingress::{
        door::{ServedDoor, WireDoor},
        gate::Gate,
        peer::Policy,
        socket::OwnSocket,
    },
    kinds::{
        self,
        former::Former,
        port::{DoorSpec, Identity, Kind},
    },
    sources::Sources,
    state_dir::{self, StateDir},
    traces::Traces,
};

pub(crate) mod alerts;
mod blocking;
pub(crate) mod compaction;
mod differences;
pub(crate) mod settings;

use blocking::blocking;

/// Whoever has it is alone in changing what the state directory says of the daemon (its settings, its name, whether it
/// may replay), and what follows from that in memory. What writes such a thing takes it.
struct Alone(());

/// The running daemon.
pub(crate) struct Daemon {
    /// The core.
    pub(crate) fusebox: Fusebox,
    /// The configuration in effect.
    pub(crate) config: ArcSwap<Config>,
    /// What bounds its callers.
    pub(crate) gate: Arc<Gate>,
    kinds: BTreeMap<String, &'static dyn Kind>,
    identity: ArcSwap<Identity>,
    state_dir: Arc<StateDir>,
    sources: Sources,
    /// Its traces, if they are exported.
    pub(crate) traces: Option<Arc<Traces>>,
    doors: OnceLock<Vec<Arc<ServedDoor>>>,
    stop: watch::Sender<bool>,
    /// Held from the disk to the end of what follows, so that two changes do not cross.
    reloading: Mutex<Alone>,
    /// The disk has changes at run time that are not in effect, and could not be written.
    is_stale: AtomicBool,
    /// Notified when settings were changed at run time.
    edited: Notify,
    /// Why the alert command fails, if it does.
    alert_command_fails: ArcSwapOption<Words>,
}

impl Daemon {
    /// A daemon around a core that has been started with `config`.
    pub(crate) fn new(
        fusebox: Fusebox,
        config: Config,
        identity: Identity,
        sources: Sources,
        traces: Option<Arc<Traces>>,
        state_dir: Arc<StateDir>,
    ) -> Arc<Self> {
        let kinds = config.backends.iter().filter_map(|backend| {
            Some((backend.settings.name.clone(), kinds::find(backend.settings.kind)?))
        });
        let kinds = kinds.collect();
        Arc::new(Self {
            fusebox,
            gate: Arc::new(Gate::new(config.calls_bytes)),
            config: ArcSwap::from_pointee(config),
            kinds,
            identity: ArcSwap::from_pointee(identity),
            state_dir,
            sources,
            traces,
            doors: OnceLock::new(),
            stop: watch::channel(false).0,
            reloading: Mutex::new(Alone(())),
            is_stale: AtomicBool::new(false),
            edited: Notify::new(),
            alert_command_fails: ArcSwapOption::empty(),
        })
    }

    /// The kind of the backend of that name. Backends do not come or go without a restart.
    pub(crate) fn kind(&self, name: &str) -> Option<&'static dyn Kind> {
        self.kinds.get(name).copied()
    }

    /// Serves the wire doors. Returns the sockets that were made for them, to be dropped when the daemon stops.
    ///
    /// # Errors
    /// A door of the file cannot be made.
    pub(crate) fn start_doors(
        &self,
        bound: Vec<Bound>,
        policy: Policy,
        tasks: &mut JoinSet<()>,
    ) -> anyhow::Result<Vec<OwnSocket>> {
        let make = |settings: &Arc<DoorSettings>| self.make_door(settings);
        let serving = doors::start(bound, policy, make, &self.stopping(), tasks)?;
        // They do not change without a restart.
        drop(self.doors.set(serving.doors));
        Ok(serving.own)
    }

    /// The protocol of a door.
    fn make_door(&self, settings: &Arc<DoorSettings>) -> Result<Arc<dyn WireDoor>, String> {
        let name = &settings.backend;
        let found = self.fusebox.backend(name).zip(self.kind(name));
        let (backend, kind) = found.ok_or_else(|| format!("there is no backend {name}"))?;
        let config = self.config.load();
        let backends = config.backends.iter().map(|other| &other.settings);
        let kin = backends.filter(|other| other.kind == settings.kind);
        let made = kind.door(DoorSpec {
            settings: Arc::clone(settings),
            backend,
            kin: kin.filter_map(|other| self.fusebox.backend(&other.name)).collect(),
            runtime: Handle::current(),
        });
        made.unwrap_or_else(|| Err(format!("the kind {} has no door", settings.kind)))
    }

    /// Everything, as `/health/resilience` shows it.
    pub(crate) fn resilience(&self) -> ResilienceView {
        let left_out =
            |why: &String| Words::quoting("a change at run time cannot be used", why.as_str());
        let settings_left_out = self.config.load().left_out.iter().map(left_out).collect();
        let alert_command_fails = self.alert_command_fails.load().as_deref().cloned();
        ResilienceView {
            doors: self.doors(),
            settings_left_out,
            alert_command_fails,
            ..self.fusebox.resilience()
        }
    }

    /// What the wire doors show of themselves.
    pub(crate) fn doors(&self) -> Vec<DoorStatus> {
        self.doors.get().into_iter().flatten().map(|door| door.status()).collect()
    }

    /// Reads the configuration again and puts it in effect, whole or not at all. Returns the keys that
    /// changed. Who wanted it, and what came of it, is in the log and the events.
    ///
    /// # Errors
    /// What prevents it; the old settings stay.
    pub(crate) async fn reload(&self, by: &str) -> Result<Vec<String>, String> {
        let alone = self.reloading.lock().await;
        let old = self.config.load_full();
        let ended = self.reload_from(&alone, &old).await;
        let ended = ended.map(|backends| changed_keys(&old, &self.config.load(), &backends));
        match &ended {
            Ok(keys) => {
                tracing::info!(by, changed = keys.join(", "), "the configuration was reloaded");
            }
            Err(why) => tracing::error!(by, why, "not reloaded: the old settings stay"),
        }
        let kind = EventKind::Reload {
            by: by.to_owned(),
            changed: ended.clone().unwrap_or_default(),
            refused: ended.clone().err(),
        };
        self.fusebox.events().publish(Clock::system().unix(), None, kind);
        ended
    }

    async fn reload_from(&self, alone: &Alone, old: &Config) -> Result<Vec<String>, String> {
        let is_stale = self.is_stale.load(Ordering::Relaxed);
        let next = self.sources.load_again(&old.changes, is_stale);
        let next = next.map_err(|errors| errors.to_string())?;
        fixed(old, &next)?;
        let identity = self.identity.load_full();
        let (dir, of_next) = (Arc::clone(&self.state_dir), timeouts(&next));
        let noted = blocking(move || dir.change_timeouts(of_next.into_iter())).await;
        noted.map_err(|error| format!("the state directory cannot be written: {error}"))?;
        // Everything is made before anything is exchanged. What has its connector still keeps its connections.
        let specs = specs(next.backends.iter().filter(|it| connects_anew(old, it)), &identity)?;
        let exchanged: Vec<String> = specs.iter().map(|spec| spec.settings.name.clone()).collect();
        let retuned: Vec<BackendSettings> = differences::retuned(old, &next)
            .into_iter()
            .filter(|settings| !exchanged.contains(&settings.name))
            .collect();
        let system = next.system(identity.instance.clone());
        let retuned_too = retuned.iter().map(|it| it.name.clone());
        let changed = exchanged.into_iter().chain(retuned_too).collect();
        let reloaded = self.fusebox.reload(system, specs, retuned).await;
        reloaded.map_err(|error| error.to_string())?;
        next.tell_warnings(&[]);
        self.gate.set_bytes(next.calls_bytes);
        self.config.store(Arc::new(next));
        self.keep_those_in_effect(alone).await;
        Ok(changed)
    }

    /// Remembers which backends have a store, so that one that is missing at a later start is reported.
    pub(crate) fn remember_stores(&self) {
        let config = self.config.load();
        let has_store = |(name, _): &(String, _)| {
            self.fusebox.backend(name).is_some_and(|backend| backend.is_stored())
        };
        self.state_dir
            .remember_stores(config.backends.iter().map(BackendConfig::store).filter(has_store));
    }

    /// Tells of the stores that were gone at this start, or an earlier one, and that nobody has accepted.
    pub(crate) fn tell_losses(&self) {
        for (name, told) in self.state_dir.lost() {
            if let Some(backend) = self.fusebox.backend(&name) {
                backend.tell_lost(Some(told));
            }
        }
    }

    /// An operator knows that the store of `backend` is gone.
    ///
    /// # Errors
    /// [`AdminError`] if it is not, or that cannot be written down.
    pub(crate) async fn accept_loss(self: &Arc<Self>, backend: &Backend) -> Result<(), AdminError> {
        let _alone = self.reloading.lock().await;
        let (this, name) = (Arc::clone(self), backend.name().to_owned());
        let was_told = blocking(move || this.state_dir.accept_loss(&name)).await?;
        backend.tell_lost(None);
        if was_told {
            return Ok(());
        }
        Err(AdminError::Conflict(format!(
            "there is no alert about a lost store of {}",
            backend.name()
        )))
    }

    /// An operator says that this state directory may replay, though it is a copy or has one.
    ///
    /// # Errors
    /// [`AdminError`] if it is none, or that cannot be written down.
    pub(crate) async fn accept_clone(self: &Arc<Self>) -> Result<(), AdminError> {
        // A twin that is found meanwhile pauses replay again, after this.
        let _alone = self.reloading.lock().await;
        let this = Arc::clone(self);
        let was_paused = blocking(move || this.state_dir.accept_clone(&|_| true)).await?;
        self.fusebox.accept_clone();
        if was_paused {
            tracing::warn!(
                "an operator accepts that the state directory is a copy: replay resumes"
            );
            return Ok(());
        }
        Err(AdminError::Conflict(
            "there is no alert that this state directory is a copy".to_owned(),
        ))
    }

    /// Another daemon has our name: takes another one, and replays nothing until an operator has looked. A name that
    /// could not take effect is tried again.
    async fn take_new_name(self: &Arc<Self>) -> Result<(), String> {
        let _alone = self.reloading.lock().await;
        let before = Identity::clone(&self.identity.load());
        let (this, used) = (Arc::clone(self), before.instance.clone());
        let taken = blocking(move || Ok(this.state_dir.take_new_name(&used))).await;
        let instance = taken.map_err(|error| error.to_string())?;
        // An operator who has accepted the copy since the name was taken has looked.
        if let Some(why) = self.state_dir.copied() {
            self.fusebox.hold_copied(&why);
        }
        before.former.add(&before.instance);
        let identity = Identity {
            instance: instance.clone(),
            run: state_dir::new_name(),
            twins: Arc::default(),
            ..before
        };
        let config = self.config.load_full();
        let specs = specs(&config.backends, &identity)?;
        let renamed = self.fusebox.reload(config.system(instance), specs, Vec::new()).await;
        renamed.map_err(|error| error.to_string())?;
        self.identity.store(Arc::new(identity));
        Ok(())
    }

    /// What is spoken on TCP to whoever connects now.
    pub(crate) fn tls(&self) -> Option<Arc<ServerConfig>> {
        let config = self.config.load();
        Some(Arc::clone(&config.http.as_ref()?.tls.as_ref()?.config))
    }

    /// Begins to stop: doors let what is in flight finish and take nothing new.
    pub(crate) fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// Whether it is stopping.
    pub(crate) fn is_stopping(&self) -> bool {
        *self.stop.borrow()
    }

    /// Turns true when it begins to stop.
    pub(crate) fn stopping(&self) -> watch::Receiver<bool> {
        self.stop.subscribe()
    }
}

/// Forgets the timeouts of earlier runs once nothing of theirs can be on the wire.
pub(crate) async fn outlive_earlier_runs(daemon: Arc<Daemon>) {
    let longest = daemon.identity.load().timeouts.values().max().copied().unwrap_or_default();
    // What was sent in the last moment arrives a little later.
    tokio::time::sleep(longest.saturating_add(Duration::from_secs(5))).await;
    let state_dir = Arc::clone(&daemon.state_dir);
    let forgotten = blocking(move || {
        state_dir.forget_earlier_timeouts();
        Ok(())
    });
    if let Err(error) = forgotten.await {
        tracing::warn!(%error, "the timeouts of earlier runs could not be removed from the disk");
    }
}

/// Waits for the proof that another daemon has our name, and takes another one, as often as that happens.
pub(crate) async fn leave_the_name_to_twins(daemon: Arc<Daemon>) {
    loop {
        let twins = Arc::clone(&daemon.identity.load().twins);
        twins.proven().await;
        if let Err(error) = daemon.take_new_name().await {
            tracing::error!(
                error,
                "another daemon has the same instance name, and not all connections have a new name yet"
            );
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
    }
}

/// The timeout of each backend.
fn timeouts(config: &Config) -> Vec<(String, Duration)> {
    let backends = config.backends.iter().map(|backend| &backend.settings);
    backends.map(|backend| (backend.name.clone(), backend.timeout)).collect()
}

/// Who the connections of a run say they are that begins in this directory.
pub(crate) fn identity(state_dir: &Arc<StateDir>, config: &Config) -> Identity {
    let noting = Arc::clone(state_dir);
    let former = Former::new(state_dir.former(), move |backend, names| {
        let (dir, backend, names) = (Arc::clone(&noting), backend.to_owned(), names.to_vec());
        drop(tokio::task::spawn_blocking(move || dir.former_is_gone(&backend, &names)));
    });
    Identity {
        instance: state_dir.instance(),
        run: state_dir::new_name(),
        former: Arc::new(former),
        state_dir: Some(state_dir.path().to_owned()),
        timeouts: Arc::new(state_dir.begin_with_timeouts(timeouts(config).into_iter())),
        twins: Arc::default(),
    }
}

/// The backends with their connectors.
///
/// # Errors
/// What a connector cannot be made of, naming the backend.
pub(crate) fn specs<'a>(
    backends: impl IntoIterator<Item = &'a BackendConfig>,
    identity: &Identity,
) -> Result<Vec<BackendSpec>, String> {
    backends
        .into_iter()
        .map(|backend| {
            let name = &backend.settings.name;
            let kind = kinds::find(backend.settings.kind).ok_or("its kind is not known");
            let connector =
                kind.map_err(str::to_owned).and_then(|kind| kind.connector(backend, identity));
            let connector = connector.map_err(|why| format!("backends.{name}: {why}"))?;
            Ok(BackendSpec { settings: backend.settings.clone(), connector })
        })
        .collect()
}

/// Whether a backend needs another connector: it is elsewhere, or its kind's own settings differ.
fn connects_anew(old: &Config, backend: &BackendConfig) -> bool {
    let name = &backend.settings.name;
    let before = old.backends.iter().find(|before| before.settings.name == *name);
    before.is_none_or(|before| {
        before.settings.timeout != backend.settings.timeout
            || before.endpoint != backend.endpoint
            || before.own != backend.own
    })
}

/// The keys whose values differ, by their paths; and the backends that changed by what no key shows, such as the
/// content of a file.
fn changed_keys(old: &Config, new: &Config, backends: &[String]) -> Vec<String> {
    let mut keys = differences::between(&old.effective, &new.effective);
    for name in backends {
        let section = format!("backends.{name}");
        let is_told =
            |key: &String| key.strip_prefix(&section).is_some_and(|it| it.starts_with('.'));
        if !keys.iter().any(is_told) {
            keys.push(section);
        }
    }
    keys
}

/// Refuses a change of what a running daemon cannot change.
fn fixed(old: &Config, new: &Config) -> Result<(), String> {
    let names = |config: &Config| -> Vec<(String, &str)> {
        config.backends.iter().map(|b| (b.settings.name.clone(), b.settings.kind)).collect()
    };
    let takes_restart = |path: &String| {
        let setting = new.declared.find(path, None);
        setting.is_some_and(|setting| setting.facts.takes == Takes::Restart)
    };
    let key = if names(old) != names(new) {
        Some("backends: their names and kinds".to_owned())
    } else if old.doors != new.doors {
        Some("doors".to_owned())
    } else {
        differences::between(&old.effective, &new.effective).into_iter().find(takes_restart)
    };
    match key {
        Some(key) => Err(format!("{key} changed, which needs a restart; nothing was changed")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{
        config::{Auth, Environment, Flags, doors_testing},
        sources::load_config,
    };

    fn config(pairs: &[(&str, &str)]) -> Config {
        let mut all = vec![("FUSEBOX_STATE_DIR", "/s"), ("FUSEBOX_CONFIG", "/dev/null")];
        all.extend_from_slice(pairs);
        load_config(&Flags::default(), &Environment::of(&all)).unwrap()
    }

    #[test]
    fn what_changed_is_told_by_its_keys_and_never_by_its_values() {
        let old = config(&[("FUSEBOX_BACKENDS__REDIS__URL", "redis://:secret@127.0.0.1:6379")]);
        let new = config(&[
            ("FUSEBOX_BACKENDS__REDIS__URL", "redis://:other@127.0.0.1:6380"),
            ("FUSEBOX_BACKENDS__REDIS__BREAKER__FAILURE_THRESHOLD", "7"),
            ("FUSEBOX_HEALTH__INTERVAL", "9s"),
        ]);
        let mut keys = changed_keys(&old, &new, &["redis".to_owned(), "firestore".to_owned()]);
        keys.sort();
        assert_eq!(
            keys,
            [
                "backends.firestore",
                "backends.redis.breaker.failure_threshold",
                "backends.redis.url",
                "health.interval",
            ]
        );
        assert!(changed_keys(&old, &old, &[]).is_empty());
    }

    /// A daemon without backends on the state directory `dir`.
    async fn daemon(dir: &Path) -> Arc<Daemon> {
        let pairs = [("FUSEBOX_STATE_DIR", dir.to_str().unwrap()), ("FUSEBOX_CONFIG", "/dev/null")];
        let sources = Sources { flags: Flags::default(), env: Environment::of(&pairs) };
        let mut config = sources.load(&[]).unwrap();
        config.backends.clear();
        let state_dir = Arc::new(StateDir::open(dir).unwrap());
        let identity = identity(&state_dir, &config);
        let system = config.system(identity.instance.clone());
        let fusebox = Fusebox::start(system, Vec::new(), None).await.unwrap();
        Daemon::new(fusebox, config, identity, sources, None, state_dir)
    }

    #[tokio::test]
    async fn what_is_written_down_waits_until_another_change_is_in_effect() {
        let dir = tempfile::tempdir().unwrap();
        let daemon = daemon(dir.path()).await;
        let alone = daemon.reloading.lock().await;
        // A twin is found, and settings are changed: on the disk so far.
        daemon.state_dir.take_new_name(&daemon.state_dir.instance());
        let settings = dir.path().join(crate::changes::file::NAME);
        let text = r#"{"version":1,"changes":[{}]}"#;
        std::fs::write(&settings, text).unwrap();
        let (keeper, operator) = (Arc::clone(&daemon), Arc::clone(&daemon));
        let keeping = tokio::spawn(async move { keeper.keep_changes().await });
        let accepting = tokio::spawn(async move { operator.accept_clone().await });
        for _ in 0..20 {
            // As long as they take, if they do not wait.
            let dir = dir.path().to_owned();
            blocking(move || state_dir::replace(&dir, "other", b"")).await.unwrap();
        }
        assert!(!keeping.is_finished() && !accepting.is_finished());
        assert_eq!(std::fs::read_to_string(&settings).unwrap(), text);
        assert!(daemon.state_dir.copied().is_some());
        drop(alone);
        keeping.await.unwrap();
        accepting.await.unwrap().unwrap();
        assert_ne!(std::fs::read_to_string(&settings).unwrap(), text);
        assert_eq!(daemon.state_dir.copied(), None);
        daemon.fusebox.shutdown(Duration::from_secs(1)).await;
    }

    #[tokio::test]
    async fn a_change_that_could_not_be_removed_from_the_disk_is_removed_later() {
        let dir = tempfile::tempdir().unwrap();
        let daemon = daemon(dir.path()).await;
        let text = r#"{"version":1,"changes":[
            {"path":"health.interval","value":"9s","by":"user 0","at":"2026-01-01T00:00:00Z"}]}"#;
        std::fs::write(dir.path().join(crate::changes::file::NAME), text).unwrap();
        let left = || crate::changes::file::read(dir.path()).unwrap().changes.len();
        // Nothing can be written in its place.
        let in_the_way = dir.path().join(format!("{}.next", crate::changes::file::NAME));
        std::fs::create_dir(&in_the_way).unwrap();
        daemon.keep_changes().await;
        assert_eq!((left(), daemon.is_stale.load(Ordering::Relaxed)), (1, true));
        std::fs::remove_dir(&in_the_way).unwrap();
        tokio::time::pause();
        let looking = tokio::spawn(settings::take_back_in_time(Arc::clone(&daemon)));
        // Paused time passes by itself while there is nothing else to do.
        for _ in 0..10 {
            if daemon.is_stale.load(Ordering::Relaxed) {
                tokio::time::sleep(Duration::from_secs(61)).await;
            }
        }
        assert_eq!((left(), daemon.is_stale.load(Ordering::Relaxed)), (0, false));
        looking.abort();
        tokio::time::resume();
        daemon.fusebox.shutdown(Duration::from_secs(1)).await;
    }

    #[tokio::test]
    async fn a_name_that_cannot_take_effect_is_tried_again_and_no_further_one_taken() {
        let dir = tempfile::tempdir().unwrap();
        let daemon = daemon(dir.path()).await;
        let old = daemon.state_dir.instance();
        let whole = daemon.config.load_full();
        let mut broken = daemon.sources.load(&[]).unwrap();
        for backend in &mut broken.backends {
            backend.settings.kind = "none";
        }
        daemon.config.store(Arc::new(broken));
        for _ in 0..3 {
            daemon.take_new_name().await.unwrap_err();
        }
        let former: Vec<String> = daemon.state_dir.former().into_keys().collect();
        assert_eq!(former, std::slice::from_ref(&old));
        assert_eq!(daemon.identity.load().instance, old);
        daemon.accept_clone().await.unwrap();
        daemon.config.store(whole);
        daemon.take_new_name().await.unwrap();
        assert_eq!(daemon.identity.load().instance, daemon.state_dir.instance());
        assert_eq!(daemon.state_dir.copied(), None, "an operator has looked");
        daemon.fusebox.shutdown(Duration::from_secs(1)).await;
    }

    #[test]
    fn what_cannot_change_is_refused_by_name() {
        let old = config(&[]);
        let change = |name, value| fixed(&old, &config(&[(name, value)]));
        assert_eq!(change("FUSEBOX_BACKENDS__REDIS__TIMEOUT", "9s"), Ok(()));
        let error = change("FUSEBOX_HTTP__LISTEN", "127.0.0.1:1").unwrap_err();
        assert!(error.starts_with("http.listen changed"), "{error}");
        let error = change("FUSEBOX_BACKENDS__OTHER__KIND", "redis").unwrap_err();
        assert!(error.starts_with("backends"), "{error}");
        let mut next = config(&[]);
        next.doors.push(Arc::new(doors_testing::door(Auth::Peer, 1)));
        let error = fixed(&old, &next).unwrap_err();
        assert!(error.starts_with("doors changed, which needs a restart"), "{error}");
    }
}
