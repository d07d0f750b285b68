//! The proof: what callers were told, held against what the stand-in applied.
//!
//! ```text
//! a caller was told      the write …
//! applied or durable     is in the log of applied writes, and nothing older comes after it
//! nothing (unknown)      may be there or not: the connection broke before an answer
//! refused                is not there
//! ```
//!
//! Every key has one writer, whose values rise by one from write to write; so order shows in the
//! values. A counter is between what was acknowledged and that plus what is unknown.

use std::collections::{BTreeMap, BTreeSet};

/// What callers were told of the writes to one key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Key {
    /// Values that were acknowledged.
    pub(super) acknowledged: BTreeSet<u64>,
    /// Values of whose fate the caller heard nothing.
    pub(super) unknown: BTreeSet<u64>,
    /// Values of which the caller was told that they are not written.
    pub(super) refused: BTreeSet<u64>,
}

/// What callers were told of the increments of one counter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counter {
    /// Increments that were acknowledged.
    pub(super) acknowledged: u64,
    /// Increments of whose fate the caller heard nothing.
    pub(super) unknown: u64,
}

/// What callers were told of all writes.
#[derive(Clone, Debug, Default)]
pub(super) struct Told {
    /// By key.
    pub(super) keys: BTreeMap<String, Key>,
    /// By counter.
    pub(super) counters: BTreeMap<String, Counter>,
}

/// What the stand-in did.
#[derive(Clone, Debug, Default)]
pub(super) struct Applied {
    /// Keys and the values that SET gave them, in order.
    pub(super) log: Vec<(String, String)>,
    /// Keys and the values that they hold in the end.
    pub(super) values: BTreeMap<String, String>,
}

/// The outcome.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    /// Acknowledged writes that are not there.
    pub(super) lost: u64,
    /// Increments that are there more than once.
    pub(super) applied_twice: u64,
    /// Writes that came after a newer one of the same key.
    pub(super) out_of_order: u64,
    /// Writes that are there although their caller was told that they are not.
    pub(super) refused_but_applied: u64,
    /// Keys that do not hold their last write.
    pub(super) wrong_values: u64,
    /// SETs that were sent again before anything else was written to their key: that changes nothing.
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
    verdict
}

impl Verdict {
    fn key(&mut self, name: &str, told: &Key, log: &[u64], value: Option<&str>) {
        let there: BTreeSet<u64> = log.iter().copied().collect();
        for lost in told.acknowledged.difference(&there) {
            self.lost += 1;
            self.problems.push(format!("{name} {lost} was acknowledged and is lost"));
        }
        for refused in told.refused.intersection(&there) {
            self.refused_but_applied += 1;
            self.problems.push(format!("{name} {refused} was refused and yet applied"));
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
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One key, written 1 to 5: 3 was refused, 5 is unknown. One counter: 7 acknowledged, 1 unknown.
    fn told() -> Told {
        let key = Key { acknowledged: [1, 2, 4].into(), unknown: [5].into(), refused: [3].into() };
        let counter = Counter { acknowledged: 7, unknown: 1 };
        Told { keys: [("k".into(), key)].into(), counters: [("c".into(), counter)].into() }
    }

    fn judge(log: &[u64], value: &str, counter: &str) -> Verdict {
        let log = log.iter().map(|value| ("k".to_owned(), value.to_string())).collect();
        let values = [("k".to_owned(), value.to_owned()), ("c".to_owned(), counter.to_owned())];
        verify(&told(), &Applied { log, values: values.into() })
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

    #[test]
    fn values_that_nobody_wrote_are_found() {
        assert!(!judge(&[1, 2, 4], "6", "7").holds());
        assert!(!judge(&[1, 2, 4], "4", "many").holds());
        let log = vec![("k".to_owned(), "x".to_owned())];
        assert!(!verify(&Told::default(), &Applied { log, ..Applied::default() }).holds());
    }
}
