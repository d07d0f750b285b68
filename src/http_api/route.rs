//! What a route is: its path, who may use it, what it says of itself, and what answers it.

use std::sync::Arc;

use axum::routing::MethodRouter;

use super::api::Api;
use crate::ingress::peer::Access;

/// One route.
pub(crate) struct Route {
    /// `GET`, `POST`, `PUT` or `DELETE`.
    pub(crate) method: &'static str,
    /// Its path, with parameters in braces.
    pub(crate) path: &'static str,
    /// Who may use it.
    pub(crate) access: Access,
    /// What it does, in a sentence.
    pub(crate) summary: &'static str,
    /// What its query and its body hold; empty for none.
    pub(crate) request: &'static str,
    /// What it answers.
    pub(crate) response: &'static str,
    /// Makes what answers it.
    pub(crate) handler: fn() -> MethodRouter<Arc<Api>>,
}

impl Route {
    /// Whether it is answered to those who found no room, too: how the daemon is, and orders.
    pub(crate) fn is_vital(&self) -> bool {
        let health = ["/health", "/health/live", "/health/ready", "/metrics"];
        self.access == Access::Admin || health.contains(&self.path)
    }
}
