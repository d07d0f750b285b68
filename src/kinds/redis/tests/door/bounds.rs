//! How much is taken of a client that is owed much, and that it is served on once it has read.

use super::*;

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
