//! The last thousand history records of a backend, opaque to the store, in a ring.
//!
//! Record `n` is under `t`+n; writing it removes record `n - 1000`. A record rides along with the
//! next commit and nobody waits for it: a crash may lose the newest few.

use super::{
    keys::{self, key},
    record::{self, Draft, HistoryRecord, Kind},
    tree::Tree,
};

/// Records kept.
pub(super) const KEPT: u64 = 1_000;

/// The value of record `number`; `None` if it is too large to be kept.
pub(super) fn encode(number: u64, record: &[u8]) -> Option<Draft> {
    record::seal(Kind::History, &HistoryRecord { number, record }, record.len() + 16)
}

/// The newest `limit` records that are whole, newest last.
pub(super) fn read(db: &impl Tree, limit: usize) -> Vec<Vec<u8>> {
    let keys = db.keys(&[keys::HISTORY]).unwrap_or_default();
    let mut records: Vec<Vec<u8>> = keys
        .iter()
        .rev()
        .filter_map(|at| {
            let value = db.get(at).ok()??;
            let sealed = record::open(Kind::History, &value).ok()?;
            let record: HistoryRecord<'_> = sealed.read().ok()?;
            (at.as_ref() == key(keys::HISTORY, record.number)).then(|| record.record.to_vec())
        })
        .take(limit)
        .collect();
    records.reverse();
    records
}
