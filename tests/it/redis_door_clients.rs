//! The Redis door with clients that stay: long-lived ones of each library, through everything that can happen to the
//! server and to the daemon, and the `redis` crate with what its users use of it.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::redis_door::{Stock, door_of, redis_rs};
use crate::support::daemon::Daemon;
use crate::support::outage::{begin_outage, operated, recover};
use crate::support::poll::{eventually, stays};
use crate::support::redis::RedisServer;

const LONG: Duration = Duration::from_secs(20);
/// Long enough for an answer, if there is anybody who gives one.
const A_WHILE: Duration = Duration::from_millis(300);
/// How many writes show that all is well.
const SOME: usize = 20;

/// A client in a process of its own, the same one from the beginning to the end of a test. It sets a number when it is
/// asked to, again and again until that is acknowledged; reads it back; and says the key.
struct LongLived {
    process: Child,
    orders: ChildStdin,
    said: Receiver<String>,
    /// The number of the last order.
    last: u64,
    /// Every key that was said, and its number.
    acknowledged: Vec<(String, u64)>,
}

impl LongLived {
    fn start(stock: Stock, daemon: &Daemon) -> Self {
        let mut command = stock.command(daemon, "lives");
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().expect("it starts");
        let orders = process.stdin.take().expect("its input is a pipe");
        let output = BufReader::new(process.stdout.take().expect("its output is a pipe"));
        let (sender, said) = channel();
        // It ends with the process.
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { process, orders, said, last: 0, acknowledged: Vec::new() }
    }

    /// Asks for one more write.
    fn begin(&mut self) {
        self.last += 1;
        writeln!(self.orders, "{}", self.last).expect("it takes orders");
    }

    /// Waits until what was begun is acknowledged and has been read back.
    #[track_caller]
    fn finish(&mut self) {
        let key = self.said.recv_timeout(LONG);
        let key = key.unwrap_or_else(|error| panic!("write {}: {error}", self.last));
        assert!(key.ends_with(&format!(":{}", self.last)), "{key}, not of {}", self.last);
        self.acknowledged.push((key, self.last));
    }

    /// Some writes, one after the other.
    #[track_caller]
    fn writes(&mut self) {
        for _ in 0..SOME {
            self.begin();
            self.finish();
        }
    }
}

impl Drop for LongLived {
    fn drop(&mut self) {
        self.process.kill().expect("it is ours to kill");
        self.process.wait().expect("it can be waited for");
    }
}

/// Stops the daemon, and waits until each of its threads has stopped.
fn freeze(daemon: &Daemon) {
    daemon.signal(Signal::SIGSTOP);
    let tasks = format!("/proc/{}/task", daemon.id());
    let is_stopped = |task: std::io::Result<fs::DirEntry>| {
        let stat = task.and_then(|task| fs::read_to_string(task.path().join("stat")));
        // What ends meanwhile does nothing any more.
        stat.map_or(true, |stat| stat.rsplit(") ").next().is_some_and(|it| it.starts_with('T')))
    };
    eventually("all its threads have stopped", LONG, || {
        fs::read_dir(&tasks).expect("its threads").all(is_stopped)
    });
}

/// Uses one client while the server and the daemon are killed and stopped in turn.
fn lives_through_everything(stock: Stock) {
    let mut redis = RedisServer::start();
    let mut daemon = operated(&redis.url()).set("backends.redis.timeout", "2s").start();
    let mut client = LongLived::start(stock, &daemon);
    client.writes();

    redis.kill_9();
    client.writes();
    daemon.wait_for_breaker("redis", "OPEN", LONG);
    redis.restart();
    recover(&daemon);
    daemon.wait_until_drained("redis", LONG);
    client.writes();

    redis.freeze();
    client.writes();
    daemon.wait_for_breaker("redis", "OPEN", LONG);
    redis.thaw();
    recover(&daemon);
    daemon.wait_until_drained("redis", LONG);
    client.writes();

    daemon.kill_9();
    client.begin();
    daemon.restart();
    client.finish();
    client.writes();

    freeze(&daemon);
    client.begin();
    let said = &client.said;
    stays("a stopped daemon answers nothing", A_WHILE, || said.try_recv().is_err());
    daemon.signal(Signal::SIGCONT);
    client.finish();
    client.writes();

    // A busy disk may have opened the breaker.
    recover(&daemon);
    daemon.wait_until_drained("redis", LONG);
    assert_eq!(client.acknowledged.len(), 7 * SOME + 2);
    for (key, number) in &client.acknowledged {
        assert_eq!(redis.get(key), Some(number.to_string()), "{key}");
    }
}

#[test]
fn one_redis_py_lives_through_kills_and_stops_of_the_server_and_the_daemon() {
    lives_through_everything(Stock::python("3"));
}

#[test]
fn one_asyncio_client_lives_through_kills_and_stops_of_the_server_and_the_daemon() {
    lives_through_everything(Stock::asyncio("3"));
}

#[test]
fn one_ioredis_lives_through_kills_and_stops_of_the_server_and_the_daemon() {
    lives_through_everything(Stock::node("ioredis"));
}

#[test]
fn one_node_redis_lives_through_kills_and_stops_of_the_server_and_the_daemon() {
    lives_through_everything(Stock::node("node_redis"));
}

#[test]
fn redis_rs_has_its_pipelines_answered_in_order_and_sees_that_a_watched_key_has_changed() {
    let redis = RedisServer::start();
    let daemon = operated(&redis.url()).start();
    let door = door_of(&daemon);
    let (mut client, mut other) = (redis_rs(&door), redis_rs(&door));

    let mut pipe = redis::pipe();
    for number in 0..300 {
        pipe.cmd("SET").arg("n").arg(number).cmd("GET").arg("n");
    }
    let answers: Vec<String> = pipe.query(&mut client).unwrap();
    let expected = (0..300).flat_map(|number| ["OK".to_owned(), number.to_string()]);
    assert_eq!(answers, expected.collect::<Vec<_>>());

    let mut seen = Vec::new();
    let (value,): (u64,) = redis::transaction(&mut client, &["n"], |client, pipe| {
        let value: u64 = redis::cmd("GET").arg("n").query(client)?;
        seen.push(value);
        if seen.len() == 1 {
            redis::cmd("SET").arg(&["n", "1000"]).exec(&mut other)?;
        }
        pipe.cmd("SET").arg("n").arg(value + 1).ignore().cmd("GET").arg("n").query(client)
    })
    .unwrap();
    assert_eq!((seen, value), (vec![299, 1000], 1001));
    assert_eq!(redis.get("n").as_deref(), Some("1001"));
}

#[test]
fn redis_rs_waits_for_jobs_and_hears_messages() {
    let redis = RedisServer::start();
    let daemon = operated(&redis.url()).start();
    let door = door_of(&daemon);
    let (mut client, mut other) = (redis_rs(&door), redis_rs(&door));

    let popped: (String, String) = thread::scope(|scope| {
        let waiter =
            scope.spawn(|| redis::cmd("BLPOP").arg(&["jobs", "20"]).query(&mut client).unwrap());
        eventually("it waits at the server", LONG, || {
            redis.query::<String>(&["INFO", "clients"]).contains("blocked_clients:1\r\n")
        });
        redis::cmd("RPUSH").arg(&["jobs", "job"]).exec(&mut other).unwrap();
        waiter.join().unwrap()
    });
    assert_eq!(popped, ("jobs".to_owned(), "job".to_owned()));
    let none: Option<(String, String)> =
        redis::cmd("BLPOP").arg(&["jobs", "0.1"]).query(&mut client).unwrap();
    assert_eq!(none, None);

    let mut heard = client.as_pubsub();
    heard.set_read_timeout(Some(LONG)).unwrap();
    heard.subscribe("news").unwrap();
    let reached: u64 = redis::cmd("PUBLISH").arg(&["news", "hi"]).query(&mut other).unwrap();
    assert_eq!(reached, 1);
    let message = heard.get_message().unwrap();
    let payload: String = message.get_payload().unwrap();
    assert_eq!((message.get_channel_name(), payload.as_str()), ("news", "hi"));
    drop(heard);
    let left: u64 = redis::cmd("LLEN").arg("jobs").query(&mut client).unwrap();
    assert_eq!(left, 0, "it is a client like any other again");
}

#[test]
fn redis_rs_gets_the_bytes_that_it_has_set_also_through_an_outage() {
    let mut redis = RedisServer::start();
    let daemon = operated(&redis.url()).start();
    let mut client = redis_rs(&door_of(&daemon));
    let get = |client: &mut redis::Connection, key: &[u8]| -> Option<Vec<u8>> {
        redis::cmd("GET").arg(key).query(client).unwrap()
    };
    let set = |client: &mut redis::Connection, key: &[u8], value: &[u8]| {
        redis::cmd("SET").arg(key).arg(value).exec(client).unwrap();
    };
    let every: Vec<u8> = (0..=255).collect();
    let reversed: Vec<u8> = every.iter().rev().copied().collect();
    // Five mebibytes.
    let large = every.repeat(20_480);

    set(&mut client, &every, &every);
    assert_eq!(get(&mut client, &every), Some(every.clone()));
    set(&mut client, b"large", &large);
    assert!(get(&mut client, b"large").as_ref() == Some(&large), "the large value is another one");
    begin_outage(&mut redis, &daemon);
    assert_eq!(get(&mut client, &every), Some(every.clone()), "it is cached");
    set(&mut client, &every, &reversed);
    assert_eq!(get(&mut client, &every), Some(reversed.clone()), "it is queued");
    redis.restart();
    recover(&daemon);
    daemon.wait_until_drained("redis", LONG);
    assert_eq!(get(&mut client, &every), Some(reversed));
    assert!(get(&mut client, b"large") == Some(large), "the large value is another one");
}

#[test]
fn a_lock_of_redis_rs_is_had_by_one_and_released_by_nobody_else() {
    let release = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0";
    let redis = RedisServer::start();
    let daemon = operated(&redis.url()).start();
    let door = door_of(&daemon);
    let takes = |client: &mut redis::Connection, who: &str| {
        let words = ["lock", who, "NX", "PX", "30000"];
        let answer: Option<String> = redis::cmd("SET").arg(&words).query(client).unwrap();
        answer.is_some()
    };
    let releases = |client: &mut redis::Connection, who: &str| {
        let words = [release, "1", "lock", who];
        redis::cmd("EVAL").arg(&words).query::<u64>(client).unwrap() == 1
    };
    let had: Vec<usize> = thread::scope(|scope| {
        let race = |worker: usize| takes(&mut redis_rs(&door), &worker.to_string());
        let workers: Vec<_> = (0..8).map(|worker| scope.spawn(move || race(worker))).collect();
        let won = workers.into_iter().map(|worker| worker.join().unwrap());
        won.enumerate().filter_map(|(worker, won)| won.then_some(worker)).collect()
    });
    assert_eq!(had.len(), 1, "{had:?}");
    let mut client = redis_rs(&door);
    let (owner, other) = (had[0].to_string(), (had[0] + 1).to_string());
    assert!(!releases(&mut client, &other));
    assert_eq!(redis.get("lock"), Some(owner.clone()));
    assert!(releases(&mut client, &owner));
    assert!(!releases(&mut client, &owner));
    assert!(takes(&mut client, &other));
}
