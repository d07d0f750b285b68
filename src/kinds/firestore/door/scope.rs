//! Which databases a call may name, in whatever it brings.
//!
//! A call names databases in its messages, in those that follow the first one as well, and in its metadata, by which the
//! service finds its way. Every one of them must be one that the door is open for, or the call goes nowhere.
//!
//! Whose credential goes along decides who is asked: what a caller's own may do the server knows, and nothing is read
//! then. Otherwise what cannot be read is denied: a compressed message, a method that is not known.

use std::sync::Arc;

use bytes::Bytes;
use hyper::{HeaderMap, header::HeaderName, http::request::Parts};

use super::{
    class::Method, core::Core, framing::take_first, pool::Upstream, telling::Told, who::Principal,
};
use crate::{
    kinds::firestore::protocol::named::{
        Unreadable, database_of, names, names_in_json, project_of,
    },
    net::percent,
};

/// The database that a client is about.
const PREFIX: HeaderName = HeaderName::from_static("google-cloud-resource-prefix");
/// What of a request the service finds its way by: `key=value&…`, percent-encoded.
const PARAMS: HeaderName = HeaderName::from_static("x-goog-request-params");
/// The project that pays.
const PAYS: HeaderName = HeaderName::from_static("x-goog-user-project");

/// So much of a name is repeated to who sent it.
const SHOWN: usize = 200;
/// So many of the projects that are allowed are named.
const NAMED_MAX: usize = 5;

/// What a call may name.
#[derive(Clone)]
pub(super) enum Scope {
    /// Anything.
    Any,
    /// The backend's own database.
    Own(Arc<Upstream>),
    /// What belongs to the projects of the door's settings.
    Projects,
}

impl Core {
    /// What a call of `by` may name.
    pub(super) fn scope(&self, upstream: &Arc<Upstream>, by: &Principal) -> Scope {
        let allowed = &self.settings.projects;
        let is_emulator = !upstream.connector.shared.client.settings.url.tls;
        if by.own.is_some()
            || allowed.iter().any(|project| project == "*")
            || allowed.is_empty() && is_emulator
        {
            Scope::Any
        } else if allowed.is_empty() {
            Scope::Own(Arc::clone(upstream))
        } else {
            Scope::Projects
        }
    }

    /// Whether a call may begin so: by its metadata, and its first messages, framed, of which there is at least one.
    ///
    /// # Errors
    /// It names what it may not, or nothing, or cannot be read.
    pub(super) fn may_begin(
        &self,
        scope: &Scope,
        method: Method,
        headers: &HeaderMap,
        messages: &Bytes,
    ) -> Result<(), Told> {
        if matches!(scope, Scope::Any) {
            return Ok(());
        }
        self.may_bear(scope, headers)?;
        let (mut messages, mut count) = (messages.clone(), 0);
        while let Some((_, message)) = take_first(&mut messages) {
            count += self.may_send(scope, method, message.as_deref())?;
        }
        if count == 0 {
            return Err(Told::denied("it names no project, and only some are allowed here"));
        }
        Ok(())
    }

    /// Whether a call may send this message; `None` is one that cannot be read. How many names are in it.
    ///
    /// # Errors
    /// It names what it may not, or cannot be read.
    pub(super) fn may_send(
        &self,
        scope: &Scope,
        method: Method,
        message: Option<&[u8]>,
    ) -> Result<usize, Told> {
        if matches!(scope, Scope::Any) {
            return Ok(0);
        }
        let found = message.ok_or(Unreadable).and_then(|it| names(method.operation, it));
        let found = found.map_err(|Unreadable| unreadable())?;
        for name in &found {
            self.may_name(scope, name)?;
        }
        Ok(found.len())
    }

    /// Whether a call may have such metadata.
    ///
    /// # Errors
    /// They name what it may not.
    pub(super) fn may_bear(&self, scope: &Scope, headers: &HeaderMap) -> Result<(), Told> {
        if matches!(scope, Scope::Any) {
            return Ok(());
        }
        let texts = |name| headers.get_all(name).iter().map(|value| value.to_str().ok());
        for named in texts(PREFIX) {
            self.may_name(scope, named.unwrap_or_default())?;
        }
        for project in texts(PAYS) {
            self.may_be_of(scope, project.unwrap_or_default())?;
        }
        for params in texts(PARAMS) {
            self.may_have(scope, params.unwrap_or_default())?;
        }
        Ok(())
    }

    /// Whether a call may have such parameters: `key=value&…`, percent-encoded.
    fn may_have(&self, scope: &Scope, params: &str) -> Result<(), Told> {
        for param in params.split('&') {
            let (key, value) = param.split_once('=').unwrap_or((param, ""));
            let value = percent::decoded(value);
            let value = value.as_deref().unwrap_or_default();
            match key {
                "project_id" => self.may_be_of(scope, value)?,
                _ if value.starts_with("projects/") => self.may_name(scope, value)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether a request of HTTP that is not gRPC may be sent.
    ///
    /// # Errors
    /// It names what it may not, or nothing, or cannot be read.
    pub(super) fn may_ask(&self, scope: &Scope, head: &Parts, body: &[u8]) -> Result<(), Told> {
        if matches!(scope, Scope::Any) {
            return Ok(());
        }
        self.may_bear(scope, &head.headers)?;
        self.may_have(scope, head.uri.query().unwrap_or_default())?;
        let path = percent::decoded(head.uri.path()).unwrap_or_default();
        let name = path.strip_prefix("/v1/").or_else(|| path.strip_prefix("/emulator/v1/"));
        let name = name.unwrap_or(&path);
        if name.split('/').any(|part| matches!(part, "." | "..")) {
            return Err(self.denied(scope, name));
        }
        self.may_name(scope, name)?;
        let found = names_in_json(body, name.ends_with(":executePipeline"));
        for name in found.map_err(|Unreadable| unreadable())? {
            self.may_name(scope, &name)?;
        }
        Ok(())
    }

    /// Whether a call may name that: a database, or what is in one.
    ///
    /// # Errors
    /// It may not.
    pub(super) fn may_name(&self, scope: &Scope, name: &str) -> Result<(), Told> {
        let is_allowed = database_of(name).is_some_and(|database| match scope {
            Scope::Any => true,
            Scope::Own(upstream) => own(upstream).is_some_and(|own| own == database),
            Scope::Projects => self.is_open_for(project_of(database)),
        });
        if is_allowed { Ok(()) } else { Err(self.denied(scope, name)) }
    }

    /// Whether a call may name that project.
    fn may_be_of(&self, scope: &Scope, project: &str) -> Result<(), Told> {
        let is_allowed = match scope {
            Scope::Any => true,
            Scope::Own(upstream) => own(upstream).is_some_and(|own| project_of(own) == project),
            Scope::Projects => self.is_open_for(project),
        };
        if is_allowed { Ok(()) } else { Err(self.denied(scope, project)) }
    }

    fn is_open_for(&self, project: &str) -> bool {
        self.settings.projects.iter().any(|allowed| allowed == project)
    }

    /// The answer to a call that names what it may not: with what it may, and the setting that says so.
    fn denied(&self, scope: &Scope, name: &str) -> Told {
        let name = shown(name);
        let Scope::Own(upstream) = scope else {
            let allowed = self.settings.projects.iter().take(NAMED_MAX);
            let allowed: Vec<_> = allowed.map(|project| format!("{project:?}")).collect();
            let allowed = allowed.join(", ");
            return Told::denied(&format!(
                "{name:?} is not in a project that `projects` of this door allows: {allowed}"
            ));
        };
        let own = own(upstream).unwrap_or("not known yet");
        let backend = self.backend.name();
        Told::denied(&format!(
            "{name:?} is not in the database of this backend, {own:?}: see `backends.{backend}.project`, or \
             `projects` of the door, which allows more"
        ))
    }
}

/// The database of the backend: `projects/p/databases/d`. `None` while it is not known.
fn own(upstream: &Upstream) -> Option<&str> {
    let root = upstream.connector.shared.client.known_root();
    root.map(|root| root.database.as_str())
}

fn unreadable() -> Told {
    Told::denied("what it names cannot be read, and not every project is allowed here")
}

/// What of a caller's name is repeated to it.
pub(super) fn shown(name: &str) -> String {
    name.chars().take(SHOWN).collect()
}
