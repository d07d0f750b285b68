//! What of a backend's cache outlives the daemon.
//!
//! ```text
//!                 with `cache.dir`                          without
//!  entries        all: <cache.dir>/<name>.cache             those that outlast: <state>/start-up/<name>.cache
//!  large replies  <cache.dir>/<name>.results                <state>/results/<name>, gone with the daemon
//!  written        every 30 s, and at the end                within a second of a change, and at the end
//! ```
//! Entries that outlast ([`CachedRead::outlasts`]) are what programs ask for when they start: few, small, and the same
//! for days. Without them no program could start in an outage that the daemon was restarted in.
//!
//! They are taken back once the store is open: until then nobody knows which writes wait, and what is cached of their
//! keys might be older than they are. So nothing is written before they were taken back, over however many runs.
//!
//! A file is replaced whole ([`cache_file`]): a crash leaves the earlier one. What is lost with it is only cached. It
//! says of what its entries are, the backend's target and user ([`Connector::view`]): after a change of either it is
//! not read. Such a change empties the cache before another connector is in its place. So what is cached while a
//! connector is in place is of that one's view.
//!
//! [`Connector::view`]: crate::connector::Connector::view

use std::{
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
};

use fusebox_state::{
    Target, UnixMillis,
    cache::{CachedRead, Value},
    shelf::{Shelf, ShelfSettings},
    store::cache_file::{self, CacheEntry},
};

use crate::{backend_shared::BackendShared, connector::SharedConnector};

/// Gives a backend's cache its places on the disk.
pub(crate) fn place(shared: &BackendShared, state_dir: &Path) {
    let settings = shared.circuit.settings.load();
    let file = state_dir.join("start-up").join(format!("{}.cache", settings.name));
    shared.start_up_file.set(file).ok();
    let dir = match &settings.cache_dir {
        Some(dir) => dir.join(format!("{}.results", settings.name)),
        None => state_dir.join("results").join(&settings.name),
    };
    shared.cache.load().set_shelf(Arc::new(Shelf::new(ShelfSettings {
        dir,
        lasts: settings.cache_dir.is_some(),
        bytes: settings.cache.disk_bytes,
        floor: settings.disk_floor,
    })));
}

/// Whether something is to be saved that programs need to start, and is not saved with all the rest.
pub(crate) fn is_due(shared: &BackendShared) -> bool {
    shared.circuit.settings.load().cache_dir.is_none()
        && shared.kept_is_loaded.load(Ordering::Acquire)
        && shared.cache.load().outlasting() != shared.start_up_saved.load(Ordering::Relaxed)
}

/// Writes what outlives the daemon. Blocks.
pub(crate) fn save(shared: &BackendShared) {
    if !shared.kept_is_loaded.load(Ordering::Acquire) {
        return;
    }
    let Some((file, is_all)) = file_of(shared) else { return };
    // Two at once would write into one file.
    let _saving = shared.saving.lock();
    // Before the cache: the one that is in use then is of this connector's view, or of that of a later one.
    let connector = shared.connector.load_full();
    let (clock, cache) = (shared.circuit.clock, shared.cache.load());
    // What is saved takes the place of what was.
    cache.take_over();
    let changes = cache.outlasting();
    let entries: Vec<_> = cache
        .entries()
        .into_iter()
        .filter(|(_, read)| is_all || read.outlasts)
        .filter_map(|(lane, read)| {
            // A value in a file is there already.
            let value = read.value.in_memory()?;
            let at = clock.to_unix(read.stored_at);
            let until = read.until.map(|until| clock.to_unix(until));
            Some(CacheEntry { lane, key: read.key, value, at, until, outlasts: read.outlasts })
        })
        .collect();
    if !Arc::ptr_eq(&connector, &shared.connector.load_full()) {
        // They may be of either. The next time all are of one.
        return;
    }
    // If it cannot be written, it is not tried again until something changes.
    shared.start_up_saved.store(changes, Ordering::Relaxed);
    // Of a backend that has no such entries there is no file; one that had some keeps none of them.
    if !is_all && entries.is_empty() && !file.try_exists().unwrap_or(true) {
        return;
    }
    if let Err(error) = cache_file::save(&file, &connector.view(), entries) {
        let backend = &shared.circuit.name;
        tracing::warn!(backend, %error, "the cache's snapshot was not written");
    }
}

/// Takes back what an earlier run left. Blocks.
pub(crate) fn load(shared: &BackendShared) {
    let before = shared.cache.load().outlasting();
    take_back(shared);
    // What came before is not in the file yet.
    let restored = shared.cache.load().outlasting().saturating_sub(before);
    shared.start_up_saved.store(restored, Ordering::Relaxed);
    shared.kept_is_loaded.store(true, Ordering::Release);
}

fn take_back(shared: &BackendShared) {
    let clock = shared.circuit.clock;
    let cache = shared.cache.load_full();
    let restored = |lane, key, value, at, until: Option<UnixMillis>| {
        let (now, unix) = (clock.now(), clock.unix());
        let stored_at = now.minus(unix.since(at));
        let until = until.map(|until| now.plus(until.since(unix)));
        (lane, CachedRead { key, value, stored_at, restored: true, until, outlasts: false })
    };
    if let Some(shelf) = cache.shelf() {
        let entries = shelf.restore(&view(shared));
        cache.restore(entries.into_iter().map(|(label, file)| {
            restored(label.lane, label.key, Value::File(file), label.at, label.until)
        }));
    }
    let Some((file, _)) = file_of(shared) else { return };
    match cache_file::load(&file, &view(shared)) {
        Ok(entries) => cache.restore(entries.into_iter().map(|entry| {
            let CacheEntry { lane, key, value, at, until, outlasts } = entry;
            let (lane, read) = restored(lane, key, Value::Memory(value), at, until);
            (lane, CachedRead { outlasts, ..read })
        })),
        Err(error) => {
            let backend = &shared.circuit.name;
            tracing::warn!(backend, %error, "the cache's snapshot was not read");
        }
    }
}

/// The file of the entries, and whether it is of all of them.
fn file_of(shared: &BackendShared) -> Option<(PathBuf, bool)> {
    let settings = shared.circuit.settings.load();
    match &settings.cache_dir {
        Some(dir) => Some((dir.join(format!("{}.cache", settings.name)), true)),
        None => Some((shared.start_up_file.get()?.clone(), false)),
    }
}

/// What the entries are of.
fn view(shared: &BackendShared) -> Target {
    SharedConnector::clone(&shared.connector.load()).view()
}
