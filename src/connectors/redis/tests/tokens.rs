//! A write that bears a token is applied once.

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
    assert_eq!(reply(call_with(&redis, words("INCR n"), with).await), "_\r\n", "applied before");
    assert_eq!(server.value("n").await, "1");
    assert_eq!(reply(call_with(&redis, words("INCR n"), token(2)).await), ":2\r\n");
    let marker = super::super::token::marker(with.token.unwrap());
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
    assert_eq!(wrong.code, "WRONGTYPE");
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
    assert!(refused.message.contains("refuses EVAL"), "{refused}");
    let replay = With { origin: Origin::Replay, ..token(1) };
    let (waits, _) = error(call_with(&redis, words("INCR n"), replay).await);
    assert_eq!(waits.class, ErrorClass::BlockedObject);
    assert!(redis.status().warnings.iter().any(|warning| warning.contains("EVAL")));
}

#[tokio::test]
async fn a_server_that_evicts_is_warned_of_once_tokens_are_used() {
    let server = Server::start_with(&["--maxmemory-policy", "allkeys-lru"]).await;
    let redis = RedisConnector::new(server.settings("i", "r"));
    reply(call(&redis, "SET k v").await);
    assert!(redis.status().warnings.is_empty());
    reply(call_with(&redis, words("INCR n"), token(1)).await);
    assert!(redis.status().warnings[0].contains("allkeys-lru"));
}
