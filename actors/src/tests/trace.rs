//! What calls and replays record of themselves.

use fusebox_state::{SpanRef, queue::Phase};
use parking_lot::Mutex;

use super::*;
use crate::{
    Clock,
    trace::{KEPT_MAX, Sampling, StepKind, TraceSink, TraceSubject, Traced},
    view::TracesView,
};

/// Samples what its caller sampled, and gathers.
#[derive(Default)]
struct Gathering {
    taken: Mutex<Vec<Traced>>,
    keeps: bool,
}

impl TraceSink for Gathering {
    fn sampling(&self) -> Sampling {
        Sampling { parent_based: true, bound: 0, keeps: self.keeps }
    }

    fn take(&self, traced: Traced) {
        self.taken.lock().push(traced);
    }

    fn counts(&self) -> TracesView {
        TracesView::default()
    }
}

struct Traces {
    sink: Arc<Gathering>,
    server: Arc<Scripted>,
    fusebox: Fusebox,
    _dir: tempfile::TempDir,
}

const CALLER: SpanRef = SpanRef { trace_id: 7 << 64 | 7, span_id: 77, sampled: true };

impl Traces {
    async fn start(keeps: bool) -> Self {
        let (dir, server) = (tempfile::tempdir().unwrap(), Scripted::new());
        let sink = Arc::new(Gathering { keeps, ..Gathering::default() });
        let system = SystemSettings {
            state_dir: dir.path().to_owned(),
            pings: PingSettings::every(Duration::from_secs(3_600)),
            instance: "test".into(),
            copied: None,
        };
        let specs = vec![BackendSpec { settings: settings("one"), connector: server.clone() }];
        let to = Some(Arc::clone(&sink) as Arc<dyn TraceSink>);
        let fusebox = Fusebox::start_with(system, specs, Clock::system(), to).await.unwrap();
        Self { sink, server, fusebox, _dir: dir }
    }

    async fn call(&self, body: &str, sampled: bool) -> Result<Reply, CallError> {
        self.call_with(body, sampled, CallOptions::default()).await
    }

    async fn call_with(
        &self,
        body: &str,
        sampled: bool,
        options: CallOptions,
    ) -> Result<Reply, CallError> {
        let parent = SpanRef { sampled, ..CALLER };
        let trace = CallTrace { parent, is_remote: true, ..CallTrace::new("/call") };
        let call = Call {
            body: Bytes::copy_from_slice(body.as_bytes()),
            options,
            uid: 0,
            admin: false,
            trace,
            streams: false,
            upload: None,
        };
        self.fusebox.backends()[0].call(call).await
    }

    fn taken(&self) -> Vec<Traced> {
        std::mem::take(&mut self.sink.taken.lock())
    }
}

/// The steps' kinds, in short.
fn steps(traced: &Traced) -> Vec<String> {
    let word = |kind: &StepKind| match kind {
        StepKind::Attempt { verdict: Some(verdict), .. } => format!("{verdict:?}"),
        StepKind::Attempt { error, .. } => format!("barred: {}", error.as_ref().unwrap().0),
        StepKind::Append { error, .. } => format!("append {}", error.is_none()),
        other => format!("{other:?}"),
    };
    traced.steps.iter().map(|step| word(&step.kind)).collect()
}

#[tokio::test]
async fn a_sampled_call_is_recorded_and_an_unsampled_one_only_where_it_is_worth_it() {
    let world = Traces::start(true).await;
    world.call("SET a 1", false).await.unwrap();
    assert!(world.taken().is_empty(), "a quiet call leaves nothing");
    world.call("SET a 1", true).await.unwrap();
    let [traced] = &world.taken()[..] else { panic!("one record") };
    assert_eq!((traced.span.trace_id, traced.parent), (CALLER.trace_id, Some(CALLER.span_id)));
    assert_eq!(steps(traced), ["Success"]);
    assert!(traced.began <= traced.steps[0].began && traced.steps[0].ended <= traced.ended);

    world.server.set(Mode::Down);
    world.call("GET b", false).await.unwrap();
    let [traced] = &world.taken()[..] else { panic!("one record") };
    let seen = steps(traced);
    let shape =
        ["Failure", "Backoff", "Failure", "CacheLookup { hit: false }", "Fallback(Some(Bypass))"];
    assert_eq!(seen, shape);
}

#[tokio::test]
async fn nothing_unsampled_is_kept_where_that_is_not_wanted() {
    let world = Traces::start(false).await;
    world.server.set(Mode::Down);
    world.call("GET b", false).await.unwrap();
    world.call("SET b 1", false).await.unwrap();
    assert!(world.taken().is_empty());
}

#[tokio::test]
async fn an_outage_does_not_flood_the_collector() {
    let world = Traces::start(true).await;
    world.fusebox.backends()[0].set_offline(true).await.unwrap();
    let clock = Clock::system();
    for _ in 0..10 * KEPT_MAX {
        world.call("GET b", false).await.unwrap();
    }
    let seconds = clock.uptime().as_secs() + 2;
    let taken = world.taken().len() as u64;
    assert!((1..=KEPT_MAX * seconds).contains(&taken), "{taken} in {seconds} s");
}

#[tokio::test]
async fn a_replay_is_a_trace_of_its_own_linked_to_the_call_that_was_queued() {
    let world = Traces::start(true).await;
    world.server.set(Mode::Down);
    let reply = world.call("INCR n", false).await;
    assert!(reply.is_err(), "without consent it is refused");
    let reply = world.call("SET a 1", false).await.unwrap();
    let queued = world.taken().pop().unwrap();
    let span_id = queued
        .steps
        .iter()
        .find_map(|step| match step.kind {
            StepKind::Append { span_id, op_id, .. } if Some(op_id) == reply.op_id => Some(span_id),
            _ => None,
        })
        .expect("it was appended");

    world.server.set(Mode::Up);
    let backend = world.fusebox.backends()[0].clone();
    world.fusebox.recover(None).await.unwrap();
    until("the queue is drained".into(), || backend.view().queue.calls == 0).await;
    let replayed = |traced: &Traced| match &traced.what {
        TraceSubject::Replay { op_id, origin, .. } => Some((*op_id, *origin)),
        TraceSubject::Call { .. } => None,
    };
    let taken = world.taken();
    let last = taken.iter().rfind(|traced| replayed(traced).is_some()).expect("a replay");
    let (op_id, origin) = replayed(last).unwrap();
    assert_eq!(Some(op_id), reply.op_id);
    assert_eq!(origin, SpanRef { span_id, ..CALLER });
    assert_eq!((last.span.trace_id, last.parent), (op_id.to_u128(), None));
    assert_eq!(steps(last), ["Success"], "an absolute write needs no note");
}

#[tokio::test]
async fn a_transition_tells_the_traces_of_the_errors_that_caused_it() {
    let world = Traces::start(true).await;
    world.server.set(Mode::Down);
    for _ in 0..4 {
        world.call("GET b", true).await.unwrap();
    }
    let opened = world.taken().into_iter().find_map(|traced| {
        traced.steps.into_iter().find_map(|step| match step.kind {
            StepKind::Attempt { transition, .. } => transition,
            _ => None,
        })
    });
    assert!(opened.is_some(), "the attempt that opened the breaker says so");
    let backend = world.fusebox.backends()[0].clone();
    let told = format!("{:032x}", CALLER.trace_id);
    let explained = backend.explain();
    let traced = explained.last_errors.iter().filter_map(|error| error.trace_id.as_ref());
    assert!(traced.into_iter().any(|id| *id == told), "{:?}", explained.last_errors);
}

#[tokio::test]
async fn an_attempt_begins_when_the_wait_for_queued_writes_is_over() {
    let world = Traces::start(true).await;
    world.server.set(Mode::Down);
    // A read of what an increment leaves has to wait for it.
    let queued = world.call_with("INCR n", false, durable()).await.unwrap();
    assert_eq!(queued.source, Source::Queued);
    let backend = world.fusebox.backends()[0].clone();
    until("replay has tried, and backs off".to_owned(), || {
        let index = backend.entry.shared.queue.index();
        index.page(false, 0).any(|(_, entry)| matches!(entry.phase, Phase::BackingOff))
    })
    .await;
    world.server.set(Mode::Up);
    let read = world.call("GET n", true);
    // Nobody waits for a lane that backs off.
    let ((), read) = tokio::join!(async { drop(backend.replay()) }, read);
    assert_eq!(value(&read.unwrap()), "1");
    let traced = world.taken().into_iter().rfind(|traced| steps(traced).contains(&"Fence".into()));
    let traced = traced.expect("it waited");
    assert_eq!(steps(&traced), ["Fence", "Success"]);
    let [fence, attempt] = &traced.steps[..] else { panic!("two steps") };
    assert!(fence.ended > fence.began && attempt.began >= fence.ended, "{traced:?}");
}
