//! `fusebox status` and `fusebox explain`.

use std::process::ExitCode;

use serde_json::Value;

use super::{
    Client, Done,
    args::Output,
    client::segment,
    on_terminal, say, say_json,
    table::{ago, list, number, table, text},
};

/// `fusebox status`
pub(crate) async fn status(client: &Client, exit_code: bool, output: Output) -> Done {
    let view = client.get("/health/resilience").await?;
    if output.json {
        say_json(&view)?;
    } else {
        say(&status_text(&view, on_terminal()))?;
    }
    let severity = match text(&view, "state").as_str() {
        "HEALTHY" => 0,
        "DEGRADED" => 1,
        "CRITICAL" => 2,
        _ => 3,
    };
    Ok(ExitCode::from(if exit_code { severity } else { 0 }))
}

/// The resilience view for people.
fn status_text(view: &Value, terminal: bool) -> String {
    let up = view.get("uptime_seconds").and_then(Value::as_u64).unwrap_or(0);
    let mut out = format!(
        "fusebox {}  {}  {:.0} % operational  up {}\n",
        text(view, "version"),
        text(view, "state"),
        number(view, "operational_percent"),
        ago(up * 1_000)
    );
    for reason in list(view, "reasons") {
        out.extend([format!("  {reason}\n")]);
    }
    out.push('\n');
    let backends = view.get("backends").and_then(Value::as_object);
    let backends: Vec<&Value> = backends.into_iter().flat_map(|all| all.values()).collect();
    let rows: Vec<Vec<String>> = backends.iter().map(|backend| row(backend)).collect();
    let heads =
        ["BACKEND", "KIND", "STATE", "CALLS", "SUCCESS", "P99 MS", "CACHED", "QUEUED", "DEAD"];
    out.push_str(&table(&heads, &rows, terminal));
    let mut alerts = String::new();
    for backend in backends {
        for alert in notes(backend) {
            alerts.extend([format!("  {}: {alert}\n", text(backend, "name"))]);
        }
    }
    for store in list(view, "stray_stores") {
        alerts.extend([format!(
            "  the store {store} belongs to no backend: what waits in it waits on\n"
        )]);
    }
    if !alerts.is_empty() {
        out.extend([format!("\n{alerts}")]);
    }
    out
}

fn row(backend: &Value) -> Vec<String> {
    let attempts = number(backend, "calls.successes") + number(backend, "calls.failures");
    let rate = number(backend, "calls.success_rate") * 100.0;
    vec![
        text(backend, "name"),
        text(backend, "kind"),
        state(backend),
        text(backend, "calls.total"),
        if attempts > 0.0 { format!("{rate:.1} %") } else { "-".into() },
        if attempts > 0.0 {
            format!("{:.1}", number(backend, "calls.response_ms.p99"))
        } else {
            "-".into()
        },
        text(backend, "cache.entries"),
        text(backend, "queue.calls"),
        text(backend, "queue.dead_letters"),
    ]
}

/// The breaker's state in a word, and what lies over it.
fn state(backend: &Value) -> String {
    if backend.get("offline") == Some(&Value::Bool(true)) {
        return "OFFLINE".into();
    }
    let forced = if text(backend, "breaker.forced").is_empty() { "" } else { " (forced)" };
    format!("{}{forced}", text(backend, "breaker.state"))
}

/// All that an operator should know of a backend.
fn notes(backend: &Value) -> Vec<String> {
    let mut notes: Vec<String> = list(backend, "alerts").into_iter().map(str::to_owned).collect();
    // Who forced it knows why.
    let is_down =
        text(backend, "breaker.state") != "CLOSED" && text(backend, "breaker.forced").is_empty();
    let errors = backend.pointer("/breaker/last_transition/last_errors").and_then(Value::as_array);
    if let Some(error) = errors.and_then(|errors| errors.last()).filter(|_| is_down) {
        notes.push(format!(
            "the last error was {}: {}",
            text(error, "code"),
            text(error, "message")
        ));
    }
    let causes = list(backend, "impaired_by");
    if !causes.is_empty() {
        notes.push(format!("impaired by {}", causes.join(", ")));
    }
    let paused = text(backend, "queue.replay_paused");
    if !paused.is_empty() {
        notes.push(format!("replay is paused: {paused}"));
    }
    let connector = backend.get("connector").unwrap_or(&Value::Null);
    notes.extend(list(connector, "warnings").into_iter().map(str::to_owned));
    notes
}

/// `fusebox explain`
pub(crate) async fn explain(client: &Client, backend: &str, output: Output) -> Done {
    let view = client.get(&format!("/v1/backends/{}/explain", segment(backend)?)).await?;
    if output.json {
        say_json(&view)?;
    } else {
        say(&explain_text(&view, on_terminal()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn explain_text(view: &Value, terminal: bool) -> String {
    let mut out = format!("{}  {}\n", text(view, "backend"), text(view, "breaker.state"));
    for sentence in list(view, "story") {
        out.extend([format!("  {sentence}\n")]);
    }
    out.extend([format!(
        "\nwindow of {} s: {} calls, {} failures (rate {:.2}); trips at {} failures and a rate of {:.2}\n",
        number(view, "breaker.window_seconds"),
        text(view, "breaker.window_calls"),
        text(view, "breaker.window_failures"),
        number(view, "breaker.failure_rate"),
        text(view, "breaker.failure_threshold"),
        number(view, "breaker.failure_rate_threshold"),
    )]);
    let errors = view.get("last_errors").and_then(Value::as_array);
    let errors: Vec<Vec<String>> = errors
        .into_iter()
        .flatten()
        .map(|error| {
            let when = text(error, "at");
            vec![when, text(error, "code"), text(error, "message"), text(error, "trace_id")]
        })
        .collect();
    if !errors.is_empty() {
        out.extend([format!(
            "\nlast errors\n{}",
            table(&["AT", "CODE", "MESSAGE", "TRACE"], &errors, terminal)
        )]);
    }
    let past = view.get("transitions").and_then(Value::as_array);
    let past: Vec<&Value> = past.into_iter().flatten().collect();
    if !past.is_empty() {
        out.extend([format!("\ntransitions\n{}", transitions(&past, terminal))]);
    }
    out
}

/// Transitions as a table, newest last.
pub(crate) fn transitions(records: &[&Value], terminal: bool) -> String {
    let rows: Vec<Vec<String>> = records
        .iter()
        .map(|record| {
            vec![
                text(record, "at"),
                text(record, "backend"),
                format!("{} -> {}", text(record, "from"), text(record, "to")),
                text(record, "reason"),
                format!("{}/{}", text(record, "failures"), text(record, "calls")),
                text(record, "note"),
            ]
        })
        .collect();
    table(&["AT", "BACKEND", "CHANGE", "REASON", "FAILURES", "NOTE"], &rows, terminal)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn backend(name: &str, more: &Value) -> Value {
        let mut value = json!({
            "name": name, "kind": "redis", "offline": false, "alerts": [], "impaired_by": [],
            "breaker": { "state": "CLOSED", "forced": null },
            "calls": { "total": 0, "successes": 0, "failures": 0, "success_rate": 0.0,
                       "response_ms": { "p99": 0.0 } },
            "cache": { "entries": 0 }, "queue": { "calls": 0, "dead_letters": 0, "replay_paused": null },
            "connector": { "warnings": [] },
        });
        for (key, change) in more.as_object().unwrap() {
            value[key] = change.clone();
        }
        value
    }

    #[test]
    fn the_status_of_a_bad_day() {
        let view = json!({
            "version": "0.1.0", "uptime_seconds": 182, "state": "DEGRADED", "operational_percent": 50.0,
            "reasons": ["backend redis is down (OPEN, forced)"],
            "backends": {
                "redis": backend("redis", &json!({
                    "breaker": { "state": "OPEN", "forced": { "state": "open" } },
                    "calls": { "total": 12, "successes": 9, "failures": 3, "success_rate": 0.75,
                               "response_ms": { "p99": 4.25 } },
                    "queue": { "calls": 500, "dead_letters": 1, "replay_paused": "the breaker is open" },
                    "alerts": ["1 dead letter waits for an order"],
                })),
                "sessions": backend("sessions", &json!({
                    "impaired_by": ["redis"],
                    "breaker": { "state": "OPEN", "forced": null, "last_transition": {
                        "last_errors": [{ "code": "connect", "message": "early" }, { "code": "tls", "message": "late" }],
                    } },
                })),
                "old": backend("old", &json!({ "offline": true })),
            },
        });
        assert_eq!(
            status_text(&view, false),
            "fusebox 0.1.0  DEGRADED  50 % operational  up 3m 2s\n  \
               backend redis is down (OPEN, forced)\n\n\
             BACKEND   KIND   STATE          CALLS  SUCCESS  P99 MS  CACHED  QUEUED  DEAD\n\
             old       redis  OFFLINE        0      -        -       0       0       0\n\
             redis     redis  OPEN (forced)  12     75.0 %   4.2     0       500     1\n\
             sessions  redis  OPEN           0      -        -       0       0       0\n\n  \
               redis: 1 dead letter waits for an order\n  \
               redis: replay is paused: the breaker is open\n  \
               sessions: the last error was tls: late\n  \
               sessions: impaired by redis\n"
        );
    }

    #[test]
    fn an_explanation_tells_story_window_errors_and_past() {
        let view = json!({
            "backend": "redis", "story": ["it opened after 5 failures of 6 calls"],
            "breaker": { "state": "OPEN", "window_seconds": 60.0, "window_calls": 6,
                "window_failures": 5, "failure_rate": 0.833, "failure_threshold": 5,
                "failure_rate_threshold": 0.5 },
            "last_errors": [{ "at": "2026-09-21T14:13:20Z", "code": "connect", "message": "refused",
                "trace_id": null }],
            "transitions": [{ "at": "2026-09-21T14:13:20.001Z", "from": "CLOSED", "to": "OPEN",
                "reason": "failure_rate", "calls": 6, "failures": 5, "note": null }],
        });
        assert_eq!(
            explain_text(&view, false),
            "redis  OPEN\n  it opened after 5 failures of 6 calls\n\n\
             window of 60 s: 6 calls, 5 failures (rate 0.83); trips at 5 failures and a rate of 0.50\n\n\
             last errors\nAT                    CODE     MESSAGE  TRACE\n\
             2026-09-21T14:13:20Z  connect  refused\n\n\
             transitions\n\
             AT                        BACKEND  CHANGE          REASON        FAILURES  NOTE\n\
             2026-09-21T14:13:20.001Z           CLOSED -> OPEN  failure_rate  5/6\n"
        );
    }
}
