//! What the effects claim, asked of a real server.

use fusebox_actors::connector::{Outage, Write};

use super::*;

fn effect(redis: &RedisConnector, command: &str) -> Write {
    let Access::Write(write) = redis.plan(words(command)).unwrap().access else {
        panic!("{command} is a write")
    };
    write
}

/// What the keys hold.
async fn state(server: &Server) -> Vec<Bytes> {
    let mut state = Vec::new();
    for key in ["k", "j"] {
        state.push(server.ask(&["DUMP", key]).await);
    }
    state
}

/// What may have been there before.
const BEFORE: [&str; 9] = [
    "PING",
    "SET k old",
    "RPUSH k a b",
    "HSET k f old g h",
    "SADD k a b",
    "ZADD k 9 m 3 n",
    "XADD k 1-1 f v",
    "PFADD k a b",
    "GEOADD k 1 1 m",
];

#[tokio::test]
async fn an_absolute_write_applied_twice_leaves_what_it_leaves_applied_once() {
    let server = Server::start().await;
    let redis = RedisConnector::new(server.settings("i", "r"));
    for command in [
        "SET k v",
        "SET k v EX 1000",
        "SET k v PXAT 99999999999999",
        "SETEX k 1000 v",
        "PSETEX k 100000 v",
        "MSET k 1 j 2",
        "HMSET k f v",
        "DEL k j",
        "UNLINK k",
        "EXPIRE k 1000",
        "EXPIRE k -1",
        "PEXPIRE k 100000",
        "EXPIREAT k 1",
        "PEXPIREAT k 99999999999999",
        "PERSIST k",
        "HSET k f v",
        "HDEL k f",
        "SADD k a c",
        "SREM k a",
        "ZADD k 1 m",
        "ZADD k CH 1 m 2 o",
        "ZREM k m",
        "PFADD k a z",
        "GEOADD k 2 2 m",
        "SETRANGE k 5 v",
        "SETBIT k 7 1",
        "XDEL k 1-1",
    ] {
        let write = effect(&redis, command);
        assert!(write.absolute, "{command}");
        let mut answered = 0;
        for before in BEFORE {
            server.ask(&["FLUSHALL"]).await;
            server.ask(&before.split(' ').collect::<Vec<_>>()).await;
            let ended = call(&redis, command).await;
            let once = state(&server).await;
            drop(call(&redis, command).await);
            assert_eq!(state(&server).await, once, "{command} after {before}");
            match (&write.outage, ended.result) {
                (Outage::ReplyKnown(known), Ok(reply)) => assert_eq!(reply, known, "{command}"),
                // Only a key of another type refuses, and only HMSET among those whose reply is known.
                (outage, Err(error)) => {
                    assert!(
                        matches!(error.code.as_str(), "WRONGTYPE" | "ERR"),
                        "{command}: {error}"
                    );
                    assert!(
                        *outage == Outage::EffectKnown || command.starts_with("HMSET"),
                        "{command}"
                    );
                    continue;
                }
                (_, Ok(_)) => {}
            }
            answered += 1;
        }
        assert!(answered > 0, "{command} was never carried out");
    }
}

#[tokio::test]
async fn every_command_that_a_server_takes_for_a_write_is_one() {
    let server = Server::start().await;
    let redis = RedisConnector::new(server.settings("i", "r"));
    let reply = server.ask(&["COMMAND", "LIST", "FILTERBY", "ACLCAT", "write"]).await;
    let names = resp::Reply::of(&reply).and_then(|reply| reply.items()).unwrap();
    let mut seen = 0;
    for name in names {
        let name =
            String::from_utf8_lossy(resp::Reply::of(name).unwrap().text().unwrap()).into_owned();
        for count in 1..8 {
            let mut command: Vec<&str> = name.split('|').collect();
            command.extend(std::iter::repeat_n("1", count));
            // Refused ones are not carried at all.
            if let Ok(plan) = redis.plan(resp::command(&command)) {
                assert!(matches!(plan.access, Access::Write(_)), "{name}");
                seen += 1;
            }
        }
    }
    assert!(seen > 100, "{seen}");
}
