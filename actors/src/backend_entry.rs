//! A backend as its supervisor and its users hold it: what calls borrow, and the actor of the moment.
//!
//! Actors address a backend by this handle: it goes with their messages, so that none of them looks a place up in a
//! list.

use std::{fmt, sync::Arc};

use arc_swap::ArcSwapOption;
use ractor::ActorRef;

use crate::{backend::BackendMessage, backend_shared::BackendShared};

/// A backend.
#[derive(Clone)]
pub struct BackendEntry {
    /// What calls borrow.
    pub shared: Arc<BackendShared>,
    /// The actor's current incarnation; `None` if it was given up on.
    pub actor: Arc<ArcSwapOption<ActorRef<BackendMessage>>>,
}

impl BackendEntry {
    /// A backend without an actor yet.
    pub fn new(shared: Arc<BackendShared>) -> Self {
        Self { shared, actor: Arc::default() }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.shared.circuit.name
    }

    /// Whether it is the backend of which this is borrowed.
    pub fn is(&self, shared: &Arc<BackendShared>) -> bool {
        Arc::ptr_eq(&self.shared, shared)
    }

    /// Tells its actor; a message to one that is being restarted is lost, so only send what is repeated or
    /// kept elsewhere.
    pub fn tell(&self, message: BackendMessage) {
        if let Some(actor) = self.actor.load().as_deref() {
            drop(actor.send_message(message));
        }
    }
}

impl fmt::Debug for BackendEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("BackendEntry").field(&self.name()).finish()
    }
}
