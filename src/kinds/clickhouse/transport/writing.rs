//! A write on the wire, whose client may leave and whose answer may not come.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::time::{Instant, sleep};

use super::{endings::SETTLE, fence::Place, shared::Shared};

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

/// Raises the fence in the background: once, and again and again while it keeps ids of clients from being used.
pub(crate) fn raise_soon(shared: &Arc<Shared>) {
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        let mut pause = PAUSE_MIN;
        loop {
            let until = Instant::now() + shared.settings.timeout;
            let mut closes = shared.http.under_way();
            let raised = tokio::select! {
                biased;
                // What a closed connector has left, its successor looks for, and it waits for no other's look.
                _ = closes.wait_for(|closed| *closed) => return,
                raised = shared.fence.round(&shared.http, until) => raised,
            };
            drop(closes);
            if let Err(failed) = &raised {
                let backend = shared.settings.name.as_str();
                tracing::debug!(backend, error = %failed.error, "an abandoned write is in doubt");
            }
            // One does so for all.
            if !shared.fence.keeps_names() || shared.is_raising.swap(true, Ordering::AcqRel) {
                return;
            }
            if raised.is_ok() {
                sleep(SETTLE).await;
            } else {
                sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
            shared.is_raising.store(false, Ordering::Release);
        }
    });
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
    use tokio::{net::TcpListener, time::timeout};

    use super::*;
    use crate::kinds::clickhouse::testing::{PATIENCE, settings};

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
}
