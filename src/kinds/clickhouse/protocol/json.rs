//! Calls and replies as JSON.
//!
//! A number among `params` and `settings` goes to the server as it was written, so that a Decimal or an Int256
//! keeps its digits; the server says whether it is one. A reply that is JSON is embedded as the server wrote
//! it, its digits and its order of columns with it: it is validated, and nothing is built of it.

use std::{collections::BTreeMap, fmt};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, Visitor},
};
use serde_json::{Value, json, value::RawValue};

use super::{
    sql::{self, Insert, Rows, Verb},
    wire::{self, Call, Header, SUMMARY},
};
use crate::exact::{Json, Members, Outgoing, quoted};

/// The members of a call.
#[derive(Debug, Default)]
pub(crate) struct JsonParts<'a> {
    /// The statement.
    pub(crate) query: String,
    /// The values of `{name:Type}`.
    pub(crate) params: Members<'a>,
    /// Settings for this call alone.
    pub(crate) settings: Members<'a>,
    /// The format of the answer, or of the data.
    pub(crate) format: Option<String>,
    /// The rows of an INSERT.
    pub(crate) data: Option<Data>,
    /// The database.
    pub(crate) database: Option<String>,
}

/// The rows of an INSERT: in JSON text, or `{"base64": "…"}`.
#[derive(Debug)]
pub(crate) struct Data(pub(crate) Bytes);

impl<'de> Deserialize<'de> for Data {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OfData;

        impl<'de> Visitor<'de> for OfData {
            type Value = Data;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(DATA)
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Data, E> {
                Ok(Data(Bytes::copy_from_slice(text.as_bytes())))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Data, A::Error> {
                let wrong = || A::Error::custom(DATA);
                if map.next_key::<String>()?.as_deref() != Some("base64") {
                    return Err(wrong());
                }
                let text: String = map.next_value()?;
                if map.next_key::<String>()?.is_some() {
                    return Err(wrong());
                }
                let bytes = STANDARD.decode(text);
                bytes
                    .map(|bytes| Data(bytes.into()))
                    .map_err(|why| A::Error::custom(format_args!("data is not base64: {why}")))
            }
        }

        deserializer.deserialize_any(OfData)
    }
}

const DATA: &str = r#"data must be a text or {"base64": "…"}"#;

/// A call in wire form. A read that names no format is answered in JSON.
///
/// # Errors
/// Which member is wrong, and what it should be.
pub(crate) fn body_from_json(parts: JsonParts<'_>) -> Result<Bytes, String> {
    let JsonParts { query, params, settings, mut format, data, database } = parts;
    if format.is_none() {
        let statement = sql::read(&query);
        let is_read = statement.verb == Verb::Read && statement.format.is_none();
        format = is_read.then(|| "JSON".to_owned());
    }
    let params = params.0.into_iter().map(|(name, raw)| {
        let text = parameter(raw).map_err(|why| format!("params.{name}: {why}"))?;
        Ok((name, text))
    });
    let settings = settings.0.into_iter().map(|(name, raw)| {
        let text = setting(raw).map_err(|why| format!("settings.{name}: {why}"))?;
        Ok((name, text))
    });
    let header = Header {
        params: params.collect::<Result<BTreeMap<_, _>, String>>()?,
        settings: settings.collect::<Result<BTreeMap<_, _>, String>>()?,
        query,
        format,
        database,
        raw: None,
    };
    let data = data.map(|data| data.0).unwrap_or_default();
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

fn parameter(raw: &RawValue) -> Result<String, String> {
    let json = Json::of(raw)?;
    let text = match &json {
        Json::Null => Some("\\N".to_owned()),
        Json::Text(text) => Some(escaped(text)),
        other => literal(other),
    };
    text.ok_or_else(|| format!("must be a value or an array of them, got {}", quoted(raw.get())))
}

/// A value as it is written within an array.
fn literal(json: &Json<'_>) -> Option<String> {
    Some(match json {
        Json::Null => "NULL".to_owned(),
        Json::Bool(flag) => flag.to_string(),
        Json::Number(text) => (*text).to_owned(),
        Json::Text(text) => format!("'{}'", escaped(text).replace('\'', "\\'")),
        Json::Array(items) => {
            let items: Option<Vec<String>> = items.iter().map(literal).collect();
            format!("[{}]", items?.join(","))
        }
        Json::Object(_) => return None,
    })
}

fn setting(raw: &RawValue) -> Result<String, String> {
    Ok(match Json::of(raw)? {
        Json::Text(text) => text.into_owned(),
        Json::Number(text) => text.to_owned(),
        Json::Bool(flag) => u8::from(flag).to_string(),
        Json::Null | Json::Array(_) | Json::Object(_) => {
            let got = quoted(raw.get());
            return Err(format!("must be a text, a number, true or false, got {got}"));
        }
    })
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
pub(crate) fn reply_to_json(reply: &Bytes) -> Outgoing<'_> {
    let (format, body) = wire::parts(reply);
    let read = match format {
        "" if body.is_empty() => Some(Outgoing::Made(Value::Null)),
        SUMMARY
        | "JSON"
        | "JSONCompact"
        | "JSONStrings"
        | "JSONCompactStrings"
        | "JSONColumns"
        | "JSONCompactColumns"
        | "JSONColumnsWithMetadata"
        | "JSONObjectEachRow" => Outgoing::document(body),
        "JSONEachRow"
        | "JSONLines"
        | "NDJSON"
        | "JSONStringsEachRow"
        | "JSONCompactEachRow"
        | "JSONCompactStringsEachRow"
        | "JSONCompactEachRowWithNames"
        | "JSONCompactEachRowWithNamesAndTypes"
        | "JSONCompactStringsEachRowWithNames"
        | "JSONCompactStringsEachRowWithNamesAndTypes" => Outgoing::rows(body),
        _ => None,
    };
    read.unwrap_or_else(|| Outgoing::Made(bytes_to_json(body)))
}

fn bytes_to_json(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => json!(text),
        Err(_) => json!({ "base64": STANDARD.encode(bytes) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(parts: JsonParts<'_>) -> Call {
        Call::of(&body_from_json(parts).unwrap()).unwrap()
    }

    fn members(json: &str) -> Members<'_> {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn values_become_what_the_server_reads() {
        let params = members(
            r#"{
                "text": "a\tb\\c'd", "number": 1.5, "flag": true, "none": null,
                "list": [1, "it's", null, ["x"], 1e3], "huge": 12345678901234567890123, "zero": -0.00
            }"#,
        );
        let query = "SELECT {text:String}".to_owned();
        let params = call(JsonParts { query, params, ..JsonParts::default() }).header.params;
        assert_eq!(params["text"], r"a\tb\\c'd");
        assert_eq!((params["number"].as_str(), params["flag"].as_str()), ("1.5", "true"));
        assert_eq!(params["none"], r"\N");
        assert_eq!(params["list"], r"[1,'it\'s',NULL,['x'],1e3]");
        assert_eq!(params["huge"], "12345678901234567890123");
        assert_eq!(params["zero"], "-0.00");
        let settings = members(r#"{"a": 18446744073709551616, "b": 1e3, "c": true, "d": "x"}"#);
        let settings = call(JsonParts { settings, ..JsonParts::default() }).header.settings;
        let settings: Vec<&str> = settings.values().map(String::as_str).collect();
        assert_eq!(settings, ["18446744073709551616", "1e3", "1", "x"]);
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
        let data = |json: &str| {
            serde_json::from_str::<Data>(json).map(|data| data.0).map_err(|error| error.to_string())
        };
        assert_eq!(data(r#""1\n""#).unwrap(), "1\n");
        assert_eq!(data(r#"{ "base64": "AP8=" }"#).unwrap(), &b"\0\xff"[..]);
        for wrong in ["[1]", "1e3", "{}", r#"{"base64":"","x":""}"#, r#"{"text":""}"#] {
            assert!(data(wrong).unwrap_err().contains("data must be a text"), "{wrong}");
        }
        assert!(data(r#"{"base64":"!"}"#).unwrap_err().contains("data is not base64"));
        assert!(data(r#""\ud800""#).is_err());
        assert!(takes_data("INSERT INTO t FORMAT CSV") && takes_data("insert into t"));
        assert!(!takes_data("INSERT INTO t VALUES (1)") && !takes_data("SELECT 1"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let wrong = |params: &str, settings: &str| {
            let (params, settings) = (members(params), members(settings));
            body_from_json(JsonParts { params, settings, ..JsonParts::default() }).unwrap_err()
        };
        assert_eq!(
            wrong(r#"{ "p": {"a": 1} }"#, "{}"),
            r#"params.p: must be a value or an array of them, got {"a": 1}"#
        );
        assert!(wrong(r#"{ "p": [[{}]] }"#, "{}").starts_with("params.p: must be a value"));
        assert!(wrong(r#"{ "p": "\ud800" }"#, "{}").contains("is not Unicode text"));
        assert!(wrong("{}", r#"{ "s": [] }"#).starts_with("settings.s: must be a text"));
        let deep = format!(r#"{{"p":{}{}}}"#, "[".repeat(200_000), "]".repeat(200_000));
        assert!(wrong(&deep, "{}").ends_with("nests at most 128 deep"));
    }

    #[test]
    fn a_reply_is_as_much_json_as_its_format_is() {
        let json = |format: &str, body: &[u8]| {
            serde_json::to_value(reply_to_json(&wire::reply(format, body))).unwrap()
        };
        assert_eq!(json("JSON", b"{\"data\":[]}"), json!({ "data": [] }));
        assert_eq!(json("JSONEachRow", b"{\"a\":1}\n{\"a\":2}\n"), json!([{ "a": 1 }, { "a": 2 }]));
        assert_eq!(json("JSONEachRow", b""), json!([]));
        assert_eq!(json("CSV", b"1\n"), json!("1\n"));
        assert_eq!(json("JSON", b"{\"a\":\"\xff\"}"), json!({ "base64": "eyJhIjoi/yJ9" }));
        assert_eq!(json("JSON", b"{\"a\":1}{"), json!("{\"a\":1}{"));
        assert_eq!(json("JSONEachRow", b"{\"a\":1}\nCode: 1"), json!("{\"a\":1}\nCode: 1"));
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
