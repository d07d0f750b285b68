//! Looks at a server that says what a test wants, such as one that evaluates a statement long after it was sent.

use std::{
    future::ready,
    sync::atomic::{AtomicBool, Ordering::SeqCst},
};

use tokio::time::timeout;

use super::{super::endings::SETTLE, *};
use crate::kinds::clickhouse::testing::{self, PATIENCE, settings};

/// A server that answers each statement at once, as `answer` says. Returns its port.
async fn played(answer: impl Fn(&str) -> String + Send + Sync + 'static) -> u16 {
    testing::played(move |statement| ready(answer(&statement))).await
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

#[tokio::test]
async fn a_write_is_in_doubt_while_nobody_can_say_whether_it_is_what_runs() {
    let begun = Instant::now();
    let port = played(move |statement| {
        // This clock has gone on for 1.2 s while ours stood still.
        let age = begun.elapsed().as_secs_f64() + 1.2;
        if statement.starts_with("SELECT") { format!("mine\t{age}\n") } else { String::new() }
    });
    let (fence, http) = in_doubt(port.await);
    // Two looks that did not find it would prove that it is gone.
    let until = Instant::now() + SETTLE * 2;
    while Instant::now() < until {
        fence.round(&http, Instant::now() + PATIENCE).await.unwrap();
        assert!(fence.is_in_doubt() && fence.keeps_names());
    }
}

#[tokio::test]
async fn reads_that_come_and_go_do_not_keep_the_first_writes_waiting() {
    let port = played(|statement| {
        // It has ended by the time at which its name is there.
        let read = QueryId::new(&prefix_of("i"), "r", None);
        if statement.starts_with("SELECT") { format!("{}\t0.01\n", read.0) } else { String::new() }
    });
    let settings = settings(port.await, "i", "r");
    let fence = Fence::new(&settings, Arc::default());
    let http = Http::new(settings.into());
    let looks = async {
        while fence.obstacle(Waits::First).is_some() {
            fence.round(&http, Instant::now() + PATIENCE).await.unwrap();
        }
    };
    timeout(PATIENCE, looks).await.expect("they say nothing of an earlier run");
}

#[tokio::test]
async fn a_statement_that_was_killed_is_no_error_whatever_it_says() {
    let port = played(|statement| {
        if statement.starts_with("SELECT") {
            return "mine\t0.5\n".to_owned();
        }
        let text = "INSERT INTO e SELECT * FROM values(\\'m String\\', (\\'Code: 497. DB::Exception: x \
                    (version 26.7)\\'))";
        format!("finished\tmine\tdefault\t{text}\n")
    });
    let (fence, http) = in_doubt(port.await);
    fence.round(&http, Instant::now() + PATIENCE).await.unwrap();
    assert!(fence.warning().is_none() && !fence.is_in_doubt());
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
