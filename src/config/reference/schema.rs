//! The JSON schema, for editors.

use serde_json::{Map, Value, json};

use super::super::{
    declared::{Declared, schema_of},
    raw::RawConfig,
    section::Section,
    setting::Facts,
};

/// The schema of the whole file, what the kinds have of their own included.
pub(crate) fn schema(sections: &[&dyn Section]) -> Value {
    let declared = Declared::new(sections);
    let mut schema = schema_of::<RawConfig>().to_value();
    let backends = "/properties/backends";
    let of_core = format!("{backends}/additionalProperties");
    let backend = schema.pointer_mut(&of_core).map(Value::take).unwrap_or_default();
    // A backend of any name may be of any kind; one that is named as a kind is taken for that.
    let mut of_any = backend.clone();
    let mut named = Map::new();
    for section in sections {
        let mut of_kind = backend.clone();
        let own = section.schema().to_value();
        for (key, setting) in own.get("properties").and_then(Value::as_object).into_iter().flatten()
        {
            put(&mut of_any, "/properties", key, setting.clone());
            put(&mut of_kind, "/properties", key, setting.clone());
        }
        for setting in declared.of_backend(section.name()) {
            let default = declared.default_of(setting, section.name());
            let default = default.and_then(|default| serde_json::to_value(default).ok());
            if let (Some(path), Some(default)) = (setting.leaf(), default) {
                let facts = format!("/properties/{}/setting", path.replace('.', "/properties/"));
                put(&mut of_kind, &facts, "default", default);
            }
        }
        named.insert(section.name().to_owned(), of_kind);
    }
    put(&mut schema, backends, "properties", Value::Object(named));
    put(&mut schema, backends, "additionalProperties", of_any);
    put(&mut schema, "", "title", json!("fusebox's configuration"));
    standard(&mut schema);
    schema
}

/// Sets a member of the object at `pointer`.
fn put(schema: &mut Value, pointer: &str, key: &str, value: Value) {
    if let Some(fields) = schema.pointer_mut(pointer).and_then(Value::as_object_mut) {
        fields.insert(key.to_owned(), value);
    }
}

/// Says in the words of JSON Schema what is declared.
fn standard(schema: &mut Value) {
    match schema {
        Value::Array(all) => all.iter_mut().for_each(standard),
        Value::Object(fields) => {
            // Those of the types; what is declared is another.
            fields.remove("default");
            if let Some(facts) = fields.remove("setting")
                && let Ok(facts) = serde_json::from_value(facts)
            {
                state(fields, facts);
            }
            if let Some(Value::Array(kinds)) = fields.get_mut("type") {
                // TOML has no null.
                kinds.retain(|kind| kind != "null");
                if let [only] = kinds.as_slice() {
                    let only = only.clone();
                    fields.insert("type".to_owned(), only);
                }
            }
            let below = fields.iter_mut().filter(|(key, _)| *key != "default");
            below.for_each(|(_, value)| standard(value));
        }
        _ => {}
    }
}

fn state(fields: &mut Map<String, Value>, facts: Facts) {
    // The types' own bounds, of 32 bits, say less.
    for key in ["format", "minimum", "maximum"] {
        fields.remove(key);
    }
    let text = fields.get("description").and_then(Value::as_str).unwrap_or_default();
    let mut text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some(rule) = &facts.rule {
        text = format!("{text} By default {rule}.");
    }
    fields.insert("description".into(), text.into());
    if let Some(default) = facts.default {
        fields.insert("default".into(), default);
    }
    if let Some((least, most)) = facts.range {
        let is_number = least.is_number();
        fields.insert((if is_number { "minimum" } else { "x-minimum" }).into(), least);
        fields.insert((if is_number { "maximum" } else { "x-maximum" }).into(), most);
    }
    if !facts.words.is_empty() {
        fields.insert("enum".into(), json!(facts.words));
    }
    if let Some(example) = facts.example {
        fields.insert("examples".into(), json!([example]));
    }
    if facts.secret {
        fields.insert("writeOnly".into(), true.into());
    }
    fields.insert("x-change".into(), facts.takes.as_str().into());
}
