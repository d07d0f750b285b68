//! Reads behind queued writes.

use std::convert::Infallible;

use googleapis_tonic_google_firestore_v1::google::firestore::v1::BatchGetDocumentsRequest;
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use prost::Message;

use super::{
    clients::{DATABASE, name, set, stub},
    passing::plain,
    pipelines::{PIPELINE, executes},
    understood::{committed, said},
    *,
};

/// A server of gRPC and REST that answers everything at once.
async fn server() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    port
}

async fn serve(stream: TcpStream) {
    let mut first = [0; 3];
    stream.peek(&mut first).await.unwrap();
    if &first == b"PRI" {
        let mut served = h2::server::handshake(stream).await.unwrap();
        while let Some(Ok((_, respond))) = served.accept().await {
            answer(respond, b"");
        }
    } else {
        let service = service_fn(async |_: Request<Incoming>| {
            Ok::<_, Infallible>(Response::new(Full::<Bytes>::from("{}")))
        });
        drop(http1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
    }
}

/// What a read gets that may not pass queued writes.
const BEHIND: &str = "has earlier writes waiting in the queue";

/// A world whose queue holds a write to `u/a`, although its server is there.
async fn world() -> World {
    let world = World::before(server().await).await;
    let backend = world.fusebox.backend("firestore").unwrap();
    world.fusebox.hold_copied("nothing is replayed");
    backend.set_offline(true).await.unwrap();
    let mut stub = stub(&world).await;
    let kept = committed(&mut stub, vec![set("u/a", "new".into())]).await.unwrap();
    assert_eq!(said(kept.metadata(), "x-fusebox-source"), "queued");
    backend.set_offline(false).await.unwrap();
    world
}

#[tokio::test]
async fn a_get_over_rest_does_not_pass_queued_writes_and_a_query_does() {
    let world = world().await;
    for (verb, path, passes) in [
        ("GET", "documents/u/a", false),
        ("GET", "documents/u%2Fa", false),
        ("GET", "docu%6Dents/u/a", false),
        ("GET", "documents/u/%61%zz", false),
        ("GET", "documents/u/b/../a", false),
        ("POST", "documents:batchGet", false),
        ("GET", "documents/u/b", true),
        ("GET", "documents/u", true),
        ("POST", "documents:runQuery", true),
    ] {
        let request = format!(
            "{verb} /v1/{DATABASE}/{path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\n\
             Connection: close\r\nContent-Length: 0\r\n\r\n",
            world.port
        );
        let told = plain(world.port, &request).await;
        assert_eq!(told.starts_with("HTTP/1.1 200"), passes, "{verb} {path}: {told}");
        assert_eq!(told.contains(BEHIND), !passes, "{verb} {path}: {told}");
    }
}

#[tokio::test]
async fn a_get_that_cannot_be_read_does_not_pass_queued_writes() {
    let world = world().await;
    let client = world.connect().await;
    let documents = vec![name("u/a")];
    let get = BatchGetDocumentsRequest { documents, ..BatchGetDocumentsRequest::default() };
    let mut compressed = framed(&get.encode_to_vec()).to_vec();
    compressed[0] = 1;
    let (response, mut stream) = client.begin(PING, &[("grpc-encoding", "gzip")]).await;
    stream.send_data(compressed.into(), true).unwrap();
    let got = whole(response).await;
    assert!(got.status() == "2" && got.message().contains(BEHIND), "{got:?}");
    let got = client.call(PIPELINE, &[], &executes(&["documents", "select"])).await;
    assert!(got.status() == "2" && got.message().contains(BEHIND), "{got:?}");
    let got = client.call(PIPELINE, &[], &executes(&["collection", "select"])).await;
    assert_eq!(got.status(), "0", "it is a query: {got:?}");
}
