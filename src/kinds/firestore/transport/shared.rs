//! What a connector's tasks share.

use std::sync::Arc;

use super::{client::Client, fence::Fence, pace::Pace};
use crate::kinds::firestore::protocol::size::Sizes;

/// What the connector's tasks share.
pub(crate) struct Shared {
    pub(crate) client: Arc<Client>,
    pub(crate) fence: Arc<Fence>,
    pub(crate) pace: Pace,
    pub(crate) sizes: Sizes,
}
