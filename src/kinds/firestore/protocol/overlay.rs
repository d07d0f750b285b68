//! The value of a document after the writes that wait in its lane.
//!
//! One function from a lane's writes to a value. What was before them is not known here, so each queued
//! commit is carried out in every *world* that is possible: at first the document is absent, or it is there
//! and its fields are not known. The value is determined if one world is left and its fields are known. If that is
//! not so and the backend cannot be asked, they are carried out once more, upon what is cached of the document.
//!
//! | write | on a known document | on a known absence | on fields that are not known |
//! | --- | --- | --- | --- |
//! | set | replaced | made | made |
//! | set with merge | changed | made | not known |
//! | update | changed | refused | not known |
//! | create | refused | made | refused |
//! | delete | gone | gone | gone |
//! | transforms | applied after the fields | applied after the fields | as their write |
//!
//! **A commit is all or nothing.** It is refused if one precondition fails, or if it makes the document larger
//! than Firestore takes, and then it changes nothing. Whether another document exists is known only from
//! earlier writes of the same commit, because writes to that document alone are not in this lane; if a
//! precondition on it is left open, both what was and what the commit makes are possible.
//!
//! **What it costs is bounded**, whatever a write has in it: the effect of a commit is not known if a transform puts a
//! value deeper than a document may be, or if its transforms compare more elements of arrays than [`COMPARED_MAX`].
//!
//! **Transforms** are Firestore's, as its documentation has them and Google's emulator does them:
//! - numbers are compared by their exact value, an integer with a double too; 0, 0.0 and -0.0 are equal, and
//!   NaN equals NaN. Maps and arrays are equal if their elements are.
//! - `array_union` adds what nothing equals, `array_remove` takes out all that is equal.
//! - `minimum` and `maximum` keep the old number if both are equal, and are NaN if either is.
//! - `increment` stops at the largest and the smallest integer; with a double it adds as doubles.
//! - timestamps are cut to microseconds when they are stored.
//!
//! The npm emulator differs: its set keeps fields that it should replace, it refuses or mistakes transforms of
//! nested fields and other types, does not take out masked fields that are missing, and applies a refused
//! commit's first writes.

use std::{
    cmp::Ordering,
    collections::{HashMap, HashSet},
};

use bytes::Bytes;
use fusebox_actors::connector::{QueuedWrite, Slot};
use fusebox_state::UnixMillis;
use googleapis_tonic_google_firestore_v1::google::firestore::v1::{
    ArrayValue, Document, Value, Write,
    document_transform::{FieldTransform, field_transform::TransformType},
    precondition::ConditionType,
    value::ValueType,
    write::Operation,
};
use prost::Message;
use prost_types::Timestamp;

use super::{
    cache, limits,
    names::Root,
    path, same,
    value::{self, DEPTH_MAX, Fields},
    wire::{self, Call, Found, Op},
};

/// So many worlds are distinguished; if there would be more, nothing is known.
const WORLDS_MAX: usize = 8;
/// Elements of so many bytes, by Firestore's formula, are compared for one commit: of a few arrays as large as any.
const COMPARED_MAX: usize = 4 * limits::DOCUMENT_MAX;

/// What the document may be.
#[derive(Clone, Debug)]
enum World {
    Absent,
    /// It is there; `None` if its fields are not known.
    Present(Option<Known>),
}

/// A document whose fields are known.
#[derive(Clone, Debug)]
struct Known {
    fields: Fields,
    /// Whether a time in it is a guess at what the server will write.
    estimated: bool,
    /// When it was created, as far as the server has said so.
    created: Option<Timestamp>,
}

impl Known {
    /// What a write makes without regard to the fields that were there before.
    fn new(fields: Fields, created: Option<Timestamp>) -> Self {
        Self { fields, estimated: false, created }
    }
}

impl World {
    fn exists(&self) -> bool {
        matches!(self, Self::Present(_))
    }

    fn created(&self) -> Option<Timestamp> {
        match self {
            Self::Present(Some(known)) => known.created,
            Self::Present(None) | Self::Absent => None,
        }
    }

    /// Whether both are the same, NaN included, whenever they were created.
    fn is(&self, other: &Self) -> bool {
        let encoded = |known: &Known| {
            let fields = known.fields.clone();
            (Document { fields, ..Document::default() }.encode_to_vec(), known.estimated)
        };
        match (self, other) {
            (Self::Present(one), Self::Present(other)) => {
                one.as_ref().map(encoded) == other.as_ref().map(encoded)
            }
            (one, other) => one.exists() == other.exists(),
        }
    }
}

/// Everything that the document may be, if nothing is known.
fn anything() -> Vec<World> {
    vec![World::Absent, World::Present(None)]
}

/// What is known of one document, commit by commit.
#[derive(Clone, Debug)]
pub(crate) struct Followed {
    path: String,
    /// `None` after a commit whose effect is not known.
    worlds: Option<Vec<World>>,
    /// When the last commit was accepted.
    accepted_at: Option<UnixMillis>,
}

impl Followed {
    /// Begins with nothing known of the document that `slot` reads. `None` if it is not known who may see that.
    pub(crate) fn of(slot: &Slot) -> Option<Self> {
        let path = cache::own_path_of(slot)?.to_owned();
        Some(Self { path, worlds: Some(anything()), accepted_at: None })
    }

    /// Begins with what is cached of the document that `slot` reads.
    pub(crate) fn over(slot: &Slot, cached: &Bytes) -> Option<Self> {
        let found: Found = wire::decode(cached).ok()?;
        let world = match found.document {
            Some(Document { fields, create_time: created, .. }) => {
                World::Present(Some(Known { fields, estimated: found.estimated, created }))
            }
            None => World::Absent,
        };
        Some(Self { worlds: Some(vec![world]), ..Self::of(slot)? })
    }

    /// Whether `slot` reads this document.
    pub(crate) fn is_of(&self, slot: &Slot) -> bool {
        cache::own_path_of(slot) == Some(self.path.as_str())
    }

    /// Goes on with `queued`. References are shown as `root` will complete them, so that a document reads the same
    /// before and after. Returns whether the document would be known as well if nothing had been known before; if
    /// fields are known, it does not say so.
    pub(crate) fn write(&mut self, queued: &QueuedWrite, root: Option<&Root>) -> bool {
        self.accepted_at = self.accepted_at.max(Some(queued.accepted_at));
        let Some(worlds) = &self.worlds else { return false };
        let Some(commit) = Commit::read(queued, root) else {
            self.worlds = None;
            return false;
        };
        let next = commit.after(worlds, &self.path);
        let bare = |worlds: &[World]| {
            let kinds = |world: &World| match world {
                World::Absent => Some(false),
                World::Present(None) => Some(true),
                World::Present(Some(_)) => None,
            };
            let mut kinds = worlds.iter().map(kinds).collect::<Option<Vec<bool>>>()?;
            kinds.sort_unstable();
            Some(kinds)
        };
        let known = next.as_deref().and_then(bare);
        let alone = known.is_some()
            && known == commit.after(&anything(), &self.path).as_deref().and_then(bare);
        self.worlds = next;
        alone
    }

    /// The document's entry, or `None` if what is known does not determine it.
    pub(crate) fn reply(&self) -> Option<Bytes> {
        let known = match self.worlds.as_deref()? {
            [World::Absent] => None,
            [World::Present(known)] => Some(known.as_ref()?),
            _ => return None,
        };
        let estimated = known.is_some_and(|known| known.estimated);
        let document = known.map(|known| Document {
            fields: known.fields.clone(),
            create_time: known.created,
            ..Document::default()
        });
        let accepted_at = self.accepted_at.map(value::time);
        Some(wire::encode(&Found { path: self.path.clone(), document, estimated, accepted_at }))
    }

    /// Bytes that it holds, roughly.
    pub(crate) fn bytes(&self) -> usize {
        let fields = |world: &World| match world {
            World::Present(Some(known)) => {
                let size = |(name, value): (&String, &Value)| name.len() + value.encoded_len() + 64;
                known.fields.iter().map(size).sum::<usize>()
            }
            World::Present(None) | World::Absent => 0,
        };
        self.path.len() + self.worlds.iter().flatten().map(fields).sum::<usize>()
    }
}

/// A queued commit.
struct Commit {
    names: Vec<String>,
    writes: Vec<Write>,
    accepted_at: UnixMillis,
}

impl Commit {
    fn read(queued: &QueuedWrite, root: Option<&Root>) -> Option<Self> {
        let call: Call = wire::decode(&queued.body).ok()?;
        let Some(Op::Commit(mut commit)) = call.op else { return None };
        let names = commit.writes.iter().map(|write| wire::document_of(write).to_owned()).collect();
        for write in &mut commit.writes {
            if let Some(root) = root {
                root.complete_write(write);
            }
            cut_times(write);
        }
        Some(Self { names, writes: commit.writes, accepted_at: queued.accepted_at })
    }

    /// What it may make of the document at `path`. `None` if the effect of a write is not known.
    fn after(&self, worlds: &[World], path: &str) -> Option<Vec<World>> {
        let mut next: Vec<World> = Vec::new();
        for world in worlds {
            let writes = self.names.iter().map(String::as_str).zip(&self.writes);
            for after in committed(world, path, writes, self.accepted_at)? {
                if !next.iter().any(|world| world.is(&after)) {
                    next.push(after);
                }
            }
        }
        Some(if next.len() > WORLDS_MAX { anything() } else { next })
    }
}

/// What a commit of `writes` may make of the document at `path`. `None` if the effect of a write is not known.
fn committed<'a>(
    before: &World,
    path: &str,
    writes: impl Iterator<Item = (&'a str, &'a Write)>,
    accepted_at: UnixMillis,
) -> Option<Vec<World>> {
    let (mut after, mut certain) = (before.clone(), true);
    let mut others: HashMap<&str, bool> = HashMap::new();
    let mut compared_left = COMPARED_MAX;
    for (name, write) in writes {
        let exists = if name == path { Some(after.exists()) } else { others.get(name).copied() };
        match write.current_document.as_ref().and_then(|it| it.condition_type.as_ref()) {
            Some(ConditionType::Exists(wanted)) => match exists {
                Some(exists) if exists == *wanted => {}
                Some(_) => return Some(vec![before.clone()]),
                None => certain = false,
            },
            Some(ConditionType::UpdateTime(_)) => certain = false,
            None => {}
        }
        if name == path {
            after = written(after, write, accepted_at, &mut compared_left)?;
        } else {
            others.insert(name, !matches!(write.operation, Some(Operation::Delete(_))));
        }
    }
    if let World::Present(Some(known)) = &after
        && limits::document_size(path, &known.fields) > limits::DOCUMENT_MAX
    {
        return Some(vec![before.clone()]);
    }
    Some(if certain { vec![after] } else { vec![before.clone(), after] })
}

/// What the write makes of the document. `None` if the effect of the write itself is not known.
fn written(
    before: World,
    write: &Write,
    accepted_at: UnixMillis,
    compared_left: &mut usize,
) -> Option<World> {
    let new = match &write.operation {
        Some(Operation::Update(document)) => document,
        Some(Operation::Delete(_)) => return Some(World::Absent),
        Some(Operation::Transform(_)) | None => return None,
    };
    let mut known = match (&write.update_mask, before) {
        (None, before) => Known::new(new.fields.clone(), before.created()),
        (Some(_), World::Present(None)) => return Some(World::Present(None)),
        (Some(mask), before) => {
            let mut known = match before {
                World::Present(Some(known)) => known,
                World::Present(None) | World::Absent => Known::new(Fields::new(), None),
            };
            let paths = mask.field_paths.iter().map(|field| path::fields(field).ok());
            for parts in path::outermost(paths.collect::<Option<_>>()?) {
                let value = value::at_path(&new.fields, &parts).cloned();
                put(&mut known.fields, &parts, value);
            }
            known
        }
    };
    for FieldTransform { field_path, transform_type } in &write.update_transforms {
        let (parts, transform) = (path::fields(field_path).ok()?, transform_type.as_ref()?);
        let above = parts.len().saturating_sub(1);
        if above > DEPTH_MAX {
            return None;
        }
        let old = value::at_path(&known.fields, &parts);
        *compared_left = compared_left.checked_sub(compared(transform, old))?;
        let new = transformed(transform, old, accepted_at)?;
        if above + depth(&new) > DEPTH_MAX {
            return None;
        }
        put(&mut known.fields, &parts, Some(new));
        known.estimated |= matches!(transform, TransformType::SetToServerValue(_));
    }
    Some(World::Present(Some(known)))
}

/// Cuts the times in a write as they are cut when they are stored.
fn cut_times(write: &mut Write) {
    if let Some(Operation::Update(document)) = &mut write.operation {
        document.fields.values_mut().for_each(cut);
    }
    for transform in &mut write.update_transforms {
        if let Some(
            TransformType::AppendMissingElements(array) | TransformType::RemoveAllFromArray(array),
        ) = &mut transform.transform_type
        {
            array.values.iter_mut().for_each(cut);
        }
    }
}

fn cut(value: &mut Value) {
    match &mut value.value_type {
        Some(ValueType::TimestampValue(time)) => time.nanos -= time.nanos % 1_000,
        Some(ValueType::ArrayValue(array)) => array.values.iter_mut().for_each(cut),
        Some(ValueType::MapValue(map)) => map.fields.values_mut().for_each(cut),
        _ => {}
    }
}

/// Puts a value at the path `parts`, making maps on the way, or takes it out if there is none.
fn put(fields: &mut Fields, parts: &[String], new: Option<Value>) {
    let Some((first, rest)) = parts.split_first() else { return };
    if rest.is_empty() {
        match new {
            Some(new) => drop(fields.insert(first.clone(), new)),
            None => drop(fields.remove(first)),
        }
        return;
    }
    if new.is_none() && !fields.contains_key(first) {
        return;
    }
    let empty = || value::value(ValueType::MapValue(value::empty_map()));
    let inner = fields.entry(first.clone()).or_insert_with(empty);
    if !matches!(inner.value_type, Some(ValueType::MapValue(_))) {
        if new.is_none() {
            return;
        }
        *inner = empty();
    }
    if let Some(ValueType::MapValue(map)) = &mut inner.value_type {
        put(&mut map.fields, rest, new);
    }
}

/// How many maps and arrays are within one another in a value.
fn depth(value: &Value) -> usize {
    match &value.value_type {
        Some(ValueType::ArrayValue(array)) => {
            1 + array.values.iter().map(depth).max().unwrap_or_default()
        }
        Some(ValueType::MapValue(map)) => {
            1 + map.fields.values().map(depth).max().unwrap_or_default()
        }
        _ => 0,
    }
}

/// How large the elements are that a transform of `old` compares. Each counts for something.
fn compared(transform: &TransformType, old: Option<&Value>) -> usize {
    let (TransformType::AppendMissingElements(items) | TransformType::RemoveAllFromArray(items)) =
        transform
    else {
        return 0;
    };
    let size = |item: &Value| 1 + limits::value_size(item);
    let old = old.and_then(|old| match &old.value_type {
        Some(ValueType::ArrayValue(array)) => Some(array.values.iter().map(size).sum::<usize>()),
        _ => None,
    });
    old.unwrap_or_default() + items.values.iter().map(size).sum::<usize>()
}

/// What the server will make of `old`; a time is that of acceptance, as an estimate.
fn transformed(
    transform: &TransformType,
    old: Option<&Value>,
    accepted_at: UnixMillis,
) -> Option<Value> {
    let value_type = match transform {
        TransformType::SetToServerValue(_) => ValueType::TimestampValue(value::time(accepted_at)),
        TransformType::Increment(by) => match (number(old), by.value_type.as_ref()?) {
            (Some(ValueType::IntegerValue(old)), ValueType::IntegerValue(by)) => {
                ValueType::IntegerValue(old.saturating_add(*by))
            }
            (Some(old), by) => ValueType::DoubleValue(double(&old)? + double(by)?),
            (None, by) => by.clone(),
        },
        TransformType::Maximum(with) => extreme(number(old), with, Ordering::Greater)?,
        TransformType::Minimum(with) => extreme(number(old), with, Ordering::Less)?,
        TransformType::AppendMissingElements(items) => {
            let mut values = array(old);
            let mut there: HashSet<Vec<u8>> = values.iter().map(same::key).collect();
            let missing = items.values.iter().filter(|item| there.insert(same::key(item)));
            values.extend(missing.cloned());
            ValueType::ArrayValue(ArrayValue { values })
        }
        TransformType::RemoveAllFromArray(items) => {
            let mut values = array(old);
            let gone: HashSet<Vec<u8>> = items.values.iter().map(same::key).collect();
            values.retain(|value| !gone.contains(&same::key(value)));
            ValueType::ArrayValue(ArrayValue { values })
        }
    };
    Some(value::value(value_type))
}

/// `with`, if it is on that side of the old number or there is none; else the old one. NaN outdoes all.
fn extreme(old: Option<ValueType>, with: &Value, side: Ordering) -> Option<ValueType> {
    let with = with.value_type.as_ref()?;
    let Some(old) = old.filter(|_| !is_nan(with)) else { return Some(with.clone()) };
    Some(if !is_nan(&old) && compare(with, &old) == Some(side) { with.clone() } else { old })
}

fn is_nan(number: &ValueType) -> bool {
    matches!(number, ValueType::DoubleValue(double) if double.is_nan())
}

/// The order of two numbers by their exact values; `None` if one is NaN or no number.
fn compare(one: &ValueType, other: &ValueType) -> Option<Ordering> {
    match (one, other) {
        (ValueType::IntegerValue(one), ValueType::IntegerValue(other)) => Some(one.cmp(other)),
        (ValueType::DoubleValue(one), ValueType::DoubleValue(other)) => one.partial_cmp(other),
        (ValueType::IntegerValue(one), ValueType::DoubleValue(other)) => mixed(*one, *other),
        (ValueType::DoubleValue(one), ValueType::IntegerValue(other)) => {
            mixed(*other, *one).map(Ordering::reverse)
        }
        _ => None,
    }
}

/// The order of an integer and a double. Not by way of a double, which rounds integers above 2^53.
fn mixed(integer: i64, double: f64) -> Option<Ordering> {
    /// 2^63, the first double above every integer.
    const ABOVE: f64 = 9_223_372_036_854_775_808.0;
    if double.is_nan() {
        return None;
    }
    if double >= ABOVE {
        return Some(Ordering::Less);
    }
    if double < -ABOVE {
        return Some(Ordering::Greater);
    }
    #[expect(clippy::cast_possible_truncation, reason = "it is whole, and within the integers")]
    let whole = double.trunc() as i64;
    Some(integer.cmp(&whole).then(0.0_f64.partial_cmp(&double.fract())?))
}

fn number(value: Option<&Value>) -> Option<ValueType> {
    value?
        .value_type
        .clone()
        .filter(|it| matches!(it, ValueType::IntegerValue(_) | ValueType::DoubleValue(_)))
}

#[expect(clippy::cast_precision_loss, reason = "as Firestore adds an integer to a double")]
fn double(number: &ValueType) -> Option<f64> {
    match number {
        ValueType::IntegerValue(integer) => Some(*integer as f64),
        ValueType::DoubleValue(double) => Some(*double),
        _ => None,
    }
}

fn array(value: Option<&Value>) -> Vec<Value> {
    match value.and_then(|value| value.value_type.as_ref()) {
        Some(ValueType::ArrayValue(array)) => array.values.clone(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests;
