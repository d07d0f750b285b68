//! An acknowledged write is never lost, and never applied twice: over outages of Redis, crashes of the
//! daemon, and both at once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use fastrand::Rng;
use serde_json::{Value, json};

use crate::support::daemon::{Builder, Client, Daemon, Reply};
use crate::support::given;
use crate::support::http::Failure;
use crate::support::poll::{Stop, Watch, eventually};
use crate::support::redis::RedisServer;
use crate::support::relay::Relay;

const LONG: Duration = Duration::from_secs(30);

/// What a caller knows of a write that it sent.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Known {
    /// It is promised: the backend has it, or the disk.
    Acknowledged,
    /// It was not executed and will not be.
    Refused,
    /// It may have been executed.
    Unknown,
}

fn known(answer: &Result<Reply, Failure>) -> Known {
    let reply = match answer {
        Ok(reply) => reply,
        Err(Failure::NotSent(_)) => return Known::Refused,
        Err(Failure::Lost(_)) => return Known::Unknown,
    };
    match reply.status {
        200 | 202 => {
            reply.assert_acknowledged();
            Known::Acknowledged
        }
        504 | 507 if reply.body["outcome_unknown"] == json!(true) => Known::Unknown,
        429 | 503 | 504 | 507 => Known::Refused,
        status => panic!("a plain write is answered {status}: {}", reply.body),
    }
}

/// What may be under one key at the end: the last acknowledged value, or a later one of unknown outcome.
#[derive(Debug, Default)]
struct Key {
    acknowledged: Option<u64>,
    unknown: BTreeSet<u64>,
    next: u64,
}

impl Key {
    fn note(&mut self, value: u64, known: Known) {
        match known {
            Known::Acknowledged => {
                // One key has one writer: what it sent before can no longer come after this.
                self.acknowledged = Some(value);
                self.unknown.clear();
            }
            Known::Unknown => {
                self.unknown.insert(value);
            }
            Known::Refused => {}
        }
    }

    fn allows(&self, value: Option<u64>) -> bool {
        value == self.acknowledged || value.is_some_and(|value| self.unknown.contains(&value))
    }
}

/// How often a counter was acknowledged, and how often its outcome is unknown.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    acknowledged: u64,
    unknown: u64,
}

impl Count {
    fn note(&mut self, known: Known) {
        match known {
            Known::Acknowledged => self.acknowledged += 1,
            Known::Unknown => self.unknown += 1,
            Known::Refused => {}
        }
    }

    fn allows(self, value: u64) -> bool {
        (self.acknowledged..=self.acknowledged + self.unknown).contains(&value)
    }
}

/// One of the programs that go on whatever happens.
struct Writer {
    caller: Client,
    stopped: Watch,
}

impl Writer {
    /// Sends the writes that `next` names until it is stopped, and notes what is known of each.
    fn run(self, progress: &AtomicU64, mut step: impl FnMut(&Client) -> Known) {
        while !self.stopped.is_set() {
            if step(&self.caller) == Known::Refused && !self.caller.is_up() {
                eventually("the daemon is back", LONG, || {
                    self.caller.is_up() || self.stopped.is_set()
                });
            }
            progress.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Writes ever larger values under four keys of its own.
    fn set(self, name: usize, progress: &AtomicU64) -> BTreeMap<String, Key> {
        let mut keys: BTreeMap<String, Key> =
            (0..4).map(|key| (format!("w{name}:{key}"), Key::default())).collect();
        let mut order = keys.keys().cloned().collect::<Vec<_>>().into_iter().cycle();
        self.run(progress, |caller| {
            let name = order.next().expect("a cycle has no end");
            let key = keys.get_mut(&name).expect("the order is of the keys");
            key.next += 1;
            let answer = caller.try_redis(&["SET", &name, &key.next.to_string()], Value::Null);
            let known = known(&answer);
            key.note(key.next, known);
            known
        });
        keys
    }

    /// Counts one counter of its own up.
    fn count(self, name: &str, progress: &AtomicU64) -> Count {
        let mut count = Count::default();
        self.run(progress, |caller| {
            let answer = caller.try_redis(&["INCR", name], json!({ "min_ack": "durable" }));
            let known = known(&answer);
            count.note(known);
            known
        });
        count
    }
}

/// A daemon that notices an outage and its end within a fraction of a second.
fn nimble(redis: &RedisServer) -> Builder {
    Daemon::with_redis(&redis.url())
        .set("health.interval", "1s")
        .set("backends.redis.timeout", "500ms")
        .set("backends.redis.breaker.recovery_timeout", "100ms")
        .set("backends.redis.breaker.recovery_timeout_max", "500ms")
}

/// Kills and restarts both, one or the other at random moments, `rounds` times.
fn rounds_of_killing(
    rounds: u64,
    random: &mut Rng,
    redis: &mut RedisServer,
    daemon: &mut Daemon,
    progress: &AtomicU64,
) {
    let moment = |random: &mut Rng, most: u64| {
        let target = progress.load(Ordering::Relaxed) + random.u64(1..most);
        eventually("the writers go on", LONG, || progress.load(Ordering::Relaxed) >= target);
    };
    for round in 0..rounds {
        moment(random, 400);
        match random.u8(0..4) {
            0 => daemon.restart(),
            1 => {
                redis.kill_9();
                moment(random, 400);
                redis.restart();
            }
            2 => {
                redis.kill_9();
                moment(random, 400);
                daemon.restart();
                moment(random, 400);
                redis.restart();
            }
            _ => {
                redis.kill_9();
                moment(random, 400);
                redis.restart();
                moment(random, 40);
                daemon.restart();
            }
        }
        println!("round {round}: {} writes sent", progress.load(Ordering::Relaxed));
    }
}

#[test]
fn no_acknowledged_write_is_lost_and_none_applied_twice() {
    let (seed, rounds) = (given::seed(), given::rounds(50));
    let mut redis = RedisServer::start();
    let mut daemon = nimble(&redis).start();
    let progress = AtomicU64::new(0);
    let (keys, counts) = thread::scope(|scope| {
        let stop = Stop::default();
        let (client, progress) = (daemon.client(), &progress);
        let writer = || Writer { caller: client.clone(), stopped: stop.watch() };
        let setters: Vec<_> = (0..8)
            .map(|name| (name, writer()))
            .map(|(name, writer)| scope.spawn(move || writer.set(name, progress)))
            .collect();
        let counters: Vec<_> = ["c0", "c1"]
            .map(|name| (name, writer()))
            .map(|(name, writer)| scope.spawn(move || (name, writer.count(name, progress))))
            .into_iter()
            .collect();
        rounds_of_killing(rounds, &mut Rng::with_seed(seed), &mut redis, &mut daemon, progress);
        drop(stop);
        let keys: Vec<_> = setters.into_iter().flat_map(|writer| writer.join().unwrap()).collect();
        let counts: Vec<_> = counters.into_iter().map(|writer| writer.join().unwrap()).collect();
        (keys, counts)
    });

    daemon.wait_for_breaker("redis", "CLOSED", LONG);
    // The counters' calls go one by one, so that each round leaves some more of them to the end.
    daemon.wait_until_drained("redis", LONG + Duration::from_secs(rounds));
    let mut broken = Vec::new();
    for (name, key) in &keys {
        let value = redis.get(name).map(|value| value.parse().expect("a value that was written"));
        if !key.allows(value) {
            broken.push(format!("{name} is {value:?}: {key:?}"));
        }
    }
    for (name, count) in &counts {
        let value = redis.get(name).map_or(0, |value| value.parse().expect("a count"));
        if !count.allows(value) {
            broken.push(format!("{name} is {value}: {count:?}"));
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    let acknowledged: u64 = counts.iter().map(|(_, count)| count.acknowledged).sum();
    assert!(acknowledged > 0 && keys.iter().all(|(_, key)| key.acknowledged.is_some()));
}

#[test]
fn a_queued_write_survives_kill_9_of_the_daemon_and_is_replayed() {
    let mut redis = RedisServer::start();
    let mut daemon = nimble(&redis).start();
    redis.kill_9();
    for key in 0..100 {
        daemon.redis(&["SET", &format!("k{key}"), "v"]).assert_queued();
    }
    daemon.kill_9();
    daemon.restart();
    assert_eq!(daemon.queued("redis", "pending"), 100);
    redis.restart();
    daemon.wait_until_drained("redis", LONG);
    for key in 0..100 {
        assert_eq!(redis.get(&format!("k{key}")).as_deref(), Some("v"), "k{key}");
    }
}

#[test]
fn a_queued_write_survives_a_graceful_stop() {
    let mut redis = RedisServer::start();
    let mut daemon = nimble(&redis).start();
    redis.kill_9();
    daemon.redis(&["SET", "k", "v"]).assert_queued();
    let counted = daemon.redis_with(&["INCR", "n"], json!({ "min_ack": "durable" }));
    counted.assert_queued();
    let status = daemon.terminate();
    assert!(status.success(), "{status}");
    daemon.restart();
    redis.restart();
    daemon.wait_until_drained("redis", LONG);
    assert_eq!(redis.get("k").as_deref(), Some("v"));
    assert_eq!(redis.get("n").as_deref(), Some("1"));
}

#[test]
fn a_frozen_backend_loses_nothing() {
    let redis = RedisServer::start();
    let daemon = nimble(&redis).start();
    redis.freeze();
    daemon.redis_with(&["SET", "k", "v"], json!({ "deadline": "10s" })).assert_queued();
    redis.thaw();
    daemon.wait_until_drained("redis", LONG);
    assert_eq!(redis.get("k").as_deref(), Some("v"));
}

#[test]
fn a_rotated_password_does_not_empty_the_queue() {
    let mut redis = RedisServer::start();
    let daemon = Daemon::with_redis(&redis.unix_url())
        .set("health.interval", "1s")
        .set("backends.redis.breaker.recovery_timeout", "100ms")
        .start();
    daemon.redis(&["SET", "k", "old"]).assert_live();
    redis.require_password("rotated");
    // What is connected stays authenticated: the daemon has to reconnect.
    let _killed: u64 = redis.query(&["CLIENT", "KILL", "SKIPME", "yes"]);
    daemon.redis(&["SET", "k", "new"]).assert_queued();
    daemon.wait_for_breaker("redis", "OPEN", LONG);
    let ls = daemon.fusebox(&["queue", "ls", "redis", "--json"]);
    assert!(ls.status.success(), "{ls:?}");
    assert_eq!((daemon.queued("redis", "pending"), daemon.queued("redis", "dead")), (1, 0));
    redis.restart();
    daemon.wait_until_drained("redis", LONG);
    assert_eq!(redis.get("k").as_deref(), Some("new"));
}

/// A daemon behind a network that loses the answer to whatever concerns the key `counter`.
fn behind_a_forgetful_network(redis: &RedisServer) -> (Relay, Builder) {
    let relay = Relay::start(redis.port());
    let url = format!("redis://127.0.0.1:{}", relay.port());
    (relay, nimble(redis).set("backends.redis.url", url))
}

#[test]
fn a_write_whose_answer_is_lost_is_not_applied_again() {
    let redis = RedisServer::start();
    let (relay, daemon) = behind_a_forgetful_network(&redis);
    let daemon = daemon.start();
    relay.lose_answers_to("counter");
    let caller = daemon.client();
    let call = thread::spawn(move || {
        let options = json!({ "min_ack": "durable", "deadline": "10s" });
        caller.redis_with(&["INCR", "counter"], options)
    });
    eventually("Redis has counted", LONG, || redis.get("counter").is_some());
    relay.release();
    call.join().unwrap().assert_acknowledged();
    daemon.wait_until_drained("redis", LONG);
    assert_eq!(redis.get("counter").as_deref(), Some("1"));
}

#[test]
fn a_replay_whose_answer_is_lost_with_the_daemon_is_not_applied_again() {
    let mut redis = RedisServer::start();
    let (relay, daemon) = behind_a_forgetful_network(&redis);
    let mut daemon = daemon.start();
    redis.kill_9();
    for _ in 0..3 {
        daemon.redis_with(&["INCR", "counter"], json!({ "min_ack": "durable" })).assert_queued();
    }
    relay.lose_answers_to("counter");
    redis.restart();
    eventually("Redis has counted", LONG, || redis.get("counter").is_some());
    daemon.kill_9();
    relay.release();
    daemon.restart();
    daemon.wait_until_drained("redis", LONG);
    assert_eq!(redis.get("counter").as_deref(), Some("3"));
}

#[test]
fn a_discarded_call_is_not_replayed() {
    let mut redis = RedisServer::start();
    let daemon = nimble(&redis).start();
    redis.kill_9();
    let unwanted = daemon.redis(&["SET", "unwanted", "v"]);
    unwanted.assert_queued();
    daemon.redis(&["SET", "wanted", "v"]).assert_queued();
    let op_id = unwanted.body["op_id"].as_str().expect("a queued call has an op_id");
    let (status, body) = daemon.delete(&format!("/admin/backends/redis/queue/{op_id}"));
    assert!(matches!(status, 200 | 204), "{status} {body}");
    assert_eq!(daemon.queued("redis", "pending"), 1);
    redis.restart();
    daemon.wait_until_drained("redis", LONG);
    assert_eq!(redis.get("wanted").as_deref(), Some("v"));
    assert_eq!(redis.get("unwanted"), None);
}

#[test]
fn every_durable_acknowledgement_comes_after_a_sync_of_the_store() {
    let mut redis = RedisServer::start();
    let daemon = nimble(&redis).strace().start();
    redis.kill_9();
    for key in 0..20 {
        let before = daemon.syncs_of("db");
        daemon.redis(&["SET", &format!("k{key}"), "v"]).assert_queued();
        let after = daemon.syncs_of("db");
        assert!(after > before, "k{key} was acknowledged between syncs {before} and {after}");
    }
    assert!(daemon.state_dir().is_dir());
}
