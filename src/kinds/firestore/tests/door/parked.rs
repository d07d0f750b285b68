//! Listens that wait for their server: what ends them, what they cost, and what they go on from.

use googleapis_tonic_google_firestore_v1::google::{
    firestore::v1::{
        ListenResponse, TargetChange,
        listen_response::ResponseType,
        target_change::TargetChangeType::{Add, Current, Remove, Reset},
    },
    rpc::Status,
};
use nix::sys::resource::{UsageWho, getrusage};
use prost::Message;
use tokio::time::Instant;

use super::{
    clients::{listened, set, stub},
    floods::resident,
    listening::{Client, Server, document, parked, said},
    *,
};
use crate::kinds::firestore::testing::Emulator;

/// The server gives a target up, for a reason.
fn refused() -> Bytes {
    let change = TargetChange {
        target_change_type: Remove.into(),
        target_ids: vec![1],
        cause: Some(Status { code: 3, ..Status::default() }),
        ..TargetChange::default()
    };
    let response = ListenResponse { response_type: Some(ResponseType::TargetChange(change)) };
    framed(&response.encode_to_vec())
}

/// A Listen that has heard something up to the token `one`, of a server that is gone since.
async fn broken(world: &World, server: &mut Server, headers: &[(&str, &str)]) -> Client {
    let client = Client::begin_over(&world.connect().await, headers).await;
    let mut opened = server.opens().await;
    let mut client = Client::begun(client).await;
    opened.says(&[said(Add, b""), said(Current, b"one")]);
    client.hears(&[said(Add, b""), said(Current, b"one")]).await;
    opened.cut();
    client
}

/// A world without a server, whose breaker is open.
async fn without_a_server() -> (World, u16) {
    let (server, port) = Played::start().await;
    drop(server);
    let world = World::before(port).await;
    let client = world.connect().await;
    while world.breaker() != "OPEN" {
        client.call(GET, &[], b"").await;
    }
    (world, port)
}

#[tokio::test]
async fn a_token_that_the_server_refuses_is_forgotten_however_it_says_so() {
    let (played, port) = Played::start().await;
    let mut server = Server::over(played);
    let world = World::before(port).await;
    for by_status in [false, true] {
        let mut client = broken(&world, &mut server, &[]).await;
        let mut opened = server.opens().await;
        assert_eq!(opened.token, "one");
        if by_status {
            opened.body.send_trailers(status("3")).unwrap();
        } else {
            opened.says(&[said(Add, b""), refused()]);
        }
        let mut opened = server.opens().await;
        assert_eq!(opened.token, "", "by status: {by_status}");
        opened.says(&[said(Add, b""), document("d"), said(Current, b"two")]);
        client.hears(&[said(Reset, b""), document("d"), said(Current, b"two")]).await;
        // What is refused without a token of the door's is the client's to hear.
        opened.body.send_trailers(status("3")).unwrap();
        assert_eq!(client.status().await, "3");
    }
    assert_eq!((world.in_flight(), parked(&world), world.breaker().as_str()), (0, 0, "CLOSED"));
}

#[tokio::test]
async fn a_server_that_says_goodbye_loses_no_listen() {
    let (played, port) = Played::start().await;
    let mut server = Server::over(played);
    let world = World::before(port).await;
    let first = Client::begin(&world).await;
    let mut old = server.opens().await;
    let mut first = Client::begun(first).await;
    old.says(&[said(Add, b"")]);
    first.hears(&[said(Add, b"")]).await;
    old.says_goodbye();
    // What there is goes on, and what is new goes elsewhere.
    old.says(&[document("a")]);
    first.hears(&[document("a")]).await;
    let second = Client::begin(&world).await;
    let mut new = server.opens().await;
    let mut second = Client::begun(second).await;
    new.says(&[said(Add, b"")]);
    second.hears(&[said(Add, b"")]).await;
    old.says(&[said(Current, b"one")]);
    first.hears(&[said(Current, b"one")]).await;
    old.cut();
    let mut again = server.opens().await;
    assert_eq!(again.token, "one");
    again.says(&[said(Add, b""), document("b")]);
    first.hears(&[document("b")]).await;
    assert_eq!((world.in_flight(), parked(&world)), (0, 0));
}

#[tokio::test]
async fn what_waits_ends_with_its_clients_time() {
    let (played, port) = Played::start().await;
    let mut server = Server::over(played);
    let world = World::before(port).await;
    let began = Instant::now();
    let client = broken(&world, &mut server, &[("grpc-timeout", "1S")]).await;
    drop(server);
    assert_eq!(client.status().await, "4");
    assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
    let (world, _) = without_a_server().await;
    let raw = world.connect().await;
    let (response, _asks) = Client::begin_over(&raw, &[("grpc-timeout", "300m")]).await;
    assert_eq!(whole(response).await.status(), "4");
    until("nothing waits", || parked(&world) == 0).await;
}

#[tokio::test]
async fn what_waits_is_told_that_the_daemon_stops_and_does_not_hold_it_up() {
    let (played, port) = Played::start().await;
    let mut server = Server::over(played);
    let world = World::before(port).await;
    let begun = broken(&world, &mut server, &[]).await;
    world.fusebox.backend("firestore").unwrap().set_offline(true).await.unwrap();
    let (response, _asks) = Client::begin(&world).await;
    until("both wait", || parked(&world) == 2).await;
    timeout(PATIENCE, world.door.close()).await.unwrap();
    assert_eq!(begun.status().await, "14");
    let told = whole(response).await;
    assert_eq!(told.status(), "14", "{told:?}");
    assert!(told.message().contains("is stopping"), "{told:?}");
}

#[tokio::test]
async fn what_a_client_leaves_waiting_goes_with_it() {
    let (world, port) = without_a_server().await;
    let raw = world.connect().await;
    let mut waiting = Vec::new();
    for _ in 0..10 {
        waiting.push(Client::begin_over(&raw, &[]).await);
    }
    until("they wait", || parked(&world) == 1).await;
    // Some streams of a connection, then the connection.
    drop(waiting.drain(..5));
    raw.call(GET, &[], b"").await;
    assert_eq!(parked(&world), 1);
    drop((waiting, raw));
    until("nothing waits", || parked(&world) == 0).await;
    until("its connection is gone", || world.door.view().connections.shared == 0).await;
    let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    let mut server = Server::over(Played { listener, ended: Arc::default() });
    world.recovers().await;
    // Nobody asks for what was left.
    let client = Client::begin(&world).await;
    let _opened = server.opens().await;
    Client::begun(client).await;
    assert!(server.listens.try_recv().is_err());
}

/// The time that this process has had of the processors.
fn processor_time() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    let micros = [usage.user_time(), usage.system_time()]
        .map(|time| time.tv_sec() * 1_000_000 + time.tv_usec());
    Duration::from_micros(micros.iter().sum::<i64>().try_into().unwrap())
}

#[tokio::test]
async fn two_thousand_that_wait_cost_little_and_all_of_them_go_on() {
    const EACH: usize = 500;
    let (world, port) = without_a_server().await;
    let before = resident();
    let (mut connections, mut waiting) = (Vec::new(), Vec::new());
    for _ in 0..4 {
        let raw = world.connect().await;
        for _ in 0..EACH {
            waiting.push(Client::begin_over(&raw, &[]).await);
        }
        // It is answered behind them.
        raw.call(GET, &[], b"").await;
        connections.push(raw);
    }
    until("they wait", || parked(&world) == 4).await;
    let more = resident().saturating_sub(before);
    assert!(more < waiting.len() * (32 << 10), "{more} bytes more");
    let (began, spent) = (Instant::now(), processor_time());
    tokio::time::sleep(Duration::from_secs(2)).await;
    let spent = processor_time().saturating_sub(spent);
    assert!(spent < began.elapsed() / 10, "{spent:?} of {:?}", began.elapsed());
    let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    let mut server = Server::over(Played { listener, ended: Arc::default() });
    world.recovers().await;
    let mut opened = Vec::new();
    for _ in 0..waiting.len() {
        opened.push(server.opens().await);
        assert!(world.in_flight() <= 64);
    }
    for client in waiting {
        Client::begun(client).await;
    }
    until("all of them have begun", || (world.in_flight(), parked(&world)) == (0, 0)).await;
    assert_eq!(world.breaker(), "CLOSED");
}

#[tokio::test]
async fn a_server_that_freezes_and_thaws_loses_nothing_of_a_listen() {
    for emulator in Emulator::all().await {
        let world = World::before(emulator.port).await;
        let mut stub = stub(&world).await;
        let mut heard = listened(&mut stub, "u/a").await;
        clients::commit(&mut stub, vec![set("u/a", "before".into())]).await;
        heard.until("before").await;
        emulator.signal("STOP");
        let mut other = stub.clone();
        let writing = tokio::spawn(async move {
            clients::commit(&mut other, vec![set("u/a", "within".into())]).await;
        });
        until("the write is on its way", || world.in_flight() > 0).await;
        emulator.signal("CONT");
        timeout(PATIENCE, writing).await.unwrap().unwrap();
        heard.until("within").await;
        clients::commit(&mut stub, vec![set("u/a", "after".into())]).await;
        heard.until("after").await;
    }
}
