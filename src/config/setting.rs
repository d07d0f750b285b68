//! How a setting is declared: once, at its field.
//!
//! A field's type is how its value is written, its doc comment is its documentation, and [`Facts`] are the rest:
//!
//! ```text
//! /// How far back the breaker looks.
//! #[schemars(extend("setting" = patch().default("1m").between("60ms", "1day")))]
//! window: Time,
//! ```
//! From that come parsing, the checks of `fusebox check`, the JSON schema, docs/configuration.md and
//! systemd/fusebox.toml; see [`super::declared`].

use std::{borrow::Cow, fmt, time::Duration};

use bytesize::ByteSize;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize};

use super::shape::Shape;

/// What it takes for a changed value to be in effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Takes {
    /// A change at run time, or any of the others.
    Patch,
    /// A reload of the file, or a restart.
    Reload,
    /// A restart of the daemon.
    Restart,
}

impl Takes {
    /// Its word.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Patch => "patch",
            Self::Reload => "reload",
            Self::Restart => "restart",
        }
    }
}

/// What is declared of a setting besides its type and its documentation.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Facts {
    /// The line of the declaration: settings are shown in the order in which they are declared.
    line: u32,
    /// What a change takes.
    pub(crate) takes: Takes,
    /// The value without any setting, unless the kind says another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) default: Option<serde_json::Value>,
    /// How the value without any setting follows from others, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) rule: Option<Cow<'static, str>>,
    /// The least and the greatest value, as they are written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) range: Option<(serde_json::Value, serde_json::Value)>,
    /// The words that it may be; any text if there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) words: Vec<Cow<'static, str>>,
    /// Whether a part of it is a secret, which is never shown.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) secret: bool,
    /// A value that shows what one looks like, if it has no default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) example: Option<serde_json::Value>,
    /// Whether the file that is installed sets the example.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) installed: bool,
}

/// A setting that can be changed at run time.
#[track_caller]
pub(crate) fn patch() -> Facts {
    Facts::new(Takes::Patch)
}

/// A setting that a reload of the file changes.
#[track_caller]
pub(crate) fn reload() -> Facts {
    Facts::new(Takes::Reload)
}

/// A setting that only a restart changes.
#[track_caller]
pub(crate) fn restart() -> Facts {
    Facts::new(Takes::Restart)
}

impl Facts {
    #[track_caller]
    fn new(takes: Takes) -> Self {
        Self {
            line: std::panic::Location::caller().line(),
            takes,
            default: None,
            rule: None,
            range: None,
            words: Vec::new(),
            secret: false,
            example: None,
            installed: false,
        }
    }

    /// Its position among those of its file.
    pub(crate) fn line(&self) -> u32 {
        self.line
    }

    /// With this value if nothing sets it.
    pub(crate) fn default(self, value: impl Into<serde_json::Value>) -> Self {
        Self { default: Some(value.into()), ..self }
    }

    /// With a value that follows from others if nothing sets it: these words say how.
    pub(crate) fn rule(self, words: &'static str) -> Self {
        Self { rule: Some(words.into()), ..self }
    }

    /// No less than `least`, no more than `most`.
    pub(crate) fn between<T: Into<serde_json::Value>>(self, least: T, most: T) -> Self {
        Self { range: Some((least.into(), most.into())), ..self }
    }

    /// One of these words.
    pub(crate) fn words<T>(self, choices: &'static [(&'static str, T)]) -> Self {
        Self { words: choices.iter().map(|(word, _)| (*word).into()).collect(), ..self }
    }

    /// Of which a part is never shown.
    pub(crate) fn secret(self) -> Self {
        Self { secret: true, ..self }
    }

    /// The file that is installed sets this.
    pub(crate) fn installed(self, value: impl Into<serde_json::Value>) -> Self {
        Self { installed: true, ..self.example(value) }
    }

    /// Such as this.
    pub(crate) fn example(self, value: impl Into<serde_json::Value>) -> Self {
        Self { example: Some(value.into()), ..self }
    }
}

/// A duration as people write it: `200ms`, `1m 30s`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Time(pub(crate) Duration);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        humantime_serde::deserialize(deserializer).map(Self)
    }
}

impl JsonSchema for Time {
    fn schema_name() -> Cow<'static, str> {
        "Time".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "x-type": "duration" })
    }
}

/// A number of bytes as people write it: `64MiB`, or a bare number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(transparent)]
pub(crate) struct Size(pub(crate) ByteSize);

impl Size {
    /// In bytes.
    pub(crate) fn bytes(self) -> u64 {
        self.0.as_u64()
    }
}

impl JsonSchema for Size {
    fn schema_name() -> Cow<'static, str> {
        "Size".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["string", "integer"], "x-type": "size" })
    }
}

/// A setting.
#[derive(Clone, Debug)]
pub(crate) struct Setting {
    /// Its path: `backends.*.breaker.window`.
    pub(crate) path: String,
    /// The kind whose it is, if it is not of every backend.
    pub(crate) kind: Option<&'static str>,
    /// How its value is written.
    pub(crate) shape: Shape,
    /// What else is declared.
    pub(crate) facts: Facts,
    /// Its documentation.
    pub(crate) doc: String,
}

impl Setting {
    /// Its path below the section of a backend, or of a list.
    pub(crate) fn leaf(&self) -> Option<&str> {
        self.path.strip_prefix("backends.*.")
    }
}

/// A declared value as TOML.
pub(crate) fn as_toml(value: &serde_json::Value) -> Option<toml::Value> {
    toml::Value::try_from(value).ok()
}
