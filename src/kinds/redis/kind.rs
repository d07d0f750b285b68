//! What the kind `redis` is to everything above it: its usual settings, and its calls as JSON.

use std::{sync::Arc, time::Duration};

use axum::http::HeaderMap;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use fusebox_actors::{WriteFallback, connector::SharedConnector};
use serde_json::{Value, json};

use super::{
    connector::RedisConnector,
    protocol::json,
    settings::{RedisSettings, RedisUrl, RedisUrlError, Secret},
};
use crate::kinds::{
    options::CallOptionsJson,
    port::{Complaint, Defaults, Identity, JsonCall, Kind},
};
use crate::{
    config::{BackendConfig, Endpoint},
    exact::Outgoing,
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

/// `POST …/call`
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object such as {\"command\": [\"GET\", \"key\"]}")]
struct Call<'a> {
    #[serde(borrow)]
    command: json::Arguments<'a>,
    #[serde(default)]
    options: CallOptionsJson,
}

impl Kind for Redis {
    fn name(&self) -> &'static str {
        "redis"
    }

    fn defaults(&self) -> &Defaults {
        &DEFAULTS
    }

    fn check(&self, endpoint: &Endpoint) -> Result<(), Complaint> {
        let nobody = Identity::default();
        settings(endpoint, &nobody).map(drop)
    }

    fn connector(
        &self,
        backend: &BackendConfig,
        identity: &Identity,
    ) -> Result<SharedConnector, String> {
        let mut settings =
            settings(&backend.endpoint, identity).map_err(|(key, why)| format!("{key} {why}"))?;
        settings.timeout = backend.settings.timeout;
        settings.name.clone_from(&backend.settings.name);
        Ok(RedisConnector::new(settings))
    }

    fn call_from_json(&self, json: &[u8], _: &HeaderMap) -> Result<JsonCall, String> {
        let call: Call<'_> = serde_json::from_slice(json).map_err(|error| error.to_string())?;
        let body = json::body_from_json(&call.command)?;
        Ok(JsonCall { body, options: call.options })
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
            return Err("a Redis command is wanted, such as: GET key".into());
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
fn settings(endpoint: &Endpoint, identity: &Identity) -> Result<RedisSettings, Complaint> {
    let url: RedisUrl = endpoint.url.0.parse().map_err(|error: RedisUrlError| {
        // The key that stands before is the address's own.
        let text = error.to_string();
        let text = text.strip_prefix("url ").map(str::to_owned);
        ("url", text.unwrap_or_else(|| format!("is not usable: {error}")))
    })?;
    let mut settings = RedisSettings::new(url, identity.instance.clone(), identity.run.clone());
    settings.former.clone_from(&identity.former);
    settings.twins = Arc::clone(&identity.twins);
    if endpoint.ca_file.is_some() {
        let tls = settings.tls.as_mut();
        let tls =
            tls.ok_or(("url", "must begin with rediss:// where tls.ca_file is set".to_owned()))?;
        tls.ca_file.clone_from(&endpoint.ca_file);
    }
    if endpoint.username.is_some() {
        settings.username.clone_from(&endpoint.username);
    }
    if let Some(password) = &endpoint.password {
        settings.password = Some(Secret::new(password.expose()));
    }
    settings.password_file.clone_from(&endpoint.password_from);
    if let Some(database) = &endpoint.database {
        let number = database.parse().map_err(|_| {
            ("database", format!("must be a number such as 0 for redis, got {database:?}"))
        })?;
        settings.database = number;
    }
    settings.on_miss_error = endpoint.miss_is_error;
    settings.scripts_are_barriers = endpoint.scripts_are_barriers;
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::Url;

    fn made(endpoint: Endpoint) -> Result<RedisSettings, Complaint> {
        settings(
            &endpoint,
            &Identity { instance: "i".into(), run: "r".into(), ..Identity::default() },
        )
    }

    #[test]
    fn settings_of_their_own_win_over_the_address() {
        let url = Url("rediss://ada:one@h:7/2".into());
        let plain = made(Endpoint { url: url.clone(), ..Endpoint::default() }).unwrap();
        assert_eq!((plain.username.as_deref(), plain.database), (Some("ada"), 2));
        let own = made(Endpoint {
            url,
            database: Some("3".into()),
            username: Some("bob".into()),
            password: Some(crate::config::Secret::new("two")),
            ca_file: Some("/ca".into()),
            miss_is_error: true,
            scripts_are_barriers: true,
            ..Endpoint::default()
        })
        .unwrap();
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
