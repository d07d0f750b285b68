//! The stores that a queue command without a daemon looks at: see [`crate::state_dir::stores`].

use std::path::Path;

use crate::{
    config::{BackendConfig, Config, Environment, Flags},
    sources::load_config,
    state_dir::stores::{self, Configured, Found},
    terminal::print::complain,
};

/// The configuration of this host, if it is valid, and the directory that it is of.
pub(crate) struct Host {
    config: Option<Config>,
    configured: Option<Configured>,
}

impl Host {
    /// What the sources say. `--state-dir` is no source: it names any directory, such as a copy.
    pub(crate) fn of(flags: &Flags, env: &Environment) -> Self {
        let own = Flags { state_dir: None, ..flags.clone() };
        let config = load_config(&own, env).ok();
        let configured = config.as_ref().map(|config| {
            let is_known = flags.state_dir.is_none()
                || config.origins.contains_key("state_dir")
                || env.get("STATE_DIRECTORY").is_some();
            Configured {
                state_dir: is_known.then(|| config.state_dir.clone()),
                stores: config.backends.iter().map(BackendConfig::store).collect(),
            }
        });
        Self { config, configured }
    }

    /// The configuration.
    pub(crate) fn config(&self) -> Option<&Config> {
        self.config.as_ref()
    }

    /// The stores of the state directory `dir`, or those of one backend.
    ///
    /// # Errors
    /// The folder of the stores cannot be read.
    pub(crate) fn stores(&self, dir: &Path, only: Option<&str>) -> std::io::Result<Found> {
        let mut found = stores::find(dir, self.configured.as_ref())?;
        if let Some(name) = only {
            found.keep_only(name);
        }
        for note in &found.notes {
            complain(note);
        }
        Ok(found)
    }
}
