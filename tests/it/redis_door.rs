//! The Redis door with stock clients, which know nothing of it but its address.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::support::daemon::Daemon;
use crate::support::outage::{begin_outage, operated, recover};
use crate::support::poll::eventually;
use crate::support::proc::venv_python;
use crate::support::redis::RedisServer;

const LONG: Duration = Duration::from_secs(20);

/// A program that uses a client, and what tells it which one.
pub(crate) struct Stock {
    program: Command,
    which: &'static str,
}

impl Stock {
    /// redis-py with a protocol, or with `-python` behind it, which is redis-py without hiredis.
    pub(crate) fn python(which: &'static str) -> Self {
        let mut program = Command::new(venv_python());
        program.arg(support("redis_client.py"));
        Self { program, which }
    }

    /// redis-py's asyncio client with a protocol.
    pub(crate) fn asyncio(protocol: &'static str) -> Self {
        let mut program = Command::new(venv_python());
        program.arg(support("redis_client_async.py"));
        Self { program, which: protocol }
    }

    /// `ioredis` or `node_redis`.
    pub(crate) fn node(client: &'static str) -> Self {
        let mut program = Command::new("node");
        program.arg(support("redis_clients.mjs"));
        Self { program, which: client }
    }

    /// The program, about to do one phase of what it can at the door of a daemon.
    pub(crate) fn command(mut self, daemon: &Daemon, phase: &str) -> Command {
        self.program.arg(door_of(daemon)).args([phase, self.which]);
        self.program
    }

    #[track_caller]
    fn run(self, daemon: &Daemon, phase: &str) {
        let which = self.which;
        let output = self.command(daemon, phase).output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{which} {phase}: {said}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "ok\n", "{which} {phase}");
    }
}

fn support(script: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support").join(script)
}

/// Uses a client while the server is up, through an outage in which it restarts, and afterwards.
fn through_an_outage(client: impl Fn() -> Stock) {
    let mut redis = RedisServer::start();
    let daemon = operated(&redis.url()).start();
    client().run(&daemon, "live");
    begin_outage(&mut redis, &daemon);
    client().run(&daemon, "outage");
    redis.restart();
    recover(&daemon);
    daemon.wait_until_drained("redis", LONG);
    client().run(&daemon, "after");
    assert_eq!(daemon.queued("redis", "dead"), 0);
}

#[test]
fn redis_py_speaks_resp3_through_an_outage() {
    through_an_outage(|| Stock::python("3"));
}

#[test]
fn redis_py_speaks_resp2_through_an_outage() {
    through_an_outage(|| Stock::python("2"));
}

#[test]
fn redis_py_without_hiredis_works_through_an_outage() {
    through_an_outage(|| Stock::python("3-python"));
}

#[test]
fn redis_py_with_asyncio_speaks_resp3_through_an_outage() {
    through_an_outage(|| Stock::asyncio("3"));
}

#[test]
fn redis_py_with_asyncio_speaks_resp2_through_an_outage() {
    through_an_outage(|| Stock::asyncio("2"));
}

#[test]
fn ioredis_works_through_an_outage() {
    through_an_outage(|| Stock::node("ioredis"));
}

#[test]
fn node_redis_works_through_an_outage() {
    through_an_outage(|| Stock::node("node_redis"));
}

/// The socket of the door that a daemon has without any setting.
pub(crate) fn door_of(daemon: &Daemon) -> PathBuf {
    daemon.socket().with_file_name("redis.sock")
}

/// The `redis` crate as a client of a door.
pub(crate) fn redis_rs(socket: &Path) -> redis::Connection {
    let client = redis::Client::open(format!("unix://{}", socket.display())).expect("an address");
    client.get_connection().expect("a connection")
}

#[test]
fn redis_rs_is_answered_from_the_cache_at_once_while_the_server_is_frozen() {
    let redis = RedisServer::start();
    let daemon = Daemon::with_redis(&redis.url())
        .set("health.interval", "1h")
        .set("health.timeout", "1s")
        .set("backends.redis.breaker.recovery_timeout", "1s")
        .start();
    let mut client = redis_rs(&door_of(&daemon));
    redis::cmd("MSET").arg(&["a", "1", "b", "2"]).exec(&mut client).unwrap();
    // Both fill the cache: a read of one key, and the parts of one of several.
    let both: Vec<Option<String>> =
        redis::cmd("MGET").arg(&["a", "b", "c"]).query(&mut client).unwrap();
    assert_eq!(both, [Some("1".into()), Some("2".into()), None]);
    redis.freeze();
    let began = Instant::now();
    for (key, value) in [("a", Some("1")), ("b", Some("2")), ("c", None)] {
        let read: Option<String> = redis::cmd("GET").arg(key).query(&mut client).unwrap();
        assert_eq!(read.as_deref(), value, "{key}");
    }
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert!(daemon.metric("door_commands_total", &[("source", "cache")]) >= 3.0);
    redis.thaw();
    eventually("it is live again", LONG, || {
        redis::cmd("SET").arg(&["a", "3"]).query::<String>(&mut client).is_ok()
            && redis.get("a").as_deref() == Some("3")
    });
    let read: Option<String> = redis::cmd("GET").arg("a").query(&mut client).unwrap();
    assert_eq!(read.as_deref(), Some("3"));
}

#[test]
fn a_reload_under_a_door_costs_its_clients_nothing() {
    let redis = RedisServer::start();
    let mut daemon = operated(&redis.url()).start();
    let (door, stop) = (door_of(&daemon), AtomicBool::new(false));
    let count = |daemon: &Daemon| daemon.metric("door_commands_total", &[]);
    let done = std::thread::scope(|scope| {
        let work = |worker: usize| {
            let (mut client, mut count) = (redis_rs(&door), 0_u64);
            while !stop.load(Ordering::Relaxed) {
                let key = format!("n{worker}");
                let told: u64 = redis::cmd("INCR").arg(&key).query(&mut client).unwrap();
                count += 1;
                assert_eq!(told, count, "each is applied once");
            }
            count
        };
        let workers: Vec<_> = (0..4).map(|worker| scope.spawn(move || work(worker))).collect();
        for timeout in ["4s", "3s", "2s", "6s"] {
            let before = count(&daemon);
            daemon.set("backends.redis.timeout", timeout);
            assert!(daemon.fusebox(&["config", "reload"]).status.success());
            eventually("its clients go on", LONG, || count(&daemon) > before + 200.0);
        }
        stop.store(true, Ordering::Relaxed);
        workers.into_iter().map(|worker| worker.join().unwrap()).collect::<Vec<_>>()
    });
    for (worker, count) in done.into_iter().enumerate() {
        assert_eq!(redis.get(&format!("n{worker}")), Some(count.to_string()));
    }
}

#[test]
fn after_a_reload_of_the_database_what_is_queued_stays_before_what_is_live() {
    let mut redis = RedisServer::start();
    let mut daemon = operated(&redis.url()).start();
    let mut client = redis_rs(&door_of(&daemon));
    redis::cmd("SET").arg(&["k", "of 0"]).exec(&mut client).unwrap();
    let of_2 = format!("{}/2", redis.url().trim_end_matches("/0").trim_end_matches('/'));
    daemon.set("backends.redis.url", of_2);
    assert!(daemon.fusebox(&["config", "reload"]).status.success());
    redis::cmd("SET").arg(&["k", "of 2"]).exec(&mut client).unwrap();
    begin_outage(&mut redis, &daemon);
    // By the way of JSON calls, and by the door: both must mean one lane.
    daemon.redis(&["SET", "k", "queued"]).assert_queued();
    let read: String = redis::cmd("GET").arg("k").query(&mut client).unwrap();
    assert_eq!(read, "queued");
    redis.restart();
    recover(&daemon);
    daemon.wait_until_drained("redis", LONG);
    let read: String = redis::cmd("GET").arg("k").query(&mut client).unwrap();
    assert_eq!(read, "queued");
    assert_eq!(redis.get("k").as_deref(), Some("of 0"), "the other database is as it was");
}

#[test]
fn clients_that_come_while_a_large_queue_is_opened_wait_and_are_not_refused() {
    let mut redis = RedisServer::start();
    let mut daemon = operated(&redis.url()).start();
    begin_outage(&mut redis, &daemon);
    let (door, large) = (door_of(&daemon), "v".repeat(1 << 20));
    let mut client = redis_rs(&door);
    for number in 0..48 {
        redis::cmd("SET").arg(&[&format!("large{number}"), &large]).exec(&mut client).unwrap();
    }
    redis::cmd("SET").arg(&["gone", "1"]).exec(&mut client).unwrap();
    let removed: u8 = redis::cmd("DEL").arg("gone").query(&mut client).unwrap();
    assert_eq!(removed, 1);
    daemon.kill_9();
    std::thread::scope(|scope| {
        let come = |number: usize| {
            let mut client = loop {
                match Plain::connect(&door) {
                    Ok(client) => break client,
                    Err(_) => std::thread::yield_now(),
                }
            };
            let words = format!("DEL gone\r\nSET small{number} {number}\r\nGET large{number}\r\n");
            client.stream.get_mut().write_all(words.as_bytes()).unwrap();
            // What a DEL is answered is known from the queue alone.
            assert_eq!(client.reply().unwrap(), ":0", "{number}");
            let (set, got) = (client.reply().unwrap(), client.reply().unwrap());
            assert_eq!((&*set, got.len()), ("+OK", 1 << 20), "{number}");
        };
        for number in 0..8 {
            scope.spawn(move || come(number));
        }
        daemon.restart();
    });
    let log = std::fs::read_to_string(daemon.log()).unwrap();
    assert!(log.contains("the queue is being opened"), "{log}");
    redis.restart();
    recover(&daemon);
    daemon.wait_until_drained("redis", LONG);
    for number in 0..8 {
        assert_eq!(redis.get(&format!("small{number}")), Some(number.to_string()));
    }
}

/// What a client that sets one key to ever higher numbers knows of it.
struct Counter {
    key: String,
    /// It sets a second key with it, in a transaction.
    sets_two: bool,
    /// The last number that it tried.
    last: u64,
    /// The highest that was acknowledged.
    acknowledged: u64,
    /// The highest that may have been set, as no answer says that it was not.
    possible: u64,
}

/// What came of a pipeline of SETs and GETs.
#[derive(Default)]
struct Tally {
    set: u64,
    got: u64,
    /// Of those that were got: what had to be the number that was set just before.
    exact: u64,
    refused: u64,
}

impl Counter {
    /// Sends so many times SET and GET in one write and looks at every answer. An error is the end of the connection.
    /// `outages` is odd from before Redis is killed until the daemon has found it again.
    ///
    /// A GET answers the number of the SET before it, if that was acknowledged. Only a GET whose connection to Redis
    /// breaks before its reply is here is sent again, and may then see what its client has set behind it. Redis's
    /// connections break when it is killed, and at no other time: the test gives it longer to answer than it is
    /// likely to need. So a pipeline that began, and whose answer was read, between two outages has to be exact. One
    /// that began in an outage is never judged so: it may have been sent to a Redis that was dead already. A kill of
    /// the daemon is no exception either. It ends the connection, so no answer comes that could be wrong; and a new
    /// daemon sends no write before all that the old one has sent was executed, or cannot be any more.
    fn pipeline(
        &mut self,
        door: &mut Plain,
        times: u64,
        outages: &AtomicU64,
        tally: &mut Tally,
    ) -> std::io::Result<()> {
        let began = outages.load(Ordering::SeqCst);
        // Looked at after an answer was read: a kill that had a part in it was announced before.
        let is_steady = || began.is_multiple_of(2) && outages.load(Ordering::SeqCst) == began;
        let numbers = self.last + 1..=self.last + times;
        self.last += times;
        let (before, behind) = if self.sets_two { ("MULTI\r\n", "EXEC\r\n") } else { ("", "") };
        let pair = |number| {
            let key = &self.key;
            let too = format!("SET {key}:too {number}\r\n");
            let too = if self.sets_two { &*too } else { "" };
            format!("{before}SET {key} {number}\r\n{too}{behind}GET {key}\r\n")
        };
        let words = numbers.clone().map(pair).collect::<Vec<_>>().concat();
        door.stream.get_mut().write_all(words.as_bytes())?;
        for number in numbers {
            let told = if self.sets_two { door.transaction()? } else { door.reply()? };
            let is_set = told == "+OK";
            if is_set {
                (self.acknowledged, self.possible) = (number, number);
                tally.set += 1;
            } else if told.starts_with("-FUSEBOX UNKNOWN ") {
                self.possible = number;
                tally.refused += 1;
            } else {
                let words = ["-LOADING ", "-EXECABORT "];
                assert!(words.iter().any(|word| told.starts_with(word)), "{told}");
                tally.refused += 1;
            }
            let told = door.reply()?;
            let is_steady = is_steady();
            if let Ok(value) = told.parse::<u64>() {
                // The number itself, if it was set between two outages.
                let highest = if is_steady { self.possible } else { self.last };
                let allowed = self.acknowledged..=highest;
                assert!(allowed.contains(&value), "{} is {value}, not {allowed:?}", self.key);
                tally.got += 1;
                tally.exact += u64::from(is_set && is_steady);
            } else {
                // Nothing is known of it while the server is away.
                let is_nil = told == "$-1" && !(is_set && is_steady);
                assert!(is_nil || told.starts_with("-LOADING "), "{} is {told}", self.key);
                tally.refused += 1;
            }
        }
        Ok(())
    }
}

/// A client that sees the bytes.
struct Plain {
    stream: BufReader<UnixStream>,
}

impl Plain {
    fn connect(door: &Path) -> std::io::Result<Self> {
        let stream = UnixStream::connect(door)?;
        stream.set_read_timeout(Some(LONG))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// A line, or the text of a string.
    fn reply(&mut self) -> std::io::Result<String> {
        let line = self.line()?;
        if line.starts_with('$') && line != "$-1" { self.line() } else { Ok(line) }
    }

    /// What comes of a transaction of two writes.
    fn transaction(&mut self) -> std::io::Result<String> {
        for _ in 0..3 {
            self.line()?;
        }
        let told = self.line()?;
        if told != "*2" {
            return Ok(told);
        }
        let both = [self.line()?, self.line()?];
        assert_eq!(both, ["+OK", "+OK"]);
        Ok("+OK".to_owned())
    }

    fn line(&mut self) -> std::io::Result<String> {
        let mut line = String::new();
        match self.stream.read_line(&mut line) {
            Ok(0) => Err(std::io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => Ok(line.trim_end().to_owned()),
            Err(error) => {
                assert!(
                    error.kind() != std::io::ErrorKind::WouldBlock,
                    "no answer within {LONG:?}"
                );
                Err(error)
            }
        }
    }
}

#[test]
fn what_is_set_is_what_is_got_whatever_is_killed() {
    let rounds = std::env::var("FUSEBOX_TEST_ROUNDS").map_or(2, |rounds| rounds.parse().unwrap());
    let mut redis = RedisServer::start();
    // A busy disk must not make Redis so slow that its connections are given up.
    let mut daemon = operated(&redis.url()).set("backends.redis.timeout", "15s").start();
    let (door, stop, outages) = (door_of(&daemon), AtomicBool::new(false), AtomicU64::new(0));
    let (done, tally) = std::thread::scope(|scope| {
        let work = |worker: u64| {
            let mut counter = Counter {
                key: format!("counter{worker}"),
                sets_two: worker % 2 == 1,
                last: 0,
                acknowledged: 0,
                possible: 0,
            };
            let (mut tally, mut random) = (Tally::default(), fastrand::Rng::with_seed(worker));
            while !stop.load(Ordering::Relaxed) {
                let Ok(mut client) = Plain::connect(&door) else {
                    std::thread::yield_now();
                    continue;
                };
                while !stop.load(Ordering::Relaxed) {
                    let times = random.u64(1..=64);
                    if counter.pipeline(&mut client, times, &outages, &mut tally).is_err() {
                        counter.possible = counter.last;
                        break;
                    }
                }
            }
            (counter, tally)
        };
        let workers: Vec<_> = (0..4).map(|worker| scope.spawn(move || work(worker))).collect();
        let writes = |daemon: &Daemon| daemon.metric("door_commands_total", &[]);
        for _ in 0..rounds {
            for kills_redis in [false, true] {
                if kills_redis {
                    outages.fetch_add(1, Ordering::SeqCst);
                    redis.kill_9();
                    daemon.wait_for_breaker("redis", "OPEN", LONG);
                    redis.restart();
                    recover(&daemon);
                    outages.fetch_add(1, Ordering::SeqCst);
                } else {
                    daemon.kill_9();
                    daemon.restart();
                }
                let before = writes(&daemon);
                eventually("its clients go on", LONG, || writes(&daemon) > before + 10_000.0);
            }
        }
        stop.store(true, Ordering::Relaxed);
        let done: Vec<_> = workers.into_iter().map(|worker| worker.join().unwrap()).collect();
        let (counters, tallies): (Vec<_>, Vec<_>) = done.into_iter().unzip();
        let all = tallies.iter().fold(Tally::default(), |all, one| Tally {
            set: all.set + one.set,
            got: all.got + one.got,
            exact: all.exact + one.exact,
            refused: all.refused + one.refused,
        });
        (counters, all)
    });
    let Tally { set, got, exact, refused } = tally;
    println!("{set} set, {got} got, {exact} of them exact, {refused} refused");
    daemon.wait_until_drained("redis", LONG);
    for counter in done {
        let value: u64 = redis.get(&counter.key).unwrap().parse().unwrap();
        assert!(
            (counter.acknowledged..=counter.last).contains(&value),
            "{} is {value}",
            counter.key
        );
        if counter.sets_two {
            let too = redis.get(&format!("{}:too", counter.key));
            assert_eq!(too, Some(value.to_string()), "{}", counter.key);
        }
    }
    assert!(set > 5_000 && got > 5_000 && exact > 5_000);
}
