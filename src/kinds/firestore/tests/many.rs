//! More live queries than a connection takes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use fusebox_actors::connector::Connector as _;
use hyper::{HeaderMap, Response};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};

use crate::{
    kinds::firestore::{
        connector::FirestoreConnector,
        protocol::json::body_from_json,
        testing::{PATIENCE, call, settings},
    },
    net::testing::until,
};

/// Streams at once over a connection.
const STREAMS: u32 = 10;

/// A server that finds nothing, and keeps each Listen open. Returns how many there have been.
async fn server() -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let listens = Arc::<AtomicUsize>::default();
    let counted = Arc::clone(&listens);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, Arc::clone(&counted)));
        }
    });
    (port, listens)
}

async fn serve(stream: TcpStream, listens: Arc<AtomicUsize>) {
    let mut builder = h2::server::Builder::new();
    builder.max_concurrent_streams(STREAMS);
    let mut served = builder.handshake::<_, Bytes>(stream).await.unwrap();
    let mut open = Vec::new();
    while let Some(Ok((request, mut respond))) = served.accept().await {
        let head = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
        let mut body = respond.send_response(head, false).unwrap();
        if request.uri().path().ends_with("/Listen") {
            listens.fetch_add(1, Relaxed);
            open.push((request, body));
        } else {
            let status = ("grpc-status".parse().unwrap(), "0".parse().unwrap());
            body.send_trailers(HeaderMap::from_iter([status])).unwrap();
        }
    }
}

#[tokio::test]
async fn live_queries_leave_room_for_reads_and_pings() {
    let (port, listens) = server().await;
    let fs = FirestoreConnector::new(settings(port));
    // From here on it is known how many streams a connection takes.
    fs.ping(PATIENCE).await.result.unwrap();
    let get = |path: &str| json!({ "op": "get", "path": path });
    for n in 0..=STREAMS {
        let query = get(&format!("u/{n}")).as_object().unwrap().clone();
        let query = body_from_json(query, "").unwrap();
        fs.streams().unwrap().open(query, Arc::new(|| true)).unwrap();
    }
    let full = usize::try_from(STREAMS).unwrap();
    until("a connection is full of them", || listens.load(Relaxed) >= full).await;
    let pinged = fs.ping(Duration::from_secs(3)).await;
    assert!(pinged.result.is_ok(), "{pinged:?}");
    let got = call(&fs, get("u/a")).await;
    assert!(got.result.is_ok(), "{got:?}");
    until("the last of them is open", || listens.load(Relaxed) > full).await;
}
