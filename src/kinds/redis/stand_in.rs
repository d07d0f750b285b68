//! A stand-in for Redis.
//!
//! It knows strings, counters, times to live, what the connector says on a new connection, and the one
//! script by which writes have tokens.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use bytes::BytesMut;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinHandle},
};

mod store;

use super::protocol::resp::{self, FrameFinder, write_bulk, write_head, write_line};
use store::Store;

/// The stand-in. It keeps its data while it is stopped.
#[derive(Debug, Default)]
pub struct StandIn {
    store: Mutex<Store>,
    clients: Mutex<BTreeMap<u64, Client>>,
    next: AtomicU64,
    listening: Mutex<Option<(SocketAddr, JoinHandle<()>)>>,
    loses_answers: AtomicBool,
}

#[derive(Debug)]
struct Client {
    name: String,
    task: Option<AbortHandle>,
}

impl StandIn {
    /// A stand-in without data that does not listen yet.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// As [`StandIn::new`], and it remembers the first `sets_max` values that `SET` gives to keys.
    pub fn with_log(sets_max: usize) -> Arc<Self> {
        let store = Mutex::new(Store::with_log(sets_max));
        Arc::new(Self { store, ..Self::default() })
    }

    /// Begins to listen; port 0 takes a free one. Returns the address at which it listens. Started again after
    /// [`StandIn::stop`], on the address that it returned, it still has its data.
    ///
    /// # Errors
    /// The address is taken or not this host's.
    pub async fn start(self: &Arc<Self>, address: SocketAddr) -> io::Result<SocketAddr> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        self.loses_answers.store(false, Ordering::Release);
        let server = Arc::clone(self);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                server.admit(stream);
            }
        });
        if let Some((_, last)) = self.listening.lock().replace((address, task)) {
            last.abort();
        }
        Ok(address)
    }

    /// Does from now on what it is asked with its data, and breaks the connection in place of an answer:
    /// until it is started again.
    pub fn lose_answers(&self) {
        self.loses_answers.store(true, Ordering::Release);
    }

    /// Drops the listener and every connection.
    pub fn stop(&self) {
        if let Some((_, task)) = self.listening.lock().take() {
            task.abort();
        }
        for client in std::mem::take(&mut *self.clients.lock()).into_values() {
            client.end();
        }
    }

    /// The address at which it listens, while it does.
    pub fn address(&self) -> Option<SocketAddr> {
        self.listening.lock().as_ref().map(|(address, _)| *address)
    }

    /// Its keys and values as text, without the markers of tokens.
    pub fn snapshot(&self) -> BTreeMap<String, String> {
        self.store.lock().snapshot()
    }

    /// The keys and values that `SET` gave, in order; `None` if there is no log, or not of all.
    pub fn log(&self) -> Option<Vec<(String, String)>> {
        self.store.lock().log()
    }

    /// How many commands a token's marker stopped from being run again.
    pub fn recognised(&self) -> u64 {
        self.store.lock().recognised()
    }

    fn admit(self: &Arc<Self>, stream: TcpStream) {
        let id = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        self.clients.lock().insert(id, Client { name: String::new(), task: None });
        let server = Arc::clone(self);
        let task = tokio::spawn(async move {
            // However a connection ends, nobody is left to hear of it.
            drop(server.serve(id, stream).await);
            server.clients.lock().remove(&id);
        });
        match self.clients.lock().get_mut(&id) {
            Some(client) => client.task = Some(task.abort_handle()),
            None => task.abort(),
        }
    }

    async fn serve(&self, id: u64, mut stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let (mut finder, mut inbox) = (FrameFinder::default(), BytesMut::new());
        let (mut out, mut resp3, mut is_lost) = (BytesMut::new(), false, false);
        while stream.read_buf(&mut inbox).await? > 0 {
            while let Some(frame) = finder.next(&mut inbox).map_err(io::Error::other)? {
                let args = resp::arguments(&frame).map_err(io::Error::other)?;
                // Held while the command runs: who was killed runs nothing any more.
                let mut clients = self.clients.lock();
                if !clients.contains_key(&id) {
                    return Ok(());
                }
                let mut connection = Connection { id, resp3, clients: &mut clients };
                let mut store = self.store.lock();
                if !connection.answer(&args, &mut out) {
                    store.answer(&args, resp3, &mut out);
                    is_lost |= self.loses_answers.load(Ordering::Acquire);
                }
                resp3 = connection.resp3;
            }
            if is_lost {
                return Ok(());
            }
            stream.write_all(&out.split()).await?;
        }
        Ok(())
    }
}

impl Client {
    fn end(&self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// What a command may say of connections.
struct Connection<'a> {
    id: u64,
    resp3: bool,
    clients: &'a mut BTreeMap<u64, Client>,
}

impl Connection<'_> {
    /// Answers what is about connections and the server; false if `args` are about data.
    fn answer(&mut self, args: &[&[u8]], out: &mut BytesMut) -> bool {
        let words: Vec<String> =
            args.iter().take(4).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
        let upper: Vec<String> = words.iter().map(|word| word.to_ascii_uppercase()).collect();
        let upper: Vec<&str> = upper.iter().map(String::as_str).collect();
        match upper.as_slice() {
            ["PING"] => write_line(out, "+PONG"),
            ["HELLO", version @ ..] => {
                self.resp3 = version.first() == Some(&"3") || (version.is_empty() && self.resp3);
                write_head(out, if self.resp3 { '%' } else { '*' }, if self.resp3 { 2 } else { 4 });
                write_bulk(out, b"server");
                write_bulk(out, b"redis");
                write_bulk(out, b"proto");
                write_line(out, if self.resp3 { ":3" } else { ":2" });
            }
            ["AUTH" | "SELECT", ..] => write_line(out, "+OK"),
            ["CLIENT", "SETNAME", _] => {
                if let (Some(client), Some(name)) = (self.clients.get_mut(&self.id), words.get(2)) {
                    client.name.clone_from(name);
                }
                write_line(out, "+OK");
            }
            ["CLIENT", "ID"] => write_line(out, &format!(":{}", self.id)),
            ["CLIENT", "LIST"] => {
                let mut list = String::new();
                for (id, client) in self.clients.iter() {
                    // Writing to a string does not fail.
                    writeln!(list, "id={id} name={} db=0", client.name).unwrap_or_default();
                }
                write_bulk(out, list.as_bytes());
            }
            ["CLIENT", "KILL", "ID", id] => {
                let killed = id.parse().ok().and_then(|id: u64| self.clients.remove(&id));
                write_line(out, if killed.is_some() { ":1" } else { ":0" });
                if let Some(client) = killed {
                    client.end();
                }
            }
            ["INFO", ..] => write_bulk(
                out,
                b"# Server\r\nredis_version:7.0.0-stand-in\r\nrun_id:stand-in\r\nrole:master\r\n\
                  maxmemory_policy:noeviction\r\ncluster_enabled:0\r\n",
            ),
            ["COMMAND", ..] => write_line(out, "*0"),
            ["CONFIG", "GET", ..] => write_line(out, if self.resp3 { "%0" } else { "*0" }),
            _ => return false,
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{
        protocol::{residue, token},
        testing::{Server, ask},
    };
    use super::*;

    async fn stand_in() -> (Arc<StandIn>, SocketAddr) {
        let server = StandIn::new();
        let address = server.start(crate::net::test_port::own_address()).await.unwrap();
        (server, address)
    }

    #[tokio::test]
    async fn answers_as_a_real_server_does() {
        let real = Server::start().await;
        let (_server, address) = stand_in().await;
        for command in [
            "PING",
            "SET k 1",
            "GET k",
            "GET none",
            "SET k 2 NX",
            "SET k 3 XX",
            "SET none 1 XX",
            "INCR k",
            "INCRBY k 10",
            "INCRBY k x",
            "MSET a 1 b two",
            "MGET a b none",
            "INCR b",
            "EXISTS a b none a",
            "TTL a",
            "TTL none",
            "EXPIRE a 100",
            "TTL a",
            "SET c 1 EX 5",
            "TTL c",
            "SET c 1 EX 0",
            "SET c 1 BAD",
            "INCR c",
            "EXPIRE none 5",
            "PEXPIRE c 0",
            "GET c",
            "DEL a b none",
            "UNLINK k k",
            "DECR new",
            "EXPIRE new x",
        ] {
            let words: Vec<&str> = command.split(' ').collect();
            let (expected, got) = (ask(real.port, &words).await, ask(address.port(), &words).await);
            assert_eq!(got, expected, "{command}");
        }
        for command in ["INCR n", "SET s text", "INCR s", "INCR s", "SET s x NX", "GET s"] {
            let marker = format!("fusebox:{command}");
            let key = command.split(' ').nth(1).unwrap();
            let mut words = vec!["EVAL", token::SCRIPT, "2", &marker, key, "2", "d", "0"];
            words.extend(command.split(' '));
            for _ in 0..2 {
                let (expected, got) =
                    (ask(real.port, &words).await, ask(address.port(), &words).await);
                assert_eq!(got, expected, "{command} in the script");
            }
        }
        let words = ["EVAL", token::SCRIPT, "1", "d", "2", "", "1", "d", "9", "SET", "d", "v"];
        let (expected, got) = (ask(real.port, &words).await, ask(address.port(), &words).await);
        assert_eq!(got, expected, "without a marker");
        let far = residue::far(5).to_string();
        for (command, left) in [
            (&["SET", "far", "v", "PXAT", far.as_str()][..], "900000"),
            (&["SET", "near", "v", "PX", "9000"], "-5"),
            (&["SET", "none", "v"], "-5"),
            (&["SET", "past", "v", "PXAT", far.as_str()], "-5"),
        ] {
            let settle = ["EVAL", residue::SCRIPT, "1", command[1], far.as_str(), left];
            for words in [command, &settle, &["TTL", command[1]]] {
                let (expected, got) =
                    (ask(real.port, words).await, ask(address.port(), words).await);
                assert_eq!(got, expected, "{words:?}");
            }
        }
        for server in [real.port, address.port()] {
            assert_eq!(ask(server, &["EXISTS", "d"]).await, ":0\r\n", "its deadline has passed");
        }
    }

    #[tokio::test]
    async fn a_write_whose_answer_is_lost_is_there() {
        let (server, address) = stand_in().await;
        server.lose_answers();
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream
            .write_all(b"*1\r\n$4\r\nPING\r\n*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1\r\n1\r\n")
            .await
            .unwrap();
        let mut answers = String::new();
        stream.read_to_string(&mut answers).await.unwrap();
        assert!(!answers.contains("OK"), "{answers}");
        assert_eq!(server.snapshot(), BTreeMap::from([("k".to_owned(), "1".to_owned())]));
    }

    #[tokio::test]
    async fn keeps_its_data_while_it_is_stopped() {
        let (server, address) = stand_in().await;
        ask(address.port(), &["SET", "k", "v"]).await;
        server.stop();
        assert_eq!(server.address(), None);
        super::super::testing::until("nobody listens", || async {
            TcpStream::connect(address).await.is_err()
        })
        .await;
        assert_eq!(server.start(address).await.unwrap(), address);
        assert_eq!(ask(address.port(), &["GET", "k"]).await, "$1\r\nv\r\n");
        assert_eq!(server.snapshot(), BTreeMap::from([("k".to_owned(), "v".to_owned())]));
    }

    #[tokio::test]
    async fn serves_the_connector_with_its_fence_and_tokens() {
        use super::super::{connector::RedisConnector, testing::settings};
        use fusebox_actors::connector::{Attempt, Connector, Origin};
        use fusebox_state::{OpId, UnixMillis};
        let (server, address) = stand_in().await;
        for run in ["one", "two"] {
            let redis = RedisConnector::new(settings(address.port(), "i", run));
            let plan = redis.plan(resp::command(&["INCR", "n"])).unwrap();
            let at = UnixMillis::new(1);
            let ended = redis
                .attempt(Attempt {
                    body: &plan.body,
                    lanes: &plan.lanes,
                    write: true,
                    origin: Origin::Live,
                    token: Some(OpId::new(at, 1)),
                    digest: 0,
                    doubt: None,
                    following: &[],
                    streams: false,
                    upload: None,
                    dialect: 0,
                    passage: None,
                    accepted_at: at,
                    now: at,
                    timeout: Duration::from_secs(2),
                    left: Duration::from_secs(2),
                    fence_patience: Duration::from_secs(2),
                    trace: None,
                })
                .await;
            assert!(!ended.reply_lost, "in run {run}");
            assert_eq!(ended.result.unwrap(), ":1\r\n");
            assert!(redis.status().warnings.is_empty());
        }
        assert_eq!(server.snapshot(), BTreeMap::from([("n".to_owned(), "1".to_owned())]));
        server.stop();
    }
}
