//! The backends as a program has them: a stock client of each that was given the address of the daemon's door, and knows
//! nothing else of fusebox.
//!
//! Where an answer came from is for the ledger: the doors of HTTP and gRPC say it in headers, the one of Redis if it
//! is asked (`FUSEBOX LAST`).

use std::path::Path;

use fusebox_actors::{AckLevel, Source};
use serde_json::{Value, json};

use super::{
    backend::Backend,
    call::Call,
    ledger::{Answer, Ended},
};

mod documents;
mod keys;
mod rows;

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

/// What a door says of one of its answers. The server's own answers may say nothing: then it is `live`.
#[derive(Default)]
struct Said<'a> {
    source: Option<&'a str>,
    ack: Option<&'a str>,
    age_ms: u64,
}

impl Said<'_> {
    fn of<'a>(header: impl Fn(&str) -> Option<&'a str>) -> Said<'a> {
        Said {
            source: header("x-fusebox-source"),
            ack: header("x-fusebox-ack"),
            age_ms: header("x-fusebox-age-ms").and_then(|age| age.parse().ok()).unwrap_or(0),
        }
    }

    /// The answer to `call` with this value.
    fn answer(&self, call: &Call, value: Value) -> Ended {
        let source = self.source.unwrap_or(Source::Live.as_str());
        // The server's own answers promise what the server does.
        let is_durable = self.ack == Some("durable");
        let promise = if is_durable { AckLevel::Durable } else { AckLevel::Applied };
        Ended::Answered(Answer {
            status: None,
            source: serde_json::from_value(json!(source)).unwrap_or_default(),
            ack: call.is_write().then_some(promise),
            value,
            age_ms: self.age_ms,
        })
    }
}

/// How a call ended that got an error: doors say of what was not executed that it was not.
fn failed(why: String) -> Ended {
    if why.contains("not executed") { Ended::Refused(why) } else { Ended::Unknown(why) }
}
