//! ClickHouse behind the connector port.

mod lexer;
mod plan;
pub mod settings;
mod sql;
pub mod wire;
