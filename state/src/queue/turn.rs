//! What goes on the wire when a call's turn has come: the call itself, the group that it belongs to, calls that
//! can be sent with it as one, or the only write of its lane that still matters.
//!
//! **Groups.** Calls that were sent as one stay together while their outcome is unknown: they are sent again as the
//! same group, become one dead letter, and are revived as one. The first of them leads: the others go on the wire when
//! it may, and not before. A group whose attempt is proven to have written
//! nothing is dissolved, and its calls go into groups of at most half its size from then on, so that the one that is
//! refused ends up alone.
//!
//! **The last write of a lane.** If every queued write of a lane up to a later one is absolute, touches this lane
//! alone and has no name of its caller's own, and the later one sets the whole value, then only the later one is
//! sent: the others make no difference. They are removed after it was applied, oldest first and the one that was
//! sent last, so that a crash in between leaves a line whose last write is the same. At most a thousand or so are
//! overtaken in one turn. If the later one becomes a dead letter, the others are sent after all, unless it may have been
//! applied, by an earlier run perhaps: then they would come back over it, and become dead letters before it does.

use super::{Entry, Group, Phase, QueueIndex};
use crate::{
    units::{Lanes, OpId},
    write::{Known, Repeat},
};

/// The most calls that one makes meaningless at once: a longer line goes in steps, so that no turn walks along a
/// line of any length.
const OVERTAKEN_MAX: usize = 1_024;

/// What goes on the wire together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Turn {
    /// The calls to be sent, ascending; several are sent as one.
    pub seqs: Vec<u64>,
    /// They are a group that was sent before.
    pub again: bool,
    /// Calls that the only one in `seqs` makes meaningless, oldest first.
    pub overtaken: Vec<u64>,
}

impl QueueIndex {
    /// What is sent when it is `seq`'s turn, which was [taken](QueueIndex::take). At most `calls` calls of at
    /// most `bytes` together are sent as one.
    pub fn turn(&mut self, seq: u64, calls: usize, bytes: u64) -> Turn {
        let Some(entry) = self.calls.entries.get(seq) else { return Turn::default() };
        if let Some(group) = entry.details().group.and_then(|id| self.groups.get(&id)) {
            let seqs = group.members.clone();
            self.begin_sending(seqs.iter().copied().filter(|member| *member != seq));
            return Turn { seqs, again: true, overtaken: Vec::new() };
        }
        if let Some(gather) = entry.header.traits.gather().filter(|_| entry.may_gather()) {
            let seqs = self.gather(seq, gather, calls, bytes);
            self.begin_sending(seqs.iter().copied().filter(|member| *member != seq));
            return Turn { seqs, ..Turn::default() };
        }
        if let Some((last, overtaken)) = self.last_whole(seq) {
            let begun: Vec<u64> = overtaken.iter().copied().chain([last]).collect();
            self.begin_sending(begun.into_iter().filter(|member| *member != seq));
            return Turn { seqs: vec![last], again: false, overtaken };
        }
        Turn { seqs: vec![seq], ..Turn::default() }
    }

    /// Notes that calls were sent as one, or are about to be.
    pub fn form_group(&mut self, members: Vec<u64>, token: OpId, broken: bool) {
        let Some(id) = members.first().copied() else { return };
        let mut dead = 0;
        for seq in &members {
            if let Some(entry) = self.calls.entries.get_mut(*seq) {
                entry.details_mut().group = Some(id);
            } else if self.calls.dead.join_group(*seq, id) {
                dead += 1;
            }
        }
        self.dead_in_groups += usize::try_from(dead).unwrap_or(usize::MAX).saturating_sub(1);
        self.groups.insert(id, Group { members, token, broken, dead });
    }

    /// The group of `id` wrote nothing: its calls are on their own. If it was their own fault, they go into groups
    /// of at most half its size from now on.
    pub fn dissolve_group(&mut self, id: u64, halved: bool) {
        let Some(group) = self.groups.remove(&id) else { return };
        let half = u32::try_from(group.members.len() / 2).unwrap_or(u32::MAX).max(1);
        for seq in group.members {
            if let Some(entry) = self.calls.entries.get_mut(seq) {
                let details = entry.details_mut();
                details.group = None;
                if halved {
                    details.group_max = details.group_max.min(half);
                }
            }
            self.consider(seq);
        }
    }

    /// The group of that id.
    pub fn group(&self, id: u64) -> Option<&Group> {
        self.groups.get(&id)
    }

    /// The dead letters of a group wait again; returns them. `None` if there are none. They are COMMITTING until that is
    /// stored ([`QueueIndex::committed`]); if it is not, [bury](QueueIndex::buried) those that still are.
    pub fn revive(&mut self, id: u64) -> Option<Vec<u64>> {
        let members = self.groups.get(&id)?.members.iter().copied();
        let dead: Vec<u64> = members.filter(|seq| self.calls.dead.contains_key(seq)).collect();
        for seq in &dead {
            let Some(mut entry) = self.calls.dead.remove(*seq) else { continue };
            self.dead_bytes -= entry.size();
            self.count_out(&entry);
            self.bytes += entry.size();
            entry.begins_again();
            entry.state.asked_again();
            self.calls.entries.insert(*seq, Entry { phase: Phase::Committing, ..entry });
            self.line_up(*seq);
            self.lanes.set_opaque(*seq, false, &self.calls);
            self.changed(*seq);
        }
        (!dead.is_empty()).then_some(dead)
    }

    /// The call, and those that it was sent with as one, ascending.
    pub fn sent_with(&self, seq: u64) -> Vec<u64> {
        let group = self.get(seq).and_then(|entry| self.groups.get(&entry.details().group?));
        group.map_or_else(|| vec![seq], |group| group.members.clone())
    }

    /// Whether `seq` is on its own, or the first call of its group that is no dead letter.
    pub(super) fn leads(&self, seq: u64, entry: &Entry) -> bool {
        let leader = entry.details().group.and_then(|id| self.leader(id));
        leader.is_none_or(|leader| leader == seq)
    }

    fn leader(&self, id: u64) -> Option<u64> {
        let members = &self.groups.get(&id)?.members;
        members.iter().copied().find(|member| self.calls.entries.get(*member).is_some())
    }

    /// A call of the group `id` is no longer among those that wait: another may lead it.
    pub(super) fn consider_leader(&mut self, id: Option<u64>) {
        if let Some(leader) = id.and_then(|id| self.leader(id)) {
            self.consider(leader);
        }
    }

    /// A dead letter of a group: all but the first do not count.
    pub(super) fn count_in(&mut self, entry: &Entry) {
        if let Some(group) = entry.details().group.and_then(|id| self.groups.get_mut(&id)) {
            self.dead_in_groups += usize::from(group.dead > 0);
            group.dead += 1;
        }
    }

    pub(super) fn count_out(&mut self, entry: &Entry) {
        if let Some(group) = entry.details().group.and_then(|id| self.groups.get_mut(&id)) {
            group.dead = group.dead.saturating_sub(1);
            self.dead_in_groups -= usize::from(group.dead > 0);
        }
    }

    /// A call of the group `id` is gone.
    pub(super) fn leave_group(&mut self, seq: u64, id: Option<u64>) {
        let Some(id) = id else { return };
        if let Some(group) = self.groups.get_mut(&id) {
            group.members.retain(|member| *member != seq);
            if group.members.is_empty() {
                self.groups.remove(&id);
            }
        }
        self.consider_leader(Some(id));
    }

    fn begin_sending(&mut self, seqs: impl Iterator<Item = u64>) {
        for seq in seqs {
            self.becomes(seq, Phase::Sending);
        }
    }

    /// `seq` and what may be sent with it as one, ascending.
    fn gather(&self, seq: u64, gather: u64, calls: usize, bytes: u64) -> Vec<u64> {
        let Some(first) = self.calls.entries.get(seq) else { return Vec::new() };
        let (mut seqs, mut held) = (vec![seq], first.size());
        let mut most = calls.min(first.details().group_max as usize);
        for other in self.ready.gathering(gather) {
            if seqs.len() >= most {
                break;
            }
            let Some(entry) = self
                .calls
                .entries
                .get(other)
                .filter(|entry| entry.may_gather() && self.may_move(other))
            else {
                continue;
            };
            let limit = most.min(entry.details().group_max as usize);
            let size = entry.size();
            if held + size > bytes || seqs.len() >= limit {
                continue;
            }
            most = limit;
            held += size;
            seqs.push(other);
        }
        seqs.sort_unstable();
        seqs
    }

    /// The last call of `seq`'s lane that makes all before it meaningless, and those; at most [`OVERTAKEN_MAX`].
    fn last_whole(&self, seq: u64) -> Option<(u64, Vec<u64>)> {
        let Lanes::One(lane) = self.calls.entries.get(seq)?.header.lanes else { return None };
        self.lanes.wholes(lane, &self.calls).next().filter(|whole| *whole > seq)?;
        let (mut passed, mut found) = (Vec::new(), None);
        for member in self.lanes.line_from(lane, seq, &self.calls)?.take(OVERTAKEN_MAX + 1) {
            let Some(entry) = self.calls.entries.get(member) else { break };
            let can_wait = match entry.phase {
                Phase::Waiting | Phase::BackingOff => true,
                Phase::Sending => member == seq,
                Phase::Committing | Phase::Removing => false,
            };
            let alone = matches!(entry.header.lanes, Lanes::One(_));
            // One with a verdict is not sent again.
            let may_go = can_wait && entry.details().verdict.is_none();
            if !(may_go && alone && entry.is_absolute() && !entry.own_name) {
                break;
            }
            if entry.header.traits.is_whole() && member != seq {
                found = Some((member, passed.len()));
            }
            passed.push(member);
        }
        let (last, count) = found?;
        passed.truncate(count);
        Some((last, passed))
    }
}

impl Entry {
    /// Whether it leaves the same state however often it is applied.
    pub fn is_absolute(&self) -> bool {
        self.state.repeat() == Repeat::Absolute
    }

    /// Whether it may go into a group: nothing is in doubt, and its name is nobody's own.
    fn may_gather(&self) -> bool {
        let known = self.state.known();
        matches!(known, Known::Fresh | Known::NotExecuted)
            && self.details().group.is_none()
            && !self.own_name
    }
}
