//! What each command writes. Whatever fails here fails the whole group.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
};

use parking_lot::{Mutex, RwLock};
use sled::IVec;

use super::{
    command::{Command, Ticket},
    error::StoreError,
    head::{self, Head},
    history,
    keys::{self, GONE, HEAD_KEY},
    ledger::{GONE_BYTES, Ledger, Says},
    note::{self, Note},
    pack::{self, Pack, Reader},
    queue,
    record::{self, Draft, VALUE_MAX},
    tree::Tree,
};
use crate::target::Target;

/// Bytes of keys and values written between two syncs. 210 of 210 simulated power cuts left a whole
/// store with at most 110 KB in flight, 2 of 30 a broken one with 330 KB. sled writes four to ten
/// times as much (it rewrites a leaf every ten changes): at this bound at most 417 KB were measured,
/// less than one of its segments of 512 KiB; at 96 KiB 630 KB.
pub(super) const GROUP_BYTES: usize = 64 * 1024;

/// What the removal of a packed call counts for: a part of the removal of its pack.
const PACKED_REMOVAL_BYTES: usize = 64;

/// Keys that changed since they were copied.
pub(super) type Changed = Arc<Mutex<BTreeSet<IVec>>>;

/// Why a group was not committed.
pub(super) enum Failure {
    /// No space: the store is whole up to the last commit, and closed until there is room.
    Full(String),
    /// What was synced before is still valid, but this handle proves nothing any more: rebuild.
    Untrusted(String),
}

impl From<sled::Error> for Failure {
    fn from(error: sled::Error) -> Self {
        use std::io::ErrorKind::{QuotaExceeded, StorageFull};
        match &error {
            sled::Error::Io(io) if matches!(io.kind(), StorageFull | QuotaExceeded) => {
                Self::Full(error.to_string())
            }
            _ => Self::Untrusted(error.to_string()),
        }
    }
}

/// What a store's commands need besides the map that it is in.
pub(super) struct Applier {
    pub(super) group: Group,
    /// Of the last commit, but for the last sequence, which is ahead within a group.
    pub(super) head: Head,
    pub(super) ledger: Ledger,
    /// Bytes of all keys and values.
    pub(super) live_bytes: u64,
    pub(super) history_next: u64,
    /// Bodies that are being put, piece by piece, since the store was last opened.
    pub(super) uploads: BTreeSet<u64>,
    /// Keys that belong to nothing; removed as groups have room.
    pub(super) garbage: Vec<IVec>,
    /// The identity that the store is filled for. A call that is requeued for it gets it.
    pub(super) target: Arc<RwLock<Target>>,
    /// Small calls that are committed together share values.
    pub(super) packs: bool,
    /// What a compaction has to copy again.
    pub(super) changed: Option<Changed>,
}

/// What one commit carries.
#[derive(Default)]
pub(super) struct Group {
    /// Bytes of keys and values written.
    pub(super) spent: usize,
    /// Whether anything was written.
    pub(super) dirty: bool,
    /// Keys written, but for those of chunks.
    pub(super) written: HashSet<IVec>,
    /// Calls that wait for their pack to be full, or for the group's end.
    pub(super) pack: Pack,
    /// What is removed at its end.
    pub(super) removals: Vec<IVec>,
    /// In the order of their commands.
    pub(super) tickets: Vec<(Ticket, Result<(), StoreError>)>,
    /// Set if appends are refused for lack of space.
    pub(super) refusal: Option<StoreError>,
}

impl Group {
    /// Forgets what it carried; who waits for it must still be answered.
    pub(super) fn clear(&mut self) {
        self.spent = 0;
        self.dirty = false;
        self.written.clear();
        drop(self.pack.take());
        self.removals.clear();
    }
}

impl Applier {
    /// What does not fit a group any more is written with the next one, and so is what is dead already.
    pub(super) fn sweep(&mut self) {
        while self.group.spent < GROUP_BYTES
            && let Some(key) = self.garbage.pop()
        {
            self.remove(&key);
        }
    }

    /// Writes a command into the group. What does not fit any more comes back for the next group.
    pub(super) fn apply(
        &mut self,
        db: &impl Tree,
        command: Command,
    ) -> Result<Option<Command>, Failure> {
        if command.writes_over().any(|key| self.group.written.contains(key.as_slice())) {
            // Two values of one key and one commit could not be distinguished in the raw log.
            return Ok(Some(command));
        }
        // They read what was written before.
        if matches!(command, Command::Replace { .. } | Command::Requeue { .. }) {
            self.close_pack(db)?;
        }
        match command {
            Command::Append { .. } => self.append(db, command),
            Command::Piece { .. } => self.put_piece(db, command),
            Command::AppendStored { seq, header, says, ticket } => {
                self.append_stored(db, seq, header, says, ticket)?;
                Ok(None)
            }
            Command::DropPieces { seq, chunks } => {
                self.drop_pieces(seq, chunks);
                Ok(None)
            }
            Command::Remove { seqs, from, ticket } => Ok(self.remove_calls(seqs, from, ticket)),
            Command::Annotate { seq, key, value, ticket } => {
                self.annotate(db, seq, &key, value, ticket)
            }
            Command::TakeBack { keys, ticket } => {
                self.settle(ticket, Ok(()));
                for key in keys {
                    self.take_back(db, &key)?;
                }
                Ok(None)
            }
            Command::Replace { seq, header, says, ticket } => {
                self.replace(db, seq, header, says, ticket)
            }
            Command::Requeue { old, new_seq, keep_note, keep_target, ticket } => {
                self.requeue(db, old, new_seq, keep_note, keep_target, ticket)
            }
            Command::Put { key, value, ticket } => {
                self.settle(ticket, Ok(()));
                self.insert(db, &key, value, Says::Itself)?;
                Ok(None)
            }
            Command::History(record) => {
                self.add_history(db, &record)?;
                Ok(None)
            }
            // They are about the store as a whole, and wait for the group's end.
            Command::Compact { .. } | Command::Compacted => Ok(Some(command)),
            Command::Close => Ok(None),
        }
    }

    /// Chunks first, spread over groups if they do not fit one, and the header last.
    fn append(&mut self, db: &impl Tree, command: Command) -> Result<Option<Command>, Failure> {
        let Command::Append { seq, header, says, chunked, mut written, replaces, note, ticket } =
            command
        else {
            return Ok(None);
        };
        if let Some(refusal) = &self.group.refusal
            && written == 0
        {
            let refusal = refusal.clone();
            self.settle(ticket, Err(refusal));
            return Ok(None);
        }
        if let Some(body) = &chunked {
            while let Some(value) = queue::chunk_value(seq, written, body) {
                if self.group.spent >= GROUP_BYTES {
                    return Ok(Some(Command::Append {
                        seq,
                        header,
                        says,
                        chunked,
                        written,
                        replaces,
                        note,
                        ticket,
                    }));
                }
                let key = keys::chunk_key(seq, written);
                if let Err(failure) = self.insert(db, &key, value, Says::Itself) {
                    self.settle(ticket, Ok(()));
                    return Err(failure);
                }
                written += 1;
            }
        }
        self.settle(ticket, Ok(()));
        let is_plain = chunked.is_none() && replaces.is_none() && note.is_none();
        let is_packed = self.packs && is_plain && says == Says::Itself && seq > self.head.last_seq;
        self.head.last_seq = self.head.last_seq.max(seq);
        self.lower_floor(seq);
        if is_packed {
            self.pack(db, seq, header)?;
            return Ok(None);
        }
        if let Some(note) = note {
            // Before the header: a call that keeps its note is never found without it.
            self.insert(db, &keys::key(keys::SENDING, seq), note, Says::Itself)?;
        }
        self.insert(db, &keys::key(keys::CALLS, seq), header, says)?;
        if let Some(old) = replaces {
            self.remove_call(old);
        }
        Ok(None)
    }

    /// A call below the floor: the records of what is gone around it were dropped.
    pub(super) fn lower_floor(&mut self, seq: u64) {
        if seq < self.head.floor {
            self.ledger.lower_floor(seq, self.head.floor);
        }
    }

    fn remove_calls(&mut self, seqs: Vec<u64>, mut from: usize, ticket: Ticket) -> Option<Command> {
        while let Some(seq) = seqs.get(from) {
            if self.group.spent >= GROUP_BYTES {
                return Some(Command::Remove { seqs, from, ticket });
            }
            self.remove_call(*seq);
            from += 1;
        }
        self.settle(ticket, Ok(()));
        None
    }

    /// The removal is recorded at the group's end, and done after that. The chunks need not be gone when it is
    /// acknowledged.
    pub(super) fn remove_call(&mut self, seq: u64) {
        if !self.ledger.is_live(seq) {
            return;
        }
        if self.ledger.packs.holds(seq) {
            self.remove_packed(seq);
        } else {
            self.remove(&keys::key(keys::CALLS, seq));
        }
        if self.ledger.takes_marks(seq) {
            self.remove(&keys::key(keys::SENDING, seq));
            self.remove(&keys::key(keys::DEAD, seq));
        }
    }

    /// The removal record says that it is gone; its pack goes with the last of its calls.
    fn remove_packed(&mut self, seq: u64) {
        let key = keys::key(keys::CALLS, seq);
        if self.ledger.touches_anew(seq) {
            self.wrote(GONE_BYTES);
        }
        self.wrote(PACKED_REMOVAL_BYTES);
        self.ledger.removed(&key);
        // There is nothing under it; a compaction that copied it hears of it after the record was written.
        self.group.removals.push(IVec::from(&key));
    }

    /// Puts a call into the pack that is filled, whose value comes later.
    fn pack(&mut self, db: &impl Tree, seq: u64, value: Draft) -> Result<(), Failure> {
        if !self.group.pack.takes(value.len()) {
            self.close_pack(db)?;
        }
        let key = keys::key(keys::CALLS, seq);
        self.wrote(value.len() + key.len());
        self.ledger.written(&key, Says::Itself, self.head.commit + 1);
        self.group.written.insert(IVec::from(&key));
        self.group.pack.add(seq, value);
        Ok(())
    }

    /// Writes the calls of the pack that is filled, but for those that are removed already.
    fn close_pack(&mut self, db: &impl Tree) -> Result<(), Failure> {
        let mut calls = self.group.pack.take();
        calls.retain(|(seq, _)| self.ledger.is_live(*seq));
        let commit = self.head.commit + 1;
        if calls.len() < 2 {
            for (seq, value) in calls {
                self.put(db, &keys::key(keys::CALLS, seq), value.stamp(commit))?;
            }
            return Ok(());
        }
        let (number, ahead) = self.ledger.packs.begin();
        for number in ahead {
            let key = keys::key(keys::PACKS, number);
            self.wrote(key.len());
            self.put(db, &key, Vec::new())?;
        }
        let seqs: Vec<u64> = calls.iter().map(|(seq, _)| *seq).collect();
        let mut pack = Vec::with_capacity(VALUE_MAX);
        for (_, value) in calls {
            pack.extend(value.stamp(commit));
        }
        self.put(db, &keys::key(keys::PACKS, number), pack)?;
        for seq in &seqs {
            self.changed(&keys::key(keys::CALLS, *seq));
        }
        // From here on readers look for them there.
        self.ledger.packs.put(number, &seqs);
        Ok(())
    }

    fn annotate(
        &mut self,
        db: &impl Tree,
        seq: u64,
        key: &[u8],
        value: Draft,
        ticket: Ticket,
    ) -> Result<Option<Command>, Failure> {
        if !self.ledger.is_live(seq) {
            self.settle(ticket, Err(StoreError::NotFound { seq }));
            return Ok(None);
        }
        self.settle(ticket, Ok(()));
        self.insert(db, key, value, Says::Itself)?;
        Ok(None)
    }

    /// A mark that is taken back says so under its key: a reader of the raw log finds the older one, too.
    fn take_back(&mut self, db: &impl Tree, key: &[u8]) -> Result<(), Failure> {
        match record::void(key).filter(|_| self.ledger.holds(key)) {
            Some(void) => self.insert(db, key, void, Says::Nothing),
            None => Ok(()),
        }
    }

    /// The new header goes over the old one; what else belonged to that goes with it.
    fn replace(
        &mut self,
        db: &impl Tree,
        seq: u64,
        header: Draft,
        says: Says,
        ticket: Ticket,
    ) -> Result<Option<Command>, Failure> {
        let key = keys::key(keys::CALLS, seq);
        let old = match pack::call_value(db, seq) {
            Ok(Some(old)) if self.ledger.is_live(seq) => old,
            Ok(_) => {
                self.settle(ticket, Err(StoreError::NotFound { seq }));
                return Ok(None);
            }
            Err(error) => {
                self.settle(ticket, Ok(()));
                return Err(error.into());
            }
        };
        self.settle(ticket, Ok(()));
        let chunks = queue::chunks_of(seq, &old).unwrap_or_default();
        self.insert(db, &key, header, says)?;
        self.take_back(db, &keys::key(keys::SENDING, seq))?;
        self.garbage.extend((0..chunks).map(|at| IVec::from(&keys::chunk_key(seq, at))));
        Ok(None)
    }

    /// Reads the dead letter and appends it again; the old one goes in the group of the new header.
    fn requeue(
        &mut self,
        db: &impl Tree,
        old: u64,
        new_seq: u64,
        keep_note: bool,
        keep_target: bool,
        ticket: Ticket,
    ) -> Result<Option<Command>, Failure> {
        let there =
            if self.ledger.is_live(old) { Ok(()) } else { Err(StoreError::NotFound { seq: old }) };
        let read = there.and_then(|()| queue::read_call(db, old)).and_then(|call| {
            let body = queue::read_body(&mut Reader::new(db), old)?;
            let note = match call.first_sent_at.filter(|_| keep_note) {
                Some(first_sent_at) => {
                    let evidence = call.evidence.clone();
                    let note = Note { first_sent_at, evidence, group: None };
                    Some(note::encode(new_seq, &note)?)
                }
                None => None,
            };
            let here = self.target.read();
            let target = if keep_target { &call.target } else { &*here };
            Ok((queue::encode_again(&call, new_seq, target, &body)?, note))
        });
        match read {
            Ok((encoded, note)) => self.append(
                db,
                Command::Append {
                    seq: encoded.seq,
                    header: encoded.header,
                    says: encoded.says,
                    chunked: encoded.chunked,
                    written: 0,
                    replaces: Some(old),
                    note,
                    ticket,
                },
            ),
            Err(error) => {
                self.settle(ticket, Err(error));
                Ok(None)
            }
        }
    }

    fn add_history(&mut self, db: &impl Tree, record: &[u8]) -> Result<(), Failure> {
        let number = self.history_next;
        let Some(value) = history::encode(number, record) else {
            tracing::warn!(bytes = record.len(), "a history record is too large to be kept");
            return Ok(());
        };
        self.history_next += 1;
        self.insert(db, &keys::key(keys::HISTORY, number), value, Says::Itself)?;
        if let Some(oldest) = number.checked_sub(history::KEPT) {
            self.remove(&keys::key(keys::HISTORY, oldest));
        }
        Ok(())
    }

    /// Notes the ticket of a command, and its answer once the group is durable.
    pub(super) fn settle(&mut self, ticket: Ticket, result: Result<(), StoreError>) {
        self.group.tickets.push((ticket, result));
    }

    /// Writes a value into the group.
    pub(super) fn insert(
        &mut self,
        db: &impl Tree,
        key: &[u8],
        value: Draft,
        says: Says,
    ) -> Result<(), Failure> {
        self.wrote(key.len() + value.len());
        let commit = self.head.commit + 1;
        self.ledger.written(key, says, commit);
        if key.first() != Some(&keys::CHUNKS) {
            self.group.written.insert(key.into());
        }
        self.put(db, key, value.stamp(commit))
    }

    fn put(&mut self, db: &impl Tree, key: &[u8], value: Vec<u8>) -> Result<(), Failure> {
        self.live_bytes += (key.len() + value.len()) as u64;
        if let Some(before) = db.insert(key, value)? {
            self.no_longer(key, &before);
        }
        self.changed(key);
        Ok(())
    }

    fn no_longer(&mut self, key: &[u8], value: &[u8]) {
        let bytes = (key.len() + value.len()) as u64;
        self.live_bytes = self.live_bytes.saturating_sub(bytes);
    }

    /// A compaction that is under way has to copy this key again.
    fn changed(&self, key: &[u8]) {
        if let Some(changed) = &self.changed {
            changed.lock().insert(key.into());
        }
    }

    /// Has a key removed at the group's end.
    pub(super) fn remove(&mut self, key: &[u8]) {
        if let Some(seq) = keys::number_of(key).filter(|_| key.first() == Some(&keys::CALLS))
            && self.ledger.touches_anew(seq)
        {
            self.wrote(GONE_BYTES);
        }
        self.wrote(key.len() + 16);
        self.ledger.removed(key);
        self.group.removals.push(IVec::from(key));
    }

    /// The group's end: what is gone is recorded, then removed; the head vouches for all.
    pub(super) fn finish_group(&mut self, db: &impl Tree) -> Result<Head, Failure> {
        self.close_pack(db)?;
        let commit = self.head.commit + 1;
        for (key, value) in self.ledger.take_touched(commit) {
            db.insert(&key, value)?;
        }
        self.group.removals.extend(self.ledger.packs.take_emptied());
        for key in std::mem::take(&mut self.group.removals) {
            let removed = db.remove(&key)?;
            // After it was: a copy that was made before is made again.
            self.changed(&key);
            let Some(value) = removed else { continue };
            self.no_longer(&key, &value);
            if key.first() == Some(&keys::CALLS) {
                self.sweep_chunks_of(db, &key, &value)?;
            }
        }
        // Below the floor of a head that is synced already.
        for block in self.ledger.drop_below(self.head.floor) {
            db.remove(&keys::key(GONE, block))?;
        }
        let arriving = self.uploads.first().copied();
        let head = self.ledger.head(commit, self.head.last_seq, arriving);
        if let Some(value) = head::encode(&head) {
            db.insert(HEAD_KEY, value)?;
        }
        Ok(head)
    }

    fn sweep_chunks_of(
        &mut self,
        db: &impl Tree,
        key: &[u8],
        header: &[u8],
    ) -> Result<(), Failure> {
        let Some(seq) = keys::number_of(key) else { return Ok(()) };
        if let Some(chunks) = queue::chunks_of(seq, header) {
            let chunks = (0..chunks).map(|index| keys::chunk_key(seq, index));
            self.garbage.extend(chunks.map(|key| IVec::from(&key)));
            return Ok(());
        }
        self.garbage.extend(db.keys(&keys::key(keys::CHUNKS, seq))?);
        Ok(())
    }

    fn wrote(&mut self, bytes: usize) {
        self.group.spent += bytes;
        self.group.dirty = true;
    }
}
