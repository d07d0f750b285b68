//! What is sent again, and what is not: on a real server that knows tokens.

use fusebox_actors::connector::AttemptError;

use super::*;
use crate::kinds::clickhouse::{
    settings::ClickHouseSettings,
    testing::{Engine, Relay},
};

/// An insert that may have been applied, with what was noted at its first sending.
struct Doubted(Sent);

struct World {
    server: Server,
    relay: Relay,
    connector: Arc<ClickHouseConnector>,
}

impl World {
    /// A server, and a connector for `user` behind a network that can lose answers.
    async fn of(user: &str, statements: &[&str]) -> Self {
        let server = Server::of(Engine::Current).await;
        for statement in statements {
            server.ask(statement).await;
        }
        // The query log is there from the first flush on.
        server.ask("SYSTEM FLUSH LOGS").await;
        let relay = Relay::start(server.port).await;
        let settings = ClickHouseSettings {
            username: (!user.is_empty()).then(|| user.to_owned()),
            ..crate::kinds::clickhouse::testing::settings(relay.port, "i", "r")
        };
        Self { server, relay, connector: ClickHouseConnector::new(settings) }
    }

    fn insert(query: &str) -> Sent {
        let token = Some(OpId::from_u128(fastrand::u128(..)));
        Sent { token, timeout: Duration::from_secs(10), ..Sent::of(body(query)) }
    }

    /// As replay does it: noted, then sent, and the answer is lost.
    async fn replayed(&self, query: &str) -> Doubted {
        let mut sent = Sent { origin: Origin::Replay, ..Self::insert(query) };
        let plan = self.connector.plan(sent.body.clone()).unwrap();
        let noted = self.connector.prepare(&[sent.attempt(&plan)]).await.unwrap().remove(0);
        let ended = sent.to(&self.connector).await;
        assert!(ended.result.is_ok(), "{ended:?}");
        sent.doubt = Some((sent.now, noted));
        Doubted(sent)
    }

    /// As a caller's attempt does it, whose answer is lost.
    async fn live(&self, query: &str) -> (AttemptError, Doubted) {
        let mut sent = Self::insert(query);
        self.relay.lose(1);
        let error = sent.to(&self.connector).await.result.unwrap_err();
        sent.doubt = Some((sent.now, error.doubt.clone().unwrap()));
        (error, Doubted(sent))
    }

    async fn again(&self, Doubted(sent): &Doubted) -> Result<bool, (ErrorClass, String)> {
        let ended = sent.to(&self.connector).await;
        let reply_lost = ended.reply_lost;
        ended
            .result
            .map(|_| reply_lost)
            .map_err(|error| (error.class, error.message.whole().to_owned()))
    }

    async fn is_not_sent_again(&self, doubted: &Doubted, why: &str) {
        match self.again(doubted).await {
            Err((ErrorClass::Ambiguous, message)) if message.contains(why) => {}
            other => panic!("{why}: {other:?}"),
        }
    }

    async fn ask(&self, question: &str) -> String {
        self.server.ask(question).await
    }

    /// Inserts of another producer.
    async fn others(&self, table: &str, count: u64) {
        for number in 0..count {
            let insert = format!(
                "INSERT INTO default.{table} SETTINGS async_insert = 0 VALUES ({number} + 1000)"
            );
            self.ask(&insert).await;
        }
    }

    fn warnings(&self) -> String {
        self.connector
            .status()
            .warnings
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join("\n")
    }
}

fn table(name: &str, window: u64) -> String {
    format!(
        "CREATE TABLE default.{name} (n UInt64) ENGINE = MergeTree ORDER BY n \
         SETTINGS non_replicated_deduplication_window = {window}"
    )
}

#[tokio::test]
async fn a_view_into_a_table_without_a_window_means_that_nothing_is_sent_again() {
    let view = "CREATE MATERIALIZED VIEW default.v ENGINE = MergeTree ORDER BY n AS SELECT n FROM default.t";
    let world = World::of("teller", &[&table("t", 100), view]).await;
    let (error, doubted) = world.live("INSERT INTO t VALUES (1)").await;
    assert_eq!(error.class, ErrorClass::Ambiguous, "{error}");
    world.is_not_sent_again(&doubted, "").await;
    assert!(world.warnings().contains(".inner_id."), "{}", world.warnings());
    assert_eq!(
        world.ask("SELECT (SELECT count() FROM default.t), (SELECT count() FROM default.v)").await,
        "1\t1"
    );
}

#[tokio::test]
async fn a_token_is_recognised_through_views_and_the_views_of_their_tables() {
    let world = World::of(
        "teller",
        &[
            &table("t", 100),
            "CREATE TABLE default.sums (k UInt8, n UInt64) ENGINE = SummingMergeTree ORDER BY k \
             SETTINGS non_replicated_deduplication_window = 100",
            "CREATE MATERIALIZED VIEW default.v TO default.sums AS SELECT 1 AS k, count() AS n FROM default.t \
             GROUP BY k",
            &table("copies", 100),
            "CREATE MATERIALIZED VIEW default.w TO default.copies AS SELECT n FROM default.sums",
            "CREATE TABLE default.entry (n UInt64) ENGINE = Null",
            "CREATE MATERIALIZED VIEW default.x TO default.t AS SELECT n FROM default.entry",
        ],
    )
    .await;
    let (error, doubted) = world.live("INSERT INTO t VALUES (1)").await;
    assert_eq!(
        (error.class, error.doubt.is_some_and(|d| !d.is_empty())),
        (ErrorClass::Unknown, true)
    );
    world.relay.lose(1);
    assert!(world.again(&doubted).await.is_err(), "the second answer is lost, too");
    assert_eq!(world.again(&doubted).await, Ok(false));
    let counted = "SELECT (SELECT count() FROM default.t), (SELECT sum(n) FROM default.sums), \
                   (SELECT count() FROM default.copies)";
    assert_eq!(world.ask(counted).await, "1\t1\t1");
    // From a table that keeps nothing itself.
    let doubted = world.replayed("INSERT INTO entry VALUES (2)").await;
    assert_eq!(world.again(&doubted).await, Ok(false));
    assert_eq!(world.ask(counted).await, "2\t2\t2");
    // One of the tables at the end forgets: then none of it may be repeated.
    world
        .ask("ALTER TABLE default.copies MODIFY SETTING non_replicated_deduplication_window = 0")
        .await;
    world.is_not_sent_again(&doubted, "default.copies").await;
    assert_eq!(world.ask(counted).await, "2\t2\t2");
}

#[tokio::test]
async fn what_came_since_the_first_sending_must_fit_the_window() {
    let tables =
        [table("ten", 10), table("hundred", 100), table("enough", 100), table("other", 100)];
    let tables: Vec<&str> = tables.iter().map(String::as_str).collect();
    let world = World::of("teller", &tables).await;
    for (name, others, proven) in
        [("ten", 25, false), ("hundred", 120, false), ("enough", 60, true)]
    {
        let doubted = world.replayed(&format!("INSERT INTO {name} VALUES (7)")).await;
        world.others(name, others).await;
        // What goes elsewhere does not count.
        world.others("other", 5).await;
        let again = world.again(&doubted).await;
        if proven {
            assert_eq!(again, Ok(false), "{name}");
        } else {
            assert!(matches!(again, Err((ErrorClass::Ambiguous, _))), "{name}: {again:?}");
        }
        let count = format!("SELECT count() FROM default.{name} WHERE n = 7");
        assert_eq!(world.ask(&count).await, "1", "{name}");
    }
}

#[tokio::test]
async fn the_smaller_of_the_windows_then_and_now_counts() {
    let world = World::of("teller", &[&table("t", 100), &table("u", 10)]).await;
    let narrowed = world.replayed("INSERT INTO t VALUES (7)").await;
    let widened = world.replayed("INSERT INTO u VALUES (7)").await;
    world
        .ask("ALTER TABLE default.t MODIFY SETTING non_replicated_deduplication_window = 10")
        .await;
    world
        .ask("ALTER TABLE default.u MODIFY SETTING non_replicated_deduplication_window = 100")
        .await;
    for (name, doubted) in [("t", &narrowed), ("u", &widened)] {
        world.others(name, 15).await;
        world.is_not_sent_again(doubted, "remembers 10 blocks").await;
    }
}

#[tokio::test]
async fn another_table_and_dropped_parts_are_no_proof() {
    let parted = "CREATE TABLE default.p (n UInt64) ENGINE = MergeTree ORDER BY n PARTITION BY n % 2 \
                  SETTINGS non_replicated_deduplication_window = 100";
    let world = World::of("teller", &[&table("t", 100), &table("u", 100), parted]).await;
    let doubted = world.replayed("INSERT INTO t VALUES (7)").await;
    world.ask("DROP TABLE default.t SYNC").await;
    world.ask(&table("t", 100)).await;
    world.is_not_sent_again(&doubted, "other tables").await;

    world.others("u", 3).await;
    let doubted = world.replayed("INSERT INTO u VALUES (7)").await;
    world.ask("TRUNCATE TABLE default.u").await;
    world.is_not_sent_again(&doubted, "fewer blocks").await;

    world.others("p", 4).await;
    let doubted = world.replayed("INSERT INTO p VALUES (6)").await;
    world.ask("ALTER TABLE default.p DROP PARTITION 1").await;
    world.is_not_sent_again(&doubted, "were dropped").await;

    let doubted = world.replayed("INSERT INTO t VALUES (8)").await;
    world.ask("DROP TABLE default.t SYNC").await;
    let gone = world.again(&doubted).await;
    assert!(matches!(gone, Err((ErrorClass::BlockedObject, _))), "{gone:?}");
}

#[tokio::test]
async fn who_may_not_ask_repeats_nothing_and_is_warned() {
    let world = World::of("writer", &[&table("t", 100)]).await;
    let (error, doubted) = world.live("INSERT INTO t VALUES (1)").await;
    assert_eq!(error.class, ErrorClass::Ambiguous, "{error}");
    assert!(world.warnings().contains("does not say"), "{}", world.warnings());
    world.is_not_sent_again(&doubted, "nothing was noted").await;
    assert_eq!(world.ask("SELECT count() FROM default.t").await, "1");
}

#[tokio::test]
async fn tables_that_do_not_recognise_repetitions_are_told() {
    let world = World::of(
        "teller",
        &[
            &table("t", 100),
            "CREATE TABLE default.log (n UInt64) ENGINE = Log",
            "CREATE TABLE default.buffer AS default.t ENGINE = Buffer(default, t, 1, 10, 100, 10, 100, 10, 100)",
            "CREATE TABLE default.far AS default.t ENGINE = Distributed(one, default, t)",
        ],
    )
    .await;
    for name in ["log", "buffer", "far"] {
        let insert = World::insert(&format!("INSERT INTO {name} VALUES (1)"));
        world.relay.lose(1);
        let error = insert.to(&world.connector).await.result.unwrap_err();
        assert_eq!(error.class, ErrorClass::Ambiguous, "{name}: {error}");
        assert!(world.warnings().contains(&format!("default.{name}")), "{}", world.warnings());
    }
}

#[tokio::test]
async fn the_query_log_tells_what_became_of_a_write_whatever_its_table_remembers() {
    let world =
        World::of("", &["CREATE TABLE default.t (n UInt64) ENGINE = MergeTree ORDER BY n"]).await;
    let (error, applied) = world.live("INSERT INTO t VALUES (1)").await;
    assert_eq!(error.class, ErrorClass::Unknown, "{error}");
    assert_eq!(world.again(&applied).await, Ok(true), "it is found in the log");
    assert_eq!(world.ask("SELECT count() FROM default.t").await, "1");
    // One of which it says that nothing was written may be sent again, and is refused for what it is.
    let (error, refused) = world.live("INSERT INTO t VALUES ('x')").await;
    assert_eq!(error.class, ErrorClass::Unknown, "{error}");
    let ended = refused.0.to(&world.connector).await.result.unwrap_err();
    assert_eq!((ended.class, &*ended.code, ended.doubt), (ErrorClass::Rejected, "6", None));
    // Another connector does not know that it was sent once only.
    let other = ClickHouseConnector::new(world.server.settings("i", "later"));
    let ended = refused.0.to(&other).await.result.unwrap_err();
    assert_eq!(ended.class, ErrorClass::Ambiguous, "{ended}");
    let ended = applied.0.to(&other).await;
    assert!(ended.result.is_ok() && ended.reply_lost, "{ended:?}");
}

#[tokio::test]
async fn where_nobody_accepts_a_connection_nothing_is_noted() {
    let mut world = World::of("", &[&table("t", 100)]).await;
    let connector = ClickHouseConnector::new(world.server.settings("i", "r"));
    let sent = World::insert("INSERT INTO t VALUES (1)");
    let plan = connector.plan(sent.body.clone()).unwrap();
    let noted = connector.prepare(&[sent.attempt(&plan)]).await.unwrap();
    assert!(!noted[0].is_empty());
    world.server.kill();
    until("it is seen", async || connector.status().connections == 0).await;
    let (verdict, error) = connector.prepare(&[sent.attempt(&plan)]).await.unwrap_err();
    assert_eq!(
        (error.class, error.doubt, verdict),
        (ErrorClass::NotExecuted, None, Verdict::Failure)
    );
    let error = sent.to(&connector).await.result.unwrap_err();
    assert_eq!((error.class, error.doubt), (ErrorClass::NotExecuted, None));
}

#[tokio::test]
async fn callers_in_a_hurry_learn_together_what_none_of_them_has_the_time_for() {
    let world = World::of("teller", &[&table("t", 100)]).await;
    world.relay.slow_down(Duration::from_millis(40));
    let time = Duration::from_millis(30);
    until("an insert of theirs goes out", || async {
        let sent = Sent { timeout: time, ..World::insert("INSERT INTO t VALUES (1)") };
        drop(tokio::time::timeout(time, sent.to(&world.connector)).await);
        world.ask("SELECT count() FROM default.t").await != "0"
    })
    .await;
    // What was asked for the first of them is known to all.
    assert!(world.connector.status().server_version.is_some());
    assert_eq!(world.warnings(), "");
}
