//! What a scrape costs, with twenty backends that are all in trouble: caches full, writes queued, traces
//! in the histograms.
//!
//! `cargo bench -p fusebox-actors --bench scrape -- --gate` exits non-zero if the median of either
//! format is above the gate. What a scrape costs a call that is made meanwhile is shown, not gated: it
//! is at most the scrape's own time on a processor that both want.
#![expect(
    clippy::print_stdout,
    clippy::expect_used,
    reason = "a benchmark reports on stdout and stops at the first error"
)]
#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::{
    env,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use fusebox_actors::{
    Backend, BackendSettings, BackendSpec, Call, CallOptions, DeadLetterPolicy, Fusebox,
    SystemSettings, WriteFallback,
    connector::{
        Access, Answer, Attempt, AttemptError, Attempted, Connector, ConnectorStatus, Outage,
        OwnCode, Plan, Read, Refused, Slot, Write,
    },
    metrics::Format,
    trace::CallTrace,
};
use fusebox_state::{
    ErrorClass, LaneId, Lanes, OpId, Ratio, SpanRef, Target, Verdict,
    backoff::RetrySettings,
    breaker::{BreakerSettings, SlowCalls},
    cache::CacheSettings,
    queue::QueueLimits,
};

const BACKENDS: usize = 20;
/// Cached reads of each backend: the default limit.
const CACHED: usize = 1_000;
/// Queued writes of each backend.
const QUEUED: usize = 100;
const SCRAPES: usize = 1_000;
const CALLS: usize = 20_000;
/// The most that a scrape may take, at the median.
const GATE: Duration = Duration::from_millis(2);
const FORMATS: [Format; 2] = [Format::Prometheus, Format::OpenMetrics];

/// A backend that answers at once, or refuses connections. `W` begins a write, anything else a read.
struct Stub {
    name: String,
    down: AtomicBool,
}

impl Stub {
    fn end(&self) -> Attempted {
        if self.down.load(Relaxed) {
            let error = AttemptError::own(ErrorClass::NotExecuted, OwnCode::Connect, "refused");
            return Attempted::failed(Verdict::Failure, error);
        }
        Attempted::answered(Bytes::from_static(b"OK"))
    }
}

impl Connector for Stub {
    fn plan(&self, body: Bytes) -> Result<Plan, Refused> {
        let lane = LaneId::of(b"", &body);
        let outage = Outage::ReplyKnown(Bytes::from_static(b"OK"));
        let access = if body.starts_with(b"W") {
            Access::Write(Write { absolute: true, ..Write::new(outage) })
        } else {
            let slots = vec![Slot { lane, key: body.clone() }];
            Access::Read(Read { keyed: true, slots, miss: None })
        };
        Ok(Plan { body, label: "key".into(), lanes: Lanes::One(lane), admin: false, access })
    }

    fn attempt<'a>(&'a self, _: Attempt<'a>) -> Answer<'a, Attempted> {
        Box::pin(async { self.end() })
    }

    fn ping(&self, _: Duration) -> Answer<'_, Attempted> {
        Box::pin(async { self.end() })
    }

    fn split(&self, _: &Bytes, _: &[Slot], reply: &Bytes) -> Option<Vec<Bytes>> {
        Some(vec![reply.clone()])
    }

    fn join(&self, _: &Bytes, parts: Vec<Bytes>) -> Bytes {
        parts.into_iter().next().unwrap_or_default()
    }

    fn forget_tokens(&self, _: Vec<OpId>) {}

    fn status(&self) -> ConnectorStatus {
        ConnectorStatus::default()
    }

    fn target(&self) -> Target {
        self.name.as_str().into()
    }

    fn close(&self) -> Answer<'_, ()> {
        Box::pin(async {})
    }
}

fn settings(name: &str) -> BackendSettings {
    let seconds = Duration::from_secs;
    BackendSettings {
        name: name.into(),
        kind: "stub",
        critical: false,
        depends_on: Vec::new(),
        depends_on_optional: Vec::new(),
        timeout: seconds(5),
        breaker: BreakerSettings {
            failure_threshold: 5,
            failure_rate: Ratio::new(0.5).expect("a ratio"),
            recovery_timeout: seconds(3_600),
            recovery_timeout_max: seconds(3_600),
            success_threshold: 3,
            window: seconds(60),
            auto_recovery: false,
            attempt_timeout: seconds(5),
            jitter: Ratio::new(0.5).expect("a ratio"),
            slow: SlowCalls::default(),
        },
        retry: RetrySettings { attempts: 1, base: seconds(1), cap: seconds(1) },
        in_flight_max: 256,
        cache: CacheSettings {
            items: 1_000,
            bytes: 64 << 20,
            ttl: seconds(300),
            max_stale: seconds(300),
            entry_max: 16 << 20,
            disk_bytes: 0,
        },
        answer_after: Duration::from_secs(1),
        cache_dir: None,
        queue: QueueLimits { items: 50_000, bytes: 1 << 30, dead_items: 10, dead_bytes: 1 << 20 },
        disk_floor: 0,
        queue_packed: false,
        queue_dir: None,
        write_fallback: WriteFallback::Queue,
        dead_letter_policy: DeadLetterPolicy::Continue,
    }
}

async fn call(backend: &Backend, body: String) {
    let parent = SpanRef { trace_id: fastrand::u128(1..), span_id: 1, sampled: true };
    let call = Call {
        body: body.into(),
        options: CallOptions::default(),
        uid: 1_000,
        admin: false,
        trace: CallTrace { parent, is_remote: true, ..CallTrace::new("/call") },
        streams: false,
        upload: None,
    };
    backend.call(call).await.expect("a live or queued answer");
}

/// Twenty backends in an outage, and a twenty-first that is up.
async fn world(dir: &std::path::Path) -> Fusebox {
    let stubs: Vec<Arc<Stub>> = (0..=BACKENDS)
        .map(|index| Arc::new(Stub { name: format!("b{index}"), down: AtomicBool::new(false) }))
        .collect();
    let specs = stubs.iter().map(|stub| BackendSpec {
        settings: settings(&stub.name),
        connector: Arc::clone(stub) as _,
    });
    let system = SystemSettings {
        state_dir: dir.to_owned(),
        pings: fusebox_actors::PingSettings::every(Duration::from_secs(3_600)),
        instance: "bench".into(),
        copied: None,
    };
    let fusebox = Fusebox::start(system, specs.collect(), None).await.expect("the core starts");
    for (backend, stub) in fusebox.backends().iter().zip(&stubs).take(BACKENDS) {
        for index in 0..CACHED {
            call(backend, format!("R{index}")).await;
        }
        stub.down.store(true, Relaxed);
        for index in 0..QUEUED {
            call(backend, format!("W{index}")).await;
        }
    }
    fusebox
}

/// The median and the 99th percentile.
fn median_and_tail(mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort();
    let at = |share: usize| times.get(times.len() * share / 100).copied().unwrap_or_default();
    (at(50), at(99))
}

/// Times of calls to a backend that is up.
async fn calls(backend: &Backend) -> Vec<Duration> {
    let mut times = Vec::with_capacity(CALLS);
    for index in 0..CALLS {
        let body = format!("R{}", index % 100);
        let start = Instant::now();
        call(backend, body).await;
        times.push(start.elapsed());
    }
    times
}

async fn run(gate: bool) -> Result<(), String> {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let fusebox = world(dir.path()).await;
    let mut failed = Vec::new();
    println!("{BACKENDS} backends, {CACHED} cached reads and {QUEUED} queued writes each");
    println!("format        bytes  series     median        p99   gate");
    for format in FORMATS {
        let page = fusebox.metrics(format);
        let series = page.lines().filter(|line| !line.starts_with('#')).count();
        let times = (0..SCRAPES).map(|_| {
            let start = Instant::now();
            std::hint::black_box(fusebox.metrics(format));
            start.elapsed()
        });
        let (median, tail) = median_and_tail(times.collect());
        let (name, bytes) = (format!("{format:?}"), page.len());
        println!("{name:<11} {bytes:>7} {series:>7} {median:>10.2?} {tail:>10.2?}   {GATE:?}");
        if median > GATE {
            failed.push(format!("{name}: {median:?} > {GATE:?}"));
        }
    }
    let up = fusebox.backends().last().cloned().expect("one backend is up");
    let (median, tail) = median_and_tail(calls(&up).await);
    println!("a call        alone: median {median:.2?}, p99 {tail:.2?}");
    let stop = Arc::new(AtomicBool::new(false));
    let (scraped, watched) = (fusebox.clone(), Arc::clone(&stop));
    let thread = std::thread::spawn(move || {
        while !watched.load(Relaxed) {
            std::hint::black_box(scraped.metrics(Format::OpenMetrics));
        }
    });
    let (median, tail) = median_and_tail(calls(&up).await);
    stop.store(true, Relaxed);
    thread.join().expect("the scraper does not panic");
    println!("while scraped without a pause: median {median:.2?}, p99 {tail:.2?}");
    fusebox.shutdown(Duration::from_secs(1)).await;
    if gate && !failed.is_empty() {
        return Err(failed.join(", "));
    }
    Ok(())
}

fn main() -> ExitCode {
    let gate = env::args().any(|argument| argument == "--gate");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    match runtime.block_on(run(gate)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failed) => {
            eprintln!("above the gate: {failed}");
            ExitCode::FAILURE
        }
    }
}
