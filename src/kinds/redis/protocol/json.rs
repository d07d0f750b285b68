//! Commands and replies as JSON, for the HTTP door and for listings.
//!
//! Text is a JSON string; what is not UTF-8 is `{"base64":"…"}`, in both directions. A number among a
//! command's arguments is sent as it was written: to Redis every argument is text, and `1e3` and `1000.0`
//! are two of them. A reply's integers have 64 bits and are JSON numbers; a double of RESP3 is one by the
//! protocol and is written as the shortest number that means it; a RESP3 big number is a JSON string.

use std::{borrow::Cow, fmt};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, IgnoredAny, SeqAccess, Visitor},
};
use serde_json::{Map, Value, json, value::RawValue};

use super::{
    internal::{self, Form, Step},
    resp::{self, Items, Reply},
};
use crate::exact::{quoted, unescaped};

/// A command's JSON: an array of strings, numbers and `{"base64":"…"}`, each in its own text. They are at most as many
/// as a Redis takes: each takes far more memory than its two bytes or more of the text.
#[derive(Debug)]
pub struct Arguments<'a>(Vec<&'a RawValue>);

impl<'de: 'a, 'a> Deserialize<'de> for Arguments<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OfArguments;

        impl<'de> Visitor<'de> for OfArguments {
            type Value = Arguments<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(NOT_A_COMMAND)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut arguments = Vec::new();
                while arguments.len() < resp::ARGUMENTS_MAX {
                    let Some(argument) = seq.next_element()? else {
                        return Ok(Arguments(arguments));
                    };
                    arguments.push(argument);
                }
                let mut count = arguments.len();
                while seq.next_element::<IgnoredAny>()?.is_some() {
                    count += 1;
                }
                if count > arguments.len() {
                    let most = resp::ARGUMENTS_MAX;
                    let why = format!("command must have at most {most} arguments, got {count}");
                    return Err(A::Error::custom(why));
                }
                Ok(Arguments(arguments))
            }
        }

        deserializer.deserialize_seq(OfArguments)
    }
}

const NOT_A_COMMAND: &str = "command must be a non-empty array, such as [\"GET\",\"key\"]";

/// A command in wire form from its JSON.
///
/// # Errors
/// What is wrong with it and what would be right.
pub fn body_from_json(command: &Arguments<'_>) -> Result<Bytes, String> {
    if command.0.is_empty() {
        return Err(NOT_A_COMMAND.to_owned());
    }
    let mut bytes = Vec::with_capacity(command.0.len());
    for (position, arg) in command.0.iter().enumerate() {
        bytes.push(argument(arg.get()).map_err(|error| format!("command[{position}] {error}"))?);
    }
    Ok(resp::command(&bytes))
}

/// An argument's bytes, which most often are its text's own.
fn argument(json: &str) -> Result<Cow<'_, [u8]>, String> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Binary<'a> {
        #[serde(borrow)]
        base64: Cow<'a, str>,
    }
    match json.bytes().next() {
        Some(b'"') => Ok(match unescaped(json).map_err(|why| format!("must be text: {why}"))? {
            Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
            Cow::Owned(text) => Cow::Owned(text.into_bytes()),
        }),
        Some(b'-' | b'0'..=b'9') => Ok(Cow::Borrowed(json.as_bytes())),
        Some(b'{') => {
            let binary: Binary<'_> = serde_json::from_str(json).map_err(|_| not_one(json))?;
            let bytes = STANDARD.decode(binary.base64.as_bytes());
            bytes.map(Cow::Owned).map_err(|error| format!("is not base64: {error}"))
        }
        _ => Err(not_one(json)),
    }
}

fn not_one(json: &str) -> String {
    format!("must be a string, a number or {{\"base64\":\"…\"}}, got {}", quoted(json))
}

/// A command as JSON, for listings, or a list of those of a transaction; `null` if `body` is not a command.
pub fn body_to_json(body: &Bytes) -> Value {
    if let Some(Form::Multi(steps)) = Form::of(body) {
        let words = |step: Step<'_>| -> Value { step.args.into_iter().map(text).collect() };
        return steps.into_iter().map(words).collect();
    }
    resp::arguments(&internal::original(body))
        .map_or(Value::Null, |args| args.into_iter().map(text).collect())
}

/// How deep JSON is nested at most: what is deeper in a reply is an error in its place.
const DEPTH_MAX: usize = 128;

/// A reply as JSON. An error is `{"error":{"code":…,"message":…}}`; a frame that is not whole is
/// `null`.
///
/// A map whose keys are not all text becomes an array of pairs.
pub fn reply_to_json(frame: &Bytes) -> Value {
    if resp::frame_length(frame) == Some(frame.len()) { value(frame, 0) } else { Value::Null }
}

/// What is in a frame, `depth` levels down.
fn value(frame: &[u8], depth: usize) -> Value {
    if depth > DEPTH_MAX {
        let message = format!("fusebox: nested deeper than {DEPTH_MAX} levels");
        return json!({"error": {"code": "ERR", "message": message}});
    }
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
        Some(Reply::Array(items) | Reply::Set(items)) => {
            items.map(|item| value(item, depth + 1)).collect()
        }
        Some(Reply::Map(items)) => map(items, depth + 1),
        Some(Reply::Push(_) | Reply::Nil) | None => Value::Null,
    }
}

fn map(items: Items<'_>, depth: usize) -> Value {
    let mut fields = Map::new();
    let mut rest = items.clone();
    while let (Some(key), Some(field)) = (rest.next(), rest.next()) {
        let name = match value(key, depth) {
            Value::String(name) => name,
            Value::Number(number) => number.to_string(),
            _ => return pairs(items, depth),
        };
        fields.insert(name, value(field, depth));
    }
    Value::Object(fields)
}

fn pairs(mut items: Items<'_>, depth: usize) -> Value {
    let mut list = Vec::new();
    while let (Some(key), Some(field)) = (items.next(), items.next()) {
        list.push(json!([value(key, depth), value(field, depth)]));
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
    use proptest::prelude::*;

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
        let of = |depth| reply_to_json(&Bytes::from(format!("{}:7\r\n", "*1\r\n".repeat(depth))));
        assert!(of(DEPTH_MAX).to_string().contains("[7]"));
        for deep in [DEPTH_MAX + 1, resp::DEPTH_MAX] {
            let told = of(deep).to_string();
            assert!(told.starts_with("[[") && told.contains("nested deeper"), "{deep}");
        }
    }

    fn made(command: &str) -> Result<Bytes, String> {
        let arguments: Arguments<'_> =
            serde_json::from_str(command).map_err(|error| error.to_string())?;
        body_from_json(&arguments)
    }

    #[test]
    fn a_command_survives_json() {
        let body = made(r#"["SET", "k\n\u00e9", {"base64": "//4="}, "EX", 60]"#).unwrap();
        assert_eq!(body_to_json(&body), json!(["SET", "k\né", {"base64": "//4="}, "EX", "60"]));
    }

    #[test]
    fn a_bad_command_is_told_what_is_right() {
        let deep = format!("[{}1{}]", "[".repeat(200_000), "]".repeat(200_000));
        for (command, why) in [
            (r#""GET k""#, "command must be a non-empty array"),
            ("{}", "command must be a non-empty array"),
            ("[]", "command must be a non-empty array"),
            (r#"["GET",null]"#, "command[1] must be a string"),
            (r#"["GET",{"base64":"!"}]"#, "command[1] is not base64"),
            (r#"["GET",{"base64":"","x":1}]"#, "command[1] must be a string"),
            (r#"["GET",{"base64":1}]"#, "command[1] must be a string"),
            (r#"["GET","\ud800"]"#, r#"command[1] must be text: "\ud800" is not Unicode"#),
            (&deep, "command[0] must be a string"),
        ] {
            let error = made(command).unwrap_err();
            assert!(error.contains(why) && error.len() < 300, "{error}");
        }
    }

    proptest! {
        #[test]
        fn a_text_is_sent_as_it_was_meant(text in any::<String>()) {
            let body = made(&json!(["ECHO", &text]).to_string()).unwrap();
            prop_assert_eq!(resp::arguments(&body).unwrap()[1], text.as_bytes());
        }
    }
}
