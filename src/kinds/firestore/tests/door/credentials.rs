//! The door before a server that wants TLS and the tokens of a service account, as Firestore itself does.

use std::{
    collections::HashSet,
    sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
};

use fusebox_actors::{AckLevel, Call, CallOptions, trace::CallTrace};
use googleapis_tonic_google_firestore_v1::google::firestore::v1::{
    CommitRequest, CommitResponse, Document, GetDocumentRequest, RunQueryRequest, StructuredQuery,
    WriteResult, run_query_request,
};
use parking_lot::Mutex;
use prost::Message;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;

use super::{
    clients::{DATABASE, name, set},
    understood::{increment, transformed},
    *,
};
use crate::{
    kinds::firestore::protocol::json::body_from_json,
    net::{test_certificates::certificates, tls_server::server_config},
};

/// Tokens of less than so many seconds are as good as over.
const SHORT: u64 = 1;
const LONG: u64 = 3_600;

/// Gives tokens by their number.
#[derive(Default)]
struct Tokens {
    given: AtomicUsize,
    /// How long they are good for, in seconds.
    seconds: AtomicU64,
}

impl Tokens {
    /// The server from which a service account gets them.
    async fn serve(self: &Arc<Self>) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (port, tokens) = (listener.local_addr().unwrap().port(), Arc::clone(self));
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                // The request is one write of a few hundred bytes, of which nothing matters here.
                let mut request = vec![0; 16 << 10];
                let _read = stream.read(&mut request).await.unwrap();
                let number = tokens.given.fetch_add(1, Ordering::Relaxed) + 1;
                let expires_in = tokens.seconds.load(Ordering::Relaxed);
                let token = serde_json::json!({
                    "access_token": format!("token-{number}"), "token_type": "Bearer",
                    "expires_in": expires_in,
                });
                let (token, head) = (token.to_string(), "HTTP/1.1 200 OK\r\nConnection: close");
                let kind = "Content-Type: application/json";
                let length = token.len();
                let answer = format!("{head}\r\n{kind}\r\nContent-Length: {length}\r\n\r\n{token}");
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        port
    }
}

/// The header of a get that says which document it is.
const PATH: &str = "x-path";

/// What a server was asked with.
#[derive(Default)]
struct Asked {
    /// The credential and the authority of each call.
    calls: Mutex<Vec<(String, String)>>,
    /// Credentials that are good no longer.
    revoked: Mutex<HashSet<String>>,
}

impl Asked {
    fn last(&self) -> (String, String) {
        self.calls.lock().last().cloned().unwrap()
    }

    fn respond(&self, request: &Request<RecvStream>, mut respond: SendResponse<Bytes>) {
        let credential = request.headers()["authorization"].to_str().unwrap().to_owned();
        let authority = request.uri().authority().unwrap().to_string();
        self.calls.lock().push((credential.clone(), authority));
        if self.revoked.lock().contains(&credential) {
            let mut refused = head();
            refused.headers_mut().extend(status("16"));
            refused.headers_mut().insert("grpc-message", "revoked".parse().unwrap());
            respond.send_response(refused, true).unwrap();
            return;
        }
        let message = if request.uri().path() == COMMIT {
            let write_results = vec![WriteResult::default()];
            let commit_time = Some(prost_types::Timestamp { seconds: 7, nanos: 0 });
            CommitResponse { write_results, commit_time }.encode_to_vec()
        } else if let Some(path) = request.headers().get(PATH) {
            let time = Some(prost_types::Timestamp { seconds: 7, nanos: 0 });
            Document {
                name: name(path.to_str().unwrap()),
                create_time: time,
                update_time: time,
                ..Document::default()
            }
            .encode_to_vec()
        } else {
            Vec::new()
        };
        answer(respond, &message);
    }
}

/// A server that speaks TLS, and the door before it.
struct Service {
    world: World,
    tokens: Arc<Tokens>,
    asked: Arc<Asked>,
    authority: String,
    /// It takes connections, and says nothing over them any more.
    is_mute: Arc<AtomicBool>,
    _files: tempfile::TempDir,
}

impl Service {
    async fn start() -> Self {
        Self::with(Wanted::default()).await
    }

    async fn with(wanted: Wanted) -> Self {
        let files = tempfile::tempdir().unwrap();
        certificates(files.path());
        let file = |name: &str| files.path().join(name);
        let tokens = Arc::<Tokens>::default();
        let account = serde_json::json!({
            "type": "service_account", "client_email": "fusebox@example.test",
            "private_key": std::fs::read_to_string(file("ca.key")).unwrap(),
            "token_uri": format!("http://127.0.0.1:{}/token", tokens.serve().await),
        });
        std::fs::write(file("account.json"), account.to_string()).unwrap();
        let config = server_config(&file("server.crt"), &file("server.key")).unwrap();
        let mut config = (*config).clone();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let authority = listener.local_addr().unwrap().to_string();
        let (asked, is_mute) = (Arc::<Asked>::default(), Arc::<AtomicBool>::default());
        let (shared, hangs) = (Arc::clone(&asked), Arc::clone(&is_mute));
        tokio::spawn(async move {
            let mut silent = Vec::new();
            while let Ok((stream, _)) = listener.accept().await {
                if hangs.load(Ordering::Relaxed) {
                    silent.push(stream);
                    continue;
                }
                let (acceptor, asked) = (acceptor.clone(), Arc::clone(&shared));
                tokio::spawn(async move {
                    let stream = acceptor.accept(stream).await.unwrap();
                    let mut served = h2::server::handshake(stream).await.unwrap();
                    while let Some(Ok((request, respond))) = served.accept().await {
                        asked.respond(&request, respond);
                    }
                });
            }
        });
        let settings = FirestoreSettings {
            project: Some("fusebox-local".into()),
            credentials_file: Some(file("account.json")),
            ca_file: Some(file("ca.crt")),
            previous_run: false,
            ..FirestoreSettings::new(format!("https://{authority}").parse().unwrap())
        };
        let world = World::with(settings, wanted).await;
        Self { world, tokens, asked, authority, is_mute, _files: files }
    }
}

/// A query that is none of the others.
fn query(number: i32) -> Vec<u8> {
    let query = StructuredQuery { limit: Some(number), ..StructuredQuery::default() };
    let query = RunQueryRequest {
        parent: format!("{DATABASE}/documents"),
        query_type: Some(run_query_request::QueryType::StructuredQuery(query)),
        ..RunQueryRequest::default()
    };
    query.encode_to_vec()
}

const OWNER: (&str, &str) = ("authorization", "Bearer owner");

#[tokio::test]
async fn nobodys_calls_go_with_the_daemons_own_token_which_is_renewed() {
    let service = Service::start().await;
    let Service { world, tokens, asked, authority, .. } = &service;
    let client = world.connect().await;
    tokens.seconds.store(SHORT, Ordering::Relaxed);
    let mut before = String::new();
    for number in 1..4 {
        let got = client.call(QUERY, &[OWNER], &query(number)).await;
        assert_eq!(got.status(), "0", "{got:?}");
        let (credential, of) = asked.last();
        assert!(credential.starts_with("Bearer token-"), "{credential}");
        assert_ne!(credential, before, "one that is over is not shown again");
        assert_eq!(of, *authority);
        before = credential;
    }
    tokens.seconds.store(LONG, Ordering::Relaxed);
    let writes = vec![set("u/a", "one".into())];
    let commit = CommitRequest { database: DATABASE.into(), writes, transaction: Bytes::new() };
    let got = client.call(COMMIT, &[], &commit.encode_to_vec()).await;
    assert_eq!((got.status(), got.said("x-fusebox-source")), ("0", ""), "{got:?}");
    let (lasting, given) = (asked.last(), tokens.given.load(Ordering::Relaxed));
    for number in 4..7 {
        assert_eq!(client.call(QUERY, &[OWNER], &query(number)).await.status(), "0");
        assert_eq!(asked.last(), lasting);
    }
    assert_eq!(tokens.given.load(Ordering::Relaxed), given, "one token for all of them");
    // A caller's own goes as it is.
    let own = ("authorization", "Bearer somebody");
    assert_eq!(client.call(QUERY, &[own], &query(7)).await.status(), "0");
    assert_eq!(asked.last(), ("Bearer somebody".to_owned(), authority.clone()));
    // Another project than the backend's is nobody's business here.
    let foreign = RunQueryRequest {
        parent: "projects/other/databases/(default)/documents".into(),
        ..RunQueryRequest::default()
    };
    assert_eq!(client.call(QUERY, &[OWNER], &foreign.encode_to_vec()).await.status(), "7");
    assert!(!asked.calls.lock().iter().any(|(credential, _)| credential.contains("owner")));
}

#[tokio::test]
async fn a_token_that_was_revoked_is_told_and_the_next_one_is_fetched() {
    let service = Service::start().await;
    let Service { world, tokens, asked, .. } = &service;
    tokens.seconds.store(LONG, Ordering::Relaxed);
    let client = world.connect().await;
    assert_eq!(client.call(QUERY, &[], &query(1)).await.status(), "0");
    let (credential, _) = asked.last();
    asked.revoked.lock().insert(credential.clone());
    let got = client.call(QUERY, &[], &query(2)).await;
    assert_eq!((got.status(), got.message().as_str()), ("16", "revoked"), "{got:?}");
    assert_eq!(client.call(QUERY, &[], &query(3)).await.status(), "0");
    assert_ne!(asked.last().0, credential);
    // A commit that was refused for it is kept, and goes with the next one.
    asked.revoked.lock().insert(asked.last().0);
    let writes = vec![set("u/a", "one".into())];
    let commit = CommitRequest { database: DATABASE.into(), writes, transaction: Bytes::new() };
    let got = client.call(COMMIT, &[], &commit.encode_to_vec()).await;
    assert_eq!((got.status(), got.said("x-fusebox-ack")), ("0", "durable"), "{got:?}");
    let backend = world.fusebox.backend("firestore").unwrap();
    until("it is applied", || backend.view().queue.calls == 0).await;
    assert_eq!(world.breaker(), "CLOSED");
    // A caller's own that was revoked is the caller's affair.
    asked.revoked.lock().insert("Bearer somebody".to_owned());
    let given = tokens.given.load(Ordering::Relaxed);
    let got = client.call(QUERY, &[("authorization", "Bearer somebody")], &query(4)).await;
    assert_eq!(got.status(), "16", "{got:?}");
    assert_eq!(client.call(QUERY, &[], &query(5)).await.status(), "0");
    assert_eq!(tokens.given.load(Ordering::Relaxed), given);
}

#[tokio::test]
async fn a_write_that_is_given_up_before_it_has_a_connection_was_not_executed() {
    let limit = Duration::from_secs(2);
    let service = Service::with(Wanted { timeout: limit, ..Wanted::default() }).await;
    let Service { world, tokens, is_mute, .. } = &service;
    tokens.seconds.store(LONG, Ordering::Relaxed);
    let (client, backend) = (world.connect().await, world.fusebox.backend("firestore").unwrap());
    let got = async |path: &str| {
        let get = GetDocumentRequest { name: name(path), ..GetDocumentRequest::default() };
        client.call(GET, &[(PATH, path)], &get.encode_to_vec()).await
    };
    let all = ["u/a", "u/b", "u/c", "u/d"];
    for path in all {
        assert_eq!(got(path).await.status(), "0");
    }
    until("all are cached", || backend.view().cache.entries == 4).await;
    is_mute.store(true, Ordering::Relaxed);
    let counted = |path: &str| {
        let writes = vec![transformed(set(path, "new".into()), vec![("n", increment(1))])];
        CommitRequest { database: DATABASE.into(), writes, transaction: Bytes::new() }
            .encode_to_vec()
    };
    let call = |path: &str, options| {
        let body = json!({ "op": "set", "path": path, "data": { "t": "new" } });
        let body = body_from_json(body.as_object().unwrap().clone(), "").unwrap();
        let trace = CallTrace::new("/call");
        Call { body, options, uid: 0, admin: false, trace, streams: false, upload: None }
    };
    // Whoever waits for it leaves: over the door, and over the HTTP API.
    let (response, mut stream) = client.begin(COMMIT, &[]).await;
    stream.send_data(framed(&counted("u/a")), true).unwrap();
    until("it is on its way", || world.in_flight() == 1).await;
    drop((response, stream));
    tokio::select! {
        ended = backend.call(call("u/b", CallOptions::default())) => panic!("{ended:?}"),
        () = until("it is on its way", || world.in_flight() == 2) => {}
    }
    // Or has no more time.
    let (deadline, min_ack) = (Some(Duration::from_millis(200)), Some(AckLevel::Applied));
    let hasty = CallOptions { deadline, min_ack, ..CallOptions::default() };
    let error = backend.call(call("u/c", hasty)).await.unwrap_err();
    assert!(!error.outcome_unknown, "{error:?}");
    let told = client.call(COMMIT, &[("grpc-timeout", "200m")], &counted("u/d")).await;
    assert_eq!((told.status(), told.said("x-fusebox-op-id")), ("14", ""), "{told:?}");
    assert!(told.message().contains("not executed"), "{told:?}");
    until("their places are free", || world.in_flight() == 0).await;
    backend.force(true, "by hand".into(), None).await.unwrap();
    for path in all {
        let got = got(path).await;
        assert_eq!((got.status(), got.said("x-fusebox-source")), ("0", "cache"), "{path}: {got:?}");
    }
}
