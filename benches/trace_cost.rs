//! What it costs a call to record itself.
//!
//! One call with one attempt, again and again, in turns and in one run: not recorded at all; sampled at
//! 1 % by the trace's id, everything else noted in case it turns out to be worth keeping; and sampled at
//! 100 %, against the same two spans with the same attributes by `tracing` and `tracing-opentelemetry` into
//! the SDK's batch processor. Both sides hand spans to another thread, which drops them: what counts is
//! what the call's own thread spends. The figures are the lower quartiles of many short rounds, which is what an
//! undisturbed call takes.
//!
//! `cargo bench -p fusebox-actors --bench trace_cost -- --gate` exits non-zero above the gates.
#![expect(
    clippy::print_stdout,
    clippy::expect_used,
    reason = "a benchmark reports on stdout and stops at the first error"
)]
#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::{
    borrow::Cow,
    hint::black_box,
    process::ExitCode,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use fusebox_actors::{
    Clock, Reply, Source,
    trace::{CallRef, CallTrace, Sampling, TraceSink, Traced, Tracer, Tried},
    view::TracesView,
};
use fusebox_state::Verdict;
use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::{
    error::OTelSdkResult,
    trace::{BatchConfigBuilder, BatchSpanProcessor, SdkTracerProvider, SpanData, SpanExporter},
};
use parking_lot::Mutex;
use tracing_subscriber::layer::SubscriberExt;

/// Short and many: what others do on the machine disturbs some of them, and those do not count.
const ROUNDS: usize = 1_000;
const CALLS: u32 = 1_000;
/// Nanoseconds that a call may take longer if 1 % are sampled.
const GATE_NANOS: f64 = 30.0;
/// Of what tracing-opentelemetry takes.
const GATE_RATIO: f64 = 0.35;

/// As the daemon's own: a bounded list, which another thread empties now and then.
struct Sink {
    /// Of 2^63.
    bound: u64,
    records: Arc<Mutex<Vec<Traced>>>,
}

impl Sink {
    fn tracer(ratio: f64, clock: Clock) -> Tracer {
        let records = Arc::<Mutex<Vec<Traced>>>::default();
        let taken = Arc::clone(&records);
        thread::spawn(move || {
            let mut emptied = Vec::new();
            loop {
                std::mem::swap(&mut emptied, &mut *taken.lock());
                emptied.clear();
                thread::park_timeout(Duration::from_millis(5));
            }
        });
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a ratio of 2^63"
        )]
        let bound = (ratio * (1_u64 << 63) as f64) as u64;
        Tracer::new(Some(Arc::new(Self { bound, records })), clock)
    }
}

impl TraceSink for Sink {
    fn sampling(&self) -> Sampling {
        Sampling { parent_based: true, bound: self.bound, keeps: true }
    }

    fn take(&self, traced: Traced) {
        let mut records = self.records.lock();
        if records.len() < 1 << 16 {
            records.push(traced);
        }
    }

    fn counts(&self) -> TracesView {
        TracesView::default()
    }
}

/// One call of ours. The clock's readings are made without traces, too, and so are made here once.
fn ours(tracer: &Tracer, clock: Clock, reply: &Reply) {
    let trace = black_box(CallTrace::new("/call"));
    let began = clock.read();
    let mut recorder = tracer.begin(trace, began);
    let span_id = recorder.attempt_span();
    black_box(recorder.passed_on(span_id));
    let ended = clock.read();
    let tried = Tried { number: 1, verdict: Verdict::Success, error: None, transition: None };
    recorder.attempt(began, ended, span_id, tried);
    if tracer.wants(&recorder, Some(reply.source)) {
        let of = CallRef {
            backend: "redis",
            kind: "redis",
            target: "redis 127.0.0.1:6379/0".into(),
            operation: Cow::Owned("GET".to_owned()),
            write: false,
        };
        tracer.end(recorder, of, Ok(reply.into()));
    }
}

/// The same two spans.
fn theirs() {
    let call = tracing::info_span!(
        "POST /v1/backends/{backend}/call",
        otel.kind = "server",
        http.request.method = "POST",
        http.route = "/call",
        fusebox.backend = "redis",
        fusebox.operation = "GET",
        fusebox.class = "read",
        fusebox.source = tracing::field::Empty,
        http.response.status_code = tracing::field::Empty,
    );
    let inside = call.enter();
    {
        let attempt = tracing::info_span!(
            "GET redis",
            otel.kind = "client",
            db.system.name = "redis",
            db.operation.name = "GET",
            server.address = "127.0.0.1",
            server.port = 6_379,
            db.namespace = "0",
            fusebox.attempt = 1,
            fusebox.verdict = tracing::field::Empty,
        );
        let inside = attempt.enter();
        black_box(&inside);
        attempt.record("fusebox.verdict", "success");
    }
    call.record("fusebox.source", "live");
    call.record("http.response.status_code", 200);
    drop(inside);
}

#[derive(Debug)]
struct Nowhere;

impl SpanExporter for Nowhere {
    async fn export(&self, _: Vec<SpanData>) -> OTelSdkResult {
        Ok(())
    }
}

/// Nanoseconds of a call.
fn measure(mut call: impl FnMut()) -> f64 {
    let begun = Instant::now();
    for _ in 0..CALLS {
        call();
    }
    begun.elapsed().as_secs_f64() * 1e9 / f64::from(CALLS)
}

fn quartile(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 4).copied().unwrap_or(f64::NAN)
}

fn main() -> ExitCode {
    let gate = std::env::args().any(|argument| argument == "--gate");
    let clock = Clock::system();
    let reply = Reply {
        source: Source::Live,
        ack: None,
        value: None,
        age: std::time::Duration::ZERO,
        warnings: Vec::new(),
        op_id: None,
        reply_lost: false,
        attempts: 1,
        pending_writes: 0,
        rest: None,
    };
    let off = Tracer::new(None, clock);
    let (hundredth, all) = (Sink::tracer(0.01, clock), Sink::tracer(1.0, clock));
    let config = BatchConfigBuilder::default().with_max_queue_size(1 << 16).build();
    let processor = BatchSpanProcessor::builder(Nowhere).with_batch_config(config).build();
    let provider = SdkTracerProvider::builder().with_span_processor(processor).build();
    let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("bench"));
    let subscriber = tracing_subscriber::registry().with(layer);

    let mut rounds = Vec::with_capacity(ROUNDS);
    tracing::subscriber::with_default(subscriber, || {
        for round in 0..=ROUNDS {
            let figures = [
                measure(|| ours(&off, clock, &reply)),
                measure(|| ours(&hundredth, clock, &reply)),
                measure(|| ours(&all, clock, &reply)),
                measure(theirs),
            ];
            // Otherwise the batch processor's thread would still drop spans, and compete for the allocator,
            // while the next round measures ours.
            provider.force_flush().expect("the batch processor takes orders");
            // The first warms up.
            if round > 0 {
                rounds.push(figures);
            }
        }
    });
    provider.shutdown().expect("the batch processor ends");
    let over = |of: fn(&[f64; 4]) -> f64| quartile(rounds.iter().map(of).collect());
    let [off, hundredth, all, theirs] =
        [over(|it| it[0]), over(|it| it[1]), over(|it| it[2]), over(|it| it[3])];
    let (added, ratio) = (hundredth - off, (all - off) / theirs);
    println!("{:<44} {off:>9.0} ns", "not recorded");
    println!("{:<44} {hundredth:>9.0} ns", "1 % sampled");
    println!("{:<44} {all:>9.0} ns", "100 % sampled");
    println!("{:<44} {theirs:>9.0} ns", "tracing-opentelemetry, 100 %");
    println!("{:<44} {added:>9.1} ns  (gate <= {GATE_NANOS})", "added at 1 %");
    println!(
        "{:<44} {ratio:>9.2}     (gate <= {GATE_RATIO})",
        "added at 100 %, of tracing-opentelemetry"
    );
    if gate && (added > GATE_NANOS || ratio > GATE_RATIO) {
        println!("above the gate");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
