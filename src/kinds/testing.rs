//! What the tests of every kind's door begin with, and what they measure.

use std::time::Duration;

use fusebox_actors::{BackendSettings, DeadLetterPolicy, WriteFallback};
use fusebox_state::{
    Ratio,
    backoff::RetrySettings,
    breaker::{BreakerSettings, SlowCalls},
    cache::CacheSettings,
    queue::QueueLimits,
};

/// A backend of the kind `kind`, under that name, whose breaker opens at a third failure or when half of the calls fail,
/// and stays open. Its writes are queued.
pub(crate) fn backend(kind: &'static str, timeout: Duration) -> BackendSettings {
    let ms = Duration::from_millis;
    BackendSettings {
        name: kind.into(),
        kind,
        critical: false,
        depends_on: Vec::new(),
        depends_on_optional: Vec::new(),
        timeout,
        breaker: BreakerSettings {
            failure_threshold: 3,
            failure_rate: Ratio::new(0.5).unwrap(),
            recovery_timeout: Duration::from_secs(60),
            recovery_timeout_max: Duration::from_secs(60),
            success_threshold: 1,
            window: Duration::from_secs(6),
            auto_recovery: true,
            attempt_timeout: timeout,
            jitter: Ratio::new(0.0).unwrap(),
            slow: SlowCalls::default(),
        },
        retry: RetrySettings { attempts: 2, base: ms(1), cap: ms(10) },
        in_flight_max: 64,
        cache: CacheSettings {
            items: 100,
            bytes: 1 << 20,
            ttl: Duration::from_secs(300),
            max_stale: Duration::from_secs(300),
            entry_max: 16 << 20,
            disk_bytes: 0,
        },
        answer_after: ms(500),
        cache_dir: None,
        queue: QueueLimits { items: 1_000, bytes: 1 << 20, dead_items: 10, dead_bytes: 1 << 20 },
        disk_floor: 0,
        queue_packed: false,
        queue_dir: None,
        write_fallback: WriteFallback::Queue,
        dead_letter_policy: DeadLetterPolicy::Continue,
    }
}

/// What this process takes of memory, in bytes.
pub(crate) fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4_096
}
