//! Numbers arrive as they were written, and come back as the backend wrote them. What cannot is refused.
//!
//! Calls are sent as text here: a test that built them with `json!` would round what it is about.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::clickhouse::{ClickHouse, Engine};
use crate::support::daemon::{Builder, Client, Daemon};
use crate::support::firestore::{Emulator, Firestore, emulators};
use crate::support::outage::{begin_outage, operated};
use crate::support::redis::RedisServer;

/// More than any test here takes.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Numbers that 64 bits do not hold, or that change when they are written again.
const NUMBERS: [&str; 12] = [
    "12345678901234567890123",
    "18446744073709551616",
    "-9223372036854775809",
    "9223372036854775807",
    "1e3",
    "1E+3",
    "-0",
    "0.10",
    "1.0",
    "0.1000000000000000055511151231257827",
    "1e999",
    "99999999999999.9999",
];

/// The status and the text of the answer to a call.
fn post(daemon: &Client, backend: &str, call: &str) -> (u16, String) {
    let mut stream = UnixStream::connect(daemon.socket()).expect("the daemon listens");
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    write!(
        stream,
        "POST /v1/backends/{backend}/call HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
         content-length: {}\r\n\r\n{call}",
        call.len()
    )
    .expect("the call is taken");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer in text");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).expect("a status");
    (status, body.to_owned())
}

#[track_caller]
fn live(daemon: &Client, backend: &str, call: &str) -> String {
    let (status, body) = post(daemon, backend, call);
    assert_eq!(status, 200, "{call}: {body}");
    body
}

/// The detail of a refusal.
#[track_caller]
fn refused(daemon: &Client, backend: &str, call: &str) -> String {
    let (status, body) = post(daemon, backend, call);
    assert_eq!(status, 400, "{call}: {body}");
    let problem: Value = serde_json::from_str(&body).expect("a problem");
    problem["detail"].as_str().expect("a detail").to_owned()
}

fn clickhouse(server: &ClickHouse) -> Daemon {
    Builder::default().set("backends.clickhouse.url", server.url()).start()
}

#[test]
fn redis_stores_a_number_as_it_was_written() {
    let mut redis = RedisServer::start();
    let daemon = operated(&redis.url()).start();
    for number in NUMBERS {
        live(&daemon, "redis", &format!(r#"{{"command":["SET","n",{number}]}}"#));
        assert_eq!(redis.get("n").as_deref(), Some(number));
    }
    // Within a list of many, and in a queued call that is replayed.
    live(&daemon, "redis", r#"{ "command" : [ "RPUSH" , "l" , 1e3 , "x" , -0 , 0.50 ] }"#);
    let list: Vec<String> = redis.query(&["LRANGE", "l", "0", "-1"]);
    assert_eq!(list, ["1e3", "x", "-0", "0.50"]);
    begin_outage(&mut redis, &daemon);
    let (status, body) =
        post(&daemon, "redis", r#"{"command":["SET","q",12345678901234567890123]}"#);
    assert_eq!(status, 202, "{body}");
    let op_id = serde_json::from_str::<Value>(&body).unwrap()["op_id"].clone();
    let shown = daemon.fusebox(&["queue", "show", op_id.as_str().unwrap(), "--backend", "redis"]);
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("\"12345678901234567890123\""), "{shown}");
    redis.restart();
    daemon.order("/admin/resilience/force-recovery");
    daemon.wait_until_drained("redis", TIMEOUT);
    assert_eq!(redis.get("q").as_deref(), Some("12345678901234567890123"));
}

#[test]
fn clickhouse_reads_a_parameter_as_it_was_written() {
    let server = ClickHouse::start(Engine::Current);
    let daemon = clickhouse(&server);
    for (kind, number) in [
        ("Decimal(38, 4)", "99999999999999.9999"),
        ("Decimal(38, 4)", "-0.1000"),
        ("Int128", "170141183460469231731687303715884105727"),
        ("Int128", "-12345678901234567890123"),
        (
            "UInt256",
            "115792089237316195423570985008687907853269984665640564039457584007913129639935",
        ),
        ("UInt64", "18446744073709551615"),
    ] {
        let call = format!(
            r#"{{"query":"SELECT toString({{p:{kind}}}) AS t FORMAT TabSeparated","params":{{"p":{number}}}}}"#
        );
        let body: Value = serde_json::from_str(&live(&daemon, "clickhouse", &call)).unwrap();
        let answered = body["value"].as_str().unwrap().trim_end();
        // The server prints a decimal without its last zeros.
        let wanted = if number.contains('.') { number.trim_end_matches('0') } else { number };
        assert_eq!(answered, wanted, "{kind}");
    }
    let call = r#"{"query":"SELECT toString({p:Array(Int128)}) FORMAT TabSeparatedRaw",
        "params":{"p":[12345678901234567890123,-1]}}"#;
    let body: Value = serde_json::from_str(&live(&daemon, "clickhouse", call)).unwrap();
    assert_eq!(body["value"], "[12345678901234567890123,-1]\n");
    // A setting, too: as a double it would be 1.8446744073709552e19, which is none.
    let call = r#"{"query":"SELECT toString(getSetting('max_rows_to_read')) FORMAT TabSeparated",
        "settings":{"max_rows_to_read":18446744073709551615}}"#;
    let body: Value = serde_json::from_str(&live(&daemon, "clickhouse", call)).unwrap();
    assert_eq!(body["value"], "18446744073709551615\n");
    for (call, part) in [
        (r#"{"query":"SELECT 1","params":{"p":{"q":1}}}"#, "params.p"),
        (r#"{"query":"SELECT 1","params":{"p":1,"p":2}}"#, "`p` appears twice"),
        (r#"{"query":"SELECT 1","settings":{"s":[1]}}"#, "settings.s"),
        (r#"{"query":"SELECT 1","data":12345678901234567890123}"#, "data must be"),
    ] {
        let detail = refused(&daemon, "clickhouse", call);
        assert!(detail.contains(part), "{detail}");
    }
}

#[test]
fn clickhouse_is_answered_in_its_own_digits() {
    const HUGE: &str =
        "115792089237316195423570985008687907853269984665640564039457584007913129639935";
    for engine in [Engine::Old, Engine::Current] {
        let server = ClickHouse::start(engine);
        let daemon = clickhouse(&server);
        for format in ["JSON", "JSONCompact", "JSONEachRow"] {
            let query =
                format!("SELECT toDecimal64('99999999999999.9999', 4) AS d FORMAT {format}");
            let body = live(&daemon, "clickhouse", &json!({ "query": query }).to_string());
            assert!(body.contains("99999999999999.9999"), "{engine:?} {format}: {body}");
            let whole: Value = serde_json::from_str(&body).expect("valid JSON");
            assert_eq!(whole["value"].is_array(), format == "JSONEachRow", "{body}");
            let cli = daemon.fusebox(&["call", "clickhouse", "--", &query]);
            let cli = String::from_utf8_lossy(&cli.stdout).into_owned();
            assert!(cli.contains("99999999999999.9999"), "{engine:?} {format}: {cli}");
            let line = daemon.fusebox(&["call", "clickhouse", "--json", "--", &query]);
            let line = String::from_utf8_lossy(&line.stdout).into_owned();
            assert!(line.contains("99999999999999.9999"), "{engine:?} {format}: {line}");
            assert_eq!(line.lines().count(), 1, "one line for programs: {line:?}");
        }
    }
    let server = ClickHouse::start(Engine::Current);
    let daemon = clickhouse(&server);
    for format in [
        "JSON",
        "JSONCompact",
        "JSONEachRow",
        "JSONCompactEachRow",
        "JSONColumns",
        "JSONColumnsWithMetadata",
        "JSONObjectEachRow",
    ] {
        let query = format!(
            "SELECT toUInt256('{HUGE}') AS u, toUInt64(18446744073709551615) AS w FORMAT {format} \
             SETTINGS output_format_json_quote_64bit_integers = 0"
        );
        let body = live(&daemon, "clickhouse", &json!({ "query": query }).to_string());
        assert!(body.contains(HUGE), "{format}: {body}");
        assert!(body.contains("18446744073709551615"), "{format}: {body}");
        serde_json::from_str::<Value>(&body).unwrap_or_else(|error| panic!("{format}: {error}"));
    }
}

#[test]
fn firestore_keeps_integers_and_doubles_apart_and_refuses_what_it_cannot_hold() {
    for emulator in emulators() {
        let server = Firestore::start(emulator);
        let daemon = Builder::default().set("backends.firestore.url", server.url()).start();
        // The npm package's is written in JavaScript, and keeps no integer beyond 2^53.
        let (most, least) = match emulator {
            Emulator::Google => (i64::MAX, i64::MIN),
            Emulator::Npm => ((1 << 53) - 1, 1 - (1 << 53)),
        };
        let data = r#""e":1e3,"d":1.0,"z":-0,"nz":-0.0,"big":1e22,
            "t":{"doubleValue":12345678901234567890123}"#;
        let set =
            format!(r#"{{"op":"set","path":"n/a","data":{{"i":{most},"m":{least},{data}}}}}"#);
        live(&daemon, "firestore", &set);
        let shown = |integer: i64| match emulator {
            Emulator::Google => json!({ "integerValue": integer.to_string() }),
            Emulator::Npm => json!(integer),
        };
        let get = r#"{"op":"get","path":"n/a"}"#;
        let body: Value = serde_json::from_str(&live(&daemon, "firestore", get)).unwrap();
        assert_eq!(
            body["value"]["data"],
            json!({
                "i": shown(most), "m": shown(least),
                "e": 1000.0, "d": 1.0, "z": 0, "nz": -0.0, "big": 1e22,
                "t": 1.234_567_890_123_456_8e22,
            })
        );
        assert_eq!(body["value"]["data"]["z"].to_string(), "0", "an integer");
        assert_eq!(body["value"]["data"]["nz"].to_string(), "-0.0", "a double");
        for call in [
            r#"{"op":"set","path":"n/b","data":{"a":{"n":[12345678901234567890123]}}}"#,
            r#"{"op":"set","path":"n/b","data":{"n":{"integerValue":12345678901234567890123}}}"#,
            r#"{"op":"update","path":"n/b","transforms":{"n":{"increment":12345678901234567890123}}}"#,
            r#"{"op":"commit","writes":[{"op":"set","path":"n/b","data":{"n":12345678901234567890123}}]}"#,
            r#"{"op":"query","collection":"n","where":[["n","<",12345678901234567890123]]}"#,
            r#"{"op":"query","collection":"n","order":["n"],"start_at":[12345678901234567890123]}"#,
        ] {
            let detail = refused(&daemon, "firestore", call);
            assert!(
                detail.contains("12345678901234567890123") && detail.contains("64 bits"),
                "{detail}"
            );
        }
        let detail = refused(
            &daemon,
            "firestore",
            r#"{"op":"set","path":"n/b","data":{"n":18446744073709551615}}"#,
        );
        assert!(detail.starts_with("data: n: 18446744073709551615 "), "{detail}");
        let detail =
            refused(&daemon, "firestore", r#"{"op":"set","path":"n/b","data":{"n":1e999}}"#);
        assert!(detail.contains("1e999"), "{detail}");
        let detail =
            refused(&daemon, "firestore", r#"{"op":"set","path":"n/b","data":{"n":1,"n":2}}"#);
        assert!(detail.contains("`n` appears twice"), "{detail}");
        // The command line and live queries alike.
        let cli =
            ["call", "firestore", "--", "set", "n/c", r#"{"i":9007199254740991,"e":1e3,"z":-0}"#];
        let set = daemon.fusebox(&cli);
        assert!(set.status.success(), "{set:?}");
        let body: Value =
            serde_json::from_str(&live(&daemon, "firestore", r#"{"op":"get","path":"n/c"}"#))
                .unwrap();
        assert_eq!(body["value"]["data"].to_string(), r#"{"e":1000.0,"i":9007199254740991,"z":0}"#);
        let cli = ["call", "firestore", "--", "set", "n/c", r#"{"i":12345678901234567890123}"#];
        let refused = daemon.fusebox(&cli);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(2), "{said}");
        assert!(said.contains("12345678901234567890123"), "{said}");
    }
}
