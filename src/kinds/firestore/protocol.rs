//! What Firestore's calls and replies are, as bytes: no connection, no clock, no task.

pub(crate) mod cache;
pub(crate) mod cargo;
pub(crate) mod fields;
pub(crate) mod json;
pub(crate) mod limits;
pub(crate) mod named;
pub(crate) mod names;
pub(crate) mod numbers;
pub(crate) mod outcome;
pub(crate) mod outline;
pub(crate) mod overlay;
pub(crate) mod path;
pub(crate) mod plan;
pub(crate) mod query;
mod same;
pub(crate) mod size;
pub(crate) mod stock;
pub(crate) mod targets;
pub(crate) mod value;
pub(crate) mod wire;
pub(crate) mod write;
