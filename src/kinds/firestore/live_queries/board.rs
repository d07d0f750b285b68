//! What a stream knows and what its followers have, in one place.
//!
//! Every change of state and its event are made under one lock, and a follower reads both under it: a
//! snapshot and the place in the log from which its changes count always belong together.

use std::{collections::VecDeque, mem, time::Duration, time::SystemTime};

use fusebox_actors::connector::StreamEvent;
use parking_lot::Mutex;
use prost_types::Timestamp;
use tokio::{sync::watch, time::Instant};

use super::{
    events::{self, Cause, Snapshot},
    news::News,
    round::{Round, Step},
    upstream::{Resume, Upstream},
    view::{Difference, View},
};

/// How much of the log is kept for followers that are behind: events, and their bytes. The last event is
/// kept whatever its size.
const LOG_EVENTS: usize = 1_024;
const LOG_BYTES: usize = 256 << 10;

/// See the [module](self).
pub(super) struct Board {
    inner: Mutex<Inner>,
    news: watch::Sender<()>,
    presence: watch::Sender<Presence>,
}

struct Inner {
    phase: Phase,
    view: View,
    /// Whether the documents of a long outage were dropped.
    shed: bool,
    log: VecDeque<StreamEvent>,
    log_bytes: usize,
    /// The number of the next event; the log ends before it.
    next: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    Connecting,
    Current,
    Stale { since: SystemTime, at: Instant, why: String },
    Closed { since: Option<SystemTime>, cause: Option<Cause> },
}

/// Who follows, and how often somebody asked for it.
#[derive(Clone, Copy, Debug, Default)]
struct Presence {
    followers: usize,
    touched: u64,
}

/// The position of a follower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// It has received nothing.
    Start,
    /// It knows that there is nothing yet: it gets a snapshot as soon as there is one.
    Unfounded,
    /// The number of the event that it receives next.
    At(u64),
}

/// What there is for a follower.
#[derive(Debug)]
pub(super) enum Reading {
    Event(StreamEvent),
    Snapshot(Snapshot),
    Wait,
    End,
}

impl Board {
    pub(super) fn new() -> Self {
        let inner = Inner {
            phase: Phase::Connecting,
            view: View::default(),
            shed: false,
            log: VecDeque::new(),
            log_bytes: 0,
            next: 0,
        };
        Self {
            inner: Mutex::new(inner),
            news: watch::Sender::new(()),
            presence: watch::Sender::default(),
        }
    }

    /// Takes one response of a connection; publishes if it makes the state consistent.
    pub(super) fn hear<U: Upstream>(&self, round: &mut Round, news: News, upstream: &U) -> Step {
        let mut inner = self.inner.lock();
        let step = round.take(news, &inner.view);
        if let Step::Consistent(read_time) = step
            && inner.publish(round, read_time, upstream)
        {
            drop(inner);
            self.news.send_replace(());
        }
        step
    }

    /// The connection is lost, or there is none, and `why`. Followers hear of it once.
    pub(super) fn broken(&self, why: &str) {
        let mut inner = self.inner.lock();
        match &mut inner.phase {
            // Who comes now gets the reason why it lasts.
            Phase::Stale { why: told, .. } => {
                why.clone_into(told);
                return;
            }
            Phase::Closed { .. } => return,
            Phase::Connecting | Phase::Current => {}
        }
        let (since, at) = (SystemTime::now(), Instant::now());
        let stale = Phase::Stale { since, at, why: why.to_owned() };
        if mem::replace(&mut inner.phase, stale) == Phase::Current {
            inner.push(events::stale(since, why));
        }
        drop(inner);
        self.news.send_replace(());
    }

    /// Drops the documents of an outage that lasts longer than `kept`.
    pub(super) fn shed(&self, kept: Duration) {
        let mut inner = self.inner.lock();
        if let Phase::Stale { at, .. } = inner.phase
            && !inner.shed
            && at.elapsed() >= kept
        {
            inner.shed = true;
            inner.view.shed();
        }
    }

    /// The point from which the next Listen goes on.
    pub(super) fn resume(&self) -> Resume {
        let (token, documents) = self.inner.lock().view.resume();
        Resume { token, documents }
    }

    /// The next Listen begins from the beginning.
    pub(super) fn forget_token(&self) {
        self.inner.lock().view.forget_token();
    }

    /// The server refuses the query for good: followers get the reason.
    pub(super) fn end(&self, cause: Cause) {
        let mut inner = self.inner.lock();
        let since = match inner.phase {
            Phase::Stale { since, .. } => since,
            _ => SystemTime::now(),
        };
        inner.push(events::ended(since, &cause));
        inner.view.shed();
        inner.phase = Phase::Closed { since: Some(since), cause: Some(cause) };
        drop(inner);
        self.news.send_replace(());
    }

    /// Ends the stream and its followers without a word.
    pub(super) fn close(&self) {
        let mut inner = self.inner.lock();
        if !matches!(inner.phase, Phase::Closed { .. }) {
            inner.phase = Phase::Closed { since: None, cause: None };
        }
        drop(inner);
        self.news.send_replace(());
    }

    /// Why the server refuses the query.
    pub(super) fn cause(&self) -> Option<Cause> {
        match &self.inner.lock().phase {
            Phase::Closed { cause, .. } => cause.clone(),
            _ => None,
        }
    }

    /// What there is for a follower at `place`, which moves on.
    pub(super) fn read(&self, place: &mut Place) -> Reading {
        self.inner.lock().read(place)
    }

    /// Tells when there is more to read.
    pub(super) fn news(&self) -> watch::Receiver<()> {
        self.news.subscribe()
    }

    /// Resolves when nobody has followed or opened the stream for `idle`.
    pub(super) async fn abandoned(&self, idle: Duration) {
        let mut presence = self.presence.subscribe();
        loop {
            let followers = presence.borrow_and_update().followers;
            let changed = presence.changed();
            if followers > 0 {
                changed.await.ok();
            } else if tokio::time::timeout(idle, changed).await.is_err() {
                return;
            }
        }
    }

    /// Somebody opened the stream again.
    pub(super) fn touch(&self) {
        self.presence.send_modify(|presence| presence.touched += 1);
    }

    /// A follower has come.
    pub(super) fn arrived(&self) {
        self.presence.send_modify(|presence| presence.followers += 1);
    }

    /// A follower has gone.
    pub(super) fn left(&self) {
        self.presence.send_modify(|presence| presence.followers -= 1);
    }

    /// How many follow.
    pub(super) fn followers(&self) -> usize {
        self.presence.borrow().followers
    }
}

impl Inner {
    /// Whether there is something to read.
    fn publish<U: Upstream>(
        &mut self,
        round: &mut Round,
        read_time: Timestamp,
        upstream: &U,
    ) -> bool {
        let Some(difference) = round.settle(&mut self.view, read_time) else { return false };
        self.shed = false;
        let told = match mem::replace(&mut self.phase, Phase::Current) {
            // Nobody has received anything: a snapshot says it all.
            Phase::Connecting => return true,
            Phase::Current => !difference.is_empty(),
            Phase::Stale { .. } => true,
            closed @ Phase::Closed { .. } => {
                self.phase = closed;
                false
            }
        };
        if told {
            let Difference { added, modified, removed } = difference;
            let removed: Vec<String> = removed.iter().map(|name| upstream.path(name)).collect();
            self.push(events::change(&added, &modified, &removed, Some(read_time)));
        }
        told
    }

    fn push(&mut self, event: StreamEvent) {
        self.next += 1;
        self.log_bytes += event.data.len();
        self.log.push_back(event);
        while self.log.len() > 1 && (self.log.len() > LOG_EVENTS || self.log_bytes > LOG_BYTES) {
            let gone = self.log.pop_front().map_or(0, |event| event.data.len());
            self.log_bytes -= gone;
        }
    }

    fn read(&mut self, place: &mut Place) -> Reading {
        match (*place, &self.phase) {
            (Place::Start, Phase::Connecting) | (Place::Unfounded, Phase::Stale { .. }) => {
                Reading::Wait
            }
            (Place::At(number), _) => self.read_at(number, place),
            (_, Phase::Closed { cause: None, .. }) => Reading::End,
            _ => self.snapshot(place),
        }
    }

    fn read_at(&mut self, number: u64, place: &mut Place) -> Reading {
        let behind = usize::try_from(self.next.saturating_sub(number)).unwrap_or(usize::MAX);
        match self.log.len().checked_sub(behind).map(|index| self.log.get(index)) {
            Some(Some(event)) => {
                *place = Place::At(number + 1);
                Reading::Event(event.clone())
            }
            Some(None) if matches!(self.phase, Phase::Closed { .. }) => Reading::End,
            Some(None) => Reading::Wait,
            None if matches!(self.phase, Phase::Closed { cause: None, .. }) => Reading::End,
            None => self.snapshot(place),
        }
    }

    fn snapshot(&self, place: &mut Place) -> Reading {
        let (stale, closed) = match &self.phase {
            Phase::Connecting | Phase::Current => (None, false),
            Phase::Stale { since, why, .. } => (Some((*since, why.clone())), false),
            Phase::Closed { since, .. } => (since.map(|since| (since, String::new())), true),
        };
        let known = self.view.read_time().is_some();
        // What ended the stream is the last event, and is sent after the snapshot.
        *place = match (closed, self.shed) {
            (true, _) => Place::At(self.next.saturating_sub(1)),
            (false, true) => Place::Unfounded,
            (false, false) => Place::At(self.next),
        };
        let empty = self.shed || closed || !known;
        let documents = if empty { Vec::new() } else { self.view.documents() };
        let read_time = self.view.read_time().filter(|_| !empty);
        Reading::Snapshot(Snapshot { documents, stale, empty, read_time })
    }
}
