//! A write in doubt under its client's own id, at a server that evaluates a statement long after it was sent.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{
    Request, Response, body::Incoming, server::conn::http1 as server, service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpListener, time::timeout};

use super::*;
use crate::kinds::clickhouse::testing::{PATIENCE, settings};

/// A server that answers each statement as `answer` says. Returns its port.
async fn played(answer: impl Fn(&str) -> String + Send + Sync + 'static) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let answer = Arc::new(answer);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answer = Arc::clone(&answer);
            let service = service_fn(move |request: Request<Incoming>| {
                let answer = Arc::clone(&answer);
                async move {
                    let body = request.into_body().collect().await?.to_bytes();
                    let text = answer(&String::from_utf8_lossy(&body));
                    Ok::<_, hyper::Error>(Response::new(Full::new(Bytes::from(text))))
                }
            });
            tokio::spawn(server::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    port
}

/// A fence with a write in doubt under the id `mine`, at the server on `port`.
fn in_doubt(port: u16) -> (Fence, Http) {
    let settings = settings(port, "i", "r");
    let fence = Fence::new(&settings, Arc::default());
    *fence.earlier.lock() = Earlier::Gone;
    drop(fence.enter_under(fence.id(), Some("mine".to_owned()), true));
    (fence, Http::new(settings.into()))
}

#[tokio::test]
async fn a_write_is_ended_by_a_kill_that_the_server_evaluates_late() {
    let is_killed = Arc::new(AtomicBool::new(false));
    let killed = Arc::clone(&is_killed);
    let port = played(move |statement| {
        if statement.starts_with("SELECT") {
            return "mine\t0.5\n".to_owned();
        }
        // Two seconds have passed by then.
        let (_, limit) = statement.rsplit_once("elapsed < ").unwrap();
        let limit: f64 = limit.split(' ').next().unwrap().parse().unwrap();
        if limit < 2.5 {
            return String::new();
        }
        killed.store(true, SeqCst);
        "finished\tmine\tdefault\tINSERT\n".to_owned()
    });
    let (fence, http) = in_doubt(port.await);
    fence.round(&http, Instant::now() + PATIENCE).await.unwrap();
    assert!(is_killed.load(SeqCst) && !fence.is_in_doubt());
}

#[tokio::test]
async fn a_write_that_was_found_is_in_doubt_while_no_answer_says_that_it_has_ended() {
    let runs = Arc::new(AtomicBool::new(true));
    let still = Arc::clone(&runs);
    let port = played(move |statement| {
        let is_listed = statement.starts_with("SELECT") && still.load(SeqCst);
        if is_listed { "mine\t0.5\n".to_owned() } else { String::new() }
    });
    let (fence, http) = in_doubt(port.await);
    for is_running in [true, true, false] {
        runs.store(is_running, SeqCst);
        fence.round(&http, Instant::now() + PATIENCE).await.unwrap();
        assert!(fence.is_in_doubt() && fence.keeps_names(), "{is_running}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_look_waits_for_another_one_no_longer_than_it_may_take() {
    let (fence, http) = in_doubt(1);
    let other = fence.entries.rounds.lock().await;
    let round = fence.round(&http, Instant::now() + Duration::from_secs(1));
    let failed = timeout(PATIENCE, round).await.expect("it ends").unwrap_err();
    drop(other);
    assert_eq!((failed.error.class, failed.verdict), (ErrorClass::NotExecuted, Verdict::Neutral));
    assert!(fence.is_in_doubt());
}
