//! Loopback ports that stay one's own, also while the server behind them is dead.

use std::env;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use nix::unistd::Uid;

/// Below the range from which the kernel takes ports for outgoing connections, and for listeners on port 0 (32768 and
/// up), so that none of those takes the port of a server that has not started yet, or that a test has killed and will
/// restart.
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

    use super::*;

    #[test]
    fn the_kernel_gives_none_of_them_to_a_connection_or_to_who_asks_for_any_port() {
        let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
        let first: u16 = range.split_whitespace().next().unwrap().parse().unwrap();
        assert!(PORTS.end <= first, "{PORTS:?}, and the kernel's begin at {first}");
    }

    #[test]
    fn no_two_leases_share_a_port() {
        let ports: Vec<Port> = (0..50).map(|_| Port::lease()).collect();
        let numbers: HashSet<u16> = ports.iter().map(Port::number).collect();
        assert_eq!(numbers.len(), ports.len());
    }
}
