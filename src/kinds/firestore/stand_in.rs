//! A stand-in for Firestore, over gRPC.
//!
//! It knows Commit (`stand_in/documents.rs`) and `BatchGetDocuments`, which is also what the connector
//! pings with. The generated code has no server, so the methods are distinguished here.

use std::{collections::BTreeMap, io, net::SocketAddr, sync::Arc};

use futures_util::stream;
use googleapis_tonic_google_firestore_v1::google::firestore::v1::{
    BatchGetDocumentsRequest, BatchGetDocumentsResponse, CommitRequest, CommitResponse,
    batch_get_documents_response::Result as Found,
};
use hyper::{Request, Response, body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tonic::{Status, body::Body, server::Grpc};
use tonic_prost::ProstCodec;

mod documents;

use crate::net::test_listener::{Line, Port};
use documents::Documents;

/// The stand-in. It keeps its documents while it is stopped.
#[derive(Debug, Default)]
pub struct StandIn {
    documents: Mutex<Documents>,
    port: Port,
}

impl StandIn {
    /// A stand-in without documents that does not listen yet. It remembers the first `sets_max` values
    /// that documents were given in their field `value`.
    pub fn with_log(sets_max: usize) -> Arc<Self> {
        let documents = Mutex::new(Documents::with_log(sets_max));
        Arc::new(Self { documents, ..Self::default() })
    }

    /// Begins to listen; port 0 takes a free one. Returns the address at which it listens. Started again after
    /// [`StandIn::stop`], on the address that it returned, it still has its documents.
    ///
    /// # Errors
    /// The address is taken or not this host's.
    pub async fn start(self: &Arc<Self>, address: SocketAddr) -> io::Result<SocketAddr> {
        let server = Arc::clone(self);
        self.port.start(address, move |stream, line| Arc::clone(&server).serve(stream, line)).await
    }

    /// Does from now on what it is asked with its documents, and breaks the connection in place of an answer:
    /// until it is started again.
    pub fn lose_answers(&self) {
        self.port.lose_answers();
    }

    /// Drops the listener and every connection.
    pub fn stop(&self) {
        self.port.stop();
    }

    /// The paths of documents and the values that they were given in their field `value`, in order, but
    /// for increments; `None` if there were more than it remembers.
    pub fn log(&self) -> Option<Vec<(String, String)>> {
        self.documents.lock().log()
    }

    /// What documents hold in their field `value`, by their paths.
    pub fn values(&self) -> BTreeMap<String, String> {
        self.documents.lock().values()
    }

    /// How many commits came again and were recognised by their marker.
    pub fn recognised(&self) -> u64 {
        self.documents.lock().recognised()
    }

    async fn serve(self: Arc<Self>, stream: TcpStream, line: Arc<Line>) {
        let service =
            service_fn(move |request| Arc::clone(&self).answer(request, Arc::clone(&line)));
        let connection = http2::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(stream), service);
        // However a connection ends, nobody is left to hear of it.
        drop(connection.await);
    }

    async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
        line: Arc<Line>,
    ) -> io::Result<Response<Body>> {
        let lost = Arc::clone(&line);
        let answer = match request.uri().path() {
            "/google.firestore.v1.Firestore/Commit" => {
                let commit = tower::service_fn(move |request: tonic::Request<CommitRequest>| {
                    let done = self.commit(&request.into_inner(), &line);
                    async { done.map(tonic::Response::new) }
                });
                Grpc::new(ProstCodec::default()).unary(commit, request).await
            }
            "/google.firestore.v1.Firestore/BatchGetDocuments" => {
                let get =
                    tower::service_fn(move |request: tonic::Request<BatchGetDocumentsRequest>| {
                        let found = self.get(request.into_inner());
                        async { Ok(tonic::Response::new(stream::iter(found.into_iter().map(Ok)))) }
                    });
                Grpc::new(ProstCodec::default()).server_streaming(get, request).await
            }
            other => {
                let message = format!("this is only a stand-in, and does not know {other}");
                Status::unimplemented(message).into_http()
            }
        };
        if lost.loses_answers() { Err(io::ErrorKind::ConnectionReset.into()) } else { Ok(answer) }
    }

    fn commit(&self, request: &CommitRequest, line: &Line) -> Result<CommitResponse, Status> {
        let mut documents = self.documents.lock();
        if line.is_closed() {
            return Err(Status::unavailable("it is stopped"));
        }
        if !request.transaction.is_empty() {
            return Err(Status::unimplemented("this is only a stand-in, without transactions"));
        }
        documents.commit(&request.writes)
    }

    fn get(&self, request: BatchGetDocumentsRequest) -> Vec<BatchGetDocumentsResponse> {
        let documents = self.documents.lock();
        let read_time = Some(documents.now());
        let names = request.documents.into_iter();
        names
            .map(|name| {
                let found = documents.get(&name).cloned().map(Found::Found);
                let result = Some(found.unwrap_or(Found::Missing(name)));
                BatchGetDocumentsResponse { result, read_time, ..Default::default() }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use fusebox_actors::connector::Connector;
    use fusebox_state::{OpId, UnixMillis};
    use serde_json::{Value as Json, json};

    use super::super::{
        connector::FirestoreConnector,
        protocol::json::reply_to_json,
        testing::{Emulator, Engine, answered, attempt, call, data, planned, settings},
    };
    use super::*;

    async fn stand_in() -> (Arc<StandIn>, SocketAddr) {
        let server = StandIn::with_log(100);
        let address = server.start(crate::net::test_port::own_address()).await.unwrap();
        (server, address)
    }

    fn set(path: &str, value: u64) -> Json {
        json!({ "op": "set", "path": path, "data": { "value": value } })
    }

    fn add(path: &str) -> Json {
        json!({ "op": "set", "path": path, "merge": true, "data": {},
            "transforms": { "value": { "increment": 1 } } })
    }

    /// A reply without its times, and without what transforms made, which npm's emulator does not tell. Nor
    /// does it take fields out of documents: that is tested in `documents.rs` alone.
    fn timeless(mut reply: Json) -> Json {
        if let Some(fields) = reply.as_object_mut() {
            fields.retain(|name, value| {
                name != "transforms" && (!name.ends_with("_time") || value.is_null())
            });
        }
        reply
    }

    #[tokio::test]
    async fn answers_as_an_emulator_does() {
        let real = Emulator::start(Engine::Npm).await;
        let (_server, address) = stand_in().await;
        let connectors =
            [real.port, address.port()].map(|port| FirestoreConnector::new(settings(port)));
        for step in [
            json!({ "op": "get", "path": "d/a" }),
            set("d/a", 1),
            json!({ "op": "get", "path": "d/a" }),
            add("d/a"),
            add("d/new"),
            json!({ "op": "set", "path": "d/a", "merge": true, "data": { "value": 3 } }),
            json!({ "op": "batch_get", "paths": ["d/a", "d/none", "d/new"] }),
            json!({ "op": "update", "path": "d/a", "data": { "value": 7 } }),
            json!({ "op": "get", "path": "d/a" }),
            json!({ "op": "create", "path": "d/b", "data": { "value": 1 } }),
            json!({ "op": "update", "path": "d/none", "data": { "value": 7 } }),
            json!({ "op": "delete", "path": "d/b" }),
            json!({ "op": "delete", "path": "d/b" }),
            json!({ "op": "get", "path": "d/b" }),
            set("d/a", 9),
            json!({ "op": "get", "path": "d/a" }),
        ] {
            let mut ended = Vec::new();
            for connector in &connectors {
                let end = call(connector, step.clone()).await;
                let shown = end.result.as_ref().map(reply_to_json);
                let shown = match shown {
                    Ok(Json::Array(all)) => Ok(all.into_iter().map(timeless).collect()),
                    Ok(one) => Ok(vec![timeless(one)]),
                    Err(error) => Err((error.class, error.code.to_string())),
                };
                ended.push((end.verdict, shown));
            }
            assert_eq!(ended[1], ended[0], "{step}");
        }
    }

    #[tokio::test]
    async fn serves_the_connector_with_its_markers() {
        let (server, address) = stand_in().await;
        let firestore = FirestoreConnector::new(settings(address.port()));
        firestore.ping(Duration::from_secs(3)).await.result.unwrap();
        let plan = planned(&firestore, &add("d/n"));
        let token = Some(OpId::new(UnixMillis::new(1), 1));
        for _ in 0..2 {
            answered(firestore.attempt(attempt(&plan, token)).await);
        }
        assert_eq!(data(&firestore, "d/n").await, json!({ "value": 1 }));
        assert_eq!(server.recognised(), 1);
    }

    #[tokio::test]
    async fn a_write_whose_answer_is_lost_is_there() {
        let (server, address) = stand_in().await;
        let firestore = FirestoreConnector::new(settings(address.port()));
        server.lose_answers();
        let lost = call(&firestore, set("d/a", 1)).await;
        assert_eq!(lost.result.unwrap_err().class, fusebox_state::ErrorClass::Unknown);
        assert_eq!(server.values()["d/a"], "1");
    }

    #[tokio::test]
    async fn keeps_its_documents_while_it_is_stopped() {
        let (server, address) = stand_in().await;
        let firestore = FirestoreConnector::new(settings(address.port()));
        answered(call(&firestore, set("d/a", 1)).await);
        server.stop();
        crate::kinds::clickhouse::testing::until("nobody listens", || async {
            TcpStream::connect(address).await.is_err()
        })
        .await;
        assert!(call(&firestore, set("d/b", 2)).await.result.is_err());
        assert_eq!(server.start(address).await.unwrap(), address);
        answered(call(&firestore, set("d/c", 3)).await);
        assert_eq!(data(&firestore, "d/a").await, json!({ "value": 1 }));
        let log = [("d/a", "1"), ("d/c", "3")].map(|(path, value)| (path.into(), value.into()));
        assert_eq!(server.log().unwrap(), log);
    }
}
