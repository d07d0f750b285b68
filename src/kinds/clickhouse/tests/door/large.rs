//! What is large goes through, and is not held.

use super::*;

pub(super) const MIB: usize = 1 << 20;
const SIZE: usize = 100 * MIB;

/// The most that this process has had of memory, in bytes.
pub(super) fn high_water() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

#[tokio::test]
async fn a_hundred_mebibytes_go_each_way_and_are_not_held() {
    let world = World::open().await;
    world.server.ask("CREATE TABLE default.t (s String) ENGINE = Null").await;
    let mut client = world.client();
    assert_eq!(client.query("SELECT 1").await.status, 200);
    let before = high_water();
    let query = "POST /?query=INSERT%20INTO%20default.t%20FORMAT%20RowBinary";
    client
        .send(format!("{query} HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n", SIZE + 300))
        .await;
    // Each row begins with its length.
    let row = [&[0x80, 0x80, 0x40][..], &vec![b'x'; MIB]].concat();
    for _ in 0..SIZE / MIB {
        client.send(&row).await;
    }
    let answer = client.answer("POST").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(answer.header("x-clickhouse-summary").unwrap().contains("\"written_rows\":\"100\""));
    let query = "SELECT repeat('y', 1000000) FROM numbers(100) FORMAT RawBLOB";
    client
        .send(format!(
            "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n{query}",
            query.len()
        ))
        .await;
    let (head, mut bytes) = client.head().await;
    assert_eq!(head.status, 200);
    // Beside the rows there are the chunks' own lines.
    let of_rows = |bytes: &[u8]| bytes.iter().map(|byte| usize::from(*byte == b'y')).sum::<usize>();
    let mut data = of_rows(&bytes);
    while data < 100_000_000 {
        bytes.clear();
        assert!(client.more(&mut bytes).await, "{data} bytes came");
        data += of_rows(&bytes);
    }
    assert_eq!(data, 100_000_000);
    let grown = high_water() - before;
    assert!(grown < 16 * MIB, "{} MiB more", grown / MIB);
}

/// A client that has asked for 200 MB and reads nothing of them.
async fn unread(world: &World) -> Wire<UnixStream> {
    let mut client = world.client();
    let query = "SELECT repeat('y', 1000000) FROM numbers(200) FORMAT RawBLOB";
    client
        .send(format!(
            "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n{query}",
            query.len()
        ))
        .await;
    assert_eq!(client.head().await.0.status, 200);
    client
}

#[tokio::test]
async fn a_reload_waits_for_no_client_that_does_not_read() {
    let world = World::open().await;
    let (mut client, mut other) = (unread(&world).await, world.client());
    assert_eq!(other.query("SELECT 1").await.status, 200);
    let timeout_of_backend = Duration::from_secs(5);
    let specs = vec![spec(world.server.port, backend(timeout_of_backend, 64))];
    let reload = world.fusebox.reload(system(world.state.path()), specs, Vec::new());
    let reloaded = timeout(timeout_of_backend / 2, reload).await;
    reloaded.expect("nobody waits for the client").unwrap();
    assert_eq!(other.query("SELECT 2").await.text(), "2\n");
    until("it is killed", || async { running(&world.server, "RawBLOB").await == "0" }).await;
    // What has been sent is all that comes.
    let mut rest = Vec::new();
    while client.more(&mut rest).await {}
    assert!(!rest.ends_with(b"0\r\n\r\n") && rest.len() < 200_000_000, "{}", rest.len());
}

#[tokio::test]
async fn a_client_that_does_not_read_stops_the_server() {
    let world = World::open().await;
    let client = unread(&world).await;
    let taken = || world.door.view().bytes_out;
    let mut last = 0;
    until("nothing more comes", || {
        let same = std::mem::replace(&mut last, taken()) == taken();
        async move {
            tokio::time::sleep(Duration::from_millis(200)).await;
            same
        }
    })
    .await;
    assert!(taken() < 8 * MIB as u64, "{}", taken());
    drop(client);
    until("it is killed", || async { running(&world.server, "RawBLOB").await == "0" }).await;
}
