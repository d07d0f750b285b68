//! Who a client says it is, in each of the ways in which the HTTP interface lets it.
//!
//! A client that was given no credentials sends the user `default` without a password: that says nothing. What it does
//! say is either true here or refused, so that nobody takes the backend's rights for its own.

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use fusebox_actors::connector::Connector;
use hyper::header::{AUTHORIZATION, HeaderMap, HeaderValue};

use super::request::Parameters;
use crate::{
    ingress::{
        callers::{Callers, Right},
        peer::{NOBODY, Who},
        same::same,
    },
    kinds::clickhouse::{connector::ClickHouseConnector, settings::ClickHouseSettings},
};

/// The name that clients send if they were given none.
const DEFAULT: &str = "default";

/// What a request shows.
#[derive(PartialEq, Eq)]
pub(super) struct Shown {
    user: Option<String>,
    secret: Vec<u8>,
    /// It shows something that no secret is: a certificate, a token of the server's.
    is_other: bool,
}

/// A caller that was let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Guest {
    pub(super) who: Who,
    /// It may not write.
    pub(super) reads_only: bool,
}

/// Why nobody was let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stranger {
    /// It shows nothing.
    Absent,
    /// What it shows is nobody's.
    Wrong,
}

impl Shown {
    /// What a request shows, in the order in which the server looks.
    pub(super) fn of(headers: &HeaderMap, parameters: &Parameters) -> Self {
        let bytes = |name: &str| headers.get(name).map(|value| value.as_bytes().to_vec());
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let (user, key) = (bytes("x-clickhouse-user").map(text), bytes("x-clickhouse-key"));
        let certificate = bytes("x-clickhouse-ssl-certificate-auth");
        let authorization = headers.get(AUTHORIZATION).map(HeaderValue::as_bytes);
        let basic = authorization.and_then(basic);
        let is_other = certificate.is_some() || authorization.is_some() && basic.is_none();
        let shown = |user: Option<String>, secret: Option<Vec<u8>>| Self {
            user: user.filter(|user| !user.is_empty()),
            secret: secret.unwrap_or_default(),
            is_other,
        };
        if user.is_some() || key.is_some() {
            return shown(user, key);
        }
        if let Some((user, secret)) = basic {
            return shown(Some(user), Some(secret));
        }
        let (user, secret) = (parameters.value("user"), parameters.value("password"));
        shown(user.map(str::to_owned), secret.map(|secret| secret.as_bytes().to_vec()))
    }

    /// Whether it shows a secret.
    pub(super) fn is_something(&self) -> bool {
        !self.secret.is_empty()
    }

    /// The name that it gives.
    pub(super) fn user(&self) -> &str {
        self.user.as_deref().unwrap_or(DEFAULT)
    }

    /// Who that is. `known` is who it is by its socket.
    ///
    /// # Errors
    /// Nobody that is known here.
    pub(super) async fn who(
        &self,
        known: Option<Who>,
        callers: &Callers,
        own: &ClickHouseSettings,
    ) -> Result<Guest, Stranger> {
        let own_user = own.username.as_deref().unwrap_or(DEFAULT);
        let is_named = |name: &str| self.user.as_deref().is_none_or(|user| user == name);
        if self.is_other {
            return Err(Stranger::Wrong);
        }
        let everything = |who| Guest { who, reads_only: false };
        if self.secret.is_empty() {
            let says_nothing = is_named(DEFAULT) || is_named(own_user);
            let known = known.map(everything);
            return known.filter(|_| says_nothing).ok_or(if says_nothing {
                Stranger::Absent
            } else {
                Stranger::Wrong
            });
        }
        let name = self.user.as_deref().filter(|user| *user != DEFAULT);
        if let Some(caller) = callers.find(name.map(str::as_bytes), &self.secret) {
            return Ok(Guest { who: caller.into(), reads_only: caller.right == Right::Read });
        }
        let secret = own_secret(own).await.unwrap_or_default();
        let is_own = !secret.is_empty()
            && same(secret.as_bytes(), &self.secret)
            && same(self.user().as_bytes(), own_user.as_bytes());
        // Who is known already stays that: the backend's credentials say nothing of who has them.
        let who = known.unwrap_or(Who { uid: NOBODY, admin: false, by_token: true });
        is_own.then_some(everything(who)).ok_or(Stranger::Wrong)
    }
}

/// What the backend itself is known by.
async fn own_secret(own: &ClickHouseSettings) -> Option<String> {
    match &own.password_file {
        Some(file) => {
            let text = tokio::fs::read_to_string(file).await.ok()?;
            text.lines().next().map(str::to_owned)
        }
        None => Some(own.password.as_ref()?.expose().to_owned()),
    }
}

/// User and password of `Authorization: Basic`.
fn basic(value: &[u8]) -> Option<(String, Vec<u8>)> {
    let (scheme, encoded) = value.split_at_checked(6)?;
    if !scheme.eq_ignore_ascii_case(b"basic ") {
        return None;
    }
    let decoded = STANDARD.decode(encoded.trim_ascii()).ok()?;
    let colon = decoded.iter().position(|byte| *byte == b':')?;
    let (user, secret) = decoded.split_at_checked(colon)?;
    let secret = secret.get(1..).unwrap_or_default().to_vec();
    Some((String::from_utf8_lossy(user).into_owned(), secret))
}

/// The connector of the backend, if it is of this kind.
pub(super) fn clickhouse_of(connector: Arc<dyn Connector>) -> Option<Arc<ClickHouseConnector>> {
    let any: Arc<dyn std::any::Any + Send + Sync> = connector;
    any.downcast().ok()
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderName;

    use super::*;
    use crate::{
        ingress::callers::{Known, SecretDigest},
        net::secret::Secret,
    };

    const PEER: Who = Who { uid: 7, admin: false, by_token: false };

    fn shown(headers: &[(&str, &str)], query: &str) -> Shown {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        }
        Shown::of(&map, &Parameters::of(query))
    }

    async fn who(shown: Shown, known: Option<Who>) -> Result<(u32, bool, bool), Stranger> {
        let url = "http://ada:hush@h".parse().unwrap();
        let own = ClickHouseSettings::new(url, "i", "r");
        let known_callers = [("web", "s3cret", Right::Client), ("reports", "0ther", Right::Read)];
        let callers = Callers::new(
            known_callers
                .map(|(name, secret, right)| Known {
                    name: name.into(),
                    right,
                    secret: SecretDigest::of(secret.as_bytes()).unwrap(),
                })
                .into(),
        );
        let guest = shown.who(known, &callers, &own).await?;
        Ok((guest.who.uid, guest.who.by_token, guest.reads_only))
    }

    fn basic_of(pair: &str) -> String {
        format!("Basic {}", STANDARD.encode(pair))
    }

    #[tokio::test]
    async fn credentials_are_shown_in_three_ways_and_each_is_judged_alike() {
        let ways = |user: &str, secret: &str| {
            [
                shown(&[("x-clickhouse-user", user), ("x-clickhouse-key", secret)], ""),
                shown(&[("authorization", &basic_of(&format!("{user}:{secret}")))], ""),
                shown(&[], &format!("us%65r={user}&a=b&password={secret}")),
            ]
        };
        for shown in ways("web", "s3cret") {
            assert_eq!(who(shown, None).await, Ok((NOBODY, true, false)));
        }
        for shown in ways("reports", "0ther") {
            assert_eq!(who(shown, Some(PEER)).await, Ok((NOBODY, true, true)));
        }
        for shown in ways("ada", "hush") {
            assert!(shown.is_something());
            assert_eq!(who(shown, None).await, Ok((NOBODY, true, false)));
        }
        for shown in ways("ada", "hush") {
            assert_eq!(who(shown, Some(PEER)).await, Ok((7, false, false)), "it stays who it is");
        }
        for (user, secret) in [("ada", "hus"), ("bob", "hush"), ("web", "0ther"), ("x", "x")] {
            for shown in ways(user, secret) {
                assert_eq!(who(shown, Some(PEER)).await, Err(Stranger::Wrong), "{user}");
            }
        }
    }

    #[tokio::test]
    async fn who_shows_nothing_is_who_it_is_by_its_socket() {
        let nothing = || {
            [
                shown(&[], ""),
                shown(&[("authorization", &basic_of("default:"))], ""),
                shown(&[("x-clickhouse-user", "default")], ""),
                shown(&[], "user=ada"),
            ]
        };
        for shown in nothing() {
            assert!(!shown.is_something());
            assert_eq!(who(shown, Some(PEER)).await, Ok((7, false, false)));
        }
        for shown in nothing() {
            assert_eq!(who(shown, None).await, Err(Stranger::Absent));
        }
        for shown in [
            shown(&[], "user=bob"),
            shown(&[("authorization", "Bearer x")], ""),
            shown(&[("x-clickhouse-ssl-certificate-auth", "on")], ""),
        ] {
            assert_eq!(who(shown, Some(PEER)).await, Err(Stranger::Wrong));
        }
    }

    #[tokio::test]
    async fn an_empty_secret_is_nobodys() {
        let mut own = ClickHouseSettings::new("http://h".parse().unwrap(), "i", "r");
        own.password = Some(Secret::new(""));
        let found = shown(&[], "user=default").who(None, &Callers::default(), &own).await;
        assert_eq!(found, Err(Stranger::Absent));
    }
}
