//! What the kind `clickhouse` is to everything above it: its usual settings, and its calls as JSON.

use std::{borrow::Cow, sync::Arc, time::Duration};

use axum::http::HeaderMap;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use fusebox_actors::{WriteFallback, connector::SharedConnector};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use toml::Table;

use super::{
    connector::ClickHouseConnector,
    door::ClickHouseDoor,
    protocol::{
        json::{self, Data, JsonParts, body_from_json, escaped, takes_data},
        wire::{Call as WireCall, Header, parts_of},
    },
    settings::{ClickHouseSettings, ClickHouseUrl, ClickHouseUrlError, SessionsPlace},
};
use crate::kinds::{
    options::CallOptionsJson,
    port::{DoorSpec, Identity, JsonCall, Kind, RawReply, in_base64},
};
use crate::{
    config::{
        BackendConfig, Complaint, Defaults, Endpoint, Section, Variable, declared::schema_of,
        section, setting::reload,
    },
    exact::{Members, Outgoing},
    ingress::door::WireDoor,
};

/// ClickHouse over its HTTP interface.
pub(crate) struct ClickHouse;

const DEFAULTS: Defaults = Defaults {
    url: "http://127.0.0.1:8123",
    critical: true,
    timeout: Duration::from_secs(30),
    failure_threshold: 3,
    recovery_timeout: Duration::from_secs(120),
    success_threshold: 2,
    cache_ttl: Duration::from_secs(300),
    cache_max_stale: Duration::from_secs(3_600),
    write_fallback: WriteFallback::Refuse,
};

/// Prefixes of the headers of `call/raw` that carry many values.
const PARAMS: &str = "x-fusebox-param-";
const SETTINGS: &str = "x-fusebox-setting-";

const VARIABLES: &[Variable] = &[
    Variable::new("CLICKHOUSE_CIRCUIT_BREAKER_THRESHOLD", "breaker.failure_threshold"),
    Variable::new("CLICKHOUSE_URL", "url"),
];

/// What a ClickHouse has of its own in the configuration.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Own {
    /// The database of calls that do not name one.
    #[schemars(extend("setting" = reload().rule("the database in the url, otherwise default").example("default")))]
    database: Option<String>,
    /// Whether inserts into one table are applied in the order in which they were acknowledged. If not, several of them
    /// are sent at once: their order does not change which rows the table has.
    #[schemars(extend("setting" = reload().default(false)))]
    ordered: bool,
}

/// A statement of ClickHouse.
#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "ClickHouseCall")]
#[serde(deny_unknown_fields, expecting = "an object such as {\"query\": \"SELECT 1\"}")]
struct Call<'a> {
    /// The statement.
    query: String,
    /// The values of its parameters, such as `{id:UInt64}`.
    #[serde(default, borrow)]
    #[schemars(with = "Map<String, Value>")]
    params: Members<'a>,
    /// Settings of the server for this call alone.
    #[serde(default, borrow)]
    #[schemars(with = "Map<String, Value>")]
    settings: Members<'a>,
    /// The format of the answer, or of the rows of an INSERT.
    format: Option<String>,
    /// The rows of an INSERT: a text, or `{"base64": "…"}`.
    #[serde(default)]
    #[schemars(schema_with = "data_schema")]
    data: Option<Data>,
    /// The database.
    database: Option<String>,
    /// What is asked of the call.
    #[serde(default)]
    options: CallOptionsJson,
}

fn data_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "anyOf": [{ "type": ["string", "null"] }, in_base64()] })
}

impl Section for ClickHouse {
    fn name(&self) -> &'static str {
        "clickhouse"
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

    fn check(&self, endpoint: &Endpoint, own: &Table) -> Result<(), Vec<Complaint>> {
        let read: Own = section::own(own)?;
        settings(endpoint, &read, &Identity::default()).map(drop).map_err(|it| vec![it])
    }
}

impl Kind for ClickHouse {
    fn connector(
        &self,
        backend: &BackendConfig,
        identity: &Identity,
    ) -> Result<SharedConnector, String> {
        let mut settings = of_backend(backend, identity)?;
        settings.timeout = backend.settings.timeout;
        settings.name.clone_from(&backend.settings.name);
        settings.sessions = sessions(backend, identity);
        Ok(ClickHouseConnector::new(settings))
    }

    fn door(&self, spec: DoorSpec) -> Option<Result<Arc<dyn WireDoor>, String>> {
        Some(ClickHouseDoor::open(spec).map(|door| Arc::new(door) as Arc<dyn WireDoor>))
    }

    fn call_schema(&self, generator: &mut SchemaGenerator) -> Schema {
        generator.subschema_for::<Call<'_>>()
    }

    fn call_from_json(&self, json: &[u8], _: &HeaderMap) -> Result<JsonCall, String> {
        let call: Call<'_> = serde_json::from_slice(json).map_err(|error| error.to_string())?;
        let Call { query, params, settings, format, data, database, options } = call;
        let parts = JsonParts { query, params, settings, format, data, database };
        Ok(JsonCall { body: body_from_json(parts)?, options })
    }

    fn call_from_raw(&self, headers: &HeaderMap, body: Bytes) -> Result<Bytes, String> {
        let text = |name: &str| match headers.get(name).map(|value| value.to_str()) {
            None => Ok(None),
            Some(Ok(text)) => Ok(Some(text.to_owned())),
            Some(Err(_)) => Err(format!("the header {name} is not text")),
        };
        let mut header = Header {
            format: text("x-fusebox-format")?,
            database: text("x-fusebox-database")?,
            ..Header::default()
        };
        for (name, value) in headers {
            let value = || {
                value
                    .to_str()
                    .map(str::to_owned)
                    .map_err(|_| format!("the header {name} is not text"))
            };
            if let Some(param) = name.as_str().strip_prefix(PARAMS) {
                header.params.insert(param.to_owned(), escaped(&value()?));
            } else if let Some(setting) = name.as_str().strip_prefix(SETTINGS) {
                header.settings.insert(setting.to_owned(), value()?);
            }
        }
        let data = if let Some(query) = text("x-fusebox-query")? {
            header.query = query;
            body
        } else {
            let query = std::str::from_utf8(&body);
            query
                .map_err(
                    |_| "the body is not text: for an INSERT, put the query into X-Fusebox-Query",
                )?
                .clone_into(&mut header.query);
            Bytes::new()
        };
        Ok(WireCall { header, data }.to_bytes())
    }

    fn raw_call_max(&self) -> u64 {
        1 << 30
    }

    fn raw_held_max(&self) -> u64 {
        1 << 20
    }

    fn reply_to_raw(&self, reply: &Bytes) -> RawReply {
        let (format, body) = parts_of(reply);
        RawReply { content_type: content_type(&format), body }
    }

    fn reply_to_json<'a>(&self, reply: &'a Bytes) -> Outgoing<'a> {
        json::reply_to_json(reply)
    }

    fn body_to_json(&self, body: &Bytes) -> Value {
        json::body_to_json(body)
    }

    fn call_from_args(
        &self,
        args: &[Vec<u8>],
        data: &mut dyn FnMut() -> Result<Option<Vec<u8>>, String>,
    ) -> Result<Value, String> {
        let [query] = args else {
            return Err(r#"exactly one query is required, such as: "SELECT 1 FORMAT CSV""#.into());
        };
        let query = std::str::from_utf8(query).map_err(|_| "the query must be text")?;
        let mut call = json!({ "query": query });
        if takes_data(query) {
            let data =
                data()?.ok_or("the rows of this INSERT are required on the standard input")?;
            let data = match String::from_utf8(data) {
                Ok(text) => json!(text),
                Err(bytes) => json!({ "base64": STANDARD.encode(bytes.as_bytes()) }),
            };
            if let Some(fields) = call.as_object_mut() {
                fields.insert("data".into(), data);
            }
        }
        Ok(call)
    }
}

/// What a format is to an HTTP client.
fn content_type(format: &str) -> Cow<'static, str> {
    Cow::Borrowed(match format {
        "summary" | "JSON" | "JSONStrings" | "JSONCompact" | "JSONCompactStrings" => {
            "application/json; charset=UTF-8"
        }
        each if each.starts_with("JSON") => "application/x-ndjson; charset=UTF-8",
        csv if csv.starts_with("CSV") => "text/csv; charset=UTF-8",
        tab if tab.starts_with("TabSeparated") || tab.starts_with("TSV") => {
            "text/tab-separated-values; charset=UTF-8"
        }
        "XML" => "application/xml; charset=UTF-8",
        pretty if pretty.starts_with("Pretty") => "text/plain; charset=UTF-8",
        "Values" | "Vertical" | "Markdown" => "text/plain; charset=UTF-8",
        _ => "application/octet-stream",
    })
}

/// The file of the sessions that have state. The file is made before the store.
fn sessions(backend: &BackendConfig, identity: &Identity) -> Option<SessionsPlace> {
    let (state_dir, name) = (identity.state_dir.as_ref()?, &backend.settings.name);
    let store = backend.settings.queue_dir.clone();
    let store = store.unwrap_or_else(|| state_dir.join("backends").join(name));
    let file = state_dir.join("sessions").join(format!("{name}.dirty"));
    // What cannot be looked at may be one.
    Some(SessionsPlace { file, is_expected: store.try_exists().unwrap_or(true) })
}

/// The connector's settings of a backend.
fn of_backend(backend: &BackendConfig, identity: &Identity) -> Result<ClickHouseSettings, String> {
    let own = section::own(&backend.own.table).map_err(section::told)?;
    settings(&backend.endpoint, &own, identity).map_err(|wrong| section::told(vec![wrong]))
}

fn settings(
    endpoint: &Endpoint,
    own: &Own,
    identity: &Identity,
) -> Result<ClickHouseSettings, Complaint> {
    let url: ClickHouseUrl = endpoint
        .url
        .0
        .parse()
        .map_err(|error: ClickHouseUrlError| ("url".into(), error.to_string()))?;
    if endpoint.ca_file.is_some() && !url.tls {
        return Err(("url".into(), "must begin with https:// if tls.ca_file is set".into()));
    }
    let mut settings =
        ClickHouseSettings::new(url, identity.instance.clone(), identity.run.clone());
    settings.former = Arc::clone(&identity.former);
    settings.twins = Arc::clone(&identity.twins);
    settings.ca_file.clone_from(&endpoint.ca_file);
    if endpoint.username.is_some() {
        settings.username.clone_from(&endpoint.username);
    }
    if endpoint.password.is_some() {
        settings.password.clone_from(&endpoint.password);
    }
    settings.password_file.clone_from(&endpoint.password_from);
    if let Some(database) = &own.database {
        settings.database.clone_from(database);
    }
    settings.ordered = own.ordered;
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Url;

    fn made(url: &str, endpoint: Endpoint) -> Result<ClickHouseSettings, Complaint> {
        with(url, endpoint, "")
    }

    fn with(url: &str, endpoint: Endpoint, own: &str) -> Result<ClickHouseSettings, Complaint> {
        let identity = Identity { instance: "i".into(), run: "r".into(), ..Identity::default() };
        settings(
            &Endpoint { url: Url(url.into()), ..endpoint },
            &toml::from_str(own).unwrap(),
            &identity,
        )
    }

    #[test]
    fn settings_of_their_own_win_over_the_address() {
        let plain = made("http://ada:one@h/logs", Endpoint::default()).unwrap();
        assert_eq!((plain.username.as_deref(), plain.database.as_str()), (Some("ada"), "logs"));
        let endpoint = Endpoint { username: Some("bob".into()), ..Endpoint::default() };
        let own = "database = 'other'\nordered = true";
        let own = with("http://ada:one@h/logs", endpoint, own).unwrap();
        assert_eq!((own.username.as_deref(), own.database.as_str()), (Some("bob"), "other"));
        assert!(own.ordered && !plain.ordered);
        assert_eq!(made("redis://h", Endpoint::default()).unwrap_err().0, "url");
        let ca_file = Endpoint { ca_file: Some("/ca".into()), ..Endpoint::default() };
        assert!(made("http://h", ca_file).unwrap_err().1.starts_with("must begin with https://"));
    }

    #[test]
    fn a_raw_call_is_made_of_its_headers_and_its_body() {
        let mut headers = HeaderMap::new();
        let read = ClickHouse.call_from_raw(&headers, "SELECT 1".into()).unwrap();
        let call = WireCall::of(&read).unwrap();
        assert_eq!((call.header.query.as_str(), call.data.len()), ("SELECT 1", 0));
        for (name, value) in [
            ("x-fusebox-query", "INSERT INTO t FORMAT CSV"),
            ("x-fusebox-database", "d"),
            ("x-fusebox-format", "CSV"),
            ("x-fusebox-param-day", "2026-11-23"),
            ("x-fusebox-setting-max_threads", "2"),
        ] {
            headers.insert(name, value.parse().unwrap());
        }
        let insert = ClickHouse.call_from_raw(&headers, "1,2\n".into()).unwrap();
        let call = WireCall::of(&insert).unwrap();
        assert_eq!(call.data, "1,2\n");
        assert_eq!(call.header.database.as_deref(), Some("d"));
        assert_eq!(call.header.params["day"], "2026-11-23");
        assert_eq!(call.header.settings["max_threads"], "2");
    }

    #[test]
    fn the_command_lines_insert_takes_what_is_piped_in() {
        let args = |query: &str| vec![query.as_bytes().to_vec()];
        let mut piped = || Ok(Some(b"{\"a\":1}\n".to_vec()));
        let call = ClickHouse.call_from_args(&args("INSERT INTO t FORMAT JSONEachRow"), &mut piped);
        assert_eq!(call.unwrap()["data"], "{\"a\":1}\n");
        let mut nothing = || panic!("a read asks for no data");
        let call = ClickHouse.call_from_args(&args("SELECT 1"), &mut nothing).unwrap();
        assert_eq!(call, json!({ "query": "SELECT 1" }));
        let mut terminal = || Ok(None);
        let wanted = ClickHouse.call_from_args(&args("INSERT INTO t FORMAT CSV"), &mut terminal);
        assert!(wanted.unwrap_err().contains("standard input"));
    }

    #[test]
    fn formats_have_their_types() {
        for (format, is) in [
            ("JSON", "application/json; charset=UTF-8"),
            ("JSONEachRow", "application/x-ndjson; charset=UTF-8"),
            ("CSVWithNames", "text/csv; charset=UTF-8"),
            ("Parquet", "application/octet-stream"),
        ] {
            assert_eq!(content_type(format), is);
        }
    }
}
