//! Dead letters: calls that replay gave up on, kept with the reason until an operator acts.
//!
//! The call stays where it lies, under `q`; a mark under `d`+sequence makes it a dead letter. So
//! burying is one insert, and a crash leaves either a pending call or a whole dead letter.

use super::{
    error::StoreError,
    queue::cut,
    record::{self, DeadRecord, Draft, Kind},
};
use crate::units::UnixMillis;

/// Prefix of the marks.
pub(super) const PREFIX: u8 = b'd';
/// Longest detail kept, in bytes; what is longer is cut.
const DETAIL_MAX: usize = 2048;

/// Why a call became a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DeadReason {
    /// The backend refuses it for good.
    Rejected,
    /// Its time was over. No release writes this; a mark that says so is still read.
    Expired,
    /// It may have been applied, and nothing lets the backend say so.
    Ambiguous,
    /// Its record, or its mark, does not decode.
    Undecodable,
    /// Too many replies of no known class.
    GaveUp,
}

impl DeadReason {
    const fn to_u8(self) -> u8 {
        match self {
            Self::Rejected => 0,
            Self::Expired => 1,
            Self::Ambiguous => 2,
            Self::Undecodable => 3,
            Self::GaveUp => 4,
        }
    }

    const fn from_u8(byte: u8) -> Option<Self> {
        Some(match byte {
            0 => Self::Rejected,
            1 => Self::Expired,
            2 => Self::Ambiguous,
            3 => Self::Undecodable,
            4 => Self::GaveUp,
            _ => return None,
        })
    }
}

/// What is kept beside a dead letter.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct DeadMark {
    /// Why replay gave up.
    pub reason: DeadReason,
    /// The backend's words, or ours; cut at 2,048 bytes.
    pub detail: String,
    /// When it was buried.
    pub at: UnixMillis,
    /// Attempts made by replay.
    pub attempts: u32,
}

/// The value of the mark that buries `seq`.
pub(super) fn encode(seq: u64, mark: &DeadMark) -> Result<Draft, StoreError> {
    let detail = cut(&mark.detail, DETAIL_MAX);
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

/// The mark of `seq`; `None` where it is damaged.
pub(super) fn decode(seq: u64, value: &[u8]) -> Option<DeadMark> {
    let record: DeadRecord<'_> = record::open(Kind::Dead, value).ok()?;
    Some(DeadMark {
        reason: DeadReason::from_u8(record.reason).filter(|_| record.seq == seq)?,
        detail: record.detail.to_owned(),
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
