//! The log: one event is one clean line of bounded length, on standard error.
//!
//! Under the journal an event goes there by the journal's own protocol, its fields as the journal's
//! (`journal.rs`). What the journal does not take is a line that begins with its priority (`<3>` to `<7>`, see
//! sd-daemon(3)), and so is every line if JSON was asked for.

use std::{
    io::{self, Write},
    path::Path,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tracing::{Level, Metadata};
use tracing_subscriber::{
    EnvFilter, Layer, Registry, filter::Directive, fmt::MakeWriter, prelude::*, reload,
};

mod clean;
mod journal;
mod limit;
#[cfg(test)]
pub(crate) mod testing;

use clean::{clean, clean_json};
use journal::Journal;
use limit::{Limit, Limited};

/// What is written if `RUST_LOG` does not say. The actors' own spans would be before every line.
const USUAL: &str = "info,ractor=warn,tokio_cron_scheduler=warn";
/// How the log is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    #[default]
    Plain,
    /// A JSON object a line.
    Json,
}

/// The log of the process.
struct Log {
    filter: reload::Handle<EnvFilter, Registry>,
    /// What is written if nobody says otherwise.
    usual: String,
    now: Mutex<String>,
    /// Which change the present filter is of: an end that was set for an earlier one is void.
    change: AtomicU64,
    limit: Limit,
}

static LOG: OnceLock<Log> = OnceLock::new();

/// Starts the log. `RUST_LOG` chooses what is written.
pub(crate) fn init(format: LogFormat) {
    let asked = std::env::var("RUST_LOG").ok().filter(|text| !text.trim().is_empty());
    let parsed = asked.map(|text| (EnvFilter::builder().parse(&text), text));
    let (filter, usual, refused) = match parsed {
        Some((Ok(filter), text)) => (filter, text, None),
        Some((Err(_), text)) => (EnvFilter::new(USUAL), USUAL.to_owned(), Some(text)),
        None => (EnvFilter::new(USUAL), USUAL.to_owned(), None),
    };
    let (filter, handle) = reload::Layer::new(filter);
    let (journal, limit) = (is_journal(), Limit::new());
    let native = if journal && format == LogFormat::Plain { native() } else { None };
    let json = format == LogFormat::Json || native.is_some();
    let writer = CleanStderr { journal, json, native };
    let layer = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(writer);
    let layer = if json {
        let layer = layer.json().flatten_event(true);
        layer.map_event_format(|format| Limited { format, limit: limit.clone() }).boxed()
    } else if journal {
        // The journal stamps lines itself.
        let layer = layer.with_target(false).without_time();
        layer.map_event_format(|format| Limited { format, limit: limit.clone() }).boxed()
    } else {
        let layer = layer.with_target(false);
        layer.map_event_format(|format| Limited { format, limit: limit.clone() }).boxed()
    };
    let layer = layer.with_filter(filter);
    // A second start within a process (a test) keeps the first.
    if tracing_subscriber::registry().with(layer).try_init().is_err() {
        return;
    }
    limit.tell();
    let (now, change) = (Mutex::new(usual.clone()), AtomicU64::new(0));
    drop(LOG.set(Log { filter: handle, usual, now, change, limit }));
    log_panics(writer);
    if let Some(text) = refused {
        let why = refusal(&text).unwrap_or_default();
        tracing::warn!(usual = USUAL, "RUST_LOG is ignored: {why}");
    }
}

/// Says what was left out so far, before the process ends.
pub(crate) fn finish() {
    if let Some(log) = LOG.get() {
        log.limit.finish();
    }
}

/// The filter in effect, and the one that is usual.
pub(crate) fn filter() -> (String, String) {
    LOG.get().map_or_else(Default::default, |log| (log.now.lock().clone(), log.usual.clone()))
}

/// Writes what `text` says from now on, for as long as said; then what is usual.
///
/// # Errors
/// What is wrong with it, naming the part.
pub(crate) fn set_filter(text: &str, lasting: Option<Duration>) -> Result<(), String> {
    let log = LOG.get().ok_or("there is no log")?;
    let change = log.put(text)?;
    if let Some(lasting) = lasting {
        tokio::spawn(async move {
            tokio::time::sleep(lasting).await;
            if log.change.load(Ordering::Acquire) == change
                && let Err(why) = log.put(&log.usual)
            {
                tracing::error!(why, "the usual filter of the log could not be restored");
            }
        });
    }
    Ok(())
}

impl Log {
    /// Puts a filter in effect; returns which change this was.
    fn put(&self, text: &str) -> Result<u64, String> {
        if let Some(why) = refusal(text) {
            return Err(why);
        }
        let filter = EnvFilter::builder().parse(text).map_err(|error| error.to_string())?;
        let mut now = self.now.lock();
        // Logged while it can be: the next filter may let nothing through.
        tracing::info!(filter = text, "the filter of the log has changed");
        self.filter.reload(filter).map_err(|error| error.to_string())?;
        text.clone_into(&mut now);
        Ok(self.change.fetch_add(1, Ordering::AcqRel) + 1)
    }
}

/// What is wrong with a filter, naming the part. A word that is not a level names a part of the program, which
/// is rarely meant: it must say so by a level.
fn refusal(text: &str) -> Option<String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let parts: Vec<&str> = text.split(',').map(str::trim).collect();
    for part in parts {
        let shown: String = part.chars().take(100).collect();
        let usual = "levels are off, error, warn, info, debug and trace; a part of the program has its own \
                     as in fusebox_actors=debug";
        let bare = !part.contains(['=', '[']) && part.parse::<u8>().is_err();
        if bare && !LEVELS.contains(&part.to_ascii_lowercase().as_str()) {
            return Some(format!("{shown:?} is not a level: {usual}"));
        }
        if part.parse::<Directive>().is_err() {
            return Some(format!("{shown:?} is not part of a filter: {usual}"));
        }
    }
    None
}

/// sled's own threads. One that panics in the middle of a write leaves whoever waits for that write waiting for ever,
/// and every store of the process without such threads: nothing is acknowledged from then on.
const OF_SLED: &str = "sled-io-";

/// Makes a panic one line as well. It may have happened while something was being logged, so nothing of the
/// log is asked for it. A panic of one of sled's threads ends the process: the next start opens the stores as after
/// any crash, which loses nothing that was acknowledged.
fn log_panics(writer: CleanStderr) {
    std::panic::set_hook(Box::new(move |panic| {
        if fusebox_state::store::is_guarded() {
            return;
        }
        let told = panic.payload();
        let what = told.downcast_ref::<&str>().copied();
        let what = what.or_else(|| told.downcast_ref::<String>().map(String::as_str));
        let what = what.unwrap_or("without a text");
        let at = panic.location().map(ToString::to_string).unwrap_or_default();
        let thread = std::thread::current();
        let thread = thread.name().unwrap_or("unnamed");
        let mut line = writer.make_writer();
        line.priority = writer.journal.then(|| priority(Level::ERROR));
        let trace = std::backtrace::Backtrace::capture();
        let trace = match trace.status() {
            std::backtrace::BacktraceStatus::Captured => trace.to_string(),
            _ => String::new(),
        };
        let now = fusebox_actors::Clock::system().unix();
        let message = format!("panicked: {what}");
        let text = if writer.json {
            let event = serde_json::json!({
                "timestamp": now, "level": "ERROR", "message": message, "at": at, "thread": thread,
                "trace": trace,
            });
            event.to_string()
        } else {
            let stamp = if writer.journal { String::new() } else { format!("{now} ") };
            format!("{stamp}ERROR {message} at={at:?} thread={thread:?} {trace}")
        };
        line.text = text.trim_end().as_bytes().to_vec();
        drop(line);
        if thread.starts_with(OF_SLED) {
            std::process::exit(1);
        }
    }));
}

/// Whether standard error is the journal: `JOURNAL_STREAM` names its device and inode, and may have been
/// inherited by a process whose standard error is another.
fn is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    let named = stream.split_once(':').and_then(|(device, inode)| {
        Some((device.parse::<u64>().ok()?, inode.parse::<u64>().ok()?))
    });
    let is = nix::sys::stat::fstat(io::stderr()).ok().map(|stat| (stat.st_dev, stat.st_ino));
    named.is_some() && named == is
}

/// The journal, if it listens.
fn native() -> Option<&'static Journal> {
    static JOURNAL: OnceLock<Option<Journal>> = OnceLock::new();
    let hooks = std::env::var("FUSEBOX_TEST_HOOKS").is_ok_and(|hooks| hooks == "1");
    let other = std::env::var_os("FUSEBOX_TEST_JOURNAL").filter(|_| hooks);
    let socket = other.unwrap_or_else(|| journal::SOCKET.into());
    JOURNAL.get_or_init(|| Journal::at(Path::new(&socket))).as_ref()
}

/// Makes writers that gather an event and put it out as one clean line.
#[derive(Clone, Copy)]
struct CleanStderr {
    journal: bool,
    json: bool,
    native: Option<&'static Journal>,
}

impl<'a> MakeWriter<'a> for CleanStderr {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line { text: Vec::with_capacity(256), json: self.json, priority: None, native: self.native }
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Line {
        let mut line = self.make_writer();
        line.priority = self.journal.then(|| priority(*metadata.level()));
        line
    }
}

/// The priority of syslog(3).
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

/// One event's text; written when it is dropped.
struct Line {
    text: Vec<u8>,
    json: bool,
    priority: Option<u8>,
    native: Option<&'static Journal>,
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if self.text.is_empty() {
            return;
        }
        if let (Some(journal), Some(priority)) = (self.native, self.priority)
            && journal.take(priority, &self.text)
        {
            return;
        }
        let mut line = self.priority.map(|priority| format!("<{priority}>")).unwrap_or_default();
        line.push_str(&if self.json { clean_json(&self.text) } else { clean(&self.text) });
        // There is nobody to tell that the log cannot be written.
        drop(io::stderr().lock().write_all(line.as_bytes()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_is_none_is_named_by_its_part() {
        for good in
            ["info", "debug,fusebox=trace", "WARN", "off", "info,fusebox_actors::health=debug", "3"]
        {
            assert_eq!(refusal(good), None, "{good}");
        }
        for (bad, part) in [
            ("fusebox=loud", "\"fusebox=loud\" is not part of a filter: levels are"),
            ("info,debgu", "\"debgu\" is not a level: levels are off"),
            ("", "\"\" is not a level"),
            ("info,fusebox=trace=x", "\"fusebox=trace=x\" is not part"),
        ] {
            let why = refusal(bad).unwrap_or_default();
            assert!(why.starts_with(part), "{bad}: {why}");
        }
    }

    #[test]
    fn priorities_are_those_of_syslog() {
        let levels = [Level::ERROR, Level::WARN, Level::INFO, Level::DEBUG, Level::TRACE];
        assert_eq!(levels.map(priority), [3, 4, 6, 7, 7]);
    }
}
