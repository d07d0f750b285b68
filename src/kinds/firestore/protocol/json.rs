//! Calls and replies as JSON.
//!
//! | op | reply |
//! | --- | --- |
//! | `get` | `{"path","data","create_time","update_time"}`, or null if there is no such document |
//! | `batch_get`, `query` | an array of them |
//! | `set`, `update`, `create`, `delete` | `{"update_time"}` |
//! | `commit` | `{"update_time","writes":[{"update_time","transforms":[…]}]}` |
//! | `begin_transaction` | `{"transaction":"…"}` |
//! | `rollback` | null |
//!
//! What queued writes make of a document has no `update_time`, a `create_time` only if that is known from an earlier
//! read, and `"estimated":true` if a time in it is fusebox's guess at the server's.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use googleapis_tonic_google_firestore_v1::google::firestore::v1::WriteResult;
use serde::Deserialize;
use serde_json::{Map, Value as Json, json};

use super::{
    path, query, value,
    wire::{self, Answer, Begin, Call, Commit, Found, Get, Op, Reply, Rollback},
    write,
};

/// Every word that `op` may be.
const OPS: &str =
    "get, set, update, delete, create, batch_get, query, commit, begin_transaction, rollback";

/// Each of them.
pub(crate) fn ops() -> Vec<&'static str> {
    OPS.split(", ").collect()
}

/// The most documents that one `batch_get` asks for.
const GET_MAX: usize = 1_000;

/// A call in wire form from its JSON, without what belongs to fusebox itself. `token` is the caller's own
/// credentials; empty for none.
///
/// # Errors
/// What is malformed.
pub(crate) fn body_from_json(mut call: Map<String, Json>, token: &str) -> Result<Bytes, String> {
    let Some(Json::String(op)) = call.remove("op") else {
        return Err(format!("op must be one of {OPS}"));
    };
    let transaction = match call.remove("transaction") {
        None | Some(Json::Null) => Bytes::new(),
        Some(Json::String(text)) => STANDARD
            .decode(&text)
            .map_err(|_| {
                "transaction must be the value that begin_transaction answered".to_owned()
            })?
            .into(),
        Some(_) => {
            return Err("transaction must be the value that begin_transaction answered".to_owned());
        }
    };
    let alone = write::OPS.contains(&op.as_str()) || op == "begin_transaction";
    if alone && !transaction.is_empty() {
        return Err(format!("{op} takes no transaction: its writes are those of its commit"));
    }
    let op = op_from_json(&op, call)?;
    if matches!(op, Op::Rollback(_)) && transaction.is_empty() {
        return Err("rollback requires transaction".to_owned());
    }
    Ok(wire::encode(&Call { op: Some(op), transaction, token: token.to_owned() }))
}

fn op_from_json(op: &str, call: Map<String, Json>) -> Result<Op, String> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct OfOne {
        path: String,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct OfMany {
        paths: Vec<String>,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct OfCommit {
        writes: Vec<Map<String, Json>>,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct OfBegin {
        #[serde(default)]
        read_only: bool,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct OfRollback {}
    Ok(match op {
        "get" => {
            let OfOne { path } = read(call)?;
            path::check_document(&path)?;
            Op::Get(Get { paths: vec![path], many: false })
        }
        "batch_get" => {
            let OfMany { paths } = read(call)?;
            if paths.is_empty() || paths.len() > GET_MAX {
                return Err(format!("paths must be 1 to {GET_MAX} documents, got {}", paths.len()));
            }
            paths.iter().try_for_each(|path| path::check_document(path))?;
            Op::Get(Get { paths, many: true })
        }
        "query" => Op::Query(query::from_json(call)?),
        "commit" => {
            let OfCommit { writes } = read(call)?;
            let writes: Result<Vec<_>, String> = writes
                .into_iter()
                .enumerate()
                .map(|(index, write)| {
                    one_of_many(write).map_err(|why| format!("writes[{index}]: {why}"))
                })
                .collect();
            Op::Commit(Commit { writes: writes?, many: true })
        }
        "begin_transaction" => {
            let OfBegin { read_only } = read(call)?;
            Op::Begin(Begin { read_only })
        }
        "rollback" => {
            let OfRollback {} = read(call)?;
            Op::Rollback(Rollback {})
        }
        op if write::OPS.contains(&op) => {
            Op::Commit(Commit { writes: vec![write::from_json(op, call)?], many: false })
        }
        other => return Err(format!("op must be one of {OPS}, got {other:?}")),
    })
}

fn one_of_many(
    mut write: Map<String, Json>,
) -> Result<googleapis_tonic_google_firestore_v1::google::firestore::v1::Write, String> {
    match write.remove("op") {
        Some(Json::String(op)) if write::OPS.contains(&op.as_str()) => write::from_json(&op, write),
        _ => Err(format!("op must be one of {}", write::OPS.join(", "))),
    }
}

fn read<T: serde::de::DeserializeOwned>(call: Map<String, Json>) -> Result<T, String> {
    serde_json::from_value(Json::Object(call)).map_err(|error| error.to_string())
}

/// A call in wire form as JSON, for people. Credentials are not shown.
pub(crate) fn body_to_json(body: &Bytes) -> Json {
    let Ok(call) = wire::decode::<Call>(body) else { return Json::Null };
    match call.op {
        Some(Op::Get(get)) => json!({ "op": "batch_get", "paths": get.paths }),
        Some(Op::Query(query)) => json!({ "op": "query", "parent": query.parent }),
        Some(Op::Commit(commit)) => match commit.writes.as_slice() {
            [only] if !commit.many => write::to_json(only),
            writes => {
                let writes: Vec<Json> = writes.iter().map(write::to_json).collect();
                json!({ "op": "commit", "writes": writes })
            }
        },
        Some(Op::Begin(_)) => json!({ "op": "begin_transaction" }),
        Some(Op::Rollback(_)) => json!({ "op": "rollback" }),
        Some(Op::Asked(asked)) => json!({ "op": asked.question().operation() }),
        None => Json::Null,
    }
}

/// A reply in wire form as JSON.
pub(crate) fn reply_to_json(reply: &Bytes) -> Json {
    let answer = wire::decode::<Reply>(reply).ok().and_then(|reply| reply.answer);
    match answer {
        Some(Answer::One(found)) => found_to_json(&found),
        Some(Answer::Many(list)) => Json::Array(list.found.iter().map(found_to_json).collect()),
        Some(Answer::Written(result)) => result_to_json(&result),
        Some(Answer::Committed(committed)) => {
            let writes: Vec<Json> = committed.results.iter().map(result_to_json).collect();
            json!({ "update_time": time_to_json(committed.time), "writes": writes })
        }
        Some(Answer::Transaction(id)) => json!({ "transaction": STANDARD.encode(id) }),
        Some(Answer::Done(_) | Answer::Messages(_)) | None => Json::Null,
    }
}

/// What a path held; null for nothing.
pub(crate) fn found_to_json(found: &Found) -> Json {
    let Some(document) = &found.document else { return Json::Null };
    let mut shown = json!({
        "path": found.path,
        "data": value::fields_to_json(&document.fields),
        "create_time": time_to_json(document.create_time),
        "update_time": time_to_json(document.update_time),
    });
    if let (true, Some(shown)) = (found.estimated, shown.as_object_mut()) {
        shown.insert("estimated".into(), json!(true));
    }
    shown
}

fn result_to_json(result: &WriteResult) -> Json {
    let mut shown = json!({ "update_time": time_to_json(result.update_time) });
    if let (false, Some(shown)) = (result.transform_results.is_empty(), shown.as_object_mut()) {
        let results = result.transform_results.iter().map(value::to_json).collect();
        shown.insert("transforms".into(), Json::Array(results));
    }
    shown
}

fn time_to_json(time: Option<prost_types::Timestamp>) -> Json {
    time.map_or(Json::Null, |time| json!(time.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(json: Json) -> Result<Bytes, String> {
        body_from_json(json.as_object().unwrap().clone(), "")
    }

    #[test]
    fn calls_are_shown_as_they_were_given() {
        for call in [
            json!({ "op": "set", "path": "u/a", "data": { "n": 1 } }),
            json!({ "op": "delete", "path": "u/a" }),
            json!({ "op": "create", "path": "u/a", "data": {} }),
            json!({ "op": "batch_get", "paths": ["u/a", "u/b"] }),
            json!({ "op": "commit", "writes": [
                { "op": "set", "path": "u/a", "data": {} }, { "op": "delete", "path": "u/b" },
            ] }),
        ] {
            assert_eq!(body_to_json(&made(call.clone()).unwrap()), call);
        }
    }

    #[test]
    fn credentials_are_not_shown() {
        let call = json!({ "op": "delete", "path": "u/a" });
        let body = body_from_json(call.as_object().unwrap().clone(), "Bearer s3cret").unwrap();
        assert!(!body_to_json(&body).to_string().contains("s3cret"));
    }

    #[test]
    fn a_malformed_call_is_told_what_is_right() {
        for (call, why) in [
            (json!({ "op": "put", "path": "u/a" }), "op must be one of get"),
            (json!({ "path": "u/a" }), "op must be one of get"),
            (json!({ "op": "get" }), "missing field `path`"),
            (json!({ "op": "get", "path": "u/a", "x": 1 }), "unknown field `x`"),
            (json!({ "op": "batch_get", "paths": [] }), "1 to 1000 documents"),
            (
                json!({ "op": "commit", "writes": [{ "op": "get" }] }),
                "writes[0]: op must be one of set",
            ),
            (json!({ "op": "rollback" }), "requires transaction"),
            (
                json!({ "op": "set", "path": "u/a", "data": {}, "transaction": "AA==" }),
                "takes no transaction",
            ),
            (json!({ "op": "get", "path": "u/a", "transaction": 1 }), "begin_transaction answered"),
        ] {
            let error = made(call).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn an_estimate_is_marked_and_a_missing_document_is_null() {
        let document =
            Some(googleapis_tonic_google_firestore_v1::google::firestore::v1::Document::default());
        let found = Found { path: "u/a".into(), document, estimated: true, ..Found::default() };
        let shown = reply_to_json(&Reply::encoded(Answer::One(found)));
        assert_eq!(
            shown,
            json!({ "path": "u/a", "data": {}, "create_time": null, "update_time": null, "estimated": true })
        );
        assert_eq!(reply_to_json(&Reply::encoded(Answer::One(Found::default()))), Json::Null);
    }
}
