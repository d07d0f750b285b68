//! How calls get to ClickHouse and replies back.

pub(crate) mod asking;
pub(crate) mod attempt;
pub(crate) mod bounds;
mod doubt;
mod endings;
mod exchange;
pub(crate) mod fence;
pub(crate) mod http;
mod lent;
pub(crate) mod opaque;
mod protected;
pub(crate) mod question;
mod raising;
pub(crate) mod reading;
pub(crate) mod request;
pub(crate) mod rest;
pub(crate) mod server;
mod session_file;
pub(crate) mod sessions;
pub(crate) mod shared;
pub(crate) mod storable;
pub(crate) mod tokens;
pub(crate) mod usual_database;
pub(crate) mod writing;
