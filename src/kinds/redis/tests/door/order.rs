//! A client's writes keep their order, whatever the server says to one of them.

use std::time::Instant;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
};

use super::*;

/// What becomes of what a server answers later.
#[derive(Clone, Copy)]
enum Then {
    Passes,
    /// It is lost with the connection.
    IsLost,
    /// So many bytes of it come, and nothing more.
    Stops(usize),
}

/// Is in front of a server, and answers the first `SET k 1` itself: that it is loading. (A server that begins, or whose
/// script ends, while a pipeline is read does that.) Returns its port.
async fn one_that_is_loading(port: u16, then: Then) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let own = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (door, _) = listener.accept().await.unwrap();
            let server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            let ((mut from_door, mut to_door), (mut from_server, mut to_server)) =
                (door.into_split(), server.into_split());
            let (tell, mut told) = tokio::sync::mpsc::unbounded_channel::<Vec<u8>>();
            let say = tell.clone();
            let has_lied = Arc::<std::sync::atomic::AtomicBool>::default();
            let lied = Arc::clone(&has_lied);
            tokio::spawn(async move {
                while let Some(bytes) = told.recv().await {
                    if to_door.write_all(&bytes).await.is_err() {
                        break;
                    }
                }
            });
            tokio::spawn(async move {
                let (mut buffer, mut later) = (vec![0; 65_536], 0);
                while let Ok(count @ 1..) = from_server.read(&mut buffer).await {
                    if has_lied.load(std::sync::atomic::Ordering::SeqCst) {
                        later += count;
                        match then {
                            Then::IsLost => break,
                            Then::Stops(most) if later > most => std::future::pending().await,
                            Then::Passes | Then::Stops(_) => {}
                        }
                    }
                    drop(say.send(buffer[..count].to_vec()));
                }
            });
            tokio::spawn(async move {
                let swallowed = resp::command(&["SET", "k", "1"]).to_vec();
                let mut buffer = vec![0; 65_536];
                while let Ok(count @ 1..) = from_door.read(&mut buffer).await {
                    let mut bytes = buffer[..count].to_vec();
                    let is_it = |part: &[u8]| part == swallowed;
                    if let Some(at) = bytes.windows(swallowed.len()).position(is_it) {
                        bytes.drain(at..at + swallowed.len());
                        let loading = b"-LOADING Redis is loading the dataset in memory\r\n";
                        drop(tell.send(loading.to_vec()));
                        lied.store(true, std::sync::atomic::Ordering::SeqCst);
                    }
                    if to_server.write_all(&bytes).await.is_err() {
                        break;
                    }
                }
            });
        }
    });
    own
}

async fn before_one_that_is_loading(then: Then) -> World {
    let server = Server::start().await;
    let port = one_that_is_loading(server.port, then).await;
    World::before(server, Some(port), Duration::from_secs(2), door(), &[("redis", 0)]).await
}

#[tokio::test]
async fn a_write_that_was_not_executed_is_not_carried_out_behind_a_later_one_of_its_client() {
    let world = before_one_that_is_loading(Then::Passes).await;
    let mut client = world.client();
    assert_eq!(client.ask("SET other 0").await, "+OK\r\n");
    client.send_now(&[&["SET", "k", "1"], &["SET", "k", "2"], &["SET", "other", "3"]]);
    let first = client.reply().await;
    assert!(first.starts_with(b"-LOADING"), "{first:?}");
    assert_eq!((client.reply().await, client.reply().await), ("+OK\r\n".into(), "+OK\r\n".into()));
    assert_eq!(world.server.ask(&["GET", "k"]).await, "$1\r\n2\r\n");
}

#[tokio::test]
async fn one_that_nothing_has_passed_is_tried_again() {
    let world = before_one_that_is_loading(Then::Passes).await;
    let mut client = world.client();
    assert_eq!(client.ask("SET other 0").await, "+OK\r\n");
    client.send_now(&[&["SET", "k", "1"], &["SET", "other", "3"], &["GET", "other"]]);
    // The one before the server would say the same again: it goes into the queue, or is carried another way.
    let first = client.reply().await;
    assert_eq!((first, client.reply().await), ("+OK\r\n".into(), "+OK\r\n".into()));
    assert_eq!(client.reply().await, "$1\r\n3\r\n");
}

#[tokio::test]
async fn what_was_refused_is_not_queued_behind_what_was_lost_after_it() {
    let world = before_one_that_is_loading(Then::IsLost).await;
    let mut client = world.client();
    assert_eq!(client.ask("SET other 0").await, "+OK\r\n");
    client.send_now(&[&["SET", "k", "1"], &["SET", "k", "2"]]);
    let first = client.reply().await;
    assert!(first.starts_with(b"-LOADING Redis"), "the server's own words: {first:?}");
    assert_eq!(client.reply().await, "+OK\r\n");
    until("all is applied", async || world.waiting() == 0).await;
    assert_eq!(world.server.ask(&["GET", "k"]).await, "$1\r\n2\r\n");
}

#[tokio::test]
async fn a_write_that_a_later_read_has_not_seen_is_not_acknowledged() {
    let world = before_one_that_is_loading(Then::Passes).await;
    let mut client = world.client();
    assert_eq!(client.ask("SET k 0").await, "+OK\r\n");
    client.send_now(&[&["SET", "k", "1"], &["GET", "k"]]);
    let first = client.reply().await;
    assert!(first.starts_with(b"-LOADING Redis"), "{first:?}");
    assert_eq!(client.reply().await, "$1\r\n0\r\n");
    assert_eq!(client.ask("GET k").await, "$1\r\n0\r\n");
}

/// Is in front of a server, and cuts the connection when the first answer to `request` comes. Returns its port.
async fn one_that_loses_an_answer(port: u16, request: Bytes) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let own = listener.local_addr().unwrap().port();
    let left = Arc::new(std::sync::atomic::AtomicBool::new(true));
    tokio::spawn(async move {
        loop {
            let (mut door, _) = listener.accept().await.unwrap();
            let mut server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            let (left, request) = (Arc::clone(&left), request.clone());
            tokio::spawn(async move {
                let (mut asked, mut told) = (vec![0; 65_536], vec![0; 65_536]);
                let mut cuts = false;
                loop {
                    tokio::select! {
                        Ok(count @ 1..) = door.read(&mut asked) => {
                            let bytes = &asked[..count];
                            let is_it = bytes.windows(request.len()).any(|part| part == request);
                            cuts |= is_it && left.swap(false, std::sync::atomic::Ordering::SeqCst);
                            if server.write_all(bytes).await.is_err() {
                                return;
                            }
                        }
                        Ok(count @ 1..) = server.read(&mut told) => {
                            if cuts || door.write_all(&told[..count]).await.is_err() {
                                return;
                            }
                        }
                        else => return,
                    }
                }
            });
        }
    });
    own
}

#[tokio::test]
async fn the_reply_to_a_repetition_is_not_told_as_the_first_ones() {
    for (command, value) in [("SADD s m", ":1\r\n"), ("SREM t m", ":0\r\n")] {
        let words: Vec<&str> = command.split(' ').collect();
        let server = Server::start().await;
        server.ask(&["SADD", "t", "m"]).await;
        let port = one_that_loses_an_answer(server.port, resp::command(&words)).await;
        let databases = [("redis", 0)];
        let world =
            World::before(server, Some(port), Duration::from_secs(2), door(), &databases).await;
        let mut client = world.client();
        assert_eq!(client.ask("SET other 0").await, "+OK\r\n");
        let told = client.ask(command).await;
        assert!(told.starts_with("-FUSEBOX APPLIED"), "{command}: {told}");
        assert_eq!(world.server.ask(&["SISMEMBER", words[1], "m"]).await, value, "{command}");
    }
}

#[tokio::test]
async fn who_watches_a_key_reads_the_servers_own_value() {
    let world = World::open().await;
    let mut client = world.client();
    assert_eq!(client.ask("SET k v").await, "+OK\r\n");
    assert_eq!(client.ask("GET k").await, "$1\r\nv\r\n");
    assert_eq!(client.ask("WATCH k").await, "+OK\r\n");
    let backend = &world.fusebox.backends()[0];
    backend.force(true, "test".into(), None).await.unwrap();
    for key in ["k", "none"] {
        let told = client.ask(&format!("GET {key}")).await;
        assert!(told.starts_with("-LOADING"), "neither from the cache nor made up: {told}");
    }
    backend.release().await.unwrap();
    client.until_told("GET k", "$1\r\nv\r\n").await;
    assert_eq!(client.ask("UNWATCH").await, "+OK\r\n");
    backend.force(true, "test".into(), None).await.unwrap();
    assert_eq!(client.ask("GET k").await, "$1\r\nv\r\n", "the cache may answer again");
}

#[tokio::test]
async fn a_large_reply_behind_a_write_that_was_refused_is_not_held_whole() {
    let server = Server::start().await;
    server.ask(&["SETRANGE", "large", "40000000", "x"]).await;
    let port = one_that_is_loading(server.port, Then::Stops(3 << 20)).await;
    let settings = Settings { out_client: 1 << 20, ..door() };
    let world = World::before(server, Some(port), PATIENCE * 2, settings, &[("redis", 0)]).await;
    let (mut client, mut other) = (world.client(), world.client());
    assert_eq!(other.ask("SET other 0").await, "+OK\r\n");
    let began = Instant::now();
    client.send_now(&[&["SET", "k", "1"], &["GET", "large"]]);
    until("it is disconnected", async || world.closed("slow_reader") == 1).await;
    // At once, though the server has not answered yet.
    assert_eq!(client.reply().await, "");
    assert!(began.elapsed() < PATIENCE / 2);
    assert_eq!(other.ask("GET other").await, "$1\r\n0\r\n", "it waits for nothing of that");
}

/// What is in front of a server, and holds the connection over which a request comes.
struct Holding {
    port: u16,
    holds: watch::Receiver<bool>,
    lets_go: watch::Sender<bool>,
}

impl Holding {
    async fn before(port: u16, request: Bytes) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own = listener.local_addr().unwrap().port();
        let (has_come, holds) = watch::channel(false);
        let (lets_go, may_go) = watch::channel(false);
        tokio::spawn(async move {
            loop {
                let (mut door, _) = listener.accept().await.unwrap();
                let mut server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                let (request, has_come) = (request.clone(), has_come.clone());
                let mut may_go = may_go.clone();
                tokio::spawn(async move {
                    let (mut asked, mut told) = (vec![0; 65_536], vec![0; 65_536]);
                    loop {
                        tokio::select! {
                            Ok(count @ 1..) = door.read(&mut asked) => {
                                let bytes = &asked[..count];
                                if bytes.windows(request.len()).any(|part| part == request) {
                                    has_come.send_replace(true);
                                    may_go.wait_for(|may| *may).await.ok();
                                }
                                if server.write_all(bytes).await.is_err() {
                                    return;
                                }
                            }
                            Ok(count @ 1..) = server.read(&mut told) => {
                                if door.write_all(&told[..count]).await.is_err() {
                                    return;
                                }
                            }
                            else => return,
                        }
                    }
                });
            }
        });
        Self { port: own, holds, lets_go }
    }
}

#[tokio::test]
async fn the_cache_does_not_answer_before_an_unanswered_write_of_the_same_client() {
    const OLD: &str = "$1\r\n1\r\n";
    let server = Server::start().await;
    let mut holding = Holding::before(server.port, resp::command(&["SET", "k", "2"])).await;
    let port = Some(holding.port);
    let world = World::before(server, port, PATIENCE * 2, door(), &[("redis", 0)]).await;
    let (mut writer, mut reader, mut other) = (world.client(), world.client(), world.client());
    assert!(other.ask("HELLO 3").await.contains("proto"), "it is on another connection");
    assert_eq!(writer.ask("SET k 1").await, "+OK\r\n");
    assert_eq!(other.ask("GET k").await, OLD);
    let read = || world.door.view().bytes_in;
    writer.send_now(&[&["SET", "k", "2"], &["GET", "k"]]);
    holding.holds.wait_for(|holds| *holds).await.unwrap();
    let before = read();
    reader.send_now(&[&["GET", "k"], &["GET", "k"]]);
    until("they are sent", async || read() > before).await;
    assert_eq!(other.ask("GET k").await, OLD, "and the cache has it");
    world.fusebox.backends()[0].force(true, "test".into(), None).await.unwrap();
    let before = read();
    writer.send_now(&[&["GET", "k"]]);
    until("it is read", async || read() > before).await;
    for _ in 0..2 {
        assert_eq!(reader.reply().await, OLD, "it has written nothing, and waits no longer");
    }
    holding.lets_go.send_replace(true);
    assert_eq!(writer.reply().await, "+OK\r\n");
    assert_eq!(writer.reply().await, "$1\r\n2\r\n", "what was sent with the write");
    assert_ne!(writer.reply().await, OLD, "what came when the breaker was open");
}
