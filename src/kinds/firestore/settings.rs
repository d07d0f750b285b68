//! The address of a Firestore, and the identity that is used there.

use std::{fmt, path::PathBuf, str::FromStr, time::Duration};

use fusebox_state::Target;

use crate::net::endpoint::Server;

/// The project that an emulator is given if none is named.
pub const LOCAL_PROJECT: &str = "fusebox-local";
/// The database that every project has.
pub const DEFAULT_DATABASE: &str = "(default)";

/// An address: `https://` is Firestore itself, `http://` an emulator, which asks for no credentials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirestoreUrl {
    /// A name or address; without the brackets of an IPv6 address.
    pub host: String,
    /// 443 by default, an emulator's is 8080.
    pub port: u16,
    /// Spoken to over TLS, and with credentials.
    pub tls: bool,
}

impl FirestoreUrl {
    /// The address for people, such as `firestore.googleapis.com:443`.
    pub fn authority(&self) -> String {
        let Self { host, port, .. } = self;
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }
}

impl fmt::Display for FirestoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.tls { "https" } else { "http" }, self.authority())
    }
}

/// Text that is not an address of a Firestore: what it must be, as the end of a sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct FirestoreUrlError(String);

impl FromStr for FirestoreUrl {
    type Err = FirestoreUrlError;

    fn from_str(url: &str) -> Result<Self, FirestoreUrlError> {
        let wrong = |what: &str| Err(FirestoreUrlError(what.to_owned()));
        let (tls, rest) = match url.split_once("://") {
            Some(("https", rest)) => (true, rest),
            Some(("http", rest)) => (false, rest),
            _ => return wrong("must begin with https://, or http:// for an emulator"),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains(['/', '?', '#', '@']) {
            return wrong(
                "must end with the port: project, database and credentials are settings of their own",
            );
        }
        let default = if tls { 443 } else { 8_080 };
        let (host, port) = match rest.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => match port.parse() {
                Ok(port) if port != 0 => (host, port),
                _ => return wrong("must have a port from 1 to 65535"),
            },
            _ => (rest, default),
        };
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        if host.is_empty() || host.contains(char::is_whitespace) {
            return wrong("must name a host");
        }
        Ok(Self { host: host.to_owned(), port, tls })
    }
}

/// A backend's settings.
#[derive(Clone, Debug)]
pub struct FirestoreSettings {
    /// Its address.
    pub url: FirestoreUrl,
    /// The project that the configuration names, which is part of every lane; an emulator has one in any case.
    pub project: Option<String>,
    /// The project of the key in `credentials_file`, if the configuration names none. It is part of no lane, so that the
    /// lanes of a queue are those of releases that did not know it.
    pub key_project: Option<String>,
    /// The database, `(default)` unless named.
    pub database: String,
    /// A service account's key; without it the machine's own identity is asked for. Not for emulators.
    pub credentials_file: Option<PathBuf>,
    /// Authorities to trust, in PEM, in place of the system's.
    pub ca_file: Option<PathBuf>,
    /// The time after which an unanswered call is abandoned; also its deadline at the server.
    pub timeout: Duration,
    /// The longest that a write of an earlier run may have had; no shorter than `timeout` counts.
    pub earlier_timeout: Duration,
    /// Whether an earlier run may have left writes that can still land. Then nothing is written for
    /// `timeout` and 5 s after the start. True but for emulators: nobody tells the connector whether the
    /// earlier run stopped cleanly, or whether there was one.
    pub previous_run: bool,
    /// The backend's name.
    pub name: String,
}

impl FirestoreSettings {
    /// For how long after a start a write of an earlier run may still land, but for its way; `None` if none can.
    pub(super) fn quiet_after_start(&self) -> Option<Duration> {
        self.previous_run.then(|| self.timeout.max(self.earlier_timeout))
    }

    /// The project; `None` if the metadata server of the machine tells it.
    pub(crate) fn known_project(&self) -> Option<&str> {
        self.project.as_deref().or(self.key_project.as_deref())
    }

    /// Settings for `url`, with a timeout of 10 s. An emulator is given a project of its own.
    pub fn new(url: FirestoreUrl) -> Self {
        Self {
            project: (!url.tls).then(|| LOCAL_PROJECT.to_owned()),
            key_project: None,
            database: DEFAULT_DATABASE.to_owned(),
            credentials_file: None,
            ca_file: None,
            timeout: Duration::from_secs(10),
            earlier_timeout: Duration::ZERO,
            previous_run: url.tls,
            name: "firestore".to_owned(),
            url,
        }
    }

    /// What a store belongs to, such as `firestore 127.0.0.1:8080/fusebox-local/(default)`.
    pub fn target(&self) -> Target {
        let project = self.known_project().unwrap_or("(metadata)");
        let namespace = format_args!("{project}/{}", self.database);
        Target::new("firestore", self.url.authority(), namespace)
    }

    /// What connections are made to.
    pub(crate) fn server(&self) -> Server {
        Server {
            address: self.url.authority(),
            host: self.url.host.clone(),
            port: self.url.port,
            tls: self.url.tls,
            ca_file: self.ca_file.clone(),
            connect_time: self.timeout,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_is_quiet_for_the_longest_timeout_that_an_earlier_write_may_have_had() {
        let of = |url: &str| FirestoreSettings::new(url.parse().unwrap());
        let seconds = Duration::from_secs;
        let mut settings = of("https://firestore.googleapis.com");
        assert_eq!(settings.quiet_after_start(), Some(seconds(10)));
        settings.earlier_timeout = seconds(60);
        assert_eq!(settings.quiet_after_start(), Some(seconds(60)));
        settings.timeout = seconds(90);
        assert_eq!(settings.quiet_after_start(), Some(seconds(90)));
        assert_eq!(of("http://127.0.0.1:8080").quiet_after_start(), None);
    }

    #[test]
    fn every_form_of_url_is_read() {
        for (text, host, port, tls) in [
            ("https://firestore.googleapis.com", "firestore.googleapis.com", 443, true),
            ("http://127.0.0.1:9", "127.0.0.1", 9, false),
            ("http://localhost/", "localhost", 8080, false),
            ("http://[::1]:7", "::1", 7, false),
            ("http://[::1]", "::1", 8080, false),
        ] {
            let url: FirestoreUrl = text.parse().unwrap();
            assert_eq!((url.host.as_str(), url.port, url.tls), (host, port, tls), "{text}");
        }
    }

    #[test]
    fn a_wrong_url_is_told_what_is_right() {
        for (text, why) in [
            ("firestore.googleapis.com", "must begin with https://"),
            ("http://h:x", "a port from 1"),
            ("http://h:0", "a port from 1"),
            ("http://", "must name a host"),
            ("https://h/v1/projects", "settings of their own"),
            ("https://a:b@h", "settings of their own"),
        ] {
            let error = text.parse::<FirestoreUrl>().unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
