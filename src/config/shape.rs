//! The shape of a setting's value, and how its text is read if it comes from the environment.

use toml::Value;

/// How the text of an environment variable becomes a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Taken as it is.
    Text,
    /// A duration, such as `1m 30s`; taken as it is.
    Time,
    /// A number of bytes, such as `64MiB`; taken as it is.
    Size,
    /// A whole number.
    Integer,
    /// A number.
    Number,
    /// `true` or `false`.
    Flag,
    /// Names separated by commas.
    List,
}

impl Shape {
    /// That of a field of this schema.
    pub(crate) fn of(schema: &serde_json::Value) -> Self {
        match schema["x-type"].as_str() {
            Some("duration") => return Self::Time,
            Some("size") => return Self::Size,
            _ => {}
        }
        let kinds = &schema["type"];
        let has = |kind: &str| {
            kinds == kind || kinds.as_array().is_some_and(|all| all.iter().any(|it| it == kind))
        };
        match () {
            () if has("integer") => Self::Integer,
            () if has("number") => Self::Number,
            () if has("boolean") => Self::Flag,
            () if has("array") => Self::List,
            () => Self::Text,
        }
    }

    /// What its values are called.
    pub(crate) const fn called(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Time => "duration",
            Self::Size => "size",
            Self::Integer => "integer",
            Self::Number => "number",
            Self::Flag => "true or false",
            Self::List => "list of texts",
        }
    }

    /// The value that `text` is for a setting of this shape; text if it does not read as one, so that the
    /// deserializer says what is wrong.
    pub(crate) fn value_of(self, text: &str) -> Value {
        let other = || Value::String(text.to_owned());
        match self {
            Self::Text | Self::Time | Self::Size => other(),
            Self::Integer => text.trim().parse().map_or_else(|_| other(), Value::Integer),
            Self::Number => text.trim().parse().map_or_else(|_| other(), Value::Float),
            Self::Flag => match text.trim().to_ascii_lowercase().as_str() {
                "true" | "yes" | "on" | "1" => Value::Boolean(true),
                "false" | "no" | "off" | "0" => Value::Boolean(false),
                _ => other(),
            },
            Self::List => Value::Array(
                text.split(',')
                    .map(str::trim)
                    .filter(|name| !name.is_empty())
                    .map(|name| Value::String(name.to_owned()))
                    .collect(),
            ),
        }
    }
}
