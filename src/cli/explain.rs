//! `fusebox explain`: why a backend is as it is, what happens next, and what one can do about it.

use std::process::ExitCode;

use fusebox_actors::view::ExplainView;
use fusebox_state::breaker::{ErrorRecord, TransitionRecord};

use super::{args::Output, board::whole};
use crate::terminal::{
    client::{Client, segment},
    failure::Done,
    paint::{Paper, Tone},
    print::{say, say_json},
    table::table,
    views::read,
};

/// `fusebox explain`
pub(crate) async fn explain(client: &Client, backend: &str, output: Output) -> Done {
    let answer = client.get(&format!("/v1/backends/{}/explain", segment(backend)?)).await?;
    if output.json {
        say_json(&answer)?;
    } else {
        say(&explain_text(&read(&answer)?, Paper::of_stdout()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn explain_text(view: &ExplainView, paper: Paper) -> String {
    let state = view.breaker.state.to_string();
    let state = paper.paint(Tone::of_state(&state), &state);
    let mut lines = vec![format!("{}  {state}", paper.paint(Tone::Strong, &view.backend))];
    let tell = |lines: &mut Vec<String>, sentences: Vec<String>| {
        for sentence in sentences {
            lines.extend(paper.fold(&format!("  {sentence}"), 4));
        }
    };
    tell(&mut lines, whole(&view.story).collect());
    let head = |lines: &mut Vec<String>, head: &str| {
        lines.extend([String::new(), paper.paint(Tone::Strong, head)]);
    };
    if !view.advice.is_empty() {
        head(&mut lines, "what you can do");
        tell(&mut lines, view.advice.clone());
    }
    lines.extend([String::new(), window(view)]);
    let errors = errors(view);
    if !errors.is_empty() {
        head(&mut lines, "last errors");
        // Calls over the HTTP API come by no door.
        let has_doors = errors.iter().any(|[.., door, _]| !door.is_empty());
        let shown = |row: [String; 5]| {
            let cells = row.into_iter().enumerate();
            cells.filter(|(at, _)| has_doors || *at != 3).map(|(_, cell)| cell).collect::<Vec<_>>()
        };
        let heads = shown(["AT", "CODE", "MESSAGE", "DOOR", "TRACE"].map(str::to_owned));
        let heads: Vec<&str> = heads.iter().map(String::as_str).collect();
        let rows: Vec<Vec<String>> = errors.into_iter().map(shown).collect();
        lines.push(table(&heads, &rows, paper.width.is_some()).trim_end().to_owned());
    }
    let traces = view.traces.iter();
    let traces: Vec<String> = traces
        .filter_map(|trace| Some(format!("  {}  {}", trace.trace_id, trace.url.as_ref()?)))
        .collect();
    if !traces.is_empty() {
        head(&mut lines, "traces");
        // Never folded: a link is to be clicked.
        lines.extend(traces);
    }
    if !view.transitions.is_empty() {
        head(&mut lines, "transitions");
        let past = transitions(&view.transitions, paper.width.is_some());
        lines.push(past.trim_end().to_owned());
    }
    lines.push(String::new());
    lines.join("\n")
}

fn window(view: &ExplainView) -> String {
    let breaker = &view.breaker;
    let trips = match breaker.slow_rate_threshold {
        rate if rate > 0.0 => {
            format!("; trips at {} and a rate of {rate:.2}", breaker.failure_threshold)
        }
        _ => String::new(),
    };
    let slow = match breaker.window_slow {
        0 if trips.is_empty() => String::new(),
        slow => format!(
            "; {slow} slow, above {} ms (rate {:.2}){trips}",
            breaker.slow_call_ms, breaker.slow_rate
        ),
    };
    let counted =
        |count: u64, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    format!(
        "window of {} s: {}, {} (rate {:.2}); trips at {} and a rate of {:.2}{slow}",
        breaker.window_seconds,
        counted(breaker.window_calls, "call"),
        counted(breaker.window_failures, "failure"),
        breaker.failure_rate,
        counted(breaker.failure_threshold.into(), "failure"),
        breaker.failure_rate_threshold,
    )
}

/// The errors that the outage began with, and those since, each once.
fn errors(view: &ExplainView) -> Vec<[String; 5]> {
    let mut rows: Vec<[String; 5]> = Vec::new();
    let led = view.outage.iter().flat_map(|outage| &outage.transition.last_errors);
    for error in led.chain(&view.last_errors) {
        let ErrorRecord { at, code, message, trace_id, door } = error;
        let trace_id = trace_id.clone().unwrap_or_default();
        let door = door.clone().unwrap_or_default();
        let row = [at.to_string(), code.clone(), message.whole().to_owned(), door, trace_id];
        if !rows.contains(&row) {
            rows.push(row);
        }
    }
    rows
}

/// Transitions as a table, newest last.
fn transitions(records: &[TransitionRecord], terminal: bool) -> String {
    let rows: Vec<Vec<String>> = records
        .iter()
        .map(|TransitionRecord { at, transition }| {
            vec![
                at.to_string(),
                String::new(),
                format!("{} -> {}", transition.from, transition.to),
                transition.reason.to_string(),
                format!("{}/{}", transition.failures, transition.calls),
                transition.note.clone().unwrap_or_default(),
            ]
        })
        .collect();
    table(&["AT", "BACKEND", "CHANGE", "REASON", "FAILURES", "NOTE"], &rows, terminal)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn explained(door: Value) -> String {
        let error = json!({ "at": "2026-09-21T14:13:20.000Z", "code": "connect", "message": "refused",
            "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736" });
        let later = json!({ "at": "2026-09-21T14:13:29.000Z", "code": "timeout", "message": "too\nlate",
            "trace_id": null, "door": door });
        let moved = json!({ "at": "2026-09-21T14:13:20.001Z", "from": "CLOSED", "to": "OPEN",
            "reason": "failure_rate", "horizon": "whole", "calls": 6, "failures": 5,
            "failure_rate": 0.833, "failure_threshold": 5, "failure_rate_threshold": 0.5,
            "open_for_ms": 30_000, "exponent": 0, "note": null, "last_errors": [error] });
        let view = json!({
            "backend": "redis", "story": ["The breaker of redis is OPEN.", "5 of 6 calls failed."],
            "advice": ["`fusebox recover redis` tries a recovery now."],
            "breaker": { "state": "OPEN", "window_seconds": 60.0, "window_calls": 6,
                "window_failures": 5, "failure_rate": 0.833, "failure_threshold": 5,
                "failure_rate_threshold": 0.5 },
            "outage": moved,
            "last_errors": [error, later],
            "traces": [{ "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
                "url": "http://jaeger:16686/trace/4bf92f3577b34da6a3ce929d0e0e4736" }],
            "transitions": [moved],
        });
        explain_text(&read(&view).unwrap(), Paper::PIPE)
    }

    #[test]
    fn an_explanation_tells_story_advice_window_errors_traces_and_past() {
        assert_eq!(
            explained(Value::Null),
            "\
redis  OPEN
  The breaker of redis is OPEN.
  5 of 6 calls failed.

what you can do
  `fusebox recover redis` tries a recovery now.

window of 60 s: 6 calls, 5 failures (rate 0.83); trips at 5 failures and a rate of 0.50

last errors
AT                        CODE     MESSAGE    TRACE
2026-09-21T14:13:20.000Z  connect  refused    4bf92f3577b34da6a3ce929d0e0e4736
2026-09-21T14:13:29.000Z  timeout  too\\nlate

traces
  4bf92f3577b34da6a3ce929d0e0e4736  http://jaeger:16686/trace/4bf92f3577b34da6a3ce929d0e0e4736

transitions
AT                        BACKEND  CHANGE          REASON        FAILURES  NOTE
2026-09-21T14:13:20.001Z           CLOSED -> OPEN  failure_rate  5/6
"
        );
        let by_door = explained(json!("127.0.0.1:6380"));
        let rows = "\
AT                        CODE     MESSAGE    DOOR            TRACE
2026-09-21T14:13:20.000Z  connect  refused                    4bf92f3577b34da6a3ce929d0e0e4736
2026-09-21T14:13:29.000Z  timeout  too\\nlate  127.0.0.1:6380
";
        assert!(by_door.contains(rows), "{by_door}");
    }
}
