//! What clients of a door get while the server is away, and what the server has afterwards.

use super::*;

#[tokio::test]
async fn what_is_removed_or_given_a_time_is_queued_and_answered_as_usual() {
    let mut world = World::open().await;
    let mut client = world.client();
    assert_eq!(client.ask("GET x").await, "$-1\r\n");
    world.server.kill();
    client.until_told("SET x 1", "+OK\r\n").await;
    for command in ["SET a 1", "SET b 1", "SET c 1"] {
        assert_eq!(client.ask(command).await, "+OK\r\n");
    }
    for (command, told) in [
        ("DEL a nothing", ":2\r\n"),
        ("UNLINK b", ":1\r\n"),
        ("EXPIRE c 1000", ":1\r\n"),
        ("HSET h f v g w", ":2\r\n"),
    ] {
        assert_eq!(client.ask(command).await, told, "{command}");
    }
    assert_eq!(client.ask("FUSEBOX LAST").await.lines().nth(2), Some("queued"));
    // What the queue determines is not assumed.
    for (command, told) in [
        ("DEL a", ":0\r\n"),
        ("DEL a c a d", ":2\r\n"),
        ("EXPIRE c 1000", ":0\r\n"),
        ("SET c 1", "+OK\r\n"),
        ("EXPIRE c 1000", ":1\r\n"),
    ] {
        assert_eq!(client.ask(command).await, told, "{command}");
    }
    for claim in ["SREM s m", "ZREM z m", "SADD s m", "HDEL h f", "SETBIT b 1 1", "INCR n"] {
        let told = client.ask(claim).await;
        assert!(told.starts_with("-LOADING"), "{claim}: {told}");
    }
    assert_eq!(world.waiting(), 13);
    world.server.restart().await;
    until("all is applied", async || world.waiting() == 0).await;
    assert_eq!(world.server.ask(&["EXISTS", "a", "b"]).await, ":0\r\n");
    assert_eq!(world.server.ask(&["HGET", "h", "g"]).await, "$1\r\nw\r\n");
    let left = world.server.ask(&["TTL", "c"]).await;
    let text = String::from_utf8_lossy(&left).into_owned();
    let left: i32 = text.trim_start_matches(':').trim().parse().unwrap();
    assert!((900..=1_000).contains(&left), "{left}");
}

#[tokio::test]
async fn a_time_to_live_that_waits_leaves_what_was_read_before() {
    let mut world = World::open().await;
    let mut client = world.client();
    client.ask("HSET h f v").await;
    for (key, value) in [("s", "session"), ("brief", "b"), ("kept", "k"), ("lost", "l")] {
        assert_eq!(client.ask(&format!("SET {key} {value}")).await, "+OK\r\n");
    }
    let reads = [
        ("GET s", "$7\r\nsession\r\n"),
        ("GET kept", "$1\r\nk\r\n"),
        ("GET brief", "$1\r\nb\r\n"),
        ("HGET h f", "$1\r\nv\r\n"),
    ];
    for (read, told) in reads {
        assert_eq!(client.ask(read).await, told, "{read}");
    }
    world.server.kill();
    client.until_told("SET x 1", "+OK\r\n").await;
    for command in ["EXPIRE s 1000", "PERSIST kept", "EXPIRE h 1000", "EXPIRE lost 1000"] {
        assert_eq!(client.ask(command).await, ":1\r\n", "{command}");
    }
    for (read, told) in reads {
        assert_eq!(client.ask(read).await, told, "{read}");
    }
    client.ask("GET s").await;
    assert_eq!(client.ask("FUSEBOX LAST").await.lines().nth(2), Some("cache"));
    assert_eq!(client.ask("MGET s x brief").await, "*3\r\n$7\r\nsession\r\n$1\r\n1\r\n$1\r\nb\r\n");
    let told = client.ask("GET lost").await;
    assert!(told.starts_with("-LOADING"), "nobody read it before: {told}");
    // A time that is over ends what was read before it, as it does at the server.
    assert_eq!(client.ask("PEXPIRE brief 1").await, ":1\r\n");
    client.until_told("GET brief", "$-1\r\n").await;
    world.server.restart().await;
    until("all is applied", async || world.waiting() == 0).await;
}

#[tokio::test]
async fn a_queued_write_inherits_no_time_that_a_transaction_or_a_pop_has_ended() {
    for how in ["whole", "in pieces", "popped", "flushed"] {
        let mut world = World::open().await;
        let mut client = world.client();
        let (first, again) = if how == "popped" {
            ("RPUSH k v", "HSET k g w")
        } else {
            ("HSET k f v", "HSET k g w")
        };
        assert_eq!(client.ask(first).await, ":1\r\n");
        assert_eq!(client.ask("EXPIRE k 1000").await, ":1\r\n");
        match how {
            "popped" => assert_eq!(client.ask("BLPOP k 1").await, "*2\r\n$1\r\nk\r\n$1\r\nv\r\n"),
            "flushed" => assert_eq!(client.ask("FLUSHDB").await, "+OK\r\n"),
            "whole" => {
                client.send(b"MULTI\r\nDEL k\r\nEXEC\r\n").await;
                for told in ["+OK\r\n", "+QUEUED\r\n", "*1\r\n:1\r\n"] {
                    assert_eq!(client.reply().await, told);
                }
            }
            _ => {
                for (command, told) in
                    [("MULTI", "+OK\r\n"), ("DEL k", "+QUEUED\r\n"), ("EXEC", "*1\r\n:1\r\n")]
                {
                    assert_eq!(client.ask(command).await, told, "{command}");
                }
            }
        }
        world.server.kill();
        client.until_told("SET x 1", "+OK\r\n").await;
        assert_eq!(client.ask(again).await, ":1\r\n");
        world.server.restart().await;
        until("all is applied", async || world.waiting() == 0).await;
        assert_eq!(world.server.ask(&["TTL", "k"]).await, ":-1\r\n", "{how}");
    }
}

/// Sends a transaction whole; what is answered.
async fn transaction(client: &mut Wire, commands: &[&str]) -> Vec<String> {
    let all = [&["MULTI"][..], commands, &["EXEC"]].concat();
    let words = all.iter().map(|it| it.split(' ').collect::<Vec<_>>());
    let bytes: Vec<u8> = words.flat_map(|words| resp::command(&words)).collect();
    client.send(&bytes).await;
    let mut told = Vec::new();
    for _ in all {
        told.push(String::from_utf8_lossy(&client.reply().await).into_owned());
    }
    told
}

/// The only write in the queue, as it is stored.
async fn stored(world: &World) -> String {
    let backend = &world.fusebox.backends()[0];
    let queued = backend.queue_page(false, None, 1).await.calls[0].sequence;
    let body = backend.queued_body(queued).unwrap();
    String::from_utf8_lossy(&body).into_owned()
}

#[tokio::test]
async fn a_time_that_a_transaction_has_given_is_known_as_any_other() {
    for how in ["whole", "in pieces"] {
        let mut world = World::open().await;
        let mut client = world.client();
        assert_eq!(client.ask("HSET h f v").await, ":1\r\n");
        let commands = ["SET s v PX 1000", "INCR n", "EXPIRE h 1000"];
        if how == "whole" {
            let told = transaction(&mut client, &commands).await;
            assert_eq!(told[4], "*3\r\n+OK\r\n:1\r\n:1\r\n");
        } else {
            assert_eq!(client.ask("MULTI").await, "+OK\r\n");
            for command in commands {
                assert_eq!(client.ask(command).await, "+QUEUED\r\n");
            }
            assert_eq!(client.ask("EXEC").await, "*3\r\n+OK\r\n:1\r\n:1\r\n");
        }
        assert_eq!(client.ask("GET s").await, "$1\r\nv\r\n");
        world.server.kill();
        until("it has ended", async || client.ask("GET s").await == "$-1\r\n").await;
        client.until_told("HSET h g w", ":1\r\n").await;
        let stored = stored(&world).await;
        assert!(stored.contains("UNTIL"), "{how}: it takes the deadline along: {stored}");
    }
}

/// A worker waits for jobs all the time, and says so before anything has a time to live.
#[tokio::test]
async fn a_time_is_known_while_another_client_waits_for_jobs() {
    let mut world = World::open().await;
    let (mut client, mut worker) = (world.client(), world.client());
    worker.send(&resp::command(&["BLPOP", "jobs", "0"])).await;
    until("it waits", async || world.that_wait().await == 1).await;
    assert_eq!(client.ask("HSET h f v").await, ":1\r\n");
    assert_eq!(client.ask("EXPIRE h 60").await, ":1\r\n");
    world.server.kill();
    client.until_told("HSET h g w", ":1\r\n").await;
    let stored = stored(&world).await;
    assert!(stored.contains("UNTIL"), "it takes the deadline along: {stored}");
}

#[tokio::test]
async fn a_transaction_that_is_not_run_gives_no_time() {
    let mut world = World::open().await;
    let (mut client, mut other) = (world.client(), world.client());
    assert_eq!(client.ask("HSET h f v").await, ":1\r\n");
    assert_eq!(client.ask("WATCH w").await, "+OK\r\n");
    assert_eq!(other.ask("SET w 1").await, "+OK\r\n");
    for (command, told) in
        [("MULTI", "+OK\r\n"), ("EXPIRE h 1000", "+QUEUED\r\n"), ("EXEC", "*-1\r\n")]
    {
        assert_eq!(client.ask(command).await, told, "{command}");
    }
    world.server.kill();
    client.until_told("HSET h g w", ":1\r\n").await;
    let stored = stored(&world).await;
    assert!(!stored.contains("UNTIL"), "{stored}");
}

#[tokio::test]
async fn a_transaction_is_queued_as_one_and_applied_as_one() {
    let mut world = World::open().await;
    let mut client = world.client();
    client.ask("SET was here").await;
    world.server.kill();
    client.until_told("SET x 1", "+OK\r\n").await;
    let told = transaction(&mut client, &["SET a 1", "SET b 2 EX 1000", "MSET c 3 d 4"]).await;
    let queued = ["+OK\r\n", "+QUEUED\r\n", "+QUEUED\r\n", "+QUEUED\r\n"];
    assert_eq!(told[..4], queued);
    assert_eq!(told[4], "*3\r\n+OK\r\n+OK\r\n+OK\r\n");
    assert_eq!(client.ask("FUSEBOX LAST").await.lines().nth(2), Some("queued"));
    // What the queue determines is not assumed, and the transaction is read as the server will have it.
    let told = transaction(&mut client, &["DEL a nothing", "HSET h f v", "EXPIRE h 1000"]).await;
    assert_eq!(told[4], "*3\r\n:2\r\n:1\r\n:1\r\n");
    let told = transaction(&mut client, &["DEL a", "SET a 5"]).await;
    assert_eq!(told[3], "*2\r\n:0\r\n+OK\r\n");
    assert_eq!(client.ask("GET a").await, "$1\r\n5\r\n");
    assert_eq!(client.ask("MGET b d").await, "*2\r\n$1\r\n2\r\n$1\r\n4\r\n");
    assert_eq!(world.waiting(), 4);
    // What its client wants to know of the server is not queued, and waits for nothing that does not move.
    let begun = tokio::time::Instant::now();
    for within in ["GET a", "INCR n", "SADD s m"] {
        let told = transaction(&mut client, &["SET a 6", within]).await;
        assert!(told[0].starts_with("-LOADING"), "{within}: {told:?}");
        assert!(told[3].starts_with("-EXECABORT"), "{within}: {told:?}");
    }
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    assert_eq!(client.ask("GET a").await, "$1\r\n5\r\n");
    assert_eq!(world.waiting(), 4);
    world.server.restart().await;
    until("all is applied", async || world.waiting() == 0).await;
    assert_eq!(
        world.server.ask(&["MGET", "a", "b", "c"]).await,
        "*3\r\n$1\r\n5\r\n$1\r\n2\r\n$1\r\n3\r\n"
    );
    assert_eq!(world.server.ask(&["HGET", "h", "f"]).await, "$1\r\nv\r\n");
    for key in ["b", "h"] {
        let left = world.server.ask(&["TTL", key]).await;
        let left = String::from_utf8_lossy(&left).trim_matches([':', '\r', '\n']).parse::<i32>();
        assert!((900..=1_000).contains(&left.unwrap()), "{key}");
    }
}

#[tokio::test]
async fn a_transaction_that_reads_fills_the_cache_and_is_answered_by_it() {
    for protocol in ["2", "3"] {
        let mut world = World::open().await;
        let mut client = world.client();
        client.ask(&format!("HELLO {protocol}")).await;
        let nil = if protocol == "3" { "_\r\n" } else { "$-1\r\n" };
        client.ask("MSET a 1 b 2").await;
        client.ask("HSET h f v").await;
        let told = transaction(&mut client, &["GET a", "get b", "GET c"]).await;
        let both = format!("*3\r\n$1\r\n1\r\n$1\r\n2\r\n{nil}");
        assert_eq!(told[4], both);
        // One that only reads empties nothing.
        assert_eq!(client.ask("HGET h f").await, "$1\r\nv\r\n");
        let told = transaction(&mut client, &["HGET h f", "GET a"]).await;
        assert_eq!(told[3], "*2\r\n$1\r\nv\r\n$1\r\n1\r\n");
        // An error is nobody's value.
        let told = transaction(&mut client, &["GET h", "GET d"]).await;
        assert!(told[3].starts_with("*2\r\n-WRONGTYPE"), "{told:?}");
        world.server.kill();
        client.until_told("SET x 1", "+OK\r\n").await;
        let told = transaction(&mut client, &["GET a", "GET b", "GET c"]).await;
        assert_eq!(told[..4], ["+OK\r\n", "+QUEUED\r\n", "+QUEUED\r\n", "+QUEUED\r\n"]);
        assert_eq!(told[4], both);
        let told = transaction(&mut client, &["GET x", "GET b"]).await;
        assert_eq!(told[3], "*2\r\n$1\r\n1\r\n$1\r\n2\r\n");
        assert_eq!(client.ask("HGET h f").await, "$1\r\nv\r\n");
        assert_eq!(client.ask("GET h").await, nil);
        let told = transaction(&mut client, &["GET a", "HGET h f"]).await;
        assert!(told[0].starts_with("-LOADING"), "{told:?}");
    }
}

#[tokio::test]
async fn a_long_transaction_is_queued_or_refused_as_a_whole() {
    let mut world = World::open().await;
    let mut client = world.client();
    client.ask("GET x").await;
    world.server.kill();
    client.until_told("SET x 1", "+OK\r\n").await;
    // It does not come in one read.
    let value = "v".repeat(4_000);
    let sets: Vec<String> = (0..60).map(|number| format!("SET k{number} {value}")).collect();
    let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
    let told = transaction(&mut client, &sets).await;
    assert_eq!(told[61], format!("*60\r\n{}", "+OK\r\n".repeat(60)));
    assert_eq!(world.waiting(), 2);
    // Refused for its last command, after more refusals than are answered at once.
    let mut sets: Vec<String> = (0..80).map(|number| format!("SET j{} 1", number % 40)).collect();
    sets.push("INCR n".into());
    let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
    let told = transaction(&mut client, &sets).await;
    assert!(told[..82].iter().all(|told| told.starts_with("-LOADING")), "{told:?}");
    assert!(told[82].starts_with("-EXECABORT"), "{}", told[82]);
    // One of too many keys would hold up everybody.
    let sets: Vec<String> = (0..70).map(|number| format!("SET w{number} 1")).collect();
    let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
    let told = transaction(&mut client, &sets).await;
    assert!(told[0].starts_with("-LOADING") && told[71].starts_with("-EXECABORT"), "{told:?}");
    assert_eq!(world.waiting(), 2);
    assert_eq!(client.ask("GET x").await, "$1\r\n1\r\n");
    world.server.restart().await;
    until("all is applied", async || world.waiting() == 0).await;
    assert_eq!(world.server.ask(&["EXISTS", "k59", "j1", "w1"]).await, ":1\r\n");
}

#[tokio::test]
async fn what_a_transaction_leaves_is_known_to_its_own_commands_and_its_marker_goes() {
    let mut world = World::open().await;
    let mut client = world.client();
    client.ask("GET x").await;
    world.server.kill();
    client.until_told("SET x 1", "+OK\r\n").await;
    client.ask("DEL k").await;
    let told = transaction(&mut client, &["SET k v", "EXPIRE k 1000"]).await;
    assert_eq!(told[3], "*2\r\n+OK\r\n:1\r\n");
    let told = transaction(&mut client, &["DEL j", "DEL j", "EXPIRE j 5"]).await;
    assert_eq!(told[4], "*3\r\n:1\r\n:0\r\n:0\r\n");
    // One that leaves something to do: what is behind it is to meet the key alive.
    transaction(&mut client, &["SET r v EX 1000", "SET s v"]).await;
    assert_eq!(client.ask("EXPIRE r 2000").await, ":1\r\n");
    world.server.restart().await;
    until("all is applied", async || world.waiting() == 0).await;
    until("no marker is left", async || world.server.ask(&["KEYS", "fusebox:*"]).await == "*0\r\n")
        .await;
}

#[tokio::test]
async fn a_queued_transaction_that_the_account_may_not_run_waits_as_a_whole() {
    let mut world = World::open().await;
    let mut client = world.client();
    client.ask("GET x").await;
    world.server.kill();
    client.until_told("SET x 1", "+OK\r\n").await;
    let told = transaction(&mut client, &["SET a 1", "HSET h f v"]).await;
    assert_eq!(told[3], "*2\r\n+OK\r\n:1\r\n");
    let user = ["--user", "default", "on", "nopass", "~*", "&*", "+@all", "-hset"];
    world.server.restart_with(&user).await;
    until("it waits", async || {
        let page = world.fusebox.backends()[0].queue_page(false, None, 10).await;
        page.calls.iter().any(|call| call.last_error.is_some())
    })
    .await;
    assert_eq!(world.server.ask(&["EXISTS", "a", "h"]).await, ":0\r\n");
    world.server.ask(&["ACL", "SETUSER", "default", "+hset"]).await;
    let backend = &world.fusebox.backends()[0];
    until("all is applied", async || {
        backend.replay().ok();
        world.waiting() == 0
    })
    .await;
    assert_eq!(world.server.ask(&["EXISTS", "a", "h"]).await, ":2\r\n");
}

#[tokio::test]
async fn a_queued_transaction_that_fails_in_part_is_told_of_and_no_more_is_lost() {
    let mut world = World::open().await;
    let mut client = world.client();
    client.ask("GET x").await;
    world.server.kill();
    client.until_told("SET text 1", "+OK\r\n").await;
    let told = transaction(&mut client, &["SET a 1", "HSET text f v", "SET b 2"]).await;
    assert_eq!(told[4], "*3\r\n+OK\r\n:1\r\n+OK\r\n");
    world.server.restart().await;
    until("it was sent", async || world.waiting() == 0).await;
    assert_eq!(world.server.ask(&["MGET", "a", "b"]).await, "*2\r\n$1\r\n1\r\n$1\r\n2\r\n");
    let page = world.fusebox.backends()[0].queue_page(true, None, 10).await;
    assert_eq!(page.total, 1);
    let why = page.calls[0].last_error.as_ref().unwrap().said();
    assert!(why.contains("command 2 of the transaction has failed"), "{why}");
}

#[tokio::test]
async fn a_script_that_does_not_end_can_be_killed() {
    let world = World::with(PATIENCE, door()).await;
    let (mut runs, mut kills) =
        (world.client(), world.client_of(Some(Who { admin: true, ..CLIENT })));
    assert_eq!(kills.ask("CONFIG SET lua-time-limit 10").await, "+OK\r\n");
    assert!(kills.ask("SCRIPT KILL").await.starts_with("-NOTBUSY"));
    runs.send(&resp::command(&["EVAL", "while true do end", "0"])).await;
    kills.until_told("SCRIPT KILL", "+OK\r\n").await;
    let told = String::from_utf8_lossy(&runs.reply().await).into_owned();
    assert!(told.contains("killed by user"), "{told}");
    assert_eq!(runs.ask("SET k 1").await, "+OK\r\n");
}

#[tokio::test]
async fn a_pause_can_be_ended_though_a_write_waits_for_its_end() {
    let world = World::with(PATIENCE, door()).await;
    let (mut writes, mut admin) =
        (world.client(), world.client_of(Some(Who { admin: true, ..CLIENT })));
    assert_eq!(writes.ask("SET k 1").await, "+OK\r\n");
    assert_eq!(admin.ask("CLIENT PAUSE 1000000 WRITE").await, "+OK\r\n");
    writes.send(&resp::command(&["SET", "k", "2"])).await;
    until("the server holds it up", async || {
        String::from_utf8_lossy(&world.server.ask(&["INFO", "clients"]).await)
            .contains("blocked_clients:1")
    })
    .await;
    assert_eq!(admin.ask("CLIENT UNPAUSE").await, "+OK\r\n");
    assert_eq!(writes.reply().await.as_ref(), b"+OK\r\n");
}

#[tokio::test]
async fn a_write_that_becomes_a_dead_letter_while_its_client_waits_is_of_unknown_outcome() {
    let world = World::with(PATIENCE, door()).await;
    let mut client = world.client();
    let backend = &world.fusebox.backends()[0];
    backend.set_offline(true).await.unwrap();
    client.until_told("SET text 1", "+OK\r\n").await;
    assert_eq!(world.server.ask(&["CLIENT", "PAUSE", "1000000", "WRITE"]).await, "+OK\r\n");
    backend.set_offline(false).await.unwrap();
    until("replay has begun", async || backend.view().queue.replay_paused.is_none()).await;
    client.send(&resp::command(&["HSET", "text", "f", "v"])).await;
    until("it waits behind the first", async || world.waiting() == 2).await;
    assert_eq!(world.server.ask(&["CLIENT", "UNPAUSE"]).await, "+OK\r\n");
    let told = String::from_utf8_lossy(&client.reply().await).into_owned();
    assert!(told.starts_with("-FUSEBOX UNKNOWN"), "{told}");
    assert_eq!(backend.view().queue.dead_letters, 1);
}

#[tokio::test]
async fn a_door_assumes_as_much_as_it_is_told() {
    for (effect_reply, told) in
        [(EffectReply::All, [":1\r\n", ":2\r\n"]), (EffectReply::Error, ["-LOADING", "-LOADING"])]
    {
        let mut world =
            World::with(Duration::from_secs(2), Settings { effect_reply, ..door() }).await;
        let mut client = world.client();
        assert_eq!(client.ask("SET k 1").await, "+OK\r\n");
        world.server.kill();
        client.until_told("SET x 1", "+OK\r\n").await;
        for (command, told) in ["DEL k", "SADD s a b"].iter().zip(told) {
            let reply = client.ask(command).await;
            assert!(reply.starts_with(told), "{command}: {reply}");
        }
    }
}

#[tokio::test]
async fn what_needs_a_fence_that_cannot_be_raised_is_refused_at_once() {
    let mut world = World::with(PATIENCE, door()).await;
    let mut waits = world.client();
    waits.send(&resp::command(&["BLPOP", "jobs", "0"])).await;
    until("it blocks", async || {
        let list = world.server.ask(&["CLIENT", "LIST"]).await;
        String::from_utf8_lossy(&list).contains("cmd=blpop")
    })
    .await;
    world.server.kill();
    let begun = tokio::time::Instant::now();
    for command in ["MULTI", "WATCH k", "SUBSCRIBE c", "SELECT 3"] {
        let told = world.client().ask(command).await;
        assert!(told.starts_with("-LOADING"), "{command}: {told}");
    }
    assert!(begun.elapsed() < PATIENCE / 4, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn who_asks_again_at_once_whenever_it_is_refused_is_slowed_down() {
    let mut world = World::open().await;
    let mut client = world.client();
    assert_eq!(client.ask("GET k").await, "$-1\r\n");
    world.server.kill();
    client.until_told("SET x 1", "+OK\r\n").await;
    let begun = tokio::time::Instant::now();
    for _ in 0..60 {
        assert!(client.ask("INCR n").await.starts_with("-LOADING"));
    }
    assert!(begun.elapsed() >= Duration::from_millis(400), "{:?}", begun.elapsed());
    let begun = tokio::time::Instant::now();
    assert!(world.client().ask("INCR n").await.starts_with("-LOADING"), "others are not");
    assert!(begun.elapsed() < Duration::from_millis(400));
}

#[tokio::test]
async fn queued_writes_of_many_keys_go_to_the_server_many_at_once() {
    const WRITES: u64 = 1_000;
    let mut world = World::open().await;
    let mut client = world.client();
    assert_eq!(client.ask("GET x").await, "$-1\r\n");
    world.server.kill();
    client.until_told("SET k0 v", "+OK\r\n").await;
    for n in 1..WRITES {
        assert_eq!(client.ask(&format!("SET k{n} v")).await, "+OK\r\n");
    }
    world.server.restart().await;
    until("all is applied", async || world.waiting() == 0).await;
    assert_eq!(world.server.ask(&["DBSIZE"]).await, format!(":{WRITES}\r\n"));
    let told = world.server.ask(&["INFO", "stats"]).await;
    let told = String::from_utf8_lossy(&told).into_owned();
    let reads = told.lines().find_map(|line| line.strip_prefix("total_reads_processed:"));
    let reads: u64 = reads.unwrap().parse().unwrap();
    assert!(reads * 10 < WRITES, "{WRITES} writes came in {reads} pieces");
}

#[tokio::test]
async fn the_names_of_the_commands_are_known_without_the_server() {
    let mut world = World::open().await;
    let mut client = world.client();
    let count = client.ask("COMMAND COUNT").await;
    let names = |list: &str| list.lines().filter(|it| !it.starts_with(['*', '$'])).count();
    let list = names(&client.ask("COMMAND LIST").await);
    // Then the server has listed them.
    assert!(client.ask("NOSUCH").await.starts_with("-ERR unknown command"));
    world.server.kill();
    client.until_told("SET x 1", "+OK\r\n").await;
    assert_eq!(client.ask("COMMAND COUNT").await, count);
    assert_eq!(names(&client.ask("COMMAND LIST").await), list);
    for command in ["COMMAND", "COMMAND INFO get", "COMMAND LIST FILTERBY MODULE x"] {
        let told = client.ask(command).await;
        assert!(told.starts_with("-LOADING"), "{command}: {told}");
    }
}

#[tokio::test]
async fn what_is_asked_in_small_letters_is_cached_as_what_it_is() {
    let mut world = World::open().await;
    let mut client = world.client();
    client.ask("ZADD z 1 a").await;
    let scores = "zrangebyscore z 0 1 withscores";
    assert_eq!(client.ask(scores).await, "*2\r\n$1\r\na\r\n$1\r\n1\r\n");
    assert_eq!(client.ask("exists z").await, ":1\r\n");
    let mut newer = world.client();
    assert!(newer.ask("HELLO 3").await.starts_with('%'));
    world.server.kill();
    assert_eq!(client.ask("exists z").await, ":1\r\n");
    assert_eq!(client.ask("EXISTS z").await, ":1\r\n");
    // The older protocol's list would be another thing in the newer one.
    let told = newer.ask(scores).await;
    assert!(told.starts_with("-LOADING"), "{told}");
}

#[tokio::test]
async fn what_only_looks_leaves_the_cache_as_it_is() {
    let mut world = World::open().await;
    let mut admin = world.client_of(Some(Who { admin: true, ..CLIENT }));
    admin.ask("SET k v").await;
    assert_eq!(admin.ask("GET k").await, "$1\r\nv\r\n");
    for looks in ["SLOWLOG GET", "SLOWLOG LEN", "MODULE LIST", "MEMORY MALLOC-STATS", "OBJECT HELP"]
    {
        let told = admin.ask(looks).await;
        assert!(!told.starts_with('-'), "{looks}: {told}");
    }
    world.server.kill();
    assert_eq!(admin.ask("GET k").await, "$1\r\nv\r\n");
}

#[tokio::test]
async fn a_read_whose_key_is_not_its_first_word_is_not_cached_beyond_its_keys_end() {
    let mut world = World::open().await;
    let mut client = world.client();
    client.ask("SADD s a").await;
    let end = client.ask("PEXPIRE s 700").await;
    assert_eq!(end, ":1\r\n");
    assert_eq!(client.ask("SINTERCARD 1 s").await, ":1\r\n");
    world.server.kill();
    until("it has ended", async || client.ask("SINTERCARD 1 s").await.starts_with("-LOADING"))
        .await;
}
