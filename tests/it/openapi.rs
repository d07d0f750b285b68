//! The description of the HTTP interface: whether a validator takes it, and whether requests and answers are as it
//! says.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::daemon::Daemon;
use crate::support::outage::{begin_outage, operated};
use crate::support::proc::venv_python;
use crate::support::redis::RedisServer;

const LONG: Duration = Duration::from_secs(20);
const CALL: &str = "/v1/backends/{backend}/call";

/// What is wrong with a document, these requests and these answers; empty if nothing is.
fn judge(document: &Value, requests: &[Value], answers: &[Value]) -> String {
    let mut judge = Command::new(venv_python())
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/openapi.py"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the validator starts");
    let input = json!({ "document": document, "requests": requests, "answers": answers });
    judge.stdin.take().unwrap().write_all(input.to_string().as_bytes()).unwrap();
    let output = judge.wait_with_output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.success(), said.trim().is_empty(), "{said}");
    said.trim().to_owned()
}

/// Asks a daemon, and remembers what was sent and what was answered.
struct Asker<'a> {
    daemon: &'a Daemon,
    requests: Vec<Value>,
    answers: Vec<Value>,
}

impl Asker<'_> {
    /// Sends `body`, nothing if it is null, to a path of the description with or without a query.
    #[track_caller]
    fn ask(&mut self, method: &str, path: &str, id: &str, body: Value) -> Value {
        let at = path.replace("{backend}", "redis").replace("{op_id}", id);
        let path = path.split('?').next().unwrap();
        let about = |body: &Value| json!({ "path": path, "method": method, "body": body });
        let sent = Some(&body).filter(|body| !body.is_null());
        // Lines are JSON to those who send one.
        self.requests.extend(sent.filter(|_| !path.ends_with("/import")).map(about));
        let answer = self.daemon.try_request(&method.to_uppercase(), &at, sent);
        let answer = answer.unwrap_or_else(|why| panic!("{why}"));
        let text = String::from_utf8(answer.body).unwrap();
        let body: Value = serde_json::from_str(&text).unwrap_or_else(|why| panic!("{at}: {why}"));
        let is_good = (200..300).contains(&answer.status) || path.starts_with("/health");
        assert!(is_good, "{method} {at}: {} {body}", answer.status);
        self.answers.push(about(&body));
        body
    }

    fn get(&mut self, path: &str, id: &str) {
        self.ask("get", path, id, Value::Null);
    }
}

/// What is asked while the backend answers. Returns the name of a dead letter.
fn ask_in_peace(asker: &mut Asker<'_>) -> String {
    const CHAOS: &str = "/admin/backends/{backend}/chaos";
    asker.ask("post", CALL, "", json!({ "command": ["SET", "text", "no number"] }));
    let options = json!({ "deadline": "5s", "max_stale": "10m", "priority": "normal" });
    asker.ask("post", CALL, "", json!({ "command": ["GET", "text"], "options": options }));
    let fault = json!({ "kind": "error", "rate": 0.5, "class": "read", "only": { "uid": 1 } });
    let faults =
        json!({ "faults": [fault], "for": "1m", "reason": "r", "seed": 7, "count": false });
    asker.ask("put", CHAOS, "", faults);
    asker.get(CHAOS, "");
    asker.get("/health/resilience", "");
    asker.ask("delete", CHAOS, "", Value::Null);
    asker.get(CHAOS, "");
    asker.ask("post", "/admin/backends/{backend}/offline", "", Value::Null);
    let command = json!(["INCR", { "base64": "dGV4dA==" }]);
    let durable = json!({ "command": command, "options": { "min_ack": "durable" } });
    let dead = asker.ask("post", CALL, "", durable)["op_id"].as_str().unwrap().to_owned();
    asker.ask("post", "/admin/backends/{backend}/online", "", Value::Null);
    asker.daemon.wait_until("it is dead", LONG, |daemon| daemon.queued("redis", "dead") == 1);
    asker.ask("post", "/admin/backends/{backend}/queue/replay", "", Value::Null);
    dead
}

/// All that can be looked at, with a call that waits and a dead letter.
fn look(asker: &mut Asker<'_>, waiting: &str, dead: &str) {
    for path in [
        "/health",
        "/health/live",
        "/health/ready",
        "/health/resilience",
        "/openapi.json",
        "/v1/backends",
        "/v1/backends/{backend}",
        "/v1/backends/{backend}/explain",
        "/v1/backends/{backend}/transitions?limit=10",
        "/v1/backends/{backend}/queue",
        "/v1/backends/{backend}/queue?state=dead&limit=1",
        "/v1/backends/{backend}/queue/{op_id}",
        "/v1/backends/{backend}/queue/{op_id}?call=false",
        "/v1/dependencies",
        "/v1/history",
        "/v1/history?since=1h&backend=redis&limit=100",
        "/admin/config",
        "/admin/backends/{backend}/config",
        "/admin/backends/{backend}/chaos",
        "/admin/log",
    ] {
        asker.get(path, waiting);
    }
    asker.get("/v1/backends/{backend}/queue/{op_id}", dead);
}

#[test]
fn a_validator_takes_the_description_and_all_is_as_it_says() {
    let mut redis = RedisServer::start();
    let daemon = operated(&redis.url()).start();
    let mut asker = Asker { daemon: &daemon, requests: Vec::new(), answers: Vec::new() };
    let dead = ask_in_peace(&mut asker);
    begin_outage(&mut redis, &daemon);
    let queued = asker.ask("post", CALL, "", json!({ "command": ["SET", "k", 2] }));
    let waiting = queued["op_id"].as_str().unwrap();
    look(&mut asker, waiting, &dead);
    let order = json!({ "reason": "a test", "for": "10m" });
    for (path, body) in [
        ("/admin/circuit-breaker/{backend}/force-open", order.clone()),
        ("/admin/circuit-breaker/{backend}/release", json!({ "reason": "a test" })),
        ("/admin/circuit-breaker/{backend}/force-close", order),
        ("/admin/circuit-breaker/{backend}/reset", Value::Null),
        ("/admin/backends/{backend}/offline", Value::Null),
        ("/admin/resilience/force-recovery", json!({ "backend": "redis" })),
        ("/admin/backends/{backend}/online", Value::Null),
        ("/admin/config/reload", Value::Null),
        ("/admin/backends/{backend}/queue/compact", json!({ "purge": true })),
    ] {
        asker.ask("post", path, "", body);
    }
    let at = "2026-11-23T16:00:00Z";
    let line = json!({
        "op_id": "01ARZ3NDEKTSV4RRFFQ69G5FAV", "state": "pending", "lane": "k", "accepted_at": at,
        "body": { "base64": "KjINCiQzDQpERUwNCiQxDQprDQo=" },
    });
    let import = "/admin/backends/{backend}/queue/import";
    asker.ask("post", &format!("{import}?check=true"), "", line.clone());
    asker.ask("post", &format!("{import}?force=true&first_line=7"), "", line);
    let log = json!({ "filter": "info", "for": "1m" });
    asker.ask("put", "/admin/log", "", log);
    asker.ask("patch", "/admin/config", "", json!({ "health": { "interval": "2h" } }));
    let window = json!({ "breaker": { "window": "50s" } });
    asker.ask("patch", "/admin/backends/{backend}/config?for=1h", "", window);
    asker.get("/admin/config", "");
    asker.get("/admin/backends/{backend}/config", "");
    let op = "/admin/backends/{backend}/queue/{op_id}";
    let requeue = json!({ "force": true, "not_applied": true });
    asker.ask("post", &format!("{op}/requeue"), &dead, requeue);
    asker.ask("delete", op, waiting, Value::Null);
    let Asker { requests, answers, .. } = asker;
    let document = daemon.get("/openapi.json").1;
    assert_eq!(judge(&document, &requests, &answers), "");

    // What is not as it says is found.
    let health = json!({ "path": "/health", "method": "get", "body": { "state": 7 } });
    assert!(judge(&document, &[], &[health]).contains("get /health"));
    let log = json!({ "path": "/admin/log", "method": "put", "body": { "filters": "info" } });
    assert!(judge(&document, &[log], &[]).contains("put /admin/log"));
    let mut broken = document;
    broken["paths"]["/health"]["get"]["responses"]["200"] = json!({});
    assert!(judge(&broken, &[], &[]).contains("the document"));
}
