//! Stand-ins for the backends, within the process: for the demonstration, where no server is installed.
//!
//! **They are no Redis, no ClickHouse and no Firestore.** Each knows what the demonstration's callers and
//! fusebox's own connector say to it, answers that as a real server does, refuses everything else in the
//! server's own form, and keeps everything in memory under one lock. They listen where they are told to,
//! which should be a loopback address: they ask nobody for a password.

pub mod clickhouse;
pub mod firestore;
mod port;
pub mod redis;
