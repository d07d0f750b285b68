//! How commands get to Redis and replies back.

pub(crate) mod carry;
pub(crate) mod driver;
pub(crate) mod fence;
pub(crate) mod handshake;
pub(crate) mod link;
pub(crate) mod live;
pub(crate) mod multi;
pub(crate) mod open;
pub(crate) mod scripts;
pub(crate) mod server_info;
pub(crate) mod shared;
pub(crate) mod stream;
