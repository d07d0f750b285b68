//! What the server can do: its version, and which of the settings that are sent it knows.
//!
//! A setting that a server does not know is an error of the call, so none is sent unasked. It is asked once,
//! and again after a connect failed: whoever answers then may be another one.

use std::{collections::HashSet, sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use fusebox_state::ErrorClass;

use super::{
    http::{Failed, Http},
    question::Questions,
};

/// The settings that are sent if the server knows them.
const WANTED: &[&str] = &[
    "insert_deduplication_token",
    "insert_deduplicate",
    "deduplicate_insert",
    "async_insert",
    "insert_distributed_sync",
    "distributed_foreground_insert",
    "deduplicate_blocks_in_dependent_materialized_views",
    "cancel_http_readonly_queries_on_client_close",
    "http_write_exception_in_output_format",
    "max_insert_block_size",
    "max_insert_block_size_bytes",
    "min_insert_block_size_rows",
    "min_insert_block_size_bytes",
    "min_chunk_bytes_for_parallel_parsing",
    "input_format_max_block_wait_ms",
];

/// A server as it described itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct Server {
    /// Its version; empty if it would not say.
    pub(crate) version: String,
    /// The user may change no setting.
    pub(crate) read_only: bool,
    known: HashSet<String>,
}

impl Server {
    /// Whether it knows the setting, and lets us set it.
    pub(crate) fn knows(&self, setting: &str) -> bool {
        !self.read_only && self.known.contains(setting)
    }

    /// Whether it is at least of this version, such as `(26, 7)`.
    pub(crate) fn since(&self, version: (u32, u32)) -> bool {
        let mut parts = self.version.split('.').map(|part| part.parse().unwrap_or(0));
        (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) >= version
    }

    /// Whether it recognises a repetition by its token.
    pub(crate) fn takes_tokens(&self) -> bool {
        self.knows("insert_deduplication_token")
    }

    /// Reads lines such as `setting async_insert`, `version 26.9.2.1`, `readonly 0`.
    pub(super) fn of_lines(text: &str) -> Self {
        let mut server = Self::default();
        for line in text.lines() {
            match line.split_once(' ') {
                Some(("setting", name)) => drop(server.known.insert(name.to_owned())),
                Some(("version", version)) => version.clone_into(&mut server.version),
                Some(("readonly", value)) => server.read_only = value == "1",
                _ => {}
            }
        }
        server
    }
}

/// The server, once it was asked.
#[derive(Default)]
pub(crate) struct Servers {
    current: ArcSwapOption<Server>,
    /// The question that is under way.
    pub(super) asking: Questions<(), Result<Arc<Server>, Failed>>,
}

impl Servers {
    /// Keeps what the server said of itself.
    pub(super) fn keep(&self, server: Server) -> Arc<Server> {
        let server = Arc::new(server);
        self.current.store(Some(Arc::clone(&server)));
        server
    }

    /// The server, if it was asked.
    pub(crate) fn known(&self) -> Option<Arc<Server>> {
        self.current.load_full()
    }

    /// The next one may be another.
    pub(crate) fn forget(&self) {
        self.current.store(None);
        self.asking.ask_anew();
    }
}

/// What the server says of itself.
///
/// # Errors
/// It did not answer within `time`.
pub(super) async fn described(http: &Http, time: Duration) -> Result<Server, Failed> {
    match http.ask(question(), time).await {
        Ok(text) => Ok(Server::of_lines(&text)),
        // It answers, but does not say: then it is sent nothing that it may not know.
        Err(failed)
            if matches!(failed.error.class, ErrorClass::BlockedObject | ErrorClass::Rejected) =>
        {
            tracing::warn!(error = %failed.error, "the server does not describe itself");
            Ok(Server::default())
        }
        Err(failed) => Err(failed),
    }
}

fn question() -> String {
    let wanted: Vec<String> = WANTED.iter().map(|name| format!("'{name}'")).collect();
    format!(
        "SELECT concat('setting ', name) FROM system.settings WHERE name IN ({}) \
         UNION ALL SELECT concat('version ', version()) \
         UNION ALL SELECT concat('readonly ', toString(value)) FROM system.settings WHERE name = 'readonly' \
         FORMAT TabSeparated",
        wanted.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_read_from_its_lines() {
        let server = Server::of_lines("version 26.9.2.1\nsetting async_insert\nreadonly 0\n");
        assert_eq!(server.version, "26.9.2.1");
        assert!(server.since((26, 7)) && server.since((26, 9)) && !server.since((26, 10)));
        assert!(!Server::default().since((1, 0)));
        assert!(server.knows("async_insert") && !server.takes_tokens());
        let locked = Server::of_lines("setting insert_deduplication_token\nreadonly 1\n");
        assert!(!locked.takes_tokens(), "a user who may set nothing has no tokens");
    }
}
