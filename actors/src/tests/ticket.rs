//! Both ways in against one model: what a backend does to calls leaves the same behind, whichever way they came.

use fusebox_state::{UnixMillis, Verdict};
use proptest::prelude::*;

use super::{scripted::fault, *};
use crate::{
    Admission, Onward, OtherWay, Outcome, PlainAccess, PlainPlan, Settled, Ticket,
    connector::{Access, Attempt, AttemptError, Connector, Origin, OwnCode},
};

/// A backend that nobody pings or replays to, so that only calls change it.
async fn quiet(server: &Arc<Scripted>) -> (tempfile::TempDir, Fusebox) {
    let dir = tempfile::tempdir().unwrap();
    let hour = Duration::from_secs(3_600);
    let mut settings = settings("one");
    settings.breaker.recovery_timeout = hour;
    settings.breaker.recovery_timeout_max = hour;
    // Nothing here stays unanswered; a disk that syncs slowly must not end a call.
    settings.timeout = hour;
    settings.breaker.attempt_timeout = hour;
    let system = SystemSettings {
        state_dir: dir.path().to_owned(),
        pings: PingSettings::every(hour),
        instance: "test".into(),
        copied: Some("nothing is replayed".into()),
    };
    let spec = BackendSpec { settings, connector: server.clone() };
    let fusebox = Fusebox::start(system, vec![spec], None).await.unwrap();
    until("the first ping is over".into(), || fusebox.backends()[0].view().next_ping_at.is_some())
        .await;
    (dir, fusebox)
}

fn call_of(body: &str) -> Call {
    Call {
        body: Bytes::copy_from_slice(body.as_bytes()),
        options: CallOptions::default(),
        uid: 0,
        admin: false,
        trace: CallTrace::new("/call"),
        streams: false,
        upload: None,
    }
}

/// How a call was answered.
type Told = Result<(Source, Option<Bytes>), (CallErrorKind, String, bool)>;

fn told(result: Result<Reply, CallError>) -> Told {
    result
        .map(|reply| (reply.source, reply.value))
        .map_err(|error| (error.kind, error.code.into_owned(), error.outcome_unknown))
}

/// Carries a call as a door does that sends for itself.
async fn by_door(backend: &Backend, server: &Scripted, body: &str) -> Told {
    let plan = server.plan(Bytes::copy_from_slice(body.as_bytes())).unwrap();
    let (slot, access) = match &plan.access {
        Access::Read(read) => {
            let slot = read.slots.first();
            let at = slot.map(|slot| (slot.lane, &*slot.key));
            (slot, PlainAccess::Read { keyed: read.keyed, slot: at, max_stale: None })
        }
        Access::Write(write) => (None, PlainAccess::Write { absolute: write.absolute }),
    };
    let asked = PlainPlan {
        lanes: &plan.lanes,
        access,
        priority: Priority::Normal,
        operation: "scripted",
        trace: CallTrace::new("/door"),
        uid: 7,
        may_be_struck: false,
    };
    let ticket = match backend.admit(&asked) {
        Admission::Go(ticket) => ticket,
        Admission::Instead(instead) => return Ok((instead.source, Some(instead.value))),
        Admission::OtherWay(_) => return told(backend.call(call_of(body)).await),
    };
    let attempt = Attempt {
        body: &plan.body,
        lanes: &plan.lanes,
        write: slot.is_none(),
        origin: Origin::Live,
        token: None,
        digest: 0,
        doubt: None,
        following: &[],
        streams: false,
        upload: None,
        dialect: 0,
        accepted_at: UnixMillis::default(),
        now: UnixMillis::default(),
        timeout: Duration::from_millis(100),
        left: Duration::from_millis(100),
        fence_patience: Duration::from_millis(100),
        trace: None,
        passage: None,
    };
    let ended = server.attempt(attempt).await;
    let answered = ended.result.as_ref().ok().cloned();
    let outcome = match ended.result {
        Ok(ref reply) => {
            Outcome::Answered { cached: slot.map(|slot| (&*slot.key, &**reply)), until: None }
        }
        Err(error) => Outcome::Failed { verdict: ended.verdict, error },
    };
    match ticket.settle(outcome) {
        Settled::Done => Ok((Source::Live, answered)),
        Settled::GoOn(onward) => told(backend.go_on(call_of(body), *onward).await),
    }
}

/// All that a call leaves behind.
fn left(backend: &Backend, server: &Scripted) -> String {
    let view = backend.view();
    let shared = &backend.entry.shared;
    let index = shared.queue.index();
    let queued: Vec<_> = index
        .page(false, 0)
        .map(|(seq, entry)| (seq, entry.header.lanes.clone(), entry.state))
        .collect();
    drop(index);
    let mut cached: Vec<_> = shared.cache.load().entries();
    cached.sort_by(|(_, one), (_, other)| one.key.cmp(&other.key));
    let cached: Vec<_> = cached.into_iter().map(|(_, read)| (read.key, read.value)).collect();
    let (breaker, calls) = (view.breaker, view.calls);
    format!(
        "{} {}/{} | {:?} ok {} failed {} neutral {} rejected {} retries {} in flight {} | cache {}/{} {cached:?} | \
         {queued:?} | {:?} {:?} under way {}",
        breaker.state,
        breaker.window_failures,
        breaker.window_calls,
        calls.by_source,
        calls.successes,
        calls.failures,
        calls.neutral,
        calls.rejected,
        calls.retries,
        calls.in_flight,
        view.cache.hits,
        view.cache.misses,
        server.applied.lock(),
        server.attempts,
        shared.circuit.calls_under_way(),
    )
}

fn step() -> impl Strategy<Value = (Mode, &'static str)> {
    let mode = prop_oneof![
        6 => Just(Mode::Up), 2 => Just(Mode::Down), 1 => Just(Mode::Blocked),
        1 => Just(Mode::Half), 1 => Just(Mode::Strange), 1 => Just(Mode::Full),
    ];
    let body = prop::sample::select(vec![
        "GET a", "GET a", "GET b", "SET a 1", "SET a 2", "SET b 1", "INCR a", "INCR c", "ADD b x",
        "BAD a",
    ]);
    (mode, body)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn both_ways_in_leave_the_same_behind(steps in prop::collection::vec(step(), 1..24)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let failed = runtime.block_on(async {
            let servers = [Scripted::new(), Scripted::new()];
            let (one, other) = (quiet(&servers[0]).await, quiet(&servers[1]).await);
            let backends = [one.1.backends().remove(0), other.1.backends().remove(0)];
            for (number, (mode, body)) in steps.iter().enumerate() {
                for server in &servers {
                    server.set(*mode);
                }
                let by_call = told(backends[0].call(call_of(body)).await);
                let by_door = by_door(&backends[1], &servers[1], body).await;
                let left = [0, 1].map(|at| left(&backends[at], &servers[at]));
                if by_call != by_door || left[0] != left[1] {
                    return Some(format!(
                        "step {number}, {mode:?} {body}:\n{by_call:?}\n{by_door:?}\n{}\n{}",
                        left[0], left[1]
                    ));
                }
            }
            None
        });
        prop_assert!(failed.is_none(), "{}", failed.unwrap_or_default());
    }
}

fn plain<'a>(lanes: &'a fusebox_state::Lanes, access: PlainAccess<'a>) -> PlainPlan<'a> {
    let (priority, trace) = (Priority::Normal, CallTrace::new("/door"));
    let operation = "scripted";
    PlainPlan { lanes, access, priority, operation, trace, uid: 7, may_be_struck: true }
}

#[tokio::test]
async fn a_ticket_that_is_dropped_gives_everything_back_and_counts_for_nothing() {
    let server = Scripted::new();
    let (_dir, fusebox) = quiet(&server).await;
    let backend = fusebox.backends().remove(0);
    backend.call(call_of("GET a")).await.unwrap();
    let before = left(&backend, &server);
    let lane = fusebox_state::LaneId::of(b"", b"a");
    let lanes = fusebox_state::Lanes::One(lane);
    let read = PlainAccess::Read { keyed: true, slot: Some((lane, b"GET a")), max_stale: None };
    let Admission::Go(ticket) = backend.admit(&plain(&lanes, read)) else { panic!("it may") };
    assert_eq!(backend.entry.shared.circuit.bulkhead.in_flight(), 1);
    assert_eq!(backend.entry.shared.circuit.calls_under_way(), 1);
    drop(ticket);
    assert_eq!(left(&backend, &server), before);
    let write = PlainAccess::Write { absolute: true };
    let Admission::Go(ticket) = backend.admit(&plain(&lanes, write)) else { panic!("it may") };
    drop(ticket);
    let now = backend.entry.shared.circuit.clock.now();
    assert!(backend.entry.shared.cache.load().is_barred(lane, now), "it may still land");
    assert_eq!(backend.entry.shared.circuit.bulkhead.in_flight(), 0);
    assert_eq!(backend.entry.shared.circuit.calls_under_way(), 0);
}

#[tokio::test]
async fn what_was_withdrawn_for_a_write_comes_back_if_nothing_of_it_was_sent() {
    let server = Scripted::new();
    let (_dir, fusebox) = quiet(&server).await;
    let backend = fusebox.backends().remove(0);
    let lanes = fusebox_state::Lanes::One(fusebox_state::LaneId::of(b"", b"a"));
    let entries = || backend.entry.shared.cache.load().entries().len();
    let waiting = || {
        let write = PlainAccess::Write { absolute: true };
        let Admission::Go(mut ticket) = backend.admit(&plain(&lanes, write)) else { panic!("go") };
        ticket.waits();
        ticket
    };
    backend.call(call_of("GET a")).await.unwrap();
    let dropped = waiting();
    assert_eq!(entries(), 0, "it is about to be sent");
    drop(dropped);
    assert_eq!(entries(), 1);
    let mut left = waiting();
    assert!(left.abandon() && !left.departs(), "it is not sent any more");
    let error = fault(fusebox_state::ErrorClass::NotExecuted, OwnCode::Connect);
    let failed = Outcome::Failed { verdict: Verdict::Neutral, error };
    assert!(matches!(left.settle(failed), Settled::Done));
    assert_eq!(entries(), 1);
    let mut sent = waiting();
    assert!(sent.departs() && !sent.abandon(), "it may be applied");
    drop(sent);
    assert_eq!(entries(), 0);
}

/// Settles a ticket whose attempt says nothing of the backend.
fn failed(ticket: Ticket, error: AttemptError) -> Onward {
    let failed = Outcome::Failed { verdict: Verdict::Neutral, error };
    let Settled::GoOn(onward) = ticket.settle(failed) else { panic!("it goes on") };
    *onward
}

#[tokio::test]
async fn the_cache_hears_of_a_write_that_is_dropped_between_two_attempts() {
    let server = Scripted::new();
    let (_dir, fusebox) = quiet(&server).await;
    let backend = fusebox.backends().remove(0);
    let shared = &backend.entry.shared;
    let lane = fusebox_state::LaneId::of(b"", b"a");
    let lanes = fusebox_state::Lanes::One(lane);
    let entries = || shared.cache.load().entries().len();
    let admitted = || {
        let write = PlainAccess::Write { absolute: true };
        let Admission::Go(ticket) = backend.admit(&plain(&lanes, write)) else { panic!("go") };
        ticket
    };
    backend.call(call_of("GET a")).await.unwrap();
    let not_executed = fault(fusebox_state::ErrorClass::NotExecuted, OwnCode::Connect);
    let onward = failed(admitted(), not_executed);
    assert_eq!(entries(), 0, "it may be sent again");
    drop(onward);
    assert_eq!(entries(), 1, "nothing was written");
    let ticket = admitted();
    // The backend answers it before it applies the write.
    backend.call(call_of("GET a")).await.unwrap();
    assert_eq!(entries(), 1);
    drop(failed(ticket, fault(fusebox_state::ErrorClass::Unknown, OwnCode::Timeout)));
    assert_eq!(entries(), 0);
    let now = shared.circuit.clock.now();
    assert!(shared.cache.load().is_barred(lane, now), "it may still land");
}

#[tokio::test]
async fn what_was_withdrawn_for_a_write_comes_back_if_that_is_queued_behind_others() {
    let server = Scripted::new();
    let (_dir, fusebox) = quiet(&server).await;
    let backend = fusebox.backends().remove(0);
    let lanes = fusebox_state::Lanes::One(fusebox_state::LaneId::of(b"", b"a"));
    let entries = || backend.entry.shared.cache.load().entries().len();
    backend.call(call_of("GET a")).await.unwrap();
    let write = PlainAccess::Write { absolute: true };
    let Admission::Go(ticket) = backend.admit(&plain(&lanes, write)) else { panic!("go") };
    backend.set_offline(true).await.unwrap();
    let other = backend.call(call_of("SET a 2")).await.unwrap();
    assert_eq!((other.source, entries()), (Source::Queued, 0));
    let not_executed = fault(fusebox_state::ErrorClass::NotExecuted, OwnCode::Connect);
    let onward = failed(ticket, not_executed);
    let reply = backend.go_on(call_of("SET a 1"), onward).await.unwrap();
    assert_eq!((reply.source, entries()), (Source::Queued, 1));
}

#[tokio::test]
async fn an_attempt_that_its_call_has_parted_from_is_not_sent_again() {
    let server = Scripted::new();
    let (_dir, fusebox) = quiet(&server).await;
    let backend = fusebox.backends().remove(0);
    let lanes = fusebox_state::Lanes::One(fusebox_state::LaneId::of(b"", b"a"));
    let write = PlainAccess::Write { absolute: true };
    let Admission::Go(mut ticket) = backend.admit(&plain(&lanes, write)) else { panic!("go") };
    ticket.waits();
    assert!(ticket.departs(), "its call waits for it");
    let error = fault(fusebox_state::ErrorClass::Unknown, OwnCode::Timeout);
    let onward = ticket.part(error).expect("it goes on");
    // The server has acted upon nothing of it, after its call has gone on by itself.
    ticket.waits();
    assert!(!ticket.departs(), "the call is sent by its next attempt alone");
    drop((ticket, onward));
}

#[tokio::test]
async fn a_full_bulkhead_takes_the_other_way_and_counts_nothing() {
    let server = Scripted::new();
    let (_dir, fusebox) = quiet(&server).await;
    let backend = fusebox.backends().remove(0);
    backend.entry.shared.circuit.bulkhead.set_max(1);
    let lanes = fusebox_state::Lanes::One(fusebox_state::LaneId(1));
    let read = PlainAccess::Read { keyed: true, slot: None, max_stale: None };
    let Admission::Go(ticket) = backend.admit(&plain(&lanes, read)) else { panic!("it may") };
    for access in [read, PlainAccess::Write { absolute: true }] {
        let Admission::OtherWay(why) = backend.admit(&plain(&lanes, access)) else {
            panic!("full")
        };
        assert_eq!(why, OtherWay::Full);
    }
    assert_eq!(backend.view().calls.rejected, 0);
    let error = fault(fusebox_state::ErrorClass::NotExecuted, OwnCode::Connect);
    let failed = Outcome::Failed { verdict: Verdict::Failure, error };
    let Settled::GoOn(onward) = ticket.settle(failed) else { panic!("it goes on") };
    assert_eq!((backend.view().calls.failures, backend.view().calls.in_flight), (1, 0));
    drop(onward);
    assert_eq!(backend.entry.shared.circuit.calls_under_way(), 0);
}

#[tokio::test]
async fn a_door_that_can_hand_nothing_on_counts_what_it_refuses_and_what_has_failed() {
    let server = Scripted::new();
    let (_dir, fusebox) = quiet(&server).await;
    let backend = fusebox.backends().remove(0);
    let lane = fusebox_state::LaneId::of(b"", b"a");
    let lanes = fusebox_state::Lanes::One(lane);
    let write = PlainAccess::Write { absolute: false };
    let answered = |source: &str| {
        let by_source = backend.view().calls.by_source;
        by_source.iter().find(|(word, _)| **word == *source).map_or(0, |(_, count)| *count)
    };
    let errors = answered("error");
    backend.refuse(&plain(&lanes, write), OtherWay::Lanes);
    assert_eq!((backend.view().calls.rejected, answered("error")), (1, errors + 1));
    let Admission::Go(ticket) = backend.admit(&plain(&lanes, write)) else { panic!("it may") };
    let mut error = fault(fusebox_state::ErrorClass::Unknown, OwnCode::Timeout);
    error.doubt = Some(Bytes::new());
    let failed = Outcome::Failed { verdict: Verdict::Failure, error };
    let Settled::GoOn(onward) = ticket.settle(failed) else { panic!("it goes on") };
    backend.end(*onward);
    let shared = &backend.entry.shared;
    let now = shared.circuit.clock.now();
    assert!(shared.cache.load().is_barred(lane, now), "it may still land");
    let calls = backend.view().calls;
    assert_eq!((calls.failures, calls.in_flight, answered("error")), (1, 0, errors + 2));
    assert_eq!(shared.circuit.calls_under_way(), 0);
    assert!(backend.wait_for(0, &lanes, Duration::from_secs(1)).await, "nothing is queued");
}

#[tokio::test]
async fn a_call_that_parts_from_its_ticket_is_queued_and_the_breaker_hears_how_the_attempt_ended() {
    let lane = fusebox_state::LaneId::of(b"", b"a");
    let lanes = fusebox_state::Lanes::One(lane);
    let no_answer = || {
        let mut error = fault(fusebox_state::ErrorClass::Unknown, OwnCode::Timeout);
        error.doubt = Some(Bytes::new());
        error
    };
    for verdict in [Verdict::Success, Verdict::Failure] {
        let server = Scripted::new();
        let (_dir, fusebox) = quiet(&server).await;
        let backend = fusebox.backends().remove(0);
        let write = PlainAccess::Write { absolute: true };
        let Admission::Go(mut ticket) = backend.admit(&plain(&lanes, write)) else { panic!("go") };
        let mut onward = ticket.part(no_answer()).expect("it goes on");
        assert!(ticket.part(no_answer()).is_none(), "only once");
        backend.hold(&mut onward);
        let reply = backend.go_on(call_of("SET a 1"), *onward).await.unwrap();
        assert_eq!((reply.source, reply.attempts), (Source::Queued, 1));
        let calls = backend.view().calls;
        assert_eq!((calls.in_flight, calls.failures), (1, 0), "it is still on the wire");
        let window = backend.view().breaker.window_calls;
        let outcome = match verdict {
            Verdict::Failure => Outcome::Failed { verdict, error: no_answer() },
            _ => Outcome::Answered { cached: None, until: None },
        };
        assert!(matches!(ticket.settle(outcome), Settled::Done), "nothing follows");
        let view = backend.view();
        assert_eq!((view.calls.in_flight, view.queue.calls), (0, 1));
        assert_eq!(view.breaker.window_calls, window + 1);
    }
}
