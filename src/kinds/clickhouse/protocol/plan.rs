//! What a call is: its lanes, its cache entry, how it may be answered while the backend is down.
//!
//! | statement | lanes | in an outage |
//! | --- | --- | --- |
//! | a read | none | cached, unless an answer from a cache would be wrong rather than old |
//! | an INSERT of data into a table | none: they commute; the table's if `ordered` | queued; has a token |
//! | INSERT … SELECT, or with deduplication settings of its own | the same | refused |
//! | an INSERT into a function, or into a table that is not known | none; all if `ordered` | refused |
//! | CREATE, ATTACH, GRANT, SYSTEM … | none | refused |
//! | ALTER, DROP, CREATE OR REPLACE or AS SELECT, and what is not known | all: no queued insert may be left | refused |
//!
//! A query is cacheable even if it asks for the time: the cache answers in an outage only, and says how
//! old its answer is. It is not if it asks for the server's own state (`system.…`), or for random
//! numbers and ids, which nobody else may get.

use bytes::Bytes;
use fusebox_actors::connector::{Access, Outage, Plan, Read, Refused, Slot, Write};
use fusebox_state::{LaneId, Lanes};

use super::{
    gather, lexer,
    sql::{self, Insert, Rows, Statement, Verb},
    stated,
    target::{self, Target},
    wire::{Call, Header, WireError},
};
use crate::kinds::clickhouse::settings::ClickHouseSettings;

/// Parameters of the HTTP interface that are not settings, and those that this connector needs itself.
const RESERVED: &[&str] = &[
    "query",
    "query_id",
    "user",
    "password",
    "quota_key",
    "database",
    "default_format",
    "session_id",
    "session_timeout",
    "session_check",
    "close_session",
    "compress",
    "decompress",
    "buffer_size",
    "enable_http_compression",
    "wait_end_of_query",
    "stacktrace",
    "role",
];
/// What the name of a parameter begins with beside settings.
const PARAMETER: &str = "param_";
/// The version of the keys of cache entries, with which they begin: entries on disk outlive a release. Those of version 1
/// begin with a length and a colon.
const KEYS: u8 = 2;
/// Settings that say how a query runs, not what it answers. `max_execution_time` is none of them: with
/// `timeout_overflow_mode = 'break'`, which may be in a profile, it cuts an answer short.
pub(super) const WITHOUT_EFFECT: &[&str] = &[
    "max_memory_usage",
    "priority",
    "log_queries",
    "log_comment",
    "timeout_before_checking_execution_speed",
    "send_progress_in_http_headers",
    "use_query_cache",
    "http_headers_progress_interval_ms",
    "workload",
    "load_balancing",
];

/// Reads what `body` is.
pub(crate) fn plan(body: Bytes, settings: &ClickHouseSettings) -> Result<Plan, Refused> {
    let call = Call::of(&body).map_err(not_ours)?;
    check(&call.header)?;
    if !stated::is_sound(&call) {
        return Err(malformed("its statement is not the one in its body".to_owned()));
    }
    if !call.data.is_empty() && !takes_data(&sql::read(&call.header.query)) {
        return Err(malformed(
            "data is only for an INSERT that contains no data itself".to_owned(),
        ));
    }
    let statement = stated::of_call(&call);
    let (label, lanes, admin, access) = match &statement.verb {
        Verb::Refused(why) => {
            let message = format!("{} is not supported: {why}", statement.word);
            return Err(Refused { code: "unsupported_statement", message, malformed: false });
        }
        Verb::Read => {
            (statement.word.clone(), none(), false, read(&call.header, &statement, settings))
        }
        Verb::Insert(insert) => insertion(&call, &statement, insert, settings),
        Verb::Other(other) => {
            let lanes = if other.barrier { Lanes::All } else { none() };
            let label = if statement.word.is_empty() { "statement" } else { &statement.word };
            (label.to_owned(), lanes, other.admin, never("it does not insert data"))
        }
    };
    Ok(Plan { body, label, lanes, admin, access })
}

/// Whether data may follow a statement.
fn takes_data(statement: &Statement) -> bool {
    matches!(&statement.verb, Verb::Insert(insert) if insert.rows != Rows::Selected)
}

/// The cache entry of a read; `None` if there is none.
pub(crate) fn slot(
    header: &Header,
    statement: &Statement,
    settings: &ClickHouseSettings,
) -> Option<Slot> {
    let database = header.database.as_deref().unwrap_or(&settings.database);
    // In these a bare name is one of the server's own tables.
    if statement.volatile || sql::is_server_state(database) {
        return None;
    }
    let mut key = format!("{KEYS}/");
    let part = |key: &mut String, text: &str| {
        // With its length, so that no two calls have one key.
        key.push_str(&text.len().to_string());
        key.push(':');
        key.push_str(text);
    };
    part(&mut key, database);
    part(&mut key, settings.username.as_deref().unwrap_or_default());
    part(&mut key, statement.format.as_deref().or(header.format.as_deref()).unwrap_or_default());
    part(&mut key, &sql::folded(&header.query));
    if header.params.values().any(|value| statement.names_state_by(value)) {
        return None;
    }
    for (name, value) in &header.params {
        // No setting is called so.
        part(&mut key, &format!("{PARAMETER}{name}"));
        part(&mut key, value);
    }
    for (name, value) in &header.settings {
        if !WITHOUT_EFFECT.contains(&name.as_str()) {
            part(&mut key, name);
            part(&mut key, value);
        }
    }
    Some(Slot { lane: LaneId::of(b"clickhouse", key.as_bytes()), key: key.into() })
}

fn read(header: &Header, statement: &Statement, settings: &ClickHouseSettings) -> Access {
    let slots = slot(header, statement, settings).into_iter().collect();
    Access::Read(Read { keyed: false, slots, miss: None })
}

/// What an insert is: its table, its lanes, whether it needs an admin, and how it may be answered while the backend is
/// down.
pub(super) fn insertion(
    call: &Call,
    statement: &Statement,
    insert: &Insert,
    settings: &ClickHouseSettings,
) -> (String, Lanes, bool, Access) {
    let header = &call.header;
    let Some(table) = &insert.table else {
        let access = never("its table is not clear from the statement");
        return ("INSERT".to_owned(), of_any_table(settings), false, access);
    };
    let (database, name) = target::of(table, header, settings);
    let label = format!("{database}.{name}");
    let lanes = lanes(&(database, name), settings);
    let access = if insert.rows == Rows::Selected {
        never(SELECTED)
    } else if insert.rows == Rows::FollowUnnamed && header.format.is_none() {
        never("it names no format")
    } else if forbids_writes(header, statement) {
        Access::Write(Write::new(Outage::Never(
            "it sets readonly itself, so every server refuses it",
        )))
    } else if deduplicates_itself(header, statement) {
        let reason = "it sets async_insert, deduplication or a profile itself, so the server would not recognise a \
                      repetition";
        let caveat = is_unawaited(header, statement).then_some(UNAWAITED);
        Access::Write(Write { caveat, ..Write::new(Outage::Never(reason)) })
    } else {
        let gather = gather::number(call, statement, insert, settings);
        Access::Write(Write { free_token: true, gather, ..Write::new(Outage::EffectKnown) })
    };
    (label, lanes, false, access)
}

/// The lanes of an insert into a table.
pub(super) fn lanes((database, name): &Target, settings: &ClickHouseSettings) -> Lanes {
    if settings.ordered {
        Lanes::One(LaneId::of(b"clickhouse", format!("{database}\0{name}").as_bytes()))
    } else {
        none()
    }
}

/// The lanes of an insert into a table that may be any.
pub(super) fn of_any_table(settings: &ClickHouseSettings) -> Lanes {
    if settings.ordered { Lanes::All } else { none() }
}

/// Why what reads its rows at the server is not queued.
pub(super) const SELECTED: &str = "an INSERT … SELECT could find other data later";
/// Said of an insert that the server answers before it has written anything.
const UNAWAITED: &str = "wait_for_async_insert is 0: the server has the rows in its memory and may lose them before it \
                         writes them; applied promises no more than that";

/// Whether the server answers before it writes (`async_insert` without `wait_for_async_insert`).
fn is_unawaited(header: &Header, statement: &Statement) -> bool {
    // The statement's own settings override those of the request.
    let of = |wanted: &str| {
        let own = statement.settings.iter().rev().find(|(name, _)| name == wanted);
        own.map(|(_, value)| value).or_else(|| header.settings.get(wanted))
    };
    let is_on = |value: &String| !matches!(value.as_str(), "0" | "false");
    of("async_insert").is_some_and(is_on)
        && of("wait_for_async_insert").is_some_and(|value| !is_on(value))
}

/// Whether the call itself forbids what it does: a queued one would hold up everything behind it in its table.
fn forbids_writes(header: &Header, statement: &Statement) -> bool {
    let own = statement.settings.iter().map(|(name, value)| (name, value));
    header.settings.iter().chain(own).any(|(name, value)| name == "readonly" && value != "0")
}

/// Whether the call itself says how the server tells a repetition.
fn deduplicates_itself(header: &Header, statement: &Statement) -> bool {
    let own = |name: &str, value: &str| match name {
        // A profile may hold any of these, and settings behind the format are read there.
        "insert_deduplication_token" | "profile" | "allow_settings_after_format_in_insert" => true,
        "async_insert" => !matches!(value, "0" | "false"),
        "insert_deduplicate" => !matches!(value, "1" | "true"),
        "deduplicate_insert" => !value.contains("enable"),
        "deduplicate_blocks_in_dependent_materialized_views"
        | "distributed_foreground_insert"
        | "insert_distributed_sync" => !matches!(value, "1" | "true"),
        _ => false,
    };
    statement.has_unread_settings
        || header.settings.iter().any(|(name, value)| own(name, value))
        || statement.settings.iter().any(|(name, value)| own(name, value))
}

/// Whether a setting, a parameter or a format could be called so.
pub(super) fn is_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.'))
}

/// Checks what the statement does not say.
fn check(header: &Header) -> Result<(), Refused> {
    if header.query.chars().all(lexer::is_blank) {
        return Err(malformed("query must not be empty".to_owned()));
    }
    if let Some(name) = header.params.keys().find(|name| !is_name(name)) {
        return Err(malformed(format!(
            "a parameter's name must be letters, digits and _, got {name:?}"
        )));
    }
    for name in header.settings.keys() {
        if !is_name(name) || name.starts_with(PARAMETER) || RESERVED.contains(&name.as_str()) {
            return Err(malformed(format!("{name:?} is not a setting that a call may set")));
        }
    }
    if let Some(format) = header.format.as_ref().filter(|format| !is_name(format)) {
        return Err(malformed(format!("format must be a name such as JSON, got {format:?}")));
    }
    Ok(())
}

fn none() -> Lanes {
    Lanes::new([])
}

fn never(reason: &'static str) -> Access {
    Access::Write(Write::new(Outage::Never(reason)))
}

fn malformed(message: String) -> Refused {
    Refused { code: "malformed", message, malformed: true }
}

fn not_ours(error: WireError) -> Refused {
    malformed(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> ClickHouseSettings {
        ClickHouseSettings::new("http://ada@h/logs".parse().unwrap(), "i", "r")
    }

    fn header(query: &str) -> Header {
        Header { query: query.to_owned(), ..Header::default() }
    }

    fn planned(header: Header, settings: &ClickHouseSettings) -> Plan {
        plan(Call { header, data: Bytes::new() }.to_bytes(), settings).unwrap()
    }

    fn write(query: &str) -> (Plan, Write) {
        let plan = planned(header(query), &settings());
        let Access::Write(write) = plan.access.clone() else { panic!("{query} is a read") };
        (plan, write)
    }

    #[test]
    fn an_insert_that_is_answered_before_it_is_written_warns_of_it() {
        let caveat = |query: &str| write(query).1.caveat.is_some();
        let insert = |settings: &str| format!("INSERT INTO t SETTINGS {settings} VALUES (1)");
        for (settings, warns) in [
            ("async_insert=1, wait_for_async_insert=0", true),
            ("wait_for_async_insert=0, async_insert='true'", true),
            ("async_insert=1, wait_for_async_insert=1", false),
            ("async_insert=1", false),
            ("async_insert=0, wait_for_async_insert=0", false),
            ("wait_for_async_insert=0", false),
        ] {
            assert_eq!(caveat(&insert(settings)), warns, "{settings}");
        }
        let by_request = [("async_insert", "1"), ("wait_for_async_insert", "0")];
        let settings = by_request.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let header = Header { settings: settings.into(), ..header("INSERT INTO t VALUES (1)") };
        let Access::Write(write) = planned(header, &self::settings()).access else { panic!() };
        assert!(write.caveat.is_some());
    }

    fn key(header: Header) -> Option<Bytes> {
        let Access::Read(read) = planned(header, &settings()).access else { panic!("a write") };
        assert!(!read.keyed && read.miss.is_none());
        read.slots.first().map(|slot| slot.key.clone())
    }

    #[test]
    fn a_plain_insert_commutes_bears_a_token_and_may_queue() {
        let (plan, write) = write("INSERT INTO t VALUES (1)");
        assert_eq!((plan.label.as_str(), plan.lanes), ("logs.t", Lanes::new([])));
        assert!(write.free_token && !write.absolute && write.outage == Outage::EffectKnown);
        let (plan, marked) = self::write("\u{feff}INSERT\u{a0}INTO t VALUES (1)");
        assert_eq!((plan.label.as_str(), plan.lanes), ("logs.t", Lanes::new([])));
        assert!(
            marked.free_token && marked.gather == write.gather,
            "a mark and a space are blanks"
        );
        let ordered = ClickHouseSettings { ordered: true, ..settings() };
        let lanes = |query: &str| planned(header(query), &ordered).lanes;
        assert!(matches!(lanes("INSERT INTO t VALUES (1)"), Lanes::One(_)));
        assert_eq!(lanes("INSERT INTO t VALUES (1)"), lanes("INSERT INTO logs.t FORMAT CSV"));
        assert_ne!(lanes("INSERT INTO t VALUES (1)"), lanes("INSERT INTO other.t FORMAT CSV"));
    }

    #[test]
    fn in_an_ordered_backend_an_insert_that_never_queues_waits_for_those_of_its_table() {
        let ordered = ClickHouseSettings { ordered: true, ..settings() };
        let plan = |query: &str| planned(header(query), &ordered);
        let queued = plan("INSERT INTO t FORMAT CSV").lanes;
        for query in [
            "INSERT INTO t SELECT 1",
            "WITH 1 AS from INSERT INTO logs.t SELECT from",
            "INSERT INTO t SETTINGS async_insert = 1 VALUES (1)",
        ] {
            let Plan { lanes, access, .. } = plan(query);
            assert!(
                matches!(access, Access::Write(write) if matches!(write.outage, Outage::Never(_)))
            );
            assert_eq!(lanes, queued, "{query}");
        }
        for query in [
            "INSERT INTO FUNCTION remote('localhost', logs.t) VALUES (1)",
            "INSERT INTO {t:Identifier} SELECT 1",
        ] {
            assert!(plan(query).lanes.is_all(), "{query}: it may be that table");
        }
    }

    #[test]
    fn what_is_no_insert_of_data_never_queues() {
        for (query, lanes) in [
            ("INSERT INTO t SELECT 1", Lanes::new([])),
            ("INSERT INTO FUNCTION null('a UInt8') VALUES (1)", Lanes::new([])),
            ("INSERT INTO t SETTINGS async_insert = 1 VALUES (1)", Lanes::new([])),
            (
                "INSERT INTO t SETTINGS deduplicate_blocks_in_dependent_materialized_views = 0 VALUES (1)",
                Lanes::new([]),
            ),
            ("CREATE TABLE t (a UInt8) ENGINE = Null", Lanes::new([])),
            ("CREATE OR REPLACE TABLE t (a UInt8) ENGINE = Null", Lanes::All),
            ("CREATE TABLE t CLONE AS u", Lanes::All),
            ("ALTER TABLE t DELETE WHERE 1", Lanes::All),
            ("nonsense", Lanes::All),
            ("\u{feff}TRUNCATE TABLE t", Lanes::All),
        ] {
            let (plan, write) = write(query);
            assert_eq!(plan.lanes, lanes, "{query}");
            assert!(matches!(write.outage, Outage::Never(_)) && !write.free_token, "{query}");
        }
        assert!(write("GRANT SELECT ON t TO ada").0.admin);
    }

    #[test]
    fn the_cache_key_is_what_the_answer_depends_on() {
        let base = || header("SELECT a FROM t WHERE b = {b:UInt8}");
        let key_of = |change: fn(&mut Header)| {
            let mut header = base();
            change(&mut header);
            key(header).unwrap()
        };
        let plain = key_of(|_| ());
        assert_eq!(plain, key_of(|h| h.query = "SELECT a\n\nFROM t WHERE b={b:UInt8} ;".into()));
        assert_eq!(plain, key_of(|h| drop(h.settings.insert("priority".into(), "1".into()))));
        assert_eq!(plain, key_of(|h| h.database = Some("logs".into())));
        for change in [
            (|h: &mut Header| h.query = "SELECT b FROM t".into()) as fn(&mut Header),
            |h| drop(h.params.insert("b".into(), "1".into())),
            |h| drop(h.settings.insert("final".into(), "1".into())),
            |h| drop(h.settings.insert("max_threads".into(), "1".into())),
            |h| drop(h.settings.insert("b".into(), "1".into())),
            |h| h.database = Some("other".into()),
            |h| h.format = Some("JSON".into()),
        ] {
            assert_ne!(plain, key_of(change));
        }
        let of_parameter = key_of(|h| drop(h.params.insert("limit".into(), "1".into())));
        let of_setting = key_of(|h| drop(h.settings.insert("limit".into(), "1".into())));
        assert_ne!(of_parameter, of_setting, "one is not the other");
        assert!(plain.starts_with(b"2/"), "another release would find it");
        assert_eq!(key(header("SELECT * FROM system.parts")), None);
        let by_parameter = Header {
            params: [("d".to_owned(), "system".to_owned())].into(),
            ..header("SELECT * FROM {d:Identifier}.parts")
        };
        assert_eq!(key(by_parameter), None);
        for database in ["system", "INFORMATION_SCHEMA"] {
            let of_state =
                Header { database: Some(database.into()), ..header("SELECT count() FROM one") };
            assert_eq!(key(of_state), None);
        }
        assert!(key(header("SELECT now()")).is_some());
        assert_eq!(key(header("\u{feff}SELECT\u{a0}1")), key(header("SELECT 1")));
    }

    #[test]
    fn rows_that_begin_with_a_statement_are_one() {
        let plan = |query: &str, format: Option<&str>, data: &str| {
            let header = Header { format: format.map(str::to_owned), ..header(query) };
            let data = Bytes::copy_from_slice(data.as_bytes());
            plan(Call { header, data }.to_bytes(), &settings()).unwrap()
        };
        let csv = "INSERT INTO t FORMAT CSV";
        let blank = " ".repeat(70 << 10);
        let cut = format!("{blank}PARALLEL WITH DROP TABLE v");
        for (query, format, data, admin) in [
            (csv, None, "PARALLEL WITH KILL QUERY WHERE 1", true),
            (csv, None, "\n-- rows\nparallel /* */ with DROP TABLE v", false),
            (csv, None, "SETTINGS a = 1 PARALLEL WITH SYSTEM SHUTDOWN", true),
            (csv, None, cut.as_str(), false),
            ("INSERT INTO t FORMAT CSV PARALLEL", None, "WITH DROP TABLE v", false),
            ("INSERT INTO t VALUES", None, "PARALLEL WITH GRANT ALL ON *.* TO eve", true),
            ("INSERT INTO t", Some("CSV"), "PARALLEL WITH SYSTEM SHUTDOWN", true),
            ("INSERT INTO t", None, "SELECT 1", false),
            ("INSERT INTO t", None, ".u VALUES (1)", false),
            ("INSERT INTO t VALUES PARALLEL WITH SYSTEM SHUTDOWN", None, "", true),
        ] {
            let Plan { lanes, admin: needs, access, .. } = plan(query, format, data);
            let head = data.get(..40).unwrap_or(data);
            assert!(lanes.is_all(), "{query} {head}");
            assert_eq!(needs, admin, "{query} {head}");
            let Access::Write(write) = access else { panic!("{query} is a read") };
            assert!(
                matches!(write.outage, Outage::Never(_)) && !write.free_token,
                "{query} {head}"
            );
        }
        for (query, format, data) in [
            (csv, None, "parallel,with\n"),
            (csv, None, "PARALLEL"),
            (csv, None, "\u{1}"),
            ("INSERT INTO t", Some("CSV"), "1,2\n"),
            ("INSERT INTO t VALUES (1)", None, cut.as_str()),
        ] {
            let Plan { lanes, admin, access, .. } = plan(query, format, data);
            assert!(!lanes.is_all() && !admin, "{query}");
            let Access::Write(write) = access else { panic!("{query} is a read") };
            assert_eq!(write.outage, Outage::EffectKnown, "{query}");
        }
        let unnamed = plan("INSERT INTO t", None, "VALUES (1)");
        assert_eq!((unnamed.label.as_str(), unnamed.lanes), ("logs.t", Lanes::new([])));
        assert!(
            matches!(unnamed.access, Access::Write(write) if matches!(write.outage, Outage::Never(_)))
        );
    }

    #[test]
    fn what_a_call_must_not_bring_is_refused() {
        let refused = |header: Header, data: &'static str| {
            plan(Call { header, data: data.into() }.to_bytes(), &settings()).unwrap_err()
        };
        let with = |name: &str| Header {
            settings: [(name.to_owned(), "1".to_owned())].into(),
            ..header("SELECT 1")
        };
        for name in ["query_id", "param_x", "a b", "session_id"] {
            assert!(refused(with(name), "").malformed, "{name}");
        }
        assert!(refused(header(" "), "").malformed);
        assert!(refused(header("SELECT 1"), "x").malformed);
        assert!(refused(header("INSERT INTO t SELECT 1"), "x").malformed);
        assert!(!refused(header("SET a = 1"), "").malformed);
        let later = plan(Bytes::from_static(b"\x04\0\0\0\0"), &settings()).unwrap_err();
        assert!(later.message.contains("version 4"));
    }
}
