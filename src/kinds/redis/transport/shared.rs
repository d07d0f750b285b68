//! What the links of a backend share: by which names their connections go, and whether writes were lost.
//!
//! **A loss** is the end of a connection that left writes unanswered. Those may still be in the network and land
//! later, so from then on no write goes out before a fence has been raised that knows of the loss ([`super::fence`]). A
//! backend has several connections for writes (JSON calls in RESP3 and RESP2, the doors, pinned ones), so losses are
//! counted here: a connection whose fence was raised at `covers` losses may write only while that is the count. One
//! that finds itself behind takes nothing more, and is replaced by one that raises the fence again.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use fusebox_state::Words;
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{scripts::Scripts, server_info::ServerInfo};
use crate::kinds::redis::{protocol::commands::Commands, settings::RedisSettings};

/// The names of the connections that live, from before they are opened until they are closed. They are
/// the process's, not a backend's: two backends may be on one server, and must spare each other.
static LIVING: LazyLock<Mutex<HashSet<String>>> = LazyLock::new(Mutex::default);
/// Numbers the process's connections, so that no name is given twice.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// What the links of a backend share.
pub(crate) struct Shared {
    pub(crate) settings: RedisSettings,
    pub(crate) commands: Commands,
    pub(crate) scripts: Arc<Scripts>,
    /// Whether the server speaks RESP3 with us; it is taken to until it has said otherwise.
    pub(crate) resp3: AtomicBool,
    /// Whether a token was ever sent.
    pub(crate) tokens_used: AtomicBool,
    pub(crate) server: Mutex<Option<ServerInfo>>,
    /// What an operator should know, by what it is about.
    pub(crate) warnings: Mutex<BTreeMap<&'static str, Words>>,
    /// When writes were last left unanswered; the start counts as such a time.
    pub(crate) abandoned: Mutex<Instant>,
    /// How many connections ended with writes unanswered.
    losses: AtomicU64,
    /// So many of those are behind a fence: what they left can no longer land.
    fenced: AtomicU64,
    /// A fence was raised since the start. What ran before may have left writes, too.
    fence_stood: AtomicBool,
    /// Cancelled when the connector closes: what is not a link of its own closes its connections then.
    pub(crate) closing: CancellationToken,
    /// Those connections; the connector is closed once none is left.
    pub(crate) others: TaskTracker,
    /// The server run whose commands were learnt.
    pub(crate) learnt_of: Mutex<Option<String>>,
}

impl Shared {
    pub(crate) fn new(settings: RedisSettings) -> Self {
        Self {
            scripts: Scripts::at(&settings.endpoint.to_string(), settings.username.as_deref()),
            settings,
            commands: Commands::default(),
            resp3: AtomicBool::new(true),
            tokens_used: AtomicBool::new(false),
            server: Mutex::default(),
            warnings: Mutex::default(),
            abandoned: Mutex::new(Instant::now()),
            losses: AtomicU64::new(0),
            fence_stood: AtomicBool::new(false),
            fenced: AtomicU64::new(0),
            closing: CancellationToken::new(),
            others: TaskTracker::new(),
            learnt_of: Mutex::default(),
        }
    }

    /// A connection has met the server.
    pub(crate) fn met(&self, info: ServerInfo) {
        let warning = info.replica.then(|| "the server is a replica: it refuses writes".into());
        self.warn("replica", warning);
        *self.server.lock() = Some(info);
    }

    /// A connection ended with writes unanswered. To be called before anybody hears of it, and after its name was
    /// given back.
    pub(crate) fn lost(&self) {
        *self.abandoned.lock() = Instant::now();
        self.losses.fetch_add(1, Ordering::AcqRel);
    }

    /// How many connections ended so. To be read before a fence is raised, which then covers so many.
    pub(crate) fn losses(&self) -> u64 {
        self.losses.load(Ordering::Acquire)
    }

    /// A fence that covers so many losses is up.
    pub(crate) fn fence_stands(&self, covers: u64) {
        self.fenced.fetch_max(covers, Ordering::AcqRel);
        self.fence_stood.store(true, Ordering::Release);
    }

    /// Whether a fence is up before every write that may have been left unanswered, also by who ran before: only then
    /// may a connection write that raises none itself.
    pub(crate) fn is_fenced(&self) -> bool {
        self.fence_stood.load(Ordering::Acquire) && !self.may_land()
    }

    /// Whether a write that was left unanswered may still land: until a fence covers every loss.
    pub(crate) fn may_land(&self) -> bool {
        self.fenced.load(Ordering::Acquire) < self.losses()
    }

    /// How the names of this installation's connections begin.
    pub(crate) fn name_prefix(&self) -> String {
        prefix_of(&self.settings.instance)
    }

    /// The names that this installation had before, until what has them was killed once.
    pub(crate) fn former(&self) -> Vec<String> {
        self.settings.former.at(&self.settings.name, &self.settings.instance)
    }

    /// What had these former names is gone: from here on they may be another daemon's.
    pub(crate) fn former_are_gone(&self, names: &[String]) {
        self.settings.former.gone(&self.settings.name, names);
    }

    /// Whether `run` is this one, as it is part of names.
    pub(crate) fn is_own_run(&self, run: &str) -> bool {
        run == word(&self.settings.run)
    }

    fn run_prefix(&self) -> String {
        format!("{}{}:", self.name_prefix(), word(&self.settings.run))
    }

    /// Whether `name` is a connection of this run that lives.
    pub(crate) fn lives(&self, name: &str) -> bool {
        name.starts_with(&self.run_prefix()) && LIVING.lock().contains(name)
    }

    /// A new connection's name.
    pub(crate) fn new_name(self: &Arc<Self>) -> Living {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}{number}", self.run_prefix());
        LIVING.lock().insert(name.clone());
        Living { name, shared: Arc::clone(self) }
    }

    /// Warns, or takes back the warning, of what `about` is about.
    pub(crate) fn warn(&self, about: &'static str, warning: Option<Words>) {
        let mut warnings = self.warnings.lock();
        match warning {
            Some(text) => {
                if warnings.get(about) != Some(&text) {
                    tracing::warn!(backend = self.settings.name, "{text}");
                }
                warnings.insert(about, text);
            }
            None => {
                warnings.remove(about);
            }
        }
    }
}

/// How the names of the connections of `instance` begin.
pub(super) fn prefix_of(instance: &str) -> String {
    format!("fusebox:{}:", word(instance))
}

/// A part of a connection's name: no space, line end or colon.
fn word(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_graphic() && c != ':' { c } else { '_' }).collect()
}

/// A connection's name for as long as the connection lives.
pub(crate) struct Living {
    pub(crate) name: String,
    pub(crate) shared: Arc<Shared>,
}

impl Drop for Living {
    fn drop(&mut self) {
        LIVING.lock().remove(&self.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::{former::Former, redis::testing::settings};

    #[test]
    fn a_name_lives_as_long_as_its_connection_and_belongs_to_one_instance() {
        let shared = Arc::new(Shared::new(settings(1, "host a:b", "run")));
        assert_eq!(shared.name_prefix(), "fusebox:host_a_b:");
        let (one, two) = (shared.new_name(), shared.new_name());
        assert!(one.name.starts_with("fusebox:host_a_b:run:") && one.name != two.name);
        let (neighbour, successor) = (
            Shared::new(settings(1, "host a:b", "run")),
            Shared::new(settings(1, "host a:b", "r")),
        );
        assert!(shared.lives(&one.name) && neighbour.lives(&one.name));
        assert!(!successor.lives(&one.name), "another run knows nothing of it");
        let name = one.name.clone();
        drop(one);
        assert!(!shared.lives(&name) && shared.lives(&two.name));
    }

    #[test]
    fn a_former_name_that_one_connector_has_killed_is_none_of_the_next_ones() {
        let former = Arc::<Former>::default();
        former.add("old");
        let connector = |name: &str| {
            let (former, name) = (Arc::clone(&former), name.to_owned());
            Shared::new(RedisSettings { former, name, ..settings(1, "new", "run") })
        };
        let (first, other) = (connector("redis"), connector("other"));
        assert_eq!(first.former(), ["old"]);
        first.former_are_gone(&first.former());
        // As a reload makes it.
        assert!(first.former().is_empty() && connector("redis").former().is_empty());
        assert_eq!(other.former(), ["old"]);
    }
}
