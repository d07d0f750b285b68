//! The writes whose end is not known, of all connectors of a backend at one address.
//!
//! They are at the server, whichever connector has sent them. A reload closes a connector and puts another one in its
//! place, which must look for them as well. It would find those that have the instance's name, but an id that a client
//! has chosen is known only here.

use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

use super::words::{CONDITIONS_MAX, is_query};
use crate::kinds::clickhouse::{
    settings::ClickHouseSettings,
    transport::endings::{Ending, Endings, Name, SETTLE},
};

/// Those that are in use, by the name of the backend and its address.
static OPEN: Mutex<BTreeMap<(String, String), Weak<Entries>>> = Mutex::new(BTreeMap::new());

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
    /// Before it was sent.
    begun: Instant,
    /// The last round has looked for it by its whole id.
    asked: bool,
    /// Keeps what has the same id from being sent while the write is in doubt: it would be killed instead of it.
    ending: Option<Ending>,
}

/// Which writes in doubt another one waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waits {
    /// One that commutes with others of its kind, and was never sent: for those that do not commute.
    First,
    /// One that commutes and may have been applied, with a token: for all, but one look for what commutes is enough.
    Repetition,
    /// For all.
    Any,
}

/// What is between a write and the wire.
pub(crate) enum Obstacle {
    /// Its end must be found out.
    Doubt,
    /// Somebody's write that is still on the wire.
    Departed,
}

/// A look at what the server runs.
pub(super) struct Look<'a> {
    /// When it began.
    pub(super) begun: Instant,
    /// What it found, and whether that was ended; `None` if the server refused to say or to end it.
    pub(super) found: Option<&'a BTreeMap<String, bool>>,
    /// How long it is waited for what the server refuses to end.
    pub(super) patience: Duration,
}

impl Look<'_> {
    /// Whether what is in doubt since then is gone. `looked` is the first look that did not find it, and `ended` whether
    /// this one has ended it, if it was found.
    pub(super) fn is_gone(
        &self,
        since: Instant,
        looked: &mut Option<Instant>,
        ended: Option<bool>,
    ) -> bool {
        if self.found.is_none() {
            return self.begun.saturating_duration_since(since) >= self.patience;
        }
        ended.unwrap_or_else(|| {
            let first = *looked.get_or_insert(self.begun);
            self.begun.saturating_duration_since(first) >= SETTLE
        })
    }
}

/// See the [module](self).
#[derive(Default)]
pub(crate) struct Entries {
    writes: Mutex<BTreeMap<String, Entry>>,
    endings: Arc<Endings>,
    /// Notified when the state of one has changed.
    pub(super) changed: Notify,
    /// Held by whoever looks: what one look has freed, no other one may kill.
    pub(super) rounds: tokio::sync::Mutex<()>,
}

impl Entries {
    /// Those of the backend and the address of `settings`.
    pub(super) fn of(settings: &ClickHouseSettings) -> Arc<Self> {
        let key = (settings.name.clone(), settings.url.to_string());
        let mut open = OPEN.lock();
        if let Some(entries) = open.get(&key).and_then(Weak::upgrade) {
            return entries;
        }
        let entries = Arc::<Self>::default();
        open.retain(|_, entries| entries.strong_count() > 0);
        open.insert(key, Arc::downgrade(&entries));
        entries
    }

    /// What is being ended under names of clients.
    pub(super) fn endings(&self) -> &Arc<Endings> {
        &self.endings
    }

    /// A write goes on the wire.
    pub(super) fn enter(&self, id: String, given: Option<String>, commutes: bool) {
        let (state, begun) = (State::OnWire, Instant::now());
        let entry = Entry { state, commutes, given, begun, asked: false, ending: None };
        self.writes.lock().insert(id, entry);
    }

    /// Nobody waits for this write any more; it keeps its place.
    pub(super) fn depart(&self, id: &str) {
        if let Some(entry) = self.writes.lock().get_mut(id)
            && entry.state == State::OnWire
        {
            entry.state = State::Departed;
        }
    }

    /// A write is over if that is `known`, and else in doubt.
    pub(super) fn leave(&self, id: &str, known: bool) {
        let mut writes = self.writes.lock();
        if known {
            writes.remove(id);
        } else if let Some(entry) = writes.get_mut(id) {
            entry.state = State::Doubted(Instant::now(), None);
            let name = entry.given.clone().map(Name::Query);
            entry.ending = name.map(|name| Ending::begin(&self.endings, vec![name]));
        }
        drop(writes);
        self.changed.notify_waiters();
    }

    /// Whether anything is in doubt.
    pub(super) fn is_in_doubt(&self) -> bool {
        self.writes.lock().values().any(|entry| matches!(entry.state, State::Doubted(..)))
    }

    /// Whether a write is in doubt under an id of its client's.
    pub(super) fn keeps_names(&self) -> bool {
        self.writes.lock().values().any(|entry| entry.ending.is_some())
    }

    /// What a write waits for.
    pub(super) fn obstacle(&self, waits: Waits) -> Option<Obstacle> {
        let writes = self.writes.lock();
        let mut obstacle = None;
        let counts = |entry: &&Entry| match (waits, entry.state) {
            (Waits::First, _) | (Waits::Repetition, State::Doubted(_, Some(_))) => !entry.commutes,
            _ => true,
        };
        for entry in writes.values().filter(counts) {
            match entry.state {
                State::OnWire => {}
                State::Departed => obstacle = obstacle.or(Some(Obstacle::Departed)),
                State::Doubted(..) => return Some(Obstacle::Doubt),
            }
        }
        obstacle
    }

    /// The ids of writes in doubt that do not begin with `prefix`, and when these were sent; as many as one statement
    /// asks for. Nothing but its whole id says that such a query is ours.
    pub(super) fn named(&self, prefix: &str) -> BTreeMap<String, Instant> {
        let (mut writes, mut len) = (self.writes.lock(), 0);
        let mut named: BTreeMap<String, Instant> = BTreeMap::new();
        for (own, entry) in &mut *writes {
            entry.asked = false;
            let id = entry.given.as_ref().unwrap_or(own);
            if !matches!(entry.state, State::Doubted(..)) || id.starts_with(prefix) {
                continue;
            }
            let is_new = !named.contains_key(id);
            let more = if is_new { is_query(id).len() } else { 0 };
            if named.is_empty() || len + more <= CONDITIONS_MAX {
                len += more;
                let begun = named.entry(id.clone()).or_insert(entry.begun);
                *begun = entry.begun.min(*begun);
                entry.asked = true;
            }
        }
        named
    }

    /// Draws the conclusions of a look for what begins with `prefix` and for what [was named](Self::named).
    pub(super) fn settle(&self, prefix: &str, look: &Look<'_>) {
        self.writes.lock().retain(|own, entry| {
            let State::Doubted(since, looked) = &mut entry.state else { return true };
            let Some(found) = look.found else { return !look.is_gone(*since, looked, None) };
            let id = entry.given.as_ref().unwrap_or(own);
            // It was not asked for, or in doubt only after this look had begun.
            let is_open = look.begun < *since || !entry.asked && !id.starts_with(prefix);
            is_open || !look.is_gone(*since, looked, found.get(id).copied())
        });
    }

    /// How many there are.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.writes.lock().len()
    }
}
