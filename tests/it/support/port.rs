//! Loopback ports that stay one's own, also while the server behind them is dead.

use std::env;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use nix::unistd::Uid;

/// Below the range from which the kernel takes ports for outgoing connections (32768 and up), so
/// that none of those takes the port of a server that a test has killed and will restart.
const PORTS: std::ops::Range<u16> = 20_000..30_000;

/// A loopback port. No other test on this machine is given it while this value lives.
pub(crate) struct Port {
    number: u16,
    /// Held locked; the kernel releases it with the process, however that ends.
    _lock: File,
}

impl Port {
    /// Takes a port on which nothing listens.
    pub(crate) fn lease() -> Self {
        let folder = env::temp_dir().join(format!("fusebox-ports-{}", Uid::current()));
        fs::create_dir_all(&folder).expect("the folder of port locks");
        for _ in 0..PORTS.len() {
            let number = fastrand::u16(PORTS);
            let lock = File::create(folder.join(number.to_string())).expect("a port lock");
            if lock.try_lock().is_ok() && TcpListener::bind((Ipv4Addr::LOCALHOST, number)).is_ok() {
                return Self { number, _lock: lock };
            }
        }
        panic!("no free port in {PORTS:?}");
    }

    /// The port's number.
    pub(crate) fn number(&self) -> u16 {
        self.number
    }

    /// The port's address on loopback.
    pub(crate) fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.number).into()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::Port;

    #[test]
    fn no_two_leases_share_a_port() {
        let ports: Vec<Port> = (0..50).map(|_| Port::lease()).collect();
        let numbers: HashSet<u16> = ports.iter().map(Port::number).collect();
        assert_eq!(numbers.len(), ports.len());
    }
}
