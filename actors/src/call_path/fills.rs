//! Leave to fill the cache.

use std::sync::Arc;

use bytes::Bytes;
use fusebox_state::{
    LaneId, Moment,
    cache::{Cache, Copying, Fill},
    shelf::Label,
};

use crate::{
    clock::Clock,
    connector::{Connector, Read, SharedConnector, Slot},
};

/// By what a reply is kept that came in pieces.
pub(super) struct Keeper {
    pub(super) connector: SharedConnector,
    pub(super) clock: Clock,
}

/// Leave to fill the cache with what a read will answer, slot by slot. It belongs to the cache that was in use when
/// the read began: one that took its place since knows nothing of writes that came between.
pub struct Fills {
    cache: Arc<Cache>,
    fills: Vec<Option<Fill>>,
}

impl Fills {
    pub(super) fn cache(&self) -> &Arc<Cache> {
        &self.cache
    }

    pub(super) fn begin(
        cache: Arc<Cache>,
        read: &Read,
        connector: &dyn Connector,
        now: Moment,
    ) -> Self {
        let fill = |slot: &Slot| {
            let leave = leave_to_fill(&cache, connector, slot.lane, now)?;
            Some(leave.outlasting(connector.outlasts(slot)))
        };
        let fills = read.slots.iter().map(fill).collect();
        Self { cache, fills }
    }

    /// Fills the cache with the reply of a read of one slot, which may be large. `room` is held until it is kept.
    pub(super) fn end_large(&self, read: &Read, reply: Bytes, keeper: &Keeper, room: Copying) {
        let ([slot], [Some(fill)]) = (read.slots.as_slice(), self.fills.as_slice()) else { return };
        let now = keeper.clock.now();
        let until = keeper.connector.expires(slot).map(|left| now.plus(left));
        let label = Label {
            target: keeper.connector.view(),
            lane: slot.lane,
            key: slot.key.clone(),
            at: keeper.clock.to_unix(now),
            until: until.map(|until| keeper.clock.to_unix(until)),
        };
        Cache::fill_large(&self.cache, *fill, label, reply, (now, until), room);
    }

    /// Fills the cache with the parts of a reply, one for each slot.
    pub(super) fn end(&self, read: &Read, parts: &[Bytes], connector: &dyn Connector, now: Moment) {
        for ((slot, fill), part) in read.slots.iter().zip(&self.fills).zip(parts) {
            if let Some(fill) = *fill {
                let until = connector.expires(slot).map(|left| now.plus(left));
                self.cache.fill(fill, &slot.key, part, now, until);
            }
        }
    }
}

/// Leave to fill a lane, unless a write that was given up may still land there.
pub(super) fn leave_to_fill(
    cache: &Cache,
    connector: &dyn Connector,
    lane: LaneId,
    now: Moment,
) -> Option<Fill> {
    // First the mark: a write that begins behind it is seen by it, and one that began before it here.
    let fill = cache.begin(lane);
    let doubtful = cache.is_barred(lane, now) || connector.may_land(lane);
    (!doubtful).then_some(fill)
}
