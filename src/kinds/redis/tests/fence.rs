//! An abandoned write never lands after a newer one.

use super::{relay::Relay, *};

const SHORT: Duration = Duration::from_millis(500);

fn connector(port: u16, run: &str) -> Arc<RedisConnector> {
    impatient(port, run, SHORT)
}

fn impatient(port: u16, run: &str, timeout: Duration) -> Arc<RedisConnector> {
    let mut settings = settings(port, "host-a", run);
    settings.timeout = timeout;
    RedisConnector::new(settings)
}

async fn set(redis: &RedisConnector, command: &str) -> Attempted {
    call_with(redis, words(command), With { timeout: SHORT, ..With::default() }).await
}

/// The names of this instance's connections, as the server lists them.
async fn names(server: &Server) -> Vec<String> {
    let list = server.ask(&["CLIENT", "LIST"]).await;
    let list = String::from_utf8_lossy(&list).into_owned();
    let words = list.split(' ').filter_map(|word| word.strip_prefix("name=fusebox:host-a:"));
    words.map(str::to_owned).collect()
}

/// Waits until the relay has handed on what it kept, and the server has dealt with it.
async fn landed(server: &Server, relay: &Relay, held: &[String]) {
    let kept = *relay.kept.borrow();
    assert!(kept > 0, "the relay has kept the older write");
    relay.release();
    relay.released.subscribe().wait_for(|released| *released >= kept).await.unwrap();
    // The held connection comes to an end: the server has read it to the last byte.
    until("the server has read what it was sent", || async {
        !names(server).await.iter().any(|name| held.contains(name))
    })
    .await;
}

#[tokio::test]
async fn a_write_held_by_the_network_does_not_land_after_a_newer_one() {
    let server = Server::start().await;
    let relay = Relay::to(server.port).await;
    let redis = connector(relay.port, "run");
    reply(set(&redis, "SET k first").await);
    let held = names(&server).await;
    assert_eq!(held.len(), 1);
    relay.hold();
    let (abandoned, verdict) = error(set(&redis, "SET k older").await);
    assert_eq!((abandoned.class, verdict), (ErrorClass::Unknown, Verdict::Failure));
    until("the newer is acknowledged", || async {
        set(&redis, "SET k newer").await.result.is_ok()
    })
    .await;
    assert!(redis.status().warnings.is_empty());
    landed(&server, &relay, &held).await;
    assert_eq!(server.value("k").await, "newer");
}

#[tokio::test]
async fn nor_does_one_of_an_earlier_run_of_the_daemon() {
    let server = Server::start().await;
    let relay = Relay::to(server.port).await;
    let earlier = connector(relay.port, "old");
    reply(set(&earlier, "SET k first").await);
    let held = names(&server).await;
    assert_eq!(held.len(), 1);
    relay.hold();
    let (abandoned, _) = error(set(&earlier, "SET k older").await);
    assert_eq!(abandoned.class, ErrorClass::Unknown);
    let later = connector(relay.port, "new");
    reply(set(&later, "SET k newer").await);
    landed(&server, &relay, &held).await;
    assert_eq!(server.value("k").await, "newer");
}

#[tokio::test]
async fn other_instances_and_this_runs_own_connections_are_spared() {
    let server = Server::start().await;
    let neighbour = RedisConnector::new(server.settings("host-a", "run"));
    reply(call(&neighbour, "SET k v").await);
    let other = RedisConnector::new(server.settings("host-ab", "run"));
    reply(call(&other, "SET k v").await);
    let redis = RedisConnector::new(server.settings("host-a", "run"));
    reply(redis.ping(Duration::from_secs(2)).await);
    reply(call(&redis, "SET k v").await);
    assert_eq!((other.status().connections, redis.status().connections), (1, 2));
    reply(call(&redis, "GET k").await);
    assert_eq!(names(&server).await.len(), 3);
    for redis in [&other, &neighbour] {
        reply(call(redis, "SET k v").await);
        assert_eq!(redis.status().connections, 1);
    }
}

#[tokio::test]
async fn where_killing_is_refused_writes_wait_twice_the_timeout_and_status_warns() {
    let server = Server::start_with(&[
        "--user",
        "default",
        "on",
        "nopass",
        "~*",
        "+@all",
        "-client|kill",
        "-client|list",
    ])
    .await;
    let begun = Instant::now();
    let redis = connector(server.port, "run");
    let (early, verdict) = error(set(&redis, "SET k v").await);
    assert_eq!((early.class, verdict), (ErrorClass::NotExecuted, Verdict::Neutral));
    assert_eq!(early.code.as_str(), "fence");
    reply(call(&redis, "GET k").await);
    until("writes pass", || async { set(&redis, "SET k v").await.result.is_ok() }).await;
    assert!(begun.elapsed() >= SHORT * 2, "{:?}", begun.elapsed());
    assert!(
        redis.status().warnings[0].said().contains("cannot stop abandoned writes"),
        "{:?}",
        redis.status()
    );
}

#[tokio::test]
async fn a_busy_server_is_no_refusal() {
    let server = Server::start_with(&["--busy-reply-threshold", "10"]).await;
    let port = server.port;
    let script = tokio::spawn(testing::ask_owned(port, "EVAL|while true do end|0"));
    let redis = connector(port, "run");
    until("the server is busy", || async {
        testing::ask(port, &["PING"]).await.starts_with(b"-BUSY")
    })
    .await;
    let (busy, verdict) = error(set(&redis, "SET k v").await);
    assert_eq!((busy.class, verdict), (ErrorClass::NotExecuted, Verdict::Failure));
    assert_eq!(busy.code.as_str(), "BUSY");
    testing::ask(port, &["SCRIPT", "KILL"]).await;
    script.await.unwrap();
    until("writes pass", || async { set(&redis, "SET k v").await.result.is_ok() }).await;
    assert!(redis.status().warnings.is_empty());
}

/// Under a network that dies and revives, a key that is written in order never goes back.
#[tokio::test]
async fn values_never_go_back_under_a_network_that_dies_again_and_again() {
    let server = Server::start().await;
    let relay = Arc::new(Relay::to(server.port).await);
    let watcher = RedisConnector::new(settings(server.port, "watcher", "run"));
    let faults = tokio::spawn({
        let relay = Arc::clone(&relay);
        async move {
            for _ in 0..6 {
                tokio::time::sleep(Duration::from_millis(fastrand::u64(20..120))).await;
                relay.hold();
                tokio::time::sleep(Duration::from_millis(fastrand::u64(200..500))).await;
                relay.release();
            }
        }
    });
    let (mut written, mut seen, mut acknowledged) = (0_u64, 0_u64, 0_u64);
    let limit = Duration::from_millis(150);
    let mut redis = impatient(relay.port, "run-0", limit);
    while !faults.is_finished() || written < 20 {
        written += 1;
        if written % 40 == 0 {
            // The daemon dies and is started again.
            redis = impatient(relay.port, &format!("run-{written}"), limit);
        }
        let timeout = Duration::from_millis(fastrand::u64(50..=200));
        let body = words(&format!("SET k {written}"));
        let ended = call_with(&redis, body, With { timeout, ..With::default() }).await;
        match ended.result {
            Ok(_) => acknowledged = written,
            // The lane stays in order because nothing newer is sent before the fence has passed, or
            // the older one has kept its place on the same connection.
            Err(error) => assert_ne!(error.class, ErrorClass::Rejected, "{error}"),
        }
        let value = reply(call(&watcher, "GET k").await);
        let value = resp::Reply::of(&value).and_then(|value| value.text()).unwrap_or(b"0");
        let value: u64 = std::str::from_utf8(value).unwrap().parse().unwrap();
        assert!(value >= seen && value >= acknowledged, "{seen}, {acknowledged}, then {value}");
        seen = value;
    }
    faults.await.unwrap();
    assert!(acknowledged > 0);
}
