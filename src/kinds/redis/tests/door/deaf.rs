//! Connections of single clients over which nothing comes any more, and nobody says so.

use super::*;
use crate::kinds::redis::tests::relay::Relay;

const TIMEOUT: Duration = Duration::from_millis(500);

impl World {
    /// How many connections wait at the server.
    pub(super) async fn that_wait(&self) -> usize {
        let list = self.server.ask(&["CLIENT", "LIST"]).await;
        String::from_utf8_lossy(&list).matches("cmd=blpop").count()
    }
}

#[tokio::test]
async fn who_listens_or_waits_for_ever_does_not_stay_on_a_connection_that_is_lost() {
    let server = Server::start().await;
    let relay = Relay::to(server.port).await;
    let databases = [("redis", 0)];
    let world = World::before(server, Some(relay.port), TIMEOUT, door(), &databases).await;
    let (mut listens, mut waits, mut other) = (world.client(), world.client(), world.client());
    assert_eq!(other.ask("SET k v").await, "+OK\r\n");
    assert!(listens.ask("SUBSCRIBE c").await.starts_with("*3"));
    waits.send(&resp::command(&["BLPOP", "jobs", "0"])).await;
    until("it waits", async || world.that_wait().await == 1).await;
    relay.hold();
    let backend = &world.fusebox.backends()[0];
    backend.force(true, "test".into(), None).await.unwrap();
    assert_eq!(listens.reply().await, "", "it is disconnected");
    let parked = || world.door.view().connections.parked;
    until("the other one is parked", async || parked() == 1).await;
    backend.release().await.unwrap();
    // New connections get through; what was on the old ones is over.
    other.until_told("SET k w", "+OK\r\n").await;
    until("it waits again", async || parked() == 0 && world.that_wait().await == 1).await;
    assert_eq!(world.server.ask(&["RPUSH", "jobs", "j"]).await, ":1\r\n");
    assert_eq!(waits.reply().await, "*2\r\n$4\r\njobs\r\n$1\r\nj\r\n");
}

#[tokio::test]
async fn who_still_hears_something_stays_when_the_breaker_opens() {
    let world = World::with(TIMEOUT, door()).await;
    let (mut hears, mut deaf) = (world.client(), world.client());
    assert_eq!(hears.ask("SET k v").await, "+OK\r\n");
    assert!(hears.ask("SUBSCRIBE loud").await.starts_with("*3"));
    assert!(deaf.ask("SUBSCRIBE quiet").await.starts_with("*3"));
    world.fusebox.backends()[0].force(true, "test".into(), None).await.unwrap();
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while world.closed("upstream") == 0 {
        assert_eq!(world.server.ask(&["PUBLISH", "loud", "m"]).await, ":1\r\n");
        assert!(hears.reply().await.starts_with(b"*3"));
        assert!(tokio::time::Instant::now() < deadline, "nobody is disconnected");
    }
    assert_eq!(deaf.reply().await, "");
    assert_eq!(world.server.ask(&["PUBLISH", "loud", "m"]).await, ":1\r\n");
    assert!(hears.reply().await.starts_with(b"*3"), "it listens on");
}
