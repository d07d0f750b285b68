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
//! If the server's query log can be read it is asked first ([`log`]): a write of which it says that it ended well
//! was applied, window or not.
//!
//! A server that was killed may remember a token whose rows it does not have, so that a repetition ended well is not
//! the end of it ([`arrived`]).
//!
//! **Not proven means never sent again**: the write is ambiguous, and `status` says which table or right is lacking.
//! So are writes without evidence, such as those of an earlier release. A crash before the evidence was synced leaves
//! a write that was not sent; after it, one with its evidence.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use fusebox_actors::connector::{Aboard, Doubt};
use fusebox_state::{ErrorClass, OpId, UnixMillis};
use tokio::time::{Instant, timeout};

use super::{
    http::{Failed, Http},
    question,
    server::Server,
    shared::Shared,
};
use crate::kinds::clickhouse::protocol::{outcome::SUMMARY_SINCE, target::Target};
use evidence::Evidence;
use log::Logged;
use reach::Reach;
use tables::Known;

mod arrived;
mod evidence;
mod log;
mod reach;
mod tables;

pub(crate) use arrived::{Arrived, TOKENS_MAX};
pub(crate) use tables::{Noted, Tables};

/// How long a live insert waits for the first answer.
const FIRST_MAX: Duration = Duration::from_secs(2);
/// How long after its beginning the question of a live insert asks whether the log can be read.
const LOG_MAX: Duration = Duration::from_millis(1_500);
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

/// What is noted beside the sending of a write into `target`: from before it, whenever that was. `fresh` waits for
/// an answer that is not stale; otherwise only a first insert waits, and that not for long. It is asked for in the
/// place that `aboard` lends. With `by_log` the write's query id is ours, so the server's log can tell of it.
///
/// # Errors
/// Nothing can be sent to the server, or it did not answer: if it is to be `fresh`, or the time is used up.
pub(crate) async fn baseline(
    shared: &Arc<Shared>,
    aboard: impl FnOnce() -> Aboard,
    server: &Arc<Server>,
    target: &Target,
    (fresh, by_log): (bool, bool),
    until: Instant,
) -> Result<Noted, Failed> {
    match shared.tables.take(target, by_log) {
        Some((noted, false)) => return Ok(noted),
        Some((noted, true)) if !fresh => {
            let (shared, server, target) = (Arc::clone(shared), Arc::clone(server), target.clone());
            tokio::spawn(async move {
                let until = Instant::now() + shared.settings.timeout;
                if learn(&shared, &server, &target, (until, until)).await.is_err() {
                    shared.tables.not_refreshed(&target);
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
    Ok(shared.tables.take(target, by_log).map_or_else(nothing, |(noted, _)| noted))
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
    if tables.is_fresh(target) {
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
        return Ok(Reach::Lacks(
            "this server does not support insert_deduplication_token".to_owned(),
        ));
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
        let tokens = server.takes_tokens();
        let sent = shared.tables.all_sent(token, &evidence).filter(|_| server.since(SUMMARY_SINCE));
        let asked =
            log::ask(&shared.http, prefix, token, doubt.since, (sent.as_deref(), tokens), until)
                .await;
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

/// Whether the rows of a repetition that the server took are there; see [`arrived`].
///
/// # Errors
/// The server did not answer: whether they are is not known.
pub(crate) async fn arrived(
    shared: &Arc<Shared>,
    server: &Server,
    write: &Doubted<'_>,
    until: Instant,
) -> Result<Arrived, Failed> {
    let then = Evidence::of(write.doubt.evidence).and_then(|evidence| evidence.tables);
    let Some(then) = then else { return Ok(Arrived::Yes) };
    let left = until.saturating_duration_since(Instant::now());
    let reach = reach_of(&shared.http, server, write.target, &BTreeMap::new(), left).await?;
    let Reach::Tables(now) = reach else { return Ok(Arrived::Yes) };
    Ok(arrived::judge(&then, &now))
}
