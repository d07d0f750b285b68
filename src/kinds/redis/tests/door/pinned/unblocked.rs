//! Clients that are unblocked by others at another time than these believe.

use super::*;

/// The number of a client, as the door gave it.
async fn number(client: &mut Wire) -> String {
    client.ask("CLIENT ID").await.trim().trim_start_matches(':').to_owned()
}

#[tokio::test]
async fn an_unblocking_that_comes_late_meets_nobody_else() {
    let world = World::with(PATIENCE, door()).await;
    let (mut waits, mut next) = (world.client(), world.client());
    let (mut writes, mut other) = (world.client(), world.client());
    let unblock = format!("CLIENT UNBLOCK {}", number(&mut waits).await);
    pipeline(&mut waits, &["BLPOP jobs 0"]).await;
    until("it waits", async || world.waiting_there().await == 1).await;
    let list = world.server.ask(&["CLIENT", "LIST"]).await;
    let list = String::from_utf8_lossy(&list).into_owned();
    let line = list.lines().find(|line| line.contains("cmd=blpop")).expect("its connection");
    let there = line.split(' ').find_map(|word| word.strip_prefix("id=")).expect("a number");
    // From the first write on, the server reads nothing more of the connection that all share.
    assert_eq!(world.server.ask(&["CLIENT", "PAUSE", "1000000", "WRITE"]).await, "+OK\r\n");
    pipeline(&mut writes, &["SET k v"]).await;
    until("it is held up", async || world.waiting_there().await == 2).await;
    let before = world.door.commands();
    pipeline(&mut other, &[unblock.as_str()]).await;
    until("it was sent", async || world.door.commands() == before + 1).await;
    assert_eq!(world.server.ask(&["CLIENT", "UNBLOCK", there]).await, ":1\r\n");
    assert_eq!(waits.reply().await, "*-1\r\n");
    until("it needs its connection no more", async || world.pinned() == 0).await;
    pipeline(&mut next, &["XREAD BLOCK 0 STREAMS s 0"]).await;
    until("the next one waits", async || world.waiting_there().await == 2).await;
    assert_eq!(world.server.ask(&["CLIENT", "UNPAUSE"]).await, "+OK\r\n");
    assert_eq!(writes.reply().await, "+OK\r\n");
    assert_eq!(other.reply().await, ":0\r\n");
    world.server.ask(&["XADD", "s", "1-1", "f", "v"]).await;
    assert!(next.reply().await.starts_with(b"*1"), "it waits on");
}

#[tokio::test]
async fn who_waits_on_a_connection_that_is_not_open_yet_gets_every_reply() {
    let world = World::with(PATIENCE, door()).await;
    let (mut waits, mut other) = (world.client(), world.client());
    let unblock = format!("CLIENT UNBLOCK {}", number(&mut waits).await);
    assert_eq!(other.ask("SET b v").await, "+OK\r\n");
    // It accepts a connection, and says nothing.
    world.server.signal("STOP");
    let commands = [&["WATCH a", "GET b", "BLPOP c 0"][..], &[unblock.as_str()]];
    for (client, commands) in [&mut waits, &mut other].into_iter().zip(commands) {
        let before = world.door.view().bytes_in;
        pipeline(client, commands).await;
        until("they were read", async || world.door.view().bytes_in > before).await;
    }
    world.server.signal("CONT");
    assert_eq!(waits.reply().await, "+OK\r\n");
    assert_eq!(waits.reply().await, "$1\r\nv\r\n");
    // It may get there before the command that it is to end.
    if other.reply().await != ":1\r\n" {
        other.until_told(&unblock, ":1\r\n").await;
    }
    assert_eq!(waits.reply().await, "*-1\r\n");
    assert_eq!(waits.ask("UNWATCH").await, "+OK\r\n");
}
