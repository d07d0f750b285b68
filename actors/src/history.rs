//! Transitions as they are kept on disk: JSON, so that a later version reads an earlier one's.
//!
//! What errors say is kept in both of its forms: the public one in its old field, and the
//! servers' words beside it (`quotes`). A record without these is an earlier release's, and what its errors say is
//! all taken for the servers'.
//!
//! **Who is shown them reads no disk**: the newest are in memory as well ([`History`]), from when the store was opened
//! or the transition came.

use std::collections::VecDeque;

use fusebox_state::{Words, breaker::TransitionRecord};
use parking_lot::Mutex;

/// The most bytes that a record takes in the store.
const MAX: usize = 3_500;

/// Transitions that are kept: as many as the store keeps.
pub(crate) const KEPT: usize = 1_000;

/// The newest transitions of a backend, as they are kept, oldest first.
#[derive(Default)]
pub(crate) struct History(Mutex<VecDeque<Vec<u8>>>);

impl History {
    /// Takes back what the store holds, which is older than what came since the start.
    pub(crate) fn restore(&self, older: Vec<Vec<u8>>) {
        let mut all = self.0.lock();
        let room = KEPT.saturating_sub(all.len());
        for record in older.into_iter().rev().take(room) {
            all.push_front(record);
        }
    }

    pub(crate) fn add(&self, record: Vec<u8>) {
        let mut all = self.0.lock();
        if all.len() >= KEPT {
            all.pop_front();
        }
        all.push_back(record);
    }

    /// The newest `limit`, newest last.
    pub(crate) fn newest(&self, limit: usize) -> Vec<TransitionRecord> {
        let all = self.0.lock();
        let skipped = all.len().saturating_sub(limit);
        all.iter().skip(skipped).filter_map(|record| decode(record)).collect()
    }
}

/// A record as it is kept.
#[derive(serde::Serialize, serde::Deserialize)]
struct Kept {
    #[serde(flatten)]
    record: TransitionRecord,
    /// What each error says, whole if that is more than is shown; in the order of `last_errors`.
    #[serde(default)]
    quotes: Option<Vec<Option<String>>>,
}

impl Kept {
    fn of(record: TransitionRecord) -> Self {
        let quote =
            |words: &Words| (words.whole() != words.said()).then(|| words.whole().to_owned());
        let errors = record.transition.last_errors.iter();
        let quotes = Some(errors.map(|error| quote(&error.message)).collect());
        Self { record, quotes }
    }
}

/// The bytes of a record. Errors are left out, oldest first, until it fits.
pub(crate) fn encode(record: &TransitionRecord) -> Vec<u8> {
    let mut record = record.clone();
    loop {
        let bytes = serde_json::to_vec(&Kept::of(record.clone())).unwrap_or_default();
        if bytes.len() <= MAX || record.transition.last_errors.is_empty() {
            return bytes;
        }
        record.transition.last_errors.remove(0);
    }
}

/// The record of some bytes; `None` if they are not one.
pub(crate) fn decode(bytes: &[u8]) -> Option<TransitionRecord> {
    let Kept { mut record, quotes } = serde_json::from_slice(bytes).ok()?;
    for (error, quote) in record.transition.last_errors.iter_mut().zip(quotes.unwrap_or_default()) {
        // Read back, what it said is all that it is.
        let said = error.message.whole().to_owned();
        error.message = match quote {
            Some(whole) => Words::quoting(said, whole),
            None => Words::ours(said),
        };
    }
    Some(record)
}

#[cfg(test)]
mod tests {
    use fusebox_state::{
        UnixMillis,
        breaker::{ErrorRecord, Reason, State, Transition},
        window::Horizon,
    };

    use super::*;

    fn record(messages: &[Words]) -> TransitionRecord {
        let at = UnixMillis::new(1);
        let error = |message: &Words| ErrorRecord {
            at,
            code: "x".into(),
            message: message.clone(),
            trace_id: None,
            door: None,
        };
        TransitionRecord {
            at,
            transition: Transition {
                from: State::Closed,
                to: State::Open,
                reason: Reason::Burst,
                horizon: Horizon::Whole,
                calls: 1,
                failures: 1,
                failure_rate: 1.0,
                failure_threshold: 1,
                failure_rate_threshold: 0.5,
                slow: 0,
                slow_rate_threshold: 0.0,
                open_for_ms: None,
                exponent: 0,
                note: None,
                last_errors: messages.iter().map(error).collect(),
            },
        }
    }

    #[test]
    fn the_newest_are_in_memory_behind_what_the_store_holds() {
        let history = History::default();
        let at = |millis| encode(&TransitionRecord { at: UnixMillis::new(millis), ..record(&[]) });
        let newest = |limit| -> Vec<u64> {
            history.newest(limit).iter().map(|record| record.at.get()).collect()
        };
        history.add(at(9_000));
        history.restore((0..2_000).map(at).collect());
        assert_eq!((newest(3), newest(9_999).len()), (vec![1_998, 1_999, 9_000], KEPT));
        history.add(at(9_001));
        assert_eq!((newest(1), newest(9_999).len()), (vec![9_001], KEPT));
    }

    #[test]
    fn what_errors_say_is_kept_in_both_forms_and_an_earlier_releases_is_the_servers() {
        let record =
            record(&[Words::ours("nobody listens"), Words::quoting("refused", "card=4111")]);
        assert_eq!(decode(&encode(&record)), Some(record.clone()));
        let earlier = r#"{"at":"2026-11-23T16:00:00.000Z","from":"CLOSED","to":"OPEN","reason":"burst",
            "horizon":"whole","calls":1,"failures":1,"failure_rate":1.0,"failure_threshold":1,
            "failure_rate_threshold":0.5,"open_for_ms":null,"exponent":0,"note":null,"last_errors":[
            {"at":"2026-11-23T16:00:00.000Z","code":"x","message":"card=4111","trace_id":null}]}"#;
        let earlier = decode(earlier.as_bytes()).unwrap();
        let message = &earlier.transition.last_errors[0].message;
        assert!(!message.said().contains("4111") && message.whole() == "card=4111", "{message:?}");
        let long = Words::quoting("refused", "x".repeat(3_000));
        let fits = decode(&encode(&self::record(&[long.clone(), long]))).unwrap();
        assert_eq!(fits.transition.last_errors.len(), 1);
    }
}
