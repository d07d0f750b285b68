//! Whether there is room for a call.

use super::{QueueIndex, RESUME_PERCENT, Refusal};

impl QueueIndex {
    /// So many bytes have come by now of the call that holds `claim`. It counts against the limits as if it was
    /// queued, until it is [admitted](QueueIndex::admit) or [given up](QueueIndex::unclaim).
    ///
    /// # Errors
    /// [`Refusal::Full`] if there is no room for that; nothing changed.
    pub fn arrives(&mut self, claim: u64, bytes: u64) -> Result<(), Refusal> {
        self.room(Some(claim), bytes)?;
        self.arriving.insert(claim, bytes);
        Ok(())
    }

    /// Whether there is room for a call of `bytes`, which holds `claim` if it has one.
    pub(super) fn room(&mut self, claim: Option<u64>, bytes: u64) -> Result<(), Refusal> {
        if self.full && self.fill_without(claim) < RESUME_PERCENT {
            self.full = false;
        }
        let (calls, held) = self.taken(claim);
        let (limit, limit_bytes) = (u64::from(self.limits.items), self.limits.bytes);
        if self.full || calls >= limit || held + bytes > limit_bytes {
            return Err(Refusal::Full { calls, limit, bytes: held, limit_bytes });
        }
        Ok(())
    }

    /// The calls that count against the limits, and their bytes, but for the one that holds the claim `but`.
    pub(super) fn taken(&self, but: Option<u64>) -> (u64, u64) {
        let own = but.and_then(|claim| self.arriving.all.get(&claim));
        let calls = self.calls.entries.len() + self.arriving.all.len() - usize::from(own.is_some());
        (calls as u64, self.bytes + self.arriving.bytes - own.copied().unwrap_or_default())
    }
}
