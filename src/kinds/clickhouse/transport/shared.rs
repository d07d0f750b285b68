//! What a connector's tasks share.

use std::sync::Arc;

use super::{fence::Fence, http::Http, server::Servers, tokens::Tables};
use crate::kinds::clickhouse::settings::ClickHouseSettings;

/// What the tasks of a connector share.
pub(crate) struct Shared {
    pub(crate) settings: Arc<ClickHouseSettings>,
    pub(crate) http: Http,
    pub(crate) servers: Servers,
    pub(crate) tables: Tables,
    pub(crate) fence: Arc<Fence>,
}
