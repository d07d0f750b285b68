//! Another program beside which fusebox is measured.

use std::{
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

const LONG: Duration = Duration::from_secs(20);

/// A server, or another proxy, until it is dropped.
pub(crate) struct Peer<A> {
    pub(crate) name: &'static str,
    child: Child,
    /// The address at which it listens.
    pub(crate) at: A,
}

impl<A> Drop for Peer<A> {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl<A> Peer<A> {
    /// Starts it, if it is installed, and waits until it listens.
    pub(crate) fn start(
        name: &'static str,
        command: &mut Command,
        at: A,
        listens: impl Fn(&A) -> bool,
    ) -> Option<Self> {
        let started =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let Ok(child) = started else {
            println!("{name} is not on the PATH: not measured");
            return None;
        };
        let peer = Self { name, child, at };
        let end = Instant::now() + LONG;
        while !listens(&peer.at) {
            assert!(Instant::now() < end, "{name} does not listen");
            thread::sleep(Duration::from_millis(20));
        }
        Some(peer)
    }
}
