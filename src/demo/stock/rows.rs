//! A client of the ClickHouse door as stock ones are: HTTP/1.1, one statement a request, one connection kept.

use std::path::PathBuf;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{
    Request, Response,
    body::Incoming,
    client::conn::http1::{self, SendRequest},
    http::response::Parts,
};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{net::UnixStream, sync::Mutex};

use super::said::{Said, failed};
use crate::demo::{call::Call, ledger::Ended};

/// What clients put behind the address: the database.
const TARGET: &str = "/?database=default";

/// A program's connection to the door, opened when it is first needed and after it broke.
pub(super) struct RowsClient {
    socket: PathBuf,
    connection: Mutex<Option<SendRequest<Full<Bytes>>>>,
}

impl RowsClient {
    /// A client of the door at `socket`.
    pub(super) fn new(socket: PathBuf) -> Self {
        Self { socket, connection: Mutex::default() }
    }

    /// Makes `call`.
    pub(super) async fn make(&self, call: &Call) -> Ended {
        let mut kept = self.connection.lock().await;
        let open = match kept.take() {
            Some(mut connection) => connection.ready().await.is_ok().then_some(connection),
            None => None,
        };
        let mut connection = match open {
            Some(connection) => connection,
            None => match self.connect().await {
                Some(connection) => connection,
                None => return Ended::NoDaemon,
            },
        };
        match send(&mut connection, call.statement()).await {
            Ok((response, body)) => {
                *kept = Some(connection);
                answered(call, &response, &body)
            }
            Err(error) => Ended::Unknown(format!("the connection broke: {error}")),
        }
    }

    async fn connect(&self) -> Option<SendRequest<Full<Bytes>>> {
        let stream = UnixStream::connect(&self.socket).await.ok()?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.ok()?;
        drop(tokio::spawn(connection));
        Some(sender)
    }
}

async fn send(
    connection: &mut SendRequest<Full<Bytes>>,
    statement: String,
) -> hyper::Result<(Parts, Bytes)> {
    let mut request = Request::new(Full::new(Bytes::from(statement)));
    *request.method_mut() = hyper::Method::POST;
    *request.uri_mut() = hyper::Uri::from_static(TARGET);
    request.headers_mut().insert("host", hyper::header::HeaderValue::from_static("localhost"));
    let response: Response<Incoming> = connection.send_request(request).await?;
    let (head, body) = response.into_parts();
    Ok((head, body.collect().await?.to_bytes()))
}

fn answered(call: &Call, head: &Parts, body: &[u8]) -> Ended {
    let text = String::from_utf8_lossy(body);
    if !head.status.is_success() {
        return failed(text.trim_end().to_owned());
    }
    let header = |name: &str| head.headers.get(name)?.to_str().ok();
    let rows = text.lines().filter_map(|row| serde_json::from_str::<Value>(row).ok());
    Said::of(header).answer(call, rows.collect())
}
