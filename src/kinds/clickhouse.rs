//! ClickHouse, over its HTTP interface.

pub mod connector;
pub(crate) mod door;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
#[expect(clippy::unwrap_used, reason = "a way in for fuzzers")]
pub mod fuzzing;
pub(crate) mod kind;
pub mod protocol;
pub mod settings;
pub mod stand_in;
pub(crate) mod transport;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
