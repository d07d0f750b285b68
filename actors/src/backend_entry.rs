//! A backend as its supervisor and its users hold it: what calls borrow, and the actor of the moment.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use ractor::ActorRef;

use crate::{backend::BackendMessage, backend_shared::BackendShared};

/// A backend.
#[derive(Clone)]
pub struct BackendEntry {
    /// What calls borrow.
    pub shared: Arc<BackendShared>,
    /// The actor's current incarnation; `None` where it was given up on.
    pub actor: Arc<ArcSwapOption<ActorRef<BackendMessage>>>,
}

impl BackendEntry {
    /// A backend without an actor yet.
    pub fn new(shared: Arc<BackendShared>) -> Self {
        Self { shared, actor: Arc::default() }
    }

    /// Tells its actor; a message to one that is being restarted is lost, so only what is repeated or
    /// lies elsewhere may be told this way.
    pub fn tell(&self, message: BackendMessage) {
        if let Some(actor) = self.actor.load().as_deref() {
            drop(actor.send_message(message));
        }
    }
}
