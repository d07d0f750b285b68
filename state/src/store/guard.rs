//! sled panics where it is damaged: here that becomes an error.

use std::{
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use sled::Db;

/// sled's own cache; its default is 1 GiB.
const CACHE_BYTES: u64 = 16 * 1024 * 1024;

thread_local! {
    static GUARDED: Cell<u32> = const { Cell::new(0) };
}

/// Whether a panic of this thread is one that the store expects of sled and tells in its own words: a panic hook
/// should be silent about it.
pub fn is_guarded() -> bool {
    GUARDED.get() > 0
}

/// Runs what may make sled panic, and turns a panic into its text.
pub(super) fn guarded<T>(what: impl FnOnce() -> T) -> Result<T, String> {
    GUARDED.set(GUARDED.get() + 1);
    let result = caught(what);
    GUARDED.set(GUARDED.get() - 1);
    result
}

/// Runs what must not panic, and turns a panic into its text nevertheless.
pub(super) fn caught<T>(what: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(what)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        format!("sled panicked: {text}")
    })
}

/// Opens sled with the settings that durability rests on.
pub(super) fn open_sled(path: &Path) -> Result<sled::Result<Db>, String> {
    let config = sled::Config::new().path(path).flush_every_ms(None).cache_capacity(CACHE_BYTES);
    guarded(|| config.open())
}
