//! Faults on purpose: what they do to calls, replay and pings, and what ends them.

use fusebox_state::chaos::Order;

use super::*;
use crate::{
    Admission, OtherWay, PlainAccess, PlainPlan,
    connector::{Access, Connector},
    view::{ChaosFaultView, ChaosView},
};

async fn set(backend: &Backend, order: &str) -> Result<ChaosView, crate::AdminError> {
    let order: Order =
        serde_json::from_str(order).unwrap_or_else(|error| panic!("{order}: {error}"));
    backend.set_chaos(order, "test".into()).await
}

/// Sets one fault that strikes everything.
async fn always(world: &World, fault: &str) {
    let order = format!(r#"{{"faults":[{{{fault},"rate":1}}],"force":true,"seed":1}}"#);
    set(&world.backend(), &order).await.unwrap();
}

/// A world that is not CRITICAL while its first backend is down.
async fn wide(first: BackendSettings) -> World {
    World::start(vec![first, settings("two"), settings("three")]).await
}

fn shown(world: &World) -> ChaosFaultView {
    world.backend().chaos().unwrap().faults[0].clone()
}

fn sent(world: &World) -> u32 {
    world.server().attempts.load(Ordering::Relaxed)
}

#[tokio::test]
async fn what_is_not_executed_is_never_sent_and_a_write_is_queued_as_in_an_outage() {
    for kind in ["error", "reset_before", "stale_connection"] {
        let world = World::one().await;
        let order = format!(
            r#"{{"faults":[{{"kind":"{kind}","rate":1}},{{"kind":"error","rate":1,"class":"replay"}}],
                "force":true}}"#
        );
        set(&world.backend(), &order).await.unwrap();
        let reply = world.call("SET a 1").await.unwrap();
        assert_eq!(reply.source, Source::Queued, "{kind}");
        assert_eq!(sent(&world), 0, "{kind}");
        assert!(shown(&world).hits > 0, "{kind}");
        assert!(world.backend().clear_chaos("test".into()).await.unwrap());
        world.drained().await;
        assert_eq!(world.server().get("a").as_deref(), Some("1"), "{kind}");
    }
}

#[tokio::test]
async fn a_refusal_is_told_and_proves_the_backend_alive() {
    let world = World::one().await;
    always(&world, r#""kind":"reject""#).await;
    for _ in 0..10 {
        let error = world.call("SET a 1").await.unwrap_err();
        assert_eq!((error.kind, error.outcome_unknown), (CallErrorKind::Refused, false));
    }
    assert_eq!(sent(&world), 0);
    assert_eq!(world.backend().view().breaker.state.to_string(), "CLOSED");
}

#[tokio::test]
async fn a_lost_answer_is_an_outcome_that_nobody_knows() {
    for kind in ["reset_after", "timeout"] {
        let world = World::one().await;
        always(&world, &format!(r#""kind":"{kind}""#)).await;
        let error = world.call("INCR n").await.unwrap_err();
        assert!(error.outcome_unknown, "{kind}: {error}");
        assert_eq!(
            *world.server().applied.lock(),
            ["INCR n"],
            "{kind}: applied, and not sent again"
        );
        assert!(world.backend().view().breaker.window_failures > 0, "{kind}");
    }
}

#[tokio::test]
async fn an_absolute_write_whose_answer_is_lost_is_sent_again_and_ends_as_it_was_meant() {
    let world = World::one().await;
    always(&world, r#""kind":"reset_after""#).await;
    // A connection is reset once in a second: the second attempt is answered.
    let reply = world.call("SET a 1").await.unwrap();
    assert_eq!((reply.source, reply.attempts), (Source::Live, 2));
    let ChaosFaultView { hits, suppressed, .. } = shown(&world);
    assert_eq!((hits, suppressed), (1, 1));
}

#[tokio::test]
async fn a_delay_is_felt_by_so_many_at_once_as_may_be() {
    let world = World::one().await;
    let order =
        r#"{"faults":[{"kind":"latency","rate":1,"latency":"80ms"}],"force":true,"max_active":2}"#;
    set(&world.backend(), order).await.unwrap();
    let backend = world.backend();
    let one = async || {
        let began = instant();
        call(&backend, "GET a", CallOptions::default()).await.unwrap();
        began.elapsed() >= Duration::from_millis(80)
    };
    let felt = tokio::join!(one(), one(), one(), one());
    let felt = [felt.0, felt.1, felt.2, felt.3].into_iter().filter(|felt| *felt).count();
    assert_eq!(felt, 2);
    let ChaosFaultView { hits, suppressed, .. } = shown(&world);
    assert_eq!((hits, suppressed), (2, 2));
    assert!(one().await, "the places are given back");
}

#[tokio::test]
async fn an_answer_that_drips_comes_later_and_its_rest_as_slowly() {
    let world = World::one().await;
    always(&world, r#""kind":"slow_drip","latency":"30ms""#).await;
    let body = Bytes::from_static(b"BIG k");
    let trace = CallTrace::new("/call");
    let options = CallOptions::default();
    let call = Call { body, options, uid: 0, admin: false, trace, streams: true, upload: None };
    let began = instant();
    let reply = world.backend().call(call).await.unwrap();
    assert!(began.elapsed() >= Duration::from_millis(30));
    let whole = reply.gathered().await.unwrap();
    assert_eq!(value(&whole), "abc");
    assert!(began.elapsed() >= Duration::from_millis(90), "two more pieces");
}

#[tokio::test]
async fn what_does_not_count_says_nothing_of_the_backend() {
    for kind in ["error", "reset_after", "timeout"] {
        let world = World::one().await;
        let order =
            format!(r#"{{"faults":[{{"kind":"{kind}","rate":1}}],"force":true,"count":false}}"#);
        set(&world.backend(), &order).await.unwrap();
        for _ in 0..5 {
            drop(world.call("GET a").await);
        }
        let view = world.backend().view();
        assert_eq!((view.breaker.window_failures, view.calls.failures), (0, 0), "{kind}");
        assert!(view.calls.neutral > 0, "{kind}");
        assert_eq!(view.calls.in_flight, 0, "{kind}");
    }
}

#[tokio::test]
async fn queued_calls_are_struck_only_by_name_and_none_is_lost_or_passed() {
    for kind in ["error", "timeout", "reset_after"] {
        let world = wide(settings("one")).await;
        world.server().set(Mode::Down);
        for number in 0..3 {
            world.call_with(&format!("SET k {number}"), durable()).await.unwrap();
        }
        let order =
            format!(r#"{{"faults":[{{"kind":"{kind}","rate":0.3,"class":"replay"}}],"seed":5}}"#);
        set(&world.backend(), &order).await.unwrap();
        world.server().set(Mode::Up);
        world.backend().reset().await.unwrap();
        world.drained().await;
        assert_eq!(world.server().get("k").as_deref(), Some("2"), "{kind}");
        let applied = world.server().applied.lock().clone();
        let mut once = applied.clone();
        once.dedup();
        assert_eq!(once.len(), 3, "{kind}: in their order, each at least once: {applied:?}");
        assert!(shown(&world).hits > 0, "{kind}");
        assert_eq!(world.backend().view().queue.dead_letters, 0, "{kind}");
    }
}

#[tokio::test]
async fn pings_are_struck_only_by_name() {
    let world = World::one().await;
    always(&world, r#""kind":"error""#).await;
    let pings = world.server().pings.load(Ordering::Relaxed);
    world.until("it is pinged", |it| it.server().pings.load(Ordering::Relaxed) > pings + 5).await;
    assert_eq!((shown(&world).hits, world.backend().chaos().unwrap().attempts > 0), (0, true));
    always(&world, r#""kind":"reset_before","class":"ping""#).await;
    world.breaker_is("OPEN").await;
}

#[tokio::test]
async fn a_call_of_a_door_takes_the_other_way_and_meets_there_what_strikes_it() {
    let world = World::one().await;
    // What is queued is not to be sent meanwhile.
    always(&world, r#""kind":"error","rate":1},{"kind":"error","class":"replay""#).await;
    let (server, backend) = (world.server(), world.backend());
    let plan = server.plan(Bytes::from_static(b"SET a 1")).unwrap();
    let Access::Write(write) = &plan.access else { panic!("a write") };
    let mut asked = PlainPlan {
        lanes: &plan.lanes,
        access: PlainAccess::Write { absolute: write.absolute },
        priority: Priority::Normal,
        operation: "scripted",
        trace: CallTrace::new("/door"),
        uid: 7,
        may_be_struck: true,
    };
    let Admission::OtherWay(OtherWay::Struck(strike)) = backend.admit(&asked) else {
        panic!("it is struck")
    };
    assert_eq!((shown(&world).hits, backend.view().calls.in_flight), (0, 0), "not met yet");
    let options = CallOptions { struck: Some(strike), ..CallOptions::default() };
    let reply = call(&backend, "SET a 1", options).await.unwrap();
    assert_eq!((reply.source, sent(&world)), (Source::Queued, 0));
    asked.may_be_struck = false;
    backend.clear_chaos("test".into()).await.unwrap();
    world.drained().await;
    always(&world, r#""kind":"error""#).await;
    assert!(matches!(backend.admit(&asked), Admission::Go(_)), "it could take no other way");
    // What was chosen before is of the faults that were set then.
    let options = CallOptions { struck: Some(strike), ..CallOptions::default() };
    backend.clear_chaos("test".into()).await.unwrap();
    assert_eq!(call(&backend, "SET a 2", options).await.unwrap().source, Source::Live);
}

#[tokio::test]
async fn they_end_when_the_system_is_critical_and_cannot_be_set_then() {
    let mut other = settings("other");
    other.critical = true;
    let world = World::start(vec![settings("one"), other]).await;
    let mut events = world.fusebox.events().subscribe();
    set(&world.backend(), r#"{"faults":[{"kind":"error","rate":0.1}],"reason":"a drill"}"#)
        .await
        .unwrap();
    world
        .until("health tells of it", |world| {
            world.fusebox.health().reasons.iter().any(|why| why.contains("one: chaos until"))
        })
        .await;
    assert!(world.fusebox.health().backends["one"].chaos);
    let began = instant();
    let critical = world.fusebox.backends()[1].clone();
    critical.force(true, "a drill".into(), None).await.unwrap();
    world.until("it is aborted", |world| world.backend().chaos().is_none()).await;
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    let mut words = Vec::new();
    while let Ok(event) = events.try_recv() {
        match event.kind {
            EventKind::ChaosSet { by, kinds, reason, .. } => {
                words.push(format!("set by {by}: {kinds:?} {reason}"));
            }
            EventKind::ChaosAborted { why } => words.push(why),
            _ => {}
        }
    }
    assert_eq!(words, ["set by test: [\"error\"] a drill", "the system is CRITICAL"]);
    let again = set(&world.backend(), r#"{"faults":[{"kind":"error","rate":0.1}]}"#).await;
    let why = "chaos would end at once: the system is CRITICAL";
    assert!(matches!(again, Err(crate::AdminError::Conflict(told)) if told == why));
}

#[tokio::test]
async fn a_queue_that_fills_ends_them_and_so_do_too_many_failures() {
    let mut small = settings("one");
    small.queue.items = 10;
    let world = wide(small).await;
    let force = r#"{"faults":[{"kind":"error","rate":1},{"kind":"error","rate":1,"class":"replay"}],
        "force":true,"abort_on":"never"}"#;
    set(&world.backend(), force).await.unwrap();
    for number in 0..8 {
        drop(world.call(&format!("SET k{number} 1")).await);
    }
    world.until("it is aborted", |world| world.backend().chaos().is_none()).await;
    world.drained().await;
    let world = World::one().await;
    let order = r#"{"faults":[{"kind":"reject","rate":0.5}],"abort_above":0.2}"#;
    set(&world.backend(), order).await.unwrap();
    let calls = async {
        while world.backend().chaos().is_some() {
            drop(world.call("GET a").await);
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, calls).await.expect("too many fail");
}

#[tokio::test]
async fn one_backend_at_a_time_and_nothing_outlives_its_time_or_a_restart() {
    let world = World::start(vec![settings("one"), settings("other")]).await;
    let usual = r#"{"faults":[{"kind":"error","rate":0.1}],"for":"1s"}"#;
    set(&world.backend(), usual).await.unwrap();
    let other = world.fusebox.backends()[1].clone();
    let refused = set(&other, usual).await;
    assert!(
        matches!(refused, Err(crate::AdminError::Conflict(why)) if why.contains("chaos is already set for one"))
    );
    let forced = r#"{"faults":[{"kind":"error","rate":0.1}],"force":true}"#;
    set(&other, forced).await.unwrap();
    world.until("its time is over", |world| world.backend().chaos().is_none()).await;
    assert!(other.chaos().is_some());
    let world = world.restart(vec![settings("one"), settings("other")]).await;
    assert!(world.fusebox.backends().iter().all(|backend| backend.chaos().is_none()));
}

#[tokio::test]
async fn offline_suspends_them_and_says_so() {
    let world = wide(settings("one")).await;
    always(&world, r#""kind":"error","class":"read""#).await;
    world.backend().set_offline(true).await.unwrap();
    let suspended =
        |world: &World| world.backend().chaos().is_some_and(|it| it.suspended.is_some());
    world.until("they are suspended", suspended).await;
    world.backend().set_offline(false).await.unwrap();
    world.until("they go on", |world| !suspended(world)).await;
    drop(world.call("GET a").await);
    assert!(shown(&world).hits > 0);
}

#[tokio::test]
async fn the_same_seed_strikes_the_same_calls() {
    let mut struck = Vec::new();
    for _ in 0..2 {
        let world = World::one().await;
        let order = r#"{"faults":[{"kind":"reject","rate":0.3}],"seed":42}"#;
        set(&world.backend(), order).await.unwrap();
        let mut failed = Vec::new();
        for number in 0..50 {
            if world.call("GET a").await.is_err() {
                failed.push(number);
            }
        }
        struck.push(failed);
    }
    assert!(!struck[0].is_empty());
    assert_eq!(struck[0], struck[1]);
}

#[tokio::test]
async fn hits_are_counted_by_kind_and_a_code_must_be_one_of_the_backends() {
    let world = World::one().await;
    always(&world, r#""kind":"error""#).await;
    drop(world.call("GET a").await);
    let page = world.fusebox.metrics(Format::Prometheus);
    let hits = shown(&world).hits;
    let line = format!("fusebox_chaos_injected_total{{backend=\"one\",kind=\"error\"}} {hits}");
    assert!(page.contains(&line), "{page}");
    assert!(page.contains("fusebox_chaos_active{backend=\"one\"} 1"));
    let wrong =
        set(&world.backend(), r#"{"faults":[{"kind":"error","rate":0.1,"code":"NO"}]}"#).await;
    assert!(
        matches!(wrong, Err(crate::AdminError::Invalid(why)) if why.starts_with("faults[0].code: \"NO\""))
    );
}
