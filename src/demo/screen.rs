//! What the demo shows: on a terminal a live status under the story, in a pipe plain lines.

use std::{
    io::Write,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::status::Status;
use crate::terminal::{print::on_terminal, table::terminal_width};

/// How often a status is printed in a pipe.
const LINE_EVERY: Duration = Duration::from_secs(1);

/// The column at which the text of a line begins, behind its time.
const INDENT: usize = 10;

/// The screen of the story.
pub(super) struct Screen {
    begun: Instant,
    bar: Option<ProgressBar>,
    colour: bool,
    last_line: Mutex<Option<Instant>>,
    /// Notified when nobody reads any more.
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

    /// For how long the story has run.
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

    /// Shows the state.
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

/// `line` broken between words so that it fits into `width`; what follows is aligned with its text.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_broken_between_words() {
        let line = "   1.0 s  redis      GET k  -> 200 queued";
        assert_eq!(wrapped(line, 80), line);
        let expected = "   1.0 s  redis      GET k  -> 200\n          queued";
        assert_eq!(wrapped(line, 38), expected);
        assert_eq!(wrapped("   1.0 s  unbreakable", 5), "   1.0 s  unbreakable");
    }
}
