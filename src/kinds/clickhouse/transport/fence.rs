//! The fence: nothing new is written until nothing old can still land.
//!
//! A write that was sent and not answered may still run, or wait in the server's socket and begin to run
//! seconds later. Every query has an id, `fusebox:<instance>:<run>:<ulid>`, by which the server is asked to
//! end it; that of a write with a token is `fusebox:<instance>:<run>:<token>:<ulid>`. A query that came through a door
//! keeps the id that its client gave it; while it is in doubt it is looked for by that. A query of the same id that began
//! before it is another client's, and is left alone; while nobody can say which of both began first, it is neither
//! ended nor taken for gone ([`running`]). A later run knows nothing of such ids, but a later connector of this run does
//! ([`entries`]).
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
//! connector of this run, left under the instance's name counts as Doubted. What this run has sent since the
//! connector's first look says nothing of that, and is known by its number ([`next_ulid`]): reads come and go all the
//! time.
//!
//! **A round** reads which queries of the instance run, leaves out those that live by our own account, and
//! kills the others (`KILL QUERY … SYNC`). An id that was found and killed is gone; one that was found is looked for
//! again if the server did not say that it has ended it. One that was not found is
//! gone after a second look, [`SETTLE`](super::endings::SETTLE) later: a server that was frozen reads what is in its sockets within
//! that time. What was not sent is none of its sockets' (linger 0, [`crate::net::http1_dial`]).
//!
//! **If it cannot be done** (the list or the kill is refused), an id is gone after twice the backend's
//! `timeout`, and `status` warns: that is a bet, no proof.
//!
//! **A former name** ([`crate::kinds::former`]) counts as an earlier run's, until that is gone: afterwards it may be
//! another daemon's. If it is so already, queries with it never end: so two looks that have killed all that they found
//! are enough. A query under our name that began after this process and comes back after others of its
//! run were killed is a twin's ([`crate::kinds::twins::Twins`]).
//!
//! A crash of the daemon leaves nothing here: the next run finds its queries by the instance's name.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, LazyLock, OnceLock},
    time::Duration,
};

use fusebox_actors::connector::OwnCode;
use fusebox_state::{ErrorClass, OpId, Verdict, Words};
use parking_lot::Mutex;
use tokio::{
    sync::futures::Notified,
    time::{Instant, timeout_at},
};
use ulid::Ulid;

use self::{
    entries::{Entries, Look},
    words::{any_of, prefix_of, word},
};
use super::{
    endings::Endings,
    http::{Failed, Http},
    question::Questions,
};
use crate::kinds::{
    clickhouse::settings::ClickHouseSettings,
    former::Former,
    twins::{Twins, since_start},
};

mod entries;
#[cfg(test)]
mod late;
mod running;
mod words;

pub(super) use entries::{Obstacle, Waits};
pub(super) use running::{Running, end};
pub(super) use words::is_query;

/// Between two rounds.
pub(super) const PAUSE: Duration = Duration::from_millis(50);

/// The queries that live, of all connectors of the process: two of them may be on one server.
static LIVING: LazyLock<Mutex<HashSet<String>>> = LazyLock::new(Mutex::default);
/// Makes what the ids of all queries of the process end with.
static NUMBERS: Mutex<ulid::Generator> = Mutex::new(ulid::Generator::new());

/// A number that is greater than all before it, whatever becomes of the clock.
fn next_ulid() -> Ulid {
    let mut numbers = NUMBERS.lock();
    numbers.generate().unwrap_or_else(ulid::Overflow::commit_overflow_increment)
}

/// A query's id for as long as somebody waits for its end.
pub(crate) struct QueryId(pub(crate) String);

impl QueryId {
    fn new(prefix: &str, run: &str, token: Option<OpId>) -> Self {
        let token = token.map(|token| format!("{token}:")).unwrap_or_default();
        let id = format!("{prefix}{}:{token}{}", word(run), next_ulid());
        LIVING.lock().insert(id.clone());
        Self(id)
    }
}

impl Drop for QueryId {
    fn drop(&mut self) {
        LIVING.lock().remove(&self.0);
    }
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
    instance: String,
    /// The names that it had before, and the backend at which they are killed.
    former: (Arc<Former>, String),
    run: String,
    twins: Arc<Twins>,
    /// Twice the backend's `timeout`.
    patience: Duration,
    entries: Arc<Entries>,
    /// From before the first look of this connector, when the one before it was closed: what this run has sent since
    /// then has a greater number.
    first_look: OnceLock<Ulid>,
    earlier: Mutex<Earlier>,
    /// The round that writes wait for.
    pub(super) asking: Questions<(), Result<(), Failed>>,
    refused: Mutex<Option<Words>>,
}

impl Fence {
    /// A fence that has yet to look for what earlier runs left, and knows what earlier connectors of this run did.
    pub(crate) fn open(settings: &ClickHouseSettings) -> Self {
        Self::new(settings, Entries::of(settings))
    }

    fn new(settings: &ClickHouseSettings, entries: Arc<Entries>) -> Self {
        Self {
            prefix: prefix_of(&settings.instance),
            instance: settings.instance.clone(),
            former: (Arc::clone(&settings.former), settings.name.clone()),
            run: settings.run.clone(),
            twins: Arc::clone(&settings.twins),
            patience: settings.timeout * 2,
            entries,
            first_look: OnceLock::new(),
            earlier: Mutex::new(Earlier::Doubted(Instant::now(), None)),
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

    /// What is being ended under names of clients.
    pub(crate) fn endings(&self) -> Arc<Endings> {
        Arc::clone(self.entries.endings())
    }

    /// A write goes on the wire.
    pub(crate) fn enter(&self, id: QueryId, commutes: bool) -> Place {
        self.enter_under(id, None, commutes)
    }

    /// The same with an id that the write's client gave it.
    pub(crate) fn enter_under(&self, id: QueryId, given: Option<String>, commutes: bool) -> Place {
        self.entries.enter(id.0.clone(), given, commutes);
        Place { entries: Arc::clone(&self.entries), id, known: false }
    }

    /// Whether a write is in doubt under an id of its client's, which nothing else may have until it is settled.
    pub(super) fn keeps_names(&self) -> bool {
        self.entries.keeps_names()
    }

    /// Nobody waits for this write any more; it keeps its place.
    pub(crate) fn depart(&self, id: &str) {
        self.entries.depart(id);
    }

    /// Whether anything is in doubt.
    pub(crate) fn is_in_doubt(&self) -> bool {
        self.entries.is_in_doubt()
    }

    /// Resolves when a write has got another state.
    pub(super) fn changed(&self) -> Notified<'_> {
        self.entries.changed.notified()
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
        self.entries.obstacle(waits)
    }

    /// Whether no other connector looks for what this one has left in doubt.
    pub(super) fn is_last(&self) -> bool {
        Arc::strong_count(&self.entries) == 1
    }

    /// One round, if it is needed; others that want one wait for it.
    pub(crate) async fn round(&self, http: &Http, until: Instant) -> Result<(), Failed> {
        let Ok(_one_at_a_time) = timeout_at(until, self.entries.rounds.lock()).await else {
            let message = "another look for abandoned queries has not ended yet";
            return Err(Failed::not_executed(OwnCode::Fence, message, Verdict::Neutral));
        };
        let is_all_gone = *self.earlier.lock() == Earlier::Gone && !self.is_in_doubt();
        if is_all_gone {
            // The round that this one has waited for was enough.
            return Ok(());
        }
        self.first_look.get_or_init(next_ulid);
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
        self.entries.changed.notify_waiters();
        Ok(())
    }

    /// The abandoned queries that ran, and whether each has been ended.
    async fn look_and_kill(
        &self,
        http: &Http,
        time: Duration,
    ) -> Result<BTreeMap<String, bool>, Failed> {
        let is_gone = *self.earlier.lock() == Earlier::Gone;
        let former = if is_gone { Vec::new() } else { self.former() };
        let prefixes = former.iter().map(|name| prefix_of(name)).chain([self.prefix.clone()]);
        let mut any: Vec<String> =
            prefixes.map(|prefix| format!("startsWith(query_id, '{prefix}')")).collect();
        let named = self.entries.named(&self.prefix);
        any.extend(named.keys().map(|id| is_query(id)));
        let running = Running::ask(http, &any.join(" OR "), time).await?;
        let old: Vec<String> = {
            let living = LIVING.lock();
            let is_old = |id: &&String| match named.get(*id) {
                Some(begun) => running.has_since(id, *begun),
                None => !living.contains(*id),
            };
            running.ids().filter(is_old).cloned().collect()
        };
        for id in &old {
            self.meet(id);
        }
        // That the server says nothing of one proves nothing, nor does one of which nobody knows whose it is: the next
        // round looks for it.
        let mut found: BTreeMap<String, bool> = old.iter().map(|id| (id.clone(), false)).collect();
        let unclear = named.iter().filter(|(id, begun)| running.may_have_since(id, **begun));
        found.extend(unclear.map(|(id, _)| (id.clone(), false)));
        let condition = |id: &String| match named.get(id) {
            Some(begun) => running.sent_since(id, *begun, time),
            None => is_query(id),
        };
        let mut left = old.as_slice();
        while !left.is_empty() {
            let (queries, count) = any_of(left, condition);
            left = left.get(count..).unwrap_or_default();
            for (id, has_ended) in end(http, &queries, time).await? {
                if let Some(ended) = found.get_mut(&id) {
                    *ended = has_ended;
                }
            }
        }
        Ok(found)
    }

    /// The run that made an id under our name, and the id's number.
    fn origin<'a>(&self, id: &'a str) -> Option<(&'a str, Ulid)> {
        let (run, rest) = id.strip_prefix(&self.prefix)?.split_once(':')?;
        let made = Ulid::from_string(rest.rsplit(':').next()?).ok()?;
        Some((run, made))
    }

    /// Whether this run has sent a query after this connector's first look had begun.
    fn is_new(&self, id: &str) -> bool {
        let made = self.origin(id).filter(|(run, _)| *run == word(&self.run));
        made.zip(self.first_look.get()).is_some_and(|((_, made), first)| made > *first)
    }

    /// Tells of a query under our name that is none of this run's.
    fn meet(&self, id: &str) {
        let Some((run, made)) = self.origin(id) else { return };
        if run == word(&self.run) {
            return;
        }
        let young = made.datetime() > since_start().1 + Duration::from_secs(1);
        self.twins.met(run, made.0, young);
    }

    /// Draws the conclusions of a round that began at `begun`: `found` is what it found, `None` if it was refused.
    fn settle(&self, begun: Instant, found: Option<&BTreeMap<String, bool>>) {
        let look = Look { begun, found, patience: self.patience };
        self.entries.settle(&self.prefix, &look);
        let former = self.former();
        let before: Vec<String> = former.iter().map(|name| prefix_of(name)).collect();
        let is_former = |id: &str| before.iter().any(|prefix| id.starts_with(prefix));
        let mut earlier = self.earlier.lock();
        if let Earlier::Doubted(since, looked) = &mut *earlier {
            // What was found has been killed, and more may be in a socket: finding nothing twice proves it.
            let is_earlier =
                |id: &str| is_former(id) || id.starts_with(&self.prefix) && !self.is_new(id);
            let nothing = found.is_none_or(|found| {
                let mut left = found.iter().filter(|(id, _)| is_earlier(id));
                left.all(|(id, ended)| *ended && is_former(id))
            });
            if !nothing {
                *looked = None;
            } else if look.is_gone(*since, looked, None) {
                *earlier = Earlier::Gone;
                if found.is_some() {
                    self.former.0.gone(&self.former.1, &former);
                }
            }
        }
    }

    /// The names that this installation had before, until what has them was killed once.
    fn former(&self) -> Vec<String> {
        let (former, backend) = &self.former;
        former.at(backend, &self.instance)
    }
}

/// A write's place on the wire. Dropped without [`Place::ended`], the write is in doubt.
pub(crate) struct Place {
    entries: Arc<Entries>,
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
        self.entries.leave(&self.id.0, self.known);
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::endings::{Name, SETTLE},
        *,
    };

    fn fence() -> Arc<Fence> {
        let url = "http://127.0.0.1:1".parse().unwrap();
        let settings = ClickHouseSettings::new(url, "host a:b", "run");
        Arc::new(Fence::new(&settings, Arc::default()))
    }

    fn nothing() -> BTreeMap<String, bool> {
        BTreeMap::new()
    }

    /// What a round looks for by its whole id.
    fn named(fence: &Fence) -> Vec<String> {
        fence.entries.named(&fence.prefix).into_keys().collect()
    }

    #[test]
    fn a_write_under_its_clients_own_id_is_found_by_that() {
        let fence = fence();
        let now = Instant::now();
        fence.settle(now, Some(&nothing()));
        fence.settle(now + SETTLE, Some(&nothing()));
        let given = "it's\\mine\t".to_owned();
        let place = fence.enter_under(fence.id(), Some(given.clone()), false);
        assert!(named(&fence).is_empty(), "it is on the wire");
        drop(place);
        assert_eq!(named(&fence), std::slice::from_ref(&given));
        assert!(fence.obstacle(Waits::Any).is_some());
        let same = [Name::Query(given.clone())];
        let over = || fence.endings().are_over(&same);
        assert!(!over(), "a query of the same id would be killed instead of it");
        fence.settle(now + SETTLE, Some(&BTreeMap::from([(given, true)])));
        assert!(fence.obstacle(Waits::Any).is_none() && over() && !fence.keeps_names());
    }

    #[test]
    fn of_many_ids_of_clients_a_round_settles_those_that_it_asked_for() {
        let fence = fence();
        *fence.earlier.lock() = Earlier::Gone;
        // Five of these are more than one statement holds.
        let long = "x".repeat(words::CONDITIONS_MAX / 5);
        let mut left = 10;
        for number in 0..left {
            drop(fence.enter_under(fence.id(), Some(format!("{number}{long}")), false));
        }
        let mut now = Instant::now() + SETTLE;
        while left > 0 {
            assert_eq!(named(&fence).len(), left.min(4));
            fence.settle(now, Some(&nothing()));
            now += SETTLE;
            fence.settle(now, Some(&nothing()));
            left -= left.min(4);
            assert_eq!(fence.entries.count(), left);
        }
        drop(fence.enter_under(fence.id(), Some(long.repeat(9)), false));
        assert_eq!(named(&fence).len(), 1, "one that is longer is alone");
    }

    #[test]
    fn what_a_connector_has_left_in_doubt_its_successor_looks_for() {
        let settings = |name: &str, timeout| {
            let url = "http://127.0.0.1:3".parse().unwrap();
            let settings = ClickHouseSettings::new(url, "host", "run");
            ClickHouseSettings { name: name.to_owned(), timeout, ..settings }
        };
        let before = Fence::open(&settings("a", Duration::from_secs(1)));
        let given = Some("mine".to_owned());
        let write = before.enter_under(before.id(), given, false);
        let fence = Fence::open(&settings("a", Duration::from_secs(2)));
        *fence.earlier.lock() = Earlier::Gone;
        before.depart(write.id());
        assert!(matches!(fence.obstacle(Waits::First), Some(Obstacle::Departed)));
        drop((write, before));
        assert!(matches!(fence.obstacle(Waits::First), Some(Obstacle::Doubt)));
        assert!(fence.is_in_doubt() && fence.keeps_names());
        assert!(!fence.endings().are_over(&[Name::Query("mine".to_owned())]));
        assert_eq!(named(&fence), ["mine"]);
        // So it does under a name that the installation has taken meanwhile.
        let renamed = ClickHouseSettings::new("http://127.0.0.1:3".parse().unwrap(), "new", "run");
        let renamed = Fence::new(&renamed, Arc::clone(&fence.entries));
        drop(fence.enter(fence.id(), false));
        let both = named(&renamed);
        assert!(both.len() == 2 && both[0].starts_with("fusebox:host:run:"), "{both:?}");
        assert!(!Fence::open(&settings("b", Duration::from_secs(1))).is_in_doubt());
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
    fn what_this_run_sends_after_the_first_look_says_nothing_of_what_was_before() {
        let fence = fence();
        let before = fence.id();
        fence.first_look.get_or_init(next_ulid);
        let later = fence.id();
        let found = |id: &QueryId| BTreeMap::from([(id.0.clone(), false)]);
        let now = Instant::now();
        for (looks, id) in (0..).zip([&later, &before, &later]) {
            fence.settle(now + SETTLE * looks, Some(&found(id)));
            let obstacle = fence.obstacle(Waits::First);
            assert!(obstacle.is_some(), "an earlier connector may have sent one of them");
        }
        fence.settle(now + SETTLE * 3, Some(&found(&later)));
        assert!(fence.obstacle(Waits::First).is_none());
    }

    #[test]
    fn what_has_a_former_name_is_killed_in_two_looks_of_one_connector_and_no_more() {
        let settings = |port| {
            let url = format!("http://127.0.0.1:{port}").parse().unwrap();
            let settings = ClickHouseSettings::new(url, "new", "run");
            settings.former.add("old");
            settings
        };
        let (one, two) = (settings(1), settings(2));
        let fence = Fence::new(&one, Arc::default());
        assert_eq!(fence.former(), ["old"]);
        let anothers = |ended| BTreeMap::from([("fusebox:old:run:1".to_owned(), ended)]);
        let now = Instant::now();
        for (looks, ended) in (0..).zip([true, false, true]) {
            fence.settle(now + SETTLE * looks, Some(&anothers(ended)));
            assert!(fence.obstacle(Waits::First).is_some(), "one was not killed");
        }
        // Another daemon has the name by now, and goes on.
        fence.settle(now + SETTLE * 3, Some(&anothers(true)));
        assert!(fence.obstacle(Waits::First).is_none());
        assert!(fence.former().is_empty());
        assert!(Fence::new(&one, Arc::default()).former().is_empty(), "as a reload makes it");

        let refused = Fence::new(&two, Arc::default());
        refused.settle(now + Duration::from_secs(61), None);
        assert!(refused.obstacle(Waits::First).is_none(), "twice the timeout has passed");
        assert_eq!(refused.former(), ["old"], "nothing was killed");
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
        assert!(fence.entries.count() == 0 && !LIVING.lock().contains(&id));
    }
}
