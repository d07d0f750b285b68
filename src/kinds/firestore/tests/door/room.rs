//! The room that messages take while they come, wait and go.

use super::{
    listening::{Server, add},
    *,
};

/// The beginning of a message of so many bytes.
fn prefix(length: usize) -> Vec<u8> {
    [&[0][..], &u32::try_from(length).unwrap().to_be_bytes()].concat()
}

const LARGE: usize = 10 << 20;

/// A world with a mebibyte for requests.
async fn narrow(port: u16, in_bytes: u64, partial_max: Duration) -> World {
    let door = Settings { in_bytes, partial_max, ..usual() };
    World::with(settings(port), Wanted { door, ..Wanted::default() }).await
}

/// The status with which an answer ends, whatever comes before.
async fn status_of(response: h2::client::ResponseFuture) -> String {
    let ended = async {
        let got = whole(response).await;
        got.status().to_owned()
    };
    timeout(Duration::from_secs(8), ended).await.expect("it ends")
}

#[tokio::test]
async fn what_a_listener_sends_in_part_takes_room_and_does_not_stay() {
    for (in_bytes, partial_max, expected) in
        [(1 << 20, Duration::from_secs(600), "14"), (64 << 20, Duration::from_millis(300), "3")]
    {
        let (played, port) = Played::start().await;
        let mut server = Server::over(played);
        let world = narrow(port, in_bytes, partial_max).await;
        let (response, mut asks) = world.connect().await.begin(LISTEN, &[]).await;
        asks.send_data(framed(&add()), false).unwrap();
        let _opened = server.opens().await;
        asks.send_data([&prefix(LARGE - 5)[..], &[7; 1_000]].concat().into(), false).unwrap();
        assert_eq!(status_of(response).await, expected);
    }
}

#[tokio::test]
async fn the_rest_of_a_frame_that_begins_a_large_message_takes_its_room() {
    let (server, port) = Played::start().await;
    server.answer_all(|request, mut respond| async move {
        let _body = respond.send_response(head(), false).unwrap();
        let mut request = request.into_body();
        while let Some(Ok(data)) = request.data().await {
            request.flow_control().release_capacity(data.len()).unwrap();
        }
    });
    let world = narrow(port, 1 << 20, Duration::from_secs(600)).await;
    let (response, mut stream) = world.connect().await.begin(WRITE, &[]).await;
    stream.send_data(framed(b"\x0a\x01d"), false).unwrap();
    // What follows is read once this was sent.
    let mut heard = timeout(PATIENCE, response).await.unwrap().unwrap().into_body();
    let first = [&prefix(70_000)[..], &vec![0; 70_000], &prefix(LARGE - 5), &[0; 100]].concat();
    stream.send_data(first.into(), false).unwrap();
    let ended = async {
        while let Some(data) = heard.data().await {
            data.unwrap();
        }
        heard.trailers().await.unwrap().unwrap()
    };
    let trailers = timeout(Duration::from_secs(8), ended).await.expect("it ends");
    assert_eq!(trailers["grpc-status"], "14");
}

#[tokio::test]
async fn what_comes_and_is_not_read_is_bounded_by_the_room_that_there_is() {
    const WATCH: &str = "/grpc.health.v1.Health/Watch";
    let (server, port) = Played::start().await;
    server.answer_all(|request, mut respond| async move {
        let mut body = respond.send_response(head(), false).unwrap();
        body.send_data(framed(b""), false).unwrap();
        // Nothing of the request is read.
        std::future::pending::<()>().await;
        drop((request, body));
    });
    // Besides a message as long as any may be, there is room for one window that is wider than the smallest.
    let world = narrow(port, 12 << 20, Duration::from_secs(600)).await;
    let flood = Bytes::from(framed(&[7; 1_019]).repeat(4 << 10));
    let (tell, mut sent) = tokio::sync::mpsc::unbounded_channel();
    let mut answers = Vec::new();
    for _ in 0..4 {
        let (client, mut streams) = (world.connect().await, Vec::new());
        for _ in 0..4 {
            let (response, mut stream) = client.begin(WATCH, &[]).await;
            stream.send_data(framed(b""), false).unwrap();
            // What follows is no part of how it begins.
            answers.push(timeout(PATIENCE, response).await.unwrap().unwrap());
            streams.push(stream);
        }
        for mut stream in streams {
            let (tell, mut flood) = (tell.clone(), flood.clone());
            tokio::spawn(async move {
                while !flood.is_empty() {
                    stream.reserve_capacity(flood.len());
                    let room = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await;
                    let Some(Ok(room)) = room else { return };
                    stream.send_data(flood.split_to(room.min(flood.len())), false).unwrap();
                    tell.send(room).unwrap_or_default();
                }
            });
        }
    }
    let mut all = 0;
    // Until nothing more goes.
    while let Ok(Some(room)) = timeout(Duration::from_millis(500), sent.recv()).await {
        all += room;
    }
    // One window of 512 KiB, three of 64 KiB, and what is on its way to the server.
    assert!((640 << 10..2 << 20).contains(&all), "{all} bytes came that nobody has read");
    assert!(world.door.view().buffered_in < 64 << 10, "a window is no request");
}

#[tokio::test]
async fn a_request_of_rest_takes_room_while_it_comes() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let (server, port) = Played::start().await;
    server.answer_nothing();
    let world = narrow(port, 1 << 20, Duration::from_secs(600)).await;
    let mut stream = TcpStream::connect(("127.0.0.1", world.port)).await.unwrap();
    let path = "/v1/projects/p/databases/d/documents/a";
    let head =
        format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {LARGE}\r\n\r\n");
    let half = [head.as_bytes(), &vec![b'x'; LARGE / 2]].concat();
    let (mut read, mut write) = stream.split();
    let mut told = Vec::new();
    let hears = async {
        while !String::from_utf8_lossy(&told).contains("no room") {
            assert_ne!(read.read_buf(&mut told).await.unwrap(), 0, "{told:?}");
        }
    };
    let (_, answered) = tokio::join!(write.write_all(&half), timeout(PATIENCE, hears));
    answered.expect("it is answered before all of it has come");
    assert!(told.starts_with(b"HTTP/1.1 503"), "{told:?}");
}
