//! Firestore over gRPC, or an emulator of it.

pub mod connector;
pub(crate) mod door;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
pub(crate) mod kind;
pub(crate) mod live_queries;
pub mod protocol;
pub mod settings;
pub mod stand_in;
pub(crate) mod transport;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
