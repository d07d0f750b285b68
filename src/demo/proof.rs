//! The proof: the answers to callers, compared with what the stand-in applied.
//!
//! ```text
//! a caller's answer      the write …
//! applied or durable     is in the log of applied writes, and nothing older comes after it
//! nothing (unknown)      may be there or not: the connection broke before an answer
//! refused                is not there
//! ```
//!
//! A write that was queued may have been overtaken: of the queued writes of a key only the last that sets its whole
//! value is sent. It is not lost, then, if a newer acknowledged one is there.
//!
//! Every key and every document has one writer, whose values rise by one from write to write; so order
//! shows in the values. A row has an id of its own, and is there once or not at all. A counter is between
//! what was acknowledged and that plus what is unknown.

use std::collections::{BTreeMap, BTreeSet};

/// The answers to the writes to one key or document, by their values, or of rows, by their ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Writes {
    /// Those that were acknowledged.
    pub(super) acknowledged: BTreeSet<u64>,
    /// Those of them that were made durable, to be replayed.
    pub(super) queued: BTreeSet<u64>,
    /// Those of whose fate the caller heard nothing.
    pub(super) unknown: BTreeSet<u64>,
    /// Those whose answer was that they are not written.
    pub(super) refused: BTreeSet<u64>,
}

/// The answers to the increments of one counter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counter {
    /// Increments that were acknowledged.
    pub(super) acknowledged: u64,
    /// Increments of whose fate the caller heard nothing.
    pub(super) unknown: u64,
}

/// The answers to all writes to a backend.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Told {
    /// By key or document.
    pub(super) keys: BTreeMap<String, Writes>,
    /// By counter.
    pub(super) counters: BTreeMap<String, Counter>,
    /// Of rows.
    pub(super) rows: Writes,
}

/// What its stand-in did.
#[derive(Clone, Debug, Default)]
pub(super) struct Applied {
    /// Keys, or documents, and the values that they were set to, in order.
    pub(super) log: Vec<(String, String)>,
    /// Keys, or documents, and the values that they hold in the end.
    pub(super) values: BTreeMap<String, String>,
    /// The ids of all rows.
    pub(super) rows: Vec<u64>,
}

/// The outcome.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    /// Acknowledged writes that are not there.
    pub(super) lost: u64,
    /// Increments and rows that are there more than once.
    pub(super) applied_twice: u64,
    /// Writes that came after a newer one of the same key.
    pub(super) out_of_order: u64,
    /// Writes that are there although their answer was that they are not.
    pub(super) refused_but_applied: u64,
    /// Keys and documents that do not hold their last write.
    pub(super) wrong_values: u64,
    /// Queued writes that a newer one made meaningless before they were sent.
    pub(super) overtaken: u64,
    /// Writes that were sent again before anything else was written to their key: that changes nothing.
    pub(super) repeated: u64,
    /// What is wrong, in sentences.
    pub(super) problems: Vec<String>,
}

impl Verdict {
    /// Whether every promise was kept.
    pub(super) fn holds(&self) -> bool {
        self.problems.is_empty()
    }
}

/// Holds what was `told` against what was `applied`.
pub(super) fn verify(told: &Told, applied: &Applied) -> Verdict {
    let mut logs: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    let mut verdict = Verdict::default();
    for (key, value) in &applied.log {
        match value.parse() {
            Ok(value) => logs.entry(key).or_default().push(value),
            Err(_) => verdict.problems.push(format!("{key} was set to {value:?}")),
        }
    }
    for (name, key) in &told.keys {
        let log = logs.get(name.as_str()).map(Vec::as_slice).unwrap_or_default();
        verdict.key(name, key, log, applied.values.get(name).map(String::as_str));
    }
    for (name, counter) in &told.counters {
        verdict.counter(name, *counter, applied.values.get(name).map(String::as_str));
    }
    verdict.rows(&told.rows, &applied.rows);
    verdict
}

impl Verdict {
    fn key(&mut self, name: &str, told: &Writes, log: &[u64], value: Option<&str>) {
        let there: BTreeSet<u64> = log.iter().copied().collect();
        let newest_there = told.acknowledged.intersection(&there).last();
        for lost in told.acknowledged.difference(&there) {
            if told.queued.contains(lost) && newest_there > Some(lost) {
                self.overtaken += 1;
                continue;
            }
            self.lost += 1;
            self.problems.push(format!("{name} {lost} was acknowledged and is lost"));
        }
        for refused in told.refused.intersection(&there) {
            self.refused_but_applied += 1;
            self.problems.push(format!("{name} {refused} was refused, but it was applied"));
        }
        let mut newest = None;
        for applied in log.iter().copied() {
            match newest {
                Some(newest) if applied < newest => {
                    self.out_of_order += 1;
                    self.problems.push(format!("{name} {applied} was applied after {newest}"));
                }
                Some(newest) if applied == newest => self.repeated += 1,
                _ => newest = Some(applied),
            }
        }
        let last = told.acknowledged.last().copied();
        let held = value.and_then(|value| value.parse().ok());
        let later_unknown = |held| Some(held) > last && told.unknown.contains(&held);
        if held != last && !held.is_some_and(later_unknown) {
            self.wrong_values += 1;
            let shown = |value: Option<u64>| value.map_or("nothing".into(), |v| v.to_string());
            let (held, last) = (value.unwrap_or("nothing"), shown(last));
            self.problems
                .push(format!("{name} holds {held}, and the last acknowledged write was {last}"));
        }
    }

    fn counter(&mut self, name: &str, told: Counter, value: Option<&str>) {
        let Counter { acknowledged, unknown } = told;
        let Ok(held) = value.unwrap_or("0").parse::<u64>() else {
            self.problems.push(format!("{name} holds {value:?}"));
            return;
        };
        let most = acknowledged + unknown;
        if held < acknowledged {
            self.lost += acknowledged - held;
            self.problems.push(format!("{name} is {held} after {acknowledged} increments"));
        } else if held > most {
            self.applied_twice += held - most;
            self.problems.push(format!("{name} is {held} after at most {most} increments"));
        }
    }

    fn rows(&mut self, told: &Writes, rows: &[u64]) {
        let mut there: BTreeMap<u64, u64> = BTreeMap::new();
        for id in rows {
            *there.entry(*id).or_default() += 1;
        }
        for lost in told.acknowledged.iter().filter(|id| !there.contains_key(id)) {
            self.lost += 1;
            self.problems.push(format!("row {lost} was acknowledged and is lost"));
        }
        for (id, times) in there {
            if told.refused.contains(&id) {
                self.refused_but_applied += 1;
                self.problems.push(format!("row {id} was refused, but it was inserted"));
            } else if !told.acknowledged.contains(&id) && !told.unknown.contains(&id) {
                self.problems.push(format!("row {id} exists, but nobody wrote it"));
            }
            if times > 1 {
                self.applied_twice += times - 1;
                self.problems.push(format!("row {id} exists {times} times"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One key, written 1 to 5: 3 was refused, 5 is unknown. One counter: 7 acknowledged, 1 unknown.
    fn told() -> Told {
        let key = Writes {
            acknowledged: [1, 2, 4].into(),
            queued: BTreeSet::new(),
            unknown: [5].into(),
            refused: [3].into(),
        };
        let counter = Counter { acknowledged: 7, unknown: 1 };
        let (keys, counters) = ([("k".into(), key)].into(), [("c".into(), counter)].into());
        Told { keys, counters, rows: Writes::default() }
    }

    fn judge(log: &[u64], value: &str, counter: &str) -> Verdict {
        let log = log.iter().map(|value| ("k".to_owned(), value.to_string())).collect();
        let values = [("k".to_owned(), value.to_owned()), ("c".to_owned(), counter.to_owned())];
        verify(&told(), &Applied { log, values: values.into(), rows: Vec::new() })
    }

    #[test]
    fn holds_where_every_acknowledged_write_arrived_in_order() {
        assert_eq!(judge(&[1, 2, 4], "4", "7"), Verdict::default());
        assert_eq!(judge(&[1, 2, 4, 5], "5", "8"), Verdict::default());
        let again = judge(&[1, 2, 2, 4], "4", "7");
        assert!(again.holds() && again.repeated == 1, "{again:?}");
    }

    #[test]
    fn a_lost_write_is_found() {
        let verdict = judge(&[1, 4], "4", "7");
        assert_eq!((verdict.lost, verdict.holds()), (1, false));
        assert_eq!(verdict.problems, ["k 2 was acknowledged and is lost"]);
        let verdict = judge(&[1, 2, 4], "4", "6");
        assert_eq!((verdict.lost, verdict.problems.len()), (1, 1));
        let nothing = verify(&told(), &Applied::default());
        assert_eq!((nothing.lost, nothing.wrong_values), (3 + 7, 1));
    }

    #[test]
    fn a_queued_write_may_be_overtaken_by_a_newer_one_and_by_nothing_else() {
        let mut told = told();
        let log =
            |values: &[u64]| values.iter().map(|it| ("k".to_owned(), it.to_string())).collect();
        let values: BTreeMap<_, _> =
            [("k".to_owned(), "4".to_owned()), ("c".to_owned(), "7".to_owned())].into();
        let applied = |log| Applied { log, values: values.clone(), rows: Vec::new() };
        if let Some(key) = told.keys.get_mut("k") {
            key.queued = [2, 4].into();
        }
        let verdict = verify(&told, &applied(log(&[1, 4])));
        assert!(verdict.holds() && verdict.overtaken == 1, "{verdict:?}");
        assert_eq!(verify(&told, &applied(log(&[2, 4]))).lost, 1, "1 was applied, it was said");
        assert_eq!(verify(&told, &applied(log(&[1, 2]))).lost, 1, "nothing newer is there");
    }

    #[test]
    fn a_double_increment_is_found() {
        let verdict = judge(&[1, 2, 4], "4", "9");
        assert_eq!((verdict.applied_twice, verdict.holds()), (1, false));
        assert_eq!(verdict.problems, ["c is 9 after at most 8 increments"]);
    }

    #[test]
    fn an_older_last_value_is_found() {
        let verdict = judge(&[1, 2, 4], "2", "7");
        assert_eq!((verdict.wrong_values, verdict.holds()), (1, false));
        assert_eq!(verdict.problems, ["k holds 2, and the last acknowledged write was 4"]);
    }

    #[test]
    fn a_write_after_a_newer_one_is_found() {
        let verdict = judge(&[1, 4, 2], "4", "7");
        assert_eq!((verdict.out_of_order, verdict.holds()), (1, false));
        // A second arrival of an old write is one too.
        assert_eq!(judge(&[1, 2, 4, 1, 4], "4", "7").out_of_order, 1);
    }

    #[test]
    fn a_refused_write_that_is_there_is_found() {
        let verdict = judge(&[1, 2, 3, 4], "4", "7");
        assert_eq!((verdict.refused_but_applied, verdict.holds()), (1, false));
    }

    /// Rows 1 to 5: 3 and 4 were refused, 5 is unknown.
    fn judge_rows(rows: &[u64]) -> Verdict {
        let told = Writes {
            acknowledged: [1, 2].into(),
            queued: [1, 2].into(),
            unknown: [5].into(),
            refused: [3, 4].into(),
        };
        let told = Told { rows: told, ..Told::default() };
        verify(&told, &Applied { rows: rows.to_vec(), ..Applied::default() })
    }

    #[test]
    fn rows_hold_in_any_order_where_each_is_there_once() {
        assert_eq!(judge_rows(&[2, 1]), Verdict::default());
        assert_eq!(judge_rows(&[1, 5, 2]), Verdict::default());
    }

    #[test]
    fn a_lost_row_is_found() {
        let verdict = judge_rows(&[2]);
        assert_eq!((verdict.lost, verdict.holds()), (1, false));
        assert_eq!(verdict.problems, ["row 1 was acknowledged and is lost"]);
        assert_eq!(judge_rows(&[]).lost, 2);
    }

    #[test]
    fn a_row_that_is_there_twice_is_found() {
        let verdict = judge_rows(&[1, 2, 1, 1]);
        assert_eq!((verdict.applied_twice, verdict.holds()), (2, false));
        assert_eq!(verdict.problems, ["row 1 exists 3 times"]);
        assert_eq!(judge_rows(&[1, 2, 5, 5]).applied_twice, 1, "also one of unknown outcome");
    }

    #[test]
    fn a_row_that_was_refused_or_that_nobody_wrote_is_found() {
        let verdict = judge_rows(&[1, 2, 3]);
        assert_eq!((verdict.refused_but_applied, verdict.holds()), (1, false));
        assert_eq!(judge_rows(&[1, 2, 9]).problems, ["row 9 exists, but nobody wrote it"]);
    }

    #[test]
    fn values_that_nobody_wrote_are_found() {
        assert!(!judge(&[1, 2, 4], "6", "7").holds());
        assert!(!judge(&[1, 2, 4], "4", "many").holds());
        let log = vec![("k".to_owned(), "x".to_owned())];
        assert!(!verify(&Told::default(), &Applied { log, ..Applied::default() }).holds());
    }
}
