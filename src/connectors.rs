//! The protocols of the backends, each behind the connector port.

pub mod clickhouse;
pub mod firestore;
pub mod redis;

mod dial;
pub(crate) mod percent;
mod secret;
pub(crate) mod tls;
mod twins;

pub use secret::Secret;
pub use twins::Twins;
