//! A link's room: what is on the wire and what waits for it is bounded, whoever waits.

use super::*;
use crate::kinds::redis::settings::RedisSettings;

/// `count` reads of `key` whose callers leave after `patience`; how many found no room.
async fn leave(redis: &RedisConnector, body: &Bytes, count: usize, patience: Duration) -> usize {
    let with = || With { timeout: patience, ..With::default() };
    let calls = (0..count).map(|_| call_with(redis, body.clone(), with()));
    let ends = futures_util::future::join_all(calls).await;
    let full = |end: &Attempted| {
        end.result.as_ref().is_err_and(|error| error.code.as_str() == "link_full")
    };
    ends.iter().filter(|end| full(end)).count()
}

#[tokio::test]
async fn a_frozen_server_is_left_64_mib_and_no_more_and_waiting_says_nothing_of_it() {
    let server = Server::start().await;
    let redis = RedisConnector::new(RedisSettings {
        timeout: Duration::from_secs(3),
        ..server.settings("i", "r")
    });
    reply(call(&redis, "SET k v").await);
    reply(call(&redis, "GET k").await);
    server.signal("STOP");
    let value = "x".repeat(8 << 20);
    let large = resp::command(&["SET", "k", &value]);
    // Seven and their units; the eighth finds a few KiB too little.
    let full = leave(&redis, &large, 12, Duration::from_millis(200)).await;
    assert_eq!(full, 5, "without room");
    let with = With { timeout: Duration::from_millis(50), ..With::default() };
    let (error, verdict) = error(call_with(&redis, large.clone(), with).await);
    assert_eq!((error.code.as_str(), error.class), ("link_full", ErrorClass::NotExecuted));
    assert_eq!((verdict, error.doubt), (Verdict::Neutral, None));
    // Reads have a link of their own.
    let (error, _) = super::error(
        call_with(
            &redis,
            words("GET k"),
            With { timeout: Duration::from_millis(50), ..With::default() },
        )
        .await,
    );
    assert_eq!(error.code.as_str(), "timeout");
    server.signal("CONT");
    until("there is room again", || async { call(&redis, "SET k v").await.result.is_ok() }).await;
    assert_eq!(leave(&redis, &large, 1, Duration::from_secs(3)).await, 0);
}
