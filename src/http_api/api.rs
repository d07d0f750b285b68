//! What the handlers of all routes share, and how they find the backend that a path names.

use std::sync::Arc;

use fusebox_actors::Backend;

use super::{page::board::Board, problem::Problem};
use crate::{agreed::NO_SUCH_BACKEND, daemon::Daemon, kinds::port::Kind};

/// What every handler borrows.
pub(crate) struct Api {
    /// The daemon behind the API.
    pub(crate) daemon: Arc<Daemon>,
    /// `openapi.json`, made once.
    pub(crate) openapi: bytes::Bytes,
    /// What the listeners of the status page share.
    pub(crate) board: Board,
    /// The status page's own version.
    pub(crate) page_version: String,
}

impl Api {
    /// The backend of that name and its kind, or a 404 that says which there are.
    pub(crate) fn backend(&self, name: &str) -> Result<(Arc<Backend>, &'static dyn Kind), Problem> {
        let found = self.daemon.fusebox.backend(name).zip(self.daemon.kind(name));
        found.ok_or_else(|| {
            let known: Vec<String> =
                self.daemon.fusebox.backends().iter().map(|b| b.name().to_owned()).collect();
            Problem::not_found(
                NO_SUCH_BACKEND,
                format!("there is no backend {name:?}; there are: {}", known.join(", ")),
            )
        })
    }
}
