//! `fusebox status`.

use std::process::ExitCode;

use fusebox_actors::view::ResilienceView;
use fusebox_state::system::SystemState;

use super::{
    args::Output,
    board::{Board, Column, MARK, all_notes, headline, marks_any},
    doors,
};
use crate::terminal::{
    client::Client,
    failure::Done,
    paint::{Paper, Tone},
    print::{say, say_json},
    views::read,
};

/// `fusebox status`
pub(crate) async fn status(client: &Client, exit_code: bool, output: Output) -> Done {
    let answer = client.get("/health/resilience").await?;
    let view: ResilienceView = read(&answer)?;
    if output.json {
        say_json(&answer)?;
    } else {
        say(&status_text(&view, Paper::of_stdout()))?;
    }
    let severity = view.state.known().unwrap_or(SystemState::Emergency).severity();
    Ok(ExitCode::from(if exit_code { severity } else { 0 }))
}

/// The resilience view for people.
fn status_text(view: &ResilienceView, paper: Paper) -> String {
    let (daemon, state, rest) = headline(view);
    let tone = Tone::of_state(&state);
    let mut lines = vec![format!("{daemon}  {}  {rest}", paper.paint(tone, &state))];
    for reason in &view.reasons {
        lines.extend(paper.fold(&format!("  {reason}"), 4));
    }
    lines.push(String::new());
    lines.extend(rows(&Board::of(view, paper.width), paper));
    if marks_any(view) {
        lines.push(paper.paint(Tone::Faint, MARK));
    }
    let doors = doors::lines(&view.doors);
    if !doors.is_empty() {
        lines.push(String::new());
    }
    for door in doors {
        lines.extend(paper.fold(&format!("  {door}"), 4));
    }
    let notes = all_notes(view);
    if !notes.is_empty() {
        lines.push(String::new());
    }
    for note in notes {
        lines.extend(paper.fold(&format!("  {note}"), 4));
    }
    lines.push(String::new());
    lines.join("\n")
}

/// The table in lines: a row for each backend, and beneath it what its columns had no room for.
fn rows(board: &Board, paper: Paper) -> Vec<String> {
    let heads = board.shown.iter().map(|column| (column, column.head, Tone::Strong));
    let mut lines = vec![row(heads, paper)];
    for (at, rest) in board.rest.iter().enumerate() {
        let cells = board.shown.iter().filter_map(|column| Some((column, column.cells.get(at)?)));
        lines.push(row(cells.map(|(column, cell)| (column, cell.text.as_str(), cell.tone)), paper));
        if !rest.is_empty() {
            let rest = paper.fold(&format!("  {}", rest.join(" \u{b7} ")), 2);
            lines.extend(rest.iter().map(|line| paper.paint(Tone::Faint, line)));
        }
    }
    lines
}

fn row<'a>(cells: impl Iterator<Item = (&'a Column, &'a str, Tone)>, paper: Paper) -> String {
    let mut line = String::new();
    let mut blank = 0;
    for (column, text, tone) in cells {
        let space = column.width() - text.chars().count();
        let (before, after) = if column.right { (space, 0) } else { (0, space) };
        line.push_str(&" ".repeat(blank + before));
        line.push_str(&paper.paint(tone, text));
        // A line has no spaces at its end.
        blank = after + 2;
    }
    line
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn backend(name: &str, more: &Value) -> Value {
        let mut value = json!({
            "name": name, "kind": "redis", "critical": false, "offline": false, "alerts": [],
            "impaired_by": [],
            "breaker": { "state": "CLOSED", "forced": null, "since": "2026-09-21T14:10:00Z",
                "open_until": null, "window_calls": 0, "window_failures": 0, "failure_rate": 0.0,
                "failure_threshold": 5, "failure_rate_threshold": 0.5 },
            "cache": { "entries": 0 },
            "queue": { "calls": 0, "dead_letters": 0, "replay_paused": null, "fill_percent": 0.0,
                "oldest_age_ms": 0, "drain_seconds": null, "full_seconds": null,
                "store_refuses": null },
            "recent": { "calls": 0, "calls_per_second": 0.0, "response_ms": { "p50": 0.0, "p99": 0.0 } },
            "connector": { "warnings": [] },
        });
        for (path, change) in more.as_object().unwrap() {
            let keys = path.split('.');
            *keys.fold(&mut value, |value, key| &mut value[key]) = change.clone();
        }
        value
    }

    fn a_bad_day() -> ResilienceView {
        read(&json!({
            "version": "0.1.0", "uptime_seconds": 182, "state": "CRITICAL",
            "at": "2026-09-21T14:13:20Z", "since": "2026-09-21T14:13:00Z",
            "operational_percent": 50.0,
            "reasons": ["critical backend store is down (OPEN)", "backend old is down (offline)"],
            "backends": {
                "old": backend("old", &json!({ "offline": true, "breaker.state": "OPEN" })),
                "queue": backend("queue", &json!({
                    "breaker.since": "2026-09-21T14:13:10Z",
                    "breaker.window_calls": 60, "breaker.window_failures": 2, "breaker.failure_rate": 0.033,
                    "calls": { "in_flight_limit": 256,
                        "in_flight_limit_would_be": { "read": 20, "write": 140 } },
                    "recent": { "calls": 600, "calls_per_second": 12.26,
                        "by_source": { "live": 594, "queued": 4, "error": 2 },
                        "response_ms": { "p50": 0.42, "p99": 31.7 } },
                    "queue.calls": 500, "queue.fill_percent": 1.0, "queue.oldest_age_ms": 61_000,
                    "queue.drain_seconds": 41.2, "queue.dead_letters": 3,
                    "alerts": ["3 dead letters wait for an operator"],
                    "prediction": { "state": "at_risk", "eta_s": 20,
                        "because": "p90 118 ms of a timeout of 200 ms for 4 s" },
                })),
                "sessions": backend("sessions", &json!({
                    "impaired_by": ["store"],
                    "breaker.forced": { "state": "open", "reason": "a drill\u{1b}[2J",
                        "until": "2026-09-21T14:20:00Z" },
                    "breaker.state": "OPEN",
                    "queue.calls": 9, "queue.full_seconds": 8_000.0, "queue.replay_paused": "the breaker is open",
                })),
                "store": backend("store", &json!({
                    "critical": true, "kind": "clickhouse", "breaker.state": "OPEN",
                    "breaker.open_until": "2026-09-21T14:14:08Z",
                    "breaker.window_calls": 6, "breaker.window_failures": 5, "breaker.failure_rate": 0.833,
                })),
            },
            "stray_stores": ["gone"],
        }))
        .unwrap()
    }

    #[test]
    fn a_queue_that_is_full_is_not_about_to_be() {
        let store = backend(
            "store",
            &json!({
                "queue.calls": 20, "queue.fill_percent": 100.0, "queue.full_seconds": 0.0,
                "queue.replay_paused": "the breaker is open",
            }),
        );
        let view = json!({ "state": "CRITICAL", "backends": { "store": store } });
        let text = status_text(&read(&view).unwrap(), Paper::PIPE);
        assert!(text.contains("20 100%  0s      full       0\n"), "{text}");
    }

    #[test]
    fn slow_calls_are_noted_from_the_share_on_at_which_the_breaker_opens() {
        let text = |rate: f64, threshold: f64| {
            let slow = json!({ "breaker.slow_rate": rate, "breaker.slow_rate_threshold": threshold,
                "breaker.window_slow": 3, "breaker.window_calls": 5, "breaker.slow_call_ms": 250 });
            let view = json!({ "backends": { "store": backend("store", &slow) } });
            status_text(&read(&view).unwrap(), Paper::PIPE)
        };
        let told = "\n  store: 3 of 5 calls took longer than 250 ms; \
                    the breaker opens at 5 slow calls and 50%\n";
        assert!(text(0.5, 0.5).contains(told), "{}", text(0.5, 0.5));
        for (rate, threshold) in [(0.49, 0.5), (0.6, 0.0)] {
            assert!(!text(rate, threshold).contains("took longer"), "{rate} {threshold}");
        }
    }

    #[test]
    fn faults_on_purpose_are_noted_at_their_backend() {
        let struck = backend(
            "store",
            &json!({
                "chaos": { "until": "2026-09-21T14:20:00Z", "attempts": 40,
                    "suspended": "the backend is offline",
                    "faults": [{ "kind": "error", "hits": 9 }, { "kind": "latency", "hits": 4 }] },
            }),
        );
        let view = json!({ "state": "HEALTHY", "backends": { "store": struck } });
        let text = status_text(&read(&view).unwrap(), Paper::PIPE);
        let told = "\n  store: faults on purpose until 2026-09-21T14:20:00.000Z: error, latency; \
                    13 hits in 40 attempts; suspended: the backend is offline\n";
        assert!(text.contains(told), "{text}");
    }

    #[test]
    fn the_status_of_a_bad_day_in_a_pipe() {
        assert_eq!(
            status_text(&a_bad_day(), Paper::PIPE),
            "\
fusebox 0.1.0  CRITICAL  for 20s  50 % operational  up 3m 2s
  critical backend store is down (OPEN)
  backend old is down (offline)

BACKEND   KIND        STATE          FOR     NEXT                FAILED   TRIPS AT   CALLS/S  P50 MS  P99 MS  ANSWERS                       CACHED         LIMIT  QUEUED  OLDEST  REPLAY          DEAD
old       redis       OFFLINE        -       -                   -        5 and 50%        -       -       -  -                                  0             -       0  -       -                  0
queue     redis       CLOSED         10s     at risk             2/60 3%  5 and 50%       12     0.4      32  live 99% queued 1% error <1%       0  256 r20 w140  500 1%  1m 1s   drained in 42s     3
sessions  redis       OPEN (forced)  3m 20s  released in 6m 40s  -        5 and 50%        -       -       -  -                                  0             -       9  0s      full in 2h 13m     0
store*    clickhouse  OPEN           3m 20s  half-opens in 48s   5/6 83%  5 and 50%        -       -       -  -                                  0             -       0  -       -                  0
* the system is CRITICAL while it is down

  queue: 3 dead letters wait for an operator
  queue: at risk: p90 118 ms of a timeout of 200 ms for 4 s; if this continues, p90 reaches the timeout in 20 s
  sessions: forced open until 2026-09-21T14:20:00.000Z: a drill\\u{1b}[2J
  sessions: impaired by store
  sessions: replay is paused: the breaker is open
  the store gone belongs to no configured backend: its calls keep waiting
"
        );
    }

    #[test]
    fn a_backend_whose_queue_is_being_opened_is_shown_as_that() {
        let mut view = a_bad_day();
        view.backends.get_mut("old").unwrap().opening = true;
        let text = status_text(&view, Paper { colour: false, width: Some(80) });
        assert!(text.contains("\nold       OPENING        -"), "{text}");
    }

    #[test]
    fn the_status_of_a_bad_day_on_a_terminal_of_eighty_columns() {
        assert_eq!(
            status_text(&a_bad_day(), Paper { colour: false, width: Some(80) }),
            "\
fusebox 0.1.0  CRITICAL  for 20s  50 % operational  up 3m 2s
  critical backend store is down (OPEN)
  backend old is down (offline)

BACKEND   STATE          FOR     FAILED   P99 MS  QUEUED  REPLAY          DEAD
old       OFFLINE        -       -             -       0  -                  0
queue     CLOSED         10s     2/60 3%      32  500 1%  drained in 42s     3
  at risk \u{b7} trips at 5 and 50% \u{b7} 12 calls/s \u{b7} p50 0.4 ms \u{b7} live 99% queued 1%
  error <1% \u{b7} oldest 1m 1s
sessions  OPEN (forced)  3m 20s  -             -       9  full in 2h 13m     0
  released in 6m 40s \u{b7} oldest 0s
store*    OPEN           3m 20s  5/6 83%       -       0  -                  0
  half-opens in 48s \u{b7} trips at 5 and 50%
* the system is CRITICAL while it is down

  queue: 3 dead letters wait for an operator
  queue: at risk: p90 118 ms of a timeout of 200 ms for 4 s; if this continues,
    p90 reaches the timeout in 20 s
  sessions: forced open until 2026-09-21T14:20:00.000Z: a drill\\u{1b}[2J
  sessions: impaired by store
  sessions: replay is paused: the breaker is open
  the store gone belongs to no configured backend: its calls keep waiting
"
        );
    }

    #[test]
    fn no_line_is_wider_than_the_terminal_and_colours_take_no_room() {
        for width in [40, 60, 80, 100, 120, 160, 200] {
            let plain = status_text(&a_bad_day(), Paper { colour: false, width: Some(width) });
            for line in plain.lines() {
                assert!(line.chars().count() <= width.max(60), "{width}: {line}");
            }
            let coloured = status_text(&a_bad_day(), Paper { colour: true, width: Some(width) });
            assert!(coloured.contains("\u{1b}[31mOPEN\u{1b}[0m"), "{coloured}");
            let mut bare = coloured;
            for code in ["0", "1", "2", "31", "32", "33"] {
                bare = bare.replace(&format!("\u{1b}[{code}m"), "");
            }
            assert_eq!(bare, plain);
        }
    }
}
