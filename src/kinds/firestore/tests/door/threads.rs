//! A door on a thread of its own, as the daemon opens it.

use super::*;

/// Whether a thread of this process has that name.
fn there_is(name: &str) -> bool {
    let threads = std::fs::read_dir("/proc/self/task").unwrap();
    let names = threads.map(|thread| std::fs::read_to_string(thread.unwrap().path().join("comm")));
    // One may have ended meanwhile.
    names.flatten().any(|it| it.trim_end() == name)
}

#[tokio::test]
async fn a_door_serves_on_a_thread_of_its_own_until_it_is_closed() {
    let (server, port) = Played::start().await;
    server.answer_all(|request, respond| async move {
        answer(respond, request.uri().path().as_bytes());
    });
    let wanted = Wanted { threaded: true, ..Wanted::default() };
    let world = World::with(settings(port), wanted).await;
    let client = world.connect().await;
    for (path, message) in [(GET, &b""[..]), (COMMIT, DELETE), (QUERY, &b""[..])] {
        let got = client.call(path, &[], message).await;
        assert_eq!((got.status(), &*got.body), ("0", &*framed(path.as_bytes())), "{path}");
    }
    assert!(there_is("door-firestore"));
    drop(client);
    timeout(PATIENCE, world.door.close()).await.expect("it ends");
}
