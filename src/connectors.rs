//! The protocols of the backends, each behind the connector port.

pub mod firestore;
pub mod redis;
