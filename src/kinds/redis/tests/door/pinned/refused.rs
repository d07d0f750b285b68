//! What the door answers itself, because the server is not to be asked or cannot be: nothing of it is carried out later.

use super::*;

#[tokio::test]
async fn a_transaction_that_is_told_as_not_run_is_not_run_later() {
    for (end, begins) in [("EXEC", "-EXECABORT"), ("DISCARD", "+OK")] {
        let world = World::with(Duration::from_millis(300), door()).await;
        let (mut client, mut other) = (world.client(), world.client());
        assert_eq!(other.ask("SET x 1").await, "+OK\r\n");
        assert_eq!(client.ask("MULTI").await, "+OK\r\n");
        assert_eq!(client.ask("INCR x").await, "+QUEUED\r\n");
        world.server.signal("STOP");
        // It may still land: until a fence is up, which this server does not raise, no other connection writes.
        assert!(other.ask("INCR lost").await.starts_with("-FUSEBOX UNKNOWN"));
        let told = client.ask(end).await;
        assert!(told.starts_with(begins), "{end}: {told}");
        world.server.signal("CONT");
        client.until_told("GET x", "$1\r\n1\r\n").await;
        client.until_told("MULTI", "+OK\r\n").await;
        assert_eq!(client.ask("INCR x").await, "+QUEUED\r\n");
        assert_eq!(client.ask("EXEC").await, "*1\r\n:2\r\n", "{end}: the second one alone");
        assert_eq!(world.server.value("x").await, "2");
    }
}

#[tokio::test]
async fn a_client_whose_multi_the_server_has_refused_is_in_no_transaction() {
    let world = World::with(PATIENCE, door()).await;
    world.server.ask(&["ACL", "SETUSER", "default", "-multi"]).await;
    let (mut client, mut other) = (world.client(), world.client());
    assert_eq!(client.ask("SET k start").await, "+OK\r\n");
    assert!(client.ask("MULTI").await.starts_with("-NOPERM"), "the server's own words");
    until("its connection is given back", async || world.pinned() == 0).await;
    assert!(client.ask("SET k 1").await.starts_with("-LOADING"), "it may be a part of it");
    assert_eq!(client.ask("DISCARD").await, "+OK\r\n");
    let backend = &world.fusebox.backends()[0];
    backend.set_offline(true).await.unwrap();
    other.until_told("SET k old", "+OK\r\n").await;
    assert_eq!(world.server.ask(&["CLIENT", "PAUSE", "1000000", "WRITE"]).await, "+OK\r\n");
    backend.set_offline(false).await.unwrap();
    until("replay has begun", async || backend.view().queue.replay_paused.is_none()).await;
    pipeline(&mut client, &["SET k new"]).await;
    until("it waits behind the first", async || world.waiting() == 2).await;
    assert_eq!(world.server.ask(&["CLIENT", "UNPAUSE"]).await, "+OK\r\n");
    assert_eq!(client.reply().await, "+OK\r\n");
    until("all is applied", async || world.waiting() == 0).await;
    assert_eq!(world.server.value("k").await, "new");
}

#[tokio::test]
async fn nothing_of_a_transaction_is_run_whose_multi_the_server_has_refused() {
    let world = World::open().await;
    world.server.ask(&["ACL", "SETUSER", "default", "-multi"]).await;
    let mut client = world.client();
    // So that its transaction goes over a connection of its own.
    assert_eq!(client.ask("WATCH w").await, "+OK\r\n");
    pipeline(&mut client, &["MULTI", "SET k v", "EXEC", "GET k"]).await;
    for begins in ["-NOPERM", "-LOADING", "-EXECABORT", "$-1"] {
        let told = client.reply().await;
        assert!(told.starts_with(begins.as_bytes()), "{told:?} instead of {begins}");
    }
}

#[tokio::test]
async fn what_is_run_one_by_one_because_multi_was_refused_is_cached_no_more() {
    let mut world = World::open().await;
    world.server.ask(&["ACL", "SETUSER", "default", "-multi"]).await;
    let mut client = world.client();
    assert_eq!(client.ask("SET k old").await, "+OK\r\n");
    assert_eq!(client.ask("GET k").await, "$3\r\nold\r\n");
    pipeline(&mut client, &["MULTI", "SET k new", "EXEC"]).await;
    for begins in ["-NOPERM", "+OK", "-ERR EXEC without MULTI"] {
        let told = client.reply().await;
        assert!(told.starts_with(begins.as_bytes()), "{told:?} instead of {begins}");
    }
    world.server.kill();
    client.until_told("GET k", "$-1\r\n").await;
}

#[tokio::test]
async fn what_was_not_watched_bars_the_next_transaction_whyever_that_is() {
    let deadline = Some(Duration::from_millis(100));
    let world = World::with(PATIENCE, Settings { deadline, ..door() }).await;
    let mut client = world.client();
    until("it watches", async || client.ask("WATCH a").await == "+OK\r\n").await;
    let before = world.door.commands();
    assert_eq!(world.server.ask(&["CLIENT", "PAUSE", "1000000", "WRITE"]).await, "+OK\r\n");
    // More than is taken for a connection of its own, and not answered.
    let large = format!("SET large {}", "x".repeat(1_500_000));
    pipeline(&mut client, &[large.as_str(), "WATCH b"]).await;
    until("it was refused", async || world.door.commands() == before + 2).await;
    assert_eq!(world.server.ask(&["CLIENT", "UNPAUSE"]).await, "+OK\r\n");
    assert_eq!(client.reply().await, "+OK\r\n");
    assert!(client.reply().await.starts_with(b"-LOADING"));
    pipeline(&mut client, &["MULTI", "SET k v", "EXEC", "GET k"]).await;
    for begins in ["-LOADING", "-LOADING", "-EXECABORT", "$-1"] {
        let told = client.reply().await;
        assert!(told.starts_with(begins.as_bytes()), "{told:?} instead of {begins}");
    }
}

#[tokio::test]
async fn what_no_list_of_commands_has_does_not_pass_what_was_refused() {
    let world = World::with(PATIENCE, Settings { pinned: 0, ..door() }).await;
    let mut other = world.client();
    let id = other.ask("CLIENT ID").await.trim().trim_start_matches(':').to_owned();
    for refused in ["SELECT 3", "MULTI"] {
        let mut client = world.client();
        assert!(client.ask("NOSUCH x").await.starts_with("-ERR unknown command"));
        let commands = [refused, "NOSUCH x"];
        pipeline(&mut client, &commands).await;
        for begins in ["-ERR max number of clients", "-LOADING"] {
            let told = client.reply().await;
            assert!(told.starts_with(begins.as_bytes()), "{refused}: {told:?}");
        }
    }
    // Nor does what the door does to its other clients, which might be a part of the transaction.
    let mut client = world.client();
    let (unblocks, kills) = (format!("CLIENT UNBLOCK {id}"), format!("CLIENT KILL ID {id}"));
    pipeline(&mut client, &["MULTI", &unblocks, &kills, "EXEC", &unblocks]).await;
    for begins in ["-ERR max number", "-LOADING", "-LOADING", "-EXECABORT", ":0"] {
        let told = client.reply().await;
        assert!(told.starts_with(begins.as_bytes()), "{told:?} instead of {begins}");
    }
    assert_eq!(other.ask("PING").await, "+PONG\r\n");
}

#[tokio::test]
async fn in_an_emergency_a_command_that_waits_takes_nothing() {
    let databases = [("redis", 0), ("second", 1), ("third", 2)];
    let world = World::of(Duration::from_secs(2), door(), &databases).await;
    let mut client = world.client();
    let system = SystemSettings {
        state_dir: world.server.folder.path().to_owned(),
        pings: PingSettings::every(Duration::from_secs(3_600)),
        instance: "door".into(),
        copied: None,
    };
    let critical = ["second", "third"].map(|name| BackendSettings {
        name: name.into(),
        critical: true,
        ..backend(Duration::from_secs(2))
    });
    world.fusebox.retune(system, critical.into()).unwrap();
    for name in ["second", "third"] {
        let down = world.fusebox.backend(name).unwrap();
        down.force(true, "test".into(), None).await.unwrap();
    }
    until("no write is sent", async || client.ask("INCR n").await.starts_with("-LOADING")).await;
    world.server.ask(&["RPUSH", "q", "x"]).await;
    world.server.ask(&["XADD", "s", "1-1", "f", "v"]).await;
    assert_eq!(client.ask("BLPOP q 0.2").await, "*-1\r\n");
    assert_eq!(world.server.ask(&["LLEN", "q"]).await, ":1\r\n");
    assert!(client.ask("WATCH q").await.starts_with("+OK"), "that changes nothing");
    let told = client.ask("BLPOP q 0.2").await;
    assert!(told.starts_with("-LOADING"), "something is watched: {told}");
    assert_eq!(world.server.ask(&["LLEN", "q"]).await, ":1\r\n");
    let told = client.ask("XREAD BLOCK 5000 STREAMS s 0").await;
    assert!(told.starts_with("*1"), "it reads: {told}");
}
