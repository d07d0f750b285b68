//! The backends as a program has them: a stock client of each that was given the address of the daemon's door, and
//! knows nothing else of fusebox.
//!
//! The source of an answer is for the ledger: the doors of HTTP and gRPC say it in headers, the one of Redis if it
//! is asked (`FUSEBOX LAST`).

use std::path::Path;

use super::{backend::Backend, call::Call, ledger::Ended};

mod documents;
mod keys;
mod rows;
mod said;

use documents::DocumentsClient;
use keys::KeysClient;
use rows::RowsClient;

/// A client of each door.
pub(super) struct StockClients {
    keys: KeysClient,
    rows: RowsClient,
    documents: DocumentsClient,
}

impl StockClients {
    /// Clients of the doors in `folder`, each a socket with its backend's name.
    pub(super) fn new(folder: &Path) -> Self {
        let socket = |backend: Backend| folder.join(backend.door());
        Self {
            keys: KeysClient::new(socket(Backend::Keys)),
            rows: RowsClient::new(socket(Backend::Rows)),
            documents: DocumentsClient::new(socket(Backend::Documents)),
        }
    }

    /// Makes a call as a stock client does, and asks again for a read whose connection broke. `None` if `call` has
    /// options, which such clients cannot state.
    pub(super) async fn make(&self, call: &Call) -> Option<Ended> {
        if !call.is_plain() {
            return None;
        }
        let ended = self.make_once(call).await;
        if !call.is_write() && matches!(ended, Ended::Unknown(_)) {
            return Some(self.make_once(call).await);
        }
        Some(ended)
    }

    async fn make_once(&self, call: &Call) -> Ended {
        match call.backend {
            Backend::Keys => self.keys.make(call).await,
            Backend::Rows => self.rows.make(call).await,
            Backend::Documents => self.documents.make(call).await,
        }
    }
}
