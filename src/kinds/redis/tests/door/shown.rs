//! What a door shows of itself, and what it leaves to others.

use fusebox_actors::metrics::Format;

use super::*;

#[tokio::test]
async fn the_oldest_command_that_waits_for_the_server_is_shown() {
    let mut world = World::open().await;
    let mut client = world.client();
    assert_eq!(client.ask("SET k 0").await, "+OK\r\n");
    assert_eq!(world.door.view().oldest_parked_ms, None);
    world.server.kill();
    client.send(&resp::command(&["BLPOP", "jobs", "0"])).await;
    until("it waits", async || world.door.view().parked == 1).await;
    let is_old = async || world.door.view().oldest_parked_ms.is_some_and(|age| age >= 20);
    until("it grows old", is_old).await;
    drop(client);
    until("it is gone", async || world.door.view().parked == 0).await;
    assert_eq!(world.door.view().oldest_parked_ms, None);
}

#[tokio::test]
async fn a_door_measures_its_own_time_of_some_requests() {
    let world = World::open().await;
    let count = || {
        let page = world.fusebox.metrics(Format::Prometheus);
        let line = "fusebox_door_overhead_seconds_count{door=\"unix:/test\"} ";
        let counts = page.lines().find_map(|text| text.strip_prefix(line));
        counts.map_or(0, |count| count.parse::<u64>().unwrap())
    };
    let mut client = world.client();
    for _ in 0..200 {
        assert_eq!(client.ask("SET k 0").await, "+OK\r\n");
    }
    until("three of 200 are measured", async || count() == 3).await;
}

#[tokio::test]
async fn an_error_says_by_which_door_its_call_came() {
    let mut world = World::open().await;
    let mut client = world.client();
    assert_eq!(client.ask("SET k 0").await, "+OK\r\n");
    world.server.kill();
    let told = client.ask("INCR k").await;
    assert!(told.starts_with("-LOADING") || told.starts_with("-FUSEBOX"), "{told}");
    let explained = world.fusebox.backend("redis").unwrap().explain();
    let doors: Vec<_> = explained.last_errors.iter().map(|error| error.door.as_deref()).collect();
    assert!(doors.contains(&Some("unix:/test")), "{doors:?}");
    let story = explained.story.iter().map(|part| part.whole().to_owned()).collect::<String>();
    assert!(story.contains("of a call by the door unix:/test"), "{story}");
}

#[tokio::test]
async fn what_a_read_of_nothing_is_answered_in_an_outage_is_the_doors_setting() {
    let commands = ["GET none", "MGET none", "HGET none f", "HMGET none f", "HGETALL none"];
    for (on_miss, with_nil) in [(OnMiss::Get, 2), (OnMiss::Nil, 5), (OnMiss::Error, 0)] {
        let settings = Settings { on_miss, ..door() };
        let mut world = World::with(Duration::from_secs(2), settings).await;
        let mut client = world.client();
        assert_eq!(client.ask("SET k 0").await, "+OK\r\n");
        world.server.kill();
        for (at, command) in commands.iter().enumerate() {
            let told = client.ask(command).await;
            assert_eq!(!told.starts_with('-'), at < with_nil, "{on_miss:?} {command}: {told}");
            if *command == "HGETALL none" && at < with_nil {
                assert_eq!(told, "*0\r\n", "nothing, in the client's own protocol");
            }
        }
        // Whether somebody is a member is never guessed.
        assert!(client.ask("SISMEMBER none m").await.starts_with('-'), "{on_miss:?}");
    }
}

#[tokio::test]
async fn connections_of_single_clients_leave_some_of_the_servers_to_others() {
    let server = Server::start_with(&["--maxclients", "40"]).await;
    let timeout = Duration::from_secs(2);
    let world = World::before(server, None, timeout, door(), &[("redis", 0)]).await;
    let mut first = world.client();
    assert_eq!(first.ask("SET k 0").await, "+OK\r\n");
    // Of 40 connections 16 are left to others.
    let mut own: Vec<Wire> = (0..24).map(|_| world.client()).collect();
    for client in &mut own {
        assert_eq!(client.ask("WATCH k").await, "+OK\r\n");
    }
    let told = first.ask("WATCH k").await;
    assert!(told.starts_with("-ERR max number of clients reached"), "{told}");
    assert_eq!(
        world.server.ask(&["PING"]).await,
        &b"+PONG\r\n"[..],
        "another program still connects"
    );
    assert_eq!(first.ask("GET k").await, "$1\r\n0\r\n", "what is shared still works");
}
