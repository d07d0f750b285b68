//! What was sent on a connection and is not answered yet: the bytes, and whose they are.
//!
//! ```text
//!   answered │ written, not answered │ not written │ free
//!            head                  written       bytes.len()
//! ```
//! An entry's bytes stay here until its reply has come, or until it is handed back as lost: without them nothing could
//! be repeated or queued after a loss.

use std::{collections::VecDeque, mem};

use bytes::Bytes;
use tokio::time::Instant;

use super::{Entry, Note, Sharing};

/// Entries that may wait for the server, and their bytes.
const ENTRIES_MAX: usize = 65_536;
const BYTES_MAX: usize = 64 << 20;
/// The bytes of a ring that is one client's.
const BYTES_OF_ONE: usize = 1 << 20;
/// What was answered is moved out of the way once it is more than this, in bytes.
const MOVED_MIN: usize = 64 << 10;
/// An empty ring keeps no more room than this, in bytes.
const KEPT_MAX: usize = 1 << 20;

/// See the [module](self).
pub(super) struct Ring {
    bytes: Vec<u8>,
    head: usize,
    written: usize,
    pending: VecDeque<Pending>,
    /// When something was last answered that may take as long as it likes.
    unblocked: Option<Instant>,
    /// How many bytes may wait.
    bytes_max: usize,
}

/// What is on its way.
struct Pending {
    /// `None` for what has no reply of its own.
    entry: Option<Entry>,
    length: usize,
    begun: Instant,
}

/// An entry that was taken out without a reply.
pub(super) struct Unanswered {
    pub(super) entry: Entry,
    pub(super) body: Bytes,
    /// All of it was written.
    pub(super) sent: bool,
    pub(super) begun: Instant,
}

impl Ring {
    pub(super) fn new(sharing: Sharing) -> Self {
        let bytes_max = if sharing == Sharing::Pinned { BYTES_OF_ONE } else { BYTES_MAX };
        Self {
            bytes: Vec::new(),
            head: 0,
            written: 0,
            pending: VecDeque::new(),
            unblocked: None,
            bytes_max,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// Whether `more` bytes fit. A request of any size fits into an empty ring.
    pub(super) fn fits(&self, more: usize) -> bool {
        let bytes = self.bytes.len() - self.head;
        self.pending.is_empty()
            || self.pending.len() < ENTRIES_MAX && bytes.saturating_add(more) <= self.bytes_max
    }

    /// Puts a request behind all others.
    pub(super) fn push(&mut self, entry: Option<Entry>, request: &[u8], begun: Instant) {
        self.make_room();
        self.bytes.extend_from_slice(request);
        self.pending.push_back(Pending { entry, length: request.len(), begun });
    }

    /// What is to be written next.
    pub(super) fn unwritten(&self) -> &[u8] {
        self.bytes.get(self.written..).unwrap_or_default()
    }

    /// So many bytes of [`Ring::unwritten`] were written.
    pub(super) fn wrote(&mut self, count: usize) {
        self.written += count;
    }

    /// Takes off the front what has no reply, and was written.
    pub(super) fn skip_silent(&mut self) {
        while let Some(Pending { entry: None, length, .. }) = self.pending.front()
            && self.head + length <= self.written
        {
            self.head += length;
            self.pending.pop_front();
        }
    }

    /// Takes out the oldest entry, with its request. `None` if nothing that was written waits for a reply.
    pub(super) fn pop(&mut self) -> Option<(Entry, &[u8])> {
        self.skip_silent();
        let end = self.head + self.pending.front()?.length;
        if end > self.written {
            return None;
        }
        let entry = self.pending.pop_front()?.entry?;
        if entry.blocks {
            self.unblocked = Some(Instant::now());
        }
        let request = self.bytes.get(self.head..end).unwrap_or_default();
        self.head = end;
        Some((entry, request))
    }

    /// Since when the oldest request has been waited for, unless its reply may take as long as it likes.
    pub(super) fn waits_since(&self) -> Option<Instant> {
        let oldest = self.pending.front()?;
        let entry = oldest.entry.as_ref().filter(|entry| !entry.blocks);
        entry.map(|_| self.unblocked.map_or(oldest.begun, |at| at.max(oldest.begun)))
    }

    /// Whether the oldest reply may take as long as it likes.
    pub(super) fn is_blocked(&self) -> bool {
        self.pending.iter().filter_map(|pending| pending.entry.as_ref()).any(|entry| entry.blocks)
    }

    /// Whether the server may have got a whole request that it did not answer.
    pub(super) fn is_in_doubt(&self) -> bool {
        self.pending.front().is_some_and(|oldest| self.head + oldest.length <= self.written)
    }

    /// Whether something in it has no reply.
    pub(super) fn has_silent(&self) -> bool {
        self.pending.iter().any(|pending| pending.entry.is_none())
    }

    /// What is to be done with the next reply.
    pub(super) fn oldest_note(&mut self) -> Option<&Note> {
        self.skip_silent();
        Some(&self.pending.front()?.entry.as_ref()?.note)
    }

    /// The entries, oldest first.
    pub(super) fn entries(&mut self) -> impl Iterator<Item = &mut Entry> {
        self.pending.iter_mut().filter_map(|pending| pending.entry.as_mut())
    }

    /// The entries that were taken before then, with their requests, oldest first.
    pub(super) fn older_than(
        &mut self,
        before: Instant,
    ) -> impl Iterator<Item = (&mut Entry, &[u8])> {
        let (bytes, mut head) = (&self.bytes, self.head);
        let old = self.pending.iter_mut().take_while(move |pending| pending.begun <= before);
        old.filter_map(move |pending| {
            let from = head;
            head += pending.length;
            Some((pending.entry.as_mut()?, bytes.get(from..head).unwrap_or_default()))
        })
    }

    /// Takes out all entries, oldest first. The ring is empty afterwards.
    pub(super) fn give_back(&mut self) -> Vec<Unanswered> {
        let (bytes, pending) = (mem::take(&mut self.bytes), mem::take(&mut self.pending));
        let (mut head, written) = (mem::take(&mut self.head), mem::take(&mut self.written));
        self.unblocked = None;
        let mut out = Vec::with_capacity(pending.len());
        for Pending { entry, length, begun } in pending {
            let end = head + length;
            if let Some(entry) = entry {
                let body = Bytes::copy_from_slice(bytes.get(head..end).unwrap_or_default());
                out.push(Unanswered { entry, body, sent: end <= written, begun });
            }
            head = end;
        }
        out
    }

    /// Moves what is not answered to the beginning, once that is worth it.
    pub(super) fn make_room(&mut self) {
        if self.head == self.bytes.len() {
            self.bytes.clear();
            if self.bytes.capacity() > KEPT_MAX {
                self.bytes.shrink_to(KEPT_MAX);
            }
        } else if self.head > MOVED_MIN && self.head > self.bytes.len() / 2 {
            self.bytes.drain(..self.head);
        } else {
            return;
        }
        self.written -= self.head;
        self.head = 0;
    }
}
