//! The address of a ClickHouse, and how to connect to it.

use std::{fmt, path::PathBuf, str::FromStr, sync::Arc, time::Duration};

use crate::{
    kinds::{former::Former, twins::Twins},
    net::{address::Parts, endpoint::Server, percent::decoded, secret::Secret},
};

/// The longest that connecting may take.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// A backend's settings. `Debug` shows no secret.
#[derive(Clone, Debug)]
pub struct ClickHouseSettings {
    /// The server's address.
    pub url: ClickHouseUrl,
    /// The user; the server's own default if there is none.
    pub username: Option<String>,
    /// The password; `password_file` goes first.
    pub password: Option<Secret>,
    /// Holds the password, on its first line; read again at most once a second.
    pub password_file: Option<PathBuf>,
    /// The database of calls that name none.
    pub database: String,
    /// Authorities to trust, in PEM, in place of the system's.
    pub ca_file: Option<PathBuf>,
    /// The time after which an unanswered call is abandoned.
    pub timeout: Duration,
    /// Whether inserts into one table keep their order, though they commute.
    pub ordered: bool,
    /// This installation's name among all that use the server: queries with it are killed by the fence.
    pub instance: String,
    /// This run of the daemon, different at each start.
    pub run: String,
    /// The names that it had before: queries with them are killed too, once.
    pub former: Arc<Former>,
    /// Receives reports of other daemons with this name.
    pub twins: Arc<Twins>,
    /// The backend's name.
    pub name: String,
    /// The file of the sessions that have state; `None` to keep them in memory alone.
    pub sessions: Option<SessionsPlace>,
}

/// A file of sessions that something was put into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionsPlace {
    /// Its path. The database that the server takes is kept beside it.
    pub file: PathBuf,
    /// The backend was here before, so a file that is missing is lost.
    pub is_expected: bool,
}

impl ClickHouseSettings {
    /// Settings for `url` with a `timeout` of 30 s, as `instance` in its run `run`.
    pub fn new(
        mut url: ClickHouseUrl,
        instance: impl Into<String>,
        run: impl Into<String>,
    ) -> Self {
        Self {
            username: url.username.take(),
            password: url.password.take(),
            password_file: None,
            database: url.database.take().unwrap_or_else(|| "default".to_owned()),
            url,
            ca_file: None,
            timeout: Duration::from_secs(30),
            ordered: false,
            instance: instance.into(),
            run: run.into(),
            former: Arc::default(),
            twins: Arc::default(),
            name: "clickhouse".to_owned(),
            sessions: None,
        }
    }

    /// What connections are made to.
    pub(crate) fn server(&self) -> Server {
        Server {
            address: self.url.to_string(),
            host: self.url.host.clone(),
            port: self.url.port,
            tls: self.url.tls,
            ca_file: self.ca_file.clone(),
            connect_time: CONNECT_MAX.min(self.timeout / 2),
        }
    }
}

/// What a ClickHouse URL says: `http[s]://[user[:password]@]host[:port][/database]`, in which user, password
/// and database may also follow a `?`. `Debug` shows no secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClickHouseUrl {
    /// Whether it is spoken to over TLS.
    pub tls: bool,
    /// Its name or address, without the brackets of an IPv6 address.
    pub host: String,
    /// 8123 by default, 8443 over TLS.
    pub port: u16,
    /// The user, if one is named.
    pub username: Option<String>,
    /// The password, if one is given.
    pub password: Option<Secret>,
    /// The database, if one is named.
    pub database: Option<String>,
}

impl fmt::Display for ClickHouseUrl {
    /// `host:port`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            host if host.contains(':') => write!(f, "[{host}]:{}", self.port),
            host => write!(f, "{host}:{}", self.port),
        }
    }
}

/// A URL that is none of ClickHouse's HTTP interface. Names the part that is wrong, and repeats nothing but a scheme or a
/// known port: any other part may be one of a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClickHouseUrlError {
    /// There is no scheme.
    #[error("must begin with http:// or https://")]
    NoScheme,
    /// The scheme is another's.
    #[error("must begin with http:// or https://, got scheme {0:?}")]
    Scheme(String),
    /// It is the address of the native protocol.
    #[error("must be the address of the HTTP interface (port 8123, 8443 with TLS), got port {0}")]
    Native(u16),
    /// There is no host.
    #[error("must name a host, such as http://127.0.0.1:8123")]
    NoHost,
    /// The host has characters that a host's name has not.
    #[error("must name a host, which has no characters but letters, digits and -._:")]
    Host,
    /// The port is not a port.
    #[error("must have a port from 1 to 65535")]
    Port,
    /// There is more than a database behind the host.
    #[error("must have nothing but a database after the host, such as http://host:8123/logs")]
    Path,
    /// A parameter that is not known.
    #[error("must have no parameters but user, password and database")]
    Parameter,
    /// A `%` without two hexadecimal digits, or what is not UTF-8 behind it; or what an `@` behind a `?` makes unclear.
    #[error("must be percent-encoded UTF-8 (%40 for @ in a password, %3F for ?)")]
    Encoding,
}

impl FromStr for ClickHouseUrl {
    type Err = ClickHouseUrlError;

    fn from_str(url: &str) -> Result<Self, ClickHouseUrlError> {
        let parts = Parts::of(url).ok_or(ClickHouseUrlError::NoScheme)?;
        let tls = match parts.scheme {
            "http" => false,
            "https" => true,
            other => return Err(ClickHouseUrlError::Scheme(other.chars().take(16).collect())),
        };
        let read = Self::of(&parts, tls);
        // What seems to be wrong may be a part of the password: a parameter may have an `@`, too.
        if parts.is_ambiguous() { read.map_err(|_| ClickHouseUrlError::Encoding) } else { read }
    }
}

impl ClickHouseUrl {
    fn of(parts: &Parts<'_>, tls: bool) -> Result<Self, ClickHouseUrlError> {
        let (authority, path) = parts.place.split_once('/').unwrap_or((parts.place, ""));
        let (host, port) = place(authority, tls)?;
        let mut read = Self { tls, host, port, username: None, password: None, database: None };
        if let Some(credentials) = parts.credentials {
            let (user, password) =
                credentials.split_once(':').map_or((credentials, None), |(a, b)| (a, Some(b)));
            read.username = some(user)?;
            read.password = password.map(text).transpose()?.map(Secret::new);
        }
        let path = path.strip_suffix('/').unwrap_or(path);
        if path.contains('/') {
            return Err(ClickHouseUrlError::Path);
        }
        read.database = some(path)?;
        let parameters = parts.query.into_iter().flat_map(|all| all.split('&'));
        for parameter in parameters.filter(|parameter| !parameter.is_empty()) {
            match parameter.split_once('=') {
                Some(("user" | "username", value)) => read.username = some(value)?,
                Some(("password", value)) => read.password = some(value)?.map(Secret::new),
                Some(("database", value)) => read.database = some(value)?,
                _ => return Err(ClickHouseUrlError::Parameter),
            }
        }
        Ok(read)
    }
}

fn place(authority: &str, tls: bool) -> Result<(String, u16), ClickHouseUrlError> {
    let (host, port) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, port)) => (host, port.strip_prefix(':')),
        None => authority.split_once(':').map_or((authority, None), |(a, b)| (a, Some(b))),
    };
    if host.is_empty() {
        return Err(ClickHouseUrlError::NoHost);
    }
    if !host.chars().all(|c| c.is_ascii_alphanumeric() || "-._:".contains(c)) {
        return Err(ClickHouseUrlError::Host);
    }
    let port = port.map_or(Ok(if tls { 8443 } else { 8123 }), |port| match port.parse() {
        Ok(number @ (9000 | 9440)) => Err(ClickHouseUrlError::Native(number)),
        Ok(number) if number > 0 => Ok(number),
        _ => Err(ClickHouseUrlError::Port),
    })?;
    Ok((host.to_owned(), port))
}

fn text(encoded: &str) -> Result<String, ClickHouseUrlError> {
    decoded(encoded).ok_or(ClickHouseUrlError::Encoding)
}

fn some(encoded: &str) -> Result<Option<String>, ClickHouseUrlError> {
    text(encoded).map(|text| Some(text).filter(|text| !text.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> ClickHouseUrl {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn every_form_of_url_is_read() {
        let read = url("http://127.0.0.1");
        assert_eq!((read.to_string().as_str(), read.tls), ("127.0.0.1:8123", false));
        let read = url("https://ada:p%40ss:w%3Ard@ch.example/logs/");
        assert_eq!((read.to_string().as_str(), read.tls), ("ch.example:8443", true));
        assert_eq!(read.username.as_deref(), Some("ada"));
        assert_eq!(read.password, Some(Secret::new("p@ss:w:rd")));
        assert_eq!(read.database.as_deref(), Some("logs"));
        let read = url("http://[::1]:7000/?user=bob&password=x&database=d");
        assert_eq!(read.to_string(), "[::1]:7000");
        assert_eq!((read.username.as_deref(), read.database.as_deref()), (Some("bob"), Some("d")));
        let settings = ClickHouseSettings::new(read, "i", "r");
        assert_eq!((settings.username.as_deref(), settings.database.as_str()), (Some("bob"), "d"));
        assert_eq!(ClickHouseSettings::new(url("http://h"), "i", "r").database, "default");
    }

    #[test]
    fn a_wrong_url_is_told_what_is_right() {
        let error = |text: &str| text.parse::<ClickHouseUrl>().unwrap_err().to_string();
        assert!(error("127.0.0.1:8123").contains("begin with http://"));
        assert!(error("clickhouse://h").contains("got scheme \"clickhouse\""));
        assert!(error("http://h:9000").contains("HTTP interface"));
        assert!(error("http://").contains("name a host"));
        assert!(error("http://a b").contains("letters, digits"));
        assert!(error("http://h:0").contains("1 to 65535"));
        assert!(error("http://h/a/b").contains("nothing but a database"));
        assert!(error("http://a%4@h").contains("percent-encoded"));
        assert!(error("http://ada:p?w@h").contains("%3F for ?"));
        assert!(error("http://h/?pass=x").contains("user, password and database"));
    }

    #[test]
    fn no_error_repeats_any_piece_of_the_credentials() {
        for wrong in [
            "http://app:hunter2?x@ch",
            "http://app:9000?hunter2@ch:8123",
            "http://app:hunter2?password=x@ch",
            "http://app hunter2@ch?x@y",
            "http://app:hunter2",
            "http://app:x@ch/hunter2/y",
            "http://app:x@ch hunter2",
            "http://app:hunter2%4@ch",
            "http://ch/?hunter2=x",
            "redis://app:hunter2@ch",
            "app:hunter2@ch",
            "hunter2@ch",
            "app:hunter2://x@ch",
        ] {
            let error = wrong.parse::<ClickHouseUrl>().unwrap_err();
            let shown = format!("{error} {error:?}");
            for piece in ["hunter2", "app", "9000"] {
                assert!(!shown.contains(piece), "{wrong}: {shown}");
            }
        }
        let read = url("http://ch/?user=a@b&password=p@ss");
        assert_eq!((read.host.as_str(), read.username.as_deref()), ("ch", Some("a@b")));
    }

    #[test]
    fn no_secret_is_shown() {
        let read = url("http://ada:hush@h/?password=hush");
        assert!(!format!("{read:?}").contains("hush"));
        assert!(!format!("{:?}", ClickHouseSettings::new(read, "i", "r")).contains("hush"));
        let error = "http://h/?pass=hush".parse::<ClickHouseUrl>().unwrap_err().to_string();
        assert!(!error.contains("hush"), "{error}");
    }
}
