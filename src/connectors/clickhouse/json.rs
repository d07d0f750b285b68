//! Calls and replies as JSON.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::{
    sql::{self, Insert, Rows, Verb},
    wire::{self, Call, Header, SUMMARY},
};

/// The members of a call.
#[derive(Debug, Default)]
pub struct JsonParts {
    /// The statement.
    pub query: String,
    /// The values of `{name:Type}`.
    pub params: Map<String, Value>,
    /// Settings for this call alone.
    pub settings: Map<String, Value>,
    /// The format of the answer, or of the data.
    pub format: Option<String>,
    /// The rows of an INSERT: text, or `{"base64": "…"}`.
    pub data: Option<Value>,
    /// The database.
    pub database: Option<String>,
}

/// A call in wire form. A read that names no format is answered in JSON.
///
/// # Errors
/// Which member is wrong, and what it should be.
pub fn body_from_json(parts: JsonParts) -> Result<Bytes, String> {
    let JsonParts { query, params, settings, mut format, data, database } = parts;
    if format.is_none() {
        let statement = sql::read(&query);
        let is_read = statement.verb == Verb::Read && statement.format.is_none();
        format = is_read.then(|| "JSON".to_owned());
    }
    let params = params.into_iter().map(|(name, value)| {
        let text = parameter(&value)
            .ok_or_else(|| format!("params.{name} must be a value, got an object"))?;
        Ok((name, text))
    });
    let settings = settings.into_iter().map(|(name, value)| {
        let text = setting(&value)
            .ok_or_else(|| format!("settings.{name} must be a text, a number, true or false"))?;
        Ok((name, text))
    });
    let header = Header {
        params: params.collect::<Result<BTreeMap<_, _>, String>>()?,
        settings: settings.collect::<Result<BTreeMap<_, _>, String>>()?,
        query,
        format,
        database,
    };
    let data = match data {
        None | Some(Value::Null) => Bytes::new(),
        Some(Value::String(text)) => text.into(),
        Some(other) => binary(&other).ok_or(r#"data must be a text or {"base64": "…"}"#)?,
    };
    Ok(Call { header, data }.to_bytes())
}

/// Whether the rows of an INSERT follow the statement.
pub fn takes_data(query: &str) -> bool {
    matches!(
        sql::read(query).verb,
        Verb::Insert(Insert { rows: Rows::Follow | Rows::FollowUnnamed, .. })
    )
}

/// A text as the value of a parameter: the server reads it with backslashes.
pub fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' => escaped.push_str("\\\\"),
            '\t' => escaped.push_str("\\t"),
            '\n' => escaped.push_str("\\n"),
            '\r' => escaped.push_str("\\r"),
            '\0' => escaped.push_str("\\0"),
            c => escaped.push(c),
        }
    }
    escaped
}

fn parameter(value: &Value) -> Option<String> {
    Some(match value {
        Value::Null => "\\N".to_owned(),
        Value::String(text) => escaped(text),
        Value::Array(_) => literal(value)?,
        Value::Object(_) => return None,
        other => other.to_string(),
    })
}

/// A value as it stands within an array.
fn literal(value: &Value) -> Option<String> {
    Some(match value {
        Value::Null => "NULL".to_owned(),
        Value::String(text) => format!("'{}'", escaped(text).replace('\'', "\\'")),
        Value::Array(items) => {
            let items: Option<Vec<String>> = items.iter().map(literal).collect();
            format!("[{}]", items?.join(","))
        }
        Value::Object(_) => return None,
        other => other.to_string(),
    })
}

fn setting(value: &Value) -> Option<String> {
    Some(match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        Value::Bool(flag) => u8::from(*flag).to_string(),
        _ => return None,
    })
}

fn binary(value: &Value) -> Option<Bytes> {
    let fields = value.as_object().filter(|fields| fields.len() == 1)?;
    STANDARD.decode(fields.get("base64")?.as_str()?).ok().map(Bytes::from)
}

/// A call in wire form as JSON.
pub fn body_to_json(body: &Bytes) -> Value {
    let Ok(Call { header, data }) = Call::of(body) else { return bytes_to_json(body) };
    let mut json = serde_json::to_value(header).unwrap_or_default();
    if let Some(fields) = json.as_object_mut().filter(|_| !data.is_empty()) {
        fields.insert("data".to_owned(), bytes_to_json(&data));
    }
    json
}

/// A reply in wire form as JSON: a document as itself, rows of JSON as an array, other text as text, what is
/// no text as `{"base64": "…"}`, and the summary of a write.
pub fn reply_to_json(reply: &Bytes) -> Value {
    let (format, body) = wire::parts_of(reply);
    let document = || serde_json::from_slice(&body).ok();
    let rows = || {
        let rows = serde_json::Deserializer::from_slice(&body).into_iter::<Value>();
        rows.collect::<Result<Vec<_>, _>>().ok().map(Value::Array)
    };
    let read = match format.as_str() {
        "" if body.is_empty() => Some(Value::Null),
        SUMMARY
        | "JSON"
        | "JSONCompact"
        | "JSONStrings"
        | "JSONCompactStrings"
        | "JSONColumns"
        | "JSONCompactColumns"
        | "JSONColumnsWithMetadata"
        | "JSONObjectEachRow" => document(),
        "JSONEachRow"
        | "JSONLines"
        | "NDJSON"
        | "JSONStringsEachRow"
        | "JSONCompactEachRow"
        | "JSONCompactStringsEachRow"
        | "JSONCompactEachRowWithNames"
        | "JSONCompactEachRowWithNamesAndTypes"
        | "JSONCompactStringsEachRowWithNames"
        | "JSONCompactStringsEachRowWithNamesAndTypes" => rows(),
        _ => None,
    };
    read.unwrap_or_else(|| bytes_to_json(&body))
}

fn bytes_to_json(bytes: &Bytes) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => json!(text),
        Err(_) => json!({ "base64": STANDARD.encode(bytes) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(parts: JsonParts) -> Call {
        Call::of(&body_from_json(parts).unwrap()).unwrap()
    }

    fn map(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn values_become_what_the_server_reads() {
        let params = map(json!({
            "text": "a\tb\\c'd", "number": 1.5, "flag": true, "none": null, "list": [1, "it's", null, ["x"]],
        }));
        let query = "SELECT {text:String}".to_owned();
        let params = call(JsonParts { query, params, ..JsonParts::default() }).header.params;
        assert_eq!(params["text"], r"a\tb\\c'd");
        assert_eq!((params["number"].as_str(), params["flag"].as_str()), ("1.5", "true"));
        assert_eq!(params["none"], r"\N");
        assert_eq!(params["list"], r"[1,'it\'s',NULL,['x']]");
    }

    #[test]
    fn a_read_is_answered_in_json_where_no_format_is_named() {
        let format = |query: &str| {
            call(JsonParts { query: query.to_owned(), ..JsonParts::default() }).header.format
        };
        assert_eq!(format("SELECT 1").as_deref(), Some("JSON"));
        assert_eq!(format("SELECT 1 FORMAT CSV"), None);
        assert_eq!(format("INSERT INTO t VALUES (1)"), None);
    }

    #[test]
    fn data_is_text_or_base64() {
        let data = |data: Value| {
            let query = "INSERT INTO t FORMAT CSV".to_owned();
            body_from_json(JsonParts { query, data: Some(data), ..JsonParts::default() })
                .map(|body| Call::of(&body).unwrap().data)
        };
        assert_eq!(data(json!("1\n")).unwrap(), "1\n");
        assert_eq!(data(json!({ "base64": "AP8=" })).unwrap(), &b"\0\xff"[..]);
        assert!(data(json!([1])).is_err() && data(json!({ "base64": "!" })).is_err());
        assert!(takes_data("INSERT INTO t FORMAT CSV") && takes_data("insert into t"));
        assert!(!takes_data("INSERT INTO t VALUES (1)") && !takes_data("SELECT 1"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let wrong = |params: Value, settings: Value| {
            let (params, settings) = (map(params), map(settings));
            body_from_json(JsonParts { params, settings, ..JsonParts::default() }).unwrap_err()
        };
        assert!(wrong(json!({ "p": {} }), json!({})).contains("params.p"));
        assert!(wrong(json!({}), json!({ "s": [] })).contains("settings.s"));
    }

    #[test]
    fn a_reply_is_as_much_json_as_its_format_is() {
        let json = |format: &str, body: &[u8]| reply_to_json(&wire::reply(format, body));
        assert_eq!(json("JSON", b"{\"data\":[]}"), json!({ "data": [] }));
        assert_eq!(json("JSONEachRow", b"{\"a\":1}\n{\"a\":2}\n"), json!([{ "a": 1 }, { "a": 2 }]));
        assert_eq!(json("JSONEachRow", b""), json!([]));
        assert_eq!(json("CSV", b"1\n"), json!("1\n"));
        assert_eq!(json("RowBinary", b"\xff"), json!({ "base64": "/w==" }));
        assert_eq!(json("", b""), Value::Null);
        assert_eq!(json(SUMMARY, b"{\"written_rows\":\"1\"}"), json!({ "written_rows": "1" }));
    }

    #[test]
    fn a_call_is_shown_to_admins() {
        let header = Header { query: "INSERT INTO t FORMAT CSV".into(), ..Header::default() };
        let body = Call { header, data: Bytes::from_static(b"1") }.to_bytes();
        assert_eq!(
            body_to_json(&body),
            json!({ "query": "INSERT INTO t FORMAT CSV", "data": "1" })
        );
    }
}
