//! The table of backends, as `status` prints it and `status --watch` draws it: which columns there are,
//! what stands in them, and which of them a width leaves room for.

use std::time::Duration;

use fusebox_state::UnixMillis;
use serde_json::Value;

use crate::terminal::{
    paint::Tone,
    table::{ago, list, number, text},
};

/// Between two columns.
const GAP: usize = 2;
/// The sources of an answer that are shown, most usual first.
const SOURCES: [&str; 7] = ["live", "queued", "cache", "stale", "empty", "bypass", "error"];

/// A column: a head, a cell for each backend, and how long it is kept as room gets scarce.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Column {
    /// Its head.
    pub(crate) head: &'static str,
    /// What is said where it stands in no column; `?` is the value.
    said: &'static str,
    /// The higher, the sooner it goes.
    rank: u8,
    /// Numbers stand to the right.
    pub(crate) right: bool,
    /// A cell for each backend.
    pub(crate) cells: Vec<Cell>,
}

/// A cell.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Cell {
    /// Its text; `-` where there is nothing to say.
    pub(crate) text: String,
    /// Its tone.
    pub(crate) tone: Tone,
}

impl Cell {
    fn plain(text: impl Into<String>) -> Self {
        Self { text: text.into(), tone: Tone::Plain }
    }

    fn none() -> Self {
        Self::plain("-")
    }

    fn is_news(&self) -> bool {
        !matches!(self.text.as_str(), "-" | "" | "0") && self.tone != Tone::Faint
    }
}

impl Column {
    /// The columns that it takes.
    pub(crate) fn width(&self) -> usize {
        let cells = self.cells.iter().map(|cell| cell.text.chars().count());
        cells.fold(self.head.chars().count(), usize::max)
    }
}

/// The table of a resilience view.
pub(crate) struct Board {
    /// What stands in columns.
    pub(crate) shown: Vec<Column>,
    /// What does not, for each backend, in words.
    pub(crate) rest: Vec<Vec<String>>,
}

impl Board {
    /// The table of `view` where there is room for `width`; everything where there is no limit.
    pub(crate) fn of(view: &Value, width: Option<usize>) -> Self {
        let backends = backends(view);
        let now = time(view, "at");
        let columns = columns(&backends, now);
        let mut least = u8::MAX;
        let room = |least: u8| {
            let widths = columns.iter().filter(|it| it.rank < least).map(|it| it.width() + GAP);
            width.is_none_or(|width| widths.sum::<usize>() <= width + GAP)
        };
        while least > 1 && !room(least) {
            let ranks = columns.iter().map(|column| column.rank).filter(|rank| *rank < least);
            least = ranks.max().unwrap_or(0).max(1);
        }
        let (columns, gone): (Vec<_>, Vec<_>) =
            columns.into_iter().partition(|column| column.rank < least);
        let rest = (0..backends.len())
            .map(|row| {
                let cells = gone.iter().filter_map(|column| Some((column, column.cells.get(row)?)));
                let told =
                    cells.filter(|(column, cell)| cell.is_news() && column.rank < NEVER_TOLD);
                told.map(|(column, cell)| column.said.replace('?', &cell.text)).collect()
            })
            .collect();
        Self { shown: columns, rest }
    }
}

/// A queue that is being replayed is said to fill where it would be full within so many seconds.
const FILLS_WITHIN: f64 = 3_600.0;
/// Columns of this rank and above are not told in words either.
const NEVER_TOLD: u8 = 12;

/// The backends of a resilience view.
pub(crate) fn backends(view: &Value) -> Vec<&Value> {
    let all = view.get("backends").and_then(Value::as_object);
    all.into_iter().flat_map(|all| all.values()).collect()
}

fn columns(backends: &[&Value], now: Option<UnixMillis>) -> Vec<Column> {
    let column = |head, said, rank, right, cell: &dyn Fn(&Value) -> Cell| Column {
        head,
        said,
        rank,
        right,
        cells: backends.iter().map(|backend| cell(backend)).collect(),
    };
    vec![
        column("BACKEND", "", 0, false, &|it| Cell::plain(name(it))),
        column("KIND", "", 13, false, &|it| Cell::plain(text(it, "kind"))),
        column("STATE", "", 0, false, &state),
        column("FOR", "for ?", 5, false, &|it| since(it, now)),
        column("NEXT", "?", 6, false, &|it| next(it, now)),
        column("FAILED", "failed ?", 1, false, &failed),
        column("TRIPS AT", "trips at ?", 10, false, &trips_at),
        column("CALLS/S", "? calls/s", 9, true, &|it| per_second(it)),
        column("P50 MS", "p50 ? ms", 8, true, &|it| millis(it, "p50")),
        column("P99 MS", "p99 ? ms", 4, true, &|it| millis(it, "p99")),
        column("ANSWERS", "?", 11, false, &answers),
        column("CACHED", "? cached", 12, true, &|it| Cell::plain(text(it, "cache.entries"))),
        column("QUEUED", "? queued", 0, true, &queued),
        column("OLDEST", "oldest ?", 7, false, &oldest),
        column("REPLAY", "?", 3, false, &drains),
        column("DEAD", "? dead", 2, true, &dead),
    ]
}

/// The name; an asterisk says that the system is CRITICAL without it.
fn name(backend: &Value) -> String {
    let critical = backend.get("critical") == Some(&Value::Bool(true));
    format!("{}{}", text(backend, "name"), if critical { "*" } else { "" })
}

/// The breaker's state in a word, and what lies over it.
fn state(backend: &Value) -> Cell {
    let offline = backend.get("offline") == Some(&Value::Bool(true));
    let forced = if text(backend, "breaker.forced.state").is_empty() { "" } else { " (forced)" };
    let word = if offline { "OFFLINE".into() } else { text(backend, "breaker.state") + forced };
    Cell { tone: Tone::of_state(&word), text: word }
}

/// The time at a path.
pub(crate) fn time(value: &Value, path: &str) -> Option<UnixMillis> {
    text(value, path).parse().ok()
}

/// How long ago the time at a path was.
fn passed(value: &Value, path: &str, now: Option<UnixMillis>) -> Option<String> {
    let then = time(value, path)?;
    Some(whole_seconds(now?.since(then)))
}

/// A duration in its two greatest units, none smaller than a second.
fn whole_seconds(duration: Duration) -> String {
    ago(duration.as_secs().saturating_mul(1_000))
}

/// How long it is until the time at a path.
fn left(value: &Value, path: &str, now: Option<UnixMillis>) -> Option<String> {
    let then = time(value, path)?;
    Some(whole_seconds(then.since(now?)))
}

fn since(backend: &Value, now: Option<UnixMillis>) -> Cell {
    if backend.get("offline") == Some(&Value::Bool(true)) {
        return Cell::none();
    }
    passed(backend, "breaker.since", now).map_or_else(Cell::none, Cell::plain)
}

/// What will happen to the breaker by itself.
fn next(backend: &Value, now: Option<UnixMillis>) -> Cell {
    if backend.get("offline") == Some(&Value::Bool(true)) {
        return Cell::none();
    }
    if let Some(left) = left(backend, "breaker.forced.until", now) {
        return Cell::plain(format!("released in {left}"));
    }
    if !text(backend, "breaker.forced.state").is_empty() {
        return Cell::none();
    }
    match text(backend, "breaker.state").as_str() {
        "OPEN" => left(backend, "breaker.open_until", now)
            .map_or_else(Cell::none, |left| Cell::plain(format!("half-opens in {left}"))),
        "HALF_OPEN" => Cell::plain(format!(
            "closes after {} probes",
            text(backend, "breaker.success_threshold")
        )),
        _ => Cell::none(),
    }
}

/// Failures among the calls of the breaker's window.
fn failed(backend: &Value) -> Cell {
    let (calls, failures) =
        (text(backend, "breaker.window_calls"), text(backend, "breaker.window_failures"));
    if calls == "0" || calls.is_empty() {
        return Cell::none();
    }
    let rate = number(backend, "breaker.failure_rate");
    let tone = match failures.as_str() {
        "0" => Tone::Plain,
        _ if rate >= number(backend, "breaker.failure_rate_threshold") => Tone::Bad,
        _ => Tone::Doubtful,
    };
    Cell { text: format!("{failures}/{calls} {:.0}%", rate * 100.0), tone }
}

/// What the failures are measured by; of no interest where there are none.
fn trips_at(backend: &Value) -> Cell {
    let failures = text(backend, "breaker.failure_threshold");
    let text = match number(backend, "breaker.failure_rate_threshold") * 100.0 {
        rate if rate > 0.0 => format!("{failures} and {rate:.0}%"),
        _ => failures,
    };
    let quiet = number(backend, "breaker.window_failures") <= 0.0;
    Cell { text, tone: if quiet { Tone::Faint } else { Tone::Plain } }
}

fn per_second(backend: &Value) -> Cell {
    let calls = number(backend, "recent.calls_per_second");
    match calls {
        calls if calls <= 0.0 => Cell::none(),
        calls => Cell::plain(short(calls)),
    }
}

/// A figure with a decimal where it is small.
pub(crate) fn short(value: f64) -> String {
    if value < 9.95 { format!("{value:.1}") } else { format!("{value:.0}") }
}

fn millis(backend: &Value, percentile: &str) -> Cell {
    match number(backend, &format!("recent.response_ms.{percentile}")) {
        took if took <= 0.0 => Cell::none(),
        took => Cell::plain(short(took)),
    }
}

/// Whether the system is CRITICAL without some of the backends, which are marked.
pub(crate) fn marks_any(view: &Value) -> bool {
    backends(view).into_iter().any(|it| it.get("critical") == Some(&Value::Bool(true)))
}

/// What the mark means.
pub(crate) const MARK: &str = "* the system is CRITICAL while it is down";

/// Where the answers of the last minute came from.
fn answers(backend: &Value) -> Cell {
    let all = number(backend, "recent.calls");
    if all <= 0.0 {
        return Cell::none();
    }
    let mut shares: Vec<(f64, &str)> = SOURCES
        .iter()
        .map(|source| {
            (number(backend, &format!("recent.by_source.{source}")) * 100.0 / all, *source)
        })
        .filter(|(share, _)| *share > 0.0)
        .collect();
    shares.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    let words: Vec<String> = shares
        .iter()
        .map(|(share, source)| match share {
            share if *share < 0.5 => format!("{source} <1%"),
            share => format!("{source} {share:.0}%"),
        })
        .collect();
    let failing = number(backend, "recent.by_source.error") > 0.0;
    Cell { text: words.join(" "), tone: if failing { Tone::Bad } else { Tone::Plain } }
}

fn queued(backend: &Value) -> Cell {
    let (calls, fill) = (text(backend, "queue.calls"), number(backend, "queue.fill_percent"));
    let tone = match fill {
        _ if calls == "0" => Tone::Plain,
        fill if fill >= 85.0 => Tone::Bad,
        _ => Tone::Doubtful,
    };
    Cell { text: if fill >= 1.0 { format!("{calls} {fill:.0}%") } else { calls }, tone }
}

fn oldest(backend: &Value) -> Cell {
    match text(backend, "queue.oldest_age_ms").parse() {
        Ok(age) if text(backend, "queue.calls") != "0" => {
            Cell::plain(whole_seconds(Duration::from_millis(age)))
        }
        _ => Cell::none(),
    }
}

/// When the queue will be empty, or full, or why neither.
fn drains(backend: &Value) -> Cell {
    let waits = text(backend, "queue.calls") != "0";
    if let Some(left) = seconds(backend, "queue.drain_seconds") {
        return Cell::plain(format!("drained in {left}"));
    }
    let paused = !text(backend, "queue.replay_paused").is_empty();
    // While replay runs, a queue that is a little longer than it was is no sign that it fills.
    let fills = waits && (paused || number(backend, "queue.full_seconds") < FILLS_WITHIN);
    if let (Some(left), true) = (seconds(backend, "queue.full_seconds"), fills) {
        return Cell { text: format!("full in {left}"), tone: Tone::Doubtful };
    }
    match (waits, paused) {
        (true, true) => Cell::plain("paused"),
        (true, false) => Cell::plain("replays"),
        (false, _) => Cell::none(),
    }
}

/// A number of seconds in its two greatest units.
pub(crate) fn seconds(value: &Value, path: &str) -> Option<String> {
    let found = path.split('.').try_fold(value, |value, key| value.get(key))?;
    let seconds = Duration::try_from_secs_f64(found.as_f64()?).ok()?;
    Some(whole_seconds(seconds + Duration::from_millis(999)))
}

fn dead(backend: &Value) -> Cell {
    let dead = text(backend, "queue.dead_letters");
    Cell { tone: if dead == "0" { Tone::Plain } else { Tone::Bad }, text: dead }
}

/// All that an operator should know of a backend, in sentences.
pub(crate) fn notes(backend: &Value) -> Vec<String> {
    let mut notes = list(backend, "alerts");
    let (pings, most) =
        (number(backend, "breaker.pings_failed"), number(backend, "breaker.failure_threshold"));
    if pings > 0.0 && text(backend, "breaker.state") == "CLOSED" {
        notes.push(format!("{pings} pings in a row have failed; its breaker opens at {most}"));
    }
    let forced = text(backend, "breaker.forced.state");
    if !forced.is_empty() {
        let until = text(backend, "breaker.forced.until");
        let until =
            if until.is_empty() { "until it is released".into() } else { format!("until {until}") };
        notes.push(format!("forced {forced} {until}: {}", text(backend, "breaker.forced.reason")));
    }
    let refuses = text(backend, "queue.store_refuses");
    if !refuses.is_empty() {
        notes.push(format!("its store refuses writes: {refuses}"));
    }
    // Who forced it knows why.
    let is_down = text(backend, "breaker.state") != "CLOSED" && forced.is_empty();
    let errors = backend.pointer("/breaker/last_transition/last_errors").and_then(Value::as_array);
    if let Some(error) = errors.and_then(|errors| errors.last()).filter(|_| is_down) {
        let (code, message) = (text(error, "code"), text(error, "message"));
        notes.push(format!("the last error was {code}: {message}"));
    }
    let causes = list(backend, "impaired_by");
    if !causes.is_empty() {
        notes.push(format!("impaired by {}", causes.join(", ")));
    }
    let paused = text(backend, "queue.replay_paused");
    if !paused.is_empty() {
        notes.push(format!("replay is paused: {paused}"));
    }
    notes.extend(list(backend.get("connector").unwrap_or(&Value::Null), "warnings"));
    notes
}

/// The notes of all backends, and of stores that belong to none.
pub(crate) fn all_notes(view: &Value) -> Vec<String> {
    let mut all: Vec<String> = backends(view)
        .into_iter()
        .flat_map(|backend| {
            let name = text(backend, "name");
            notes(backend).into_iter().map(move |note| format!("{name}: {note}"))
        })
        .collect();
    all.extend(list(view, "stray_stores").into_iter().map(|store| {
        format!("the store {store} belongs to no backend: what waits in it waits on")
    }));
    all
}

/// What stands over the table: the state, since when, and what share works.
pub(crate) fn headline(view: &Value) -> (String, String, String) {
    let up = view.get("uptime_seconds").and_then(Value::as_u64).unwrap_or(0);
    let lasts = passed(view, "since", time(view, "at"));
    (
        format!("fusebox {}", text(view, "version")),
        text(view, "state"),
        format!(
            "{}{:.0} % operational  up {}",
            lasts.map(|lasts| format!("for {lasts}  ")).unwrap_or_default(),
            number(view, "operational_percent"),
            ago(up * 1_000)
        ),
    )
}
