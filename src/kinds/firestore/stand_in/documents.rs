//! The stand-in's documents, and what a commit does to them.
//!
//! | write | what becomes of it |
//! | --- | --- |
//! | a document without a mask | replaces what was there |
//! | a document with a mask of fields at the top | changes those fields |
//! | a deletion | there is none afterwards |
//! | transforms | increments of whole numbers, after the fields |
//!
//! A precondition that does not hold refuses the whole commit. What else Firestore knows is unimplemented.

use std::{
    collections::BTreeMap,
    time::{SystemTime, UNIX_EPOCH},
};

use googleapis_tonic_google_firestore_v1::google::firestore::v1::{
    CommitResponse, Document, DocumentMask, Precondition, Value, Write, WriteResult,
    document_transform::{FieldTransform, field_transform::TransformType},
    precondition::ConditionType,
    value::ValueType,
    write::Operation,
};
use prost_types::Timestamp;
use tonic::Status;

/// The field whose whole numbers are written down.
pub(super) const FIELD: &str = "value";
/// The end of the root's name, at which the paths of documents begin.
const ROOT: &str = "/documents/";
/// The writes of one commit.
const WRITES_MAX: usize = 500;

/// Documents by their full names.
#[derive(Debug, Default)]
pub(super) struct Documents {
    held: BTreeMap<String, Document>,
    log: Log,
    /// The time of the last commit, in microseconds.
    last: i64,
    recognised: u64,
}

/// The values of [`FIELD`] that writes without transforms gave to documents, in order.
#[derive(Debug, Default)]
struct Log {
    entries: Vec<(String, String)>,
    entries_max: usize,
    is_cut: bool,
}

impl Documents {
    /// Documents whose log holds `entries_max` values.
    pub(super) fn with_log(entries_max: usize) -> Self {
        Self { log: Log { entries_max, ..Log::default() }, ..Self::default() }
    }

    /// The document of that full name.
    pub(super) fn get(&self, name: &str) -> Option<&Document> {
        self.held.get(name)
    }

    /// The paths and values that were set, in order; `None` if there were more than the log holds.
    pub(super) fn log(&self) -> Option<Vec<(String, String)>> {
        (!self.log.is_cut).then(|| self.log.entries.clone())
    }

    /// What documents hold in [`FIELD`], by their paths.
    pub(super) fn values(&self) -> BTreeMap<String, String> {
        let values = self.held.iter();
        values
            .filter_map(|(name, document)| {
                Some((path(name).to_owned(), number(&document.fields)?.to_string()))
            })
            .collect()
    }

    /// How many commits were refused because a document that they make was there.
    pub(super) fn recognised(&self) -> u64 {
        self.recognised
    }

    /// The time of a commit or a read: never the same twice for commits.
    pub(super) fn now(&self) -> Timestamp {
        timestamp(self.micros())
    }

    fn micros(&self) -> i64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(now.as_micros()).unwrap_or(i64::MAX).max(self.last + 1)
    }

    /// Applies all of `writes` or none.
    pub(super) fn commit(&mut self, writes: &[Write]) -> Result<CommitResponse, Status> {
        if writes.len() > WRITES_MAX {
            let message = format!("maximum {WRITES_MAX} writes allowed per request");
            return Err(Status::invalid_argument(message));
        }
        let micros = self.micros();
        let time = timestamp(micros);
        let mut changed: BTreeMap<String, Option<Document>> = BTreeMap::new();
        let (mut results, mut set) = (Vec::with_capacity(writes.len()), Vec::new());
        for write in writes {
            let name = name_of(write)?;
            let before = match changed.remove(name) {
                Some(changed) => changed,
                None => self.held.get(name).cloned(),
            };
            let checked = check(write.current_document, before.as_ref(), name);
            checked.inspect_err(|status| {
                self.recognised += u64::from(status.code() == tonic::Code::AlreadyExists);
            })?;
            let (after, transform_results) = applied(write, before, time)?;
            if let Some(document) = after.as_ref().filter(|_| write.update_transforms.is_empty())
                && let Some(value) = number(&document.fields)
            {
                set.push((path(name).to_owned(), value.to_string()));
            }
            changed.insert(name.to_owned(), after);
            results.push(WriteResult { update_time: Some(time), transform_results });
        }
        for (name, document) in changed {
            match document {
                Some(document) => drop(self.held.insert(name, document)),
                None => drop(self.held.remove(&name)),
            }
        }
        self.last = micros;
        self.log.add(set);
        Ok(CommitResponse { write_results: results, commit_time: Some(time) })
    }
}

impl Log {
    fn add(&mut self, mut entries: Vec<(String, String)>) {
        if self.entries.len() + entries.len() <= self.entries_max {
            self.entries.append(&mut entries);
        } else {
            self.is_cut = true;
        }
    }
}

fn timestamp(micros: i64) -> Timestamp {
    let nanos = i32::try_from(micros % 1_000_000 * 1_000).unwrap_or_default();
    Timestamp { seconds: micros / 1_000_000, nanos }
}

fn path(name: &str) -> &str {
    name.split_once(ROOT).map_or(name, |(_, path)| path)
}

fn number(fields: &BTreeMap<String, Value>) -> Option<i64> {
    match fields.get(FIELD)?.value_type {
        Some(ValueType::IntegerValue(number)) => Some(number),
        _ => None,
    }
}

fn name_of(write: &Write) -> Result<&str, Status> {
    match &write.operation {
        Some(Operation::Update(document)) => Ok(&document.name),
        Some(Operation::Delete(name)) => Ok(name),
        Some(Operation::Transform(_)) | None => Err(unknown("this operation")),
    }
}

fn unknown(what: &str) -> Status {
    Status::unimplemented(format!("this is only a stand-in, and does not know {what}"))
}

fn check(
    condition: Option<Precondition>,
    before: Option<&Document>,
    name: &str,
) -> Result<(), Status> {
    match (condition.and_then(|it| it.condition_type), before) {
        (None, _)
        | (Some(ConditionType::Exists(true)), Some(_))
        | (Some(ConditionType::Exists(false)), None) => Ok(()),
        (Some(ConditionType::Exists(false)), Some(_)) => {
            Err(Status::already_exists(format!("Document already exists: {name}")))
        }
        (Some(ConditionType::Exists(true) | ConditionType::UpdateTime(_)), None) => {
            Err(Status::not_found(format!("No document to update: {name}")))
        }
        (Some(ConditionType::UpdateTime(time)), Some(before)) => {
            if before.update_time == Some(time) {
                return Ok(());
            }
            let message = "the stored version does not match the required base version";
            Err(Status::failed_precondition(message))
        }
    }
}

/// What `write` makes of a document, and what its transforms made.
fn applied(
    write: &Write,
    before: Option<Document>,
    time: Timestamp,
) -> Result<(Option<Document>, Vec<Value>), Status> {
    let Some(Operation::Update(new)) = &write.operation else { return Ok((None, Vec::new())) };
    let create_time = before.as_ref().map_or(Some(time), |before| before.create_time);
    let mut fields = match &write.update_mask {
        None => new.fields.clone(),
        Some(DocumentMask { field_paths }) => {
            let mut fields = before.map(|before| before.fields).unwrap_or_default();
            for field in field_paths {
                match new.fields.get(top(field)?) {
                    Some(value) => drop(fields.insert(field.clone(), value.clone())),
                    None => drop(fields.remove(field)),
                }
            }
            fields
        }
    };
    let mut results = Vec::new();
    for FieldTransform { field_path, transform_type } in &write.update_transforms {
        let Some(TransformType::Increment(Value { value_type: Some(ValueType::IntegerValue(by)) })) =
            transform_type
        else {
            return Err(unknown("this transform"));
        };
        let held = match fields.get(top(field_path)?).and_then(|value| value.value_type.as_ref()) {
            Some(ValueType::IntegerValue(held)) => *held,
            _ => 0,
        };
        let sum = Value { value_type: Some(ValueType::IntegerValue(held.saturating_add(*by))) };
        fields.insert(field_path.clone(), sum.clone());
        results.push(sum);
    }
    let name = new.name.clone();
    Ok((Some(Document { name, fields, create_time, update_time: Some(time) }), results))
}

/// A field at the top of its document.
fn top(field: &str) -> Result<&str, Status> {
    if field.contains(['.', '`']) { Err(unknown("fields within fields")) } else { Ok(field) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(path: &str) -> String {
        format!("projects/p/databases/(default)/documents/{path}")
    }

    fn integer(number: i64) -> Value {
        Value { value_type: Some(ValueType::IntegerValue(number)) }
    }

    fn set(path: &str, value: i64) -> Write {
        let fields = [(FIELD.to_owned(), integer(value))].into();
        let document = Document { name: name(path), fields, ..Document::default() };
        Write { operation: Some(Operation::Update(document)), ..Write::default() }
    }

    fn create(path: &str) -> Write {
        let condition_type = Some(ConditionType::Exists(false));
        Write { current_document: Some(Precondition { condition_type }), ..set(path, 0) }
    }

    fn add(path: &str, by: i64) -> Write {
        let document = Document { name: name(path), ..Document::default() };
        let increment = FieldTransform {
            field_path: FIELD.to_owned(),
            transform_type: Some(TransformType::Increment(integer(by))),
        };
        Write {
            operation: Some(Operation::Update(document)),
            update_mask: Some(DocumentMask::default()),
            update_transforms: vec![increment],
            ..Write::default()
        }
    }

    fn pair(path: &str, value: &str) -> (String, String) {
        (path.to_owned(), value.to_owned())
    }

    #[test]
    fn a_commit_is_applied_as_a_whole_or_not_at_all() {
        let mut documents = Documents::with_log(10);
        documents.commit(&[create("m/1"), set("d/a", 1), add("d/n", 2)]).unwrap();
        let refused = documents.commit(&[set("d/a", 2), create("m/1"), add("d/n", 2)]).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::AlreadyExists);
        assert_eq!(documents.values()["d/a"], "1");
        assert_eq!(documents.values()["d/n"], "2");
        assert_eq!(documents.recognised(), 1);
        assert_eq!(documents.log().unwrap(), [pair("m/1", "0"), pair("d/a", "1")]);
    }

    #[test]
    fn writes_of_one_commit_see_one_another() {
        let mut documents = Documents::with_log(10);
        let gone = Write { operation: Some(Operation::Delete(name("d/a"))), ..Write::default() };
        let done = documents.commit(&[set("d/a", 1), add("d/a", 2), gone, add("d/a", 5)]).unwrap();
        assert_eq!(done.write_results[1].transform_results, [integer(3)]);
        assert_eq!(documents.values(), [pair("d/a", "5")].into());
    }

    #[test]
    fn fields_are_replaced_or_changed_as_the_mask_says() {
        let mut documents = Documents::with_log(10);
        let mut both = set("d/a", 1);
        if let Some(Operation::Update(document)) = &mut both.operation {
            document.fields.insert("other".to_owned(), integer(5));
        }
        let masked = |fields: &[&str], write: Write| {
            let field_paths = fields.iter().map(|field| (*field).to_owned()).collect();
            Write { update_mask: Some(DocumentMask { field_paths }), ..write }
        };
        let mut fields_after = |write: Write| {
            documents.commit(&[write]).unwrap();
            let fields = &documents.get(&name("d/a")).unwrap().fields;
            fields.keys().cloned().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(fields_after(both.clone()), "other value");
        assert_eq!(fields_after(masked(&["value"], set("d/a", 2))), "other value");
        assert_eq!(
            fields_after(masked(&["other"], set("d/a", 3))),
            "value",
            "it is not in the write"
        );
        assert_eq!(fields_after(both), "other value");
        assert_eq!(fields_after(set("d/a", 4)), "value");
    }

    #[test]
    fn times_rise_and_a_creation_is_remembered() {
        let mut documents = Documents::with_log(10);
        let first = documents.commit(&[set("d/a", 1)]).unwrap().commit_time;
        let second = documents.commit(&[set("d/a", 2)]).unwrap().commit_time;
        let order = |time: Option<Timestamp>| time.map(|time| (time.seconds, time.nanos));
        assert!(order(first) < order(second));
        let held = documents.get(&name("d/a")).unwrap();
        assert_eq!((held.create_time, held.update_time), (first, second));
    }

    #[test]
    fn a_log_owns_up_to_gaps() {
        let mut documents = Documents::with_log(1);
        documents.commit(&[set("d/a", 1)]).unwrap();
        assert!(documents.log().is_some());
        documents.commit(&[set("d/a", 2)]).unwrap();
        assert_eq!(documents.log(), None);
    }

    #[test]
    fn what_it_does_not_know_it_refuses() {
        let mut documents = Documents::with_log(10);
        let mask = |field: &str| Some(DocumentMask { field_paths: vec![field.to_owned()] });
        let nested = Write { update_mask: mask("a.b"), ..set("d/a", 1) };
        let mut other = add("d/a", 1);
        other.update_transforms[0].transform_type = Some(TransformType::Maximum(integer(1)));
        for write in [nested, other, Write::default()] {
            let refused = documents.commit(&[write]).unwrap_err();
            assert_eq!(refused.code(), tonic::Code::Unimplemented);
        }
        assert!(documents.values().is_empty());
    }
}
