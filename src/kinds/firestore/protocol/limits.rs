//! What Firestore refuses whatever its documents hold: such a write is refused before it is acknowledged.
//!
//! | what | the limit |
//! | --- | --- |
//! | an array or a vector directly within an array | refused |
//! | maps and arrays within one another | 20 deep below a field; a vector has no depth |
//! | a value | of a type, and of none that only pipelines know |
//! | a vector, which is a map with `__type__` | `{"__type__": "__vector__", "value": […]}` of 1 to 2,048 doubles that are numbers |
//! | latitude, longitude | -90 to 90, -180 to 180 |
//! | a timestamp | the years 1 to 9999, and 0 to 999,999,999 ns |
//! | a reference | a document's path, or the full name of a document |
//! | a field's name | not empty, at most 1,500 bytes, not `__x__` |
//! | a field's path | simple words, or other names in backquotes; at most 1,500 bytes; in a mask at most 20 names |
//! | the id of a collection or a document | not `__x__`, but for documents' `__id7__`: any number of 64 bits but 0 |
//! | a document's path | 100 documents deep |
//! | a transform | by a number, with a list, or the server's time |
//! | transforms of one document | none of a field within another's |
//! | one text or bytes | 1,048,487 bytes |
//! | a document | 1,048,576 bytes by Firestore's formula ([`document_size`]); of a partial write what it gives alone, and so of each transform: the names of its path, and what `array_union` has, the same element once |
//!
//! Each was held against Google's emulator, which counts sizes by the same formula; the npm one refuses only what it
//! cannot read. What that emulator takes is not refused here, even if the documentation speaks against it: arrays
//! within the elements of `array_union`, transforms of paths above 1,500 bytes, paths of more than 100 names, a mask
//! that names a field twice or together with one within it, a transform of a field that the write also sets. Three
//! things are stricter here: the name `__name__` in a path, a backslash before other characters than a backslash or
//! a backquote, and what a vector among the elements of `array_union` holds.
//! Limits on index entries depend on the database's indexes, which are not known here.

use std::collections::HashSet;

use googleapis_tonic_google_firestore_v1::google::firestore::v1::{
    MapValue, Value, Write,
    document_transform::field_transform::{ServerValue, TransformType},
    value::ValueType,
    write::Operation,
};

use super::{
    path::{self, MASK_NAMES_MAX},
    same,
    value::{self, DEPTH_MAX, Fields},
    wire,
};

/// The most that a name or a path of a field takes, in bytes.
const NAME_MAX: usize = 1_500;
/// The most that one text or bytes take, in bytes.
const VALUE_MAX: usize = (1 << 20) - 89;
/// The most that a document takes by the formula, in bytes.
pub(crate) const DOCUMENT_MAX: usize = 1 << 20;
/// The first second of the year 1, and of the year 10000.
const YEARS: std::ops::Range<i64> = -62_135_596_800..253_402_300_800;
/// What a time has beside its seconds.
const NANOS: std::ops::Range<i32> = 0..1_000_000_000;
/// The name that makes a map a vector.
const TYPE: &str = "__type__";
/// The most doubles of a vector.
const DIMENSIONS_MAX: usize = 2_048;
/// The most names in a document's path.
const SEGMENTS_MAX: usize = 200;

/// Checks a write.
///
/// # Errors
/// What Firestore would refuse, with its place and value.
pub(crate) fn check(write: &Write) -> Result<(), String> {
    let name = wire::document_of(write);
    path::check_document(name)?;
    check_ids(name)?;
    let wrong = |why: String| format!("{name}: {why}");
    let is_delete = matches!(write.operation, Some(Operation::Delete(_)));
    if is_delete && (write.update_mask.is_some() || !write.update_transforms.is_empty()) {
        return Err(wrong("a delete has neither a mask nor transforms".to_owned()));
    }
    if let Some(Operation::Update(document)) = &write.operation {
        check_fields(&document.fields, "", DEPTH_MAX).map_err(wrong)?;
        let size = match &write.update_mask {
            None => fields_size(&document.fields),
            Some(mask) => {
                let parts = mask.field_paths.iter().filter_map(|field| path::fields(field).ok());
                // A mask may name a field as often as it likes.
                let parts = path::outermost(parts.collect());
                let given = parts
                    .iter()
                    .filter_map(|parts| Some(value_size(value::at_path(&document.fields, parts)?)));
                given.sum()
            }
        };
        check_document_size(name, size)?;
    }
    for field in write.update_mask.iter().flat_map(|mask| &mask.field_paths) {
        let parts = path::exact_fields(field).map_err(wrong)?;
        check_path(field, &parts).map_err(wrong)?;
        let bytes = path_len(&parts);
        if bytes > NAME_MAX {
            return Err(wrong(format!(
                "a field's path may have at most {NAME_MAX} bytes, got {bytes}: {}",
                short(field)
            )));
        }
        if parts.len() > MASK_NAMES_MAX {
            let why = format!(
                "a field's path may have at most {MASK_NAMES_MAX} names, got {}: {}",
                parts.len(),
                short(field)
            );
            return Err(wrong(why));
        }
    }
    let size = check_transforms(write).map_err(wrong)?;
    check_document_size(name, size)
}

/// Checks the transforms. Returns the size of what the largest of them makes of a document, at least.
fn check_transforms(write: &Write) -> Result<usize, String> {
    let mut size = 0;
    let mut paths = Vec::with_capacity(write.update_transforms.len());
    for transform in &write.update_transforms {
        let field = &transform.field_path;
        let parts = path::exact_fields(field)?;
        check_path(field, &parts)?;
        check_transform(transform.transform_type.as_ref(), field)?;
        let made = transform.transform_type.as_ref().map_or(0, transformed_size);
        size = size.max(path_len(&parts) + 1 + made);
        paths.push(parts);
    }
    // Sorted, one that is within another comes right after it or after others within it.
    paths.sort_unstable();
    for (outer, inner) in paths.iter().zip(paths.iter().skip(1)) {
        if inner.len() > outer.len() && inner.starts_with(outer) {
            let [outer, inner] =
                [outer, inner].map(|parts| path::field_path(parts.iter().map(String::as_str)));
            let [outer, inner] = [short(&outer), short(&inner)];
            return Err(format!("transforms of {outer} and of {inner}, which is within it"));
        }
    }
    Ok(size)
}

/// How large the value is that a transform makes, at least.
fn transformed_size(transform: &TransformType) -> usize {
    let TransformType::AppendMissingElements(items) = transform else { return 0 };
    let (mut there, mut size) = (HashSet::new(), 0);
    for item in &items.values {
        // That is enough to know.
        if size > DOCUMENT_MAX {
            break;
        }
        if there.insert(same::key(item)) {
            size += value_size(item);
        }
    }
    size
}

fn check_transform(transform: Option<&TransformType>, field: &str) -> Result<(), String> {
    let number = |name: &str, by: &Value| {
        if let Some(ValueType::IntegerValue(_) | ValueType::DoubleValue(_)) = &by.value_type {
            return Ok(());
        }
        let got = short(&value::to_json(by).to_string());
        Err(format!("{}: {name} must be a number, got {got}", short(field)))
    };
    match transform {
        Some(TransformType::Increment(by)) => number("increment", by),
        Some(TransformType::Maximum(with)) => number("maximum", with),
        Some(TransformType::Minimum(with)) => number("minimum", with),
        Some(
            TransformType::AppendMissingElements(items) | TransformType::RemoveAllFromArray(items),
        ) => {
            items.values.iter().try_for_each(|it| check_value(it, field, Place::Element, DEPTH_MAX))
        }
        Some(TransformType::SetToServerValue(of)) if *of == ServerValue::RequestTime as i32 => {
            Ok(())
        }
        Some(TransformType::SetToServerValue(of)) => {
            Err(format!("{}: the server's value must be the time, 1, got {of}", short(field)))
        }
        None => Err(format!("{}: a transform is of an unknown kind", short(field))),
    }
}

/// The position of a value.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Map,
    Array,
    /// Among the elements of a transform, in which the emulator takes arrays within arrays.
    Element,
}

fn check_fields(fields: &Fields, above: &str, depth: usize) -> Result<(), String> {
    for (name, value) in fields {
        let own = if above.is_empty() { name.clone() } else { format!("{above}.{name}") };
        if name.is_empty() {
            return Err(format!("a field's name must not be empty, got one in {:?}", short(above)));
        }
        if is_reserved(name) {
            return Err(format!(
                "names such as {name} are reserved, got the field {}",
                short(&own)
            ));
        }
        if own.len() > NAME_MAX {
            let bytes = own.len();
            return Err(format!(
                "a field's path may have at most {NAME_MAX} bytes, got {bytes}: {}",
                short(&own)
            ));
        }
        check_value(value, &own, Place::Map, depth)?;
    }
    Ok(())
}

fn check_value(value: &Value, field: &str, place: Place, depth: usize) -> Result<(), String> {
    let wrong = |why: String| Err(format!("{}: {why}", short(field)));
    let deeper = || {
        let why = || format!("{}: maps and arrays nest at most {DEPTH_MAX} deep", short(field));
        depth.checked_sub(1).ok_or_else(why)
    };
    match &value.value_type {
        Some(ValueType::ArrayValue(_)) if place == Place::Array => {
            wrong("an array cannot hold an array".to_owned())
        }
        Some(ValueType::ArrayValue(array)) => {
            let (depth, within) =
                (deeper()?, if place == Place::Element { place } else { Place::Array });
            array.values.iter().try_for_each(|item| check_value(item, field, within, depth))
        }
        Some(ValueType::MapValue(map)) if map.fields.contains_key(TYPE) => {
            if place == Place::Array {
                return wrong("an array cannot hold a vector".to_owned());
            }
            check_vector(map).or_else(wrong)
        }
        Some(ValueType::MapValue(map)) => {
            // The path begins again within an array.
            let above = if place == Place::Map { field } else { "" };
            check_fields(&map.fields, above, deeper()?)
        }
        Some(ValueType::GeoPointValue(point)) => {
            let (latitude, longitude) = (point.latitude, point.longitude);
            if !(-90.0..=90.0).contains(&latitude) {
                return wrong(format!("latitude must be -90 to 90, got {latitude}"));
            }
            if !(-180.0..=180.0).contains(&longitude) {
                return wrong(format!("longitude must be -180 to 180, got {longitude}"));
            }
            Ok(())
        }
        Some(ValueType::TimestampValue(time)) if !YEARS.contains(&time.seconds) => {
            wrong(format!("a time must lie in the years 1 to 9999, got {time}"))
        }
        Some(ValueType::TimestampValue(time)) if !NANOS.contains(&time.nanos) => {
            wrong(format!("a time must have 0 to 999999999 ns, got {}", time.nanos))
        }
        Some(ValueType::ReferenceValue(name)) => match check_reference(name) {
            Ok(()) => Ok(()),
            Err(why) => wrong(why),
        },
        Some(ValueType::StringValue(text)) if text.len() > VALUE_MAX => {
            wrong(format!("a text may have at most {VALUE_MAX} bytes, got {}", text.len()))
        }
        Some(ValueType::BytesValue(bytes)) if bytes.len() > VALUE_MAX => wrong(format!(
            "a value of bytes may have at most {VALUE_MAX} bytes, got {}",
            bytes.len()
        )),
        Some(
            ValueType::FieldReferenceValue(_)
            | ValueType::VariableReferenceValue(_)
            | ValueType::FunctionValue(_)
            | ValueType::PipelineValue(_),
        ) => wrong("a field cannot have a value of a kind that only pipelines use".to_owned()),
        None => wrong("a value must have a type".to_owned()),
        Some(_) => Ok(()),
    }
}

/// Checks a map whose `__type__` says that it is more than a map.
fn check_vector(map: &MapValue) -> Result<(), String> {
    let wrong = || {
        let got = map.fields.iter().map(|(name, value)| {
            let shown = value::to_json(value).to_string();
            format!("{}: {}", short(name), short(&shown))
        });
        let got = short(&got.collect::<Vec<_>>().join(", "));
        format!(
            "a map with {TYPE} must be a vector: __vector__, and as value 1 to {DIMENSIONS_MAX} doubles that are \
             numbers; got {got}"
        )
    };
    let is_number = |value: &Value| match value.value_type {
        Some(ValueType::DoubleValue(double)) => !double.is_nan(),
        _ => false,
    };
    let kind = map.fields.get(TYPE).and_then(|kind| kind.value_type.as_ref());
    let is_kind = matches!(kind, Some(ValueType::StringValue(kind)) if kind == "__vector__");
    let given = map.fields.get("value").and_then(|value| value.value_type.as_ref());
    match given {
        Some(ValueType::ArrayValue(given))
            if is_kind
                && map.fields.len() == 2
                && (1..=DIMENSIONS_MAX).contains(&given.values.len())
                && given.values.iter().all(is_number) =>
        {
            Ok(())
        }
        _ => Err(wrong()),
    }
}

fn check_reference(name: &str) -> Result<(), String> {
    let path = match name.strip_prefix("projects/") {
        None => name,
        Some(rest) => {
            let mut parts = rest.splitn(5, '/');
            match (parts.next(), parts.next(), parts.next(), parts.next(), parts.next()) {
                (
                    Some(project),
                    Some("databases"),
                    Some(database),
                    Some("documents"),
                    Some(path),
                ) if !project.is_empty() && !database.is_empty() => path,
                _ => return Err(format!("{name:?} is not the full name of a document")),
            }
        }
    };
    path::check_document(path)?;
    check_ids(path)
}

/// Checks the ids of a document's path; their form was checked before.
fn check_ids(path: &str) -> Result<(), String> {
    for (at, id) in path.split('/').enumerate() {
        if at == SEGMENTS_MAX {
            let most = SEGMENTS_MAX / 2;
            return Err(format!(
                "documents may be nested at most {most} deep, got {}",
                short(path)
            ));
        }
        if is_reserved(id) && !(at % 2 == 1 && is_numbered(id)) {
            return Err(format!("ids such as {id} are reserved, got {}", short(path)));
        }
    }
    Ok(())
}

/// Whether a document's id is a number, as Datastore gives them: `__id7__`.
fn is_numbered(id: &str) -> bool {
    let digits = id.strip_prefix("__id").and_then(|id| id.strip_suffix("__"));
    let number = digits.and_then(|digits| digits.parse::<i64>().ok());
    number.is_some_and(|number| number != 0 && digits == Some(number.to_string().as_str()))
}

fn check_path(field: &str, parts: &[String]) -> Result<(), String> {
    match parts.iter().find(|name| is_reserved(name)) {
        Some(name) => {
            Err(format!("names such as {name} are reserved, got the field {}", short(field)))
        }
        None => Ok(()),
    }
}

fn check_document_size(name: &str, fields: usize) -> Result<(), String> {
    let size = name_size(name) + DOCUMENT_OWN + fields;
    if size <= DOCUMENT_MAX {
        return Ok(());
    }
    Err(format!("{name}: a document may have at most {DOCUMENT_MAX} bytes, got at least {size}"))
}

/// Whether names such as this one are Firestore's own: `__x__`, but neither `__` nor `____`.
fn is_reserved(name: &str) -> bool {
    name.len() > 4 && name.starts_with("__") && name.ends_with("__")
}

/// What a document takes beside its name and its fields.
const DOCUMENT_OWN: usize = 32;

/// How large a document is by Firestore's formula, in bytes. `name` is its path.
pub(crate) fn document_size(name: &str, fields: &Fields) -> usize {
    name_size(name) + DOCUMENT_OWN + fields_size(fields)
}

fn name_size(name: &str) -> usize {
    let path = name.split_once("/documents/").map_or(name, |(_, path)| path);
    16 + path.split('/').map(|id| id.len() + 1).sum::<usize>()
}

fn fields_size(fields: &Fields) -> usize {
    fields.iter().map(|(name, value)| name.len() + 1 + value_size(value)).sum()
}

/// How large a value is by Firestore's formula, in bytes.
pub(super) fn value_size(value: &Value) -> usize {
    match &value.value_type {
        Some(ValueType::StringValue(text)) => text.len() + 1,
        Some(ValueType::BytesValue(bytes)) => bytes.len(),
        Some(ValueType::ReferenceValue(name)) => name_size(name),
        Some(ValueType::GeoPointValue(_)) => 16,
        Some(
            ValueType::IntegerValue(_) | ValueType::DoubleValue(_) | ValueType::TimestampValue(_),
        ) => 8,
        Some(ValueType::ArrayValue(array)) => array.values.iter().map(value_size).sum(),
        Some(ValueType::MapValue(map)) => fields_size(&map.fields),
        _ => 1,
    }
}

fn path_len(parts: &[String]) -> usize {
    parts.iter().map(|name| name.len() + 1).sum::<usize>().saturating_sub(1)
}

/// The beginning of what may be long.
fn short(text: &str) -> String {
    const MOST: usize = 80;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests;
