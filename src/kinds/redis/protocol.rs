//! What Redis's commands and replies are, as bytes: no connection, no task.

pub(crate) mod cache;
pub(crate) mod commands;
pub(crate) mod deadlines;
pub(crate) mod effect;
pub(crate) mod internal;
pub mod json;
pub(crate) mod outcome;
pub(crate) mod overlay;
pub(crate) mod plan;
pub(crate) mod replay;
pub(crate) mod residue;
pub mod resp;
pub(crate) mod rules;
pub(crate) mod server_code;
pub(crate) mod token;
pub(crate) mod ttl;
