//! GET /openapi.json, generated from the table of routes.

use std::sync::Arc;

use axum::{
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::{api::Api, route::Route};
use crate::ingress::peer::Access;

/// GET /openapi.json
pub(crate) async fn document(State(api): State<Arc<Api>>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], api.openapi.clone()).into_response()
}

/// The document of these routes.
pub(crate) fn render(routes: &[Route]) -> Bytes {
    describe(routes).to_string().into()
}

/// The routes in version 3.1 of the format.
fn describe(routes: &[Route]) -> Value {
    let mut paths = Map::new();
    for route in routes {
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        if let Some(methods) = path.as_object_mut() {
            methods.insert(route.method.to_ascii_lowercase(), operation(route));
        }
    }
    json!({
        "openapi": "3.1.0",
        "info": { "title": "fusebox", "version": env!("CARGO_PKG_VERSION") },
        "paths": paths,
        "components": {
            "securitySchemes": { "token": { "type": "http", "scheme": "bearer" } },
            "schemas": { "Problem": problem() },
        },
    })
}

fn operation(route: &Route) -> Value {
    let who = match route.access {
        Access::Public => "Open on TCP; on the socket for clients.",
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
        let names = query.split(", ").filter_map(|word| word.split('=').next());
        parameters.extend(names.map(|name| parameter(name, "query", false)));
    } else if !route.request.is_empty() {
        body = json!({
            "description": route.request,
            "required": !route.request.starts_with("optional"),
            "content": { "application/json": {} },
        });
    }
    let mut operation = json!({
        "summary": route.summary,
        "description": who,
        "parameters": parameters,
        "responses": {
            "200": { "description": route.response },
            "default": {
                "description": "an error",
                "content": { "application/problem+json": {
                    "schema": { "$ref": "#/components/schemas/Problem" } } },
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

fn problem() -> Value {
    let text = json!({ "type": "string" });
    let number = json!({ "type": "integer" });
    json!({
        "type": "object",
        "required": ["type", "title", "status", "detail", "code"],
        "properties": {
            "type": text, "title": text, "status": number, "detail": text, "code": text,
            "backend": text, "retry_after_ms": number, "outcome_unknown": { "type": "boolean" },
            "op_id": text, "attempts": number, "trace_id": text,
        },
    })
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
}
