//! A lane keeps its order: against replay, against reads, and against what an earlier attempt left on
//! the wire.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::daemon::{Builder, Client, Daemon};
use crate::support::outage::{begin_outage, operated, recover};
use crate::support::poll::{Stop, eventually, stays};
use crate::support::redis::RedisServer;
use crate::support::relay::Relay;

const LONG: Duration = Duration::from_secs(20);

#[test]
fn a_write_queues_behind_its_lane_though_the_breaker_is_closed() {
    let mut redis = RedisServer::start();
    let daemon = operated(&redis.url()).start();
    begin_outage(&mut redis, &daemon);
    daemon.redis(&["SET", "locked", "1"]).assert_queued();
    daemon.redis(&["SET", "locked", "2"]).assert_queued();
    redis.restart();
    // Redis is well, but one key is out of the daemon's reach: its lane waits for the operator.
    let _done: String = redis.query(&["ACL", "SETUSER", "default", "resetkeys", "~free*"]);
    recover(&daemon);
    assert_eq!(daemon.queued("redis", "pending"), 2);

    daemon.redis(&["SET", "locked", "3"]).assert_queued();
    daemon.redis(&["SET", "free", "1"]).assert_live();
    daemon.redis(&["GET", "free"]).assert_live();
    let read = daemon.redis(&["GET", "locked"]);
    read.assert_value("3");
    assert_eq!(read.source(), "queued");
    assert_eq!(redis.get("free").as_deref(), Some("1"));

    let _done: String = redis.query(&["ACL", "SETUSER", "default", "allkeys"]);
    let (status, body) = daemon.post("/admin/backends/redis/queue/replay", Value::Null);
    assert!(matches!(status, 200 | 202), "{status} {body}");
    daemon.wait_until_drained("redis", Duration::from_secs(90));
    assert_eq!(redis.get("locked").as_deref(), Some("3"));
}

#[test]
fn what_is_not_absolute_is_applied_once_and_in_order_over_the_drain() {
    let mut redis = RedisServer::start();
    let daemon = operated(&redis.url()).start();
    begin_outage(&mut redis, &daemon);
    let push = |item: u32| {
        let item = item.to_string();
        daemon.redis_with(&["RPUSH", "list", &item], json!({ "min_ack": "durable" }))
    };
    for item in 0..200 {
        push(item).assert_queued();
    }
    redis.restart();
    recover(&daemon);
    for item in 200..300 {
        push(item).assert_acknowledged();
    }
    daemon.wait_until_drained("redis", LONG);
    let items: Vec<u32> = redis.query(&["LRANGE", "list", "0", "-1"]);
    assert_eq!(items, (0..300).collect::<Vec<_>>());
}

#[test]
fn reads_see_their_own_hosts_writes_during_an_outage() {
    let mut redis = RedisServer::start();
    let daemon = operated(&redis.url()).start();
    daemon.redis(&["SET", "a", "old"]).assert_live();
    daemon.redis(&["SET", "b", "old"]).assert_live();
    daemon.redis(&["HSET", "h", "f", "old"]).assert_live();
    daemon.redis(&["GET", "a"]).assert_value("old");
    begin_outage(&mut redis, &daemon);

    daemon.redis(&["SET", "a", "new"]).assert_queued();
    let read = daemon.redis(&["GET", "a"]);
    read.assert_value("new");
    assert_eq!(read.source(), "queued");
    daemon.redis(&["DEL", "b"]).assert_queued();
    daemon.redis(&["GET", "b"]).assert_value(Value::Null);
    daemon.redis(&["EXISTS", "a"]).assert_value(1);
    daemon.redis(&["EXISTS", "b"]).assert_value(0);
    daemon.redis(&["MGET", "a", "b"]).assert_value(json!(["new", null]));
    daemon.redis(&["SET", "a", "newer"]).assert_queued();
    daemon.redis(&["GET", "a"]).assert_value("newer");

    daemon.redis(&["HSET", "h", "f", "new"]).assert_queued();
    let undetermined = daemon.redis(&["HGET", "h", "f"]);
    assert_eq!(undetermined.status, 503, "an old value must not be shown: {}", undetermined.body);
}

#[test]
fn queued_writes_are_read_after_a_crash_of_the_daemon() {
    let mut redis = RedisServer::start();
    let mut daemon = operated(&redis.url()).start();
    daemon.redis(&["SET", "k", "old"]).assert_live();
    begin_outage(&mut redis, &daemon);
    daemon.redis(&["SET", "k", "new"]).assert_queued();
    daemon.kill_9();
    daemon.restart();
    daemon.redis(&["GET", "k"]).assert_value("new");
}

#[test]
fn a_caller_reads_what_it_wrote_before_during_and_after_the_drain() {
    let mut redis = RedisServer::start();
    let daemon = operated(&redis.url()).start();
    let write_and_read = |values: std::ops::Range<u32>| {
        for value in values {
            let value = value.to_string();
            daemon.redis(&["SET", "k", &value]).assert_acknowledged();
            daemon.redis(&["GET", "k"]).assert_value(value);
        }
    };
    write_and_read(0..50);
    begin_outage(&mut redis, &daemon);
    write_and_read(50..200);
    redis.restart();
    recover(&daemon);
    write_and_read(200..400);
    daemon.wait_until_drained("redis", LONG);
    write_and_read(400..450);
    assert_eq!(redis.get("k").as_deref(), Some("449"));
}

/// A Redis behind a relay that holds a `SET k abandoned`, its caller's answer being out.
fn abandon_behind_a_relay(daemon: &Client, relay: &Relay) -> thread::JoinHandle<()> {
    daemon.redis(&["SET", "k", "old"]).assert_live();
    relay.hold_client_bytes();
    let caller = daemon.clone();
    // The caller's answer, or that there is none, is not what this is about.
    let call =
        thread::spawn(move || drop(caller.try_redis(&["SET", "k", "abandoned"], Value::Null)));
    eventually("the network holds the write", LONG, || relay.holds("abandoned"));
    call
}

/// Writes over new connections while the network holds the old one, then lets the old bytes arrive.
fn newer_write_outlives_the_abandoned(daemon: &Client, relay: &Relay, redis: &RedisServer) {
    acknowledged_write_outlives_the_abandoned(daemon, relay, redis, || {
        matches!(daemon.redis(&["SET", "k", "newer"]).status, 200 | 202)
    });
}

/// The same with `newer`, which writes it and says whether that was acknowledged.
fn acknowledged_write_outlives_the_abandoned(
    daemon: &Client,
    relay: &Relay,
    redis: &RedisServer,
    newer: impl Fn() -> bool,
) {
    eventually("a newer write is acknowledged", LONG, newer);
    daemon.wait_until_drained("redis", LONG);
    assert_eq!(redis.get("k").as_deref(), Some("newer"));
    assert!(relay.holds("abandoned"), "the network still has it");
    relay.release();
    eventually("the network has delivered", LONG, || !relay.holds("abandoned"));
    stays("the newer value is there", Duration::from_millis(500), || {
        redis.get("k").as_deref() == Some("newer")
    });
    daemon.redis(&["GET", "k"]).assert_value("newer");
}

fn behind(relay: &Relay) -> Builder {
    Daemon::with_redis(&format!("redis://127.0.0.1:{}", relay.port()))
        .set("health.interval", "1s")
        .set("backends.redis.timeout", "300ms")
        .set("backends.redis.breaker.recovery_timeout", "200ms")
}

#[test]
fn an_abandoned_write_never_lands_after_a_newer_one() {
    let redis = RedisServer::start();
    let relay = Relay::start(redis.port());
    let daemon = behind(&relay).start();
    let call = abandon_behind_a_relay(&daemon, &relay);
    relay.let_new_through();
    call.join().unwrap();
    newer_write_outlives_the_abandoned(&daemon, &relay, &redis);
}

#[test]
fn an_abandoned_write_never_lands_after_a_newer_one_of_the_next_run() {
    let redis = RedisServer::start();
    let relay = Relay::start(redis.port());
    // The attempt is still under way when the daemon is killed.
    let mut daemon = behind(&relay).set("backends.redis.timeout", "5s").start();
    let call = abandon_behind_a_relay(&daemon, &relay);
    daemon.kill_9();
    call.join().unwrap();
    relay.let_new_through();
    daemon.restart();
    newer_write_outlives_the_abandoned(&daemon, &relay, &redis);
}

/// A daemon whose connections live long after their callers have left, with the door's socket.
fn behind_patiently(relay: &Relay) -> (Daemon, PathBuf) {
    // A ping would find the connections dead.
    let daemon = behind(relay).set("health.interval", "60s").set("backends.redis.timeout", "3s");
    let daemon = daemon.start();
    let door = daemon.socket().with_file_name("redis.sock");
    (daemon, door)
}

/// The network holds a write whose deadline has passed, on a connection that lives, and lets new ones through.
fn given_up(redis: &RedisServer, write: &[&str]) -> (Relay, Daemon, PathBuf) {
    let relay = Relay::start(redis.port());
    let (daemon, door) = behind_patiently(&relay);
    daemon.redis(&["SET", "k", "old"]).assert_live();
    relay.hold_client_bytes();
    let options = json!({ "deadline": "200ms", "min_ack": "applied" });
    let given_up = daemon.redis_with(write, options);
    assert_eq!(given_up.status, 504, "{}", given_up.body);
    assert!(relay.holds("abandoned"));
    relay.let_new_through();
    (relay, daemon, door)
}

fn stock_client(door: &Path) -> ::redis::Connection {
    let client = ::redis::Client::open(format!("unix://{}", door.display())).unwrap();
    client.get_connection().unwrap()
}

fn set_by_a_stock_client(door: &Path, value: &str) -> bool {
    ::redis::cmd("SET").arg("k").arg(value).exec(&mut stock_client(door)).is_ok()
}

#[test]
fn a_write_whose_deadline_has_passed_does_not_land_after_a_newer_one_of_a_door() {
    let redis = RedisServer::start();
    let (relay, daemon, door) = given_up(&redis, &["SET", "k", "abandoned"]);
    acknowledged_write_outlives_the_abandoned(&daemon, &relay, &redis, || {
        set_by_a_stock_client(&door, "newer")
    });
}

#[test]
fn a_command_that_waits_for_others_is_not_undone_by_a_write_whose_deadline_has_passed() {
    let redis = RedisServer::start();
    let (relay, _daemon, door) = given_up(&redis, &["DEL", "abandoned"]);
    let _: u32 = redis.query(&["RPUSH", "jobs", "job"]);
    eventually("the job is moved", LONG, || {
        let mut moving = ::redis::cmd("BLMOVE");
        moving.arg(&["jobs", "abandoned", "LEFT", "RIGHT", "1"]);
        moving.query::<String>(&mut stock_client(&door)).is_ok_and(|job| job == "job")
    });
    relay.release();
    eventually("the network has delivered", LONG, || !relay.holds("abandoned"));
    stays("the job is there", Duration::from_millis(500), || {
        redis.query::<Vec<String>>(&["LRANGE", "abandoned", "0", "-1"]) == ["job"]
    });
}

#[test]
fn a_write_of_a_stock_client_that_has_left_does_not_land_after_a_newer_one() {
    let redis = RedisServer::start();
    let relay = Relay::start(redis.port());
    let (daemon, door) = behind_patiently(&relay);
    let mut client = UnixStream::connect(&door).unwrap();
    client.write_all(b"SET k old\r\n").unwrap();
    client.read_exact(&mut [0]).unwrap();
    relay.hold_client_bytes();
    client.write_all(b"SET k abandoned\r\n").unwrap();
    eventually("the network holds the write", LONG, || relay.holds("abandoned"));
    // What it was sent and has not read resets the connection: it wants no more answers.
    drop(client);
    let connected = || daemon.metric("door_connections", &[]) != 0.0;
    eventually("the door has noticed", LONG, || !connected());
    relay.let_new_through();
    newer_write_outlives_the_abandoned(&daemon, &relay, &redis);
}

#[test]
fn the_relay_does_deliver_an_abandoned_write_where_nobody_minds() {
    let redis = RedisServer::start();
    let relay = Relay::start(redis.port());
    let connect = || {
        let client = ::redis::Client::open(("127.0.0.1", relay.port())).unwrap();
        client.get_connection().unwrap()
    };
    let mut old = connect();
    relay.hold_client_bytes();
    old.send_packed_command(&::redis::cmd("SET").arg("k").arg("abandoned").get_packed_command())
        .unwrap();
    eventually("the network holds the write", LONG, || relay.holds("abandoned"));
    drop(old);
    relay.let_new_through();
    ::redis::cmd("SET").arg("k").arg("newer").exec(&mut connect()).unwrap();
    relay.release();
    eventually("it lands", LONG, || redis.get("k").as_deref() == Some("abandoned"));
}

#[test]
fn callers_cannot_outrun_the_drain_of_a_hot_key() {
    const WRITERS: u64 = 4;
    let mut redis = RedisServer::start();
    let daemon = operated(&redis.url()).start();
    begin_outage(&mut redis, &daemon);
    for value in 0..300 {
        daemon.redis(&["SET", "hot", &value.to_string()]).assert_queued();
    }
    redis.restart();
    let until = Stop::default();
    thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (caller, stopped) = (daemon.client(), until.watch());
            scope.spawn(move || {
                while !stopped.is_set() {
                    let reply = caller.redis(&["SET", "hot", &format!("from {writer}")]);
                    reply.assert_acknowledged();
                }
            });
        }
        // Moved in: whatever ends this, the writers end too.
        let _until = until;
        recover(&daemon);
        // What is left are the writes that the writers wait for.
        daemon.wait_until("the backlog is gone though they never pause", LONG, |daemon| {
            daemon.queued("redis", "pending") <= 2 * WRITERS
        });
    });
    daemon.wait_until_drained("redis", LONG);
    daemon.redis(&["SET", "hot", "last"]).assert_live();
    assert_eq!(redis.get("hot").as_deref(), Some("last"));
}
