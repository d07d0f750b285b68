//! A limit on what repeats: the same fact about the same backend fills no disk.
//!
//! Facts are distinguished by the place in the code that logs them and by what they are about: the backend, store,
//! actor or folder that they name, or their number in a list that is logged whole. Within a minute the first ten of a
//! kind are written; of the rest one line says how many there were. What is below `info` is written as it is asked for.

use std::{
    collections::HashMap,
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use fusebox_actors::AUDIT;
use parking_lot::Mutex;
use tracing::{
    Event, Level, Metadata, Subscriber,
    callsite::Identifier,
    field::{Field, Visit},
};
use tracing_subscriber::{
    fmt::{FmtContext, FormatEvent, FormatFields, format::Writer},
    registry::LookupSpan,
};

/// Of a kind and within a window, this many are written.
const BURST: u32 = 10;
/// The window.
const WINDOW: Duration = Duration::from_secs(60);
/// How often the ends of windows are looked for.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Fields that say what a fact is about.
const SUBJECTS: [&str; 5] = ["backend", "store", "actor", "dir", "warning"];
/// Letters of a message that are repeated.
const MESSAGE_SHOWN: usize = 120;

/// The limit. Cheap to clone.
#[derive(Clone)]
pub(super) struct Limit {
    window: Duration,
    kinds: Arc<Mutex<HashMap<(Identifier, String), Kind>>>,
}

/// What happened of one kind.
struct Kind {
    began: Instant,
    written: u32,
    more: u64,
    level: Level,
    message: String,
}

/// What is said of the rest of a kind.
#[derive(Debug, PartialEq, Eq)]
struct Rest {
    about: String,
    more: u64,
    level: Level,
    message: String,
}

impl Limit {
    /// A limit over the usual window; a test may have a shorter one.
    pub(super) fn new() -> Self {
        let hooks = std::env::var("FUSEBOX_TEST_HOOKS").is_ok_and(|hooks| hooks == "1");
        let shorter = std::env::var("FUSEBOX_TEST_LOG_WINDOW").ok().filter(|_| hooks);
        let shorter = shorter.and_then(|text| humantime::parse_duration(&text).ok());
        Self::over(shorter.unwrap_or(WINDOW))
    }

    fn over(window: Duration) -> Self {
        Self { window, kinds: Arc::default() }
    }

    /// Says what was left out, as windows end, for as long as the process runs.
    pub(super) fn tell(&self) {
        let limit = self.clone();
        let named = std::thread::Builder::new().name("log".into());
        let started = named.spawn(move || {
            loop {
                std::thread::park_timeout(LOOK_EVERY);
                limit.say(Instant::now());
            }
        });
        if let Err(error) = started {
            tracing::warn!(%error, "the log will not say how many lines are left out of it");
        }
    }

    /// Says all that was left out, before the process ends.
    pub(super) fn finish(&self) {
        self.say(Instant::now() + self.window);
    }

    fn say(&self, now: Instant) {
        let seconds = self.window.as_secs();
        for Rest { about, more, level, message } in self.rests(now) {
            let text = format!("\u{2026} and {more} more like {message:?} in the last {seconds} s");
            match level {
                Level::ERROR => tracing::error!(about, "{text}"),
                Level::WARN => tracing::warn!(about, "{text}"),
                _ => tracing::info!(about, "{text}"),
            }
        }
    }

    /// What was left out in windows that are over at `now`.
    fn rests(&self, now: Instant) -> Vec<Rest> {
        let mut rests = Vec::new();
        self.kinds.lock().retain(|(_, about), kind| {
            let over = now.saturating_duration_since(kind.began) >= self.window;
            if over && kind.more > 0 {
                rests.push(Rest {
                    about: about.clone(),
                    more: kind.more,
                    level: kind.level,
                    message: std::mem::take(&mut kind.message),
                });
            }
            !over
        });
        rests
    }

    /// Whether a fact is still to be written.
    fn admits(&self, metadata: &Metadata<'_>, fact: Fact, now: Instant) -> bool {
        let mut kinds = self.kinds.lock();
        let kind = kinds.entry((metadata.callsite(), fact.about)).or_insert_with(|| Kind {
            began: now,
            written: 0,
            more: 0,
            level: *metadata.level(),
            message: fact.message,
        });
        // The end of a window is seen by the thread; what was left out until then counts on.
        if kind.written < BURST {
            kind.written += 1;
            return true;
        }
        kind.more += 1;
        false
    }
}

/// A format that writes nothing of what is beyond the limit. Not a filter: tracing-subscriber 0.3 keeps what
/// a filter says of the one event for the next, if it says no by an event's fields.
pub(super) struct Limited<F> {
    pub(super) format: F,
    pub(super) limit: Limit,
}

impl<S, N, F> FormatEvent<S, N> for Limited<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        // Its own words are as rare as windows end, and of an audit nothing may be missing.
        let is_free = [module_path!(), AUDIT].contains(&metadata.target());
        if *metadata.level() <= Level::INFO && !is_free {
            let mut fact = Fact::default();
            event.record(&mut fact);
            if !self.limit.admits(metadata, fact, Instant::now()) {
                return Ok(());
            }
        }
        self.format.format_event(context, writer, event)
    }
}

/// What an event says, as far as it matters here.
#[derive(Default)]
struct Fact {
    about: String,
    message: String,
}

impl Fact {
    fn note(&mut self, field: &Field, text: impl FnOnce() -> String) {
        if SUBJECTS.contains(&field.name()) {
            self.about = text();
        } else if field.name() == "message" {
            self.message = text().chars().take(MESSAGE_SHOWN).collect();
        }
    }
}

impl Visit for Fact {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.note(field, || value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.note(field, || format!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::prelude::*;

    use super::{super::testing::Written, *};

    #[test]
    fn the_first_of_a_kind_are_written_and_the_rest_is_counted() {
        let (written, limit) = (Written::default(), Limit::over(WINDOW));
        let layer = tracing_subscriber::fmt::layer().with_writer(written.clone()).with_ansi(false);
        let format = |format| Limited { format, limit: limit.clone() };
        let subscriber = tracing_subscriber::registry().with(layer.map_event_format(format));
        let begun = Instant::now();
        tracing::subscriber::with_default(subscriber, || {
            for number in 0..25 {
                for backend in ["a", "b"] {
                    tracing::warn!(backend, number, "it fails");
                }
                tracing::debug!(backend = "a", "as often as it is asked for");
                tracing::info!(target: AUDIT, backend = "a", "an order");
            }
            tracing::warn!(backend = "a", "another fact");
        });
        let written = written.take().join("\n");
        let count = |text: &str| written.matches(text).count();
        let of = |backend: &str| count(&format!("it fails backend=\"{backend}\""));
        assert_eq!((of("a"), of("b")), (10, 10), "{written}");
        assert_eq!((count("as often as it is asked for"), count("another fact")), (25, 1));
        assert_eq!(count("an order"), 25, "nothing of an audit is left out");
        assert_eq!(written.lines().count(), 71);
        assert_eq!(limit.rests(begun + WINDOW / 2), []);
        let over = begun + WINDOW + Duration::from_secs(1);
        let mut rests = limit.rests(over);
        rests.sort_by(|a, b| a.about.cmp(&b.about));
        let rest = |about: &str| Rest {
            about: about.into(),
            more: 15,
            level: Level::WARN,
            message: "it fails".into(),
        };
        assert_eq!(rests, [rest("a"), rest("b")]);
        assert_eq!(limit.rests(over), [], "said once, and all is forgotten");
        assert!(limit.kinds.lock().is_empty());
    }
}
