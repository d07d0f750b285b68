//! Writes that last, and what one that is not answered costs the others.

use googleapis_tonic_google_firestore_v1::google::firestore::v1::{
    BeginTransactionRequest, CommitRequest, GetDocumentRequest, WriteRequest, WriteResponse,
};
use tokio::{
    io::AsyncReadExt,
    sync::mpsc::{UnboundedSender, unbounded_channel},
    time::Instant,
};

use super::{
    clients::{DATABASE, name, set, stub},
    passing::plain,
    understood::{Stub, committed, said},
    *,
};
use crate::kinds::firestore::testing::Emulator;

/// A stream over which a mobile client writes.
struct Streamed {
    asks: UnboundedSender<WriteRequest>,
    answers: tonic::Streaming<WriteResponse>,
    token: Bytes,
}

impl Streamed {
    async fn begin(stub: &mut Stub) -> Self {
        let (asks, asked) = unbounded_channel::<WriteRequest>();
        asks.send(WriteRequest { database: DATABASE.into(), ..WriteRequest::default() }).unwrap();
        let asked = futures_util::stream::unfold(asked, async |mut asked| {
            asked.recv().await.map(|next| (next, asked))
        });
        let mut request = tonic::Request::new(asked);
        request.metadata_mut().insert("google-cloud-resource-prefix", DATABASE.parse().unwrap());
        let answers = timeout(PATIENCE, stub.write(request)).await.unwrap().unwrap().into_inner();
        let mut begun = Self { asks, answers, token: Bytes::new() };
        begun.hears().await;
        begun
    }

    async fn hears(&mut self) -> WriteResponse {
        let said = timeout(PATIENCE, self.answers.message()).await.unwrap().unwrap().unwrap();
        self.token = said.stream_token.clone();
        said
    }

    /// Writes a document, and hears of it.
    async fn sets(&mut self, path: &str, text: &str) {
        let writes = vec![set(path, text.into())];
        let stream_token = self.token.clone();
        self.asks.send(WriteRequest { writes, stream_token, ..WriteRequest::default() }).unwrap();
        assert_eq!(self.hears().await.write_results.len(), 1);
    }
}

#[tokio::test]
async fn a_write_stream_that_is_open_keeps_nobody_waiting() {
    let Some(emulator) = Emulator::google("streams that write").await else { return };
    let world = World::before(emulator.port).await;
    let mut stub = stub(&world).await;
    let mut open = Streamed::begin(&mut stub).await;
    open.sets("u/a", "streamed").await;
    let start = Instant::now();
    let beside = committed(&mut stub, vec![set("u/a", "beside".into())]).await.unwrap();
    assert_eq!(said(beside.metadata(), "x-fusebox-source"), "", "it is live");
    let begin = BeginTransactionRequest { database: DATABASE.into(), options: None };
    let transaction = stub.begin_transaction(begin).await.unwrap().into_inner().transaction;
    let writes = vec![set("u/b", "in a transaction".into())];
    stub.commit(CommitRequest { database: DATABASE.into(), writes, transaction }).await.unwrap();
    let mut second = Streamed::begin(&mut stub).await;
    second.sets("u/a", "second").await;
    open.sets("u/a", "first again").await;
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    let get = GetDocumentRequest { name: name("u/a"), ..GetDocumentRequest::default() };
    let found = stub.get_document(get).await.unwrap().into_inner();
    assert!(format!("{found:?}").contains("first again"), "{found:?}");
    let backend = world.fusebox.backend("firestore").unwrap();
    assert!(!backend.caches_something(), "a stream may write at any time");
}

/// A get of a document.

#[tokio::test]
async fn a_write_that_may_not_be_sent_does_not_wait_for_the_fence_in_an_outage() {
    let (server, port) = Played::start().await;
    server.answer_nothing();
    let wanted = Wanted { timeout: Duration::from_secs(12), ..Wanted::default() };
    let world = World::with(settings(port), wanted).await;
    let client = world.connect().await;
    let left = {
        let (response, mut stream) = client.begin(COMMIT, &[]).await;
        stream.send_data(framed(DELETE), true).unwrap();
        until("it is sent", || world.in_flight() == 1).await;
        (response, stream)
    };
    drop(left);
    let backend = world.fusebox.backend("firestore").unwrap();
    // One waits already, another comes later.
    let waiting = {
        let client = client.clone();
        tokio::spawn(async move { client.call(COMMIT, &[], DELETE).await })
    };
    let start = Instant::now();
    backend.set_offline(true).await.unwrap();
    for got in [client.call(COMMIT, &[], DELETE).await, waiting.await.unwrap()] {
        assert_eq!(got.status(), "2", "{got:?}");
        assert!(got.message().contains("not executed"), "{got:?}");
    }
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_write_over_rest_has_a_deadline_at_the_server_and_its_connection_is_closed_without_an_answer()
 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let wanted = Wanted { timeout: Duration::from_millis(1_200), ..Wanted::default() };
    let world = World::with(settings(port), wanted).await;
    let path = format!("/v1/{}", name("u/a"));
    let request = format!(
        "PATCH {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Server-Timeout: 600\r\nConnection: close\r\n\
         Content-Length: 2\r\n\r\n{{}}"
    );
    let calling = tokio::spawn(async move { plain(world.port, &request).await });
    let mut stream = loop {
        let (mut stream, _) = timeout(PATIENCE, listener.accept()).await.unwrap().unwrap();
        let mut first = [0; 5];
        stream.read_exact(&mut first).await.unwrap();
        if &first == b"PATCH" {
            break stream;
        }
    };
    let mut seen = Vec::new();
    while !seen.ends_with(b"{}") {
        let read = stream.read_buf(&mut seen).await.unwrap();
        assert!(read > 0);
    }
    let seen = String::from_utf8(seen).unwrap().to_lowercase();
    assert!(seen.contains("\r\nx-server-timeout: 2\r\n"), "{seen}");
    assert_eq!(seen.matches("x-server-timeout").count(), 1);
    let told = calling.await.unwrap();
    assert!(told.starts_with("HTTP/1.1 504"), "{told}");
    let mut more = [0; 16];
    let end = timeout(Duration::from_secs(1), stream.read(&mut more)).await;
    assert!(!matches!(end, Ok(Ok(1..)) | Err(_)), "it is closed by then");
}
