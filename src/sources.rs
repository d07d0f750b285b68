//! Where the configuration comes from, and how all of it is read.

use crate::{
    config::{Config, ConfigErrors, Environment, Flags},
    kinds,
};

/// Where the configuration came from, to read it again.
pub(crate) struct Sources {
    /// The command line.
    pub(crate) flags: Flags,
    /// The environment.
    pub(crate) env: Environment,
}

impl Sources {
    /// The configuration as the sources are now.
    ///
    /// # Errors
    /// All that is wrong, at once.
    pub(crate) fn load(&self) -> Result<Config, ConfigErrors> {
        load_config(&self.flags, &self.env)
    }
}

/// The configuration of these sources: of the core, and of every kind of this release.
///
/// # Errors
/// All that is wrong, at once.
pub(crate) fn load_config(flags: &Flags, env: &Environment) -> Result<Config, ConfigErrors> {
    Config::load(flags, env, &kinds::sections())
}
