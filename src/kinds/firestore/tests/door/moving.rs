//! Reloads that give the backend another server, while something lasts.

use googleapis_tonic_google_firestore_v1::google::firestore::v1::target_change::TargetChangeType::{
    Add, Current, Reset,
};

use super::{
    listening::{Client, Server, document, parked, said},
    writing::{Both, deletes, hands_over},
    *,
};

#[tokio::test]
async fn an_open_listen_goes_on_with_the_server_that_there_is_now() {
    let (played, port) = Played::start().await;
    let mut before = Server::over(played);
    let (played, other) = Played::start().await;
    let mut after = Server::over(played);
    let world = World::before(port).await;
    let client = Client::begin(&world).await;
    let mut old = before.opens().await;
    let mut client = Client::begun(client).await;
    let first = [said(Add, b""), document("a"), said(Current, b"one")];
    old.says(&first);
    client.hears(&first).await;
    world.moves_to(settings(other)).await;
    let mut new = after.opens().await;
    assert_eq!(new.token, "", "it is a token of another server");
    new.says(&[said(Add, b""), document("b"), said(Current, b"two")]);
    client.hears(&[said(Reset, b""), document("b"), said(Current, b"two")]).await;
    // The server is the same, and so are its tokens.
    let timeout = Duration::from_secs(7);
    world.moves_to(FirestoreSettings { timeout, ..settings(other) }).await;
    let mut again = after.opens().await;
    assert_eq!(again.token, "two");
    again.says(&[said(Add, b""), document("c")]);
    client.hears(&[document("c")]).await;
    until("it has no place", || world.in_flight() == 0).await;
    assert_eq!((parked(&world), world.breaker().as_str()), (0, "CLOSED"));
}

#[tokio::test]
async fn a_stream_of_writes_ends_once_its_server_has_answered_and_sends_nothing_more() {
    let (server, port) = Played::start().await;
    let mut handed = hands_over(server, Bytes::new());
    let (_other_server, other) = Played::start().await;
    let wanted = Wanted { in_flight_max: 1, ..Wanted::default() };
    let world = World::with(settings(port), wanted).await;
    let client = world.connect().await;
    let mut waits = Both::begin(&client, &mut handed).await;
    let mut busy = Both::begin(&client, &mut handed).await;
    busy.deletes("a").await;
    // There is no place for it before the reload.
    waits.asks.send_data(deletes("b"), false).unwrap();
    world.moves_to(settings(other)).await;
    let got = waits.ends().await;
    assert_eq!((got.status(), got.said("x-fusebox-op-id")), ("14", ""), "{got:?}");
    busy.asks.send_data(deletes("c"), false).unwrap();
    busy.answers().await;
    let got = busy.ends().await;
    assert_eq!((got.status(), got.said("x-fusebox-op-id")), ("14", ""), "{got:?}");
    for stream in [&mut waits, &mut busy] {
        let mut more = Vec::new();
        while let Some(Ok(data)) = timeout(PATIENCE, stream.asked.data()).await.unwrap() {
            more.extend(data);
        }
        // At most what it has begun with.
        assert!(more.is_empty() || more == framed(b""), "{more:?}");
    }
    until("their places are free", || world.in_flight() == 0).await;
    assert_eq!(world.breaker(), "CLOSED");
}

#[tokio::test]
async fn a_server_that_was_replaced_is_not_held_against_the_one_in_its_place() {
    let (server, port) = Played::start().await;
    let asked = Arc::<AtomicUsize>::default();
    let counted = Arc::clone(&asked);
    server.answer_all(move |request, respond| {
        counted.fetch_add(1, Relaxed);
        async move {
            std::future::pending::<()>().await;
            drop((request, respond));
        }
    });
    let (_other_server, other) = Played::start().await;
    let wanted = Wanted { timeout: Duration::from_millis(600), ..Wanted::default() };
    let world = World::with(settings(port), wanted).await;
    let client = world.connect().await;
    let calls: Vec<_> = (0..8)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.call(GET, &[], b"").await })
        })
        .collect();
    until("they are sent", || asked.load(Relaxed) == 8).await;
    world.moves_to(settings(other)).await;
    for call in calls {
        let got = call.await.unwrap();
        assert_eq!(got.status(), "4", "{got:?}");
    }
    until("their places are free", || world.in_flight() == 0).await;
    assert_eq!(world.breaker(), "CLOSED");
}
