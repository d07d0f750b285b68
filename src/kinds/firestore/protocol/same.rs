//! Which values are the same element of an array.
//!
//! Numbers are compared by their exact value, an integer with a double too. 0, 0.0 and -0.0 are the same, and so are all
//! NaN. Maps and arrays are the same if their elements are.

use googleapis_tonic_google_firestore_v1::google::firestore::v1::{Value, value::ValueType};
use prost::Message;

/// Two values have the same key if, and only if, they are the same element of an array. So elements are found by
/// hashing, however many there are.
pub(super) fn key(value: &Value) -> Vec<u8> {
    let mut key = Vec::new();
    add(value, &mut key);
    key
}

fn add(value: &Value, key: &mut Vec<u8>) {
    match &value.value_type {
        Some(ValueType::IntegerValue(integer)) => add_integer(*integer, key),
        Some(ValueType::DoubleValue(double)) => add_double(*double, key),
        Some(ValueType::GeoPointValue(point)) => {
            key.push(b'g');
            add_double(point.latitude, key);
            add_double(point.longitude, key);
        }
        Some(ValueType::ArrayValue(array)) => {
            key.push(b'a');
            add_length(array.values.len(), key);
            array.values.iter().for_each(|item| add(item, key));
        }
        Some(ValueType::MapValue(map)) => {
            key.push(b'm');
            add_length(map.fields.len(), key);
            for (name, value) in &map.fields {
                add_bytes(name.as_bytes(), key);
                add(value, key);
            }
        }
        Some(_) | None => {
            key.push(b'o');
            add_bytes(&value.encode_to_vec(), key);
        }
    }
}

fn add_integer(integer: i64, key: &mut Vec<u8>) {
    key.push(b'i');
    key.extend_from_slice(&integer.to_be_bytes());
}

fn add_double(double: f64, key: &mut Vec<u8>) {
    /// 2^63, the first double above every integer.
    const ABOVE: f64 = 9_223_372_036_854_775_808.0;
    if double.is_nan() {
        key.push(b'n');
    } else if double.fract() == 0.0 && (-ABOVE..ABOVE).contains(&double) {
        #[expect(clippy::cast_possible_truncation, reason = "it is whole, and within the integers")]
        let whole = double as i64;
        add_integer(whole, key);
    } else {
        key.push(b'd');
        key.extend_from_slice(&double.to_bits().to_be_bytes());
    }
}

fn add_bytes(bytes: &[u8], key: &mut Vec<u8>) {
    add_length(bytes.len(), key);
    key.extend_from_slice(bytes);
}

fn add_length(length: usize, key: &mut Vec<u8>) {
    key.extend_from_slice(&length.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, json};

    use super::{super::value::from_json, key};

    fn key_of(json: &Json) -> Vec<u8> {
        key(&from_json(json).unwrap())
    }

    #[test]
    fn what_is_the_same_element_has_the_same_key_and_nothing_else_has_it() {
        let same = [
            vec![json!(0), json!(0.0), json!(-0.0)],
            vec![json!(3), json!(3.0)],
            vec![json!({ "doubleValue": "NaN" })],
            vec![json!({ "doubleValue": "Infinity" }), json!({ "doubleValue": "Infinity" })],
            vec![json!(9_007_199_254_740_992.0), json!({ "integerValue": "9007199254740992" })],
            vec![json!({ "integerValue": "9007199254740993" })],
            vec![json!({ "integerValue": "9223372036854775807" })],
            vec![json!(9_223_372_036_854_775_808.0)],
            vec![
                json!({ "integerValue": "-9223372036854775808" }),
                json!(-9_223_372_036_854_775_808.0),
            ],
            vec![json!(0.5)],
            vec![json!([1, 2]), json!([1.0, 2])],
            vec![json!([[1], 2])],
            vec![json!({ "a": 1, "b": [2] }), json!({ "a": 1.0, "b": [2.0] })],
            vec![json!({ "a": 1, "b": 2 })],
            vec![json!("3")],
            vec![json!("")],
            vec![json!({ "bytesValue": "" })],
            vec![json!(null)],
            vec![json!(false)],
            vec![json!(true)],
            vec![
                json!({ "geoPointValue": { "latitude": 0.0, "longitude": 1.0 } }),
                json!({ "geoPointValue": { "latitude": -0.0, "longitude": 1.0 } }),
            ],
        ];
        for (at, one) in same.iter().enumerate() {
            for (beside, other) in same.iter().enumerate() {
                for (left, right) in one.iter().flat_map(|it| other.iter().map(move |of| (it, of)))
                {
                    assert_eq!(key_of(left) == key_of(right), at == beside, "{left} {right}");
                }
            }
        }
    }
}
