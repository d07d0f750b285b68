//! Whether what the server took for a repetition is there.
//!
//! A plain `MergeTree` notes a block's token **before** it puts the block's part in place, both under one lock. A
//! server that is killed between the two remembers a token whose rows it never had, and answers each repetition with
//! success. (ClickHouse 26.7: two of a hundred kills under four writers, one insert each.) A replicated table does both in
//! one step, in Keeper.
//!
//! So success of a repetition is not believed before the table has got as many blocks as it must have by then:
//!
//! ```text
//!  noted ── inserts that were answered ──▶ landed ──┐
//!  noted ── repetitions that were believed ─────────┼─▶ must have got: landed + repeated + this one
//!  noted ── the highest number of a part now ───────┴─▶ has got at most
//! ```
//! | has got | means |
//! | --- | --- |
//! | as many | it is believed |
//! | fewer, and nothing came into any table since it was noted, or nothing else is in doubt and no view is fed | the rows are lost: they are sent again under the next token |
//! | fewer otherwise | one of those in doubt is lost: which is not known, so it is told as ambiguous |
//!
//! Nothing is kept of it. The lost token stays known to the server, so another try begins with it, finds the rows
//! missing again, and comes to the same next token, which is recognised if it was used already.
//!
//! Numbers say how much has come at most, so this errs on one side: **if others write into the table between the
//! noting and the crash, what they wrote stands for what is lost**, and it is believed. What a view lost is not
//! found, as a view may have nothing to pass on.
//!
//! On the other side it errs only if rows that came since the noting are dropped, by partition, before the repetition.
//!
//! Only an insert that has rows for a table of the engine `MergeTree` itself counts as landed: the others may make one
//! row of two, or none. Only under a token that is ours: the server may have known a caller's.

use std::collections::{BTreeSet, VecDeque};

use super::reach::Reached;

/// Notings that are remembered of each table.
const MARKS_MAX: usize = 16;
/// Repetitions that are counted for each noting.
const REPEATED_MAX: usize = 1_000;
/// Tokens under which one insert is sent.
pub(crate) const TOKENS_MAX: u8 = 3;

/// What has come into a table since it was noted.
#[derive(Debug)]
struct Mark {
    generation: u64,
    /// The number that was noted.
    number: u64,
    /// Whether each insert is a block more.
    counts: bool,
    landed: u64,
    /// The tokens of repetitions that were believed.
    repeated: BTreeSet<u128>,
}

/// What is known of a table's blocks since it was noted, for each of the last notings.
#[derive(Debug, Default)]
pub(super) struct Marks {
    marks: VecDeque<Mark>,
    generation: u64,
}

/// Whether the rows of a repetition are there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Arrived {
    /// As far as can be known.
    Yes,
    /// They are not: nothing is, and nothing else can be meant.
    No,
    /// They, or those of another in doubt, are not.
    OneIsMissing,
}

impl Marks {
    /// The table was noted.
    pub(super) fn noted(&mut self, table: &Reached) {
        self.generation += 1;
        let Reached { number, counts, .. } = *table;
        let (generation, repeated) = (self.generation, BTreeSet::new());
        self.marks.push_back(Mark { generation, number, counts, landed: 0, repeated });
        if self.marks.len() > MARKS_MAX {
            self.marks.pop_front();
        }
    }

    /// The last noting, for what is sent now.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// A block landed that was sent after the noting `generation`.
    pub(super) fn landed(&mut self, generation: u64) {
        let older = |mark: &&mut Mark| mark.counts && mark.generation <= generation;
        for mark in self.marks.iter_mut().filter(older) {
            mark.landed += 1;
        }
    }

    /// Judges the repetition that bears `token`: `then` was noted when it was first sent, and the server says `now` of
    /// what it reaches. These are the marks of the table that it names. One that is believed is counted.
    pub(super) fn judge(&mut self, token: u128, then: &[Reached], now: &[Reached]) -> Arrived {
        let Some(direct) = direct(now) else { return Arrived::Yes };
        let number = |identity: u128| {
            then.iter().find(|table| table.identity == identity).map(|table| table.number)
        };
        let Some(noted) = number(direct.identity) else { return Arrived::Yes };
        // A table that has fewer than then had parts dropped.
        let Some(got) = direct.number.checked_sub(noted) else { return Arrived::Yes };
        // Of several notings of one number the last has had the least since.
        let mark = self.marks.iter_mut().rev().find(|mark| mark.number == noted);
        let (landed, repeated) = mark.as_ref().map_or((0, 0), |mark| {
            let others = mark.repeated.iter().filter(|other| **other != token).count();
            (mark.landed, u64::try_from(others).unwrap_or(u64::MAX))
        });
        if got > landed.saturating_add(repeated) {
            if let Some(mark) =
                mark.filter(|mark| mark.counts && mark.repeated.len() < REPEATED_MAX)
            {
                mark.repeated.insert(token);
            }
            return Arrived::Yes;
        }
        let is_still = |table: &Reached| number(table.identity) == Some(table.number);
        let is_alone = now.len() == 1 && repeated == 0;
        if is_alone || now.iter().all(is_still) { Arrived::No } else { Arrived::OneIsMissing }
    }
}

/// The table that an insert names, if it is one that may remember a token without its rows.
pub(super) fn direct(tables: &[Reached]) -> Option<&Reached> {
    tables.iter().find(|table| table.direct && table.seconds == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(identity: u128, number: u64, direct: bool) -> Reached {
        Reached { identity, window: 100, seconds: 0, number, covers: true, direct, counts: true }
    }

    #[test]
    fn a_table_that_got_nothing_did_not_get_it() {
        let mut marks = Marks::default();
        let then = [table(1, 5, true)];
        marks.noted(&then[0]);
        assert_eq!(marks.judge(7, &then, &[table(1, 5, true)]), Arrived::No);
        assert_eq!(marks.judge(7, &then, &[table(1, 6, true)]), Arrived::Yes);
        assert_eq!(marks.judge(7, &then, &[table(1, 6, true)]), Arrived::Yes, "the same again");
        assert_eq!(marks.judge(7, &then, &[table(1, 4, true)]), Arrived::Yes, "parts were dropped");
        let mut unknown = Marks::default();
        assert_eq!(unknown.judge(7, &then, &[table(1, 5, true)]), Arrived::No);
        assert_eq!(unknown.judge(7, &then, &[table(2, 5, true)]), Arrived::Yes, "another table");
        let replicated = [Reached { seconds: 60, ..table(1, 5, true) }];
        assert_eq!(unknown.judge(7, &replicated, &replicated), Arrived::Yes);
        assert_eq!(unknown.judge(7, &[], &[table(1, 5, false)]), Arrived::Yes, "a Null table");
    }

    #[test]
    fn what_landed_meanwhile_stands_for_itself_only() {
        let mut marks = Marks::default();
        let then = [table(1, 5, true)];
        marks.noted(&then[0]);
        let early = marks.generation();
        marks.landed(early);
        marks.landed(early);
        assert_eq!(marks.judge(7, &then, &[table(1, 7, true)]), Arrived::No);
        assert_eq!(marks.judge(7, &then, &[table(1, 8, true)]), Arrived::Yes);
        // Noted anew, with the same number: what was sent before may be in it.
        marks.noted(&then[0]);
        marks.landed(early);
        assert_eq!(marks.judge(8, &then, &[table(1, 6, true)]), Arrived::Yes);
        for _ in 0..2 * MARKS_MAX {
            marks.noted(&table(1, 9, true));
        }
        assert_eq!(marks.marks.len(), MARKS_MAX);
    }

    #[test]
    fn of_two_in_doubt_which_one_is_missing_is_not_known() {
        let mut marks = Marks::default();
        let then = [table(1, 5, true)];
        marks.noted(&then[0]);
        assert_eq!(marks.judge(7, &then, &[table(1, 6, true)]), Arrived::Yes);
        assert_eq!(marks.judge(8, &then, &[table(1, 6, true)]), Arrived::OneIsMissing);
        assert_eq!(marks.judge(7, &then, &[table(1, 6, true)]), Arrived::Yes);
        assert_eq!(marks.judge(8, &then, &[table(1, 7, true)]), Arrived::Yes);
    }

    #[test]
    fn what_a_view_has_got_must_not_come_twice() {
        let mut marks = Marks::default();
        let then = [table(1, 5, true), table(2, 3, false)];
        marks.noted(&then[0]);
        let now = |direct, fed| [table(1, direct, true), table(2, fed, false)];
        assert_eq!(marks.judge(7, &then, &now(5, 4)), Arrived::OneIsMissing);
        assert_eq!(marks.judge(7, &then, &now(5, 3)), Arrived::No);
        assert_eq!(
            marks.judge(7, &then, &now(6, 3)),
            Arrived::Yes,
            "it may have passed nothing on"
        );
    }
}
