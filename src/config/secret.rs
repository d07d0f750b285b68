//! Passwords, and addresses that may hold one: kept so that they cannot be printed by accident.

use std::{fmt, os::unix::fs::MetadataExt, path::Path};

/// A password. Its `Debug` shows none of it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(String);

impl Secret {
    /// The secret `text`.
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The secret in clear, for the wire.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }

    /// The content of a file without its last line end. Warns if others may read it.
    pub(crate) fn read(path: &Path, warnings: &mut Vec<String>) -> Result<Self, String> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
        if std::fs::metadata(path).is_ok_and(|file| file.mode() & 0o007 != 0) {
            warnings.push(format!("{} holds a secret and is open to everybody", path.display()));
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

/// `url` with its password, and whatever in its query looks like one, masked.
pub(crate) fn mask_url(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    // A password may hold an unescaped `/`, `?` or `@`: everything up to the last `@` is masked.
    let (user, rest) = match rest.rsplit_once('@') {
        Some((credentials, rest)) => {
            let user = credentials.split_once(':').map(|(user, _)| format!("{user}:"));
            (format!("{}***@", user.unwrap_or_default()), rest)
        }
        None => (String::new(), rest),
    };
    let (place, query) = rest.split_once('?').map_or((rest, None), |(rest, q)| (rest, Some(q)));
    let query = query.map_or_else(String::new, |query| {
        let parts: Vec<String> = query
            .split('&')
            .map(|part| match part.split_once('=') {
                Some((name, _)) if name.contains("pass") || name.contains("token") => {
                    format!("{name}=***")
                }
                _ => part.to_owned(),
            })
            .collect();
        format!("?{}", parts.join("&"))
    });
    format!("{scheme}://{user}{place}{query}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_of_an_address_are_masked() {
        for (url, shown) in [
            ("redis://127.0.0.1:6379", "redis://127.0.0.1:6379"),
            ("redis://ada:s3cret@host:1/2", "redis://ada:***@host:1/2"),
            ("redis://:s3cret@host", "redis://:***@host"),
            ("redis://s3cret@host", "redis://***@host"),
            ("redis://a:b/c@d@host/0", "redis://a:***@host/0"),
            ("redis://a:b?c@d@host/0", "redis://a:***@host/0"),
            ("unix:///run/redis.sock?db=1&password=x", "unix:///run/redis.sock?db=1&password=***"),
            ("nonsense", "nonsense"),
        ] {
            assert_eq!(mask_url(url), shown);
        }
    }

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
