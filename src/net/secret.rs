//! Passwords and tokens, kept so that they cannot be printed by accident.

use std::{fmt, os::unix::fs::MetadataExt, path::Path};

/// Text that no listing, log or error shows. Its `Debug` shows none of it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Keeps `text` out of sight.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for the wire.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The content of a file without its last line end. Warns if others may read it.
    pub(crate) fn read(path: &Path, warnings: &mut Vec<String>) -> Result<Self, String> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
        if std::fs::metadata(path).is_ok_and(|file| file.mode() & 0o007 != 0) {
            warnings
                .push(format!("{} contains a secret, but everybody can read it", path.display()));
        }
        let text = text.strip_suffix('\n').unwrap_or(&text);
        let text = text.strip_suffix('\r').unwrap_or(text);
        if text.is_empty() {
            return Err(format!("{} is empty", path.display()));
        }
        Ok(Self::new(text))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_not_printed() {
        assert_eq!(format!("{:?}", Secret::new("s3cret")), "***");
    }

    #[test]
    fn a_secret_file_loses_its_line_end_and_is_watched() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p");
        std::fs::write(&path, "s3cret\r\n").unwrap();
        let mut warnings = Vec::new();
        assert_eq!(Secret::read(&path, &mut warnings).unwrap().expose(), "s3cret");
        assert_eq!(warnings.len(), 1);
        std::fs::write(&path, "\n").unwrap();
        assert!(Secret::read(&path, &mut warnings).unwrap_err().ends_with("is empty"));
    }
}
