//! Clients that have a connection of their own, when something goes wrong.

use super::*;

mod lost;
mod refused;
mod unblocked;

impl World {
    /// Names of the connections at the server that block.
    async fn blocked(&self) -> usize {
        let list = self.server.ask(&["CLIENT", "LIST"]).await;
        String::from_utf8_lossy(&list).lines().filter(|line| line.contains("cmd=blpop")).count()
    }

    /// How many clients wait at the server now.
    async fn waiting_there(&self) -> usize {
        // CLIENT LIST would show what a connection has done last, also when that is over.
        let info = self.server.ask(&["INFO", "clients"]).await;
        let info = String::from_utf8_lossy(&info).into_owned();
        let count = info.lines().find_map(|line| line.strip_prefix("blocked_clients:"));
        count.and_then(|count| count.trim().parse().ok()).expect("a number")
    }

    fn pinned(&self) -> u64 {
        self.door.view().connections.pinned
    }

    fn parked(&self) -> u64 {
        self.door.view().connections.parked
    }

    /// Connections at the server.
    async fn connections(&self) -> usize {
        let list = self.server.ask(&["CLIENT", "LIST"]).await;
        String::from_utf8_lossy(&list).lines().filter(|line| line.contains("cmd=")).count()
    }
}

async fn pipeline(client: &mut Wire, commands: &[&str]) {
    let words = |it: &&str| resp::command(&it.split(' ').collect::<Vec<_>>()).to_vec();
    client.send(&commands.iter().flat_map(words).collect::<Vec<_>>()).await;
}

#[tokio::test]
async fn who_hangs_up_while_it_waits_gets_nothing_and_keeps_nothing() {
    let world = World::open().await;
    let mut client = world.client();
    pipeline(&mut client, &["BLPOP jobs 0"]).await;
    until("it blocks", async || world.blocked().await == 1).await;
    drop(client);
    until("its connection is closed", async || world.blocked().await == 0).await;
    world.server.ask(&["RPUSH", "jobs", "j"]).await;
    assert_eq!(world.server.ask(&["LLEN", "jobs"]).await, ":1\r\n");
    until("its place is free", async || world.pinned() == 0).await;
}

#[tokio::test]
async fn after_a_loss_on_one_connection_the_others_go_on_at_once() {
    let world = World::with(PATIENCE, door()).await;
    let (mut blocked, mut other, mut third) = (world.client(), world.client(), world.client());
    assert_eq!(other.ask("SET n 1").await, "+OK\r\n");
    for _ in 0..3 {
        let mut victim = std::mem::replace(&mut blocked, world.client());
        pipeline(&mut victim, &["BLPOP jobs 0"]).await;
        until("it blocks", async || world.blocked().await == 1).await;
        world.server.ask(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]).await;
        until("it waits again", async || world.blocked().await == 1).await;
        drop(victim);
        let begun = tokio::time::Instant::now();
        third = world.client();
        assert_eq!(third.ask("MULTI").await, "+OK\r\n");
        assert_eq!(third.ask("INCR n").await, "+QUEUED\r\n");
        assert!(third.ask("EXEC").await.starts_with("*1"));
        assert!(other.ask("GET n").await.starts_with('$'));
        assert!(begun.elapsed() < PATIENCE / 4, "{:?}", begun.elapsed());
    }
    third.quiet();
}

#[tokio::test]
async fn nothing_of_a_transaction_is_run_whose_beginning_was_refused() {
    let settings = Settings { pinned: 1, ..door() };
    let world = World::with(Duration::from_secs(2), settings).await;
    let (mut holder, mut client) = (world.client(), world.client());
    assert_eq!(holder.ask("MULTI").await, "+OK\r\n");
    pipeline(&mut client, &["MULTI", "SET k 1", "NOSUCH", "GET k", "EXEC", "GET k"]).await;
    assert!(client.reply().await.starts_with(b"-ERR max number of clients"));
    for what in ["SET", "NOSUCH", "GET"] {
        let told = client.reply().await;
        assert!(told.starts_with(b"-"), "{what}: {told:?}");
    }
    assert!(client.reply().await.starts_with(b"-EXECABORT"));
    assert_eq!(client.reply().await, "$-1\r\n", "it is over, and nothing was written");
}

#[tokio::test]
async fn in_an_outage_what_belongs_to_a_connection_is_unavailable_and_so_is_what_follows() {
    let mut world = World::open().await;
    let mut clients: Vec<Wire> = (0..4).map(|_| world.client()).collect();
    for client in &mut clients {
        assert_eq!(client.ask("SET k 0").await, "+OK\r\n");
    }
    world.server.kill();
    let commands = [
        &["MULTI", "SET k 1", "INCR k", "EXEC"][..],
        &["SELECT 3", "SET k 3", "GET k"],
        &["SUBSCRIBE news"],
        &["WATCH k"],
    ];
    // The first finds out that nobody is there, the second time that the breaker is open.
    for _ in 0..2 {
        for (client, commands) in clients.iter_mut().zip(commands) {
            pipeline(client, commands).await;
            for command in commands {
                let told = client.reply().await;
                if told.is_empty() {
                    // If there is no reply that could say it, the end of the connection does.
                    assert_eq!(*command, "SUBSCRIBE news");
                    *client = world.client();
                    break;
                }
                let told = String::from_utf8_lossy(&told).into_owned();
                let aborted = *command == "EXEC" && told.starts_with("-EXECABORT");
                assert!(aborted || told.starts_with("-LOADING"), "{command}: {told}");
            }
        }
        for _ in 0..4 {
            drop(clients[0].ask("GET other").await);
        }
    }
    assert_eq!(world.waiting(), 0, "nothing is queued");
    world.server.restart().await;
    let [one, two, ..] = clients.as_mut_slice() else { panic!("four") };
    one.until_told("SET k 5", "+OK\r\n").await;
    until("it is applied", async || world.waiting() == 0).await;
    assert_eq!(world.server.value("k").await, "5");
    assert!(two.ask("SET k 6").await.starts_with("-LOADING"), "it is in no database that it knows");
    assert_eq!(two.ask("SELECT 0").await, "+OK\r\n");
    assert_eq!(two.ask("GET k").await, "$1\r\n5\r\n");
}

#[tokio::test]
async fn a_database_that_there_is_not_leaves_the_client_where_it_was() {
    let world = World::open().await;
    let mut client = world.client();
    assert_eq!(client.ask("SET k old").await, "+OK\r\n");
    assert_eq!(client.ask("GET k").await, "$3\r\nold\r\n");
    pipeline(&mut client, &["SELECT 999", "SET k new", "GET k"]).await;
    assert!(client.reply().await.starts_with(b"-ERR DB index is out of range"));
    assert_eq!(client.reply().await, "+OK\r\n");
    assert_eq!(client.reply().await, "$3\r\nnew\r\n");
    assert_eq!(world.client().ask("GET k").await, "$3\r\nnew\r\n");
    assert!(client.ask("CLIENT INFO").await.contains("db=0"));
}

#[tokio::test]
async fn a_subscription_that_is_refused_shifts_no_reply() {
    let world = World::open().await;
    for acl in ["SETUSER", "resetchannels"].windows(2) {
        world.server.ask(&["ACL", acl[0], "default", acl[1]]).await;
    }
    world.server.ask(&["MSET", "a", "AAA", "b", "BBB"]).await;
    let mut client = world.client();
    assert!(client.ask("HELLO 3").await.starts_with('%'));
    pipeline(&mut client, &["SUBSCRIBE ch", "GET a", "GET b"]).await;
    assert!(client.reply().await.starts_with(b"-NOPERM"));
    assert_eq!(client.reply().await, "$3\r\nAAA\r\n");
    assert_eq!(client.reply().await, "$3\r\nBBB\r\n");
    world.server.ask(&["ACL", "SETUSER", "default", "allchannels"]).await;
    pipeline(&mut client, &["SUBSCRIBE x y", "GET a", "UNSUBSCRIBE", "GET b"]).await;
    let kinds = [&b">3"[..], b">3", b"$3\r\nAAA", b">3", b">3", b"$3\r\nBBB"];
    for kind in kinds {
        let told = client.reply().await;
        assert!(told.starts_with(kind), "{told:?} instead of {kind:?}");
    }
    client.quiet();
}

#[tokio::test]
async fn who_listens_after_a_transaction_was_refused_hears_nothing_of_it() {
    let world = World::open().await;
    for _ in 0..50 {
        let mut client = world.client();
        assert_eq!(client.ask("MULTI").await, "+OK\r\n");
        assert!(client.ask("CLIENT SETNAME x").await.starts_with("-ERR"));
        pipeline(&mut client, &["EXEC", "SUBSCRIBE c"]).await;
        for told in [&b"-EXECABORT"[..], b"*3\r\n$9\r\nsubscribe"] {
            let reply = client.reply().await;
            assert!(reply.starts_with(told), "{reply:?}");
        }
    }
}

#[tokio::test]
async fn a_pinned_client_that_changes_its_protocol_is_answered_in_it() {
    let world = World::open().await;
    let mut client = world.client();
    client.ask("HSET h f v").await;
    assert_eq!(client.ask("SELECT 3").await, "+OK\r\n");
    assert_eq!(client.ask("SELECT 0").await, "+OK\r\n");
    for (hello, answer) in [("3", "%1"), ("2", "*2"), ("3", "%1")] {
        client.ask(&format!("HELLO {hello}")).await;
        let told = client.ask("HGETALL h").await;
        assert!(told.starts_with(answer), "HELLO {hello}: {told}");
    }
}

#[tokio::test]
async fn who_flushes_within_a_transaction_empties_the_cache_too() {
    let mut world = World::open().await;
    let mut client = world.client();
    assert_eq!(client.ask("SET k 1").await, "+OK\r\n");
    assert_eq!(client.ask("GET k").await, "$1\r\n1\r\n");
    for command in ["MULTI", "FLUSHALL", "EXEC"] {
        assert!(!client.ask(command).await.starts_with('-'), "{command}");
    }
    world.server.kill();
    world.client().until_told("GET k", "$-1\r\n").await;
}

#[tokio::test]
async fn a_consumer_may_have_the_name_of_an_option() {
    let world = World::with(PATIENCE, door()).await;
    world.server.ask(&["XGROUP", "CREATE", "s", "g", "$", "MKSTREAM"]).await;
    let (mut reader, mut other) = (world.client(), world.client());
    pipeline(&mut reader, &["XREADGROUP GROUP g STREAMS BLOCK 0 STREAMS s >"]).await;
    until("it blocks", async || {
        let list = world.server.ask(&["CLIENT", "LIST"]).await;
        String::from_utf8_lossy(&list).contains("cmd=xreadgroup")
    })
    .await;
    let begun = tokio::time::Instant::now();
    assert_eq!(other.ask("GET k").await, "$-1\r\n");
    assert!(begun.elapsed() < PATIENCE / 4);
    world.server.ask(&["XADD", "s", "1-1", "f", "v"]).await;
    assert!(reader.reply().await.starts_with(b"*1"));
}

#[tokio::test]
async fn what_was_lost_on_a_connection_of_its_own_counts_as_failures() {
    let world = World::with(Duration::from_millis(300), door()).await;
    let mut clients: Vec<Wire> = (0..6).map(|_| world.client()).collect();
    for client in &mut clients {
        assert_eq!(client.ask("SELECT 3").await, "+OK\r\n");
    }
    world.server.signal("STOP");
    for client in &mut clients {
        pipeline(client, &["SET k v"]).await;
    }
    for client in &mut clients {
        let told = client.reply().await;
        assert!(told.is_empty() || told.starts_with(b"-"), "{told:?}");
    }
    until("the breaker is open", async || {
        world.fusebox.backends()[0].view().breaker.state.to_string() == "OPEN"
    })
    .await;
    world.server.signal("CONT");
}

#[tokio::test]
async fn a_listener_becomes_an_ordinary_client_whatever_it_hears_meanwhile() {
    let world = World::open().await;
    world.server.ask(&["MSET", "a", "AAA", "b", "BBB"]).await;
    let mut loud = world.client();
    for round in 0..200 {
        let mut client = world.client();
        assert!(client.ask("SUBSCRIBE x y").await.starts_with("*3"));
        assert!(client.reply().await.starts_with(b"*3"));
        pipeline(&mut loud, &["PUBLISH x m1", "PUBLISH y m2"]).await;
        pipeline(&mut client, &["PING", "UNSUBSCRIBE", "GET a", "GET b"]).await;
        let (mut confirmed, mut got) = (0, Vec::new());
        while got.len() < 2 {
            let told = client.reply().await;
            if told.starts_with(b"*3\r\n$11\r\nunsubscribe") {
                confirmed += 1;
            } else if told.starts_with(b"$") {
                got.push(told);
            } else {
                assert!(
                    told.starts_with(b"*3\r\n$7\r\nmessage")
                        || told.starts_with(b"*2\r\n$4\r\npong"),
                    "{told:?}"
                );
            }
        }
        assert_eq!(
            (confirmed, got),
            (2, vec!["$3\r\nAAA\r\n".into(), "$3\r\nBBB\r\n".into()]),
            "round {round}"
        );
        for _ in 0..2 {
            assert!(loud.reply().await.starts_with(b":"));
        }
        client.quiet();
    }
}

#[tokio::test]
async fn what_stands_behind_a_command_that_waits_holds_no_place() {
    let world = World::with(PATIENCE, door()).await;
    let (mut waits, mut other) = (world.client(), world.client());
    let mut commands = vec!["XREAD BLOCK 0 STREAMS s $"];
    commands.extend([&"GET k"; 100]);
    pipeline(&mut waits, &commands).await;
    until("it waits", async || {
        let list = world.server.ask(&["CLIENT", "LIST"]).await;
        String::from_utf8_lossy(&list).contains("cmd=xread")
    })
    .await;
    let begun = tokio::time::Instant::now();
    assert_eq!(other.ask("SET k v").await, "+OK\r\n");
    assert_eq!(other.ask("GET k").await, "$1\r\nv\r\n");
    assert!(begun.elapsed() < PATIENCE / 4, "{:?}", begun.elapsed());
    world.server.ask(&["XADD", "s", "1-1", "f", "v"]).await;
    assert!(waits.reply().await.starts_with(b"*1"));
    for _ in 0..100 {
        assert_eq!(waits.reply().await, "$1\r\nv\r\n");
    }
}

#[tokio::test]
async fn who_hangs_up_with_much_behind_what_it_waits_for_keeps_nothing_either() {
    let world = World::open().await;
    let large = format!("SET large {}", "x".repeat(1_500_000));
    for behind in [vec!["ECHO x"; 1_100], vec![&*large]] {
        let mut client = world.client();
        pipeline(&mut client, &[vec!["BLPOP jobs 0"], behind].concat()).await;
        until("it blocks", async || world.blocked().await == 1).await;
        drop(client);
        until("its connection is closed", async || world.blocked().await == 0).await;
        assert_eq!(world.server.ask(&["RPUSH", "jobs", "j"]).await, ":1\r\n");
        assert_eq!(world.server.ask(&["LPOP", "jobs"]).await, "$1\r\nj\r\n");
    }
}

#[tokio::test]
async fn a_refused_multi_bars_its_transaction_and_no_more() {
    let settings = Settings { pinned: 1, ..door() };
    let world = World::with(Duration::from_secs(2), settings).await;
    let (mut holder, mut client) = (world.client(), world.client());
    assert_eq!(holder.ask("MULTI").await, "+OK\r\n");
    assert!(client.ask("MULTI").await.starts_with("-ERR max number"));
    assert!(client.ask("SET k 1").await.starts_with("-LOADING"), "it may be a part of it");
    drop(holder);
    until("there is room", async || world.pinned() == 0).await;
    // A client that has read the error and begins again.
    assert_eq!(client.ask("MULTI").await, "+OK\r\n");
    assert_eq!(client.ask("SET k 2").await, "+QUEUED\r\n");
    assert_eq!(client.ask("EXEC").await, "*1\r\n+OK\r\n");
    // And one that gives up, and is used for something else later.
    let (mut holder, mut other) = (world.client(), world.client());
    assert_eq!(holder.ask("MULTI").await, "+OK\r\n");
    assert!(other.ask("MULTI").await.starts_with("-ERR max number"));
    drop(holder);
    other.until_told("GET k", "$1\r\n2\r\n").await;
}

#[tokio::test]
async fn answers_of_the_door_keep_their_place_among_the_servers() {
    let world = World::open().await;
    world.server.ask(&["ACL", "SETUSER", "default", "resetchannels"]).await;
    let mut client = world.client();
    assert!(client.ask("HELLO 3").await.starts_with('%'));
    pipeline(&mut client, &["SUBSCRIBE ch", "ECHO e"]).await;
    assert!(client.reply().await.starts_with(b"-NOPERM"));
    assert_eq!(client.reply().await, "$1\r\ne\r\n");
    world.server.ask(&["ACL", "SETUSER", "default", "allchannels"]).await;
    pipeline(&mut client, &["CLIENT REPLY SKIP", "SUBSCRIBE ch", "ECHO one"]).await;
    assert!(client.reply().await.starts_with(b">3"));
    assert_eq!(client.reply().await, "$3\r\none\r\n");
    let mut second = world.client();
    pipeline(&mut second, &["SUBSCRIBE x", "CLIENT TRACKING ON", "QUIT"]).await;
    for told in [&b"*3\r\n$9\r\nsubscribe"[..], b"-ERR Can't execute", b"+OK", b""] {
        let reply = second.reply().await;
        assert!(reply.starts_with(told) && (!told.is_empty() || reply.is_empty()), "{reply:?}");
    }
}

#[tokio::test]
async fn a_copy_into_the_configured_database_drops_what_is_cached_there() {
    let mut world = World::open().await;
    let (mut client, mut other) = (world.client(), world.client());
    assert_eq!(client.ask("SET k old").await, "+OK\r\n");
    assert_eq!(client.ask("GET k").await, "$3\r\nold\r\n");
    assert_eq!(other.ask("SELECT 3").await, "+OK\r\n");
    assert_eq!(other.ask("SET k new").await, "+OK\r\n");
    assert_eq!(other.ask("COPY k k DB 0 REPLACE").await, ":1\r\n");
    world.server.kill();
    client.until_told("GET k", "$-1\r\n").await;
}

#[tokio::test]
async fn a_wrong_command_empties_no_cache() {
    let mut world = World::open().await;
    let mut client = world.client();
    assert_eq!(client.ask("SET k v").await, "+OK\r\n");
    assert_eq!(client.ask("GET k").await, "$1\r\nv\r\n");
    assert_eq!(client.ask("MGET l").await, "*1\r\n$-1\r\n");
    assert_eq!(client.ask("SET l w").await, "+OK\r\n");
    assert_eq!(client.ask("MGET l").await, "*1\r\n$1\r\nw\r\n");
    assert!(client.ask("BLMPOP 1 x k LEFT").await.starts_with("-ERR"));
    world.server.kill();
    let mut later = world.client();
    later.until_told("GET k", "$1\r\nv\r\n").await;
    assert_eq!(later.ask("GET l").await, "$1\r\nw\r\n", "one key fills the cache as several do");
}

#[tokio::test]
async fn a_transaction_that_may_have_run_is_told_as_such() {
    let world = World::with(Duration::from_millis(500), door()).await;
    let mut client = world.client();
    assert_eq!(client.ask("MULTI").await, "+OK\r\n");
    assert_eq!(client.ask("INCR n").await, "+QUEUED\r\n");
    world.server.signal("STOP");
    pipeline(&mut client, &["EXEC"]).await;
    let told = client.reply().await;
    assert!(told.starts_with(b"-FUSEBOX UNKNOWN"), "{told:?}");
    assert_eq!(client.reply().await, "", "its connection's state is gone");
    world.server.signal("CONT");
}

#[tokio::test]
async fn what_was_sent_before_half_of_a_connection_was_closed_is_carried_out() {
    let world = World::open().await;
    let mut client = world.client();
    pipeline(&mut client, &["SET a 1", "SELECT 3", "SET b 2", "GET b"]).await;
    client.stream.shutdown().await.unwrap();
    for told in ["+OK\r\n", "+OK\r\n", "+OK\r\n", "$1\r\n2\r\n", ""] {
        assert_eq!(client.reply().await, told);
    }
}

#[tokio::test]
async fn what_is_held_on_connections_of_their_own_counts_at_the_door() {
    let settings = Settings { in_bytes: 8 << 20, request_max: 4 << 20, ..door() };
    let world = World::with(PATIENCE, settings).await;
    let value = "x".repeat(3 << 20);
    let set = resp::command(&["SET", "k", &value]);
    let mut clients: Vec<Wire> = (0..6).map(|_| world.client()).collect();
    for client in &mut clients {
        assert_eq!(client.ask("MULTI").await, "+OK\r\n");
    }
    world.server.signal("STOP");
    // Each sends until its connection ends: how much the kernel takes for a server that reads
    // nothing is another on each machine.
    let mut sending = tokio::task::JoinSet::new();
    for mut client in clients {
        let set = set.clone();
        sending.spawn(async move { while client.stream.write_all(&set).await.is_ok() {} });
    }
    until("the door is full", async || world.door.view().buffered_in >= 8 << 20).await;
    // Those may all wait for their own connections. Who comes now has nothing to wait for but room.
    let mut late = world.client();
    sending.spawn(async move { while late.stream.write_all(&set).await.is_ok() {} });
    until("some were sent away", async || world.closed("no_room") > 0).await;
    world.server.signal("CONT");
}

#[tokio::test]
async fn a_connection_of_its_own_is_given_back_once_nothing_is_left_on_it() {
    let settings = Settings { pinned: 1, ..door() };
    let world = World::with(PATIENCE, settings).await;
    let (mut one, mut two) = (world.client(), world.client());
    let mut connections = None;
    for round in 0..20 {
        for client in [&mut one, &mut two] {
            assert_eq!(client.ask("MULTI").await, "+OK\r\n", "round {round}");
            assert_eq!(client.ask("INCR n").await, "+QUEUED\r\n");
            assert!(client.ask("EXEC").await.starts_with("*1"));
            assert_eq!(client.ask("BLPOP nothing 0.01").await, "*-1\r\n");
            assert_eq!(client.ask("WATCH n").await, "+OK\r\n");
            assert_eq!(client.ask("UNWATCH").await, "+OK\r\n");
            assert!(client.ask("GET n").await.starts_with('$'));
            until("it is given back", async || world.pinned() == 0).await;
            let now = world.connections().await;
            assert_eq!(*connections.get_or_insert(now), now, "it is used again");
        }
    }
    assert_eq!(world.server.value("n").await, "40");
    // What is left on it keeps it.
    for (leaves, ends) in [("WATCH n", "UNWATCH"), ("SELECT 3", "SELECT 0"), ("MULTI", "DISCARD")] {
        assert_eq!(one.ask(leaves).await, "+OK\r\n");
        drop(one.ask("PING").await);
        assert_eq!(world.pinned(), 1, "{leaves}");
        assert!(two.ask("MULTI").await.starts_with("-ERR max number"), "{leaves}");
        assert!(two.ask("DISCARD").await.starts_with("+OK"));
        assert_eq!(one.ask(ends).await, "+OK\r\n");
        until(ends, async || world.pinned() == 0).await;
    }
    assert!(one.ask("SUBSCRIBE c").await.starts_with("*3"));
    assert_eq!(world.pinned(), 1);
    assert!(one.ask("UNSUBSCRIBE").await.starts_with("*3"));
    until("it does not listen", async || world.pinned() == 0).await;
    // One that is nobody's makes room for one of the other protocol.
    assert!(two.ask("HELLO 3").await.starts_with('%'));
    assert_eq!(two.ask("BLPOP nothing 0.01").await, "_\r\n");
    until("it is given back", async || world.pinned() == 0).await;
}

#[tokio::test]
async fn who_waits_for_a_job_waits_on_while_the_server_is_away() {
    let mut world = World::open().await;
    let (mut before, mut brief, mut lasting) = (world.client(), world.client(), world.client());
    assert!(lasting.ask("HELLO 3").await.starts_with('%'));
    pipeline(&mut before, &["BLPOP first 0", "GET k"]).await;
    until("it blocks", async || world.blocked().await == 1).await;
    world.server.kill();
    until("it is parked", async || world.parked() == 1).await;
    for _ in 0..2 {
        let begun = tokio::time::Instant::now();
        assert_eq!(brief.ask("BLPOP jobs 0.4").await, "*-1\r\n");
        let took = begun.elapsed();
        assert!((0.39..1.5).contains(&took.as_secs_f64()), "{took:?}");
        // Now that the breaker is open.
        for _ in 0..4 {
            drop(world.client().ask("GET other").await);
        }
    }
    assert_eq!(brief.ask("FUSEBOX LAST").await.lines().nth(2), Some("empty"));
    pipeline(&mut lasting, &["XREAD BLOCK 600000 STREAMS s 0"]).await;
    until("both are parked", async || world.parked() == 2).await;
    world.server.restart().await;
    until("it blocks again", async || world.blocked().await == 1).await;
    world.server.ask(&["RPUSH", "first", "j"]).await;
    world.server.ask(&["XADD", "s", "1-1", "f", "v"]).await;
    assert_eq!(before.reply().await, "*2\r\n$5\r\nfirst\r\n$1\r\nj\r\n");
    assert_eq!(before.reply().await, "$-1\r\n", "what stood behind it");
    assert!(lasting.reply().await.starts_with(b"%1"));
    until("nobody waits", async || (world.parked(), world.pinned()) == (0, 0)).await;
}

#[tokio::test]
async fn the_time_of_a_command_that_waits_ends_while_the_server_is_frozen() {
    let world = World::with(Duration::from_millis(300), door()).await;
    let mut client = world.client();
    pipeline(&mut client, &["BLPOP jobs 0.5"]).await;
    until("it blocks", async || world.blocked().await == 1).await;
    world.server.signal("STOP");
    assert_eq!(client.reply().await, "*-1\r\n");
    world.server.signal("CONT");
    assert!(client.ask("LLEN jobs").await.starts_with(':'), "the client was not disconnected");
}

#[tokio::test]
async fn who_hangs_up_while_it_is_parked_is_gone() {
    let mut world = World::open().await;
    world.server.kill();
    let mut client = world.client();
    pipeline(&mut client, &["BLPOP jobs 0"]).await;
    until("it is parked", async || world.parked() == 1).await;
    drop(client);
    until("it is gone", async || world.parked() == 0).await;
    world.server.restart().await;
    let mut other = world.client();
    other.until_told("RPUSH jobs j", ":1\r\n").await;
    assert_eq!(other.ask("LLEN jobs").await, ":1\r\n");
    until("nobody waits", async || world.blocked().await == 0).await;
}

#[tokio::test]
async fn what_counts_the_writes_of_one_connection_is_refused_where_clients_share_theirs() {
    let world = World::open().await;
    let mut client = world.client();
    for command in ["WAIT 0 10", "WAITAOF 0 0 10"] {
        let told = client.ask(command).await;
        assert!(told.starts_with("-ERR"), "{told}");
    }
    assert_eq!(client.ask("SELECT 3").await, "+OK\r\n");
    assert_eq!(client.ask("WAIT 0 10").await, ":0\r\n", "all that it writes goes over it");
}

#[tokio::test]
async fn what_is_watched_stays_watched_when_a_transaction_that_was_not_begun_is_ended() {
    let world = World::open().await;
    let (mut client, mut other) = (world.client(), world.client());
    for end in ["EXEC", "DISCARD"] {
        assert_eq!(client.ask("WATCH k").await, "+OK\r\n");
        assert!(client.ask(end).await.starts_with("-ERR"), "{end} without MULTI");
        assert_eq!(client.ask("GET n").await, "$-1\r\n");
        assert_eq!(other.ask("SET k v").await, "+OK\r\n");
        assert_eq!(client.ask("MULTI").await, "+OK\r\n");
        assert_eq!(client.ask("SET l v").await, "+QUEUED\r\n");
        assert_eq!(client.ask("EXEC").await, "*-1\r\n", "{end}");
    }
}

#[tokio::test]
async fn a_transaction_that_comes_whole_needs_no_connection_of_its_own() {
    let mut world = World::with(PATIENCE, Settings { pinned: 0, ..door() }).await;
    let mut clients: Vec<Wire> = (0..3).map(|_| world.client()).collect();
    assert!(
        clients[0].ask("MULTI").await.starts_with("-ERR max number"),
        "one that comes in pieces"
    );
    assert_eq!(clients[0].ask("DISCARD").await, "+OK\r\n");
    assert!(clients[1].ask("HELLO 3").await.starts_with('%'));
    for round in 0..50 {
        for client in &mut clients {
            pipeline(
                client,
                &["INCR n", "MULTI", "INCR n", "HSET h f v", "INCR n", "EXEC", "GET k"],
            )
            .await;
        }
        for client in &mut clients {
            assert!(client.reply().await.starts_with(b":"));
            for told in ["+OK\r\n", "+QUEUED\r\n", "+QUEUED\r\n", "+QUEUED\r\n"] {
                assert_eq!(client.reply().await, told);
            }
            let told = client.reply().await;
            let numbers: Vec<i64> = resp::Reply::of(&told)
                .and_then(|reply| reply.items())
                .unwrap()
                .filter_map(|item| match resp::Reply::of(item) {
                    Some(resp::Reply::Int(number)) => Some(number),
                    _ => None,
                })
                .collect();
            let [first, _, second] = numbers.as_slice() else { panic!("{told:?}") };
            assert_eq!(*second, first + 1, "round {round}: nothing of others is between");
            let nil = client.reply().await;
            assert!(nil == "$-1\r\n" || nil == "_\r\n", "{nil:?}");
        }
    }
    assert_eq!(world.server.value("n").await, "450");
    let [one, _, three] = clients.as_mut_slice() else { panic!("three") };
    // An error among its replies, and one that the whole is refused with.
    pipeline(one, &["MULTI", "INCR h", "SET k v", "EXEC"]).await;
    for told in ["+OK\r\n", "+QUEUED\r\n", "+QUEUED\r\n"] {
        assert_eq!(one.reply().await, told);
    }
    assert!(one.reply().await.starts_with(b"*2\r\n-WRONGTYPE"));
    world.server.ask(&["ACL", "SETUSER", "default", "-append"]).await;
    pipeline(three, &["MULTI", "APPEND k x", "EXEC", "GET k"]).await;
    assert_eq!(three.reply().await, "+OK\r\n");
    assert!(three.reply().await.starts_with(b"-NOPERM"));
    assert!(three.reply().await.starts_with(b"-EXECABORT"));
    assert_eq!(three.reply().await, "$1\r\nv\r\n");
    // What it writes is cached no more.
    pipeline(three, &["MULTI", "SET k w", "EXEC"]).await;
    for told in ["+OK\r\n", "+QUEUED\r\n", "*1\r\n+OK\r\n"] {
        assert_eq!(three.reply().await, told);
    }
    world.server.kill();
    three.until_told("GET k", "$-1\r\n").await;
}

#[tokio::test]
async fn a_transaction_that_came_whole_and_may_have_run_is_told_as_such() {
    let world = World::with(Duration::from_millis(500), Settings { pinned: 0, ..door() }).await;
    let mut client = world.client();
    assert_eq!(client.ask("SET k v").await, "+OK\r\n");
    world.server.signal("STOP");
    pipeline(&mut client, &["MULTI", "INCR n", "INCR n", "EXEC", "ECHO e"]).await;
    for told in ["+OK\r\n", "+QUEUED\r\n", "+QUEUED\r\n"] {
        assert_eq!(client.reply().await, told);
    }
    let told = client.reply().await;
    assert!(told.starts_with(b"-FUSEBOX UNKNOWN"), "{told:?}");
    assert_eq!(client.reply().await, "$1\r\ne\r\n", "nothing is gone with it");
    world.server.signal("CONT");
}

#[tokio::test]
async fn a_reply_that_nests_deep_disconnects_nobody() {
    let world = World::open().await;
    let (mut client, mut other) = (world.client(), world.client());
    let script = "local a={} local b={a} a[1]=b return a";
    client.send(&resp::command(&["EVAL", script, "0"])).await;
    for number in 1..20 {
        assert_eq!(other.ask("INCR n").await, format!(":{number}\r\n"));
    }
    assert!(client.reply().await.starts_with(b"*1\r\n*1\r\n"));
    // What a script says itself.
    for (script, told) in [
        ("return redis.error_reply('MYERR x')", "-MYERR x"),
        ("return redis.call('incr', 'h')", "-WRONGTYPE"),
        ("nonsense", "-ERR Error compiling script"),
    ] {
        world.server.ask(&["HSET", "h", "f", "v"]).await;
        client.send(&resp::command(&["EVAL", script, "0"])).await;
        let reply = client.reply().await;
        assert!(reply.starts_with(told.as_bytes()), "{reply:?}");
    }
}

#[tokio::test]
async fn clients_are_listed_as_a_server_lists_them() {
    let world = World::open().await;
    let (mut one, mut two) = (world.client(), world.client());
    assert_eq!(one.ask("CLIENT SETNAME worker").await, "+OK\r\n");
    assert!(two.ask("SUBSCRIBE c").await.starts_with("*3"));
    let list = one.ask("CLIENT LIST").await;
    assert_eq!(list.matches("id=").count(), 2, "{list}");
    assert!(list.contains(" name=worker ") && list.contains(" addr=unix:0 "), "{list}");
    assert!(!one.ask("CLIENT LIST TYPE pubsub").await.contains("worker"));
    let id = one.ask("CLIENT ID").await.trim().trim_start_matches(':').to_owned();
    let alone = one.ask(&format!("CLIENT LIST ID {id}")).await;
    assert!(alone.contains(&format!("id={id} ")) && alone.matches("id=").count() == 1, "{alone}");
    assert!(one.ask("CLIENT LIST TYPE x").await.starts_with("-ERR Unknown client type 'x'"));
    assert!(one.ask("CLIENT LIST NO").await.starts_with("-ERR syntax error"));
}

#[tokio::test]
async fn a_client_is_unblocked_and_killed_by_the_number_that_the_door_gave_it() {
    let mut world = World::open().await;
    let (mut waits, mut other) = (world.client(), world.client());
    let id = waits.ask("CLIENT ID").await.trim().trim_start_matches(':').to_owned();
    assert_eq!(other.ask(&format!("CLIENT UNBLOCK {id}")).await, ":0\r\n", "it does not wait");
    for (how, told) in [("", "*-1\r\n"), (" TIMEOUT", "*-1\r\n"), (" ERROR", "-UNBLOCKED")] {
        pipeline(&mut waits, &["BLPOP jobs 0"]).await;
        until("it blocks", async || world.waiting_there().await == 1).await;
        assert_eq!(other.ask(&format!("CLIENT UNBLOCK {id}{how}")).await, ":1\r\n");
        assert!(waits.reply().await.starts_with(told.as_bytes()), "{how}");
    }
    world.server.kill();
    for (how, told) in [("", "*-1\r\n"), (" ERROR", "-UNBLOCKED")] {
        pipeline(&mut waits, &["BLPOP jobs 0"]).await;
        until("it is parked", async || world.parked() == 1).await;
        assert_eq!(other.ask(&format!("CLIENT UNBLOCK {id}{how}")).await, ":1\r\n");
        assert!(waits.reply().await.starts_with(told.as_bytes()), "{how}");
        assert_eq!(world.parked(), 0);
    }
    assert_eq!(other.ask(&format!("CLIENT KILL ID {id}")).await, ":1\r\n");
    assert_eq!(waits.reply().await, "");
    assert_eq!(other.ask(&format!("CLIENT KILL ID {id}")).await, ":0\r\n");
    assert!(other.ask("CLIENT KILL ID 5").await.starts_with("-NOPERM"), "the server's own");
}

#[tokio::test]
async fn a_transaction_that_the_server_did_not_end_is_nobody_elses() {
    let world = World::with(PATIENCE, door()).await;
    let (mut one, mut two) = (world.client(), world.client());
    assert_eq!(one.ask("MULTI").await, "+OK\r\n");
    assert!(one.ask("DISCARD foo").await.starts_with("-ERR wrong number"));
    assert_eq!(two.ask("BLPOP nothing 0.01").await, "*-1\r\n");
    assert_eq!(one.ask("SET k v").await, "+QUEUED\r\n", "it goes on");
    assert!(one.ask("EXEC foo").await.starts_with("-EXECABORT"));
    assert_eq!(one.ask("GET k").await, "$-1\r\n");
    assert_eq!(two.ask("BLPOP nothing 0.01").await, "*-1\r\n");
    // One that may not end it is disconnected.
    world.server.ask(&["ACL", "SETUSER", "default", "-discard"]).await;
    assert_eq!(one.ask("MULTI").await, "+OK\r\n");
    assert!(one.ask("DISCARD").await.starts_with("-NOPERM"));
    assert_eq!(one.reply().await, "");
    assert_eq!(two.ask("BLPOP nothing 0.01").await, "*-1\r\n");
}

#[tokio::test]
async fn an_error_before_a_subscription_is_told_before_it() {
    let world = World::open().await;
    assert_eq!(world.server.ask(&["SET", "str", "v"]).await, "+OK\r\n");
    for hello in ["2", "3"] {
        let mut client = world.client();
        client.ask(&format!("HELLO {hello}")).await;
        assert_eq!(client.ask("WATCH k").await, "+OK\r\n");
        pipeline(&mut client, &["LPUSH str x", "SUBSCRIBE c"]).await;
        assert!(client.reply().await.starts_with(b"-WRONGTYPE"));
        assert!(client.reply().await.ends_with(b":1\r\n"));
    }
}

#[tokio::test]
async fn who_waits_for_what_comes_from_now_on_is_not_asked_again() {
    let world = World::open().await;
    let mut client = world.client();
    pipeline(&mut client, &["XREAD BLOCK 60000 STREAMS s $"]).await;
    until("it waits", async || {
        let list = world.server.ask(&["CLIENT", "LIST"]).await;
        String::from_utf8_lossy(&list).contains("cmd=xread")
    })
    .await;
    world.server.ask(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]).await;
    let told = client.reply().await;
    assert!(told.is_empty() || told.starts_with(b"-"), "{told:?}");
    assert_eq!(world.parked(), 0);
}
