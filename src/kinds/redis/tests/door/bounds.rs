//! How much is taken of a client that is owed much, and that it is served on once it has read.

use super::*;
use crate::kinds::testing::resident;

#[tokio::test]
async fn who_reads_gets_all_that_is_cached_however_much_it_asks_for_at_once() {
    const TIMES: usize = 100;
    let settings = Settings { out_client: 1 << 20, ..door() };
    let world = World::with(Duration::from_secs(2), settings).await;
    let mut client = world.client();
    let value = "v".repeat(100 << 10);
    let expected = format!("${}\r\n{value}\r\n", value.len());
    client.send(&resp::command(&["SET", "k", &value])).await;
    assert_eq!(client.reply().await, "+OK\r\n");
    let get = resp::command(&["GET", "k"]);
    client.send(&get).await;
    assert!(client.reply().await == expected);
    world.fusebox.backends()[0].force(true, "test".into(), None).await.unwrap();
    client.send(&get.repeat(TIMES)).await;
    // What was not taken yet when there is nothing more to be read is answered, too.
    client.stream.shutdown().await.unwrap();
    for number in 0..TIMES {
        assert!(client.reply().await == expected, "{number}");
    }
    assert_eq!(client.reply().await, "", "it is closed");
    assert_eq!(world.door.view().by_source()["cache"], TIMES as u64);
    assert_eq!(world.closed("slow_reader"), 0);
}

#[tokio::test]
async fn what_the_door_itself_answers_waits_until_its_client_has_read() {
    const TIMES: usize = 5_000;
    let settings = Settings { out_client: 256 << 10, ..door() };
    let world = World::with(Duration::from_secs(2), settings).await;
    let mut client = world.client();
    client.send(&b"CLIENT LIST\n".repeat(TIMES)).await;
    for number in 0..TIMES {
        assert!(client.reply().await.starts_with(b"$"), "{number}");
        let owed = world.door.view().buffered_out;
        assert!(owed <= (256 << 10) + 1_000, "{number}: {owed}");
    }
    assert_eq!(client.ask("ECHO e").await, "$1\r\ne\r\n");
    assert_eq!(world.closed("slow_reader"), 0);
}

#[tokio::test]
async fn who_has_as_much_unanswered_as_may_be_is_read_again() {
    let world = World::with(PATIENCE, door()).await;
    let mut client = world.client();
    assert_eq!(client.ask("GET none").await, "$-1\r\n");
    world.server.signal("STOP");
    let before = world.door.view().bytes_in;
    let mut commands = resp::command(&["GET", "none"]).to_vec();
    commands.extend(resp::command(&["ECHO", "e"]).repeat(1_023));
    client.send(&commands).await;
    let all = before + commands.len() as u64;
    until("all is read", async || world.door.view().bytes_in == all).await;
    world.server.signal("CONT");
    assert_eq!(client.reply().await, "$-1\r\n");
    for _ in 0..1_023 {
        assert_eq!(client.reply().await, "$1\r\ne\r\n");
    }
    assert_eq!(client.ask("ECHO f").await, "$1\r\nf\r\n");
}

#[tokio::test]
async fn what_is_answered_to_a_client_that_is_gone_is_kept_nowhere() {
    // All of them find a place, and so does the last command.
    const TIMES: usize = 50;
    let settings = Settings { out_client: 2 << 20, ..door() };
    let world = World::with(PATIENCE, settings).await;
    world.server.ask(&["SETRANGE", "large", "999999", "x"]).await;
    let mut client = world.client();
    assert!(client.ask("GET large").await.len() > 1_000_000);
    // The server answers the last command once it may write again, so the client has something on the wire until then.
    assert_eq!(world.server.ask(&["CLIENT", "PAUSE", "1000000", "WRITE"]).await, "+OK\r\n");
    let before = resident();
    let mut commands = resp::command(&["GET", "large"]).repeat(TIMES);
    commands.extend(resp::command(&["SET", "k", "v"]));
    client.send(&commands).await;
    until("it is disconnected", async || world.closed("slow_reader") == 1).await;
    until("the door has all other replies", async || {
        let clients = world.server.ask(&["INFO", "clients"]).await;
        let list = world.server.ask(&["CLIENT", "LIST"]).await;
        let list = String::from_utf8_lossy(&list).into_owned();
        let mut connections = list.lines().filter(|line| line.contains(" oll="));
        String::from_utf8_lossy(&clients).contains("blocked_clients:1")
            && connections.all(|line| line.contains(" oll=0 "))
    })
    .await;
    let more = resident().saturating_sub(before);
    assert!(more < 32 << 20, "{more} bytes more");
    assert_eq!(world.server.ask(&["CLIENT", "UNPAUSE"]).await, "+OK\r\n");
    until("its write is applied", async || world.server.value("k").await == "v").await;
}

#[tokio::test]
async fn what_waits_for_queued_writes_counts_at_the_door() {
    const SIZE: usize = 3 << 20;
    let settings = Settings { in_bytes: 3 * SIZE + (64 << 10), request_max: 4 << 20, ..door() };
    let world = World::with(PATIENCE, settings).await;
    let backend = &world.fusebox.backends()[0];
    backend.set_offline(true).await.unwrap();
    world.client().until_told("DEL k", ":1\r\n").await;
    assert_eq!(world.server.ask(&["CLIENT", "PAUSE", "1000000", "WRITE"]).await, "+OK\r\n");
    backend.set_offline(false).await.unwrap();
    until("replay has begun", async || backend.view().queue.replay_paused.is_none()).await;
    let push = resp::command(&["RPUSH", "k", &"x".repeat(SIZE)]);
    let mut clients: Vec<Wire> = (0..3).map(|_| world.client()).collect();
    for client in &mut clients {
        client.send(&push).await;
    }
    let held = || usize::try_from(world.door.view().buffered_in).unwrap();
    until("all of them wait", async || held() >= 3 * SIZE).await;
    // There is no room for one more, which waits for nothing else.
    let mut late = world.client();
    drop(late.stream.write_all(&push).await);
    assert_eq!(late.reply().await, "-ERR max number of clients reached\r\n");
    assert_eq!(world.server.ask(&["CLIENT", "UNPAUSE"]).await, "+OK\r\n");
    for client in &mut clients {
        assert!(client.reply().await.starts_with(b":"));
    }
    until("nothing is held", async || held() == 0).await;
}

#[tokio::test]
async fn what_the_server_has_not_answered_counts_at_the_door() {
    const SIZE: usize = 1 << 20;
    let world = World::with(PATIENCE, door()).await;
    let mut client = world.client();
    assert_eq!(client.ask("GET none").await, "$-1\r\n");
    world.server.signal("STOP");
    let set = resp::command(&["SET", "k", &"x".repeat(SIZE)]);
    client.send(&set.repeat(3)).await;
    let held = || usize::try_from(world.door.view().buffered_in).unwrap();
    until("it is counted", async || held() >= 3 * SIZE).await;
    world.server.signal("CONT");
    for _ in 0..3 {
        assert_eq!(client.reply().await, "+OK\r\n");
    }
    until("nothing is held", async || held() == 0).await;
}

#[tokio::test]
async fn what_a_client_has_left_behind_counts_until_it_is_answered() {
    const SIZE: usize = 1 << 20;
    let world = World::with(PATIENCE, door()).await;
    let (mut client, mut other) = (world.client(), world.client());
    assert_eq!(client.ask("GET none").await, "$-1\r\n");
    let number = client.ask("CLIENT ID").await.trim().trim_start_matches(':').to_owned();
    world.server.signal("STOP");
    let set = resp::command(&["SET", "k", &"x".repeat(SIZE)]);
    let all = world.door.view().bytes_in + set.len() as u64;
    client.send(&set).await;
    until("all is read", async || world.door.view().bytes_in == all).await;
    assert_eq!(other.ask(&format!("CLIENT KILL ID {number}")).await, ":1\r\n");
    drop(other);
    until("both are gone", async || world.door.view().connections.shared == 0).await;
    let held = || usize::try_from(world.door.view().buffered_in).unwrap();
    assert!(held() >= SIZE);
    world.server.signal("CONT");
    // Nobody is left who would show that.
    until("nothing is held", async || held() == 0).await;
}
