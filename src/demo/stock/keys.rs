//! A stock client of the Redis door: redis-rs.

use std::path::PathBuf;

use fusebox_actors::Source;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, IntoConnectionInfo, RedisError, Value,
    aio::MultiplexedConnection,
};
use serde_json::json;
use tokio::sync::Mutex;

use super::said::{Said, failed};
use crate::demo::{call::Call, ledger::Ended};

/// What `FUSEBOX LAST` answers: source, promise, age in milliseconds, `op_id`, writes that wait.
type Last = (String, Option<String>, u64, Option<String>, u64);

/// A program's connection to the door, opened when it is first needed and after it broke.
pub(super) struct KeysClient {
    socket: PathBuf,
    connection: Mutex<Option<MultiplexedConnection>>,
}

impl KeysClient {
    /// A client of the door at `socket`.
    pub(super) fn new(socket: PathBuf) -> Self {
        Self { socket, connection: Mutex::default() }
    }

    /// Makes `call`.
    pub(super) async fn make(&self, call: &Call) -> Ended {
        let mut kept = self.connection.lock().await;
        let mut connection = match kept.take() {
            Some(connection) => connection,
            None => match self.connect().await {
                Ok(connection) => connection,
                Err(_) => return Ended::NoDaemon,
            },
        };
        let mut command = Cmd::new();
        command.arg(call.words());
        let value: Value = match command.query_async(&mut connection).await {
            Ok(value) => value,
            Err(error) => {
                let ended = failed(detail(&error));
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
        let said = Said { source: Some(&source), ack: ack.as_deref(), age_ms };
        said.answer(call, shown(&value))
    }

    async fn connect(&self) -> Result<MultiplexedConnection, RedisError> {
        let info = ConnectionAddr::Unix(self.socket.clone()).into_connection_info()?;
        // The daemon answers in its own time.
        let config = AsyncConnectionConfig::new().set_response_timeout(None);
        Client::open(info)?.get_multiplexed_async_connection_with_config(&config).await
    }
}

fn detail(error: &RedisError) -> String {
    error.detail().map_or_else(|| error.to_string(), str::to_owned)
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
