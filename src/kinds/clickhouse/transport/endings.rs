//! Abandoned requests under names that their clients gave them.
//!
//! The server finds a read by its query id, and runs no second one under the same id or in the same session. Those of
//! our own are new each time. Under a name that its client gave it, a read is sent again only once the one before it has
//! been killed or is over: else the server would refuse it, or the kill would end it. The same holds for what follows a
//! write in doubt under that write's query id. It holds whichever connector sent the one before: a reload, which closes
//! the connector, leaves its query at the server. So the connectors of a backend share what is here.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{sync::Notify, time::sleep};

/// How long after a look that found nothing a second one proves it.
pub(super) const SETTLE: Duration = Duration::from_millis(200);

/// What a client calls its query, or the session that it is in: one runs under each at the server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Name {
    /// By its id.
    Query(String),
    /// By its session.
    Session(String),
}

/// Abandoned requests under names of their clients', until they have ended.
#[derive(Debug, Default)]
pub(crate) struct Endings {
    names: Mutex<HashMap<Name, u32>>,
    ended: Notify,
}

impl Endings {
    /// Whether none is left under any of `names`.
    pub(super) fn are_over(&self, names: &[Name]) -> bool {
        if names.is_empty() {
            return true;
        }
        let under_way = self.names.lock();
        under_way.is_empty() || !names.iter().any(|name| under_way.contains_key(name))
    }

    /// Returns once that is so.
    pub(super) async fn over(&self, names: &[Name]) {
        while !self.are_over(names) {
            let mut ended = std::pin::pin!(self.ended.notified());
            ended.as_mut().enable();
            if !self.are_over(names) {
                ended.await;
            }
        }
    }

    fn begins(&self, names: &[Name]) {
        let mut under_way = self.names.lock();
        for name in names {
            *under_way.entry(name.clone()).or_default() += 1;
        }
    }

    fn ends(&self, names: &[Name]) {
        let mut under_way = self.names.lock();
        for name in names {
            if let Some(count) = under_way.get_mut(name) {
                *count -= 1;
                if *count == 0 {
                    under_way.remove(name);
                }
            }
        }
        drop(under_way);
        self.ended.notify_waiters();
    }
}

/// An abandoned request that is being ended: a read, or a write in doubt.
#[derive(Debug)]
pub(super) struct Ending {
    endings: Arc<Endings>,
    names: Vec<Name>,
}

impl Ending {
    /// It is about to be killed.
    pub(super) fn begin(endings: &Arc<Endings>, names: Vec<Name>) -> Self {
        endings.begins(&names);
        Self { endings: Arc::clone(endings), names }
    }

    /// The read is over. The server lets go of its session a moment later.
    pub(super) async fn settled(self) {
        if self.names.iter().any(|name| matches!(name, Name::Session(_))) {
            sleep(SETTLE).await;
        }
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.endings.ends(&self.names);
    }
}
