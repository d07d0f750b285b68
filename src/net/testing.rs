//! What the tests of connections share.

use std::{net::Ipv4Addr, time::Duration};

use super::endpoint::Server;

/// The longest that a test waits for what must come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The server on a port of this host.
pub(crate) fn server(port: u16) -> Server {
    Server {
        address: format!("127.0.0.1:{port}"),
        host: Ipv4Addr::LOCALHOST.to_string(),
        port,
        tls: false,
        ca_file: None,
        connect_time: Duration::from_secs(5),
    }
}

/// Polls until `done`, or fails.
pub(crate) async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let all = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let in_time = tokio::time::timeout(PATIENCE, all).await;
    assert!(in_time.is_ok(), "{what}: not within {PATIENCE:?}");
}
