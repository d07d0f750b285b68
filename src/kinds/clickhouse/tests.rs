//! The connector against real servers.

use std::{io::Write, net::TcpStream, sync::Arc, time::Duration};

use bytes::Bytes;
use fusebox_actors::connector::{Access, Attempt, Attempted, Connector, Doubt, Origin, Plan};
use fusebox_state::{ErrorClass, OpId, UnixMillis, Verdict};

use super::{
    connector::ClickHouseConnector,
    protocol::wire::{Call, Header},
    testing::{Server, rows, until},
};

mod door;
mod doubt;
mod groups;
mod killed;
mod windows;

const TABLE: &str = "CREATE TABLE default.t (n UInt64) ENGINE = MergeTree ORDER BY n";
/// Takes about ten seconds, in blocks of a row.
const SLOW: &str =
    "SELECT number + sleepEachRow(0.1) FROM numbers(100) SETTINGS max_block_size = 1";

fn body(query: &str) -> Bytes {
    let header = Header { query: query.to_owned(), ..Header::default() };
    Call { header, data: Bytes::new() }.to_bytes()
}

async fn attempt(connector: &ClickHouseConnector, query: &str, timeout: Duration) -> Attempted {
    Sent { timeout, ..Sent::of(body(query)) }.to(connector).await
}

/// A call that a test sends, as the core would.
struct Sent {
    body: Bytes,
    token: Option<OpId>,
    /// When it was first sent, and what was noted then, if that is in doubt.
    doubt: Option<(UnixMillis, Bytes)>,
    origin: Origin,
    now: UnixMillis,
    timeout: Duration,
}

impl Sent {
    fn of(body: Bytes) -> Self {
        let timeout = Duration::from_secs(3);
        let now = UnixMillis::new(1_000_000_000);
        Self { body, token: None, doubt: None, origin: Origin::Live, now, timeout }
    }

    async fn to(&self, connector: &ClickHouseConnector) -> Attempted {
        let plan = connector.plan(self.body.clone()).unwrap();
        connector.attempt(self.attempt(&plan)).await
    }

    fn attempt<'a>(&'a self, plan: &'a Plan) -> Attempt<'a> {
        Attempt {
            body: &plan.body,
            lanes: &plan.lanes,
            write: matches!(plan.access, Access::Write(_)),
            origin: self.origin,
            token: self.token,
            digest: 0,
            doubt: self.doubt.as_ref().map(|(since, evidence)| Doubt { since: *since, evidence }),
            following: &[],
            streams: false,
            upload: None,
            dialect: 0,
            passage: None,
            accepted_at: self.now,
            now: self.now,
            timeout: self.timeout,
            left: self.timeout,
            fence_patience: self.timeout,
            trace: None,
        }
    }
}

/// Queries like `part` that the server runs, the question itself excluded.
async fn running(server: &Server, part: &str) -> String {
    let question =
        "SELECT count() FROM system.processes WHERE query NOT LIKE '%processes%' AND query LIKE";
    server.ask(&format!("{question} '%{part}%'")).await
}

#[tokio::test]
async fn an_abandoned_write_is_killed_before_what_does_not_commute_follows() {
    let server = Server::start().await;
    server.ask(TABLE).await;
    let connector = ClickHouseConnector::new(server.settings("i", "r"));
    // The server is known from here on, and what an earlier run might have left.
    let warm = attempt(&connector, "INSERT INTO t VALUES (1)", Duration::from_secs(3)).await;
    assert!(warm.result.is_ok(), "{warm:?}");
    let abandoned = format!("INSERT INTO t {SLOW}");
    let ended = attempt(&connector, &abandoned, Duration::from_millis(300)).await;
    let error = ended.result.unwrap_err();
    assert_eq!((error.class, ended.verdict), (ErrorClass::Unknown, Verdict::Neutral), "{error}");
    assert_eq!(running(&server, "sleepEachRow").await, "1", "it runs on");
    // It keeps its place until the backend's own timeout of 3 s, and is killed then.
    let ended = attempt(&connector, "TRUNCATE TABLE t", Duration::from_secs(3)).await;
    let ended = match ended.result {
        Err(error) if error.code.as_str() == "fence" => {
            attempt(&connector, "TRUNCATE TABLE t", Duration::from_secs(3)).await
        }
        _ => ended,
    };
    assert!(ended.result.is_ok(), "{ended:?}");
    assert_eq!(running(&server, "sleepEachRow").await, "0");
    assert_eq!(server.ask("SELECT count() FROM default.t").await, "0");
}

#[tokio::test]
async fn a_new_run_kills_what_the_old_one_left() {
    let server = Server::start().await;
    server.ask(TABLE).await;
    let mut old = TcpStream::connect(("127.0.0.1", server.port)).unwrap();
    let query = format!("INSERT INTO t {SLOW}");
    write!(
        old,
        "POST /?query_id=fusebox:i:before:1 HTTP/1.0\r\nContent-Length: {}\r\n\r\n{query}",
        query.len()
    )
    .unwrap();
    until("it runs", || async { running(&server, "sleepEachRow").await == "1" }).await;
    let connector = ClickHouseConnector::new(server.settings("i", "now"));
    let ended = attempt(&connector, "INSERT INTO t VALUES (7)", Duration::from_secs(3)).await;
    assert!(ended.result.is_ok(), "{ended:?}");
    assert_eq!(running(&server, "sleepEachRow").await, "0");
    assert_eq!(server.ask("SELECT sum(n) FROM default.t WHERE n >= 7").await, "7");
}

#[tokio::test]
async fn a_read_whose_caller_left_is_killed_at_the_server() {
    let server = Server::start().await;
    let connector = ClickHouseConnector::new(server.settings("i", "r"));
    assert!(attempt(&connector, "SELECT 1", Duration::from_secs(3)).await.result.is_ok());
    let reader = Arc::clone(&connector);
    let read = tokio::spawn(async move { attempt(&reader, SLOW, Duration::from_secs(3)).await });
    until("it runs", || async { running(&server, "sleepEachRow").await == "1" }).await;
    read.abort();
    until("it is killed", || async { running(&server, "sleepEachRow").await == "0" }).await;
}

#[tokio::test]
async fn a_user_who_may_set_nothing_can_read() {
    let server = Server::start().await;
    let mut settings = server.settings("i", "r");
    settings.username = Some("reader".into());
    let connector = ClickHouseConnector::new(settings);
    let ended = attempt(&connector, "SELECT 42", Duration::from_secs(3)).await;
    assert_eq!(rows(&ended.result.unwrap()), "42\n");
    let warnings = connector.status().warnings;
    assert!(warnings.iter().any(|warning| warning.said().contains("readonly")), "{warnings:?}");
    connector.close().await;
    let ended = attempt(&connector, "SELECT 42", Duration::from_secs(3)).await;
    let error = ended.result.unwrap_err();
    assert_eq!((error.code.as_str(), ended.verdict), ("closed", Verdict::Neutral));
}
