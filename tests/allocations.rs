//! What a command costs at the Redis door, in a daemon that runs in this process: no allocation, once it has seen the
//! like, and no more than one sleep if it is answered at once.

#[cfg(test)]
mod allocations {
    use std::{
        alloc::System,
        ffi::OsString,
        fs,
        io::{Read, Write},
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

    /// The fewest allocations of the whole process in one of some rounds of [`COMMANDS`]: what the daemon does besides
    /// allocates too, and is not in every round.
    fn fewest(mut command: impl FnMut()) -> usize {
        (0..COMMANDS).for_each(|_| command());
        let round = |_| {
            let region = Region::new(GLOBAL);
            (0..COMMANDS).for_each(|_| command());
            region.change().allocations
        };
        (0..ROUNDS).map(round).min().unwrap()
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
    fn a_command_through_the_door_allocates_nothing_and_wakes_it_once() {
        let folder = tempfile::tempdir().unwrap();
        let [server_at, socket, door, config] =
            ["r.sock", "f.sock", "door.sock", "fusebox.toml"].map(|name| folder.path().join(name));
        let mut server = Command::new("redis-server");
        server.args(["--port", "0", "--save", "", "--unixsocket"]).arg(&server_at);
        server.stdout(Stdio::null()).current_dir(folder.path());
        let server = Server(server.spawn().expect("redis-server, which tests/setup installs"));
        connect(&server_at);
        let settings = format!(
            "[backends.clickhouse]\nenabled = false\n[backends.firestore]\nenabled = false\n\
             [backends.redis]\nurl = \"unix://{}\"\n[[doors]]\nbackend = \"redis\"\nlisten = \"unix:{}\"\n",
            server_at.display(),
            door.display()
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
        let of_a_length = fewest(|| {
            ask(&mut client, b"*2\r\n$4\r\nLLEN\r\n$4\r\nnone\r\n", b":0\r\n");
        });
        let sleeps = (0..ROUNDS).map(|_| sleeps_for(COMMANDS, &mut client)).min().unwrap();
        kill(Pid::this(), Signal::SIGTERM).unwrap();
        daemon.join().unwrap();
        drop(server);
        // One in a hundred commands would be ten.
        let all = [("GET", of_a_get), ("SET", of_a_set), ("LLEN", of_a_length)];
        assert!(all.iter().all(|(_, count)| *count < 10), "of {COMMANDS} commands: {all:?}");
        // A timer now and then.
        assert!(sleeps < COMMANDS + COMMANDS / 10, "{sleeps} sleeps for {COMMANDS} commands");
    }
}
