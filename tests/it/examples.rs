//! examples/worker and examples/cron, as they are, through an outage of a real Redis. examples/fastapi is run by
//! tests/examples/run, as it takes longer.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use crate::support::daemon::{Daemon, FUSEBOX};
use crate::support::outage::{begin_outage, operated, recover};
use crate::support::proc::venv_python;
use crate::support::redis::RedisServer;

const LONG: Duration = Duration::from_secs(30);

fn example(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(path)
}

/// Killed when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().expect("it is ours to kill");
        self.0.wait().expect("it can be waited for");
    }
}

/// The worker, once it is ready.
fn start_worker(daemon: &Daemon) -> Running {
    let mut worker = Command::new(venv_python())
        .arg("-B")
        .arg(example("worker/worker.py"))
        .arg(daemon.folder().join("redis.sock"))
        .stdout(Stdio::piped())
        .spawn()
        .expect("the worker starts");
    let said = BufReader::new(worker.stdout.take().expect("its output is a pipe"));
    let first = said.lines().next().and_then(Result::ok);
    assert_eq!(first.as_deref(), Some("ready"));
    Running(worker)
}

#[test]
fn the_worker_goes_on_after_an_outage_and_loses_no_job() {
    let mut redis = RedisServer::start();
    let daemon = operated(&redis.url()).start();
    let done = |redis: &RedisServer, jobs: std::ops::Range<u32>| {
        jobs.into_iter().all(|job| redis.get(&format!("result:{job}")).as_deref() == Some("ABC"))
    };
    let enqueue = |redis: &RedisServer, jobs: std::ops::Range<u32>| {
        for job in jobs {
            redis.query::<i64>(&["LPUSH", "jobs", &format!("{job} abc")]);
        }
    };
    // What an earlier run has left.
    redis.query::<i64>(&["LPUSH", "doing", "0 abc"]);
    let worker = start_worker(&daemon);
    enqueue(&redis, 1..20);
    daemon.wait_until("the first are done", LONG, |_| done(&redis, 0..20));
    begin_outage(&mut redis, &daemon);
    redis.restart();
    enqueue(&redis, 20..40);
    recover(&daemon);
    daemon.wait_until("the others are done", LONG, |_| done(&redis, 20..40));
    // A worker that is killed with a job in its hands, and its successor.
    drop(worker);
    redis.query::<i64>(&["LPUSH", "doing", "40 abc"]);
    let worker = start_worker(&daemon);
    daemon.wait_until("so is that", LONG, |_| done(&redis, 40..41));
    daemon.wait_until("none is left", LONG, |_| {
        redis.query::<i64>(&["LLEN", "jobs"]) + redis.query::<i64>(&["LLEN", "doing"]) == 0
    });
    drop(worker);
}

/// Runs the report of a day; the exit code.
fn report(daemon: &Daemon, day: &str) -> Option<i32> {
    let folder = Path::new(FUSEBOX).parent().expect("it is in a folder").display();
    let path = std::env::var("PATH").unwrap_or_default();
    let mut script = daemon.cli(&[day]);
    let environment: Vec<_> = script
        .get_envs()
        .filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())))
        .collect();
    script = Command::new(example("cron/nightly-report"));
    script.arg(day).env_clear().envs(environment).env("PATH", format!("{folder}:{path}"));
    let Output { status, stderr, .. } = script.output().expect("it runs");
    if !status.success() {
        println!("{}", String::from_utf8_lossy(&stderr));
    }
    status.code()
}

#[test]
fn the_nightly_report_counts_each_day_once_also_in_an_outage() {
    let mut redis = RedisServer::start();
    let daemon = operated(&redis.url()).start();
    for (day, visits) in [("2026-11-26", "5"), ("2026-11-27", "7"), ("2026-11-28", "9")] {
        redis.query::<()>(&["SET", &format!("visits:{day}"), visits]);
    }
    let total = |redis: &RedisServer| redis.get("visits:total");
    for _ in 0..2 {
        assert_eq!(report(&daemon, "2026-11-26"), Some(0));
        assert_eq!(total(&redis).as_deref(), Some("5"), "a repetition is recognised");
    }
    assert_eq!(redis.get("report:2026-11-26").as_deref(), Some("5 visits"));

    daemon.redis(&["GET", "visits:2026-11-27"]).assert_live();
    begin_outage(&mut redis, &daemon);
    assert_eq!(report(&daemon, "2026-11-28"), Some(75), "its visits are not known");
    for _ in 0..2 {
        assert_eq!(report(&daemon, "2026-11-27"), Some(0));
    }
    assert_eq!(daemon.queued("redis", "pending"), 2);
    redis.restart();
    recover(&daemon);
    daemon.wait_until_drained("redis", LONG);
    assert_eq!(total(&redis).as_deref(), Some("12"));
    assert_eq!(report(&daemon, "2026-11-27"), Some(0));
    assert_eq!(report(&daemon, "2026-11-28"), Some(0));
    assert_eq!(total(&redis).as_deref(), Some("21"));
}
