//! A write from its JSON, and as JSON again.
//!
//! ```text
//! {"op":"set","path":"users/ada","data":{…}}                          replaces the document
//! {"op":"set","path":"users/ada","data":{…},"merge":true}             changes what data names, leaf by leaf
//! {"op":"update","path":"users/ada","data":{"a.b":1},"delete_fields":["c"]}   its keys are fields' paths
//! {"op":"create","path":"users/ada","data":{…}}                       only if there is none
//! {"op":"delete","path":"users/ada"}
//! ```
//! All but `delete` may have `"transforms":{"visits":{"increment":1},"seen":"server_timestamp"}`, and all
//! but `create` a `"precondition":{"exists":true}` or `{"update_time":"…"}`.

use googleapis_tonic_google_firestore_v1::google::firestore::v1::{
    ArrayValue, Document, DocumentMask, Precondition, Value, Write,
    document_transform::{
        FieldTransform,
        field_transform::{ServerValue, TransformType},
    },
    precondition::ConditionType,
    value::ValueType,
    write::Operation,
};
use serde::Deserialize;
use serde_json::{Map, Value as Json, json};

use super::{
    path::{self, MASK_NAMES_MAX},
    value::{self, Fields},
    wire,
};

/// The words that name a write.
pub(crate) const OPS: [&str; 4] = ["set", "update", "create", "delete"];

/// A write as JSON has it, without its `op`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawWrite {
    path: String,
    data: Option<Map<String, Json>>,
    merge: bool,
    delete_fields: Vec<String>,
    transforms: Map<String, Json>,
    precondition: Option<RawPrecondition>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
enum RawPrecondition {
    Exists(bool),
    UpdateTime(String),
}

/// The write that `op` and the rest of its JSON are.
///
/// # Errors
/// What is malformed.
pub(crate) fn from_json(op: &str, rest: Map<String, Json>) -> Result<Write, String> {
    let raw: RawWrite =
        serde_json::from_value(Json::Object(rest)).map_err(|error| error.to_string())?;
    path::check_document(&raw.path)?;
    let only = |allowed: bool, what: &str| {
        if allowed { Ok(()) } else { Err(format!("{op} does not take {what}")) }
    };
    only(op == "set" || !raw.merge, "merge")?;
    let partial = op == "update" || raw.merge;
    only(partial || raw.delete_fields.is_empty(), "delete_fields, unless it merges")?;
    only(op != "delete" || raw.data.is_none(), "data")?;
    only(op != "delete" || raw.transforms.is_empty(), "transforms")?;
    only(op != "create" || raw.precondition.is_none(), "precondition")?;
    if matches!(op, "set" | "create") && !raw.merge && raw.data.is_none() {
        return Err(format!("{op} needs data, an object"));
    }
    let condition = match raw.precondition {
        Some(RawPrecondition::Exists(exists)) => Some(ConditionType::Exists(exists)),
        Some(RawPrecondition::UpdateTime(time)) => {
            Some(ConditionType::UpdateTime(value::timestamp(&time)?))
        }
        None if op == "update" => Some(ConditionType::Exists(true)),
        None if op == "create" => Some(ConditionType::Exists(false)),
        None => None,
    };
    let current_document = condition.map(|it| Precondition { condition_type: Some(it) });
    if op == "delete" {
        let operation = Some(Operation::Delete(raw.path));
        return Ok(Write { current_document, operation, ..Write::default() });
    }
    let data = raw.data.unwrap_or_default();
    let (fields, mut mask) = if op == "update" {
        by_paths(&data)?
    } else {
        let fields = value::fields_from_json(&data)?;
        let mut mask = Vec::new();
        if raw.merge {
            leaves(&fields, &mut Vec::new(), &mut mask);
        }
        (fields, mask)
    };
    for field in &raw.delete_fields {
        mask.push(canonical(field)?);
    }
    let document = Document { name: raw.path, fields, ..Document::default() };
    Ok(Write {
        update_mask: partial.then_some(DocumentMask { field_paths: mask }),
        update_transforms: transforms(&raw.transforms)?,
        current_document,
        operation: Some(Operation::Update(document)),
    })
}

/// The fields and the mask of an update, whose keys are fields' paths.
fn by_paths(data: &Map<String, Json>) -> Result<(Fields, Vec<String>), String> {
    let (mut fields, mut mask) = (Fields::new(), Vec::new());
    for (key, json) in data {
        let parts = path::fields(key)?;
        if parts.len() > MASK_NAMES_MAX {
            let count = parts.len();
            return Err(format!(
                "a field's path may have at most {MASK_NAMES_MAX} names, got {count} in a key of data"
            ));
        }
        let new = value::from_json(json).map_err(|why| format!("{key}: {why}"))?;
        insert(&mut fields, &parts, new)
            .ok_or_else(|| format!("{key} is within another field of the same update"))?;
        mask.push(path::field_path(parts.iter().map(String::as_str)));
    }
    Ok((fields, mask))
}

/// Puts `new` at the path `parts`. `None` if something that is not a map is in the way, or the place is
/// taken.
fn insert(fields: &mut Fields, parts: &[String], new: Value) -> Option<()> {
    let (first, rest) = parts.split_first()?;
    if rest.is_empty() {
        return fields.insert(first.clone(), new).is_none().then_some(());
    }
    let empty = || value::value(ValueType::MapValue(value::empty_map()));
    match &mut fields.entry(first.clone()).or_insert_with(empty).value_type {
        Some(ValueType::MapValue(map)) => insert(&mut map.fields, rest, new),
        _ => None,
    }
}

/// The paths of what is not a map with content.
fn leaves<'a>(fields: &'a Fields, above: &mut Vec<&'a str>, mask: &mut Vec<String>) {
    for (name, value) in fields {
        above.push(name);
        match &value.value_type {
            Some(ValueType::MapValue(map)) if !map.fields.is_empty() => {
                leaves(&map.fields, above, mask);
            }
            _ => mask.push(path::field_path(above.iter().copied())),
        }
        above.pop();
    }
}

fn canonical(field: &str) -> Result<String, String> {
    Ok(path::field_path(path::fields(field)?.iter().map(String::as_str)))
}

fn transforms(raw: &Map<String, Json>) -> Result<Vec<FieldTransform>, String> {
    raw.iter()
        .map(|(field, json)| {
            let transform_type = Some(transform(json).map_err(|why| format!("{field}: {why}"))?);
            Ok(FieldTransform { field_path: canonical(field)?, transform_type })
        })
        .collect()
}

fn transform(json: &Json) -> Result<TransformType, String> {
    let wrong = || {
        "a transform must be \"server_timestamp\" or an object with one of increment, maximum, \
         minimum, array_union, array_remove"
            .to_owned()
    };
    if json == "server_timestamp" {
        return Ok(TransformType::SetToServerValue(ServerValue::RequestTime as i32));
    }
    let object = json.as_object().filter(|object| object.len() == 1).ok_or_else(wrong)?;
    let (name, inner) = object.iter().next().ok_or_else(wrong)?;
    let parsed = value::from_json(inner).map_err(|why| format!("{name}: {why}"))?;
    let number = |parsed: Value| match parsed.value_type {
        Some(ValueType::IntegerValue(_) | ValueType::DoubleValue(_)) => Ok(parsed),
        _ => Err(format!("{name} must be a number, got {inner}")),
    };
    let array = |parsed: Value| match parsed.value_type {
        Some(ValueType::ArrayValue(array)) => Ok(array),
        _ => Err(format!("{name} must be an array, got {inner}")),
    };
    Ok(match name.as_str() {
        "increment" => TransformType::Increment(number(parsed)?),
        "maximum" => TransformType::Maximum(number(parsed)?),
        "minimum" => TransformType::Minimum(number(parsed)?),
        "array_union" => TransformType::AppendMissingElements(array(parsed)?),
        "array_remove" => TransformType::RemoveAllFromArray(array(parsed)?),
        _ => return Err(wrong()),
    })
}

/// A write as JSON, for people.
pub(crate) fn to_json(write: &Write) -> Json {
    let condition = write.current_document.as_ref().and_then(|it| it.condition_type.as_ref());
    let mut shown = Map::new();
    let op = match (&write.operation, condition) {
        (Some(Operation::Delete(_)), _) => "delete",
        (_, Some(ConditionType::Exists(false))) => "create",
        _ if write.update_mask.is_some() => "update",
        _ => "set",
    };
    shown.insert("op".into(), json!(op));
    shown.insert("path".into(), json!(wire::document_of(write)));
    if let Some(Operation::Update(document)) = &write.operation {
        shown.insert("data".into(), value::fields_to_json(&document.fields));
    }
    if let Some(mask) = &write.update_mask {
        shown.insert("fields".into(), json!(mask.field_paths));
    }
    if !write.update_transforms.is_empty() {
        let transforms = write.update_transforms.iter().map(|transform| {
            let shown = transform.transform_type.as_ref().map_or(Json::Null, transform_to_json);
            (transform.field_path.clone(), shown)
        });
        shown.insert("transforms".into(), Json::Object(transforms.collect()));
    }
    if let Some(ConditionType::UpdateTime(time)) = condition {
        shown.insert("precondition".into(), json!({ "update_time": time.to_string() }));
    }
    if let (Some(ConditionType::Exists(true)), "delete" | "set") = (condition, op) {
        shown.insert("precondition".into(), json!({ "exists": true }));
    }
    Json::Object(shown)
}

fn transform_to_json(transform: &TransformType) -> Json {
    let array = |array: &ArrayValue| Json::Array(array.values.iter().map(value::to_json).collect());
    match transform {
        TransformType::SetToServerValue(_) => json!("server_timestamp"),
        TransformType::Increment(by) => json!({ "increment": value::to_json(by) }),
        TransformType::Maximum(with) => json!({ "maximum": value::to_json(with) }),
        TransformType::Minimum(with) => json!({ "minimum": value::to_json(with) }),
        TransformType::AppendMissingElements(items) => json!({ "array_union": array(items) }),
        TransformType::RemoveAllFromArray(items) => json!({ "array_remove": array(items) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(op: &str, json: Json) -> Result<Write, String> {
        from_json(op, json.as_object().unwrap().clone())
    }

    #[test]
    fn a_merge_changes_leaf_by_leaf() {
        let data = json!({ "a": { "b": 1, "c.d": {} }, "e": [1] });
        let write = made(
            "set",
            json!({ "path": "u/a", "data": data, "merge": true, "delete_fields": ["z"] }),
        );
        let write = write.unwrap();
        assert_eq!(write.update_mask.unwrap().field_paths, ["a.b", "a.`c.d`", "e", "z"]);
        assert!(write.current_document.is_none());
    }

    #[test]
    fn the_keys_of_an_update_are_paths() {
        let data = json!({ "a.b": 1, "a.c": 2, "`x.y`": 3 });
        let write = made("update", json!({ "path": "u/a", "data": data })).unwrap();
        assert_eq!(write.update_mask.as_ref().unwrap().field_paths, ["`x.y`", "a.b", "a.c"]);
        assert_eq!(
            to_json(&write),
            json!({
                "op": "update", "path": "u/a", "data": { "a": { "b": 1, "c": 2 }, "x.y": 3 },
                "fields": ["`x.y`", "a.b", "a.c"],
            })
        );
        let clash = made("update", json!({ "path": "u/a", "data": { "a": 1, "a.b": 2 } }));
        assert!(clash.unwrap_err().contains("within another field"));
        let deep = Map::from_iter([(vec!["a"; 100_000].join("."), json!(1))]);
        let deep = made("update", json!({ "path": "u/a", "data": deep }));
        assert!(deep.unwrap_err().contains("at most 20 names, got 100000"));
    }

    #[test]
    fn what_does_not_belong_together_is_refused() {
        for (op, json, why) in [
            ("set", json!({ "path": "u/a" }), "set needs data"),
            (
                "create",
                json!({ "path": "u/a", "data": {}, "precondition": { "exists": true } }),
                "does not take precondition",
            ),
            ("update", json!({ "path": "u/a", "merge": true }), "does not take merge"),
            ("delete", json!({ "path": "u/a", "data": {} }), "does not take data"),
            ("set", json!({ "path": "u", "data": {} }), "such as users/ada"),
            ("set", json!({ "path": "u/a", "data": {}, "dta": 1 }), "unknown field `dta`"),
            (
                "update",
                json!({ "path": "u/a", "transforms": { "n": { "increment": "1" } } }),
                "n: increment must be a number",
            ),
            ("update", json!({ "path": "u/a", "transforms": { "n": "now" } }), "server_timestamp"),
            (
                "set",
                json!({ "path": "u/a", "data": {}, "precondition": { "update_time": "x" } }),
                "is not a time",
            ),
        ] {
            let error = made(op, json).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn transforms_are_shown_as_they_were_given() {
        let transforms = json!({
            "a": "server_timestamp", "b": { "increment": 2 }, "c": { "array_union": [1, "x"] },
            "d": { "array_remove": [] }, "e": { "maximum": 1.5 }, "f": { "minimum": -1 },
        });
        let write = made("update", json!({ "path": "u/a", "transforms": transforms })).unwrap();
        assert_eq!(to_json(&write)["transforms"], transforms);
        assert_eq!(write.update_mask.unwrap().field_paths.len(), 0, "nothing else is changed");
    }
}
