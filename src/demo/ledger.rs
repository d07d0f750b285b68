//! The answers to callers: how each call ended, and for the proof, of each write.

use std::collections::BTreeMap;

use fusebox_actors::{AckLevel, Source, view::Lenient};
use serde_json::Value;

use super::{
    backend::Each,
    call::{Call, Effect},
    proof::Told,
};
use crate::terminal::views::{ProblemView, ReplyView, read};

/// The exit code of a client that finds nobody at the socket.
const NO_DAEMON: u8 = 3;

/// How a call ended for its caller.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Ended {
    /// It was answered.
    Answered(Answer),
    /// It was not executed, for this reason.
    Refused(String),
    /// Nobody listened at the socket, so that it was not executed.
    NoDaemon,
    /// It may have been executed or not.
    Unknown(String),
}

/// An answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Answer {
    /// 200 or 202; `None` of a client that does not speak HTTP.
    pub(super) status: Option<u16>,
    /// Its source.
    pub(super) source: Lenient<Source>,
    /// What a write's promises.
    pub(super) ack: Option<AckLevel>,
    /// The value.
    pub(super) value: Value,
    /// How old it is, in milliseconds.
    pub(super) age_ms: u64,
}

impl Ended {
    /// What became of a request to the daemon.
    pub(super) fn of(answer: Result<(u16, Value), crate::terminal::failure::Failure>) -> Self {
        match answer {
            Ok((status @ (200 | 202), reply)) => {
                let ReplyView { source, ack, value, age_ms, .. } = read(&reply).unwrap_or_default();
                let ack = ack.as_ref().and_then(Lenient::known);
                Self::Answered(Answer { status: Some(status), source, ack, value, age_ms })
            }
            Ok((status, problem)) => {
                let problem: ProblemView = read(&problem).unwrap_or_default();
                let why = format!("{status} {}", problem.detail);
                if problem.outcome_unknown { Self::Unknown(why) } else { Self::Refused(why) }
            }
            Err(failure) if failure.code == NO_DAEMON => Self::NoDaemon,
            Err(failure) => Self::Unknown(failure.to_string()),
        }
    }

    /// The word under which it is counted.
    fn word(&self) -> &str {
        match self {
            Self::Answered(Answer { source: Lenient::Known(source), .. }) => source.as_str(),
            Self::Answered(Answer { source: Lenient::Other(word), .. }) => word,
            Self::Refused(_) => "refused",
            Self::NoDaemon => "no daemon",
            Self::Unknown(_) => "outcome unknown",
        }
    }
}

/// The answers to each backend's calls.
pub(super) type Ledger = Each<Page>;

/// The answers to one backend's calls.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Page {
    /// Of each write.
    pub(super) told: Told,
    /// Calls by how they ended: reads and writes.
    pub(super) ended: BTreeMap<String, (u64, u64)>,
    /// Writes that were acknowledged as applied.
    pub(super) applied: u64,
    /// Writes that were acknowledged as durable.
    pub(super) durable: u64,
}

impl Page {
    /// Writes down how `call` ended.
    pub(super) fn note(&mut self, call: &Call, ended: &Ended) {
        let (reads, writes) = self.ended.entry(ended.word().to_owned()).or_default();
        *(if call.is_write() { writes } else { reads }) += 1;
        if let Ended::Answered(answer) = ended {
            self.applied += u64::from(answer.ack == Some(AckLevel::Applied));
            self.durable += u64::from(answer.ack == Some(AckLevel::Durable));
        }
        let (told, names) = match &call.effect {
            Effect::Read => return,
            Effect::Set(key, value) => {
                (self.told.keys.entry(key.clone()).or_default(), *value..*value + 1)
            }
            Effect::Insert(ids) => (&mut self.told.rows, ids.clone()),
            Effect::Increment(counter) => {
                let counter = self.told.counters.entry(counter.clone()).or_default();
                match ended {
                    Ended::Answered(_) => counter.acknowledged += 1,
                    Ended::Unknown(_) => counter.unknown += 1,
                    Ended::Refused(_) | Ended::NoDaemon => {}
                }
                return;
            }
        };
        let fate = match ended {
            Ended::Answered(_) => &mut told.acknowledged,
            Ended::Unknown(_) => &mut told.unknown,
            Ended::Refused(_) | Ended::NoDaemon => &mut told.refused,
        };
        fate.extend(names.clone());
        if let Ended::Answered(answer) = ended
            && answer.ack == Some(AckLevel::Durable)
        {
            told.queued.extend(names);
        }
    }

    /// Writes of whose fate callers heard nothing.
    pub(super) fn unknown(&self) -> u64 {
        self.ended.get("outcome unknown").map_or(0, |(_, writes)| *writes)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::backend::Backend;
    use super::*;
    use crate::terminal::failure::Failure;

    #[test]
    fn what_a_caller_is_told_decides_what_the_proof_expects() {
        let mut page = Page::default();
        let answers = [
            Ok((200, json!({ "source": "live", "ack": "applied" }))),
            Ok((202, json!({ "source": "queued", "ack": "durable" }))),
            Ok((503, json!({ "detail": "the breaker is open" }))),
            Ok((504, json!({ "outcome_unknown": true }))),
            Err(Failure::no_daemon("refused")),
            Err(Failure::failed("broke")),
        ];
        for (at, answer) in (1..).zip(answers) {
            let ended = Ended::of(answer);
            page.note(&Call::set(Backend::Keys, "k", at), &ended);
            page.note(&Call::insert(at * 10..at * 10 + 2), &ended);
            page.note(&Call::increment(Backend::Documents, "n"), &ended);
            page.note(&Call::get(Backend::Keys, "k"), &ended);
        }
        let key = &page.told.keys["k"];
        assert_eq!(key.acknowledged, [1, 2].into());
        assert_eq!(key.queued, [2].into());
        assert_eq!(key.refused, [3, 5].into());
        assert_eq!(key.unknown, [4, 6].into());
        assert_eq!(page.told.rows.acknowledged, [10, 11, 20, 21].into());
        assert_eq!(page.told.rows.refused, [30, 31, 50, 51].into());
        assert_eq!(page.told.rows.unknown, [40, 41, 60, 61].into());
        let counter = page.told.counters["n"];
        assert_eq!((counter.acknowledged, counter.unknown), (2, 2));
        assert_eq!((page.applied, page.durable, page.unknown()), (4, 4, 6));
        assert_eq!(page.ended["outcome unknown"], (2, 6));
    }
}
