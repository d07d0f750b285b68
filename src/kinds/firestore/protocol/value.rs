//! Firestore's values as JSON, and back.
//!
//! A value is plain JSON if that says what is meant, and in the typed form of Firestore's REST
//! interface if it does not: an object whose only key is one of the `…Value` names.
//!
//! | Firestore | JSON |
//! | --- | --- |
//! | null, boolean, string, array, map | the same |
//! | integer | a number without point and exponent; `{"integerValue":"…"}` beyond 2^53, which JavaScript would round |
//! | double | a number with a point or an exponent; `{"doubleValue":"NaN"}` and `"Infinity"` |
//! | timestamp, bytes, reference, geo point | `{"timestampValue":"…Z"}`, `{"bytesValue":"base64"}`, `{"referenceValue":"…"}`, `{"geoPointValue":{…}}` |
//! | a map that would read as a typed value | `{"mapValue":{"fields":{…}}}` |
//!
//! On input both forms are taken everywhere. A reference may be a document's path (`users/ada`): it is
//! completed when the call is sent.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use fusebox_state::UnixMillis;
use googleapis_tonic_google_firestore_v1::google::{
    firestore::v1::{ArrayValue, MapValue, Value, value::ValueType},
    r#type::LatLng,
};
use prost_types::Timestamp;
use serde_json::{Map, Value as Json, json};

/// The fields of a document or map.
pub(crate) type Fields = BTreeMap<String, Value>;

/// Firestore's own limit on maps and arrays within one another.
pub(crate) const DEPTH_MAX: usize = 20;

/// The largest integer up to which every one is a number that JavaScript keeps: 2^53.
const EXACT_MAX: u64 = 1 << 53;

/// The names that make an object with one key a typed value.
const TYPED: [&str; 11] = [
    "nullValue",
    "booleanValue",
    "integerValue",
    "doubleValue",
    "timestampValue",
    "stringValue",
    "bytesValue",
    "referenceValue",
    "geoPointValue",
    "arrayValue",
    "mapValue",
];

/// A value of that type.
pub(crate) fn value(value_type: ValueType) -> Value {
    Value { value_type: Some(value_type) }
}

/// A map without fields.
pub(crate) fn empty_map() -> MapValue {
    MapValue::default()
}

/// The fields that a JSON object is.
///
/// # Errors
/// What is wrong, and in which field.
pub(crate) fn fields_from_json(object: &Map<String, Json>) -> Result<Fields, String> {
    fields_at(object, DEPTH_MAX)
}

/// The value that JSON is.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn from_json(json: &Json) -> Result<Value, String> {
    at(json, DEPTH_MAX)
}

fn fields_at(object: &Map<String, Json>, depth: usize) -> Result<Fields, String> {
    object
        .iter()
        .map(|(name, json)| match at(json, depth) {
            Ok(value) => Ok((name.clone(), value)),
            Err(why) => Err(format!("{name}: {why}")),
        })
        .collect()
}

fn at(json: &Json, depth: usize) -> Result<Value, String> {
    let value_type = match json {
        Json::Null => ValueType::NullValue(0),
        Json::Bool(flag) => ValueType::BooleanValue(*flag),
        Json::String(text) => ValueType::StringValue(text.clone()),
        Json::Number(number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
            (Some(integer), ..) => ValueType::IntegerValue(integer),
            (None, Some(large), _) => {
                return Err(format!("{large} does not fit into a signed integer of 64 bits"));
            }
            (None, None, Some(double)) => ValueType::DoubleValue(double),
            (None, None, None) => return Err(format!("{number} is not a number of 64 bits")),
        },
        Json::Array(items) => ValueType::ArrayValue(array(items, depth)?),
        Json::Object(object) => match single(object) {
            Some((name, inner)) => typed(name, inner, depth)?,
            None => ValueType::MapValue(map(object, depth)?),
        },
    };
    Ok(value(value_type))
}

/// The name and content of an object that is a typed value.
fn single(object: &Map<String, Json>) -> Option<(&str, &Json)> {
    let (name, inner) = object.iter().next().filter(|_| object.len() == 1)?;
    TYPED.contains(&name.as_str()).then_some((name, inner))
}

fn typed(name: &str, inner: &Json, depth: usize) -> Result<ValueType, String> {
    let wrong = |what: &str| format!("{name} must be {what}, got {inner}");
    Ok(match (name, inner) {
        ("nullValue", Json::Null) => ValueType::NullValue(0),
        ("nullValue", _) => return Err(wrong("null")),
        ("booleanValue", Json::Bool(flag)) => ValueType::BooleanValue(*flag),
        ("booleanValue", _) => return Err(wrong("true or false")),
        ("integerValue", Json::String(text)) => {
            ValueType::IntegerValue(text.parse().map_err(|_| wrong("an integer of 64 bits"))?)
        }
        ("integerValue", _) => {
            ValueType::IntegerValue(inner.as_i64().ok_or_else(|| wrong("an integer of 64 bits"))?)
        }
        ("doubleValue", Json::String(text)) => ValueType::DoubleValue(match text.as_str() {
            "NaN" => f64::NAN,
            "Infinity" => f64::INFINITY,
            "-Infinity" => f64::NEG_INFINITY,
            _ => return Err(wrong("a number, \"NaN\", \"Infinity\" or \"-Infinity\"")),
        }),
        ("doubleValue", _) => {
            ValueType::DoubleValue(inner.as_f64().ok_or_else(|| wrong("a number"))?)
        }
        ("timestampValue", Json::String(text)) => ValueType::TimestampValue(timestamp(text)?),
        ("timestampValue", _) => return Err(wrong("a time such as \"2026-01-01T00:00:00Z\"")),
        ("stringValue", Json::String(text)) => ValueType::StringValue(text.clone()),
        ("stringValue", _) => return Err(wrong("text")),
        ("bytesValue", Json::String(text)) => {
            let bytes = STANDARD.decode(text).map_err(|_| wrong("base64"))?;
            ValueType::BytesValue(bytes.into())
        }
        ("bytesValue", _) => return Err(wrong("base64")),
        ("referenceValue", Json::String(text)) => ValueType::ReferenceValue(text.clone()),
        ("referenceValue", _) => return Err(wrong("a document's path or full name")),
        ("geoPointValue", _) => {
            let number = |key: &str| inner.get(key).and_then(Json::as_f64);
            let what = "an object with the numbers latitude and longitude";
            let (latitude, longitude) = (number("latitude"), number("longitude"));
            ValueType::GeoPointValue(LatLng {
                latitude: latitude.ok_or_else(|| wrong(what))?,
                longitude: longitude.ok_or_else(|| wrong(what))?,
            })
        }
        ("arrayValue", Json::Object(object)) => match object.get("values") {
            Some(Json::Array(items)) => ValueType::ArrayValue(array(items, depth)?),
            None if object.is_empty() => ValueType::ArrayValue(ArrayValue::default()),
            _ => return Err(wrong("an object with the array values")),
        },
        ("mapValue", Json::Object(object)) => match object.get("fields") {
            Some(Json::Object(fields)) => ValueType::MapValue(map(fields, depth)?),
            None if object.is_empty() => ValueType::MapValue(MapValue::default()),
            _ => return Err(wrong("an object with the object fields")),
        },
        _ => return Err(wrong("an object")),
    })
}

fn array(items: &[Json], depth: usize) -> Result<ArrayValue, String> {
    let depth = deeper(depth)?;
    let values: Result<Vec<Value>, String> = items
        .iter()
        .enumerate()
        .map(|(index, item)| at(item, depth).map_err(|why| format!("[{index}]: {why}")))
        .collect();
    Ok(ArrayValue { values: values? })
}

fn map(object: &Map<String, Json>, depth: usize) -> Result<MapValue, String> {
    Ok(MapValue { fields: fields_at(object, deeper(depth)?)? })
}

fn deeper(depth: usize) -> Result<usize, String> {
    depth.checked_sub(1).ok_or_else(|| format!("maps and arrays nest at most {DEPTH_MAX} deep"))
}

/// A time of RFC 3339.
///
/// # Errors
/// It is none.
pub(crate) fn timestamp(text: &str) -> Result<Timestamp, String> {
    text.parse().map_err(|_| format!("{text:?} is not a time such as \"2026-01-01T00:00:00Z\""))
}

/// The value at the path `parts`.
pub(crate) fn at_path<'a>(fields: &'a Fields, parts: &[String]) -> Option<&'a Value> {
    let (first, rest) = parts.split_first()?;
    let value = fields.get(first)?;
    match &value.value_type {
        _ if rest.is_empty() => Some(value),
        Some(ValueType::MapValue(map)) => at_path(&map.fields, rest),
        _ => None,
    }
}

/// A moment as Firestore has it.
pub(crate) fn time(at: UnixMillis) -> Timestamp {
    let millis = i64::try_from(at.get()).unwrap_or(i64::MAX);
    let nanos = i32::try_from(millis % 1_000).unwrap_or(0) * 1_000_000;
    Timestamp { seconds: millis / 1_000, nanos }
}

/// The JSON of fields.
pub(crate) fn fields_to_json(fields: &Fields) -> Json {
    Json::Object(fields.iter().map(|(name, value)| (name.clone(), to_json(value))).collect())
}

/// The JSON of a value.
pub(crate) fn to_json(value: &Value) -> Json {
    let Some(value_type) = &value.value_type else { return Json::Null };
    match value_type {
        ValueType::BooleanValue(flag) => json!(flag),
        ValueType::IntegerValue(integer) if integer.unsigned_abs() <= EXACT_MAX => json!(integer),
        ValueType::IntegerValue(integer) => json!({ "integerValue": integer.to_string() }),
        ValueType::DoubleValue(double) if double.is_finite() => json!(double),
        ValueType::DoubleValue(double) if double.is_nan() => json!({ "doubleValue": "NaN" }),
        ValueType::DoubleValue(double) => {
            json!({ "doubleValue": if *double > 0.0 { "Infinity" } else { "-Infinity" } })
        }
        ValueType::TimestampValue(time) => json!({ "timestampValue": time.to_string() }),
        ValueType::StringValue(text) => json!(text),
        ValueType::BytesValue(bytes) => json!({ "bytesValue": STANDARD.encode(bytes) }),
        ValueType::ReferenceValue(name) => json!({ "referenceValue": name }),
        ValueType::GeoPointValue(LatLng { latitude, longitude }) => {
            json!({ "geoPointValue": { "latitude": latitude, "longitude": longitude } })
        }
        ValueType::ArrayValue(array) => Json::Array(array.values.iter().map(to_json).collect()),
        ValueType::MapValue(map) => {
            let fields = fields_to_json(&map.fields);
            let ambiguous = map.fields.len() == 1
                && map.fields.keys().all(|name| TYPED.contains(&name.as_str()));
            if ambiguous { json!({ "mapValue": { "fields": fields } }) } else { fields }
        }
        // All but the first only in pipelines, which are not spoken here.
        ValueType::NullValue(_)
        | ValueType::FieldReferenceValue(_)
        | ValueType::VariableReferenceValue(_)
        | ValueType::FunctionValue(_)
        | ValueType::PipelineValue(_) => Json::Null,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn plain_values_are_themselves() {
        for json in [
            json!(null),
            json!(true),
            json!(-7),
            json!(1.5),
            json!(2.0),
            json!("text"),
            json!([1, "a", null]),
            json!({ "a": { "b": [] }, "c": {} }),
        ] {
            assert_eq!(to_json(&from_json(&json).unwrap()), json);
        }
        assert_eq!(from_json(&json!(2.0)).unwrap(), value(ValueType::DoubleValue(2.0)));
    }

    #[test]
    fn typed_values_are_kept_where_plain_ones_would_not_do() {
        for json in [
            json!({ "timestampValue": "2026-11-23T10:00:00.123456Z" }),
            json!({ "bytesValue": "AAEC" }),
            json!({ "referenceValue": "users/ada" }),
            json!({ "geoPointValue": { "latitude": 51.5, "longitude": -0.12 } }),
            json!({ "integerValue": "9007199254740993" }),
            json!({ "doubleValue": "NaN" }),
            json!({ "doubleValue": "-Infinity" }),
            json!({ "mapValue": { "fields": { "bytesValue": "no base64!" } } }),
        ] {
            assert_eq!(to_json(&from_json(&json).unwrap()), json);
        }
    }

    #[test]
    fn typed_values_that_plain_ones_say_become_plain() {
        for (typed, plain) in [
            (json!({ "integerValue": "7" }), json!(7)),
            (json!({ "integerValue": 7 }), json!(7)),
            (json!({ "stringValue": "a" }), json!("a")),
            (json!({ "booleanValue": false }), json!(false)),
            (json!({ "nullValue": null }), json!(null)),
            (json!({ "doubleValue": 1 }), json!(1.0)),
            (json!({ "arrayValue": { "values": [{ "integerValue": "1" }, 2] } }), json!([1, 2])),
            (json!({ "arrayValue": {} }), json!([])),
            (
                json!({ "mapValue": { "fields": { "a": { "stringValue": "b" } } } }),
                json!({ "a": "b" }),
            ),
        ] {
            assert_eq!(to_json(&from_json(&typed).unwrap()), plain, "{typed}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_by_its_place() {
        let why = |json: Json| fields_from_json(json.as_object().unwrap()).unwrap_err();
        assert_eq!(
            why(json!({ "a": { "b": [{ "bytesValue": "?" }] } })),
            "a: b: [0]: bytesValue must be base64, got \"?\""
        );
        assert!(
            why(json!({ "n": u64::MAX })).contains("does not fit into a signed integer of 64 bits")
        );
        let deep = (0..30).fold(json!(1), |inner, _| json!({ "m": inner }));
        assert!(from_json(&deep).unwrap_err().ends_with("nest at most 20 deep"));
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(ValueType::NullValue(0)),
            any::<bool>().prop_map(ValueType::BooleanValue),
            any::<i64>().prop_map(ValueType::IntegerValue),
            (-1e12..1e12).prop_map(ValueType::DoubleValue),
            ".{0,6}".prop_map(ValueType::StringValue),
            prop::collection::vec(any::<u8>(), 0..6)
                .prop_map(|bytes| ValueType::BytesValue(bytes.into())),
            (0..4_000_000_000_i64, 0..1_000_000_000_i32).prop_map(|(seconds, nanos)| {
                ValueType::TimestampValue(Timestamp { seconds, nanos })
            }),
        ];
        leaf.prop_map(value).prop_recursive(4, 32, 4, |inner| {
            let name =
                prop_oneof!["[a-c]{1,2}", Just("stringValue".to_owned()), Just("mapValue".into())];
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4)
                    .prop_map(|values| value(ValueType::ArrayValue(ArrayValue { values }))),
                prop::collection::btree_map(name, inner, 0..4)
                    .prop_map(|fields| value(ValueType::MapValue(MapValue { fields }))),
            ]
        })
    }

    proptest! {
        #[test]
        fn every_value_survives_its_json(value in any_value()) {
            let text = to_json(&value).to_string();
            let back = from_json(&serde_json::from_str(&text).unwrap()).unwrap();
            prop_assert_eq!(back, value);
        }
    }
}
