//! The status page, over HTTP and in a real browser.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::daemon::{Builder, Daemon};
use crate::support::outage::{begin_outage, operated, recover};
use crate::support::poll::{Stop, eventually};
use crate::support::port::Port;
use crate::support::proc::require;
use crate::support::redis::RedisServer;

mod browser;
mod cards;
use browser::Browser;

const LONG: Duration = Duration::from_secs(20);
const TOKEN: &str = "a-t0ken-of-24-characters";
const HTML: &str = "accept: text/html,*/*;q=0.8\r\n";
/// How many of one caller may follow the page at once: of 64, an eighth is kept free for others.
const LISTENERS: usize = 56;

/// A daemon whose page is on a port of its own, over a Redis that can be killed.
struct Stage {
    redis: RedisServer,
    daemon: Daemon,
    port: Port,
    _secrets: TempDir,
}

impl Stage {
    fn set() -> Self {
        Self::with(|builder, _| builder)
    }

    fn with(settings: impl FnOnce(Builder, &str) -> Builder) -> Self {
        let (redis, port) = (RedisServer::start(), Port::lease());
        let secrets = tempfile::tempdir().unwrap();
        let file = secrets.path().join("token");
        fs::write(&file, TOKEN).unwrap();
        let builder = operated(&redis.url())
            .set("http.listen", port.address().to_string())
            .set("http.token_file", file.to_str().unwrap());
        let daemon = settings(builder, &redis.url()).start();
        Self { redis, daemon, port, _secrets: secrets }
    }

    fn origin(&self) -> String {
        format!("http://{}", self.port.address())
    }

    /// The whole answer to a GET over TCP.
    fn get(&self, path: &str, headers: &str) -> Answer {
        let mut stream = self.send("GET", path, headers);
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        Answer(String::from_utf8(bytes).unwrap())
    }

    fn send(&self, method: &str, path: &str, headers: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.port.address()).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        let address = self.port.address();
        let host =
            if headers.contains("host:") { String::new() } else { format!("host: {address}\r\n") };
        let head = format!("{method} {path} HTTP/1.1\r\n{host}connection: close\r\n{headers}\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        stream
    }

    /// Makes a dead letter: a write that replay is refused for.
    fn bury(&mut self, key: &str) -> String {
        self.daemon.redis(&["RPUSH", key, "x"]).assert_live();
        begin_outage(&mut self.redis, &self.daemon);
        let reply = self.daemon.redis(&["HSET", key, "f", "v"]);
        reply.assert_queued();
        let before = self.daemon.queued("redis", "dead");
        self.redis.restart();
        recover(&self.daemon);
        self.daemon
            .wait_until("it is dead", LONG, |daemon| daemon.queued("redis", "dead") > before);
        reply.body["op_id"].as_str().unwrap().to_owned()
    }
}

/// An answer as it came.
struct Answer(String);

impl Answer {
    fn status(&self) -> &str {
        self.0.split(' ').nth(1).unwrap_or("none")
    }

    fn header(&self, name: &str) -> Option<&str> {
        let (head, _) = self.0.split_once("\r\n\r\n")?;
        head.lines().find_map(|line| {
            let (found, value) = line.split_once(": ")?;
            found.eq_ignore_ascii_case(name).then_some(value)
        })
    }

    fn body(&self) -> &str {
        self.0.split_once("\r\n\r\n").map_or("", |(_, body)| body)
    }
}

/// The events of the page's stream, over TCP.
struct Stream {
    lines: BufReader<TcpStream>,
}

impl Stream {
    fn follow(stage: &Stage) -> Self {
        let mut lines = BufReader::new(stage.send("GET", "/health/stream", ""));
        let mut first = String::new();
        lines.read_line(&mut first).unwrap();
        assert!(first.starts_with("HTTP/1.1 200"), "{first}");
        Self { lines }
    }

    /// The next event; `None` at the stream's end.
    fn next(&mut self) -> Option<(String, Value)> {
        let (mut name, mut line) = (String::new(), String::new());
        loop {
            line.clear();
            if self.lines.read_line(&mut line).unwrap() == 0 {
                return None;
            }
            if let Some(word) = line.strip_prefix("event: ") {
                word.trim().clone_into(&mut name);
            } else if let Some(data) = line.strip_prefix("data: ") {
                return Some((name, serde_json::from_str(data).unwrap()));
            }
        }
    }

    /// The next event that is wanted.
    #[track_caller]
    fn until(&mut self, wanted: impl Fn(&str, &Value) -> bool) -> Value {
        let until = Instant::now() + LONG;
        while let Some((name, data)) = self.next() {
            if wanted(&name, &data) {
                return data;
            }
            assert!(Instant::now() < until, "not told within {LONG:?}; last was {name} {data}");
        }
        panic!("the stream has ended");
    }
}

#[test]
fn a_browser_gets_the_page_under_a_strict_policy_and_curl_gets_text() {
    let stage = Stage::set();
    let page = stage.get("/", HTML);
    assert_eq!(page.status(), "200");
    assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.starts_with("default-src 'none'; script-src 'self'; "), "{policy}");
    for word in ["unsafe", "*", "http:", "https:", "data:", "blob:"] {
        assert!(!policy.contains(word), "{word} in {policy}");
    }
    for part in ["frame-ancestors 'none'", "base-uri 'none'", "require-trusted-types-for 'script'"]
    {
        assert!(policy.contains(part), "{part} not in {policy}");
    }
    assert_eq!(page.header("x-content-type-options"), Some("nosniff"));
    assert_eq!(page.header("vary"), Some("accept"));

    // What it is made of is there, and what a browser has is not sent again.
    let files: Vec<&str> =
        page.body().split('"').filter(|text| text.starts_with("page/")).collect();
    assert_eq!(files, ["page/icon.svg", "page/style.css", "page/page.js"]);
    let script = stage.get("/page/page.js", "");
    let modules = script.body().split('"').filter_map(|text| text.strip_prefix("./"));
    let modules = modules.map(|name| format!("page/{name}")).collect::<Vec<_>>();
    assert!(modules.len() > 4, "{modules:?}");
    for file in files.into_iter().chain(modules.iter().map(String::as_str)).chain([""]) {
        let path = format!("/{file}");
        let answer = stage.get(&path, HTML);
        assert_eq!(answer.status(), "200", "{path}");
        assert!(answer.header("content-security-policy").is_some(), "{path}");
        let tag = answer.header("etag").unwrap();
        let again = stage.get(&path, &format!("{HTML}if-none-match: {tag}\r\n"));
        assert_eq!((again.status(), again.body()), ("304", ""), "{path}");
        assert_eq!(again.header("etag"), Some(tag), "{path}");
        let other = stage.get(&path, &format!("{HTML}if-none-match: \"0\"\r\n"));
        assert_eq!(other.status(), "200", "{path}");
    }
    assert_eq!(stage.get("/page/nowhere.js", "").status(), "404");
    assert_eq!(stage.get("/page/..%2fpage.rs", "").status(), "404");

    for accept in ["", "accept: */*\r\n", "accept: text/plain\r\n"] {
        let text = stage.get("/", accept);
        assert_eq!(text.header("content-type"), Some("text/plain; charset=utf-8"), "{accept}");
        assert!(text.body().contains("HEALTHY") && text.body().contains("redis: CLOSED"));
    }
}

#[test]
fn the_stream_tells_the_state_at_once_and_what_changes_and_nothing_that_callers_sent() {
    let mut stage = Stage::set();
    let mut stream = Stream::follow(&stage);
    let (name, hello) = stream.next().unwrap();
    assert_eq!((name.as_str(), &hello["rights"]), ("hello", &json!("token")));
    assert_eq!(stream.next().unwrap().0, "history");
    let (name, now) = stream.next().unwrap();
    assert_eq!((name.as_str(), &now["state"]), ("state", &json!("HEALTHY")));
    assert_eq!(now["backends"]["redis"]["breaker"]["state"], "CLOSED");

    // When nothing happens it says so every five seconds, and not all the time.
    let mut longest = Duration::ZERO;
    for _ in 0..5 {
        let begun = Instant::now();
        let same = stream.until(|name, _| name == "state");
        longest = longest.max(begun.elapsed());
        assert_eq!(same["started"], now["started"]);
        // The first connection to the backend may still be news.
        if longest.as_secs() >= 3 {
            break;
        }
    }
    assert!((3..7).contains(&longest.as_secs()), "{longest:?}");

    stage.daemon.redis(&["SET", "secret-key", "v"]).assert_live();
    begin_outage(&mut stage.redis, &stage.daemon);
    stage.daemon.redis(&["SET", "secret-key", "w"]).assert_queued();
    let told = stream.until(|name, _| name == "transition");
    assert_eq!((&told["backend"], &told["to"]), (&json!("redis"), &json!("OPEN")));
    let error = &told["last_errors"][0];
    assert!(error["code"].is_string() && error.get("message").is_none(), "{told}");
    let open = stream.until(|_, data| data["backends"]["redis"]["queue"]["calls"] == 1);
    assert_eq!(open["backends"]["redis"]["breaker"]["state"], "OPEN");
    let last = &open["backends"]["redis"]["breaker"]["last_transition"];
    assert!(last["last_errors"][0].get("message").is_none(), "{last}");
    assert!(!open.to_string().contains("secret-key"), "{open}");

    // Whoever comes later sees what was.
    let mut late = Stream::follow(&stage);
    let history = late.until(|name, _| name == "history");
    assert_eq!(history["transitions"][0]["to"], "OPEN");
    assert!(!history.to_string().contains("message"), "{history}");

    // A dead letter is shown without its name and words.
    stage.redis.restart();
    let _pushed: i64 = stage.redis.query(&["DEL", "secret-key"]);
    recover(&stage.daemon);
    stage.daemon.wait_until_drained("redis", LONG);
    stage.bury("secret-list");
    let told = stream.until(|name, _| name == "dead_letter");
    let mut members: Vec<&String> = told.as_object().unwrap().keys().collect();
    members.sort();
    assert_eq!(members, ["at", "backend", "event", "id"]);

    // It ends with the daemon, which does not wait for its listeners.
    let begun = Instant::now();
    assert!(stage.daemon.terminate().success());
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    while stream.next().is_some() {}
}

#[test]
fn the_beginning_of_an_outage_is_told_however_often_it_was_probed_in_vain() {
    let mut stage = Stage::set();
    begin_outage(&mut stage.redis, &stage.daemon);
    let order = json!({ "backend": "redis" });
    for round in 2..30 {
        let (status, body) = stage.daemon.post("/admin/resilience/force-recovery", order.clone());
        assert_eq!(status, 200, "{body}");
        stage.daemon.wait_until("it is open again", LONG, |daemon| {
            daemon.transitions("redis", "HALF_OPEN", "OPEN") == round - 1
        });
    }
    // A transition is on disk a little after it has happened.
    stage.daemon.wait_until("all are kept", LONG, |daemon| {
        let (_, kept) = daemon.get("/v1/history?limit=1000");
        kept["transitions"].as_array().is_some_and(|kept| kept.len() == 1 + 2 * 28)
    });
    let history = Stream::follow(&stage).until(|name, _| name == "history");
    let transitions = history["transitions"].as_array().unwrap();
    assert_eq!(transitions.len(), 50);
    assert!(transitions.iter().all(|it| it["from"] != "CLOSED"), "{history}");
    let began = history["began"].as_array().unwrap();
    assert_eq!(began.len(), 1, "{history}");
    assert_eq!((&began[0]["backend"], &began[0]["from"]), (&json!("redis"), &json!("CLOSED")));

    let mut browser = Browser::at(&stage.origin(), 1280, "light");
    browser.sees("[data-backend=redis] .cause", "a probe failed.*First opened at .*last errors: ");
    browser.sees("#broken li", "redis is OPEN\\. ");
}

#[test]
fn state_is_told_at_most_once_a_second() {
    let stage = Stage::set();
    let mut stream = Stream::follow(&stage);
    let stop = Stop::default();
    let (watch, client) = (stop.watch(), stage.daemon.client());
    // Something changes all the time.
    let caller = thread::spawn(move || {
        while !watch.is_set() {
            client.redis(&["SET", "k", "v"]);
        }
    });
    let begun = Instant::now();
    let states = (0..5).map(|_| stream.until(|name, _| name == "state")).count();
    let took = begun.elapsed();
    drop(stop);
    caller.join().unwrap();
    assert_eq!(states, 5);
    assert!(took > Duration::from_millis(3_500), "5 in {took:?}");
    assert!(took < Duration::from_secs(10), "5 in {took:?}");
}

#[test]
fn pages_of_other_origins_get_neither_the_stream_nor_obedience() {
    let stage = Stage::set();
    let port = stage.port.number();
    for (host, status) in [
        (format!("127.0.0.1:{port}"), "200"),
        (format!("localhost:{port}"), "200"),
        (format!("evil.example:{port}"), "403"),
        ("localhost".to_owned(), "403"),
    ] {
        let mut answer = [0; 12];
        let mut stream = stage.send("GET", "/health/stream", &format!("host: {host}\r\n"));
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(std::str::from_utf8(&answer[9..]).unwrap(), status, "{host}");
    }
    // The page at the end of a forwarded socket has its user's rights; other pages have not.
    let order = |host: &str, origin: &str| {
        let mut stream = UnixStream::connect(stage.daemon.socket()).unwrap();
        write!(
            stream,
            "POST /admin/backends/redis/offline HTTP/1.1\r\nhost: {host}\r\n{origin}connection: close\r\n\
             content-length: 0\r\n\r\n"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.split(' ').nth(1).unwrap().to_owned()
    };
    assert_eq!(order("localhost:9180", "origin: https://evil.example\r\n"), "403");
    assert_eq!(order("evil.example:9180", "origin: http://evil.example:9180\r\n"), "403");
    assert_eq!(order("localhost:9180", "origin: null\r\n"), "403");
    assert_eq!(stage.daemon.status("redis")["offline"], json!(false));
    assert_eq!(order("localhost:9180", "origin: http://localhost:9180\r\n"), "200");
    assert_eq!(order("anything", ""), "200", "programs name no origin");
}

#[test]
fn a_page_that_was_rebound_reads_nothing_and_monitoring_may_use_any_host() {
    const BROWSER: &str = "accept-language: en-US,en;q=0.9\r\n";
    const NODE: &str =
        "accept: */*\r\naccept-language: *\r\nsec-fetch-mode: cors\r\nuser-agent: node\r\n";
    let stage = Stage::set();
    let status = |path: &str, host: &str, headers: &str| {
        let port = stage.port.number();
        stage.get(path, &format!("host: {host}:{port}\r\n{headers}")).status().to_owned()
    };
    for path in ["/", "/page/page.js", "/health", "/health/resilience", "/metrics"] {
        assert_eq!(status(path, "evil.example", BROWSER), "403", "{path}");
        assert_eq!(status(path, "localhost", BROWSER), "200", "{path}");
        assert_eq!(status(path, "fusebox.monitoring.svc", ""), "200", "{path}");
        assert_eq!(status(path, "fusebox.monitoring.svc", NODE), "200", "{path}");
    }
    // At a port to which the socket is forwarded, as an admin.
    let forwarded = |host: &str, headers: &str| {
        let mut stream = UnixStream::connect(stage.daemon.socket()).unwrap();
        let head = format!("GET /admin/config HTTP/1.1\r\nhost: {host}\r\n{headers}");
        stream.write_all(format!("{head}connection: close\r\n\r\n").as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.split(' ').nth(1).unwrap().to_owned()
    };
    assert_eq!(forwarded("evil.example:9180", BROWSER), "403");
    assert_eq!(forwarded("localhost:9180", BROWSER), "200");
    assert_eq!(forwarded("fusebox", NODE), "200", "at the socket itself");
}

#[test]
fn listeners_are_bounded_and_take_no_place_of_those_to_events() {
    let stage = Stage::set();
    let mut all: Vec<Stream> = (0..LISTENERS).map(|_| Stream::follow(&stage)).collect();
    let mut one_more = stage.send("GET", "/health/stream", "");
    let mut status = [0; 12];
    one_more.read_exact(&mut status).unwrap();
    assert_eq!(&status[9..], b"429");
    let mut refused = String::new();
    one_more.read_to_string(&mut refused).unwrap();
    assert!(refused.contains("door_full"), "{refused}");
    drop(stage.daemon.events());
    assert_eq!(stage.get("/health", "").status(), "200");
    let left = all.pop().unwrap();
    left.lines.get_ref().shutdown(Shutdown::Both).unwrap();
    eventually("its place is free", LONG, || {
        let mut answer = [0; 12];
        let mut stream = stage.send("GET", "/health/stream", "");
        stream.read_exact(&mut answer).unwrap();
        &answer[9..] == b"200"
    });
    for stream in &mut all {
        assert!(stream.next().is_some(), "the others go on");
    }
}

#[test]
fn what_the_page_works_out_for_itself_is_right() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let checked = Command::new(require("node", "nodejs"))
        .arg(root.join("tests/support/page_words.mjs"))
        .arg(root.join("src/http_api/page"))
        .output()
        .unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
}

/// What a browser says of a daemon that is not there.
fn is_of_the_lost_connection(complaint: &str) -> bool {
    let of = complaint.contains("/health/stream)") || complaint.contains("/metrics)");
    of && complaint.contains("net::ERR_")
}

#[test]
fn an_outage_and_its_end_show_without_a_reload() {
    let mut stage = Stage::set();
    stage.daemon.redis(&["SET", "k", "v"]).assert_live();
    let mut browser = Browser::at(&stage.origin(), 1280, "light");
    browser.sees("#system-state", "^HEALTHY$");
    browser.sees("#link-text", "^live");
    let card = "[data-backend=redis][data-state";
    browser.sees(&format!("{card}=CLOSED]"), "redis.*CLOSED.*empty");

    begin_outage(&mut stage.redis, &stage.daemon);
    for number in 0..12 {
        stage.daemon.redis(&["SET", &format!("k{number}"), "v"]).assert_queued();
    }
    stage.daemon.redis(&["GET", "k0"]);
    browser.sees(&format!("{card}=OPEN]"), "OPEN.*Half-opens in .*12 calls.*the earliest in");
    browser.sees("#system-state", "^(DEGRADED|CRITICAL)$");
    browser.sees("#broken li", "redis is OPEN\\. Half-opens in .*12 calls queued");
    browser.sees("#timeline tr", "redis.*CLOSED → OPEN.*last errors: ");
    browser.sees(".mix tr", "queued.*1[0-9]");
    let title = browser.tell("text", json!({ "selector": "#system-since" }));
    assert!(title.as_str().unwrap().starts_with("since "), "{title}");

    stage.redis.restart();
    recover(&stage.daemon);
    browser.sees(&format!("{card}=CLOSED]"), "CLOSED.*empty.*nothing waits");
    browser.sees("#system-state", "^HEALTHY$");
    browser.sees("#timeline tr", "redis.*HALF_OPEN → CLOSED");
    browser.sees("#timeline tr", "queue drained, 12 replayed");
    assert_eq!(browser.count("#broken li"), 0);
    browser.assert_well_behaved(&stage.origin(), |_| false);
}

#[test]
fn a_restart_of_the_daemon_shows_as_lost_and_then_as_a_new_run() {
    let mut stage = Stage::set();
    let mut browser = Browser::at(&stage.origin(), 1280, "light");
    browser.sees("#link-text", "^live");
    begin_outage(&mut stage.redis, &stage.daemon);
    stage.daemon.redis(&["SET", "k", "v"]).assert_queued();
    browser.sees("[data-backend=redis]", "OPEN.*1 call,");

    stage.daemon.kill_9();
    browser.sees(
        "#lost",
        r"Connection lost, last seen \d\d:\d\d:\d\d.*Everything below is from that time",
    );
    browser.sees("#link-text", "^connection lost$");
    browser.sees("[data-link=lost] [data-backend=redis]", "OPEN.*1 call,");
    browser.picture("lost-desktop-light");
    browser.look(320, "dark");
    browser.assert_accessible("lost");
    browser.picture("lost-phone-dark");

    stage.daemon.restart();
    browser.sees("#link-text", "^live");
    browser.sees("#timeline tr", "daemon.*was restarted; the last data before that is from");
    browser.sees("[data-backend=redis]", "OPEN.*1 call,");
    assert_eq!(browser.count("#lost"), 0);
    // It goes on from there.
    stage.redis.restart();
    recover(&stage.daemon);
    browser.sees("[data-backend=redis][data-state=CLOSED]", "nothing waits");
    browser.assert_well_behaved(&stage.origin(), is_of_the_lost_connection);
}

#[test]
fn dead_letters_are_for_the_token_alone() {
    let mut stage = Stage::set();
    let first = stage.bury("list-a");
    let second = stage.bury("list-b");
    let mut browser = Browser::at(&stage.origin(), 1280, "light");
    browser.sees("#dead-intro", "2 calls given up by replay: redis 2.*enter the token");
    assert_eq!(browser.count(".letter"), 0, "nothing is offered without the token");
    assert_eq!(browser.count(".needs-rights button"), 0);
    assert!(!browser.text("body").contains("list-a"), "nor a key shown");
    browser.picture("dead-without-token");

    browser.click("#give-token", "");
    browser.fill("#token", "wrong");
    browser.press("Enter");
    browser.sees("#dialog-error", "not the one in http.token_file");
    browser.assert_accessible("the dialog");
    browser.picture("dead-wrong-token");
    browser.fill("#token", TOKEN);
    browser.press("Enter");
    browser.sees(".letter", &format!("list-a.*WRONGTYPE.*{first}"));
    browser.sees(".letter", &format!("list-b.*WRONGTYPE.*{second}"));
    browser.assert_accessible("dead letters");
    browser.picture("dead-desktop-light");
    browser.look(320, "dark");
    browser.assert_accessible("dead letters on a phone");
    browser.picture("dead-phone-dark");
    browser.look(1280, "light");

    // What a call was, and why the breaker is as it is.
    browser.click(&format!("[aria-label='Show {first} of redis']"), "");
    browser.sees("dialog pre", "HSET");
    browser.press("Escape");
    assert_eq!(browser.count("dialog"), 0);
    let focus = browser.tell("focus", json!({}));
    assert_eq!(focus["text"], format!("Show {first} of redis"), "focus comes back");
    browser.click(".needs-rights button", "Explain");
    browser.sees("dialog", "The breaker of redis has been CLOSED");
    browser.press("Escape");

    // A discard is asked for twice, and may be called off.
    browser.click(&format!("[aria-label='Discard {first} of redis']"), "");
    browser.sees("dialog", &format!("for good.*{first}"));
    browser.assert_accessible("the confirmation");
    browser.picture("dead-confirm");
    for _ in 0..4 {
        browser.press("Tab");
        let focus = browser.tell("focus", json!({}));
        assert!(focus["inDialog"] == true || focus["tag"] == "BODY", "it keeps the focus: {focus}");
    }
    browser.click("dialog button", "Cancel");
    assert_eq!(stage.daemon.queued("redis", "dead"), 2);
    browser.click(&format!("[aria-label='Discard {first} of redis']"), "");
    browser.click("dialog button", "^Discard$");
    browser.sees("#dead-said", &format!("{first} was discarded"));
    browser.sees("#dead-intro", "1 call given up");
    assert_eq!(stage.daemon.queued("redis", "dead"), 1);
    assert_eq!(browser.count(".letter"), 1);

    // The cause is removed past the daemon, and the key is written since: it wants force.
    let _deleted: i64 = stage.redis.query(&["DEL", "list-b"]);
    stage.daemon.redis(&["HSET", "list-b", "g", "newer"]).assert_live();
    browser.click(&format!("[aria-label='Requeue {second} of redis']"), "");
    browser.click("dialog button", "^Requeue$");
    browser.sees("#dialog-error", "force");
    browser.click("dialog button", "^Requeue anyway$");
    browser.sees("#dead-said", &format!("{second} was requeued"));
    browser.sees("#dead-intro", "^None");
    stage.daemon.wait_until_drained("redis", LONG);
    assert_eq!(stage.redis.query::<String>(&["HGET", "list-b", "f"]), "v");

    // The token is in this tab and nowhere else.
    let kept = browser.tell("kept", json!({}));
    assert_eq!(kept, json!({ "cookies": 0, "local": [], "session": [TOKEN] }));
    let requests = browser.tell("requests", json!({})).to_string();
    assert!(!requests.contains(TOKEN) && requests.contains("/requeue"), "{requests}");
    browser.click("#forget-token", "");
    browser.sees("#give-token", "");
    assert_eq!(browser.tell("kept", json!({}))["session"], json!([]));
    assert_eq!(browser.count(".needs-rights button"), 0);
    // The browser itself reports the refusals that were provoked.
    browser.assert_well_behaved(&stage.origin(), |complaint| {
        let provoked = complaint.contains("status of 401") || complaint.contains("status of 409");
        provoked && complaint.contains("Failed to load resource")
    });
}

/// Forwards a port to a socket, as `ssh -L` does, for as long as the test runs.
fn forward(socket: &Path) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, socket) = (listener.local_addr().unwrap(), socket.to_owned());
    thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let Ok(daemon) = UnixStream::connect(&socket) else { continue };
            let (mut from, mut to) = (client.try_clone().unwrap(), daemon.try_clone().unwrap());
            thread::spawn(move || {
                io::copy(&mut from, &mut to).ok();
                to.shutdown(Shutdown::Both).ok();
            });
            let (mut from, mut to) = (daemon, client);
            thread::spawn(move || {
                io::copy(&mut from, &mut to).ok();
                to.shutdown(Shutdown::Both).ok();
            });
        }
    });
    address
}

#[test]
fn at_the_end_of_a_forwarded_socket_the_page_has_its_users_rights() {
    let mut stage = Stage::set();
    let op_id = stage.bury("list");
    let origin = format!("http://{}", forward(stage.daemon.socket()));
    let mut browser = Browser::at(&origin, 1280, "light");
    browser.sees(".letter", &format!("list.*{op_id}"));
    assert_eq!(browser.count("#give-token"), 0);
    browser.click(".needs-rights button", "What waits");
    browser.sees("dialog", "Nothing");
    browser.press("Escape");
    browser.click(&format!("[aria-label='Discard {op_id} of redis']"), "");
    browser.click("dialog button", "^Discard$");
    browser.sees("#dead-intro", "^None\\.$");
    assert_eq!(stage.daemon.queued("redis", "dead"), 0);
    browser.assert_well_behaved(&origin, |_| false);
}

#[test]
fn what_people_and_servers_say_is_text_and_never_markup() {
    const MARKUP: &str = "<img src=x onerror=\"document.title='owned'\"><script>alert(1)</script>";
    let mut stage = Stage::set();
    let mut browser = Browser::at(&stage.origin(), 1280, "light");
    browser.sees("#link-text", "^live");
    let path = "/admin/circuit-breaker/redis/force-open";
    let (status, body) = stage.daemon.post(path, json!({ "reason": MARKUP }));
    assert_eq!(status, 200, "{body}");
    let shown = r#"<img src=x onerror="document\.title='owned'"><script>alert\(1\)</script>"#;
    browser.sees("[data-backend=redis] .ahead", shown);
    browser.sees("#timeline tr", shown);
    browser.sees("#broken li", shown);
    browser.sees("[data-backend=redis] .flags", "forced open, underneath CLOSED");
    stage.daemon.order("/admin/circuit-breaker/redis/release");
    browser.sees("[data-backend=redis]", "CLOSED");

    // A key in a dead letter, which only the token shows.
    stage.bury(MARKUP);
    browser.click("#give-token", "");
    browser.fill("#token", TOKEN);
    browser.press("Enter");
    browser.sees(".letter", shown);
    browser.click(".letter button", "Discard");
    browser.sees("dialog", shown);
    assert_eq!(browser.count("img"), 0);
    assert_eq!(browser.tell("count", json!({ "selector": "main script" })), 0);
    browser.assert_well_behaved(&stage.origin(), |_| false);
}

#[test]
fn the_page_is_accessible_in_every_state_scheme_and_width() {
    let mut stage = Stage::with(|builder, url| {
        builder
            .set("backends.session-store-of-the-shop.kind", "redis")
            .set("backends.session-store-of-the-shop.url", url)
            .set("backends.session-store-of-the-shop.critical", true)
            .set("backends.session-store-of-the-shop.depends_on", vec!["redis"])
            .set("backends.session-store-of-the-shop.breaker.failure_threshold", 1)
    });
    for _ in 0..20 {
        stage.daemon.redis(&["SET", "k", "v"]).assert_live();
    }
    let mut browser = Browser::at(&stage.origin(), 1280, "light");
    browser.sees("[data-backend=redis][data-state=CLOSED]", "p50");
    let every_look = |browser: &mut Browser, state: &str| {
        for width in [1280, 320] {
            for scheme in ["light", "dark"] {
                browser.look(width, scheme);
                browser.assert_accessible(&format!("{state}, {width} px, {scheme}"));
                browser.picture(&format!("{state}-{width}-{scheme}"));
            }
        }
        browser.look(1280, "light");
    };
    browser.sees("#system-state", "^HEALTHY$");
    every_look(&mut browser, "healthy");

    begin_outage(&mut stage.redis, &stage.daemon);
    for number in 0..300 {
        stage.daemon.redis(&["SET", &format!("k{number}"), "v"]).assert_queued();
    }
    stage.daemon.call("session-store-of-the-shop", json!({ "command": ["GET", "k"] }));
    browser.sees("[data-backend=session-store-of-the-shop][data-state=OPEN]", "impaired by redis");
    browser.sees("#system-state", "^(CRITICAL|EMERGENCY)$");
    browser.sees("[data-backend=redis]", "300 calls");
    every_look(&mut browser, "outage");

    // The keyboard reaches the content at once.
    browser.press("Tab");
    assert_eq!(browser.tell("focus", json!({}))["text"], "Skip to the state");
    browser.press("Enter");
    assert_eq!(browser.tell("focus", json!({}))["id"], "main");
    browser.assert_well_behaved(&stage.origin(), |_| false);
}
