//! Names of other projects, wherever a call has them.

use googleapis_tonic_google_firestore_v1::google::firestore::v1::{
    BatchGetDocumentsRequest, BatchWriteRequest, CommitRequest, Document, ListenRequest, Target,
    UpdateDocumentRequest, Write, WriteRequest,
    listen_request::TargetChange,
    target::{DocumentsTarget, QueryTarget, TargetType},
    write::Operation,
};
use prost::Message;
use tokio::sync::mpsc::{self, UnboundedReceiver};

use super::{passing::plain, *};

const MINE: &str = "projects/mine/databases/d";
const OTHER: &str = "projects/other/databases/d";

fn of(database: &str) -> String {
    format!("{database}/documents/c/d")
}

/// A door that is open for one project alone, before a server that answers what comes with the same, piece by piece.
async fn world() -> (World, UnboundedReceiver<Bytes>) {
    let (server, port) = Played::start().await;
    let (tell, told) = mpsc::unbounded_channel();
    server.answer_all(move |request, mut respond| {
        let tell = tell.clone();
        async move {
            let mut body = request.into_body();
            let mut stream = respond.send_response(head(), false).unwrap();
            while let Some(Ok(data)) = body.data().await {
                body.flow_control().release_capacity(data.len()).unwrap();
                drop(tell.send(data.clone()));
                drop(stream.send_data(data, false));
            }
            drop(stream.send_trailers(status("0")));
        }
    });
    let door = Settings { projects: vec!["mine".into()], ..usual() };
    (World::with(settings(port), Wanted { door, ..Wanted::default() }).await, told)
}

fn nothing_came(told: &mut UnboundedReceiver<Bytes>) -> bool {
    told.try_recv().is_err()
}

fn write(database: &str) -> Write {
    let document = Document { name: of(database), ..Document::default() };
    Write { operation: Some(Operation::Update(document)), ..Write::default() }
}

fn targets(database: &str) -> [TargetType; 2] {
    let (parent, documents) = (format!("{database}/documents"), vec![of(database)]);
    [
        TargetType::Query(QueryTarget { parent, ..QueryTarget::default() }),
        TargetType::Documents(DocumentsTarget { documents }),
    ]
}

fn listen(database: &str, target: TargetType) -> ListenRequest {
    let target = Target { target_id: 1, target_type: Some(target), ..Target::default() };
    ListenRequest {
        database: database.into(),
        target_change: Some(TargetChange::AddTarget(target)),
        ..ListenRequest::default()
    }
}

#[tokio::test]
async fn no_name_of_another_project_passes_in_any_field() {
    let (world, mut told) = world().await;
    let client = world.connect().await;
    let commit = |database: &str, of: &str| CommitRequest {
        database: database.into(),
        writes: vec![write(MINE), write(of)],
        ..CommitRequest::default()
    };
    let batch = |database: &str, of: &str| BatchWriteRequest {
        database: database.into(),
        writes: vec![write(of)],
        ..BatchWriteRequest::default()
    };
    let get = |database: &str, name: &str| BatchGetDocumentsRequest {
        database: database.into(),
        documents: vec![of(MINE), of(name)],
        ..BatchGetDocumentsRequest::default()
    };
    let update = |database: &str| UpdateDocumentRequest {
        document: Some(Document { name: of(database), ..Document::default() }),
        ..UpdateDocumentRequest::default()
    };
    let path = |name: &str| format!("/google.firestore.v1.Firestore/{name}");
    for (method, mine, others) in [
        (
            "Commit",
            commit(MINE, MINE).encode_to_vec(),
            vec![commit(OTHER, MINE).encode_to_vec(), commit(MINE, OTHER).encode_to_vec()],
        ),
        (
            "BatchWrite",
            batch(MINE, MINE).encode_to_vec(),
            vec![batch(OTHER, MINE).encode_to_vec(), batch(MINE, OTHER).encode_to_vec()],
        ),
        (
            "BatchGetDocuments",
            Vec::new(),
            vec![get(OTHER, MINE).encode_to_vec(), get(MINE, OTHER).encode_to_vec()],
        ),
        ("UpdateDocument", update(MINE).encode_to_vec(), vec![update(OTHER).encode_to_vec()]),
        // Of what is not known nobody knows what it names.
        ("Unheard", Vec::new(), vec![commit(MINE, MINE).encode_to_vec()]),
    ] {
        for other in others {
            let got = client.call(&path(method), &[], &other).await;
            assert_eq!(got.status(), "7", "{method}: {got:?}");
            assert!(nothing_came(&mut told), "{method}");
        }
        if !mine.is_empty() {
            assert_eq!(client.call(&path(method), &[], &mine).await.status(), "0", "{method}");
            assert!(told.recv().await.is_some());
        }
    }
    let got = client.call(&path("Commit"), &[], &commit(OTHER, MINE).encode_to_vec()).await;
    let told = got.message();
    let (named, allowed) =
        (format!("{OTHER:?} is not"), "`projects` of this door allows: \"mine\"");
    assert!(told.contains(&named) && told.ends_with(allowed), "{told}");
    let own = [("authorization", "Bearer my own")];
    let got = client.call(&path("Commit"), &own, &commit(MINE, OTHER).encode_to_vec()).await;
    assert_eq!(got.status(), "0", "what it may the server knows");
}

#[tokio::test]
async fn no_later_message_of_a_stream_names_another_project() {
    let writes = |database: &str, of: &str| {
        let writes = vec![write(of)];
        let request = WriteRequest { database: database.into(), writes, ..WriteRequest::default() };
        request.encode_to_vec()
    };
    let [query, documents] = targets(OTHER);
    let [mine, _] = targets(MINE);
    let first_listen = listen(MINE, mine.clone()).encode_to_vec();
    // As clients begin: had it written something, its outcome would not be known.
    let first_write = WriteRequest { database: MINE.into(), ..WriteRequest::default() };
    let first_write = first_write.encode_to_vec();
    for (method, first, later) in [
        (LISTEN, &first_listen, listen("", query).encode_to_vec()),
        (LISTEN, &first_listen, listen(MINE, documents).encode_to_vec()),
        (LISTEN, &first_listen, listen(OTHER, mine).encode_to_vec()),
        (WRITE, &first_write, writes("", OTHER)),
        (WRITE, &first_write, writes(OTHER, MINE)),
    ] {
        // Behind the first one, and with it.
        for is_together in [false, true] {
            // A stream that may have written keeps others waiting for a while.
            let (world, mut told) = world().await;
            let client = world.connect().await;
            let (response, mut stream) = client.begin(method, &[]).await;
            let (first, later) = (framed(first), framed(&later));
            if is_together {
                stream.send_data([first, later].concat().into(), false).unwrap();
                assert_eq!(whole(response).await.status(), "7", "{method}");
            } else {
                stream.send_data(first.clone(), false).unwrap();
                let mut body = timeout(PATIENCE, response).await.unwrap().unwrap().into_body();
                assert_eq!(timeout(PATIENCE, told.recv()).await.unwrap().unwrap(), first);
                assert_eq!(body.data().await.unwrap().unwrap(), first);
                // Not before it is whole either.
                let (half, rest) = later.split_at(later.len() / 2);
                stream.send_data(Bytes::copy_from_slice(half), false).unwrap();
                client.call(GET, &[], b"").await;
                stream.send_data(Bytes::copy_from_slice(rest), false).unwrap();
                assert!(timeout(PATIENCE, body.data()).await.unwrap().is_none());
                let trailers = body.trailers().await.unwrap().unwrap();
                assert_eq!(trailers["grpc-status"], "7", "{method}");
            }
            assert!(nothing_came(&mut told), "{method}");
        }
    }
}

#[tokio::test]
async fn messages_that_come_in_parts_go_on_whole() {
    let (world, mut told) = world().await;
    let client = world.connect().await;
    let request = WriteRequest { database: MINE.into(), ..WriteRequest::default() };
    let message = framed(&request.encode_to_vec());
    let all = message.repeat(3);
    let (_response, mut stream) = client.begin(WRITE, &[]).await;
    let second = message.len() + 7;
    for (sent, came) in [
        (&all[..second], &message[..]),
        (&all[second..second + 3], b""),
        (&all[second + 3..], &all[message.len()..]),
    ] {
        stream.send_data(Bytes::copy_from_slice(sent), false).unwrap();
        let mut here = Vec::new();
        while here.len() < came.len() {
            here.extend_from_slice(&timeout(PATIENCE, told.recv()).await.unwrap().unwrap());
        }
        assert_eq!(here, came);
    }
}

#[tokio::test]
async fn no_metadata_name_another_project() {
    let (world, mut told) = world().await;
    let client = world.connect().await;
    let name = of(MINE);
    let get = [&[10, u8::try_from(name.len()).unwrap()], name.as_bytes()].concat();
    for (name, mine, other) in [
        ("google-cloud-resource-prefix", MINE, OTHER),
        (
            "x-goog-request-params",
            "name=projects%2Fmine%2Fdatabases%2Fd&project_id=mine&database_id=d",
            "name=projects%2Fother%2Fdatabases%2Fd",
        ),
        ("x-goog-request-params", "project_id=mine", "database_id=d&project_id=other"),
        ("x-goog-user-project", "mine", "other"),
    ] {
        assert_eq!(client.call(GET, &[(name, other)], &get).await.status(), "7", "{name}");
        assert!(nothing_came(&mut told), "{name}");
        assert_eq!(client.call(GET, &[(name, mine)], &get).await.status(), "0", "{name}");
        assert!(told.recv().await.is_some());
        // Whichever of two counts.
        let both = [(name, mine), (name, other)];
        assert_eq!(client.call(GET, &both, &get).await.status(), "7", "{name}");
    }
}

#[tokio::test]
async fn no_request_of_rest_names_another_project() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let service = hyper::service::service_fn(async |_: Request<hyper::body::Incoming>| {
                let body = http_body_util::Full::<Bytes>::from("passed");
                Ok::<_, std::convert::Infallible>(Response::new(body))
            });
            let io = hyper_util::rt::TokioIo::new(stream);
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(io, service));
        }
    });
    let door = Settings { projects: vec!["mine".into()], ..usual() };
    let world = World::with(settings(port), Wanted { door, ..Wanted::default() }).await;
    let asked = async |path: &str, headers: &str, body: &str| {
        let length = body.len();
        let head = format!("POST /v1/{path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close");
        let all = format!("{head}\r\n{headers}Content-Length: {length}\r\n\r\n{body}");
        plain(world.port, &all).await
    };
    let commit = format!("{MINE}/documents:commit");
    let deletes = |name: &str| format!(r#"{{"writes":[{{"delete":"{name}"}}]}}"#);
    let got = asked(&commit, "", &deletes(&of(MINE))).await;
    assert!(got.starts_with("HTTP/1.1 200"), "{got}");
    let prefix = format!("google-cloud-resource-prefix: {OTHER}\r\n");
    for (path, headers, body) in [
        (&format!("{OTHER}/documents:commit"), "", "{}"),
        (&format!("{MINE}/../../../{OTHER}/documents:commit"), "", "{}"),
        (&format!("{commit}?name={OTHER}/documents/c/d"), "", "{}"),
        (&commit, "", deletes(&of(OTHER)).as_str()),
        (&commit, "", "no JSON"),
        (&commit, prefix.as_str(), "{}"),
    ] {
        let got = asked(path, headers, body).await;
        assert!(got.starts_with("HTTP/1.1 403"), "{path} {headers} {body}: {got}");
    }
}
