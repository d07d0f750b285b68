//! The answers when the backend is not to be asked, or does not answer.

use googleapis_tonic_google_firestore_v1::google::firestore::v1::GetDocumentRequest;
use prost::Message;
use tokio::time::Instant;

use super::*;
use crate::net::test_port::own_address;

/// A port at which nobody listens.
pub(super) fn nobody() -> u16 {
    own_address().port()
}

#[tokio::test]
async fn without_a_connection_clients_may_try_again_until_the_breaker_opens() {
    let world = World::before(nobody()).await;
    let client = world.connect().await;
    for method in [GET, COMMIT] {
        let got = client.call(method, &[], b"").await;
        assert_eq!(got.status(), "14", "{got:?}");
        assert!(got.message().contains("not executed"), "{got:?}");
        assert_eq!(got.said("x-fusebox-source"), "local");
    }
    client.call(GET, &[], b"").await;
    until("it opens", || world.breaker() == "OPEN").await;
    for method in [GET, COMMIT, QUERY] {
        let began = Instant::now();
        let got = client.call(method, &[], b"").await;
        assert_eq!(got.status(), "2", "{got:?}");
        let said = got.message();
        assert!(said.starts_with("fusebox: firestore is open; not executed; retry in "), "{said}");
        assert!(!got.said("grpc-status-details-bin").is_empty(), "it says when to try again");
        assert!(began.elapsed() < Duration::from_secs(1));
    }
    assert!(got_refused(&world) >= 3);
}

#[tokio::test]
async fn in_an_outage_a_call_for_another_project_is_told_which_one_has_fallbacks() {
    let world = World::before(nobody()).await;
    let client = world.connect().await;
    let told = async |database: &str| {
        let get = GetDocumentRequest {
            name: format!("{database}/documents/a/b"),
            ..GetDocumentRequest::default()
        };
        client.call(GET, &[], &get.encode_to_vec()).await.message()
    };
    let (own, other) =
        ("projects/fusebox-local/databases/(default)", "projects/other/databases/(default)");
    let hint = format!(
        "not executed; it names {other:?}, but the fallbacks are for {own:?}: see `backends.firestore.project` and \
         `backends.firestore.database`"
    );
    let said = told(other).await;
    assert!(said.ends_with(&hint), "{said}");
    let said = told(own).await;
    assert!(said.ends_with("not executed"), "{said}");
}

fn got_refused(world: &World) -> u64 {
    world.door.view().refused_commands["unavailable"]
}

#[tokio::test]
async fn a_server_that_does_not_answer_costs_its_time_and_a_write_bears_a_number() {
    let (server, port) = Played::start().await;
    server.answer_nothing();
    let wanted = Wanted { timeout: Duration::from_millis(300), ..Wanted::default() };
    let world = World::with(settings(port), wanted).await;
    let client = world.connect().await;
    let got = client.call(GET, &[], b"").await;
    assert_eq!((got.status(), got.said("x-fusebox-op-id")), ("4", ""), "{got:?}");
    let got = client.call(COMMIT, &[], DELETE).await;
    assert_eq!(got.status(), "4", "{got:?}");
    assert_eq!(got.said("x-fusebox-op-id").len(), 26);
    // What it may have written is not known, so another write there waits for the fence, in vain.
    let got = client.call(COMMIT, &[], DELETE).await;
    assert_eq!(got.status(), "2", "{got:?}");
    assert!(got.message().contains("an earlier write whose outcome is not known"), "{got:?}");
    until("places are given back", || world.in_flight() == 0).await;
}

#[tokio::test]
async fn a_client_with_less_time_is_told_in_time_and_its_call_says_what_becomes_of_it() {
    let (server, port) = Played::start().await;
    server.answer_nothing();
    let wanted = Wanted { timeout: Duration::from_millis(900), ..Wanted::default() };
    let world = World::with(settings(port), wanted).await;
    let client = world.connect().await;
    let began = Instant::now();
    for _ in 0..3 {
        let got = client.call(GET, &[("grpc-timeout", "100m")], b"").await;
        assert_eq!(got.status(), "4", "{got:?}");
    }
    assert!(began.elapsed() < Duration::from_millis(800), "{:?}", began.elapsed());
    assert_eq!(world.in_flight(), 3, "they are still on the wire");
    until("three reads without an answer open it", || world.breaker() == "OPEN").await;
    until("and give back their places", || world.in_flight() == 0).await;
}

#[tokio::test]
async fn a_full_bulkhead_is_waited_for_and_then_told() {
    let (server, port) = Played::start().await;
    let (release, released) = tokio::sync::watch::channel(false);
    server.answer_all(move |_, respond| {
        let mut released = released.clone();
        async move {
            released.wait_for(|it| *it).await.unwrap();
            answer(respond, b"late");
        }
    });
    let wanted = Wanted { in_flight_max: 2, ..Wanted::default() };
    let world = World::with(settings(port), wanted).await;
    let client = world.connect().await;
    let held = [client.clone(), client.clone()]
        .map(|client| tokio::spawn(async move { client.call(GET, &[], b"").await }));
    until("both have a place", || world.in_flight() == 2).await;
    let got = client.call(GET, &[], b"").await;
    assert_eq!(got.status(), "14", "{got:?}");
    assert!(got.message().contains("not executed"), "{got:?}");
    let waiting = {
        let client = client.clone();
        tokio::spawn(async move { client.call(GET, &[], b"").await })
    };
    release.send_replace(true);
    for call in held.into_iter().chain([waiting]) {
        assert_eq!(call.await.unwrap().status(), "0");
    }
    assert_eq!(world.door.view().refused_commands["no_room"], 1);
}

#[tokio::test]
async fn the_servers_own_status_passes_word_for_word() {
    let (server, port) = Played::start().await;
    server.answer_all(|_, mut respond| async move {
        let mut answer = head();
        answer.headers_mut().extend(status("14"));
        answer.headers_mut().insert("grpc-message", "overloaded".parse().unwrap());
        respond.send_response(answer, true).unwrap();
    });
    let world = World::before(port).await;
    let client = world.connect().await;
    for _ in 0..3 {
        let got = client.call(GET, &[], b"").await;
        assert_eq!((got.status(), got.message().as_str()), ("14", "overloaded"));
    }
    until("three of them open it", || world.breaker() == "OPEN").await;
    assert_eq!(client.call(GET, &[], b"").await.status(), "2");
}

#[tokio::test]
async fn a_door_that_stops_ends_what_lasts_and_finishes_the_rest() {
    let (server, port) = Played::start().await;
    let (release, released) = tokio::sync::watch::channel(false);
    server.answer_all(move |request, mut respond| {
        let mut released = released.clone();
        async move {
            if request.uri().path() == LISTEN {
                let _open = respond.send_response(head(), false).unwrap();
                std::future::pending::<()>().await;
            }
            released.wait_for(|it| *it).await.unwrap();
            answer(respond, b"done");
        }
    });
    let world = World::before(port).await;
    let client = world.connect().await;
    let (response, mut stream) = client.begin(LISTEN, &[]).await;
    stream.send_data(framed(b""), false).unwrap();
    let listened = timeout(PATIENCE, response).await.unwrap().unwrap();
    let running = {
        let client = client.clone();
        tokio::spawn(async move { client.call(GET, &[], b"").await })
    };
    until("it runs", || world.in_flight() == 1).await;
    let closing = tokio::spawn(world.door.close());
    let mut listened = listened.into_body();
    assert!(timeout(PATIENCE, listened.data()).await.unwrap().is_none());
    let told = listened.trailers().await.unwrap().unwrap();
    assert_eq!(told["grpc-status"], "14", "clients begin such a stream anew elsewhere");
    assert!(!closing.is_finished());
    release.send_replace(true);
    assert_eq!(running.await.unwrap().body, framed(b"done"));
    timeout(PATIENCE, closing).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_server_that_gives_up_when_its_client_does_is_no_failure() {
    let (server, port) = Played::start().await;
    server.answer_all(|_, mut respond| async move {
        let mut answer = head();
        answer.headers_mut().extend(status("4"));
        respond.send_response(answer, true).unwrap();
    });
    let world = World::before(port).await;
    let client = world.connect().await;
    let failures = || world.fusebox.backend("firestore").unwrap().view().breaker.window_failures;
    for _ in 0..8 {
        let got = client.call(GET, &[("grpc-timeout", "100m")], b"").await;
        assert_eq!(got.status(), "4", "{got:?}");
    }
    assert_eq!((failures(), world.breaker().as_str()), (0, "CLOSED"));
    // With as much time as the backend may take, the server is to blame.
    let got = client.call(GET, &[("grpc-timeout", "60S")], b"").await;
    assert_eq!(got.status(), "4", "{got:?}");
    assert_ne!(failures(), 0);
}
