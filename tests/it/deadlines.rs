//! Times to live through an outage: what is replayed leaves every key as it is on a server that stayed up, and
//! what the daemon answers meanwhile agrees with that.
//!
//! A second Redis gets the same commands and stays up. The commands for which this is promised are those that
//! appear here and in `kinds/redis/tests/stayed_up.rs`.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::daemon::{Client, Daemon};
use crate::support::outage::{begin_outage, operated, recover};
use crate::support::poll::eventually;
use crate::support::redis::RedisServer;

const LONG: Duration = Duration::from_secs(20);

/// A daemon before a Redis, and a Redis that stays up.
struct Both {
    redis: RedisServer,
    control: RedisServer,
    daemon: Daemon,
}

impl Both {
    fn start() -> Self {
        let redis = RedisServer::start();
        let daemon = operated(&redis.url()).start();
        Self { redis, control: RedisServer::start(), daemon }
    }

    /// Sends a command to both at the same time, as nearly as that can be.
    #[track_caller]
    fn send(&self, command: &str) {
        let words: Vec<&str> = command.split(' ').collect();
        let reply = self.daemon.redis_with(&words, json!({ "min_ack": "durable" }));
        assert!(matches!(reply.status, 200 | 202), "{command}: {}", reply.body);
        drop(self.control.query::<redis::Value>(&words));
    }

    fn outage(&mut self) {
        begin_outage(&mut self.redis, &self.daemon);
    }

    /// Ends the outage and waits until the queue is empty.
    fn recover(&mut self) {
        self.redis.restart();
        recover(&self.daemon);
        self.daemon.wait_until_drained("redis", LONG);
        assert_eq!(self.daemon.queued("redis", "dead"), 0, "{}", dead(&self.daemon));
    }

    /// Both servers hold the same under `key`, for as long.
    #[track_caller]
    fn agree(&self, key: &str, about: &str) {
        let (here, there) = (held(&self.redis, key), held(&self.control, key));
        assert_eq!(here.0, there.0, "{key}: {about}");
        assert!(here.1.abs_diff(there.1) < 1_500, "{key} lives {here:?}, {there:?}: {about}");
    }
}

fn dead(daemon: &Client) -> Value {
    daemon.get("/v1/backends/redis/queue?state=dead").1
}

/// The value of a key, whatever its type, and its time to live: -1 for ever, -2 gone.
fn held(redis: &RedisServer, key: &str) -> (String, i64) {
    let kind: String = redis.query(&["TYPE", key]);
    let value = match kind.as_str() {
        "string" => redis.get(key).unwrap_or_default(),
        "hash" => {
            let mut pairs: Vec<String> = redis.query(&["HGETALL", key]);
            pairs.sort();
            pairs.join(" ")
        }
        _ => String::new(),
    };
    (format!("{kind} {value}"), redis.query(&["PTTL", key]))
}

fn passes(start: Instant, time: u64) {
    let until = Duration::from_millis(time);
    eventually("the time has passed", LONG, || start.elapsed() >= until);
}

#[test]
fn a_replay_leaves_every_key_as_on_a_server_that_stayed_up() {
    let rows = [
        (&[][..], &["SET k v EX 1", "EXPIRE k 1000"][..]),
        (&[], &["SET k v PX 800", "PERSIST k"]),
        (&[], &["SET k v PX 800", "SET k v2 KEEPTTL"]),
        (&[], &["HSET k f v", "EXPIRE k 1", "HSET k g w"]),
        (&[], &["SET k v PX 800", "SETRANGE k 0 w"]),
        (&[], &["SET k v PX 800", "DEL k", "SET k after"]),
        (&["HSET k f v", "PEXPIRE k 1500"], &["HSET k g w"]),
        (&["SET k v PX 1500"], &["SETRANGE k 0 w"]),
        (&["SET k v PX 1500"], &["SET k v2 KEEPTTL"]),
        (&["SET k old", "SET j x"], &["SET k0 v PX 800", "RENAME k0 k"]),
        (&["SET k old"], &["SET k0 v PX 800", "COPY k0 k REPLACE"]),
        (&["SET k v PX 1500", "PERSIST k"], &["SETRANGE k 0 w"]),
    ];
    let mut both = Both::start();
    let send = |both: &Both, row: usize, commands: &[&str]| {
        for command in commands {
            both.send(&of_row(command, row));
        }
    };
    for (row, (live, _)) in rows.iter().enumerate() {
        send(&both, row, live);
    }
    both.outage();
    let start = Instant::now();
    for (row, (_, queued)) in rows.iter().enumerate() {
        send(&both, row, queued);
    }
    passes(start, 2_500);
    for (row, (live, queued)) in rows.iter().enumerate() {
        // What is answered before the replay must be what it leaves, or nothing.
        let key = of_row("k", row);
        let read = both.daemon.redis_with(&["GET", &key], json!({ "deadline": "100ms" }));
        if read.source() == "queued" && held(&both.control, &key).0.starts_with("string") {
            let there = json!(both.control.get(&key));
            assert_eq!(read.value(), &there, "{live:?} then {queued:?}");
        }
    }
    both.recover();
    for (row, (live, queued)) in rows.iter().enumerate() {
        for key in ["k", "k0"] {
            both.agree(&of_row(key, row), &format!("{live:?} then {queued:?}"));
        }
    }
}

/// The same command on keys of this row alone.
fn of_row(command: &str, row: usize) -> String {
    let is_key = |word: &&str| ["k", "k0", "j", "l"].contains(word);
    let words = command
        .split(' ')
        .map(|word| if is_key(&word) { format!("{word}:{row}") } else { word.to_owned() });
    words.collect::<Vec<_>>().join(" ")
}

#[test]
fn a_life_that_is_not_over_at_the_replay_ends_when_it_was_to_end() {
    for queued in [
        &["SET k v PX 6000", "SETRANGE k 0 w"][..],
        &["HSET k f v", "PEXPIRE k 6000", "HSET k g w"],
        &["SET k v PX 6000", "RENAME k l"],
    ] {
        let mut both = Both::start();
        both.outage();
        for command in queued {
            both.send(command);
        }
        both.recover();
        for key in ["k", "l"] {
            both.agree(key, &format!("{queued:?}"));
        }
        eventually("it ends", LONG, || {
            let here: i64 = both.redis.query(&["EXISTS", "k", "l"]);
            here == 0
        });
        // The other one got its commands a little later.
        eventually("it was not too early", Duration::from_secs(1), || {
            let there: i64 = both.control.query(&["EXISTS", "k", "l"]);
            there == 0
        });
    }
}

#[test]
fn what_is_left_to_do_of_a_write_outlives_the_daemon() {
    let mut both = Both::start();
    both.outage();
    let start = Instant::now();
    for n in 0..40 {
        both.send(&format!("SET k{n} v PX 800"));
        both.send(&format!("SETRANGE k{n} 0 w"));
    }
    passes(start, 2_000);
    both.redis.restart();
    both.daemon.order("/admin/resilience/force-recovery");
    // Killed in the middle of the replay, as often as it takes.
    for _ in 0..3 {
        both.daemon.kill_9();
        both.daemon.restart();
    }
    recover(&both.daemon);
    both.daemon.wait_until_drained("redis", LONG);
    for n in 0..40 {
        both.agree(&format!("k{n}"), "killed meanwhile");
    }
    assert_eq!(both.daemon.queued("redis", "dead"), 0);
}

#[test]
fn the_cache_answers_no_key_past_a_time_to_live_that_the_daemon_carried() {
    let mut redis = RedisServer::start();
    let daemon = operated(&redis.url()).start();
    daemon.redis(&["SET", "short", "v", "PX", "700"]).assert_live();
    daemon.redis(&["SET", "long", "v", "EX", "1000"]).assert_live();
    for key in ["short", "long"] {
        daemon.redis(&["GET", key]).assert_value("v");
    }
    let start = Instant::now();
    begin_outage(&mut redis, &daemon);
    passes(start, 800);
    let read = daemon.redis(&["GET", "short"]);
    assert_eq!((read.source(), read.value()), ("bypass", &Value::Null), "{}", read.body);
    let read = daemon.redis(&["GET", "long"]);
    assert_eq!((read.source(), read.value()), ("cache", &json!("v")), "{}", read.body);
}
