//! Alerts without a Prometheus: a command of the operator's is run when a condition begins to hold, and when it is over.
//!
//! ```text
//! view, each second -> conditions -> ledger: held long enough? said already? within the minute? -> command
//!                                      ^                                                              |
//!                                      +----------------------- worked, or not -----------------------+
//! ```
//! The conditions are those of docs/prometheus/fusebox.rules.yml that the daemon sees by itself, under the same names.
//! The ledger decides, and knows neither clocks nor processes. **The one rule that a maintainer might break:** what is
//! handed to the command goes to mail and to other people's servers, so it has no words of a backend's server and no
//! secret.

pub(crate) mod command;
pub(crate) mod conditions;
pub(crate) mod ledger;
#[cfg(test)]
mod tests;
