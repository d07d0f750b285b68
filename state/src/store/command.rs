//! What callers ask of the committing thread, and how they hear of the end.

use std::sync::Arc;

use bytes::Bytes;

use super::{error::StoreError, guard::caught, keys, ledger::Says, record::Draft, settings::Done};

/// One thing to commit.
pub(super) enum Command {
    /// A call: its chunks, then its header.
    Append {
        seq: u64,
        header: Draft,
        says: Says,
        /// The body if it goes into chunks.
        chunked: Option<Bytes>,
        /// Chunks that are written already.
        written: u32,
        /// The dead letter whose place it takes.
        replaces: Option<u64>,
        /// The note of sending that it keeps.
        note: Option<Draft>,
        ticket: Ticket,
    },
    /// A piece of a body whose header comes later.
    Piece {
        seq: u64,
        /// The index of its first chunk.
        first: u32,
        data: Bytes,
        /// Chunks of it that are written already.
        written: u32,
        ticket: Ticket,
    },
    /// The header of a body whose pieces were put.
    AppendStored { seq: u64, header: Draft, says: Says, ticket: Ticket },
    /// A body whose header will not come.
    DropPieces { seq: u64, chunks: u32 },
    /// Calls to forget, with all that belongs to them.
    Remove { seqs: Vec<u64>, from: usize, ticket: Ticket },
    /// A value beside an existing call.
    Annotate { seq: u64, key: [u8; 9], value: Draft, ticket: Ticket },
    /// Notes or marks to take back, beside calls that stay.
    TakeBack { keys: Vec<[u8; 9]>, ticket: Ticket },
    /// Another header, with its body, in place of the one that is there.
    Replace { seq: u64, header: Draft, says: Says, ticket: Ticket },
    /// A dead letter goes to the tail, for its own target or for the store's.
    Requeue { old: u64, new_seq: u64, keep_note: bool, keep_target: bool, ticket: Ticket },
    /// A value under its own key.
    Put { key: Vec<u8>, value: Draft, ticket: Ticket },
    /// A record for the history ring.
    History(Vec<u8>),
    /// Compact the store to give back what is dead in it.
    Compact { ticket: Ticket },
    /// The copying thread of a compaction has ended.
    Compacted,
    /// Commit what came before, then end.
    Close,
}

impl Command {
    /// The keys of which it may replace the value.
    pub(super) fn writes_over(&self) -> impl Iterator<Item = Vec<u8>> {
        let keys = match self {
            Self::Annotate { key, .. } => vec![key.to_vec()],
            Self::TakeBack { keys, .. } => keys.iter().map(|key| key.to_vec()).collect(),
            Self::Replace { seq, .. } => {
                [keys::CALLS, keys::SENDING].map(|it| keys::key(it, *seq).to_vec()).into()
            }
            Self::Put { key, .. } => vec![key.clone()],
            _ => Vec::new(),
        };
        keys.into_iter()
    }

    /// Answers it while the store is down: it is definitely not stored, but for a removal over several groups, of which
    /// a part may be. A record for the history is handed back: it waits until the store is up.
    pub(super) fn refuse(self, detail: &Arc<str>) -> Option<Vec<u8>> {
        match self {
            Self::History(record) => Some(record),
            other => {
                let unknown = matches!(other, Self::Remove { from: 1.., .. });
                if let Some(ticket) = other.into_ticket() {
                    let detail = Arc::clone(detail);
                    ticket.complete(Err(StoreError::Failed { unknown, detail }));
                }
                None
            }
        }
    }

    /// The ticket of whoever waits for it.
    pub(super) fn into_ticket(self) -> Option<Ticket> {
        match self {
            Self::Append { ticket, .. }
            | Self::Piece { ticket, .. }
            | Self::AppendStored { ticket, .. }
            | Self::Remove { ticket, .. }
            | Self::Annotate { ticket, .. }
            | Self::TakeBack { ticket, .. }
            | Self::Replace { ticket, .. }
            | Self::Requeue { ticket, .. }
            | Self::Put { ticket, .. }
            | Self::Compact { ticket } => Some(ticket),
            Self::DropPieces { .. } | Self::History(_) | Self::Compacted | Self::Close => None,
        }
    }
}

/// A completion that runs exactly once, whatever becomes of the command.
pub(super) struct Ticket(Option<Done>);

impl Ticket {
    pub(super) fn new(done: Done) -> Self {
        Self(Some(done))
    }

    /// Runs the completion. One that panics is reported and harms nobody else.
    pub(super) fn complete(mut self, result: Result<(), StoreError>) {
        self.run(result);
    }

    fn run(&mut self, result: Result<(), StoreError>) {
        if let Some(done) = self.0.take()
            && let Err(panic) = caught(move || done(result))
        {
            tracing::error!(panic, "a completion panicked");
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let error = if std::thread::panicking() {
            StoreError::Failed { unknown: true, detail: "the committing thread panicked".into() }
        } else {
            StoreError::Closed
        };
        self.run(Err(error));
    }
}
