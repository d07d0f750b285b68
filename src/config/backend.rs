//! One backend's section, checked.

use std::{path::PathBuf, sync::Arc, time::Duration};

use fusebox_actors::{BackendSettings, DeadLetterPolicy};
use fusebox_state::{
    Ratio,
    backoff::RetrySettings,
    breaker::{BreakerSettings, SlowCalls},
    cache::CacheSettings,
    queue::QueueLimits,
};
use toml::Table;

use super::{
    checker::{Checker, chosen},
    endpoint::{Endpoint, Url},
    environment::Environment,
    raw::{RawBackend, RawBreaker, RawCache, RawQueue, RawRetry},
    section::{Defaults, Section},
    words::{DEAD_LETTER_POLICIES, WRITE_FALLBACKS},
};
use crate::net::secret::Secret;

const MILLI: Duration = Duration::from_millis(1);
/// The longest that a cached value is held back by default while the backend is suspect.
const ANSWER_AFTER: Duration = Duration::from_secs(1);
/// The longest wait before a retry by default.
const RETRY_CAP: Duration = Duration::from_secs(2);

/// A backend's settings, of the core and of its kind.
#[derive(Clone)]
pub(crate) struct BackendConfig {
    /// What the core obeys.
    pub(crate) settings: BackendSettings,
    /// The address of the service, and how to sign in.
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
}

/// A backend's section, not yet checked.
pub(super) struct Raw<'a> {
    /// What every backend has.
    pub(super) common: RawBackend,
    /// What its kind has besides.
    pub(super) own: Table,
    /// The kinds.
    pub(super) sections: &'a [&'a dyn Section],
    /// The backend as it was read before, if only changes at run time have to be checked.
    pub(super) known: Option<&'a BackendConfig>,
}

/// Checks the section `[backends.name]`. `None` if its kind is not known: then nothing of it can
/// be judged.
pub(super) fn check(
    name: &str,
    Raw { common: raw, own, sections, known }: Raw<'_>,
    auto_recovery: bool,
    env: &Environment,
    checker: &mut Checker,
) -> Option<BackendConfig> {
    let base = format!("backends.{name}");
    if !valid_name(name) {
        checker.problem(&base, "is not a name for a backend: use up to 64 of a-z, 0-9, _ and -");
    }
    let kind = kind(&base, raw.kind.as_deref().unwrap_or(name), sections, checker)?;
    if raw.kind.is_none() {
        checker.followed.push((format!("{base}.kind"), kind.name().into()));
    }
    let defaults = kind.defaults();
    let timeout = raw.timeout.0;
    let breaker = breaker(&base, &raw.breaker, timeout, auto_recovery, checker);
    let retry = retry(&base, &raw.retry, checker);
    let cache = cache(&base, &raw.cache, defaults, checker);
    let answer_after = answer_after(&base, &raw.cache, timeout, checker);
    let queue = queue(&raw.queue);
    let endpoint = if let Some(known) = known {
        Arc::clone(&known.endpoint)
    } else {
        checker.folder(&format!("{base}.queue.dir"), raw.queue.dir.as_deref());
        checker.folder(&format!("{base}.cache.dir"), raw.cache.dir.as_deref());
        Arc::new(endpoint(name, &base, &raw, env, checker))
    };
    // What its kind has looked at, which may be files, it does not look at again.
    let is_checked = known.is_some_and(|known| known.own.table == own);
    if !is_checked && let Err(complaints) = kind.check(&endpoint, &own) {
        for (key, why) in complaints {
            checker.problem(&format!("{base}.{key}"), why);
        }
    }
    let own = Own { table: own };
    let settings = BackendSettings {
        name: name.to_owned(),
        kind: kind.name(),
        critical: raw.critical,
        depends_on: raw.depends_on,
        depends_on_optional: raw.depends_on_optional,
        timeout,
        breaker: breaker?,
        retry,
        in_flight_max: raw.bulkhead.in_flight_max,
        cache,
        answer_after,
        cache_dir: raw.cache.dir,
        queue,
        disk_floor: raw.queue.disk_floor.bytes(),
        queue_dir: raw.queue.dir,
        queue_packed: raw.queue.format >= 2,
        write_fallback: chosen(&raw.queue.write_fallback, defaults.write_fallback, WRITE_FALLBACKS),
        dead_letter_policy: chosen(
            &raw.queue.dead_letter_policy,
            DeadLetterPolicy::Continue,
            DEAD_LETTER_POLICIES,
        ),
    };
    Some(BackendConfig { settings, endpoint, own: Arc::new(own) })
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
            format_args!(
                "{name:?} is not supported by this release, which supports: {}",
                known.join(", ")
            ),
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
    attempt_timeout: Duration,
    auto_recovery: bool,
    checker: &mut Checker,
) -> Option<BreakerSettings> {
    let key = |leaf: &str| format!("{base}.breaker.{leaf}");
    let recovery_timeout = raw.recovery_timeout.0;
    let most = key("recovery_timeout_max");
    let given = raw.recovery_timeout_max.map(|time| time.0);
    let recovery_timeout_max = checker.or(&most, given, || recovery_timeout.saturating_mul(10));
    checker.not_below(&most, recovery_timeout_max, "recovery_timeout", recovery_timeout);
    let slow_after = raw.slow_call_duration.map(|time| time.0);
    let usual = || (attempt_timeout / 2).max(MILLI);
    let slow_after = checker.or(&key("slow_call_duration"), slow_after, usual);
    Some(BreakerSettings {
        failure_threshold: raw.failure_threshold,
        failure_rate: Ratio::new(raw.failure_rate)?,
        recovery_timeout,
        recovery_timeout_max,
        success_threshold: raw.success_threshold,
        window: raw.window.0,
        auto_recovery,
        attempt_timeout,
        jitter: Ratio::new(raw.jitter)?,
        slow: SlowCalls { after: slow_after, rate: Ratio::new(raw.slow_call_rate)? },
    })
}

fn retry(base: &str, raw: &RawRetry, checker: &mut Checker) -> RetrySettings {
    let (key, first) = (format!("{base}.retry.cap"), raw.base.0);
    let usual = || RETRY_CAP.max(first);
    let cap = checker.or(&key, raw.cap.map(|time| time.0), usual);
    let cap = checker.not_below(&key, cap, "base", first);
    RetrySettings { attempts: raw.attempts, base: first, cap }
}

fn cache(base: &str, raw: &RawCache, defaults: &Defaults, checker: &mut Checker) -> CacheSettings {
    let (key, ttl) = (format!("{base}.cache.max_stale"), raw.ttl.0);
    let usual = || defaults.cache_max_stale.max(ttl);
    let max_stale = checker.or(&key, raw.max_stale.map(|time| time.0), usual);
    CacheSettings {
        items: raw.items,
        bytes: raw.bytes.bytes(),
        ttl,
        max_stale: checker.not_below(&key, max_stale, "ttl", ttl),
        entry_max: raw.entry_max.bytes(),
        disk_bytes: raw.disk_bytes.bytes(),
    }
}

/// How long a cached value is held back while the backend is suspect.
fn answer_after(base: &str, raw: &RawCache, timeout: Duration, checker: &mut Checker) -> Duration {
    let key = format!("{base}.cache.answer_after");
    let usual = || (timeout / 5).min(ANSWER_AFTER).max(MILLI);
    let asked = checker.or(&key, raw.answer_after.map(|time| time.0.max(MILLI)), usual);
    checker.between(&key, asked, MILLI, timeout.max(MILLI))
}

fn queue(raw: &RawQueue) -> QueueLimits {
    QueueLimits {
        items: raw.items,
        bytes: raw.bytes.bytes(),
        dead_items: raw.dead_items,
        dead_bytes: raw.dead_bytes.bytes(),
    }
}

fn endpoint(
    name: &str,
    base: &str,
    raw: &RawBackend,
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
        url: Url(raw.url.clone()),
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
