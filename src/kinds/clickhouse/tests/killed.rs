//! A server that was killed between noting a token and putting the rows in place: its notes are left as they are, and
//! the part is taken away.

use super::*;
use crate::kinds::clickhouse::{
    protocol::http_form::{HttpRequest, RequestHead},
    settings::ClickHouseSettings,
    testing::Engine,
};

struct World {
    server: Server,
    connector: Arc<ClickHouseConnector>,
}

impl World {
    async fn of(tables: &[&str]) -> Self {
        let server = Server::of(Engine::Current).await;
        for name in tables {
            let table = format!(
                "CREATE TABLE default.{name} (n UInt64) ENGINE = MergeTree ORDER BY n \
                 SETTINGS non_replicated_deduplication_window = 100"
            );
            server.ask(&table).await;
        }
        // It may not read the log, which knows of all that ended well before the kill.
        let settings =
            ClickHouseSettings { username: Some("teller".to_owned()), ..server.settings("i", "r") };
        Self { server, connector: ClickHouseConnector::new(settings) }
    }

    fn insert(n: u64) -> Sent {
        let body = body(&format!("INSERT INTO t VALUES ({n})"));
        let token = Some(OpId::from_u128(fastrand::u128(..)));
        Sent { token, timeout: Duration::from_secs(10), origin: Origin::Replay, ..Sent::of(body) }
    }

    /// Noted, as replay does it before it sends.
    async fn noted(&self, n: u64) -> (Sent, Bytes) {
        let sent = Self::insert(n);
        let plan = self.connector.plan(sent.body.clone()).unwrap();
        let noted = self.connector.prepare(&[sent.attempt(&plan)]).await.unwrap().remove(0);
        (sent, noted)
    }

    /// Sent; what becomes of it is not heard.
    async fn sent(&self, (mut sent, noted): (Sent, Bytes)) -> Sent {
        let ended = sent.to(&self.connector).await;
        assert!(ended.result.is_ok(), "{ended:?}");
        sent.doubt = Some((sent.now, noted));
        sent
    }

    async fn doubted(&self, n: u64) -> Sent {
        self.sent(self.noted(n).await).await
    }

    /// An insert that is answered, under a token that no caller chose.
    async fn answered(&self, n: u64) {
        let sent = Self::insert(n);
        let ended = sent.to(&self.connector).await;
        assert!(ended.result.is_ok(), "{ended:?}");
        self.connector.forget_tokens(sent.token.into_iter().collect());
    }

    /// Kills the server, takes that part of the table away, and starts it again.
    async fn killed_before(&mut self, table: &str, part: &str) {
        let at = format!("SELECT data_paths[1] FROM system.tables WHERE name = '{table}'");
        let at = std::path::PathBuf::from(self.server.ask(&at).await).join(part);
        self.server.kill();
        std::fs::remove_dir_all(&at).unwrap_or_else(|error| panic!("{}: {error}", at.display()));
        self.server.restart(Engine::Current).await;
    }

    async fn again(&self, sent: &Sent) -> Result<(), (ErrorClass, String)> {
        let ended = sent.to(&self.connector).await.result.map(drop);
        ended.map_err(|error| (error.class, error.message.whole().to_owned()))
    }

    async fn rows(&self, table: &str) -> String {
        let question = format!(
            "SELECT arrayStringConcat(groupArray(n), ' ') FROM (SELECT n FROM default.{table} ORDER BY n)"
        );
        self.server.ask(&question).await
    }
}

/// A client's own request.
fn of_client(query: &str) -> Bytes {
    let head = RequestHead {
        method: "POST".to_owned(),
        target: "/".to_owned(),
        query: query.to_owned(),
        is_query: true,
        is_plain: true,
        is_whole: true,
        is_clear: true,
        ..RequestHead::default()
    };
    HttpRequest { head, body: Bytes::copy_from_slice(query.as_bytes()) }.to_bytes()
}

#[tokio::test]
async fn rows_that_a_killed_server_lost_under_a_known_token_are_sent_again() {
    let mut world = World::of(&["t"]).await;
    world.server.ask("INSERT INTO default.t VALUES (1)").await;
    let doubted = world.doubted(2).await;
    world.killed_before("t", "all_2_2_0").await;
    assert_eq!(world.rows("t").await, "1");
    assert_eq!(world.again(&doubted).await, Ok(()));
    assert_eq!(world.rows("t").await, "1 2");
    // The server still knows the lost token. Whoever repeats it comes to the same next one.
    assert_eq!(world.again(&doubted).await, Ok(()));
    let later = ClickHouseConnector::new(world.server.settings("i", "later"));
    let ended = doubted.to(&later).await;
    assert!(ended.result.is_ok(), "{ended:?}");
    assert_eq!(world.rows("t").await, "1 2");
}

/// Nothing of it can be missing, though the table has got nothing and what a view feeds has.
#[tokio::test]
async fn an_insert_without_rows_is_not_taken_for_a_lost_one() {
    let world = World::of(&["t", "copies"]).await;
    let view = "CREATE MATERIALIZED VIEW default.v TO default.copies AS SELECT n FROM default.t";
    world.server.ask(view).await;
    for client in [false, true] {
        let (sent, noted) = world.noted(0).await;
        let query = "INSERT INTO default.t FORMAT JSONEachRow";
        let body = if client { of_client(query) } else { body(query) };
        let origin = if client { Origin::Live } else { Origin::Replay };
        let sent = world.sent((Sent { body, origin, ..sent }, noted)).await;
        world.server.ask("INSERT INTO default.copies VALUES (7)").await;
        assert_eq!(world.again(&sent).await, Ok(()), "as a client's own: {client}");
    }
    assert_eq!(world.rows("t").await, "");
}

/// What the server says of the table and what its callers know of it are not of one moment.
#[tokio::test]
async fn other_inserts_that_go_on_make_nothing_come_twice() {
    let world = World::of(&["t"]).await;
    for n in 1..=20 {
        let doubted = world.doubted(1_000 + n).await;
        let others = async {
            for other in 0..8 {
                world.answered(n * 10 + other).await;
            }
        };
        let (again, ()) = tokio::join!(world.again(&doubted), others);
        assert_eq!(again, Ok(()));
    }
    let all = world.server.ask("SELECT count(), uniqExact(n) FROM default.t").await;
    assert_eq!(all, "180\t180");
}

#[tokio::test]
async fn what_a_view_has_got_is_not_sent_to_it_twice() {
    let mut world = World::of(&["t", "copies"]).await;
    world
        .server
        .ask("CREATE MATERIALIZED VIEW default.v TO default.copies AS SELECT n FROM default.t")
        .await;
    let doubted = world.doubted(1).await;
    world.killed_before("t", "all_1_1_0").await;
    let told = world.again(&doubted).await;
    assert!(matches!(&told, Err((ErrorClass::Ambiguous, _))), "{told:?}");
    assert_eq!(world.rows("copies").await, "1");
}

#[tokio::test]
async fn a_repetition_of_a_clients_own_request_is_not_believed_either() {
    let mut world = World::of(&["t"]).await;
    let doubted = world.doubted(1).await;
    world.killed_before("t", "all_1_1_0").await;
    let request = of_client("INSERT INTO default.t VALUES (1)");
    let told = world.again(&Sent { body: request, origin: Origin::Live, ..doubted }).await;
    assert!(
        matches!(&told, Err((ErrorClass::Unknown, why)) if why.contains("no rows of it")),
        "replay is to send it: {told:?}"
    );
}
