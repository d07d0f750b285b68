//! A read on the wire, which its client may leave.
//!
//! A read whose answer nobody waits for any more is killed, in the background, and keeps its place until that is done:
//! it says nothing of a server that ended it, and is a failure if neither it nor the kill was answered within
//! `timeout`. What its client calls it is free again only then: [`endings`](super::endings).

use std::{sync::Arc, time::Duration};

use fusebox_actors::connector::Aboard;
use fusebox_state::Verdict;
use tokio::time::{Instant, sleep, sleep_until};

use super::{
    endings::{Ending, Name, SETTLE},
    fence::{PAUSE, QueryId, Running, end, is_query},
    http::Failed,
    shared::Shared,
};

/// How long the background tries to kill a read.
const KILL_TIME: Duration = Duration::from_secs(5);

/// A read on the wire. Dropped before its answer has ended, it is killed.
pub(crate) struct Reading {
    shared: Arc<Shared>,
    id: ReadId,
    /// By what its client calls it.
    names: Vec<Name>,
    ended: bool,
    aboard: Aboard,
    /// Before it was sent.
    begun: Instant,
    /// When the backend's `timeout` has passed.
    due: Instant,
}

/// The id of a read's query.
pub(crate) enum ReadId {
    /// One of ours.
    Own(QueryId),
    /// One that its client gave it, or that looks as if a server had.
    Given(String),
}

impl Reading {
    pub(crate) fn new(shared: &Arc<Shared>, id: ReadId, aboard: Aboard) -> Self {
        let begun = Instant::now();
        let due = begun + shared.settings.timeout;
        let (shared, names) = (Arc::clone(shared), Vec::new());
        Self { shared, id, names, ended: false, aboard, begun, due }
    }

    /// The same under what its client calls it.
    pub(crate) fn under(mut self, names: Vec<Name>) -> Self {
        self.names = names;
        self
    }

    /// The query's id.
    pub(crate) fn id(&self) -> &str {
        match &self.id {
            ReadId::Own(id) => &id.0,
            ReadId::Given(id) => id,
        }
    }

    /// The server has ended it, or never got it.
    pub(crate) fn ended(&mut self) {
        self.ended = true;
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if self.ended {
            return;
        }
        let shared = Arc::clone(&self.shared);
        let id = self.id().to_owned();
        let (aboard, begun, due) = (std::mem::take(&mut self.aboard), self.begun, self.due);
        let left = due.saturating_duration_since(Instant::now());
        // One that had its whole time has had its place for as long as it may.
        let aboard = (!left.is_zero()).then_some(aboard);
        let ending = Ending::begin(&shared.endings, std::mem::take(&mut self.names));
        runtime.spawn(async move {
            let time = if aboard.is_some() { left } else { KILL_TIME };
            let killed = end_read(&shared, (&id, begun), Instant::now() + time).await;
            tokio::spawn(ending.settled());
            if let Err(failed) = &killed {
                let backend = shared.settings.name.as_str();
                tracing::debug!(backend, error = %failed.error, "an abandoned read was not killed");
            }
            let Some(aboard) = aboard else { return };
            if let Err(failed) = killed
                && !shared.http.is_closed()
            {
                sleep_until(due).await;
                return aboard.ended(failed.verdict);
            }
            aboard.ended(Verdict::Neutral);
        });
    }
}

/// Kills a read that was sent after it had `begun`: another query of the same id, which a client may have chosen, is
/// left alone if it had been running before. One that is not found is over after a second look: it may be in the server's socket, and begin.
///
/// # Errors
/// It was not over by `until`, or the server does not let it be killed.
async fn end_read(
    shared: &Shared,
    (id, begun): (&str, Instant),
    until: Instant,
) -> Result<(), Failed> {
    let mut missed = false;
    loop {
        let left = || until.saturating_duration_since(Instant::now());
        let running = Running::ask(&shared.http, &is_query(id), left()).await?;
        if running.has_since(id, begun) {
            let time = left();
            let query = running.sent_since(id, begun, time);
            if end(&shared.http, &query, time).await?.get(id) == Some(&true) {
                return Ok(());
            }
            sleep(PAUSE).await;
        } else if missed {
            return Ok(());
        } else {
            missed = true;
            sleep(SETTLE).await;
        }
    }
}
