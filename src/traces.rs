//! Traces: what calls recorded becomes spans, and goes to a collector by OTLP.
//!
//! ```text
//!  calls, replays ── take(): a bounded list ──▶ one task: makes spans of a batch ──▶ exporter
//!                       └─ full: dropped, counted      └─ failed: counted, logged once
//! ```
//!
//! **The one rule that a maintainer might break:** nothing on a call's way waits for the task, and the task
//! alone waits for the collector. Nothing wakes the task but its clock and a list that is long enough: a
//! wake for each record would cost a call more than the record itself. A collector that is down, slow or
//! gone costs spans, never time. The SDK's own batch processor would do as much, but neither counts what it
//! drops nor can be asked whether a collector took a batch; and its spans would be made on the calls' way.
//!
//! What is set by the environment, by the names of the specification
//! (<https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/>), is read in
//! `settings.rs`; headers, timeout and compression are read by the exporter itself.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use fusebox_actors::{
    trace::{Sampling, TraceSink, Traced},
    view::TracesView,
};
use opentelemetry_sdk::{error::OTelSdkResult, trace::SpanData};
use parking_lot::Mutex;
use serde::Serialize;
use tokio::{
    sync::{Notify, mpsc, oneshot},
    task::JoinHandle,
    time::{Instant, timeout, timeout_at},
};

mod exporter;
mod sampler;
mod settings;
mod spans;

use crate::config::Environment;
use exporter::Exporter;
use settings::{Batching, Settings};

/// The longest that ending holds up the daemon's end.
const END_MAX: Duration = Duration::from_secs(2);
/// The longest that a test waits for the collector.
const TEST_MAX: Duration = Duration::from_secs(12);

/// The daemon's traces.
pub(crate) struct Traces {
    /// What calls record goes here.
    pub(crate) sink: Arc<Sink>,
    orders: mpsc::Sender<Order>,
    task: Mutex<Option<JoinHandle<()>>>,
    settings: Settings,
}

/// What calls borrow: decides whether they are recorded, and takes what they recorded.
pub(crate) struct Sink {
    sampling: Sampling,
    waiting: Arc<Waiting>,
    counters: Arc<Counters>,
}

/// Records that wait for the task.
struct Waiting {
    records: Mutex<Vec<Traced>>,
    /// There are enough for a batch.
    enough: Notify,
    batching: Batching,
}

#[derive(Debug, Default)]
struct Counters {
    exported: AtomicU64,
    dropped: AtomicU64,
    failed: AtomicU64,
}

enum Order {
    /// Export one span now and tell how that went.
    Test(oneshot::Sender<Result<(), String>>),
    /// Export what there is and end.
    End,
}

/// How a test went.
#[derive(Debug, Serialize, schemars::JsonSchema)]
#[schemars(rename = "TraceTest")]
pub(crate) struct TestResult {
    /// Whether the collector took it.
    taken: bool,
    /// The address to which it was sent.
    endpoint: String,
    /// `grpc` or `http/protobuf`.
    protocol: &'static str,
    /// The span's trace.
    trace_id: String,
    /// How long that took, in milliseconds.
    took_ms: u64,
    /// Why it was not taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl Traces {
    /// Starts to export; `None` if the environment names no collector, or what it says cannot be used,
    /// which is logged and stops nothing else.
    pub(crate) fn start(env: &Environment, keeps: bool, instance: &str) -> Option<Self> {
        let (settings, warnings) = Settings::of(env)?;
        for warning in &warnings {
            tracing::warn!("traces: {warning}");
        }
        let exporter = match Exporter::new(&settings, instance) {
            Ok(exporter) => exporter,
            Err(why) => {
                tracing::error!(why, endpoint = settings.endpoint, "traces are off");
                return None;
            }
        };
        tracing::info!(
            endpoint = settings.endpoint,
            protocol = settings.protocol.as_str(),
            sampler = %settings.sampler,
            "traces are exported"
        );
        let (orders, ordered) = mpsc::channel(8);
        let counters = Arc::<Counters>::default();
        let waiting = Arc::new(Waiting {
            records: Mutex::default(),
            enough: Notify::new(),
            batching: settings.batching,
        });
        let export = Export {
            exporter,
            waiting: Arc::clone(&waiting),
            counters: Arc::clone(&counters),
            emptied: Vec::new(),
            failing: false,
        };
        let task = tokio::spawn(export.run(ordered));
        let sampling = settings.sampler.sampling(keeps);
        let sink = Arc::new(Sink { sampling, waiting, counters });
        Some(Self { sink, orders, task: Mutex::new(Some(task)), settings })
    }

    /// Sends one span and tells whether the collector took it.
    pub(crate) async fn test(&self) -> TestResult {
        let started = Instant::now();
        let (reply, answer) = oneshot::channel();
        let asked = async {
            self.orders.send(Order::Test(reply)).await.ok()?;
            answer.await.ok()
        };
        let result = match timeout(TEST_MAX, asked).await {
            Ok(Some(result)) => result,
            Ok(None) => Err("the daemon is stopping".to_owned()),
            Err(_) => Err(format!("no answer within {} s", TEST_MAX.as_secs())),
        };
        TestResult {
            taken: result.is_ok(),
            endpoint: self.settings.endpoint.clone(),
            protocol: self.settings.protocol.as_str(),
            trace_id: crate::agreed::trace_id(spans::TEST_TRACE),
            took_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
            error: result.err(),
        }
    }

    /// Exports what there is, within two seconds, and ends.
    pub(crate) async fn end(&self) {
        let Some(task) = self.task.lock().take() else { return };
        let aborting = task.abort_handle();
        let ended = async {
            self.orders.send(Order::End).await.ok();
            task.await.ok();
        };
        if timeout(END_MAX, ended).await.is_err() {
            aborting.abort();
            tracing::warn!("the collector did not accept the last spans in time");
        }
    }
}

impl TraceSink for Sink {
    fn sampling(&self) -> Sampling {
        self.sampling
    }

    fn take(&self, traced: Traced) {
        let Waiting { records, enough, batching } = &*self.waiting;
        let mut records = records.lock();
        if records.len() >= batching.queue_max {
            drop(records);
            self.counters.dropped.fetch_add(spans_of(&traced), Ordering::Relaxed);
            return;
        }
        records.push(traced);
        if records.len() == batching.batch_max {
            drop(records);
            enough.notify_one();
        }
    }

    fn counts(&self) -> TracesView {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let Counters { exported, dropped, failed } = &*self.counters;
        TracesView { exported: read(exported), dropped: read(dropped), failed: read(failed) }
    }
}

/// Its own span and one for each step.
fn spans_of(traced: &Traced) -> u64 {
    1 + traced.steps.len() as u64
}

/// The task that alone waits for the collector.
struct Export {
    exporter: Exporter,
    waiting: Arc<Waiting>,
    counters: Arc<Counters>,
    /// The list that the calls get in exchange for the one that they filled, so that they need not enlarge
    /// theirs again after each export.
    emptied: Vec<Traced>,
    /// The last export failed.
    failing: bool,
}

impl Export {
    async fn run(mut self, mut orders: mpsc::Receiver<Order>) {
        let delay = self.waiting.batching.delay;
        loop {
            let waiting = Arc::clone(&self.waiting);
            tokio::select! {
                () = waiting.enough.notified() => {}
                () = tokio::time::sleep(delay) => {}
                order = orders.recv() => match order {
                    Some(Order::Test(reply)) => {
                        let result = self.export(vec![spans::test()]).await;
                        drop(reply.send(result));
                    }
                    Some(Order::End) | None => return self.export_all().await,
                },
            }
            self.export_all().await;
        }
    }

    /// Exports what waits. What comes meanwhile waits for the next time, or is dropped.
    async fn export_all(&mut self) {
        let most = self.waiting.batching.batch_max;
        let mut records = std::mem::take(&mut self.emptied);
        std::mem::swap(&mut records, &mut *self.waiting.records.lock());
        let mut batch = Vec::new();
        for traced in records.drain(..) {
            batch.extend(spans::of(traced));
            if batch.len() >= most {
                // Counted and logged if it fails.
                self.export(std::mem::take(&mut batch)).await.ok();
            }
        }
        if !batch.is_empty() {
            self.export(batch).await.ok();
        }
        self.emptied = records;
    }

    async fn export(&mut self, spans: Vec<SpanData>) -> Result<(), String> {
        let count = spans.len() as u64;
        let until = Instant::now() + self.waiting.batching.timeout;
        let result = match timeout_at(until, self.exporter.export(spans)).await {
            Ok(result) => told(result),
            Err(_) => Err(format!("no answer within {:?}", self.waiting.batching.timeout)),
        };
        let Counters { exported, failed, .. } = &*self.counters;
        match &result {
            Ok(()) => {
                exported.fetch_add(count, Ordering::Relaxed);
                if self.failing {
                    tracing::info!("the collector accepts spans again");
                }
            }
            Err(why) => {
                failed.fetch_add(count, Ordering::Relaxed);
                if !self.failing {
                    tracing::warn!(
                        why,
                        "the collector does not accept spans; they are dropped and counted"
                    );
                }
            }
        }
        self.failing = result.is_err();
        result
    }
}

fn told(result: OTelSdkResult) -> Result<(), String> {
    result.map_err(|error| error.to_string())
}
