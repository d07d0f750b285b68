//! GET /openapi.json, generated from the table of routes and the types that they read and write.

use std::sync::Arc;

use axum::{
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use schemars::{
    JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings, transform::RecursiveTransform,
};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{
    api::Api,
    problem::Told,
    route::{Content, Header, Route, SchemaOf},
};
use crate::ingress::peer::Access;

/// An `OpenAPI` document.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Document {
    /// The version of the format.
    openapi: &'static str,
    /// What is described.
    info: Info,
    /// Each path, with its methods.
    paths: Map<String, Value>,
    /// Schemas that are used more than once, and how a caller proves who it is.
    components: Map<String, Value>,
}

/// What is described.
#[derive(Serialize, JsonSchema)]
struct Info {
    /// Its name.
    title: &'static str,
    /// The release of the daemon.
    version: &'static str,
}

/// GET /openapi.json
pub(crate) async fn document(State(api): State<Arc<Api>>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], api.openapi.clone()).into_response()
}

/// The document of these routes.
pub(crate) fn render(routes: &[Route]) -> Bytes {
    // It has no keys that are no texts, and so can be written.
    serde_json::to_vec(&describe(routes)).unwrap_or_default().into()
}

/// What makes the schemas of types.
struct Generators {
    /// As they are read.
    reads: SchemaGenerator,
    /// As they are written.
    writes: SchemaGenerator,
}

impl Generators {
    fn new() -> Self {
        let settings = || {
            SchemaSettings::draft2020_12()
                .with(|settings| settings.definitions_path = "/components/schemas".into())
        };
        // That a field which is missing is read as nothing says no more than that it may be missing.
        let no_empty = RecursiveTransform(|schema: &mut Schema| {
            if schema.get("default").is_some_and(is_empty) {
                schema.remove("default");
            }
        });
        // What a reader takes for a field that is missing says nothing of what is written.
        let no_defaults = RecursiveTransform(|schema: &mut Schema| drop(schema.remove("default")));
        Self {
            reads: settings().for_deserialize().with_transform(no_empty).into_generator(),
            writes: settings().for_serialize().with_transform(no_defaults).into_generator(),
        }
    }

    /// The schemas with a name, of both. A type that is both read and written has one: see the tests.
    fn named(mut self) -> Map<String, Value> {
        let mut named = self.reads.take_definitions(true);
        named.append(&mut self.writes.take_definitions(true));
        named
    }
}

/// The routes in version 3.1 of the format.
fn describe(routes: &[Route]) -> Document {
    let mut generators = Generators::new();
    let problem = generators.writes.subschema_for::<Told>();
    let mut paths = Map::new();
    for route in routes {
        let operation = operation(route, &problem, &mut generators);
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        if let Some(methods) = path.as_object_mut() {
            methods.insert(route.method.to_owned(), operation);
        }
    }
    let token = json!({ "token": { "type": "http", "scheme": "bearer" } });
    let components = [
        ("securitySchemes".to_owned(), token),
        ("schemas".to_owned(), Value::Object(generators.named())),
    ];
    Document {
        openapi: "3.1.0",
        info: Info { title: "fusebox", version: env!("CARGO_PKG_VERSION") },
        paths,
        components: components.into_iter().collect(),
    }
}

fn operation(route: &Route, problem: &Schema, generators: &mut Generators) -> Value {
    let who = match route.access {
        Access::Public => "For everybody over TCP; for clients on the socket.",
        Access::Client => "For clients; over TCP with a token.",
        Access::Admin => "For admins; over TCP with a token.",
    };
    let mut operation = Map::new();
    let mut put = |name: &str, value: Value| drop(operation.insert(name.to_owned(), value));
    put("summary", route.summary.into());
    put("description", who.into());
    put("parameters", parameters(route, &mut generators.reads).into());
    if let Some(body) = &route.body {
        let mut described = json!({
            "required": body.is_required,
            "content": content(body.content, &mut generators.reads),
        });
        if !body.note.is_empty() {
            describe_as(&mut described, body.note);
        }
        put("requestBody", described);
    }
    put("responses", responses(route, problem, &mut generators.writes));
    if route.access != Access::Public {
        put("security", json!([{ "token": [] }]));
    }
    operation.into()
}

fn describe_as(part: &mut Value, note: &str) {
    if let Some(fields) = part.as_object_mut() {
        fields.insert("description".to_owned(), note.into());
    }
}

fn content(content: Content, generator: &mut SchemaGenerator) -> Value {
    match content {
        Content::Json(schema) => json!({ "application/json": { "schema": schema(generator) } }),
        Content::Other(media_type) => json!({ media_type: {} }),
    }
}

/// What is answered, by status.
fn responses(route: &Route, problem: &Schema, generator: &mut SchemaGenerator) -> Value {
    let mut responses = Map::new();
    let error = json!({
        "description": "an error",
        "content": { "application/problem+json": { "schema": problem } },
    });
    responses.insert("default".to_owned(), error);
    if let Some(answer) = &route.answer {
        let note = if answer.note.is_empty() { "the answer" } else { answer.note };
        let mut content = content(answer.content, generator);
        if let Some(types) = content.as_object_mut() {
            types.extend(answer.others.iter().map(|it| ((*it).to_owned(), json!({}))));
        }
        let headers: Map<String, Value> = answer.headers.iter().map(header_of_answer).collect();
        for (status, note) in [(200, note)].into_iter().chain(route.also) {
            let mut answer = json!({ "description": note, "content": content });
            if let Some(fields) = answer.as_object_mut().filter(|_| !headers.is_empty()) {
                fields.insert("headers".to_owned(), headers.clone().into());
            }
            responses.insert(status.to_string(), answer);
        }
    }
    responses.into()
}

fn header_of_answer(header: &Header) -> (String, Value) {
    let described = json!({ "description": header.note, "schema": { "type": "string" } });
    (header.name.to_owned(), described)
}

/// The parameters in the path, the query and the headers.
fn parameters(route: &Route, generator: &mut SchemaGenerator) -> Vec<Value> {
    let text = || json!({ "type": "string" });
    let of_path = route.path.split('/');
    let of_path = of_path.filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let mut parameters: Vec<Value> =
        of_path.map(|name| parameter(name, "path", true, text())).collect();
    parameters.extend(route.query.into_iter().flat_map(|query| of_query(query, generator)));
    parameters.extend(route.headers.iter().map(|header| {
        let mut parameter = parameter(header.name, "header", false, text());
        describe_as(&mut parameter, header.note);
        parameter
    }));
    parameters
}

fn parameter(name: &str, place: &str, is_required: bool, schema: Value) -> Value {
    json!({ "name": name, "in": place, "required": is_required, "schema": schema })
}

/// The parameters of a query, which is read as this object.
fn of_query(query: SchemaOf, generator: &mut SchemaGenerator) -> Vec<Value> {
    let object = query(generator);
    let required = object.get("required").and_then(Value::as_array);
    let fields = object.get("properties").and_then(Value::as_object);
    let parameters = fields.into_iter().flatten().map(|(name, field)| {
        let is_required = required.is_some_and(|names| names.iter().any(|it| it == name));
        let mut field = field.clone();
        let note = field.as_object_mut().and_then(|field| {
            not_null(field);
            field.remove("description")
        });
        let mut parameter = parameter(name, "query", is_required, field);
        if let Some(note) = note.as_ref().and_then(Value::as_str) {
            describe_as(&mut parameter, note);
        }
        parameter
    });
    parameters.collect()
}

/// A parameter that may be missing is an `Option`, and no query says null.
fn not_null(field: &mut Map<String, Value>) {
    if field.get("default").is_some_and(is_empty) {
        field.remove("default");
    }
    let Some(Value::Array(types)) = field.get_mut("type") else { return };
    types.retain(|it| it != "null");
    if let [only] = types.as_slice() {
        let only = only.clone();
        field.insert("type".to_owned(), only);
    }
}

fn is_empty(value: &Value) -> bool {
    value.is_null() || value == "" || value.as_array().is_some_and(Vec::is_empty)
}

#[cfg(test)]
mod tests {
    use super::super::routes::ROUTES;
    use super::*;

    fn document() -> Value {
        serde_json::to_value(describe(ROUTES)).unwrap()
    }

    #[test]
    fn every_route_is_described_once_with_its_parameters() {
        let document = document();
        let paths = document["paths"].as_object().unwrap();
        let described: usize = paths.values().map(|path| path.as_object().unwrap().len()).sum();
        assert_eq!(described, ROUTES.len());
        for route in ROUTES {
            let operation = &paths[route.path][route.method];
            assert_eq!(operation["summary"], route.summary);
            for part in operation["parameters"].as_array().unwrap() {
                let name = part["name"].as_str().unwrap();
                assert_eq!(part["in"] == "path", route.path.contains(&format!("{{{name}}}")));
            }
        }
        let parameters = |path: &str, method: &str| {
            let parameters = paths[path][method]["parameters"].as_array().unwrap().iter();
            let said = |it: &Value| format!("{} {}", it["name"], it["schema"]).replace('"', "");
            parameters.map(said).collect::<Vec<_>>()
        };
        assert_eq!(
            parameters("/v1/backends/{backend}/queue", "get"),
            [
                "backend {type:string}",
                "after {type:string}",
                "limit {minimum:1,type:integer}",
                "state {enum:[pending,dead],type:string}",
            ]
        );
        assert_eq!(
            parameters("/admin/config", "patch"),
            [
                "dry_run {default:false,type:boolean}",
                "for {type:string}",
                "force {default:false,type:boolean}",
                "persist {default:false,type:boolean}",
                "If-Match {type:string}",
            ]
        );
    }

    #[test]
    fn all_json_is_of_a_type_with_a_name() {
        let document = document();
        let named = document["components"]["schemas"].as_object().unwrap();
        let is_named = |content: &Value| {
            let Some(json) = content["content"].get("application/json") else { return true };
            let name = json["schema"]["$ref"].as_str().unwrap_or_default();
            name.strip_prefix("#/components/schemas/").is_some_and(|it| named.contains_key(it))
        };
        for route in ROUTES {
            let operation = &document["paths"][route.path][route.method];
            let whole = format!("{} {}: {operation}", route.method, route.path);
            let answers = operation["responses"].as_object().unwrap();
            assert!(answers.contains_key("200"), "{whole}");
            assert!(answers.values().all(is_named), "{whole}");
            assert!(is_named(&operation["requestBody"]), "{whole}");
        }
        for (name, schema) in named {
            let says_something = ["type", "$ref", "anyOf", "oneOf", "allOf", "enum", "const"];
            assert!(says_something.iter().any(|it| schema.get(it).is_some()), "{name}: {schema}");
        }
    }

    #[test]
    fn every_reference_leads_to_a_schema() {
        fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
            match value {
                Value::Object(fields) => {
                    found.extend(fields.get("$ref").and_then(Value::as_str));
                    fields.values().for_each(|field| references(field, found));
                }
                Value::Array(values) => values.iter().for_each(|value| references(value, found)),
                _ => {}
            }
        }
        let document = document();
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(found.len() > ROUTES.len(), "{found:?}");
        for reference in found {
            let at = reference.strip_prefix('#').unwrap();
            assert!(document.pointer(at).is_some(), "{reference}");
        }
    }

    #[test]
    fn a_name_means_the_same_in_requests_and_in_answers() {
        let mut generators = Generators::new();
        let problem = generators.writes.subschema_for::<Told>();
        for route in ROUTES {
            operation(route, &problem, &mut generators);
        }
        let read = generators.reads.take_definitions(true);
        let written = generators.writes.take_definitions(true);
        let mut both = 0;
        for (name, schema) in &read {
            if let Some(other) = written.get(name) {
                assert_eq!(schema, other, "{name}");
                both += 1;
            }
        }
        assert!(both > 0, "nothing is both read and written");
        // schemars gives the second type of a name a number.
        let is_second = |name: &&String| name.ends_with(|last: char| last.is_ascii_digit());
        assert_eq!(read.keys().chain(written.keys()).find(is_second), None);
    }
}
