//! The connector against a real server.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use fusebox_actors::connector::{
    Access, Attempt, AttemptError, Attempted, Connector, Doubt, Origin, Plan,
};
use fusebox_state::{ErrorClass, OpId, UnixMillis, Verdict};
use tokio::time::Instant;

use super::{connector::RedisConnector, protocol::resp, testing};
use testing::{Server, settings, until};

mod deadlines;
mod door;
mod effects;
mod fence;
mod line;
mod relay;
mod room;
mod stayed_up;
mod tls;
mod tokens;

fn now() -> UnixMillis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    UnixMillis::new(u64::try_from(since.as_millis()).unwrap())
}

fn words(command: &str) -> Bytes {
    resp::command(&command.split(' ').collect::<Vec<_>>())
}

/// How an attempt differs from a caller's usual one.
#[derive(Clone, Copy)]
struct With {
    timeout: Duration,
    token: Option<OpId>,
    digest: u64,
    origin: Origin,
    accepted: UnixMillis,
    /// When an earlier attempt was sent that may have been carried out.
    doubt: Option<UnixMillis>,
}

static NO_EVIDENCE: Bytes = Bytes::new();

impl Default for With {
    fn default() -> Self {
        let timeout = Duration::from_secs(2);
        Self { timeout, token: None, digest: 1, origin: Origin::Live, accepted: now(), doubt: None }
    }
}

async fn call_with(redis: &RedisConnector, body: Bytes, with: With) -> Attempted {
    redis.attempt(attempt(&redis.plan(body).unwrap(), with)).await
}

fn attempt(plan: &Plan, with: With) -> Attempt<'_> {
    let With { timeout, token, digest, origin, accepted: accepted_at, doubt } = with;
    Attempt {
        body: &plan.body,
        lanes: &plan.lanes,
        write: matches!(plan.access, Access::Write(_)),
        origin,
        token,
        digest,
        doubt: doubt.map(|since| Doubt { since, evidence: &NO_EVIDENCE }),
        following: &[],
        streams: false,
        upload: None,
        dialect: 0,
        passage: None,
        accepted_at,
        now: now(),
        timeout,
        left: timeout,
        fence_patience: timeout,
        trace: None,
    }
}

async fn call(redis: &RedisConnector, command: &str) -> Attempted {
    call_with(redis, words(command), With::default()).await
}

/// The reply to a call that must succeed.
#[track_caller]
fn reply(ended: Attempted) -> Bytes {
    assert_eq!(ended.verdict, Verdict::Success);
    ended.result.unwrap_or_else(|error| panic!("{error}"))
}

/// The error of a call that must fail, with its verdict.
#[track_caller]
fn error(ended: Attempted) -> (AttemptError, Verdict) {
    (ended.result.expect_err("an error"), ended.verdict)
}

#[tokio::test]
async fn speaks_resp3_and_tells_of_the_server() {
    let server = Server::start().await;
    let redis = RedisConnector::new(server.settings("i", "r"));
    assert_eq!(redis.status().connections, 0);
    reply(redis.ping(Duration::from_secs(2)).await);
    assert_eq!(reply(call(&redis, "HSET h f v").await), ":1\r\n");
    assert_eq!(reply(call(&redis, "HGETALL h").await), "%1\r\n$1\r\nf\r\n$1\r\nv\r\n");
    assert_eq!(reply(call(&redis, "GET none").await), "_\r\n");
    let status = redis.status();
    assert_eq!((status.connections, status.warnings), (2, vec![]));
    assert_eq!(status.server_version, Some(server.version().await));
    assert_eq!(redis.target().to_string(), format!("redis 127.0.0.1:{}/0", server.port));
    redis.close().await;
    let (error, verdict) = error(call(&redis, "GET k").await);
    assert_eq!((error.class, verdict), (ErrorClass::NotExecuted, Verdict::Neutral));
}

/// Queued writes that are carried together. A word before a colon is the write's token.
async fn replayed(redis: &RedisConnector, commands: &[&str], with: With) -> Vec<Attempted> {
    let with = With { origin: Origin::Replay, ..with };
    let read = |command: &&str| {
        let (token, command) = command.split_once(": ").unwrap_or(("", command));
        (redis.plan(words(command)).unwrap(), token.parse().ok().map(OpId::from_u128))
    };
    let plans: Vec<(Plan, Option<OpId>)> = commands.iter().map(read).collect();
    let attempts = plans.iter().map(|(plan, token)| attempt(plan, With { token: *token, ..with }));
    redis.attempt_batch(attempts.collect()).await
}

#[tokio::test]
async fn a_batch_says_how_each_of_its_writes_has_ended() {
    let mut server = Server::start().await;
    let redis = RedisConnector::new(server.settings("i", "r"));
    server.ask(&["SET", "text", "t"]).await;
    let commands = [
        "SET a 1",
        "7: INCR n",
        "SET b 2 EX 100",
        "LPUSH text x",
        "SET c 3",
        "8: INCR m",
        "PEXPIRE text 100000",
        "SADD s x y",
    ];
    let accepted = UnixMillis::new(now().get() - 40_000);
    let ended = replayed(&redis, &commands, With { accepted, ..With::default() }).await;
    let said: Vec<String> = ended
        .into_iter()
        .map(|ended| match ended.result {
            Ok(reply) => String::from_utf8_lossy(&reply).trim_end().to_owned(),
            Err(error) => format!("{:?}", error.class),
        })
        .collect();
    assert_eq!(said, ["+OK", ":1", "+OK", "Rejected", "+OK", ":1", ":1", ":2"]);
    assert_eq!([server.value("a").await, server.value("c").await], ["1", "3"]);
    for key in ["b", "text"] {
        let left = server.ask(&["TTL", key]).await;
        let left = String::from_utf8_lossy(&left).trim_matches([':', '\r', '\n']).parse::<u64>();
        assert!((50..=60).contains(left.as_ref().unwrap()), "what is left of 100 s: {left:?}");
    }

    server.signal("STOP");
    let begun = Instant::now();
    let with = With { timeout: Duration::from_millis(1_200), ..With::default() };
    for ended in replayed(&redis, &commands[..5], with).await {
        assert_eq!(error(ended).0.class, ErrorClass::Unknown);
    }
    assert!(begun.elapsed() < Duration::from_secs(2), "they wait at once, not one after the other");
    server.kill();
    for ended in replayed(&redis, &commands[..5], with).await {
        assert_eq!(error(ended).0.class, ErrorClass::NotExecuted);
    }
}

#[tokio::test]
async fn falls_back_to_resp2_where_hello_is_refused() {
    let server =
        Server::start_with(&["--rename-command", "HELLO", "", "--requirepass", "hush"]).await;
    let mut settings = server.settings("i", "r");
    settings.password = Some(super::settings::Secret::new("hush"));
    settings.database = 3;
    let redis = RedisConnector::new(settings);
    assert_eq!(reply(call(&redis, "HSET h f v").await), ":1\r\n");
    assert_eq!(reply(call(&redis, "HGETALL h").await), "*2\r\n$1\r\nf\r\n$1\r\nv\r\n");
    let plan = redis.plan(words("GET k")).unwrap();
    let Access::Read(read) = plan.access else { panic!("a read") };
    assert_eq!(read.miss.unwrap(), "$-1\r\n");
}

#[tokio::test]
async fn authenticates_with_a_user_and_with_a_file_read_at_every_connect() {
    let server = Server::start_with(&[
        "--user", "default", "off", "--user", "ada", "on", ">hush", "~*", "+@all",
    ])
    .await;
    let file = server.folder.path().join("password");
    std::fs::write(&file, "wrong\n").unwrap();
    let mut settings = server.settings("i", "r");
    settings.username = Some("ada".to_owned());
    settings.password_file = Some(file.clone());
    let redis = RedisConnector::new(settings);
    let (refused, verdict) = error(call(&redis, "GET k").await);
    assert_eq!((refused.class, verdict), (ErrorClass::BlockedServer, Verdict::Failure));
    assert_eq!(refused.code.as_str(), "WRONGPASS");
    let (again, _) = error(redis.ping(Duration::from_secs(2)).await);
    assert_eq!(again.class, ErrorClass::BlockedServer);
    std::fs::write(&file, "hush\n").unwrap();
    reply(redis.ping(Duration::from_secs(2)).await);
    assert_eq!(reply(call(&redis, "GET k").await), "_\r\n");
}

#[tokio::test]
async fn a_missing_password_blocks_the_server() {
    let server = Server::start_with(&["--requirepass", "hush"]).await;
    let redis = RedisConnector::new(server.settings("i", "r"));
    let (refused, verdict) = error(call(&redis, "SET k v").await);
    assert_eq!((refused.class, verdict), (ErrorClass::BlockedServer, Verdict::Failure));
    assert_eq!(refused.code.as_str(), "NOAUTH");
}

#[tokio::test]
async fn a_cluster_is_refused_with_a_clear_message() {
    let server = Server::start_with(&["--cluster-enabled", "yes"]).await;
    let redis = RedisConnector::new(server.settings("i", "r"));
    let (refused, _) = error(call(&redis, "GET k").await);
    assert_eq!(refused.class, ErrorClass::BlockedServer);
    assert!(refused.message.whole().contains("Redis Cluster"), "{}", refused.message);
}

#[tokio::test]
async fn a_unix_socket_serves_as_well() {
    let server = Server::start_with(&["--unixsocket", "{dir}/s"]).await;
    let url = format!("unix://{}/s?db=2", server.folder.path().display());
    let redis =
        RedisConnector::new(super::settings::RedisSettings::new(url.parse().unwrap(), "i", "r"));
    assert_eq!(reply(call(&redis, "SET k v").await), "+OK\r\n");
    assert_eq!(reply(call(&redis, "GET k").await), "$1\r\nv\r\n");
}

#[tokio::test]
async fn ten_thousand_calls_at_once_each_get_their_own_reply() {
    let server = Server::start().await;
    let mut settings = server.settings("i", "r");
    settings.timeout = testing::PATIENCE;
    let with = With { timeout: settings.timeout, ..With::default() };
    let redis = RedisConnector::new(settings);
    let calls: Vec<_> = (0..10_000)
        .map(|n| {
            let redis = Arc::clone(&redis);
            tokio::spawn(async move {
                reply(call_with(&redis, words(&format!("SET k{n} {n}")), with).await);
                let value = reply(call_with(&redis, words(&format!("GET k{n}")), with).await);
                assert_eq!(resp::Reply::of(&value).unwrap().text(), Some(n.to_string().as_bytes()));
            })
        })
        .collect();
    for call in calls {
        call.await.unwrap();
    }
    assert_eq!(redis.status().connections, 2);
}

#[tokio::test]
async fn values_are_binary_safe_and_large() {
    let server = Server::start().await;
    let redis = RedisConnector::new(server.settings("i", "r"));
    let value: Vec<u8> = (0..3_000_000_u32).map(|n| u8::try_from(n % 256).unwrap()).collect();
    let set = resp::command(&[b"SET", &b"k\r\n\xff"[..], &value]);
    assert_eq!(reply(call_with(&redis, set, With::default()).await), "+OK\r\n");
    let get = resp::command(&[b"GET", &b"k\r\n\xff"[..]]);
    let got = reply(call_with(&redis, get, With::default()).await);
    assert_eq!(resp::Reply::of(&got).unwrap().text(), Some(value.as_slice()));
}

#[tokio::test]
async fn a_caller_that_leaves_keeps_its_place() {
    let server = Server::start().await;
    let redis = RedisConnector::new(server.settings("i", "r"));
    reply(call(&redis, "SET k v").await);
    server.ask(&["CLIENT", "PAUSE", "700", "ALL"]).await;
    let short = With { timeout: Duration::from_millis(20), ..With::default() };
    let (left, verdict) = error(call_with(&redis, words("SET k first"), short).await);
    assert_eq!((left.class, verdict), (ErrorClass::Unknown, Verdict::Neutral));
    assert_eq!(reply(call(&redis, "APPEND k -second").await), ":12\r\n", "in its place, not lost");
    assert_eq!(redis.status().connections, 1, "the connection was not reset");
}

#[tokio::test]
async fn a_server_that_hangs_is_a_timeout_for_the_oldest_and_a_reset_for_the_others() {
    let server = Server::start().await;
    let mut settings = server.settings("i", "r");
    settings.timeout = Duration::from_secs(1);
    let with = With { timeout: settings.timeout, ..With::default() };
    let redis = RedisConnector::new(settings);
    reply(call(&redis, "SET k v").await);
    server.signal("STOP");
    let set = |command: &'static str, after: Duration| {
        let redis = Arc::clone(&redis);
        tokio::spawn(async move {
            tokio::time::sleep(after).await;
            call_with(&redis, words(command), with).await
        })
    };
    let oldest = set("SET k 1", Duration::ZERO);
    // Younger by half of the time that the oldest has.
    let younger = set("SET k 2", Duration::from_millis(500));
    let (oldest, verdict) = error(oldest.await.unwrap());
    assert_eq!((oldest.class, verdict), (ErrorClass::Unknown, Verdict::Failure));
    assert_eq!(oldest.code.as_str(), "timeout");
    let (younger, verdict) = error(younger.await.unwrap());
    assert_eq!((younger.class, verdict), (ErrorClass::Unknown, Verdict::Neutral));
    assert_eq!(younger.code.as_str(), "reset", "it does not wait for its own time");
    assert_eq!(redis.status().connections, 0);
    let (ping, verdict) = error(redis.ping(Duration::from_millis(100)).await);
    assert_eq!((ping.class, verdict), (ErrorClass::NotExecuted, Verdict::Failure));
    server.signal("CONT");
    until("calls pass again", || async { call(&redis, "SET k 3").await.result.is_ok() }).await;
    assert_eq!(reply(call(&redis, "GET k").await), "$1\r\n3\r\n");
}

#[tokio::test]
async fn a_dead_server_is_not_executed_and_a_new_one_is_found() {
    let mut server = Server::start().await;
    let redis = RedisConnector::new(server.settings("i", "r"));
    reply(call(&redis, "SET k v").await);
    reply(call(&redis, "GET k").await);
    server.kill();
    until("the connections are known to be gone", || async { redis.status().connections == 0 })
        .await;
    for _ in 0..3 {
        let (error, verdict) = error(call(&redis, "INCR n").await);
        assert_eq!((error.class, verdict), (ErrorClass::NotExecuted, Verdict::Failure));
        assert_eq!(error.code.as_str(), "connect");
    }
    let (ping, _) = error(redis.ping(Duration::from_secs(1)).await);
    assert_eq!(ping.code.as_str(), "connect");
    server.restart().await;
    reply(redis.ping(Duration::from_secs(2)).await);
    until("writes pass again", || async { call(&redis, "SET k v").await.result.is_ok() }).await;
}

#[tokio::test]
async fn errors_of_the_server_are_classified() {
    let server = Server::start().await;
    let redis = RedisConnector::new(server.settings("i", "r"));
    reply(call(&redis, "SET k v").await);
    let (wrong, verdict) = error(call(&redis, "LPUSH k v").await);
    assert_eq!((wrong.class, verdict), (ErrorClass::Rejected, Verdict::Success));
    assert_eq!((wrong.code.as_str(), wrong.unclassified), ("WRONGTYPE", false));
    server.ask(&["CONFIG", "SET", "min-replicas-to-write", "1"]).await;
    let (blocked, verdict) = error(call(&redis, "SET k v").await);
    assert_eq!((blocked.class, verdict), (ErrorClass::BlockedServer, Verdict::Failure));
    server.ask(&["CONFIG", "SET", "min-replicas-to-write", "0"]).await;
    server.ask(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let (full, verdict) = error(call(&redis, "SET k v").await);
    assert_eq!((full.class, verdict), (ErrorClass::BlockedObject, Verdict::Success));
    server.ask(&["CONFIG", "SET", "maxmemory", "0"]).await;
    server.ask(&["ACL", "SETUSER", "default", "resetkeys", "~only:*"]).await;
    let (forbidden, verdict) = error(call(&redis, "SET k v").await);
    assert_eq!((forbidden.class, verdict), (ErrorClass::BlockedObject, Verdict::Success));
}

#[tokio::test]
async fn a_replica_is_left_for_whoever_bears_its_name_next() {
    let server = Server::start().await;
    let redis = RedisConnector::new(server.settings("i", "r"));
    reply(call(&redis, "SET k v").await);
    server.ask(&["REPLICAOF", "127.0.0.1", "1"]).await;
    let (readonly, verdict) = error(call(&redis, "SET k w").await);
    assert_eq!((readonly.class, verdict), (ErrorClass::BlockedServer, Verdict::Failure));
    until("it reconnects", || async { redis.status().connections == 0 }).await;
    server.ask(&["REPLICAOF", "NO", "ONE"]).await;
    assert_eq!(reply(call(&redis, "SET k w").await), "+OK\r\n");
}

#[tokio::test]
async fn replay_sends_what_remains_of_a_time_to_live() {
    let server = Server::start().await;
    let redis = RedisConnector::new(server.settings("i", "r"));
    let ago = |millis| UnixMillis::new(now().get() - millis);
    let replay = |accepted| With { origin: Origin::Replay, accepted, ..With::default() };
    let with = replay(ago(60_000));
    assert_eq!(reply(call_with(&redis, words("SET k v EX 100"), with).await), "+OK\r\n");
    let left = reply(call(&redis, "PTTL k").await);
    let Some(resp::Reply::Int(left)) = resp::Reply::of(&left) else { panic!("a number") };
    assert!((35_000..=40_000).contains(&left), "{left}");
    reply(call_with(&redis, words("SET k v EX 10"), with).await);
    assert_eq!(reply(call(&redis, "EXISTS k").await), ":0\r\n");
}

#[tokio::test]
async fn the_server_completes_the_commands() {
    let server = Server::start().await;
    let redis = RedisConnector::new(server.settings("i", "r"));
    assert!(redis.plan(words("NOSUCH k")).unwrap_err().message.contains("not yet sent the list"));
    reply(redis.ping(Duration::from_secs(2)).await);
    until("it is told", || async {
        redis.plan(words("NOSUCH k")).unwrap_err().message.contains("knows no command")
    })
    .await;
}
