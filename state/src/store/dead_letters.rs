//! Dead letters: calls that replay gave up on, kept with the reason until an operator acts.
//!
//! The call stays in its place, under `q`; a mark under `d`+sequence makes it a dead letter. So
//! burying is one insert, and a crash leaves either a pending call or a whole dead letter.

use super::{
    calls::{DeadMark, DeadReason},
    error::StoreError,
    keys::cut,
    record::{self, DeadRecord, Draft, Kind},
};
use crate::{units::UnixMillis, words::Words};

/// Longest detail kept, in bytes; what is longer is cut.
const DETAIL_MAX: usize = 2048;

/// The value of the mark that buries `seq`.
pub(super) fn encode(seq: u64, mark: &DeadMark) -> Result<Draft, StoreError> {
    let detail = mark.detail.to_kept();
    let detail = cut(&detail, DETAIL_MAX);
    let record = DeadRecord {
        seq,
        reason: mark.reason.to_u8(),
        detail,
        at: mark.at.get(),
        attempts: mark.attempts,
    };
    record::seal(Kind::Dead, &record, 32 + detail.len()).ok_or(StoreError::TooLarge {
        what: "dead-letter mark",
        bytes: detail.len() as u64,
        limit: DETAIL_MAX as u64,
    })
}

/// The mark of `seq`; `None` if it is damaged.
pub(super) fn decode(seq: u64, value: &[u8]) -> Option<DeadMark> {
    let sealed = record::open(Kind::Dead, value).ok()?;
    let record: DeadRecord<'_> = sealed.read().ok()?;
    Some(DeadMark {
        reason: DeadReason::from_u8(record.reason).filter(|_| record.seq == seq)?,
        detail: Words::from_kept(record.detail),
        at: UnixMillis::new(record.at),
        attempts: record.attempts,
    })
}

/// The mark of `seq`. A call whose mark is damaged stays dead, for an unknown reason: somebody gave
/// up on it, and replaying it would be a guess.
pub(super) fn decode_or_undecodable(seq: u64, value: &[u8]) -> DeadMark {
    decode(seq, value).unwrap_or_else(|| DeadMark {
        reason: DeadReason::Undecodable,
        detail: "its dead-letter mark is damaged".into(),
        at: UnixMillis::default(),
        attempts: 0,
    })
}
