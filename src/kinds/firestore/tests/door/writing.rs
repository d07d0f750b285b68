//! Writes that last, and what one that is not answered costs the others.

use googleapis_tonic_google_firestore_v1::google::firestore::v1::{
    BeginTransactionRequest, CommitRequest, Document, DocumentMask, GetDocumentRequest,
    UpdateDocumentRequest, Write, WriteRequest, WriteResponse, WriteResult, write::Operation,
};
use prost::Message;
use prost_types::Timestamp;
use tokio::{
    io::AsyncReadExt,
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
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
    assert!(backend.caches_something(), "the streams are open, but all is answered");
}

/// A message of a stream that deletes a document.
pub(super) fn deletes(document: &str) -> Bytes {
    let operation = Some(Operation::Delete(document.into()));
    let writes = vec![Write { operation, ..Write::default() }];
    framed(&WriteRequest { writes, ..WriteRequest::default() }.encode_to_vec())
}

/// A server that hands over what may write as a stream, and answers everything else with `reply`, but for a commit of
/// `SLOW`, which it never answers.
pub(super) fn hands_over(server: Played, reply: Bytes) -> UnboundedReceiver<Came> {
    let (streams, handed) = unbounded_channel();
    server.answer_all(move |request, respond| {
        let (streams, reply) = (streams.clone(), reply.clone());
        async move {
            if request.uri().path().ends_with("/Write") {
                streams.send((request, respond)).unwrap();
                return;
            }
            let asked = drained(&mut request.into_body()).await.unwrap_or_default();
            if asked.windows(SLOW.len()).any(|bytes| bytes == SLOW.as_bytes()) {
                std::future::pending::<()>().await;
            }
            answer(respond, &reply);
        }
    });
    handed
}

/// What a commit contains that is not answered.
const SLOW: &str = "no answer comes";
/// The same method of a version that nobody knows.
const UNKNOWN_WRITE: &str = "/google.firestore.v1beta1.Firestore/Write";

/// A stream of writes, on both sides.
pub(super) struct Both {
    pub(super) asks: SendStream<Bytes>,
    got: RecvStream,
    pub(super) asked: RecvStream,
    answers: SendStream<Bytes>,
}

impl Both {
    pub(super) async fn begin(client: &Raw, handed: &mut UnboundedReceiver<Came>) -> Self {
        Self::of(WRITE, client, handed).await
    }

    async fn of(path: &str, client: &Raw, handed: &mut UnboundedReceiver<Came>) -> Self {
        let (response, mut asks) = client.begin(path, &[("grpc-accept-encoding", "gzip")]).await;
        asks.send_data(framed(b""), false).unwrap();
        let (request, mut respond) = timeout(PATIENCE, handed.recv()).await.unwrap().unwrap();
        assert_eq!(request.headers().contains_key("grpc-accept-encoding"), path != WRITE);
        let mut answers = respond.send_response(head(), false).unwrap();
        let begun = WriteResponse { stream_id: "s".into(), ..WriteResponse::default() };
        answers.send_data(framed(&begun.encode_to_vec()), false).unwrap();
        let got = timeout(PATIENCE, response).await.unwrap().unwrap().into_body();
        let mut both = Self { asks, got, asked: request.into_body(), answers };
        both.hears().await;
        both
    }

    /// The client hears something.
    async fn hears(&mut self) {
        let heard = timeout(PATIENCE, self.got.data()).await.unwrap().unwrap().unwrap();
        self.got.flow_control().release_capacity(heard.len()).unwrap();
    }

    /// Deletes a document; the server has heard it.
    pub(super) async fn deletes(&mut self, document: &str) {
        let message = deletes(document);
        self.asks.send_data(message.clone(), false).unwrap();
        let mut heard = Vec::new();
        while !heard.ends_with(&message) {
            heard.extend(timeout(PATIENCE, self.asked.data()).await.unwrap().unwrap().unwrap());
        }
    }

    /// The server answers a message; the client has heard it.
    pub(super) async fn answers(&mut self) {
        let (write_results, commit_time) = (vec![WriteResult::default()], Some(FUTURE));
        let said = WriteResponse { write_results, commit_time, ..WriteResponse::default() };
        self.answers.send_data(framed(&said.encode_to_vec()), false).unwrap();
        self.hears().await;
    }

    /// The server ends it so.
    pub(super) fn fails(&mut self, trailers: HeaderMap) {
        self.answers.send_trailers(trailers).unwrap();
    }

    /// How the door has ended it.
    pub(super) async fn ends(&mut self) -> Whole {
        while let Some(data) = timeout(PATIENCE, self.got.data()).await.unwrap() {
            self.got.flow_control().release_capacity(data.unwrap().len()).unwrap();
        }
        let trailers = timeout(PATIENCE, self.got.trailers()).await.unwrap().unwrap().unwrap();
        Whole { headers: HeaderMap::new(), body: Vec::new(), trailers }
    }
}

/// A time that the host's clock has not reached.
const FUTURE: Timestamp = Timestamp { seconds: 4_000_000_000, nanos: 0 };

fn commit_of(path: &str, text: &str) -> Vec<u8> {
    let writes = vec![set(path, text.into())];
    CommitRequest { database: DATABASE.into(), writes, ..CommitRequest::default() }.encode_to_vec()
}

#[tokio::test]
async fn a_stream_leaves_in_doubt_only_the_writes_that_it_left_without_an_answer() {
    for path in [WRITE, UNKNOWN_WRITE] {
        let (server, port) = Played::start().await;
        let mut handed = hands_over(server, Bytes::new());
        let world = World::before(port).await;
        let client = world.connect().await;
        let status =
            async |message: &[u8]| client.call(COMMIT, &[], message).await.status().to_owned();
        for leaves_doubt in [false, true] {
            let mut stream = Both::of(path, &client, &mut handed).await;
            stream.deletes("c").await;
            stream.answers().await;
            if leaves_doubt {
                stream.deletes("d").await;
            } else if path == UNKNOWN_WRITE {
                // Nobody knows whether it is over before it says so.
                stream.answers.send_trailers(super::status("0")).unwrap();
                assert_eq!(stream.ends().await.status(), "0");
            }
            let Both { asks, got, asked: _asked, answers: _answers } = stream;
            drop((asks, got));
            // Nothing says when the door has heard of it: so long it may go on as while the stream was open.
            let told = async { while leaves_doubt && status(DELETE).await == "0" {} };
            timeout(PATIENCE, told).await.expect("what it left behind may still land");
            assert_eq!(status(DELETE).await, if leaves_doubt { "2" } else { "0" });
            let other = status(b"\x12\x03\x12\x01c").await;
            let all = leaves_doubt && path == UNKNOWN_WRITE;
            assert_eq!(other, if all { "2" } else { "0" }, "that was answered");
        }
        until("its places are free", || world.in_flight() == 0).await;
        assert_eq!(world.breaker(), "CLOSED");
    }
}

#[tokio::test]
async fn what_a_stream_writes_is_not_cached_any_more_once_it_is_answered() {
    for path in [WRITE, UNKNOWN_WRITE] {
        let (server, port) = Played::start().await;
        let found = Document { name: name("u/a"), ..Document::default() };
        let mut handed = hands_over(server, found.encode_to_vec().into());
        let world = World::before(port).await;
        let client = world.connect().await;
        let backend = world.fusebox.backend("firestore").unwrap();
        let get = GetDocumentRequest { name: name("u/a"), ..GetDocumentRequest::default() };
        let get = get.encode_to_vec();
        let gets = async || {
            let asking = async {
                while !backend.caches_something() {
                    assert_eq!(client.call(GET, &[], &get).await.status(), "0");
                }
            };
            timeout(PATIENCE, asking).await.expect("it is cached");
        };
        let mut stream = Both::of(path, &client, &mut handed).await;
        gets().await;
        stream.deletes(&name("u/b")).await;
        assert_eq!(backend.caches_something(), path == WRITE, "it was another document");
        stream.deletes(&name("u/a")).await;
        // It may be from before the server has deleted it.
        assert_eq!(client.call(GET, &[], &get).await.status(), "0");
        stream.answers().await;
        stream.answers().await;
        assert!(!backend.caches_something());
        gets().await;
    }
}

#[tokio::test]
async fn what_comes_with_the_first_message_of_a_stream_waits_as_what_comes_later() {
    let (server, port) = Played::start().await;
    let mut handed = hands_over(server, Bytes::new());
    let world = World::before(port).await;
    let client = world.connect().await;
    let mut left = Both::begin(&client, &mut handed).await;
    left.deletes("d").await;
    drop(left);
    until("it is left", || world.in_flight() == 0).await;
    for _ in 0..5 {
        let (response, mut asks) = client.begin(WRITE, &[]).await;
        let both = [framed(b""), deletes("d")].concat();
        asks.send_data(both.into(), true).unwrap();
        let (mut request, _respond) = timeout(PATIENCE, handed.recv()).await.unwrap().unwrap();
        let heard = timeout(PATIENCE, request.body_mut().data()).await.unwrap().unwrap().unwrap();
        assert_eq!(heard, framed(b""));
        // It says so although the server has not answered at all, which is no failure of the server's.
        let got = whole(response).await;
        assert_eq!(got.status(), "2", "{got:?}");
        assert!(got.message().contains("earlier write"), "{got:?}");
        assert!(!matches!(timeout(PATIENCE, request.body_mut().data()).await, Ok(Some(Ok(_)))));
    }
    assert_eq!(world.breaker(), "CLOSED");
}

#[tokio::test]
async fn a_message_without_an_answer_ends_its_stream_with_an_unknown_outcome() {
    let (server, port) = Played::start().await;
    let ended = Arc::clone(&server.ended);
    let mut handed = hands_over(server, Bytes::new());
    let wanted = Wanted { timeout: Duration::from_millis(900), ..Wanted::default() };
    let world = World::with(settings(port), wanted).await;
    let client = world.connect().await;
    let mut beside = Both::begin(&client, &mut handed).await;
    let mut late = Both::begin(&client, &mut handed).await;
    late.deletes("d").await;
    let got = late.ends().await;
    assert_eq!(got.status(), "4", "{got:?}");
    assert!(!got.said("x-fusebox-op-id").is_empty() && got.message().contains("no answer in time"));
    until("its connection is closed", || ended.load(Relaxed) == 1).await;
    beside.deletes("e").await;
    beside.answers().await;
    // The other one is refused, which says nothing of the first.
    let backend = world.fusebox.backend("firestore").unwrap();
    beside.deletes("e").await;
    backend.set_offline(true).await.unwrap();
    beside.asks.send_data(deletes("f"), false).unwrap();
    let got = beside.ends().await;
    assert_eq!(got.status(), "4", "{got:?}");
    assert!(got.message().contains("is offline"), "{got:?}");
    until("its places are free", || world.in_flight() == 0).await;
}

#[tokio::test]
async fn a_client_that_reads_nothing_holds_no_place_for_longer_than_an_answer_may_take() {
    let (server, port) = Played::start().await;
    let mut handed = hands_over(server, Bytes::new());
    let wanted = Wanted { timeout: Duration::from_millis(600), ..Wanted::default() };
    let world = World::with(settings(port), wanted).await;
    let client = Raw::with_window(world.port, 0).await;
    let (response, mut asks) = client.begin(WRITE, &[]).await;
    asks.send_data(framed(b""), false).unwrap();
    let (_request, mut respond) = timeout(PATIENCE, handed.recv()).await.unwrap().unwrap();
    let mut answers = respond.send_response(head(), false).unwrap();
    let got = timeout(PATIENCE, response).await.unwrap().unwrap();
    for n in 0..3 {
        asks.send_data(deletes(&format!("d{n}")), false).unwrap();
        until("it is sent", || world.in_flight() == n + 1).await;
    }
    for _ in 0..3 {
        answers.send_data(framed(b"\x1a\0"), false).unwrap();
    }
    until("its places are free", || world.in_flight() == 0).await;
    assert_eq!(world.breaker(), "CLOSED", "the server has answered");
    drop((asks, got));
}

#[tokio::test]
async fn a_stream_that_writes_above_the_number_that_may_be_open_is_refused_until_another_ends() {
    let (server, port) = Played::start().await;
    let mut handed = hands_over(server, Bytes::new());
    let world = World::before(port).await;
    let client = world.connect().await;
    let mut open = Vec::new();
    for _ in 0..64 {
        open.push(Both::begin(&client, &mut handed).await);
    }
    let (response, mut asks) = client.begin(WRITE, &[]).await;
    asks.send_data(framed(b""), false).unwrap();
    let got = whole(response).await;
    assert_eq!(got.status(), "14", "{got:?}");
    assert!(got.message().contains("not executed"), "{got:?}");
    assert_eq!((world.in_flight(), world.breaker().as_str()), (0, "CLOSED"));
    drop(open.pop());
    let ended = async {
        loop {
            let (response, mut asks) = client.begin(WRITE, &[]).await;
            asks.send_data(framed(b""), false).unwrap();
            tokio::select! {
                came = handed.recv() => break came.unwrap(),
                got = whole(response) => assert_eq!(got.status(), "14", "{got:?}"),
            }
        }
    };
    timeout(PATIENCE, ended).await.expect("one more fits");
}

#[tokio::test]
async fn what_http_answers_to_an_unknown_method_leaves_nothing_in_doubt() {
    let (server, port) = Played::start().await;
    server.answer_all(|request, mut respond| async move {
        if request.uri().path() != UNKNOWN_WRITE {
            return answer(respond, b"");
        }
        let not_found = Response::builder().status(404).body(()).unwrap();
        let mut body = respond.send_response(not_found, false).unwrap();
        body.send_data(Bytes::from_static(b"<html>"), true).unwrap();
    });
    let world = World::before(port).await;
    let client = world.connect().await;
    let (response, mut asks) = client.begin(UNKNOWN_WRITE, &[]).await;
    asks.send_data(framed(b""), true).unwrap();
    let got = timeout(PATIENCE, response).await.unwrap().unwrap();
    assert_eq!(got.status(), 404);
    drop((got, asks));
    until("it is over", || world.in_flight() == 0).await;
    for _ in 0..20 {
        assert_eq!(client.call(COMMIT, &[], DELETE).await.status(), "0");
    }
}

#[tokio::test]
async fn answers_that_a_server_takes_its_time_for_one_after_the_other_are_in_time() {
    let (server, port) = Played::start().await;
    let mut handed = hands_over(server, Bytes::new());
    let limit = Duration::from_millis(900);
    let wanted = Wanted { timeout: limit, ..Wanted::default() };
    let world = World::with(settings(port), wanted).await;
    let client = world.connect().await;
    let mut stream = Both::begin(&client, &mut handed).await;
    for n in 0..4 {
        stream.deletes(&format!("d{n}")).await;
    }
    for _ in 0..4 {
        // What is asked is whether its time matters, so it has to pass.
        tokio::time::sleep(limit / 2).await;
        stream.answers().await;
    }
    assert_eq!((world.in_flight(), world.breaker().as_str()), (0, "CLOSED"));
}

#[tokio::test]
async fn a_write_of_unknown_outcome_does_not_come_back_over_what_a_stream_has_written() {
    let (server, port) = Played::start().await;
    let mut handed = hands_over(server, Bytes::new());
    let wanted = Wanted { timeout: Duration::from_millis(900), ..Wanted::default() };
    let world = World::with(settings(port), wanted).await;
    let client = world.connect().await;
    let mut stream = Both::begin(&client, &mut handed).await;
    let lost = {
        let client = client.clone();
        tokio::spawn(async move { client.call(COMMIT, &[], &commit_of("u/a", SLOW)).await })
    };
    until("it is sent", || world.in_flight() == 1).await;
    stream.deletes(&name("u/a")).await;
    stream.answers().await;
    let lost = lost.await.unwrap();
    assert_eq!(lost.status(), "4", "{lost:?}");
    assert!(lost.message().contains("may have been executed"), "{lost:?}");
}

#[tokio::test]
async fn a_message_that_does_not_go_on_ends_its_stream() {
    let (server, port) = Played::start().await;
    let mut handed = hands_over(server, Bytes::new());
    let door = Settings { partial_max: Duration::from_millis(300), ..usual() };
    let world = World::with(settings(port), Wanted { door, ..Wanted::default() }).await;
    let client = world.connect().await;
    let mut stream = Both::begin(&client, &mut handed).await;
    stream.asks.send_data(Bytes::from_static(b"\0\0\x80\0\0x"), false).unwrap();
    let got = stream.ends().await;
    assert_eq!(got.status(), "3", "{got:?}");
    assert!(got.message().contains("no more data of the request"), "{got:?}");
}

#[tokio::test]
async fn what_follows_on_a_stream_of_an_unknown_method_is_not_sent_in_an_emergency() {
    let (server, port) = Played::start().await;
    let mut handed = hands_over(server, Bytes::new());
    let critical = |name: &str| {
        let of = FirestoreSettings { project: Some(name.to_owned()), ..settings(port) };
        let usual = backend(of.timeout, 64);
        let settings = BackendSettings { name: name.to_owned(), critical: true, ..usual };
        BackendSpec { settings, connector: FirestoreConnector::new(of) }
    };
    let others = vec![critical("one"), critical("two")];
    let world = World::with(settings(port), Wanted { others, ..Wanted::default() }).await;
    let client = world.connect().await;
    let mut stream = Both::of(UNKNOWN_WRITE, &client, &mut handed).await;
    stream.deletes("a").await;
    stream.answers().await;
    for name in ["one", "two"] {
        world.fusebox.backend(name).unwrap().set_offline(true).await.unwrap();
    }
    let shed = "gets fewer calls in this system state";
    let told = async { while !client.call(COMMIT, &[], DELETE).await.message().contains(shed) {} };
    timeout(PATIENCE, told).await.expect("it is an emergency");
    stream.asks.send_data(deletes("b"), false).unwrap();
    let got = stream.ends().await;
    assert!(got.message().contains(shed), "{got:?}");
    let mut more = Vec::new();
    while let Some(Ok(data)) = timeout(PATIENCE, stream.asked.data()).await.unwrap() {
        more.extend(data);
    }
    assert!(more.is_empty(), "{more:?}");
}

#[tokio::test]
async fn estimates_are_later_than_every_time_that_the_server_has_given() {
    let (server, port) = Played::start().await;
    let (created, updated) = (Some(FUTURE), Some(FUTURE));
    let found = Document {
        name: name("u/a"),
        create_time: created,
        update_time: updated,
        ..Document::default()
    };
    let mut handed = hands_over(server, found.encode_to_vec().into());
    for way in ["a get", "a get of a part", "an update", "a stream of writes"] {
        let world = World::before(port).await;
        let client = world.connect().await;
        let mut stub = stub(&world).await;
        let mask = (way == "a get of a part").then(DocumentMask::default);
        let get = GetDocumentRequest { name: name("u/a"), mask, ..GetDocumentRequest::default() };
        match way {
            "an update" => {
                let document = Some(found.clone());
                let update = UpdateDocumentRequest { document, ..UpdateDocumentRequest::default() };
                stub.update_document(update).await.unwrap();
            }
            "a stream of writes" => {
                let mut stream = Both::begin(&client, &mut handed).await;
                stream.deletes(&name("u/b")).await;
                stream.answers().await;
            }
            _ => drop(stub.get_document(get).await.unwrap()),
        }
        world.fusebox.backend("firestore").unwrap().set_offline(true).await.unwrap();
        let commit = committed(&mut stub, vec![set("u/a", "later".into())]).await.unwrap();
        let time = commit.into_inner().commit_time.unwrap();
        assert!((time.seconds, time.nanos) > (FUTURE.seconds, FUTURE.nanos), "{way}: {time:?}");
    }
}

#[tokio::test]
async fn a_write_without_an_answer_ends_only_those_that_have_waited_for_long() {
    let (server, port) = Played::start().await;
    let over = Arc::<tokio::sync::Notify>::default();
    let is_over = Arc::clone(&over);
    server.answer_all(move |request, mut respond| {
        let over = Arc::clone(&is_over);
        async move {
            let mut asked = request.into_body();
            if drained(&mut asked).await.unwrap().ends_with(b"slow") {
                drop(std::future::poll_fn(|cx| respond.poll_reset(cx)).await);
                over.notify_one();
            } else {
                over.notified().await;
                answer(respond, b"");
            }
        }
    });
    let limit = Duration::from_millis(1_500);
    let wanted = Wanted { timeout: limit, ..Wanted::default() };
    let world = World::with(settings(port), wanted).await;
    let client = world.connect().await;
    let slow = {
        let client = client.clone();
        tokio::spawn(async move { client.call(COMMIT, &[], b"\x12\x06\x12\x04slow").await })
    };
    // What is asked is whether its time matters, so it has to pass.
    tokio::time::sleep(limit * 6 / 10).await;
    let later = client.call(COMMIT, &[], DELETE).await;
    assert_eq!(slow.await.unwrap().status(), "4");
    assert_eq!(later.status(), "0", "{later:?}");
}

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
