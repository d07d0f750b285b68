//! Whether any server could take an insert, as far as the insert itself shows that.
//!
//! Looked at is what is about to be queued: its caller would be told that it is durable, and it would become a dead
//! letter. Its caller is told instead what the server says of the same:
//!
//! | what is wrong | number |
//! | --- | --- |
//! | the name of a setting is none that any could have | 115 |
//! | the body does not unpack to its end, with its checksums | 354, 448, 561 or 618, as it is encoded |
//! | a block of `decompress=1` does not | 271; 33 if it is cut off |
//!
//! An insert without rows is none of these: servers take it, and write nothing. Whether there is such a table, and
//! whether its rows can be parsed, is for the server to say.

use fusebox_actors::connector::{AttemptError, ErrorCode};
use fusebox_state::ErrorClass;

use super::{
    decoded::{
        Coding, Packing,
        whole::{self, Flaw},
    },
    plan,
    wire::Call,
};

/// Numbers of the server's, its words for them, and the statuses that it gives them.
const NUMBERS: [(u16, &str, u16); 7] = [
    (33, "CANNOT_READ_ALL_DATA", 500),
    (115, "UNKNOWN_SETTING", 404),
    (271, "CANNOT_DECOMPRESS", 500),
    (354, "ZLIB_INFLATE_FAILED", 500),
    (448, "BROTLI_READ_FAILED", 500),
    (561, "ZSTD_DECODER_FAILED", 500),
    (618, "LZ4_DECODER_FAILED", 500),
];

/// Number, word and status of what `code` stands for, if it is one that is told here.
pub(crate) fn named(code: &str) -> Option<(u16, &'static str, u16)> {
    let number: u16 = code.parse().ok()?;
    NUMBERS.into_iter().find(|(known, ..)| *known == number)
}

/// How the body of an insert is packed; `None` if it is not.
pub(crate) fn packing(call: &Call) -> Option<Packing> {
    let packing = call.header.raw.as_ref()?.packing;
    (packing != Packing::default()).then_some(packing)
}

/// Looks at everything but a packed body.
///
/// # Errors
/// No server takes it.
pub(crate) fn check(call: &Call) -> Result<(), AttemptError> {
    let wrong = call.header.settings.keys().find(|name| !plan::is_name(name));
    wrong.map_or(Ok(()), |name| {
        let text = format!("{name:?} is no setting: a name has letters, digits, _ and .");
        Err(refused(115, text))
    })
}

/// Looks at a packed body, which takes a while: so it is for a thread that may block.
///
/// # Errors
/// No server can unpack it.
pub(crate) fn unpack(packing: Packing, body: &[u8]) -> Result<(), AttemptError> {
    let Err(Flaw { of, is_cut }) = whole::unpack(packing, body) else { return Ok(()) };
    let number = match of {
        Some(Coding::Gzip | Coding::Deflate) => 354,
        Some(Coding::Br) => 448,
        Some(Coding::Zstd) => 561,
        Some(Coding::Lz4) => 618,
        None if is_cut => 33,
        None => 271,
    };
    let of = of.map_or("the blocks of decompress=1", Coding::name);
    let what =
        if is_cut { "it is cut off" } else { "it is damaged, or more stands behind its end" };
    Err(refused(number, format!("the body cannot be unpacked ({of}): {what}")))
}

fn refused(number: u16, text: String) -> AttemptError {
    let code = ErrorCode::Server(number.to_string().into());
    AttemptError::own(ErrorClass::Rejected, code, text)
}
