//! What passes, and as whom.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use fusebox_actors::{
    trace::{Sampling, TraceSink, TraceSubject, Traced},
    view::TracesView,
};

use super::{listening::add, *};
use crate::ingress::callers::{Known, Right, SecretDigest};

#[tokio::test]
async fn metadata_and_bytes_pass_both_ways_and_authority_and_owner_do_not() {
    let (server, port) = Played::start().await;
    server.answer_all(move |request, mut respond| async move {
        let (head_in, mut body) = request.into_parts();
        let said = |name: &str| head_in.headers.get(name).cloned();
        let authority = head_in.uri.authority().unwrap().to_string();
        assert_eq!(authority, format!("127.0.0.1:{port}"));
        assert_eq!(said("authorization").unwrap(), "Bearer owner", "an emulator's own");
        assert_eq!(said("te").unwrap(), "trailers");
        let bytes = drained(&mut body).await.unwrap();
        let mut answer = head();
        for name in ["x-goog-request-params", "x-bin", "user-agent", "grpc-timeout"] {
            if let Some(value) = said(name) {
                answer
                    .headers_mut()
                    .insert(hyper::header::HeaderName::from_bytes(name.as_bytes()).unwrap(), value);
            }
        }
        let mut stream = respond.send_response(answer, false).unwrap();
        stream.send_data(bytes.into(), false).unwrap();
        let mut trailers = status("0");
        trailers.insert("x-last", "word".parse().unwrap());
        stream.send_trailers(trailers).unwrap();
    });
    let world = World::before(port).await;
    let client = world.connect().await;
    let sent = [
        ("authorization", "Bearer owner"),
        ("x-goog-request-params", "database=d"),
        ("x-bin", "AAECAw"),
        ("user-agent", "test/1"),
        ("grpc-timeout", "7S"),
    ];
    let message = b"\0\xff not a message of anybody's";
    let got = client.call(QUERY, &sent, message).await;
    assert_eq!(got.body, framed(message), "not a byte is touched");
    for (name, value) in [("x-bin", "AAECAw"), ("user-agent", "test/1"), ("x-last", "word")] {
        assert_eq!(got.said(name), value);
    }
    assert_eq!(got.status(), "0");
    assert_eq!(got.said("x-fusebox-source"), "", "the answer is the server's");
    assert_eq!(got.said("grpc-timeout"), "7S");
    assert_eq!((world.counted("read", "live"), world.counted("read", "local")), (1, 0));
}

/// Keeps every trace.
#[derive(Default)]
struct Kept(parking_lot::Mutex<Vec<Traced>>);

impl TraceSink for Kept {
    fn sampling(&self) -> Sampling {
        Sampling { parent_based: true, bound: 0, keeps: false }
    }

    fn take(&self, traced: Traced) {
        self.0.lock().push(traced);
    }

    fn counts(&self) -> TracesView {
        TracesView::default()
    }
}

#[tokio::test]
async fn the_trace_that_a_client_sends_goes_on() {
    let (server, port) = Played::start().await;
    server.answer_all(|_, mut respond| async move {
        let mut answer = head();
        answer.headers_mut().extend(status("0"));
        respond.send_response(answer, true).unwrap();
    });
    let kept = Arc::<Kept>::default();
    let wanted = Wanted { sink: Some(Arc::clone(&kept) as _), ..Wanted::default() };
    let world = World::with(settings(port), wanted).await;
    let client = world.connect().await;
    let sent = [("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")];
    // One by the way without a task, and one that fusebox reads.
    assert_eq!(client.call(GET, &sent, b"").await.status(), "0");
    assert_eq!(client.call(COMMIT, &sent, DELETE).await.status(), "0");
    assert_eq!(client.call(GET, &[], b"").await.status(), "0");
    let kept = kept.0.lock();
    assert_eq!(kept.len(), 2, "{kept:?}");
    for traced in &*kept {
        assert_eq!(traced.span.trace_id, 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736);
        assert_eq!(traced.parent, Some(0x00f0_67aa_0ba9_02b7));
        let TraceSubject::Call { route, .. } = traced.what else { panic!("{traced:?}") };
        assert_eq!(route.door(), Some("127.0.0.1:1"));
    }
}

#[tokio::test]
async fn a_status_without_a_body_passes_as_it_is() {
    let (server, port) = Played::start().await;
    server.answer_all(|_, mut respond| async move {
        let mut answer = head();
        answer.headers_mut().extend(status("5"));
        answer.headers_mut().insert("grpc-message", "no%20such".parse().unwrap());
        respond.send_response(answer, true).unwrap();
    });
    let world = World::before(port).await;
    let client = world.connect().await;
    let (response, mut stream) = client.begin(GET, &[]).await;
    stream.send_data(framed(b""), true).unwrap();
    let response = timeout(PATIENCE, response).await.unwrap().unwrap();
    assert!(response.body().is_end_stream(), "its headers are all of it");
    assert_eq!(
        (&response.headers()["grpc-status"], &response.headers()["grpc-message"]),
        (&"5".parse().unwrap(), &"no%20such".parse().unwrap())
    );
    assert_eq!(world.breaker(), "CLOSED");
}

#[tokio::test]
async fn a_callers_own_credential_goes_on_and_a_secret_goes_nowhere() {
    let (server, port) = Played::start().await;
    server.answer_all(|request, respond| async move {
        answer(respond, request.headers()["authorization"].as_bytes());
    });
    let world = World::before(port).await;
    let client = world.connect().await;
    let shown = async |client: &Raw, shown: &[(&str, &str)]| {
        let got = client.call(GET, shown, b"").await;
        (got.status().to_owned(), got.body.get(5..).unwrap_or_default().to_vec())
    };
    let own = shown(&client, &[("authorization", "Bearer my own")]).await;
    assert_eq!(own, ("0".to_owned(), b"Bearer my own".to_vec()));
    assert_eq!(shown(&client, &[]).await.1, b"Bearer owner");

    let secret = SecretDigest::of(b"s3cret").unwrap();
    let known = Known { name: "web".into(), right: Right::Read, secret };
    let callers = Arc::new(Callers::new(vec![known]));
    let wanted = Wanted { door: Settings { callers, ..usual() }, who: None, ..Wanted::default() };
    let world = World::with(settings(port), wanted).await;
    let client = world.connect().await;
    let known = [("authorization", "Bearer s3cret")];
    assert_eq!(shown(&client, &known).await, ("0".to_owned(), b"Bearer owner".to_vec()));
    assert_eq!(client.call(COMMIT, &known, b"").await.status(), "7", "it may only read");
    for wrong in [&[][..], &[("authorization", "Bearer owner")]] {
        assert_eq!(shown(&client, wrong).await.0, "16", "{wrong:?}");
    }
    assert_eq!(world.door.view().auth_failures, 2);
}

#[tokio::test]
async fn who_calls_as_the_daemon_may_name_no_project_but_the_allowed() {
    let (server, port) = Played::start().await;
    server.answer_all(|_, respond| async move { answer(respond, b"") });
    let door = Settings { projects: vec!["mine".into()], ..usual() };
    let world = World::with(settings(port), Wanted { door, ..Wanted::default() }).await;
    let client = world.connect().await;
    let of = |name: &str| [&[10, u8::try_from(name.len()).unwrap()], name.as_bytes()].concat();
    let mine = of("projects/mine/databases/d/documents/a/b");
    let other = of("projects/other/databases/d/documents/a/b");
    assert_eq!(client.call(GET, &[], &mine).await.status(), "0");
    let own = [("authorization", "Bearer my own")];
    assert_eq!(client.call(GET, &own, &other).await.status(), "0", "the server knows what it may");
    // A metadatum that names another one changes nothing.
    let lie = [("google-cloud-resource-prefix", "projects/mine/databases/d")];
    for message in [&other[..], b"", &[&mine[..], &other].concat()] {
        assert_eq!(client.call(GET, &lie, message).await.status(), "7", "{message:?}");
    }
}

#[tokio::test]
async fn both_directions_of_a_stream_live_side_by_side_and_hold_no_place() {
    let (server, port) = Played::start().await;
    server.answer_all(|request, mut respond| async move {
        let mut body = request.into_body();
        let mut stream = respond.send_response(head(), false).unwrap();
        while let Some(Ok(data)) = body.data().await {
            body.flow_control().release_capacity(data.len()).unwrap();
            stream.send_data(data, false).unwrap();
        }
        stream.send_trailers(status("0")).unwrap();
    });
    let world = World::before(port).await;
    let client = world.connect().await;
    let (response, mut stream) = client.begin(LISTEN, &[]).await;
    stream.send_data(framed(b"one"), false).unwrap();
    let mut response = timeout(PATIENCE, response).await.unwrap().unwrap().into_body();
    for word in [&b"one"[..], b"two", b"three"] {
        if word != b"one" {
            stream.send_data(framed(word), false).unwrap();
        }
        let data = timeout(PATIENCE, response.data()).await.unwrap().unwrap().unwrap();
        assert_eq!(data, framed(word));
        assert_eq!(world.in_flight(), 0, "it is settled by its headers");
    }
    stream.send_data(Bytes::new(), true).unwrap();
    assert!(timeout(PATIENCE, response.data()).await.unwrap().is_none());
    assert_eq!(response.trailers().await.unwrap().unwrap()["grpc-status"], "0");
}

#[tokio::test]
async fn streams_that_last_take_another_connection_when_one_is_full() {
    let (server, port) = Played::start().await;
    let connections = Arc::<AtomicUsize>::default();
    let counted = Arc::clone(&connections);
    tokio::spawn(async move {
        loop {
            let (stream, _) = server.listener.accept().await.unwrap();
            let counted = Arc::clone(&counted);
            tokio::spawn(async move {
                let mut builder = h2::server::Builder::new();
                builder.max_concurrent_streams(3);
                let mut connection = builder.handshake::<_, Bytes>(stream).await.unwrap();
                let mut kept = Vec::new();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    if kept.is_empty() && request.uri().path() == LISTEN {
                        counted.fetch_add(1, Ordering::SeqCst);
                    }
                    kept.push((request, respond.send_response(head(), false).unwrap()));
                }
            });
        }
    });
    let world = World::before(port).await;
    let client = world.connect().await;
    let mut open = Vec::new();
    for _ in 0..10 {
        let (response, mut stream) = client.begin(LISTEN, &[]).await;
        stream.send_data(framed(&add()), false).unwrap();
        open.push((timeout(PATIENCE, response).await.unwrap().unwrap(), stream));
    }
    assert_eq!(connections.load(Ordering::SeqCst), 4, "three streams each");
}

/// Says something over HTTP/1.1, and returns what comes back until the connection ends.
pub(super) async fn plain(port: u16, request: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn rest_passes_on_the_same_port_as_the_daemon_and_for_no_page() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let service =
                hyper::service::service_fn(async |request: Request<hyper::body::Incoming>| {
                    let said = format!(
                        "{} {} as {} at {}",
                        request.method(),
                        request.uri(),
                        request.headers()["authorization"].to_str().unwrap(),
                        request.headers()["host"].to_str().unwrap()
                    );
                    Ok::<_, std::convert::Infallible>(Response::new(
                        http_body_util::Full::<Bytes>::from(said),
                    ))
                });
            let io = hyper_util::rt::TokioIo::new(stream);
            tokio::spawn(async move {
                drop(
                    hyper::server::conn::http1::Builder::new().serve_connection(io, service).await,
                );
            });
        }
    });
    let world = World::before(port).await;
    let documents = "/v1/projects/p/databases/(default)/documents";
    let host = format!("127.0.0.1:{}", world.port);
    let request = |verb: &str, more: &str| {
        format!(
            "{verb} {documents}/a/b?mask=c HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{more}\r\n"
        )
    };
    let told = plain(world.port, &request("GET", "Authorization: Bearer owner\r\n")).await;
    let expected = format!("GET {documents}/a/b?mask=c as Bearer owner at 127.0.0.1:{port}");
    assert!(told.starts_with("HTTP/1.1 200") && told.ends_with(&expected), "{told}");
    let told = plain(world.port, &request("DELETE", "")).await;
    assert!(told.starts_with("HTTP/1.1 200"), "{told}");
    let told = plain(world.port, &request("DELETE", "Origin: http://evil.example\r\n")).await;
    assert!(told.starts_with("HTTP/1.1 403") && told.contains("PERMISSION_DENIED"), "{told}");
    // The server could take it for a write, and it is judged as a read.
    let told = plain(world.port, &request("GET", "X-HTTP-Method-Override: DELETE\r\n")).await;
    assert!(told.starts_with("HTTP/1.1 400") && told.contains("x-http-method-override"), "{told}");
    let told =
        plain(world.port, &format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"))
            .await;
    assert!(told.ends_with("\r\n\r\nOk\n"), "{told}");
    assert_eq!((world.counted("rest", "live"), world.counted("rest", "local")), (2, 3));
}
