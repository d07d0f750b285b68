//! Listens that lose their server.

use googleapis_tonic_google_firestore_v1::google::firestore::v1::{
    Document, DocumentChange, ListenRequest, ListenResponse, Target, TargetChange,
    listen_request::TargetChange as Change,
    listen_response::ResponseType,
    target::{DocumentsTarget, ResumeType, TargetType},
    target_change::TargetChangeType::{self, Add, Current, NoChange, Reset},
};
use prost::Message;
use tokio::{
    sync::{Notify, mpsc, oneshot},
    task::AbortHandle,
};

use super::*;

pub(super) fn add() -> Vec<u8> {
    let documents = DocumentsTarget { documents: vec!["d".to_owned()] };
    let target = Target {
        target_id: 1,
        target_type: Some(TargetType::Documents(documents)),
        ..Target::default()
    };
    let request = ListenRequest {
        database: "projects/p/databases/(default)".to_owned(),
        target_change: Some(Change::AddTarget(target)),
        ..ListenRequest::default()
    };
    request.encode_to_vec()
}

pub(super) fn said(kind: TargetChangeType, token: &'static [u8]) -> Bytes {
    let change = TargetChange {
        target_change_type: kind.into(),
        target_ids: vec![1],
        resume_token: Bytes::from_static(token),
        ..TargetChange::default()
    };
    let response = ListenResponse { response_type: Some(ResponseType::TargetChange(change)) };
    framed(&response.encode_to_vec())
}

pub(super) fn document(name: &str) -> Bytes {
    let document = Some(Document { name: name.to_owned(), ..Document::default() });
    let change = DocumentChange { document, target_ids: vec![1], ..DocumentChange::default() };
    let response = ListenResponse { response_type: Some(ResponseType::DocumentChange(change)) };
    framed(&response.encode_to_vec())
}

/// A server that the test plays, which hands over the Listens that it gets.
pub(super) struct Server {
    pub(super) listens: mpsc::UnboundedReceiver<(Came, Held)>,
}

/// The connection that a Listen came over.
#[derive(Clone)]
pub(super) struct Held {
    serving: AbortHandle,
    /// It is to say that it takes nothing more.
    goodbye: Arc<Notify>,
}

impl Server {
    pub(super) fn over(played: Played) -> Self {
        let (tell, listens) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            loop {
                let mut served = played.accept().await;
                let tell = tell.clone();
                let (own, handle) = oneshot::channel::<Held>();
                let goodbye = Arc::<Notify>::default();
                let said = Arc::clone(&goodbye);
                let serving = tokio::spawn(async move {
                    let own = handle.await.unwrap();
                    loop {
                        let came = tokio::select! {
                            came = served.accept() => came,
                            () = said.notified() => {
                                served.graceful_shutdown();
                                continue;
                            }
                        };
                        let Some(Ok((request, respond))) = came else { return };
                        if request.uri().path() == PING {
                            answer(respond, b"");
                        } else if tell.send(((request, respond), own.clone())).is_err() {
                            return;
                        }
                    }
                });
                drop(own.send(Held { serving: serving.abort_handle(), goodbye }));
            }
        });
        Self { listens }
    }

    /// The next Listen, with its headers.
    pub(super) async fn opens(&mut self) -> Opened {
        let next = timeout(PATIENCE, self.listens.recv()).await.unwrap();
        let ((request, mut respond), connection) = next.unwrap();
        assert_eq!(request.uri().path(), LISTEN);
        let asked = timeout(PATIENCE, request.into_body().data()).await.unwrap();
        let asked = ListenRequest::decode(asked.unwrap().unwrap().slice(5..)).unwrap();
        let Some(Change::AddTarget(target)) = asked.target_change else { panic!() };
        let token = match target.resume_type {
            Some(ResumeType::ResumeToken(token)) => token,
            _ => Bytes::new(),
        };
        let body = respond.send_response(head(), false).unwrap();
        Opened { token, body, connection }
    }
}

/// What the door has open there.
pub(super) struct Opened {
    pub(super) token: Bytes,
    pub(super) body: SendStream<Bytes>,
    connection: Held,
}

impl Opened {
    pub(super) fn says(&mut self, messages: &[Bytes]) {
        for message in messages {
            self.body.send_data(message.clone(), false).unwrap();
        }
    }

    /// The connection is lost.
    pub(super) fn cut(self) {
        self.connection.serving.abort();
    }

    /// Its connection takes nothing more.
    pub(super) fn says_goodbye(&self) {
        self.connection.goodbye.notify_one();
    }
}

/// A client's Listen.
pub(super) struct Client {
    body: RecvStream,
    here: Vec<u8>,
    _asks: SendStream<Bytes>,
}

/// One that has no answer yet.
pub(super) type Begun = (h2::client::ResponseFuture, SendStream<Bytes>);

impl Client {
    pub(super) async fn begin(world: &World) -> Begun {
        Self::begin_over(&world.connect().await, &[]).await
    }

    pub(super) async fn begin_over(raw: &Raw, headers: &[(&str, &str)]) -> Begun {
        let (response, mut asks) = raw.begin(LISTEN, headers).await;
        asks.send_data(framed(&add()), false).unwrap();
        (response, asks)
    }

    pub(super) async fn begun((response, asks): Begun) -> Self {
        let response = timeout(PATIENCE, response).await.unwrap().unwrap();
        assert!(!response.headers().contains_key("x-fusebox-source"));
        Self { body: response.into_body(), here: Vec::new(), _asks: asks }
    }

    /// It hears that, and nothing else before.
    pub(super) async fn hears(&mut self, messages: &[Bytes]) {
        let wanted = messages.concat();
        while self.here.len() < wanted.len() {
            let data = timeout(PATIENCE, self.body.data()).await.unwrap().unwrap().unwrap();
            self.body.flow_control().release_capacity(data.len()).unwrap();
            self.here.extend_from_slice(&data);
        }
        let rest = self.here.split_off(wanted.len());
        assert_eq!(std::mem::replace(&mut self.here, rest), wanted);
    }

    pub(super) async fn status(mut self) -> String {
        assert!(self.here.is_empty());
        assert!(timeout(PATIENCE, self.body.data()).await.unwrap().is_none());
        let trailers = self.body.trailers().await.unwrap().unwrap();
        trailers["grpc-status"].to_str().unwrap().to_owned()
    }
}

pub(super) fn parked(world: &World) -> u64 {
    world.door.view().connections.parked
}

#[tokio::test]
async fn a_listen_goes_on_from_its_token_or_from_a_reset_and_never_from_within_a_message() {
    let (played, port) = Played::start().await;
    let mut server = Server::over(played);
    let world = World::before(port).await;
    let client = Client::begin(&world).await;
    let mut opened = server.opens().await;
    let mut client = Client::begun(client).await;
    let first = [said(Add, b""), document("a"), said(Current, b"one")];
    opened.says(&first);
    client.hears(&first).await;
    // Half of a message is heard of by nobody.
    opened.says(&[said(NoChange, b"half").slice(..9)]);
    opened.cut();
    let mut opened = server.opens().await;
    assert_eq!(opened.token, "one");
    opened.says(&[said(Add, b""), said(Current, b"two"), document("b")]);
    client.hears(&[said(Current, b"two"), document("b")]).await;
    opened.cut();
    let mut opened = server.opens().await;
    assert_eq!(opened.token, "", "the document may be gone");
    opened.says(&[said(Add, b""), said(Current, b"three")]);
    client.hears(&[said(Reset, b""), said(Current, b"three")]).await;
    // The server's own words that it is not there.
    for code in ["14", "13", "1"] {
        opened.body.send_trailers(status(code)).unwrap();
        opened = server.opens().await;
        assert_eq!(opened.token, "three", "{code}");
        opened.says(&[said(Add, b""), said(NoChange, b"three")]);
        client.hears(&[said(NoChange, b"three")]).await;
    }
    opened.body.send_trailers(status("7")).unwrap();
    assert_eq!(client.status().await, "7");
    assert_eq!((world.in_flight(), parked(&world)), (0, 0));
}

#[tokio::test]
async fn a_listen_that_begins_in_an_outage_waits_and_costs_no_place() {
    let (server, port) = Played::start().await;
    drop(server);
    let world = World::before(port).await;
    let client = Client::begin(&world).await;
    let left = Client::begin(&world).await;
    until("both wait", || parked(&world) == 2).await;
    drop(left);
    until("one has left", || parked(&world) == 1).await;
    assert_eq!(world.in_flight(), 0);
    let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    let mut server = Server::over(Played { listener, ended: Arc::default() });
    world.recovers().await;
    let mut opened = server.opens().await;
    let mut client = Client::begun(client).await;
    opened.says(&[said(Add, b"")]);
    client.hears(&[said(Add, b"")]).await;
    assert_eq!((world.in_flight(), parked(&world)), (0, 0));
    world.door.close().await;
    assert_eq!(client.status().await, "14");
}

#[tokio::test]
async fn those_that_wait_are_told_nothing_of_a_breaker_that_tries_one_after_the_other() {
    let (server, port) = Played::start().await;
    drop(server);
    let world = World::before(port).await;
    let mut waiting = Vec::new();
    for _ in 0..8 {
        waiting.push(Client::begin(&world).await);
    }
    until("the breaker is open", || world.breaker() == "OPEN").await;
    let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    let mut server = Server::over(Played { listener, ended: Arc::default() });
    // It lets one trial through at a time.
    world.fusebox.recover(Some("firestore")).await.unwrap();
    let mut opened = Vec::new();
    for _ in 0..waiting.len() {
        opened.push(server.opens().await);
    }
    for client in waiting {
        Client::begun(client).await;
    }
    assert_eq!((world.in_flight(), world.breaker().as_str()), (0, "CLOSED"));
}

#[tokio::test]
async fn a_listen_without_a_target_asks_the_server_nothing() {
    let (played, port) = Played::start().await;
    let mut server = Server::over(played);
    let wanted = Wanted { timeout: Duration::from_millis(300), ..Wanted::default() };
    let world = World::with(settings(port), wanted).await;
    let greeting = ListenRequest {
        database: "projects/p/databases/(default)".to_owned(),
        ..ListenRequest::default()
    };
    let (response, mut asks) = world.connect().await.begin(LISTEN, &[]).await;
    asks.send_data(framed(&greeting.encode_to_vec()), false).unwrap();
    let response = timeout(PATIENCE, response).await.unwrap().unwrap();
    assert_eq!(response.headers()["content-type"], "application/grpc");
    assert_eq!((world.in_flight(), parked(&world)), (0, 0));
    assert!(server.listens.try_recv().is_err());
    // With its first target it begins.
    asks.send_data(framed(&add()), false).unwrap();
    let mut opened = server.opens().await;
    opened.says(&[said(Add, b"")]);
    let mut client = Client { body: response.into_body(), here: Vec::new(), _asks: asks };
    client.hears(&[said(Add, b"")]).await;
    assert_eq!((world.in_flight(), world.breaker().as_str()), (0, "CLOSED"));
}

#[tokio::test]
async fn a_listen_that_gets_no_headers_in_time_says_nothing_of_the_backend() {
    let (played, port) = Played::start().await;
    let mut server = Server::over(played);
    let wanted = Wanted { timeout: Duration::from_millis(100), ..Wanted::default() };
    let world = World::with(settings(port), wanted).await;
    let client = Client::begin(&world).await;
    for _ in 0..5 {
        // More often than the breaker takes failures.
        let ((_, mut respond), _) =
            timeout(PATIENCE, server.listens.recv()).await.unwrap().unwrap();
        std::future::poll_fn(|cx| respond.poll_reset(cx)).await.unwrap();
    }
    assert_eq!(world.breaker(), "CLOSED");
    let _opened = server.opens().await;
    Client::begun(client).await;
    until("it gives its place back", || world.in_flight() == 0).await;
}

#[tokio::test]
async fn what_is_no_message_is_as_good_as_a_break_but_not_for_ever() {
    let giant: Bytes = [&[0][..], &(1_u32 << 30).to_be_bytes()].concat().into();
    let broken = framed(b"\x12\xff");
    for nonsense in [giant, broken] {
        let (played, port) = Played::start().await;
        let mut server = Server::over(played);
        let world = World::before(port).await;
        let client = Client::begin(&world).await;
        let mut opened = server.opens().await;
        let mut client = Client::begun(client).await;
        opened.says(&[said(Add, b""), said(Current, b"one"), nonsense.clone()]);
        client.hears(&[said(Add, b""), said(Current, b"one")]).await;
        for _ in 0..5 {
            opened = server.opens().await;
            assert_eq!(opened.token, "one");
            opened.says(&[said(Add, b""), said(NoChange, b"one"), nonsense.clone()]);
            client.hears(&[said(NoChange, b"one")]).await;
        }
        assert_eq!(client.status().await, "13");
        assert_eq!((world.in_flight(), parked(&world), world.breaker().as_str()), (0, 0, "CLOSED"));
    }
}
