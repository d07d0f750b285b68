//! Clients that send too much, too fast, or nothing.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
pub(super) use crate::kinds::testing::resident;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// A frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, length @ ..] = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Headers of a call, without compression.
fn headers() -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", GET),
        (":authority", "door"),
        ("content-type", "application/grpc"),
    ] {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).unwrap());
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

/// A world before a server that answers everything.
async fn answering() -> World {
    let (server, port) = Played::start().await;
    server.answer_all(|_, respond| async move { answer(respond, b"a") });
    World::before(port).await
}

/// Sends pieces until the door closes the connection; whether it did.
async fn closes(port: u16, first: &[u8], mut piece: impl FnMut(u32) -> Vec<u8>) -> bool {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream.write_all(PREFACE).await.unwrap();
    stream.write_all(first).await.unwrap();
    let (mut read, mut write) = stream.into_split();
    let reading = tokio::spawn(async move {
        let mut bytes = vec![0; 64 << 10];
        while read.read(&mut bytes).await.is_ok_and(|count| count > 0) {}
    });
    for at in 0..200_000 {
        if write.write_all(&piece(at)).await.is_err() || reading.is_finished() {
            return true;
        }
    }
    false
}

/// What a flood may leave behind in memory, in bytes.
const SOME: usize = 16 << 20;

/// The door serves others once room is free again.
async fn eventually_serves(world: &World) {
    let client = world.connect().await;
    let served = async { while client.call(GET, &[], b"").await.status() != "0" {} };
    timeout(PATIENCE, served).await.expect("it serves");
}

/// The door still serves others.
async fn serves(world: &World) {
    let got = world.connect().await.call(GET, &[], b"").await;
    assert_eq!(got.status(), "0", "{got:?}");
}

#[tokio::test]
async fn a_client_that_opens_and_resets_streams_is_closed_and_costs_the_server_little() {
    let world = answering().await;
    let block = headers();
    let closed = closes(world.port, b"", |at| {
        let stream = 2 * at + 1;
        [frame(1, 4, stream, &block), frame(3, 0, stream, &8_u32.to_be_bytes())].concat()
    });
    assert!(timeout(PATIENCE, closed).await.unwrap());
    until("it is counted", || world.door.view().closed["protocol"] == 1).await;
    assert_eq!(world.counted("read", "live"), 0, "no request of its was ever whole");
    serves(&world).await;
}

#[tokio::test]
async fn headers_without_an_end_are_cut_off() {
    let world = answering().await;
    // Each of them is whole, and there is no end to them.
    let one = [&[0, 1, b'a', 100][..], &[b'x'; 100]].concat();
    let more = one.repeat(100);
    let first = frame(1, 0, 1, &headers());
    let closed = closes(world.port, &first, |_| frame(9, 0, 1, &more));
    assert!(timeout(PATIENCE, closed).await.unwrap());
    until("it is counted", || world.door.view().closed["protocol"] == 1).await;
    serves(&world).await;
}

#[tokio::test]
async fn what_wants_an_answer_without_end_is_not_read_faster_than_its_answers_are() {
    for (what, one) in [("pings", frame(6, 0, 0, b"12345678")), ("settings", frame(4, 0, 0, b""))] {
        let world = answering().await;
        serves(&world).await;
        let before = resident();
        let mut stream = TcpStream::connect(("127.0.0.1", world.port)).await.unwrap();
        stream.write_all(PREFACE).await.unwrap();
        // Nothing is read of the answers, so that they would pile up.
        let flood = one.repeat(10_000);
        let flooding = async {
            for _ in 0..1_000 {
                if stream.write_all(&flood).await.is_err() {
                    return;
                }
            }
            panic!("{what}: all of it was read");
        };
        // Cut off, or not read any more.
        let _either = timeout(Duration::from_secs(2), flooding).await;
        assert!(resident() < before + SOME, "{what}: {} bytes more", resident() - before);
        serves(&world).await;
    }
}

#[tokio::test]
async fn a_little_that_stands_for_much_metadata_is_refused() {
    let world = answering().await;
    serves(&world).await;
    let before = resident();
    // A header of 4,000 bytes that is put into the table, and twelve thousand bytes each of which represents it.
    let large = [&b"\x40\x01a\x7f\xa1\x1e"[..], &[b'x'; 4_000], &[0xbe; 12_000]].concat();
    let bomb = frame(1, 5, 1, &[headers(), large].concat());
    let mut stream = TcpStream::connect(("127.0.0.1", world.port)).await.unwrap();
    stream.write_all(&[PREFACE, &bomb].concat()).await.unwrap();
    let again = frame(1, 5, 3, &headers());
    stream.write_all(&again).await.unwrap();
    let mut bytes = vec![0; 64 << 10];
    while timeout(Duration::from_millis(300), stream.read(&mut bytes))
        .await
        .is_ok_and(|read| read.is_ok_and(|count| count > 0))
    {}
    assert!(resident() < before + SOME, "{} bytes more", resident() - before);
    assert!(world.counted("read", "live") <= 2, "it was not passed on");
    serves(&world).await;
}

#[tokio::test]
async fn whole_requests_that_are_reset_take_no_more_than_the_places_that_there_are() {
    let (server, port) = Played::start().await;
    let (release, released) = tokio::sync::watch::channel(false);
    server.answer_all(move |_, respond| {
        let mut released = released.clone();
        async move {
            released.wait_for(|it| *it).await.unwrap();
            answer(respond, b"a");
        }
    });
    let world = World::with(settings(port), Wanted { in_flight_max: 8, ..Wanted::default() }).await;
    let mut stream = TcpStream::connect(("127.0.0.1", world.port)).await.unwrap();
    stream.write_all(PREFACE).await.unwrap();
    let (mut read, mut write) = stream.into_split();
    let reading = tokio::spawn(async move {
        let mut bytes = vec![0; 64 << 10];
        while read.read(&mut bytes).await.is_ok_and(|count| count > 0) {}
    });
    let block = headers();
    for at in 0..2_000 {
        let stream = 2 * at + 1;
        let call = [frame(1, 4, stream, &block), frame(0, 1, stream, &framed(b""))].concat();
        if write.write_all(&call).await.is_err() {
            break;
        }
        // It has been read whole by now, or will be.
        tokio::task::yield_now().await;
        if write.write_all(&frame(3, 0, stream, &8_u32.to_be_bytes())).await.is_err() {
            break;
        }
        assert!(world.in_flight() <= 8);
    }
    release.send_replace(true);
    until("all places are free again", || world.in_flight() == 0).await;
    serves(&world).await;
    drop(write);
    timeout(PATIENCE, reading).await.unwrap().unwrap();
}

#[tokio::test]
async fn what_is_compressed_passes_as_it_is_and_is_not_kept() {
    let (server, port) = Played::start().await;
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    server.answer_all(move |request, respond| {
        let tell = tell.clone();
        async move {
            let body = drained(&mut request.into_body()).await.unwrap();
            tell.send(body).unwrap();
            answer(respond, b"a");
        }
    });
    let world = World::before(port).await;
    let client = world.connect().await;
    let compressed = Bytes::from_static(b"\x01\0\0\0\x04bomb");
    let call = async || {
        let (response, mut stream) = client.begin(COMMIT, &[("grpc-encoding", "gzip")]).await;
        stream.send_data(compressed.clone(), true).unwrap();
        whole(response).await
    };
    assert_eq!(call().await.status(), "0");
    assert_eq!(told.recv().await.unwrap(), compressed, "byte for byte");
    world.fusebox.backend("firestore").unwrap().set_offline(true).await.unwrap();
    let got = call().await;
    assert_eq!(got.status(), "2", "{got:?}");
    assert!(got.message().contains("not executed"), "{got:?}");
}

#[tokio::test]
async fn windows_that_never_open_hold_what_their_calls_may_and_no_more() {
    const CALLS: u64 = 40;
    let (server, port) = Played::start().await;
    server.fill_windows(|_| ());
    let door = Settings { out_bytes: 8 << 20, ..usual() };
    let world = World::with(settings(port), Wanted { door, ..Wanted::default() }).await;
    serves(&world).await;
    let before = resident();
    let stream = TcpStream::connect(("127.0.0.1", world.port)).await.unwrap();
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(0);
    let (sender, connection) = builder.handshake(stream).await.unwrap();
    tokio::spawn(async move { drop(connection.await) });
    let closed = Raw { sender };
    let mut begun = Vec::new();
    for _ in 0..CALLS {
        let (response, mut stream) = closed.begin(QUERY, &[]).await;
        stream.send_data(framed(b""), true).unwrap();
        begun.push(response);
    }
    until("what finds no room is told so", || {
        world.door.view().refused_commands["no_room"] == CALLS - 8
    })
    .await;
    let more = resident().saturating_sub(before);
    assert!(more < (8 << 20) * 3 + SOME, "{more} bytes more");
    drop(begun);
    until("its calls are over", || world.in_flight() == 0).await;
    eventually_serves(&world).await;
}

#[tokio::test]
async fn a_message_that_says_it_has_a_gibibyte_is_refused_at_its_first_bytes() {
    let world = answering().await;
    let client = world.connect().await;
    for method in [GET, COMMIT, LISTEN] {
        let (response, mut stream) = client.begin(method, &[]).await;
        let prefix = [&[0][..], &(1_u32 << 30).to_be_bytes()].concat();
        stream.send_data(prefix.into(), false).unwrap();
        let got = whole(response).await;
        assert_eq!(got.status(), "8", "{got:?}");
    }
    assert_eq!(world.door.view().refused_commands["malformed"], 3);
    // In a stream that has begun, too.
    let (response, mut stream) = client.begin(LISTEN, &[]).await;
    stream.send_data(framed(b"small"), false).unwrap();
    let giant = [&[0][..], &(1_u32 << 30).to_be_bytes()].concat();
    stream.send_data(giant.into(), false).unwrap();
    let got = whole(response).await;
    assert!(["0", "8"].contains(&got.status()), "{got:?}");
    serves(&world).await;
}

#[tokio::test]
async fn metadata_above_the_limit_are_refused() {
    let world = answering().await;
    let client = world.connect().await;
    let long = "x".repeat(17 << 10);
    let got = client.call(GET, &[("x-long", &long)], b"").await;
    assert_eq!(got.status(), "8", "{got:?}");
    assert_eq!(client.call(GET, &[("x-long", &long[..15 << 10])], b"").await.status(), "0");
}

#[tokio::test]
async fn a_client_that_sends_slowly_holds_no_place_and_one_that_sends_nothing_is_closed() {
    let (server, port) = Played::start().await;
    server.answer_all(|_, respond| async move { answer(respond, b"a") });
    let door = Settings { partial_max: Duration::from_millis(200), ..usual() };
    let world = World::with(settings(port), Wanted { door, ..Wanted::default() }).await;
    let client = world.connect().await;
    let (response, mut stream) = client.begin(COMMIT, &[]).await;
    stream.send_data(Bytes::from_static(b"\0\0\0\0\x09half"), false).unwrap();
    let got = whole(response).await;
    assert_eq!((got.status(), world.in_flight()), ("3", 0), "{got:?}");
    let mut silent = TcpStream::connect(("127.0.0.1", world.port)).await.unwrap();
    let mut byte = [0];
    assert_eq!(timeout(PATIENCE, silent.read(&mut byte)).await.unwrap().unwrap(), 0);
    until("it is counted", || world.door.view().closed["idle"] == 1).await;
}

#[tokio::test]
async fn a_client_that_does_not_answer_pings_is_gone() {
    let (server, port) = Played::start().await;
    server.answer_all(|_, respond| async move { answer(respond, b"a") });
    let door = Settings { keep_alive: Duration::from_millis(100), ..usual() };
    let world = World::with(settings(port), Wanted { door, ..Wanted::default() }).await;
    let answers = world.connect().await;
    let mut silent = TcpStream::connect(("127.0.0.1", world.port)).await.unwrap();
    // Its preface and its settings, and no word more.
    silent.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let ended = timeout(PATIENCE, silent.read_to_end(&mut Vec::new())).await;
    assert!(ended.is_ok(), "it is closed");
    until("it is counted", || world.door.view().closed["idle"] == 1).await;
    assert_eq!(answers.call(GET, &[], b"").await.status(), "0");
}

#[tokio::test]
async fn what_a_client_does_not_read_is_not_read_of_the_server() {
    let (server, port) = Played::start().await;
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    server.fill_windows(move |room| tell.send(room).unwrap_or_default());
    let world = World::before(port).await;
    let client = world.connect().await;
    let (response, mut stream) = client.begin(QUERY, &[]).await;
    stream.send_data(framed(b""), true).unwrap();
    let response = timeout(PATIENCE, response).await.unwrap().unwrap();
    let mut sent = 0;
    // Until nothing more goes.
    while let Ok(Some(room)) = timeout(Duration::from_millis(500), told.recv()).await {
        sent += room;
    }
    assert!(sent < 3 << 20, "{sent} bytes went for a client that reads nothing");
    // Over the same connections others are answered.
    for _ in 0..20 {
        serves(&world).await;
    }
    drop(response);
}
