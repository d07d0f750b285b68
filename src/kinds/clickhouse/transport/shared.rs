//! What a connector's tasks share.

use std::sync::{Arc, atomic::AtomicBool};

use super::{
    endings::Endings, fence::Fence, http::Http, raising::Raising, server::Servers,
    sessions::Sessions, tokens::Tables, usual_database::UsualDatabase,
};
use crate::kinds::clickhouse::settings::ClickHouseSettings;

/// What the tasks of a connector share.
pub(crate) struct Shared {
    pub(crate) settings: Arc<ClickHouseSettings>,
    pub(crate) http: Http,
    pub(crate) servers: Servers,
    pub(crate) tables: Tables,
    pub(crate) fence: Arc<Fence>,
    /// Which sessions of clients something was put into.
    pub(crate) sessions: Arc<Sessions>,
    /// The database that the server takes for us if none is named.
    pub(crate) usual_database: UsualDatabase,
    /// Abandoned requests under names that their clients gave them.
    pub(crate) endings: Arc<Endings>,
    /// The server is being asked who it is, and for that.
    pub(crate) is_describing: AtomicBool,
    /// Who raises the fence in the background.
    pub(super) raising: Raising,
}

impl Shared {
    /// What the tasks of a connector for `settings` share. Nothing is sent yet.
    pub(crate) fn new(settings: Arc<ClickHouseSettings>) -> Self {
        let fence = Arc::new(Fence::open(&settings));
        Self {
            http: Http::new(Arc::clone(&settings)),
            servers: Servers::default(),
            tables: Tables::default(),
            endings: fence.endings(),
            fence,
            sessions: Sessions::open(settings.sessions.as_ref()),
            usual_database: UsualDatabase::of(&settings),
            is_describing: AtomicBool::new(false),
            raising: Raising::default(),
            settings,
        }
    }

    /// Whoever answers next may be another server.
    pub(crate) fn forget_server(&self) {
        self.servers.forget();
        self.usual_database.ask_anew();
    }

    /// Nothing is known of whoever answers next, and nobody waits for what this one was asked.
    pub(crate) fn ask_anew(&self) {
        self.forget_server();
        self.tables.ask_anew();
        self.fence.ask_anew();
    }
}
