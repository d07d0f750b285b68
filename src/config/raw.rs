//! The configuration as it is written: everything optional, nothing checked beyond its type.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use bytesize::ByteSize;
use serde::Deserialize;

/// The whole file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawConfig {
    pub(crate) state_dir: Option<PathBuf>,
    pub(crate) socket: Option<PathBuf>,
    pub(crate) client_group: Option<String>,
    pub(crate) admin_group: Option<String>,
    pub(crate) http: RawHttp,
    pub(crate) calls: RawCalls,
    pub(crate) health: RawHealth,
    pub(crate) chaos: RawChaos,
    pub(crate) tracing: RawTracing,
    pub(crate) doors: Option<Vec<RawDoor>>,
    pub(crate) backends: BTreeMap<String, RawBackend>,
}

/// `[[doors]]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawDoor {
    pub(crate) kind: Option<String>,
    pub(crate) backend: Option<String>,
    pub(crate) listen: Option<String>,
    pub(crate) auth: Option<String>,
    pub(crate) callers_file: Option<PathBuf>,
    pub(crate) plaintext: Option<bool>,
    pub(crate) connections: Option<u32>,
    pub(crate) in_bytes: Option<ByteSize>,
    pub(crate) out_bytes: Option<ByteSize>,
    pub(crate) out_client: Option<ByteSize>,
    pub(crate) pinned: Option<u32>,
    #[serde(with = "humantime_serde")]
    pub(crate) idle_timeout: Option<Duration>,
    pub(crate) min_ack: Option<String>,
    #[serde(with = "humantime_serde")]
    pub(crate) deadline: Option<Duration>,
    pub(crate) priority: Option<String>,
    pub(crate) unavailable: Option<String>,
    pub(crate) on_unknown: Option<String>,
    pub(crate) effect_reply: Option<String>,
    pub(crate) projects: Option<Vec<String>>,
}

/// `[http]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawHttp {
    pub(crate) listen: Option<String>,
    pub(crate) token_file: Option<PathBuf>,
    pub(crate) plaintext: Option<bool>,
    pub(crate) tls: RawHttpTls,
}

/// `[http.tls]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawHttpTls {
    pub(crate) cert_file: Option<PathBuf>,
    pub(crate) key_file: Option<PathBuf>,
}

/// `[calls]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawCalls {
    pub(crate) bytes: Option<ByteSize>,
}

/// `[chaos]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawChaos {
    /// Whether faults on purpose may be set, over TCP as well; over the admin socket alone where it is not said.
    pub(crate) enabled: Option<bool>,
}

/// `[health]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawHealth {
    #[serde(with = "humantime_serde")]
    pub(crate) interval: Option<Duration>,
    #[serde(with = "humantime_serde")]
    pub(crate) timeout: Option<Duration>,
    pub(crate) auto_recovery: Option<bool>,
}

/// `[tracing]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawTracing {
    pub(crate) jaeger_url: Option<String>,
    pub(crate) keep_unsampled: Option<bool>,
}

/// `[backends.NAME]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawBackend {
    pub(crate) kind: Option<String>,
    pub(crate) enabled: Option<bool>,
    pub(crate) url: Option<String>,
    pub(crate) username: Option<String>,
    pub(crate) password_file: Option<PathBuf>,
    pub(crate) critical: Option<bool>,
    pub(crate) depends_on: Vec<String>,
    #[serde(with = "humantime_serde")]
    pub(crate) timeout: Option<Duration>,
    pub(crate) tls: RawTls,
    pub(crate) breaker: RawBreaker,
    pub(crate) retry: RawRetry,
    pub(crate) bulkhead: RawBulkhead,
    pub(crate) cache: RawCache,
    pub(crate) queue: RawQueue,
}

/// `[backends.NAME.tls]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawTls {
    pub(crate) ca_file: Option<PathBuf>,
}

/// `[backends.NAME.breaker]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawBreaker {
    pub(crate) failure_threshold: Option<u32>,
    pub(crate) failure_rate: Option<f64>,
    #[serde(with = "humantime_serde")]
    pub(crate) recovery_timeout: Option<Duration>,
    #[serde(with = "humantime_serde")]
    pub(crate) recovery_timeout_max: Option<Duration>,
    pub(crate) success_threshold: Option<u32>,
    #[serde(with = "humantime_serde")]
    pub(crate) window: Option<Duration>,
    pub(crate) jitter: Option<f64>,
    #[serde(with = "humantime_serde")]
    pub(crate) slow_call_duration: Option<Duration>,
    pub(crate) slow_call_rate: Option<f64>,
}

/// `[backends.NAME.retry]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawRetry {
    pub(crate) attempts: Option<u32>,
    #[serde(with = "humantime_serde")]
    pub(crate) base: Option<Duration>,
    #[serde(with = "humantime_serde")]
    pub(crate) cap: Option<Duration>,
}

/// `[backends.NAME.bulkhead]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawBulkhead {
    pub(crate) in_flight_max: Option<u32>,
}

/// `[backends.NAME.cache]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawCache {
    pub(crate) items: Option<u32>,
    pub(crate) bytes: Option<ByteSize>,
    pub(crate) entry_max: Option<ByteSize>,
    pub(crate) disk_bytes: Option<ByteSize>,
    #[serde(with = "humantime_serde")]
    pub(crate) ttl: Option<Duration>,
    #[serde(with = "humantime_serde")]
    pub(crate) max_stale: Option<Duration>,
    #[serde(with = "humantime_serde")]
    pub(crate) answer_after: Option<Duration>,
    pub(crate) dir: Option<PathBuf>,
}

/// `[backends.NAME.queue]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawQueue {
    pub(crate) items: Option<u32>,
    pub(crate) bytes: Option<ByteSize>,
    pub(crate) dead_items: Option<u32>,
    pub(crate) dead_bytes: Option<ByteSize>,
    pub(crate) dir: Option<PathBuf>,
    pub(crate) disk_floor: Option<ByteSize>,
    pub(crate) write_fallback: Option<String>,
    pub(crate) dead_letter_policy: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::{
        super::{keys::KEYS, shape::Shape},
        *,
    };

    /// A file that sets the key.
    fn assignment(key: &str, value: &str) -> String {
        match key.split_once("[].") {
            Some((list, leaf)) => format!("[[{list}]]\n{leaf} = {value}"),
            None => format!("{} = {value}", key.replace('*', "name")),
        }
    }

    /// The table of keys and the structures name the same settings: a key that the structures do not
    /// know would be an unknown field here.
    #[test]
    fn every_key_of_the_table_is_a_field() {
        for (key, shape) in KEYS {
            let value = match (*key, *shape) {
                (key, Shape::Text) if key.contains("bytes") || key.ends_with("out_client") => {
                    "'1MiB'"
                }
                (_, Shape::Integer) => "3",
                (_, Shape::Number) => "0.5",
                (_, Shape::Flag) => "true",
                (_, Shape::List) => "['a']",
                (key, Shape::Text) if key.ends_with("floor") || key.ends_with("entry_max") => {
                    "'1MiB'"
                }
                (_, Shape::Text) => "'5s'",
            };
            let text = assignment(key, value);
            if let Err(error) = toml::from_str::<RawConfig>(&text) {
                panic!("{key}: {error}");
            }
        }
    }

    /// The structures know no setting that the table does not: their fields, counted by what serde
    /// says it expects.
    #[test]
    fn every_field_is_a_key_of_the_table() {
        let sections = [
            "",
            "http",
            "http.tls",
            "calls",
            "health",
            "chaos",
            "tracing",
            "doors[]",
            "backends.*",
            "backends.*.tls",
            "backends.*.breaker",
            "backends.*.retry",
            "backends.*.bulkhead",
            "backends.*.cache",
            "backends.*.queue",
        ];
        for section in sections {
            let dot = if section.is_empty() { "" } else { "." };
            let text = assignment(&format!("{section}{dot}zzz"), "1");
            let error = toml::from_str::<RawConfig>(&text).expect_err(section).to_string();
            let line = error.lines().find(|line| line.contains("unknown field")).expect(section);
            for field in line.split('`').skip(3).step_by(2) {
                let path = format!("{section}{dot}{field}");
                let known = KEYS.iter().any(|(key, _)| {
                    let rest = key.strip_prefix(&path);
                    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
                });
                assert!(known, "{path} is not in the table of keys");
            }
        }
    }
}
