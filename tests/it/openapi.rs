//! The description of the HTTP interface: whether a validator takes it, and whether answers are as it says.

use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::support::outage::{begin_outage, operated};
use crate::support::proc::venv_python;
use crate::support::redis::RedisServer;

/// What is wrong with a document and these answers; empty if nothing is.
fn judge(document: &Value, answers: &[Value]) -> String {
    let mut judge = Command::new(venv_python())
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/openapi.py"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the validator starts");
    let input = json!({ "document": document, "answers": answers }).to_string();
    judge.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = judge.wait_with_output().unwrap();
    let told = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.success(), told.trim().is_empty(), "{told}");
    told.trim().to_owned()
}

#[test]
fn a_validator_takes_the_description_and_answers_are_as_it_says() {
    let mut redis = RedisServer::start();
    let daemon = operated(&redis.url()).start();
    daemon.redis(&["SET", "k", "1"]).assert_live();
    daemon.redis(&["GET", "k"]).assert_live();
    let mut answers = Vec::new();
    let mut ask = |method: &str, path: &str, id: &str, body: Value| {
        let at = path.replace("{backend}", "redis").replace("{op_id}", id);
        let body = Some(&body).filter(|body| !body.is_null());
        let answer = daemon.try_request(method, &at, body).unwrap_or_else(|why| panic!("{why}"));
        let text = String::from_utf8(answer.body).unwrap();
        let body: Value = serde_json::from_str(&text).unwrap_or_else(|why| panic!("{at}: {why}"));
        let is_good = (200..300).contains(&answer.status) || path.starts_with("/health");
        assert!(is_good, "{method} {at}: {} {body}", answer.status);
        answers.push(json!({ "path": path, "method": method.to_lowercase(), "body": body }));
        body
    };
    let call = "/v1/backends/{backend}/call";
    ask("POST", call, "", json!({ "command": ["GET", "k"] }));
    let faults =
        json!({ "faults": [{ "kind": "error", "rate": 0.5 }], "for": "1m", "reason": "r" });
    ask("PUT", "/admin/backends/{backend}/chaos", "", faults);
    ask("GET", "/admin/backends/{backend}/chaos", "", Value::Null);
    ask("GET", "/health/resilience", "", Value::Null);
    ask("DELETE", "/admin/backends/{backend}/chaos", "", Value::Null);
    ask("POST", "/admin/backends/{backend}/queue/replay", "", Value::Null);
    begin_outage(&mut redis, &daemon);
    let queued = ask("POST", call, "", json!({ "command": ["SET", "k", "2"] }));
    let id = queued["op_id"].as_str().unwrap();
    for path in [
        "/health",
        "/health/live",
        "/health/ready",
        "/health/resilience",
        "/v1/backends",
        "/v1/backends/{backend}",
        "/v1/backends/{backend}/explain",
        "/v1/backends/{backend}/transitions",
        "/v1/backends/{backend}/queue",
        "/v1/backends/{backend}/queue/{op_id}",
        "/v1/dependencies",
        "/v1/history",
        "/admin/config",
        "/admin/backends/{backend}/config",
        "/admin/backends/{backend}/chaos",
        "/admin/log",
    ] {
        ask("GET", path, id, Value::Null);
    }
    for path in [
        "/admin/circuit-breaker/{backend}/force-open",
        "/admin/circuit-breaker/{backend}/release",
        "/admin/circuit-breaker/{backend}/force-close",
        "/admin/circuit-breaker/{backend}/reset",
        "/admin/backends/{backend}/offline",
        "/admin/resilience/force-recovery",
        "/admin/backends/{backend}/online",
        "/admin/config/reload",
        "/admin/backends/{backend}/queue/compact",
    ] {
        ask("POST", path, "", Value::Null);
    }
    let interval = json!({ "health": { "interval": "2h" } });
    ask("PATCH", "/admin/config", "", interval);
    ask("GET", "/admin/config", "", Value::Null);
    ask("DELETE", "/admin/backends/{backend}/queue/{op_id}", id, Value::Null);
    let document = daemon.get("/openapi.json").1;
    assert_eq!(judge(&document, &answers), "");

    // What is not as it says is found.
    let health = json!({ "path": "/health", "method": "get", "body": { "state": 7 } });
    assert!(judge(&document, &[health]).contains("get /health"));
    let mut broken = document;
    broken["paths"]["/health"]["get"]["responses"]["200"] = json!({});
    assert!(judge(&broken, &[]).contains("the document"));
}
