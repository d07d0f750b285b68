//! The file of the changes that outlast a restart.
//!
//! Each change in it is read by itself: one that cannot be read takes no other with it. What is in the way of a file that is
//! to be written, or has more in it than was read, is kept under another name before another takes its place.

use std::{io::ErrorKind, path::Path, time::SystemTime};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{config::Change, state_dir::replace};

/// Its name in the state directory.
pub(crate) const NAME: &str = "settings.json";

/// The form that is written, and read.
const VERSION: u32 = 1;

#[derive(Deserialize, Serialize)]
struct Content<C> {
    version: u32,
    changes: Vec<C>,
}

/// What the file holds.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Found {
    /// The changes that can be read.
    pub(crate) changes: Vec<Change>,
    /// Those that cannot, each by its setting, and why.
    pub(crate) odd: Vec<String>,
}

/// Reads the changes in `dir`.
///
/// # Errors
/// Why there are none though there is a file.
pub(crate) fn read(dir: &Path) -> Result<Found, String> {
    let path = dir.join(NAME);
    let shown = path.display();
    let bytes = match fusebox_state::file::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Found::default()),
        Err(error) => return Err(format!("{shown} cannot be read: {error}")),
    };
    let content: Content<Value> =
        serde_json::from_slice(&bytes).map_err(|error| format!("{shown} is damaged: {error}"))?;
    if content.version != VERSION {
        return Err(format!(
            "{shown} has the format {}, but this release reads only {VERSION}",
            content.version
        ));
    }
    let mut found = Found::default();
    for (at, value) in content.changes.into_iter().enumerate() {
        match Change::deserialize(&value) {
            Ok(change) => found.changes.push(Change { persisted: true, ..change }),
            Err(error) => {
                let named = value.get("path").and_then(Value::as_str).map(str::to_owned);
                let named = named.unwrap_or_else(|| format!("change {}", at + 1));
                found.odd.push(format!("{named} in {shown} cannot be read: {error}"));
            }
        }
    }
    Ok(found)
}

/// Writes those of `changes` that are persisted in `dir`, in the place of what was there.
///
/// # Errors
/// What the file system says; what was there stays, unless [`crate::state_dir::is_in_place`].
pub(crate) fn write(dir: &Path, changes: &[Change]) -> std::io::Result<()> {
    let persisted = changes.iter().filter(|change| change.persisted);
    let changes: Vec<Change> = persisted.cloned().collect();
    if !read(dir).is_ok_and(|found| found.odd.is_empty()) {
        // Somebody else's, or damaged: it is not ours to overwrite.
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let aside = format!("{NAME}.damaged-{}", now.as_millis());
        let aside = fusebox_state::file::free_path(dir, &aside);
        // Until the new file takes its place it stays in its place as well: some of it may be good.
        let from = dir.join(NAME);
        std::fs::hard_link(&from, &aside).or_else(|_| std::fs::rename(&from, &aside))?;
        tracing::warn!(file = %aside.display(), "the unusable file of the run-time settings was set aside");
    }
    let content = Content { version: VERSION, changes };
    let mut text = serde_json::to_vec_pretty(&content).map_err(std::io::Error::other)?;
    text.push(b'\n');
    replace(dir, NAME, &text)
}
