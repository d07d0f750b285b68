//! The value of a document after the writes that wait in its lane.
//!
//! One function from a lane's writes to a value. What stood before them is not known here, so the first
//! write must be one that leaves nothing of it (a set or a delete); a partial write before any such leaves
//! the value undetermined, until the next one that replaces it.
//!
//! | write | on a known document | on a known absence | on what is not known |
//! | --- | --- | --- | --- |
//! | set | replaced | made | made |
//! | set with merge | changed | made | not known |
//! | update | changed | refused later: nothing | not known |
//! | create | refused later: nothing | made | not known |
//! | delete | gone | gone | gone |
//! | transforms | applied after the fields | applied after the fields | as their write |

use std::cmp::Ordering;

use bytes::Bytes;
use fusebox_actors::connector::{QueuedWrite, Slot};
use fusebox_state::UnixMillis;
use googleapis_tonic_google_firestore_v1::google::firestore::v1::{
    ArrayValue, Document, Value, Write,
    document_transform::{FieldTransform, field_transform::TransformType},
    precondition::ConditionType,
    value::ValueType,
    write::Operation,
};

use super::{
    cache,
    names::Root,
    path,
    value::{self, Fields},
    wire::{self, Call, Found, Op},
};

/// What is known of the document.
enum State {
    Unknown,
    Known(Option<Fields>),
}

/// The document's entry after `writes`, oldest first, or `None` where they do not determine it.
/// References are shown as `root` will complete them, so that a document reads the same before and after.
pub(super) fn overlay(slot: &Slot, writes: &[QueuedWrite], root: Option<&Root>) -> Option<Bytes> {
    let path = cache::path_of(slot)?;
    let (mut state, mut estimated) = (State::Unknown, false);
    for queued in writes {
        let call: Call = wire::decode(&queued.body).ok()?;
        let Some(Op::Commit(commit)) = call.op else { return None };
        let of_it = commit.writes.into_iter().filter(|write| wire::document_of(write) == path);
        for mut write in of_it {
            if let Some(root) = root {
                root.complete_write(&mut write);
            }
            let replaced = write.update_mask.is_none();
            state = apply(state, &write, queued.accepted_at)?;
            let sets_time = |transform: &FieldTransform| {
                matches!(transform.transform_type, Some(TransformType::SetToServerValue(_)))
            };
            estimated = (estimated && !replaced) || write.update_transforms.iter().any(sets_time);
        }
    }
    let State::Known(fields) = state else { return None };
    let estimated = estimated && fields.is_some();
    let document = fields.map(|fields| Document { fields, ..Document::default() });
    Some(wire::encode(&Found { path: path.to_owned(), document, estimated }))
}

/// What the write makes of the document. `None` where the write itself cannot be told.
fn apply(state: State, write: &Write, accepted_at: UnixMillis) -> Option<State> {
    let condition = write.current_document.as_ref().and_then(|it| it.condition_type.as_ref());
    let new = match &write.operation {
        Some(Operation::Update(document)) => document,
        Some(Operation::Delete(_)) => return Some(State::Known(None)),
        Some(Operation::Transform(_)) | None => return None,
    };
    let must_exist = match condition {
        Some(ConditionType::Exists(exists)) => Some(*exists),
        Some(ConditionType::UpdateTime(_)) => return None,
        None => None,
    };
    let before = match (state, must_exist) {
        // It will be refused.
        (State::Known(Some(fields)), Some(false)) => return Some(State::Known(Some(fields))),
        (State::Known(None), Some(true)) => return Some(State::Known(None)),
        // Whether it will be refused is not known: what stands there is not what it writes.
        (State::Unknown, Some(false)) => return Some(State::Unknown),
        (State::Known(fields), _) => Some(fields.unwrap_or_default()),
        (State::Unknown, _) => None,
    };
    let mut fields = match (&write.update_mask, before) {
        (None, _) => new.fields.clone(),
        (Some(_), None) => return Some(State::Unknown),
        (Some(mask), Some(mut fields)) => {
            for field in &mask.field_paths {
                let parts = path::fields(field).ok()?;
                let value = get(&new.fields, &parts).cloned();
                put(&mut fields, &parts, value);
            }
            fields
        }
    };
    for transform in &write.update_transforms {
        let parts = path::fields(&transform.field_path).ok()?;
        let old = get(&fields, &parts);
        let new = transformed(transform.transform_type.as_ref()?, old, accepted_at)?;
        put(&mut fields, &parts, Some(new));
    }
    Some(State::Known(Some(fields)))
}

/// The value at the path `parts`.
fn get<'a>(fields: &'a Fields, parts: &[String]) -> Option<&'a Value> {
    let (first, rest) = parts.split_first()?;
    let value = fields.get(first)?;
    match &value.value_type {
        _ if rest.is_empty() => Some(value),
        Some(ValueType::MapValue(map)) => get(&map.fields, rest),
        _ => None,
    }
}

/// Puts a value at the path `parts`, making maps on the way, or takes it out where there is none.
fn put(fields: &mut Fields, parts: &[String], new: Option<Value>) {
    let Some((first, rest)) = parts.split_first() else { return };
    if rest.is_empty() {
        match new {
            Some(new) => drop(fields.insert(first.clone(), new)),
            None => drop(fields.remove(first)),
        }
        return;
    }
    if new.is_none() && !fields.contains_key(first) {
        return;
    }
    let empty = || value::value(ValueType::MapValue(value::empty_map()));
    let inner = fields.entry(first.clone()).or_insert_with(empty);
    if !matches!(inner.value_type, Some(ValueType::MapValue(_))) {
        if new.is_none() {
            return;
        }
        *inner = empty();
    }
    if let Some(ValueType::MapValue(map)) = &mut inner.value_type {
        put(&mut map.fields, rest, new);
    }
}

/// What the server will make of `old`; a time is that of acceptance, as an estimate.
fn transformed(
    transform: &TransformType,
    old: Option<&Value>,
    accepted_at: UnixMillis,
) -> Option<Value> {
    let value_type = match transform {
        TransformType::SetToServerValue(_) => ValueType::TimestampValue(value::time(accepted_at)),
        TransformType::Increment(by) => match (number(old), by.value_type.as_ref()?) {
            (Some(ValueType::IntegerValue(old)), ValueType::IntegerValue(by)) => {
                ValueType::IntegerValue(old.saturating_add(*by))
            }
            (Some(old), by) => ValueType::DoubleValue(double(&old)? + double(by)?),
            (None, by) => by.clone(),
        },
        TransformType::Maximum(with) => extreme(number(old), with, Ordering::Less)?,
        TransformType::Minimum(with) => extreme(number(old), with, Ordering::Greater)?,
        TransformType::AppendMissingElements(items) => {
            let mut values = array(old);
            for item in &items.values {
                if !values.contains(item) {
                    values.push(item.clone());
                }
            }
            ValueType::ArrayValue(ArrayValue { values })
        }
        TransformType::RemoveAllFromArray(items) => {
            let mut values = array(old);
            values.retain(|value| !items.values.contains(value));
            ValueType::ArrayValue(ArrayValue { values })
        }
    };
    Some(value::value(value_type))
}

/// `with`, where the old number lies on that side of it or there is none; else the old one.
fn extreme(old: Option<ValueType>, with: &Value, side: Ordering) -> Option<ValueType> {
    let with = with.value_type.as_ref()?;
    let Some(old) = old else { return Some(with.clone()) };
    let order = match (&old, with) {
        (ValueType::IntegerValue(old), ValueType::IntegerValue(with)) => old.cmp(with),
        (old, with) => double(old)?.total_cmp(&double(with)?),
    };
    Some(if order == side { with.clone() } else { old })
}

fn number(value: Option<&Value>) -> Option<ValueType> {
    value?
        .value_type
        .clone()
        .filter(|it| matches!(it, ValueType::IntegerValue(_) | ValueType::DoubleValue(_)))
}

#[expect(clippy::cast_precision_loss, reason = "as Firestore adds an integer to a double")]
fn double(number: &ValueType) -> Option<f64> {
    match number {
        ValueType::IntegerValue(integer) => Some(*integer as f64),
        ValueType::DoubleValue(double) => Some(*double),
        _ => None,
    }
}

fn array(value: Option<&Value>) -> Vec<Value> {
    match value.and_then(|value| value.value_type.as_ref()) {
        Some(ValueType::ArrayValue(array)) => array.values.clone(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use fusebox_state::LaneId;
    use serde_json::{Value as Json, json};

    use super::*;
    use crate::connectors::firestore::{
        json::{body_from_json, reply_to_json},
        wire::{Answer, Get, Reply},
    };

    /// The document `u/a` after these writes; the word `unknown` where they do not determine it.
    fn after(writes: &[Json]) -> Json {
        let get = Get { paths: vec!["u/a".into()], many: false };
        let slot = cache::document_slots(&get, "", |_| LaneId(1)).remove(0);
        let writes: Vec<QueuedWrite> = writes
            .iter()
            .map(|call| {
                let mut call = call.as_object().unwrap().clone();
                if !call.contains_key("writes") {
                    call.insert("path".into(), json!("u/a"));
                }
                let body = body_from_json(call, "").unwrap();
                QueuedWrite { body, accepted_at: UnixMillis::new(1_500), due: None }
            })
            .collect();
        let Some(part) = overlay(&slot, &writes, None) else { return json!("unknown") };
        let shown = reply_to_json(&Reply::encoded(Answer::One(wire::decode(&part).unwrap())));
        if shown["estimated"] == true {
            return json!({ "estimated": shown["data"] });
        }
        if shown.is_null() { shown } else { shown["data"].clone() }
    }

    fn set(data: Json) -> Json {
        json!({ "op": "set", "data": data })
    }

    fn update(data: Json) -> Json {
        json!({ "op": "update", "data": data })
    }

    fn transform(transforms: Json) -> Json {
        json!({ "op": "update", "transforms": transforms })
    }

    #[test]
    fn writes_make_the_value_that_they_determine() {
        let delete = || json!({ "op": "delete" });
        let create = || json!({ "op": "create", "data": { "c": 1 } });
        let merge = |data: Json| json!({ "op": "set", "data": data, "merge": true });
        for (writes, value) in [
            (vec![set(json!({ "a": 1 }))], json!({ "a": 1 })),
            (vec![set(json!({ "a": 1 })), set(json!({ "b": 2 }))], json!({ "b": 2 })),
            (vec![delete()], json!(null)),
            (vec![update(json!({ "a": 1 }))], json!("unknown")),
            (vec![merge(json!({ "a": 1 }))], json!("unknown")),
            (vec![create()], json!("unknown")),
            (vec![create(), set(json!({}))], json!({})),
            (vec![delete(), create()], json!({ "c": 1 })),
            (vec![set(json!({ "a": 1 })), create()], json!({ "a": 1 })),
            (vec![delete(), update(json!({ "a": 1 }))], json!(null)),
            (vec![delete(), merge(json!({ "a": { "b": 1 } }))], json!({ "a": { "b": 1 } })),
            (
                vec![
                    set(json!({ "a": { "x": 1, "y": 2 }, "z": 3 })),
                    merge(json!({ "a": { "x": 9 } })),
                ],
                json!({ "a": { "x": 9, "y": 2 }, "z": 3 }),
            ),
            (
                vec![set(json!({ "a": { "x": 1 }, "b": 2 })), update(json!({ "a.y": 5, "b": {} }))],
                json!({ "a": { "x": 1, "y": 5 }, "b": {} }),
            ),
            (
                vec![
                    set(json!({ "a": { "x": 1, "y": 1 } })),
                    json!({ "op": "update", "delete_fields": ["a.x", "b.c"] }),
                ],
                json!({ "a": { "y": 1 } }),
            ),
        ] {
            assert_eq!(after(&writes), value, "{writes:?}");
        }
    }

    #[test]
    fn transforms_apply_as_the_server_will() {
        let base = || set(json!({ "i": 5, "d": 1.5, "l": [1, 2], "s": "x" }));
        for (transforms, field, value) in [
            (json!({ "i": { "increment": 2 } }), "i", json!(7)),
            (json!({ "i": { "increment": 0.5 } }), "i", json!(5.5)),
            (json!({ "s": { "increment": 2 } }), "s", json!(2)),
            (json!({ "n.m": { "increment": 1 } }), "n", json!({ "m": 1 })),
            (json!({ "i": { "maximum": 9 } }), "i", json!(9)),
            (json!({ "i": { "maximum": 4.5 } }), "i", json!(5)),
            (json!({ "d": { "minimum": 1 } }), "d", json!(1)),
            (json!({ "l": { "array_union": [2, 3, 3] } }), "l", json!([1, 2, 3])),
            (json!({ "l": { "array_remove": [1] } }), "l", json!([2])),
            (json!({ "s": { "array_union": [1] } }), "s", json!([1])),
        ] {
            assert_eq!(
                after(&[base(), transform(transforms.clone())])[field],
                value,
                "{transforms}"
            );
        }
    }

    #[test]
    fn a_server_time_is_an_estimate_until_it_is_replaced() {
        let time = json!({ "timestampValue": "1970-01-01T00:00:01.500Z" });
        let stamp = transform(json!({ "t": "server_timestamp" }));
        let stamped = after(&[set(json!({})), stamp.clone()]);
        assert_eq!(stamped, json!({ "estimated": { "t": time } }));
        assert_eq!(after(&[set(json!({})), stamp.clone(), set(json!({}))]), json!({}));
        assert_eq!(after(&[set(json!({})), stamp, json!({ "op": "delete" })]), json!(null));
    }

    #[test]
    fn a_commit_counts_with_its_writes_to_this_document() {
        let commit = json!({ "op": "commit", "writes": [
            { "op": "set", "path": "u/a", "data": { "n": 1 } },
            { "op": "set", "path": "u/b", "data": { "n": 7 } },
            { "op": "update", "path": "u/a", "transforms": { "n": { "increment": 1 } } },
        ] });
        assert_eq!(after(&[commit]), json!({ "n": 2 }));
    }
}
