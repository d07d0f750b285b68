//! The doors: how programs and operators reach the daemon.

use std::sync::Arc;

pub(crate) mod accept;
pub(crate) mod admin;
pub(crate) mod admit;
pub(crate) mod body;
pub(crate) mod calls;
pub(crate) mod encoding;
pub(crate) mod events;
pub(crate) mod http;
pub(crate) mod import;
pub(crate) mod linger;
pub(crate) mod openapi;
pub(crate) mod page;
pub(crate) mod problem;
pub(crate) mod queue;
pub(crate) mod routes;
pub(crate) mod streams;
pub(crate) mod trace;
pub(crate) mod views;

use fusebox_actors::Backend;

use crate::{daemon::Daemon, kinds::port::Kind};
use page::stream::Board;
use problem::Problem;

/// What every handler borrows.
pub(crate) struct Doors {
    /// The daemon behind the doors.
    pub(crate) daemon: Arc<Daemon>,
    /// `openapi.json`, made once.
    pub(crate) openapi: bytes::Bytes,
    /// What the listeners of the status page share.
    pub(crate) board: Board,
    /// The status page's own version.
    pub(crate) page_version: String,
}

impl Doors {
    /// The doors of `daemon`.
    pub(crate) fn new(daemon: Arc<Daemon>) -> Arc<Self> {
        Arc::new(Self {
            daemon,
            openapi: openapi::render(routes::ROUTES),
            board: Board::default(),
            page_version: page::version(),
        })
    }

    /// The backend of that name and its kind, or a 404 that says which there are.
    pub(crate) fn backend(&self, name: &str) -> Result<(Arc<Backend>, &'static dyn Kind), Problem> {
        let found = self.daemon.fusebox.backend(name).zip(self.daemon.kind(name));
        found.ok_or_else(|| {
            let known: Vec<String> =
                self.daemon.fusebox.backends().iter().map(|b| b.name().to_owned()).collect();
            Problem::not_found(
                crate::agreed::NO_SUCH_BACKEND,
                format!("there is no backend {name:?}; there are: {}", known.join(", ")),
            )
        })
    }
}
