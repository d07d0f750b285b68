//! Facts: small named values that outlive the process, such as a breaker's memory.

use super::{
    error::StoreError,
    record::{self, Draft, FactRecord, Kind, VALUE_MAX},
    tree::Tree,
};

/// Prefix of the facts.
pub(super) const PREFIX: u8 = b'f';

/// The key of a fact.
pub(super) fn key(name: &str) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + name.len());
    key.push(PREFIX);
    key.extend_from_slice(name.as_bytes());
    key
}

/// The name in a key that [`key`] made.
pub(super) fn name_of(key: &[u8]) -> Option<&str> {
    let (_, name) = key.split_first()?;
    std::str::from_utf8(name).ok()
}

/// The value of a fact.
pub(super) fn encode(name: &str, value: &[u8]) -> Result<Draft, StoreError> {
    record::seal(Kind::Fact, &FactRecord { name, value }, name.len() + value.len() + 8).ok_or(
        StoreError::TooLarge {
            what: "fact",
            bytes: value.len() as u64,
            limit: VALUE_MAX as u64 - 256,
        },
    )
}

/// Reads a fact; `None` if there is none, or none that is whole.
pub(super) fn read(db: &impl Tree, name: &str) -> Option<Vec<u8>> {
    let value = db.get(&key(name)).ok().flatten()?;
    let sealed = record::open(Kind::Fact, &value).ok()?;
    let record: FactRecord<'_> = sealed.read().ok()?;
    (record.name == name).then(|| record.value.to_vec())
}
