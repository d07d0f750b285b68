//! Transitions as they are kept on disk: JSON, so that a later version reads an earlier one's.

use fusebox_state::breaker::TransitionRecord;

/// The most bytes that a record takes in the store.
const MAX: usize = 3_500;

/// The bytes of a record. Errors are left out, oldest first, until it fits.
pub(crate) fn encode(record: &TransitionRecord) -> Vec<u8> {
    let mut record = record.clone();
    loop {
        let bytes = serde_json::to_vec(&record).unwrap_or_default();
        if bytes.len() <= MAX || record.transition.last_errors.is_empty() {
            return bytes;
        }
        record.transition.last_errors.remove(0);
    }
}

/// The record of some bytes; `None` where they are not one.
pub(crate) fn decode(bytes: &[u8]) -> Option<TransitionRecord> {
    serde_json::from_slice(bytes).ok()
}
