//! A client's writes keep their order, whatever the server says to one of them.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::*;

/// Is in front of a server, and answers the first `SET k 1` itself: that it is loading. (A server that begins, or whose
/// script ends, while a pipeline is read does that.) Returns its port.
async fn one_that_is_loading(port: u16) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let own = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (door, _) = listener.accept().await.unwrap();
            let server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            let ((mut from_door, mut to_door), (mut from_server, mut to_server)) =
                (door.into_split(), server.into_split());
            let (tell, mut told) = tokio::sync::mpsc::unbounded_channel::<Vec<u8>>();
            let say = tell.clone();
            tokio::spawn(async move {
                while let Some(bytes) = told.recv().await {
                    if to_door.write_all(&bytes).await.is_err() {
                        break;
                    }
                }
            });
            tokio::spawn(async move {
                let mut buffer = vec![0; 65_536];
                while let Ok(count @ 1..) = from_server.read(&mut buffer).await {
                    drop(say.send(buffer[..count].to_vec()));
                }
            });
            tokio::spawn(async move {
                let swallowed = resp::command(&["SET", "k", "1"]).to_vec();
                let mut buffer = vec![0; 65_536];
                while let Ok(count @ 1..) = from_door.read(&mut buffer).await {
                    let mut bytes = buffer[..count].to_vec();
                    let is_it = |part: &[u8]| part == swallowed;
                    if let Some(at) = bytes.windows(swallowed.len()).position(is_it) {
                        bytes.drain(at..at + swallowed.len());
                        let loading = b"-LOADING Redis is loading the dataset in memory\r\n";
                        drop(tell.send(loading.to_vec()));
                    }
                    if to_server.write_all(&bytes).await.is_err() {
                        break;
                    }
                }
            });
        }
    });
    own
}

async fn before_one_that_is_loading() -> World {
    let server = Server::start().await;
    let port = one_that_is_loading(server.port).await;
    World::before(server, Some(port), Duration::from_secs(2), door(), &[("redis", 0)]).await
}

#[tokio::test]
async fn a_write_that_was_not_executed_is_not_carried_out_behind_a_later_one_of_its_client() {
    let world = before_one_that_is_loading().await;
    let mut client = world.client();
    assert_eq!(client.ask("SET other 0").await, "+OK\r\n");
    client.send_now(&[&["SET", "k", "1"], &["SET", "k", "2"], &["SET", "other", "3"]]);
    let first = client.reply().await;
    assert!(first.starts_with(b"-LOADING"), "{first:?}");
    assert_eq!((client.reply().await, client.reply().await), ("+OK\r\n".into(), "+OK\r\n".into()));
    assert_eq!(world.server.ask(&["GET", "k"]).await, "$1\r\n2\r\n");
}

#[tokio::test]
async fn one_that_nothing_has_passed_is_tried_again() {
    let world = before_one_that_is_loading().await;
    let mut client = world.client();
    assert_eq!(client.ask("SET other 0").await, "+OK\r\n");
    client.send_now(&[&["SET", "k", "1"], &["SET", "other", "3"], &["GET", "other"]]);
    // The one before the server would say the same again: it goes into the queue, or is carried another way.
    let first = client.reply().await;
    assert_eq!((first, client.reply().await), ("+OK\r\n".into(), "+OK\r\n".into()));
    assert_eq!(client.reply().await, "$1\r\n3\r\n");
}
