//! What the command line and the demo share: the client, events, tables, colours, printing.

pub(crate) mod client;
pub(crate) mod events;
pub(crate) mod failure;
pub(crate) mod paint;
pub(crate) mod print;
pub(crate) mod progress;
pub(crate) mod table;
pub(crate) mod views;
