//! What the demo shows: on a terminal a live status under the telling, in a pipe plain lines.

use std::{
    io::Write,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::cli;

/// How often a status is printed in a pipe.
const LINE_EVERY: Duration = Duration::from_millis(500);

/// What moves.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Status {
    /// The system's state, the breaker's state and the queue's depth; `None` where no daemon answers.
    pub(super) health: Option<(String, String, u64)>,
    /// Calls a second that the backend answered.
    pub(super) live: u64,
    /// Writes a second that became durable in the queue, and reads answered from there.
    pub(super) queued: u64,
    /// Reads a second that the cache answered, or nothing where it had nothing.
    pub(super) cached: u64,
    /// Calls a second without an answer.
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
        let terminal = cli::on_terminal();
        let bar = terminal.then(|| {
            let millis = u64::try_from(length.as_millis()).unwrap_or(u64::MAX);
            let bar = ProgressBar::with_draw_target(Some(millis), ProgressDrawTarget::stdout());
            let style = ProgressStyle::with_template("{wide_msg}\n{bar:30.cyan/dim}  {prefix}");
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
        let text = self.with_states(text);
        self.print(&format!("{:>6.1} s  {text}", self.begun.elapsed().as_secs_f64()));
    }

    /// Shows how things stand.
    pub(super) fn status(&self, status: &Status) {
        if let Some(bar) = &self.bar {
            if bar.is_finished() {
                return;
            }
            let millis = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
            bar.set_position(millis.min(bar.length().unwrap_or(millis)));
            let (first, second) = status_text(status);
            bar.set_prefix(second);
            bar.set_message(self.with_states(&first));
            return;
        }
        let mut last = self.last_line.lock();
        if last.is_none_or(|last| last.elapsed() >= LINE_EVERY) {
            *last = Some(Instant::now());
            let (first, second) = status_text(status);
            self.note(&format!("{first}  {second}"));
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
        let words = text.split(' ').map(|word| match word {
            "HEALTHY" | "CLOSED" => self.paint("32", word),
            "DEGRADED" | "HALF_OPEN" => self.paint("33", word),
            "OPEN" | "CRITICAL" | "EMERGENCY" | "none" => self.paint("31", word),
            _ => word.to_owned(),
        });
        words.collect::<Vec<_>>().join(" ")
    }
}

/// The two halves of a status.
fn status_text(status: &Status) -> (String, String) {
    let Status { health, live, queued, cached, failed } = status;
    let (state, breaker, depth) = match health {
        Some((state, breaker, depth)) => (state.as_str(), breaker.as_str(), thousands(*depth)),
        None => ("none", "none", "-".to_owned()),
    };
    let rate = |rate: &u64| format!("{}/s", thousands(*rate));
    let first =
        format!("state {state:<9} breaker {breaker:<10} queued {depth:<7} live {:<8}", rate(live));
    let second =
        format!("to queue {:<7} cache {:<7} failed {}", rate(queued), rate(cached), rate(failed));
    (first.trim_end().to_owned(), second)
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
    use super::*;

    #[test]
    fn a_status_tells_state_breaker_queue_and_rates() {
        let health = Some(("CRITICAL".to_owned(), "HALF_OPEN".to_owned(), 12_345));
        let status = Status { health, live: 1_234, queued: 7, cached: 0, failed: 1 };
        let (first, second) = status_text(&status);
        assert_eq!(first, "state CRITICAL  breaker HALF_OPEN  queued 12,345  live 1,234/s");
        assert_eq!(second, "to queue 7/s     cache 0/s     failed 1/s");
        let (first, _) = status_text(&Status::default());
        assert_eq!(first, "state none      breaker none       queued -       live 0/s");
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
