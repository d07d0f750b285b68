//! The settings of a Redis door.

use std::{sync::Arc, time::Duration};

use fusebox_actors::Priority;

use super::{assumed::EffectReply, telling::Unavailable};
use crate::{
    config::OnMiss,
    ingress::{
        peer::{NOBODY, Who},
        same::same,
    },
    kinds::redis::settings::RedisSettings,
};

/// What a write's answer promises at least.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum MinAck {
    /// The server has applied it.
    Applied,
    /// The server has, or it is queued if its reply is known beforehand.
    #[default]
    AppliedOrDurable,
    /// It is queued at least, also if its reply is not known.
    Durable,
}

/// A door's settings.
#[derive(Clone)]
pub(crate) struct Settings {
    /// The door's address, as it is named in traces and errors.
    pub(crate) address: &'static str,
    /// What a write's answer promises.
    pub(crate) min_ack: MinAck,
    /// How long a call may take; the backend's `timeout` × attempts if it is `None`.
    pub(crate) deadline: Option<Duration>,
    /// The oldest value from the cache that answers; the cache's own `max_stale` if it is `None`.
    pub(crate) max_stale: Option<Duration>,
    /// How much its calls matter.
    pub(crate) priority: Priority,
    /// The word of the answer that a command was not executed.
    pub(crate) unavailable: Unavailable,
    /// What is answered to a queued write whose effect is known and whose reply is not.
    pub(crate) effect_reply: EffectReply,
    /// Which reads of what nothing is known of are answered with nil.
    pub(crate) on_miss: OnMiss,
    /// A client whose command's outcome is unknown is disconnected.
    pub(crate) close_on_unknown: bool,
    /// Upstream connections that belong to one client each, at once.
    pub(crate) pinned: usize,
    /// What is held of requests, of all clients together, in bytes.
    pub(crate) in_bytes: usize,
    /// What is held for clients that do not read, in bytes.
    pub(crate) out_bytes: usize,
    /// What of that is held for one client, in bytes.
    pub(crate) out_client: usize,
    /// The largest request, in bytes.
    pub(crate) request_max: usize,
    /// How long a client may be silent that is owed nothing; for ever if it is `None`.
    pub(crate) idle_timeout: Option<Duration>,
    /// How long a request may take without one byte more of it.
    pub(crate) partial_max: Duration,
    /// Who is let in by credentials.
    pub(crate) callers: Arc<dyn Callers>,
}

/// Somebody who was let in by credentials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Guest {
    /// Its name, for the log.
    pub(crate) name: String,
    /// Who that is.
    pub(crate) who: Who,
    /// It may not write.
    pub(crate) reads_only: bool,
    /// It has the backend's own credentials. They say nothing of who it is: somebody who is known already stays that.
    pub(crate) is_backends_own: bool,
}

/// Finds out whom credentials belong to.
pub(crate) trait Callers: Send + Sync {
    /// The caller of that name and secret, if there is one.
    fn find(&self, user: Option<&[u8]>, secret: &[u8]) -> Option<Guest>;
}

/// Nobody is let in by credentials of the door's own.
#[cfg(test)]
pub(crate) struct Nobody;

#[cfg(test)]
impl Callers for Nobody {
    fn find(&self, _: Option<&[u8]>, _: &[u8]) -> Option<Guest> {
        None
    }
}

impl dyn Callers {
    /// Who has these credentials: a caller of the door's, or somebody with the backend's own, so that a password in an
    /// existing URL needs no change. An empty secret is nobody's.
    pub(super) async fn who(
        &self,
        backend: &RedisSettings,
        user: Option<&[u8]>,
        secret: &[u8],
    ) -> Option<Guest> {
        if secret.is_empty() {
            return None;
        }
        if let Some(guest) = self.find(user, secret) {
            return Some(guest);
        }
        let own = match &backend.password_file {
            Some(file) => {
                let text = tokio::fs::read_to_string(file).await.ok()?;
                text.lines().next()?.to_owned()
            }
            None => backend.password.as_ref()?.expose().to_owned(),
        };
        let name = backend.username.as_deref().unwrap_or("default").as_bytes();
        let is_own = !own.is_empty()
            && same(own.as_bytes(), secret)
            && user.is_none_or(|user| same(user, name));
        let who = Who { uid: NOBODY, admin: false, by_token: true };
        let reads_only = false;
        let name = "the backend's own".to_owned();
        is_own.then_some(Guest { name, who, reads_only, is_backends_own: true })
    }
}
