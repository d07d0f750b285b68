//! `fusebox explain`: why a backend is as it is, what happens next, and what one can do about it.

use std::process::ExitCode;

use serde_json::Value;

use super::{Done, args::Output};
use crate::terminal::{
    client::{Client, segment},
    paint::{Paper, Tone},
    print::{say, say_json},
    table::{list, number, table, text},
};

/// `fusebox explain`
pub(crate) async fn explain(client: &Client, backend: &str, output: Output) -> Done {
    let view = client.get(&format!("/v1/backends/{}/explain", segment(backend)?)).await?;
    if output.json {
        say_json(&view)?;
    } else {
        say(&explain_text(&view, Paper::of_stdout()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn explain_text(view: &Value, paper: Paper) -> String {
    let state = text(view, "breaker.state");
    let state = paper.paint(Tone::of_state(&state), &state);
    let mut lines = vec![format!("{}  {state}", paper.paint(Tone::Strong, &text(view, "backend")))];
    let tell = |lines: &mut Vec<String>, sentences: Vec<String>| {
        for sentence in sentences {
            lines.extend(paper.fold(&format!("  {sentence}"), 4));
        }
    };
    tell(&mut lines, list(view, "story"));
    let head = |lines: &mut Vec<String>, head: &str| {
        lines.extend([String::new(), paper.paint(Tone::Strong, head)]);
    };
    let advice = list(view, "advice");
    if !advice.is_empty() {
        head(&mut lines, "what you can do");
        tell(&mut lines, advice);
    }
    lines.extend([String::new(), window(view)]);
    let errors = errors(view);
    if !errors.is_empty() {
        head(&mut lines, "last errors");
        let heads = ["AT", "CODE", "MESSAGE", "TRACE"];
        lines.push(table(&heads, &errors, paper.width.is_some()).trim_end().to_owned());
    }
    let traces: Vec<Vec<String>> = records(view, "traces")
        .into_iter()
        .filter(|trace| !text(trace, "url").is_empty())
        .map(|trace| vec![text(trace, "trace_id"), text(trace, "url")])
        .collect();
    if !traces.is_empty() {
        head(&mut lines, "traces");
        // Never folded: a link is to be clicked.
        lines.extend(traces.into_iter().map(|trace| format!("  {}", trace.join("  "))));
    }
    let past = records(view, "transitions");
    if !past.is_empty() {
        head(&mut lines, "transitions");
        lines.push(transitions(&past, paper.width.is_some()).trim_end().to_owned());
    }
    lines.push(String::new());
    lines.join("\n")
}

fn records<'a>(view: &'a Value, key: &str) -> Vec<&'a Value> {
    view.get(key).and_then(Value::as_array).into_iter().flatten().collect()
}

fn window(view: &Value) -> String {
    format!(
        "window of {} s: {} calls, {} failures (rate {:.2}); trips at {} failures and a rate of {:.2}",
        number(view, "breaker.window_seconds"),
        text(view, "breaker.window_calls"),
        text(view, "breaker.window_failures"),
        number(view, "breaker.failure_rate"),
        text(view, "breaker.failure_threshold"),
        number(view, "breaker.failure_rate_threshold"),
    )
}

/// The errors that the outage began with, and those since, each once.
fn errors(view: &Value) -> Vec<Vec<String>> {
    let mut rows: Vec<Vec<String>> = Vec::new();
    let led = view.get("outage").map(|outage| records(outage, "last_errors")).unwrap_or_default();
    for error in led.into_iter().chain(records(view, "last_errors")) {
        let row = ["at", "code", "message", "trace_id"].map(|key| text(error, key)).to_vec();
        if !rows.contains(&row) {
            rows.push(row);
        }
    }
    rows
}

/// Transitions as a table, newest last.
fn transitions(records: &[&Value], terminal: bool) -> String {
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

    #[test]
    fn an_explanation_tells_story_advice_window_errors_traces_and_past() {
        let error = json!({ "at": "2026-09-21T14:13:20Z", "code": "connect", "message": "refused",
            "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736" });
        let later = json!({ "at": "2026-09-21T14:13:29Z", "code": "timeout", "message": "too\nlate",
            "trace_id": null });
        let view = json!({
            "backend": "redis", "story": ["The breaker of redis is OPEN.", "5 of 6 calls failed."],
            "advice": ["`fusebox recover redis` tries a recovery now."],
            "breaker": { "state": "OPEN", "window_seconds": 60.0, "window_calls": 6,
                "window_failures": 5, "failure_rate": 0.833, "failure_threshold": 5,
                "failure_rate_threshold": 0.5 },
            "outage": { "last_errors": [error] },
            "last_errors": [error, later],
            "traces": [{ "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
                "url": "http://jaeger:16686/trace/4bf92f3577b34da6a3ce929d0e0e4736" }],
            "transitions": [{ "at": "2026-09-21T14:13:20.001Z", "from": "CLOSED", "to": "OPEN",
                "reason": "failure_rate", "calls": 6, "failures": 5, "note": null }],
        });
        assert_eq!(
            explain_text(&view, Paper::PIPE),
            "\
redis  OPEN
  The breaker of redis is OPEN.
  5 of 6 calls failed.

what you can do
  `fusebox recover redis` tries a recovery now.

window of 60 s: 6 calls, 5 failures (rate 0.83); trips at 5 failures and a rate of 0.50

last errors
AT                    CODE     MESSAGE    TRACE
2026-09-21T14:13:20Z  connect  refused    4bf92f3577b34da6a3ce929d0e0e4736
2026-09-21T14:13:29Z  timeout  too\\nlate

traces
  4bf92f3577b34da6a3ce929d0e0e4736  http://jaeger:16686/trace/4bf92f3577b34da6a3ce929d0e0e4736

transitions
AT                        BACKEND  CHANGE          REASON        FAILURES  NOTE
2026-09-21T14:13:20.001Z           CLOSED -> OPEN  failure_rate  5/6
"
        );
    }
}
