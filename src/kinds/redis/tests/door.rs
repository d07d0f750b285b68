//! The door against a real server, with a client that sees every byte.

use std::{sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use fusebox_actors::{
    BackendSettings, BackendSpec, Fusebox, PingSettings, Priority, SystemSettings,
};
use fusebox_state::{
    Ratio,
    breaker::{BreakerSettings, SlowCalls},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::UnixStream,
    runtime::Handle,
    time::timeout,
};

use super::super::{
    connector::RedisConnector,
    door::{
        Accepted, RedisDoor,
        assumed::EffectReply,
        settings::{MinAck, Nobody, Settings},
        telling::Unavailable,
    },
    protocol::resp::{self, FrameFinder},
    settings::RedisSettings,
    testing::{PATIENCE, Server, until},
};
use crate::{
    config::OnMiss,
    ingress::{door::WireDoor, peer::Who},
};

mod bounds;
mod databases;
mod deaf;
mod large;
mod limits;
mod order;
mod outage;
mod pinned;
mod random;
mod scripts;
mod shown;
mod stop;
mod unfenced;
mod unknown;

/// A door before a server.
struct World {
    server: Server,
    door: RedisDoor,
    fusebox: Fusebox,
    state: tempfile::TempDir,
}

fn system(state: &std::path::Path) -> SystemSettings {
    SystemSettings {
        state_dir: state.to_owned(),
        pings: PingSettings::every(Duration::from_secs(3_600)),
        instance: "door".into(),
        copied: None,
    }
}

fn backend(timeout: Duration) -> BackendSettings {
    let usual = crate::kinds::testing::backend("redis", timeout);
    let breaker = BreakerSettings {
        recovery_timeout: Duration::from_millis(200),
        recovery_timeout_max: Duration::from_secs(1),
        // They are counted, and open nothing.
        slow: SlowCalls { after: Duration::from_millis(500), rate: Ratio::ZERO },
        ..usual.breaker
    };
    BackendSettings { breaker, ..usual }
}

fn door() -> Settings {
    Settings {
        address: "unix:/test",
        on_miss: OnMiss::default(),
        min_ack: MinAck::default(),
        deadline: None,
        max_stale: None,
        priority: Priority::Normal,
        unavailable: Unavailable::Loading,
        effect_reply: EffectReply::default(),
        close_on_unknown: false,
        pinned: 100,
        in_bytes: 256 << 20,
        out_bytes: 512 << 20,
        out_client: 32 << 20,
        idle_timeout: None,
        request_max: 64 << 20,
        partial_max: Duration::from_secs(30),
        callers: Arc::new(Nobody),
    }
}

const CLIENT: Who = Who { uid: 7, admin: false, by_token: false };

impl World {
    async fn open() -> Self {
        Self::with(Duration::from_secs(2), door()).await
    }

    async fn with(timeout: Duration, settings: Settings) -> Self {
        Self::of(timeout, settings, &[("redis", 0)]).await
    }

    /// With backends of these names for these databases; the first is the door's.
    async fn of(timeout: Duration, settings: Settings, databases: &[(&str, u32)]) -> Self {
        let server = Server::start().await;
        Self::before(server, None, timeout, settings, databases).await
    }

    /// Before this server, which is reached by another port if one is named.
    async fn before(
        server: Server,
        port: Option<u16>,
        timeout: Duration,
        settings: Settings,
        databases: &[(&str, u32)],
    ) -> Self {
        let state = tempfile::tempdir().unwrap();
        let spec = |(name, database): &(&str, u32)| {
            let mut of = match port {
                Some(port) => super::settings(port, "door", "run"),
                None => server.settings("door", "run"),
            };
            (of.timeout, of.database) = (timeout, *database);
            let settings = BackendSettings { name: (*name).into(), ..backend(timeout) };
            BackendSpec { settings, connector: RedisConnector::new(of) }
        };
        let specs = databases.iter().map(spec).collect();
        let fusebox = Fusebox::start(system(state.path()), specs, None).await.unwrap();
        let backend = fusebox.backend(databases[0].0).unwrap();
        let kin = fusebox.backends();
        let door = RedisDoor::open(settings, backend, kin, Handle::current()).unwrap();
        Self { server, door, fusebox, state }
    }

    /// A reload gives the backend another connector, which has this timeout.
    async fn reload(&self, timeout: Duration) {
        let of = RedisSettings { timeout, ..self.server.settings("door", "run") };
        let spec = BackendSpec { settings: backend(timeout), connector: RedisConnector::new(of) };
        self.fusebox.reload(system(self.state.path()), vec![spec], Vec::new()).await.unwrap();
    }

    fn client(&self) -> Wire {
        self.client_of(Some(CLIENT))
    }

    fn client_of(&self, who: Option<Who>) -> Wire {
        let (one, other) = std::os::unix::net::UnixStream::pair().unwrap();
        one.set_nonblocking(true).unwrap();
        other.set_nonblocking(true).unwrap();
        self.door.serve(Accepted::Unix(other), who, None);
        Wire::of(UnixStream::from_std(one).unwrap())
    }

    /// How many clients' connections ended for this reason.
    fn closed(&self, why: &str) -> u64 {
        self.door.view().closed.get(why).copied().unwrap_or_default()
    }

    fn waiting(&self) -> u64 {
        self.fusebox.backends().iter().map(|backend| backend.view().queue.calls).sum()
    }
}

/// A client's end.
struct Wire<S = UnixStream> {
    stream: S,
    inbox: BytesMut,
    finder: FrameFinder,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    fn of(stream: S) -> Self {
        Self { stream, inbox: BytesMut::new(), finder: FrameFinder::default() }
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// The next frame; empty if the connection has ended.
    async fn reply(&mut self) -> Bytes {
        let reading = async {
            loop {
                if let Some(frame) = self.finder.next(&mut self.inbox).unwrap() {
                    return frame;
                }
                if self.stream.read_buf(&mut self.inbox).await.unwrap_or(0) == 0 {
                    return Bytes::new();
                }
            }
        };
        timeout(PATIENCE, reading).await.expect("a reply")
    }

    /// Sends commands in one write, which the socket takes at once.
    fn send_now(&mut self, commands: &[&[&str]])
    where
        S: AsyncWrite,
    {
        let bytes = commands.iter().flat_map(|it| resp::command(it).to_vec()).collect::<Vec<_>>();
        let mut write = std::pin::pin!(self.stream.write_all(&bytes));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(write.as_mut().poll(&mut context).is_ready());
    }

    async fn ask(&mut self, command: &str) -> String {
        let args: Vec<&str> = command.split(' ').collect();
        self.send(&resp::command(&args)).await;
        String::from_utf8_lossy(&self.reply().await).into_owned()
    }

    /// Asks until this is the answer.
    async fn until_told(&mut self, command: &str, answer: &str) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let told = self.ask(command).await;
            if told == answer {
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "{command}: {told}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    #[track_caller]
    fn quiet(&mut self) {
        assert!(self.inbox.is_empty(), "{:?}", self.inbox);
    }
}

#[tokio::test]
async fn a_pipeline_is_answered_in_its_order_in_both_protocols() {
    let world = World::open().await;
    for hello in ["HELLO 2", "HELLO 3"] {
        let mut client = world.client();
        assert!(client.ask(hello).await.contains("proto"));
        client.ask("DEL n h").await;
        let commands = [
            "SET n 1",
            "GET n",
            "INCR n",
            "HSET h f v",
            "HGETALL h",
            "GET none",
            "LPUSH n x",
            "ping",
            "GET n",
        ];
        let pipeline: Vec<u8> = commands
            .iter()
            .flat_map(|command| resp::command(&command.split(' ').collect::<Vec<_>>()).to_vec())
            .collect();
        client.send(&pipeline).await;
        let map = if hello == "HELLO 3" { "%1\r\n" } else { "*2\r\n" };
        let nil = if hello == "HELLO 3" { "_\r\n" } else { "$-1\r\n" };
        let map = format!("{map}$1\r\nf\r\n$1\r\nv\r\n");
        for expected in ["+OK\r\n", "$1\r\n1\r\n", ":2\r\n", ":1\r\n", &map, nil] {
            assert_eq!(client.reply().await, expected, "{hello}");
        }
        let error = client.reply().await;
        assert!(error.starts_with(b"-WRONGTYPE "), "{error:?}");
        assert_eq!(client.reply().await, "+PONG\r\n");
        assert_eq!(client.reply().await, "$1\r\n2\r\n");
        client.quiet();
    }
}

#[tokio::test]
async fn words_and_wrong_words_are_answered_as_by_a_server() {
    let world = World::open().await;
    let mut client = world.client();
    client.send(b"SET k 'a b'\r\nGET k\r\n").await;
    assert_eq!(client.reply().await, "+OK\r\n");
    assert_eq!(client.reply().await, "$3\r\na b\r\n");
    for (command, answer) in [
        ("GET", "-ERR wrong number of arguments for 'get' command\r\n"),
        (
            "CLIENT MAINT_NOTIFICATIONS ON",
            "-ERR unknown subcommand 'MAINT_NOTIFICATIONS'. Try CLIENT HELP.\r\n",
        ),
        ("CLIENT SETINFO LIB-NAME x", "+OK\r\n"),
        ("SELECT 0", "+OK\r\n"),
        ("ECHO hi", "$2\r\nhi\r\n"),
    ] {
        assert_eq!(client.ask(command).await, answer, "{command}");
    }
    assert!(client.ask("NOSUCH x").await.starts_with("-ERR unknown command 'NOSUCH'"));
    assert!(client.ask("CONFIG SET maxmemory 1").await.starts_with("-NOPERM "));
    assert!(client.ask("CONFIG GET maxmemory").await.contains("maxmemory"));
    assert!(client.ask("SYNC").await.starts_with("-ERR fusebox: SYNC is not offered here"));
    client.send(b"*1\r\n+x\r\n").await;
    assert_eq!(client.reply().await, "-ERR Protocol error: expected '$', got '+'\r\n");
    assert_eq!(client.reply().await, "");
}

#[tokio::test]
async fn clients_connect_read_and_write_through_an_outage() {
    let mut world = World::open().await;
    let mut client = world.client();
    assert_eq!(client.ask("SET cached 1").await, "+OK\r\n");
    assert_eq!(client.ask("GET cached").await, "$1\r\n1\r\n");
    world.server.kill();
    let mut other = world.client();
    assert!(other.ask("HELLO 3").await.contains("proto"), "the handshake needs no server");
    // Until the breaker is open each is tried first.
    for _ in 0..3 {
        assert_eq!(client.ask("GET cached").await, "$1\r\n1\r\n");
    }
    assert_eq!(client.ask("GET none").await, "$-1\r\n");
    assert_eq!(
        other.ask("GET cached").await,
        "$1\r\n1\r\n",
        "of the other protocol, and the same bytes"
    );
    for number in 0..5 {
        assert_eq!(client.ask(&format!("SET k {number}")).await, "+OK\r\n");
    }
    assert_eq!(client.ask("GET k").await, "$1\r\n4\r\n", "its own queued write");
    assert!(client.ask("FUSEBOX LAST").await.contains("queued"));
    assert_eq!(client.ask("PING").await, "+PONG\r\n");
    let info = client.ask("INFO").await;
    assert!(info.contains("redis_version:") && info.contains("# Fusebox"), "{info}");
    for command in ["INCR n", "SREM k m", "HGET h f", "PUBLISH c m"] {
        let told = client.ask(command).await;
        assert!(told.starts_with("-LOADING fusebox: redis"), "{command}: {told}");
        assert!(told.contains("not executed"), "{command}: {told}");
    }
    world.server.restart().await;
    until("the queue is replayed", async || world.waiting() == 0).await;
    client.until_told("GET k", "$1\r\n4\r\n").await;
    assert_eq!(world.server.value("k").await, "4");
}

#[tokio::test]
async fn a_clients_writes_are_applied_in_its_order_whatever_becomes_of_its_connection() {
    let mut world = World::open().await;
    let mut client = world.client();
    assert_eq!(client.ask("SET k start").await, "+OK\r\n");
    // Some are on the wire, some are not, when the server goes.
    let pipeline: Vec<u8> = (0..500)
        .flat_map(|number| resp::command(&["SET", "k", &number.to_string()]).to_vec())
        .collect();
    client.send(&pipeline).await;
    world.server.kill();
    for number in 0..500 {
        let told = client.reply().await;
        assert_eq!(told, "+OK\r\n", "{number}");
    }
    world.server.restart().await;
    until("the queue is replayed", async || world.waiting() == 0).await;
    assert_eq!(world.server.value("k").await, "499");
}

#[tokio::test]
async fn what_may_have_been_applied_is_told_and_never_sent_again() {
    let world = World::with(Duration::from_millis(300), door()).await;
    let mut client = world.client();
    assert_eq!(client.ask("INCR n").await, ":1\r\n");
    world.server.signal("STOP");
    let told = client.ask("INCR n").await;
    world.server.signal("CONT");
    assert!(told.starts_with("-FUSEBOX UNKNOWN"), "{told}");
    client.until_told("PING", "+PONG\r\n").await;
    let value: u32 = world.server.value("n").await.parse().unwrap();
    assert!((1..=2).contains(&value), "{value}");
}

#[tokio::test]
async fn transactions_have_a_connection_of_their_own() {
    let world = World::open().await;
    let (mut client, mut other) = (world.client(), world.client());
    assert_eq!(client.ask("SET k 1").await, "+OK\r\n");
    assert_eq!(client.ask("MULTI").await, "+OK\r\n");
    assert_eq!(client.ask("INCR k").await, "+QUEUED\r\n");
    assert_eq!(other.ask("GET k").await, "$1\r\n1\r\n");
    assert_eq!(client.ask("EXEC").await, "*1\r\n:2\r\n");
    assert_eq!(client.ask("WATCH k").await, "+OK\r\n");
    assert_eq!(other.ask("SET k 5").await, "+OK\r\n");
    let block: Vec<u8> = ["MULTI", "INCR k", "EXEC"]
        .iter()
        .flat_map(|command| resp::command(&command.split(' ').collect::<Vec<_>>()).to_vec())
        .collect();
    client.send(&block).await;
    assert_eq!(client.reply().await, "+OK\r\n");
    assert_eq!(client.reply().await, "+QUEUED\r\n");
    assert_eq!(client.reply().await, "*-1\r\n", "it was changed in between");
    assert_eq!(client.ask("EXEC").await, "-ERR EXEC without MULTI\r\n");
    assert_eq!(client.ask("GET k").await, "$1\r\n5\r\n");
    assert_eq!(client.ask("MULTI").await, "+OK\r\n");
    assert!(client.ask("CONFIG SET maxmemory 1").await.starts_with("-NOPERM"));
    assert_eq!(
        client.ask("EXEC").await,
        "-EXECABORT Transaction discarded because of previous errors.\r\n"
    );
    assert_eq!(client.ask("INCR k").await, ":6\r\n", "outside of a transaction again");
}

#[tokio::test]
async fn who_waits_on_a_key_holds_up_nobody() {
    let world = World::open().await;
    let (mut client, mut other) = (world.client(), world.client());
    client.send(&resp::command(&["BLPOP", "list", "0"])).await;
    until("it waits there", async || {
        let list = world.server.ask(&["CLIENT", "LIST"]).await;
        String::from_utf8_lossy(&list).contains("cmd=blpop")
    })
    .await;
    assert_eq!(other.ask("LRANGE list 0 -1").await, "*0\r\n");
    assert_eq!(other.ask("RPUSH list a").await, ":1\r\n");
    assert_eq!(client.reply().await, "*2\r\n$4\r\nlist\r\n$1\r\na\r\n");
    assert_eq!(other.ask("LLEN list").await, ":0\r\n");
    drop(client);
    until("its connection is gone", async || {
        let list = world.server.ask(&["CLIENT", "LIST"]).await;
        !String::from_utf8_lossy(&list).contains("cmd=blpop")
    })
    .await;
}

#[tokio::test]
async fn subscribers_hear_what_is_published() {
    let world = World::open().await;
    for hello in ["HELLO 2", "HELLO 3"] {
        let (mut client, mut other) = (world.client(), world.client());
        client.ask(hello).await;
        let kind = if hello == "HELLO 3" { ">" } else { "*" };
        let told = client.ask("SUBSCRIBE news").await;
        assert_eq!(told, format!("{kind}3\r\n$9\r\nsubscribe\r\n$4\r\nnews\r\n:1\r\n"));
        other.until_told("PUBLISH news hi", ":1\r\n").await;
        assert_eq!(
            client.reply().await,
            format!("{kind}3\r\n$7\r\nmessage\r\n$4\r\nnews\r\n$2\r\nhi\r\n")
        );
        let pong = client.ask("PING").await;
        assert_eq!(
            pong,
            if hello == "HELLO 3" { "+PONG\r\n" } else { "*2\r\n$4\r\npong\r\n$0\r\n\r\n" }
        );
    }
}

#[tokio::test]
async fn who_listens_no_more_is_an_ordinary_client_again() {
    let world = World::open().await;
    let mut client = world.client();
    client.ask("SET k 1").await;
    assert_eq!(client.ask("GET k").await, "$1\r\n1\r\n", "it is cached");
    for channel in ["a", "b"] {
        assert!(client.ask(&format!("SUBSCRIBE {channel}")).await.starts_with("*3"));
    }
    for wrong in ["GET k", "SET k 2", "CLIENT SETNAME x", "NOSUCH"] {
        let told = client.ask(wrong).await;
        assert!(told.starts_with("-ERR Can't execute"), "{wrong}: {told}");
    }
    assert!(client.ask("UNSUBSCRIBE").await.starts_with("*3"));
    assert!(client.reply().await.starts_with(b"*3"));
    assert_eq!(client.ask("SET k 2").await, "+OK\r\n");
    assert_eq!(client.ask("CLIENT GETNAME").await, "$-1\r\n");
    assert_eq!(world.client().ask("GET k").await, "$1\r\n2\r\n", "what was cached is gone");
    assert_eq!(client.ask("MULTI").await, "+OK\r\n");
    assert_eq!(client.ask("INCR k").await, "+QUEUED\r\n");
    assert_eq!(client.ask("EXEC").await, "*1\r\n:3\r\n");
    client.quiet();
}

#[tokio::test]
async fn a_transaction_is_the_servers_own_affair_but_for_what_a_door_takes_for_itself() {
    let world = World::open().await;
    let mut client = world.client();
    for wrong in ["GET", "NOSUCH x", "CLIENT SETNAME x", "AUTH x", "CONFIG SET appendonly no"] {
        assert_eq!(client.ask("MULTI").await, "+OK\r\n");
        assert_eq!(client.ask("SET k v").await, "+QUEUED\r\n");
        let told = client.ask(wrong).await;
        assert!(told.starts_with('-'), "{wrong}: {told}");
        let told = client.ask("EXEC").await;
        assert!(told.starts_with("-EXECABORT"), "{wrong}: {told}");
    }
    // What is refused outside of one spoils none.
    assert!(client.ask("CONFIG SET appendonly no").await.starts_with("-NOPERM"));
    assert_eq!(client.ask("MULTI").await, "+OK\r\n");
    assert_eq!(client.ask("SELECT 3").await, "+QUEUED\r\n");
    assert_eq!(client.ask("SET k three").await, "+QUEUED\r\n");
    assert_eq!(client.ask("EXEC").await, "*2\r\n+OK\r\n+OK\r\n");
    assert_eq!(client.ask("GET k").await, "$5\r\nthree\r\n");
    assert_eq!(world.client().ask("GET k").await, "$-1\r\n", "it is of another database");
}

#[tokio::test]
async fn other_databases_are_there_and_apart() {
    let world = World::open().await;
    let (mut client, mut other) = (world.client(), world.client());
    assert_eq!(client.ask("SELECT 3").await, "+OK\r\n");
    assert_eq!(client.ask("SET k three").await, "+OK\r\n");
    assert_eq!(other.ask("GET k").await, "$-1\r\n");
    assert_eq!(client.ask("GET k").await, "$5\r\nthree\r\n");
    assert_eq!(client.ask("SELECT 0").await, "+OK\r\n");
    assert_eq!(client.ask("GET k").await, "$-1\r\n");
    assert!(client.ask("SELECT 99").await.starts_with("-ERR DB index is out of range"));
}

#[tokio::test]
async fn half_a_command_is_nobodys() {
    let world = World::open().await;
    let mut client = world.client();
    client.send(b"*2\r\n$3\r\nGE").await;
    client.stream.shutdown().await.unwrap();
    assert_eq!(client.reply().await, "", "it is closed");
}

#[tokio::test]
async fn a_client_that_nobody_knows_must_say_who_it_is() {
    let world = World::open().await;
    let mut client = world.client_of(None);
    assert_eq!(client.ask("GET k").await, "-NOAUTH Authentication required.\r\n");
    assert!(client.ask("HELLO 3").await.starts_with("-NOAUTH HELLO must be called"));
    assert!(client.ask("AUTH wrong").await.starts_with("-WRONGPASS "));
}

#[tokio::test]
async fn a_clients_read_sees_its_own_write_though_both_were_lost_together() {
    let mut world = World::open().await;
    let mut client = world.client();
    for round in 0..3 {
        assert_eq!(client.ask("SET k old").await, "+OK\r\n");
        assert_eq!(client.ask("GET k").await, "$3\r\nold\r\n");
        world.server.signal("STOP");
        let new = format!("new{round}");
        let lost = [resp::command(&["SET", "k", &new]), resp::command(&["GET", "k"])].concat();
        let before = world.door.view().bytes_in;
        client.send(&lost).await;
        until("they are read", async || world.door.view().bytes_in == before + lost.len() as u64)
            .await;
        world.server.kill();
        assert_eq!(client.reply().await, "+OK\r\n");
        assert_eq!(client.reply().await, format!("$4\r\n{new}\r\n"));
        world.server.restart().await;
        until("it is applied", async || world.waiting() == 0).await;
    }
}

#[tokio::test]
async fn a_score_is_cached_as_what_it_is_in_the_newer_protocol() {
    let mut world = World::open().await;
    let (mut second, mut third) = (world.client(), world.client());
    third.ask("HELLO 3").await;
    second.ask("ZADD z 1.5 m").await;
    assert_eq!(second.ask("ZSCORE z m").await, "$3\r\n1.5\r\n");
    world.server.kill();
    third.until_told("GET none", "_\r\n").await;
    assert!(third.ask("ZSCORE z m").await.starts_with("-LOADING"), "no string in its place");
    world.server.restart().await;
    world.server.ask(&["ZADD", "z", "1.5", "m"]).await;
    third.until_told("ZSCORE z m", ",1.5\r\n").await;
    world.server.kill();
    third.until_told("GET none", "_\r\n").await;
    assert_eq!(third.ask("ZSCORE z m").await, ",1.5\r\n");
}

#[tokio::test]
async fn where_the_last_reply_came_from_is_told_after_it() {
    let mut world = World::open().await;
    let mut client = world.client();
    let last = |client: &mut Wire| {
        client.send_now(&[&["GET", "k"][..], &["FUSEBOX", "LAST"]]);
    };
    assert_eq!(client.ask("SET k v").await, "+OK\r\n");
    last(&mut client);
    assert_eq!(client.reply().await, "$1\r\nv\r\n");
    assert!(client.reply().await.starts_with(b"*5\r\n$4\r\nlive"));
    world.server.kill();
    client.until_told("SET other x", "+OK\r\n").await;
    last(&mut client);
    assert_eq!(client.reply().await, "$1\r\nv\r\n");
    let told = client.reply().await;
    assert!(told.starts_with(b"*5\r\n$5\r\ncache"), "{told:?}");
    world.server.restart().await;
    until("it is applied", async || world.waiting() == 0).await;
    world.server.ask(&["SET", "k", "v"]).await;
    last(&mut client);
    assert_eq!(client.reply().await, "$1\r\nv\r\n");
    assert!(client.reply().await.starts_with(b"*5\r\n$4\r\nlive"));
}

#[tokio::test]
async fn a_cached_value_that_another_protocol_cannot_say_answers_nobody_of_that() {
    let world = World::with(Duration::from_secs(1), door()).await;
    let (mut second, mut third) = (world.client(), world.client());
    third.ask("HELLO 3").await;
    third.ask("HSET h f v").await;
    assert!(third.ask("HGETALL h").await.starts_with("%1"));
    world.server.signal("STOP");
    assert!(third.ask("HGETALL h").await.starts_with("%1"), "from the cache");
    let told = second.ask("HGETALL h").await;
    assert!(told.starts_with("-LOADING"), "{told}");
    world.server.signal("CONT");
    second.until_told("HGETALL h", "*2\r\n$1\r\nf\r\n$1\r\nv\r\n").await;
}
