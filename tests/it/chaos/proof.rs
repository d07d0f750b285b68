//! The proof: under every kind of fault no acknowledged write is lost, none is applied twice, and what one caller
//! writes keeps its order, through the JSON API and through the door at once.
//!
//! Each kind has two seconds, or `FUSEBOX_TEST_SECONDS=600`; of more than [`ROUND`] it is rounds that begin again, as a
//! queue that is 70 % full ends every fault.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use super::{client_of, hits, patient, set};
use crate::support::daemon::{Client, Daemon};
use crate::support::redis::RedisServer;

/// The longest round, in seconds.
const ROUND: u64 = 30;
const DRAIN: Duration = Duration::from_secs(120);
/// How many callers write at once through each way in.
const CALLERS: usize = 3;

/// What became of a caller's writes, in their order.
#[derive(Default)]
struct Written {
    /// Numbers that were acknowledged.
    acknowledged: Vec<u64>,
    /// Numbers of which nobody knows.
    unknown: Vec<u64>,
}

fn seconds() -> u64 {
    std::env::var("FUSEBOX_TEST_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(2)
}

/// Appends numbers to a list of its own, until it is stopped.
fn appends(daemon: &Client, list: &str, stop: &AtomicBool) -> Written {
    let mut written = Written::default();
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let options = json!({ "min_ack": "durable" });
        let reply = daemon.redis_with(&["RPUSH", list, &number.to_string()], options);
        match reply.status {
            200 | 202 => written.acknowledged.push(number),
            504 | 507 => written.unknown.push(number),
            _ => {}
        }
    }
    written
}

/// Sets a key of its own to rising numbers through the door, and reads each back.
fn sets(daemon: &Daemon, key: &str, stop: &AtomicBool) -> Written {
    let mut written = Written::default();
    let mut client = client_of(daemon);
    for number in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let told = redis::cmd("SET").arg(key).arg(number).query::<String>(&mut client);
        match told {
            Ok(ok) => {
                assert_eq!(ok, "OK");
                written.acknowledged.push(number);
            }
            Err(error) if error.to_string().contains("UNKNOWN") => written.unknown.push(number),
            Err(error) if error.is_connection_dropped() => client = client_of(daemon),
            Err(_) => {}
        }
        let read = redis::cmd("GET").arg(key).query::<Option<u64>>(&mut client);
        if let (Ok(Some(read)), Some(last)) = (read, written.acknowledged.last()) {
            assert!(read >= *last, "{key}: {last} was acknowledged before {read} was read");
        }
    }
    written
}

/// Lets callers write under a fault for as long as is wanted.
fn proven(fault: &serde_json::Value) {
    let rounds = seconds().div_ceil(ROUND).max(1);
    let time = Duration::from_secs(seconds()) / u32::try_from(rounds).unwrap_or(u32::MAX);
    let count: usize = (0..rounds).map(|seed| round(fault.clone(), time, seed)).sum();
    println!("{fault}: {count} acknowledged writes, each there once and in order");
}

/// Lets callers write under a fault, and looks what came of it. Returns how many writes were acknowledged.
fn round(fault: serde_json::Value, time: Duration, seed: u64) -> usize {
    let redis = RedisServer::start();
    let daemon = patient(&redis.url()).start();
    let kind = fault["kind"].as_str().unwrap_or_default().to_owned();
    let mut of_replay = fault.clone();
    let mut faults = vec![fault];
    if kind != "reject" {
        of_replay["class"] = json!("replay");
        faults.push(of_replay);
    }
    set(&daemon, "redis", json!({ "faults": faults, "for": "1h", "seed": seed }));
    let stop = AtomicBool::new(false);
    let (lists, keys) = thread::scope(|scope| {
        let (daemon, stop) = (&daemon, &stop);
        let client = daemon.client();
        let lists: Vec<_> = (0..CALLERS)
            .map(|at| {
                let client = client.clone();
                scope.spawn(move || appends(&client, &format!("list{at}"), stop))
            })
            .collect();
        let keys: Vec<_> = (0..CALLERS)
            .map(|at| scope.spawn(move || sets(daemon, &format!("key{at}"), stop)))
            .collect();
        let until = Instant::now() + time;
        while Instant::now() < until {
            thread::park_timeout(until.saturating_duration_since(Instant::now()));
        }
        stop.store(true, Ordering::Relaxed);
        let joined = |it: Vec<thread::ScopedJoinHandle<'_, Written>>| -> Vec<Written> {
            it.into_iter().map(|it| it.join().expect("a caller")).collect()
        };
        (joined(lists), joined(keys))
    });
    assert!(hits(&daemon, "redis") > 0, "{kind} has struck nothing");
    super::clear(&daemon, "redis");
    daemon.wait_until_drained("redis", DRAIN);
    assert_eq!(daemon.queued("redis", "dead"), 0, "{kind}");
    let mut count = 0;
    for (at, written) in lists.iter().enumerate() {
        let list: Vec<u64> = redis.query(&["LRANGE", &format!("list{at}"), "0", "-1"]);
        let sure: Vec<u64> =
            list.iter().copied().filter(|number| !written.unknown.contains(number)).collect();
        assert_eq!(sure, written.acknowledged, "{kind}: list{at}");
        assert!(list.is_sorted_by(|one, next| one < next), "{kind}: list{at} in order, and once");
        count += sure.len();
    }
    for (at, written) in keys.iter().enumerate() {
        let last = redis.get(&format!("key{at}")).and_then(|it| it.parse::<u64>().ok());
        let acknowledged = written.acknowledged.last().copied();
        assert!(last >= acknowledged, "{kind}: key{at} is {last:?}, acknowledged {acknowledged:?}");
        let is_known =
            last.is_none_or(|last| Some(last) == acknowledged || written.unknown.contains(&last));
        assert!(is_known, "{kind}: key{at} is {last:?}, acknowledged {acknowledged:?}");
        count += written.acknowledged.len();
    }
    assert!(count > 0, "{kind}");
    count
}

#[test]
fn no_acknowledged_write_is_lost_doubled_or_passed_under_errors() {
    proven(&json!({ "kind": "error", "rate": 0.2 }));
}

#[test]
fn no_acknowledged_write_is_lost_doubled_or_passed_under_refusals() {
    proven(&json!({ "kind": "reject", "rate": 0.2 }));
}

#[test]
fn no_acknowledged_write_is_lost_doubled_or_passed_under_timeouts() {
    proven(&json!({ "kind": "timeout", "rate": 0.05 }));
}

#[test]
fn no_acknowledged_write_is_lost_doubled_or_passed_under_resets() {
    proven(&json!({ "kind": "reset_before", "rate": 0.2 }));
    proven(&json!({ "kind": "reset_after", "rate": 0.2 }));
}

#[test]
fn no_acknowledged_write_is_lost_doubled_or_passed_under_delays() {
    proven(&json!({ "kind": "latency", "rate": 0.2, "latency": "20ms", "jitter": "20ms" }));
    proven(&json!({ "kind": "slow_drip", "rate": 0.2, "latency": "20ms" }));
}

#[test]
fn no_acknowledged_write_is_lost_doubled_or_passed_under_stale_connections() {
    proven(&json!({ "kind": "stale_connection", "rate": 0.2 }));
}
