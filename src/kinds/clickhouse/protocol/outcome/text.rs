//! The text of an error, which may be packed.
//!
//! A server packs an error as it would have packed the rows: by `Content-Encoding`, in its own blocks (`compress=1`), or
//! both; but not always, so each way is tried.

use std::borrow::Cow;

use memchr::memmem;

use super::super::decoded::{self, Coding, Packing};

/// What a server's errors have in them.
const CODE: &[u8] = b"Code: ";

/// The text of the error that `body` is, whose `Content-Encoding` is `coding`. `None` if it cannot be read.
pub(super) fn of<'a>(coding: Option<&str>, body: &'a [u8]) -> Option<Cow<'a, [u8]>> {
    let coding = match coding.filter(|coding| *coding != "identity") {
        Some(name) => Some(Coding::of(name)?),
        None => None,
    };
    let unpacked = |blocks: bool| -> Option<Cow<'a, [u8]>> {
        if coding.is_none() && !blocks {
            return Some(Cow::Borrowed(body));
        }
        let decoded = decoded::beginning(Packing { coding, blocks }, body);
        decoded.is_all.then_some(Cow::Owned(decoded.bytes))
    };
    let (plain, of_blocks) = (unpacked(false), unpacked(true));
    let found = [&plain, &of_blocks].into_iter().flatten().find(|it| is_error(it)).cloned();
    // A page of a proxy's, say.
    found.or(plain.filter(|bytes| !bytes.is_empty() && is_text(bytes)))
}

/// Whether a server's error is in `bytes` as it is.
fn is_error(bytes: &[u8]) -> bool {
    let first = memmem::find(bytes, CODE);
    first.and_then(|at| bytes.get(..at)).is_some_and(is_text)
}

/// Blocks have numbers at their beginning.
fn is_text(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_ok_and(|text| !text.contains('\0'))
}
