//! The log: one event is one clean line of bounded length, on standard error.

use std::io::{self, Write};

use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

/// What is written where `RUST_LOG` does not say. The actors' own spans would stand before every line.
const USUAL: &str = "info,ractor=warn,tokio_cron_scheduler=warn";
/// The longest line, its end not counted.
const LINE_MAX: usize = 8 << 10;

/// How the log is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    #[default]
    Plain,
    /// A JSON object a line.
    Json,
}

/// Starts the log. `RUST_LOG` chooses what is written.
pub(crate) fn init(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(USUAL));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(false)
        .with_writer(CleanStderr);
    // The journal stamps lines itself.
    let journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let started = match format {
        LogFormat::Json => builder.json().with_target(true).flatten_event(true).try_init(),
        LogFormat::Plain if journal => builder.without_time().try_init(),
        LogFormat::Plain => builder.try_init(),
    };
    // A second start within a process (a test) keeps the first.
    drop(started);
}

/// Makes writers that gather an event and put it out as one clean line.
struct CleanStderr;

impl<'a> MakeWriter<'a> for CleanStderr {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line(Vec::with_capacity(256))
    }
}

/// One event's text; written when it is dropped.
struct Line(Vec<u8>);

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if !self.0.is_empty() {
            // There is nobody to tell that the log cannot be written.
            drop(io::stderr().lock().write_all(clean(&self.0).as_bytes()));
        }
    }
}

/// `event` without control characters (a newline in a value must not look like another event), cut
/// to a bounded length, with one newline at its end.
fn clean(event: &[u8]) -> String {
    let text = String::from_utf8_lossy(event);
    let text = text.strip_suffix('\n').unwrap_or(&text);
    let mut line = String::with_capacity(text.len() + 1);
    for letter in text.chars() {
        if line.len() >= LINE_MAX {
            line.push_str("… (cut)");
            break;
        }
        if letter.is_control() || matches!(letter, '\u{2028}' | '\u{2029}') {
            line.extend(letter.escape_default());
        } else {
            line.push(letter);
        }
    }
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_clean_line_of_bounded_length() {
        assert_eq!(clean(b"INFO key=a\nb\x1b[31m\n"), "INFO key=a\\nb\\u{1b}[31m\n");
        assert_eq!(clean("Größe \u{2028} ok\n".as_bytes()), "Größe \\u{2028} ok\n");
        let long = clean(&vec![b'x'; 100_000]);
        assert!(long.len() < LINE_MAX + 32 && long.ends_with("… (cut)\n"));
    }
}
