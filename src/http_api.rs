//! The HTTP API: how programs and operators reach the daemon.

pub(crate) mod accept;
pub(crate) mod admin;
pub(crate) mod admit;
mod api;
pub(crate) mod body;
pub(crate) mod calls;
pub(crate) mod chaos;
mod dependencies;
pub(crate) mod encoding;
pub(crate) mod events;
pub(crate) mod http;
pub(crate) mod import;
pub(crate) mod openapi;
pub(crate) mod page;
pub(crate) mod problem;
pub(crate) mod queue;
mod route;
pub(crate) mod routes;
mod settings;
pub(crate) mod streams;
pub(crate) mod views;
