//! Statements, and what is made of them.

use super::*;

#[track_caller]
fn is_read(query: &str) {
    assert_eq!(read(query).verb, Verb::Read, "{query}");
}

#[track_caller]
fn other(query: &str) -> Other {
    match read(query).verb {
        Verb::Other(other) => other,
        verb => panic!("{query}: {verb:?}"),
    }
}

/// `database.name rows`
#[track_caller]
fn inserts(query: &str, expected: &str) {
    let Verb::Insert(Insert { table, rows, .. }) = read(query).verb else {
        panic!("{query}: {:?}", read(query).verb)
    };
    let name = table.map_or("-".to_owned(), |table| match table.database {
        Some(database) => format!("{database}.{}", table.name),
        None => table.name,
    });
    assert_eq!(format!("{name} {rows:?}"), expected, "{query}");
}

#[test]
fn reads_are_told_by_their_first_word() {
    for query in [
        "SELECT 1",
        "  -- why\n/* not / so */ select 1 ;;",
        "((SELECT 1) UNION ALL (SELECT 2))",
        "WITH 1 AS x SELECT x",
        "WITH x AS (SELECT 1), y AS (INSERTED) SELECT * FROM x",
        "WITH 1 AS x FROM t SELECT x",
        "WITH 1 AS insert SELECT insert FROM t",
        "WITH x AS (SELECT 1 AS insert), `INSERT` AS into SELECT 'INSERT INTO t'",
        "FROM t SELECT *",
        "EXPLAIN SYNTAX INSERT INTO t SELECT 1",
        "SHOW TABLES",
        "DESC TABLE t",
        "DESCRIBE t",
        "EXISTS TABLE t",
        "CHECK TABLE t",
        "SELECT 'INSERT INTO t; DROP TABLE t' -- ; DROP TABLE t",
        "SELECT $$ ; DROP TABLE t $$",
        "SELECT `;` FROM t",
        "#!/bin/x\nSELECT 1",
    ] {
        is_read(query);
    }
}

#[test]
fn what_cannot_be_told_is_a_write_over_every_lane() {
    for query in [
        "",
        "SELEC 1",
        "SELECT 'a",
        "SELECT 1; DROP TABLE t",
        "SELECT 1; SELECT 2",
        "WITH 1 AS x SELECT x; INSERT INTO t VALUES (1)",
        "WITH 1 AS x; INSERT INTO t SELECT 1",
        "/* /* */ SELECT 1",
        "/* /* */ SELECT 424242 UNION ALL -- */\nSELECT count() FROM hits",
        "SELECT 1 WHERE url = \u{2018}http://a\u{2019} AND u = 1",
        "SELECT 0xe--'\n, * FROM hits --'",
        "WITH 1 AS x",
        "(DROP TABLE t)",
        "'SELECT'",
        "\u{1680}SELECT 1",
        "{q:Identifier}",
    ] {
        assert_eq!(other(query), Other { barrier: true, admin: false, session: true }, "{query}");
    }
}

#[test]
fn an_inserts_table_and_rows_are_found() {
    inserts("INSERT INTO t VALUES (1)", "t Inline");
    inserts("insert into table `d b`.\"t\" (a, b) values", "d b.t Follow");
    inserts("INSERT t FORMAT JSONEachRow\n{\"a\": \"it's\"}", "t Inline");
    inserts("INSERT INTO d.t (a, `b`) SETTINGS async_insert = 1 FORMAT RowBinary", "d.t Follow");
    inserts("INSERT INTO t", "t FollowUnnamed");
    inserts("INSERT INTO t (a)", "t FollowUnnamed");
    inserts("INSERT INTO t SELECT 'VALUES' FROM u", "t Selected");
    inserts("INSERT INTO t (a) (SELECT 1)", "t Selected");
    inserts("INSERT INTO t (a) (FROM u SELECT a) FORMAT CSV", "t Selected");
    inserts("INSERT INTO t ((FROM u SELECT a)) FORMAT CSV", "t Selected");
    inserts("INSERT INTO t (from, with) FORMAT CSV", "t Follow");
    inserts("INSERT INTO t WITH 1 AS x SELECT x", "t Selected");
    inserts("WITH x AS (SELECT 1) INSERT INTO t SELECT * FROM x", "t Selected");
    inserts("WITH x AS (SELECT 1) INSERT INTO t SELECT * FROM x;", "t Selected");
    inserts("INSERT INTO FUNCTION remote('h', d.t) VALUES (1)", "- Inline");
    inserts("INSERT INTO {t:Identifier} VALUES (1)", "- Inline");
    inserts("INSERT INTO a.b.c VALUES (1)", "- Inline");
    inserts("INSERT INTO t FROM INFILE 'x' FORMAT CSV", "t Selected");
    inserts("/* x */ INSERT INTO t VALUES ('it''s', 'a\\", "t Inline");
}

#[test]
fn behind_with_every_word_may_be_an_alias_and_insert_into_makes_an_insert_of_it() {
    for with in [
        "toDate('2026-01-01') AS from, toDate('2026-02-01') AS to",
        "1 IS NOT DISTINCT FROM 2 AS same",
        "tup.from AS x",
        "1 AS select, x.select",
        "1 AS insert",
        "x AS (SELECT 1 FROM u)",
    ] {
        inserts(&format!("WITH {with} INSERT INTO t SELECT 1 FROM src"), "t Selected");
        inserts(&format!("WITH {with}\ninsert /* */ into d.t SELECT 1"), "d.t Selected");
    }
}

#[test]
fn writes_wait_for_the_rows_that_they_change() {
    for query in [
        "ALTER TABLE t DELETE WHERE 1",
        "TRUNCATE TABLE t",
        "DROP TABLE t",
        "RENAME TABLE a TO b",
        "OPTIMIZE TABLE t FINAL",
        "DELETE FROM t WHERE 1",
        "DETACH TABLE t",
        "CREATE OR REPLACE TABLE t (a UInt8) ENGINE = Null",
        "create /* */ or replace table t AS u",
        "CREATE OR REPLACE VIEW v AS SELECT 1",
        "CREATE OR REPLACE DICTIONARY d (a UInt8) PRIMARY KEY a",
        "CREATE TABLE t CLONE AS u",
        "CREATE TABLE IF NOT EXISTS d.t ENGINE = MergeTree ORDER BY a AS SELECT a FROM u",
        "CREATE TABLE t ENGINE = Memory AS (SELECT 1)",
        "CREATE TABLE t ENGINE = Memory AS WITH 1 AS x SELECT x",
        "CREATE MATERIALIZED VIEW v ENGINE = Memory POPULATE AS SELECT a FROM t",
    ] {
        assert_eq!(other(query), Other { barrier: true, admin: false, session: false }, "{query}");
    }
    for query in [
        "CREATE TABLE t (a UInt8) ENGINE = Null",
        "CREATE TABLE t (a UInt8, PROJECTION p (SELECT a ORDER BY a)) ENGINE = MergeTree ORDER BY a",
        "CREATE TABLE t AS u",
        "CREATE TABLE t AS numbers(10)",
        "CREATE VIEW v AS SELECT a FROM t",
        "CREATE MATERIALIZED VIEW v TO u AS SELECT a FROM t",
        "CREATE FUNCTION f AS (x) -> x",
        "ATTACH TABLE t",
        "UNDROP TABLE t",
    ] {
        assert_eq!(other(query), Other { barrier: false, admin: false, session: false }, "{query}");
    }
    assert!(!other("CREATE OR REPLACE ROLE r").barrier);
}

#[test]
fn what_may_fail_when_a_part_of_it_is_done_is_known() {
    for query in [
        "DROP TABLE a, b",
        "DETACH TABLE a, d.b",
        "RENAME TABLE a TO b, c TO d",
        "EXCHANGE TABLES a AND b, c AND d",
        "ALTER TABLE t DROP PARTITION 1, ATTACH PARTITION 2 FROM u",
        "TRUNCATE ALL TABLES FROM d",
        "TRUNCATE TABLES FROM d LIKE 'a%'",
        "TRUNCATE DATABASE d",
        "DROP DATABASE IF EXISTS d SYNC",
        "detach database d",
        "DROP USER ada, eve",
        "CREATE USER ada, eve",
        "CREATE TABLE t ENGINE = Memory AS SELECT 1",
        "CREATE OR REPLACE TABLE t (a UInt8) ENGINE = Null",
        "EXECUTE AS root DROP TABLE t",
        "RESTORE TABLE t FROM Disk('d', 'f')",
        "DROP TABLE t PARALLEL WITH DROP TABLE u",
        "SELECT 1; DROP TABLE t",
        "DROP TABLE `a",
        "NEWWORD t",
    ] {
        assert!(read(query).in_parts, "{query}");
    }
    for query in [
        "DROP TABLE IF EXISTS d.t SYNC",
        "DROP TABLE `a, b`",
        "TRUNCATE TABLE t",
        "RENAME TABLE a TO b",
        "ALTER TABLE t DELETE WHERE a IN (1, 2)",
        "CREATE TABLE t (a UInt8, b UInt8) ENGINE = MergeTree ORDER BY (a, b)",
        "CREATE VIEW v AS SELECT a, b FROM t",
        "CREATE USER ada",
        "OPTIMIZE TABLE t DEDUPLICATE BY a, b",
    ] {
        assert!(!read(query).in_parts, "{query}");
    }
}

#[test]
fn rights_are_the_admins_affair() {
    for query in [
        "SYSTEM SHUTDOWN",
        "KILL QUERY WHERE 1",
        "GRANT SELECT ON t TO ada",
        "REVOKE ALL ON *.* FROM ada",
        "CREATE USER ada",
        "CREATE OR REPLACE ROLE r",
        "ALTER ROW POLICY p ON t",
        "drop settings profile p",
        "EXECUTE AS root",
        "execute as root GRANT SELECT ON t TO ada",
    ] {
        assert!(other(query).admin, "{query}");
    }
    assert!(!other("DROP TABLE user").admin);
    // Of what is not read, the words count.
    for query in [
        "/* /* */ */ system shutdown",
        "SYSTEM /* /* */ */ SHUTDOWN",
        "KILL QUERY WHERE query_id = \u{2018}a\u{2019}",
        "CREATE /* /* */ */ USER ada",
        // Without an end, a heredoc is a name.
        "CREATE USER $x$ IDENTIFIED BY 'p'",
        "DROP USER $x$, ada",
        "GRANT $r$, admin TO web",
        "set default role r to ada",
        "SET /* /* */ */ DEFAULT ROLE r TO ada",
    ] {
        assert!(other(query).admin, "{query}");
    }
    assert!(!other("SELECT user FROM t WHERE s = \u{2018}a\u{2019}").admin);
}

#[test]
fn a_format_is_what_stands_last() {
    let format = |query: &str| read(query).format;
    assert_eq!(format("SELECT 1 FORMAT JSON").as_deref(), Some("JSON"));
    assert_eq!(format("SELECT 1 format CSV SETTINGS a = 1").as_deref(), Some("CSV"));
    assert_eq!(format("SELECT 1 SETTINGS a = 1 FORMAT TSV;").as_deref(), Some("TSV"));
    assert_eq!(format("SELECT format FROM t"), None);
    assert_eq!(format("SELECT format('{}', 1)"), None);
    assert_eq!(format("SELECT a AS format"), None);
    assert_eq!(format("SELECT * FROM (SELECT 1 FORMAT JSON)"), None);
    assert_eq!(format("INSERT INTO t VALUES (1) FORMAT x").as_deref(), Some("Values"));
}

#[test]
fn settings_of_a_clause_are_read_with_their_values() {
    let set = |query: &str| {
        let statement = read(query);
        let pairs = statement.settings.into_iter().map(|(name, value)| format!("{name}={value}"));
        let unread = statement.has_unread_settings.then(|| "?".to_owned());
        unread.into_iter().chain(pairs).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(
        set("SELECT 1 SETTINGS max_execution_time = 1.5, `b` = 'x' FORMAT JSON"),
        "max_execution_time=1.5 b='x'"
    );
    assert_eq!(set("SELECT settings FROM t WHERE a = 1"), "");
    assert_eq!(set("SELECT * FROM (SELECT 1 SETTINGS a = 1)"), "");
    assert_eq!(
        set("INSERT INTO t SETTINGS async_insert=1, b = 2 VALUES (1)"),
        "async_insert=1 b=2"
    );
    assert_eq!(set("INSERT INTO t (settings) VALUES (1)"), "");
    // A name alone is on, a comma within brackets ends nothing, and what is not a setting is not passed over.
    assert_eq!(set("INSERT INTO t SETTINGS a,b='x' FORMAT CSV"), "a=1 b='x'");
    assert_eq!(
        set("INSERT INTO t SETTINGS a={'x':'1','y':'2'},b=0 FORMAT CSV"),
        "a={'x':'1','y':'2'} b=0"
    );
    assert_eq!(set("INSERT INTO t SETTINGS a b = 2, c = 3 FORMAT CSV"), "? c=3");
}

#[test]
fn what_a_cache_must_not_answer_is_told() {
    for query in [
        "SELECT * FROM system.tables",
        "SELECT * FROM `system` . tables",
        "SELECT generateUUIDv4()",
        "SELECT RAND ()",
        "SELECT randBernoulli(0.5), randLogNormal(1, 2)",
        "SELECT * FROM generateRandom('a Int8') LIMIT 1",
        "SELECT arrayShuffle([1, 2])",
        "SELECT getClientHTTPHeader('X-User')",
        "SELECT queryID()",
        "CHECK TABLE t",
        "SHOW PROCESSLIST",
        "SELECT * FROM merge('system', '.*')",
        "SELECT * FROM merge(REGEXP('sys'), '.*')",
        "SELECT * FROM cluster('c', 'System', 'processes')",
        "SELECT * FROM clusterAllReplicas('c', 'system.processes')",
        "SELECT * FROM remote('h', information_schema, 'tables'), remote('h', 'INFORMATION_SCHEMA.tables')",
        "SELECT * FROM remoteSecure('h', `system`, x)",
    ] {
        assert!(read(query).volatile, "{query}");
    }
    for query in [
        "SELECT now()",
        "SELECT rand FROM t",
        "SELECT 'system.tables'",
        "SELECT count() FROM t WHERE kind = 'system'",
        "SELECT * FROM merge('logs', '^systems')",
        "SHOW TABLES",
        "SELECT * FROM generate_series(1, 2)",
    ] {
        assert!(!read(query).volatile, "{query}");
    }
}

#[test]
fn sessions_and_files_of_a_client_are_refused() {
    for query in ["SET a = 1", "use d", "SELECT 1 INTO OUTFILE 'x'", "BEGIN TRANSACTION"] {
        assert!(matches!(read(query).verb, Verb::Refused(_)), "{query}");
    }
}

#[test]
fn spellings_of_one_query_fold_into_one() {
    let one = folded("select  a,b \nFROM t WHERE s = 'a  b' ;");
    assert_eq!(one, "select a , b FROM t WHERE s = 'a  b'");
    assert_eq!(folded("select a, b\tFROM t\nWHERE s='a  b'"), one);
    for text in ["select a /* x */, b", " select a, b -- x", "select a\n# x"] {
        assert_eq!(folded(text), text, "servers find the ends of comments in different places");
    }
    assert_ne!(folded("select a, b FROM t WHERE s='a b'"), one);
}

#[test]
fn statements_side_by_side_are_one_write_that_does_what_any_of_them_does() {
    let all = |admin| Other { barrier: true, admin, session: true };
    for query in [
        "SELECT 1 PARALLEL WITH INSERT INTO t SELECT 1",
        "INSERT INTO t SELECT 1 PARALLEL WITH INSERT INTO t SELECT 2",
        "INSERT INTO t SELECT 1 FORMAT CSV parallel /* */ with INSERT INTO t SELECT 2",
        "CREATE TABLE IF NOT EXISTS a (x Int8) ENGINE = Memory PARALLEL WITH TRUNCATE TABLE t",
        "WITH 1 AS x SELECT x PARALLEL WITH SHOW TABLES",
        "SET a = 1 PARALLEL WITH SET b = 1",
        "(SELECT 1) PARALLEL WITH (SELECT 2)",
    ] {
        assert_eq!(other(query), all(false), "{query}");
    }
    for query in [
        "SYSTEM FLUSH LOGS PARALLEL WITH DROP TABLE t",
        "DROP TABLE t PARALLEL WITH DROP TABLE u PARALLEL WITH KILL QUERY WHERE 1",
        "SELECT 1 PARALLEL WITH CREATE USER ada",
        "DROP TABLE t PARALLEL WITH GRANT SELECT ON t TO ada PARALLEL WITH SELECT 'a",
    ] {
        assert_eq!(other(query), all(true), "{query}");
    }
    is_read("SELECT 1 AS parallel");
    is_read("SELECT 'PARALLEL WITH', `PARALLEL` WITH");
    inserts("INSERT INTO t VALUES (1) PARALLEL WITH DROP TABLE t", "t Inline");
}

#[test]
fn a_statement_may_stand_where_the_rows_of_an_insert_would_begin() {
    let all = |admin| Other { barrier: true, admin, session: true };
    for query in [
        "INSERT INTO t FORMAT CSV\n/* */ PARALLEL WITH GRANT r TO a",
        "INSERT INTO t VALUES PARALLEL WITH SYSTEM SHUTDOWN",
        "INSERT INTO t FORMAT CSV -- rows\nparallel # why\n with KILL QUERY WHERE 1",
        "INSERT INTO t FORMAT CSV SETTINGS a = 1, b = 'x' PARALLEL WITH SYSTEM SHUTDOWN",
        "INSERT INTO t FORMAT CSV SETTINGS a PARALLEL WITH SYSTEM SHUTDOWN",
        // Servers do not agree on where this comment ends.
        "INSERT INTO t FORMAT CSV /* /* */ PARALLEL WITH SYSTEM SHUTDOWN -- */",
        "INSERT INTO t FORMAT CSV SETTINGS a = $-$ PARALLEL WITH SYSTEM SHUTDOWN",
    ] {
        assert_eq!(other(query), all(true), "{query}");
    }
    assert_eq!(other("INSERT INTO t VALUES PARALLEL WITH DROP TABLE v"), all(false));
    for query in [
        "INSERT INTO t FORMAT CSV\nparallel,with",
        "INSERT INTO t FORMAT CSV\n'PARALLEL WITH'",
        "INSERT INTO t FORMAT CSV\nPARALLEL",
        "INSERT INTO t FORMAT CSV\nPARALLEL parallel WITH",
        "INSERT INTO t FORMAT CSV ;PARALLEL WITH DROP TABLE v",
        "INSERT INTO t FORMAT CSV\n#a",
        "INSERT INTO t FORMAT CSV\n/* a",
        "INSERT INTO t FORMAT TSV\nsettings\tparallel",
        "INSERT INTO t FORMAT CSV\nsettings,a = 1 PARALLEL WITH DROP TABLE v",
    ] {
        inserts(query, "t Inline");
    }
}

#[test]
fn of_a_beginning_only_an_insert_whose_rows_have_begun_is_known() {
    for text in [
        "INSERT INTO t FORMAT CSV\n1",
        "INSERT INTO t VALUES (",
        "INSERT INTO t FORMAT CSV\nparallel,",
        "INSERT INTO t FORMAT CSV\n\u{fffd}",
        "INSERT INTO t FORMAT CSV\n$a",
        "INSERT INTO t FORMAT CSV\n/a",
        "INSERT INTO t FORMAT CSV\n#a",
        // A column of this name.
        "INSERT INTO t FORMAT CSVWithNames\nsettings,a\n1,2\n",
        "INSERT INTO t FORMAT TSVWithNames\nsettings\ta\tb\n1\t2\t3\n",
    ] {
        let found = read_beginning(text).unwrap();
        assert!(matches!(found.verb, Verb::Insert(insert) if insert.head < text.len()), "{text}");
    }
    for text in [
        "",
        "SELECT 1",
        "DROP TABLE t",
        "INSERT INTO t",
        "INSERT INTO t SELECT 1",
        "INSERT INTO t VALUES",
        "INSERT INTO t FORMAT CSV",
        "INSERT INTO t FORMAT CSV\n \n-- a",
        "INSERT INTO t FORMAT CSV /* a",
        "INSERT INTO t FORMAT CSV\n/",
        "INSERT INTO t FORMAT CSV\n-",
        "INSERT INTO t FORMAT CSV\n#",
        "INSERT INTO t FORMAT CSV\nPARALLEL /",
        "INSERT INTO t FORMAT CSV\nPAR",
        "INSERT INTO t FORMAT CSV\nparallel",
        "INSERT INTO t FORMAT CSV\nparallel wi",
        "INSERT INTO t FORMAT CSV\nPARALLEL WITH DROP TABLE t",
        "INSERT INTO t FORMAT CSV\nSETTINGS a = 1, b",
        "INSERT INTO t FORMAT CSV\nSETTINGS a.b = 1",
        "INSERT INTO t FORMAT CSV\nSETTINGS a PAR",
        "INSERT INTO t FORMAT CSV\nSETTINGS a /",
        "INSERT INTO t FORMAT CSV\nSETTINGS a PARALLEL ",
    ] {
        assert_eq!(read_beginning(text), None, "{text}");
    }
}

#[test]
fn of_a_clause_of_settings_only_so_much_is_read() {
    let many = "a,".repeat(settings::LEN_MAX);
    let read_of = read(&format!("SELECT 1 SETTINGS {many} b = 1 FORMAT CSV"));
    assert_eq!((&read_of.verb, read_of.format.as_deref()), (&Verb::Read, Some("CSV")));
    assert!(read_of.settings.len() <= settings::LEN_MAX / 2, "{}", read_of.settings.len());
    let long = "a".repeat(settings::LEN_MAX);
    for clause in [many, format!("{long} = 1"), format!("a = '{long}'")] {
        let insert = read(&format!("INSERT INTO t SETTINGS {clause} FORMAT CSV"));
        assert!(insert.has_unread_settings);
        let held: usize =
            insert.settings.iter().map(|(name, value)| name.len() + value.len()).sum();
        assert!(held <= settings::LEN_MAX, "{held} bytes are held");
    }
}

#[test]
fn what_changes_a_session_or_may_do_so_is_known() {
    for query in ["EXECUTE AS root", "CREATE OR REPLACE TEMPORARY TABLE t (a Int8)", "NEWWORD t"] {
        assert!(other(query).session, "{query}");
    }
    for query in ["DETACH TABLE t", "KILL QUERY WHERE 1", "CREATE TABLE temporary (a Int8)"] {
        assert!(!other(query).session || query.contains("temporary"), "{query}");
    }
}

#[test]
fn a_long_text_is_read_in_a_time_that_grows_with_its_length() {
    for word in [
        "SETTINGS,",
        "SETTINGS ",
        "SETTINGS a b,",
        "SETTINGS(",
        "SETTINGS`?`=",
        "PARALLEL WITH ",
        "WITH ",
        "INSERT ",
        "$a ",
        "'system',merge(",
    ] {
        for first in ["SELECT", "WITH", "DROP", "CREATE TABLE"] {
            let query = format!("{first} {}", word.repeat((64 << 10) / word.len()));
            let began = std::time::Instant::now();
            read(&query);
            let took = began.elapsed();
            assert!(took < std::time::Duration::from_secs(1), "{first} {word:?} takes {took:?}");
        }
    }
}
