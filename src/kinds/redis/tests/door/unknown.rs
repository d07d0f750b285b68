//! Commands that no list of commands has.

use super::*;

#[tokio::test]
async fn one_that_was_not_sent_is_unavailable() {
    let mut world = World::open().await;
    let mut client = world.client();
    assert!(client.ask("NOSUCH x").await.starts_with("-ERR unknown command 'NOSUCH'"));
    world.server.kill();
    // The door has seen the connection end, and the breaker is still closed.
    assert_eq!(client.ask("GET none").await, "$-1\r\n");
    assert!(!world.fusebox.backends()[0].is_suspect());
    let told = client.ask("NOSUCH x").await;
    assert!(told.starts_with("-LOADING") && told.contains("not executed"), "{told}");
}

#[tokio::test]
async fn one_that_was_on_the_wire_may_have_been_executed() {
    let world = World::with(Duration::from_millis(300), door()).await;
    for pinned in [false, true] {
        let mut client = world.client();
        client.until_told("SET k v", "+OK\r\n").await;
        if pinned {
            client.until_told("WATCH k", "+OK\r\n").await;
        }
        client.until_told("NOSUCH", NOSUCH).await;
        world.server.signal("STOP");
        let told = client.ask("NOSUCH x").await;
        world.server.signal("CONT");
        assert!(told.starts_with("-FUSEBOX UNKNOWN "), "{pinned}: {told}");
    }
}

const NOSUCH: &str = "-ERR unknown command 'NOSUCH', with args beginning with: \r\n";
