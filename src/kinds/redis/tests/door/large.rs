//! Replies that are larger than what the door holds of one: they are handed on piece by piece.

use super::*;

/// The size of the large value, in bytes.
const VALUE: usize = 40 << 20;
/// The size of one that is just large enough that its client has to read it, in bytes.
const SMALLER: usize = 4 << 20;

impl World {
    async fn with_large_value(out_client: usize) -> Self {
        let world = Self::with(Duration::from_secs(5), Settings { out_client, ..door() }).await;
        world.sets_large(VALUE).await;
        world
    }

    /// Before a server that takes so many connections.
    async fn with_connections(maxclients: &str, timeout: Duration) -> Self {
        let server = Server::start_with(&["--maxclients", maxclients]).await;
        let world = Self::before(server, None, timeout, door(), &[("redis", 0)]).await;
        world.sets_large(SMALLER).await;
        world
    }

    async fn sets_large(&self, size: usize) {
        let script = format!("redis.call('set', 'large', string.rep('x', {size}))");
        self.server.ask(&["EVAL", &script, "0"]).await;
    }
}

impl Wire {
    async fn ask_together(&mut self, commands: &[&str]) {
        let words = |it: &&str| resp::command(&it.split(' ').collect::<Vec<_>>()).to_vec();
        self.send(&commands.iter().flat_map(words).collect::<Vec<_>>()).await;
    }

    /// Reads the beginning of the large value.
    async fn begins(&mut self) {
        self.begins_with(VALUE).await;
    }

    /// The same of one of this size.
    async fn begins_with(&mut self, size: usize) {
        let expected = format!("${size}\r\n");
        let mut head = vec![0; expected.len()];
        timeout(PATIENCE, self.stream.read_exact(&mut head)).await.unwrap().unwrap();
        assert_eq!(head, expected.as_bytes());
    }

    /// Reads all of the smaller one in pieces, without a pause.
    async fn reads_smaller(&mut self) {
        self.begins_with(SMALLER).await;
        self.reads_rest_of_smaller().await;
    }

    async fn reads_rest_of_smaller(&mut self) {
        let mut piece = vec![0; 64 << 10];
        for _ in 0..SMALLER / piece.len() {
            timeout(PATIENCE, self.stream.read_exact(&mut piece)).await.unwrap().unwrap();
            assert!(piece.iter().all(|byte| *byte == b'x'));
        }
        let mut end = [0; 2];
        timeout(PATIENCE, self.stream.read_exact(&mut end)).await.unwrap().unwrap();
        assert_eq!(end, *b"\r\n");
    }

    /// Reads the rest of it.
    async fn ends(&mut self) {
        let mut rest = vec![0; VALUE + 2];
        timeout(PATIENCE, self.stream.read_exact(&mut rest)).await.unwrap().unwrap();
        assert!(rest.ends_with(b"x\r\n") && rest[..VALUE].iter().all(|byte| *byte == b'x'));
    }
}

#[tokio::test]
async fn a_value_that_is_larger_than_what_a_client_may_be_owed_is_read_whole() {
    let world = World::with_large_value(4 << 20).await;
    for number in 0..40 {
        let item = format!("{number:03}").repeat(100_000);
        world.server.ask(&["RPUSH", "list", &item]).await;
    }
    let (mut slow, mut other) = (world.client(), world.client());
    for round in 0..3 {
        // What was asked with it is answered behind it; others are not held up while it is not read.
        slow.ask_together(&["GET large", "ECHO a", "GET small", "LLEN list"]).await;
        slow.begins().await;
        let begun = tokio::time::Instant::now();
        for _ in 0..20 {
            assert_eq!(other.ask("SET k v").await, "+OK\r\n");
            assert_eq!(other.ask("GET k").await, "$1\r\nv\r\n");
        }
        assert!(begun.elapsed() < PATIENCE / 4, "{:?}", begun.elapsed());
        slow.ends().await;
        for told in ["$1\r\na\r\n", "$-1\r\n", ":40\r\n"] {
            assert_eq!(slow.reply().await, told, "round {round}");
        }
    }
    // Lists, too, and on a connection of the client's own.
    for before in ["PING", "SELECT 0", "WATCH k"] {
        drop(slow.ask(before).await);
        let list = slow.ask("LRANGE list 0 -1").await;
        let items = resp::Reply::of(list.as_bytes()).unwrap().items().unwrap();
        assert_eq!((items.count(), list.len()), (40, 40 * (300_000 + 11) + 5), "{before}");
    }
    assert_eq!(world.closed("slow_reader"), 0);
}

#[tokio::test]
async fn who_has_got_half_of_a_value_is_disconnected_and_others_go_on() {
    let mut world = World::with_large_value(1 << 20).await;
    let mut clients = [world.client(), world.client()];
    assert_eq!(clients[1].ask("WATCH k").await, "+OK\r\n");
    for client in &mut clients {
        client.ask_together(&["GET large", "GET k"]).await;
        client.begins().await;
    }
    // One that leaves in the middle holds up nobody.
    let (mut leaves, mut other) = (world.client(), world.client());
    leaves.ask_together(&["GET large"]).await;
    leaves.begins().await;
    drop(leaves);
    assert_eq!(other.ask("SET k v").await, "+OK\r\n");
    world.server.kill();
    for client in &mut clients {
        let mut rest = Vec::new();
        // Reset or closed: what came is part of the value, and nothing else.
        drop(timeout(PATIENCE, client.stream.read_to_end(&mut rest)).await.expect("its end"));
        assert!(rest.len() < VALUE && rest.iter().all(|byte| *byte == b'x'), "{}", rest.len());
    }
    world.server.restart().await;
    other.until_told("SET k w", "+OK\r\n").await;
}

#[tokio::test]
async fn a_server_that_freezes_in_the_middle_of_a_value_is_not_waited_for() {
    let world = World::with_large_value(4 << 20).await;
    let mut client = world.client();
    client.ask_together(&["GET large"]).await;
    client.begins().await;
    world.server.signal("STOP");
    let mut rest = Vec::new();
    drop(timeout(PATIENCE, client.stream.read_to_end(&mut rest)).await.expect("its end"));
    assert!(rest.len() < VALUE, "{}", rest.len());
    world.server.signal("CONT");
    world.client().until_told("GET small", "$-1\r\n").await;
}

#[tokio::test]
async fn who_stops_to_read_a_value_is_disconnected_and_holds_up_nobody_for_long() {
    let world = World::with_large_value(4 << 20).await;
    let (mut stalls, mut behind) = (world.client(), world.client());
    let mut commands = vec!["GET large"];
    commands.extend([&"INCR n"; 200]);
    stalls.ask_together(&commands).await;
    behind.ask_together(&["INCR m"]).await;
    stalls.begins().await;
    assert_eq!(world.client().ask("SET k v").await, "+OK\r\n");
    assert_eq!(behind.reply().await, ":1\r\n", "what was asked on the same connection");
    until("it is disconnected", async || world.closed("slow_reader") == 1).await;
    // They had to wait for that client, and not for the server.
    assert_eq!(world.fusebox.backend("redis").unwrap().view().breaker.window_slow, 0);
    let applied: u32 = world.server.value("n").await.parse().unwrap();
    assert!((1..=200).contains(&applied), "{applied}");
}

#[tokio::test]
async fn a_client_that_reads_gets_all_however_much_is_behind_a_value() {
    for out_client in [4 << 20, 64 << 10] {
        let world = World::with_large_value(out_client).await;
        let mut client = world.client();
        let text = "e".repeat(if out_client > 1 << 20 { 1_200_000 } else { 27_000 });
        client.ask_together(&["GET large", &format!("ECHO {text}"), "PING"]).await;
        client.begins().await;
        client.ends().await;
        assert_eq!(client.reply().await.len(), text.len() + text.len().to_string().len() + 5);
        assert_eq!(client.reply().await, "+PONG\r\n");
    }
}

#[tokio::test]
async fn what_is_cached_is_not_told_in_the_middle_of_a_value() {
    let world = World::with_large_value(4 << 20).await;
    let mut client = world.client();
    world.server.ask(&["RENAME", "large", "other"]).await;
    world.server.ask(&["SET", "large", "small"]).await;
    assert_eq!(client.ask("GET large").await, "$5\r\nsmall\r\n");
    world.server.ask(&["RENAME", "other", "large"]).await;
    client.ask_together(&["GET large"]).await;
    client.begins().await;
    world.server.signal("STOP");
    // The breaker opens, and reads that are cached are answered from there.
    let mut other = world.client();
    other.until_told("GET small", "$-1\r\n").await;
    let mut rest = Vec::new();
    drop(timeout(PATIENCE, client.stream.read_to_end(&mut rest)).await.expect("its end"));
    assert!(rest.iter().all(|byte| *byte == b'x'), "something else is within the value");
    world.server.signal("CONT");
}

#[tokio::test]
async fn a_listener_gets_large_messages_also_while_it_is_owed_a_pong() {
    let world = World::with_large_value(4 << 20).await;
    let mut listener = world.client();
    // Until the door's fence is up.
    until("it listens", async || listener.ask("SUBSCRIBE c").await.starts_with("*3")).await;
    let script = "return redis.call('publish', 'c', string.rep('m', 3000000))";
    for _ in 0..5 {
        listener.ask_together(&["PING", "PING"]).await;
        assert_eq!(world.server.ask(&["EVAL", script, "0"]).await, ":1\r\n");
        let (mut pongs, mut messages) = (0, 0);
        while pongs < 2 || messages < 1 {
            let told = listener.reply().await;
            if told.starts_with(b"*2\r\n$4\r\npong") {
                pongs += 1;
            } else {
                assert!(told.starts_with(b"*3\r\n$7\r\nmessage") && told.len() > 3_000_000);
                messages += 1;
            }
        }
    }
}

#[tokio::test]
async fn replies_of_a_transaction_that_are_too_large_disconnect_its_client_alone() {
    let world = World::with_large_value(4 << 20).await;
    let (mut client, mut other) = (world.client(), world.client());
    client.ask_together(&["MULTI", "GET large", "INCR n", "GET large", "EXEC"]).await;
    other.ask_together(&["INCR n"]).await;
    assert!(other.reply().await.starts_with(b":"));
    until("it is disconnected", async || world.closed("slow_reader") == 1).await;
    assert_eq!(world.server.value("n").await, "2");
}

#[tokio::test]
async fn what_is_left_of_a_reply_that_is_dropped_is_nobody_elses() {
    let world = World::with_large_value(4 << 20).await;
    // Wherever it is cut, the rest begins like something that answers no command.
    let script = format!("redis.call('set', 'large', string.rep('>', {VALUE}))");
    world.server.ask(&["EVAL", &script, "0"]).await;
    let mut others: Vec<Wire> = (0..3).map(|_| world.client()).collect();
    for (number, other) in others.iter_mut().enumerate() {
        assert_eq!(other.ask(&format!("SET k{number} {number}")).await, "+OK\r\n");
    }
    let mut client = world.client();
    client.ask_together(&["MULTI", "GET large", "GET large", "EXEC"]).await;
    for round in 0..2 {
        for (number, other) in others.iter_mut().enumerate() {
            other.send(&resp::command(&["GET", &format!("k{number}")])).await;
        }
        for (number, other) in others.iter_mut().enumerate() {
            assert_eq!(other.reply().await, format!("$1\r\n{number}\r\n"), "round {round}");
        }
    }
    until("it is disconnected", async || world.closed("slow_reader") == 1).await;
}

#[tokio::test]
async fn a_listener_of_the_newer_protocol_gets_a_value_of_any_size() {
    let world = World::with_large_value(4 << 20).await;
    // The server itself lets a listener wait for 32 MiB at most.
    let unlimited = ["CONFIG", "SET", "client-output-buffer-limit", "pubsub 0 0 0"];
    assert_eq!(world.server.ask(&unlimited).await, "+OK\r\n");
    let mut client = world.client();
    assert!(client.ask("HELLO 3").await.starts_with('%'));
    // Until the door's fence is up.
    until("it listens", async || client.ask("SUBSCRIBE c").await.starts_with(">3")).await;
    client.ask_together(&["GET large", "GET small"]).await;
    client.begins().await;
    client.ends().await;
    assert_eq!(client.reply().await, "_\r\n");
    assert_eq!(world.server.ask(&["PUBLISH", "c", "m"]).await, ":1\r\n");
    assert!(client.reply().await.starts_with(b">3\r\n$7\r\nmessage"));
    assert_eq!(world.closed("slow_reader"), 0);
}

#[tokio::test]
async fn a_message_that_is_larger_than_its_client_may_be_owed_disconnects_it_alone() {
    let world = World::with_large_value(1 << 20).await;
    let mut other = world.client();
    let script = "return redis.call('publish', 'c', string.rep('m', 5000000))";
    for (number, hello) in (1..).zip(["HELLO 2", "HELLO 3"]) {
        let mut listener = world.client();
        drop(listener.ask(hello).await);
        until("it listens", async || listener.ask("SUBSCRIBE c").await.contains("subscribe")).await;
        assert!(world.server.ask(&["EVAL", script, "0"]).await.starts_with(b":"));
        until("it is disconnected", async || world.closed("slow_reader") == number).await;
        assert_eq!(listener.reply().await, "", "{hello}");
        assert_eq!(other.ask("GET small").await, "$-1\r\n");
    }
    // So does one that it has sent to itself. What it asked for on that connection is no failure of the server.
    let mut listener = world.client();
    drop(listener.ask("HELLO 3").await);
    until("it listens", async || listener.ask("SUBSCRIBE c").await.contains("subscribe")).await;
    let mut commands = resp::command(&["EVAL", script, "0"]).to_vec();
    commands.extend(resp::command(&["GET", "small"]));
    listener.send(&commands).await;
    until("it is disconnected", async || world.closed("slow_reader") == 3).await;
    assert_eq!(other.ask("GET small").await, "$-1\r\n");
    assert_eq!(world.fusebox.backend("redis").unwrap().view().breaker.window_failures, 0);
}

#[tokio::test]
async fn large_replies_that_nobody_reads_leave_connections_to_others() {
    const CLIENTS: usize = 60;
    let world = World::with_connections("40", Duration::from_secs(4)).await;
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        let mut client = world.client();
        client.ask_together(&["GET large"]).await;
        client.begins_with(SMALLER).await;
        assert_eq!(world.server.ask(&["PING"]).await, "+PONG\r\n", "{number}");
        clients.push(client);
    }
    assert_eq!(world.client().ask("GET small").await, "$-1\r\n");
    // Those who came first were disconnected, and the last was not.
    assert!(world.closed("slow_reader") >= 50);
    clients.last_mut().unwrap().reads_rest_of_smaller().await;
}

#[tokio::test]
async fn who_reads_keeps_its_connection_however_many_do_not() {
    const VALUES: usize = 40;
    let world = World::with_connections("40", Duration::from_secs(8)).await;
    let mut reads = world.client();
    reads.ask_together(&["GET large"; VALUES]).await;
    reads.begins_with(SMALLER).await;
    // With the one that reads, seven of them have all connections that there may be.
    let mut silent: Vec<Wire> = (0..8).map(|_| world.client()).collect();
    let mut last = silent.pop().unwrap();
    for client in &mut silent {
        client.ask_together(&["GET large"]).await;
        client.begins_with(SMALLER).await;
    }
    let (read, values) = tokio::sync::watch::channel(0);
    let reading = tokio::spawn(async move {
        reads.reads_rest_of_smaller().await;
        for number in 1..VALUES {
            read.send_replace(number);
            reads.reads_smaller().await;
        }
    });
    until("it reads", async || *values.borrow() > 0).await;
    last.ask_together(&["GET large"]).await;
    last.begins_with(SMALLER).await;
    assert!(!reading.is_finished(), "it has read all before another connection was needed");
    assert_eq!(world.client().ask("GET small").await, "$-1\r\n");
    until("one that does not read is gone", async || world.closed("slow_reader") > 0).await;
    reading.await.expect("all values");
}

#[tokio::test]
async fn nobody_is_disconnected_if_all_read_more_large_values_than_there_are_connections_for() {
    const CLIENTS: usize = 20;
    const VALUES: usize = 3;
    // Two of these connections may be for large replies.
    let world = World::with_connections("10", PATIENCE * 2).await;
    let begin = |_| {
        let mut client = world.client();
        tokio::spawn(async move {
            for _ in 0..VALUES {
                client.ask_together(&["GET large"]).await;
                client.reads_smaller().await;
            }
        })
    };
    let reading: Vec<_> = (0..CLIENTS).map(begin).collect();
    for client in reading {
        client.await.expect("all values");
    }
    assert_eq!(world.closed("slow_reader"), 0);
}

#[tokio::test]
async fn what_waits_for_the_next_connector_does_not_wait_for_clients_that_do_not_read() {
    const TIMEOUT: Duration = Duration::from_secs(1);
    const SILENT: usize = 10;
    let world = World::with(TIMEOUT, door()).await;
    world.sets_large(SMALLER).await;
    let (mut reads, mut writes) = (world.client(), world.client());
    assert_eq!(writes.ask("SET k v").await, "+OK\r\n");
    assert_eq!(reads.ask("GET k").await, "$1\r\nv\r\n");
    // All of them ask on one connection, which waits for each for half of the timeout, and is waited for by the reload.
    let mut silent: Vec<Wire> = (0..SILENT).map(|_| world.client()).collect();
    let get = resp::command(&["GET", "large"]);
    world.server.signal("STOP");
    let all = world.door.view().bytes_in + (get.len() * SILENT) as u64;
    for client in &mut silent {
        client.send(&get).await;
    }
    until("all is read", async || world.door.view().bytes_in == all).await;
    world.server.signal("CONT");
    silent[0].begins_with(SMALLER).await;
    let asks = async {
        let begun = tokio::time::Instant::now();
        reads.send(&resp::command(&["GET", "k"])).await;
        writes.send(&resp::command(&["SET", "other", "w"])).await;
        assert_eq!(reads.reply().await, "$1\r\nv\r\n", "from the cache");
        assert_eq!(writes.reply().await, "+OK\r\n", "queued");
        begun.elapsed()
    };
    let ((), took) = tokio::join!(world.reload(TIMEOUT), asks);
    assert!(took < TIMEOUT * 4, "{took:?}");
    until("it is applied", async || world.waiting() == 0).await;
    assert_eq!(world.server.value("other").await, "w");
}
