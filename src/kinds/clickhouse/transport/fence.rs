//! The fence: nothing new is written until nothing old can still land.
//!
//! A write that was sent and not answered may still run, or wait in the server's socket and begin to run
//! seconds later. Every query has an id, `fusebox:<instance>:<run>:<ulid>`, by which the server is asked to
//! end it; that of a write with a token is `fusebox:<instance>:<run>:<token>:<ulid>`. A query that came through a door
//! keeps the id that its client gave it; while it is in doubt it is looked for by that. A later run knows nothing of
//! those.
//!
//! ```text
//!            caller left                overdue, or the connection broke
//!  OnWire ───────────────▶ Departed ──────────────────────────────────────▶ Doubted ──▶ gone
//!    │ answered                │ answered                                    killed, or twice not found
//!    └─────────────────────────┴──▶ gone
//! ```
//! **Who waits for what** ([`Waits`]). Inserts commute, so a first insert waits only for what does not: an abandoned
//! ALTER, say. Everything else waits until nothing is Departed or Doubted. So does a repetition, but for inserts that
//! were looked for once: its token makes it one with the sending before it, whichever comes first. At the first write of a connector's life everything that an earlier run, or an earlier
//! connector of this run, left under the instance's name counts as Doubted.
//!
//! **A round** reads which queries of the instance run, leaves out those that live by our own account, and
//! kills the others (`KILL QUERY … SYNC`). An id that was found and killed is gone. One that was not found is
//! gone after a second look, [`SETTLE`] later: a server that was frozen reads what is in its sockets within
//! that time. What was not sent is none of its sockets' (linger 0, [`crate::net::http1_dial`]).
//!
//! **If it cannot be done** (the list or the kill is refused), an id is gone after twice the backend's
//! `timeout`, and `status` warns: that is a bet, no proof.
//!
//! **A former name** ([`ClickHouseSettings::former`]) counts as an earlier run's, until that is gone: afterwards it
//! may be another daemon's. A query under our name that began after this process and comes back after others of its
//! run were killed is a twin's ([`crate::kinds::twins::Twins`]).
//!
//! A crash of the daemon leaves nothing here: the next run finds its queries by the instance's name.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::{Arc, LazyLock},
    time::Duration,
};

use fusebox_state::{ErrorClass, OpId, Words};
use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

use super::{
    endings::{Ending, Endings, Name, SETTLE},
    http::{Failed, Http},
    question::Questions,
};
use crate::kinds::{
    clickhouse::settings::ClickHouseSettings,
    twins::{Twins, since_start},
};

/// Between two rounds.
pub(super) const PAUSE: Duration = Duration::from_millis(50);
/// Ids in one statement.
const IDS_MAX: usize = 500;

/// The queries that live, of all connectors of the process: two of them may be on one server.
static LIVING: LazyLock<Mutex<HashSet<String>>> = LazyLock::new(Mutex::default);

/// A query's id for as long as somebody waits for its end.
pub(crate) struct QueryId(pub(crate) String);

impl QueryId {
    fn new(prefix: &str, run: &str, token: Option<OpId>) -> Self {
        let token = token.map(|token| format!("{token}:")).unwrap_or_default();
        let id = format!("{prefix}{}:{token}{}", word(run), ulid::Ulid::generate());
        LIVING.lock().insert(id.clone());
        Self(id)
    }
}

impl Drop for QueryId {
    fn drop(&mut self) {
        LIVING.lock().remove(&self.0);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    OnWire,
    Departed,
    /// Since then; the first look that did not find it.
    Doubted(Instant, Option<Instant>),
}

#[derive(Debug)]
struct Entry {
    state: State,
    commutes: bool,
    /// The query's id, if its client gave it another one.
    given: Option<String>,
    /// The last round has looked for that.
    asked: bool,
    /// Keeps what has the same id from being sent while the write is in doubt: it would be killed instead of it.
    ending: Option<Ending>,
}

/// Which writes in doubt another one waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waits {
    /// One that commutes with others of its kind, and was never sent: for those that do not commute.
    First,
    /// One that commutes and may have been applied, with a token: for all, but one look for what commutes is enough.
    Repetition,
    /// For all.
    Any,
}

/// Whether what an earlier run left is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Earlier {
    Doubted(Instant, Option<Instant>),
    Gone,
}

/// The writes whose end is not known; see the [module](self).
pub(crate) struct Fence {
    prefix: String,
    /// What ids began with before.
    former: Option<String>,
    run: String,
    twins: Arc<Twins>,
    /// Twice the backend's `timeout`.
    patience: Duration,
    entries: Mutex<BTreeMap<String, Entry>>,
    endings: Arc<Endings>,
    earlier: Mutex<Earlier>,
    pub(super) changed: Notify,
    rounds: tokio::sync::Mutex<()>,
    /// The round that writes wait for.
    pub(super) asking: Questions<(), Result<(), Failed>>,
    refused: Mutex<Option<Words>>,
}

/// What is between a write and the wire.
pub(super) enum Obstacle {
    /// Its end must be found out.
    Doubt,
    /// Somebody's write that is still on the wire.
    Departed,
}

impl Fence {
    /// A fence that has yet to look for what earlier runs left.
    pub(crate) fn new(settings: &ClickHouseSettings, endings: Arc<Endings>) -> Self {
        Self {
            prefix: format!("fusebox:{}:", word(&settings.instance)),
            former: settings.former.as_ref().map(|former| format!("fusebox:{}:", word(former))),
            run: settings.run.clone(),
            twins: Arc::clone(&settings.twins),
            patience: settings.timeout * 2,
            entries: Mutex::default(),
            endings,
            earlier: Mutex::new(Earlier::Doubted(Instant::now(), None)),
            changed: Notify::new(),
            rounds: tokio::sync::Mutex::default(),
            asking: Questions::default(),
            refused: Mutex::default(),
        }
    }

    /// A new query's id.
    pub(crate) fn id(&self) -> QueryId {
        QueryId::new(&self.prefix, &self.run, None)
    }

    /// The id of one sending of the write with `token`, by which the server's log is searched for it.
    pub(crate) fn id_of(&self, token: Option<OpId>) -> QueryId {
        QueryId::new(&self.prefix, &self.run, token)
    }

    /// What all ids of this installation begin with.
    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// A write goes on the wire.
    pub(crate) fn enter(self: &Arc<Self>, id: QueryId, commutes: bool) -> Place {
        self.enter_under(id, None, commutes)
    }

    /// The same with an id that the write's client gave it.
    pub(crate) fn enter_under(
        self: &Arc<Self>,
        id: QueryId,
        given: Option<String>,
        commutes: bool,
    ) -> Place {
        let state = State::OnWire;
        let entry = Entry { state, commutes, given, asked: false, ending: None };
        self.entries.lock().insert(id.0.clone(), entry);
        Place { fence: Arc::clone(self), id, known: false }
    }

    /// The ids that clients gave to writes in doubt, as many as one round asks for. Nothing else says that such a
    /// query is ours.
    fn given(&self) -> BTreeSet<String> {
        let (mut entries, mut given) = (self.entries.lock(), BTreeSet::new());
        for entry in entries.values_mut() {
            let id = entry.given.as_ref().filter(|_| matches!(entry.state, State::Doubted(..)));
            let id = id.filter(|id| given.len() < IDS_MAX || given.contains(*id));
            entry.asked = id.is_some();
            given.extend(id.cloned());
        }
        given
    }

    /// Whether a write is in doubt under an id of its client's, which nothing else may have until it is settled.
    pub(super) fn keeps_names(&self) -> bool {
        self.entries.lock().values().any(|entry| entry.ending.is_some())
    }

    /// Nobody waits for this write any more; it keeps its place.
    pub(crate) fn depart(&self, id: &str) {
        if let Some(entry) = self.entries.lock().get_mut(id)
            && entry.state == State::OnWire
        {
            entry.state = State::Departed;
        }
    }

    /// Whether anything is in doubt.
    pub(crate) fn is_in_doubt(&self) -> bool {
        self.entries.lock().values().any(|entry| matches!(entry.state, State::Doubted(..)))
    }

    /// Nobody joins a round that is under way any more.
    pub(crate) fn ask_anew(&self) {
        self.asking.ask_anew();
    }

    /// Why killing is refused.
    pub(crate) fn warning(&self) -> Option<Words> {
        let refused = self.refused.lock();
        let why = refused.as_ref()?;
        Some(why.within(|why| {
            format!(
                "the server does not let fusebox find and kill abandoned queries ({why}): after each of them, writes \
                 wait {:?}",
                self.patience
            )
        }))
    }

    /// What a write waits for; see [`super::asking::pass`].
    pub(super) fn obstacle(&self, waits: Waits) -> Option<Obstacle> {
        if *self.earlier.lock() != Earlier::Gone {
            return Some(Obstacle::Doubt);
        }
        let entries = self.entries.lock();
        let mut obstacle = None;
        let counts = |entry: &&Entry| match (waits, entry.state) {
            (Waits::First, _) | (Waits::Repetition, State::Doubted(_, Some(_))) => !entry.commutes,
            _ => true,
        };
        for entry in entries.values().filter(counts) {
            match entry.state {
                State::OnWire => {}
                State::Departed => obstacle = obstacle.or(Some(Obstacle::Departed)),
                State::Doubted(..) => return Some(Obstacle::Doubt),
            }
        }
        obstacle
    }

    /// One round; others that want one wait for it.
    pub(crate) async fn round(&self, http: &Http, until: Instant) -> Result<(), Failed> {
        let _one_at_a_time = self.rounds.lock().await;
        let time = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let begun = Instant::now();
        match self.look_and_kill(http, time).await {
            Ok(found) => {
                *self.refused.lock() = None;
                self.settle(begun, Some(&found));
            }
            Err(failed)
                if matches!(
                    failed.error.class,
                    ErrorClass::BlockedObject | ErrorClass::Rejected
                ) =>
            {
                tracing::warn!(error = %failed.error, "abandoned queries cannot be killed");
                *self.refused.lock() = Some(failed.error.message);
                self.settle(begun, None);
            }
            Err(failed) => return Err(failed.unsent()),
        }
        self.changed.notify_waiters();
        Ok(())
    }

    /// The abandoned queries that ran, and whether each has been ended.
    async fn look_and_kill(
        &self,
        http: &Http,
        time: Duration,
    ) -> Result<BTreeMap<String, bool>, Failed> {
        let begins = |prefix: &String| format!("startsWith(query_id, '{prefix}')");
        let former = self.former.as_ref().filter(|_| *self.earlier.lock() != Earlier::Gone);
        let mut any: Vec<String> = former.into_iter().chain([&self.prefix]).map(begins).collect();
        let given = self.given();
        if !given.is_empty() {
            any.push(format!("query_id IN ({})", list_of(&given)));
        }
        let list = format!(
            "SELECT query_id FROM system.processes WHERE {} FORMAT TabSeparated",
            any.join(" OR ")
        );
        let listed = http.ask(list, time).await?;
        let old: Vec<String> = {
            let living = LIVING.lock();
            let listed = listed.lines().filter_map(unescaped);
            listed.filter(|id| given.contains(id) || !living.contains(id)).collect()
        };
        for id in &old {
            self.meet(id);
        }
        let mut found: BTreeMap<String, bool> = old.iter().map(|id| (id.clone(), true)).collect();
        for ids in old.chunks(IDS_MAX) {
            let ids = list_of(ids);
            let kill = format!("KILL QUERY WHERE query_id IN ({ids}) SYNC FORMAT TabSeparated");
            let answer = http.ask(kill, time).await?;
            for line in answer.lines() {
                let mut fields = line.split('\t');
                let (status, id) = (fields.next(), fields.next());
                let id = id.and_then(unescaped);
                if let Some(ended) = id.and_then(|id| found.get_mut(&id)) {
                    *ended = status == Some("finished");
                }
            }
        }
        Ok(found)
    }

    /// Tells of a query under our name that is none of this run's.
    fn meet(&self, id: &str) {
        let Some(rest) = id.strip_prefix(&self.prefix) else { return };
        let Some((run, rest)) = rest.split_once(':') else { return };
        let made = rest.rsplit(':').next().and_then(|last| ulid::Ulid::from_string(last).ok());
        let Some(made) = made.filter(|_| run != word(&self.run)) else { return };
        let young = made.datetime() > since_start().1 + Duration::from_secs(1);
        self.twins.met(run, made.0, young);
    }

    /// Draws the conclusions of a round that begun `begun`: `found` is what it found, `None` if it was
    /// refused.
    fn settle(&self, begun: Instant, found: Option<&BTreeMap<String, bool>>) {
        let gone = |since: Instant, looked: &mut Option<Instant>, ended: Option<bool>| {
            if found.is_none() {
                return begun.saturating_duration_since(since) >= self.patience;
            }
            ended.unwrap_or_else(|| {
                let first = *looked.get_or_insert(begun);
                begun.saturating_duration_since(first) >= SETTLE
            })
        };
        self.entries.lock().retain(|id, entry| match &mut entry.state {
            // It was in doubt only after this round had begun to look.
            State::Doubted(since, _) if found.is_some() && begun < *since => true,
            // It was not asked for.
            State::Doubted(..) if found.is_some() && entry.given.is_some() && !entry.asked => true,
            State::Doubted(since, looked) => {
                let id = entry.given.as_ref().unwrap_or(id);
                let ended = found.and_then(|found| found.get(id).copied());
                !gone(*since, looked, ended)
            }
            _ => true,
        });
        let mut earlier = self.earlier.lock();
        if let Earlier::Doubted(since, looked) = &mut *earlier {
            // What was found has been killed, and more may be in a socket: finding nothing twice proves it.
            let nothing = found.is_none_or(BTreeMap::is_empty);
            if !nothing {
                *looked = None;
            } else if gone(*since, looked, None) {
                *earlier = Earlier::Gone;
            }
        }
    }

    fn leave(&self, id: &str, known: bool) {
        let mut entries = self.entries.lock();
        if known {
            entries.remove(id);
        } else if let Some(entry) = entries.get_mut(id) {
            entry.state = State::Doubted(Instant::now(), None);
            let name = entry.given.clone().map(Name::Query);
            entry.ending = name.map(|name| Ending::begin(&self.endings, vec![name]));
        }
        drop(entries);
        self.changed.notify_waiters();
    }
}

/// A write's place on the wire. Dropped without [`Place::ended`], the write is in doubt.
pub(crate) struct Place {
    fence: Arc<Fence>,
    id: QueryId,
    known: bool,
}

impl Place {
    /// The query's id.
    pub(crate) fn id(&self) -> &str {
        &self.id.0
    }

    /// The server has ended the query, or never got it.
    pub(crate) fn ended(&mut self) {
        self.known = true;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.fence.leave(&self.id.0, self.known);
    }
}

/// An id as a text of SQL. What a client gave may hold anything.
pub(super) fn quoted(id: &str) -> String {
    let mut text = String::with_capacity(id.len() + 2);
    text.push('\'');
    for c in id.chars() {
        if matches!(c, '\'' | '\\') {
            text.push('\\');
        }
        text.push(c);
    }
    text.push('\'');
    text
}

fn list_of<'a>(ids: impl IntoIterator<Item = &'a String>) -> String {
    ids.into_iter().map(|id| quoted(id)).collect::<Vec<String>>().join(", ")
}

/// A field of a `TabSeparated` line as the text that it encodes; `None` for an escape that is not known here.
fn unescaped(field: &str) -> Option<String> {
    let mut text = String::with_capacity(field.len());
    let mut rest = field.chars();
    while let Some(c) = rest.next() {
        text.push(match c {
            '\\' => match rest.next()? {
                't' => '\t',
                'n' => '\n',
                'r' => '\r',
                'b' => '\u{8}',
                'f' => '\u{c}',
                '0' => '\0',
                other @ ('\\' | '\'') => other,
                _ => return None,
            },
            other => other,
        });
    }
    Some(text)
}

/// A part of a query's id: no space, quote or colon.
fn word(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fence() -> Arc<Fence> {
        let url = "http://127.0.0.1:1".parse().unwrap();
        let settings = ClickHouseSettings::new(url, "host a:b", "run");
        Arc::new(Fence::new(&settings, Arc::default()))
    }

    fn nothing() -> BTreeMap<String, bool> {
        BTreeMap::new()
    }

    #[test]
    fn a_write_under_its_clients_own_id_is_found_by_that() {
        let fence = fence();
        let now = Instant::now();
        fence.settle(now, Some(&nothing()));
        fence.settle(now + SETTLE, Some(&nothing()));
        let given = "it's\\mine\t".to_owned();
        let place = fence.enter_under(fence.id(), Some(given.clone()), false);
        assert!(fence.given().is_empty(), "it is on the wire");
        drop(place);
        let doubted: Vec<String> = fence.given().into_iter().collect();
        assert_eq!(doubted, std::slice::from_ref(&given));
        assert_eq!(list_of(&doubted), "'it\\'s\\\\mine\t'");
        assert_eq!(unescaped("it\\'s\\\\mine\\t"), Some(given.clone()));
        assert_eq!((unescaped("\\x"), unescaped("\\")), (None, None));
        assert!(fence.obstacle(Waits::Any).is_some());
        let same = [Name::Query(given.clone())];
        let over = || futures_util::FutureExt::now_or_never(fence.endings.over(&same)).is_some();
        assert!(!over(), "a query of the same id would be killed instead of it");
        fence.settle(now + SETTLE, Some(&BTreeMap::from([(given, true)])));
        assert!(fence.obstacle(Waits::Any).is_none() && over() && !fence.keeps_names());
    }

    #[test]
    fn of_many_ids_of_clients_a_round_settles_those_that_it_asked_for() {
        let fence = fence();
        *fence.earlier.lock() = Earlier::Gone;
        for number in 0..IDS_MAX + 2 {
            drop(fence.enter_under(fence.id(), Some(format!("{number}")), false));
        }
        let (mut now, mut left) = (Instant::now() + SETTLE, IDS_MAX + 2);
        while left > 0 {
            assert_eq!(fence.given().len(), left.min(IDS_MAX));
            fence.settle(now, Some(&nothing()));
            now += SETTLE;
            fence.settle(now, Some(&nothing()));
            left -= left.min(IDS_MAX);
            assert_eq!(fence.entries.lock().len(), left);
        }
    }

    #[test]
    fn what_an_earlier_run_left_is_gone_after_two_looks_that_found_nothing() {
        let fence = fence();
        let mut now = Instant::now();
        assert!(fence.obstacle(Waits::First).is_some());
        fence.settle(now, Some(&nothing()));
        assert!(fence.obstacle(Waits::First).is_some(), "one look proves nothing");
        now += SETTLE;
        let one = BTreeMap::from([("fusebox:host_a_b:before:1".to_owned(), true)]);
        fence.settle(now, Some(&one));
        now += SETTLE;
        fence.settle(now, Some(&nothing()));
        assert!(fence.obstacle(Waits::First).is_some(), "something was found in between");
        now += SETTLE;
        fence.settle(now, Some(&nothing()));
        assert!(fence.obstacle(Waits::First).is_none() && fence.obstacle(Waits::Any).is_none());
    }

    #[test]
    fn an_insert_waits_for_what_does_not_commute_and_a_repetition_for_everything() {
        let fence = fence();
        *fence.earlier.lock() = Earlier::Gone;
        let before = Instant::now();
        let insert = fence.enter(fence.id(), true);
        assert!(fence.obstacle(Waits::Any).is_none(), "its caller waits: they overlap");
        fence.depart(insert.id());
        for waits in [Waits::Any, Waits::Repetition] {
            assert!(matches!(fence.obstacle(waits), Some(Obstacle::Departed)));
        }
        assert!(fence.obstacle(Waits::First).is_none());
        drop(insert);
        assert!(fence.is_in_doubt());
        fence.settle(before, Some(&nothing()));
        for waits in [Waits::Any, Waits::Repetition] {
            let obstacle = fence.obstacle(waits);
            assert!(matches!(obstacle, Some(Obstacle::Doubt)), "that look had begun before");
        }
        let mut now = Instant::now();
        fence.settle(now, Some(&nothing()));
        assert!(fence.obstacle(Waits::Repetition).is_none(), "a token does the rest");
        assert!(fence.obstacle(Waits::Any).is_some(), "a TRUNCATE has none");
        now += SETTLE;
        fence.settle(now, Some(&nothing()));
        assert!(fence.obstacle(Waits::Any).is_none());
        drop(fence.enter(fence.id(), false));
        now += SETTLE;
        assert!(fence.obstacle(Waits::First).is_some());
        fence.settle(now, Some(&nothing()));
        assert!(fence.obstacle(Waits::First).is_some());
        assert!(fence.obstacle(Waits::Repetition).is_some());
        now += SETTLE;
        fence.settle(now, Some(&nothing()));
        assert!(fence.obstacle(Waits::First).is_none());
    }

    #[test]
    fn an_id_that_was_killed_is_gone_and_one_that_cannot_be_is_waited_for() {
        let fence = fence();
        *fence.earlier.lock() = Earlier::Gone;
        let place = fence.enter(fence.id(), false);
        let id = place.id().to_owned();
        assert!(id.starts_with("fusebox:host_a_b:run:"));
        drop(place);
        let mut now = Instant::now();
        fence.settle(now, Some(&BTreeMap::from([(id.clone(), false)])));
        assert!(fence.is_in_doubt());
        fence.settle(now, Some(&BTreeMap::from([(id, true)])));
        assert!(!fence.is_in_doubt());
        drop(fence.enter(fence.id(), false));
        fence.settle(now, None);
        assert!(fence.is_in_doubt(), "refused");
        now += Duration::from_secs(61);
        fence.settle(now, None);
        assert!(!fence.is_in_doubt(), "twice the timeout has passed");
    }

    #[test]
    fn queries_of_another_run_that_keep_coming_are_a_twins() {
        let fence = fence();
        let proven = || futures_util::FutureExt::now_or_never(fence.twins.proven()).is_some();
        let id = |run: &str, seconds: u64| {
            let at = since_start().1 + Duration::from_secs(seconds);
            format!("fusebox:host_a_b:{run}:{}", ulid::Ulid::from_datetime(at))
        };
        for seconds in 2..20 {
            fence.meet(&id("run", seconds));
            fence.meet(&id("run", seconds).replace("host_a_b", "other"));
        }
        assert!(!proven(), "our own, and another installation's");
        (0..1).for_each(|_| (0..20).for_each(|_| fence.meet(&id("dead", 0))));
        assert!(!proven(), "older than this process");
        let token = ulid::Ulid::generate();
        (2..6).for_each(|s| fence.meet(&id("twin", s).replace("twin:", &format!("twin:{token}:"))));
        assert!(proven());
    }

    #[test]
    fn a_write_that_was_answered_leaves_nothing_behind() {
        let fence = fence();
        let mut place = fence.enter(fence.id(), false);
        assert!(LIVING.lock().contains(place.id()));
        let id = place.id().to_owned();
        place.ended();
        drop(place);
        assert!(fence.entries.lock().is_empty() && !LIVING.lock().contains(&id));
    }
}
