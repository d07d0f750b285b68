//! Redis as a program has it: a stock client that was given the address of the daemon's door, and knows nothing else of
//! fusebox. What it asks besides, `FUSEBOX LAST`, is for the ledger: where the answer came from.

use std::path::PathBuf;

use fusebox_actors::{AckLevel, Source};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, IntoConnectionInfo, RedisError, Value,
    aio::MultiplexedConnection,
};
use serde_json::json;
use tokio::sync::Mutex;

use super::ledger::{Answer, Ended};

/// What `FUSEBOX LAST` answers: source, promise, age in milliseconds, `op_id`, writes that wait.
type Last = (String, Option<String>, u64, Option<String>, u64);

/// A program's connection to the door, opened when it is first needed and after it broke.
pub(super) struct StockClient {
    socket: PathBuf,
    connection: Mutex<Option<MultiplexedConnection>>,
}

impl StockClient {
    /// A client of the door at `socket`.
    pub(super) fn new(socket: PathBuf) -> Self {
        Self { socket, connection: Mutex::default() }
    }

    /// Asks for a command, which `is_write` or reads. A read whose connection was broken is asked again.
    pub(super) async fn ask(&self, words: &[String], is_write: bool) -> Ended {
        let ended = self.ask_once(words, is_write).await;
        if !is_write && matches!(ended, Ended::Unknown(_)) {
            return self.ask_once(words, is_write).await;
        }
        ended
    }

    async fn ask_once(&self, words: &[String], is_write: bool) -> Ended {
        let mut kept = self.connection.lock().await;
        let mut connection = match kept.take() {
            Some(connection) => connection,
            None => match self.connect().await {
                Ok(connection) => connection,
                Err(_) => return Ended::NoDaemon,
            },
        };
        let mut command = Cmd::new();
        command.arg(words);
        let value: Value = match command.query_async(&mut connection).await {
            Ok(value) => value,
            Err(error) => {
                let ended = failed(&error);
                // A refusal is an answer, too: the connection is as before.
                if matches!(ended, Ended::Refused(_)) {
                    *kept = Some(connection);
                }
                return ended;
            }
        };
        let asked = redis::cmd("FUSEBOX").arg("LAST").query_async(&mut connection).await;
        // If the daemon has gone since, the command was answered all the same; nobody knows whether from the queue.
        let told: Option<Last> = asked.ok();
        *kept = told.is_some().then_some(connection);
        let least = (Source::Queued.as_str().to_owned(), Some("durable".to_owned()), 0, None, 0);
        let (source, ack, age_ms, ..) = told.unwrap_or(least);
        // The server's own answers bear no promise but its own.
        let is_durable = ack.as_deref() == Some("durable");
        let promise = if is_durable { AckLevel::Durable } else { AckLevel::Applied };
        Ended::Answered(Answer {
            status: None,
            source: serde_json::from_value(json!(source)).unwrap_or_default(),
            ack: is_write.then_some(promise),
            value: shown(&value),
            age_ms,
        })
    }

    async fn connect(&self) -> Result<MultiplexedConnection, RedisError> {
        let info = ConnectionAddr::Unix(self.socket.clone()).into_connection_info()?;
        // The daemon answers in its own time.
        let config = AsyncConnectionConfig::new().set_response_timeout(None);
        Client::open(info)?.get_multiplexed_async_connection_with_config(&config).await
    }
}

/// How a command ended that was not answered: an error of which the door says that nothing was executed, or another.
fn failed(error: &RedisError) -> Ended {
    let why = error.detail().map_or_else(|| error.to_string(), str::to_owned);
    if why.contains("not executed") { Ended::Refused(why) } else { Ended::Unknown(why) }
}

fn shown(value: &Value) -> serde_json::Value {
    match value {
        Value::Nil => json!(null),
        Value::Int(number) => json!(number),
        Value::Okay => json!("OK"),
        Value::BulkString(bytes) => json!(String::from_utf8_lossy(bytes)),
        other => json!(format!("{other:?}")),
    }
}
