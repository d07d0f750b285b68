//! What the demo shows: on a terminal a live status under the telling, in a pipe plain lines.

use std::{
    io::Write,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{
    backend::Each,
    watch::{Condition, Health},
};
use crate::terminal::{print::on_terminal, table::terminal_width};

/// How often a status is printed in a pipe.
const LINE_EVERY: Duration = Duration::from_secs(1);

/// Where the text of a line begins, behind its time.
const INDENT: usize = 10;

/// What moves.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Status {
    /// How the system is; `None` where no daemon answers.
    pub(super) health: Option<Health>,
    /// What becomes of the calls to each backend.
    pub(super) rates: Each<Rates>,
}

/// Calls a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Rates {
    /// Those that the backend answered.
    pub(super) live: u64,
    /// Writes that became durable in the queue, and reads answered from there.
    pub(super) queued: u64,
    /// Reads that the cache answered, or nothing where it had nothing.
    pub(super) cached: u64,
    /// Those without an answer.
    pub(super) failed: u64,
}

/// Where the story is told.
pub(super) struct Screen {
    begun: Instant,
    bar: Option<ProgressBar>,
    colour: bool,
    last_line: Mutex<Option<Instant>>,
    /// Told when nobody reads any more.
    pub(super) closed: Notify,
}

impl Screen {
    /// The screen of a story of about this length.
    pub(super) fn new(length: Duration) -> Self {
        let terminal = on_terminal();
        let bar = terminal.then(|| {
            let millis = u64::try_from(length.as_millis()).unwrap_or(u64::MAX);
            let bar = ProgressBar::with_draw_target(Some(millis), ProgressDrawTarget::stdout());
            let style = ProgressStyle::with_template("{msg}\n{bar:72.cyan/dim}");
            style.map(|style| bar.set_style(style.progress_chars("━━─"))).unwrap_or_default();
            bar
        });
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self {
            begun: Instant::now(),
            bar,
            colour: terminal && !plain,
            last_line: Mutex::default(),
            closed: Notify::new(),
        }
    }

    /// How long the story has been told.
    pub(super) fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Begins a phase.
    pub(super) fn heading(&self, text: &str) {
        self.print(&format!("\n{}", self.bold(text)));
    }

    /// Tells what happened, with its time.
    pub(super) fn note(&self, text: &str) {
        let mut line = format!("{:>6.1} s  {text}", self.begun.elapsed().as_secs_f64());
        if self.is_terminal()
            && let Some(width) = terminal_width()
        {
            line = wrapped(&line, width);
        }
        self.print(&self.with_states(&line));
    }

    /// Shows how things stand.
    pub(super) fn status(&self, status: &Status) {
        if let Some(bar) = &self.bar {
            if bar.is_finished() {
                return;
            }
            let millis = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
            bar.set_position(millis.min(bar.length().unwrap_or(millis)));
            bar.set_message(self.with_states(&status.block()));
            return;
        }
        let mut last = self.last_line.lock();
        if last.is_none_or(|last| last.elapsed() >= LINE_EVERY) {
            *last = Some(Instant::now());
            self.note(&status.line());
        }
    }

    /// Ends the live status; what follows stays.
    pub(super) fn end_status(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    /// Prints lines as they are.
    pub(super) fn print(&self, text: &str) {
        let write = || {
            let mut out = std::io::stdout().lock();
            writeln!(out, "{text}").and_then(|()| out.flush())
        };
        let written = match &self.bar {
            Some(bar) => bar.suspend(write),
            None => write(),
        };
        if written.is_err() {
            self.closed.notify_one();
        }
    }

    /// Whether a table is for people's eyes.
    pub(super) fn is_terminal(&self) -> bool {
        self.bar.is_some()
    }

    /// `text` in green for good news, in red for bad.
    pub(super) fn verdict(&self, good: bool, text: &str) -> String {
        self.paint(if good { "1;32" } else { "1;31" }, text)
    }

    fn bold(&self, text: &str) -> String {
        self.paint("1", text)
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// `text` with the words for states in their colours.
    fn with_states(&self, text: &str) -> String {
        let words = text.split_inclusive([' ', '\n']).map(|word| {
            let code = match word.trim_end() {
                "HEALTHY" | "CLOSED" => "32",
                "DEGRADED" | "HALF_OPEN" => "33",
                "OPEN" | "CRITICAL" | "EMERGENCY" | "none" => "31",
                _ => return word.to_owned(),
            };
            self.paint(code, word)
        });
        words.collect()
    }
}

impl Status {
    /// A line that says how things stand.
    fn line(&self) -> String {
        let Some(health) = &self.health else { return "no daemon".to_owned() };
        let breakers = health.backends.iter().map(|(backend, Condition { breaker, queued })| {
            let waiting =
                if *queued > 0 { format!(" ({} wait)", thousands(*queued)) } else { String::new() };
            format!("{} {breaker}{waiting}", backend.name())
        });
        let sum = |rate: fn(&Rates) -> u64| {
            thousands(self.rates.iter().map(|(_, rates)| rate(rates)).sum())
        };
        format!(
            "state {}: {}; live {}/s, to queue {}/s, cache {}/s, failed {}/s",
            health.state,
            breakers.collect::<Vec<_>>().join(", "),
            sum(|rates| rates.live),
            sum(|rates| rates.queued),
            sum(|rates| rates.cached),
            sum(|rates| rates.failed)
        )
    }

    /// The same as a small table, with what becomes of each backend's calls.
    fn block(&self) -> String {
        let state = self.health.as_ref().map(|health| health.state.to_string());
        let state = state.as_deref().unwrap_or("no daemon");
        let mut text = row(state, "breaker", ["wait", "live", "to queue", "cache", "failed"]);
        for (backend, rates) in self.rates.iter() {
            let condition = self.health.as_ref().map(|health| health.backends.get(backend));
            let breaker = condition.map(|condition| condition.breaker.to_string());
            let queued = condition.map_or("-".to_owned(), |condition| thousands(condition.queued));
            let rate = |rate: u64| format!("{}/s", thousands(rate));
            let Rates { live, queued: to_queue, cached, failed } = *rates;
            let figures = [queued, rate(live), rate(to_queue), rate(cached), rate(failed)];
            let figures = figures.each_ref().map(String::as_str);
            text = format!(
                "{text}\n{}",
                row(backend.name(), breaker.as_deref().unwrap_or("none"), figures)
            );
        }
        text
    }
}

/// A row of the small table.
fn row(first: &str, second: &str, figures: [&str; 5]) -> String {
    let figures = figures.map(|figure| format!("{figure:>9}"));
    format!("{first:<12} {second:<10}{}", figures.join(" "))
}

/// `line` broken between words so that it fits into `width`; what follows stands under its text.
fn wrapped(line: &str, width: usize) -> String {
    let (mut text, mut used) = (String::with_capacity(line.len()), 0);
    for word in line.split_inclusive(' ') {
        let length = word.trim_end().chars().count();
        if used > INDENT && used + length > width {
            text.truncate(text.trim_end().len());
            text.push('\n');
            text.push_str(&" ".repeat(INDENT));
            used = INDENT;
        }
        text.push_str(word);
        used += word.chars().count();
    }
    text
}

/// A number as people write it: `12,345`.
pub(super) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use fusebox_state::{breaker::State, system::SystemState};

    use super::super::backend::Backend;
    use super::*;

    fn status() -> Status {
        let backends = Each::of(|backend| Condition {
            breaker: if backend == Backend::Redis { State::HalfOpen } else { State::Closed }.into(),
            queued: if backend == Backend::Redis { 12_345 } else { 0 },
        });
        let health = Some(Health { state: SystemState::Degraded.into(), backends });
        let rates = Each::of(|_| Rates { live: 1_000, queued: 7, cached: 0, failed: 1 });
        Status { health, rates }
    }

    #[test]
    fn a_status_in_a_pipe_is_a_line() {
        assert_eq!(
            status().line(),
            "state DEGRADED: redis HALF_OPEN (12,345 wait), clickhouse CLOSED, firestore CLOSED; \
             live 3,000/s, to queue 21/s, cache 0/s, failed 3/s"
        );
        assert_eq!(Status::default().line(), "no daemon");
    }

    #[test]
    fn a_status_on_a_terminal_is_a_row_for_each_backend() {
        let block = status().block();
        let lines: Vec<&str> = block.lines().collect();
        assert_eq!(
            lines[..2],
            [
                "DEGRADED     breaker        wait      live  to queue     cache    failed",
                "redis        HALF_OPEN    12,345   1,000/s       7/s       0/s       1/s",
            ]
        );
        assert_eq!(lines.len(), 4);
        assert!(lines.iter().all(|line| line.len() < 80));
    }

    #[test]
    fn a_line_is_broken_between_words() {
        let line = "   1.0 s  redis      GET k  -> 200 queued";
        assert_eq!(wrapped(line, 80), line);
        let expected = "   1.0 s  redis      GET k  -> 200\n          queued";
        assert_eq!(wrapped(line, 38), expected);
        assert_eq!(wrapped("   1.0 s  unbreakable", 5), "   1.0 s  unbreakable");
    }

    #[test]
    fn thousands_are_set_apart() {
        for (number, expected) in
            [(0, "0"), (999, "999"), (1_000, "1,000"), (12_345_678, "12,345,678")]
        {
            assert_eq!(thousands(number), expected);
        }
    }
}
