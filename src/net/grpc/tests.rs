//! The channel against a server that the test plays itself.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use futures_util::future::join_all;
use h2::server::{Connection as Served, SendResponse};
use http_body_util::{BodyExt, Full, StreamBody};
use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tonic::Code;

use super::{
    line::{KEEP_ALIVE, KEEP_ALIVE_ANSWER, SUSPECT_ANSWER},
    *,
};
use crate::net::{
    test_port::own_address,
    testing::{PATIENCE, server},
};

/// A server, and a channel to it.
async fn played() -> (TcpListener, Channel) {
    let listener = TcpListener::bind(own_address()).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, Channel::new(server(port), false, Home::default()).unwrap())
}

async fn accepted(listener: &TcpListener) -> Served<TcpStream, Bytes> {
    let accepted = timeout(PATIENCE, listener.accept()).await.unwrap();
    h2::server::handshake(accepted.unwrap().0).await.unwrap()
}

/// A request that came, and the receiver of its answer.
type Came = (Request<RecvStream>, SendResponse<Bytes>);

/// The next request of a connection, which must come.
async fn next(served: &mut Served<TcpStream, Bytes>) -> Came {
    timeout(PATIENCE, served.accept()).await.unwrap().unwrap().unwrap()
}

/// Answers every request of every connection with one byte; tells how many connections there were.
fn answering(listener: TcpListener) -> Arc<AtomicUsize> {
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&connections);
    tokio::spawn(async move {
        loop {
            let mut served = accepted(&listener).await;
            counted.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(async move {
                while let Some(Ok((_, respond))) = served.accept().await {
                    answer(respond);
                }
            });
        }
    });
    connections
}

fn answer(mut respond: SendResponse<Bytes>) {
    let mut body = respond.send_response(Response::new(()), false).unwrap();
    body.send_data(Bytes::from_static(b"a"), false).unwrap();
    let status = ("grpc-status".parse().unwrap(), HeaderValue::from_static("0"));
    body.send_trailers(HeaderMap::from_iter([status])).unwrap();
}

fn request() -> Request<Body> {
    let message = Full::new(Bytes::from_static(b"message")).map_err(|never| match never {});
    Request::post("/service/method").body(Body::new(message)).unwrap()
}

async fn answered(channel: &Channel) {
    is_answer(channel.clone().exchange(request()).await.unwrap()).await;
}

async fn answered_by_one_of(pool: &pool::Pool) {
    let mut once = pool.lease().await.unwrap().into_channel();
    is_answer(tower::Service::call(&mut once, request()).await.unwrap()).await;
}

async fn is_answer(response: Response<Answer>) {
    let whole = response.into_body().collect().await.unwrap();
    assert_eq!(whole.trailers().unwrap()["grpc-status"], "0");
    assert_eq!(whole.to_bytes(), "a");
}

/// Waits until the channel knows that it has no connection.
async fn until_closed(channel: &Channel) {
    let closed = async {
        while channel.is_open() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, closed).await.unwrap();
}

/// Whether it is known that nothing of the request was acted upon.
fn not_executed(status: &Status) -> bool {
    let source = std::error::Error::source(status);
    status.code() == Code::Unavailable && source.is_some_and(<dyn std::error::Error>::is::<NotSent>)
}

#[tokio::test]
async fn all_who_come_first_share_one_connection_with_all_who_follow() {
    let (listener, channel) = played().await;
    let connections = answering(listener);
    join_all((0..50).map(|_| answered(&channel))).await;
    answered(&channel).await;
    assert_eq!(connections.load(Ordering::SeqCst), 1);
    assert!(channel.is_open());
}

#[tokio::test]
async fn a_connection_outlives_the_runtime_of_whoever_dialled_it() {
    let (listener, channel) = played().await;
    let server = channel.inner.server.clone();
    let connections = answering(listener);
    let channel = Channel::new(server.clone(), false, Home::current()).unwrap();
    let pool = Arc::new(pool::Pool::new(server, WINDOWS, 100, None, Home::current()));
    let there = (channel.clone(), Arc::clone(&pool));
    let elsewhere = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            answered(&there.0).await;
            answered_by_one_of(&there.1).await;
        });
    });
    elsewhere.await.unwrap();
    answered(&channel).await;
    answered_by_one_of(&pool).await;
    assert_eq!(connections.load(Ordering::SeqCst), 2, "one of the channel, one of the pool");
}

#[tokio::test]
async fn a_place_is_taken_until_its_answer_has_ended_and_is_for_one_request() {
    let (listener, channel) = played().await;
    let server = channel.inner.server.clone();
    let connections = answering(listener);
    let pool = pool::Pool::new(server, WINDOWS, 1, None, Home::default());
    let mut once = pool.lease().await.unwrap().into_channel();
    let held = tower::Service::call(&mut once, request()).await.unwrap();
    let again = tower::Service::call(&mut once, request()).await.map(drop).unwrap_err();
    assert!(not_executed(&again), "{again:?}");
    answered_by_one_of(&pool).await;
    assert_eq!(connections.load(Ordering::SeqCst), 2, "the first one has no place left");
    is_answer(held).await;
    for _ in 0..3 {
        answered_by_one_of(&pool).await;
    }
    assert_eq!(connections.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_message_bears_the_end_of_its_request_and_a_head_says_where_it_goes() {
    let (listener, channel) = played().await;
    let server = async {
        let mut served = accepted(&listener).await;
        let (request, respond) = next(&mut served).await;
        let uri = request.uri();
        assert_eq!((uri.scheme_str(), uri.path()), (Some("http"), "/service/method"));
        let port = listener.local_addr().unwrap().port();
        assert_eq!(uri.authority().unwrap().port_u16(), Some(port));
        let mut body = request.into_body();
        // The connection must be driven for its parts to arrive.
        let message = tokio::select! {
            data = body.data() => data,
            _ = served.accept() => panic!("one request only"),
        };
        assert_eq!(message.unwrap().unwrap(), "message");
        assert!(body.is_end_stream(), "no frame follows that says so");
        answer(respond);
        drop(timeout(PATIENCE, served.accept()).await);
    };
    let client = async {
        answered(&channel).await;
        drop(channel);
    };
    tokio::join!(server, client);
}

#[tokio::test]
async fn a_connection_that_ended_is_replaced_before_anything_is_sent() {
    let (listener, channel) = played().await;
    for _ in 0..3 {
        let server = async {
            let mut served = accepted(&listener).await;
            answer(next(&mut served).await.1);
            // What was answered goes out; whatever comes after that goes elsewhere.
            served.graceful_shutdown();
            assert!(timeout(PATIENCE, served.accept()).await.unwrap().is_none());
        };
        tokio::join!(server, answered(&channel));
    }
}

#[tokio::test]
async fn a_refused_stream_was_not_executed_and_a_broken_one_may_have_been() {
    let (listener, channel) = played().await;
    let server = async {
        let mut served = accepted(&listener).await;
        next(&mut served).await.1.send_reset(Reason::REFUSED_STREAM);
        // The second one is read, and then the connection is gone.
        drop(next(&mut served).await);
        drop(served);
    };
    let client = async {
        let refused = channel.clone().exchange(request()).await.map(drop).unwrap_err();
        assert!(not_executed(&refused), "{refused:?}");
        let lost = channel.clone().exchange(request()).await.map(drop).unwrap_err();
        assert!(!not_executed(&lost), "{lost:?}");
    };
    tokio::join!(server, client);
    until_closed(&channel).await;
}

#[tokio::test]
async fn where_nobody_listens_nothing_is_sent_and_the_next_request_tries_again() {
    let (listener, channel) = played().await;
    let address = listener.local_addr().unwrap();
    drop(listener);
    for status in join_all((0..5).map(|_| channel.clone().exchange(request()))).await {
        let status = status.map(drop).unwrap_err();
        assert!(not_executed(&status), "{status:?}");
        assert_eq!(status.code(), Code::Unavailable);
    }
    answering(TcpListener::bind(address).await.unwrap());
    answered(&channel).await;
}

#[tokio::test]
async fn a_dial_that_was_cut_short_is_begun_anew() {
    let (listener, channel) = played().await;
    let cut_short = NotSent::Refused("cut short".to_owned());
    let ended = futures_util::future::ready(Err(cut_short)).boxed().shared();
    drop(ended.clone().await);
    *channel.inner.state.lock() = State::Dialling(ended);
    answering(listener);
    answered(&channel).await;
}

#[tokio::test]
async fn a_connection_is_closed_with_the_last_of_its_channels() {
    let (listener, channel) = played().await;
    let server = async {
        let mut served = accepted(&listener).await;
        answer(next(&mut served).await.1);
        let end = timeout(PATIENCE, served.accept()).await.unwrap();
        assert!(end.is_none_or(|request| request.is_err()));
    };
    let client = async {
        answered(&channel).await;
        drop(channel);
    };
    tokio::join!(server, client);
}

#[tokio::test]
async fn a_request_that_nobody_waits_for_any_more_is_reset() {
    let (listener, channel) = played().await;
    let server = async {
        let mut served = accepted(&listener).await;
        let (request, mut respond) = next(&mut served).await;
        let reset = poll_fn(|cx| {
            drop(served.poll_accept(cx));
            respond.poll_reset(cx)
        });
        let reset = timeout(PATIENCE, reset).await.unwrap().unwrap();
        drop(request);
        assert_eq!(reset, Reason::CANCEL);
    };
    let client = timeout(Duration::from_millis(50), channel.clone().exchange(request()));
    let ((), ended) = tokio::join!(server, client);
    assert!(ended.is_err());
}

#[tokio::test]
async fn the_messages_of_a_stream_go_out_as_they_come() {
    let (listener, channel) = played().await;
    let (messages, receiver) = mpsc::unbounded_channel::<Bytes>();
    messages.send(Bytes::from_static(b"m0")).unwrap();
    let frames = futures_util::stream::unfold(receiver, |mut receiver| async {
        let message = receiver.recv().await?;
        Some((Ok::<_, Status>(Frame::data(message)), receiver))
    });
    let request = Request::post("/s/m").body(Body::new(StreamBody::new(frames))).unwrap();
    let server = async {
        let mut served = accepted(&listener).await;
        let (request, respond) = next(&mut served).await;
        let mut body = request.into_body();
        tokio::spawn(async move { while served.accept().await.is_some() {} });
        let mut seen = Vec::new();
        for _ in 0..3 {
            let data = timeout(PATIENCE, body.data()).await.unwrap().unwrap().unwrap();
            body.flow_control().release_capacity(data.len()).unwrap();
            seen.push(data);
            messages.send(Bytes::from(format!("m{}", seen.len()))).unwrap();
        }
        assert_eq!(seen, ["m0", "m1", "m2"]);
        drop(messages);
        let rest = timeout(PATIENCE, async { while body.data().await.is_some() {} }).await;
        assert!(rest.is_ok() && body.is_end_stream(), "its end is told");
        answer(respond);
    };
    let client = async {
        let response = channel.clone().exchange(request).await.unwrap();
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "a");
    };
    tokio::join!(server, client);
}

#[tokio::test]
async fn the_connection_that_took_a_request_is_reset_for_it() {
    let (listener, channel) = played().await;
    let settings = channel.inner.server.clone();
    let channel = Channel::new(settings, true, Home::default()).unwrap();
    let (followed, carrier) = channel.followed();
    let under_way = tokio::spawn(followed.exchange(request()));
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut read = Vec::new();
    while !read.windows(7).any(|part| part == b"message") {
        assert_ne!(timeout(PATIENCE, stream.read_buf(&mut read)).await.unwrap().unwrap(), 0);
    }
    assert!(timeout(PATIENCE, carrier.reset()).await.unwrap(), "it was sent");
    let end = async {
        loop {
            match stream.read_buf(&mut read).await {
                Ok(0) => panic!("it was closed in good order"),
                Ok(_) => {}
                Err(error) => return error,
            }
        }
    };
    let error = timeout(Duration::from_secs(5), end).await.expect("it is closed at once");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    let lost = under_way.await.unwrap().map(drop).unwrap_err();
    assert!(!not_executed(&lost), "{lost:?}");
    answering(listener);
    answered(&channel).await;
}

#[tokio::test]
async fn a_request_that_no_connection_took_was_not_sent() {
    let (listener, channel) = played().await;
    let (followed, carrier) = channel.followed();
    drop(listener);
    assert!(followed.exchange(request()).await.is_err());
    assert!(!carrier.reset().await);
}

#[tokio::test]
async fn a_request_given_up_unheard_makes_a_silent_connection_end_soon() {
    let (listener, channel) = played().await;
    let given_up = timeout(Duration::from_millis(200), channel.clone().exchange(request()));
    // Held open, unread.
    let (ended, held) = tokio::join!(given_up, listener.accept());
    assert!(ended.is_err());
    let began = tokio::time::Instant::now();
    until_closed(&channel).await;
    assert!(began.elapsed() < SUSPECT_ANSWER * 3, "{:?}", began.elapsed());
    drop(held);
    answering(listener);
    answered(&channel).await;
}

#[tokio::test]
async fn a_slow_server_that_answers_pings_is_kept() {
    let (listener, channel) = played().await;
    let server = tokio::spawn(async move {
        let mut served = accepted(&listener).await;
        let mut held = Vec::new();
        while let Some(Ok(came)) = served.accept().await {
            held.push(came);
        }
        drop(listener);
    });
    // For longer than a ping of suspicion may go unanswered.
    for _ in 0..15 {
        let slow = timeout(Duration::from_millis(100), channel.clone().exchange(request()));
        assert!(slow.await.is_err());
    }
    assert!(channel.is_open());
    server.abort();
}

#[tokio::test]
async fn a_server_that_falls_silent_is_given_up() {
    let (listener, channel) = played().await;
    let carried = tokio::spawn(channel.clone().exchange(request()));
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut read = Vec::new();
    while !read.windows(7).any(|part| part == b"message") {
        assert_ne!(timeout(PATIENCE, stream.read_buf(&mut read)).await.unwrap().unwrap(), 0);
    }
    tokio::time::pause();
    let begun = tokio::time::Instant::now();
    let lost = carried.await.unwrap().map(drop).unwrap_err();
    assert!(!not_executed(&lost), "{lost:?}");
    let took = begun.elapsed();
    let most = KEEP_ALIVE + KEEP_ALIVE_ANSWER;
    assert!(took > KEEP_ALIVE_ANSWER && took <= most + Duration::from_secs(1), "{took:?}");
}
