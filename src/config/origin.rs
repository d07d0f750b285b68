//! The origin of settings' values.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use toml::Value;

/// The origin of a setting's value, if it is not the default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The file.
    File,
    /// A change at run time that outlasts restarts.
    Persisted,
    /// A change at run time.
    Runtime,
    /// A variable of the environment, by its name.
    Variable(String),
    /// An option of the command line.
    Flag(&'static str),
}

impl Origin {
    /// The end of a message about the value; nothing if it is the file's.
    pub(crate) fn told(&self) -> String {
        match self {
            Self::File => String::new(),
            Self::Persisted | Self::Runtime => " (changed at run time)".to_owned(),
            Self::Variable(name) => format!(" (set by {name})"),
            Self::Flag(name) => format!(" (set by {name})"),
        }
    }

    /// The word for people: `file`, `persisted`, `runtime`, or the name of the variable or the option.
    pub(crate) fn word(&self) -> &str {
        match self {
            Self::File => "file",
            Self::Persisted => "persisted",
            Self::Runtime => "runtime",
            Self::Variable(name) => name,
            Self::Flag(name) => name,
        }
    }
}

/// A setting that was changed at run time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Change {
    /// Its path.
    pub(crate) path: String,
    /// Its value.
    pub(crate) value: Value,
    /// What the file said of it then: if the file says something else now, the file wins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) replaced: Option<Value>,
    /// Who wanted it.
    pub(crate) by: String,
    /// Since when.
    #[serde(with = "humantime_serde")]
    pub(crate) at: SystemTime,
    /// When it is taken back by itself.
    #[serde(default, with = "humantime_serde", skip_serializing_if = "Option::is_none")]
    pub(crate) until: Option<SystemTime>,
    /// Whether it outlasts a restart.
    #[serde(skip)]
    pub(crate) persisted: bool,
}
