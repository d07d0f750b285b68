//! The effective configuration as it is printed: every setting, secrets masked.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::{BackendConfig, Config, checker::size, secret::mask_url};

impl Config {
    /// All settings in effect, in the shape of the file.
    pub(crate) fn show(&self) -> Value {
        let backends: Map<String, Value> = self
            .backends
            .iter()
            .map(|backend| (backend.settings.name.clone(), backend.show()))
            .collect();
        let mut shown = json!({
            "state_dir": self.state_dir,
            "socket": self.socket,
            "client_group": self.client_group.name,
            "admin_group": self.admin_group.name,
            "calls": { "bytes": size(self.calls_bytes) },
            "health": {
                "interval": time(self.pings.interval),
                "timeout": time(self.pings.timeout),
                "auto_recovery": self.auto_recovery,
            },
            "doors": self.doors.iter().map(|door| door.show()).collect::<Vec<_>>(),
            "backends": backends,
        });
        if let (Some(http), Some(fields)) = (&self.http, shown.as_object_mut()) {
            let mut section = json!({ "listen": http.listen.to_string() });
            put(&mut section, "token_file", http.token_file.as_ref().map(|p| json!(p)));
            put(&mut section, "plaintext", http.plaintext.then_some(Value::Bool(true)));
            let tls = http.tls.as_ref();
            let tls = tls.map(|it| json!({ "cert_file": it.cert_file, "key_file": it.key_file }));
            put(&mut section, "tls", tls);
            fields.insert("http".into(), section);
        }
        if let (Some(enabled), Some(fields)) = (self.chaos_enabled, shown.as_object_mut()) {
            fields.insert("chaos".into(), json!({ "enabled": enabled }));
        }
        if let Some(fields) = shown.as_object_mut() {
            let mut section = json!({ "keep_unsampled": self.keep_unsampled });
            put(&mut section, "jaeger_url", self.jaeger_url.as_ref().map(|url| json!(url)));
            fields.insert("tracing".into(), section);
        }
        shown
    }

    /// The same as TOML.
    pub(crate) fn show_toml(&self) -> String {
        let table = toml::Value::try_from(self.show());
        table.ok().and_then(|table| toml::to_string(&table).ok()).unwrap_or_default()
    }
}

impl BackendConfig {
    /// The backend's settings in effect, in the shape of its section.
    pub(crate) fn show(&self) -> Value {
        let (settings, endpoint) = (&self.settings, &self.endpoint);
        let (breaker, queue) = (&settings.breaker, &settings.queue);
        let mut shown = json!({
            "kind": settings.kind,
            "url": mask_url(&endpoint.url.0),
            "critical": settings.critical,
            "depends_on": settings.depends_on,
            "timeout": time(settings.timeout),
            "breaker": {
                "failure_threshold": breaker.failure_threshold,
                "failure_rate": breaker.failure_rate.get(),
                "recovery_timeout": time(breaker.recovery_timeout),
                "recovery_timeout_max": time(breaker.recovery_timeout_max),
                "success_threshold": breaker.success_threshold,
                "window": time(breaker.window),
                "jitter": breaker.jitter.get(),
                "slow_call_duration": time(breaker.slow.after),
                "slow_call_rate": breaker.slow.rate.get(),
            },
            "retry": {
                "attempts": settings.retry.attempts,
                "base": time(settings.retry.base),
                "cap": time(settings.retry.cap),
            },
            "bulkhead": { "in_flight_max": settings.in_flight_max },
            "cache": {
                "items": settings.cache.items,
                "bytes": size(settings.cache.bytes),
                "entry_max": size(settings.cache.entry_max),
                "disk_bytes": size(settings.cache.disk_bytes),
                "ttl": time(settings.cache.ttl),
                "max_stale": time(settings.cache.max_stale),
                "answer_after": time(settings.answer_after),
            },
            "queue": {
                "items": queue.items,
                "bytes": size(queue.bytes),
                "dead_items": queue.dead_items,
                "dead_bytes": size(queue.dead_bytes),
                "disk_floor": size(settings.disk_floor),
                "write_fallback": settings.write_fallback,
                "dead_letter_policy": settings.dead_letter_policy,
            },
        });
        if let Some(fields) = shown.as_object_mut() {
            fields.extend(self.own.shown.clone());
        }
        put(&mut shown, "username", endpoint.username.as_ref().map(|name| json!(name)));
        // Where a password comes from is worth knowing; the password is not.
        put(&mut shown, "password_file", endpoint.password_from.as_ref().map(|path| json!(path)));
        let ca_file = endpoint.ca_file.as_ref().map(|path| json!({ "ca_file": path }));
        put(&mut shown, "tls", ca_file);
        if let Some(cache) = shown.get_mut("cache") {
            put(cache, "dir", settings.cache_dir.as_ref().map(|path| json!(path)));
        }
        if let Some(queue) = shown.get_mut("queue") {
            put(queue, "dir", settings.queue_dir.as_ref().map(|path| json!(path)));
        }
        shown
    }
}

fn put(section: &mut Value, key: &str, value: Option<Value>) {
    if let (Some(fields), Some(value)) = (section.as_object_mut(), value) {
        fields.insert(key.to_owned(), value);
    }
}

fn time(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}
