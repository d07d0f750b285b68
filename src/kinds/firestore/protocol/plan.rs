//! Reads what a call is: its lanes, whether it reads or writes, and what follows from that.
//!
//! A document is a lane. How a write may be answered in an outage:
//!
//! | write | absolute | in an outage |
//! | --- | --- | --- |
//! | set, update, delete | yes | its effect is known |
//! | `delete` of what must exist, or of what a write before it in the same commit wants to exist | no: the second one is refused | its effect is known |
//! | with transforms | no | its effect is known |
//! | `create` (or another one of what must not exist) | no | its effect is not known |
//! | with an `update_time`, in a transaction, with a caller's own credentials | no | never queued |
//!
//! A commit is as strict as the strictest of its writes. The reply to one without transforms is the same
//! whenever it is repeated; what a transform made depends on what was there. A single set or delete without
//! conditions leaves nothing of what was there.

use std::collections::HashMap;

use bytes::Bytes;
use fusebox_actors::connector::{Access, Outage, Plan, Read, Refused, Slot, Write};
use fusebox_state::{LaneId, Lanes};
use googleapis_tonic_google_firestore_v1::google::firestore::v1::{
    Write as Change, precondition::ConditionType, write::Operation,
};
use prost::Message;

use super::{
    cache, limits,
    wire::{self, Call, Op},
};

/// Firestore's limit on the writes of one commit.
pub(crate) const WRITES_MAX: usize = 500;
/// Firestore's limit on one commit, in bytes, less what is added on the way.
pub(crate) const BYTES_MAX: usize = (10 << 20) - (64 << 10);
/// Firestore's limit on the message of a commit, in bytes, less what its marker takes.
pub(crate) const SENT_MAX: usize = (10 << 20) - (1 << 10);
/// The longest label that is worth making; more of it is not stored.
const LABEL_MAX: usize = 256;

/// Reads what `body` is. `namespace` is the database, which is part of every lane.
pub(crate) fn plan(body: Bytes, namespace: &[u8]) -> Result<Plan, Refused> {
    let malformed = |message| Refused { code: "malformed_call", message, malformed: true };
    let call: Call = wire::decode(&body).map_err(|why| malformed(format!("the call {why}")))?;
    let live = live_only(&call);
    let lane = |path: &str| LaneId::of(namespace, path.as_bytes());
    let (lanes, label, access) = match &call.op {
        Some(Op::Get(get)) => {
            let lanes = Lanes::new(get.paths.iter().map(|path| lane(path)));
            let slots = if call.transaction.is_empty() {
                cache::document_slots(get, &call.token, lane)
            } else {
                Vec::new()
            };
            (lanes, label(get.paths.iter().map(String::as_str)), read(true, slots))
        }
        Some(Op::Query(query)) => {
            let slot = call.transaction.is_empty().then(|| cache::query_slot(query, &call.token));
            let label = collection(query);
            (Lanes::new([]), label, read(false, slot.into_iter().collect()))
        }
        Some(Op::Asked(asked)) => {
            let slot = cache::asked_slot(asked, &call.token);
            (Lanes::new([]), asked.question().operation().to_owned(), read(false, vec![slot]))
        }
        Some(Op::Commit(commit)) => {
            check_size(&commit.writes, commit.encoded_len())?;
            for write in &commit.writes {
                limits::check(write).map_err(|message| Refused {
                    code: "invalid_argument",
                    message,
                    malformed: false,
                })?;
            }
            let paths = commit.writes.iter().map(wire::document_of);
            let lanes = lanes(&commit.writes, namespace);
            (lanes, label(paths), Access::Write(effect(&commit.writes, live)))
        }
        Some(Op::Begin(_)) => (Lanes::new([]), "begin".to_owned(), never(IN_TRANSACTION)),
        Some(Op::Rollback(_)) => (Lanes::new([]), "rollback".to_owned(), never(IN_TRANSACTION)),
        None => {
            return Err(malformed(
                "the call has an operation that this release does not know".to_owned(),
            ));
        }
    };
    Ok(Plan { body, label, lanes, admin: false, access })
}

/// The lanes of a commit: its documents.
pub(crate) fn lanes(writes: &[Change], namespace: &[u8]) -> Lanes {
    let documents = writes.iter().map(wire::document_of);
    Lanes::new(documents.map(|path| LaneId::of(namespace, path.as_bytes())))
}

const IN_TRANSACTION: &str = "a transaction is sent live or not at all: it is never queued";

/// Why the call is never queued, for a reason that is not its writes'.
fn live_only(call: &Call) -> Option<&'static str> {
    if !call.token.is_empty() {
        return Some("a caller's own credentials are never stored");
    }
    (!call.transaction.is_empty()).then_some(IN_TRANSACTION)
}

fn check_size(writes: &[Change], bytes: usize) -> Result<(), Refused> {
    let refused = |message| Err(Refused { code: "too_large", message, malformed: false });
    let bears_marker = !are_absolute(writes);
    let most = if bears_marker { WRITES_MAX - 1 } else { WRITES_MAX };
    if writes.len() > most {
        let why = if bears_marker { " if one of them needs a marker" } else { "" };
        return refused(format!(
            "a commit may have at most {most} writes{why}, got {}",
            writes.len()
        ));
    }
    if bytes > BYTES_MAX {
        return refused(format!("a commit may have at most {BYTES_MAX} bytes, got {bytes}"));
    }
    Ok(())
}

/// Checks how many writes a batch has, each of which is a commit of its own.
pub(crate) fn check_batch(writes: usize) -> Result<(), Refused> {
    if writes <= WRITES_MAX {
        return Ok(());
    }
    let message = format!("a batch may have at most {WRITES_MAX} writes, got {writes}");
    Err(Refused { code: "too_large", message, malformed: false })
}

fn condition(write: &Change) -> Option<&ConditionType> {
    write.current_document.as_ref()?.condition_type.as_ref()
}

/// Whether a commit of these writes leaves the same state however often it is applied.
fn are_absolute(writes: &[Change]) -> bool {
    writes.iter().all(is_absolute) && !refuses_repetition(writes)
}

/// Whether a commit of these writes, each of them absolute, is refused when it comes again: it wants a document to exist
/// before it has made it itself, and leaves none there.
fn refuses_repetition(writes: &[Change]) -> bool {
    #[derive(Default)]
    struct Left {
        is_made: bool,
        is_wanted: bool,
        is_deleted: bool,
    }
    let wants = |write: &Change| condition(write) == Some(&ConditionType::Exists(true));
    if !writes.iter().any(wants) {
        return false;
    }
    let mut documents: HashMap<&str, Left> = HashMap::new();
    for write in writes {
        let left = documents.entry(wire::document_of(write)).or_default();
        left.is_deleted = matches!(write.operation, Some(Operation::Delete(_)));
        if wants(write) {
            left.is_wanted |= !left.is_made;
        } else {
            left.is_made |= !left.is_deleted;
        }
    }
    documents.values().any(|left| left.is_wanted && left.is_deleted)
}

/// Whether the write leaves the same state however often it is applied.
pub(crate) fn is_absolute(write: &Change) -> bool {
    match condition(write) {
        Some(ConditionType::Exists(false) | ConditionType::UpdateTime(_)) => false,
        Some(ConditionType::Exists(true))
            if matches!(write.operation, Some(Operation::Delete(_))) =>
        {
            false
        }
        _ => {
            write.update_transforms.is_empty()
                && !matches!(write.operation, Some(Operation::Transform(_)))
        }
    }
}

/// Whether nothing of what the document was makes a difference after it.
fn is_whole(write: &Change) -> bool {
    let conditional = write.current_document.as_ref().is_some_and(|it| it.condition_type.is_some());
    match write.operation {
        Some(Operation::Update(_)) => {
            !conditional && write.update_mask.is_none() && write.update_transforms.is_empty()
        }
        Some(Operation::Delete(_)) => !conditional,
        Some(Operation::Transform(_)) | None => false,
    }
}

/// How writes together may be answered in an outage. `live` is why they are never queued, if not for their own sake.
pub(super) fn effect(writes: &[Change], live: Option<&'static str>) -> Write {
    let has = |wanted: fn(&ConditionType) -> bool| {
        writes.iter().any(|write| condition(write).is_some_and(wanted))
    };
    let outage = if let Some(why) = live {
        Outage::Never(why)
    } else if has(|it| matches!(it, ConditionType::UpdateTime(_))) {
        Outage::Never("its condition on the document's update_time can be checked only now")
    } else if has(|it| matches!(it, ConditionType::Exists(false))) {
        Outage::EffectUnknown
    } else {
        Outage::EffectKnown
    };
    let absolute = are_absolute(writes);
    let whole = matches!(writes, [only] if is_whole(only));
    let settled_reply = writes.iter().all(|write| write.update_transforms.is_empty());
    Write { absolute, whole, settled_reply, ..Write::new(outage) }
}

fn never(why: &'static str) -> Access {
    Access::Write(Write::new(Outage::Never(why)))
}

/// There is no nil for a document: that it is not cached does not say that it does not exist.
fn read(keyed: bool, slots: Vec<Slot>) -> Access {
    Access::Read(Read { keyed, slots, miss: None })
}

fn label<'a>(paths: impl Iterator<Item = &'a str>) -> String {
    let mut label = String::new();
    for path in paths {
        if label.len() >= LABEL_MAX {
            break;
        }
        if !label.is_empty() {
            label.push(' ');
        }
        label.push_str(path);
    }
    label
}

fn collection(query: &wire::Query) -> String {
    let from = query.query.as_ref().and_then(|query| query.from.first());
    let name = from.map_or("", |from| from.collection_id.as_str());
    if query.parent.is_empty() { name.to_owned() } else { format!("{}/{name}", query.parent) }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, json};

    use super::super::json::body_from_json;
    use super::*;

    fn try_plan(call: Json, token: &str) -> Result<Plan, Refused> {
        let body = body_from_json(call.as_object().unwrap().clone(), token).unwrap();
        plan(body, b"p/d")
    }

    fn written(call: Json) -> Write {
        let Access::Write(write) = try_plan(call, "").unwrap().access else { panic!("a write") };
        write
    }

    fn lane(path: &str) -> LaneId {
        LaneId::of(b"p/d", path.as_bytes())
    }

    #[test]
    fn what_an_outage_lets_one_say_is_the_strictest_of_all_writes() {
        let known = json!({ "op": "set", "path": "u/a", "data": {} });
        let unknown = json!({ "op": "create", "path": "u/b", "data": {} });
        let at = json!({ "update_time": "2026-01-01T00:00:00Z" });
        let timed = json!({ "op": "delete", "path": "u/c", "precondition": at });
        let counted =
            json!({ "op": "update", "path": "u/d", "transforms": { "n": { "increment": 1 } } });
        let gone = json!({ "op": "delete", "path": "u/e", "precondition": { "exists": true } });
        let updated = json!({ "op": "update", "path": "u/f", "data": { "n": 1 } });
        let made = json!({ "op": "set", "path": "u/f", "data": {} });
        let deleted = json!({ "op": "delete", "path": "u/f" });
        let commit = |writes: &[&Json]| written(json!({ "op": "commit", "writes": writes }));
        for (write, absolute, outage) in [
            (written(known.clone()), true, Some(Outage::EffectKnown)),
            (written(updated.clone()), true, Some(Outage::EffectKnown)),
            (written(counted.clone()), false, Some(Outage::EffectKnown)),
            (written(gone), false, Some(Outage::EffectKnown)),
            (written(unknown.clone()), false, Some(Outage::EffectUnknown)),
            (written(timed.clone()), false, None),
            (commit(&[&known, &known]), true, Some(Outage::EffectKnown)),
            // Its repetition would find nothing to update.
            (commit(&[&updated, &deleted]), false, Some(Outage::EffectKnown)),
            (commit(&[&updated, &made, &deleted]), false, Some(Outage::EffectKnown)),
            (commit(&[&made, &updated, &deleted]), true, Some(Outage::EffectKnown)),
            (commit(&[&updated, &deleted, &made]), true, Some(Outage::EffectKnown)),
            (commit(&[&updated, &known]), true, Some(Outage::EffectKnown)),
            (commit(&[&known, &counted]), false, Some(Outage::EffectKnown)),
            (commit(&[&counted, &unknown]), false, Some(Outage::EffectUnknown)),
            (commit(&[&unknown, &timed]), false, None),
        ] {
            assert_eq!(write.absolute, absolute);
            match outage {
                Some(outage) => assert_eq!(write.outage, outage),
                None => assert!(matches!(write.outage, Outage::Never(_))),
            }
        }
    }

    #[test]
    fn what_is_whole_and_what_a_repetition_answers() {
        let at = |op: &str, rest: Json| {
            let mut call = json!({ "op": op, "path": "u/a" });
            call.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
            call
        };
        let set = at("set", json!({ "data": { "n": 1 } }));
        let count = json!({ "n": { "increment": 1 } });
        for (call, whole, settled) in [
            (set.clone(), true, true),
            (at("delete", json!({})), true, true),
            (at("set", json!({ "data": {}, "merge": true })), false, true),
            (at("set", json!({ "data": {}, "precondition": { "exists": true } })), false, true),
            (at("update", json!({ "data": { "n": 1 } })), false, true),
            (at("delete", json!({ "precondition": { "exists": true } })), false, true),
            (at("create", json!({ "data": {} })), false, true),
            (at("set", json!({ "data": {}, "transforms": count })), false, false),
            (json!({ "op": "commit", "writes": [set] }), true, true),
            (json!({ "op": "commit", "writes": [set, set] }), false, true),
        ] {
            let write = written(call.clone());
            assert_eq!((write.whole, write.settled_reply), (whole, settled), "{call}");
        }
    }

    #[test]
    fn lanes_are_the_documents() {
        let plan = try_plan(json!({ "op": "batch_get", "paths": ["u/a", "u/b"] }), "").unwrap();
        assert_eq!(plan.lanes, Lanes::new([lane("u/a"), lane("u/b")]));
        assert_eq!(plan.label, "u/a u/b");
        let Access::Read(read) = plan.access else { panic!("a read") };
        assert!(read.keyed && read.slots.len() == 2 && read.miss.is_none());
        let plan = try_plan(json!({ "op": "query", "collection": "u/a/n" }), "").unwrap();
        let Access::Read(read) = plan.access else { panic!("a read") };
        assert_eq!((read.keyed, plan.lanes, plan.label.as_str()), (false, Lanes::new([]), "u/a/n"));
    }

    #[test]
    fn credentials_and_transactions_never_queue_and_are_cached_apart() {
        let call = json!({ "op": "set", "path": "u/a", "data": {} });
        let Access::Write(write) = try_plan(call, "Bearer x").unwrap().access else { panic!() };
        assert!(matches!(write.outage, Outage::Never(_)));
        let key = |call: Json, token| match try_plan(call, token).unwrap().access {
            Access::Read(read) => read.slots.first().map(|slot| slot.key.clone()),
            Access::Write(_) => panic!("a read"),
        };
        for call in
            [json!({ "op": "get", "path": "u/a" }), json!({ "op": "query", "collection": "u" })]
        {
            let keys = ["", "Bearer x", "Bearer y"].map(|token| key(call.clone(), token).unwrap());
            assert!(keys[0] != keys[1] && keys[1] != keys[2] && keys[0] != keys[2]);
            assert!(!String::from_utf8_lossy(&keys[1]).contains("Bearer"));
        }
        assert_eq!(key(json!({ "op": "get", "path": "u/a", "transaction": "AA==" }), ""), None);
    }

    #[test]
    fn what_no_commit_takes_is_refused() {
        let sets: Vec<Json> = (0..500)
            .map(|n| json!({ "op": "set", "path": format!("u/{n}"), "data": {} }))
            .collect();
        assert!(try_plan(json!({ "op": "commit", "writes": sets }), "").is_ok());
        let mut marked = sets.clone();
        marked[0] = json!({ "op": "create", "path": "u/x", "data": {} });
        let refused = try_plan(json!({ "op": "commit", "writes": marked }), "").unwrap_err();
        assert_eq!((refused.code, refused.malformed), ("too_large", false));
        assert!(refused.message.starts_with("a commit may have at most 499 writes"));
        let big = "x".repeat(11 << 20);
        let call = json!({ "op": "set", "path": "u/a", "data": { "t": big } });
        assert_eq!(try_plan(call, "").unwrap_err().code, "too_large");
    }
}
