//! Clients that select databases of the same server, of which some are backends of their own.

use super::*;

/// A door to database 0, beside a backend for database 1.
async fn world() -> World {
    World::of(Duration::from_secs(2), door(), &[("redis", 0), ("cache", 1)]).await
}

impl World {
    /// What the server itself holds.
    async fn in_database(&self, database: u32, key: &str) -> String {
        let script = "redis.call('SELECT', ARGV[1]) return redis.call('GET', KEYS[1])";
        let value = self.server.ask(&["EVAL", script, "1", key, &database.to_string()]).await;
        String::from_utf8_lossy(&value).into_owned()
    }
}

#[tokio::test]
async fn a_database_that_is_a_backend_needs_no_connection_of_the_clients_own() {
    let world = world().await;
    let (mut one, mut other) = (world.client(), world.client());
    assert_eq!(one.ask("SELECT 1").await, "+OK\r\n");
    assert_eq!(one.ask("SET k one").await, "+OK\r\n");
    assert_eq!(other.ask("GET k").await, "$-1\r\n", "another client is in its own");
    assert_eq!(other.ask("SET k zero").await, "+OK\r\n");
    assert_eq!(one.ask("GET k").await, "$3\r\none\r\n");
    let list = other.ask("CLIENT LIST").await;
    assert!(list.contains(" db=1 ") && list.contains(" db=0 "), "{list}");
    let ids: Vec<String> = [one.ask("CLIENT ID").await, other.ask("CLIENT ID").await].into();
    assert_ne!(ids[0], ids[1]);
    // What was sent together is answered in its databases.
    let together: [&[&str]; 6] = [
        &["SELECT", "0"],
        &["GET", "k"],
        &["SELECT", "1"],
        &["GET", "k"],
        &["SELECT", "0"],
        &["GET", "k"],
    ];
    one.send_now(&together);
    for expected in ["+OK", "$4\r\nzero", "+OK", "$3\r\none", "+OK", "$4\r\nzero"] {
        assert_eq!(one.reply().await, format!("{expected}\r\n"));
    }
    assert_eq!(world.door.view().connections.pinned, 0);
    assert_eq!(one.ask("SELECT 1").await, "+OK\r\n");
    assert_eq!(one.ask("RESET").await, "+RESET\r\n");
    assert_eq!(one.ask("GET k").await, "$4\r\nzero\r\n", "RESET leaves for the first database");
    assert_eq!(world.in_database(1, "k").await, "$3\r\none\r\n");
    assert_eq!(one.ask("SELECT 99").await, "-ERR DB index is out of range\r\n");
}

#[tokio::test]
async fn a_client_with_a_connection_of_its_own_leaves_it_or_stays() {
    let world = world().await;
    let mut one = world.client();
    until("it watches", async || one.ask("WATCH w").await == "+OK\r\n").await;
    let told = one.ask("SELECT 1").await;
    assert!(told.starts_with("-ERR fusebox: database 1 has a backend of its own"), "{told}");
    assert_eq!(one.ask("SET k zero").await, "+OK\r\n");
    assert_eq!(one.ask("MULTI").await, "+OK\r\n");
    assert!(one.ask("SELECT 1").await.starts_with("-ERR fusebox: database 1"));
    assert_eq!(one.ask("SET k one").await, "+QUEUED\r\n");
    assert!(one.ask("EXEC").await.starts_with("-EXECABORT"));
    assert_eq!(one.ask("UNWATCH").await, "+OK\r\n");
    assert_eq!(one.ask("SELECT 1").await, "+OK\r\n");
    assert_eq!(one.ask("GET k").await, "$-1\r\n", "the refused SELECT changed nothing");
    // From a database that is nobody's.
    assert_eq!(one.ask("SELECT 5").await, "+OK\r\n");
    assert_eq!(world.door.view().connections.pinned, 1);
    assert_eq!(one.ask("SET k five").await, "+OK\r\n");
    assert_eq!(one.ask("SELECT 1").await, "+OK\r\n");
    until("it is given up", async || world.door.view().connections.pinned == 0).await;
    assert_eq!(one.ask("GET k").await, "$-1\r\n");
    assert_eq!(world.in_database(5, "k").await, "$4\r\nfive\r\n");
}

#[tokio::test]
async fn a_spare_connection_of_one_database_makes_room_for_another_ones() {
    let settings = Settings { pinned: 1, ..door() };
    let databases = [("redis", 0), ("cache", 1)];
    let world = World::of(Duration::from_secs(2), settings, &databases).await;
    let (mut one, mut other) = (world.client(), world.client());
    one.ask("SELECT 1").await;
    until("it watches", async || one.ask("WATCH w").await == "+OK\r\n").await;
    assert_eq!(one.ask("UNWATCH").await, "+OK\r\n");
    until("it is given back", async || world.door.view().connections.pinned == 0).await;
    let told = other.ask("WATCH w").await;
    assert!(!told.starts_with("-ERR max number"), "{told}");
}

#[tokio::test]
async fn each_database_has_its_own_cache_and_queue_in_an_outage() {
    let mut world = world().await;
    let mut one = world.client();
    one.ask("SELECT 1").await;
    one.ask("SET k one").await;
    one.ask("GET k").await;
    one.ask("SELECT 0").await;
    one.ask("SET k zero").await;
    one.ask("GET k").await;
    world.server.kill();
    one.until_told("SET x 1", "+OK\r\n").await;
    assert_eq!(one.ask("SELECT 1").await, "+OK\r\n", "it needs no server");
    one.until_told("SET x 2", "+OK\r\n").await;
    assert_eq!(one.ask("GET k").await, "$3\r\none\r\n");
    assert_eq!(one.ask("SET k two").await, "+OK\r\n");
    let mut late = world.client();
    assert_eq!(late.ask("GET k").await, "$4\r\nzero\r\n");
    assert_eq!(late.ask("SELECT 1").await, "+OK\r\n");
    assert_eq!(late.ask("GET k").await, "$3\r\ntwo\r\n", "the queued write of another client");
    assert!(late.ask("SELECT 5").await.starts_with("-LOADING"), "no backend has that one");
    world.server.restart().await;
    until("all is applied", async || world.waiting() == 0).await;
    assert_eq!(world.in_database(1, "k").await, "$3\r\ntwo\r\n");
    assert_eq!(world.in_database(1, "x").await, "$1\r\n2\r\n");
    assert_eq!(world.in_database(0, "x").await, "$1\r\n1\r\n");
}
