//! Whether a token protects a write, and the proof of it before the write is sent again.
//!
//! ```text
//!  first sending ── baseline: what it reaches, how far each table is ──▶ evidence, kept by the core
//!                                                                           │
//!  sent again ── query log: did it end? ── what it reaches now ── compared ─┴─▶ recognisable │ applied │ not proven
//! ```
//! A server recognises a repetition by `insert_deduplication_token` while every table that the write reaches
//! ([`reach`]) still remembers its blocks. A table remembers its last so many blocks, so that what counts is what came
//! **since the first sending**, whoever sent it. The evidence ([`evidence`]) is the state of those tables from before
//! that sending. Older is safe: the difference only grows. So a live insert takes what was asked some time ago and
//! has it refreshed behind its back; only the first insert into a table waits for the answer.
//!
//! Where the server's query log can be read it is asked first ([`log`]): a write of which it says that it ended well
//! was applied, window or not.
//!
//! **Not proven means never sent again**: the write is ambiguous, and `status` says which table or right is lacking.
//! So are writes without evidence, such as those of an earlier release. A crash before the evidence was synced leaves
//! a write that was not sent; after it, one with its evidence.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use fusebox_actors::connector::{Aboard, Doubt};
use fusebox_state::{ErrorClass, OpId, UnixMillis};
use parking_lot::Mutex;
use tokio::time::{Instant, timeout};

use super::{
    http::{Failed, Http},
    question::{self, Questions},
    server::Server,
    shared::Shared,
};
use crate::kinds::clickhouse::protocol::outcome::SUMMARY_SINCE;
use evidence::Evidence;
use log::Logged;
use reach::Reach;

mod evidence;
mod log;
mod reach;

/// How long what a server said is good enough not to ask again behind a live insert.
const AGE_MAX: Duration = Duration::from_secs(10);
/// How long a live insert waits for the first answer.
const FIRST_MAX: Duration = Duration::from_secs(2);
/// How long after its beginning the question of a live insert asks whether the log can be read.
const LOG_MAX: Duration = Duration::from_millis(1_500);
/// Tables that are remembered and warned of.
const TABLES_MAX: usize = 1_000;
const WARNINGS_MAX: usize = 20;
/// Tokens whose sendings are remembered.
const SENT_MAX: usize = 20_000;

/// A database and a table of it.
pub(crate) type Target = (String, String);

/// What is noted beside a sending.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Noted {
    /// What a later proof needs; empty for nothing.
    pub(crate) evidence: Bytes,
    /// Why it cannot be sent again when its outcome is unknown; `None` where it perhaps can.
    pub(crate) lacks: Option<String>,
}

/// What is known of a write that may have been applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Proof {
    /// The server would recognise it.
    Recognisable,
    /// It was applied.
    Applied,
    /// It was not.
    NotExecuted,
    /// Nothing that is a proof: why.
    Lacks(String),
    /// Its table is gone.
    NoTable,
}

/// What a table said.
struct Known {
    asked: Instant,
    /// Inserts into it since.
    sent: u64,
    version: String,
    reach: Reach,
    log: bool,
    refreshing: bool,
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
    turn: tokio::sync::Mutex<()>,
    asking: Questions<Target, Result<(), Failed>>,
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

    fn noted(&self, connector: u64) -> Noted {
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
            Evidence { connector, log: self.log, version: self.version.clone(), tables }.to_bytes();
        let too_much = || "it reaches more tables than can be noted".to_owned();
        let lacks = match lacks {
            _ if evidence.is_empty() => Some(lacks.unwrap_or_else(too_much)),
            _ if self.log => None,
            lacks => lacks,
        };
        Noted { evidence, lacks }
    }
}

impl Tables {
    /// What was said of the table, and whether it should be asked anew. Counts an insert into it.
    fn take(&self, target: &Target) -> Option<(Noted, bool)> {
        let connector = self.sent.lock().connector;
        let mut all = self.known.lock();
        let known = all.get_mut(target)?;
        let (noted, stale) = (known.noted(connector), known.is_stale());
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

    /// All sendings of `token` that may have written something, where all of them are known.
    fn all_sent(&self, token: OpId, evidence: &Evidence) -> Option<Vec<String>> {
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

    fn keep(&self, target: &Target, known: Known) {
        let mut all = self.known.lock();
        if all.len() >= TABLES_MAX {
            all.clear();
        }
        all.insert(target.clone(), known);
    }
}

/// What is noted beside the sending of a write into `target`: from before it, whenever that was. `fresh` waits for
/// an answer that is not stale; otherwise only a first insert waits, and that not for long. It is asked for in the
/// place that `aboard` lends.
///
/// # Errors
/// Nothing can be sent to the server, or it did not answer: where it is to be `fresh`, or the time is used up.
pub(crate) async fn baseline(
    shared: &Arc<Shared>,
    aboard: impl FnOnce() -> Aboard,
    server: &Arc<Server>,
    target: &Target,
    fresh: bool,
    until: Instant,
) -> Result<Noted, Failed> {
    match shared.tables.take(target) {
        Some((noted, false)) => return Ok(noted),
        Some((noted, true)) if !fresh => {
            let (shared, server, target) = (Arc::clone(shared), Arc::clone(server), target.clone());
            tokio::spawn(async move {
                let until = Instant::now() + shared.settings.timeout;
                if learn(&shared, &server, &target, (until, until)).await.is_err()
                    && let Some(known) = shared.tables.known.lock().get_mut(&target)
                {
                    known.refreshing = false;
                }
            });
            return Ok(noted);
        }
        _ => {}
    }
    let now = Instant::now();
    let time = until.saturating_duration_since(now);
    let limit = question::limit(time, shared.settings.timeout);
    let (own, server, table) = (Arc::clone(shared), Arc::clone(server), target.clone());
    // Whether there is a log is worth less than an answer in time.
    let log = if fresh { now + limit } else { now + limit.min(LOG_MAX) };
    let learning = async move { learn(&own, &server, &table, (now + limit, log)).await };
    let asked = shared.tables.asking.ask(target.clone(), &shared.http, aboard, learning);
    let patience = if fresh { time } else { time.min(FIRST_MAX) };
    match timeout(patience, asked).await {
        Ok(Some(Ok(()))) => {}
        Ok(None) => return Err(Failed::closed()),
        Ok(Some(Err(failed))) if fresh || failed.error.class != ErrorClass::Unknown => {
            return Err(failed.unsent());
        }
        // There is no time left to send it in.
        Err(_) if patience == time => return Err(Failed::not_in_time(time).unsent()),
        late => {
            let why = late.ok().flatten().and_then(Result::err).map(|failed| failed.error);
            let why = why.map_or_else(|| format!("{FIRST_MAX:?} passed"), |why| why.to_string());
            let why = format!("the server did not say in time what it remembers ({why})");
            return Ok(Noted { evidence: Bytes::new(), lacks: Some(why) });
        }
    }
    let nothing =
        || Noted { evidence: Bytes::new(), lacks: Some("its table is not known".to_owned()) };
    Ok(shared.tables.take(target).map_or_else(nothing, |(noted, _)| noted))
}

/// Asks what an insert into `target` reaches, until then, and whether the log can be read, until then; and keeps it.
async fn learn(
    shared: &Arc<Shared>,
    server: &Server,
    target: &Target,
    (until, log_until): (Instant, Instant),
) -> Result<(), Failed> {
    let tables = &shared.tables;
    let _one_at_a_time = tables.turn.lock().await;
    if tables.known.lock().get(target).is_some_and(|known| !known.is_stale()) {
        return Ok(());
    }
    let asked = Instant::now();
    let left = |until: Instant| until.saturating_duration_since(Instant::now());
    let reach = reach_of(&shared.http, server, target, &BTreeMap::new(), left(until)).await?;
    let log = log::readable(&shared.http, left(log_until)).await;
    let known =
        Known { asked, sent: 0, version: server.version.clone(), reach, log, refreshing: false };
    let lacks = match &known.reach {
        Reach::Lacks(why) => Some(why.clone()),
        _ => None,
    };
    tables.warn(&shared.settings.name, target, lacks);
    if known.reach != Reach::NoTable {
        tables.keep(target, known);
    }
    Ok(())
}

async fn reach_of(
    http: &Http,
    server: &Server,
    target: &Target,
    noted: &BTreeMap<u128, u64>,
    time: Duration,
) -> Result<Reach, Failed> {
    if !server.takes_tokens() {
        return Ok(Reach::Lacks("this server knows no insert_deduplication_token".to_owned()));
    }
    reach::ask(http, target, noted, time).await
}

/// A write that may have been applied.
pub(crate) struct Doubted<'a> {
    pub(crate) target: &'a Target,
    pub(crate) token: OpId,
    pub(crate) doubt: Doubt<'a>,
    /// The wall clock now.
    pub(crate) now: UnixMillis,
    /// What the query ids of this installation begin with.
    pub(crate) prefix: &'a str,
}

/// What is known of it now.
///
/// # Errors
/// The server did not answer; nothing of the write was sent.
pub(crate) async fn prove(
    shared: &Arc<Shared>,
    server: &Server,
    write: &Doubted<'_>,
    until: Instant,
) -> Result<Proof, Failed> {
    let Some(evidence) = Evidence::of(write.doubt.evidence) else {
        return Ok(Proof::Lacks("nothing was noted when it was first sent".to_owned()));
    };
    let Doubted { target, token, doubt, now, prefix } = *write;
    if evidence.log {
        let sent = shared.tables.all_sent(token, &evidence).filter(|_| server.since(SUMMARY_SINCE));
        let asked =
            log::ask(&shared.http, prefix, token, doubt.since, sent.as_deref(), until).await;
        match asked {
            Ok(Logged::Applied) => return Ok(Proof::Applied),
            Ok(Logged::NotExecuted) => return Ok(Proof::NotExecuted),
            Ok(Logged::NotKnown) => {}
            Err(failed)
                if matches!(
                    failed.error.class,
                    ErrorClass::BlockedObject | ErrorClass::Rejected
                ) => {}
            Err(failed) => return Err(failed.unsent()),
        }
    }
    let noted = evidence.tables.iter().flatten();
    let noted = noted.map(|table| (table.identity, table.number)).collect();
    let left = until.saturating_duration_since(Instant::now());
    let reach = reach_of(&shared.http, server, target, &noted, left).await;
    let reach = reach.map_err(Failed::unsent)?;
    if reach == Reach::NoTable {
        return Ok(Proof::NoTable);
    }
    let age = (now >= doubt.since).then(|| now.since(doubt.since));
    let lacks = evidence.lacks(&reach, &server.version, age, shared.settings.timeout);
    if let (Some(why), Reach::Lacks(_)) = (&lacks, &reach) {
        shared.tables.warn(&shared.settings.name, target, Some(why.clone()));
    }
    Ok(lacks.map_or(Proof::Recognisable, Proof::Lacks))
}

#[cfg(test)]
mod tests {
    use super::reach::Reached;
    use super::*;

    fn known(reach: Reach, log: bool) -> Known {
        let asked = Instant::now();
        Known { asked, sent: 0, version: "26.7".into(), reach, log, refreshing: false }
    }

    fn table(window: u64) -> Reach {
        Reach::Tables(vec![Reached { identity: 1, window, seconds: 0, number: 0, covers: true }])
    }

    #[test]
    fn what_cannot_be_proven_later_is_said_when_it_is_sent() {
        let lacks = || Reach::Lacks("why".to_owned());
        assert_eq!(known(table(100), false).noted(1).lacks, None);
        let nothing = known(lacks(), false).noted(1);
        assert_eq!((nothing.evidence.len(), nothing.lacks.as_deref()), (0, Some("why")));
        let log = known(lacks(), true).noted(1);
        assert!(!log.evidence.is_empty() && log.lacks.is_none(), "the log may tell");
    }

    #[test]
    fn a_small_window_is_asked_for_more_often() {
        let tables = Tables::default();
        let target = ("d".to_owned(), "t".to_owned());
        assert_eq!(tables.take(&target), None);
        tables.keep(&target, known(table(80), false));
        let refreshes = (0..20).filter(|_| tables.take(&target).unwrap().1).count();
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
