//! A key's time to live is judged along its lane: after a replay it is as on a server that had stayed up.

use super::{line::Line, *};

fn ago(millis: u64) -> UnixMillis {
    UnixMillis::new(now().get() - millis)
}

/// The value and PTTL of `key`; what the value is for other types than strings does not matter.
async fn seen(server: &Server, key: &str) -> (String, i64) {
    let reply = server.ask(&["PTTL", key]).await;
    let Some(resp::Reply::Int(left)) = resp::Reply::of(&reply) else { panic!("a number") };
    (server.value(key).await, left)
}

/// Sequences that are queued at times before their replay, in milliseconds, and what is read afterwards.
#[tokio::test]
async fn a_replay_leaves_what_a_server_that_stayed_up_would_hold() {
    const GONE: (&str, i64, i64) = ("", -2, -2);
    const HOUR: i64 = 3_600_000;
    type Case<'a> = (&'a [(u64, &'a str)], &'a [(&'a str, (&'a str, i64, i64))]);
    let table: &[Case<'_>] = &[
        (&[(2500, "SET k v EX 1"), (2400, "EXPIRE k 1000")], &[("k", ("v", 990_000, 997_600))]),
        (&[(2500, "SET k v PX 800"), (2400, "PERSIST k")], &[("k", ("v", -1, -1))]),
        (&[(2500, "SET k v PX 800"), (2400, "SET k v2 KEEPTTL")], &[("k", GONE)]),
        (&[(2500, "SET k v PX 800"), (1600, "SET k v2 KEEPTTL")], &[("k", ("v2", -1, -1))]),
        (&[(2500, "HSET k f v"), (2400, "EXPIRE k 1"), (2300, "HSET k g w")], &[("k", GONE)]),
        (&[(2500, "SET k v PX 800"), (2400, "SETRANGE k 0 w")], &[("k", GONE)]),
        (&[(2500, "SET k v PX 800"), (1600, "SETRANGE k 0 w")], &[("k", ("w", -1, -1))]),
        (&[(2500, "SET k0 v PX 800"), (2400, "RENAME k0 k")], &[("k", GONE), ("k0", GONE)]),
        (&[(2500, "SET k0 v PX 800"), (2400, "COPY k0 k REPLACE")], &[("k", GONE), ("k0", GONE)]),
        (&[(2500, "SET k0 v PX 800"), (2400, "COPY k0 k")], &[("k", ("old", -1, -1))]),
        (&[(2500, "SET k v PX 800"), (2400, "SET k v2")], &[("k", ("v2", -1, -1))]),
        (&[(2500, "SET k v PX 800"), (2400, "DEL k"), (2300, "RPUSH k a")], &[("k", ("", -1, -1))]),
        (
            &[
                (2500, "DEL k"),
                (2400, "RPUSH k a"),
                (2400, "PEXPIRE k 800"),
                (2300, "LPOP k"),
                (2200, "RPUSH k b"),
            ],
            &[("k", ("", -1, -1))],
        ),
        (&[(2500, "SET k v PX 9000"), (2400, "APPEND k w")], &[("k", ("vw", 6000, 6500))]),
        (&[(2500, "SET k v PX 800"), (2400, "PEXPIRE k 5000 NX")], &[("k", GONE)]),
        (
            &[(2500, "SET k v PX 800"), (2400, "SET k x NX"), (2300, "GETEX k PERSIST")],
            &[("k", ("v", -1, -1))],
        ),
        (
            &[(2500, "PSETEX k 800 v"), (2400, "GETEX k EX 3600")],
            &[("k", ("v", HOUR - 9000, HOUR - 2400))],
        ),
        (
            &[
                (2500, "PSETEX k 800 v"),
                (2400, "RENAME k j"),
                (2300, "PERSIST j"),
                (2200, "RENAME j k"),
            ],
            &[("k", ("v", -1, -1)), ("j", GONE)],
        ),
        (&[(2500, "FUSEBOX.MULTI 5 0 SET k v PX 800 2 0 PERSIST k")], &[("k", ("v", -1, -1))]),
        (&[(2500, "FUSEBOX.MULTI 5 0 SET k v PX 800 3 0 SET j v")], &[("k", GONE)]),
        (
            &[
                (2500, "FUSEBOX.MULTI 5 0 SET k v PX 800 5 0 SET j w PX 900"),
                (2400, "PERSIST k"),
                (2300, "SETRANGE j 0 x"),
            ],
            &[("k", ("v", -1, -1)), ("j", GONE)],
        ),
        (
            &[
                (2500, "FUSEBOX.MULTI 5 0 SET k v PX 800 5 0 SET j w PX 5000"),
                (2400, "SETRANGE k 0 x"),
                (2300, "FUSEBOX.MULTI 4 0 SETRANGE j 0 x 4 0 SETRANGE j 1 y"),
            ],
            &[("k", GONE), ("j", ("xy", 2000, 2600))],
        ),
    ];
    let server = Server::start().await;
    let redis = RedisConnector::new(server.settings("i", "r"));
    for (number, (writes, expected)) in table.iter().enumerate() {
        server.ask(&["FLUSHALL"]).await;
        server.ask(&["SET", "k", "old"]).await;
        if writes[0].1.starts_with("HSET") {
            server.ask(&["DEL", "k"]).await;
        }
        let mut line = Line::new(&redis, number as u128);
        for (before, command) in *writes {
            line.accept(words(command), ago(*before));
        }
        line.drain().await;
        assert!(line.dead.is_empty(), "{writes:?}: {:?}", line.dead);
        for (key, (value, least, most)) in *expected {
            let (held, left) = seen(&server, key).await;
            assert_eq!(held, *value, "{key} after {writes:?}");
            assert!((*least..=*most).contains(&left), "{key} has {left} after {writes:?}");
        }
    }
}

#[tokio::test]
async fn what_is_known_of_a_transactions_keys_is_what_its_last_command_left() {
    let server = Server::start().await;
    let redis = RedisConnector::new(server.settings("i", "r"));
    reply(call(&redis, "HSET h f v").await);
    reply(call(&redis, "EXPIRE h 1000").await);
    reply(call(&redis, "SET k v").await);
    let mut line = Line::new(&redis, 1);
    // It inherits the deadline of one key and sets that of another.
    line.accept(words("FUSEBOX.MULTI 4 0 HSET h a b 3 0 EXPIRE k 1000"), now());
    line.accept(words("FUSEBOX.MULTI 5 0 SET b v EX 800 2 0 DEL b 3 0 EXPIRE b 600"), now());
    line.drain().await;
    let inherits = |key: &str| redis.stored(&words(&format!("HSET {key} x y"))).is_some();
    assert!(inherits("k") && inherits("h"));
    assert!(!inherits("b"), "there is no such key");
}

/// A TTL that went live, and writes to the key that are queued before it has passed and replayed after.
#[tokio::test]
async fn a_deadline_that_went_live_is_inherited_by_queued_writes() {
    let server = Server::start().await;
    let redis = RedisConnector::new(server.settings("i", "r"));
    for (live, queued, gone) in [
        (&["HSET k f v", "PEXPIRE k 400"][..], &["HSET k g w"][..], &["k"][..]),
        (&["SET k 1 PX 400"], &["INCR k"], &["k"]),
        (&["SET k v PX 400"], &["SET k w KEEPTTL", "APPEND k x"], &["k"]),
        (&["SET k1 old", "SET k v PX 400"], &["RENAME k k1", "APPEND k1 x"], &["k", "k1"]),
        (&["SET k1 old", "SET k v PX 400"], &["COPY k k1 REPLACE"], &["k", "k1"]),
        (&["SET j v PX 400", "RENAME j k"], &["APPEND k x"], &["j", "k"]),
        (&["PSETEX k 400 v", "GETEX k PX 500"], &["SETRANGE k 9 x"], &["k"]),
        (
            &["HSET k f v", "PEXPIRE k 400", "HSET j f v", "PEXPIRE j 500"],
            &["FUSEBOX.MULTI 4 0 HSET k g w 4 0 HSET j g w", "HSET j h x"],
            &["k", "j"],
        ),
    ] {
        server.ask(&["FLUSHALL"]).await;
        for command in live {
            reply(call(&redis, command).await);
        }
        let mut line = Line::new(&redis, 1);
        for command in queued {
            line.accept(words(command), now());
        }
        until("it has expired", || async { server.ask(&["EXISTS", "k", "j"]).await == ":0\r\n" })
            .await;
        line.drain().await;
        assert!(line.dead.is_empty(), "{queued:?}");
        for key in gone {
            assert_eq!(seen(&server, key).await.1, -2, "{key} after {live:?}, {queued:?}");
        }
    }
    // What was settled otherwise since is left alone.
    for (number, settles) in (2..).zip(["SET k v", "PERSIST k", "DEL k"]) {
        reply(call(&redis, "SET k 1 PX 400").await);
        drop(call(&redis, settles).await);
        // Two calls of the same millisecond have tokens of their own.
        let mut line = Line::new(&redis, number);
        line.accept(words("APPEND k x"), now());
        line.drain().await;
        assert_eq!(seen(&server, "k").await.1, -1, "{settles}");
    }
}

#[tokio::test]
async fn a_script_that_may_touch_any_key_may_have_settled_its_time() {
    let server = Server::start().await;
    let mut settings = server.settings("i", "r");
    settings.scripts_are_barriers = true;
    let redis = RedisConnector::new(settings);
    reply(call(&redis, "HSET h f v").await);
    reply(call(&redis, "EXPIRE h 1000").await);
    let inherits = || redis.stored(&words("HSET h g w")).is_some();
    assert!(inherits());
    assert_eq!(reply(call(&redis, "EVAL return(redis.call('DEL','h')) 0").await), ":1\r\n");
    assert!(!inherits(), "there is no such key");
}

/// Two calls of different connections, of which the one that was sent first is applied last.
#[tokio::test]
async fn a_deadline_that_another_connection_may_have_removed_is_not_inherited() {
    let server = Server::start().await;
    let redis = RedisConnector::new(server.settings("i", "r"));
    reply(call(&redis, "SET other v EX 1000").await);
    let plan = redis.plan(words("DEL h")).unwrap();
    // It is begun, and waits for the server.
    let mut removal = redis.attempt(attempt(&plan, With::default()));
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(removal.as_mut().poll(&mut context).is_pending());
    let plan = redis.plan(words("EXPIRE h 1000")).unwrap();
    server.ask(&["HSET", "h", "f", "v"]).await;
    let second = Attempt { dialect: 2, ..attempt(&plan, With::default()) };
    reply(redis.attempt(second).await);
    let inherits = || redis.stored(&words("HSET h g w")).is_some();
    assert!(!inherits());
    reply(removal.await);
    assert!(!inherits());
    reply(call(&redis, "HSET h f v").await);
    reply(call(&redis, "EXPIRE h 1000").await);
    assert!(inherits());
}

#[tokio::test]
async fn without_eval_a_residue_is_settled_in_steps() {
    let server =
        Server::start_with(&["--user", "default", "on", "nopass", "~*", "+@all", "-eval"]).await;
    let redis = RedisConnector::new(server.settings("i", "r"));
    for (second, expected) in
        [("SETRANGE k 0 w", ("", -2)), ("SET k w", ("w", -1)), ("HSET k f v", ("", -2))]
    {
        let mut line = Line::new(&redis, 1);
        line.accept(words("SET k v PX 800"), ago(2500));
        line.accept(words(second), ago(2400));
        line.drain().await;
        let (value, left) = seen(&server, "k").await;
        assert_eq!((value.as_str(), left), expected, "{second}");
    }
}

/// It has been applied in part. What was to prolong its key's life is refused too, so nothing is left in the line that
/// would end it.
#[tokio::test]
async fn a_key_of_a_refused_transaction_ends_within_a_week() {
    const DAY: i64 = 24 * 3600 * 1000;
    const WEEK: i64 = 7 * DAY;
    let server = Server::start().await;
    let redis = RedisConnector::new(server.settings("i", "r"));
    for (number, second, dead, left) in [
        (1, "PERSIST k", 1, -1..=-1),
        (2, "GETEX k PERSIST", 2, WEEK - DAY..=WEEK),
        (3, "GETSET k w", 2, WEEK - DAY..=WEEK),
        // It would have overwritten whatever it met.
        (4, "SUNIONSTORE k j l", 2, -2..=-2),
    ] {
        server.ask(&["FLUSHALL"]).await;
        server.ask(&["SET", "j", "no set"]).await;
        let mut line = Line::new(&redis, number);
        let first = "FUSEBOX.MULTI 4 0 HSET k f v 3 0 PEXPIRE k 800 2 0 INCR k";
        line.accept(words(first), ago(2500));
        line.accept(words(second), ago(2400));
        line.drain().await;
        let seen = seen(&server, "k").await.1;
        assert_eq!(line.dead.len(), dead, "{second}");
        assert!(left.contains(&seen), "{second}: {seen} ms");
    }
}

/// What overwrites the key is not the first to meet it.
#[tokio::test]
async fn a_key_of_a_refused_transaction_is_met_by_what_reads_it_before_it_is_overwritten() {
    let server = Server::start().await;
    let redis = RedisConnector::new(server.settings("i", "r"));
    let mut line = Line::new(&redis, 1);
    let first = "FUSEBOX.MULTI 3 0 SADD k m 3 0 PEXPIRE k 800 2 0 INCR k";
    line.accept(words(first), ago(2500));
    line.accept(words("SMOVE k j m"), ago(2450));
    line.accept(words("DEL k"), ago(2400));
    line.drain().await;
    assert_eq!(server.ask(&["SISMEMBER", "j", "m"]).await, ":1\r\n");
}

/// What is to settle the key's time comes too late: the key, or a copy of it, has another name by then.
#[tokio::test]
async fn a_key_of_a_refused_transaction_takes_no_week_along_to_another_name() {
    let server = Server::start().await;
    let redis = RedisConnector::new(server.settings("i", "r"));
    let renames =
        ["RENAME k j", "RENAMENX k j", "COPY k j", "FUSEBOX.MULTI 3 0 COPY k j 2 0 DEL k"];
    for (number, second) in (1..).zip(renames) {
        server.ask(&["FLUSHALL"]).await;
        let mut line = Line::new(&redis, number);
        let first = "FUSEBOX.MULTI 4 0 HSET k f v 3 0 PEXPIRE k 60000 2 0 INCR k";
        for write in [first, second, "SET k w"] {
            line.accept(words(write), ago(200));
        }
        line.drain().await;
        let (_, left) = seen(&server, "j").await;
        assert!((1..=60_000).contains(&left), "{second}: {left} ms");
        assert_eq!(seen(&server, "k").await, ("w".into(), -1), "{second}");
    }
}

/// Its first name is another key's by now, which does not end then.
#[tokio::test]
async fn a_deadline_leaves_a_name_with_its_key() {
    let server = Server::start().await;
    let redis = RedisConnector::new(server.settings("i", "r"));
    let transaction = "FUSEBOX.MULTI 3 0 RENAME k j 3 0 APPEND k y";
    for (number, writes) in
        [(1, &["APPEND k x", "RENAME k j", "APPEND k y"][..]), (2, &["APPEND k x", transaction])]
    {
        server.ask(&["FLUSHALL"]).await;
        reply(call(&redis, "SET k 1 PX 300").await);
        let mut line = Line::new(&redis, number);
        for write in writes {
            line.accept(words(write), now());
        }
        until("it has expired", || async { server.ask(&["EXISTS", "k"]).await == ":0\r\n" }).await;
        for _ in writes {
            assert!(line.step().await);
        }
        assert_eq!(line.overlay(&words("GET k"), now()), None, "{writes:?}");
        line.drain().await;
        assert_eq!(seen(&server, "k").await, ("y".into(), -1), "{writes:?}");
        assert_eq!(seen(&server, "j").await.1, -2, "{writes:?}");
    }
}

#[tokio::test]
async fn a_crash_between_a_write_and_its_residue_leaves_nothing_behind() {
    let server = Server::start().await;
    let redis = RedisConnector::new(server.settings("i", "r"));
    for first in ["SET k v PX 800", "SET k v PX 800 NX"] {
        let mut line = Line::new(&redis, 1);
        line.accept(words(first), ago(2500));
        line.accept(words("APPEND k w"), ago(2400));
        // It is sent, and the daemon dies before it has noted what is left to do: it is sent again.
        let mut lost = line.copy();
        assert!(lost.step().await);
        assert!(seen(&server, "k").await.1 > 3_000_000_000_000, "it lives on for now");
        line.drain().await;
        assert_eq!(seen(&server, "k").await.1, -2);
    }
    reply(call(&redis, "HSET h f v").await);
    reply(call(&redis, "PEXPIRE h 300").await);
    let mut line = Line::new(&redis, 2);
    line.accept(words("HSET h g w"), now());
    until("it has expired", || async { server.ask(&["EXISTS", "h"]).await == ":0\r\n" }).await;
    let mut lost = line.copy();
    assert!(lost.step().await);
    line.drain().await;
    assert_eq!(seen(&server, "h").await.1, -2);
}

#[tokio::test]
async fn a_slot_expires_with_its_key() {
    let server = Server::start().await;
    let redis = RedisConnector::new(server.settings("i", "r"));
    let expires = |read: &str| {
        let Access::Read(read) = redis.plan(words(read)).unwrap().access else { panic!("a read") };
        redis.expires(&read.slots[0])
    };
    reply(call(&redis, "SET k v PX 300").await);
    reply(call(&redis, "SET j v").await);
    assert!(expires("GET k").unwrap() <= Duration::from_millis(300));
    assert!(expires("STRLEN k").is_some());
    assert_eq!(expires("GET j"), None);
    until("it has passed", || async { expires("GET k") == Some(Duration::ZERO) }).await;
    reply(call(&redis, "SET k v").await);
    assert_eq!(expires("GET k"), None);
}

#[tokio::test]
async fn what_is_known_of_deadlines_outlives_a_change_of_settings() {
    let server = Server::start().await;
    let redis = RedisConnector::new(server.settings("i", "r"));
    reply(call(&redis, "SET k v EX 60").await);
    let changed = RedisConnector::new(server.settings("i", "r"));
    changed.succeed(&*redis);
    redis.close().await;
    let Access::Read(read) = changed.plan(words("GET k")).unwrap().access else { panic!("a read") };
    assert!(changed.expires(&read.slots[0]).unwrap() <= Duration::from_secs(60));
    // A write that went over the one before may be answered yet, and both know of it.
    reply(call(&changed, "PERSIST k").await);
    assert_eq!(changed.expires(&read.slots[0]), None);
    assert_eq!(redis.expires(&read.slots[0]), None);
}
