//! One backend's section, checked.

use std::{path::PathBuf, sync::Arc, time::Duration};

use bytesize::ByteSize;
use fusebox_actors::{BackendSettings, DeadLetterPolicy, WriteFallback};
use fusebox_state::{
    backoff::RetrySettings,
    breaker::{BreakerSettings, SlowCalls},
    cache::CacheSettings,
    queue::QueueLimits,
};
use serde_json::Map;
use toml::Table;

use super::{
    checker::Checker,
    endpoint::{Endpoint, Url},
    raw::{RawBackend, RawBreaker, RawCache, RawQueue, RawRetry},
    secret::Secret,
    section::{Defaults, Section},
    sources::Environment,
};

const DAY: Duration = Duration::from_secs(86_400);
const MILLI: Duration = Duration::from_millis(1);
/// The longest that a cached value is held back by default while the backend is suspect.
const ANSWER_AFTER: Duration = Duration::from_secs(1);

/// A backend's settings, of the core and of its kind.
#[derive(Clone)]
pub(crate) struct BackendConfig {
    /// What the core obeys.
    pub(crate) settings: BackendSettings,
    /// Where the service is and how to sign in.
    pub(crate) endpoint: Arc<Endpoint>,
    /// What its kind has besides.
    pub(crate) own: Arc<Own>,
}

impl BackendConfig {
    /// Its name, and the folder of its store if that is not the usual one.
    pub(crate) fn store(&self) -> (String, Option<PathBuf>) {
        (self.settings.name.clone(), self.settings.queue_dir.clone())
    }
}

/// A kind's own settings of a backend, checked.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Own {
    /// As they were written.
    pub(crate) table: Table,
    /// As they are in effect.
    pub(super) shown: Map<String, serde_json::Value>,
}

/// A backend's section, not yet checked.
pub(super) struct Raw<'a> {
    /// What every backend has.
    pub(super) common: RawBackend,
    /// What its kind has besides.
    pub(super) own: Table,
    /// The kinds.
    pub(super) sections: &'a [&'a dyn Section],
}

/// Checks the section `[backends.name]`. `None` where its kind is not known: then nothing of it can
/// be judged.
pub(super) fn check(
    name: &str,
    Raw { common: raw, own, sections }: Raw<'_>,
    auto_recovery: bool,
    env: &Environment,
    checker: &mut Checker,
) -> Option<BackendConfig> {
    let base = format!("backends.{name}");
    if !valid_name(name) {
        checker.problem(&base, "is no name for a backend: up to 64 of a-z, 0-9, _ and -");
    }
    let kind = kind(&base, raw.kind.as_deref().unwrap_or(name), sections, checker)?;
    let defaults = kind.defaults();
    let timeout = raw.timeout.unwrap_or(defaults.timeout);
    let timeout = checker.between(&format!("{base}.timeout"), timeout, MILLI, DAY);
    let in_flight_max = raw.bulkhead.in_flight_max.unwrap_or(256);
    let in_flight_max =
        checker.between(&format!("{base}.bulkhead.in_flight_max"), in_flight_max, 1, 65_536);
    let breaker = breaker(&base, &raw.breaker, defaults, timeout, auto_recovery, checker);
    let retry = retry(&base, &raw.retry, checker);
    let cache = cache(&base, &raw.cache, defaults, checker);
    let answer_after = answer_after(&base, &raw.cache, timeout, checker);
    let queue = queue(&base, &raw.queue, checker);
    let disk_floor = raw.queue.disk_floor.map_or(64 << 20, |size| size.as_u64());
    let (write_fallback, dead_letter_policy) = policies(&base, &raw.queue, defaults, checker);
    checker.folder(&format!("{base}.queue.dir"), raw.queue.dir.as_deref());
    checker.folder(&format!("{base}.cache.dir"), raw.cache.dir.as_deref());
    let endpoint = endpoint(name, &base, &raw, kind, env, checker);
    let shown = kind.check(&endpoint, &own).unwrap_or_else(|complaints| {
        for (key, why) in complaints {
            checker.problem(&format!("{base}.{key}"), why);
        }
        Map::new()
    });
    let own = Own { table: own, shown };
    let settings = BackendSettings {
        name: name.to_owned(),
        kind: kind.name(),
        critical: raw.critical.unwrap_or(defaults.critical),
        depends_on: raw.depends_on,
        depends_on_optional: raw.depends_on_optional,
        timeout,
        breaker: breaker?,
        retry,
        in_flight_max,
        cache,
        answer_after,
        cache_dir: raw.cache.dir,
        queue,
        disk_floor,
        queue_dir: raw.queue.dir,
        write_fallback,
        dead_letter_policy,
    };
    Some(BackendConfig { settings, endpoint: Arc::new(endpoint), own: Arc::new(own) })
}

/// The kind of that name. `None` if it is not in this release.
fn kind<'a>(
    base: &str,
    name: &str,
    sections: &[&'a dyn Section],
    checker: &mut Checker,
) -> Option<&'a dyn Section> {
    let found = sections.iter().find(|section| section.name() == name);
    if found.is_none() {
        let known: Vec<&str> = sections.iter().map(|section| section.name()).collect();
        checker.problem(
            &format!("{base}.kind"),
            format_args!("{name:?} is not in this release, which knows: {}", known.join(", ")),
        );
    }
    found.copied()
}

/// Whether `name` can be a folder, a label and a part of a route.
fn valid_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-'))
}

fn breaker(
    base: &str,
    raw: &RawBreaker,
    defaults: &Defaults,
    attempt_timeout: Duration,
    auto_recovery: bool,
    checker: &mut Checker,
) -> Option<BreakerSettings> {
    let key = |leaf: &str| format!("{base}.breaker.{leaf}");
    let recovery_timeout = checker.between(
        &key("recovery_timeout"),
        raw.recovery_timeout.unwrap_or(defaults.recovery_timeout),
        MILLI,
        DAY,
    );
    let recovery_timeout_max = raw.recovery_timeout_max.unwrap_or(recovery_timeout * 10);
    let most = "recovery_timeout_max";
    checker.not_below(&key(most), recovery_timeout_max, "recovery_timeout", recovery_timeout);
    let failure_rate = checker.ratio(&key("failure_rate"), raw.failure_rate.unwrap_or(0.5));
    let jitter = checker.ratio(&key("jitter"), raw.jitter.unwrap_or(0.5));
    let slow_rate = checker.ratio(&key("slow_call_rate"), raw.slow_call_rate.unwrap_or(0.0));
    let slow_after = raw.slow_call_duration.unwrap_or((attempt_timeout / 2).max(MILLI));
    let slow_after = checker.between(&key("slow_call_duration"), slow_after, MILLI, DAY);
    Some(BreakerSettings {
        failure_threshold: checker.between(
            &key("failure_threshold"),
            raw.failure_threshold.unwrap_or(defaults.failure_threshold),
            1,
            1_000_000,
        ),
        failure_rate: failure_rate?,
        recovery_timeout,
        recovery_timeout_max,
        success_threshold: checker.between(
            &key("success_threshold"),
            raw.success_threshold.unwrap_or(defaults.success_threshold),
            1,
            1_000,
        ),
        window: checker.between(
            &key("window"),
            raw.window.unwrap_or(Duration::from_secs(60)),
            Duration::from_millis(60),
            DAY,
        ),
        auto_recovery,
        attempt_timeout,
        jitter: jitter?,
        slow: SlowCalls { after: slow_after, rate: slow_rate? },
    })
}

fn retry(base: &str, raw: &RawRetry, checker: &mut Checker) -> RetrySettings {
    let default = RetrySettings::default();
    let key = |leaf: &str| format!("{base}.retry.{leaf}");
    let attempts = raw.attempts.unwrap_or(default.attempts);
    let first = checker.between(&key("base"), raw.base.unwrap_or(default.base), MILLI, DAY);
    let cap = raw.cap.unwrap_or(default.cap.max(first));
    RetrySettings {
        attempts: checker.between(&key("attempts"), attempts, 1, 100),
        base: first,
        cap: checker.not_below(&key("cap"), cap, "base", first),
    }
}

fn cache(base: &str, raw: &RawCache, defaults: &Defaults, checker: &mut Checker) -> CacheSettings {
    let key = |leaf: &str| format!("{base}.cache.{leaf}");
    let ttl = raw.ttl.unwrap_or(defaults.cache_ttl);
    let max_stale = raw.max_stale.unwrap_or(defaults.cache_max_stale.max(ttl));
    let bytes = raw.bytes.unwrap_or(ByteSize::mib(64));
    let entry_max = raw.entry_max.unwrap_or(ByteSize::mib(16));
    let disk_bytes = raw.disk_bytes.unwrap_or(ByteSize::mib(256));
    CacheSettings {
        items: checker.between(&key("items"), raw.items.unwrap_or(1_000), 1, 10_000_000),
        bytes: checker.between(&key("bytes"), bytes, ByteSize::kib(64), ByteSize::tib(1)).as_u64(),
        ttl,
        max_stale: checker.not_below(&key("max_stale"), max_stale, "ttl", ttl),
        entry_max: checker
            .between(&key("entry_max"), entry_max, ByteSize::mib(1), ByteSize::gib(1))
            .as_u64(),
        disk_bytes: checker
            .between(&key("disk_bytes"), disk_bytes, ByteSize::b(0), ByteSize::tib(1))
            .as_u64(),
    }
}

/// How long a cached value is held back while the backend is suspect.
fn answer_after(base: &str, raw: &RawCache, timeout: Duration, checker: &mut Checker) -> Duration {
    let usual = (timeout / 5).min(ANSWER_AFTER);
    let asked = raw.answer_after.unwrap_or(usual).max(MILLI);
    checker.between(&format!("{base}.cache.answer_after"), asked, MILLI, timeout.max(MILLI))
}

fn queue(base: &str, raw: &RawQueue, checker: &mut Checker) -> QueueLimits {
    let key = |leaf: &str| format!("{base}.queue.{leaf}");
    let (mib, tib) = (ByteSize::mib(1), ByteSize::tib(1));
    let bytes = raw.bytes.unwrap_or(ByteSize::gib(1));
    let dead_bytes = raw.dead_bytes.unwrap_or(ByteSize::mib(256));
    QueueLimits {
        items: checker.between(&key("items"), raw.items.unwrap_or(50_000), 1, 10_000_000),
        bytes: checker.between(&key("bytes"), bytes, mib, tib).as_u64(),
        dead_items: checker.between(
            &key("dead_items"),
            raw.dead_items.unwrap_or(5_000),
            1,
            1_000_000,
        ),
        dead_bytes: checker.between(&key("dead_bytes"), dead_bytes, mib, tib).as_u64(),
    }
}

/// What becomes of a write in an outage, and of the writes behind a dead letter.
fn policies(
    base: &str,
    raw: &RawQueue,
    defaults: &Defaults,
    checker: &mut Checker,
) -> (WriteFallback, DeadLetterPolicy) {
    let key = |leaf: &str| format!("{base}.queue.{leaf}");
    let write_fallback = checker.one_of(
        &key("write_fallback"),
        raw.write_fallback.as_deref(),
        defaults.write_fallback,
        &[("queue", WriteFallback::Queue), ("refuse", WriteFallback::Refuse)],
    );
    let dead_letter_policy = checker.one_of(
        &key("dead_letter_policy"),
        raw.dead_letter_policy.as_deref(),
        DeadLetterPolicy::Continue,
        &[("continue", DeadLetterPolicy::Continue), ("block", DeadLetterPolicy::Block)],
    );
    (write_fallback, dead_letter_policy)
}

fn endpoint(
    name: &str,
    base: &str,
    raw: &RawBackend,
    kind: &dyn Section,
    env: &Environment,
    checker: &mut Checker,
) -> Endpoint {
    let credential =
        env.path("CREDENTIALS_DIRECTORY").map(|dir| dir.join(format!("{name}_password")));
    let credential = credential.filter(|path| path.try_exists().unwrap_or(false));
    let named = raw.password_file.clone();
    let (key, file) = match (named, credential) {
        (Some(path), _) => ("password_file", Some(path)),
        (None, credential) => ("password", credential),
    };
    let password = file.as_deref().and_then(|path| {
        Secret::read(path, &mut checker.warnings)
            .map_err(|error| {
                checker.problem(&format!("{base}.{key}"), format_args!("is not usable: {error}"));
            })
            .ok()
    });
    let endpoint = Endpoint {
        url: Url(raw.url.clone().unwrap_or_else(|| kind.defaults().url.to_owned())),
        username: raw.username.clone(),
        password,
        password_from: file,
        ca_file: raw.tls.ca_file.clone(),
    };
    if let Some(path) = &endpoint.ca_file
        && let Err(error) = std::fs::File::open(path)
    {
        let what = format!("cannot be read: {}: {error}", path.display());
        checker.problem(&format!("{base}.tls.ca_file"), what);
    }
    endpoint
}
