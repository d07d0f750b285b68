//! What a door holds for its clients, how long it waits for them, and what they may do.

use fusebox_actors::{Admission, Backend, PlainAccess, PlainPlan, Ticket, trace::CallTrace};
use fusebox_state::Lanes;
use tokio::time::Instant;

use super::*;
use crate::kinds::redis::door::settings::{Callers, Guest};

const SOON: Duration = Duration::from_millis(100);

/// A client that has asked for more than it reads: `times` replies of 512 KiB.
async fn slow_reader(world: &World, times: usize) -> Wire {
    world.server.ask(&["SETRANGE", "large", "524287", "x"]).await;
    let mut client = world.client();
    for _ in 0..times {
        client.send(&resp::command(&["GET", "large"])).await;
    }
    client
}

/// One client does not read, and another writes until the first is reset.
async fn until_a_slow_reader_is_reset(world: &World) {
    let _slow = slow_reader(world, 20).await;
    let mut other = world.client();
    let deadline = Instant::now() + PATIENCE;
    while world.closed("slow_reader") == 0 {
        assert_eq!(other.ask("SET k v").await, "+OK\r\n");
        assert!(Instant::now() < deadline, "it is not reset");
    }
}

#[tokio::test]
async fn who_says_nothing_is_closed_unless_it_listens() {
    let settings = Settings { idle_timeout: Some(SOON), ..door() };
    let world = World::with(Duration::from_secs(2), settings).await;
    let (mut silent, mut listener) = (world.client(), world.client());
    assert!(listener.ask("SUBSCRIBE news").await.starts_with("*3"));
    assert_eq!(silent.ask("PING").await, "+PONG\r\n");
    assert_eq!(silent.reply().await, "", "it is closed");
    until("it is counted", async || world.closed("idle") == 1).await;
    world.server.ask(&["PUBLISH", "news", "x"]).await;
    assert!(listener.reply().await.starts_with(b"*3"), "it still listens");
}

#[tokio::test]
async fn half_a_request_is_not_waited_for_for_ever() {
    let settings = Settings { partial_max: SOON, ..door() };
    let world = World::with(Duration::from_secs(2), settings).await;
    let (mut half, mut silent) = (world.client(), world.client());
    assert_eq!(silent.ask("PING").await, "+PONG\r\n");
    half.send(b"*2\r\n$3\r\nGET\r\n$5\r\nab").await;
    assert_eq!(half.reply().await, "", "it is closed");
    assert_eq!(silent.ask("PING").await, "+PONG\r\n", "who has sent all of its request stays");
}

#[tokio::test]
async fn who_does_not_read_is_reset_and_holds_up_nobody() {
    let settings = Settings { out_client: 2 << 20, ..door() };
    let world = World::with(Duration::from_secs(2), settings).await;
    until_a_slow_reader_is_reset(&world).await;
}

/// More than a socket holds, of replies that the door gives at once and that the server gives, to clients that begin to
/// read when all of them wait.
#[tokio::test]
async fn who_reads_late_gets_every_reply_whatever_comes_behind_them() {
    let world = World::open().await;
    let value = "x".repeat(512 << 10);
    world.server.ask(&["SET", "large", &value]).await;
    let expected = format!("${}\r\n{value}\r\n", value.len());
    // What comes behind the replies, and what is to be answered to that before the connection ends.
    let quit = (&b"*1\r\n$4\r\nQUIT\r\n"[..], "+OK\r\n");
    let wrong = (&b"*1\r\n+x\r\n"[..], "-ERR Protocol error: expected '$', got '+'\r\n");
    let mut commands = 0;
    for (command, times) in [(["ECHO", &value], 1), (["GET", "large"], 4)] {
        for (behind, told) in [quit, wrong, (&b""[..], "")] {
            let mut client = world.client();
            client.send(&resp::command(&command).repeat(times)).await;
            client.send(behind).await;
            client.stream.shutdown().await.unwrap();
            commands += times as u64 + u64::from(told == quit.1);
            until("all was read", || async { world.door.commands() >= commands }).await;
            for _ in 0..times {
                assert!(client.reply().await == expected, "{} {told}", command[0]);
            }
            if !told.is_empty() {
                assert_eq!(client.reply().await, told);
            }
            assert_eq!(client.reply().await, "", "it is closed");
        }
    }
}

#[tokio::test]
async fn if_the_door_is_full_of_replies_the_slowest_reader_goes() {
    let settings = Settings { out_bytes: 2 << 20, ..door() };
    let world = World::with(Duration::from_secs(2), settings).await;
    until_a_slow_reader_is_reset(&world).await;
    assert_eq!(world.closed("no_room"), 0);
}

#[tokio::test]
async fn if_the_door_is_full_of_requests_the_last_who_came_is_told_so() {
    let settings = Settings { in_bytes: 1 << 20, request_max: 1 << 20, ..door() };
    let world = World::with(Duration::from_secs(2), settings).await;
    let value = "x".repeat(700 << 10);
    let request = resp::command(&["SET", "k", &value]);
    let mut first = world.client();
    // Each would fit alone.
    first.send(&request[..690 << 10]).await;
    let rest = &request[690 << 10..];
    // There is room until the door has read what the first has sent.
    let told = loop {
        let mut last = world.client();
        drop(last.stream.write_all(&request).await);
        let told = last.reply().await;
        if told != "+OK\r\n" {
            break told;
        }
    };
    assert_eq!(told, "-ERR max number of clients reached\r\n");
    until("it is counted", async || world.closed("no_room") == 1).await;
    first.send(rest).await;
    assert_eq!(first.reply().await, "+OK\r\n");
    assert_eq!(world.server.value("k").await, value);
}

#[tokio::test]
async fn who_speaks_http_is_not_answered() {
    let world = World::open().await;
    world.server.ask(&["SET", "k", "v"]).await;
    let mut browser = world.client();
    browser.send(b"POST / HTTP/1.1\r\nHost: localhost\r\n\r\nDEL k\r\n").await;
    assert_eq!(browser.reply().await, "");
    assert_eq!(world.server.value("k").await, "v");
    until("it is counted", async || world.closed("protocol") == 1).await;
}

struct Reader;

impl Callers for Reader {
    fn find(&self, user: Option<&[u8]>, secret: &[u8]) -> Option<Guest> {
        let is_it = user == Some(b"reader") && secret == b"secret";
        let who = Who { uid: 8, admin: false, by_token: true };
        let name = "reader".to_owned();
        is_it.then_some(Guest { name, who, reads_only: true, is_backends_own: false })
    }
}

#[tokio::test]
async fn who_may_only_read_writes_in_no_way() {
    let settings = Settings { callers: Arc::new(Reader), ..door() };
    let world = World::with(Duration::from_secs(2), settings).await;
    world.server.ask(&["SET", "k", "v"]).await;
    let mut client = world.client_of(None);
    assert_eq!(client.ask("AUTH reader secret").await, "+OK\r\n");
    for read in ["GET k", "get k", "GETRANGE k 0 -1"] {
        assert_eq!(client.ask(read).await, "$1\r\nv\r\n", "{read}");
    }
    let writes = [
        "SET k w",
        "set k w",
        "INCR n",
        "RPUSH l x",
        "EVAL return{redis.call('SET','k','w')} 0",
        "BLPOP l 1",
        "FLUSHALL",
        "GETDEL k",
        "SORT l STORE k",
        "PUBLISH c m",
        "NOSUCH k",
    ];
    for write in writes {
        let told = client.ask(write).await;
        assert!(told.starts_with("-NOPERM"), "{write}: {told}");
    }
    let mut other = world.client();
    let id = other.ask("CLIENT ID").await.trim().trim_start_matches(':').to_owned();
    for harms in ["KILL ID", "UNBLOCK"] {
        let told = client.ask(&format!("CLIENT {harms} {id}")).await;
        assert!(told.starts_with("-NOPERM"), "{harms}: {told}");
    }
    assert_eq!(other.ask("PING").await, "+PONG\r\n");
    assert!(world.client_of(None).ask("NOSUCH k").await.starts_with("-NOAUTH"));
    assert_eq!(client.ask("MULTI").await, "+OK\r\n");
    assert!(client.ask("SET k w").await.starts_with("-NOPERM"));
    assert!(client.ask("EXEC").await.starts_with("-EXECABORT"));
    let told = client.ask("SUBSCRIBE c").await;
    assert!(told.starts_with("*3"), "to listen is to read: {told}");
    assert_eq!(world.server.value("k").await, "v");
}

#[tokio::test]
async fn a_reset_leaves_a_client_who_it_was_by_its_socket() {
    let world = World::open().await;
    let mut client = world.client();
    client.ask("HELLO 3").await;
    assert_eq!(client.ask("RESET").await, "+RESET\r\n");
    assert_eq!(client.ask("GET none").await, "$-1\r\n", "known, and of the older protocol again");
    let mut unknown = world.client_of(None);
    assert!(unknown.ask("RESET").await.starts_with("+RESET"));
    assert!(unknown.ask("GET none").await.starts_with("-NOAUTH"));
}

#[tokio::test]
async fn a_reply_that_is_to_be_skipped_is_skipped_though_its_command_had_to_wait() {
    let world = World::with(PATIENCE, door()).await;
    let (mut busy, mut client) = (world.client(), world.client());
    let taken = |bytes: u64| {
        let world = &world;
        async move { world.door.view().bytes_in == bytes }
    };
    assert_eq!(client.ask("GET none").await, "$-1\r\n");
    let before = world.door.view().bytes_in;
    world.server.signal("STOP");
    let gets: Vec<u8> = (0..64).flat_map(|_| resp::command(&["GET", "none"]).to_vec()).collect();
    busy.send(&gets).await;
    let before = before + gets.len() as u64;
    until("all places are taken", || taken(before)).await;
    let commands = [&["CLIENT", "REPLY", "SKIP"][..], &["SET", "k", "v"], &["GET", "k"]];
    let commands: Vec<u8> = commands.iter().flat_map(|it| resp::command(it).to_vec()).collect();
    client.send(&commands).await;
    until("it waits", || taken(before + commands.len() as u64)).await;
    world.server.signal("CONT");
    assert_eq!(client.reply().await, "$1\r\nv\r\n");
    client.quiet();
}

#[tokio::test]
async fn who_waits_for_the_door_is_not_silent() {
    let settings = Settings { idle_timeout: Some(Duration::from_millis(300)), ..door() };
    let world = World::with(Duration::from_secs(2), settings).await;
    // No connection of one's own writes before the first fence is up, and this server does not raise one.
    world.server.signal("STOP");
    let told = world.client().ask("SUBSCRIBE news").await;
    assert!(told.starts_with("-LOADING"), "it was closed though it waits for an answer: {told:?}");
    world.server.signal("CONT");
}

/// All places of a backend's bulkhead: nobody finds one, whoever has none either.
fn places(backend: &Backend) -> Vec<Ticket> {
    let lanes = Lanes::new([]);
    let plan = |uid| PlainPlan {
        lanes: &lanes,
        access: PlainAccess::Read { keyed: false, slot: None, max_stale: None },
        priority: Priority::Normal,
        operation: "test",
        trace: CallTrace::new("/test"),
        uid,
        may_be_struck: false,
    };
    let take = |uid| match backend.admit(&plan(uid)) {
        Admission::Go(ticket) => Some(ticket),
        _ => None,
    };
    (1_000..2_000).filter_map(take).collect()
}

#[tokio::test]
async fn a_full_bulkhead_is_no_outage_and_refuses_after_the_deadline() {
    let settings = Settings { deadline: Some(SOON), ..door() };
    let world = World::with(Duration::from_secs(2), settings).await;
    world.server.ask(&["SET", "k", "v"]).await;
    let mut client = world.client();
    assert!(client.ask("NOSUCH x").await.starts_with("-ERR unknown command"));
    let taken = places(&world.fusebox.backends()[0]);
    for command in ["GET k", "SET k w", "NOSUCH x", "MGET k k"] {
        let told = client.ask(command).await;
        assert!(told.starts_with("-LOADING") && told.contains("not executed"), "{command}: {told}");
    }
    for within in [&["GET", "k"][..], &["SET", "k", "w"]] {
        client.send_now(&[&["MULTI"], within, &["EXEC"]]);
        for begins in ["-LOADING", "-LOADING", "-EXECABORT"] {
            let told = client.reply().await;
            assert!(told.starts_with(begins.as_bytes()), "{within:?}: {told:?}");
        }
    }
    assert_eq!(world.waiting(), 0);
    drop(taken);
    assert_eq!(client.ask("GET k").await, "$1\r\nv\r\n");
}

#[tokio::test]
async fn who_waits_for_a_place_waits_as_long_as_its_call_may_take() {
    const TIMEOUT: Duration = Duration::from_millis(200);
    let world = World::with(TIMEOUT, Settings { deadline: Some(PATIENCE), ..door() }).await;
    world.server.ask(&["SET", "k", "v"]).await;
    let (mut reads, mut watches) = (world.client(), world.client());
    assert_eq!(reads.ask("GET none").await, "$-1\r\n");
    assert_eq!(watches.ask("WATCH none").await, "+OK\r\n");
    let taken = places(&world.fusebox.backends()[0]);
    reads.send_now(&[&["GET", "k"]]);
    watches.send_now(&[&["WATCH", "k"]]);
    for client in [&mut reads, &mut watches] {
        let early = timeout(TIMEOUT * 2, client.reply()).await;
        assert!(early.is_err(), "{early:?}");
    }
    drop(taken);
    assert_eq!(reads.reply().await, "$1\r\nv\r\n");
    assert_eq!(watches.reply().await, "+OK\r\n");
}

#[tokio::test]
async fn the_time_that_what_is_before_a_command_takes_is_not_its_own() {
    let settings = Settings { deadline: Some(SOON), ..door() };
    let world = World::with(Duration::from_secs(2), settings).await;
    world.server.ask(&["SET", "k", "v"]).await;
    let mut client = world.client();
    assert_eq!(client.ask("PING").await, "+PONG\r\n");
    client.send_now(&[&["BLPOP", "l", "0.3"], &["GET", "k"]]);
    until("it waits", async || {
        let list = world.server.ask(&["CLIENT", "LIST"]).await;
        String::from_utf8_lossy(&list).contains("cmd=blpop")
    })
    .await;
    let taken = places(&world.fusebox.backends()[0]);
    assert_eq!(client.reply().await, "*-1\r\n");
    drop(taken);
    assert_eq!(client.reply().await, "$1\r\nv\r\n");
}

#[tokio::test]
async fn the_time_of_a_command_that_waits_runs_while_it_is_held_up_at_the_door() {
    let settings = Settings { deadline: Some(PATIENCE), ..door() };
    let world = World::with(Duration::from_secs(2), settings).await;
    let mut client = world.client();
    assert_eq!(client.ask("GET none").await, "$-1\r\n");
    let taken = places(&world.fusebox.backends()[0]);
    let begun = Instant::now();
    assert_eq!(client.ask("BLPOP q 0.2").await, "*-1\r\n");
    let took = begun.elapsed();
    assert!((0.19..5.0).contains(&took.as_secs_f64()), "{took:?}");

    let server = tokio::net::TcpStream::connect(("127.0.0.1", world.server.port)).await.unwrap();
    let mut monitor = Wire::of(server);
    assert_eq!(monitor.ask("MONITOR").await, "+OK\r\n");
    let before = world.door.view().bytes_in;
    client.send_now(&[&["BLPOP", "q", "30"]]);
    until("it is held up", async || world.door.view().bytes_in > before).await;
    let begun = Instant::now();
    until("it was for a while", async || begun.elapsed() >= Duration::from_millis(20)).await;
    drop(taken);
    let sent = loop {
        let sent = String::from_utf8_lossy(&monitor.reply().await).into_owned();
        if sent.contains("\"BLPOP\"") {
            break sent;
        }
    };
    let left = sent.trim().trim_end_matches('"').rsplit('"').next();
    let left: f64 = left.unwrap().parse().unwrap();
    assert!((1.0..29.99).contains(&left), "{sent}");
    world.server.ask(&["RPUSH", "q", "x"]).await;
    assert_eq!(client.reply().await, "*2\r\n$1\r\nq\r\n$1\r\nx\r\n");
}

#[tokio::test]
async fn a_command_that_waits_gets_what_is_there_though_its_time_has_passed_at_the_door() {
    // Whoever is refused once more waits a little before its next command is looked at.
    const REFUSED: usize = 51;
    let settings = Settings { deadline: Some(Duration::from_millis(1)), ..door() };
    let world = World::with(Duration::from_secs(2), settings).await;
    assert_eq!(world.client().ask("GET none").await, "$-1\r\n");
    assert_eq!(world.server.ask(&["RPUSH", "q", "x"]).await, ":1\r\n");
    let mut commands = resp::command(&["INCR", "n"]).repeat(REFUSED);
    commands.extend_from_slice(&resp::command(&["BLPOP", "q", "0.001"]));
    for _ in 0..20 {
        let mut client = world.client();
        let taken = places(&world.fusebox.backends()[0]);
        client.send(&commands).await;
        for _ in 0..REFUSED {
            assert!(client.reply().await.starts_with(b"-LOADING"));
        }
        drop(taken);
        let came = client.reply().await;
        if came == "*2\r\n$1\r\nq\r\n$1\r\nx\r\n" {
            return;
        }
        assert_eq!(came, "*-1\r\n", "there was no place yet");
    }
    panic!("it was never sent");
}

#[tokio::test]
async fn an_error_of_the_servers_own_is_no_refusal_of_the_doors() {
    const TIMES: u64 = 200;
    let world = World::open().await;
    let mut client = world.client();
    assert_eq!(client.ask("RPUSH list x").await, ":1\r\n");
    let begun = Instant::now();
    for _ in 0..TIMES {
        assert!(client.ask("INCR list").await.starts_with("-WRONGTYPE"));
    }
    let view = world.door.view();
    assert_eq!((view.refused_commands["unavailable"], view.by_source()["live"]), (0, TIMES + 1));
    // Nor is what the door answers in place of the server.
    world.fusebox.backends()[0].force(true, "test".into(), None).await.unwrap();
    for _ in 0..TIMES {
        assert_eq!(client.ask("PING").await, "+PONG\r\n");
    }
    // Whoever is slowed down needs more than seven seconds for either.
    assert!(begun.elapsed() < Duration::from_secs(7), "{:?}", begun.elapsed());
    assert_eq!(world.door.view().refused_commands["unavailable"], 0);
    assert!(client.ask("INCR list").await.starts_with("-LOADING"));
    let view = world.door.view();
    assert_eq!((view.refused_commands["unavailable"], view.by_source()["local"]), (1, TIMES));
}

#[tokio::test]
async fn each_answer_is_counted_by_its_source() {
    let mut world = World::open().await;
    let mut client = world.client();
    for command in
        ["SET k v", "GET k", "ECHO x", "CLIENT GETNAME", "CONFIG SET a b", "FUSEBOX LAST"]
    {
        client.ask(command).await;
    }
    let counted = |source: &str| world.door.view().by_source()[source];
    assert_eq!((counted("live"), counted("local")), (2, 4));
    world.server.kill();
    client.until_told("GET none", "$-1\r\n").await;
    assert_eq!(client.ask("GET k").await, "$1\r\nv\r\n");
    assert_eq!(client.ask("BLPOP l 0.05").await, "*-1\r\n");
    assert!(client.ask("INCR n").await.starts_with("-LOADING"));
    assert_eq!(client.ask("PING").await, "+PONG\r\n");
    assert!(client.ask("COMMAND COUNT").await.starts_with(':'));
    let counted = |source: &str| world.door.view().by_source()[source];
    for (source, count) in
        [("live", 2), ("local", 6), ("bypass", 1), ("cache", 1), ("empty", 1), ("queued", 0)]
    {
        assert_eq!(counted(source), count, "{source}");
    }
}
