//! Scripts that clients believe the server knows.

use super::*;

/// Asks until the server has answered. Until then, the command is unavailable or of unknown outcome.
async fn evalsha(client: &mut Wire, sha: &str) -> String {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let told = client.ask(&format!("EVALSHA {sha} 0")).await;
        if !told.starts_with("-LOADING") && !told.starts_with("-FUSEBOX UNKNOWN") {
            return told;
        }
        assert!(tokio::time::Instant::now() < deadline, "{told}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_server_that_restarts_knows_them_again_before_it_is_asked() {
    let mut world = World::open().await;
    let (mut second, mut third) = (world.client(), world.client());
    third.ask("HELLO 3").await;
    let sha = |told: &str| told.lines().nth(1).unwrap_or_default().to_owned();
    let loaded = sha(&second.ask("SCRIPT LOAD return(7)").await);
    assert_eq!(third.ask("EVAL return(8) 0").await, ":8\r\n");
    assert!(third.ask("EVAL return( 0").await.starts_with("-ERR"), "it is no script");
    let run = world.server.ask(&["SCRIPT", "LOAD", "return(8)"]).await;
    let run = sha(&String::from_utf8_lossy(&run));
    for _ in 0..2 {
        world.server.kill();
        world.server.restart().await;
        for client in [&mut second, &mut third] {
            assert_eq!(evalsha(client, &loaded).await, ":7\r\n");
            assert_eq!(evalsha(client, &run).await, ":8\r\n");
        }
    }
    assert_eq!(second.ask("SCRIPT FLUSH").await, "+OK\r\n");
    world.server.kill();
    world.server.restart().await;
    assert!(evalsha(&mut second, &loaded).await.starts_with("-NOSCRIPT"), "all are forgotten");
}

/// A door at which a script may touch any key.
async fn with_barriers() -> World {
    let server = Server::start().await;
    let state = tempfile::tempdir().unwrap();
    let mut of = server.settings("door", "run");
    of.scripts_are_barriers = true;
    let spec = BackendSpec { settings: backend(of.timeout), connector: RedisConnector::new(of) };
    let fusebox = Fusebox::start(system(state.path()), vec![spec], None).await.unwrap();
    let kin = fusebox.backends();
    let door = RedisDoor::open(door(), kin[0].clone(), kin, Handle::current()).unwrap();
    World { server, door, fusebox, state }
}

#[tokio::test]
async fn what_a_script_does_to_a_deadline_is_not_known() {
    let rows = [
        ("return 1", &["1", "h"][..]),
        ("return redis.call('PERSIST', KEYS[1])", &["1", "h"]),
        // One that does not say that it touches the key.
        ("return redis.call('DEL', 'h')", &["0"]),
    ];
    for ((script, keys), is_loaded) in rows.into_iter().flat_map(|row| [(row, false), (row, true)])
    {
        let mut world = if keys == ["0"] { with_barriers().await } else { World::open().await };
        let mut client = world.client();
        let (name, script) = if is_loaded {
            client.send(&resp::command(&["SCRIPT", "LOAD", script])).await;
            let told = String::from_utf8_lossy(&client.reply().await).into_owned();
            ("EVALSHA", told.lines().nth(1).unwrap_or_default().to_owned())
        } else {
            ("EVAL", script.to_owned())
        };
        assert_eq!(client.ask("HSET h f v").await, ":1\r\n");
        assert_eq!(client.ask("EXPIRE h 60").await, ":1\r\n");
        client.send(&resp::command(&[&[name, &*script][..], keys].concat())).await;
        assert_eq!(client.reply().await.as_ref(), b":1\r\n");
        world.server.kill();
        client.until_told("HSET h g w", ":1\r\n").await;
        let backend = &world.fusebox.backends()[0];
        let queued = backend.queue_page(false, None, 1).await.calls[0].sequence;
        let body = backend.queued_body(queued).unwrap();
        let body = String::from_utf8_lossy(&body).into_owned();
        assert!(!body.contains("UNTIL"), "it would take the deadline along: {body}");
    }
}

#[tokio::test]
async fn one_that_may_touch_any_key_does_so_within_a_transaction() {
    let mut world = with_barriers().await;
    let mut client = world.client();
    let script = "redis.call('SET', 'k', 'new') return 1";
    for in_pieces in [false, true] {
        world.server.ask(&["SET", "k", "old"]).await;
        client.until_told("GET k", "$3\r\nold\r\n").await;
        let words: [&[&str]; 3] = [&["MULTI"], &["EVAL", script, "1", "other"], &["EXEC"]];
        let told = ["+OK\r\n", "+QUEUED\r\n", "*1\r\n:1\r\n"];
        if in_pieces {
            for (words, told) in words.iter().zip(told) {
                client.send(&resp::command(words)).await;
                assert_eq!(client.reply().await, told);
            }
        } else {
            client.send_now(&words);
            for told in told {
                assert_eq!(client.reply().await, told);
            }
        }
        world.server.kill();
        client.until_told("GET k", "$-1\r\n").await;
        world.server.restart().await;
    }
}
