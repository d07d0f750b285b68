//! sled panics if it is damaged, and waits for ever if one of its own threads has panicked: here that becomes an
//! error.
//!
//! | what | its thread | what becomes of it |
//! | --- | --- | --- |
//! | a panic in a call of ours | on the caller's thread, [`guarded`] | an error; the handle is given up |
//! | a panic in sled's own thread, in the middle of a write | in sled, which keeps no word of it | the daemon's panic hook ends the process; without that hook, whoever flushes or closes that handle waits for ever |
//! | a wait for a copy, or for a handle to close | on a thread of its own, [`bounded`] | an error after [`PATIENCE`]; the thread is left behind |
//! | a panic in a step of the committing thread | there, [`caught`] by its loop | the store goes down, and is opened again |
//!
//! A handle that was left behind may still write to the files that it has open, so that its store is written into
//! others before it serves again (`rebuild::close`). What is not bounded are the flush of a commit and the flush of an
//! open: a thread in between would cost every acknowledgement. What sled's own thread leaves behind there is no worse
//! than a crash, so the process ends (`src/telemetry.rs`) and is started again; no other store of it would have been
//! served either, as sled starts no such thread any more.

use std::{
    cell::Cell,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::mpsc,
    thread,
    time::Duration,
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

/// How long sled may take to flush a part of a copy, or to close: longer than any disk that still works.
pub(super) const PATIENCE: Duration = Duration::from_secs(if cfg!(test) { 5 } else { 30 });

/// Runs what sled may never end, on a thread of its own. `None`: it did not end in time, and is left to itself.
pub(super) fn bounded<T: Send + 'static>(
    what: impl FnOnce() -> T + Send + 'static,
) -> Option<Result<T, String>> {
    let (sender, receiver) = mpsc::channel();
    let run = move || drop(sender.send(guarded(what)));
    // Without a thread, what it would have run is dropped here.
    let spawned = guarded(move || thread::Builder::new().name("sled-waits".into()).spawn(run));
    match spawned {
        Ok(Ok(_)) => receiver.recv_timeout(PATIENCE).ok(),
        Ok(Err(error)) => Some(Err(format!("cannot start a thread: {error}"))),
        Err(panic) => Some(Err(panic)),
    }
}

/// Closes a handle of sled; `false` if it does not close in time.
pub(super) fn close<T: Send + 'static>(handle: T) -> bool {
    bounded(move || drop(handle)).is_some()
}

/// A handle that is closed, in a bounded time, wherever it is dropped.
pub(super) struct Held<D: Send + 'static = Db>(Option<D>);

impl<D: Send + 'static> Held<D> {
    pub(super) fn new(db: D) -> Self {
        Self(Some(db))
    }

    /// The handle, until it is closed.
    pub(super) fn get(&self) -> io::Result<&D> {
        self.0.as_ref().ok_or_else(|| io::Error::other("the store is closed"))
    }

    /// Closes it.
    pub(super) fn close(mut self) -> io::Result<()> {
        let closed = self.0.take().is_none_or(close);
        if closed { Ok(()) } else { Err(io::Error::other("sled does not close a store")) }
    }
}

impl Held {
    /// Flushes it. After an error it must not be used.
    pub(super) fn flush(&self) -> io::Result<()> {
        let db = self.get()?.clone();
        match bounded(move || db.flush()) {
            Some(Ok(flushed)) => flushed.map(drop).map_err(io::Error::from),
            Some(Err(panic)) => Err(io::Error::other(panic)),
            None => Err(io::Error::other("sled does not end a flush")),
        }
    }
}

impl<D: Send + 'static> Drop for Held<D> {
    fn drop(&mut self) {
        if self.0.take().is_some_and(|db| !close(db)) {
            tracing::error!("sled does not close a store: a thread of it is left behind");
        }
    }
}

/// Opens sled with the settings that durability rests on.
pub(super) fn open_sled(path: &Path) -> Result<sled::Result<Db>, String> {
    let config = sled::Config::new().path(path).flush_every_ms(None).cache_capacity(CACHE_BYTES);
    guarded(|| config.open())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_ends_is_left_to_itself() {
        let (keep, never) = mpsc::channel::<()>();
        assert!(bounded(move || never.recv()).is_none());
        drop(keep);
        assert_eq!(bounded(|| 7), Some(Ok(7)));
        let panicked = bounded(|| -> u8 { panic!("damaged") });
        assert_eq!(panicked, Some(Err("sled panicked: damaged".into())));
    }
}
