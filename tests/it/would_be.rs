//! The limit that would be, before a real server that takes sixteen queries at once and refuses the others.

use std::thread;
use std::time::Duration;

use serde_json::json;

use crate::support::callers::while_calling;
use crate::support::clickhouse::{ClickHouse, Engine, User};
use crate::support::daemon::Builder;

const LONG: Duration = Duration::from_secs(60);
const CALLERS: u32 = 32;

#[test]
fn overload_codes_of_clickhouse_bring_the_limit_to_what_the_server_takes() {
    let profile = &[("max_concurrent_queries_for_user", "16")];
    let limited = User { name: "limited", profile, ..User::default() };
    let server = ClickHouse::with_users(Engine::Old, &[limited]);
    let daemon = Builder::default()
        .set("backends.clickhouse.url", server.url())
        .set("backends.clickhouse.username", "limited")
        .set("backends.clickhouse.retry.attempts", 1)
        // What is refused is a failure, and opens nothing here.
        .set("backends.clickhouse.breaker.failure_threshold", 1_000_000)
        .start();
    let would_be = || {
        let (_, backend) = daemon.get("/v1/backends/clickhouse");
        let calls = &backend["calls"];
        assert_eq!(calls["in_flight_limit"], 256);
        calls["in_flight_limit_would_be"]["read"].as_u64()
    };
    assert_eq!(would_be(), None);
    let client = daemon.client();
    let call = |caller, number| {
        let query = format!("SELECT {caller}, {number}, sleep(0.2)");
        let reply = client.call("clickhouse", json!({ "query": query }));
        if reply.status != 200 {
            // A caller that is refused asks again a little later.
            thread::park_timeout(Duration::from_millis(50));
        }
    };
    while_calling(CALLERS, call, || {
        let is_there = || would_be().is_some_and(|limit| (12..=17).contains(&limit));
        daemon.wait_until("the limit is what the server takes", LONG, |_| is_there());
    });
    let page = daemon.metric(
        "attempts_in_flight_limit_would_be",
        &[("backend", "clickhouse"), ("class", "read")],
    );
    assert!((10.0..=20.0).contains(&page), "{page}");
    assert_eq!(daemon.breaker("clickhouse"), "CLOSED", "it changes nothing");
}
