//! The running daemon as its doors and signals see it: the core, the configuration in effect, and how
//! to read it again.

use std::{collections::BTreeMap, sync::Arc};

use arc_swap::ArcSwap;
use fusebox_actors::{BackendSpec, Fusebox};
use tokio::sync::{Mutex, watch};

use crate::{
    config::{BackendConfig, Config, Environment, Flags},
    kinds::{Identity, Kind},
    traces::Traces,
};

/// Where the configuration came from, to read it again.
pub(crate) struct Sources {
    /// The command line.
    pub(crate) flags: Flags,
    /// The environment.
    pub(crate) env: Environment,
}

/// The running daemon.
pub(crate) struct Daemon {
    /// The core.
    pub(crate) fusebox: Fusebox,
    /// The configuration in effect.
    pub(crate) config: ArcSwap<Config>,
    kinds: BTreeMap<String, &'static dyn Kind>,
    identity: Identity,
    sources: Sources,
    /// Its traces, where they are exported.
    pub(crate) traces: Option<Arc<Traces>>,
    stop: watch::Sender<bool>,
    /// Held while settings change, so that two reloads do not cross.
    reloading: Mutex<()>,
}

impl Daemon {
    /// A daemon around a core that has been started with `config`.
    pub(crate) fn new(
        fusebox: Fusebox,
        config: Config,
        identity: Identity,
        sources: Sources,
        traces: Option<Arc<Traces>>,
    ) -> Arc<Self> {
        let kinds = config.backends.iter().map(|b| (b.settings.name.clone(), b.kind)).collect();
        Arc::new(Self {
            fusebox,
            config: ArcSwap::from_pointee(config),
            kinds,
            identity,
            sources,
            traces,
            stop: watch::channel(false).0,
            reloading: Mutex::default(),
        })
    }

    /// The kind of the backend of that name. Backends do not come or go without a restart.
    pub(crate) fn kind(&self, name: &str) -> Option<&'static dyn Kind> {
        self.kinds.get(name).copied()
    }

    /// Reads the configuration again and puts it in effect, whole or not at all. Returns what changed.
    ///
    /// # Errors
    /// What stands in the way; the old settings stay.
    pub(crate) async fn reload(&self) -> Result<Vec<String>, String> {
        let _alone = self.reloading.lock().await;
        let next = Config::load(&self.sources.flags, &self.sources.env)
            .map_err(|errors| errors.to_string())?;
        let old = self.config.load_full();
        fixed(&old, &next)?;
        let specs = specs(next.backends.iter().filter(|it| changed(&old, it)), &self.identity)?;
        let system = next.system(self.identity.instance.clone());
        let reloaded = self.fusebox.reload(system, specs).await;
        let changed = reloaded.map_err(|error| error.to_string())?;
        for warning in &next.warnings {
            tracing::warn!("{warning}");
        }
        self.config.store(Arc::new(next));
        Ok(changed)
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
            let connector = backend.kind.connector(backend, identity);
            let connector = connector.map_err(|why| format!("backends.{name}: {why}"))?;
            Ok(BackendSpec { settings: backend.settings.clone(), connector })
        })
        .collect()
}

/// Whether a backend is another than it was. What is as it was keeps its connections.
fn changed(old: &Config, backend: &BackendConfig) -> bool {
    let name = &backend.settings.name;
    let before = old.backends.iter().find(|before| before.settings.name == *name);
    before.is_none_or(|before| {
        before.settings != backend.settings || before.endpoint != backend.endpoint
    })
}

/// Refuses a change of what a running daemon cannot change.
fn fixed(old: &Config, new: &Config) -> Result<(), String> {
    let names = |config: &Config| -> Vec<(String, &str)> {
        config.backends.iter().map(|b| (b.settings.name.clone(), b.settings.kind)).collect()
    };
    let http = |config: &Config| config.http.as_ref().map(|http| http.listen);
    for (key, same) in [
        ("state_dir", old.state_dir == new.state_dir),
        ("socket", old.socket == new.socket),
        ("client_group", old.client_group.name == new.client_group.name),
        ("admin_group", old.admin_group.name == new.admin_group.name),
        ("http.listen", http(old) == http(new)),
        ("tracing.keep_unsampled", old.keep_unsampled == new.keep_unsampled),
        ("backends: their names and kinds", names(old) == names(new)),
    ] {
        if !same {
            return Err(format!("{key} changed, which wants a restart; nothing was changed"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(pairs: &[(&str, &str)]) -> Config {
        let mut all = vec![("FUSEBOX_STATE_DIR", "/s"), ("FUSEBOX_CONFIG", "/dev/null")];
        all.extend_from_slice(pairs);
        Config::load(&Flags::default(), &Environment::of(&all)).unwrap()
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
    }
}
