//! A backend that does not answer is found out whatever its callers' patience, and one that is slow is not.

use super::*;

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

const HOUR: Duration = Duration::from_secs(3_600);

/// A backend whose attempts may take an hour, pinged every `interval` with a timeout of 100 ms.
async fn world(interval: Duration) -> World {
    world_of(interval, settings("one")).await
}

async fn world_of(interval: Duration, mut settings: BackendSettings) -> World {
    settings.timeout = HOUR;
    settings.breaker.recovery_timeout = HOUR;
    settings.breaker.recovery_timeout_max = HOUR;
    settings.breaker.attempt_timeout = HOUR;
    let dir = tempfile::tempdir().unwrap();
    let servers = vec![Scripted::new()];
    let pings = PingSettings { interval, timeout: ms(100) };
    let fusebox = start_pinging(dir.path(), pings, vec![settings], &servers).await;
    World { dir, fusebox, servers }
}

fn within(millis: u64) -> CallOptions {
    CallOptions { deadline: Some(ms(millis)), ..CallOptions::default() }
}

#[tokio::test]
async fn a_frozen_backend_opens_though_no_caller_waits_for_its_timeout() {
    let world = world(HOUR).await;
    world.call("GET a").await.unwrap();
    world.server().set(Mode::Frozen);
    let start = instant();
    while world.backend().view().breaker.state.to_string() == "CLOSED" {
        drop(world.call_with("GET a", within(20)).await);
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", world.backend().view().breaker);
    }
}

#[tokio::test]
async fn a_frozen_backend_that_answered_thousands_before_opens_with_the_second_ping() {
    let mut settings = settings("one");
    settings.breaker.failure_threshold = 6;
    let world = world_of(HOUR, settings).await;
    for _ in 0..1_000 {
        world.call("GET a").await.unwrap();
    }
    world.server().set(Mode::Frozen);
    let start = instant();
    while world.backend().view().breaker.state.to_string() == "CLOSED" {
        drop(tokio::time::timeout(ms(200), world.call("GET b")).await);
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", world.backend().view().breaker);
    }
    let last = world.backend().transitions(1).remove(0).transition;
    // It is pinged on once it is open.
    let pings = world.backend().view().breaker.pings_failed;
    assert!(last.reason == Reason::PingsFailed && pings < 5, "{last:?} after {pings} pings");
}

#[tokio::test]
async fn the_pings_of_a_frozen_backend_open_it_where_callers_only_wait() {
    let world = world(HOUR).await;
    world.server().set(Mode::Frozen);
    let start = instant();
    let backend = world.backend();
    let waits = tokio::spawn(async move { call(&backend, "GET a", within(60_000)).await });
    world.breaker_is("OPEN").await;
    let threshold = u64::from(settings("one").breaker.failure_threshold);
    assert!(start.elapsed() < Duration::from_secs(threshold + 2), "{:?}", start.elapsed());
    waits.abort();
}

#[tokio::test]
async fn a_cached_value_answers_while_the_backend_is_suspect() {
    let world = world(HOUR).await;
    world.call("SET a 1").await.unwrap();
    world.call("GET a").await.unwrap();
    world.server().set(Mode::Frozen);
    let start = instant();
    let reply = world.call_with("GET a", within(60_000)).await.unwrap();
    assert_eq!((reply.source, reply.value.as_deref()), (Source::Cache, Some(&b"1"[..])));
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    let outstanding = world.backend().entry.shared.circuit.outstanding();
    assert_eq!(outstanding.attempts, 1, "the attempt goes on");
}

#[tokio::test]
async fn a_query_that_is_cached_is_answered_once_the_breaker_opens_under_it() {
    let world = world(HOUR).await;
    let mut rest = world.call("BIG x").await.unwrap().rest.unwrap();
    while rest.next().await.is_some() {}
    drop(rest);
    world.server().set(Mode::Frozen);
    let start = instant();
    let reply = world.call_with("BIG x", within(60_000)).await.unwrap();
    assert_eq!(reply.source, Source::Cache);
    assert_eq!(world.backend().view().breaker.state.to_string(), "OPEN", "it may take its time");
    let threshold = u64::from(settings("one").breaker.failure_threshold);
    assert!(start.elapsed() < Duration::from_secs(threshold + 2), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_slow_backend_is_waited_for() {
    let world = world(ms(50)).await;
    world.call("SET a 1").await.unwrap();
    world.call("GET a").await.unwrap();
    world.server().set(Mode::Slow);
    for _ in 0..5 {
        let reply = world.call_with("GET a", within(60_000)).await.unwrap();
        assert_eq!(reply.source, Source::Live);
    }
    assert_eq!(world.backend().view().breaker.state.to_string(), "CLOSED");
}

#[tokio::test]
async fn slow_answers_open_a_breaker_that_is_told_so_and_are_counted_in_any_case() {
    for (rate, expected) in [(0.0, "CLOSED"), (0.5, "OPEN")] {
        let mut settings = settings("one");
        settings.breaker.slow = SlowCalls { after: ms(40), rate: Ratio::new(rate).unwrap() };
        let threshold = u64::from(settings.breaker.failure_threshold);
        let world = world_of(HOUR, settings).await;
        world.call("GET a").await.unwrap();
        world.server().set(Mode::Slow);
        for _ in 0..threshold {
            let reply = world.call_with("GET a", within(60_000)).await.unwrap();
            assert_eq!(reply.source, Source::Live, "what was slow is an answer all the same");
        }
        let breaker = world.backend().view().breaker;
        assert_eq!(breaker.state.to_string(), expected, "{breaker:?}");
        if expected == "CLOSED" {
            assert_eq!((breaker.window_slow, breaker.window_calls), (threshold, threshold + 1));
        } else {
            while world.backend().transitions(1).is_empty() {
                tokio::task::yield_now().await;
            }
            let last = world.backend().transitions(1).remove(0).transition;
            assert_eq!((last.reason, last.slow), (Reason::SlowCalls, threshold));
            let story = world.backend().explain().story;
            let told = |line: &fusebox_state::Words| {
                line.said().contains("3 of 4 calls took longer than 40 ms")
            };
            assert!(story.iter().any(told), "{story:?}");
        }
    }
}

#[tokio::test]
async fn pings_that_fail_say_nothing_while_attempts_are_answered() {
    let world = world(ms(50)).await;
    world.call("GET a").await.unwrap();
    world.server().set(Mode::Pingless);
    let before = world.server().pings.load(Ordering::Relaxed);
    let more = settings("one").breaker.failure_threshold + 3;
    while world.server().pings.load(Ordering::Relaxed) < before + more {
        world.call("GET a").await.unwrap();
        tokio::task::yield_now().await;
    }
    assert_eq!(world.backend().view().breaker.state.to_string(), "CLOSED");
}
