//! The settings of the backends.

use std::time::Duration;

use fusebox_state::{
    Ratio,
    backoff::RetrySettings,
    breaker::{BreakerSettings, SlowCalls},
    cache::CacheSettings,
    queue::QueueLimits,
};

use super::scene::{BACKENDS, ms};
use crate::{BackendSettings, DeadLetterPolicy, WriteFallback};

/// How long an attempt may take at each of [`BACKENDS`].
const TIMEOUTS: [Duration; BACKENDS.len()] =
    [Duration::from_millis(500), Duration::from_secs(1), Duration::from_secs(3)];

/// The settings of the backend at that place.
pub(super) fn settings(at: usize) -> BackendSettings {
    let timeout = TIMEOUTS.get(at).copied().unwrap_or_default();
    BackendSettings {
        name: BACKENDS.get(at).copied().unwrap_or_default().into(),
        kind: "simulated",
        critical: at == 2,
        depends_on: if at == 1 { vec!["keys".into()] } else { Vec::new() },
        depends_on_optional: Vec::new(),
        timeout,
        breaker: BreakerSettings {
            failure_threshold: 3,
            failure_rate: Ratio::new(0.5).unwrap_or(Ratio::ZERO),
            recovery_timeout: Duration::from_secs(10),
            recovery_timeout_max: Duration::from_secs(60),
            success_threshold: 2,
            window: Duration::from_secs(30),
            auto_recovery: true,
            attempt_timeout: timeout,
            jitter: Ratio::new(0.5).unwrap_or(Ratio::ZERO),
            slow: SlowCalls::default(),
        },
        retry: RetrySettings { attempts: 3, base: ms(50), cap: ms(2_000) },
        in_flight_max: 16,
        cache: CacheSettings {
            items: 1_000,
            bytes: 1 << 20,
            ttl: Duration::from_secs(60),
            max_stale: Duration::from_secs(600),
            entry_max: 1 << 10,
            disk_bytes: 0,
        },
        answer_after: timeout / 5,
        cache_dir: None,
        queue: QueueLimits { items: 300, bytes: 1 << 16, dead_items: 100, dead_bytes: 1 << 16 },
        disk_floor: 0,
        queue_packed: false,
        queue_dir: None,
        write_fallback: WriteFallback::Queue,
        dead_letter_policy: DeadLetterPolicy::Continue,
    }
}
