//! What the queued writes of a lane make of a value that is read.
//!
//! ```text
//!  read ──▶ folded already? (the index) ──▶ answered, without the disk
//!              │ no
//!              └─▶ one reader per lane reads what is new, on a thread that may block, and leaves what it comes to
//! ```
//! No thread of the runtime reads the store here. At most four threads do for one queue, whatever the number of
//! those who wait for them; and who leaves meanwhile leaves a reading that ends by itself.

use std::sync::{Arc, Weak};

use fusebox_state::{
    UnixMillis,
    queue::{Held, InLane},
    store::StoreError,
};

use super::Queue;
use crate::connector::{Connector, Overlay, QueuedWrite, Said, SharedConnector, Slot};

/// Writes that are read at a time, at first; more if that does not come to an end.
const READ_AT_ONCE: usize = 256;
/// How often a reader looks again whose writes are replayed while it reads them.
const LOOKS: u32 = 24;

/// What queued writes make of one slot.
pub(crate) enum Overlaid {
    /// None waits in its lane.
    Nothing,
    /// They determine it.
    Value(bytes::Bytes),
    /// They leave it as it was before them.
    AsBefore,
    /// They do not determine it.
    Undetermined,
}

/// What the index keeps for a lane.
struct Kept {
    overlay: Box<dyn Overlay>,
    /// Who made it: another connector may read the same writes otherwise.
    of: Weak<dyn Connector>,
}

impl Kept {
    fn serves(&self, connector: &SharedConnector, slot: &Slot) -> bool {
        std::ptr::addr_eq(self.of.as_ptr(), Arc::as_ptr(connector)) && self.overlay.serves(slot)
    }
}

fn kept(held: &Held) -> Option<&Kept> {
    held.downcast_ref()
}

impl Queue {
    /// What the writes that wait in its lane make of `slot` at `now`.
    pub(crate) async fn overlaid(
        self: &Arc<Self>,
        connector: &SharedConnector,
        slot: &Slot,
        now: UnixMillis,
    ) -> Overlaid {
        let mut most = READ_AT_ONCE;
        for _ in 0..LOOKS {
            match self.in_lane(connector, slot) {
                InLane::Nothing => return Overlaid::Nothing,
                InLane::Unknowable => return Overlaid::Undetermined,
                InLane::Folded(held) => return answer(&held, slot, now),
                // No write determines it.
                InLane::Unfolded if connector.overlay(slot).is_none() => {
                    return Overlaid::Undetermined;
                }
                InLane::Unfolded => {}
            }
            let turn = self.folding.turn(slot.lane).lock_owned().await;
            if !matches!(self.in_lane(connector, slot), InLane::Unfolded) {
                continue;
            }
            let (queue, connector, of) = (Arc::clone(self), Arc::clone(connector), slot.clone());
            let reading = self.ground.run(move || {
                let read = queue.fold_next(&connector, &of, most);
                drop(turn);
                read
            });
            match reading.await {
                Ok(Read::All(held)) => return answer(&held, slot, now),
                Ok(Read::More) => most = most.saturating_mul(2),
                Ok(Read::Not) | Err(_) => return Overlaid::Undetermined,
            }
        }
        Overlaid::Undetermined
    }

    /// What the writes that wait in its lane make of `slot`, which held `before` at `then`, before the first of them.
    /// Nothing is kept of it. `None` if they do not determine it, or there are too many.
    pub(crate) async fn over(
        self: &Arc<Self>,
        slot: &Slot,
        (before, then): (Box<dyn Overlay>, UnixMillis),
        now: UnixMillis,
    ) -> Option<bytes::Bytes> {
        let writes = self.index.lock().writes_of(slot.lane, READ_AT_ONCE)?;
        // What was read since then may know of some of them.
        if writes.first()?.accepted_at <= then {
            return None;
        }
        let turn = self.folding.turn(slot.lane).lock_owned().await;
        let (queue, of) = (Arc::clone(self), slot.clone());
        let reading = self.ground.run(move || {
            let (_turn, store, mut overlay) = (turn, queue.store().ok()?, before);
            for write in &writes {
                let body = store.body(write.seq).ok()?;
                let (accepted_at, due) = (write.accepted_at, write.due);
                overlay.write(&QueuedWrite { body, accepted_at, due });
            }
            match overlay.says(&of, now) {
                Said::Reply(reply) => Some(reply),
                Said::AsBefore | Said::Nothing => None,
            }
        });
        reading.await.ok().flatten()
    }

    fn in_lane(&self, connector: &SharedConnector, slot: &Slot) -> InLane {
        let usable = |held: &Held| kept(held).is_some_and(|kept| kept.serves(connector, slot));
        self.index.lock().in_lane(slot.lane, usable)
    }

    /// Folds the next writes of the slot's lane, at most `most`. Blocks on the disk.
    fn fold_next(&self, connector: &SharedConnector, slot: &Slot, most: usize) -> Read {
        let usable = |held: &Held| kept(held).is_some_and(|kept| kept.serves(connector, slot));
        let Some(reading) = self.index.lock().begin_fold(slot.lane, most, usable) else {
            return Read::More;
        };
        let before = reading.held.as_ref().and_then(kept).map(|kept| kept.overlay.fork());
        let (Some(mut overlay), Ok(store)) =
            (before.or_else(|| connector.overlay(slot)), self.store())
        else {
            return Read::Not;
        };
        let mut base = None;
        for write in &reading.writes {
            let body = match store.body(write.seq) {
                Ok(body) => body,
                // It was replayed and removed meanwhile: look at the lane again.
                Err(StoreError::NotFound { .. }) => return Read::More,
                Err(_) => return Read::Not,
            };
            let queued = QueuedWrite { body, accepted_at: write.accepted_at, due: write.due };
            if overlay.write(&queued) {
                base = Some(write.seq);
            }
        }
        let bytes = overlay.bytes();
        let held: Held = Arc::new(Kept { overlay, of: Arc::downgrade(connector) });
        self.index.lock().folded(&reading, base, Arc::clone(&held), bytes);
        if reading.writes.len() < most { Read::All(held) } else { Read::More }
    }
}

/// How far a reading came.
enum Read {
    /// All is folded.
    All(Held),
    /// There may be more.
    More,
    /// They cannot be read, or determine nothing.
    Not,
}

fn answer(held: &Held, slot: &Slot, now: UnixMillis) -> Overlaid {
    match kept(held).map(|kept| kept.overlay.says(slot, now)) {
        Some(Said::Reply(reply)) => Overlaid::Value(reply),
        Some(Said::AsBefore) => Overlaid::AsBefore,
        Some(Said::Nothing) | None => Overlaid::Undetermined,
    }
}
