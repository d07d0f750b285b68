//! What a queue asks of its store.

use std::fmt;

use bytes::{Bytes, BytesMut};
use parking_lot::RwLock;

use super::{
    Note, StoreError,
    calls::{DeadMark, NewCall, StoredBody, StoredCall},
    command::{Command, Ticket},
    dead_letters, facts, history,
    keys::{self, FACT_TARGET},
    note,
    pack::{self, Reader},
    queue,
    record::{self, Draft, Kind},
    settings::{Done, StoreStatus},
    tree::Tree,
    upload::{PIECE_BYTES, PIECE_CHUNKS},
};
use crate::target::Target;

/// A durable store of one backend's calls, dead letters, facts and history.
///
/// # Promise
/// A command whose completion says `Ok` is durable: it will be found after any crash, as will every command before it.
/// Commands return at once and end in their completion, exactly once, in the order in which they were sent; only those
/// that are sent in answer to a [`StoreEvent::Reopened`](super::StoreEvent::Reopened) go before what waits. A completion
/// that says nothing was stored means that; one whose [outcome is unknown](StoreError::outcome_unknown) is settled by
/// what that event says. Reads are safe on any thread and see what was sent and written, durable or not.
///
/// | crash | the next open finds |
/// | --- | --- |
/// | before a completion said `Ok` | what was before, or what is after, of that command; nothing in between |
/// | after it | what is after |
///
/// What a store on a disk adds to this is documented at [`Store`](super::Store).
pub trait CallStore: fmt::Debug + Send + Sync {
    /// Stores a call. `Ok`: it is on the disk and will be found after any crash.
    fn append(&self, call: NewCall, done: Done);

    /// Forgets calls, pending or dead, with all that belongs to them. `Ok`: none of them will be
    /// found again. Sequences that are not stored are passed over.
    fn remove(&self, seqs: Vec<u64>, done: Done);

    /// Notes that a call, or the group whose first call it is, is about to be put on the wire; replaces the
    /// note that is there. `Ok`: a crash from now on will find it noted. Ends with `NotFound` if the call is not
    /// stored, with `TooLarge` if the note is above its limits.
    fn note_sending(&self, seq: u64, note: &Note, done: Done);

    /// Takes a note back: it is proven that nothing was sent. Without a note nothing happens.
    fn take_back_note(&self, seq: u64, done: Done);

    /// Makes dead letters calls that wait again, in their places and with their notes.
    fn revive(&self, seqs: &[u64], done: Done);

    /// The same of calls that were not applied: the note beside `noted` is taken back in the same commit.
    fn revive_unsent(&self, seqs: &[u64], noted: u64, done: Done);

    /// Puts `call` in the place of the one of its sequence, without that one's note. A crash leaves the one or
    /// the other. Ends with `NotFound` if there is none, with `TooLarge` if it does not fit one value.
    fn replace(&self, call: &NewCall, done: Done);

    /// Makes a call a dead letter. A crash leaves a pending call or a whole dead letter. Ends with
    /// `NotFound` if the call is not stored.
    fn bury(&self, seq: u64, mark: DeadMark, done: Done);

    /// Moves a dead letter to the tail: the same call and `op_id` under `new_seq`, without its mark, with
    /// its note of sending only if `keep_note`. It keeps the target that it was accepted for. Old and new change place in
    /// one commit. Ends with `NotFound` if `old` is not stored.
    fn requeue(&self, old: u64, new_seq: u64, keep_note: bool, done: Done);

    /// The same for a dead letter that may go to the [target](CallStore::set_target) that the store is filled for. From
    /// then on, this is the target of the call.
    fn requeue_here(&self, old: u64, new_seq: u64, keep_note: bool, done: Done);

    /// Stores a named value of at most about 3,800 bytes, in place of the one before.
    fn put_fact(&self, name: &'static str, value: Vec<u8>, done: Done);

    /// The fact of that name; `None` if there is none, none that is whole, or the store is down.
    fn fact(&self, name: &str) -> Option<Vec<u8>>;

    /// Adds a record of at most about 4,000 bytes to the history; the last 1,000 are kept. It rides
    /// along with a commit that nobody waits for.
    fn add_history(&self, record: Vec<u8>);

    /// The newest `limit` records of the history, newest last.
    fn history(&self, limit: usize) -> Vec<Vec<u8>>;

    /// Reads a call's body and verifies its checksum. Blocks on the disk.
    ///
    /// # Errors
    /// `NotFound`, `Damaged`, or `Failed` while the store is down.
    fn body(&self, seq: u64) -> Result<Bytes, StoreError>;

    /// The same of several, in their order.
    fn bodies(&self, seqs: &[u64]) -> Vec<Result<Bytes, StoreError>>;

    /// Reads a call with its marks, without its body. Blocks on the disk.
    ///
    /// # Errors
    /// `NotFound`, `Damaged`, or `Failed` while the store is down.
    fn call(&self, seq: u64) -> Result<StoredCall, StoreError>;

    /// The store's state. Asks the file system for a size, nothing more.
    fn status(&self) -> StoreStatus;

    /// Records the identity that the store is filled for from now on. All calls keep the one that they were
    /// [accepted for](NewCall::target), but for a dead letter that is [requeued for it](CallStore::requeue_here).
    fn set_target(&self, target: &Target, done: Done);

    /// Writes what is live into new files, which gives back what is dead in the log. The store serves meanwhile, but
    /// for the open at the end. `Failed`: the store is as it was, or down and retrying.
    fn compact(&self, done: Done);

    /// Commits what was sent before, syncs the mark, closes the files and waits for all that. Later
    /// commands end with [`StoreError::Closed`].
    fn close(&self);

    /// Stores piece `index` of the body of `seq`, all but the last of [`PIECE_BYTES`]. `Ok`: it is on the
    /// disk, and belongs to nothing until [`CallStore::append_stored`].
    fn put_piece(&self, seq: u64, index: u32, data: Bytes, done: Done);

    /// Stores a call whose body was put piece by piece. `Ok`: it is on the disk and will be found after
    /// any crash. `Failed` if the store was rebuilt since the first piece.
    fn append_stored(&self, call: NewCall, body: StoredBody, done: Done);

    /// Gives up a body of which `pieces` were put.
    fn drop_pieces(&self, seq: u64, pieces: u32);

    /// Reads a piece of a stored body; empty behind its end. Each chunk's checksum is verified. Blocks on
    /// the disk.
    ///
    /// # Errors
    /// `NotFound`, `Damaged`, or `Failed` while the store is down.
    fn piece(&self, seq: u64, index: u32) -> Result<Bytes, StoreError>;
}

/// What every store has beneath: a map that one committing thread or task writes to.
pub(super) trait Backed: fmt::Debug + Send + Sync {
    /// What it is in.
    type Map: Tree;

    /// Sends a command to whoever commits.
    fn send(&self, command: Command);

    /// The identity that it is filled for.
    fn target(&self) -> &RwLock<Target>;

    /// Reads; `Failed` while there is nothing to read from.
    fn read<T>(
        &self,
        what: impl FnOnce(&Self::Map) -> Result<T, StoreError>,
    ) -> Result<T, StoreError>;

    /// See [`CallStore::status`].
    fn state(&self) -> StoreStatus;

    /// See [`CallStore::close`].
    fn end(&self);
}

impl<B: Backed> CallStore for B {
    fn append(&self, call: NewCall, done: Done) {
        let note = call.note.as_ref().map(|note| note::encode(call.seq, note)).transpose();
        let encoded = queue::encode(&call).and_then(|encoded| Ok((encoded, note?)));
        match encoded {
            Ok((queue::Encoded { seq, header, says, chunked }, note)) => {
                self.send(Command::Append {
                    seq,
                    header,
                    says,
                    chunked,
                    written: 0,
                    replaces: None,
                    note,
                    ticket: Ticket::new(done),
                });
            }
            Err(error) => Ticket::new(done).complete(Err(error)),
        }
    }

    fn remove(&self, seqs: Vec<u64>, done: Done) {
        self.send(Command::Remove { seqs, from: 0, ticket: Ticket::new(done) });
    }

    fn note_sending(&self, seq: u64, note: &Note, done: Done) {
        annotate(self, seq, keys::SENDING, note::encode(seq, note), done);
    }

    fn take_back_note(&self, seq: u64, done: Done) {
        let keys = vec![keys::key(keys::SENDING, seq)];
        self.send(Command::TakeBack { keys, ticket: Ticket::new(done) });
    }

    fn revive(&self, seqs: &[u64], done: Done) {
        let keys = seqs.iter().map(|seq| keys::key(keys::DEAD, *seq)).collect();
        self.send(Command::TakeBack { keys, ticket: Ticket::new(done) });
    }

    fn revive_unsent(&self, seqs: &[u64], noted: u64, done: Done) {
        let dead = seqs.iter().map(|seq| keys::key(keys::DEAD, *seq));
        let keys = dead.chain([keys::key(keys::SENDING, noted)]).collect();
        self.send(Command::TakeBack { keys, ticket: Ticket::new(done) });
    }

    fn replace(&self, call: &NewCall, done: Done) {
        let ticket = Ticket::new(done);
        match queue::encode(call) {
            Ok(queue::Encoded { seq, header, says, chunked: None }) => {
                self.send(Command::Replace { seq, header, says, ticket });
            }
            Ok(_) => ticket.complete(Err(StoreError::TooLarge {
                what: "replacement",
                bytes: call.body.len() as u64,
                limit: record::VALUE_MAX as u64,
            })),
            Err(error) => ticket.complete(Err(error)),
        }
    }

    fn bury(&self, seq: u64, mark: DeadMark, done: Done) {
        annotate(self, seq, keys::DEAD, dead_letters::encode(seq, &mark), done);
    }

    fn requeue(&self, old: u64, new_seq: u64, keep_note: bool, done: Done) {
        let ticket = Ticket::new(done);
        self.send(Command::Requeue { old, new_seq, keep_note, keep_target: true, ticket });
    }

    fn requeue_here(&self, old: u64, new_seq: u64, keep_note: bool, done: Done) {
        let ticket = Ticket::new(done);
        self.send(Command::Requeue { old, new_seq, keep_note, keep_target: false, ticket });
    }

    fn put_fact(&self, name: &'static str, value: Vec<u8>, done: Done) {
        put(self, name, &value, done);
    }

    fn fact(&self, name: &str) -> Option<Vec<u8>> {
        self.read(|db| Ok(facts::read(db, name))).ok().flatten()
    }

    fn add_history(&self, record: Vec<u8>) {
        self.send(Command::History(record));
    }

    fn history(&self, limit: usize) -> Vec<Vec<u8>> {
        self.read(|db| Ok(history::read(db, limit))).unwrap_or_default()
    }

    fn body(&self, seq: u64) -> Result<Bytes, StoreError> {
        self.read(|db| queue::read_body(&mut Reader::new(db), seq))
    }

    fn bodies(&self, seqs: &[u64]) -> Vec<Result<Bytes, StoreError>> {
        let read = self.read(|db| {
            let mut reader = Reader::new(db);
            Ok(seqs.iter().map(|seq| queue::read_body(&mut reader, *seq)).collect())
        });
        read.unwrap_or_else(|error| vec![Err(error); seqs.len()])
    }

    fn call(&self, seq: u64) -> Result<StoredCall, StoreError> {
        self.read(|db| queue::read_call(db, seq))
    }

    fn status(&self) -> StoreStatus {
        self.state()
    }

    fn set_target(&self, target: &Target, done: Done) {
        let text = target.as_str();
        if let Err(error) = keys::within("target", text.len(), queue::TARGET_MAX) {
            return Ticket::new(done).complete(Err(error));
        }
        // What is requeued for it from here on has it. If the fact is not written, the next start asks.
        let mut current = self.target().write();
        *current = target.clone();
        put(self, FACT_TARGET, text.as_bytes(), done);
    }

    fn compact(&self, done: Done) {
        self.send(Command::Compact { ticket: Ticket::new(done) });
    }

    fn close(&self) {
        self.end();
    }

    fn put_piece(&self, seq: u64, index: u32, data: Bytes, done: Done) {
        let (first, ticket) = (index.saturating_mul(PIECE_CHUNKS), Ticket::new(done));
        self.send(Command::Piece { seq, first, data, written: 0, ticket });
    }

    fn append_stored(&self, call: NewCall, body: StoredBody, done: Done) {
        match queue::encode_stored(&call, body) {
            Ok(header) => {
                let ticket = Ticket::new(done);
                let says = queue::says(call.header.traits);
                self.send(Command::AppendStored { seq: call.seq, header, says, ticket });
            }
            Err(error) => Ticket::new(done).complete(Err(error)),
        }
    }

    fn drop_pieces(&self, seq: u64, pieces: u32) {
        self.send(Command::DropPieces { seq, chunks: pieces.saturating_mul(PIECE_CHUNKS) });
    }

    fn piece(&self, seq: u64, index: u32) -> Result<Bytes, StoreError> {
        self.read(|db| {
            let value = pack::call_value(db, seq).map_err(StoreError::read)?;
            let value = value.ok_or(StoreError::NotFound { seq })?;
            let damaged = |why| StoreError::damaged(seq, &why);
            let sealed = record::open(Kind::Call, &value).map_err(damaged)?;
            let header = queue::header(seq, &sealed).map_err(damaged)?;
            if header.chunks == 0 {
                let inline = if index == 0 { header.inline } else { &[] };
                return Ok(Bytes::copy_from_slice(inline));
            }
            let first = index.saturating_mul(PIECE_CHUNKS);
            let mut piece = BytesMut::with_capacity(PIECE_BYTES);
            for index in first..header.chunks.min(first.saturating_add(PIECE_CHUNKS)) {
                queue::read_chunk(db, seq, index, header.chunks, |data| {
                    piece.extend_from_slice(data);
                })?;
            }
            Ok(piece.freeze())
        })
    }
}

fn annotate(
    store: &impl Backed,
    seq: u64,
    prefix: u8,
    value: Result<Draft, StoreError>,
    done: Done,
) {
    let ticket = Ticket::new(done);
    match value {
        Ok(value) => {
            store.send(Command::Annotate { seq, key: keys::key(prefix, seq), value, ticket });
        }
        Err(error) => ticket.complete(Err(error)),
    }
}

fn put(store: &impl Backed, name: &str, value: &[u8], done: Done) {
    let ticket = Ticket::new(done);
    match facts::encode(name, value) {
        Ok(value) => store.send(Command::Put { key: facts::key(name), value, ticket }),
        Err(error) => ticket.complete(Err(error)),
    }
}
