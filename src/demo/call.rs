//! Calls as callers make them, and what they mean to the proof.

use std::ops::Range;

use serde_json::{Value, json};

use super::backend::Backend;

/// The table of rows.
const TABLE: &str = "visits";

/// A call.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Call {
    /// Whom it is for.
    pub(super) backend: Backend,
    /// As it is written down for people.
    pub(super) shown: String,
    /// What it does.
    pub(super) effect: Effect,
    body: Value,
    options: Value,
}

/// What a call does, if it is applied.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Effect {
    /// Nothing: it reads.
    Read,
    /// Sets a key, or the field `value` of a document, of which nobody else sets it, to a value above all
    /// earlier ones.
    Set(String, u64),
    /// Adds one to a key, or to the field `value` of a document.
    Increment(String),
    /// Inserts rows of these ids, which no other call inserts.
    Insert(Range<u64>),
}

impl Call {
    fn new(backend: Backend, shown: String, effect: Effect, body: Value) -> Self {
        Self { backend, shown, effect, body, options: json!({}) }
    }

    /// Sets a key of Redis, or a document of Firestore, to `value`.
    pub(super) fn set(backend: Backend, key: &str, value: u64) -> Self {
        let (shown, body) = if backend == Backend::Documents {
            let data = json!({ "value": value });
            (format!("set {key} {data}"), json!({ "op": "set", "path": key, "data": data }))
        } else {
            (format!("SET {key} {value}"), json!({ "command": ["SET", key, value.to_string()] }))
        };
        Self::new(backend, shown, Effect::Set(key.to_owned(), value), body)
    }

    /// Adds one to a key of Redis, or to a document of Firestore.
    pub(super) fn increment(backend: Backend, key: &str) -> Self {
        let (shown, body) = if backend == Backend::Documents {
            let transforms = json!({ "value": { "increment": 1 } });
            let body = json!({ "op": "set", "path": key, "data": {}, "merge": true,
                "transforms": transforms });
            (format!("set {key} value + 1"), body)
        } else {
            (format!("INCR {key}"), json!({ "command": ["INCR", key] }))
        };
        Self::new(backend, shown, Effect::Increment(key.to_owned()), body)
    }

    /// Reads a key of Redis, or a document of Firestore.
    pub(super) fn get(backend: Backend, key: &str) -> Self {
        let (shown, body) = if backend == Backend::Documents {
            (format!("get {key}"), json!({ "op": "get", "path": key }))
        } else {
            (format!("GET {key}"), json!({ "command": ["GET", key] }))
        };
        Self::new(backend, shown, Effect::Read, body)
    }

    /// Inserts rows of these ids.
    pub(super) fn insert(ids: Range<u64>) -> Self {
        let rows = ids.clone().map(|id| json!({ "id": id, "amount": id % 100 }).to_string());
        let data = rows.collect::<Vec<_>>().join("\n");
        let query = format!("INSERT INTO {TABLE} FORMAT JSONEachRow");
        let shown = format!("INSERT INTO {TABLE}");
        let body = json!({ "query": query, "data": data });
        Self::new(Backend::Rows, shown, Effect::Insert(ids), body)
    }

    /// Selects `what`, such as `count() AS rows`, from the table.
    pub(super) fn select(what: &str) -> Self {
        let query = format!("SELECT {what} FROM {TABLE} FORMAT JSONEachRow");
        let shown = format!("SELECT {what}");
        Self::new(Backend::Rows, shown, Effect::Read, json!({ "query": query }))
    }

    /// The same with the consent to be queued, also if its reply cannot be known.
    pub(super) fn durable(self) -> Self {
        self.with(json!({ "min_ack": "durable" }), "min_ack durable")
    }

    /// The same without the consent to be queued.
    pub(super) fn applied(self) -> Self {
        self.with(json!({ "min_ack": "applied" }), "min_ack applied")
    }

    /// The same as one that matters little.
    pub(super) fn low(self) -> Self {
        self.with(json!({ "priority": "low" }), "priority low")
    }

    fn with(mut self, options: Value, shown: &str) -> Self {
        self.shown = format!("{}, {shown}", self.shown);
        self.options = options;
        self
    }

    /// Whether it has no options, so that a stock client can make it.
    pub(super) fn is_plain(&self) -> bool {
        self.options.as_object().is_some_and(serde_json::Map::is_empty)
    }

    /// The words of a command for Redis; none of another call.
    pub(super) fn words(&self) -> Vec<&str> {
        let words = self.body.get("command").and_then(Value::as_array);
        words.into_iter().flatten().filter_map(Value::as_str).collect()
    }

    /// A statement for ClickHouse, with its rows behind it; empty of another call.
    pub(super) fn statement(&self) -> String {
        let part = |name| self.body.get(name).and_then(Value::as_str);
        part("query").into_iter().chain(part("data")).collect::<Vec<_>>().join("\n")
    }

    /// The path of a document of Firestore; empty of another call.
    pub(super) fn document(&self) -> &str {
        self.body.get("path").and_then(Value::as_str).unwrap_or_default()
    }

    /// Whether it writes.
    pub(super) fn is_write(&self) -> bool {
        self.effect != Effect::Read
    }

    /// Its route.
    pub(super) fn path(&self) -> String {
        format!("/v1/backends/{}/call", self.backend.name())
    }

    /// Its JSON.
    pub(super) fn json(&self) -> Value {
        let mut json = self.body.clone();
        if let Some(members) = json.as_object_mut() {
            members.insert("options".to_owned(), self.options.clone());
        }
        json
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_what_it_shows() {
        let call = Call::set(Backend::Keys, "k", 2);
        assert_eq!(call.json(), json!({ "command": ["SET", "k", "2"], "options": {} }));
        assert_eq!(call.shown, "SET k 2");
        assert_eq!(call.words(), ["SET", "k", "2"]);
        assert!(call.is_plain() && !call.durable().is_plain());
        assert_eq!(Call::get(Backend::Documents, "d/a").document(), "d/a");
        assert_eq!(
            Call::insert(7..8).statement(),
            "INSERT INTO visits FORMAT JSONEachRow\n{\"amount\":7,\"id\":7}"
        );
        let call = Call::insert(7..9).durable();
        assert_eq!(call.shown, "INSERT INTO visits, min_ack durable");
        assert_eq!(
            call.json(),
            json!({ "query": "INSERT INTO visits FORMAT JSONEachRow",
                "data": "{\"amount\":7,\"id\":7}\n{\"amount\":8,\"id\":8}",
                "options": { "min_ack": "durable" } })
        );
        assert!(call.is_write() && !Call::select("count()").low().is_write());
        assert_eq!(Call::get(Backend::Documents, "d/a").path(), "/v1/backends/firestore/call");
    }
}
