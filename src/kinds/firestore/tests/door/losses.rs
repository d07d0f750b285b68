//! Connections that break, on either side, at every step.

use std::sync::atomic::{AtomicUsize, Ordering};

use fusebox_actors::connector::{Attempt, Connector as _};
use fusebox_state::ErrorClass;
use h2::Reason;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpSocket,
    sync::mpsc,
};

use super::*;
use crate::kinds::firestore::testing::{attempt, planned};

#[tokio::test]
async fn a_connection_that_breaks_before_the_answer_leaves_a_write_unknown_and_a_read_to_be_tried()
{
    for (method, code) in [(GET, "14"), (COMMIT, "4")] {
        let (server, port) = Played::start().await;
        let world = World::before(port).await;
        server.answer_ping().await;
        let client = world.connect().await;
        let dying = async {
            let mut connection = server.accept().await;
            let came = next(&mut connection).await;
            assert_eq!(came.0.uri().path(), method);
            drop((came, connection));
        };
        let (got, ()) = tokio::join!(client.call(method, &[], b""), dying);
        assert_eq!(got.status(), code, "{got:?}");
        assert_eq!(got.said("x-fusebox-op-id").is_empty(), method == GET);
        assert_eq!(world.in_flight(), 0);
    }
}

#[tokio::test]
async fn a_stream_that_breaks_in_the_middle_ends_with_a_status() {
    let (server, port) = Played::start().await;
    let world = World::before(port).await;
    server.answer_ping().await;
    let client = world.connect().await;
    let (response, mut stream) = client.begin(QUERY, &[]).await;
    stream.send_data(framed(b""), true).unwrap();
    let mut connection = server.accept().await;
    let (_, mut respond) = next(&mut connection).await;
    let mut body = respond.send_response(head(), false).unwrap();
    body.send_data(framed(b"first"), false).unwrap();
    let driving = tokio::spawn(async move {
        drop(connection.accept().await);
    });
    let response = timeout(PATIENCE, response).await.unwrap().unwrap();
    let mut got = response.into_body();
    let first = timeout(PATIENCE, got.data()).await.unwrap().unwrap().unwrap();
    assert_eq!(first, framed(b"first"));
    assert_eq!(world.in_flight(), 0, "its first byte has settled it");
    driving.abort();
    drop((driving.await, body, respond));
    assert!(timeout(PATIENCE, got.data()).await.unwrap().is_none());
    let trailers = got.trailers().await.unwrap().unwrap();
    assert_eq!(
        (&trailers["grpc-status"], &trailers["x-fusebox-source"]),
        (&"14".parse().unwrap(), &"local".parse().unwrap())
    );
}

#[tokio::test]
async fn what_the_server_refuses_unread_is_sent_once_more() {
    for method in [GET, COMMIT] {
        let (server, port) = Played::start().await;
        let asked = Arc::<AtomicUsize>::default();
        let counted = Arc::clone(&asked);
        server.answer_all(move |_, mut respond| {
            let counted = Arc::clone(&counted);
            async move {
                if counted.fetch_add(1, Ordering::SeqCst) % 3 < 1 {
                    return respond.send_reset(Reason::REFUSED_STREAM);
                }
                if counted.load(Ordering::SeqCst) > 3 {
                    return respond.send_reset(Reason::REFUSED_STREAM);
                }
                answer(respond, b"second");
            }
        });
        let world = World::before(port).await;
        let client = world.connect().await;
        let got = client.call(method, &[], b"").await;
        assert_eq!((got.status(), asked.load(Ordering::SeqCst)), ("0", 2), "{got:?}");
        asked.store(3, Ordering::SeqCst);
        let got = client.call(method, &[], b"").await;
        assert_eq!(
            (got.status(), asked.load(Ordering::SeqCst)),
            ("14", 5),
            "twice, no more: {got:?}"
        );
        assert!(got.message().contains("not executed"), "{got:?}");
    }
}

#[tokio::test]
async fn what_a_goaway_leaves_out_is_sent_over_another_connection() {
    let (server, port) = Played::start().await;
    let world = World::before(port).await;
    server.answer_ping().await;
    let client = world.connect().await;
    let calling = {
        let client = client.clone();
        tokio::spawn(async move { client.call(COMMIT, &[], b"again").await })
    };
    let (stream, _) = server.listener.accept().await.unwrap();
    let mut wire = stream;
    // By hand: settings, then a GOAWAY that takes no stream, once the request is here.
    wire.write_all(b"\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let mut seen = Vec::new();
    while !seen.windows(5).any(|bytes| bytes == b"again") {
        let mut piece = [0; 1_024];
        let read = wire.read(&mut piece).await.unwrap();
        assert!(read > 0);
        seen.extend_from_slice(&piece[..read]);
    }
    wire.write_all(b"\0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\0").await.unwrap();
    let mut connection = server.accept().await;
    let (mut request, respond) = next(&mut connection).await;
    let driving = tokio::spawn(async move { while connection.accept().await.is_some() {} });
    let body = timeout(PATIENCE, drained(request.body_mut())).await.unwrap().unwrap();
    assert_eq!(body, framed(b"again"));
    answer(respond, b"done");
    let got = calling.await.unwrap();
    assert_eq!((got.status(), &got.body[..]), ("0", &framed(b"done")[..]));
    driving.abort();
}

#[tokio::test]
async fn a_client_that_leaves_resets_what_has_begun_and_abandons_what_has_not() {
    let (server, port) = Played::start().await;
    let (tell, mut told) = mpsc::unbounded_channel();
    server.answer_all(move |request, mut respond| {
        let tell = tell.clone();
        async move {
            if request.uri().path() == QUERY {
                let mut body = respond.send_response(head(), false).unwrap();
                body.send_data(framed(b"first"), false).unwrap();
                let reason = std::future::poll_fn(|cx| body.poll_reset(cx)).await;
                tell.send(format!("{:?}", reason.unwrap())).unwrap();
            } else {
                tell.send("asked".to_owned()).unwrap();
                let reason = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
                tell.send(format!("{:?}", reason.unwrap())).unwrap();
            }
        }
    });
    let wanted = Wanted { timeout: Duration::from_millis(600), ..Wanted::default() };
    let world = World::with(settings(port), wanted).await;
    let client = world.connect().await;
    let (response, mut stream) = client.begin(QUERY, &[]).await;
    stream.send_data(framed(b""), true).unwrap();
    let response = timeout(PATIENCE, response).await.unwrap().unwrap();
    drop((response, stream));
    let reason = timeout(PATIENCE, told.recv()).await.unwrap().unwrap();
    assert_eq!(reason, "CANCEL", "at once");

    let (response, mut stream) = client.begin(GET, &[]).await;
    stream.send_data(framed(b""), true).unwrap();
    assert_eq!(timeout(PATIENCE, told.recv()).await.unwrap().unwrap(), "asked");
    let left = tokio::time::Instant::now();
    drop((response, stream));
    let reason = timeout(PATIENCE, told.recv()).await.unwrap().unwrap();
    assert_eq!(reason, "CANCEL");
    assert!(left.elapsed() > Duration::from_millis(300), "it is on the wire, whoever waits for it");
    until("its place is given back", || world.in_flight() == 0).await;
}

#[tokio::test]
async fn a_write_whose_client_leaves_goes_on_to_its_answer() {
    let (server, port) = Played::start().await;
    let world = World::before(port).await;
    server.answer_ping().await;
    let client = world.connect().await;
    let (response, mut stream) = client.begin(COMMIT, &[]).await;
    stream.send_data(framed(DELETE), true).unwrap();
    let mut connection = server.accept().await;
    let (_, respond) = next(&mut connection).await;
    drop((response, stream, client));
    until("the door knows", || world.door.view().connections.shared == 0).await;
    assert_eq!(world.in_flight(), 1, "it is on the wire, whoever waits for it");
    let driving = tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Some(came) = connection.accept().await {
            kept.push(came);
        }
    });
    answer(respond, b"applied");
    until("its place is given back", || world.in_flight() == 0).await;
    // It was answered: nothing is in doubt, and another one may be sent at once.
    let client = world.connect().await;
    let (response, mut stream) = client.begin(COMMIT, &[]).await;
    stream.send_data(framed(DELETE), true).unwrap();
    until("it is sent", || world.in_flight() == 1).await;
    drop((response, stream));
    driving.abort();
}

#[tokio::test]
async fn a_commit_that_has_no_connection_in_time_is_not_executed_whatever_was_sent_before_it() {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let listener = socket.listen(1).unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = Played { listener, ended: Arc::default() };
    let fs = FirestoreConnector::new(settings(port));
    let plan = |n: u32| {
        planned(&fs, &json!({ "op": "set", "path": format!("u/{n}"), "data": { "n": n } }))
    };
    // Over which of the connections for writes it goes.
    let channel = |n: u32| plan(n).lanes.as_slice()[0].0 % 4;
    let other = (1..100).find(|n| channel(*n) != channel(0)).unwrap();
    let (first, second) = (plan(0), plan(other));
    let lane = second.lanes.as_slice()[0];
    // It does not share a commit.
    fs.shared.sizes.unsent(&[lane.0]);
    let serving = async {
        let mut taken = server.accept().await;
        let mut full = Vec::new();
        // Until nobody is let in any more.
        while let Ok(stream) =
            timeout(Duration::from_millis(200), TcpStream::connect(("127.0.0.1", port))).await
        {
            full.push(stream.unwrap());
        }
        answer(next(&mut taken).await.1, b"");
        while taken.accept().await.is_some() {}
        drop(full);
        std::future::pending::<()>().await;
    };
    let time = Duration::from_secs(1);
    let attempts = [&first, &second].map(|plan| Attempt { timeout: time, ..attempt(plan, None) });
    let ended = tokio::select! {
        ended = fs.attempt_batch(attempts.into()) => ended,
        () = serving => panic!("it goes on"),
    };
    assert!(ended[0].result.is_ok(), "{ended:?}");
    let error = ended[1].result.as_ref().unwrap_err();
    assert_eq!((error.class, error.code.as_str()), (ErrorClass::NotExecuted, "connect"), "{error}");
    assert_eq!(error.doubt, None);
    assert!(!fs.may_land(lane), "nothing of it can land");
}
