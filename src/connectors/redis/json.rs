//! Commands and replies as JSON, for the HTTP door and for listings.
//!
//! Text is a JSON string; what is not UTF-8 is `{"base64":"…"}`, in both directions.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::{
    internal,
    resp::{self, Items, Reply},
};

/// A command in wire form from its JSON: an array of strings, numbers and `{"base64":"…"}`.
///
/// # Errors
/// What is wrong with it and what would be right.
pub fn body_from_json(command: &Value) -> Result<Bytes, String> {
    let args = command
        .as_array()
        .filter(|args| !args.is_empty())
        .ok_or("command must be a non-empty array, such as [\"GET\",\"key\"]")?;
    let mut bytes = Vec::with_capacity(args.len());
    for (position, arg) in args.iter().enumerate() {
        bytes.push(argument(arg).map_err(|error| format!("command[{position}] {error}"))?);
    }
    Ok(resp::command(&bytes))
}

fn argument(value: &Value) -> Result<Vec<u8>, String> {
    match value {
        Value::String(text) => Ok(text.as_bytes().to_vec()),
        Value::Number(number) => Ok(number.to_string().into_bytes()),
        Value::Object(fields) if fields.len() == 1 => match fields.get("base64") {
            Some(Value::String(text)) => {
                STANDARD.decode(text).map_err(|error| format!("is not base64: {error}"))
            }
            _ => Err(NOT_AN_ARGUMENT.to_owned()),
        },
        _ => Err(NOT_AN_ARGUMENT.to_owned()),
    }
}

const NOT_AN_ARGUMENT: &str = "must be a string, a number or {\"base64\":\"…\"}";

/// A command as JSON, for listings; `null` where `body` is no command.
pub fn body_to_json(body: &Bytes) -> Value {
    resp::arguments(&internal::original(body))
        .map_or(Value::Null, |args| args.into_iter().map(text).collect())
}

/// A reply as JSON. An error is `{"error":{"code":…,"message":…}}`; a frame that is not whole is
/// `null`.
///
/// A map whose keys are not all text becomes an array of pairs.
pub fn reply_to_json(frame: &Bytes) -> Value {
    // A whole frame nests no deeper than the finder allows, which bounds the recursion below.
    if resp::frame_length(frame) == Some(frame.len()) { value(frame) } else { Value::Null }
}

fn value(frame: &[u8]) -> Value {
    match Reply::of(frame) {
        Some(Reply::Simple(string) | Reply::Bulk(string) | Reply::Verbatim(string)) => text(string),
        Some(Reply::Error(_)) => resp::error_of(frame).map_or(
            Value::Null,
            |(code, message)| json!({"error": {"code": code, "message": message}}),
        ),
        Some(Reply::Int(number)) => number.into(),
        Some(Reply::Bool(flag)) => flag.into(),
        Some(Reply::Double(digits)) => std::str::from_utf8(digits)
            .ok()
            .and_then(|digits| digits.parse::<f64>().ok())
            .filter(|number| number.is_finite())
            .map_or_else(|| text(digits), Value::from),
        Some(Reply::Big(digits)) => text(digits),
        Some(Reply::Array(items) | Reply::Set(items)) => items.map(value).collect(),
        Some(Reply::Map(items)) => map(items),
        Some(Reply::Push(_) | Reply::Nil) | None => Value::Null,
    }
}

fn map(items: Items<'_>) -> Value {
    let mut fields = Map::new();
    let mut rest = items.clone();
    while let (Some(key), Some(field)) = (rest.next(), rest.next()) {
        let name = match value(key) {
            Value::String(name) => name,
            Value::Number(number) => number.to_string(),
            _ => return pairs(items),
        };
        fields.insert(name, value(field));
    }
    Value::Object(fields)
}

fn pairs(mut items: Items<'_>) -> Value {
    let mut list = Vec::new();
    while let (Some(key), Some(field)) = (items.next(), items.next()) {
        list.push(json!([value(key), value(field)]));
    }
    Value::Array(list)
}

fn text(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.into(),
        Err(_) => json!({"base64": STANDARD.encode(bytes)}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn reads(frame: &'static [u8], expected: Value) {
        assert_eq!(reply_to_json(&Bytes::from_static(frame)), expected);
    }

    #[test]
    fn replies_of_every_kind_have_a_json_form() {
        reads(b"$2\r\nhi\r\n", json!("hi"));
        reads(b"$2\r\n\xff\xfe\r\n", json!({"base64": "//4="}));
        reads(b"+OK\r\n", json!("OK"));
        reads(b":-7\r\n", json!(-7));
        reads(b"_\r\n", Value::Null);
        reads(b"$-1\r\n", Value::Null);
        reads(b"*-1\r\n", Value::Null);
        reads(b"#f\r\n", json!(false));
        reads(b",1.5\r\n", json!(1.5));
        reads(b",inf\r\n", json!("inf"));
        reads(b"(12345678901234567890123\r\n", json!("12345678901234567890123"));
        reads(b"=7\r\ntxt:abc\r\n", json!("abc"));
        reads(b"*2\r\n:1\r\n*1\r\n_\r\n", json!([1, [null]]));
        reads(b"~1\r\n+a\r\n", json!(["a"]));
        reads(b"%2\r\n+a\r\n:1\r\n:2\r\n_\r\n", json!({"a": 1, "2": null}));
        reads(b"%1\r\n$1\r\n\xff\r\n:1\r\n", json!([[{"base64": "/w=="}, 1]]));
        reads(
            b"-WRONGTYPE no\r\n",
            json!({"error": {"code": "WRONGTYPE", "message": "WRONGTYPE no"}}),
        );
        reads(b">1\r\n+x\r\n", Value::Null);
        reads(b"*2\r\n:1\r\n", Value::Null);
    }

    #[test]
    fn the_deepest_frame_has_a_json_form() {
        let frame = format!("{}:1\r\n", "*1\r\n".repeat(resp::DEPTH_MAX));
        assert!(reply_to_json(&Bytes::from(frame)).is_array());
    }

    #[test]
    fn a_command_survives_json() {
        let command = json!(["SET", "k", {"base64": "//4="}, "EX", 60]);
        let body = body_from_json(&command).unwrap();
        assert_eq!(body_to_json(&body), json!(["SET", "k", {"base64": "//4="}, "EX", "60"]));
    }

    #[test]
    fn a_bad_command_is_told_what_is_right() {
        let error = |command| body_from_json(&command).unwrap_err();
        assert!(error(json!("GET k")).contains("non-empty array"));
        assert!(error(json!([])).contains("non-empty array"));
        assert!(error(json!(["GET", null])).starts_with("command[1] must be a string"));
        assert!(error(json!(["GET", {"base64": "!"}])).contains("is not base64"));
    }
}
