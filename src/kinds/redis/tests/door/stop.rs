//! A door that closes answers what it has read.

use super::*;

#[tokio::test]
async fn a_door_that_closes_answers_what_it_has_read() {
    let world = World::open().await;
    let mut client = world.client();
    assert_eq!(client.ask("PING").await, "+PONG\r\n");
    client.send(&resp::command(&["SET", "k", "1"])).await;
    until("it was read", async || world.door.commands() == 2).await;
    world.door.close().await;
    assert_eq!(client.reply().await, "+OK\r\n");
    assert_eq!(client.reply().await, "");
    assert_eq!(world.server.value("k").await, "1");
}

/// A client that has sent this in one write, all of which the door has read.
async fn sent(world: &World, bytes: &[u8]) -> Wire {
    let mut client = world.client();
    let before = world.door.view().bytes_in;
    client.send(bytes).await;
    let all = before + bytes.len() as u64;
    until("it was read", async || world.door.view().bytes_in == all).await;
    client
}

#[tokio::test]
async fn whole_commands_that_have_come_are_answered_however_many_they_are() {
    const COMMANDS: usize = 2_000;
    let world = World::with(PATIENCE, door()).await;
    assert_eq!(world.client().ask("GET k").await, "$-1\r\n");
    world.server.signal("STOP");
    let mut bytes = resp::command(&["INCR", "n"]).repeat(COMMANDS);
    bytes.extend_from_slice(b"*2\r\n$4\r\nINCR\r\n$1\r\n");
    let mut client = sent(&world, &bytes).await;
    let closed = world.door.close();
    world.server.signal("CONT");
    for number in 1..=COMMANDS {
        assert_eq!(client.reply().await, format!(":{number}\r\n"));
    }
    assert_eq!(client.reply().await, "", "half a command is nobody's");
    closed.await;
    assert_eq!(world.server.value("n").await, COMMANDS.to_string());
    assert_eq!(world.closed("stop"), 1);
}

#[tokio::test]
async fn a_transaction_ends_with_its_exec_or_is_aborted() {
    let world = World::open().await;
    let mut begun = world.client();
    assert_eq!(begun.ask("MULTI").await, "+OK\r\n");
    assert_eq!(begun.ask("INCR n").await, "+QUEUED\r\n");
    let mut free = world.client();
    assert_eq!(free.ask("INCR other").await, ":1\r\n");
    world.door.close().await;
    let told = begun.reply().await;
    assert!(told.starts_with(b"-EXECABORT Transaction discarded"), "{told:?}");
    for mut client in [begun, free] {
        assert_eq!(client.reply().await, "");
    }
    assert_eq!(world.server.value("n").await, "");
}

#[tokio::test]
async fn a_command_that_would_wait_ends_the_connection_instead() {
    let world = World::with(PATIENCE, door()).await;
    assert_eq!(world.client().ask("GET k").await, "$-1\r\n");
    world.server.signal("STOP");
    let words = [&["INCR", "n"][..], &["BLPOP", "l", "0"], &["INCR", "n"]];
    let bytes: Vec<u8> = words.iter().flat_map(|words| resp::command(words)).collect();
    let mut client = sent(&world, &bytes).await;
    let closed = world.door.close();
    world.server.signal("CONT");
    assert_eq!(client.reply().await, ":1\r\n");
    assert_eq!(client.reply().await, "");
    closed.await;
    assert_eq!(world.server.value("n").await, "1");
}

#[tokio::test]
async fn what_was_queued_is_answered_before_a_command_that_would_wait() {
    let mut world = World::open().await;
    assert_eq!(world.client().ask("GET k").await, "$-1\r\n");
    world.server.kill();
    world.client().until_told("SET k 1", "+OK\r\n").await;
    let words = [&["SET", "k", "2"][..], &["BLPOP", "l", "0"]];
    let bytes: Vec<u8> = words.iter().flat_map(|words| resp::command(words)).collect();
    let mut client = sent(&world, &bytes).await;
    world.door.close().await;
    assert_eq!(client.reply().await, "+OK\r\n");
    assert_eq!(client.reply().await, "");
}
