//! What ClickHouse's calls and replies are, as bytes: no connection, no clock, no task.

pub(crate) mod decoded;
pub(crate) mod door_insert;
pub(crate) mod door_read;
pub(crate) mod elsewhere;
pub(crate) mod empty;
pub(crate) mod gather;
pub(crate) mod http_form;
pub mod json;
pub(crate) mod lexer;
pub(crate) mod opaque;
pub(crate) mod outcome;
pub(crate) mod plan;
mod reach;
pub(crate) mod sql;
pub(crate) mod stated;
pub(crate) mod storable;
pub(crate) mod target;
pub mod wire;
