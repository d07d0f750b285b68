//! What a command costs at the Redis door, in a daemon that runs in this process: no allocation, once it has seen the
//! like, and no more than one sleep if it is answered at once. And what a small query allocates at the ClickHouse door,
//! and what a long one takes to be read.

#[cfg(test)]
mod allocations {
    use std::{
        alloc::System,
        ffi::OsString,
        fs,
        io::{Read, Write},
        net::{TcpListener, TcpStream},
        os::unix::net::UnixStream,
        path::Path,
        process::{Child, Command, Stdio},
        thread,
        time::{Duration, Instant},
    };

    use nix::{
        sys::signal::{Signal, kill},
        unistd::Pid,
    };
    use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

    #[global_allocator]
    static GLOBAL: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

    const LONG: Duration = Duration::from_secs(20);
    const COMMANDS: usize = 1_000;
    const ROUNDS: usize = 5;
    const QUERY: &[u8] =
        b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 24\r\n\r\nSELECT 1 + 1 FORMAT JSON";
    /// As a ClickHouse server of 2026 gives it, in several chunks.
    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nDate: Mon, 30 Nov 2026 00:00:00 GMT\r\nConnection: Keep-Alive\r\n\
        Content-Type: application/json; charset=UTF-8\r\nX-ClickHouse-Server-Display-Name: host\r\n\
        Transfer-Encoding: chunked\r\nX-ClickHouse-Query-Id: 5b0e3c5e-6d5c-4b8e-9d0a-0a8d0d0f0c0b\r\n\
        X-ClickHouse-Format: JSON\r\nX-ClickHouse-Timezone: UTC\r\nKeep-Alive: timeout=10\r\n\
        X-ClickHouse-Summary: {\"read_rows\":\"1\",\"read_bytes\":\"1\",\"elapsed_ns\":\"700000\"}\r\n\r\n\
        9\r\n{\"data\":[\r\n9\r\n{\"x\":\"2\"}\r\n3\r\n]}\n\r\n0\r\n\r\n";

    /// A server that is killed when it is dropped.
    struct Server(Child);

    impl Drop for Server {
        fn drop(&mut self) {
            self.0.kill().ok();
            self.0.wait().ok();
        }
    }

    fn connect(socket: &Path) -> UnixStream {
        let end = Instant::now() + LONG;
        loop {
            if let Ok(stream) = UnixStream::connect(socket) {
                stream.set_read_timeout(Some(LONG)).unwrap();
                return stream;
            }
            assert!(Instant::now() < end, "{} does not listen", socket.display());
            thread::yield_now();
        }
    }

    /// Sends `request` and takes `reply`, without an allocation.
    fn ask(stream: &mut UnixStream, request: &[u8], reply: &[u8]) {
        let mut room = [0; 4_096];
        let room = &mut room[..reply.len()];
        stream.write_all(request).unwrap();
        stream.read_exact(room).unwrap();
        assert_eq!(room, reply, "{:?}", String::from_utf8_lossy(room));
    }

    /// The fewest allocations of the whole process, and bytes in them, in one of some rounds of [`COMMANDS`]: what the
    /// daemon does besides allocates too, and is not in every round.
    fn fewest(mut command: impl FnMut()) -> (usize, usize) {
        (0..COMMANDS).for_each(|_| command());
        let round = |_| {
            let region = Region::new(GLOBAL);
            (0..COMMANDS).for_each(|_| command());
            let change = region.change();
            (change.allocations, change.bytes_allocated)
        };
        (0..ROUNDS).map(round).min().unwrap()
    }

    /// A stand-in for ClickHouse that has one answer, and allocates nothing once it is connected.
    fn clickhouse() -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                thread::spawn(move || while answered(&mut stream).is_some() {});
            }
        });
        port
    }

    /// Takes a request and answers it; `None` at the end.
    fn answered(stream: &mut TcpStream) -> Option<()> {
        let (mut room, mut read) = ([0; 4_096], 0);
        let end = loop {
            read += stream.read(&mut room[read..]).ok().filter(|count| *count > 0)?;
            if let Some(end) = room[..read].windows(4).position(|it| it == b"\r\n\r\n") {
                break end + 4;
            }
        };
        let head = str::from_utf8(&room[..end]).unwrap();
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().unwrap())
        });
        let whole = end + length.unwrap_or(0);
        stream.read_exact(&mut room[read..whole]).ok()?;
        stream.write_all(ANSWER).ok()
    }

    /// Sends a query and takes its answer, without an allocation.
    fn query(client: &mut UnixStream) {
        let (mut room, mut read) = ([0; 4_096], 0);
        client.write_all(QUERY).unwrap();
        while !room[..read].ends_with(b"0\r\n\r\n") {
            let count = client.read(&mut room[read..]).unwrap();
            assert!(count > 0, "{}", String::from_utf8_lossy(&room[..read]));
            read += count;
        }
        assert!(room.starts_with(b"HTTP/1.1 200 OK"), "{}", String::from_utf8_lossy(&room[..read]));
    }

    /// The bytes that are allocated to read a query with many settings, and its own.
    fn of_a_long_query() -> (usize, usize) {
        let query = format!("SELECT 1 SETTINGS {}", "a,".repeat(4 << 20));
        let region = Region::new(GLOBAL);
        assert!(!fusebox::kinds::clickhouse::protocol::json::takes_data(&query));
        (region.change().bytes_allocated, query.len())
    }

    /// How often the door's thread has slept by now.
    fn slept() -> usize {
        let mut threads = fs::read_dir("/proc/self/task").unwrap().map(|it| it.unwrap().path());
        let read = |thread: &Path, file| fs::read_to_string(thread.join(file)).unwrap_or_default();
        let door = threads.find(|it| read(it, "comm").starts_with("door-")).unwrap();
        let status = read(&door, "status");
        let count = status.lines().find_map(|it| it.strip_prefix("voluntary_ctxt_switches:"));
        count.unwrap().trim().parse().unwrap()
    }

    /// How often it sleeps for so many commands that it answers at once, to a client that takes its reply when the door
    /// sleeps again.
    fn sleeps_for(commands: usize, client: &mut UnixStream) -> usize {
        let begun = slept();
        for _ in 0..commands {
            let before = slept();
            client.write_all(b"*2\r\n$4\r\nECHO\r\n$1\r\nx\r\n").unwrap();
            while slept() == before {
                thread::yield_now();
            }
            client.read_exact(&mut [0; 7]).unwrap();
        }
        slept() - begun
    }

    #[test]
    fn a_command_allocates_nothing_and_wakes_the_door_once_and_a_small_query_needs_little() {
        let folder = tempfile::tempdir().unwrap();
        let [server_at, socket, door, queries, config] =
            ["r.sock", "f.sock", "door.sock", "queries.sock", "fusebox.toml"]
                .map(|name| folder.path().join(name));
        let mut server = Command::new("redis-server");
        server.args(["--port", "0", "--save", "", "--unixsocket"]).arg(&server_at);
        server.stdout(Stdio::null()).current_dir(folder.path());
        let server = Server(server.spawn().expect("redis-server, which tests/setup installs"));
        connect(&server_at);
        let settings = format!(
            "[backends.clickhouse]\nurl = \"http://127.0.0.1:{}\"\n[backends.firestore]\nenabled = false\n\
             [backends.redis]\nurl = \"unix://{}\"\n[[doors]]\nbackend = \"redis\"\nlisten = \"unix:{}\"\n\
             [[doors]]\nbackend = \"clickhouse\"\nlisten = \"unix:{}\"\n",
            clickhouse(),
            server_at.display(),
            door.display(),
            queries.display()
        );
        fs::write(&config, settings).unwrap();
        let state = folder.path().join("state");
        let flags = [("--config", &config), ("--state-dir", &state), ("--socket", &socket)];
        let mut arguments: Vec<OsString> = vec!["fusebox".into()];
        arguments.extend(flags.into_iter().flat_map(|(flag, path)| [flag.into(), path.into()]));
        arguments.push("run".into());
        let daemon = thread::spawn(move || fusebox::cli::run(arguments));

        let mut client = connect(&door);
        ask(&mut client, b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$5\r\nvalue\r\n", b"+OK\r\n");
        let get = b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n";
        let of_a_get = fewest(|| ask(&mut client, get, b"$5\r\nvalue\r\n"));
        let set = b"*3\r\n$3\r\nSET\r\n$1\r\nw\r\n$5\r\nvalue\r\n";
        let of_a_set = fewest(|| ask(&mut client, set, b"+OK\r\n"));
        // From now on the deadlines of keys are followed.
        let expire = b"*3\r\n$6\r\nEXPIRE\r\n$1\r\nk\r\n$3\r\n100\r\n";
        ask(&mut client, expire, b":1\r\n");
        let followed_get = fewest(|| ask(&mut client, get, b"$5\r\nvalue\r\n"));
        let followed_set = fewest(|| ask(&mut client, set, b"+OK\r\n"));
        let of_a_length = fewest(|| {
            ask(&mut client, b"*2\r\n$4\r\nLLEN\r\n$4\r\nnone\r\n", b":0\r\n");
        });
        let mut other = connect(&queries);
        let (of_a_query, bytes) = fewest(|| query(&mut other));
        let sleeps = (0..ROUNDS).map(|_| sleeps_for(COMMANDS, &mut client)).min().unwrap();
        kill(Pid::this(), Signal::SIGTERM).unwrap();
        daemon.join().unwrap();
        drop(server);
        // One in a hundred commands would be ten.
        let all = [
            ("GET", of_a_get),
            ("SET", of_a_set),
            ("GET after EXPIRE", followed_get),
            ("SET after EXPIRE", followed_set),
            ("LLEN", of_a_length),
        ];
        assert!(all.iter().all(|(_, (count, _))| *count < 10), "of {COMMANDS} commands: {all:?}");
        let (of_a_query, bytes) = (of_a_query / COMMANDS, bytes / COMMANDS);
        // Room for headers that an answer does not have was once 512 KiB of this, and room for chunks to come 320 KiB.
        assert!(
            of_a_query <= 160 && bytes <= 90_000,
            "{of_a_query} allocations of {bytes} bytes a query"
        );
        let (bytes, length) = of_a_long_query();
        assert!(bytes < 2 * length, "{bytes} bytes are allocated to read {length}");
        // A timer now and then.
        assert!(sleeps < COMMANDS + COMMANDS / 10, "{sleeps} sleeps for {COMMANDS} commands");
    }
}
