//! The address of a Redis, and how to connect to it.

use std::{fmt, path::PathBuf, str::FromStr, sync::Arc, time::Duration};

pub use crate::net::secret::Secret;
use crate::{
    kinds::{former::Former, twins::Twins},
    net::{address::Parts, percent::decoded},
};

/// The socket on which a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A host, by name or address, and its port.
    Tcp {
        /// Without the brackets of an IPv6 address.
        host: String,
        /// 6379 by default.
        port: u16,
    },
    /// The path of a Unix socket.
    Unix(PathBuf),
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// How a TLS server's certificate is checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsSettings {
    /// Authorities to trust, in PEM, in place of the system's.
    pub ca_file: Option<PathBuf>,
}

/// A backend's settings. `Debug` shows no secret.
#[derive(Clone, Debug)]
pub struct RedisSettings {
    /// The server's address.
    pub endpoint: Endpoint,
    /// The user of an ACL; `default` if there is only a password.
    pub username: Option<String>,
    /// The password; `password_file` goes first.
    pub password: Option<Secret>,
    /// Holds the password, on its first line; read again at every connect.
    pub password_file: Option<PathBuf>,
    /// The database's number.
    pub database: u32,
    /// Present if the server speaks TLS.
    pub tls: Option<TlsSettings>,
    /// The time after which an unanswered call is abandoned; bounds connecting too.
    pub timeout: Duration,
    /// Whether a read that misses in an outage is an error, because Redis is the store here.
    pub on_miss_error: bool,
    /// Whether a script locks every lane rather than its declared keys.
    pub scripts_are_barriers: bool,
    /// This installation's name among all that use the server: connections with it are killed by the fence.
    pub instance: String,
    /// This run of the daemon, different at each start.
    pub run: String,
    /// The names that it had before: connections with them are killed too, once.
    pub former: Arc<Former>,
    /// Receives reports of other daemons with this name.
    pub twins: Arc<Twins>,
    /// The backend's name.
    pub name: String,
}

impl RedisSettings {
    /// Whether they are of the same server, and go there as the same user.
    pub(crate) fn is_of_one_account_with(&self, other: &Self) -> bool {
        self.endpoint.to_string() == other.endpoint.to_string()
            && self.username == other.username
            && self.password == other.password
            && self.password_file == other.password_file
            && self.tls == other.tls
    }

    /// Settings for `url` with a `timeout` of 5 s, as `instance` in its run `run`.
    pub fn new(url: RedisUrl, instance: impl Into<String>, run: impl Into<String>) -> Self {
        let RedisUrl { endpoint, tls, username, password, database } = url;
        Self {
            endpoint,
            username,
            password,
            password_file: None,
            database,
            tls: tls.then(TlsSettings::default),
            timeout: Duration::from_secs(5),
            on_miss_error: false,
            scripts_are_barriers: false,
            instance: instance.into(),
            run: run.into(),
            former: Arc::default(),
            twins: Arc::default(),
            name: "redis".to_owned(),
        }
    }
}

/// What a Redis URL says: `redis://[user[:password]@]host[:port][/database]`, `rediss://` for TLS,
/// `unix:///path[?db=N]` or `redis+unix://` for a Unix socket. `Debug` shows no secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedisUrl {
    /// The server's address.
    pub endpoint: Endpoint,
    /// Whether it is spoken to over TLS.
    pub tls: bool,
    /// The user, if one is named.
    pub username: Option<String>,
    /// The password, if one is given.
    pub password: Option<Secret>,
    /// The database's number, 0 if none is given.
    pub database: u32,
}

/// A URL that is none of Redis's. Names the part that is wrong, and repeats nothing but a scheme: any other part may be
/// one of a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RedisUrlError {
    /// There is no scheme.
    #[error("url must begin with redis://, rediss://, unix:// or redis+unix://")]
    NoScheme,
    /// The scheme is another's.
    #[error("url must begin with redis://, rediss://, unix:// or redis+unix://, got scheme {0:?}")]
    Scheme(String),
    /// There is no host.
    #[error("url must name a host, such as redis://127.0.0.1:6379")]
    NoHost,
    /// The port is not a port.
    #[error("port must be a number from 1 to 65535")]
    Port,
    /// The database is not a number.
    #[error("database must be a number such as 0")]
    Database,
    /// The path of the socket does not begin with a slash.
    #[error("path of a Unix socket must be absolute, such as unix:///run/redis/redis.sock")]
    Path,
    /// A parameter that is not known.
    #[error("parameter must be db=N")]
    Parameter,
    /// A `%` without two hexadecimal digits, or what is not UTF-8 behind it; or an `@` behind a `?`.
    #[error("user and password must be percent-encoded UTF-8 (%40 for @, %3F for ?)")]
    Encoding,
}

impl FromStr for RedisUrl {
    type Err = RedisUrlError;

    fn from_str(url: &str) -> Result<Self, RedisUrlError> {
        let parts = Parts::of(url).ok_or(RedisUrlError::NoScheme)?;
        let Parts { scheme, credentials, place, query } = parts;
        let is_unix = match scheme {
            "redis" | "rediss" => false,
            "unix" | "redis+unix" => true,
            other => return Err(RedisUrlError::Scheme(other.chars().take(16).collect())),
        };
        // No parameter has an `@`, so it is one of a password.
        if parts.is_ambiguous() {
            return Err(RedisUrlError::Encoding);
        }
        let mut read = if is_unix { unix(place)? } else { tcp(place, scheme == "rediss")? };
        if let Some(credentials) = credentials {
            let (user, password) =
                credentials.split_once(':').map_or((credentials, None), |(a, b)| (a, Some(b)));
            read.username = Some(percent(user)?).filter(|user| !user.is_empty());
            read.password = password.map(percent).transpose()?.map(Secret::new);
        }
        for parameter in query.into_iter().flat_map(|all| all.split('&')) {
            let Some(("db", number)) = parameter.split_once('=') else {
                return Err(RedisUrlError::Parameter);
            };
            read.database = database(number)?;
        }
        Ok(read)
    }
}

fn tcp(place: &str, tls: bool) -> Result<RedisUrl, RedisUrlError> {
    let (authority, path) = place.split_once('/').unwrap_or((place, ""));
    let (host, port) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, port)) => (host, port.strip_prefix(':')),
        None => authority.split_once(':').map_or((authority, None), |(a, b)| (a, Some(b))),
    };
    if host.is_empty() {
        return Err(RedisUrlError::NoHost);
    }
    let port = port.map_or(Ok(6379), |port| match port.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err(RedisUrlError::Port),
    })?;
    let database = if path.is_empty() { 0 } else { database(path)? };
    let endpoint = Endpoint::Tcp { host: host.to_owned(), port };
    Ok(RedisUrl { endpoint, tls, username: None, password: None, database })
}

fn unix(path: &str) -> Result<RedisUrl, RedisUrlError> {
    if !path.starts_with('/') {
        return Err(RedisUrlError::Path);
    }
    let endpoint = Endpoint::Unix(percent(path)?.into());
    Ok(RedisUrl { endpoint, tls: false, username: None, password: None, database: 0 })
}

fn database(text: &str) -> Result<u32, RedisUrlError> {
    text.parse().map_err(|_| RedisUrlError::Database)
}

fn percent(text: &str) -> Result<String, RedisUrlError> {
    decoded(text).ok_or(RedisUrlError::Encoding)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> RedisUrl {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn another_server_or_user_is_another_account() {
        let of = |text: &str| RedisSettings::new(url(text), "i", "r");
        let own = of("redis://u:p@host:1/0");
        assert!(
            of("redis://u:p@host:1/3").is_of_one_account_with(&own),
            "a database is no account"
        );
        for other in [
            "redis://u:p@host:2/3",
            "redis://v:p@host:1/3",
            "redis://u:q@host:1/3",
            "rediss://u:p@host:1/3",
        ] {
            assert!(!of(other).is_of_one_account_with(&own), "{other}");
        }
    }

    #[test]
    fn every_form_of_url_is_read() {
        let read = url("redis://127.0.0.1");
        assert_eq!(read.endpoint, Endpoint::Tcp { host: "127.0.0.1".into(), port: 6379 });
        assert_eq!((read.database, read.tls), (0, false));
        let read = url("rediss://ada:p%40ss:w%3Ard@cache.example:7000/3");
        assert_eq!(read.endpoint.to_string(), "cache.example:7000");
        assert_eq!((read.username.as_deref(), read.database, read.tls), (Some("ada"), 3, true));
        assert_eq!(read.password, Some(Secret::new("p@ss:w:rd")));
        let read = url("redis://:secret@[::1]:7000/");
        assert_eq!((read.endpoint.to_string().as_str(), read.username), ("[::1]:7000", None));
        assert_eq!(url("redis://h/0?db=4").database, 4);
        let read = url("unix:///run/redis.sock?db=2");
        assert_eq!((read.endpoint, read.database), (Endpoint::Unix("/run/redis.sock".into()), 2));
        assert_eq!(url("redis+unix:///s").endpoint, Endpoint::Unix("/s".into()));
    }

    #[test]
    fn a_wrong_url_is_told_what_is_right() {
        let error = |text: &str| text.parse::<RedisUrl>().unwrap_err().to_string();
        assert!(error("127.0.0.1:6379").contains("redis://"));
        assert!(error("http://h").contains("got scheme \"http\""));
        assert!(error("redis://").contains("name a host"));
        assert!(error("redis://h:0").contains("1 to 65535"));
        assert!(error("redis://h:x").contains("1 to 65535"));
        assert!(error("redis://h/x").contains("database must be a number such as 0"));
        assert!(error("unix://run/x").contains("must be absolute"));
        assert!(error("redis://h?password=hush").contains("db=N"));
        assert!(error("redis://a%4@h").contains("percent-encoded"));
        assert!(error("redis://ada:p?w@h").contains("%3F for ?"));
    }

    #[test]
    fn no_error_repeats_any_piece_of_the_credentials() {
        for wrong in [
            "redis://app:hunter2?x@db:6379",
            "redis://app:hunter2?x@db",
            "redis://app:6380?hunter2@db:6379",
            "redis://app:6380?db=hunter2@db:6379",
            "redis://app:6380/hunter2?x@db",
            "redis://a:b?hunter2@d@host/0",
            "redis://app:hunter2",
            "redis://app:x@db/hunter2",
            "redis://app:x@db?hunter2",
            "redis://app:hunter2%4@db",
            "unix://app:hunter2@run/x",
            "unix:///run/redis.sock?db=1&hunter2=x",
            "http://app:hunter2@db",
            "app:hunter2@db",
            "hunter2@db",
            "app:hunter2://x@db",
        ] {
            let error = wrong.parse::<RedisUrl>().unwrap_err();
            let shown = format!("{error} {error:?}");
            for piece in ["hunter2", "app", "6380"] {
                assert!(!shown.contains(piece), "{wrong}: {shown}");
            }
        }
    }

    #[test]
    fn no_secret_is_shown() {
        let read = url("redis://ada:hush@h");
        assert!(!format!("{read:?}").contains("hush"));
        assert!(!format!("{:?}", RedisSettings::new(read, "i", "r")).contains("hush"));
        assert!(
            !"redis://h?password=hush"
                .parse::<RedisUrl>()
                .unwrap_err()
                .to_string()
                .contains("hush")
        );
    }
}
