//! Whether a value is one that its setting may have, looked at alone.

use std::time::Duration;

use bytesize::ByteSize;
use toml::Value;

use super::{
    checker::Shown,
    mask::mask_url,
    setting::{Setting, as_toml},
    shape::Shape,
};

/// So many characters of a value are repeated.
const GOT_MAX: usize = 100;

/// Looks at `value` by what is declared of `setting`. A value of another type passes: the deserializer says what is
/// wrong with it.
///
/// # Errors
/// What it must be, as the end of a sentence that begins with the key.
pub(crate) fn judge(setting: &Setting, value: &Value) -> Result<(), String> {
    let facts = &setting.facts;
    if let (Some(text), false) = (value.as_str(), facts.words.is_empty()) {
        if facts.words.iter().any(|word| word == text) {
            return Ok(());
        }
        let words: Vec<String> = facts.words.iter().map(|word| format!("{word:?}")).collect();
        return Err(format!("must be {}, got {text:?}", words.join(" or ")));
    }
    let Some((least, most)) = &facts.range else { return Ok(()) };
    let (Some(least), Some(most)) = (as_toml(least), as_toml(most)) else { return Ok(()) };
    match setting.shape {
        Shape::Time => within(time, value, &least, &most),
        Shape::Size => within(size, value, &least, &most),
        Shape::Integer => within(Value::as_integer, value, &least, &most),
        Shape::Number => {
            let (Some(number), Some(least), Some(most)) =
                (number(value), number(&least), number(&most))
            else {
                return Ok(());
            };
            if (least..=most).contains(&number) {
                return Ok(());
            }
            Err(format!("must be between {least} and {most}, got {number}"))
        }
        Shape::Text | Shape::Flag | Shape::List => Ok(()),
    }
}

/// What the value of `setting` must be, if `value` is of another type: the end of a sentence that begins with the key.
pub(crate) fn mistyped(setting: &Setting, value: &Value) -> String {
    let facts = &setting.facts;
    let what = match setting.shape {
        Shape::Time => "a duration such as \"30s\"",
        Shape::Size => "a size such as \"64MiB\"",
        Shape::Integer => "a whole number",
        Shape::Number => "a number",
        Shape::Text => "a text",
        Shape::Flag => "true or false",
        Shape::List => "a list of texts",
    };
    let range = facts.range.as_ref().map(|(least, most)| {
        // Bounds are written in the type of their settings.
        let shown = |bound| as_toml(bound).map(|bound| shown(setting, &bound, Secrets::Kept));
        let text = |bound: Option<Value>| match bound {
            Some(Value::String(text)) => text,
            Some(Value::Float(number)) => number.to_string(),
            Some(other) => other.to_string(),
            None => String::new(),
        };
        format!(" between {} and {}", text(shown(least)), text(shown(most)))
    });
    let got = if facts.secret { "another type".to_owned() } else { value.to_string() };
    let (start, more) = match got.char_indices().nth(GOT_MAX) {
        Some((end, _)) => (got.get(..end).unwrap_or_default(), "…"),
        None => (&*got, ""),
    };
    format!("must be {what}{}, got {start}{more}", range.unwrap_or_default())
}

fn within<T: Shown>(
    read: impl Fn(&Value) -> Option<T>,
    value: &Value,
    least: &Value,
    most: &Value,
) -> Result<(), String> {
    let (Some(value), Some(least), Some(most)) = (read(value), read(least), read(most)) else {
        return Ok(());
    };
    if value < least {
        return Err(format!("must be at least {}, got {}", least.shown(), value.shown()));
    }
    if value > most {
        return Err(format!("must be at most {}, got {}", most.shown(), value.shown()));
    }
    Ok(())
}

/// What becomes of what is secret in a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Secrets {
    /// It is kept.
    Kept,
    /// It is replaced by `***`.
    Masked,
}

/// A value in its usual form.
pub(crate) fn shown(setting: &Setting, value: &Value, secrets: Secrets) -> Value {
    let text = match setting.shape {
        Shape::Time => time(value).map(|time| time.shown()),
        Shape::Size => size(value).map(|size| exact(size.as_u64())),
        Shape::Text if setting.facts.secret && secrets == Secrets::Masked => {
            value.as_str().map(mask_url)
        }
        _ => None,
    };
    text.map_or_else(|| value.clone(), Value::String)
}

/// A number of bytes in the largest unit that says it exactly.
fn exact(bytes: u64) -> String {
    let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    let fits = |(bits, _): &&(u32, &str)| bytes >> bits > 0 && bytes.trailing_zeros() >= *bits;
    match units.iter().find(fits) {
        Some((bits, unit)) => format!("{} {unit}", bytes >> bits),
        None => format!("{bytes} B"),
    }
}

/// The duration that a value is.
pub(crate) fn time(value: &Value) -> Option<Duration> {
    humantime::parse_duration(value.as_str()?).ok()
}

/// The number of bytes that a value is.
pub(crate) fn size(value: &Value) -> Option<ByteSize> {
    match value {
        Value::String(text) => text.parse().ok(),
        other => other.as_integer()?.try_into().ok().map(ByteSize::b),
    }
}

fn number(value: &Value) -> Option<f64> {
    #[expect(clippy::cast_precision_loss, reason = "what is compared are small numbers")]
    value.as_float().or_else(|| value.as_integer().map(|whole| whole as f64))
}
