//! A stand-in for ClickHouse, over HTTP.
//!
//! It has one table (`stand_in/table.rs`), recognises an insert that comes again by its token, and runs
//! one statement after the other, so that there is never a query to be listed or killed.

use std::{io, net::SocketAddr, sync::Arc};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::TcpStream;

mod statement;
mod table;

use crate::net::{
    percent,
    test_listener::{Line, Port},
};
use statement::{Answer, Exception, Given};
use table::Table;

/// The largest request that it reads.
const REQUEST_MAX: usize = 16 << 20;

/// The stand-in. It keeps its rows while it is stopped.
#[derive(Debug, Default)]
pub struct StandIn {
    table: Mutex<Table>,
    port: Port,
}

impl StandIn {
    /// A stand-in without rows that does not listen yet.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Begins to listen; port 0 takes a free one. Returns the address at which it listens. Started again after
    /// [`StandIn::stop`], on the address that it returned, it still has its rows.
    ///
    /// # Errors
    /// The address is taken or not this host's.
    pub async fn start(self: &Arc<Self>, address: SocketAddr) -> io::Result<SocketAddr> {
        let server = Arc::clone(self);
        self.port.start(address, move |stream, line| Arc::clone(&server).serve(stream, line)).await
    }

    /// Does from now on what it is asked with its table, and breaks the connection in place of an answer:
    /// until it is started again.
    pub fn lose_answers(&self) {
        self.port.lose_answers();
    }

    /// Drops the listener and every connection.
    pub fn stop(&self) {
        self.port.stop();
    }

    /// The ids of its rows, in the order in which they came.
    pub fn ids(&self) -> Vec<u64> {
        self.table.lock().rows().iter().map(|row| row.id).collect()
    }

    /// How many inserts came again and were recognised by their token.
    pub fn recognised(&self) -> u64 {
        self.table.lock().recognised()
    }

    async fn serve(self: Arc<Self>, stream: TcpStream, line: Arc<Line>) {
        let service = service_fn(|request| self.answer(request, &line));
        let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
        // However a connection ends, nobody is left to hear of it.
        drop(connection.await);
    }

    async fn answer(
        &self,
        request: Request<Incoming>,
        line: &Line,
    ) -> io::Result<Response<Full<Bytes>>> {
        if request.uri().path() == "/ping" {
            return Ok(Response::new("Ok.\n".into()));
        }
        let given = given(request.uri().query().unwrap_or_default());
        let body = Limited::new(request.into_body(), REQUEST_MAX).collect().await;
        let body = body.map_err(io::Error::other)?.to_bytes();
        let text = String::from_utf8_lossy(&body);
        let mut table = self.table.lock();
        if line.is_closed() {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        let ran = statement::run(&text, &given, &mut table);
        drop(table);
        // Not so to what is asked about the server: else nothing more would be sent.
        if line.loses_answers() && text.contains(table::NAME) && !text.contains(" FROM system.") {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        match ran {
            Ok(answer) => answered(answer),
            Err(exception) => refused(&exception),
        }
    }
}

/// What the query string brings that matters here.
fn given(query: &str) -> Given {
    let mut given = Given::default();
    for (name, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
        let value = percent::decoded(value);
        match name {
            "database" => given.database = value,
            "default_format" => given.format = value,
            "insert_deduplication_token" => given.token = value,
            _ => {}
        }
    }
    given
}

fn answered(answer: Answer) -> io::Result<Response<Full<Bytes>>> {
    let Answer { format, body, written } = answer;
    let mut response = Response::builder();
    if let Some(rows) = written {
        let summary = format!(r#"{{"written_rows":"{rows}"}}"#);
        response = response.header("X-ClickHouse-Summary", summary);
    } else {
        response = response.header("X-ClickHouse-Format", format);
    }
    response.body(Full::from(body)).map_err(io::Error::other)
}

fn refused(exception: &Exception) -> io::Result<Response<Full<Bytes>>> {
    Response::builder()
        .status(exception.status())
        .header("X-ClickHouse-Exception-Code", exception.code)
        .body(Full::from(exception.text()))
        .map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use fusebox_actors::connector::{Access, Attempt, Attempted, Connector, Doubt, Origin, Plan};
    use fusebox_state::{OpId, UnixMillis};
    use serde_json::json;

    use super::super::{
        connector::ClickHouseConnector,
        protocol::json::{Data, JsonParts, body_from_json, reply_to_json},
        testing::{Server, settings},
    };
    use super::*;

    async fn stand_in() -> (Arc<StandIn>, SocketAddr) {
        let server = StandIn::new();
        let address = server.start(crate::net::test_port::own_address()).await.unwrap();
        (server, address)
    }

    async fn carry(
        connector: &ClickHouseConnector,
        query: &str,
        data: Option<&str>,
        token: Option<OpId>,
        noted: Option<&Bytes>,
    ) -> Attempted {
        let (plan, at) = (planned(connector, query, data), UnixMillis::new(1));
        let doubt = noted.map(|evidence| Doubt { since: at, evidence });
        connector.attempt(attempt_of(&plan, token, doubt)).await
    }

    fn planned(connector: &ClickHouseConnector, query: &str, data: Option<&str>) -> Plan {
        let parts = JsonParts {
            query: query.to_owned(),
            data: data.map(|data| Data(data.to_owned().into())),
            ..JsonParts::default()
        };
        connector.plan(body_from_json(parts).unwrap()).unwrap()
    }

    fn attempt_of<'a>(
        plan: &'a Plan,
        token: Option<OpId>,
        doubt: Option<Doubt<'a>>,
    ) -> Attempt<'a> {
        let at = UnixMillis::new(1);
        Attempt {
            body: &plan.body,
            lanes: &plan.lanes,
            write: matches!(plan.access, Access::Write(_)),
            origin: Origin::Live,
            token,
            digest: 0,
            doubt,
            following: &[],
            streams: false,
            upload: None,
            dialect: 0,
            passage: None,
            accepted_at: at,
            now: at,
            timeout: Duration::from_secs(3),
            left: Duration::from_secs(3),
            fence_patience: Duration::from_secs(3),
            trace: None,
        }
    }

    const INSERT: &str = "INSERT INTO visits FORMAT JSONEachRow";

    #[tokio::test]
    async fn answers_as_a_real_server_does() {
        let real = Server::start().await;
        let (_server, address) = stand_in().await;
        // The oldest server that there is has no tokens, and its own words.
        real.ask(
            "CREATE TABLE default.visits (id UInt64, amount UInt64) ENGINE = MergeTree ORDER BY id",
        )
        .await;
        let connectors = [real.port, address.port()]
            .map(|port| ClickHouseConnector::new(settings(port, "i", "r")));
        for (query, data) in [
            ("SELECT 1 FORMAT TabSeparated", None),
            (INSERT, Some("{\"id\":1,\"amount\":2}\n{\"id\":2}\n")),
            (INSERT, Some("{\"amount\":7}")),
            ("SELECT count() AS n FROM visits FORMAT TabSeparated", None),
            (
                "SELECT count() AS n, sum(amount) AS s, sum(id) FROM visits FORMAT TabSeparated",
                None,
            ),
            ("SELECT count() FROM default.visits FORMAT TabSeparated", None),
            ("SELECT count() FROM missing FORMAT TabSeparated", None),
            ("INSERT INTO missing FORMAT JSONEachRow", Some("{\"id\":1}")),
            ("SELECT count( FROM visits FORMAT TabSeparated", None),
        ] {
            let mut ended = Vec::new();
            for connector in &connectors {
                let end = carry(connector, query, data, None, None).await;
                // The old server sends no summary of an insert.
                let value = |reply| match data {
                    Some(_) => json!(null),
                    None => serde_json::to_value(reply_to_json(reply)).unwrap(),
                };
                ended.push((
                    end.verdict,
                    end.result
                        .as_ref()
                        .map(value)
                        .map_err(|error| (error.class, &error.code))
                        .map_err(|(class, code)| (class, code.to_string())),
                ));
            }
            assert_eq!(ended[1], ended[0], "{query}");
        }
    }

    #[tokio::test]
    async fn serves_the_connector_with_its_fence_and_tokens() {
        let (server, address) = stand_in().await;
        let token = Some(OpId::new(UnixMillis::new(1), 1));
        let mut noted = None;
        for run in ["one", "two"] {
            let connector = ClickHouseConnector::new(settings(address.port(), "i", run));
            connector.ping(Duration::from_secs(3)).await.result.unwrap();
            let row = Some("{\"id\":7}");
            let plan = planned(&connector, INSERT, row);
            let prepared = connector.prepare(&[attempt_of(&plan, token, None)]).await.unwrap();
            carry(&connector, INSERT, row, token, noted.as_ref()).await.result.unwrap();
            noted = prepared.into_iter().next();
            let status = connector.status();
            assert_eq!(
                (status.warnings, status.server_version.unwrap()),
                (vec![], "25.8.1.1".into())
            );
        }
        assert_eq!((server.ids(), server.recognised()), (vec![7], 1));
    }

    #[tokio::test]
    async fn an_insert_whose_answer_is_lost_is_there() {
        let (server, address) = stand_in().await;
        let connector = ClickHouseConnector::new(settings(address.port(), "i", "r"));
        server.lose_answers();
        let lost = carry(&connector, INSERT, Some("{\"id\":1}"), None, None).await;
        assert_eq!(lost.result.unwrap_err().class, fusebox_state::ErrorClass::Unknown);
        assert_eq!(server.ids(), [1]);
    }

    #[tokio::test]
    async fn keeps_its_rows_while_it_is_stopped() {
        let (server, address) = stand_in().await;
        let connector = ClickHouseConnector::new(settings(address.port(), "i", "r"));
        carry(&connector, INSERT, Some("{\"id\":1}"), None, None).await.result.unwrap();
        server.stop();
        super::super::testing::until("nobody listens", || async {
            TcpStream::connect(address).await.is_err()
        })
        .await;
        assert!(carry(&connector, INSERT, Some("{\"id\":2}"), None, None).await.result.is_err());
        assert_eq!(server.start(address).await.unwrap(), address);
        carry(&connector, INSERT, Some("{\"id\":3}"), None, None).await.result.unwrap();
        assert_eq!(server.ids(), [1, 3]);
    }
}
