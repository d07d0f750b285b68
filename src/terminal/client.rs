//! A client of the command socket: one connection a request.

use std::path::PathBuf;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, Response, body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;

use super::failure::Failure;

/// The client.
pub(crate) struct Client {
    socket: PathBuf,
}

impl Client {
    /// A client of the daemon at `socket`.
    pub(crate) fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// The JSON at `path`.
    pub(crate) async fn get(&self, path: &str) -> Result<Value, Failure> {
        self.ask(Method::GET, path, None).await
    }

    /// Sends an order, with a body if it has one.
    pub(crate) async fn post(&self, path: &str, body: Option<&Value>) -> Result<Value, Failure> {
        self.ask(Method::POST, path, body).await
    }

    /// Sends an order whose body is text.
    pub(crate) async fn post_text(&self, path: &str, text: String) -> Result<Value, Failure> {
        let response = self.send_bytes(Method::POST, path, text.into()).await?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.map_err(|error| broke(&error))?;
        let value = serde_json::from_slice(&body.to_bytes())
            .map_err(|_| Failure::failed(format!("the answer ({status}) is not JSON")))?;
        if (200..300).contains(&status) {
            return Ok(value);
        }
        Err(Failure::of_problem(status, &value, false))
    }

    /// Puts a value in the place of the one at `path`.
    pub(crate) async fn put(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        self.ask(Method::PUT, path, Some(body)).await
    }

    /// Changes what is at `path`.
    pub(crate) async fn patch(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        self.ask(Method::PATCH, path, Some(body)).await
    }

    /// Deletes what is at `path`.
    pub(crate) async fn delete(&self, path: &str) -> Result<Value, Failure> {
        self.ask(Method::DELETE, path, None).await
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, Failure> {
        let (status, value) = self.exchange(method, path, body).await?;
        if (200..300).contains(&status) {
            return Ok(value);
        }
        Err(Failure::of_problem(status, &value, false))
    }

    /// The status and the JSON of an answer, whatever it is.
    pub(crate) async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(u16, Value), Failure> {
        let (status, body) = self.exchange_bytes(method, path, body).await?;
        let value = serde_json::from_slice(&body)
            .map_err(|_| Failure::failed(format!("the answer ({status}) is not JSON")))?;
        Ok((status, value))
    }

    /// The status and the bytes of an answer, for what must not be rewritten.
    pub(crate) async fn exchange_bytes(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(u16, Bytes), Failure> {
        let response = self.send(method, path, body).await?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.map_err(|error| broke(&error))?;
        Ok((status, body.to_bytes()))
    }

    /// The answer to a GET as it comes.
    pub(crate) async fn stream(&self, path: &str) -> Result<Incoming, Failure> {
        let response = self.send(Method::GET, path, None).await?;
        if response.status().is_success() {
            return Ok(response.into_body());
        }
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.map_err(|error| broke(&error))?;
        let problem = serde_json::from_slice(&body.to_bytes()).unwrap_or(Value::Null);
        Err(Failure::of_problem(status, &problem, false))
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Response<Incoming>, Failure> {
        let bytes = body.map(|body| Bytes::from(body.to_string())).unwrap_or_default();
        self.send_bytes(method, path, bytes).await
    }

    async fn send_bytes(
        &self,
        method: Method,
        path: &str,
        bytes: Bytes,
    ) -> Result<Response<Incoming>, Failure> {
        let shown = self.socket.display();
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| {
            use std::io::ErrorKind::{ConnectionRefused, NotFound};
            let message = format!("no daemon at {shown}: {error}");
            match error.kind() {
                NotFound | ConnectionRefused => Failure::no_daemon(message),
                _ => Failure::failed(format!("cannot connect to {shown}: {error}")),
            }
        })?;
        let handshake = http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| broke(&error))?;
        drop(tokio::spawn(connection));
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "localhost")
            .header("content-type", "application/json")
            .body(Full::new(bytes))
            .map_err(|error| Failure::usage(format!("{path:?} cannot be requested: {error}")))?;
        sender.send_request(request).await.map_err(|error| broke(&error))
    }
}

fn broke(error: &hyper::Error) -> Failure {
    Failure::failed(format!("the connection to the daemon broke: {error}"))
}

/// A backend's name as part of a path.
pub(crate) fn segment(name: &str) -> Result<&str, Failure> {
    let plain = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-');
    if !name.is_empty() && name.bytes().all(plain) {
        return Ok(name);
    }
    Err(Failure::usage(format!(
        "{name:?} is not a backend's name: names consist of a-z, 0-9, _ and -"
    )))
}
