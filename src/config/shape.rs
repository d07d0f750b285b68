//! The shape of a setting's value, and how its text is read if it comes from the environment.

use toml::Value;

/// How the text of an environment variable becomes a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Taken as it is: text, durations and sizes.
    Text,
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
    /// The value that `text` is for a setting of this shape; text if it does not read as one, so that the
    /// deserializer says what is wrong.
    pub(crate) fn value_of(self, text: &str) -> Value {
        let other = || Value::String(text.to_owned());
        match self {
            Self::Text => other(),
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
