//! What becomes of a client when its own connection is lost.

use super::*;

#[tokio::test]
async fn a_client_that_is_closed_because_an_outcome_is_unknown_is_gone_at_once() {
    let settings = Settings { close_on_unknown: true, ..door() };
    let world = World::with(Duration::from_millis(500), settings).await;
    let mut client = world.client();
    assert_eq!(client.ask("MULTI").await, "+OK\r\n");
    assert_eq!(client.ask("INCR n").await, "+QUEUED\r\n");
    world.server.signal("STOP");
    pipeline(&mut client, &["EXEC"]).await;
    assert_eq!(client.reply().await, "", "it is closed");
    until("nothing is left of it", async || {
        let connections = world.door.view().connections;
        (connections.shared, connections.pinned, world.closed("told")) == (0, 0, 1)
    })
    .await;
    world.server.signal("CONT");
}

#[tokio::test]
async fn the_commands_of_a_transaction_that_may_have_run_are_not_told_as_not_executed() {
    let world = World::with(Duration::from_millis(500), door()).await;
    let mut client = world.client();
    assert_eq!(client.ask("MULTI").await, "+OK\r\n");
    world.server.signal("STOP");
    pipeline(&mut client, &["INCR n", "EXEC"]).await;
    for begins in ["+QUEUED\r\n", "-FUSEBOX UNKNOWN"] {
        let told = String::from_utf8_lossy(&client.reply().await).into_owned();
        assert!(told.starts_with(begins), "{told} instead of {begins}");
    }
    assert_eq!(client.reply().await, "", "its connection's state is gone");
    world.server.signal("CONT");
}

#[tokio::test]
async fn nothing_is_sent_behind_a_multi_that_is_not_answered() {
    let world = World::with(Duration::from_millis(500), door()).await;
    let mut client = world.client();
    // So that its transaction goes over a connection of its own.
    assert_eq!(client.ask("WATCH k").await, "+OK\r\n");
    world.server.signal("STOP");
    pipeline(&mut client, &["MULTI", "INCR n", "EXEC"]).await;
    let told = client.reply().await;
    assert!(told.starts_with(b"-LOADING"), "{told:?}");
    assert_eq!(client.reply().await, "", "its connection's state is gone");
    world.server.signal("CONT");
    assert_eq!(world.server.value("n").await, "");
}

#[tokio::test]
async fn the_commands_of_a_transaction_whose_exec_was_not_sent_are_unavailable() {
    let world = World::with(Duration::from_millis(500), door()).await;
    let mut client = world.client();
    assert_eq!(client.ask("MULTI").await, "+OK\r\n");
    world.server.signal("STOP");
    pipeline(&mut client, &["INCR n"]).await;
    let told = client.reply().await;
    assert!(told.starts_with(b"-LOADING"), "{told:?}");
    assert_eq!(client.reply().await, "");
    world.server.signal("CONT");
}

#[tokio::test]
async fn all_who_wait_for_a_job_are_at_the_server_soon_after_it_is_back() {
    const CLIENTS: usize = 40;
    let mut world = World::open().await;
    assert_eq!(world.client().ask("SET k v").await, "+OK\r\n");
    world.server.kill();
    let mut clients: Vec<Wire> = (0..CLIENTS).map(|_| world.client()).collect();
    for client in &mut clients {
        pipeline(client, &["BLPOP jobs 0"]).await;
    }
    // Each has found out that nobody is there.
    until("all are parked", async || world.parked() == CLIENTS as u64).await;
    world.server.restart().await;
    // Nobody gets a reply that could say that connections can be had again.
    until("one waits", async || world.waiting_there().await > 0).await;
    let begun = tokio::time::Instant::now();
    until("all wait", async || world.waiting_there().await == CLIENTS).await;
    // They do not sit out the pause of 1.6 s between attempts to find that out.
    assert!(begun.elapsed() < Duration::from_millis(1_300), "{:?}", begun.elapsed());
}
