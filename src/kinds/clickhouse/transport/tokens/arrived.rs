//! Whether what the server took for a repetition is there.
//!
//! A plain `MergeTree` notes a block's token **before** it puts the block's part in place, both under one lock. A
//! server that is killed between the two remembers a token whose rows it never had, and answers each repetition with
//! success. (ClickHouse 26.7: two of a hundred kills under four writers, one insert each.) A replicated table does both
//! in one step, in Keeper.
//!
//! So success of a repetition is not believed if the table that it names has got nothing at all since the first
//! sending:
//!
//! | the highest number of a part now | means |
//! | --- | --- |
//! | above the one that was noted | it is believed |
//! | the same, and the same of every table that views feed | the rows are lost: they are sent again under the next token |
//! | the same, but a table that a view feeds has got something | the rows are lost, and the view may have them: ambiguous |
//!
//! An insert of which the server says that it has no rows is believed: nothing of it can be missing.
//!
//! Nothing is kept of it. The lost token stays known to the server, so another try begins with it, finds the rows
//! missing again, and comes to the same next token, which is recognised if it was used already.
//!
//! **This errs on one side.** What came into the table after the noting (up to ten seconds before the sending), by
//! whomever, counts as what is lost, which is
//! believed then; so does a number that was given without a part (a mutation, an earlier repetition). To count own
//! inserts against that was tried, and applied inserts twice: what the server says and what is known here are not of
//! one moment. An insert of several blocks that has lost the last is not found, nor what a view alone has lost, as it
//! may have nothing to pass on. On the other side it errs only if the rows were there and were dropped before the
//! repetition.

use super::reach::Reached;

/// Tokens under which one insert is sent.
pub(crate) const TOKENS_MAX: u8 = 3;

/// Whether the rows of a repetition are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrived {
    /// As far as can be known.
    Yes,
    /// They are nowhere.
    No,
    /// They are not in the table. What its views feed may have them.
    InViewsAlone,
}

/// Judges a repetition that the server took: `then` was noted before it was first sent, and the server says `now` of
/// what it reaches.
pub(super) fn judge(then: &[Reached], now: &[Reached]) -> Arrived {
    let is_still = |table: &Reached| {
        then.iter().any(|noted| noted.identity == table.identity && noted.number == table.number)
    };
    match now.iter().find(|table| table.direct && table.seconds == 0) {
        Some(direct) if !is_still(direct) => Arrived::Yes,
        Some(_) if now.iter().all(is_still) => Arrived::No,
        Some(_) => Arrived::InViewsAlone,
        // It keeps nothing itself, or loses nothing.
        None => Arrived::Yes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(identity: u128, number: u64, direct: bool) -> Reached {
        Reached { identity, window: 100, seconds: 0, number, covers: true, direct }
    }

    #[test]
    fn a_table_that_got_nothing_did_not_get_it() {
        let then = [table(1, 5, false)];
        assert_eq!(judge(&then, &[table(1, 5, true)]), Arrived::No);
        assert_eq!(judge(&then, &[table(1, 6, true)]), Arrived::Yes);
        assert_eq!(judge(&then, &[table(1, 4, true)]), Arrived::Yes, "parts were dropped");
        assert_eq!(judge(&then, &[table(2, 5, true)]), Arrived::Yes, "another table");
        let replicated = [Reached { seconds: 60, ..table(1, 5, true) }];
        assert_eq!(judge(&replicated, &replicated), Arrived::Yes);
        assert_eq!(judge(&then, &[table(1, 5, false)]), Arrived::Yes, "a Null table");
    }

    #[test]
    fn what_a_view_has_got_must_not_come_twice() {
        let then = [table(1, 5, false), table(2, 3, false)];
        let now = |direct, fed| [table(1, direct, true), table(2, fed, false)];
        assert_eq!(judge(&then, &now(5, 4)), Arrived::InViewsAlone);
        assert_eq!(judge(&then, &now(5, 3)), Arrived::No);
        assert_eq!(judge(&then, &now(6, 3)), Arrived::Yes, "it may have passed nothing on");
    }
}
