//! Live queries that survive an outage.
//!
//! One upstream Listen per query and principal, however many follow it:
//! ```text
//!  open ── LiveQueries ── a task per stream (keep) ── Upstream ── Listen
//!              │                │ Round: what came since the last consistent state
//!           follow            Board: the last consistent state, a log of events
//!              └── Follower ────┘
//! ```
//! A stream's states, kept by its [`Board`]:
//! ```text
//!               first result               broken, or the gate shuts
//!  CONNECTING ───────────────► CURRENT ◄────────────────────────────► STALE
//!      │  no server                         result, consistent again    │
//!      └──────────────────────────────────────────────────────► STALE   │
//!  CLOSED: the server refuses the query for good · nobody follows · the connector closes ◄─┘
//! ```
//! - **A state is published only when the server calls it consistent**: the target is CURRENT and a change
//!   has a `read_time`. What came before that ([`round::Round`]) is thrown away if the connection
//!   breaks, and so is the resume token that came with it: a token never runs ahead of what was published.
//! - **What followers get is a difference** of two published states by name, `update_time` and content
//!   ([`view::View`]). A server that sends its whole result again (RESET, or a Listen without a token) makes
//!   no more noise than one that sends what changed. A result read before the published one (an older
//!   `read_time`) waits for the server to catch up, and an older `update_time` never replaces a newer one:
//!   every document's final state arrives, none twice, none backwards.
//! - **Broken**: each follower gets one `stale`. The stream connects again with backoff (100 ms doubling to
//!   10 s, jitter), only while the gate is open; the `change` that ends the staleness is sent even if it
//!   is empty. A gate that shuts ends the connection too: what a breaker knows to be dead is stale.
//! - **An existence filter that does not agree** drops the token and listens again; followers hear nothing, because
//!   nothing was wrong with what they know so far except its age.
//! - **Refused for good** (`INVALID_ARGUMENT`, no index, no permission …): followers get a last `stale` with
//!   `"ended":true` and the server's code and message, then the end. For a minute [`Streams::open`] refuses
//!   the same query in the same words; after that it asks the server again. A query that is refused only
//!   with a resume token is tried without it first.
//! - **A crash** of the daemon leaves nothing: streams and their ids are gone, a new one begins with a
//!   snapshot. Dropping [`LiveQueries`] ends every task and every follower.
//!
//! Bounds: 256 streams; a stream that nobody follows for 5 minutes closes; a result of 64 MiB at most; the
//! documents of an outage are kept for 30 minutes, then only their names and times, for the difference. A
//! follower has no queue: it reads the stream's log at its own pace, and if that has moved on (1,024
//! events, 256 KiB) it gets a snapshot in place of what it missed.
//!
//! Documents come in the order of their names, whatever the query's order.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use fusebox_actors::connector::{Follow, Gate, Refused, Streams};
use parking_lot::Mutex;
use tokio::task::AbortHandle;

mod board;
mod events;
mod follower;
mod id;
mod keep;
mod news;
mod pace;
mod round;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod upstream;
mod view;

pub(crate) use self::pace::Pace;
pub(crate) use self::upstream::Upstream;
pub(crate) use self::upstream::{Responses, Resume, requests, target};
use board::Board;
use follower::Follower;

/// So many streams are open at once at most.
const STREAMS_MAX: usize = 256;

/// A backend's live queries. See the [module](self).
pub(crate) struct LiveQueries<U: Upstream> {
    upstream: Arc<U>,
    pace: Pace,
    registry: Arc<Registry>,
}

/// Which streams are open.
#[derive(Default)]
struct Registry(Mutex<Open>);

#[derive(Default)]
struct Open {
    closed: bool,
    by_id: HashMap<String, Entry>,
    by_query: HashMap<Bytes, String>,
}

struct Entry {
    query: Bytes,
    board: Arc<Board>,
    task: AbortHandle,
}

impl<U: Upstream> LiveQueries<U> {
    /// Live queries over `upstream`. Nothing is sent yet.
    pub(crate) fn new(upstream: Arc<U>) -> Self {
        Self::with(upstream, Pace::default())
    }

    fn with(upstream: Arc<U>, pace: Pace) -> Self {
        Self { upstream, pace, registry: Arc::default() }
    }

    /// Ends every stream, and with it its followers. None can be opened afterwards.
    pub(crate) fn close(&self) {
        let mut open = self.registry.0.lock();
        open.closed = true;
        open.by_query.clear();
        for (_, entry) in open.by_id.drain() {
            entry.task.abort();
            entry.board.close();
        }
    }
}

impl<U: Upstream> Drop for LiveQueries<U> {
    fn drop(&mut self) {
        self.close();
    }
}

impl<U: Upstream> Streams for LiveQueries<U> {
    fn open(&self, body: Bytes, gate: Gate) -> Result<String, Refused> {
        let query = self.upstream.read(&body)?;
        let mut open = self.registry.0.lock();
        if open.closed {
            return Err(refused("closed", "the connector is closed".to_owned()));
        }
        if let Some((id, entry)) = open.find(&body) {
            if let Some(cause) = entry.board.cause() {
                return Err(refused(cause.code, cause.message));
            }
            entry.board.touch();
            return Ok(id);
        }
        if open.by_id.len() >= STREAMS_MAX {
            let message = format!(
                "{STREAMS_MAX} live queries are open, which is the limit: one that nobody follows for {} closes by \
                 itself",
                humantime::format_duration(self.pace.idle)
            );
            return Err(refused("too_many_streams", message));
        }
        let (id, board) = (id::new(), Arc::new(Board::new()));
        let stream = Stream {
            upstream: Arc::clone(&self.upstream),
            registry: Arc::clone(&self.registry),
            id: id.clone(),
            board: Arc::clone(&board),
            pace: self.pace,
        };
        let task = tokio::spawn(stream.run(query, gate)).abort_handle();
        open.by_query.insert(body.clone(), id.clone());
        open.by_id.insert(id.clone(), Entry { query: body, board, task });
        Ok(id)
    }

    fn follow(&self, id: &str) -> Option<Box<dyn Follow>> {
        let open = self.registry.0.lock();
        let entry = open.by_id.get(id)?;
        Some(Box::new(Follower::new(Arc::clone(&entry.board))))
    }
}

fn refused(code: &'static str, message: String) -> Refused {
    Refused { code, message, malformed: false }
}

impl Open {
    fn find(&self, query: &Bytes) -> Option<(String, &Entry)> {
        let id = self.by_query.get(query)?;
        Some((id.clone(), self.by_id.get(id)?))
    }
}

impl Registry {
    /// Closes a stream; if `unfollowed` is asked for, only one that nobody follows. Whether it is gone.
    fn retire(&self, id: &str, unfollowed: bool) -> bool {
        let mut open = self.0.lock();
        let Some(entry) = open.by_id.get(id) else { return true };
        if unfollowed && entry.board.followers() > 0 {
            return false;
        }
        if let Some(entry) = open.by_id.remove(id) {
            open.by_query.remove(&entry.query);
            entry.board.close();
        }
        true
    }
}

/// What a stream's task holds.
struct Stream<U: Upstream> {
    upstream: Arc<U>,
    registry: Arc<Registry>,
    id: String,
    board: Arc<Board>,
    pace: Pace,
}

impl<U: Upstream> Stream<U> {
    /// Keeps the stream until nobody follows it or the server refuses it for good.
    async fn run(self, query: U::Query, gate: Gate) {
        tokio::select! {
            cause = keep::keep(&*self.upstream, &query, &gate, &self.board, &self.pace) => {
                self.board.end(cause);
                tokio::time::sleep(self.pace.refused_for).await;
                self.registry.retire(&self.id, false);
            }
            () = self.abandoned() => {}
        }
    }

    async fn abandoned(&self) {
        loop {
            self.board.abandoned(self.pace.idle).await;
            if self.registry.retire(&self.id, true) {
                return;
            }
        }
    }
}
