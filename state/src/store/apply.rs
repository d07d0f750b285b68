//! What each command writes. Whatever fails here fails the whole group.

use sled::{Db, IVec};

use super::{
    GROUP_BYTES,
    command::{Command, Ticket},
    committer::{Committer, Failure},
    dead_letters,
    error::StoreError,
    history,
    note::{self, Note},
    queue,
};

impl Committer {
    /// Writes a command into the group. What does not fit any more comes back for the next group.
    pub(super) fn apply(&mut self, db: &Db, command: Command) -> Result<Option<Command>, Failure> {
        match command {
            Command::Append { .. } => self.append(db, command),
            Command::Piece { .. } => self.put_piece(db, command),
            Command::AppendStored { seq, header, ticket } => {
                self.append_stored(db, seq, header, ticket)?;
                Ok(None)
            }
            Command::DropPieces { seq, chunks } => {
                self.drop_pieces(seq, chunks);
                Ok(None)
            }
            Command::Remove { seqs, from, ticket } => self.remove_calls(db, seqs, from, ticket),
            Command::Annotate { seq, key, value, ticket } => {
                self.annotate(db, seq, &key, value, ticket)
            }
            Command::Drop { keys, ticket } => {
                self.settle(ticket, Ok(()));
                for key in keys {
                    self.remove(db, &key)?;
                }
                Ok(None)
            }
            Command::Replace { seq, header, ticket } => self.replace(db, seq, header, ticket),
            Command::Requeue { old, new_seq, keep_note, ticket } => {
                self.requeue(db, old, new_seq, keep_note, ticket)
            }
            Command::Put { key, value, ticket } => {
                self.settle(ticket, Ok(()));
                self.insert(db, &key, value)?;
                Ok(None)
            }
            Command::History(record) => {
                self.add_history(db, &record)?;
                Ok(None)
            }
            // It replaces the store, so it waits for the group's end.
            Command::Compact { .. } => Ok(Some(command)),
            Command::Close => Ok(None),
        }
    }

    /// Chunks first, spread over groups where they do not fit one, and the header last.
    fn append(&mut self, db: &Db, command: Command) -> Result<Option<Command>, Failure> {
        let Command::Append { seq, header, chunked, mut written, replaces, note, ticket } = command
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
                        chunked,
                        written,
                        replaces,
                        note,
                        ticket,
                    }));
                }
                if let Err(failure) = self.insert(db, &queue::chunk_key(seq, written), value.into())
                {
                    self.settle(ticket, Ok(()));
                    return Err(failure);
                }
                written += 1;
            }
        }
        self.settle(ticket, Ok(()));
        self.head.last_seq = self.head.last_seq.max(seq);
        if let Some(note) = note {
            // Before the header: a call that keeps its note is never found without it.
            self.insert(db, &queue::key(queue::SENDING, seq), note)?;
        }
        self.insert(db, &queue::key(queue::CALLS, seq), header)?;
        if let Some(old) = replaces {
            self.remove_call(db, old)?;
        }
        Ok(None)
    }

    fn remove_calls(
        &mut self,
        db: &Db,
        seqs: Vec<u64>,
        mut from: usize,
        ticket: Ticket,
    ) -> Result<Option<Command>, Failure> {
        while let Some(seq) = seqs.get(from) {
            if self.group.spent >= GROUP_BYTES {
                return Ok(Some(Command::Remove { seqs, from, ticket }));
            }
            if let Err(failure) = self.remove_call(db, *seq) {
                self.settle(ticket, Ok(()));
                return Err(failure);
            }
            from += 1;
        }
        self.settle(ticket, Ok(()));
        Ok(None)
    }

    /// The header goes first: without it the rest is leftovers, which an open sweeps. The chunks
    /// need not be gone when the removal is acknowledged.
    fn remove_call(&mut self, db: &Db, seq: u64) -> Result<(), Failure> {
        let key = queue::key(queue::CALLS, seq);
        let Some(value) = db.remove(key)? else { return Ok(()) };
        self.wrote(key.len() + 16);
        self.remove(db, &queue::key(queue::SENDING, seq))?;
        self.remove(db, &queue::key(dead_letters::PREFIX, seq))?;
        match queue::decode_call(seq, &value) {
            Ok((call, _)) => {
                let chunks = (0..call.chunks).map(|index| queue::chunk_key(seq, index));
                self.garbage.extend(chunks.map(|key| IVec::from(&key)));
            }
            Err(_) => {
                for item in db.scan_prefix(queue::key(queue::CHUNKS, seq)).keys() {
                    self.garbage.push(item?);
                }
            }
        }
        Ok(())
    }

    fn annotate(
        &mut self,
        db: &Db,
        seq: u64,
        key: &[u8],
        value: IVec,
        ticket: Ticket,
    ) -> Result<Option<Command>, Failure> {
        match db.contains_key(queue::key(queue::CALLS, seq)) {
            Ok(true) => {
                self.settle(ticket, Ok(()));
                self.insert(db, key, value)?;
            }
            Ok(false) => self.settle(ticket, Err(StoreError::NotFound { seq })),
            Err(error) => {
                self.settle(ticket, Ok(()));
                return Err(error.into());
            }
        }
        Ok(None)
    }

    /// The new header goes over the old one; what else belonged to that goes with it.
    fn replace(
        &mut self,
        db: &Db,
        seq: u64,
        header: IVec,
        ticket: Ticket,
    ) -> Result<Option<Command>, Failure> {
        let key = queue::key(queue::CALLS, seq);
        let old = match db.get(key) {
            Ok(Some(old)) => old,
            Ok(None) => {
                self.settle(ticket, Err(StoreError::NotFound { seq }));
                return Ok(None);
            }
            Err(error) => {
                self.settle(ticket, Ok(()));
                return Err(error.into());
            }
        };
        self.settle(ticket, Ok(()));
        let chunks = queue::decode_call(seq, &old).map_or(0, |(call, _)| call.chunks);
        self.insert(db, &key, header)?;
        self.remove(db, &queue::key(queue::SENDING, seq))?;
        self.garbage.extend((0..chunks).map(|at| IVec::from(&queue::chunk_key(seq, at))));
        Ok(None)
    }

    /// Reads the dead letter and appends it anew; the old one goes in the group of the new header.
    fn requeue(
        &mut self,
        db: &Db,
        old: u64,
        new_seq: u64,
        keep_note: bool,
        ticket: Ticket,
    ) -> Result<Option<Command>, Failure> {
        let read = queue::read_call(db, old).and_then(|call| {
            let body = queue::read_body(db, old)?;
            let note = match call.first_sent_at.filter(|_| keep_note) {
                Some(first_sent_at) => {
                    let evidence = call.evidence.clone();
                    let note = Note { first_sent_at, evidence, group: None };
                    Some(note::encode(new_seq, &note)?.into())
                }
                None => None,
            };
            let target = self.shared.target.read();
            Ok((queue::encode_again(&call, new_seq, &target, &body)?, note))
        });
        match read {
            Ok((encoded, note)) => self.append(
                db,
                Command::Append {
                    seq: encoded.seq,
                    header: encoded.header,
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

    fn add_history(&mut self, db: &Db, record: &[u8]) -> Result<(), Failure> {
        let number = self.history_next;
        let Some(value) = history::encode(number, record) else {
            tracing::warn!(bytes = record.len(), "a history record is too large to be kept");
            return Ok(());
        };
        self.history_next += 1;
        self.insert(db, &queue::key(history::PREFIX, number), value.into())?;
        match number.checked_sub(history::KEPT) {
            Some(oldest) => self.remove(db, &queue::key(history::PREFIX, oldest)),
            None => Ok(()),
        }
    }

    /// Notes the ticket of a command, and what it is told once the group is durable.
    pub(super) fn settle(&mut self, ticket: Ticket, result: Result<(), StoreError>) {
        self.group.tickets.push((ticket, result));
    }

    pub(super) fn insert(&mut self, db: &Db, key: &[u8], value: IVec) -> Result<(), Failure> {
        self.wrote(key.len() + value.len());
        db.insert(key, value)?;
        Ok(())
    }

    /// Removes a key; one that is not there costs nothing.
    pub(super) fn remove(&mut self, db: &Db, key: &[u8]) -> Result<(), Failure> {
        if db.remove(key)?.is_some() {
            self.wrote(key.len() + 16);
        }
        Ok(())
    }

    fn wrote(&mut self, bytes: usize) {
        self.group.spent += bytes;
        self.group.dirty = true;
    }
}
