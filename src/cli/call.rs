//! `fusebox call`: one call, its value printed as the backend's own client would.
//!
//! The value is printed in the daemon's own text, which is the backend's if that wrote JSON: read and
//! written again, a Decimal would lose its digits.

use std::{
    io::{IsTerminal, Read, Write},
    os::unix::ffi::OsStrExt,
    process::ExitCode,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use clap::ValueEnum;
use fusebox_actors::Source;
use hyper::Method;
use serde::Deserialize;
use serde_json::{Map, Value, json, value::RawValue};

use super::args::CallArgs;
use crate::{
    exact::{on_one_line, over_lines},
    kinds,
    terminal::{
        client::{Client, segment},
        failure::{Done, Failure},
        print::{complain, on_terminal, say, say_bytes},
        table::{ago, text},
        views::{Named, ReplyView, read},
    },
};

/// `fusebox call`
pub(crate) async fn run(client: &Client, call: CallArgs) -> Done {
    let backend = segment(&call.backend)?;
    let Named { kind, .. } = read(&client.get(&format!("/v1/backends/{backend}")).await?)?;
    let kind = kinds::find(&kind)
        .ok_or_else(|| Failure::failed(format!("this fusebox does not know the kind {kind:?}")))?;
    let args: Vec<Vec<u8>> = call.args.iter().map(|arg| arg.as_bytes().to_vec()).collect();
    let mut body = kind.call_from_args(&args, &mut piped).map_err(Failure::usage)?;
    if let (Some(fields), options @ Value::Object(_)) = (body.as_object_mut(), options(&call)) {
        fields.insert("options".into(), options);
    }
    let path = format!("/v1/backends/{backend}/call");
    let (status, answer) = client.exchange_bytes(Method::POST, &path, Some(&body)).await?;
    let wrong = || Failure::failed(format!("the answer ({status}) is not JSON"));
    let text = std::str::from_utf8(&answer).map_err(|_| wrong())?;
    let whole: &RawValue = serde_json::from_str(text).map_err(|_| wrong())?;
    if call.output.json {
        say(&format!("{}\n", on_one_line(whole.get())))?;
    }
    if !(200..300).contains(&status) {
        let problem = serde_json::from_str(text).map_err(|_| wrong())?;
        return Err(Failure::of_problem(status, &problem, true));
    }
    if call.output.json {
        return Ok(ExitCode::SUCCESS);
    }
    let Answer { value, rest } = serde_json::from_str(text).map_err(|_| wrong())?;
    let value = value.map_or("null", RawValue::get);
    say_bytes(&printed(value, kind.prints_json(), on_terminal()))?;
    let rest: ReplyView = read(&Value::Object(rest))?;
    // That the value is not the write's own reply is not a remark: a program must not miss it.
    if std::io::stderr().is_terminal() || rest.reply_lost {
        for line in note(&rest) {
            complain(&line);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The daemon's answer: the value in its own text, and what is said of it.
#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(borrow)]
    value: Option<&'a RawValue>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// A value as it is printed.
fn printed(json: &str, as_json: bool, terminal: bool) -> Vec<u8> {
    let mut out = Vec::new();
    let is_list = json.starts_with('[');
    let is_object = json.starts_with('{') && binary_of(json).is_none();
    if as_json && (is_list || is_object) {
        out.extend_from_slice(over_lines(json).as_bytes());
        out.push(b'\n');
        return out;
    }
    let is_number = json.starts_with(|first: char| first == '-' || first.is_ascii_digit());
    match serde_json::from_str(json) {
        Ok(value) if !is_number => print(&value, terminal, &mut out),
        // A number's own text; or what nests too deep to be read.
        Ok(_) | Err(_) => out.extend([json, "\n"].iter().flat_map(|text| text.bytes())),
    }
    out
}

/// The bytes of a text that is `{"base64":"…"}`, as the daemon writes it.
fn binary_of(json: &str) -> Option<Vec<u8>> {
    let json = Some(json).filter(|json| json.starts_with("{\"base64\":"))?;
    binary(&serde_json::from_str(json).ok()?)
}

/// What is piped in, to its end; `None` at a terminal.
fn piped() -> Result<Option<Vec<u8>>, String> {
    let mut input = std::io::stdin();
    if input.is_terminal() {
        return Ok(None);
    }
    let mut data = Vec::new();
    input
        .read_to_end(&mut data)
        .map_err(|error| format!("cannot read what is piped in: {error}"))?;
    Ok(Some(data))
}

fn options(call: &CallArgs) -> Value {
    let time =
        |duration: std::time::Duration| json!(humantime::format_duration(duration).to_string());
    let word = |value: Option<clap::builder::PossibleValue>| value.map(|v| json!(v.get_name()));
    let options: Map<String, Value> = [
        ("deadline", call.deadline.map(time)),
        ("max_stale", call.max_stale.map(time)),
        ("priority", call.priority.and_then(|p| word(p.to_possible_value()))),
        ("min_ack", call.min_ack.and_then(|ack| word(ack.to_possible_value()))),
        ("op_id", call.op_id.map(|id| json!(id.to_string()))),
    ]
    .into_iter()
    .filter_map(|(key, value)| Some((key.to_owned(), value?)))
    .collect();
    Value::Object(options)
}

/// A value as `redis-cli` prints it: text raw, a nil as `(nil)` for people and as nothing for
/// programs, lists an element a line.
fn print(value: &Value, terminal: bool, out: &mut Vec<u8>) {
    match value {
        Value::Null if terminal => out.extend_from_slice(b"(nil)"),
        Value::Null => {}
        Value::String(text) => {
            out.extend_from_slice(text.as_bytes());
            if text.ends_with('\n') {
                return;
            }
        }
        Value::Array(items) if items.is_empty() && terminal => {
            out.extend_from_slice(b"(empty array)");
        }
        Value::Array(items) => {
            return items.iter().for_each(|item| print(item, terminal, out));
        }
        Value::Object(fields) => {
            if let Some(bytes) = binary(fields) {
                out.extend_from_slice(&bytes);
            } else if let Some(error) = fields.get("error").filter(|_| fields.len() == 1) {
                let (code, message) = (text(error, "code"), text(error, "message"));
                // Writing into memory does not fail.
                drop(write!(out, "(error) {code} {message}"));
            } else {
                for (key, value) in fields {
                    out.extend_from_slice(key.as_bytes());
                    out.push(b'\n');
                    print(value, terminal, out);
                }
                return;
            }
        }
        other => out.extend_from_slice(other.to_string().as_bytes()),
    }
    out.push(b'\n');
}

/// The bytes of `{"base64":"…"}`.
fn binary(fields: &Map<String, Value>) -> Option<Vec<u8>> {
    let text = fields.get("base64").filter(|_| fields.len() == 1)?.as_str()?;
    STANDARD.decode(text).ok()
}

/// What people should know of a reply that did not come from the backend.
fn note(reply: &ReplyView) -> Vec<String> {
    let mut lines = Vec::new();
    let source = &reply.source;
    match source.known() {
        Some(Source::Live) => {}
        Some(Source::Cache | Source::Stale) => {
            lines.push(format!("({source}, {} old)", ago(reply.age_ms)));
        }
        Some(Source::Queued) if reply.is_durable() => {
            let op_id = &reply.op_id;
            lines.push(format!("(queued: durable here, to be replayed; op_id {op_id})"));
        }
        _ => lines.push(format!("({source})")),
    }
    if reply.reply_lost {
        lines.push("(reply lost)".to_owned());
    }
    lines.extend(reply.warnings.iter().map(|warning| format!("warning: {warning}")));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(value: &Value, terminal: bool, expected: &str) {
        let mut out = Vec::new();
        print(value, terminal, &mut out);
        assert_eq!(String::from_utf8_lossy(&out), expected);
    }

    #[test]
    fn values_are_printed_as_redis_cli_does() {
        check(&json!("ada"), true, "ada\n");
        check(&Value::Null, true, "(nil)\n");
        check(&Value::Null, false, "\n");
        check(&json!(7), false, "7\n");
        check(&json!(["a", null, ["b", 1]]), false, "a\n\nb\n1\n");
        check(&json!([]), true, "(empty array)\n");
        check(&json!([]), false, "");
        check(&json!({ "f": "v", "g": 2 }), false, "f\nv\ng\n2\n");
        check(&json!({ "base64": "YQpi" }), false, "a\nb\n");
        check(&json!({ "error": { "code": "ERR", "message": "no" } }), false, "(error) ERR no\n");
    }

    #[test]
    fn a_backends_own_json_is_printed_in_its_own_digits() {
        let json =
            r#"{"source":"live","value":{"meta":[],"data":[{"d":0.10,"d":1e3}]},"age_ms":0}"#;
        let answer: Answer<'_> = serde_json::from_str(json).unwrap();
        let value = answer.value.unwrap().get();
        let lines = "{\n  \"meta\": [],\n  \"data\": [\n    {\n      \"d\": 0.10,\n      \"d\": 1e3\n    \
                     }\n  ]\n}\n";
        assert_eq!(String::from_utf8(printed(value, true, false)).unwrap(), lines);
        assert_eq!(
            answer.rest,
            json!({ "source": "live", "age_ms": 0 }).as_object().unwrap().clone()
        );
        for (json, shown) in [
            ("12345678901234567890123", "12345678901234567890123\n"),
            ("-0.10", "-0.10\n"),
            (r#"{"base64":"YQpi"}"#, "a\nb\n"),
            (r#""1\n""#, "1\n"),
            ("null", "\n"),
        ] {
            assert_eq!(String::from_utf8(printed(json, true, false)).unwrap(), shown, "{json}");
        }
        let none: Answer<'_> = serde_json::from_str(r#"{"value":null}"#).unwrap();
        assert!(none.value.is_none());
        let deep = format!("{}1{}", "[".repeat(200_000), "]".repeat(200_000));
        assert_eq!(printed(&deep, false, false).len(), deep.len() + 1);
    }

    #[test]
    fn what_is_not_live_is_noted() {
        let noted = |reply: Value| note(&read(&reply).unwrap());
        assert!(noted(json!({ "source": "live", "warnings": [] })).is_empty());
        assert_eq!(noted(json!({ "source": "stale", "age_ms": 61_000 })), ["(stale, 1m 1s old)"]);
        assert_eq!(
            noted(
                json!({ "source": "queued", "ack": "durable", "op_id": "01J", "warnings": ["w"] })
            ),
            ["(queued: durable here, to be replayed; op_id 01J)", "warning: w"]
        );
        assert_eq!(noted(json!({ "source": "bypass" })), ["(bypass)"]);
        let lost = json!({ "source": "live", "reply_lost": true, "warnings": ["it was lost"] });
        assert_eq!(noted(lost), ["(reply lost)", "warning: it was lost"]);
    }
}
