//! What the door itself needs of its settings.

use std::{sync::Arc, time::Duration};

use fusebox_actors::{AckLevel, Priority};

use crate::ingress::callers::Callers;

/// The settings of a door.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// The door's address, as it is named in traces and errors.
    pub(crate) address: &'static str,
    /// How long a call may take, if its client does not ask for less.
    pub(crate) deadline: Option<Duration>,
    /// What a write's answer promises at least: `Applied` refuses the queue, `Durable` consents to it for writes whose
    /// reply is not known before they are applied.
    pub(crate) min_ack: Option<AckLevel>,
    /// Which calls are shed first.
    pub(crate) priority: Priority,
    /// The most bytes of requests that are held before they are sent.
    pub(crate) in_bytes: u64,
    /// The most bytes of answers that may be here unread.
    pub(crate) out_bytes: u64,
    /// How long a connection may be idle.
    pub(crate) idle_timeout: Option<Duration>,
    /// The projects that may be named by those who call as the daemon; `*` is any. If it is empty, a door to an emulator
    /// allows any and other doors the backend's own.
    pub(crate) projects: Vec<String>,
    /// Who is known by a secret.
    pub(crate) callers: Arc<Callers>,
    /// How long a client may take to send the next piece of what it has begun.
    pub(crate) partial_max: Duration,
    /// A client of HTTP/2 is asked so often whether it is there, and has as long again to answer.
    pub(crate) keep_alive: Duration,
}
