//! What is known of each key: the entries of the map of deadlines.

use std::collections::HashMap;

use fusebox_state::LaneId;

/// By which connection a write goes. By one and the same, the server applies writes in the order in which they were
/// begun; `None` if that is not known of this write.
pub(crate) type Way = Option<usize>;

/// Whose an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// The live write's of this number.
    Live(u64),
    /// The queued write's of this hash, which settles the key once it is replayed.
    Queued(u64),
}

impl Owner {
    pub(super) const NOBODY: Self = Self::Live(0);
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    /// The key, by its keyed hash.
    pub(super) key: u64,
    /// When the key ends, in milliseconds since the epoch; `None` while that is not known.
    pub(super) at: Option<u64>,
    pub(super) owner: Owner,
    /// How many writes hold it, and by which way the last of them goes.
    pub(super) held: u32,
    pub(super) way: Way,
    /// In which order these are applied is not known.
    pub(super) is_mixed: bool,
}

impl Entry {
    pub(super) const NEW: Self =
        Self { key: 0, at: None, owner: Owner::NOBODY, held: 0, way: None, is_mixed: false };

    /// A write holds it that goes by that way. `is_mixed` if others may settle it now that do not hold it. True if no
    /// other write holds it.
    pub(super) fn hold(&mut self, way: Way, is_mixed: bool) -> bool {
        let follows = self.held == 0 || way.is_some() && self.way == way;
        self.is_mixed |= is_mixed || !follows;
        (self.held, self.way) = (self.held.saturating_add(1), way);
        if self.is_mixed {
            self.at = None;
        }
        self.held == 1
    }

    /// A write that held it has ended. True if no other write holds it.
    pub(super) fn release(&mut self) -> bool {
        self.held = self.held.saturating_sub(1);
        self.is_mixed &= self.held > 0;
        self.held == 0
    }

    /// Nothing is known of it, nor will be by what holds it now.
    pub(super) fn forget(&mut self) {
        (self.at, self.owner) = (None, Owner::NOBODY);
        self.is_mixed = self.held > 0;
    }

    /// Whether it says anything, or will.
    pub(super) fn is_needed(&self) -> bool {
        self.held > 0 || self.at.is_some() || matches!(self.owner, Owner::Queued(_))
    }
}

/// A key's place in the map.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) lane: LaneId,
    pub(super) key: u64,
}

#[derive(Debug, Default)]
pub(super) struct Entries {
    pub(super) by_lane: HashMap<LaneId, Entry>,
    /// How many lanes are held.
    pub(super) held: usize,
}

impl Entries {
    pub(super) fn get(&self, place: Place) -> Option<&Entry> {
        self.by_lane.get(&place.lane).filter(|entry| entry.key == place.key)
    }

    pub(super) fn get_mut(&mut self, place: Place) -> Option<&mut Entry> {
        self.by_lane.get_mut(&place.lane).filter(|entry| entry.key == place.key)
    }

    /// Whether `lanes`, each of which is there once, can be held so that no more than `max` are.
    pub(super) fn has_room(&self, lanes: &[LaneId], max: usize) -> bool {
        let is_free = |lane: &&LaneId| self.by_lane.get(lane).is_none_or(|entry| entry.held == 0);
        self.held + lanes.len() <= max || self.held + lanes.iter().filter(is_free).count() <= max
    }

    /// A write holds a lane that goes by that way.
    pub(super) fn hold(&mut self, lane: LaneId, way: Way, is_mixed: bool) -> &mut Entry {
        let entry = self.by_lane.entry(lane).or_insert(Entry::NEW);
        self.held += usize::from(entry.hold(way, is_mixed));
        entry
    }

    /// Changes the entry of a lane, if there is one. It goes if it is not needed any more.
    pub(super) fn change(&mut self, lane: LaneId, change: impl FnOnce(&mut Entry)) {
        let is_needed = self.by_lane.get_mut(&lane).is_none_or(|entry| {
            change(entry);
            entry.is_needed()
        });
        if !is_needed {
            self.by_lane.remove(&lane);
        }
    }
}
