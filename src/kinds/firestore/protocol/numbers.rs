//! A caller's JSON, with the numbers that Firestore has: integers of 64 bits, and doubles.
//!
//! **A number without a point and without an exponent is an integer; every other one is a double.** So `1000`
//! and `-0` are integers, `1000.0`, `1e3` and `-0.0` are doubles. An integer beyond 64 bits is refused rather
//! than stored as the double next to it, as is a number that no double holds (`1e999`). If a double is wanted
//! by name (`{"doubleValue":…}`) every number is one. A double has the value that is nearest to its text.
//!
//! This is the only way in: what [`super::value`] finds in the tree made here is exact.

use serde_json::{Map, Number, Value};

use crate::exact::{Json, quoted};

/// The member whose number is a double, however it is written.
const DOUBLE: &str = "doubleValue";

/// The JSON object that `text` is.
///
/// # Errors
/// It is none, or what is wrong with it, and in which member.
pub(crate) fn object_of(text: &[u8]) -> Result<Map<String, Value>, String> {
    match tree(Json::of_bytes(text)?)? {
        Value::Object(object) => Ok(object),
        _ => Err("a JSON object is required".to_owned()),
    }
}

fn tree(json: Json<'_>) -> Result<Value, String> {
    Ok(match json {
        Json::Null => Value::Null,
        Json::Bool(flag) => flag.into(),
        Json::Text(text) => text.into_owned().into(),
        Json::Number(text) if text.contains(['.', 'e', 'E']) => double(text)?,
        Json::Number(text) => integer(text)?,
        Json::Array(items) => {
            let items = items
                .into_iter()
                .enumerate()
                .map(|(index, item)| tree(item).map_err(|why| format!("[{index}]: {why}")));
            Value::Array(items.collect::<Result<_, _>>()?)
        }
        Json::Object(members) => {
            let is_typed = members.len() == 1;
            let members = members.into_iter().map(|(name, member)| {
                let made = match member {
                    Json::Number(text) if is_typed && name == DOUBLE => double(text),
                    member => tree(member),
                };
                match made {
                    Ok(made) => Ok((name.into_owned(), made)),
                    Err(why) => Err(format!("{}: {why}", quoted(&name))),
                }
            });
            Value::Object(members.collect::<Result<_, String>>()?)
        }
    })
}

fn integer(text: &str) -> Result<Value, String> {
    // The sign of zero is a double's alone; `-0` parses as 0.
    text.parse::<i64>().map(Value::from).map_err(|_| {
        format!(
            "{} is an integer of more than 64 bits, which Firestore does not support: write it with a point or an \
             exponent for a double, or as a string",
            quoted(text)
        )
    })
}

fn double(text: &str) -> Result<Value, String> {
    let number = text.parse::<f64>().ok().and_then(Number::from_f64);
    number
        .map(Value::Number)
        .ok_or_else(|| format!("{} is larger than the largest double", quoted(text)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn made(text: &str) -> Result<Value, String> {
        object_of(text.as_bytes()).map(Value::Object)
    }

    #[test]
    fn integers_and_doubles_are_told_apart_by_how_they_are_written() {
        let text = r#"{"a":[1000,-0,9223372036854775807,-9223372036854775808],
            "b":[1e3,1000.0,-0.0,1E22,5e-324,0.1],"c":{"doubleValue":12345678901234567890123},
            "d":{"doubleValue":-0},"e":{"doubleValue":1,"x":{"doubleValue":"NaN"}}}"#;
        let read = made(text).unwrap();
        assert_eq!(
            read.to_string(),
            json!({
                "a": [1000, 0, i64::MAX, i64::MIN],
                "b": [1000.0, 1000.0, -0.0, 1e22, 5e-324, 0.1],
                "c": { "doubleValue": 1.234_567_890_123_456_8e22 }, "d": { "doubleValue": -0.0 },
                "e": { "doubleValue": 1, "x": { "doubleValue": "NaN" } },
            })
            .to_string()
        );
    }

    #[test]
    fn what_it_cannot_hold_is_refused_by_name_and_place() {
        for (text, why) in [
            (
                r#"{"a":{"b":[0,9223372036854775808]}}"#,
                "a: b: [1]: 9223372036854775808 is an integer",
            ),
            (r#"{"n":-9223372036854775809}"#, "n: -9223372036854775809 is an integer"),
            (r#"{"integerValue":18446744073709551616}"#, "integerValue: 18446744073709551616 is"),
            (r#"{"n":-1e999}"#, "n: -1e999 is larger than the largest double"),
            ("[1]", "a JSON object is required"),
            (r#"{"n":1,"n":2}"#, "`n` appears twice"),
            (r#"{"n":"\ud800"}"#, "is not Unicode text"),
        ] {
            let error = made(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
        let digits = format!(r#"{{"n":{}}}"#, "9".repeat(100_000));
        assert!(made(&digits).unwrap_err().len() < 400);
    }

    proptest! {
        #[test]
        fn no_number_changes_its_value(integer: i64, double in any::<f64>()) {
            let read = made(&format!(r#"{{"i":{integer},"d":{double:e}}}"#)).unwrap();
            prop_assert_eq!(read["i"].as_i64(), Some(integer));
            prop_assert_eq!(read["d"].as_f64().map(f64::to_bits), Some(double.to_bits()));
        }
    }
}
