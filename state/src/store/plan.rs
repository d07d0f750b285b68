//! What of a raw log is live, and the proof of it.
//!
//! For one head, a *plan* names the newest value of every live key up to that head's commit, and compares it with the
//! head's digests. It is **exact** if all agree. If they do not, and the difference has one explanation that the sums
//! prove, the plan names what is lost: the call whose header has a flipped bit, say. Otherwise there is no
//! plan, and nothing of the log may be replayed by itself.
//!
//! # Which head
//! Candidates are the heads of the log and the one that the mark holds a copy of, none of them older than the mark.
//! The newest one that has an exact plan is it: a newer one that has none is the head of a commit that was never
//! completed, and so never acknowledged. If none is exact, it is the newest one whose losses can be named.
//! *(A head newer than the mark may have been acknowledged within the last 100 ms before a power cut. If a bit of that
//! commit flips as well, its loss is not reported.)*
//!
//! # What is beside a call
//! A note or a mark counts if its call is live, and only then. That of a group does so, too, though it names other calls:
//! the first of them goes last, so that what is left of a note without it was taken back or is done with. *(The space of
//! what took it back may have been used again before its own.)* If the first call of a group is lost, a rebuild puts the
//! note beside the next one that is left.
//!
//! The heads of earlier releases count the note of a group while any of its calls is live. If such a head counts one that
//! lacks its own call, a rebuild puts it beside the next as well.
//!
//! # How a difference is explained
//! The pool of what may be missing are the sequences between the floor and the last that are neither found nor recorded
//! as removed; of what may be too much (a removal record is lost), those found. Tried in this order: the whole pool;
//! one of it; a run of its neighbours; two of it; one missing with one too many. A sum of 64-bit hashes agrees by
//! chance once in 2⁶⁴, and at most 2²² sets are tried.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
};

use super::{
    head::{Class, Digests, Head, Sum, fact_hash},
    history, note,
    raw::{Key, Picked, Raw, Value},
    record::{self, GoneRecord, Kind},
};
use crate::seqs::SeqSet;

/// The largest pool that is searched for an explanation.
const POOL_MAX: usize = 1 << 22;

/// What a head vouches for and the log no longer has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Lost {
    /// Calls whose header, or a part of whose body, is gone.
    pub(super) calls: BTreeSet<u64>,
    /// Calls whose note of sending is gone.
    pub(super) notes: BTreeSet<u64>,
    /// Calls whose dead-letter mark is gone.
    pub(super) dead: BTreeSet<u64>,
    /// Facts are missing, or older ones in their place.
    pub(super) facts: bool,
}

impl Lost {
    fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// See the [module](self).
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// The head that it is the plan of.
    pub(super) head: Head,
    /// The values that are live. Without removal records.
    pub(super) values: Picked,
    pub(super) lost: Lost,
}

impl Plan {
    /// Whether everything that the head vouches for is there.
    pub(super) fn is_exact(&self) -> bool {
        self.lost.is_nothing()
    }

    /// The notes whose own call is not there: of groups of which others are.
    pub(super) fn notes_alone(&self) -> impl Iterator<Item = (u64, &Value)> {
        self.values.iter().filter_map(|value| match value.key {
            Key::Note(seq) if !self.values.contains(&Key::Call(seq)) => Some((seq, value)),
            _ => None,
        })
    }

    /// Why the log is rebuilt before it serves, though nothing of it is lost.
    pub(super) fn flaw(&self, raw: &Raw) -> Option<String> {
        let is_reached = raw.ends_with(&self.head);
        let unreached =
            || (!is_reached).then(|| "sled would not recover the last commit".to_owned());
        let alone = || self.notes_alone().next().map(|_| "a note lacks its own call".to_owned());
        raw.scars.first().cloned().or_else(unreached).or_else(alone)
    }

    /// Bytes of the live values.
    pub(super) fn bytes(&self) -> u64 {
        self.values.iter().map(|value| u64::from(value.place.length)).sum()
    }
}

/// Why there is no plan.
#[derive(Debug)]
pub(super) enum NoPlan {
    /// The log could not be read; it may be another time.
    Io(io::Error),
    /// What is missing cannot be named.
    Unprovable(String),
}

impl From<io::Error> for NoPlan {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// The plan of a log. `marked` is what the mark holds.
pub(super) fn choose(raw: &Raw, marked: Option<Head>) -> Result<Plan, NoPlan> {
    let oldest = marked.map_or(0, |head| head.commit);
    let mut candidates: BTreeMap<u64, Head> = raw
        .heads
        .values()
        .filter(|seen| seen.head.commit >= oldest)
        .map(|seen| (seen.head.commit, seen.head))
        .collect();
    let mut why = "the log has no head".to_owned();
    if let Some(marked) = marked {
        // At equal commits both must say the same.
        match candidates.insert(marked.commit, marked) {
            Some(head) if head != marked => {
                why = format!("head and mark of commit {} do not agree", marked.commit);
                candidates.remove(&marked.commit);
            }
            _ => {}
        }
    }
    let mut named: Option<Plan> = None;
    for head in candidates.into_values().rev() {
        match plan(raw, head) {
            Ok(plan) if plan.is_exact() => return Ok(plan),
            Ok(plan) => named = named.or(Some(plan)),
            Err(NoPlan::Io(error)) => return Err(NoPlan::Io(error)),
            Err(NoPlan::Unprovable(reason)) => why = reason,
        }
    }
    named.ok_or(NoPlan::Unprovable(why))
}

/// The plan for one head.
pub(super) fn plan(raw: &Raw, head: Head) -> Result<Plan, NoPlan> {
    let newest = raw.newest_of_each(head.commit);
    let gone = gone(raw, &newest)?;
    let mut found = Found::default();
    for Value { key, place, .. } in newest.iter() {
        if let Key::Call(seq) = key
            && *seq >= head.floor
            && !gone.contains(*seq)
        {
            found.calls.insert(*seq);
            if place.is_residue {
                found.residues.insert(*seq);
            }
        }
    }
    let calls = explain(Class::Calls, &found.calls, head.digests.calls, &|| {
        let all = head.floor..=head.last_seq;
        all.filter(|seq| !found.calls.contains(*seq) && !gone.contains(*seq))
            .take(POOL_MAX)
            .collect()
    })
    .ok_or_else(|| unprovable(Class::Calls, &found.calls, head.digests.calls))?;
    let mut lost = Lost { calls: calls.missing.clone(), ..Lost::default() };
    found.calls.remove_all(&calls.surplus);
    found.residues.remove_all(&calls.surplus);
    // The calls that were live, lost ones included.
    let mut live = found.calls.clone();
    live.extend(calls.missing.iter().copied());
    let among =
        |found: &SeqSet| -> Vec<u64> { live.iter().filter(|seq| !found.contains(*seq)).collect() };
    // The older header of a call whose residue is lost must not come back to life.
    let residues = explain(Class::Residues, &found.residues, head.digests.residues, &|| {
        among(&found.residues)
    })
    .filter(|residues| residues.surplus.is_empty())
    .ok_or_else(|| unprovable(Class::Residues, &found.residues, head.digests.residues))?;
    lost.calls.extend(residues.missing);
    found.marks(&newest, &live);
    let mut notes =
        explain(Class::Notes, &found.notes, head.digests.notes, &|| among(&found.notes));
    if notes.is_none() {
        // Heads of earlier releases count the note of a group also if only others of its calls are live.
        found.notes.extend(beside_none(raw, &newest, &live)?);
        notes = explain(Class::Notes, &found.notes, head.digests.notes, &|| among(&found.notes));
    }
    let notes = notes.ok_or_else(|| unprovable(Class::Notes, &found.notes, head.digests.notes))?;
    let dead = explain(Class::Dead, &found.dead, head.digests.dead, &|| among(&found.dead))
        .ok_or_else(|| unprovable(Class::Dead, &found.dead, head.digests.dead))?;
    found.notes.remove_all(&notes.surplus);
    found.dead.remove_all(&dead.surplus);
    lost.facts = facts(&newest) != head.digests.facts;
    let mut values = Vec::with_capacity(found.calls.len());
    for seq in found.calls.iter() {
        let key = Key::Call(seq);
        let at = newest.place_of(&key);
        let chunks = at.and_then(|at| newest.value(at)).map_or(0, |it| it.place.chunks);
        let chunks = (0..chunks).map(|at| newest.place_of(&Key::Chunk(seq, at)));
        let chunks: Option<Vec<u32>> = chunks.collect();
        if chunks.is_none() {
            lost.calls.insert(seq);
        }
        if lost.calls.contains(&seq) {
            continue;
        }
        values.extend(at);
        values.extend(chunks.into_iter().flatten());
    }
    found.dead.remove_all(&lost.calls);
    // What is noted of a group is known of all its calls, also if the first one is lost.
    let mut orphans = BTreeSet::new();
    for seq in lost.calls.iter().filter(|seq| found.notes.contains(**seq)) {
        let Some(value) = newest.get(&Key::Note(*seq)) else { continue };
        let is_alive = |member: &u64| live.contains(*member) && !lost.calls.contains(member);
        if !members(*seq, &raw.load(value.place)?).iter().any(is_alive) {
            orphans.insert(*seq);
        }
    }
    found.notes.remove_all(&orphans);
    lost.notes = notes.missing.difference(&lost.calls).copied().collect();
    lost.dead = dead.missing.difference(&lost.calls).copied().collect();
    values.extend(found.notes.iter().filter_map(|seq| newest.place_of(&Key::Note(seq))));
    values.extend(found.dead.iter().filter_map(|seq| newest.place_of(&Key::Dead(seq))));
    let facts = |value: &Value| matches!(value.key, Key::Fact(_)) && !value.place.is_void;
    let history = |value: &Value| matches!(value.key, Key::History(_));
    let kept = usize::try_from(history::KEPT).unwrap_or(usize::MAX);
    let of = |wanted: fn(&Value) -> bool| newest.with_places().filter(move |(_, it)| wanted(it));
    values.extend(of(facts).map(|(at, _)| at));
    values.extend(of(history).rev().take(kept).map(|(at, _)| at));
    Ok(Plan { head, values: newest.of_same(values), lost })
}

/// What the newest values say.
#[derive(Default)]
struct Found {
    calls: SeqSet,
    residues: SeqSet,
    notes: SeqSet,
    dead: SeqSet,
}

impl Found {
    /// Notes and marks beside a live call.
    fn marks(&mut self, newest: &Picked, live: &SeqSet) {
        for Value { key, .. } in newest.iter().filter(|value| !value.place.is_void) {
            match key {
                Key::Dead(seq) if live.contains(*seq) => drop(self.dead.insert(*seq)),
                Key::Note(seq) if live.contains(*seq) => drop(self.notes.insert(*seq)),
                _ => {}
            }
        }
    }
}

/// The notes of groups beside calls that are not live, of which others are.
fn beside_none(raw: &Raw, newest: &Picked, live: &SeqSet) -> io::Result<Vec<u64>> {
    let mut found = Vec::new();
    for Value { key, place, .. } in newest.iter().filter(|value| !value.place.is_void) {
        if let Key::Note(seq) = key
            && !live.contains(*seq)
            && members(*seq, &raw.load(*place)?).iter().any(|member| live.contains(*member))
        {
            found.push(*seq);
        }
    }
    Ok(found)
}

/// The calls that a note was made for as one; none if it was for one alone.
fn members(seq: u64, note: &[u8]) -> Vec<u64> {
    let group = note::decode(seq, note).ok().and_then(|note| note.group);
    group.map(|group| group.members).unwrap_or_default()
}

fn gone(raw: &Raw, newest: &Picked) -> Result<SeqSet, NoPlan> {
    let mut gone = SeqSet::default();
    for Value { key, place, .. } in newest.iter() {
        if let Key::Gone(_) = key
            && let Ok(record) =
                record::open(Kind::Gone, &raw.load(*place)?).and_then(|it| it.read::<GoneRecord>())
        {
            gone.set_bits(record.block, record.bits);
        }
    }
    Ok(gone)
}

fn facts(newest: &Picked) -> Sum {
    let mut sum = Sum::default();
    for Value { key, commit, place } in newest.iter() {
        if let Key::Fact(name) = key
            && !place.is_void
        {
            sum.add(fact_hash(name, *commit));
        }
    }
    sum
}

fn unprovable(class: Class, found: &SeqSet, expected: Sum) -> NoPlan {
    let class = match class {
        Class::Calls => "calls",
        Class::Residues => "deadlines",
        Class::Notes => "notes of sending",
        Class::Dead => "dead-letter marks",
    };
    NoPlan::Unprovable(format!(
        "{} {class} should be stored, but only {} are, and it is not known which are missing",
        expected.count,
        found.len()
    ))
}

/// Why a class differs from its digest.
#[derive(Debug, Default, PartialEq, Eq)]
struct Difference {
    missing: BTreeSet<u64>,
    surplus: BTreeSet<u64>,
}

/// The difference between what was found and a digest, if it has one explanation. `pool` lists, ascending, what may be
/// missing.
fn explain(
    class: Class,
    found: &SeqSet,
    expected: Sum,
    pool: &dyn Fn() -> Vec<u64>,
) -> Option<Difference> {
    let mut sum = Sum::default();
    for seq in found.iter() {
        sum.add(class.hash(seq));
    }
    if sum == expected {
        return Some(Difference::default());
    }
    let missing = expected.sum.wrapping_sub(sum.sum);
    match (usize::try_from(expected.count).ok()?, found.len()) {
        (wanted, there) if wanted > there => {
            let missing = some_of(class, &pool(), wanted - there, missing)?;
            Some(Difference { missing, ..Difference::default() })
        }
        (wanted, there) if wanted < there => {
            let all: Vec<u64> = found.iter().collect();
            let surplus = some_of(class, &all, there - wanted, missing.wrapping_neg())?;
            Some(Difference { surplus, ..Difference::default() })
        }
        _ => {
            let by_hash: HashMap<u64, u64> =
                pool().into_iter().map(|seq| (class.hash(seq), seq)).collect();
            found.iter().find_map(|surplus| {
                let missing = by_hash.get(&missing.wrapping_add(class.hash(surplus)))?;
                Some(Difference { missing: [*missing].into(), surplus: [surplus].into() })
            })
        }
    }
}

/// The `count` of `pool` whose hashes add up to `sum`.
fn some_of(class: Class, pool: &[u64], count: usize, sum: u64) -> Option<BTreeSet<u64>> {
    if count > pool.len() || pool.len() >= POOL_MAX {
        return None;
    }
    let hashes: Vec<u64> = pool.iter().map(|seq| class.hash(*seq)).collect();
    // A run of neighbours, which may be the whole pool or one of it.
    let mut run = hashes.iter().take(count).fold(0_u64, |sum, hash| sum.wrapping_add(*hash));
    for begin in 0..=pool.len() - count {
        if run == sum {
            return Some(pool.get(begin..begin + count)?.iter().copied().collect());
        }
        let (left, entered) = (hashes.get(begin)?, hashes.get(begin + count));
        run = run.wrapping_sub(*left).wrapping_add(entered.copied().unwrap_or_default());
    }
    if count != 2 {
        return None;
    }
    let by_hash: HashMap<u64, u64> = hashes.iter().copied().zip(pool.iter().copied()).collect();
    hashes.iter().zip(pool).find_map(|(hash, one)| {
        let other = by_hash.get(&sum.wrapping_sub(*hash)).filter(|other| *other != one)?;
        Some([*one, *other].into())
    })
}

/// The digests of what a plan would write.
pub(super) fn digests(plan: &Plan) -> Digests {
    let mut digests = Digests::default();
    for Value { key, commit, place } in plan.values.iter() {
        match key {
            Key::Call(seq) => {
                digests.calls.add(Class::Calls.hash(*seq));
                if place.is_residue {
                    digests.residues.add(Class::Residues.hash(*seq));
                }
            }
            // Its call is not there: a rebuild puts it beside another.
            Key::Note(seq) if !plan.values.contains(&Key::Call(*seq)) => {}
            Key::Note(seq) => digests.notes.add(Class::Notes.hash(*seq)),
            Key::Dead(seq) => digests.dead.add(Class::Dead.hash(*seq)),
            Key::Fact(name) => digests.facts.add(fact_hash(name, *commit)),
            Key::Chunk(..) | Key::Gone(_) | Key::History(_) => {}
        }
    }
    digests
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sum_of(seqs: impl IntoIterator<Item = u64>) -> Sum {
        let mut sum = Sum::default();
        seqs.into_iter().for_each(|seq| sum.add(Class::Calls.hash(seq)));
        sum
    }

    fn why(found: &[u64], expected: &[u64], pool: &[u64]) -> Option<Difference> {
        let found: SeqSet = found.iter().copied().collect();
        explain(Class::Calls, &found, sum_of(expected.iter().copied()), &|| pool.to_vec())
    }

    #[test]
    fn a_difference_is_named_or_not_explained() {
        let named = |missing: &[u64], surplus: &[u64]| {
            let of = |seqs: &[u64]| seqs.iter().copied().collect();
            Some(Difference { missing: of(missing), surplus: of(surplus) })
        };
        assert_eq!(why(&[1, 2, 3], &[1, 2, 3], &[]), named(&[], &[]));
        assert_eq!(why(&[1, 3], &[1, 2, 3], &[2, 4, 5]), named(&[2], &[]));
        assert_eq!(why(&[1], &[1, 2, 5], &[2, 3, 4, 5]), named(&[2, 5], &[]), "two");
        assert_eq!(why(&[1], &[1, 3, 4, 5], &[2, 3, 4, 5, 6]), named(&[3, 4, 5], &[]), "a run");
        assert_eq!(why(&[1, 2, 3, 4], &[1, 4], &[]), named(&[], &[2, 3]));
        assert_eq!(why(&[1, 2], &[1, 3], &[3, 4]), named(&[3], &[2]), "one for another");
        assert_eq!(why(&[1], &[1, 2, 4, 6], &[2, 3, 4, 5, 6]), None, "three apart");
        assert_eq!(why(&[1], &[1, 9], &[2, 3]), None, "not in the pool");
    }

    proptest! {
        #[test]
        fn an_explanation_is_the_truth(
            live in prop::collection::btree_set(1..200_u64, 0..60),
            drop_at in any::<prop::sample::Index>(),
            dropped in 0..4_usize,
        ) {
            let all: Vec<u64> = live.iter().copied().collect();
            let begin = if all.is_empty() { 0 } else { drop_at.index(all.len()) };
            let lost: BTreeSet<u64> = all.iter().copied().skip(begin).take(dropped).collect();
            let found: SeqSet = live.difference(&lost).copied().collect();
            let pool = || (1..200).filter(|seq| !found.contains(*seq)).collect();
            let why = explain(Class::Calls, &found, sum_of(live.iter().copied()), &pool);
            if let Some(why) = why {
                prop_assert_eq!(why.missing, lost);
                prop_assert!(why.surplus.is_empty());
            } else {
                prop_assert!(lost.len() > 2);
            }
        }
    }
}
