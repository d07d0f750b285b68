//! Other settings and another target while the daemon runs.

use std::sync::Arc;

use fusebox_state::{Lanes, Target, cache::Cache, store::CallHeader};

use super::{AdminError, Backend, failed};
use crate::{
    alert::Alert,
    connector::SharedConnector,
    settings::BackendSettings,
    start::{BackendSpec, retarget_alert},
};

/// So many of the calls that wait are looked at before they go to another address.
const LOOKED_AT: usize = 1_000;

impl Backend {
    /// Lets calls that wait for the old target go to the new one.
    ///
    /// # Errors
    /// [`AdminError::Conflict`] if nothing waits for another target.
    pub async fn accept_retarget(&self) -> Result<(), AdminError> {
        let shared = &self.entry.shared;
        if shared.circuit.holds().exchange {
            return Err(AdminError::Conflict("its address is being changed: try again".to_owned()));
        }
        if !shared.circuit.holds().retarget {
            return Err(AdminError::Conflict(format!(
                "no calls of {} wait for another address",
                self.name()
            )));
        }
        self.keeps_its_lanes().await?;
        let accepted = shared.queue.accept_target(|| self.connector().target());
        let synced = accepted.map_err(|error| AdminError::Failed(error.to_string()))?;
        match synced.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(AdminError::Failed(error.to_string())),
            Err(_) => return Err(failed("the store was closed")),
        }
        shared.circuit.hold(|holds| holds.retarget = false);
        shared.queue.alert(Alert::Retarget, None);
        shared.queue.work.notify_one();
        Ok(())
    }

    /// Whether calls that wait for the old target are of the same lanes at the new one, as far as the oldest tell: all of
    /// them are of one database, or of one project.
    async fn keeps_its_lanes(&self) -> Result<(), AdminError> {
        let shared = Arc::clone(&self.entry.shared);
        let oldest: Vec<(u64, CallHeader)> = {
            let index = shared.queue.index();
            let calls = index.page(false, 0).filter(|(_, entry)| entry.header.lanes != Lanes::None);
            calls.take(LOOKED_AT).map(|(seq, entry)| (seq, entry.header.clone())).collect()
        };
        let connector = self.connector();
        let ground = shared.queue.ground().clone();
        let looking = ground.run(move || {
            let store = shared.queue.store().ok()?;
            let moves = |(seq, header): &(u64, CallHeader)| {
                let lanes = store.body(*seq).ok().and_then(|body| connector.stored_lanes(&body));
                // Of a table whose calls are not ordered any more, nothing overtakes anything.
                lanes.is_some_and(|lanes| {
                    lanes != Lanes::None && !header.lanes.is_all() && lanes != header.lanes
                })
            };
            oldest.into_iter().find(moves).map(|(_, header)| header.op_id)
        });
        let Some(op_id) = looking.await.ok().flatten() else { return Ok(()) };
        Err(AdminError::Conflict(format!(
            "calls of {} wait for another database or project, such as {op_id}: later writes would overtake them. \
             Export them, discard them, and import them with --retarget",
            self.name()
        )))
    }

    /// Whether it may be given another target now.
    pub(crate) fn may_retarget(&self, target: &Target) -> Result<(), AdminError> {
        let shared = &self.entry.shared;
        let waits = shared.queue.waiting() > 0 || shared.queue.index().dead().0 > 0;
        let now = self.connector().target();
        if waits && now != *target {
            return Err(AdminError::Conflict(format!(
                "calls of {} wait for {now}: the address cannot change to {target} until no calls or dead letters are \
                 left",
                self.name()
            )));
        }
        Ok(())
    }

    /// Gives it other settings and another connector; see [`crate::Fusebox::reload`].
    pub(crate) async fn reconfigure(&self, spec: BackendSpec) {
        let shared = &self.entry.shared;
        let target = spec.connector.target();
        let before = self.connector().target();
        if target != before {
            // What is queued from here on waits until it is clear for whom it is.
            shared.circuit.hold(|holds| (holds.retarget, holds.exchange) = (true, true));
        }
        // What the old one has on the wire must be over before the new one sends: until then calls
        // find it closed, and fall back.
        self.connector().close().await;
        if spec.connector.view() == self.connector().view() {
            let before = SharedConnector::clone(&shared.connector.load());
            spec.connector.succeed(&*before);
        } else {
            // Another server's values answer nothing here, nor do another user's. Who finds the new one in place finds
            // none of them, and the old one adds none: it is closed, and a read that it has answered took its leave to
            // fill the cache before it was sent, and so before this.
            shared.cache.load().invalidate_all();
        }
        shared.connector.store(Arc::new(spec.connector));
        shared.circuit.hold(|holds| holds.exchange = false);
        if target != before {
            // Whoever hears of the new address finds it in effect. If calls wait, replay lifts the hold
            // once they are gone.
            shared.take_target_where_empty();
            if shared.circuit.holds().retarget {
                let told = retarget_alert(self.name(), &before, &target);
                shared.queue.alert(Alert::Retarget, Some(told.into()));
            }
            shared.queue.work.notify_one();
        }
        self.configure(spec.settings);
    }

    /// Whether it may be given other settings now.
    pub(crate) fn may_configure(&self) -> Result<(), AdminError> {
        if self.entry.actor.load().is_some() {
            return Ok(());
        }
        Err(AdminError::Failed(format!(
            "the actor of {0} failed too often and was stopped: `fusebox online {0}` starts it again",
            self.name()
        )))
    }

    /// Gives it other settings; its connector stays. Nothing is closed, opened or emptied by that: the window, the
    /// exponent, a force, the queue and the cache are what they were, and a smaller limit refuses only what is new.
    ///
    /// Each part takes them by itself, so that none is missed while the actor is being started again. One change
    /// follows another: callers see to that.
    pub(crate) fn configure(&self, settings: BackendSettings) {
        let shared = &self.entry.shared;
        if shared.circuit.settings.load().cache != settings.cache {
            let old = shared.cache.load_full();
            let cache = Arc::new(Cache::in_place_of(&old, settings.cache));
            old.shelf().into_iter().for_each(|shelf| cache.set_shelf(Arc::clone(shelf)));
            shared.cache.store(Arc::clone(&cache));
            // Of a large one that takes seconds. Nobody waits for it: meanwhile the old one is asked, too.
            drop(shared.queue.ground().run(move || cache.take_over()));
        }
        shared.queue.configure(&settings);
        shared.circuit.configure(settings);
        shared.queue.work.notify_one();
    }
}
