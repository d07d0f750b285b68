//! The file of the changes that outlast a restart.

use std::{io::ErrorKind, path::Path, time::SystemTime};

use serde::{Deserialize, Serialize};

use crate::{config::Change, state_dir::replace};

/// Its name in the state directory.
pub(crate) const NAME: &str = "settings.json";

/// The form that is written, and read.
const VERSION: u32 = 1;

#[derive(Deserialize, Serialize)]
struct Content {
    version: u32,
    changes: Vec<Change>,
}

/// Reads the changes in `dir`.
///
/// # Errors
/// Why there are none though there is a file.
pub(crate) fn read(dir: &Path) -> Result<Vec<Change>, String> {
    let path = dir.join(NAME);
    let shown = path.display();
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(format!("{shown} cannot be read: {error}")),
    };
    let content: Content = serde_json::from_slice(&bytes)
        .map_err(|error| format!("{shown} is not what was written there: {error}"))?;
    if content.version != VERSION {
        return Err(format!(
            "{shown} has the form {}, and this release reads {VERSION}",
            content.version
        ));
    }
    let changes = content.changes.into_iter();
    Ok(changes.map(|change| Change { persisted: true, ..change }).collect())
}

/// Writes those of `changes` that are persisted in `dir`, in the place of what was there.
///
/// # Errors
/// What the file system says; what was there stays.
pub(crate) fn write(dir: &Path, changes: &[Change]) -> std::io::Result<()> {
    let persisted = changes.iter().filter(|change| change.persisted);
    let changes = persisted.cloned().collect();
    if read(dir).is_err() {
        // Somebody else's, or damaged: it is not ours to overwrite.
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let aside = format!("{NAME}.damaged-{}", now.as_millis());
        std::fs::rename(dir.join(NAME), dir.join(&aside))?;
        tracing::warn!(
            file = aside,
            "what was in the place of the settings of run time was set aside"
        );
    }
    let content = Content { version: VERSION, changes };
    let mut text = serde_json::to_vec_pretty(&content).map_err(std::io::Error::other)?;
    text.push(b'\n');
    replace(dir, NAME, &text)
}
