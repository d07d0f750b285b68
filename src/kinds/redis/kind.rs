//! What the kind `redis` is to everything above it: its usual settings, and its calls as JSON.

use std::{sync::Arc, time::Duration};

use axum::http::HeaderMap;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use fusebox_actors::{WriteFallback, connector::SharedConnector};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use serde_json::{Value, json};
use toml::Table;

use super::{
    connector::RedisConnector,
    door,
    protocol::{internal, json},
    settings::{RedisSettings, RedisUrl, RedisUrlError},
};
use crate::kinds::{
    options::CallOptionsJson,
    port::{DoorSpec, Identity, JsonCall, Kind, in_base64},
};
use crate::{
    config::{
        BackendConfig, Complaint, Defaults, Endpoint, Section, Variable, chosen,
        declared::schema_of,
        section,
        setting::{patch, reload},
    },
    exact::Outgoing,
    ingress::door::WireDoor,
};

/// Redis and what speaks its protocol.
pub(crate) struct Redis;

const DEFAULTS: Defaults = Defaults {
    url: "redis://127.0.0.1:6379",
    critical: false,
    timeout: Duration::from_secs(5),
    failure_threshold: 5,
    recovery_timeout: Duration::from_secs(30),
    success_threshold: 3,
    cache_ttl: Duration::from_secs(300),
    cache_max_stale: Duration::from_secs(300),
    write_fallback: WriteFallback::Queue,
};

const VARIABLES: &[Variable] = &[
    Variable::new("REDIS_CIRCUIT_BREAKER_THRESHOLD", "breaker.failure_threshold"),
    Variable::new("REDIS_FALLBACK_CACHE_DIR", "cache.dir"),
    Variable::new("REDIS_URL", "url"),
];

/// What a Redis has of its own in the configuration.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Own {
    /// The number of the database.
    #[schemars(extend("setting" = reload().rule("the number in the url, otherwise 0").example(0)))]
    database: Option<Database>,
    /// The answer to a read in an outage, if fusebox does not have the value. `nil`: nil; the caller then computes the
    /// value itself. `error`: an error. Set `error` if Redis is your primary store.
    #[schemars(extend("setting" = patch().default("nil").words(ON_MISS)))]
    on_miss: String,
    /// The keys that a script (EVAL, EVALSHA, FCALL) may read or change. The script waits for the queued writes to
    /// these keys, and fusebox drops the cached values of these keys. `declared`: the keys that the script declares.
    /// `barrier`: all keys. Set `barrier` if scripts use keys that they do not declare.
    #[schemars(extend("setting" = reload().default("declared").words(SCRIPTS)))]
    scripts: String,
}

/// A database by its number, as a number or as text.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged, expecting = "a database's number")]
enum Database {
    Number(u32),
    Text(String),
}

/// What a cache miss answers in an outage: a nil, or an error.
const ON_MISS: &[(&str, bool)] = &[("nil", false), ("error", true)];
/// What a script locks: its declared keys, or every lane.
const SCRIPTS: &[(&str, bool)] = &[("declared", false), ("barrier", true)];

/// A command of Redis.
#[derive(Deserialize, JsonSchema)]
#[schemars(rename = "RedisCall")]
#[serde(deny_unknown_fields, expecting = "an object such as {\"command\": [\"GET\", \"key\"]}")]
struct Call<'a> {
    /// The command's name and its arguments.
    #[serde(borrow)]
    #[schemars(schema_with = "command_schema")]
    command: json::Arguments<'a>,
    /// What is asked of the call.
    #[serde(default)]
    options: CallOptionsJson,
}

fn command_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "minItems": 1,
        "items": { "anyOf": [{ "type": ["string", "number"] }, in_base64()] },
    })
}

impl Section for Redis {
    fn name(&self) -> &'static str {
        "redis"
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

impl Kind for Redis {
    fn door(&self, spec: DoorSpec) -> Option<Result<Arc<dyn WireDoor>, String>> {
        Some(door::port::open(spec))
    }

    fn connector(
        &self,
        backend: &BackendConfig,
        identity: &Identity,
    ) -> Result<SharedConnector, String> {
        let mut settings = of_backend(backend, identity)?;
        settings.timeout = backend.settings.timeout;
        settings.name.clone_from(&backend.settings.name);
        Ok(RedisConnector::new(settings))
    }

    fn retune(&self, connector: SharedConnector, own: &Table) {
        let any: Arc<dyn std::any::Any + Send + Sync> = connector;
        let (redis, own) = (any.downcast::<RedisConnector>(), section::own::<Own>(own));
        if let (Ok(redis), Ok(own)) = (redis, own) {
            redis.take_misses_for_errors(chosen(&own.on_miss, false, ON_MISS));
        }
    }

    fn call_schema(&self, generator: &mut SchemaGenerator) -> Schema {
        generator.subschema_for::<Call<'_>>()
    }

    fn call_from_json(&self, json: &[u8], _: &HeaderMap) -> Result<JsonCall, String> {
        let call: Call<'_> = serde_json::from_slice(json).map_err(|error| error.to_string())?;
        let body = of_caller(json::body_from_json(&call.command)?)?;
        Ok(JsonCall { body, options: call.options })
    }

    fn call_from_raw(&self, _: &HeaderMap, body: Bytes) -> Result<Bytes, String> {
        of_caller(body)
    }

    fn raw_call_max(&self) -> u64 {
        // A call is held in memory; a real server's own limit is 512 MiB for a string.
        128 << 20
    }

    fn reply_to_json<'a>(&self, reply: &'a Bytes) -> Outgoing<'a> {
        Outgoing::Made(json::reply_to_json(reply))
    }

    fn prints_json(&self) -> bool {
        false
    }

    fn body_to_json(&self, body: &Bytes) -> Value {
        json::body_to_json(body)
    }

    fn call_from_args(
        &self,
        args: &[Vec<u8>],
        _: &mut dyn FnMut() -> Result<Option<Vec<u8>>, String>,
    ) -> Result<Value, String> {
        if args.is_empty() {
            return Err("a Redis command is required, such as: GET key".into());
        }
        let command: Vec<Value> = args
            .iter()
            .map(|arg| match std::str::from_utf8(arg) {
                Ok(text) => json!(text),
                Err(_) => json!({ "base64": STANDARD.encode(arg) }),
            })
            .collect();
        Ok(json!({ "command": command }))
    }
}

/// The connector's settings of a backend.
fn of_backend(backend: &BackendConfig, identity: &Identity) -> Result<RedisSettings, String> {
    let own = section::own(&backend.own.table).map_err(section::told)?;
    settings(&backend.endpoint, &own, identity).map_err(|wrong| section::told(vec![wrong]))
}

fn settings(
    endpoint: &Endpoint,
    own: &Own,
    identity: &Identity,
) -> Result<RedisSettings, Complaint> {
    let url: RedisUrl = endpoint.url.0.parse().map_err(|error: RedisUrlError| {
        // The key before it is the address's own.
        let text = error.to_string();
        let text = text.strip_prefix("url ").map(str::to_owned);
        ("url".into(), text.unwrap_or_else(|| format!("is not usable: {error}")))
    })?;
    let mut settings = RedisSettings::new(url, identity.instance.clone(), identity.run.clone());
    settings.former = Arc::clone(&identity.former);
    settings.twins = Arc::clone(&identity.twins);
    if endpoint.ca_file.is_some() {
        let tls = settings.tls.as_mut();
        let tls = tls
            .ok_or(("url".into(), "must begin with rediss:// if tls.ca_file is set".to_owned()))?;
        tls.ca_file.clone_from(&endpoint.ca_file);
    }
    if endpoint.username.is_some() {
        settings.username.clone_from(&endpoint.username);
    }
    if endpoint.password.is_some() {
        settings.password.clone_from(&endpoint.password);
    }
    settings.password_file.clone_from(&endpoint.password_from);
    match &own.database {
        None => {}
        Some(Database::Number(number)) => settings.database = *number,
        Some(Database::Text(text)) => {
            settings.database = text.parse().map_err(|_| {
                ("database".into(), format!("must be a number such as 0 for redis, got {text:?}"))
            })?;
        }
    }
    settings.on_miss_error = chosen(&own.on_miss, false, ON_MISS);
    settings.scripts_are_barriers = chosen(&own.scripts, false, SCRIPTS);
    Ok(settings)
}

/// A call as a caller may make it. What it is, is looked at later; a transaction is made by the Redis door alone.
fn of_caller(body: Bytes) -> Result<Bytes, String> {
    if internal::is_multi(&body) {
        return Err("FUSEBOX.MULTI is for fusebox itself, and callers must not send it".into());
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{config::Url, kinds::redis::protocol::resp};

    fn made(endpoint: Endpoint) -> Result<RedisSettings, Complaint> {
        with(endpoint, "")
    }

    fn with(endpoint: Endpoint, own: &str) -> Result<RedisSettings, Complaint> {
        settings(
            &endpoint,
            &toml::from_str(own).unwrap(),
            &Identity { instance: "i".into(), run: "r".into(), ..Identity::default() },
        )
    }

    #[test]
    fn settings_of_their_own_win_over_the_address() {
        let url = Url("rediss://ada:one@h:7/2".into());
        let plain = made(Endpoint { url: url.clone(), ..Endpoint::default() }).unwrap();
        assert_eq!((plain.username.as_deref(), plain.database), (Some("ada"), 2));
        let own = Endpoint {
            url,
            username: Some("bob".into()),
            password: Some(crate::net::secret::Secret::new("two")),
            ca_file: Some("/ca".into()),
            ..Endpoint::default()
        };
        let own = with(own, "database = '3'\non_miss = 'error'\nscripts = 'barrier'").unwrap();
        assert_eq!((own.username.as_deref(), own.database), (Some("bob"), 3));
        assert_eq!(own.password.map(|password| password.expose().to_owned()), Some("two".into()));
        assert_eq!(own.tls.and_then(|tls| tls.ca_file), Some("/ca".into()));
        assert!(own.on_miss_error && own.scripts_are_barriers);
    }

    #[test]
    fn an_address_that_is_none_is_told_as_the_end_of_a_sentence() {
        let why = |url: &str, ca_file: Option<&str>| {
            let ca_file = ca_file.map(Into::into);
            let endpoint = Endpoint { url: Url(url.into()), ca_file, ..Endpoint::default() };
            made(endpoint).unwrap_err().1
        };
        assert!(why("http://h", None).starts_with("must begin with redis://"));
        assert!(why("redis://h:x", None).starts_with("is not usable: port must be"));
        assert!(why("redis://h", Some("/ca")).starts_with("must begin with rediss://"));
    }

    #[test]
    fn a_call_has_no_more_arguments_than_a_server_takes() {
        let call = |count: usize| {
            let json = format!(r#"{{"command":["DEL"{}]}}"#, ",1".repeat(count - 1));
            let of_json = Redis.call_from_json(json.as_bytes(), &HeaderMap::new());
            of_json.map(|call| resp::arguments(&call.body).map(|args| args.len()))
        };
        assert_eq!(call(1 << 20), Ok(Ok(1 << 20)));
        for count in [(1 << 20) + 1, 1_100_000] {
            let why = call(count).unwrap_err();
            let expected = format!("command must have at most 1048576 arguments, got {count}");
            assert!(why.starts_with(&expected), "{why}");
        }
    }

    /// Every text that is a number in JSON.
    fn any_number() -> impl Strategy<Value = String> {
        let form = r"-?(0|[1-9][0-9]{0,40})(\.[0-9]{1,30})?([eE][+-]?[0-9]{1,6})?";
        prop::string::string_regex(form).unwrap()
    }

    proptest! {
        #[test]
        fn a_number_is_sent_as_it_was_written(
            numbers in prop::collection::vec(any_number(), 1..5),
            comma in "[ \n\t]{0,2},[ \r]{0,2}",
        ) {
            let call = format!(r#"{{"command":["ECHO" {comma}{}]}}"#, numbers.join(&comma));
            let body = Redis.call_from_json(call.as_bytes(), &HeaderMap::new()).unwrap().body;
            let Value::Array(sent) = Redis.body_to_json(&body) else { panic!("a command") };
            let sent: Vec<&str> = sent.iter().filter_map(Value::as_str).collect();
            prop_assert_eq!(&sent[1..], &numbers);
        }
    }
}
