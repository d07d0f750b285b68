//! The database that the server takes for the backend's user if a request names none.
//!
//! The server is asked for it after its first answer, and again whenever it may be another server. What it said is kept
//! in a file, because an insert can only be queued if its database is known, and the daemon may be restarted in an
//! outage.
//!
//! ```text
//!  <digest of server and user> <check>\n<the database>
//! ```
//! The file is replaced whole, on a thread that may block, and not synced. One that is damaged, missing, or of another
//! server or user says nothing: then nothing is known until the server has answered. If the server later says another,
//! what is queued keeps the one that it was planned with.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use super::session_file::replace;
use crate::kinds::clickhouse::settings::ClickHouseSettings;

/// What is known of it.
#[derive(Debug)]
pub(crate) struct UsualDatabase {
    known: ArcSwapOption<String>,
    /// Whoever answers now has said so.
    is_certain: AtomicBool,
    file: Option<PathBuf>,
    /// The digest of server and user.
    of: u128,
    /// Held by whoever writes the file.
    keeping: Mutex<()>,
}

impl UsualDatabase {
    /// What the server of `settings` said in an earlier run.
    pub(crate) fn of(settings: &ClickHouseSettings) -> Self {
        let user = settings.username.as_deref().unwrap_or_default();
        let of = xxh3_128(format!("{}\0{user}", settings.url).as_bytes());
        let file = settings.sessions.as_ref().map(|place| place.file.with_extension("database"));
        let kept = file.as_ref().and_then(|file| fusebox_state::file::read(file).ok());
        let kept = kept.and_then(|kept| String::from_utf8(kept).ok());
        let database = kept.as_deref().and_then(|kept| kept.split_once('\n'));
        let database = database.filter(|(_, name)| kept.as_deref() == Some(&*text(of, name)));
        let known = ArcSwapOption::new(database.map(|(_, name)| Arc::new(name.to_owned())));
        Self { known, is_certain: AtomicBool::new(false), file, of, keeping: Mutex::new(()) }
    }

    /// Its name; empty if there is none, `None` if that is not known.
    pub(crate) fn known(&self) -> Option<Arc<String>> {
        self.known.load_full()
    }

    /// Whether whoever answers now has said which it is.
    pub(crate) fn is_certain(&self) -> bool {
        self.is_certain.load(Ordering::Acquire)
    }

    /// Whoever answers next may say another.
    pub(crate) fn ask_anew(&self) {
        self.is_certain.store(false, Ordering::Release);
    }

    /// The server says which it is. Returns whether that is to be [kept](Self::keep).
    pub(crate) fn told(&self, database: String) -> bool {
        self.is_certain.store(true, Ordering::Release);
        if self.known.load().as_ref().is_some_and(|known| **known == database) {
            return false;
        }
        self.known.store(Some(Arc::new(database)));
        true
    }

    /// Keeps for the next start what is known. Waits for the disk.
    pub(crate) fn keep(&self) {
        let _keeping = self.keeping.lock();
        let (Some(file), Some(database)) = (&self.file, self.known()) else { return };
        if let Err(error) = replace(file, text(self.of, &database).as_bytes()) {
            let file = file.display();
            tracing::warn!(%file, %error, "the server's default database could not be saved for the next start");
        }
    }
}

fn text(of: u128, database: &str) -> String {
    let check = xxh3_64(format!("{of:032x}{database}").as_bytes());
    format!("{of:032x} {check:016x}\n{database}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::clickhouse::settings::SessionsPlace;

    #[test]
    fn what_the_server_said_is_known_to_the_next_run_of_the_same_server_and_user() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("sessions/one.dirty");
        let of = |url: &str| {
            let settings = ClickHouseSettings::new(url.parse().unwrap(), "i", "r");
            let sessions = Some(SessionsPlace { file: file.clone(), is_expected: false });
            UsualDatabase::of(&ClickHouseSettings { sessions, ..settings })
        };
        let known = |url| of(url).known().map(|name| String::clone(&name));
        assert_eq!(known("http://ada@h"), None);
        let server = of("http://ada@h");
        assert!(!server.is_certain());
        assert!(server.told("first".to_owned()) && !server.told("first".to_owned()));
        assert!(server.is_certain() && !of("http://ada@h").is_certain(), "each run asks");
        server.ask_anew();
        assert!(!server.is_certain() && server.known().is_some());
        for name in ["logs", "", "two\nlines"] {
            let server = of("http://ada@h");
            assert!(server.told(name.to_owned()));
            server.keep();
            assert_eq!(known("http://ada:other@h/d").as_deref(), Some(name));
            assert_eq!((known("http://bob@h"), known("http://ada@h:1")), (None, None));
        }
        let kept = file.with_extension("database");
        let whole = std::fs::read(&kept).unwrap();
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            std::fs::write(&kept, &damaged).unwrap();
            assert_eq!(known("http://ada@h"), None, "byte {at}");
        }
    }
}
