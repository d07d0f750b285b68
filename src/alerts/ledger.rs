//! What has been said about which alert, and what is to be said next.
//!
//! ```text
//!   quiet --holds--> waits --for long enough--> firing, said --is over--> resolved, said --> quiet
//!                      |                            |
//!                      +--is over--> quiet          +--within the minute: later, if it still differs
//! ```
//! A command that failed has said nothing: it is run again a minute later, if there is still something to say.

use std::{collections::BTreeMap, time::Duration};

use fusebox_state::{Moment, UnixMillis};

use super::conditions::{Found, Key};
use crate::config::AlertSettings;

/// The least time between two commands for the same alert.
pub(crate) const PAUSE: Duration = Duration::from_secs(60);

/// What is to be said about an alert.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Notice {
    /// About which.
    pub(crate) key: Key,
    /// Whether it holds; if not, it is over.
    pub(crate) is_firing: bool,
    /// A sentence about it.
    pub(crate) message: String,
    /// Since when its condition holds, or held.
    pub(crate) since: UnixMillis,
}

/// What has been said.
#[derive(Debug)]
pub(crate) struct Ledger {
    entries: BTreeMap<Key, Entry>,
    /// The least time between two commands for the same alert.
    pause: Duration,
}

#[derive(Debug)]
struct Entry {
    /// Since when the condition holds without a break.
    holds: Option<Moment>,
    since: UnixMillis,
    message: String,
    /// Whether the last that was said is that it holds.
    is_said: bool,
    /// A command runs.
    is_running: bool,
    /// When the last command was begun.
    last: Option<Moment>,
}

impl Ledger {
    /// Nothing has been said yet.
    pub(crate) fn new(pause: Duration) -> Self {
        Self { entries: BTreeMap::new(), pause }
    }

    /// All that was said is forgotten.
    pub(crate) fn clear(&mut self) {
        self.entries.clear();
    }

    /// Takes note of what holds now.
    pub(crate) fn note(&mut self, found: BTreeMap<Key, Found>, now: Moment, unix: UnixMillis) {
        for (key, entry) in &mut self.entries {
            let is_known = entry.is_said || entry.is_running;
            match found.get(key) {
                Some(Found::Holds(_)) => {}
                Some(Found::Overtaken) if is_known => {}
                Some(Found::Overtaken) | None => entry.holds = None,
            }
        }
        for (key, found) in found {
            let Found::Holds(message) = found else { continue };
            let entry = self.entries.entry(key).or_insert_with(|| Entry {
                holds: None,
                since: unix,
                message: String::new(),
                is_said: false,
                is_running: false,
                last: None,
            });
            if entry.holds.is_none() {
                (entry.holds, entry.since) = (Some(now), unix);
            }
            entry.message = message;
        }
        let pause = self.pause;
        self.entries.retain(|_, entry| {
            entry.holds.is_some() || entry.is_said || entry.is_running || !entry.may_run(now, pause)
        });
    }

    /// At most `room` notices that are due, the most severe first. Each must be [settled](Self::settle).
    pub(crate) fn take(
        &mut self,
        settings: &AlertSettings,
        now: Moment,
        room: usize,
    ) -> Vec<Notice> {
        let pause = self.pause;
        let mut due: Vec<(&Key, &mut Entry, bool)> = Vec::new();
        for (key, entry) in &mut self.entries {
            let after = settings.after.unwrap_or(Duration::from_secs(key.kind.seconds));
            let is_firing = entry.holds.is_some_and(|since| now.since(since) >= after);
            let is_news = if entry.is_said { entry.holds.is_none() } else { is_firing };
            let is_wanted = key.kind.severity >= settings.severity || entry.is_said;
            if is_news && is_wanted && entry.may_run(now, pause) {
                due.push((key, entry, is_firing));
            }
        }
        due.sort_by_key(|(key, ..)| std::cmp::Reverse(key.kind.severity));
        let due = due.into_iter().take(room);
        due.map(|(key, entry, is_firing)| {
            (entry.is_running, entry.last) = (true, Some(now));
            let message = if is_firing { String::new() } else { "over: ".to_owned() };
            let (message, since) = (message + &entry.message, entry.since);
            Notice { key: key.clone(), is_firing, message, since }
        })
        .collect()
    }

    /// The command for `notice` has ended.
    pub(crate) fn settle(&mut self, notice: &Notice, worked: bool) {
        if let Some(entry) = self.entries.get_mut(&notice.key) {
            entry.is_running = false;
            if worked {
                entry.is_said = notice.is_firing;
            }
        }
    }
}

impl Entry {
    fn may_run(&self, now: Moment, pause: Duration) -> bool {
        !self.is_running && self.last.is_none_or(|last| now.since(last) >= pause)
    }
}
