//! Root causes, with one real server of each kind: killed in every order, and cut off from the network together.

use std::cell::RefCell;
use std::env;
use std::process::Command;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::all_three::World;
use crate::support::daemon::{Builder, Client};
use crate::support::proc::require;

const LONG: Duration = Duration::from_secs(60);
/// Each needs the one behind it.
const ALL: [&str; 3] = ["clickhouse", "firestore", "redis"];

fn needs(builder: Builder) -> Builder {
    ALL.iter().zip(&ALL[1..]).fold(builder, |builder, (who, on)| {
        builder.set(&format!("backends.{who}.depends_on"), vec![*on])
    })
}

/// Outages are noticed by pings, and end no sooner than `recovery` says.
fn noticed(builder: Builder, backend: &str, recovery: &str) -> Builder {
    let breaker = format!("backends.{backend}.breaker");
    builder
        .set("health.interval", "200ms")
        .set(&format!("{breaker}.failure_threshold"), 2)
        .set(&format!("{breaker}.recovery_timeout"), recovery)
        .set(&format!("{breaker}.recovery_timeout_max"), recovery)
}

fn roots(daemon: &Client) -> Vec<(String, Vec<String>)> {
    let graph = daemon.get("/v1/dependencies").1;
    let root = |root: &Value| {
        let impairs = root["impairs"].as_array().unwrap().iter();
        let name = |name: &Value| name.as_str().unwrap().to_owned();
        (name(&root["backend"]), impairs.map(name).collect())
    };
    graph["root_causes"].as_array().unwrap().iter().map(root).collect()
}

fn reasons(daemon: &Client) -> Vec<String> {
    let health = daemon.get("/health").1;
    let reasons = health["reasons"].as_array().unwrap().iter().map(|it| it.as_str().unwrap());
    reasons.filter(|it| it.contains(" is down")).map(str::to_owned).collect()
}

#[test]
fn whatever_is_killed_first_the_one_that_the_others_need_is_the_root() {
    // Between two outages lie the seconds in which nothing may be down, so that three worlds wait through them at once.
    thread::scope(|scope| {
        for orders in [[[0, 1, 2], [0, 2, 1]], [[1, 0, 2], [1, 2, 0]], [[2, 0, 1], [2, 1, 0]]] {
            scope.spawn(move || {
                let mut world = World::with(|builder, backend| {
                    let recovery = if backend == "redis" { "300ms" } else { "4m" };
                    noticed(needs(builder), backend, recovery)
                });
                world.becomes("HEALTHY");
                for order in orders {
                    kill_in(&mut world, order);
                    return_in_order(&mut world, order);
                    // Only then is the next outage another one.
                    world.becomes("HEALTHY");
                }
            });
        }
    });
}

/// Kills all three, and looks for the root after each.
fn kill_in(world: &mut World, order: [usize; 3]) {
    let mut down = Vec::new();
    for at in order {
        world.stop(ALL[at]);
        world.daemon.wait_for_breaker(ALL[at], "OPEN", LONG);
        down.push(at);
        let last = *down.iter().max().unwrap();
        let with: Vec<String> =
            (0..last).filter(|at| down.contains(at)).map(|at| ALL[at].to_owned()).collect();
        let wanted = [(ALL[last].to_owned(), with)];
        world.daemon.wait_until("the root is found", LONG, |daemon| roots(daemon) == wanted);
        let told = reasons(&world.daemon);
        assert_eq!(told.len(), 1, "{order:?}: {told:?}");
        assert!(told[0].contains(&format!("backend {} is down (", ALL[last])), "{told:?}");
    }
}

/// Starts all three again: each closes as soon as what it needs is back, though its own open time is long.
fn return_in_order(world: &mut World, order: [usize; 3]) {
    let events = world.daemon.events();
    for backend in ALL {
        world.start_again(backend);
    }
    let steps = RefCell::new(Vec::new());
    events.next("the last one closes", LONG, |event| {
        if event.kind == "transition" && event.data["to"] != "OPEN" {
            let backend = event.data["backend"].as_str().unwrap().to_owned();
            let mut steps = steps.borrow_mut();
            steps.retain(|(of, _)| *of != backend);
            steps.push((backend, event.data["to"] == "CLOSED"));
        }
        let steps = steps.borrow();
        steps.len() == 3 && steps.iter().all(|(_, closed)| *closed)
    });
    let steps = steps.into_inner();
    let closed: Vec<&str> = steps.iter().map(|(backend, _)| backend.as_str()).collect();
    assert_eq!(closed, ["redis", "firestore", "clickhouse"], "{order:?}");
    for backend in ["firestore", "clickhouse"] {
        let explained = world.daemon.get(&format!("/v1/backends/{backend}/explain")).1;
        let why = explained["transitions"].as_array().unwrap().iter().rev().nth(1).unwrap();
        assert_eq!(why["reason"], "dependency_returned", "{backend}");
    }
    assert_eq!(roots(&world.daemon), []);
}

/// Runs this very test again, in a network namespace of its own.
fn in_a_namespace(name: &str) {
    let status = Command::new(require("unshare", "util-linux"))
        .args(if nix::unistd::geteuid().is_root() {
            &["--net"][..]
        } else {
            &["--map-root-user", "--net"]
        })
        .arg(env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture"])
        .env(INSIDE, "1")
        .status()
        .unwrap();
    assert!(status.success(), "{status}");
}

const INSIDE: &str = "FUSEBOX_TEST_NAMESPACE";

fn ip(arguments: &str) {
    let arguments = arguments.split(' ');
    let status = Command::new(require("ip", "iproute2")).args(arguments.clone()).status().unwrap();
    assert!(status.success(), "ip {arguments:?}: {status}");
}

#[test]
fn a_network_that_is_cut_is_the_cause_and_not_the_three_behind_it() {
    if env::var_os(INSIDE).is_none() {
        let name = "dependencies::a_network_that_is_cut_is_the_cause_and_not_the_three_behind_it";
        return in_a_namespace(name);
    }
    ip("link set lo up");
    let world = World::with(|builder, backend| {
        let recovery = if backend == "redis" { "300ms" } else { "1s" };
        noticed(builder, backend, recovery).set("health.timeout", "1s")
    });
    world.becomes("HEALTHY");
    // What is connected falls silent, and nothing connects any more: ENETUNREACH.
    ip("addr del 127.0.0.1/8 dev lo");
    for backend in ALL {
        world.daemon.wait_for_breaker(backend, "OPEN", LONG);
    }
    let wanted = [("host:network".to_owned(), ALL.map(str::to_owned).to_vec())];
    world.daemon.wait_until("the network is named", LONG, |daemon| roots(daemon) == wanted);
    let told = reasons(&world.daemon);
    let sentence = "this host's network is down; this affects 3 backends: clickhouse (critical), firestore, redis";
    assert_eq!(told, [sentence]);
    let (_, graph) = world.daemon.get("/v1/dependencies");
    assert_eq!(graph["root_causes"][0]["confidence"], json!("likely"));
    let (_, dot) = world.daemon.get("/v1/dependencies?format=dot");
    let edge = "\"redis\" -> \"host:network\" [style=dotted";
    assert!(dot.as_str().unwrap().contains(edge), "{dot}");
    assert_eq!(world.daemon.get("/v1/dependencies?format=svg").0, 400);
    let shown = world.daemon.fusebox(&["status"]);
    assert!(String::from_utf8_lossy(&shown.stdout).contains(sentence));
    ip("addr add 127.0.0.1/8 dev lo");
    world.becomes("HEALTHY");
    assert_eq!(roots(&world.daemon), []);
}
