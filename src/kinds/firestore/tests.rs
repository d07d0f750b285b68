//! The connector against real emulators.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use fusebox_actors::{
    connector::{Attempt, Attempted, Connector, Doubt, ErrorCode, OwnCode, Plan},
    trace::PassedOn,
};
use fusebox_state::{ErrorClass, LaneId, Lanes, OpId, SpanRef, UnixMillis, Verdict};
use http_body_util::Empty;
use hyper::{
    HeaderMap, Request, Response, body::Incoming, server::conn::http2, service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use serde_json::{Value as Json, json};
use tokio::net::TcpListener;

use super::{
    connector::FirestoreConnector,
    protocol::{cargo::marker, json::body_from_json},
    settings::FirestoreSettings,
    testing::{
        Emulator, Engine, Network, PATIENCE, answered, attempt, call, data, planned, settings,
    },
};

mod door;
mod many;

fn token(n: u128) -> OpId {
    OpId::from_u128(n)
}

fn count(path: &str) -> Json {
    let transforms = json!({ "n": { "increment": 1 } });
    json!({ "op": "set", "path": path, "data": {}, "merge": true, "transforms": transforms })
}

fn set(path: &str, n: usize) -> Json {
    json!({ "op": "set", "path": path, "data": { "n": n } })
}

/// Carries calls together, each with its token if it has one.
async fn together(
    connector: &FirestoreConnector,
    calls: &[(Json, Option<OpId>)],
) -> Vec<Attempted> {
    let plans: Vec<(Plan, Option<OpId>)> =
        calls.iter().map(|(call, token)| (planned(connector, call), *token)).collect();
    let attempts = plans.iter().map(|(plan, token)| attempt(plan, *token)).collect();
    connector.attempt_batch(attempts).await
}

#[tokio::test]
async fn documents_are_written_read_changed_and_deleted() {
    for emulator in Emulator::all().await {
        let fs = emulator.connector();
        let ada = json!({ "born": 1815, "tags": ["a"], "in": { "city": "London" } });
        let wrote = json!({ "op": "set", "path": "users/ada", "data": ada });
        assert!(answered(call(&fs, wrote).await)["update_time"].is_string());
        let got = answered(call(&fs, json!({ "op": "get", "path": "users/ada" })).await);
        assert_eq!((&got["path"], &got["data"]), (&json!("users/ada"), &ada));
        assert!(got["create_time"].is_string() && got["update_time"].is_string());
        let update = json!({
            "op": "update", "path": "users/ada", "data": { "in.country": "UK" },
            "delete_fields": ["tags"], "transforms": { "born": { "increment": 1 } },
        });
        answered(call(&fs, update).await);
        let mut changed = json!({ "born": 1816, "in": { "city": "London", "country": "UK" } });
        if emulator.engine == Engine::Npm {
            // It does not take out what is in the mask and not in the document; Google's does.
            changed["tags"] = json!(["a"]);
        }
        assert_eq!(data(&fs, "users/ada").await, changed, "{:?}", emulator.engine);
        let both = json!({ "op": "batch_get", "paths": ["users/ada", "users/bob", "users/ada"] });
        let both = answered(call(&fs, both).await);
        assert_eq!(
            (&both[0]["data"], &both[1], &both[2]["data"]),
            (&changed, &json!(null), &changed)
        );
        answered(call(&fs, json!({ "op": "delete", "path": "users/ada" })).await);
        assert_eq!(data(&fs, "users/ada").await, Json::Null);
    }
}

#[tokio::test]
async fn queries_find_what_they_ask_for() {
    for emulator in Emulator::all().await {
        let fs = emulator.connector();
        let writes: Vec<Json> = (0..10).map(|n| set(&format!("q/{n}"), n)).collect();
        let commit = answered(call(&fs, json!({ "op": "commit", "writes": writes })).await);
        assert_eq!(commit["writes"].as_array().unwrap().len(), 10);
        let query = json!({
            "op": "query", "collection": "q", "where": [["n", ">=", 3], ["n", "<", 9]],
            "order": [["n", "desc"]], "limit": 3,
        });
        let found = answered(call(&fs, query).await);
        let found: Vec<&Json> =
            found.as_array().unwrap().iter().map(|found| &found["data"]["n"]).collect();
        assert_eq!(found, [8, 7, 6], "{:?}", emulator.engine);
    }
}

#[tokio::test]
async fn what_the_server_refuses_is_a_success_of_the_servers() {
    for emulator in Emulator::all().await {
        let fs = emulator.connector();
        answered(call(&fs, set("r/a", 1)).await);
        for refused in [
            json!({ "op": "create", "path": "r/a", "data": {} }),
            json!({ "op": "update", "path": "r/none", "data": { "n": 1 } }),
        ] {
            let ended = call(&fs, refused.clone()).await;
            let error = ended.result.unwrap_err();
            assert_eq!(
                (error.class, ended.verdict),
                (ErrorClass::Rejected, Verdict::Success),
                "{:?}: {refused}: {error}",
                emulator.engine
            );
        }
    }
}

#[tokio::test]
async fn a_repeated_call_is_recognised_by_its_marker() {
    for emulator in Emulator::all().await {
        let fs = emulator.connector();
        for _ in 0..3 {
            let plan = planned(&fs, &count("c/one"));
            let ended = fs.attempt(attempt(&plan, Some(token(7)))).await;
            assert!(answered(ended)["update_time"].is_string());
        }
        assert_eq!(data(&fs, "c/one").await["n"], 1, "{:?}", emulator.engine);
        fs.forget_tokens(vec![token(7)]);
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while data(&fs, &marker(token(7))).await != Json::Null || exists(&fs, token(7)).await {
            assert!(tokio::time::Instant::now() < deadline, "the marker is not deleted");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test]
async fn an_op_id_that_is_used_again_for_another_call_is_a_conflict() {
    for emulator in Emulator::all().await {
        let fs = emulator.connector();
        let create =
            |path: &str| planned(&fs, &json!({ "op": "create", "path": path, "data": {} }));
        let (first, other) = (create("o/a"), create("o/b"));
        let with = |plan, digest| Attempt { digest, ..attempt(plan, Some(token(70))) };
        let written = answered(fs.attempt(with(&first, 1)).await);
        let again = fs.attempt(with(&first, 1)).await;
        assert!(!again.reply_lost, "when it was applied is all of its reply");
        assert_eq!(answered(again), written);
        for digest in [2, u64::MAX] {
            let ended = fs.attempt(with(&other, digest)).await;
            let error = ended.result.unwrap_err();
            assert_eq!(
                (error.code.as_str(), error.class),
                ("op_id_conflict", ErrorClass::Conflict)
            );
            assert_eq!((ended.verdict, error.doubt), (Verdict::Success, None));
        }
        // Among others, too, and those are carried out.
        let beside = planned(&fs, &set("o/c", 1));
        let ends = fs.attempt_batch(vec![with(&other, 2), attempt(&beside, None)]).await;
        assert_eq!(ends[0].result.as_ref().unwrap_err().class, ErrorClass::Conflict);
        assert!(ends[1].result.is_ok());
        assert_eq!(data(&fs, "o/b").await, Json::Null, "{:?}", emulator.engine);
        // A marker of an earlier version is of any call.
        answered(call(&fs, json!({ "op": "set", "path": marker(token(71)), "data": {} })).await);
        let counted = planned(&fs, &count("o/d"));
        let old = Attempt { digest: 9, ..attempt(&counted, Some(token(71))) };
        let recognised = fs.attempt(old).await;
        assert!(recognised.reply_lost, "what the transform made is not known");
        assert!(answered(recognised)["update_time"].is_string());
        assert_eq!(data(&fs, "o/d").await, Json::Null);
    }
}

#[tokio::test]
async fn a_marker_says_whose_it_is_and_until_when_it_is_of_use() {
    let emulator = Emulator::start(Engine::Npm).await;
    let fs = emulator.connector();
    let plan = planned(&fs, &count("w/a"));
    let now = UnixMillis::new(1_000);
    let own = Attempt { digest: u64::MAX - 1, now, ..attempt(&plan, Some(token(72))) };
    answered(fs.attempt(own).await);
    let expires = json!({ "timestampValue": "1970-01-08T00:00:01Z" });
    assert_eq!(
        data(&fs, &marker(token(72))).await,
        json!({ "digest": "fffffffffffffffe", "expires_at": expires })
    );
}

#[tokio::test]
async fn what_may_have_been_applied_is_sent_again_only_where_its_marker_would_tell() {
    let emulator = Emulator::start(Engine::Npm).await;
    let fs = emulator.connector();
    let week = 7 * 24 * 60 * 60 * 1_000;
    let (since, evidence) = (UnixMillis::new(1_000), Bytes::new());
    let doubt = Some(Doubt { since, evidence: &evidence });
    let counted = planned(&fs, &count("d/a"));
    let own = attempt(&counted, Some(token(80)));
    for (token, now) in [(None, 2_000), (own.token, 1_000 + week)] {
        let again = Attempt { token, doubt, now: UnixMillis::new(now), ..own.clone() };
        let error = fs.attempt(again).await.result.unwrap_err();
        assert_eq!(
            (error.class, error.code.as_str()),
            (ErrorClass::Ambiguous, "ambiguous"),
            "{error}"
        );
        assert_eq!(error.doubt, None, "this time nothing was sent");
    }
    assert_eq!(data(&fs, "d/a").await, Json::Null);
    for _ in 0..2 {
        let again = Attempt { doubt, now: UnixMillis::new(999 + week), ..own.clone() };
        answered(fs.attempt(again).await);
    }
    assert_eq!(data(&fs, "d/a").await["n"], 1);
    let absolute = planned(&fs, &set("d/b", 1));
    answered(fs.attempt(Attempt { doubt, ..attempt(&absolute, None) }).await);
}

/// Sends calls as replay does, as many at once as the connector wants, until each is answered or `enough`
/// says that what is left may be. Returns which are left.
async fn drain(
    fs: &FirestoreConnector,
    calls: &[Json],
    timeout: Duration,
    enough: impl Fn(&[usize]) -> bool,
) -> Vec<usize> {
    let plans: Vec<Plan> = calls.iter().map(|call| planned(fs, call)).collect();
    let mut left: Vec<usize> = (0..plans.len()).collect();
    let deadline = tokio::time::Instant::now() + PATIENCE * 2;
    while !left.is_empty() && !enough(&left) {
        assert!(tokio::time::Instant::now() < deadline, "left are {left:?}");
        let batch: Vec<usize> = left.iter().copied().take(fs.batch_max()).collect();
        let attempts = batch.iter().map(|at| Attempt { timeout, ..attempt(&plans[*at], None) });
        let ends = fs.attempt_batch(attempts.collect()).await;
        for (at, ended) in batch.iter().zip(ends) {
            left.retain(|it| it != at);
            if let Err(error) = ended.result {
                assert_ne!(error.class, ErrorClass::Rejected, "{at}: {error}");
                // It comes back behind the others, as after a backoff.
                left.push(*at);
            }
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    left
}

fn large(path: &str, bytes: usize) -> Json {
    json!({ "op": "set", "path": path, "data": { "text": "x".repeat(bytes) } })
}

#[tokio::test]
async fn over_a_slow_network_commits_become_as_small_as_it_takes() {
    let emulator = Emulator::start(Engine::Npm).await;
    let network = Network::start(emulator.port).await;
    // A fifth of 240 calls with a timeout of 10 s, so that it takes a fifth of the time.
    let timeout = Duration::from_secs(2);
    let fs = FirestoreConnector::new(behind(&network, timeout));
    network.slow_down(250_000);
    let calls: Vec<Json> = (0..48).map(|n| large(&format!("slow/{n}"), 16 << 10)).collect();
    drain(&fs, &calls, timeout, |_| false).await;
    let found =
        answered(call(&emulator.connector(), json!({ "op": "query", "collection": "slow" })).await);
    assert_eq!(found.as_array().unwrap().len(), 48);
}

#[tokio::test]
async fn one_call_that_breaks_the_connection_does_not_hold_up_the_others() {
    let emulator = Emulator::start(Engine::Npm).await;
    let network = Network::start(emulator.port).await;
    network.break_on("arsenic");
    let timeout = Duration::from_millis(300);
    let fs = FirestoreConnector::new(behind(&network, timeout));
    let mut calls: Vec<Json> = (0..20).map(|n| set(&format!("well/{n}"), n)).collect();
    calls.insert(7, json!({ "op": "set", "path": "well/poison", "data": { "in": "arsenic" } }));
    let left = drain(&fs, &calls, timeout, |left| left == [7]).await;
    assert_eq!(left, [7]);
    for n in 0..20 {
        assert_eq!(data(&emulator.connector(), &format!("well/{n}")).await["n"], n);
    }
}

#[tokio::test]
async fn a_message_that_is_too_large_is_no_overload_and_is_learnt() {
    // The npm emulator takes messages of 4 MiB, as many a proxy does.
    let emulator = Emulator::start(Engine::Npm).await;
    let fs = emulator.connector();
    let calls: Vec<Json> = (0..5).map(|n| large(&format!("big/{n}"), 900_000)).collect();
    let own = json!({ "op": "commit", "writes": calls });
    let body = body_from_json(own.as_object().unwrap().clone(), "").unwrap();
    let unknown = fs.plan(body.clone()).unwrap();
    let refused = fs.attempt(attempt(&unknown, None)).await;
    let error = refused.result.unwrap_err();
    assert_eq!(
        (error.code.as_str(), error.class, refused.verdict, error.retry_after),
        ("too_large", ErrorClass::Rejected, Verdict::Success, None),
        "{error}"
    );
    let known = fs.plan(body).unwrap_err();
    assert_eq!((known.code, known.malformed), ("too_large", false));
    assert!(known.message.contains("4194304"), "{}", known.message);
    let anew = emulator.connector();
    let beside = planned(&anew, &set("big/x", 1));
    let ends = anew.attempt_batch(vec![attempt(&unknown, None), attempt(&beside, None)]).await;
    assert_eq!(ends[0].result.as_ref().unwrap_err().class, ErrorClass::Rejected);
    assert!(ends[1].result.is_ok(), "{:?}", ends[1]);
    for fs in [fs, emulator.connector()] {
        drain(&fs, &calls, Duration::from_secs(5), |_| false).await;
        assert!(fs.batch_max() > 4);
    }
}

#[tokio::test]
async fn a_commit_is_measured_with_its_references_as_they_are_sent() {
    let refers = |count: usize| {
        let references = vec![json!({ "referenceValue": "u/b" }); count];
        let set =
            |n: u32| json!({ "op": "set", "path": format!("u/{n}"), "data": { "r": references } });
        let call = json!({ "op": "commit", "writes": (0..4).map(set).collect::<Vec<_>>() });
        body_from_json(call.as_object().unwrap().clone(), "").unwrap()
    };
    let large = refers(52_000);
    assert!(large.len() < 2_000_000, "{}", large.len());
    let real = "https://firestore.googleapis.com".parse().unwrap();
    // It is not known yet of which project the second one is.
    for of in [settings(1), FirestoreSettings::new(real)] {
        let fs = FirestoreConnector::new(of);
        let refused = fs.plan(large.clone()).unwrap_err();
        assert_eq!((refused.code, refused.malformed), ("too_large", false), "{}", refused.message);
        assert!(fs.plan(refers(10_000)).is_ok());
    }
}

#[tokio::test]
async fn what_is_stored_has_its_lanes_although_it_would_not_be_taken_now() {
    let fs = FirestoreConnector::new(settings(1));
    let lane = |path: &str| LaneId::of(fs.namespace(), path.as_bytes());
    let update = |path: &str| json!({ "op": "update", "path": path, "data": { "n": 1 } });
    // It needs a marker, for which an earlier release has left no room.
    let mut writes = vec![update("u/b"); 498];
    writes.extend([update("u/a"), json!({ "op": "delete", "path": "u/a" })]);
    let call = json!({ "op": "commit", "writes": writes });
    let body = body_from_json(call.as_object().unwrap().clone(), "").unwrap();
    assert_eq!(fs.plan(body.clone()).unwrap_err().code, "too_large");
    assert_eq!(fs.stored_lanes(&body), Some(Lanes::new(["u/a", "u/b"].map(lane))));
    let taken = planned(&fs, &set("u/a", 1));
    assert_eq!(fs.stored_lanes(&taken.body), Some(taken.lanes));
}

async fn exists(fs: &FirestoreConnector, token: OpId) -> bool {
    !answered(call(fs, json!({ "op": "get", "path": marker(token) })).await).is_null()
}

#[tokio::test]
async fn whatever_batches_are_made_a_call_counts_once() {
    for emulator in Emulator::all().await {
        let fs = emulator.connector();
        let calls: Vec<(Json, Option<OpId>)> =
            (0..40_u128).map(|n| (count(&format!("b/{n}")), Some(token(100 + n)))).collect();
        let first = together(&fs, &calls[..25]).await;
        assert!(first.iter().all(|end| end.result.is_ok()), "{first:?}");
        // As after a crash: other batches, of which some calls were applied already.
        for group in [&calls[20..40], &calls[0..40]] {
            let again = together(&fs, group).await;
            assert!(again.iter().all(|end| end.result.is_ok()), "{:?}: {again:?}", emulator.engine);
        }
        for n in 0..40 {
            assert_eq!(data(&fs, &format!("b/{n}")).await["n"], 1, "{:?}: {n}", emulator.engine);
        }
    }
}

#[tokio::test]
async fn one_call_that_is_refused_does_not_take_the_others_with_it() {
    for emulator in Emulator::all().await {
        let fs = emulator.connector();
        let mut calls: Vec<(Json, Option<OpId>)> =
            (0..60).map(|n| (set(&format!("p/{n}"), n), None)).collect();
        let poison = json!({ "op": "update", "path": "p/missing", "data": { "n": 1 } });
        calls.insert(37, (poison, None));
        calls.push((count("p/count"), Some(token(900))));
        let mut left: Vec<usize> = (0..calls.len()).collect();
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while left != [37] {
            assert!(tokio::time::Instant::now() < deadline, "left are {left:?}");
            let batch: Vec<_> = left.iter().map(|at| calls[*at].clone()).collect();
            let ends = together(&fs, &batch).await;
            let mut at = left.clone().into_iter().zip(ends);
            left.retain(|_| match at.next().unwrap() {
                (at, Attempted { result: Ok(_), .. }) => {
                    assert_ne!(at, 37);
                    false
                }
                (at, Attempted { result: Err(error), .. }) => {
                    // A server that has only just begun may use up the time with the first commits.
                    let late = error.code.as_str() == "batch";
                    assert!(late || (at, error.class) == (37, ErrorClass::Rejected), "{error}");
                    true
                }
            });
        }
        assert_eq!(data(&fs, "p/59").await["n"], 59);
        assert_eq!(data(&fs, "p/count").await["n"], 1, "{:?}", emulator.engine);
    }
}

#[tokio::test]
async fn a_refused_commit_leaves_no_marker_where_commits_are_atomic() {
    let Some(emulator) = Emulator::google("atomic commits").await else { return };
    let fs = emulator.connector();
    answered(call(&fs, set("a/taken", 1)).await);
    let poison = json!({ "op": "create", "path": "a/taken", "data": {} });
    let calls = [
        (count("a/one"), Some(token(1))),
        (poison, Some(token(2))),
        (count("a/two"), Some(token(3))),
    ];
    let ends = together(&fs, &calls).await;
    assert!(ends[0].result.is_ok() && ends[2].result.is_ok());
    assert_eq!(ends[1].result.as_ref().unwrap_err().class, ErrorClass::Rejected);
    assert!(exists(&fs, token(1)).await && !exists(&fs, token(2)).await);
    assert_eq!(
        (data(&fs, "a/one").await["n"].clone(), data(&fs, "a/two").await["n"].clone()),
        (json!(1), json!(1))
    );
}

#[tokio::test]
async fn more_writes_than_a_commit_takes_are_several() {
    for emulator in Emulator::all().await {
        let fs = emulator.connector();
        let mut calls: Vec<(Json, Option<OpId>)> =
            (0..400_u128).map(|n| (count(&format!("m/{n}")), Some(token(2_000 + n)))).collect();
        let ends = together(&fs, &calls).await;
        for end in ends.iter().filter_map(|end| end.result.as_ref().err()) {
            // A server that has only just begun may use up the time with the first commit.
            assert_eq!(end.code.as_str(), "batch", "{:?}", emulator.engine);
        }
        let mut ends = ends.iter();
        calls.retain(|_| ends.next().unwrap().result.is_err());
        let rest = together(&fs, &calls).await;
        assert!(rest.iter().all(|end| end.result.is_ok()), "{:?}", emulator.engine);
        let found = answered(call(&fs, json!({ "op": "query", "collection": "m" })).await);
        assert_eq!(found.as_array().unwrap().len(), 400);
    }
}

#[tokio::test]
async fn a_transaction_is_passed_through() {
    for emulator in Emulator::all().await {
        let fs = emulator.connector();
        answered(call(&fs, set("t/a", 1)).await);
        let begun = answered(call(&fs, json!({ "op": "begin_transaction" })).await);
        let id = &begun["transaction"];
        let get = json!({ "op": "get", "path": "t/a", "transaction": id });
        assert_eq!(answered(call(&fs, get).await)["data"]["n"], 1);
        let commit = json!({ "op": "commit", "writes": [set("t/a", 2)], "transaction": id });
        answered(call(&fs, commit).await);
        assert_eq!(data(&fs, "t/a").await["n"], 2);
        let begun = answered(call(&fs, json!({ "op": "begin_transaction" })).await);
        let id = &begun["transaction"];
        answered(call(&fs, json!({ "op": "rollback", "transaction": id })).await);
    }
}

#[tokio::test]
async fn a_refused_connection_was_not_executed_and_a_killed_server_comes_back() {
    let mut emulator = Emulator::start(Engine::Npm).await;
    let fs = emulator.connector();
    answered(call(&fs, set("k/a", 1)).await);
    emulator.kill();
    let deadline = tokio::time::Instant::now() + PATIENCE;
    for attempt in 0.. {
        // The first may still find the old connection, and leave its lane in doubt.
        let ended = call(&fs, set(&format!("k/{attempt}"), 2)).await;
        assert_eq!(ended.verdict, Verdict::Failure, "{ended:?}");
        if ended.result.unwrap_err().class == ErrorClass::NotExecuted {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "never told that it was not executed");
    }
    assert!(fs.ping(Duration::from_secs(1)).await.result.is_err());
    emulator.restart().await;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while call(&fs, set("k/b", 3)).await.result.is_err() {
        assert!(tokio::time::Instant::now() < deadline, "the connection is not made anew");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(fs.ping(Duration::from_secs(1)).await.result.is_ok());
}

#[tokio::test]
async fn a_server_that_never_answers_leaves_the_lane_in_doubt_and_no_other() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let short = Duration::from_millis(200);
    let fs = FirestoreConnector::new(FirestoreSettings { timeout: short, ..settings(port) });
    let plan = planned(&fs, &set("s/a", 1));
    let first = fs.attempt(Attempt { timeout: short, ..attempt(&plan, None) }).await;
    let error = first.result.unwrap_err();
    assert_eq!((error.class, first.verdict), (ErrorClass::Unknown, Verdict::Failure), "{error}");
    let half = short / 2;
    let second = fs.attempt(Attempt { timeout: half, ..attempt(&plan, None) }).await;
    let error = second.result.unwrap_err();
    assert_eq!((error.code.as_str(), error.class), ("fence", ErrorClass::NotExecuted));
    assert_eq!(second.verdict, Verdict::Neutral);
    let other = planned(&fs, &set("s/b", 1));
    let third = fs.attempt(Attempt { timeout: half, ..attempt(&other, None) }).await;
    assert_ne!(third.result.unwrap_err().code.as_str(), "fence");
    assert_eq!(third.verdict, Verdict::Neutral, "its time was shorter than the backend's own");
    // Nor are those held up that share its commit.
    let shared = together(&fs, &[(set("s/a", 2), None), (set("s/c", 1), None)]).await;
    let fence = ErrorCode::Own(OwnCode::Fence);
    let codes: Vec<_> = shared.into_iter().map(|ended| ended.result.unwrap_err().code).collect();
    assert!(codes[0] == fence && codes[1] != fence, "{codes:?}");
}

/// Settings for a server behind `network`, with that timeout.
fn behind(network: &Network, timeout: Duration) -> FirestoreSettings {
    FirestoreSettings { timeout, ..settings(network.port) }
}

/// Carries a call until it is answered.
async fn insistently(fs: &FirestoreConnector, asked: &Json, timeout: Duration) -> Json {
    let plan = planned(fs, asked);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let ended = fs.attempt(Attempt { timeout, ..attempt(&plan, None) }).await;
        match ended.result {
            Ok(reply) => return super::protocol::json::reply_to_json(&reply),
            Err(error) => assert!(tokio::time::Instant::now() < deadline, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_commit_that_the_network_held_does_not_land_after_newer_ones() {
    for emulator in Emulator::all().await {
        let network = Network::start(emulator.port).await;
        let short = Duration::from_millis(500);
        let fs = FirestoreConnector::new(behind(&network, short));
        insistently(&fs, &set("late/a", 0), short).await;
        network.hold();
        let plan = planned(&fs, &set("late/a", 1));
        let held = fs.attempt(Attempt { timeout: short, ..attempt(&plan, None) }).await;
        let error = held.result.unwrap_err();
        assert_eq!((error.class, error.code.as_str()), (ErrorClass::Unknown, "timeout"), "{error}");
        for n in [2, 3] {
            insistently(&fs, &set("late/a", n), short).await;
        }
        network.release();
        // A commit over the connection that was held would be answered before this one.
        let direct = emulator.connector();
        for n in 0..100 {
            answered(call(&direct, set("late/b", n)).await);
            assert_eq!(data(&direct, "late/a").await["n"], 3, "{:?}", emulator.engine);
        }
    }
}

#[tokio::test]
async fn a_silent_connection_is_given_up_soon_after_a_request_on_it() {
    let emulator = Emulator::start(Engine::Npm).await;
    let network = Network::start(emulator.port).await;
    let short = Duration::from_millis(300);
    let fs = FirestoreConnector::new(behind(&network, short));
    let get = json!({ "op": "get", "path": "silent/a" });
    insistently(&fs, &get, short).await;
    network.hold();
    let began = tokio::time::Instant::now();
    let plan = planned(&fs, &get);
    let first = fs.attempt(Attempt { timeout: short, ..attempt(&plan, None) }).await;
    assert_eq!(first.result.unwrap_err().code.as_str(), "timeout");
    insistently(&fs, &get, short).await;
    let took = began.elapsed();
    assert!(took < Duration::from_secs(4), "{took:?}");
    assert_eq!(network.connections(), 2);
}

/// A path in `collection` whose writes go over the same connection as those to `other`.
fn beside(fs: &FirestoreConnector, collection: &str, other: &str) -> String {
    let lane = |path: &str| planned(fs, &set(path, 1)).lanes.as_slice()[0].0 % 4;
    let mut paths = (0..).map(|n| format!("{collection}/{n}"));
    paths.find(|path| lane(path) == lane(other)).unwrap()
}

#[tokio::test]
async fn a_reset_for_another_calls_sake_is_neutral_and_cuts_no_read() {
    let emulator = Emulator::start(Engine::Npm).await;
    let network = Network::start(emulator.port).await;
    let short = Duration::from_millis(600);
    let fs = FirestoreConnector::new(behind(&network, short));
    insistently(&fs, &set("shared/a", 0), short).await;
    network.hold();
    data(&fs, "shared/a").await;
    let (first, second) = (set("shared/a", 1), set(&beside(&fs, "shared", "shared/a"), 1));
    let (first, second) = (planned(&fs, &first), planned(&fs, &second));
    let late = async {
        tokio::time::sleep(short / 2).await;
        fs.attempt(Attempt { timeout: short, ..attempt(&second, None) }).await
    };
    let own = fs.attempt(Attempt { timeout: short, ..attempt(&first, None) });
    let (own, other) = tokio::join!(own, late);
    assert_eq!((own.verdict, own.result.unwrap_err().code.as_str()), (Verdict::Failure, "timeout"));
    let error = other.result.unwrap_err();
    assert_eq!(
        (other.verdict, error.code.as_str(), error.class),
        (Verdict::Neutral, "reset", ErrorClass::Unknown),
        "{error}"
    );
    assert!(error.doubt.is_some());
    assert_eq!(fs.status().connections, 1, "the reads' own");
}

#[tokio::test]
async fn what_cannot_connect_is_told_before_anything_is_noted() {
    let mut emulator = Emulator::start(Engine::Npm).await;
    let fs = emulator.connector();
    let plan = planned(&fs, &count("ready/a"));
    let attempts = [attempt(&plan, Some(token(1))), attempt(&plan, Some(token(2)))];
    let evidence = fs.prepare(&attempts).await.map_err(|(_, error)| error).unwrap();
    assert_eq!(evidence.len(), 2);
    assert_eq!(fs.status().connections, 1);
    emulator.kill();
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        // The connection may be there for a moment yet.
        let Err((verdict, error)) = fs.prepare(&attempts).await else {
            assert!(tokio::time::Instant::now() < deadline, "it is never told");
            tokio::task::yield_now().await;
            continue;
        };
        assert_eq!((verdict, error.class), (Verdict::Failure, ErrorClass::NotExecuted), "{error}");
        assert_eq!(error.doubt, None);
        break;
    }
}

#[tokio::test]
async fn a_closed_connector_sends_nothing() {
    let fs = FirestoreConnector::new(settings(1));
    fs.close().await;
    let ended = call(&fs, set("x/a", 1)).await;
    let error = ended.result.unwrap_err();
    assert_eq!((error.code.as_str(), error.class), ("closed", ErrorClass::NotExecuted));
    assert_eq!(fs.target().as_str(), "firestore 127.0.0.1:1/fusebox-local/(default)");
    let broken = Bytes::from_static(b"\x09");
    assert_eq!(fs.plan(broken).unwrap_err().code, "malformed_call");
}

/// Refuses every request, and keeps the headers. A stand-in: an emulator does not tell what it was sent.
async fn recording_server() -> (u16, Arc<Mutex<Vec<HeaderMap>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let headers = Arc::<Mutex<Vec<HeaderMap>>>::default();
    let kept = Arc::clone(&headers);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let kept = Arc::clone(&kept);
            let service = service_fn(move |request: Request<Incoming>| {
                kept.lock().push(request.headers().clone());
                let refusal = Response::builder()
                    .header("content-type", "application/grpc")
                    .header("grpc-status", "3")
                    .body(Empty::<Bytes>::new());
                std::future::ready(refusal)
            });
            let serving = http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service);
            drop(tokio::spawn(serving));
        }
    });
    (port, headers)
}

#[tokio::test]
async fn reads_writes_and_batches_bear_the_trace_that_they_belong_to() {
    let (port, headers) = recording_server().await;
    let fs = FirestoreConnector::new(settings(port));
    let trace = PassedOn {
        span: SpanRef { trace_id: 0xabc, span_id: 0xd, sampled: true },
        tracestate: Some("shop=1"),
        baggage: Some("user=hush"),
    };
    let get = planned(&fs, &json!({ "op": "get", "path": "a/b" }));
    let (one, two) = (planned(&fs, &set("a/b", 1)), planned(&fs, &set("a/c", 2)));
    let traced = |plan| Attempt { trace: Some(trace), ..attempt(plan, None) };
    fs.attempt(traced(&get)).await;
    fs.attempt(traced(&one)).await;
    fs.attempt_batch(vec![attempt(&one, None), traced(&two)]).await;
    fs.attempt(attempt(&get, None)).await;
    let told: Vec<Option<String>> = headers
        .lock()
        .iter()
        .map(|headers| {
            let text = |name| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
            Some([text("traceparent")?, text("tracestate")?, text("baggage")?].join(" "))
        })
        .collect();
    let all = format!("{} shop=1 user=hush", trace.span);
    assert!(told.len() >= 4, "{told:?}");
    assert!(told[..3].iter().all(|told| told.as_ref() == Some(&all)), "{told:?}");
    assert_eq!(told.last(), Some(&None), "what nobody follows has nothing");
}
