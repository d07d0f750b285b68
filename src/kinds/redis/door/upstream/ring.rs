//! What was sent on a connection and is not answered yet: the bytes, and whose they are.
//!
//! ```text
//!   answered │ written, not answered │ not written │ free
//!            head                  written       bytes.len()
//! ```
//! An entry's bytes stay here until its reply has come, or until it is handed back as lost: without them nothing could
//! be repeated or queued after a loss.

use std::{cell::Cell, collections::VecDeque, mem, rc::Rc, time::Duration};

use bytes::Bytes;
use tokio::time::Instant;

use super::{
    Sharing,
    entry::{Entry, Note},
};

/// Entries that may wait for the server, and their bytes.
const ENTRIES_MAX: usize = 65_536;
const BYTES_MAX: usize = 64 << 20;
/// Of so many requests one is measured.
const SAMPLED_EVERY: u64 = 64;
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
    /// When the last thing ended that kept all of it from being answered: that the connection was not up, or a reply
    /// that may take as long as it likes.
    unblocked: Option<Instant>,
    /// When replies last had to wait for a client that did not take its own.
    held_up: Option<Instant>,
    /// How many bytes may wait.
    bytes_max: usize,
    /// What the door holds of requests apart from its clients' input, in bytes.
    held: Rc<Cell<usize>>,
    /// How many requests were put into it.
    pushed: u64,
    /// The one that the door's own time is measured of.
    sampled: Option<Sampled>,
}

/// What is on its way.
struct Pending {
    entry: Entry,
    length: usize,
    begun: Instant,
}

/// A request that is watched from its client's socket to the server's.
struct Sampled {
    /// Entries before it.
    ahead: usize,
    /// What is to be written until all of it is, in bytes.
    left: usize,
    begun: Instant,
    /// From `begun` until it was written.
    took: Option<Duration>,
    /// Its reply has come.
    is_out: bool,
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
    /// What it holds is added to `held`.
    pub(super) fn new(sharing: Sharing, held: Rc<Cell<usize>>) -> Self {
        let bytes_max = if sharing == Sharing::Pinned { BYTES_OF_ONE } else { BYTES_MAX };
        Self {
            bytes: Vec::new(),
            head: 0,
            written: 0,
            pending: VecDeque::new(),
            unblocked: None,
            held_up: None,
            bytes_max,
            held,
            pushed: 0,
            sampled: None,
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

    /// Puts a request behind all others. The door's own time of it may be measured if the connection is up.
    pub(super) fn push(&mut self, entry: Entry, request: &[u8], (begun, is_up): (Instant, bool)) {
        self.make_room();
        self.bytes.extend_from_slice(request);
        self.pending.push_back(Pending { entry, length: request.len(), begun });
        self.pushed = self.pushed.wrapping_add(1);
        if is_up && self.pushed.is_multiple_of(SAMPLED_EVERY) && self.sampled.is_none() {
            let (ahead, left) = (self.pending.len() - 1, self.bytes.len() - self.written);
            self.sampled = Some(Sampled { ahead, left, begun, took: None, is_out: false });
        }
        self.holds(request.len(), 0);
    }

    /// What is to be written next.
    pub(super) fn unwritten(&self) -> &[u8] {
        self.bytes.get(self.written..).unwrap_or_default()
    }

    /// So many bytes of [`Ring::unwritten`] were written.
    pub(super) fn wrote(&mut self, count: usize) {
        self.written += count;
        if let Some(sampled) = &mut self.sampled
            && sampled.took.is_none()
        {
            sampled.left = sampled.left.saturating_sub(count);
            if sampled.left == 0 {
                sampled.took = Some(sampled.begun.elapsed());
            }
        }
    }

    /// Takes out the oldest entry, with its request. `None` if nothing that was written waits for a reply.
    pub(super) fn pop(&mut self) -> Option<(Entry, &[u8])> {
        let end = self.head + self.pending.front()?.length;
        if end > self.written {
            return None;
        }
        let Pending { mut entry, length, begun } = self.pending.pop_front()?;
        if let Some(sampled) = &mut self.sampled {
            match sampled.ahead.checked_sub(1) {
                Some(ahead) => sampled.ahead = ahead,
                None => sampled.is_out = true,
            }
        }
        if self.held_up.is_some_and(|at| begun <= at)
            && let Some(ticket) = &mut entry.ticket
        {
            ticket.is_kept_waiting();
        }
        if entry.waits() {
            self.unblocked = Some(Instant::now());
        }
        self.holds(0, length);
        let request = self.bytes.get(self.head..end).unwrap_or_default();
        self.head = end;
        Some((entry, request))
    }

    /// The server takes no more for now: what waits for that is not the door's own time.
    pub(super) fn is_blocked_by_server(&mut self) {
        self.sampled.take_if(|sampled| sampled.took.is_none());
    }

    /// Whether a request is measured.
    pub(super) fn samples(&self) -> bool {
        self.sampled.is_some()
    }

    /// How long the request that is measured took to be written, once it was taken out.
    pub(super) fn measured(&mut self) -> Option<Duration> {
        let sampled = self.sampled.take_if(|sampled| sampled.is_out)?;
        sampled.took
    }

    /// More, and less, is held.
    fn holds(&self, more: usize, less: usize) {
        self.held.set((self.held.get() + more).saturating_sub(less));
    }

    /// When the oldest reply is overdue: `limit` after it could have come. `None` for never.
    pub(super) fn due(&self, limit: Duration) -> Option<Instant> {
        let oldest = self.pending.front()?;
        let until = match &oldest.entry.note {
            Note::Waited(waited) => waited.until?,
            _ => oldest.begun,
        };
        due((oldest.begun, until), self.unblocked, limit)
    }

    /// Whether a reply is waited for that may take as long as it likes.
    pub(super) fn is_blocked(&self) -> bool {
        // Nothing is sent behind one.
        self.pending.back().is_some_and(|last| last.entry.waits())
    }

    /// Whether a reply is waited for that may never come.
    pub(super) fn waits_for_ever(&self) -> bool {
        let last = self.pending.back().map(|last| &last.entry.note);
        matches!(last, Some(Note::Waited(waited)) if waited.until.is_none())
    }

    /// Whether the server may have got a whole request that it did not answer.
    pub(super) fn is_in_doubt(&self) -> bool {
        self.pending.front().is_some_and(|oldest| self.head + oldest.length <= self.written)
    }

    /// The oldest entry.
    pub(super) fn oldest(&self) -> Option<&Entry> {
        Some(&self.pending.front()?.entry)
    }

    /// From now on the oldest can be answered: the connection is up, or a reply has ended that kept those behind it
    /// waiting.
    pub(super) fn can_be_answered(&mut self) {
        self.unblocked = Some(Instant::now());
    }

    /// The client of the oldest reply does not take it, which keeps all of them waiting.
    pub(super) fn is_held_up(&mut self) {
        self.held_up = Some(Instant::now());
    }

    /// The same, to be changed.
    pub(super) fn oldest_mut(&mut self) -> Option<&mut Entry> {
        Some(&mut self.pending.front_mut()?.entry)
    }

    /// What is to be done with the next reply.
    pub(super) fn oldest_note(&mut self) -> Option<&mut Note> {
        Some(&mut self.oldest_mut()?.note)
    }

    /// The entries, oldest first.
    pub(super) fn entries(&mut self) -> impl Iterator<Item = &mut Entry> {
        self.pending.iter_mut().map(|pending| &mut pending.entry)
    }

    /// The entries that were taken before then, with their requests, oldest first.
    pub(super) fn older_than(
        &mut self,
        before: Instant,
    ) -> impl Iterator<Item = (&mut Entry, &[u8])> {
        let (bytes, mut head) = (&self.bytes, self.head);
        let old = self.pending.iter_mut().take_while(move |pending| pending.begun <= before);
        old.map(move |pending| {
            let from = head;
            head += pending.length;
            (&mut pending.entry, bytes.get(from..head).unwrap_or_default())
        })
    }

    /// Takes out all entries, oldest first. The ring is empty afterwards.
    pub(super) fn give_back(&mut self) -> Vec<Unanswered> {
        let (bytes, pending) = (mem::take(&mut self.bytes), mem::take(&mut self.pending));
        let (mut head, written) = (mem::take(&mut self.head), mem::take(&mut self.written));
        (self.unblocked, self.sampled) = (None, None);
        let mut out = Vec::with_capacity(pending.len());
        for Pending { entry, length, begun } in pending {
            let end = head + length;
            let body = Bytes::copy_from_slice(bytes.get(head..end).unwrap_or_default());
            out.push(Unanswered { entry, body, sent: end <= written, begun });
            self.holds(0, length);
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

/// When a reply is overdue that could come `until` then at the latest, or when it was `begun` if that is later, if
/// nothing kept the request from being answered from then on. If something did until it was `unblocked`, the server
/// begins, and ends, as much later.
fn due(
    (begun, until): (Instant, Instant),
    unblocked: Option<Instant>,
    limit: Duration,
) -> Option<Instant> {
    let late = unblocked.map(|at| at.saturating_duration_since(begun)).unwrap_or_default();
    until.max(begun).checked_add(late)?.checked_add(limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_is_overdue_as_late_as_the_server_could_begin() {
        let (begun, limit) = (Instant::now(), Duration::from_secs(2));
        let at = |seconds| begun + Duration::from_secs(seconds);
        // When it could come at the latest, when what held it up ended, and when it is overdue, in seconds.
        for (until, unblocked, overdue) in
            [(0, None, 2), (0, Some(1), 3), (5, None, 7), (5, Some(1), 8), (1, Some(5), 8)]
        {
            let due = due((begun, at(until)), unblocked.map(at), limit);
            assert_eq!(due, Some(at(overdue)), "{until}, {unblocked:?}");
        }
        // What it was to wait for was over before it was sent.
        assert_eq!(due((at(3), at(1)), None, limit), Some(at(5)));
        // It ended before that one was sent.
        assert_eq!(due((at(3), at(4)), Some(at(1)), limit), Some(at(6)));
    }
}
