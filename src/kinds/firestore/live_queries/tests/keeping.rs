//! Streams over a scripted server.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use fusebox_actors::connector::{Gate, Streams};
use tokio::time::Instant;
use tonic::{Code, Status};

use crate::kinds::firestore::live_queries::{LiveQueries, Pace, STREAMS_MAX, testing::*};

/// Quick enough for a test, with nothing that happens by itself.
fn pace() -> Pace {
    Pace {
        backoff_base: Duration::from_millis(5),
        backoff_max: Duration::from_millis(50),
        gate_shut: Duration::from_millis(5),
        gate_open: Duration::from_millis(5),
        ..Pace::default()
    }
}

pub(super) fn open_gate() -> Gate {
    Arc::new(|| true)
}

fn streams(pace: Pace) -> (LiveQueries<Scripted>, Arc<Scripted>) {
    let server = Arc::new(Scripted::new());
    (LiveQueries::with(Arc::clone(&server), pace), server)
}

fn query(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn followers_of_one_query_share_one_listen() {
    let (streams, server) = streams(pace());
    let id = streams.open(query("q"), open_gate()).unwrap();
    assert_eq!(streams.open(query("q"), open_gate()).unwrap(), id);
    assert_ne!(streams.open(query("forwarded q"), open_gate()).unwrap(), id);
    let (first, second) = (server.connection().await, server.connection().await);
    let (mut one, mut two) = (streams.follow(&id).unwrap(), streams.follow(&id).unwrap());
    for (_, answers) in [&first, &second] {
        for response in [put("a", 1, 1), current(), consistent(2, "")] {
            answers.send(Ok(response)).unwrap();
        }
    }
    assert_eq!([told(&mut one).await, told(&mut two).await], ["snapshot a=1", "snapshot a=1"]);
    assert!(!server.has_connection());
    assert!(streams.follow("no such id").is_none());
    assert!(streams.open(Bytes::from_static(b"\xff"), open_gate()).unwrap_err().malformed);
}

#[tokio::test]
async fn a_broken_stream_resumes_with_its_token() {
    let (streams, server) = streams(pace());
    let id = streams.open(query("q"), open_gate()).unwrap();
    let mut follow = streams.follow(&id).unwrap();
    let (resume, answers) = server.connection().await;
    assert_eq!(resume.token, "");
    for response in [put("a", 1, 1), current(), consistent(2, "t1")] {
        answers.send(Ok(response)).unwrap();
    }
    assert_eq!(told(&mut follow).await, "snapshot a=1");
    answers.send(Err(Status::unavailable("gone"))).unwrap();
    assert_eq!(told(&mut follow).await, "stale");
    let (resume, answers) = server.connection().await;
    assert_eq!((resume.token, resume.documents), ("t1".into(), 1));
    drop(answers);
    let (_, answers) = server.connection().await;
    for response in [put("b", 3, 2), current(), consistent(4, "t2")] {
        answers.send(Ok(response)).unwrap();
    }
    assert_eq!(told(&mut follow).await, "change +b=2");
}

#[tokio::test]
async fn a_filter_that_does_not_agree_listens_anew_and_tells_nobody() {
    let (streams, server) = streams(pace());
    let id = streams.open(query("q"), open_gate()).unwrap();
    let mut follow = streams.follow(&id).unwrap();
    let (_, answers) = server.connection().await;
    for response in [put("a", 1, 1), put("b", 1, 1), current(), consistent(2, "t1"), count(1)] {
        answers.send(Ok(response)).unwrap();
    }
    assert_eq!(told(&mut follow).await, "snapshot a=1 b=1");
    let (resume, answers) = server.connection().await;
    assert_eq!(resume.token, "");
    for response in [put("b", 1, 1), count(1), current(), consistent(3, "t2")] {
        answers.send(Ok(response)).unwrap();
    }
    assert_eq!(told(&mut follow).await, "change -a");
}

#[tokio::test]
async fn a_token_that_is_refused_is_dropped_before_the_query_is() {
    let (streams, server) = streams(Pace { refused_for: Duration::from_millis(50), ..pace() });
    let id = streams.open(query("q"), open_gate()).unwrap();
    let mut follow = streams.follow(&id).unwrap();
    let (_, answers) = server.connection().await;
    for response in [put("a", 1, 1), current(), consistent(2, "t1")] {
        answers.send(Ok(response)).unwrap();
    }
    assert_eq!(told(&mut follow).await, "snapshot a=1");
    drop(answers);
    assert_eq!(told(&mut follow).await, "stale");
    let (resume, answers) = server.connection().await;
    assert_eq!(resume.token, "t1");
    answers.send(Ok(ended(Code::InvalidArgument, "what token?"))).unwrap();
    let (resume, answers) = server.connection().await;
    assert_eq!(resume.token, "");
    answers.send(Ok(ended(Code::InvalidArgument, "what query?"))).unwrap();
    assert_eq!(told(&mut follow).await, "stale INVALID_ARGUMENT");
    assert_eq!(told(&mut follow).await, "end");
    let refused = streams.open(query("q"), open_gate()).unwrap_err();
    assert_eq!((refused.code, refused.message.as_str()), ("INVALID_ARGUMENT", "what query?"));
    let mut again = None;
    until("the query is asked again", || {
        again = streams.open(query("q"), open_gate()).ok();
        again.is_some()
    })
    .await;
    assert_ne!(again.unwrap(), id);
    server.connection().await;
}

#[tokio::test]
async fn credentials_that_are_refused_end_a_callers_stream_and_not_the_daemons_own() {
    let (streams, server) = streams(pace());
    for (text, line) in [("q", "snapshot(stale)"), ("forwarded q", "stale UNAUTHENTICATED")] {
        let id = streams.open(query(text), open_gate()).unwrap();
        let (_, answers) = server.connection().await;
        answers.send(Err(Status::unauthenticated("expired"))).unwrap();
        let mut follow = streams.follow(&id).unwrap();
        let mut last = told(&mut follow).await;
        if text == "q" {
            server.connection().await;
        } else {
            last = told(&mut follow).await;
        }
        assert_eq!(last, line);
    }
}

#[tokio::test]
async fn nothing_is_sent_while_the_gate_is_shut_and_one_that_shuts_ends_the_connection() {
    let (streams, server) = streams(pace());
    let admits = Arc::new(AtomicBool::new(false));
    let gate: Gate = {
        let admits = Arc::clone(&admits);
        Arc::new(move || admits.load(Ordering::SeqCst))
    };
    let id = streams.open(query("q"), gate).unwrap();
    let mut follow = streams.follow(&id).unwrap();
    assert_eq!(told(&mut follow).await, "snapshot(stale)");
    assert!(!server.has_connection());
    admits.store(true, Ordering::SeqCst);
    let (_, answers) = server.connection().await;
    for response in [put("a", 1, 1), current(), consistent(2, "")] {
        answers.send(Ok(response)).unwrap();
    }
    assert_eq!(told(&mut follow).await, "change +a=1");
    admits.store(false, Ordering::SeqCst);
    assert_eq!(told(&mut follow).await, "stale");
    until("the connection ends", || answers.is_closed()).await;
    assert!(!server.has_connection());
}

#[tokio::test]
async fn a_server_that_never_says_anything_is_taken_for_dead() {
    let (streams, server) = streams(Pace { silence: Duration::from_millis(100), ..pace() });
    let id = streams.open(query("q"), open_gate()).unwrap();
    let (_, _silent) = server.connection().await;
    assert_eq!(told(&mut streams.follow(&id).unwrap()).await, "snapshot(stale)");
    server.connection().await;
}

#[tokio::test]
async fn a_stream_that_nobody_follows_is_closed() {
    let (streams, server) = streams(Pace { idle: Duration::from_millis(50), ..pace() });
    let id = streams.open(query("q"), open_gate()).unwrap();
    let follow = streams.follow(&id).unwrap();
    let (_, answers) = server.connection().await;
    tokio::time::timeout(Duration::from_millis(200), answers.closed()).await.unwrap_err();
    drop(follow);
    until("its connection ends", || answers.is_closed()).await;
    assert!(streams.follow(&id).is_none());
    assert_ne!(streams.open(query("q"), open_gate()).unwrap(), id);
}

#[tokio::test]
async fn no_more_streams_than_the_most_are_open() {
    let (streams, _server) = streams(pace());
    for n in 0..STREAMS_MAX {
        streams.open(n.to_string().into(), open_gate()).unwrap();
    }
    let refused = streams.open(query("one more"), open_gate()).unwrap_err();
    assert_eq!(refused.code, "too_many_streams");
    assert!(refused.message.starts_with("256 live queries are open"), "{refused}");
    assert!(!refused.malformed);
    streams.open(query("7"), open_gate()).unwrap();
}

#[tokio::test]
async fn dropping_the_owner_ends_every_task_and_every_follower() {
    let (streams, server) = streams(pace());
    let id = streams.open(query("q"), open_gate()).unwrap();
    let mut follow = streams.follow(&id).unwrap();
    let (_, answers) = server.connection().await;
    let waiting = tokio::spawn(async move { told(&mut follow).await });
    drop(streams);
    assert_eq!(waiting.await.unwrap(), "end");
    until("the connection ends", || answers.is_closed()).await;
    until("the task is gone", || Arc::strong_count(&server) == 1).await;
}

#[tokio::test]
async fn nothing_is_opened_after_close() {
    let (streams, _server) = streams(pace());
    let id = streams.open(query("q"), open_gate()).unwrap();
    streams.close();
    assert!(streams.follow(&id).is_none());
    assert_eq!(streams.open(query("q"), open_gate()).unwrap_err().code, "closed");
}
