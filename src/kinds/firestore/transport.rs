//! How calls get to Firestore and replies back.

pub(crate) mod auth;
pub(crate) mod carry;
pub(crate) mod cause;
pub(crate) mod client;
pub(crate) mod departure;
pub(crate) mod fence;
pub(crate) mod gathering;
pub(crate) mod listening;
pub(crate) mod pace;
pub(crate) mod reading;
pub(crate) mod shared;
