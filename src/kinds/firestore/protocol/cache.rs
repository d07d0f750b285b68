//! Which reads are cached, under what, and how cached parts make a reply.
//!
//! A document is one entry, whether it was got alone or with others; its absence is an answer as well. A
//! query is one entry under its canonical form, in a lane of its own that no write enters: its result is
//! neither overlaid nor invalidated. So is what a client of the door asks, under the bytes of its message. What was
//! read with a caller's own credentials is kept apart, under a hash of them that is different in each run of the
//! daemon.

use std::sync::LazyLock;

use bytes::{BufMut, Bytes, BytesMut};
use fusebox_actors::connector::Slot;
use fusebox_state::LaneId;
use prost::Message;
use xxhash_rust::xxh3::xxh3_128_with_seed;

use super::wire::{self, Answer, Asked, Call, Found, FoundList, Get, Op, Query, Reply};

/// The end of the principal's hash, at which the read begins.
const PRINCIPAL: usize = 17;

/// So that nobody can prepare credentials whose hash is another's.
static SEED: LazyLock<u64> = LazyLock::new(|| fastrand::u64(..));

/// The beginning of a key: whose eyes the entry is for.
pub(crate) fn principal(kind: u8, token: &str) -> BytesMut {
    let mut key = BytesMut::with_capacity(64);
    key.put_u8(kind);
    key.put_u128(if token.is_empty() { 0 } else { xxh3_128_with_seed(token.as_bytes(), *SEED) });
    key
}

/// The entries that together answer the documents' read.
pub(crate) fn document_slots(get: &Get, token: &str, lane: impl Fn(&str) -> LaneId) -> Vec<Slot> {
    let principal = principal(b'd', token);
    get.paths
        .iter()
        .map(|path| {
            let mut key = principal.clone();
            key.extend_from_slice(path.as_bytes());
            Slot { lane: lane(path), key: key.freeze() }
        })
        .collect()
}

/// The entry that answers the query.
pub(crate) fn query_slot(query: &Query, token: &str) -> Slot {
    let mut key = principal(b'q', token);
    key.extend_from_slice(&query.encode_to_vec());
    let key = key.freeze();
    Slot { lane: LaneId::of(b"query", &key), key }
}

/// The entry that answers what a client of the door asks: by the bytes of its message.
pub(crate) fn asked_slot(asked: &Asked, token: &str) -> Slot {
    let mut key = principal(b'a', token);
    key.extend_from_slice(&asked.encode_to_vec());
    let key = key.freeze();
    Slot { lane: LaneId::of(b"query", &key), key }
}

/// The path of the document that the entry is of.
pub(crate) fn path_of(slot: &Slot) -> Option<&str> {
    let (kind, path) = (slot.key.first()?, slot.key.get(PRINCIPAL..)?);
    std::str::from_utf8(path).ok().filter(|_| *kind == b'd')
}

/// The same if the entry is of what the backend's own account sees. What a caller with a credential of its own may see,
/// only the server knows.
pub(crate) fn own_path_of(slot: &Slot) -> Option<&str> {
    let is_own = slot.key.get(1..PRINCIPAL)?.iter().all(|byte| *byte == 0);
    path_of(slot).filter(|_| is_own)
}

/// The entries that a reply fills.
pub(crate) fn split(slots: &[Slot], reply: &Bytes) -> Option<Vec<Bytes>> {
    match wire::decode::<Reply>(reply).ok()?.answer? {
        Answer::One(found) if slots.len() == 1 => Some(vec![wire::encode(&found)]),
        Answer::Many(_) if slots.len() == 1 && path_of(slots.first()?).is_none() => {
            Some(vec![reply.clone()])
        }
        Answer::Messages(_) if slots.len() == 1 => Some(vec![reply.clone()]),
        Answer::Many(list) if list.found.len() == slots.len() => {
            Some(list.found.iter().map(wire::encode).collect())
        }
        _ => None,
    }
}

/// The reply that entries make.
pub(crate) fn join(body: &Bytes, mut parts: Vec<Bytes>) -> Bytes {
    let call = wire::decode::<Call>(body).unwrap_or_default();
    let found = |part: &Bytes| wire::decode::<Found>(part).unwrap_or_default();
    match call.op {
        Some(Op::Get(get)) if get.many => {
            let list = FoundList { found: parts.iter().map(found).collect() };
            Reply::encoded(Answer::Many(list))
        }
        Some(Op::Get(_)) => {
            Reply::encoded(Answer::One(parts.first().map(found).unwrap_or_default()))
        }
        _ => parts.pop().unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use googleapis_tonic_google_firestore_v1::google::firestore::v1::Document;

    use super::super::json::{body_from_json, reply_to_json};
    use super::*;

    fn found(path: &str) -> Found {
        Found { path: path.into(), document: Some(Document::default()), ..Found::default() }
    }

    #[test]
    fn documents_come_apart_and_together() {
        let call = json!({ "op": "batch_get", "paths": ["u/a", "u/b"] });
        let body = body_from_json(call.as_object().unwrap().clone(), "").unwrap();
        let get = Get { paths: vec!["u/a".into(), "u/b".into()], many: true };
        let slots = document_slots(&get, "", |path| LaneId::of(b"", path.as_bytes()));
        assert_eq!(path_of(&slots[1]), Some("u/b"));
        let list = vec![found("u/a"), Found { path: "u/b".into(), ..Found::default() }];
        let reply = Reply::encoded(Answer::Many(FoundList { found: list }));
        let parts = split(&slots, &reply).unwrap();
        assert_eq!(join(&body, parts.clone()), reply);
        let one = Get { paths: vec!["u/b".into()], many: false };
        let slots = document_slots(&one, "", |path| LaneId::of(b"", path.as_bytes()));
        let alone = Reply::encoded(Answer::One(Found { path: "u/b".into(), ..Found::default() }));
        assert_eq!(split(&slots, &alone).unwrap()[0], parts[1], "both fill the same entry");
    }

    #[test]
    fn a_query_is_one_entry_that_is_no_document() {
        let slot = query_slot(&Query::default(), "");
        assert_eq!(path_of(&slot), None);
        let reply = Reply::encoded(Answer::Many(FoundList { found: vec![found("u/a")] }));
        let parts = split(std::slice::from_ref(&slot), &reply).unwrap();
        let call = json!({ "op": "query", "collection": "u" });
        let body = body_from_json(call.as_object().unwrap().clone(), "").unwrap();
        assert_eq!(reply_to_json(&join(&body, parts))[0]["path"], "u/a");
    }
}
