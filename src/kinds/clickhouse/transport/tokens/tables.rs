//! What the tables of a server have said of themselves, and which sendings of a write may have written something.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use bytes::Bytes;
use fusebox_state::OpId;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{evidence::Evidence, reach::Reach};
use crate::kinds::clickhouse::{
    protocol::target::Target,
    transport::{http::Failed, question::Questions},
};

/// How long what a server said is good enough not to ask again behind a live insert.
const AGE_MAX: Duration = Duration::from_secs(10);
/// Tables that are remembered and warned of.
const TABLES_MAX: usize = 1_000;
const WARNINGS_MAX: usize = 20;
/// Tokens whose sendings are remembered.
const SENT_MAX: usize = 20_000;

/// What is noted beside a sending.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Noted {
    /// What a later proof needs; empty for nothing.
    pub(crate) evidence: Bytes,
    /// Why it cannot be sent again when its outcome is unknown; `None` if it perhaps can.
    pub(crate) lacks: Option<String>,
}

/// What a table said.
pub(super) struct Known {
    pub(super) asked: Instant,
    /// Inserts into it since.
    pub(super) sent: u64,
    pub(super) version: String,
    pub(super) reach: Reach,
    pub(super) log: bool,
    pub(super) refreshing: bool,
}

/// The sendings of each write that may have written something.
#[derive(Default)]
struct Sent {
    /// Whose sendings these are; evidence of another is of sendings that are not all here.
    connector: u64,
    ids: HashMap<u128, Vec<String>>,
}

/// What the tables have said, and what was sent.
pub(crate) struct Tables {
    known: Mutex<HashMap<Target, Known>>,
    /// One table is asked about at a time.
    pub(super) turn: tokio::sync::Mutex<()>,
    /// What is being asked.
    pub(super) asking: Questions<Target, Result<(), Failed>>,
    sent: Mutex<Sent>,
    warnings: Mutex<BTreeMap<Target, String>>,
}

impl Default for Tables {
    fn default() -> Self {
        Self {
            known: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
            asking: Questions::default(),
            sent: Mutex::new(Sent { connector: fastrand::u64(..), ..Sent::default() }),
            warnings: Mutex::default(),
        }
    }
}

impl Known {
    /// Whether so much may have come since it was asked that a proof would fail for that alone.
    fn is_stale(&self) -> bool {
        let smallest = match &self.reach {
            Reach::Tables(tables) => tables.iter().map(|table| table.window).min().unwrap_or(0),
            _ => u64::MAX,
        };
        self.asked.elapsed() > AGE_MAX || self.sent.saturating_mul(8) > smallest
    }

    fn noted(&self, connector: u64, by_log: bool) -> Noted {
        let is_logged = self.log && by_log;
        let lacks = match &self.reach {
            Reach::Tables(_) => None,
            Reach::Lacks(why) => Some(why.clone()),
            Reach::NoTable => Some("there is no such table".to_owned()),
        };
        let tables = match &self.reach {
            Reach::Tables(tables) => Some(tables.clone()),
            _ => None,
        };
        let evidence =
            Evidence { connector, log: is_logged, version: self.version.clone(), tables }
                .to_bytes();
        let too_much = || "it reaches too many tables".to_owned();
        let lacks = match lacks {
            _ if evidence.is_empty() => Some(lacks.unwrap_or_else(too_much)),
            _ if is_logged => None,
            lacks => lacks,
        };
        Noted { evidence, lacks }
    }
}

impl Tables {
    /// What was said of the table, and whether it should be asked again. Counts an insert into it, of which the query
    /// log can say something only `by_log`: if its id is ours.
    pub(super) fn take(&self, target: &Target, by_log: bool) -> Option<(Noted, bool)> {
        let connector = self.sent.lock().connector;
        let mut all = self.known.lock();
        let known = all.get_mut(target)?;
        let (noted, stale) = (known.noted(connector, by_log), known.is_stale());
        known.sent += 1;
        let refresh = stale && !std::mem::replace(&mut known.refreshing, stale);
        Some((noted, refresh))
    }

    /// Remembers that a write goes out as `id`.
    pub(crate) fn sending(&self, token: Option<OpId>, id: &str) {
        let Some(token) = token else { return };
        let mut sent = self.sent.lock();
        if sent.ids.len() >= SENT_MAX {
            // From here on nothing is known to be all of what was noted so far.
            *sent = Sent { connector: fastrand::u64(..), ..Sent::default() };
        }
        sent.ids.entry(token.to_u128()).or_default().push(id.to_owned());
    }

    /// That sending is known to have written nothing, or to have been answered well.
    pub(crate) fn settled(&self, token: Option<OpId>, id: &str) {
        let Some(token) = token.map(OpId::to_u128) else { return };
        let mut sent = self.sent.lock();
        let Some(ids) = sent.ids.get_mut(&token) else { return };
        ids.retain(|sent| sent != id);
        if ids.is_empty() {
            sent.ids.remove(&token);
        }
    }

    /// What became of these is known.
    pub(crate) fn forget(&self, tokens: &[OpId]) {
        let mut sent = self.sent.lock();
        for token in tokens {
            sent.ids.remove(&token.to_u128());
        }
    }

    /// All sendings of `token` that may have written something, if all of them are known.
    pub(super) fn all_sent(&self, token: OpId, evidence: &Evidence) -> Option<Vec<String>> {
        let sent = self.sent.lock();
        let all = (evidence.connector == sent.connector).then(|| sent.ids.get(&token.to_u128()));
        all.flatten().cloned()
    }

    /// Warns of a table, or takes the warning back.
    pub(crate) fn warn(&self, backend: &str, target: &Target, lacks: Option<String>) {
        let mut warnings = self.warnings.lock();
        let Some(lacks) = lacks else {
            warnings.remove(target);
            return;
        };
        let text = format!("an insert of unknown outcome cannot be repeated: {lacks}");
        if warnings.get(target) != Some(&text) && warnings.len() < WARNINGS_MAX {
            tracing::warn!(backend, "{text}");
            warnings.insert(target.clone(), text);
        }
    }

    /// The warnings, each once.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let mut all: Vec<String> = self.warnings.lock().values().cloned().collect();
        all.sort();
        all.dedup();
        all
    }

    /// Nobody joins a question that is under way any more.
    pub(crate) fn ask_anew(&self) {
        self.asking.ask_anew();
    }

    /// Whether what was said of the table is good enough not to ask again.
    pub(super) fn is_fresh(&self, target: &Target) -> bool {
        self.known.lock().get(target).is_some_and(|known| !known.is_stale())
    }

    /// What was asked again of the table was not answered: the next insert may ask again.
    pub(super) fn not_refreshed(&self, target: &Target) {
        if let Some(known) = self.known.lock().get_mut(target) {
            known.refreshing = false;
        }
    }

    /// Keeps what the table said.
    pub(super) fn keep(&self, target: &Target, known: Known) {
        let mut all = self.known.lock();
        if all.len() >= TABLES_MAX {
            all.clear();
        }
        all.insert(target.clone(), known);
    }
}

#[cfg(test)]
mod tests {
    use super::super::reach::Reached;
    use super::*;

    fn known(reach: Reach, log: bool) -> Known {
        let asked = Instant::now();
        Known { asked, sent: 0, version: "26.7".into(), reach, log, refreshing: false }
    }

    fn table(window: u64) -> Reach {
        let (covers, direct) = (true, true);
        Reach::Tables(vec![Reached { identity: 1, window, seconds: 0, number: 0, covers, direct }])
    }

    #[test]
    fn what_cannot_be_proven_later_is_said_when_it_is_sent() {
        let lacks = || Reach::Lacks("why".to_owned());
        assert_eq!(known(table(100), false).noted(1, true).lacks, None);
        let nothing = known(lacks(), false).noted(1, true);
        assert_eq!((nothing.evidence.len(), nothing.lacks.as_deref()), (0, Some("why")));
        let log = known(lacks(), true).noted(1, true);
        assert!(!log.evidence.is_empty() && log.lacks.is_none(), "the log may tell");
        let named = known(lacks(), true).noted(1, false);
        assert_eq!((named.evidence.len(), named.lacks.as_deref()), (0, Some("why")));
    }

    #[test]
    fn a_small_window_is_asked_for_more_often() {
        let tables = Tables::default();
        let target = ("d".to_owned(), "t".to_owned());
        assert_eq!(tables.take(&target, true), None);
        tables.keep(&target, known(table(80), false));
        let refreshes = (0..20).filter(|_| tables.take(&target, true).unwrap().1).count();
        assert_eq!((refreshes, tables.known.lock()[&target].sent), (1, 20), "one at a time");
    }

    #[test]
    fn a_sending_is_remembered_until_its_end_is_known() {
        let tables = Tables::default();
        let token = OpId::from_u128(7);
        let evidence =
            |connector| Evidence { connector, log: true, version: String::new(), tables: None };
        let connector = tables.sent.lock().connector;
        let own = evidence(connector);
        tables.sending(Some(token), "a");
        tables.sending(Some(token), "b");
        assert_eq!(tables.all_sent(token, &own), Some(vec!["a".to_owned(), "b".to_owned()]));
        assert_eq!(tables.all_sent(token, &evidence(connector ^ 1)), None);
        tables.settled(Some(token), "a");
        assert_eq!(tables.all_sent(token, &own), Some(vec!["b".to_owned()]));
        tables.forget(&[token]);
        assert_eq!(tables.all_sent(token, &own), None);
    }
}
