use std::path::Path;

use serde_json::Value;

use super::{super::Config, *};
use crate::{
    config::{Environment, Flags},
    kinds,
};

/// The settings in effect without any.
fn usual() -> Config {
    let env = Environment::of(&[("FUSEBOX_CONFIG", "/dev/null"), ("FUSEBOX_STATE_DIR", "/s")]);
    Config::load(&Flags::default(), &env, &kinds::sections()).unwrap()
}

/// Fails unless the file says what is made; with `FUSEBOX_TEST_WRITE` set, writes it.
fn is_as_made(file: &str, made: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    if std::env::var_os("FUSEBOX_TEST_WRITE").is_some() {
        std::fs::write(&path, made).unwrap();
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = there.lines().zip(made.lines()).find(|(there, made)| there != made);
    assert!(
        there == made,
        "{file} is not what the settings' declarations say; FUSEBOX_TEST_WRITE=1 writes it. First difference: {differs:?}"
    );
}

#[test]
fn the_page_is_made_of_the_declarations() {
    is_as_made("docs/configuration.md", &page(&kinds::sections()));
}

#[test]
fn the_installed_file_is_made_of_the_declarations() {
    is_as_made("systemd/fusebox.toml", &file(&kinds::sections(), &usual().effective));
}

#[test]
fn the_installed_file_sets_what_is_in_effect_without_it() {
    let made = file(&kinds::sections(), &usual().effective);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fusebox.toml");
    std::fs::write(&path, &made).unwrap();
    let flags = Flags { config: Some(path), ..Flags::default() };
    let env = Environment::of(&[("FUSEBOX_STATE_DIR", "/s")]);
    let read = Config::load(&flags, &env, &kinds::sections()).unwrap();
    assert_eq!(read.effective, usual().effective);
    // Each line that is commented out is a setting, too, and its value one that it may have.
    let whole = made.lines().map(|line| match line.strip_prefix('#') {
        Some(setting) if setting.starts_with(|c: char| c.is_ascii_lowercase() || c == '[') => {
            setting
        }
        _ => line,
    });
    let whole: toml::Table = whole.collect::<Vec<_>>().join("\n").parse().unwrap();
    let mut known = whole.clone();
    let found = read.declared.remove_unknown(&mut known);
    assert_eq!((found.problems, found.unknown, &known), (Vec::new(), Vec::new(), &whole));
    assert_eq!(read.declared.judge(&whole), []);
}

/// Whether a value has the type that the schema wants, and every property is one of the schema.
fn fits(schema: &Value, value: &Value, path: &str) {
    if let Value::Object(fields) = value {
        for (key, value) in fields {
            let named = schema["properties"].get(key);
            let of = named.or_else(|| schema.get("additionalProperties"));
            let of = of.filter(|of| of.is_object());
            fits(of.unwrap_or_else(|| panic!("{path}.{key} is not in the schema")), value, key);
        }
        return;
    }
    if let Value::Array(list) = value {
        return list.iter().for_each(|one| fits(&schema["items"], one, path));
    }
    let kind = match value {
        Value::String(_) => "string",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        _ => "integer",
    };
    let kinds = match &schema["type"] {
        Value::Array(all) => all.clone(),
        one => vec![one.clone()],
    };
    assert!(kinds.contains(&kind.into()), "{path}: {value} is no {kinds:?}");
    if let Some(words) = schema["enum"].as_array() {
        assert!(words.contains(value), "{path}: {value}");
    }
}

#[test]
fn what_is_in_effect_fits_the_schema() {
    let schema = schema(&kinds::sections());
    fits(&schema, &usual().show(), "");
    let backends = &schema["properties"]["backends"];
    let threshold =
        |of: &Value| of["properties"]["breaker"]["properties"]["failure_threshold"].clone();
    let redis = threshold(&backends["properties"]["redis"]);
    assert_eq!((&redis["default"], &redis["minimum"]), (&5.into(), &1.into()));
    assert_eq!(threshold(&backends["additionalProperties"])["default"], Value::Null);
    assert_eq!(backends["properties"]["clickhouse"]["properties"]["on_miss"], Value::Null);
    assert!(backends["additionalProperties"]["properties"]["on_miss"].is_object());
    let window = &backends["properties"]["redis"]["properties"]["breaker"]["properties"]["window"];
    assert_eq!((&window["x-minimum"], &window["x-change"]), (&"60ms".into(), &"patch".into()));
    // A part of it is never shown.
    let own = &backends["properties"]["redis"]["properties"];
    assert_eq!(
        (&own["url"]["writeOnly"], &own["username"]["writeOnly"]),
        (&true.into(), &Value::Null)
    );
    assert!(!schema.to_string().contains("\"setting\""));
    assert_eq!(schema["additionalProperties"], false);
}
