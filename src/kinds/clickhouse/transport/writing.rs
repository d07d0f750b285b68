//! A write on the wire, whose client may leave and whose answer may not come.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, timeout};

use super::{endings::SETTLE, fence::Place, raising::Turn, shared::Shared};

/// How long a connector that was closed tries to end what nobody can find behind it.
const LAST_TIME: Duration = Duration::from_millis(500);
/// How long it is waited behind a round that has failed: twice as long each time.
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// A write whose answer comes piece by piece. Dropped before that has ended, it is in doubt.
pub(super) struct Writing {
    shared: Arc<Shared>,
    place: Option<Place>,
}

impl Writing {
    /// The write in `place`.
    pub(super) fn new(shared: &Arc<Shared>, place: Place) -> Self {
        Self { shared: Arc::clone(shared), place: Some(place) }
    }

    /// The server has ended it, or never got it.
    pub(super) fn ended(&mut self) {
        if let Some(mut place) = self.place.take() {
            place.ended();
        }
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        let Some(place) = self.place.take() else { return };
        drop(place);
        if tokio::runtime::Handle::try_current().is_ok() {
            raise_soon(&self.shared);
        }
    }
}

/// Raises the fence in the background: once, and again and again while it keeps ids of clients from being used. One
/// task does so for all who want it.
pub(crate) fn raise_soon(shared: &Arc<Shared>) {
    let Some(turn) = shared.raising.want() else { return };
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        let mut closes = shared.http.under_way();
        tokio::select! {
            biased;
            // What a closed connector has left, its successor looks for, and it waits for no other's look.
            _ = closes.wait_for(|closed| *closed) => {}
            () = raise(&shared, turn) => {}
        }
    });
}

async fn raise(shared: &Shared, mut turn: Turn) {
    let mut pause = PAUSE_MIN;
    loop {
        turn.begin();
        let until = Instant::now() + shared.settings.timeout;
        let raised = shared.fence.round(&shared.http, until).await;
        if let Err(failed) = &raised {
            let backend = shared.settings.name.as_str();
            tracing::debug!(backend, error = %failed.error, "an abandoned write is in doubt");
        }
        if !shared.fence.keeps_names() {
            let Some(wanted) = turn.over() else { return };
            turn = wanted;
            continue;
        }
        sleep(SETTLE).await;
        if raised.is_err() {
            turn.wanted(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }
}

/// Ends what a connector that was closed leaves in doubt under ids of clients, as far as that is done at once: a later
/// run does not know these ids, nor does a connector to another address.
pub(crate) async fn end_names(shared: &Shared) {
    if !shared.fence.keeps_names() || !shared.fence.is_last() {
        return;
    }
    let until = Instant::now() + LAST_TIME;
    let ended = timeout(LAST_TIME, shared.fence.round(&shared.http, until)).await;
    if !matches!(ended, Ok(Ok(()))) || shared.fence.keeps_names() {
        let backend = shared.settings.name.as_str();
        tracing::warn!(backend, "a write under its client's own query_id may still be applied");
    }
}

/// Notes that nobody waits for a write any more.
pub(super) struct Departure {
    shared: Arc<Shared>,
    id: String,
}

impl Departure {
    /// Of whoever waits for the write in `place`.
    pub(super) fn of(shared: &Arc<Shared>, place: &Place) -> Self {
        Self { shared: Arc::clone(shared), id: place.id().to_owned() }
    }
}

impl Drop for Departure {
    fn drop(&mut self) {
        self.shared.fence.depart(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::ready,
        sync::atomic::{AtomicUsize, Ordering::SeqCst},
    };

    use tokio::net::TcpListener;

    use super::*;
    use crate::kinds::clickhouse::testing::{PATIENCE, played, settings};

    #[tokio::test]
    async fn a_look_at_a_frozen_server_ends_with_its_connector() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let settings = Arc::new(settings(listener.local_addr().unwrap().port(), "i", "r"));
        let shared = Arc::new(Shared::new(settings));
        raise_soon(&shared);
        let _frozen = timeout(PATIENCE, listener.accept()).await.expect("it looks").unwrap();
        timeout(PATIENCE, shared.http.close()).await.expect("nothing is under way");
        assert_eq!(Arc::strong_count(&shared), 1, "a look goes on, and its successor waits for it");
    }

    #[tokio::test]
    async fn a_closed_connector_ends_writes_under_ids_of_clients_that_no_other_one_looks_for() {
        let kills = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&kills);
        let port = played(move |statement| {
            let is_kill = statement.starts_with("KILL");
            count.fetch_add(usize::from(is_kill), SeqCst);
            let said = if is_kill { "finished\tmine\tdefault\tINSERT\n" } else { "mine\t0.1\n" };
            ready(said.to_owned())
        });
        let settings = Arc::new(settings(port.await, "i", "r"));
        for has_successor in [true, false] {
            let shared = Shared::new(Arc::clone(&settings));
            drop(shared.fence.enter_under(shared.fence.id(), Some("mine".to_owned()), false));
            let successor = has_successor.then(|| Shared::new(Arc::clone(&settings)));
            shared.http.close().await;
            end_names(&shared).await;
            assert_eq!(kills.load(SeqCst), usize::from(!has_successor));
            assert_eq!(shared.fence.keeps_names(), has_successor);
            drop(successor);
        }
    }
}
