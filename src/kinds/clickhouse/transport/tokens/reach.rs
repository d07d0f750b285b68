//! Which tables an insert reaches, how many blocks each remembers, and how many it has got so far.
//!
//! ```text
//!  table ─▶ its materialized views (dependencies_table) ─▶ the table of each (TO, or its inner one) ─▶ its views …
//! ```
//! Every table on the way that keeps rows must remember blocks: a plain `MergeTree` by
//! `non_replicated_deduplication_window`, a replicated one by `replicated_deduplication_window` and for so many
//! seconds. A `Null` table keeps nothing and passes tokens on. Anything else (`Distributed`, `Buffer`, `Log`, what
//! the user cannot see) recognises no repetition.
//!
//! **Numbers only grow.** A plain table numbers its blocks through all partitions, and remembers the last ones of
//! all; the highest number of any part, also of one that is merged or about to go, tells how many there were. Of a
//! replicated table it is the length of its log in Keeper, which has an entry for each new part (and for each
//! merge): every replica tells the same, also one that lags. Numbers that are given without a block (a repetition, a
//! mutation) make the count too high, which is the safe side. If partitions were dropped it could be too low; so a
//! part that covers the noted number must still be there. What remains undetected: a partition that came after the
//! noting, took more blocks than the window, and was dropped before the next insert.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use fusebox_state::{ErrorClass, digest};
use tokio::time::Instant;

use crate::kinds::clickhouse::{
    protocol::{
        lexer::{Lexer, Token},
        target::Target,
    },
    transport::http::{Failed, Http},
};

/// Tables that one insert may reach.
const TABLES_MAX: usize = 20;
/// Steps from a table to the last one that its views feed.
const STEPS_MAX: usize = 20;
const OWN: &str = "non_replicated_deduplication_window";
const REPLICATED: &str = "replicated_deduplication_window";
const REPLICATED_FOR: &str = "replicated_deduplication_window_seconds";

/// A table that keeps rows of an insert.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reached {
    /// Its UUID, or what replaces it; another table of the same name has another.
    pub(crate) identity: u128,
    /// Blocks that it remembers.
    pub(crate) window: u64,
    /// For how many seconds; 0 for ever.
    pub(crate) seconds: u64,
    /// Blocks that it has got so far, at most.
    pub(crate) number: u64,
    /// Whether a part with the number that was noted is there. Not noted itself.
    pub(crate) covers: bool,
    /// Whether it is the table that the insert names. Not noted itself.
    pub(crate) direct: bool,
}

/// What an insert reaches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// These tables, each of which recognises a repetition.
    Tables(Vec<Reached>),
    /// A repetition would not be recognised: why.
    Lacks(String),
    /// There is no such table.
    NoTable,
}

/// A row of `system.tables`.
#[derive(serde::Deserialize)]
struct Row(String, String, String, String, String, String, String, Vec<String>, Vec<String>);

struct Node {
    name: Target,
    identity: u128,
    replicated: bool,
    direct: bool,
    window: u64,
    seconds: u64,
}

/// Asks what an insert into `target` reaches. `noted` are numbers by identity whose parts should still be there.
///
/// # Errors
/// The server did not answer. A question that it refuses is an answer: then nothing is known.
pub(super) async fn ask(
    http: &Http,
    target: &Target,
    noted: &BTreeMap<u128, u64>,
    time: Duration,
) -> Result<Reach, Failed> {
    match asked(http, target, noted, Instant::now() + time).await {
        Err(failed)
            if matches!(failed.error.class, ErrorClass::BlockedObject | ErrorClass::Rejected) =>
        {
            Ok(Reach::Lacks(format!(
                "the server does not say which inserts {}.{} remembers ({})",
                target.0,
                target.1,
                failed.error.known_code()
            )))
        }
        ended => ended,
    }
}

async fn asked(
    http: &Http,
    target: &Target,
    noted: &BTreeMap<u128, u64>,
    until: Instant,
) -> Result<Reach, Failed> {
    let left = || until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    let mut walk = Walk::default();
    walk.next.insert(target.clone());
    for _ in 0..STEPS_MAX {
        if walk.next.is_empty() {
            break;
        }
        let level = std::mem::take(&mut walk.next);
        if walk.seen.len() + level.len() > TABLES_MAX {
            return Ok(Walk::lacks(
                target,
                format!("it feeds more than {TABLES_MAX} tables and views"),
            ));
        }
        let rows = http.ask(tables_question(&level), left()).await?;
        if let Some(reach) = walk.take(target, level, &rows) {
            return Ok(reach);
        }
    }
    if !walk.next.is_empty() {
        return Ok(Walk::lacks(
            target,
            format!("its views feed each other in {STEPS_MAX} steps and more"),
        ));
    }
    let defaults = http.ask(defaults_question(), left()).await?;
    let nodes = match walk.nodes(target, &defaults) {
        Ok(nodes) => nodes,
        Err(lacks) => return Ok(Reach::Lacks(lacks)),
    };
    let plain: Vec<&Node> = nodes.iter().filter(|node| !node.replicated).collect();
    let mut numbers = HashMap::new();
    if !plain.is_empty() {
        numbers = parts_of(&http.ask(parts_question(&plain, noted), left()).await?);
    }
    let copies: Vec<&Node> = nodes.iter().filter(|node| node.replicated).collect();
    let mut logs = HashMap::new();
    if !copies.is_empty() {
        logs = logs_of(&http.ask(replicas_question(&copies), left()).await?);
    }
    Ok(reached(&nodes, &numbers, &logs))
}

fn reached(
    nodes: &[Node],
    numbers: &HashMap<Target, (u64, bool)>,
    logs: &HashMap<Target, (u128, u64)>,
) -> Reach {
    let mut tables = Vec::new();
    for node in nodes {
        let Node { identity, window, seconds, direct, .. } = *node;
        if node.replicated {
            let Some((path, number)) = logs.get(&node.name) else {
                return Reach::Lacks(format!(
                    "the replica of {}.{} does not know Keeper's log",
                    node.name.0, node.name.1
                ));
            };
            tables.push(Reached {
                identity: *path,
                window,
                seconds,
                number: *number,
                covers: true,
                direct,
            });
        } else {
            let (number, covers) = numbers.get(&node.name).copied().unwrap_or((0, false));
            tables.push(Reached { identity, window, seconds, number, covers, direct });
        }
    }
    tables.sort_by_key(|table| table.identity);
    Reach::Tables(tables)
}

/// The way from table to table.
#[derive(Default)]
struct Walk {
    next: BTreeSet<Target>,
    seen: BTreeSet<Target>,
    /// Name, identity, engine and definition of the tables that keep rows.
    found: Vec<(Target, u128, String, String)>,
}

impl Walk {
    /// Reads the rows of one level; the end if there is one already.
    fn take(&mut self, target: &Target, level: BTreeSet<Target>, rows: &str) -> Option<Reach> {
        let mut missing = level;
        for line in rows.lines() {
            let Ok(Row(database, name, uuid, engine, full, changed, create, databases, tables)) =
                serde_json::from_str(line)
            else {
                return Some(Self::lacks(
                    target,
                    "fusebox does not understand how the server describes it",
                ));
            };
            let this = (database, name);
            missing.remove(&this);
            self.seen.insert(this.clone());
            self.next
                .extend(databases.into_iter().zip(tables).filter(|view| !self.seen.contains(view)));
            if engine == "MaterializedView" {
                let Some(inner) = fed_by(&this, &uuid, &create) else {
                    return Some(Self::lacks(
                        target,
                        format!("what {}.{} feeds is not known", this.0, this.1),
                    ));
                };
                if !self.seen.contains(&inner) {
                    self.next.insert(inner);
                }
            } else if engine.ends_with("MergeTree") && !engine.starts_with("Shared") {
                let identity = identity(&this, &uuid, &changed);
                self.found.push((this, identity, engine, full));
            } else if engine != "Null" {
                return Some(Reach::Lacks(format!(
                    "{}.{} has the engine {engine}, which does not recognise repetitions",
                    this.0, this.1
                )));
            }
        }
        if missing.contains(target) {
            return Some(Reach::NoTable);
        }
        let unseen = missing.into_iter().next()?;
        Some(Self::lacks(
            target,
            format!("it feeds {}.{}, which fusebox cannot see", unseen.0, unseen.1),
        ))
    }

    fn lacks((database, table): &Target, why: impl std::fmt::Display) -> Reach {
        Reach::Lacks(format!(
            "whether {database}.{table} recognises repetitions is not known: {why}"
        ))
    }

    /// What the tables remember, or which one remembers nothing.
    fn nodes(&self, target: &Target, defaults: &str) -> Result<Vec<Node>, String> {
        let defaults: HashMap<(&str, &str), u64> = defaults
            .lines()
            .filter_map(|line| {
                let mut fields = line.split('\t');
                let of = (fields.next()?, fields.next()?);
                Some((of, fields.next()?.parse().ok()?))
            })
            .collect();
        let mut nodes = Vec::new();
        for (name, identity, engine, full) in &self.found {
            let replicated = engine.starts_with("Replicated");
            let kind = if replicated { "replicated" } else { "plain" };
            let value = |setting: &'static str| {
                setting_of(full, setting).or_else(|| defaults.get(&(kind, setting)).copied())
            };
            let setting = if replicated { REPLICATED } else { OWN };
            let window = value(setting).unwrap_or(0);
            if window == 0 {
                return Err(format!(
                    "{}.{} remembers no blocks: set {setting} to more blocks than may be inserted in the meantime",
                    name.0, name.1
                ));
            }
            let seconds = if replicated { value(REPLICATED_FOR).unwrap_or(1).max(1) } else { 0 };
            nodes.push(Node {
                name: name.clone(),
                identity: *identity,
                replicated,
                direct: name == target,
                window,
                seconds,
            });
        }
        Ok(nodes)
    }
}

/// What identifies a table: its UUID, or its name and the time of its last change if it has none.
fn identity((database, name): &Target, uuid: &str, changed: &str) -> u128 {
    let named = || u128::from(digest(format!("{database}\0{name}\0{changed}").as_bytes()));
    uuid_of(uuid).unwrap_or_else(named)
}

fn uuid_of(text: &str) -> Option<u128> {
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    u128::from_str_radix(&digits, 16).ok().filter(|uuid| *uuid > 0)
}

/// The table into which a materialized view puts its rows.
fn fed_by((database, name): &Target, uuid: &str, create: &str) -> Option<Target> {
    let mut lexer = Lexer::new(create);
    let mut tokens = Vec::new();
    while let Some(token) = lexer.next().ok()? {
        if token.is("AS") || token.is("ENGINE") || token == Token::Mark('(') {
            break;
        }
        tokens.push(token);
    }
    if tokens.is_empty() || tokens.iter().any(|token| token.is("REFRESH")) {
        return None;
    }
    let to = tokens.iter().position(|token| token.is("TO"));
    match to.and_then(|at| tokens.get(at + 1..)) {
        Some([database, Token::Mark('.'), name, ..]) => Some((database.name()?, name.name()?)),
        Some([name]) => Some((database.clone(), name.name()?)),
        Some(_) => None,
        None if uuid_of(uuid).is_some() => Some((database.clone(), format!(".inner_id.{uuid}"))),
        None => Some((database.clone(), format!(".inner.{name}"))),
    }
}

fn tables_question(level: &BTreeSet<Target>) -> String {
    format!(
        "SELECT database, name, toString(uuid), engine, engine_full, \
         toString(toUnixTimestamp(metadata_modification_time)), create_table_query, dependencies_database, \
         dependencies_table FROM system.tables WHERE (database, name) IN ({}) FORMAT JSONCompactEachRow",
        names(level.iter())
    )
}

fn defaults_question() -> String {
    format!(
        "SELECT 'plain', name, toString(value) FROM system.merge_tree_settings WHERE name = '{OWN}' \
         UNION ALL SELECT 'replicated', name, toString(value) FROM system.replicated_merge_tree_settings \
         WHERE name IN ('{REPLICATED}', '{REPLICATED_FOR}') FORMAT TabSeparated"
    )
}

fn parts_question(nodes: &[&Node], noted: &BTreeMap<u128, u64>) -> String {
    let mut number = String::from("multiIf(");
    for node in nodes {
        let (database, table) = &node.name;
        let noted = noted.get(&node.identity).copied().unwrap_or(0);
        let (database, table) = (quoted(database), quoted(table));
        number.extend([
            "database = ",
            &database,
            " AND table = ",
            &table,
            ", toInt64(",
            &noted.to_string(),
            "), ",
        ]);
    }
    number.push_str("toInt64(0))");
    format!(
        "SELECT database, table, toString(max(max_block_number)), \
         max(min_block_number <= {number} AND max_block_number >= {number}) FROM system.parts \
         WHERE (database, table) IN ({}) GROUP BY database, table FORMAT JSONCompactEachRow",
        names(nodes.iter().map(|node| &node.name))
    )
}

fn parts_of(rows: &str) -> HashMap<Target, (u64, bool)> {
    let read = |line| {
        let (database, table, number, covers): (String, String, String, u8) =
            serde_json::from_str(line).ok()?;
        Some(((database, table), (number.parse().ok()?, covers == 1)))
    };
    rows.lines().filter_map(read).collect()
}

fn replicas_question(nodes: &[&Node]) -> String {
    format!(
        "SELECT database, table, zookeeper_path, toString(log_max_index), is_readonly OR is_session_expired \
         FROM system.replicas WHERE (database, table) IN ({}) FORMAT JSONCompactEachRow",
        names(nodes.iter().map(|node| &node.name))
    )
}

/// Identity and length of the log of each table whose replica is connected. All replicas have one path.
fn logs_of(rows: &str) -> HashMap<Target, (u128, u64)> {
    let read = |line| {
        let (database, table, path, log, lost): (String, String, String, String, u8) =
            serde_json::from_str(line).ok()?;
        let identity = u128::from(digest(path.as_bytes()));
        (lost == 0).then_some(((database, table), (identity, log.parse().ok()?)))
    };
    rows.lines().filter_map(read).collect()
}

fn names<'a>(targets: impl Iterator<Item = &'a Target>) -> String {
    let pairs: Vec<String> = targets
        .map(|(database, table)| format!("({}, {})", quoted(database), quoted(table)))
        .collect();
    pairs.join(", ")
}

pub(super) fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
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

    const DEFAULTS: &str = "plain\tnon_replicated_deduplication_window\t0\n\
                            replicated\treplicated_deduplication_window\t100\n\
                            replicated\treplicated_deduplication_window_seconds\t3600\n";

    fn target() -> Target {
        ("d".to_owned(), "t".to_owned())
    }

    fn row(name: &str, engine: &str, full: &str, create: &str, views: &[&str]) -> String {
        let databases: Vec<&str> = views.iter().map(|_| "d").collect();
        serde_json::json!([
            "d",
            name,
            "00000000-0000-0000-0000-00000000000a",
            engine,
            full,
            "7",
            create,
            databases,
            views
        ])
        .to_string()
    }

    fn taken(rows: &str) -> (Walk, Option<Reach>) {
        let mut walk = Walk::default();
        let reach = walk.take(&target(), [target()].into(), rows);
        (walk, reach)
    }

    fn window(engine: &str, full: &str) -> Result<(u64, u64), String> {
        let (walk, reach) = taken(&row("t", engine, full, "", &[]));
        assert_eq!(reach, None);
        walk.nodes(&("d".to_owned(), "t".to_owned()), DEFAULTS)
            .map(|nodes| (nodes[0].window, nodes[0].seconds))
    }

    #[test]
    fn a_tables_window_is_its_own_or_the_servers() {
        assert!(window("MergeTree", "MergeTree ORDER BY a").unwrap_err().contains(OWN));
        let own = "MergeTree ORDER BY a SETTINGS non_replicated_deduplication_window = 7, index_granularity = 8192";
        assert_eq!(window("MergeTree", own), Ok((7, 0)));
        let copies = "ReplicatedMergeTree('/x', 'r') ORDER BY a";
        assert_eq!(window("ReplicatedMergeTree", copies), Ok((100, 3_600)));
        let copies = format!("{copies} SETTINGS replicated_deduplication_window_seconds = 60");
        assert_eq!(window("ReplicatedMergeTree", &copies), Ok((100, 60)));
    }

    #[test]
    fn the_way_goes_through_views_to_the_tables_that_they_feed() {
        let (walk, reach) = taken(&row("t", "MergeTree", "", "", &["v", "w"]));
        assert_eq!(reach, None);
        let next: Vec<&str> = walk.next.iter().map(|(_, name)| name.as_str()).collect();
        assert_eq!(next, ["v", "w"]);
        for (create, fed) in [
            ("CREATE MATERIALIZED VIEW d.t TO e.`x y` (`a` Int8) AS SELECT 1", ("e", "x y")),
            ("CREATE MATERIALIZED VIEW d.t TO x AS SELECT 1", ("d", "x")),
            (
                "CREATE MATERIALIZED VIEW d.t (`a` Int8) ENGINE = MergeTree AS SELECT a AS TO",
                ("d", ".inner_id.00000000-0000-0000-0000-00000000000a"),
            ),
        ] {
            let (walk, reach) = taken(&row("t", "MaterializedView", "", create, &[]));
            assert_eq!(reach, None, "{create}");
            let fed = (fed.0.to_owned(), fed.1.to_owned());
            assert_eq!(walk.next.iter().collect::<Vec<_>>(), [&fed]);
        }
    }

    #[test]
    fn what_cannot_be_told_recognises_nothing() {
        for engine in ["Distributed", "Buffer", "Log", "Kafka", "SharedMergeTree", "LiveView"] {
            let (_, reach) = taken(&row("t", engine, "", "", &[]));
            assert!(matches!(reach, Some(Reach::Lacks(why)) if why.contains(engine)), "{engine}");
        }
        let refreshed = "CREATE MATERIALIZED VIEW d.t REFRESH EVERY 1 HOUR TO d.x AS SELECT 1";
        for (engine, create) in [("MaterializedView", refreshed), ("MaterializedView", "")] {
            let (_, reach) = taken(&row("t", engine, "", create, &[]));
            assert!(matches!(reach, Some(Reach::Lacks(_))), "{create}");
        }
        assert_eq!(taken("").1, Some(Reach::NoTable));
        let mut walk = Walk::default();
        let unseen = ("d".to_owned(), "hidden".to_owned());
        let rows = row("t", "MergeTree", "", "", &[]);
        let reach = walk.take(&target(), [target(), unseen].into(), &rows);
        assert!(matches!(reach, Some(Reach::Lacks(why)) if why.contains("d.hidden")));
    }

    #[test]
    fn a_table_without_a_uuid_is_known_by_its_name_and_time() {
        let identity = |uuid: &str, changed: &str| identity(&target(), uuid, changed);
        assert_eq!(identity("00000000-0000-0000-0000-00000000000a", "7"), 10);
        let none = "00000000-0000-0000-0000-000000000000";
        assert_eq!(identity(none, "7"), identity(none, "7"));
        assert_ne!(identity(none, "7"), identity(none, "8"));
    }

    #[test]
    fn a_replica_without_a_session_tells_nothing() {
        let line = |lost: u8| format!("[\"d\",\"t\",\"/x\",\"12\",{lost}]\n");
        assert_eq!(logs_of(&line(0))[&target()].1, 12);
        assert!(logs_of(&line(1)).is_empty());
    }

    #[test]
    fn a_name_cannot_leave_its_quotes() {
        assert_eq!(quoted(r"a'b\"), r"'a\'b\\'");
    }
}
