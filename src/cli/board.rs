//! The table of backends, as `status` prints it and `status --watch` draws it: which columns there are,
//! what is in them, and which of them a width leaves room for.

use std::time::Duration;

use fusebox_actors::view::{BackendView, BreakerView, ChaosView, PredictionView, ResilienceView};
use fusebox_state::{UnixMillis, Words, breaker::State, predict, words::with_code};

use crate::terminal::{paint::Tone, table::ago};

/// Between two columns.
const GAP: usize = 2;
/// The sources of an answer that are shown, most usual first.
const SOURCES: [&str; 7] = ["live", "queued", "cache", "stale", "empty", "bypass", "error"];

/// A column: a head, a cell for each backend, and how long it is kept as room gets scarce.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Column {
    /// Its head.
    pub(crate) head: &'static str,
    /// The text if it is in no column; `?` is the value.
    said: &'static str,
    /// The higher, the sooner it goes.
    rank: u8,
    /// Numbers are aligned to the right.
    pub(crate) right: bool,
    /// A cell for each backend.
    pub(crate) cells: Vec<Cell>,
}

/// A cell.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Cell {
    /// Its text; `-` if there is nothing to say.
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
    /// The columns.
    pub(crate) shown: Vec<Column>,
    /// What does not, for each backend, in words.
    pub(crate) rest: Vec<Vec<String>>,
}

impl Board {
    /// The table of `view` with as many columns as `width` has room for; all of them if there is no limit.
    pub(crate) fn of(view: &ResilienceView, width: Option<usize>) -> Self {
        let columns = columns(view);
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
        let rest = (0..view.backends.len())
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

/// A queue that is being replayed is said to fill if it would be full within so many seconds.
const FILLS_WITHIN: f64 = 3_600.0;
/// Columns of this rank and above are not shown in words either.
const NEVER_TOLD: u8 = 12;

fn columns(view: &ResilienceView) -> Vec<Column> {
    let now = view.at;
    let column = |head, said, rank, right, cell: &dyn Fn(&BackendView) -> Cell| Column {
        head,
        said,
        rank,
        right,
        cells: view.backends.values().map(cell).collect(),
    };
    vec![
        column("BACKEND", "", 0, false, &|it| Cell::plain(name(it))),
        column("KIND", "", 13, false, &|it| Cell::plain(it.kind.clone())),
        column("STATE", "", 0, false, &state),
        column("FOR", "for ?", 5, false, &|it| since(it, now)),
        column("NEXT", "?", 6, false, &|it| next(it, now)),
        column("FAILED", "failed ?", 1, false, &failed),
        column("TRIPS AT", "trips at ?", 10, false, &trips_at),
        column("CALLS/S", "? calls/s", 9, true, &per_second),
        column("P50 MS", "p50 ? ms", 8, true, &|it| millis(it.recent.response_ms.p50)),
        column("P99 MS", "p99 ? ms", 4, true, &|it| millis(it.recent.response_ms.p99)),
        column("ANSWERS", "?", 11, false, &answers),
        column("CACHED", "? cached", 12, true, &|it| Cell::plain(it.cache.entries.to_string())),
        column("LIMIT", "limit ?", 14, true, &limit),
        column("QUEUED", "? queued", 0, true, &queued),
        column("OLDEST", "oldest ?", 7, false, &oldest),
        column("REPLAY", "?", 3, false, &drains),
        column("DEAD", "? dead", 2, true, &dead),
    ]
}

/// The name; an asterisk says that the system is CRITICAL without it.
fn name(backend: &BackendView) -> String {
    format!("{}{}", backend.name, if backend.critical { "*" } else { "" })
}

/// The breaker's state in a word, and what overrides it.
fn state(backend: &BackendView) -> Cell {
    let forced = if backend.breaker.forced.is_some() { " (forced)" } else { "" };
    let state = &backend.breaker.state;
    let word = match (backend.opening, backend.offline) {
        (true, _) => "OPENING".into(),
        (false, true) => "OFFLINE".into(),
        (false, false) => format!("{state}{forced}"),
    };
    Cell { tone: Tone::of_state(&word), text: word }
}

/// How long ago a time was; `None` if it is not known.
fn passed(then: UnixMillis, now: UnixMillis) -> Option<String> {
    (then > UnixMillis::default()).then(|| whole_seconds(now.since(then)))
}

/// A duration in its two greatest units, none smaller than a second.
fn whole_seconds(duration: Duration) -> String {
    ago(duration.as_secs().saturating_mul(1_000))
}

/// How long it is until a time.
fn left(then: UnixMillis, now: UnixMillis) -> String {
    whole_seconds(then.since(now))
}

fn since(backend: &BackendView, now: UnixMillis) -> Cell {
    if backend.offline || backend.opening {
        return Cell::none();
    }
    passed(backend.breaker.since, now).map_or_else(Cell::none, Cell::plain)
}

/// What will happen to the breaker by itself.
fn next(backend: &BackendView, now: UnixMillis) -> Cell {
    if backend.offline || backend.opening {
        return Cell::none();
    }
    let breaker = &backend.breaker;
    if let Some(forced) = &breaker.forced {
        let released = |until| Cell::plain(format!("released in {}", left(until, now)));
        return forced.until.map_or_else(Cell::none, released);
    }
    match breaker.state.known() {
        Some(State::Open) => breaker.open_until.map_or_else(Cell::none, |until| {
            Cell::plain(format!("half-opens in {}", left(until, now)))
        }),
        Some(State::HalfOpen) => {
            Cell::plain(format!("closes after {} probes", breaker.success_threshold))
        }
        Some(State::Closed) | None => ahead(&backend.prediction),
    }
}

/// What is predicted, if a limit is near.
fn ahead(prediction: &PredictionView) -> Cell {
    let (text, tone) = match prediction.state.known() {
        Some(predict::State::Watch) => ("watched", Tone::Plain),
        Some(predict::State::AtRisk) => ("at risk", Tone::Doubtful),
        Some(predict::State::Unproven) => ("at risk?", Tone::Plain),
        _ => return Cell::none(),
    };
    Cell { text: text.into(), tone }
}

/// Failures among the calls of the breaker's window.
fn failed(backend: &BackendView) -> Cell {
    let breaker = &backend.breaker;
    let (calls, failures) = (breaker.window_calls, breaker.window_failures);
    if calls == 0 {
        return Cell::none();
    }
    let rate = breaker.failure_rate;
    let tone = match failures {
        0 => Tone::Plain,
        _ if rate >= breaker.failure_rate_threshold => Tone::Bad,
        _ => Tone::Doubtful,
    };
    Cell { text: format!("{failures}/{calls} {:.0}%", rate * 100.0), tone }
}

/// What the failures are measured by; of no interest if there are none.
fn trips_at(backend: &BackendView) -> Cell {
    let failures = backend.breaker.failure_threshold;
    let text = match backend.breaker.failure_rate_threshold * 100.0 {
        rate if rate > 0.0 => format!("{failures} and {rate:.0}%"),
        _ => failures.to_string(),
    };
    let quiet = backend.breaker.window_failures == 0;
    Cell { text, tone: if quiet { Tone::Faint } else { Tone::Plain } }
}

fn per_second(backend: &BackendView) -> Cell {
    match backend.recent.calls_per_second {
        calls if calls <= 0.0 => Cell::none(),
        calls => Cell::plain(short(calls)),
    }
}

/// A figure with a decimal if it is small.
pub(crate) fn short(value: f64) -> String {
    if value < 9.95 { format!("{value:.1}") } else { format!("{value:.0}") }
}

fn millis(took: f64) -> Cell {
    match took {
        took if took <= 0.0 => Cell::none(),
        took => Cell::plain(short(took)),
    }
}

/// Whether the system is CRITICAL without some of the backends, which are marked.
pub(crate) fn marks_any(view: &ResilienceView) -> bool {
    view.backends.values().any(|backend| backend.critical)
}

/// What the mark means.
pub(crate) const MARK: &str = "* the system is CRITICAL while it is down";

/// The sources of the answers of the last minute.
fn answers(backend: &BackendView) -> Cell {
    let recent = &backend.recent;
    if recent.calls == 0 {
        return Cell::none();
    }
    let of = |source: &str| recent.by_source.get(source).copied().unwrap_or(0);
    #[expect(clippy::cast_precision_loss, reason = "a percentage for people")]
    let share = |source| of(source) as f64 * 100.0 / recent.calls as f64;
    let mut shares: Vec<(f64, &str)> = SOURCES
        .iter()
        .map(|source| (share(source), *source))
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
    Cell { text: words.join(" "), tone: if of("error") > 0 { Tone::Bad } else { Tone::Plain } }
}

/// The most attempts in flight, and what adaptive limits on reads and writes would be.
fn limit(backend: &BackendView) -> Cell {
    let calls = &backend.calls;
    let mut text = match calls.in_flight_limit {
        0 => return Cell::none(),
        limit => limit.to_string(),
    };
    let would_be = calls.in_flight_limit_would_be;
    for (class, limit) in [("r", would_be.read), ("w", would_be.write)] {
        text.extend(limit.map(|limit| format!(" {class}{limit}")));
    }
    Cell::plain(text)
}

fn queued(backend: &BackendView) -> Cell {
    let (calls, fill) = (backend.queue.calls, backend.queue.fill_percent);
    let tone = match fill {
        _ if calls == 0 => Tone::Plain,
        fill if fill >= 85.0 => Tone::Bad,
        _ => Tone::Doubtful,
    };
    let text = if fill >= 1.0 { format!("{calls} {fill:.0}%") } else { calls.to_string() };
    Cell { text, tone }
}

fn oldest(backend: &BackendView) -> Cell {
    match &backend.queue {
        queue if queue.calls > 0 => {
            Cell::plain(whole_seconds(Duration::from_millis(queue.oldest_age_ms)))
        }
        _ => Cell::none(),
    }
}

/// When the queue will be empty, or full, or why neither.
fn drains(backend: &BackendView) -> Cell {
    let queue = &backend.queue;
    let (waits, paused) = (queue.calls > 0, queue.replay_paused.is_some());
    if let Some(left) = queue.drain_seconds.and_then(seconds) {
        return Cell::plain(format!("drained in {left}"));
    }
    if paused && queue.fill_percent >= 100.0 {
        return Cell { text: "full".to_owned(), tone: Tone::Bad };
    }
    // While replay runs, a queue that is a little longer than it was is no sign that it fills.
    let fills = |seconds: &f64| waits && (paused || *seconds < FILLS_WITHIN);
    if let Some(left) = queue.full_seconds.filter(fills).and_then(seconds) {
        return Cell { text: format!("full in {left}"), tone: Tone::Doubtful };
    }
    match (waits, paused) {
        (true, true) => Cell::plain("paused"),
        (true, false) => Cell::plain("replays"),
        (false, _) => Cell::none(),
    }
}

/// A number of seconds in its two greatest units.
fn seconds(seconds: f64) -> Option<String> {
    let seconds = Duration::try_from_secs_f64(seconds).ok()?;
    Some(whole_seconds(seconds + Duration::from_millis(999)))
}

fn dead(backend: &BackendView) -> Cell {
    let dead = backend.queue.dead_letters;
    Cell { tone: if dead == 0 { Tone::Plain } else { Tone::Bad }, text: dead.to_string() }
}

/// Words that were read, as they are shown here: with the rights with which they were read.
pub(crate) fn whole(words: &[Words]) -> impl Iterator<Item = String> + '_ {
    words.iter().map(|words| words.whole().to_owned())
}

/// How many calls were slow, if their share is one at which the breaker opens.
fn slow_calls(breaker: &BreakerView) -> Option<String> {
    let (slow, calls, millis) = (breaker.window_slow, breaker.window_calls, breaker.slow_call_ms);
    let (least, rate) = (breaker.failure_threshold, breaker.slow_rate_threshold);
    (breaker.slow_rate >= rate).then(|| {
        let at = format!("the breaker opens at {least} slow calls and {}%", rate * 100.0);
        format!("{slow} of {calls} calls took longer than {millis} ms; {at}")
    })
}

/// Which faults on purpose are set, and what they did.
fn faults(chaos: &ChaosView) -> String {
    let ChaosView { until, suspended, attempts, faults, .. } = chaos;
    let kinds: Vec<&str> = faults.iter().map(|fault| fault.kind.as_str()).collect();
    let hits: u64 = faults.iter().map(|fault| fault.hits).sum();
    let suspended = suspended.as_ref().map(|why| format!("; suspended: {why}"));
    format!(
        "faults on purpose until {until}: {}; {hits} hits in {attempts} attempts{}",
        kinds.join(", "),
        suspended.unwrap_or_default()
    )
}

/// All that an operator should know of a backend, in sentences.
pub(crate) fn notes(backend: &BackendView) -> Vec<String> {
    let (breaker, queue) = (&backend.breaker, &backend.queue);
    let mut notes: Vec<String> = whole(&backend.alerts).collect();
    let is_closed = breaker.state.known() == Some(State::Closed);
    if breaker.pings_failed > 0 && is_closed {
        let (pings, most) = (breaker.pings_failed, breaker.failure_threshold);
        notes.push(format!("failed pings in a row: {pings}; the breaker opens at {most}"));
    }
    if is_closed && breaker.forced.is_none() && breaker.slow_rate_threshold > 0.0 {
        notes.extend(slow_calls(breaker));
    }
    if let Some(forced) = &breaker.forced {
        let until = forced.until.map(|until| format!("until {until}"));
        let until = until.unwrap_or_else(|| "until it is released".into());
        notes.push(format!("forced {} {until}: {}", forced.state, forced.reason));
    }
    notes.extend(backend.chaos.as_ref().map(faults));
    if let Some(refuses) = &queue.store_refuses {
        notes.push(format!("its store refuses writes: {refuses}"));
    }
    // Who forced it knows why.
    let is_down = !is_closed && breaker.forced.is_none();
    let last = breaker.last_transition.as_ref().filter(|_| is_down);
    if let Some(error) = last.and_then(|last| last.transition.last_errors.last()) {
        let told = with_code(&error.code, error.message.whole());
        notes.push(format!("the last error was {told}"));
    }
    notes.extend(backend.prediction.told());
    if !backend.impaired_by.is_empty() {
        notes.push(format!("impaired by {}", backend.impaired_by.join(", ")));
    }
    if let Some(paused) = &queue.replay_paused {
        notes.push(format!("replay is paused: {paused}"));
    }
    notes.extend(whole(&backend.connector.warnings));
    notes
}

/// The notes of all backends, and of stores that belong to none.
pub(crate) fn all_notes(view: &ResilienceView) -> Vec<String> {
    let mut all: Vec<String> = view
        .backends
        .values()
        .flat_map(|backend| {
            notes(backend).into_iter().map(|note| format!("{}: {note}", backend.name))
        })
        .collect();
    all.extend(view.stray_stores.iter().map(|store| {
        format!("the store {store} belongs to no configured backend: its calls keep waiting")
    }));
    all.extend(
        view.settings_left_out.iter().map(|why| {
            format!("a change of settings at run time is not in effect: {}", why.whole())
        }),
    );
    if let Some(why) = &view.alert_command_fails {
        all.push(format!("the alert command fails: {}", why.whole()));
    }
    all
}

/// The line above the table: the state, since when, and what share works.
pub(crate) fn headline(view: &ResilienceView) -> (String, String, String) {
    let lasts = passed(view.since, view.at);
    (
        format!("fusebox {}", view.version),
        view.state.to_string(),
        format!(
            "{}{:.0} % operational  up {}",
            lasts.map(|lasts| format!("for {lasts}  ")).unwrap_or_default(),
            view.operational_percent,
            ago(view.uptime_seconds * 1_000)
        ),
    )
}
