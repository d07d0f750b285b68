//! What the kind `firestore` is to everything above it: its usual settings, and its calls as JSON.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use axum::http::HeaderMap;
use bytes::Bytes;
use fusebox_actors::{WriteFallback, connector::SharedConnector};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use toml::Table;

use super::{
    connector::FirestoreConnector,
    door,
    protocol::{json, numbers::object_of},
    settings::{FirestoreSettings, FirestoreUrl, FirestoreUrlError},
    transport::auth,
};
use crate::kinds::{
    options::CallOptionsJson,
    port::{DoorSpec, Identity, JsonCall, Kind, RawReply},
};
use crate::{
    config::{
        BackendConfig, Complaint, Defaults, Endpoint, Section, Variable, declared::schema_of,
        section, setting::reload,
    },
    exact::Outgoing,
    ingress::door::WireDoor,
};

/// Firestore over gRPC, or an emulator of it.
pub(crate) struct Firestore;

const DEFAULTS: Defaults = Defaults {
    // An emulator's usual address: the real one wants a project, which only the configuration knows.
    url: "http://127.0.0.1:8080",
    critical: false,
    timeout: Duration::from_secs(10),
    failure_threshold: 8,
    recovery_timeout: Duration::from_secs(60),
    success_threshold: 3,
    cache_ttl: Duration::from_secs(1_800),
    cache_max_stale: Duration::from_secs(1_800),
    write_fallback: WriteFallback::Queue,
};

/// The caller's own credentials: `Authorization` is the daemon's own.
const AUTHORIZATION: &str = "x-fusebox-authorization";

const VARIABLES: &[Variable] = &[
    Variable::new("FIRESTORE_CIRCUIT_BREAKER_THRESHOLD", "breaker.failure_threshold"),
    // Its clients want an address without a scheme.
    Variable { name: "FIRESTORE_EMULATOR_HOST", key: "url", text: with_scheme },
    Variable::new("FIRESTORE_QUEUE_FILE", "queue.dir"),
    Variable::new("GOOGLE_APPLICATION_CREDENTIALS", "credentials_file"),
    Variable::new("GOOGLE_CLOUD_PROJECT", "project"),
];

fn with_scheme(host: &str) -> String {
    if host.contains("://") { host.to_owned() } else { format!("http://{host}") }
}

/// What a Firestore has of its own in the configuration.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Own {
    /// The name of the Google Cloud project.
    #[schemars(extend("setting" = reload().rule("the project of the key in credentials_file, or of the machine").example("my-project")))]
    project: Option<String>,
    /// The file with the key of a service account. It is needed if the machine itself has no service account.
    #[schemars(extend("setting" = reload().example("/etc/fusebox/service-account.json")))]
    credentials_file: Option<PathBuf>,
    /// The name of the database.
    #[schemars(extend("setting" = reload().rule("the database in the url, otherwise (default)").example("(default)")))]
    database: Option<String>,
}

impl Section for Firestore {
    fn name(&self) -> &'static str {
        "firestore"
    }

    fn defaults(&self) -> &Defaults {
        &DEFAULTS
    }

    fn schema(&self) -> Schema {
        schema_of::<Own>()
    }

    fn variables(&self) -> &'static [Variable] {
        VARIABLES
    }

    fn has_door(&self) -> bool {
        true
    }

    fn has_door_by_default(&self) -> bool {
        // Its clients want a host and a port.
        false
    }

    fn check(&self, endpoint: &Endpoint, own: &Table) -> Result<(), Vec<Complaint>> {
        let read: Own = section::own(own)?;
        settings(endpoint, &read).map(drop).map_err(|it| vec![it])
    }
}

impl Kind for Firestore {
    fn connector(
        &self,
        backend: &BackendConfig,
        identity: &Identity,
    ) -> Result<SharedConnector, String> {
        let mut settings = of_backend(backend)?;
        settings.timeout = backend.settings.timeout;
        let earlier = identity.timeouts.get(&backend.settings.name);
        settings.earlier_timeout = earlier.copied().unwrap_or_default();
        settings.name.clone_from(&backend.settings.name);
        Ok(FirestoreConnector::new(settings))
    }

    fn door(&self, spec: DoorSpec) -> Option<Result<Arc<dyn WireDoor>, String>> {
        Some(door::open(spec))
    }

    fn call_schema(&self, generator: &mut SchemaGenerator) -> Schema {
        let options = generator.subschema_for::<CallOptionsJson>();
        json_schema!({
            "type": "object",
            "description": "An operation of Firestore. What else it takes depends on op.",
            "properties": {
                "op": { "type": "string", "enum": json::ops(), "description": "What is done." },
                "options": options,
            },
            "required": ["op"],
            "additionalProperties": true,
        })
    }

    fn call_from_json(&self, json: &[u8], headers: &HeaderMap) -> Result<JsonCall, String> {
        let mut call = object_of(json).map_err(|why| {
            format!(r#"{why}; an example of a call is {{"op":"get","path":"users/ada"}}"#)
        })?;
        let options: CallOptionsJson = match call.remove("options") {
            None => CallOptionsJson::default(),
            Some(options) => {
                serde_json::from_value(options).map_err(|error| format!("options: {error}"))?
            }
        };
        Ok(JsonCall { body: json::body_from_json(call, &token(headers)?)?, options })
    }

    fn call_from_raw(&self, headers: &HeaderMap, body: Bytes) -> Result<Bytes, String> {
        let text = |name: &str| match headers.get(name).map(|value| value.to_str()) {
            None => Ok(None),
            Some(Ok(text)) => Ok(Some(text.to_owned())),
            Some(Err(_)) => Err(format!("the header {name} is not text")),
        };
        // The headers name what the body is about; alone, the body is the whole call.
        let Some(op) = text("x-fusebox-op")? else {
            return json::body_from_json(object_of(&body)?, &token(headers)?);
        };
        let mut call = Map::from_iter([("op".to_owned(), json!(op))]);
        if let Some(path) = text("x-fusebox-path")? {
            call.insert("path".into(), json!(path));
        }
        if !body.is_empty() {
            call.insert("data".into(), Value::Object(object_of(&body)?));
        }
        json::body_from_json(call, &token(headers)?)
    }

    fn stream_from_json(&self, json: &[u8], headers: &HeaderMap) -> Result<Bytes, String> {
        let mut query = object_of(json).map_err(|why| {
            format!(
                r#"{why}; required is {{"path":"users/ada"}}, or a query {{"collection":"users", …}}"#
            )
        })?;
        let op = if query.contains_key("path") { "get" } else { "query" };
        query.insert("op".into(), json!(op));
        json::body_from_json(query, &token(headers)?)
    }

    fn raw_call_max(&self) -> u64 {
        // Firestore takes 10 MiB a request; JSON is longer.
        32 << 20
    }

    fn reply_to_raw(&self, reply: &Bytes) -> RawReply {
        RawReply {
            content_type: "application/json; charset=UTF-8".into(),
            body: json::reply_to_json(reply).to_string().into(),
        }
    }

    fn reply_to_json<'a>(&self, reply: &'a Bytes) -> Outgoing<'a> {
        Outgoing::Made(json::reply_to_json(reply))
    }

    fn body_to_json(&self, body: &Bytes) -> Value {
        json::body_to_json(body)
    }

    fn call_from_args(
        &self,
        args: &[Vec<u8>],
        data: &mut dyn FnMut() -> Result<Option<Vec<u8>>, String>,
    ) -> Result<Value, String> {
        const WANTED: &str = "the arguments are: get|set|update|create|delete|query PATH [JSON]";
        let texts: Result<Vec<&str>, _> = args.iter().map(|arg| std::str::from_utf8(arg)).collect();
        let (op, path, given) = match texts.map_err(|_| "the arguments must be text")?.as_slice() {
            [op, path] => (*op, *path, None),
            [op, path, json] => (*op, *path, Some((*json).as_bytes().to_vec())),
            _ => return Err(WANTED.into()),
        };
        let object = |bytes: Vec<u8>| -> Result<Map<String, Value>, String> {
            object_of(&bytes).map_err(|why| format!("the JSON: {why}"))
        };
        let mut call = Map::from_iter([("op".into(), json!(op)), ("path".into(), json!(path))]);
        match op {
            "get" | "delete" => {}
            "set" | "update" | "create" => {
                let given = match given {
                    Some(given) => Some(given),
                    None => data()?,
                };
                let given =
                    given.ok_or("the document is required, as JSON or on the standard input")?;
                call.insert("data".into(), Value::Object(object(given)?));
            }
            "query" => {
                if let Some(given) = given {
                    call.extend(object(given)?);
                }
            }
            _ => return Err(WANTED.into()),
        }
        Ok(Value::Object(call))
    }
}

/// The bearer token in the caller's headers; empty if there is none.
fn token(headers: &HeaderMap) -> Result<String, String> {
    let Some(value) = headers.get(AUTHORIZATION) else { return Ok(String::new()) };
    let value = value.to_str().ok().and_then(|value| value.strip_prefix("Bearer "));
    value
        .map(|token| token.trim().to_owned())
        .filter(|token| !token.is_empty())
        .ok_or_else(|| format!("the header {AUTHORIZATION} must be: Bearer TOKEN"))
}

/// The connector's settings of a backend.
fn of_backend(backend: &BackendConfig) -> Result<FirestoreSettings, String> {
    let own = section::own(&backend.own.table).map_err(section::told)?;
    settings(&backend.endpoint, &own).map_err(|wrong| section::told(vec![wrong]))
}

fn settings(endpoint: &Endpoint, own: &Own) -> Result<FirestoreSettings, Complaint> {
    let url: FirestoreUrl = endpoint
        .url
        .0
        .parse()
        .map_err(|error: FirestoreUrlError| ("url".into(), error.to_string()))?;
    if endpoint.ca_file.is_some() && !url.tls {
        return Err(("url".into(), "must begin with https:// if tls.ca_file is set".into()));
    }
    if let Some(file) = &own.credentials_file
        && url.tls
        && let Err(error) = std::fs::File::open(file)
    {
        return Err((
            "credentials_file".into(),
            format!("cannot be read: {}: {error}", file.display()),
        ));
    }
    let mut settings = FirestoreSettings::new(url);
    if own.project.is_some() {
        settings.project.clone_from(&own.project);
    } else if let Some(file) = &own.credentials_file
        && settings.url.tls
    {
        settings.key_project = Some(project_of(file)?);
    }
    settings.credentials_file.clone_from(&own.credentials_file);
    settings.ca_file.clone_from(&endpoint.ca_file);
    if let Some(database) = &own.database {
        settings.database.clone_from(database);
    }
    Ok(settings)
}

/// The project of the key in that file. What is queued and cached belongs to it, not to whatever the file says later.
fn project_of(file: &Path) -> Result<String, Complaint> {
    match auth::project_of(file) {
        Ok(Some(project)) => Ok(project),
        Ok(None) => {
            let why = format!("must be set: {} has no project_id", file.display());
            Err(("project".into(), why))
        }
        Err(why) => {
            let why = format!("cannot be read: {}: {why}", file.display());
            Err(("credentials_file".into(), why))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Url;

    fn made(url: &str, own: &str) -> Result<FirestoreSettings, Complaint> {
        let endpoint = Endpoint { url: Url(url.into()), ..Endpoint::default() };
        settings(&endpoint, &toml::from_str(own).unwrap())
    }

    #[test]
    fn an_emulator_gets_a_project_and_the_real_one_its_own() {
        let local = made("http://h:1", "").unwrap();
        assert_eq!(
            local.project.as_deref(),
            Some(crate::kinds::firestore::settings::LOCAL_PROJECT)
        );
        let own = "project = 'p'\ndatabase = 'd'";
        let real = made("https://firestore.googleapis.com", own).unwrap();
        assert_eq!((real.project.as_deref(), real.database.as_str()), (Some("p"), "d"));
        assert_eq!(made("grpc://h", "").unwrap_err().0, "url");
        assert_eq!(
            made("https://h", "credentials_file = '/nowhere'").unwrap_err().0,
            "credentials_file"
        );
    }

    #[test]
    fn a_key_says_which_project_is_meant_and_what_is_kept_belongs_to_it() {
        let folder = tempfile::tempdir().unwrap();
        let with_key = |name: &str, key: &str, more: &str| {
            let file = folder.path().join(name);
            std::fs::write(&file, key).unwrap();
            made("https://h", &format!("credentials_file = '{}'\n{more}", file.display()))
        };
        let of = |project: &str| format!(r#"{{ "type": "x", "project_id": "{project}" }}"#);
        let nameless = of("");
        let [one, other] =
            ["pa", "pb"].map(|project| with_key(project, &of(project), "").unwrap().target());
        assert_eq!(one.as_str(), "firestore h:443/pa/(default)");
        assert_eq!(other.as_str(), "firestore h:443/pb/(default)");
        // What is queued without a project keeps its lanes, so that it may follow to another one.
        let connector = FirestoreConnector::new(with_key("pa", &of("pa"), "").unwrap());
        assert_eq!(connector.namespace(), b"/(default)");
        let named = with_key("pa", &of("pa"), "project = 'p'").unwrap();
        assert_eq!(named.known_project(), Some("p"));
        assert_eq!(FirestoreConnector::new(named).namespace(), b"p/(default)");
        for (key, complaint) in [
            (r#"{ "type": "authorized_user" }"#, "project"),
            (nameless.as_str(), "project"),
            ("s3cret", "credentials_file"),
        ] {
            let (about, why) = with_key("key", key, "").unwrap_err();
            assert_eq!(about, complaint, "{why}");
            assert!(!why.contains("s3cret"), "{why}");
            assert!(with_key("key", key, "project = 'p'").is_ok());
        }
        // An emulator wants no credentials, and its project has a name of its own.
        let local = made("http://h", "credentials_file = '/nowhere'").unwrap();
        assert_eq!(
            local.project.as_deref(),
            Some(crate::kinds::firestore::settings::LOCAL_PROJECT)
        );
    }

    #[test]
    fn a_call_is_read_from_json_from_headers_and_from_the_command_line_alike() {
        let none = HeaderMap::new();
        let json =
            br#"{"op":"set","path":"users/ada","data":{"born":1815},"options":{"priority":"low"}}"#;
        let from_json = Firestore.call_from_json(json, &none).unwrap().body;
        let mut headers = HeaderMap::new();
        headers.insert("x-fusebox-op", "set".parse().unwrap());
        headers.insert("x-fusebox-path", "users/ada".parse().unwrap());
        let from_raw = Firestore.call_from_raw(&headers, r#"{"born":1815}"#.into()).unwrap();
        assert_eq!(from_json, from_raw);
        let args = ["set", "users/ada", r#"{"born":1815}"#].map(|arg| arg.as_bytes().to_vec());
        let call = Firestore.call_from_args(&args, &mut || Ok(None)).unwrap();
        let from_args = Firestore.call_from_json(call.to_string().as_bytes(), &none).unwrap();
        assert_eq!(from_json, from_args.body);
        let mut piped = || Ok(Some(br#"{"born":1815}"#.to_vec()));
        let piped = Firestore.call_from_args(&args[..2], &mut piped).unwrap();
        assert_eq!(piped, call);
        assert!(Firestore.call_from_args(&args[..1], &mut || Ok(None)).is_err());
    }

    #[test]
    fn a_callers_own_token_goes_with_the_call_and_must_be_one() {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, "Bearer secret".parse().unwrap());
        let json = br#"{"op":"get","path":"users/ada"}"#;
        let with = Firestore.call_from_json(json, &headers).unwrap().body;
        assert_ne!(with, Firestore.call_from_json(json, &HeaderMap::new()).unwrap().body);
        headers.insert(AUTHORIZATION, "Basic x".parse().unwrap());
        assert!(Firestore.call_from_json(json, &headers).unwrap_err().contains("Bearer TOKEN"));
    }
}
