//! On whose behalf a request is carried.
//!
//! What emulators' clients send, `Bearer owner`, is no credential, and the same as none. Whoever brings none is carried
//! by the daemon's own, if the door is open to them. Any other credential is the caller's own, and goes on as it is;
//! if callers are known by a secret, it must be one of `callers_file`, and goes nowhere.

use hyper::{
    HeaderMap,
    header::{AUTHORIZATION, HeaderValue},
};

use super::{core::Core, settings::Settings};
use crate::ingress::{callers::Right, peer::Who};

/// Who calls.
#[derive(Clone, Debug)]
pub(super) struct Principal {
    pub(super) right: Right,
    /// Its own credential; `None` if it is carried by the daemon's.
    pub(super) own: Option<HeaderValue>,
}

impl Principal {
    /// Its own credential as calls have it; empty if it has none. `None` if calls cannot have it.
    pub(super) fn token(&self) -> Option<&str> {
        let Some(own) = &self.own else { return Some("") };
        std::str::from_utf8(bearer(own)?).ok().filter(|token| !token.is_empty())
    }
}

/// Why nobody is carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Nobody;

/// The credential of a request; `None` if it has none. An error if it has several.
fn shown(headers: &HeaderMap) -> Result<Option<&HeaderValue>, Nobody> {
    let mut all = headers.get_all(AUTHORIZATION).iter();
    let first = all.next();
    if all.next().is_some() {
        return Err(Nobody);
    }
    Ok(first.filter(|value| {
        let token = bearer(value);
        !value.is_empty() && token.is_none_or(|token| token != b"owner")
    }))
}

fn bearer(value: &HeaderValue) -> Option<&[u8]> {
    let (scheme, token) = value.as_bytes().split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii())
}

/// Who calls with these headers, over a connection that counts as `who`.
pub(super) fn principal(
    settings: &Settings,
    who: Option<Who>,
    headers: &HeaderMap,
) -> Result<Principal, Nobody> {
    let credential = shown(headers)?;
    let Some(who) = who else {
        let secret = credential.and_then(bearer).ok_or(Nobody)?;
        let known = settings.callers.find(None, secret).ok_or(Nobody)?;
        return Ok(Principal { right: known.right, own: None });
    };
    let own = credential.cloned().map(|mut own| {
        own.set_sensitive(true);
        own
    });
    Ok(Principal { right: if who.admin { Right::Admin } else { Right::Client }, own })
}

impl Core {
    /// Who calls. Whoever shows a wrong secret waits for the answer.
    pub(super) async fn principal(
        &self,
        who: Option<Who>,
        headers: &HeaderMap,
    ) -> Result<Principal, Nobody> {
        let found = principal(&self.settings, who, headers);
        if found.is_err() {
            self.counters.wrong_secret();
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use fusebox_actors::Priority;

    use super::*;
    use crate::ingress::{
        callers::{Callers, Known, SecretDigest},
        peer::NOBODY,
    };

    fn settings() -> Settings {
        let secret = SecretDigest::of(b"s3cret").unwrap();
        let known = Known { name: "web".into(), right: Right::Read, secret };
        Settings {
            address: "127.0.0.1:1",
            deadline: None,
            min_ack: None,
            priority: Priority::Normal,
            in_bytes: 1,
            out_bytes: 1,
            idle_timeout: None,
            projects: Vec::new(),
            callers: Arc::new(Callers::new(vec![known])),
            partial_max: Duration::from_secs(1),
            keep_alive: Duration::from_secs(1),
        }
    }

    fn called(who: Option<Who>, shown: &[&'static str]) -> Result<(Right, Option<String>), Nobody> {
        let shown = shown.iter().map(|text| (AUTHORIZATION, HeaderValue::from_static(text)));
        let mut headers = HeaderMap::new();
        for (name, value) in shown {
            headers.append(name, value);
        }
        let found = principal(&settings(), who, &headers)?;
        Ok((found.right, found.own.map(|own| own.to_str().unwrap().to_owned())))
    }

    #[test]
    fn owner_is_nobody_and_other_credentials_are_the_callers_own() {
        let open = Some(Who { uid: NOBODY, admin: false, by_token: false });
        for nothing in [&[][..], &["Bearer owner"], &["bearer  owner "], &[""]] {
            assert_eq!(called(open, nothing), Ok((Right::Client, None)), "{nothing:?}");
        }
        assert_eq!(called(open, &["Bearer abc"]), Ok((Right::Client, Some("Bearer abc".into()))));
        assert_eq!(called(open, &["Bearer a", "Bearer b"]), Err(Nobody));
    }

    #[test]
    fn where_a_secret_is_asked_for_nothing_else_is_taken_and_it_goes_nowhere() {
        assert_eq!(called(None, &["Bearer s3cret"]), Ok((Right::Read, None)));
        for wrong in [&[][..], &["Bearer owner"], &["Bearer abc"], &["Basic s3cret"], &["Bearer "]]
        {
            assert_eq!(called(None, wrong), Err(Nobody), "{wrong:?}");
        }
    }
}
