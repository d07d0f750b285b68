//! Which table an INSERT goes to.

use super::{sql::Table, wire::Header};
use crate::kinds::clickhouse::settings::ClickHouseSettings;

/// A database and a table of it.
pub(crate) type Target = (String, String);

/// The table that an INSERT goes to, with the database that is meant if it names none.
pub(crate) fn of(table: &Table, header: &Header, settings: &ClickHouseSettings) -> Target {
    let database = table.database.as_ref().or(header.database.as_ref());
    (database.unwrap_or(&settings.database).clone(), table.name.clone())
}
