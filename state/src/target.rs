//! The server, and the part of it, that a backend represents.
//!
//! ```text
//! kind place/namespace        redis 127.0.0.1:6379/0 · redis /run/redis.sock/0
//!                             clickhouse http://db:8123/default · firestore [::1]:8080/project/(default)
//! ```
//!
//! Stores, snapshots of caches, exports and views have a target as this text, so the text is part of their formats.
//! It is put together and taken apart here alone. Two targets are the same if their texts are. Any text is a target:
//! what another release wrote is compared and shown unchanged.

use std::{fmt, sync::Arc};

/// The kind, place and namespace of a backend, without secrets. A copy allocates nothing.
#[derive(
    Clone, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
#[serde(from = "String", into = "String")]
pub struct Target(Arc<str>);

impl Target {
    /// The `namespace` (a database, a project) of the `kind` of server at `place`: `host:port`, a URL without a path,
    /// or the path of a socket.
    pub fn new(kind: &str, place: impl fmt::Display, namespace: impl fmt::Display) -> Self {
        Self(format!("{kind} {place}/{namespace}").into())
    }

    /// The same as one user sees it, for what must not be shown to another one. Without a user it is the target itself.
    #[must_use]
    pub fn seen_by(&self, user: Option<&str>) -> Self {
        user.map_or_else(|| self.clone(), |user| Self(format!("{} as {user}", self.0).into()))
    }

    /// The whole text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of its kind.
    pub fn kind(&self) -> &str {
        self.0.split_once(' ').map_or("", |(kind, _)| kind)
    }

    /// The host without brackets, or the path of a socket.
    pub fn host(&self) -> &str {
        self.host_and_port().0
    }

    /// The port, if there is one.
    pub fn port(&self) -> Option<u16> {
        self.host_and_port().1
    }

    /// The part of the server; empty if there is none.
    pub fn namespace(&self) -> &str {
        self.place_and_namespace().1
    }

    fn host_and_port(&self) -> (&str, Option<u16>) {
        let (place, _) = self.place_and_namespace();
        match place.rsplit_once(':').map(|(host, port)| (host, port.parse())) {
            Some((host, Ok(port))) => (host.trim_matches(['[', ']']), Some(port)),
            _ => (place, None),
        }
    }

    fn place_and_namespace(&self) -> (&str, &str) {
        let rest = self.0.split_once(' ').map_or(&*self.0, |(_, rest)| rest);
        let rest = rest.split_once("://").map_or(rest, |(_, rest)| rest);
        // The path of a socket has slashes of its own.
        let parts =
            if rest.starts_with('/') { rest.rsplit_once('/') } else { rest.split_once('/') };
        parts.unwrap_or((rest, ""))
    }
}

impl From<&str> for Target {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl From<String> for Target {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl From<Target> for String {
    fn from(target: Target) -> Self {
        target.as_str().to_owned()
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(target: &Target) -> (&str, &str, Option<u16>, &str) {
        (target.kind(), target.host(), target.port(), target.namespace())
    }

    #[test]
    fn a_target_is_written_once_and_taken_apart_as_it_was_made() {
        for (target, text, expected) in [
            (
                Target::new("redis", "127.0.0.1:6379", 0),
                "redis 127.0.0.1:6379/0",
                ("redis", "127.0.0.1", Some(6379), "0"),
            ),
            (
                Target::new("redis", "/run/redis.sock", 0),
                "redis /run/redis.sock/0",
                ("redis", "/run/redis.sock", None, "0"),
            ),
            (
                Target::new("clickhouse", "http://db:8123", "default"),
                "clickhouse http://db:8123/default",
                ("clickhouse", "db", Some(8123), "default"),
            ),
            (
                Target::new("firestore", "[::1]:8080", "p/(default)"),
                "firestore [::1]:8080/p/(default)",
                ("firestore", "::1", Some(8080), "p/(default)"),
            ),
        ] {
            assert_eq!((target.as_str(), parts(&target)), (text, expected));
            assert_eq!(Target::from(text), target);
        }
    }

    #[test]
    fn any_text_is_a_target() {
        assert_eq!(parts(&Target::from("nothing")), ("", "nothing", None, ""));
        assert_eq!(parts(&Target::from("")), ("", "", None, ""));
        let other = Target::from("redis://localhost:6379/0");
        assert_eq!(parts(&other), ("", "localhost", Some(6379), "0"));
    }
}
