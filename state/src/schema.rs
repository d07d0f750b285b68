//! What types that are written as text look like in the description of the HTTP interface.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use crate::{OpId, UnixMillis, Words};

/// Describes `$type` as a text, by a fragment of a JSON schema.
macro_rules! text {
    ($type:ident, $($fragment:tt)*) => {
        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", $($fragment)* })
            }
        }
    };
}

text!(OpId, "pattern": "^[0-9A-HJKMNP-TV-Z]{26}$", "description": "A ULID: the unique name of a call, which never changes.");
text!(UnixMillis, "format": "date-time", "description": "A time in UTC, to the millisecond.");
text!(Words, "description": "A text for people. Admins see the backend's own words.");
