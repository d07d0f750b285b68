//! Whether a token protects a write: a property of the server and of the table.
//!
//! A server recognises a repetition by `insert_deduplication_token` where it knows that setting, the table
//! is of the `MergeTree` family, and the table's deduplication window is on and longer than what may come
//! between the first sending and the repetition: the calls that wait in the queue. It is looked up when it
//! decides something, and beside the first insert into a table, so that `status` warns in time; for
//! [`AGE_MAX`] it is then taken as known.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::{
    http::{Failed, Http},
    lexer::{Lexer, Token},
    server::Server,
};

/// How long what a table said is taken as known.
const AGE_MAX: Duration = Duration::from_secs(60);
/// Tables that are remembered and warned of.
const TABLES_MAX: usize = 1_000;
const WARNINGS_MAX: usize = 20;
const OWN: &str = "non_replicated_deduplication_window";
const REPLICATED: &str = "replicated_deduplication_window";

/// A database and a table of it.
pub(super) type Target = (String, String);

/// How a table tells repetitions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Window {
    /// It remembers so many blocks, as this setting of the table's says.
    Blocks(u64, &'static str),
    /// It is of an engine that remembers none.
    Never(String),
    /// The server knows no tokens.
    NoTokens,
    /// There is no such table.
    NoTable,
}

impl Window {
    /// Why a repetition would not be recognised behind `waiting` other calls; `None` where it would.
    pub(super) fn lacks(&self, (database, table): &Target, waiting: u64) -> Option<String> {
        match self {
            Self::Blocks(blocks, _) if *blocks > waiting => None,
            Self::Blocks(0, setting) => Some(format!(
                "{database}.{table} remembers no blocks: set {setting} to more than the calls that may wait"
            )),
            Self::Blocks(blocks, setting) => Some(format!(
                "{database}.{table} remembers {blocks} blocks and {waiting} calls wait: set {setting} higher"
            )),
            Self::Never(engine) => Some(format!(
                "{database}.{table} is of the engine {engine}, which does not recognise repetitions"
            )),
            Self::NoTokens => Some("this server knows no insert_deduplication_token".to_owned()),
            Self::NoTable => None,
        }
    }
}

/// What the tables have said.
#[derive(Default)]
pub(super) struct Tables {
    known: Mutex<HashMap<Target, (Instant, Window)>>,
    warnings: Mutex<BTreeMap<Target, String>>,
}

impl Tables {
    /// What the table said not long ago.
    pub(super) fn known(&self, target: &Target, server: &Server) -> Option<Window> {
        if !server.takes_tokens() {
            return Some(Window::NoTokens);
        }
        let known = self.known.lock();
        let (asked, window) = known.get(target)?;
        (asked.elapsed() < AGE_MAX).then(|| window.clone())
    }

    /// What the table says.
    ///
    /// # Errors
    /// The server did not answer.
    pub(super) async fn get(
        &self,
        target: &Target,
        server: &Server,
        http: &Http,
        time: Duration,
    ) -> Result<Window, Failed> {
        if let Some(window) = self.known(target, server) {
            return Ok(window);
        }
        let window = window_of(&http.ask(question(target), time).await?);
        let mut known = self.known.lock();
        if known.len() >= TABLES_MAX {
            known.clear();
        }
        known.insert(target.clone(), (Instant::now(), window.clone()));
        Ok(window)
    }

    /// Warns of a table, or takes the warning back.
    pub(super) fn warn(&self, backend: &str, target: &Target, lacks: Option<String>) {
        let mut warnings = self.warnings.lock();
        let Some(lacks) = lacks else {
            warnings.remove(target);
            return;
        };
        let text = format!("an insert of unknown outcome cannot be repeated: {lacks}");
        if warnings.get(target) != Some(&text) && warnings.len() < WARNINGS_MAX {
            tracing::warn!(backend, "{text}");
            warnings.insert(target.clone(), text);
        }
    }

    /// The warnings, each once.
    pub(super) fn warnings(&self) -> Vec<String> {
        let mut all: Vec<String> = self.warnings.lock().values().cloned().collect();
        all.sort();
        all.dedup();
        all
    }
}

/// Asks beside the call, so that what the table says is known when it matters.
pub(super) fn learn_soon(shared: &Arc<super::Shared>, target: Target, waiting: u64) {
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        let Some(server) = shared.servers.known() else { return };
        let time = shared.settings.timeout;
        if let Ok(window) = shared.tables.get(&target, &server, &shared.http, time).await {
            shared.tables.warn(&shared.settings.name, &target, window.lacks(&target, waiting));
        }
    });
}

fn question((database, table): &Target) -> String {
    format!(
        "SELECT engine, engine_full FROM system.tables WHERE database = {} AND name = {} \
         UNION ALL SELECT name, toString(value) FROM system.merge_tree_settings \
         WHERE name IN ('{OWN}', '{REPLICATED}') FORMAT TabSeparated",
        quoted(database),
        quoted(table)
    )
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// Reads the answer: two lines of settings and, where there is the table, one of its engine.
fn window_of(answer: &str) -> Window {
    let (mut table, mut defaults) = (None, HashMap::new());
    for line in answer.lines() {
        match line.split_once('\t') {
            Some((name @ (OWN | REPLICATED), value)) => {
                defaults.insert(name, value.parse::<u64>().unwrap_or(0));
            }
            Some((engine, full)) => table = Some((engine, full)),
            None => {}
        }
    }
    let Some((engine, full)) = table else { return Window::NoTable };
    if !engine.ends_with("MergeTree") {
        return Window::Never(engine.to_owned());
    }
    let copies = engine.starts_with("Replicated") || engine.starts_with("Shared");
    let setting = if copies { REPLICATED } else { OWN };
    let of_table = setting_of(full, setting);
    Window::Blocks(of_table.or(defaults.get(setting).copied()).unwrap_or(0), setting)
}

/// The number that a table's own definition gives to `setting`.
fn setting_of(definition: &str, setting: &str) -> Option<u64> {
    let mut lexer = Lexer::new(definition);
    while let Ok(Some(token)) = lexer.next() {
        if token.is(setting) && lexer.next() == Ok(Some(Token::Mark('='))) {
            return lexer.next().ok().flatten().and_then(Token::word)?.parse().ok();
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULTS: &str =
        "non_replicated_deduplication_window\t0\nreplicated_deduplication_window\t100\n";

    #[test]
    fn a_tables_window_is_its_own_or_the_servers() {
        let window = |table: &str| window_of(&format!("{DEFAULTS}{table}\n"));
        assert_eq!(window("MergeTree\tMergeTree ORDER BY a"), Window::Blocks(0, OWN));
        assert_eq!(
            window(
                "MergeTree\tMergeTree ORDER BY a SETTINGS non_replicated_deduplication_window = 7, index_granularity = 8192"
            ),
            Window::Blocks(7, OWN)
        );
        assert_eq!(
            window("ReplicatedMergeTree\tReplicatedMergeTree('/x', 'r') ORDER BY a"),
            Window::Blocks(100, REPLICATED)
        );
        assert_eq!(window("Buffer\tBuffer(a, b)"), Window::Never("Buffer".into()));
        assert_eq!(window_of(DEFAULTS), Window::NoTable);
    }

    #[test]
    fn a_window_must_be_longer_than_what_waits() {
        let target = ("d".to_owned(), "t".to_owned());
        let lacks = |window: Window, waiting| window.lacks(&target, waiting);
        assert_eq!(lacks(Window::Blocks(10, OWN), 9), None);
        assert!(lacks(Window::Blocks(10, OWN), 10).unwrap().contains("10 calls wait"));
        assert!(lacks(Window::Blocks(0, OWN), 0).unwrap().contains(OWN));
        assert!(lacks(Window::Never("Log".into()), 0).unwrap().contains("engine Log"));
        assert!(lacks(Window::NoTokens, 0).is_some());
    }

    #[test]
    fn a_name_cannot_leave_its_quotes() {
        assert_eq!(quoted(r"a'b\"), r"'a\'b\\'");
    }
}
