//! Who is on the other end of a connection.

use std::sync::Arc;

use crate::ingress::{
    gate::{Account, Part},
    peer::Who,
};

/// Who has connected, and what it has of the door. Its place is given back when this is dropped.
pub(super) struct Visitor {
    /// Who that is by the socket; `None` if it must show credentials.
    pub(super) who: Option<Who>,
    /// Whether it came over a Unix socket.
    pub(super) is_local: bool,
    /// What it has of the door's bounds.
    pub(super) account: Arc<Account>,
    _place: Part,
}

impl Visitor {
    /// Who came with this place.
    pub(super) fn new(
        who: Option<Who>,
        is_local: bool,
        account: Arc<Account>,
        place: Part,
    ) -> Self {
        Self { who, is_local, account, _place: place }
    }
}
