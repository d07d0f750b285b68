//! A queue's limits: announced early, refused at once, never a silent drop.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::daemon::{Client, Daemon, Reply};
use crate::support::outage::{begin_outage, operated, recover};
use crate::support::raw::call_raw;
use crate::support::redis::RedisServer;

const LONG: Duration = Duration::from_secs(30);

#[track_caller]
fn assert_full(reply: &Reply) {
    assert_eq!(
        (reply.status, &reply.body["code"], &reply.body["outcome_unknown"]),
        (507, &json!("queue_full"), &json!(false)),
        "{}",
        reply.body
    );
}

#[test]
fn a_full_queue_refuses_at_once_and_takes_writes_again_below_80_percent() {
    let redis = RedisServer::start();
    let daemon = operated(&redis.url()).set("backends.redis.queue.items", 20).start();
    daemon.order("/admin/backends/redis/offline");
    let set = |key: u32| daemon.redis(&["SET", &format!("k{key}"), "v"]);
    let low = |key: &str| daemon.redis_with(&["SET", key, "v"], json!({ "priority": "low" }));
    for key in 0..16 {
        set(key).assert_queued();
    }
    low("low").assert_queued();
    let shed = low("shed");
    assert_eq!((shed.status, &shed.body["code"]), (503, &json!("shed")), "at 85 %: {}", shed.body);
    for key in 17..20 {
        set(key).assert_queued();
    }
    let begun = Instant::now();
    let full = set(20);
    assert!(begun.elapsed() < Duration::from_secs(1), "it took {:?}", begun.elapsed());
    assert_full(&full);
    assert!(full.body["retry_after_ms"].is_u64(), "{}", full.body);

    // Down to 80 % it stays full, and below it is not.
    let (_, page) = daemon.get("/v1/backends/redis/queue");
    let ids: Vec<&str> =
        page["calls"].as_array().unwrap().iter().map(|c| c["op_id"].as_str().unwrap()).collect();
    for (discarded, op_id) in ids[..5].iter().enumerate() {
        assert_full(&set(100 + u32::try_from(discarded).unwrap()));
        let (status, body) = daemon.delete(&format!("/admin/backends/redis/queue/{op_id}"));
        assert_eq!(status, 200, "{body}");
    }
    set(200).assert_queued();
    assert_eq!(daemon.queued("redis", "pending"), 16);
    daemon.order("/admin/backends/redis/online");
    daemon.wait_until_drained("redis", LONG);
    assert_eq!(redis.query::<i64>(&["DBSIZE"]), 16);
    set(300).assert_live();
}

#[test]
fn the_limit_of_bytes_counts_too() {
    let redis = RedisServer::start();
    let daemon = operated(&redis.url()).set("backends.redis.queue.bytes", "1MiB").start();
    daemon.order("/admin/backends/redis/offline");
    let value = "x".repeat(300 << 10);
    for key in ["a", "b", "c"] {
        daemon.redis(&["SET", key, &value]).assert_queued();
    }
    let full = daemon.redis(&["SET", "d", &value]);
    assert_full(&full);
    assert!(full.body["detail"].as_str().unwrap().ends_with("KiB of 1 MiB"), "{}", full.body);
    daemon.order("/admin/backends/redis/online");
    daemon.wait_until_drained("redis", LONG);
    for key in ["a", "b", "c"] {
        assert_eq!(redis.get(key).as_deref(), Some(value.as_str()), "{key}");
    }
}

#[test]
fn a_queue_that_fills_up_degrades_the_system_and_a_full_one_is_critical() {
    let mut redis = RedisServer::start();
    let daemon = operated(&redis.url()).set("backends.redis.queue.items", 10).start();
    begin_outage(&mut redis, &daemon);
    for _ in 0..6 {
        daemon.redis(&["SET", "locked", "1"]).assert_queued();
    }
    redis.restart();
    // One key is out of the daemon's reach: the backend is well and its queue does not drain.
    let _done: String = redis.query(&["ACL", "SETUSER", "default", "resetkeys", "~free*"]);
    recover(&daemon);
    let state = |daemon: &Client| daemon.get("/health").1["state"].as_str().unwrap().to_owned();
    daemon.wait_until("it is healthy at 60 %", LONG, |daemon| state(daemon) == "HEALTHY");
    daemon.redis(&["SET", "locked", "2"]).assert_queued();
    daemon.wait_until("it is degraded at 70 %", LONG, |daemon| state(daemon) == "DEGRADED");
    let (status, health) = daemon.get("/health");
    assert_eq!(status, 200);
    assert!(health["reasons"].to_string().contains("the queue of redis is 70 % full"), "{health}");
    for _ in 0..3 {
        daemon.redis(&["SET", "locked", "3"]).assert_queued();
    }
    assert_full(&daemon.redis(&["SET", "locked", "4"]));
    daemon.wait_until("full is critical", LONG, |daemon| state(daemon) == "CRITICAL");
    daemon.redis(&["SET", "free", "1"]).assert_live();

    let _done: String = redis.query(&["ACL", "SETUSER", "default", "allkeys"]);
    daemon.order("/admin/backends/redis/queue/replay");
    daemon.wait_until_drained("redis", Duration::from_secs(90));
    assert_eq!(redis.get("locked").as_deref(), Some("3"));
    daemon.wait_until("it is healthy again", LONG, |daemon| state(daemon) == "HEALTHY");
}

#[test]
fn a_call_that_is_too_large_to_be_shown_is_described_and_discarded_all_the_same() {
    let redis = RedisServer::start();
    let daemon = operated(&redis.url()).set("calls.bytes", "16MiB").start();
    daemon.order("/admin/backends/redis/offline");
    let queue = |key: &str, value: &str| {
        let queued = daemon.redis(&["SET", key, value]);
        queued.assert_queued();
        queued.body["op_id"].as_str().unwrap().to_owned()
    };
    let (large, small) = (queue("large", &"x".repeat(2 << 20)), queue("small", "v"));
    let show = |op_id: &str, query: &str| {
        let (status, shown) = daemon.get(&format!("/v1/backends/redis/queue/{op_id}{query}"));
        assert_eq!(status, 200, "{shown}");
        shown
    };
    let shown = show(&large, "");
    assert_eq!((&shown["lane"], &shown["call"]), (&json!("large"), &Value::Null));
    assert!(shown["bytes"].as_u64().unwrap() > 2 << 20, "{shown}");
    assert!(shown["call_left_out"].as_str().unwrap().contains("at most 20.5 KiB"), "{shown}");
    for op_id in [&large, &small] {
        let shown = show(op_id, "?call=false");
        assert_eq!((shown.get("call"), shown.get("call_left_out")), (None, None), "{shown}");
    }
    let shown = show(&small, "?call=true");
    assert_eq!(shown["call"], json!(["SET", "small", "v"]));
    let discarded = daemon.fusebox(&["queue", "discard", &large]);
    assert_eq!(discarded.status.code(), Some(0), "{discarded:?}");
    assert_eq!(daemon.queued("redis", "pending"), 1);
}

#[test]
fn a_command_has_no_more_arguments_than_a_redis_takes() {
    const COUNT: usize = (1 << 20) + 1;
    let redis = RedisServer::start();
    let daemon = operated(&redis.url()).start();
    let mut command = vec!["DEL"];
    command.resize(COUNT, "1");
    let refused = daemon.redis(&command);
    assert_eq!(refused.status, 400, "{}", refused.body);
    let detail = refused.body["detail"].as_str().unwrap();
    assert!(detail.contains("at most 1048576 arguments, got 1048577"), "{detail}");
    let raw = format!("*{COUNT}\r\n$3\r\nDEL\r\n{}", "$1\r\n1\r\n".repeat(COUNT - 1));
    let refused = call_raw(&daemon, "redis", &[], raw.as_bytes(), 1);
    assert_eq!(refused.status, 400, "{}", refused.beginning);
    assert!(refused.beginning.contains("at most 1,048,576 arguments"), "{}", refused.beginning);
}

/// Connections over which requests are sent before earlier ones are answered.
struct Pipelines(Vec<BufReader<UnixStream>>);

impl Pipelines {
    fn open(socket: &Path, count: usize) -> Self {
        let open = |_| BufReader::new(UnixStream::connect(socket).expect("the daemon listens"));
        Self((0..count).map(open).collect())
    }

    /// Sends `SET k<n> <n>` for each `n`, and returns how often each status was answered.
    fn set(&mut self, mut numbers: std::ops::Range<u32>) -> Vec<u16> {
        let mut statuses = Vec::with_capacity(numbers.len());
        while !numbers.is_empty() {
            let mut sent = Vec::with_capacity(self.0.len());
            for connection in &mut self.0 {
                let batch: Vec<u32> = numbers.by_ref().take(16).collect();
                let mut bytes = Vec::new();
                for number in &batch {
                    let body = format!("{{\"command\":[\"SET\",\"k{number}\",\"{number}\"]}}");
                    let length = body.len();
                    let head = "POST /v1/backends/redis/call HTTP/1.1\r\nhost: localhost";
                    bytes.extend(
                        format!("{head}\r\ncontent-length: {length}\r\n\r\n{body}").bytes(),
                    );
                }
                connection.get_mut().write_all(&bytes).expect("they are taken");
                sent.push(batch.len());
            }
            for (connection, sent) in self.0.iter_mut().zip(sent) {
                statuses.extend((0..sent).map(|_| read_status(connection)));
            }
        }
        statuses
    }
}

fn read_status(connection: &mut BufReader<UnixStream>) -> u16 {
    let mut line = String::new();
    connection.read_line(&mut line).expect("an answer");
    let status = line.split(' ').nth(1).and_then(|word| word.parse().ok());
    let status = status.unwrap_or_else(|| panic!("no status: {line:?}"));
    let mut length = 0;
    while line != "\r\n" {
        line.clear();
        connection.read_line(&mut line).expect("a header");
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().expect("a length");
        }
    }
    let mut body = vec![0; length];
    connection.read_exact(&mut body).expect("a body");
    status
}

#[test]
fn fifty_thousand_writes_wait_the_next_is_refused_and_none_is_lost() {
    const LIMIT: u32 = 50_000;
    const WRITERS: u32 = 4;
    let redis = RedisServer::start();
    let _done: String = redis.query(&["CONFIG", "SET", "appendfsync", "everysec"]);
    let daemon: Daemon = operated(&redis.url()).start();
    daemon.order("/admin/backends/redis/offline");
    let begun = Instant::now();
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let socket = daemon.socket().to_owned();
            let share = LIMIT / WRITERS;
            thread::spawn(move || {
                Pipelines::open(&socket, 64).set(writer * share..(writer + 1) * share)
            })
        })
        .collect();
    for writer in writers {
        let statuses = writer.join().unwrap();
        let other = statuses.iter().find(|status| **status != 202);
        assert_eq!(other, None, "every write is queued");
    }
    println!("filled in {:?}", begun.elapsed());
    assert_eq!(daemon.queued("redis", "pending"), u64::from(LIMIT));
    let begun = Instant::now();
    assert_full(&daemon.redis(&["SET", "one more", "v"]));
    assert!(begun.elapsed() < Duration::from_secs(1), "it took {:?}", begun.elapsed());
    daemon.redis(&["GET", "k49999"]).assert_value("49999");

    let begun = Instant::now();
    daemon.order("/admin/backends/redis/online");
    daemon.wait_until_drained("redis", Duration::from_secs(90));
    println!("drained in {:?}", begun.elapsed());
    assert_eq!(redis.query::<u32>(&["DBSIZE"]), LIMIT);
    for number in (0..LIMIT).step_by(997).chain([LIMIT - 1]) {
        assert_eq!(redis.get(&format!("k{number}")), Some(number.to_string()));
    }
    let replayed = daemon.metric("queue_operations_total", &[("event", "replayed")]);
    assert_eq!(format!("{replayed}"), LIMIT.to_string());
    daemon.redis(&["SET", "one more", "v"]).assert_live();
    let (_, view) = daemon.get("/v1/backends/redis");
    assert_eq!(view["queue"]["calls"], Value::from(0), "{view}");
}

#[test]
fn full_dead_letters_block_their_lanes_are_critical_and_none_is_evicted() {
    let mut redis = RedisServer::start();
    let daemon = operated(&redis.url()).set("backends.redis.queue.dead_items", 2).start();
    for list in ["a", "b", "c"] {
        daemon.redis(&["RPUSH", list, "x"]).assert_live();
    }
    begin_outage(&mut redis, &daemon);
    for list in ["a", "b", "c"] {
        daemon.redis(&["HSET", list, "f", "v"]).assert_queued();
        // Not a DEL: the write before one that sets the whole value is not sent at all.
        daemon.redis_with(&["LPOP", list], json!({ "min_ack": "durable" })).assert_queued();
    }
    redis.restart();
    recover(&daemon);
    daemon.wait_until("two are dead", LONG, |daemon| daemon.queued("redis", "dead") == 2);
    daemon.wait_until("the third blocks its lane", LONG, |daemon| {
        daemon.queued("redis", "pending") == 2
    });
    daemon.wait_until("it is critical", LONG, |daemon| {
        daemon.get("/health").1["reasons"].to_string().contains("dead letters of redis are full")
    });
    // Only the lists are counted: the records of what was applied are deleted a moment later.
    assert_eq!(redis.query::<u64>(&["EXISTS", "a", "b", "c"]), 1, "two lanes went on");

    let (_, page) = daemon.get("/v1/backends/redis/queue?state=dead");
    let op_id = page["calls"][0]["op_id"].as_str().unwrap();
    assert!(page["calls"][0]["last_error"].as_str().unwrap().contains("WRONGTYPE"), "{page}");
    let (status, body) = daemon.delete(&format!("/admin/backends/redis/queue/{op_id}"));
    assert_eq!(status, 200, "{body}");
    daemon.order("/admin/backends/redis/queue/replay");
    daemon.wait_until("the third is dead and its lane free", LONG, |daemon| {
        (daemon.queued("redis", "dead"), daemon.queued("redis", "pending")) == (2, 0)
    });
    assert_eq!(redis.query::<u64>(&["EXISTS", "a", "b", "c"]), 0);
}

#[test]
fn a_dead_letter_is_requeued_at_the_tail_and_only_by_force_where_its_lane_was_written_since() {
    let mut redis = RedisServer::start();
    let daemon = operated(&redis.url()).start();
    daemon.redis(&["RPUSH", "k", "x"]).assert_live();
    begin_outage(&mut redis, &daemon);
    let dead = daemon.redis(&["HSET", "k", "f", "v"]);
    dead.assert_queued();
    let op_id = dead.body["op_id"].as_str().unwrap();
    redis.restart();
    recover(&daemon);
    daemon.wait_until("it is dead", LONG, |daemon| daemon.queued("redis", "dead") == 1);
    // The cause is removed past the daemon.
    let _deleted: i64 = redis.query(&["DEL", "k"]);
    let requeue = format!("/admin/backends/redis/queue/{op_id}/requeue");
    daemon.order(&requeue);
    daemon.wait_until_drained("redis", LONG);
    assert_eq!(redis.query::<String>(&["HGET", "k", "f"]), "v");

    let _done: String = redis.query(&["SET", "k", "a string"]);
    begin_outage(&mut redis, &daemon);
    let dead = daemon.redis(&["HSET", "k", "f", "late"]);
    dead.assert_queued();
    redis.restart();
    recover(&daemon);
    daemon.wait_until("it is dead", LONG, |daemon| daemon.queued("redis", "dead") == 1);
    daemon.redis(&["DEL", "k"]).assert_live();
    let op_id = dead.body["op_id"].as_str().unwrap();
    let refused = daemon.fusebox(&["queue", "requeue", op_id]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("force"), "{refused:?}");
    let refused = daemon.fusebox(&["queue", "requeue", op_id, "--not-applied"]);
    assert_eq!(refused.status.code(), Some(1), "it says nothing of the lane: {refused:?}");
    let forced = daemon.fusebox(&["queue", "requeue", op_id, "--force", "--not-applied"]);
    assert_eq!(forced.status.code(), Some(0), "{forced:?}");
    daemon.wait_until_drained("redis", LONG);
    assert_eq!(redis.query::<String>(&["HGET", "k", "f"]), "late");
}
