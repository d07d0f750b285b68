//! What an index says of itself: counts, limits, and what is in its lanes.

use super::{QueueIndex, QueueLimits, RESUME_PERCENT};
use crate::units::{Moment, UnixMillis};

impl QueueIndex {
    /// When a backoff ends next.
    pub fn next_due(&self) -> Option<Moment> {
        self.backing_off.first().map(|(until, _)| *until)
    }

    /// Whether something could go on the wire at this moment.
    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// The highest sequence given out.
    pub fn last_seq(&self) -> u64 {
        self.next_seq - 1
    }

    /// Calls that wait, dead letters excluded.
    pub fn len(&self) -> usize {
        self.calls.entries.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.calls.entries.is_empty()
    }

    /// Bytes of the calls that wait.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Dead letters and their bytes. Calls that were sent as one are one.
    pub fn dead(&self) -> (usize, u64) {
        (self.calls.dead.len() - self.dead_in_groups, self.dead_bytes)
    }

    /// Whether one more dead letter of `bytes` would be too many: then lanes block instead.
    pub fn dead_full(&self, bytes: u64) -> bool {
        self.dead().0 >= self.limits.dead_items as usize
            || self.dead_bytes + bytes > self.limits.dead_bytes
    }

    /// Whether calls that replay gives up on block their lanes, because one more dead letter would be too many
    /// or because one waits for which there is no room.
    pub fn dead_letters_block(&self) -> bool {
        self.dead_full(self.sentenced.largest().unwrap_or_default().max(1))
    }

    /// Numbers new calls above `last_seq`, too: that of a store which holds none, and which was opened late.
    pub fn follow(&mut self, last_seq: u64) {
        self.next_seq = self.next_seq.max(last_seq + 1);
    }

    /// Whether it refuses writes because it is, or was, full.
    pub fn is_full(&self) -> bool {
        let (calls, bytes) = self.taken(None);
        calls >= u64::from(self.limits.items)
            || bytes >= self.limits.bytes
            || (self.full && self.fill_percent() >= RESUME_PERCENT)
    }

    /// The larger share of its two limits in use, in percent. Calls that arrive in pieces count, too.
    pub fn fill_percent(&self) -> f64 {
        self.fill_without(None)
    }

    /// The same without the call that holds the claim `but`.
    pub(super) fn fill_without(&self, but: Option<u64>) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a percentage for people and thresholds")]
        let share = |part: u64, whole: u64| part as f64 * 100.0 / whole.max(1) as f64;
        let (calls, bytes) = self.taken(but);
        share(calls, self.limits.items.into()).max(share(bytes, self.limits.bytes))
    }

    /// When the oldest waiting call was accepted.
    pub fn oldest(&self) -> Option<UnixMillis> {
        self.calls.entries.values().next().map(|entry| entry.header.accepted_at)
    }

    /// Calls and claims that somebody may have to wait for.
    pub fn standing(&self) -> usize {
        self.lanes.standing()
    }

    /// What is in lanes, for people who look for a fault.
    pub fn places(&self) -> Vec<String> {
        let what =
            |seq: u64| match (self.calls.entries.get(seq), self.calls.dead.contains_key(&seq)) {
                (Some(entry), _) => format!("call {seq}, {:?}", entry.phase),
                (None, true) => format!("dead letter {seq}"),
                (None, false) if self.calls.claims.contains_key(&seq) => format!("claim {seq}"),
                (None, false) => format!("place {seq}"),
            };
        self.lanes.places().map(what).collect()
    }

    /// Occupied lanes.
    pub fn occupied_lanes(&self) -> usize {
        self.lanes.occupied()
    }

    /// The limits.
    pub fn limits(&self) -> QueueLimits {
        self.limits
    }

    /// Takes other limits; what is above them stays.
    pub fn set_limits(&mut self, limits: QueueLimits) {
        self.limits = limits;
    }
}
