//! Calls that are too large to hold: stored piece by piece before their header, and read back so.
//!
//! ```text
//!  put_piece 0 ─▶ put_piece 1 ─▶ … ─▶ append_stored (the header)          every piece is synced before
//!        └────────────┴──▶ drop_pieces, or a crash: chunks without a      the next one is asked for
//!                          header, swept by the next open
//! ```
//!
//! An upload belongs to one incarnation of the store: if it is rebuilt or opened again in between, its
//! chunks are leftovers there, and what follows ends with `Failed`. Nothing is acknowledged before the
//! header, so nothing acknowledged is lost by that.

use sled::IVec;

use super::{
    apply::{Applier, Failure, GROUP_BYTES},
    command::{Command, Ticket},
    error::StoreError,
    keys,
    ledger::Says,
    queue,
    record::{CHUNK_BODY, Draft},
    tree::Tree,
};

/// Bytes of every piece but the last.
pub const PIECE_BYTES: usize = 16 * CHUNK_BODY;
/// Chunks of a full piece.
pub(super) const PIECE_CHUNKS: u32 = 16;

impl Applier {
    /// Writes the chunks of a piece, spread over groups if they do not fit one.
    pub(super) fn put_piece(
        &mut self,
        db: &impl Tree,
        command: Command,
    ) -> Result<Option<Command>, Failure> {
        let Command::Piece { seq, first, data, mut written, ticket } = command else {
            return Ok(None);
        };
        if let Some(refusal) = self.group.refusal.clone() {
            self.settle(ticket, Err(refusal));
            return Ok(None);
        }
        if first == 0 {
            self.uploads.insert(seq);
            self.lower_floor(seq);
        } else if !self.uploads.contains(&seq) {
            self.settle(ticket, Err(rebuilt()));
            return Ok(None);
        }
        while let Some(value) = queue::piece_value(seq, first, written, &data) {
            if self.group.spent >= GROUP_BYTES {
                return Ok(Some(Command::Piece { seq, first, data, written, ticket }));
            }
            if let Err(failure) =
                self.insert(db, &keys::chunk_key(seq, first + written), value, Says::Itself)
            {
                self.settle(ticket, Ok(()));
                return Err(failure);
            }
            written += 1;
        }
        self.settle(ticket, Ok(()));
        Ok(None)
    }

    /// Writes the header of a body that was put.
    pub(super) fn append_stored(
        &mut self,
        db: &impl Tree,
        seq: u64,
        header: Draft,
        says: Says,
        ticket: Ticket,
    ) -> Result<(), Failure> {
        if !self.uploads.remove(&seq) {
            self.settle(ticket, Err(rebuilt()));
            return Ok(());
        }
        self.settle(ticket, Ok(()));
        self.head.last_seq = self.head.last_seq.max(seq);
        self.lower_floor(seq);
        self.insert(db, &keys::key(keys::CALLS, seq), header, says)
    }

    /// Removes the chunks of a body that was given up.
    pub(super) fn drop_pieces(&mut self, seq: u64, chunks: u32) {
        if self.uploads.remove(&seq) {
            self.garbage.extend((0..chunks).map(|at| IVec::from(&keys::chunk_key(seq, at))));
        }
    }
}

fn rebuilt() -> StoreError {
    let detail = "the store was rebuilt while the call arrived".into();
    StoreError::Failed { unknown: false, detail }
}
