//! Whether it makes sense to wait for a lane.

use std::collections::HashSet;

use super::{Phase, QueueIndex};
use crate::units::{LaneId, Lanes};

/// So many calls at the head of a line are looked at; a longer row of calls that are being removed is moving.
const LOOK_AT: usize = 64;
/// So many lanes are looked at, those that hold up others included; what more of them hold up is taken for moving.
const LANES_MAX: usize = 256;

impl QueueIndex {
    /// Whether who waits for `lanes` waits for longer than an attempt takes: the head of one of them backs off. With
    /// `dead_letters_hold` a dead letter in a lane waits for an operator, else for its mark to be synced.
    ///
    /// Calls that are on the wire, are being stored or removed, or may be sent at once, are moving.
    pub fn is_stuck(&self, lanes: &Lanes, dead_letters_hold: bool) -> bool {
        if lanes.is_all() {
            // It waits for all of them.
            return !self.backing_off.is_empty();
        }
        // Calls of many lanes hold each other up in all of them: each lane is looked at once.
        let mut seen = HashSet::new();
        let mut each = lanes.as_slice().iter();
        self.barrier_is_stuck()
            || each.any(|lane| self.lane_is_stuck(*lane, dead_letters_hold, &mut seen))
    }

    /// A barrier waits for all that is older, and holds up all that is newer.
    fn barrier_is_stuck(&self) -> bool {
        self.lanes.first_barrier().is_some_and(|barrier| {
            self.backing_off.iter().take(LOOK_AT).any(|(_, seq)| *seq <= barrier)
        })
    }

    fn lane_is_stuck(
        &self,
        lane: LaneId,
        dead_letters_hold: bool,
        seen: &mut HashSet<LaneId>,
    ) -> bool {
        if seen.len() >= LANES_MAX || !seen.insert(lane) {
            return false;
        }
        let members = self.lanes.line_from(lane, 0, &self.calls).into_iter().flatten();
        for seq in members.take(LOOK_AT) {
            let Some(entry) = self.calls.entries.get(seq) else {
                // The place of a live write in doubt moves.
                return dead_letters_hold && self.calls.dead.contains_key(&seq);
            };
            match entry.phase {
                Phase::BackingOff => return true,
                Phase::Sending | Phase::Committing => return false,
                Phase::Removing => {}
                // A residue lets others pass, and waits for them.
                Phase::Waiting if entry.header.traits.due().is_some() => {}
                Phase::Waiting => {
                    let mut others = entry.header.lanes.as_slice().iter();
                    return !self.may_move(seq)
                        && others.any(|other| self.lane_is_stuck(*other, dead_letters_hold, seen));
                }
            }
        }
        false
    }
}
