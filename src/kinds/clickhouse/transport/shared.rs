//! What a connector's tasks share.

use std::sync::Arc;

use super::{fence::Fence, http::Http, server::Servers, sessions::Sessions, tokens::Tables};
use crate::kinds::clickhouse::settings::ClickHouseSettings;

/// What the tasks of a connector share.
pub(crate) struct Shared {
    pub(crate) settings: Arc<ClickHouseSettings>,
    pub(crate) http: Http,
    pub(crate) servers: Servers,
    pub(crate) tables: Tables,
    pub(crate) fence: Arc<Fence>,
    /// What is known of the sessions of clients.
    pub(crate) sessions: Sessions,
}

impl Shared {
    /// Nothing is known of whoever answers next, and nobody waits for what this one was asked.
    pub(crate) fn ask_anew(&self) {
        self.servers.forget();
        self.tables.ask_anew();
        self.fence.ask_anew();
    }
}
