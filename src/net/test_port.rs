//! Ports that no other test is given.

use std::net::SocketAddr;

#[path = "../../tests/it/support/port.rs"]
mod port;

pub(crate) use port::Port;

/// A loopback address whose port stays this process's own, also while nothing listens there.
pub(crate) fn own_address() -> SocketAddr {
    let port = Port::lease();
    let address = port.address();
    std::mem::forget(port);
    address
}
