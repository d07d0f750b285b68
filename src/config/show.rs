//! The effective configuration as it is printed: every setting, secrets masked.

use serde_json::Value;
use toml::Table;

use super::{Config, judge::Secrets};

impl Config {
    /// All settings in effect, secrets masked.
    pub(crate) fn masked(&self) -> Table {
        self.declared.shown(&self.effective, Secrets::Masked)
    }

    /// All settings in effect, in the shape of the file.
    pub(crate) fn show(&self) -> Value {
        serde_json::to_value(self.masked()).unwrap_or_default()
    }

    /// The settings in effect of one backend, in the shape of its section.
    pub(crate) fn show_backend(&self, name: &str) -> Value {
        self.show().pointer_mut(&format!("/backends/{name}")).map(Value::take).unwrap_or_default()
    }

    /// The same as TOML.
    pub(crate) fn show_toml(&self) -> String {
        toml::to_string(&self.masked()).unwrap_or_default()
    }
}
