//! Notes of sending: what is written beside a call, and synced, before the call goes on the wire.
//!
//! A call that is not absolute and has a note may have been applied; after a crash it is in doubt. A note is
//! taken back only when it is proven that nothing was sent.
//!
//! Calls that are sent as one (a *group*) share one note. It is beside the first of them, names all of them in
//! order, and holds the one token that they have, so that after a crash exactly the same group is sent again:
//!
//! ```text
//!  noted ──────▶ sent ──┬─ nothing was written, proven ─▶ note taken back: each is on its own again
//!                       ├─ applied ─▶ note says so ─▶ members removed, the first of them last
//!                       └─ in doubt ─▶ the note stays
//! ```
//!
//! # What a crash leaves
//! | crash | the next open finds |
//! | --- | --- |
//! | before the note is synced | calls without a note: nothing was sent |
//! | after that | the note and all members: the group is in doubt |
//! | between the note that it was applied and the last removal | the members that are left, which it removes |
//! | within the last removal, if the first member is in a pack | the same, without the first member: its first commit records that the others are gone, since no head has the note any more |
//! | none, and a member is missing although the note does not say applied | damage: the others are in doubt, and no proof can be had, as their insert cannot be made again. If it is the first one, a rebuild has put the note beside the next |
//!
//! A note without a group and without evidence is written as the first release wrote it; the others are of a kind
//! of their own, which that release refuses without touching anything.

use bytes::Bytes;

use super::{
    error::StoreError,
    record::{self, Draft, GroupRecord, Kind, NoteRecord, SendingRecord, Unreadable},
};
use crate::units::{OpId, UnixMillis};

/// The most bytes of evidence that are kept.
pub const EVIDENCE_MAX: usize = 1536;
/// The most calls of one group.
pub const MEMBERS_MAX: usize = 1000;

/// What is noted of a sending.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Note {
    /// When it was first sent.
    pub first_sent_at: UnixMillis,
    /// What the connector must know to prove later whether it was applied; at most [`EVIDENCE_MAX`] bytes.
    pub evidence: Bytes,
    /// The calls that are sent as one, this one first.
    pub group: Option<GroupNote>,
}

/// Calls that are sent as one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupNote {
    /// Their token.
    pub token: OpId,
    /// Their sequences, ascending; at most [`MEMBERS_MAX`].
    pub members: Vec<u64>,
    /// The backend has applied them: what is left of them is to be removed.
    pub applied: bool,
}

/// The value of the note beside `seq`.
pub(super) fn encode(seq: u64, note: &Note) -> Result<Draft, StoreError> {
    let too_large = || StoreError::TooLarge {
        what: "note of sending",
        bytes: note.evidence.len() as u64,
        limit: EVIDENCE_MAX as u64,
    };
    let first_sent_at = note.first_sent_at.get();
    if note.evidence.is_empty() && note.group.is_none() {
        return record::seal(Kind::Sending, &SendingRecord { seq, first_sent_at }, 24)
            .ok_or_else(too_large);
    }
    if note.evidence.len() > EVIDENCE_MAX
        || note.group.as_ref().is_some_and(|group| group.members.len() > MEMBERS_MAX)
    {
        return Err(too_large());
    }
    let record = NoteRecord {
        seq,
        first_sent_at,
        evidence: &note.evidence,
        group: note.group.as_ref().map(|group| GroupRecord {
            token: group.token.to_u128(),
            gaps: gaps(&group.members),
            applied: group.applied,
        }),
    };
    record::seal(Kind::Note, &record, 2048).ok_or_else(too_large)
}

/// The note beside `seq`.
pub(super) fn decode(seq: u64, value: &[u8]) -> Result<Note, Unreadable> {
    let sealed = record::peel(value)?;
    if sealed.length != value.len() {
        return Err(Unreadable::Damaged("bytes follow"));
    }
    let other = Unreadable::Damaged("contains another sequence than its key says");
    if sealed.kind == Kind::Sending {
        let record: SendingRecord = sealed.read()?;
        if record.seq != seq {
            return Err(other);
        }
        return Ok(Note {
            first_sent_at: UnixMillis::new(record.first_sent_at),
            ..Note::default()
        });
    }
    let sealed = record::open(Kind::Note, value)?;
    let record: NoteRecord<'_> = sealed.read()?;
    if record.seq != seq {
        return Err(other);
    }
    Ok(Note {
        first_sent_at: UnixMillis::new(record.first_sent_at),
        evidence: Bytes::copy_from_slice(record.evidence),
        group: record.group.map(|group| GroupNote {
            token: OpId::from_u128(group.token),
            members: members(&group.gaps),
            applied: group.applied,
        }),
    })
}

/// Ascending sequences as the first and the distances, which are small.
fn gaps(members: &[u64]) -> Vec<u64> {
    let mut before = 0;
    members
        .iter()
        .map(|member| {
            let gap = member.saturating_sub(before);
            before = *member;
            gap
        })
        .collect()
}

fn members(gaps: &[u64]) -> Vec<u64> {
    let mut member = 0_u64;
    gaps.iter()
        .map(|gap| {
            member = member.saturating_add(*gap);
            member
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(members: Vec<u64>) -> GroupNote {
        GroupNote { token: OpId::from_u128(9), members, applied: false }
    }

    #[test]
    fn a_note_comes_back_as_it_was_written() {
        for note in [
            Note { first_sent_at: UnixMillis::new(5), ..Note::default() },
            Note { evidence: Bytes::from_static(b"baseline"), ..Note::default() },
            Note { group: Some(group(vec![7, 8, 1_000, u64::MAX])), ..Note::default() },
        ] {
            assert_eq!(decode(7, &encode(7, &note).unwrap().stamp(3)).unwrap(), note);
            assert!(decode(8, &encode(7, &note).unwrap().stamp(3)).is_err());
        }
    }

    #[test]
    fn the_largest_note_fits_a_value_and_a_larger_one_is_refused() {
        let members = |count: u64| (1..=count).map(|n| (1 << 40) + n * 200).collect::<Vec<_>>();
        let evidence = Bytes::from(vec![1; EVIDENCE_MAX]);
        let note = |count| Note {
            evidence: evidence.clone(),
            group: Some(group(members(count))),
            ..Note::default()
        };
        assert!(encode(1, &note(1_000)).is_ok());
        assert!(encode(1, &note(1_001)).is_err());
        let more = Note { evidence: vec![1; EVIDENCE_MAX + 1].into(), ..Note::default() };
        assert!(encode(1, &more).is_err());
    }

    #[test]
    fn a_note_without_more_is_what_the_first_release_wrote() {
        let note = Note { first_sent_at: UnixMillis::new(5), ..Note::default() };
        let value = encode(7, &note).unwrap().stamp(3);
        assert_eq!(record::peel(&value).unwrap().kind, Kind::Sending);
    }
}
