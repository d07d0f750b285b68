//! `fusebox status --watch` in a real terminal, of several sizes, through outages of a backend and of the
//! daemon itself.

use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::support::daemon::Daemon;
use crate::support::outage::{begin_outage, operated, recover};
use crate::support::redis::RedisServer;
use crate::support::tmux::Terminal;

const LONG: Duration = Duration::from_secs(20);

#[test]
fn an_outage_is_watched_from_its_beginning_to_its_end() {
    let mut redis = RedisServer::start();
    let daemon = operated(&redis.url()).start();
    daemon.redis(&["SET", "k", "v"]).assert_live();
    let terminal = Terminal::open(&daemon, 100, 30);
    terminal.fusebox("status --watch");
    let peace = ["HEALTHY", "100 % operational", "> redis", "CLOSED", " calls/s ", " events "];
    terminal.shows("peace", &peace);

    begin_outage(&mut redis, &daemon);
    daemon.redis(&["SET", "k", "w"]).assert_queued();
    let outage = ["> redis", "OPEN", "half-opens in 3m", "paused", "CLOSED -> OPEN", "queued 1 "];
    terminal.shows("the outage", &outage);
    redis.restart();
    recover(&daemon);
    daemon.wait_until_drained("redis", LONG);
    terminal.shows("the end of it", &["CLOSED", "HALF_OPEN -> CLOSED", "queued 0 "]);
    terminal.press("q");
    terminal.shows("the shell again", &["exit=0"]);
}

#[test]
fn every_size_shows_the_state_and_the_backend() {
    let redis = RedisServer::start();
    let daemon = operated(&redis.url())
        .set("backends.sessions.kind", "redis")
        .set("backends.sessions.url", redis.url())
        .set("backends.sessions.critical", true)
        .start();
    daemon.order("/admin/circuit-breaker/sessions/force-open");
    let terminal = Terminal::open(&daemon, 80, 24);
    terminal.fusebox("status --watch --exit-code");
    for (columns, lines) in [(80, 24), (40, 12), (200, 50), (20, 5), (300, 8), (80, 24)] {
        terminal.resize(columns, lines);
        let state = if columns > 30 { "CRITICAL" } else { "CRIT" };
        terminal.shows(&format!("{columns}x{lines}"), &[state, "> sessions*"]);
        if lines >= 12 {
            terminal.shows("all of it", &["redis", "OPEN (forced)", "q quit"]);
        }
    }
    // The selection moves and its story comes with it.
    terminal.shows("the story of the first", &["The breaker of sessions has been OPEN"]);
    terminal.press("Up");
    terminal.shows("the story of the other", &["> redis", "The breaker of redis has been CLOSED"]);
    terminal.press("Down");
    terminal.shows("round again", &["> sessions*", "The breaker of sessions has been OPEN"]);
    terminal.press("Escape");
    terminal.shows("the shell again", &["exit=2"]);
}

#[test]
fn a_replay_is_followed_to_its_end_or_to_what_holds_it_up() {
    let redis = RedisServer::start();
    let daemon = operated(&redis.url()).start();
    daemon.redis(&["SET", "k", "v"]).assert_live();
    let terminal = Terminal::open(&daemon, 100, 30);
    daemon.order("/admin/backends/redis/offline");
    (0..500).for_each(|n| daemon.redis(&["SET", &format!("k{n}"), "v"]).assert_queued());
    // What replay has sent is not answered: it is watched meanwhile.
    redis.freeze();
    daemon.order("/admin/backends/redis/online");
    terminal.fusebox("queue replay redis");
    terminal.shows("how far it is", &["500 calls wait", "replay", "0/500 calls"]);
    redis.thaw();
    let screen = terminal.shows("the shell again", &["exit=0"]);
    assert!(!screen.contains("/500 calls"), "{screen}");
    daemon.wait_until_drained("redis", LONG);
}

#[test]
fn a_daemon_that_is_gone_is_told_of_and_found_again() {
    let redis = RedisServer::start();
    let mut daemon = operated(&redis.url()).start();
    let terminal = Terminal::open(&daemon, 80, 24);
    terminal.fusebox("status --watch");
    terminal.shows("peace", &["HEALTHY", "> redis"]);
    daemon.kill_9();
    terminal.shows("it is gone", &["no daemon, last seen ", " ago", "> redis", "CLOSED"]);
    daemon.restart();
    let screen = terminal.shows("it is back", &["HEALTHY", "> redis"]);
    assert!(!screen.contains("no daemon"), "{screen}");
    daemon.order("/admin/circuit-breaker/redis/force-open");
    terminal.shows("events come again", &["CLOSED -> OPEN (forced_open"]);
    terminal.press("C-c");
    terminal.shows("the shell again", &["exit=0"]);
}

/// Fails the test unless the terminal is a shell's: lines, echo, the usual screen and a cursor.
#[track_caller]
fn assert_given_back(terminal: &Terminal) {
    assert_eq!(terminal.variable("alternate_on"), "0");
    assert_eq!(terminal.variable("cursor_flag"), "1");
    terminal.run("stty -a");
    let modes = terminal.shows("the modes", &["icanon"]);
    let has = |mode: &str| modes.split([' ', ';', '\n']).any(|word| word == mode);
    assert!(has("icanon") && has("echo") && has("isig") && has("opost"), "{modes}");
}

/// A way out: its name, how it is taken, and what the shell then shows.
type Way<'a> = (&'a str, &'a dyn Fn(&Terminal), &'a str);

#[test]
fn the_terminal_is_given_back_on_every_way_out() {
    let redis = RedisServer::start();
    let daemon = operated(&redis.url()).start();
    let ways: [Way<'_>; 5] = [
        ("q", &|terminal| terminal.press("q"), "exit=0"),
        ("SIGTERM", &|terminal| signal(terminal, Signal::SIGTERM), "exit=143"),
        ("SIGHUP", &|terminal| signal(terminal, Signal::SIGHUP), "exit=129"),
        ("SIGINT", &|terminal| signal(terminal, Signal::SIGINT), "exit=130"),
        ("a panic", &|terminal| terminal.press("!"), "exit=101"),
    ];
    for (way, leave, end) in ways {
        let terminal = Terminal::open(&daemon, 80, 24);
        terminal.fusebox("status --watch");
        terminal.shows("it watches", &["HEALTHY", "> redis"]);
        assert_eq!(terminal.variable("alternate_on"), "1", "{way}");
        leave(&terminal);
        let screen = terminal.shows(way, &[end]);
        assert_eq!(way == "a panic", screen.contains("told to panic"), "{screen}");
        assert_given_back(&terminal);
    }
}

fn signal(terminal: &Terminal, signal: Signal) {
    kill(Pid::from_raw(terminal.process()), signal).expect("it runs");
}

#[test]
fn without_a_terminal_there_is_a_line_a_second_or_nothing() {
    let redis = RedisServer::start();
    let mut daemon = operated(&redis.url()).start();
    let refused = daemon.fusebox(&["status", "--watch"]);
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("--watch needs a terminal; --watch --json"), "{said}");
    assert_eq!(refused.stdout, b"");

    let mut lines = Lines::of(&daemon);
    assert_eq!(lines.next()["state"], "HEALTHY");
    let at = lines.next()["at"].clone();
    assert_ne!(lines.next()["at"], at, "every second anew");
    daemon.kill_9();
    let gone = lines.find(|line| line["state"].is_null());
    assert!(gone["error"].as_str().unwrap().starts_with("no daemon at "), "{gone}");
    daemon.restart();
    lines.find(|line| line["state"] == "HEALTHY");
    // It ends by itself when nobody reads any more.
    drop(lines.reader);
    let status = lines.process.wait().unwrap();
    assert_eq!(status.code(), Some(0));
}

/// `status --watch --json` in a pipe.
struct Lines {
    process: std::process::Child,
    reader: std::io::BufReader<std::process::ChildStdout>,
}

impl Lines {
    fn of(daemon: &Daemon) -> Self {
        let mut command = daemon.cli(&["status", "--watch", "--json"]);
        let mut process = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let reader = std::io::BufReader::new(process.stdout.take().unwrap());
        Self { process, reader }
    }

    #[track_caller]
    fn next(&mut self) -> Value {
        let mut line = String::new();
        std::io::BufRead::read_line(&mut self.reader, &mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }

    #[track_caller]
    fn find(&mut self, is_wanted: impl Fn(&Value) -> bool) -> Value {
        (0..60).map(|_| self.next()).find(|line| is_wanted(line)).expect("within a minute")
    }
}
