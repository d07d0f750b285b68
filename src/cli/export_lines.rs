//! The lines that `fusebox queue export` and `repair` write, read again: a JSON object each, a call to one backend.

use std::path::Path;

use serde::Deserialize;

use crate::terminal::failure::Failure;

/// The text of a file, or of standard input for `-`.
pub(super) fn read_lines(file: &Path) -> Result<String, Failure> {
    let read = if file == Path::new("-") {
        std::io::read_to_string(std::io::stdin())
    } else {
        std::fs::read_to_string(file)
    };
    read.map_err(|error| Failure::failed(format!("cannot read {}: {error}", file.display())))
}

/// What a line says of its backend.
#[derive(Deserialize)]
struct Name {
    #[serde(default)]
    backend: String,
}

/// The backend that a line names; nothing if it names none.
pub(super) fn name_of(line: &str) -> String {
    // A line that is not JSON goes to the daemon, which says what is wrong with it.
    serde_json::from_str(line).map_or_else(|_| String::new(), |name: Name| name.backend)
}

/// Whether a line names no backend.
pub(super) fn unnamed(text: &str) -> bool {
    text.lines().any(|line| !line.trim().is_empty() && name_of(line).is_empty())
}
