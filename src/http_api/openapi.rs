//! GET /openapi.json, generated from the table of routes and the types of what is answered.
//!
//! The table says the shape of a body in a notation of its own, before the first semicolon:
//!
//! ```text
//! {"name": shape, "any"}      an object; a name alone may have any value
//! {key: shape}                an object with any names
//! [shape]                     a list
//! flag number text name duration value
//! HealthView                  a type in `component`
//! shape or null
//! ```

use std::sync::Arc;

use axum::{
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use fusebox_actors::{
    Event,
    view::{
        BackendView, BreakerView, ChaosView, DependenciesView, ExplainView, HealthView, QueuePage,
        QueuedCallView, ResilienceView,
    },
};
use fusebox_state::{OpId, breaker::TransitionRecord};
use schemars::{Schema, SchemaGenerator, generate::SchemaSettings, transform::RecursiveTransform};
use serde_json::{Map, Value, json};

use super::{api::Api, calls::ReplyJson, problem::Told, route::Route};
use crate::ingress::peer::Access;

/// GET /openapi.json
pub(crate) async fn document(State(api): State<Arc<Api>>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], api.openapi.clone()).into_response()
}

/// The document of these routes.
pub(crate) fn render(routes: &[Route]) -> Bytes {
    describe(routes).to_string().into()
}

/// Types with a name in the table.
fn component(name: &str, generator: &mut SchemaGenerator) -> Option<Schema> {
    macro_rules! types {
        ($($type:ty = $name:literal),* $(,)?) => {
            match name {
                $($name => generator.subschema_for::<$type>(),)*
                _ => return None,
            }
        };
    }
    Some(types!(
        BackendView = "BackendView",
        BreakerView = "BreakerView",
        ChaosView = "ChaosView",
        DependenciesView = "DependenciesView",
        Event = "Event",
        ExplainView = "ExplainView",
        HealthView = "HealthView",
        OpId = "OpId",
        QueuePage = "QueuePage",
        QueuedCallView = "QueuedCallView",
        ReplyJson<'_> = "ReplyJson",
        ResilienceView = "ResilienceView",
        Told = "Problem",
        TransitionRecord = "TransitionRecord",
    ))
}

/// What makes schemas of types, as they are written.
fn generator() -> SchemaGenerator {
    let mut settings = SchemaSettings::draft2020_12().for_serialize();
    settings.definitions_path = "/components/schemas".into();
    // What a reader takes for a field that is missing says nothing of what is written.
    let no_defaults = RecursiveTransform(|schema: &mut Schema| drop(schema.remove("default")));
    settings.with_transform(no_defaults).into_generator()
}

/// The routes in version 3.1 of the format.
fn describe(routes: &[Route]) -> Value {
    let mut generator = generator();
    let problem = component("Problem", &mut generator);
    let mut paths = Map::new();
    for route in routes {
        let operation = operation(route, problem.as_ref(), &mut generator);
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        if let Some(methods) = path.as_object_mut() {
            methods.insert(route.method.to_ascii_lowercase(), operation);
        }
    }
    json!({
        "openapi": "3.1.0",
        "info": { "title": "fusebox", "version": env!("CARGO_PKG_VERSION") },
        "paths": paths,
        "components": {
            "securitySchemes": { "token": { "type": "http", "scheme": "bearer" } },
            "schemas": generator.take_definitions(true),
        },
    })
}

fn operation(route: &Route, problem: Option<&Schema>, generator: &mut SchemaGenerator) -> Value {
    let who = match route.access {
        Access::Public => "For everybody over TCP; for clients on the socket.",
        Access::Client => "For clients; over TCP with a token.",
        Access::Admin => "For admins; over TCP with a token.",
    };
    let mut parameters: Vec<Value> = route
        .path
        .split('/')
        .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
        .map(|name| parameter(name, "path", true))
        .collect();
    let mut body = Value::Null;
    if let Some(query) = route.request.strip_prefix("query: ") {
        let names = query.split(';').next().unwrap_or_default();
        let names = names.split(", ").filter_map(|word| word.split('=').next());
        parameters.extend(names.map(|name| parameter(name, "query", false)));
    } else if !route.request.is_empty() {
        let shape = route.request.split_once("JSON ").map_or("", |(_, shape)| shape);
        let schema = shape_of(shape, generator).unwrap_or_else(|| json!({}));
        body = json!({
            "description": route.request,
            "required": !route.request.starts_with("optional"),
            "content": { "application/json": { "schema": schema } },
        });
    }
    let mut answer = json!({ "description": route.response });
    if let Some(schema) = shape_of(route.response, generator)
        && let Some(fields) = answer.as_object_mut()
    {
        fields.insert("content".into(), json!({ "application/json": { "schema": schema } }));
    }
    let mut operation = json!({
        "summary": route.summary,
        "description": who,
        "parameters": parameters,
        "responses": {
            "200": answer,
            "default": {
                "description": "an error",
                "content": { "application/problem+json": { "schema": problem } },
            },
        },
    });
    if let Some(fields) = operation.as_object_mut() {
        if !body.is_null() {
            fields.insert("requestBody".into(), body);
        }
        if route.access != Access::Public {
            fields.insert("security".into(), json!([{ "token": [] }]));
        }
    }
    operation
}

fn parameter(name: &str, place: &str, required: bool) -> Value {
    json!({ "name": name, "in": place, "required": required, "schema": { "type": "string" } })
}

/// The schema of a shape in the notation of the table; `None` for what is not one.
fn shape_of(text: &str, generator: &mut SchemaGenerator) -> Option<Value> {
    let mut notation = Notation { rest: text, generator };
    let shape = notation.shape()?;
    (notation.rest.is_empty() || notation.rest.starts_with(';')).then_some(shape)
}

struct Notation<'a> {
    rest: &'a str,
    generator: &'a mut SchemaGenerator,
}

impl Notation<'_> {
    fn takes(&mut self, text: &str) -> bool {
        let rest = self.rest.strip_prefix(text);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn word(&mut self) -> &str {
        let end = self.rest.find(|letter: char| !letter.is_alphanumeric() && letter != '_');
        let (word, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest;
        word
    }

    fn shape(&mut self) -> Option<Value> {
        let shape = if self.takes("{") {
            self.object()?
        } else if self.takes("[") {
            let items = self.shape()?;
            self.takes("]").then(|| json!({ "type": "array", "items": items }))?
        } else {
            match self.word() {
                "flag" => json!({ "type": "boolean" }),
                "number" => json!({ "type": "integer" }),
                "text" | "name" | "duration" => json!({ "type": "string" }),
                "value" => json!({}),
                name => {
                    let name = name.to_owned();
                    component(&name, self.generator)?.into()
                }
            }
        };
        let nothing = json!({ "type": "null" });
        Some(if self.takes(" or null") { json!({ "anyOf": [shape, nothing] }) } else { shape })
    }

    /// What is behind the brace that begins an object, to the one that ends it.
    fn object(&mut self) -> Option<Value> {
        if self.takes("key: ") {
            let values = self.shape()?;
            let object = json!({ "type": "object", "additionalProperties": values });
            return self.takes("}").then_some(object);
        }
        let mut properties = Map::new();
        loop {
            self.takes("\"").then_some(())?;
            let name = self.word().to_owned();
            self.takes("\"").then_some(())?;
            let shape = if self.takes(": ") { self.shape()? } else { json!({}) };
            properties.insert(name, shape);
            if self.takes("}") {
                return Some(json!({ "type": "object", "properties": properties }));
            }
            self.takes(", ").then_some(())?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::routes::ROUTES;
    use super::*;

    #[test]
    fn every_route_is_described_once_with_its_parameters() {
        let document = describe(ROUTES);
        let paths = document["paths"].as_object().unwrap();
        let described: usize = paths.values().map(|path| path.as_object().unwrap().len()).sum();
        assert_eq!(described, ROUTES.len());
        for route in ROUTES {
            let operation = &paths[route.path][route.method.to_ascii_lowercase().as_str()];
            assert_eq!(operation["summary"], route.summary);
            for part in operation["parameters"].as_array().unwrap() {
                let name = part["name"].as_str().unwrap();
                assert_eq!(part["in"] == "path", route.path.contains(&format!("{{{name}}}")));
            }
        }
        let page = &paths["/v1/backends/{backend}/queue"]["get"]["parameters"];
        let names: Vec<&str> =
            page.as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["backend", "state", "after", "limit"]);
    }

    #[test]
    fn every_shape_in_the_table_is_read() {
        let mut generator = generator();
        for route in ROUTES {
            let request = route.request.split_once("JSON ").map(|(_, shape)| shape);
            for shape in request.into_iter().chain([route.response]) {
                let is_meant = shape.starts_with(['{', '[']) || shape.contains("View");
                let is_stream = shape.starts_with("server-sent events");
                if is_meant && !is_stream {
                    assert!(shape_of(shape, &mut generator).is_some(), "{}: {shape}", route.path);
                }
            }
        }
    }

    #[test]
    fn a_shape_becomes_a_schema() {
        let mut generator = generator();
        let mut of = |text: &str| shape_of(text, &mut generator);
        assert_eq!(
            of("{\"a\": flag, \"b\", \"c\": [number] or null}; and prose"),
            Some(json!({ "type": "object", "properties": {
                "a": { "type": "boolean" },
                "b": {},
                "c": { "anyOf": [
                    { "type": "array", "items": { "type": "integer" } }, { "type": "null" } ] },
            } })),
        );
        assert_eq!(
            of("{key: text}"),
            Some(json!({ "type": "object", "additionalProperties": { "type": "string" } })),
        );
        assert_eq!(of("QueuePage"), Some(json!({ "$ref": "#/components/schemas/QueuePage" })));
        for prose in ["the reply's bytes", "{\"a\": nonsense}", "{\"a\": flag", "flag and more", ""]
        {
            assert_eq!(of(prose), None, "{prose}");
        }
    }
}
