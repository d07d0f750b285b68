//! The state directory: private to the daemon, locked by it, and the place of its name and its origin.
//!
//! | name | what |
//! | --- | --- |
//! | `lock` | locked for as long as a daemon has the directory |
//! | `instance` | the daemon's name, by which its connections are found and killed |
//! | `origin` | the place at which the directory was made, and which names, stores and timeouts it has had ([`origin`]) |
//! | `settings.json` | settings that were changed at run time and outlast a restart ([`crate::changes`]) |
//! | `settings-known.json` | the settings that the latest release knows ([`crate::config::later`]) |
//! | `backends/` | the stores |
//! | `results/` | large replies that are cached |
//! | `sessions/` | which sessions of clients of ClickHouse something was put into, and which database it takes |
//! | `start-up/` | what programs ask for when they start |
//! | `events-…` | what happened |
//! | `instance.damaged-…`, `origin.damaged-…` | files that were none of these, set aside; nothing deletes them |
//!
//! **A name that cannot be read is lost**: the daemon takes a new one, and cannot find the connections that its
//! last run left under the old one. A write that run had given up on may then land after a newer one.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{DirBuilder, File, OpenOptions, Permissions, TryLockError},
    io::{ErrorKind, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, bail};
use fusebox_state::store::{identity, journal};
use parking_lot::Mutex;

mod origin;
mod recognition;
pub(crate) mod stores;

use origin::{Doubt, Origin, Place, hex};
pub(crate) use origin::{is_in_place, replace};

/// The lock's file. It stays when the daemon ends; what counts is the lock on it.
const LOCK: &str = "lock";
/// The file of the daemon's name.
const INSTANCE: &str = "instance";

/// All that a daemon keeps here.
const OURS: &[&str] = &[
    LOCK,
    INSTANCE,
    origin::FILE,
    crate::changes::file::NAME,
    crate::config::later::NAME,
    "backends",
    "results",
    "sessions",
    "start-up",
    journal::NEWER,
    journal::OLDER,
];

/// The directory, locked for as long as this lives.
pub(crate) struct StateDir {
    path: PathBuf,
    kept: Mutex<Kept>,
    _lock: File,
}

/// What is known of the directory. It is held while it is written, so that what is written last is what is known.
struct Kept {
    /// The daemon's name on its connections, kept over restarts.
    instance: String,
    origin: Origin,
    /// The longest timeout that each backend has had in this run, in milliseconds.
    timeouts: BTreeMap<String, u64>,
    /// The file says what is known.
    is_written: bool,
}

impl StateDir {
    /// Makes the directory if it is missing, keeps others out, locks it, and reads or makes the name.
    ///
    /// # Errors
    /// Another daemon holds the lock, or the directory cannot be used.
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .with_context(|| format!("cannot make the state directory {shown}"))?;
        let lock = lock(path)?;
        keep_others_out(path);
        let instance =
            instance(path).with_context(|| format!("cannot keep the daemon's name in {shown}"))?;
        let (origin, timeouts) = (Origin::default(), BTreeMap::new());
        let kept = Kept { instance, origin, timeouts, is_written: true };
        let dir = Self { path: path.to_owned(), kept: Mutex::new(kept), _lock: lock };
        dir.find_origin();
        Ok(dir)
    }

    /// The daemon's name on its connections, kept over restarts.
    pub(crate) fn instance(&self) -> String {
        self.kept.lock().instance.clone()
    }

    /// Its path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the origin of the directory. A copy, and what may be one, takes a new name, and its replay is paused.
    fn find_origin(&self) {
        let now = Place::of(&self.path);
        let (origin, is_kept, doubt) = match origin::read(&self.path) {
            origin::Read::Found { origin, is_sealed } => {
                let why = origin.place.differs(&now);
                let why = why.map(|why| format!("this state directory is a copy ({why})"));
                (origin, is_sealed, why)
            }
            origin::Read::Nothing => {
                (Origin { place: now.clone(), ..Origin::default() }, false, None)
            }
            origin::Read::Garbage(damage) => {
                set_aside(&self.path, origin::FILE, &damage);
                let why = format!(
                    "it cannot be told whether this state directory is a copy (its file `origin` is damaged: {damage})"
                );
                (Origin { damage: Some(damage), ..Origin::default() }, false, Some(why))
            }
        };
        let mut kept = self.kept.lock();
        let later_name = origin.name_after(&kept.instance);
        let is_behind = later_name.is_some();
        kept.origin = origin;
        if let Some(name) = later_name {
            kept.instance = name;
        }
        if let Some(why) = doubt {
            kept.origin.place = now;
            // Stores outside the directory are the original's, also once an operator has accepted the copy.
            for elsewhere in kept.origin.stores.values_mut() {
                *elsewhere = None;
            }
            kept.origin.left.clear();
            kept.origin.doubted.clear();
            self.rename(&mut kept, why);
            return;
        }
        if !is_kept {
            self.keep(&mut kept);
        }
        if is_behind {
            self.keep_name(&kept);
        }
    }

    /// Gives the directory a new name, and pauses replay. What has the name that it had until now is still to be killed.
    fn rename(&self, kept: &mut Kept, why: String) {
        let new = new_name();
        let former = std::mem::replace(&mut kept.instance, new.clone());
        kept.origin.former.insert(former, BTreeSet::new());
        kept.origin.renamed = Some(new);
        kept.origin.paused = Some(why);
        // The file of the name alone would say nothing of the former one.
        if self.keep(kept) {
            self.keep_name(kept);
        }
    }

    /// Writes the origin. If that fails, what is in memory holds for this run, and the next change writes it. Returns
    /// whether it was written.
    fn keep(&self, kept: &mut Kept) -> bool {
        let written = origin::write(&self.path, &kept.origin);
        if let Err(error) = &written {
            tracing::error!(%error, path = %self.path.display(), "the origin file could not be written");
        }
        kept.is_written = written.is_ok();
        kept.is_written
    }

    /// Writes the name into its own file, which the origin has already.
    fn keep_name(&self, kept: &Kept) {
        if let Err(error) = write_name(&self.path, &kept.instance) {
            tracing::error!(%error, "the new instance name could not be saved in its own file: the next start tries again");
        }
    }

    /// Changes what is known, and writes the origin if that has changed.
    fn change<T>(&self, change: impl FnOnce(&mut Kept) -> T) -> T {
        let mut kept = self.kept.lock();
        let before = kept.origin.clone();
        let answer = change(&mut kept);
        if kept.origin != before || !kept.is_written {
            self.keep(&mut kept);
        }
        answer
    }

    /// Takes what an operator has decided, once it is written down. If it cannot be, the file is as it was, or the error
    /// says that it may not be.
    fn accept<T>(&self, decide: impl FnOnce(&mut Origin) -> T) -> std::io::Result<T> {
        let mut kept = self.kept.lock();
        let mut accepted = kept.origin.clone();
        let answer = decide(&mut accepted);
        if accepted == kept.origin && kept.is_written {
            return Ok(answer);
        }
        if let Err(error) = origin::write(&self.path, &accepted) {
            if is_in_place(&error)
                && let Err(again) = origin::write(&self.path, &kept.origin)
            {
                kept.is_written = false;
                let more = "and it could not be undone, so it may be in effect after a restart";
                return Err(std::io::Error::other(format!("{error}; {more}: {again}")));
            }
            return Err(error);
        }
        (kept.origin, kept.is_written) = (accepted, true);
        Ok(answer)
    }

    /// The alert while replay is paused because the directory is a copy, or has one.
    pub(crate) fn copied(&self) -> Option<String> {
        let why = self.doubts(&|_| true)?;
        Some(format!(
            "{why}: replay is paused, because another daemon may have the same calls, or they may have been applied \
             already. If no other daemon has them or will replay them, and newer writes may be overwritten, run \
             `fusebox backend accept-clone`"
        ))
    }

    /// Why the calls of these backends may be another daemon's, or have been applied already.
    pub(crate) fn doubts(&self, is_of: &dyn Fn(&str) -> bool) -> Option<String> {
        let Origin { paused, doubted, .. } = &self.kept.lock().origin;
        let doubted = doubted.iter().filter(|(name, _)| is_of(name)).map(|(_, doubt)| &doubt.why);
        let all: Vec<&str> = paused.iter().chain(doubted).map(String::as_str).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }

    /// An operator says that these backends may replay. Returns whether they were paused.
    ///
    /// # Errors
    /// It cannot be written down, and is as it was.
    pub(crate) fn accept_clone(&self, is_of: &dyn Fn(&str) -> bool) -> std::io::Result<bool> {
        let mut doubted = self.kept.lock().origin.doubted.clone();
        doubted.retain(|name, _| is_of(name));
        let mut names = BTreeMap::new();
        for (name, Doubt { dir, .. }) in &doubted {
            match identity::claim(dir).and_then(|()| identity::name_for(dir)) {
                Ok(drawn) => drop(names.insert(name.clone(), hex(drawn))),
                // That must not keep all others back.
                Err(error) => {
                    tracing::warn!(backend = name, %error, "the store stays a copy: the next start pauses replay again");
                }
            }
        }
        self.accept(|origin| {
            origin.names.extend(names);
            origin.doubted.retain(|name, _| !doubted.contains_key(name));
            origin.place = Place::of(&self.path);
            origin.paused.take().is_some() || !doubted.is_empty()
        })
    }

    /// Another daemon has the name `used`, which our connections have, so it is left to that one: returns the name in
    /// its place. One that was taken before, and is not in use yet, stays. Else it is a new one, and replay is paused.
    pub(crate) fn take_new_name(&self, used: &str) -> String {
        let why = "another daemon has the same instance name (its connections come back after they were killed), so \
                   one of the two has a copy of the other's state directory";
        let mut kept = self.kept.lock();
        if kept.instance == used {
            self.rename(&mut kept, why.to_owned());
        }
        kept.instance.clone()
    }

    /// The names that the directory had before, each with the backends at which nothing has it any more.
    pub(crate) fn former(&self) -> BTreeMap<String, BTreeSet<String>> {
        self.kept.lock().origin.former.clone()
    }

    /// Nothing has these former names any more at `backend`.
    pub(crate) fn former_is_gone(&self, backend: &str, names: &[String]) {
        self.change(|kept| {
            for name in names {
                if let Some(gone) = kept.origin.former.get_mut(name) {
                    gone.insert(backend.to_owned());
                }
            }
        });
    }

    /// Notes that attempts have these timeouts from now on, before the first is made. Returns the longest of each
    /// backend that may be on the wire still: a run that was killed leaves attempts behind, and the next may have a
    /// shorter timeout.
    pub(crate) fn begin_with_timeouts(
        &self,
        backends: impl Iterator<Item = (String, Duration)>,
    ) -> BTreeMap<String, Duration> {
        let backends: Vec<_> = backends.collect();
        self.change(|Kept { origin, timeouts: of_this_run, .. }| {
            raise(of_this_run, &backends);
            raise(&mut origin.timeouts, &backends);
            let longest = origin.timeouts.iter();
            longest.map(|(name, millis)| (name.clone(), Duration::from_millis(*millis))).collect()
        })
    }

    /// The same for timeouts that change in this run.
    ///
    /// # Errors
    /// It cannot be written down: such attempts must not be made.
    pub(crate) fn change_timeouts(
        &self,
        backends: impl Iterator<Item = (String, Duration)>,
    ) -> std::io::Result<()> {
        let backends: Vec<_> = backends.collect();
        // First, so that who forgets earlier ones meanwhile does not forget these. If they are refused, that is too long.
        raise(&mut self.kept.lock().timeouts, &backends);
        self.accept(|origin| raise(&mut origin.timeouts, &backends))
    }

    /// What earlier runs have left on the wire is over: from here on the timeouts of this run alone count.
    pub(crate) fn forget_earlier_timeouts(&self) {
        self.change(|kept| kept.origin.timeouts.clone_from(&kept.timeouts));
    }

    /// Remembers that these backends have a store.
    pub(crate) fn remember_stores(
        &self,
        backends: impl Iterator<Item = (String, Option<PathBuf>)>,
    ) {
        self.change(|kept| kept.origin.stores.extend(backends));
    }

    fn store_dir(&self, name: &str, elsewhere: Option<&Path>) -> PathBuf {
        elsewhere.map_or_else(|| self.path.join("backends").join(name), Path::to_owned)
    }

    /// The alert for backends whose store was gone, until an operator accepts it.
    pub(crate) fn lost(&self) -> BTreeMap<String, String> {
        let kept = self.kept.lock();
        let told = |(name, what): (&String, &String)| {
            let order = format!("`fusebox backend accept-loss {name}`");
            (name.clone(), format!("{what}; run {order} to end this alert"))
        };
        kept.origin.lost.iter().map(told).collect()
    }

    /// An operator knows that the store of `name` is gone. Returns whether there was anything to know.
    ///
    /// # Errors
    /// It cannot be written down, and is as it was.
    pub(crate) fn accept_loss(&self, name: &str) -> std::io::Result<bool> {
        self.accept(|origin| origin.lost.remove(name).is_some())
    }
}

/// Raises the longest timeouts, in milliseconds, to these at least.
fn raise(longest: &mut BTreeMap<String, u64>, backends: &[(String, Duration)]) {
    for (name, timeout) in backends {
        let millis = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        let longest = longest.entry(name.clone()).or_default();
        *longest = millis.max(*longest);
    }
}

fn lock(dir: &Path) -> anyhow::Result<File> {
    let path = dir.join(LOCK);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            drop(file.take(32).read_to_string(&mut holder));
            let holder = holder.trim();
            let who =
                if holder.is_empty() { String::new() } else { format!(" (process {holder})") };
            bail!("another fusebox daemon{who} runs on the state directory {}", dir.display());
        }
        Err(TryLockError::Error(error)) => {
            return Err(error).with_context(|| format!("cannot lock {}", path.display()));
        }
    }
    // For people who look; nothing depends on it.
    let written = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
    if let Err(error) = written {
        tracing::debug!(%error, "cannot write the process's number into the lock");
    }
    Ok(file)
}

/// Takes group and others their rights on a directory that holds nothing but state. A directory with
/// other things in it is somebody's: there a warning is all.
fn keep_others_out(dir: &Path) {
    if !std::fs::metadata(dir).is_ok_and(|dir| dir.mode() & 0o077 != 0) {
        return;
    }
    let is_ours = |name: &str| {
        let begins = ["instance.", "origin.", "settings.json.", crate::selftest::FOLDER];
        OURS.contains(&name) || begins.iter().any(|begin| name.starts_with(begin))
    };
    let only_ours = std::fs::read_dir(dir).is_ok_and(|mut entries| {
        entries.all(|entry| entry.is_ok_and(|e| e.file_name().to_str().is_some_and(is_ours)))
    });
    let done = only_ours && std::fs::set_permissions(dir, Permissions::from_mode(0o700)).is_ok();
    if !done {
        tracing::warn!(
            path = %dir.display(),
            "other users can read the state directory, which contains what callers wrote; set its mode to 0700"
        );
    }
}

/// The daemon's name. Anything else in its place is set aside, whatever it is: a name is less than a
/// daemon that does not start.
fn instance(dir: &Path) -> anyhow::Result<String> {
    let why = match fusebox_state::file::read(&dir.join(INSTANCE)) {
        Ok(bytes) => {
            let text = std::str::from_utf8(&bytes).unwrap_or_default().trim();
            if ulid::Ulid::from_string(text).is_ok() {
                return Ok(text.to_owned());
            }
            "it contains no name".to_owned()
        }
        Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
        Err(error) => error.to_string(),
    };
    if !why.is_empty() {
        set_aside(dir, INSTANCE, &why);
    }
    let name = new_name();
    write_name(dir, &name)?;
    Ok(name)
}

fn write_name(dir: &Path, name: &str) -> std::io::Result<()> {
    origin::replace(dir, INSTANCE, format!("{name}\n").as_bytes())
}

/// Keeps what is in the place of the file `name`, and is not such a file, under another name. It stays in its place, too,
/// until a new file replaces it: after a crash in between it must be found again. Only a folder has to be moved.
fn set_aside(dir: &Path, name: &str, why: &str) {
    let from = dir.join(name);
    let to = fusebox_state::file::free_path(dir, &format!("{name}.damaged-{}", unix_millis()));
    match std::fs::hard_link(&from, &to).or_else(|_| std::fs::rename(&from, &to)) {
        Ok(()) => tracing::error!(
            file = name,
            why,
            kept = %to.display(),
            "a file of the state directory is damaged: it was set aside, and replaced by a new one"
        ),
        Err(error) => {
            tracing::error!(file = name, why, %error, "a damaged file cannot be set aside");
        }
    }
}

fn unix_millis() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0))
}

/// A name that no other daemon, and no other run, has.
pub(crate) fn new_name() -> String {
    ulid::Ulid::from_parts(unix_millis(), fastrand::u128(..)).to_string()
}

#[cfg(test)]
pub(crate) mod tests;
