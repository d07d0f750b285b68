//! What a route is: its path, who may use it, what it reads and answers, and what answers it.

use std::sync::Arc;

use axum::routing::MethodRouter;
use schemars::{JsonSchema, Schema, SchemaGenerator};

use super::api::Api;
use crate::ingress::peer::Access;

/// Makes the schema of a type.
pub(crate) type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// One route.
#[derive(Clone, Copy)]
pub(crate) struct Route {
    /// `get`, `post`, `put`, `patch` or `delete`.
    pub(crate) method: &'static str,
    /// Its path, with parameters in braces.
    pub(crate) path: &'static str,
    /// Who may use it.
    pub(crate) access: Access,
    /// What it does, in a sentence.
    pub(crate) summary: &'static str,
    /// What its query is read as: an object with a property for each parameter.
    pub(crate) query: Option<SchemaOf>,
    /// The headers that it reads.
    pub(crate) headers: &'static [Header],
    /// The body that it reads.
    pub(crate) body: Option<Body>,
    /// What it answers.
    pub(crate) answer: Option<Answer>,
    /// Another status with which it answers the same, and when.
    pub(crate) also: Option<(u16, &'static str)>,
    /// Makes what answers it.
    pub(crate) handler: fn() -> MethodRouter<Arc<Api>>,
}

/// A header of a request, or of an answer.
#[derive(Clone, Copy)]
pub(crate) struct Header {
    /// Its name.
    pub(crate) name: &'static str,
    /// What it says.
    pub(crate) note: &'static str,
}

/// What a body is.
#[derive(Clone, Copy)]
pub(crate) enum Content {
    /// JSON of this schema.
    Json(SchemaOf),
    /// Anything else, of this media type.
    Other(&'static str),
}

/// The body of a request.
#[derive(Clone, Copy)]
pub(crate) struct Body {
    /// What it is.
    pub(crate) content: Content,
    /// Whether there has to be one.
    pub(crate) is_required: bool,
    /// What its type does not say; may be empty.
    pub(crate) note: &'static str,
}

/// The body of an answer.
#[derive(Clone, Copy)]
pub(crate) struct Answer {
    /// What it is.
    pub(crate) content: Content,
    /// As what else it is given to clients that ask for that: media types.
    pub(crate) others: &'static [&'static str],
    /// Headers that it may have.
    pub(crate) headers: &'static [Header],
    /// What its type does not say; may be empty.
    pub(crate) note: &'static str,
}

impl Content {
    /// JSON, as this type is written or read.
    const fn of<T: JsonSchema>() -> Self {
        Self::Json(SchemaGenerator::subschema_for::<T>)
    }
}

impl Route {
    /// A route that reads nothing yet, and answers nothing.
    pub(crate) const fn new(
        method: &'static str,
        path: &'static str,
        access: Access,
        summary: &'static str,
        handler: fn() -> MethodRouter<Arc<Api>>,
    ) -> Self {
        Self {
            method,
            path,
            access,
            summary,
            query: None,
            headers: &[],
            body: None,
            answer: None,
            also: None,
            handler,
        }
    }

    /// The same, reading its query as a `T`.
    pub(crate) const fn query<T: JsonSchema>(self) -> Self {
        Self { query: Some(T::json_schema), ..self }
    }

    /// The same, reading these headers.
    pub(crate) const fn headers(self, headers: &'static [Header]) -> Self {
        Self { headers, ..self }
    }

    /// The same, reading its body as a `T` in JSON.
    pub(crate) const fn reads<T: JsonSchema>(self, note: &'static str) -> Self {
        self.body(Content::of::<T>(), true, note)
    }

    /// The same, reading its body as a `T` in JSON if it has one.
    pub(crate) const fn may_read<T: JsonSchema>(self) -> Self {
        self.body(Content::of::<T>(), false, "")
    }

    /// The same, reading its body as something else.
    pub(crate) const fn reads_other(self, media_type: &'static str, note: &'static str) -> Self {
        self.body(Content::Other(media_type), true, note)
    }

    const fn body(self, content: Content, is_required: bool, note: &'static str) -> Self {
        Self { body: Some(Body { content, is_required, note }), ..self }
    }

    /// The same, answering with a `T` in JSON.
    pub(crate) const fn answers<T: JsonSchema>(self, note: &'static str) -> Self {
        self.answer(Content::of::<T>(), note)
    }

    /// The same, answering with something else.
    pub(crate) const fn answers_other(self, media_type: &'static str, note: &'static str) -> Self {
        self.answer(Content::Other(media_type), note)
    }

    const fn answer(self, content: Content, note: &'static str) -> Self {
        Self { answer: Some(Answer { content, others: &[], headers: &[], note }), ..self }
    }

    /// The same, whose answer may also be of these media types.
    pub(crate) const fn or(self, others: &'static [&'static str]) -> Self {
        match self.answer {
            Some(answer) => Self { answer: Some(Answer { others, ..answer }), ..self },
            None => self,
        }
    }

    /// The same, whose answer may have these headers.
    pub(crate) const fn with(self, headers: &'static [Header]) -> Self {
        match self.answer {
            Some(answer) => Self { answer: Some(Answer { headers, ..answer }), ..self },
            None => self,
        }
    }

    /// The same, which also answers with this status.
    pub(crate) const fn also(self, status: u16, when: &'static str) -> Self {
        Self { also: Some((status, when)), ..self }
    }

    /// Whether it is answered to those who found no room, too: how the daemon is, and orders.
    pub(crate) fn is_vital(&self) -> bool {
        let health = ["/health", "/health/live", "/health/ready", "/metrics"];
        self.access == Access::Admin || health.contains(&self.path)
    }
}
