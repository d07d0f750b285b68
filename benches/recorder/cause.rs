//! What disturbs a server, and what its callers ask meanwhile.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, Scope},
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use crate::{
    client::{Client, Wire},
    scenario::{DEATH, Scenario},
    server::{Kind, Server},
};

/// What disturbs it. Strengths are between 0 and 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// Less and less processor time.
    Cpu,
    /// Another client's script, which takes longer and longer.
    Lua,
    /// More and more clients that look through all keys.
    Keys,
    /// The process is stopped for longer and longer.
    Freeze,
    /// More and more clients with large queries.
    Queries,
    /// Fewer and fewer writes a second to the disk.
    Disk,
    /// More and more clients, with a connection for each question.
    Flood,
    /// Other clients read larger and larger values.
    Values,
    /// Callers wait for a replica, which is stopped for longer and longer.
    Replica,
    /// Nothing merges what is inserted, so that the server delays inserts.
    Parts,
    /// Another client holds a row's lock longer and longer.
    Locks,
    /// A table without an index that grows.
    Scan,
    /// Nothing.
    None,
    /// Killed, all of a sudden.
    Killed,
    /// Stopped, all of a sudden.
    Stopped,
    /// As `Killed`; held out.
    Crashed,
    /// As `Stopped`; held out.
    Hung,
}

/// Does something of this strength, and says how long it pauses then.
type Worker = Box<dyn FnMut(f64) -> Duration + Send>;

const MILLI: Duration = Duration::from_millis(1);
const IDLE: Duration = Duration::from_millis(50);
const PATIENCE: Duration = Duration::from_secs(20);

/// What a caller asks.
pub(crate) fn question(scenario: &Scenario, random: &mut fastrand::Rng) -> String {
    let key = random.u32(0..100);
    let write = random.u32(0..10) < 3;
    match (scenario.server.wire(), scenario.cause) {
        (Wire::Redis, Cause::Replica) => format!("SET k{key} v\nWAIT 1 0"),
        (Wire::Redis, Cause::Disk) if random.u32(0..10) < 6 => format!("SET k{key} {key}"),
        (Wire::Redis, _) if write => format!("SET k{key} {key}"),
        (Wire::Redis, _) => format!("GET k{key}"),
        (Wire::ClickHouse, Cause::Parts) => format!("INSERT INTO t VALUES ({key})"),
        (Wire::ClickHouse, _) => format!("SELECT count() FROM t WHERE a < {key}"),
        (Wire::Postgres, Cause::Locks) if random.u32(0..10) < 9 => {
            "UPDATE t SET v = v + 1 WHERE k = 0".into()
        }
        (Wire::Postgres, Cause::Scan) if random.bool() => {
            format!("SELECT count(*) FROM log WHERE v = {key}")
        }
        (Wire::Postgres, Cause::Disk) if random.u32(0..10) < 6 => {
            format!("UPDATE t SET v = v + 1 WHERE k = {key}")
        }
        (Wire::Postgres, _) if write => format!("UPDATE t SET v = v + 1 WHERE k = {key}"),
        (Wire::Postgres, _) => format!("SELECT v FROM t WHERE k = {key}"),
    }
}

/// Fills the server with what callers and causes ask for.
pub(crate) fn prepare(scenario: &Scenario, server: &mut Server) {
    let mut client = server.client();
    let mut all = |statements: &[&str]| statements.iter().for_each(|it| client.prepare(it));
    match (scenario.server, scenario.cause) {
        (_, Cause::Keys) => {
            all(&["EVAL \"for i=1,60000 do redis.call('SET','x'..i,i) end return 1\" 0"]);
        }
        (Kind::Valkey9, Cause::Values) => {
            for size in 0..8 {
                all(&[&format!(
                    "EVAL \"redis.call('SET','v'..ARGV[1],string.rep('x',65536*2^ARGV[1])) return 1\" 0 {size}"
                )]);
            }
        }
        (_, Cause::Parts) => all(&[
            "CREATE TABLE t (a Int64) ENGINE = MergeTree ORDER BY a SETTINGS parts_to_delay_insert = 200, \
             parts_to_throw_insert = 2500, max_delay_to_insert = 1, min_delay_to_insert_ms = 1",
            "SYSTEM STOP MERGES t",
        ]),
        (Kind::ClickHouse18 | Kind::ClickHouse26, _) => all(&[
            "CREATE TABLE t (a Int64) ENGINE = MergeTree ORDER BY a",
            "INSERT INTO t SELECT number FROM numbers(1000)",
        ]),
        (Kind::Postgres15, _) => all(&[
            "CREATE TABLE t (k int PRIMARY KEY, v int)",
            "INSERT INTO t SELECT g, 0 FROM generate_series(0, 99) g",
            "CREATE UNLOGGED TABLE log (v int, filler text)",
            "ALTER SYSTEM SET max_parallel_workers_per_gather = 0",
            "SELECT pg_reload_conf()",
        ]),
        _ => {}
    }
    if scenario.cause == Cause::Replica {
        server.copy();
    }
}

/// Begins what disturbs the server; it ends once `stop` is set.
pub(crate) fn disturb<'scope>(
    scope: &'scope Scope<'scope, '_>,
    scenario: &'scope Scenario,
    server: &'scope Server,
    begin: Instant,
    stop: &Arc<AtomicBool>,
) {
    let shape = scenario.shape;
    for mut worker in workers(scenario, server) {
        let stop = Arc::clone(stop);
        scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                thread::sleep(worker(shape.strength(begin.elapsed())));
            }
        });
    }
    let stop = Arc::clone(stop);
    scope.spawn(move || {
        let mut dead = false;
        while !stop.load(Ordering::Relaxed) {
            let strength = shape.strength(begin.elapsed());
            let pause = by_force(scenario, server, strength, begin, &mut dead);
            thread::sleep(pause);
        }
    });
}

/// What is done to the server from outside.
fn by_force(
    scenario: &Scenario,
    server: &Server,
    strength: f64,
    begin: Instant,
    dead: &mut bool,
) -> Duration {
    let freeze = Duration::from_millis(900).mul_f64(strength);
    match scenario.cause {
        Cause::Cpu => {
            let share = server.share();
            server.limit(share * (0.002_f64 / share).powf(strength));
            MILLI * 200
        }
        Cause::Disk => {
            server.limit_writes((400.0 * (1.5_f64 / 400.0).powf(strength)) as u32);
            MILLI * 200
        }
        Cause::Freeze if freeze > MILLI * 2 => {
            server.send(Signal::SIGSTOP);
            thread::sleep(freeze);
            server.send(Signal::SIGCONT);
            MILLI * 40
        }
        Cause::Replica if freeze > MILLI * 2 => {
            if let Some(replica) = &server.replica {
                replica.freeze();
                thread::sleep(freeze);
                replica.thaw();
            }
            MILLI * 40
        }
        Cause::Killed | Cause::Crashed | Cause::Stopped | Cause::Hung
            if !*dead && begin.elapsed().as_secs_f64() > DEATH =>
        {
            *dead = true;
            let hung = matches!(scenario.cause, Cause::Stopped | Cause::Hung);
            server.send(if hung { Signal::SIGSTOP } else { Signal::SIGKILL });
            IDLE
        }
        _ => IDLE,
    }
}

/// The other clients.
fn workers(scenario: &Scenario, server: &Server) -> Vec<Worker> {
    let burn = |millis: f64, per_milli: f64| {
        let turns = (millis * per_milli).max(1.0) as u64;
        format!("EVAL \"local x=0 for i=1,ARGV[1] do x=x+i end return 1\" 0 {turns}")
    };
    // Turns of an empty loop that Redis's Lua does in a millisecond of this machine.
    let per_milli = 60_000.0;
    let client = || server.client();
    match (scenario.server.wire(), scenario.cause) {
        (Wire::Redis, Cause::Cpu) => several(2, client, move |client, _| {
            client.ask(&burn(1.0, per_milli), PATIENCE);
            MILLI * 20
        }),
        (_, Cause::Lua) => several(1, client, move |client, strength| {
            client.ask(&burn(140.0 * strength, per_milli), PATIENCE);
            MILLI * 25
        }),
        (_, Cause::Keys) => crowd(8, client, |client| {
            client.ask("KEYS zz*", PATIENCE);
            MILLI * 5
        }),
        (Wire::ClickHouse, Cause::Queries) => crowd(24, client, |client| {
            let query =
                "SELECT sum(sipHash64(number)) FROM numbers(2000000) SETTINGS max_threads = 1";
            client.ask(query, PATIENCE);
            MILLI * 5
        }),
        (Wire::Redis, Cause::Flood) => crowd(60, client, move |client| {
            client.leave();
            client.ask(&burn(4.0, per_milli), PATIENCE);
            MILLI * 5
        }),
        (Wire::ClickHouse, Cause::Flood) => crowd(24, client, |client| {
            client.ask("SELECT count() FROM t WHERE a < 5", PATIENCE);
            MILLI * 5
        }),
        (Wire::Postgres, Cause::Flood) => crowd(40, client, |client| {
            client.leave();
            client.ask("SELECT count(*) FROM t", PATIENCE);
            MILLI * 5
        }),
        (Wire::Redis, Cause::Values) => several(20, client, |client, strength| {
            let size = (strength * 7.0).round() as u32;
            client.ask(&format!("GET v{size}"), PATIENCE);
            MILLI * 30
        }),
        (_, Cause::Values) => several(3, client, |client, strength| {
            let length = (strength * 2_000_000.0) as u64;
            let query = format!("SELECT repeat('x', {length}) FROM numbers(20)");
            client.ask(&query, PATIENCE);
            MILLI * 100
        }),
        (_, Cause::Locks) => {
            several(1, client, |client, strength| {
                let hold = strength * 1.2;
                client.ask(
                &format!("BEGIN; UPDATE t SET v = v + 1 WHERE k = 0; SELECT pg_sleep({hold:.3}); COMMIT"),
                PATIENCE,
            );
                MILLI * 30
            })
        }
        (_, Cause::Scan) => {
            let mut rows = 0;
            several(1, client, move |client, strength| {
                let wanted = (strength * 800_000.0) as u64;
                if wanted > rows {
                    let more = (wanted - rows).min(20_000);
                    let insert = format!(
                        "INSERT INTO log SELECT g % 100, 'xxxxxxxxxxxxxxxx' FROM generate_series(1, {more}) g"
                    );
                    client.ask(&insert, PATIENCE);
                    rows += more;
                }
                MILLI * 100
            })
        }
        _ => Vec::new(),
    }
}

/// So many clients that all do the same.
fn several(
    count: usize,
    client: impl Fn() -> Client,
    act: impl FnMut(&mut Client, f64) -> Duration + Clone + Send + 'static,
) -> Vec<Worker> {
    (0..count)
        .map(|_| {
            let (mut client, mut act) = (client(), act.clone());
            Box::new(move |strength: f64| act(&mut client, strength)) as Worker
        })
        .collect()
}

/// Of so many clients the share that the strength says.
fn crowd(
    count: usize,
    client: impl Fn() -> Client,
    act: impl Fn(&mut Client) -> Duration + Clone + Send + 'static,
) -> Vec<Worker> {
    (0..count)
        .map(|number| {
            let (mut client, act) = (client(), act.clone());
            let from = number as f64 / count as f64;
            Box::new(move |strength: f64| if strength > from { act(&mut client) } else { IDLE })
                as Worker
        })
        .collect()
}
