//! A write with a token is applied once.

use super::*;

fn token(number: u128) -> With {
    With { token: Some(OpId::new(now(), number)), ..With::default() }
}

#[tokio::test]
async fn two_attempts_with_one_token_apply_once() {
    let server = Server::start().await;
    let redis = RedisConnector::new(server.settings("i", "r"));
    let with = token(1);
    let first = call_with(&redis, words("INCR n"), with).await;
    assert_eq!(reply(first), ":1\r\n");
    let again = call_with(&redis, words("INCR n"), with).await;
    assert!(!again.reply_lost);
    assert_eq!(reply(again), ":1\r\n", "the reply that the first attempt had");
    assert_eq!(server.value("n").await, "1");
    assert_eq!(reply(call_with(&redis, words("INCR n"), token(2)).await), ":2\r\n");
    let marker = crate::kinds::redis::protocol::token::marker(with.token.unwrap());
    let left = server.ask(&["PTTL", &marker]).await;
    let Some(resp::Reply::Int(left)) = resp::Reply::of(&left) else { panic!("a number") };
    assert!((604_700_000..=604_800_000).contains(&left), "seven days, {left}");
    redis.forget_tokens(vec![with.token.unwrap()]);
    until("the marker is gone", || async { server.ask(&["EXISTS", &marker]).await == ":0\r\n" })
        .await;
}

#[tokio::test]
async fn a_command_that_fails_leaves_no_marker() {
    let server = Server::start().await;
    let redis = RedisConnector::new(server.settings("i", "r"));
    reply(call(&redis, "SET s text").await);
    let with = token(1);
    for _ in 0..2 {
        let (error, verdict) = error(call_with(&redis, words("INCR s"), with).await);
        assert_eq!((error.class, verdict), (ErrorClass::Rejected, Verdict::Success), "{error}");
    }
    let (wrong, _) = error(call_with(&redis, words("LPUSH s a"), token(2)).await);
    assert_eq!(wrong.code.as_str(), "WRONGTYPE");
    reply(call(&redis, "SET s 5").await);
    assert_eq!(reply(call_with(&redis, words("INCR s"), with).await), ":6\r\n");
}

#[tokio::test]
async fn a_reply_keeps_its_type_within_the_script() {
    let server = Server::start().await;
    let redis = RedisConnector::new(server.settings("i", "r"));
    for (command, number) in
        [("ZINCRBY z 1.5 m", 1), ("SET k v NX", 2), ("SET k v NX", 3), ("RPUSH l a b", 4)]
    {
        let plain = reply(
            call(&redis, &command.replace(" z", " z2").replace(" k", " k2").replace(" l", " l2"))
                .await,
        );
        let within = reply(call_with(&redis, words(command), token(number)).await);
        assert_eq!(within, plain, "{command}");
    }
}

#[tokio::test]
async fn a_refused_script_is_told_to_the_caller_and_to_the_operator() {
    let server =
        Server::start_with(&["--user", "default", "on", "nopass", "~*", "+@all", "-eval"]).await;
    let redis = RedisConnector::new(server.settings("i", "r"));
    let (refused, verdict) = error(call_with(&redis, words("INCR n"), token(1)).await);
    assert_eq!((refused.class, verdict), (ErrorClass::Rejected, Verdict::Success));
    assert!(refused.message.whole().contains("refuses EVAL"), "{refused}");
    let replay = With { origin: Origin::Replay, ..token(1) };
    let (waits, _) = error(call_with(&redis, words("INCR n"), replay).await);
    assert_eq!(waits.class, ErrorClass::BlockedObject);
    assert!(redis.status().warnings.iter().any(|warning| warning.said().contains("EVAL")));
}

#[tokio::test]
async fn a_server_that_evicts_is_warned_of_once_tokens_are_used() {
    let server = Server::start_with(&["--maxmemory-policy", "allkeys-lru"]).await;
    let redis = RedisConnector::new(server.settings("i", "r"));
    reply(call(&redis, "SET k v").await);
    assert!(redis.status().warnings.is_empty());
    reply(call_with(&redis, words("INCR n"), token(1)).await);
    assert!(redis.status().warnings[0].said().contains("allkeys-lru"));
}

#[tokio::test]
async fn a_write_found_again_answers_what_it_answered() {
    let server = Server::start().await;
    let redis = RedisConnector::new(server.settings("i", "r"));
    for command in ["SET n 41", "SET s text", "RPUSH l a b", "HSET h f 9"] {
        reply(call(&redis, command).await);
    }
    for (number, (command, expected)) in [
        ("SET lock me NX PX 30000", "+OK\r\n"),
        ("SET lock you NX PX 30000", "_\r\n"),
        ("GETDEL s", "$4\r\ntext\r\n"),
        ("LPOP l", "$1\r\na\r\n"),
        ("INCR n", ":42\r\n"),
        ("HINCRBY h f -10", ":-1\r\n"),
        ("GETSET n x", "$2\r\n42\r\n"),
        ("RPOP none", "_\r\n"),
        ("SETNX n y", ":0\r\n"),
    ]
    .into_iter()
    .enumerate()
    {
        let with = token(number as u128);
        for _ in 0..3 {
            let ended = call_with(&redis, words(command), with).await;
            assert!(!ended.reply_lost, "{command}");
            assert_eq!(reply(ended), expected, "{command}");
        }
    }
    for (number, command) in ["RPUSH l a", "LPOP l 2", "ZINCRBY z 1.5 m"].into_iter().enumerate() {
        let with = token(100 + number as u128);
        assert!(!call_with(&redis, words(command), with).await.reply_lost, "{command}");
        let again = call_with(&redis, words(command), with).await;
        assert_eq!(again.reply_lost, number > 0, "{command}");
        assert_eq!(reply(again), if number > 0 { "_\r\n" } else { ":2\r\n" }, "{command}");
    }
    let long = "x".repeat(4097);
    for (number, (value, lost)) in [(&long[..], true), (&long[1..], false)].into_iter().enumerate()
    {
        reply(call(&redis, &format!("SET long {value}")).await);
        let with = token(200 + number as u128);
        for again in [false, true] {
            let ended = call_with(&redis, words("GETDEL long"), with).await;
            assert_eq!(ended.reply_lost, lost && again);
        }
    }
}

#[tokio::test]
async fn no_number_is_ever_wrong() {
    let server = Server::start().await;
    let redis = RedisConnector::new(server.settings("i", "r"));
    let (limit, below) = ("9007199254740992", "9007199254740990");
    for (number, (before, command, expected)) in [
        (format!("SET n {limit}"), "INCR n", ":9007199254740993\r\n"),
        (format!("SET n {below}"), "INCR n", ":9007199254740991\r\n"),
        (format!("SET n {below}"), "incrby n 2", ":9007199254740992\r\n"),
        (format!("SET n -{limit}"), "DECR n", ":-9007199254740993\r\n"),
        ("SET n 0".to_owned(), "DECRBY n 9223372036854775807", ":-9223372036854775807\r\n"),
        (format!("HSET h f {limit}"), "HINCRBY h f 1", ":9007199254740993\r\n"),
    ]
    .into_iter()
    .enumerate()
    {
        reply(call(&redis, &before).await);
        let with = token(number as u128);
        for _ in 0..2 {
            let ended = call_with(&redis, words(command), with).await;
            assert!(!ended.reply_lost, "{command}");
            assert_eq!(reply(ended), expected, "{command} after {before}");
        }
    }
    // In an array there is no other way to read it: it is applied, and its reply is lost.
    let with = token(100);
    let field = words("BITFIELD b SET i64 0 9223372036854775807 GET i64 0");
    for _ in 0..2 {
        let ended = call_with(&redis, field.clone(), with).await;
        assert!(ended.reply_lost);
        assert_eq!(reply(ended), "_\r\n");
    }
    assert_eq!(server.ask(&["GETRANGE", "b", "1", "7"]).await.len(), 13);
    let other = reply(call(&redis, "BITFIELD b GET i64 0").await);
    assert_eq!(other, "*1\r\n:9223372036854775807\r\n");
}

#[tokio::test]
async fn another_call_under_a_name_that_is_taken_is_a_conflict() {
    let server = Server::start().await;
    let redis = RedisConnector::new(server.settings("i", "r"));
    let with = token(1);
    assert_eq!(reply(call_with(&redis, words("INCR n"), with).await), ":1\r\n");
    let other = With { digest: 2, ..with };
    let (conflict, verdict) = error(call_with(&redis, words("INCR m"), other).await);
    assert_eq!((conflict.class, verdict), (ErrorClass::Conflict, Verdict::Success));
    assert_eq!((conflict.code.as_str(), conflict.doubt), ("op_id_conflict", None));
    assert_eq!((server.value("n").await, server.value("m").await), ("1".into(), String::new()));
    // A marker of an older release matches any call.
    let old = token(2);
    server
        .ask(&["SET", &crate::kinds::redis::protocol::token::marker(old.token.unwrap()), "1"])
        .await;
    let found = call_with(&redis, words("INCR m"), old).await;
    assert!(found.reply_lost);
    assert_eq!((reply(found), server.value("m").await), (Bytes::from("_\r\n"), String::new()));
}

#[tokio::test]
async fn an_account_that_may_not_set_the_marker_changes_nothing() {
    for rules in ["+get -set", "-get +set", "-get -set"] {
        let mut args = vec!["--user", "default", "on", "nopass", "~*", "+@all"];
        args.extend(rules.split(' ').filter(|rule| rule.starts_with('-')));
        let server = Server::start_with(&args).await;
        let redis = RedisConnector::new(server.settings("i", "r"));
        let (refused, verdict) = error(call_with(&redis, words("INCR n"), token(1)).await);
        assert_eq!((refused.class, verdict), (ErrorClass::Rejected, Verdict::Success));
        assert_eq!(refused.doubt, None, "{rules}");
        assert!(refused.message.whole().contains("fusebox:*"), "{refused}");
        let replay = With { origin: Origin::Replay, ..token(1) };
        let (waits, _) = error(call_with(&redis, words("INCR n"), replay).await);
        assert_eq!((waits.class, waits.doubt), (ErrorClass::BlockedObject, None));
        assert!(redis.status().warnings.iter().any(|warning| warning.said().contains("fusebox:*")));
        assert_eq!(server.ask(&["EXISTS", "n"]).await, ":0\r\n", "{rules}");
        server.ask(&["ACL", "SETUSER", "default", "+@all"]).await;
        assert_eq!(reply(call_with(&redis, words("INCR n"), replay).await), ":1\r\n");
        assert!(redis.status().warnings.is_empty());
    }
    // GET and SET are all that the marker takes, also if the command fails.
    let rules =
        ["--user", "default", "on", "nopass", "~*", "+@all", "-del", "-unlink", "-pexpireat"];
    let server = Server::start_with(&rules).await;
    let redis = RedisConnector::new(server.settings("i", "r"));
    reply(call(&redis, "SET n text").await);
    error(call_with(&redis, words("INCR n"), token(1)).await);
    reply(call(&redis, "SET n 1").await);
    assert_eq!(reply(call_with(&redis, words("INCR n"), token(1)).await), ":2\r\n");
}

#[tokio::test]
async fn a_full_memory_and_a_forbidden_command_apply_nothing() {
    let server = Server::start().await;
    let redis = RedisConnector::new(server.settings("i", "r"));
    reply(call(&redis, "SET n 1").await);
    let blocked = async |number| {
        let (error, verdict) = error(call_with(&redis, words("INCR n"), token(number)).await);
        assert_eq!((error.class, verdict), (ErrorClass::BlockedObject, Verdict::Success));
        assert_eq!(error.doubt, None, "{error}");
    };
    server.ask(&["CONFIG", "SET", "maxmemory", "1"]).await;
    blocked(1).await;
    server.ask(&["CONFIG", "SET", "maxmemory", "0"]).await;
    server.ask(&["ACL", "SETUSER", "default", "-incr"]).await;
    blocked(2).await;
    server.ask(&["ACL", "SETUSER", "default", "+incr", "resetkeys", "~n"]).await;
    blocked(3).await;
    server.ask(&["ACL", "SETUSER", "default", "allkeys"]).await;
    server.ask(&["CONFIG", "SET", "min-replicas-to-write", "1"]).await;
    let (error, verdict) = error(call_with(&redis, words("INCR n"), token(4)).await);
    assert_eq!((error.class, verdict), (ErrorClass::BlockedServer, Verdict::Failure));
    assert_eq!(error.doubt, None);
    server.ask(&["CONFIG", "SET", "min-replicas-to-write", "0"]).await;
    for number in 1..=4 {
        let expected = format!(":{}\r\n", number + 1);
        assert_eq!(reply(call_with(&redis, words("INCR n"), token(number)).await), expected);
    }
}

#[tokio::test]
async fn a_marker_is_relied_upon_for_less_than_it_stands() {
    const HOUR: u64 = 3_600_000;
    let server = Server::start().await;
    let redis = RedisConnector::new(server.settings("i", "r"));
    let doubt = |hours| Some(UnixMillis::new(now().get() - hours * HOUR));
    let late = With { doubt: doubt(7 * 24), origin: Origin::Replay, ..token(1) };
    let (error, _) = error(call_with(&redis, words("INCR n"), late).await);
    assert_eq!(error.class, ErrorClass::Ambiguous);
    assert_eq!(server.ask(&["EXISTS", "n"]).await, ":0\r\n", "it was not sent");
    let in_time = With { doubt: doubt(7 * 24 - 2), ..late };
    assert_eq!(reply(call_with(&redis, words("INCR n"), in_time).await), ":1\r\n");
}

#[tokio::test]
async fn a_callers_script_that_fails_in_its_middle_leaves_doubt() {
    let server = Server::start().await;
    let redis = RedisConnector::new(server.settings("i", "r"));
    let eval = |script: &str| resp::command(&["EVAL", script, "1", "k"]);
    for script in [
        "redis.call('SET', KEYS[1], 'v') redis.call('LPUSH', KEYS[1], 'x')",
        "redis.call('SET', KEYS[1], 'v') return redis.error_reply('BUSY come again')",
        "redis.call('SET', KEYS[1], 'v') return redis.pcall('LPUSH', KEYS[1], 'x')",
        "redis.call('SET', KEYS[1], 'v') error('MINE')",
    ] {
        let (error, verdict) = error(call_with(&redis, eval(script), With::default()).await);
        assert_eq!((error.class, verdict), (ErrorClass::Rejected, Verdict::Success), "{script}");
        assert!(error.doubt.is_some(), "{script}: {error}");
        assert_eq!(server.value("k").await, "v", "{script}");
    }
    let unknown = resp::command(&["EVALSHA", &"0".repeat(40), "1", "k"]);
    let (error, _) = error(call_with(&redis, unknown, With::default()).await);
    assert_eq!((error.code.as_str(), error.doubt), ("NOSCRIPT", None));
}
