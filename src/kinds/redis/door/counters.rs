//! What a door counts.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use fusebox_actors::{
    Source,
    view::{DoorCommands, DoorConnections, DoorView, counts},
};

use crate::ingress::parking::{Parked, Parking, millis};

/// Why a connection has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Closed {
    /// Its client left.
    Client,
    /// It was silent for too long.
    Idle,
    /// It sent what is not a request, or speaks HTTP.
    Protocol,
    /// It did not read what it had asked for.
    SlowReader,
    /// The door had no room for what it sent.
    NoRoom,
    /// The upstream that was its own was lost.
    Upstream,
    /// The daemon stops.
    Stop,
    /// It was answered so instead of with an error.
    Told,
}

const CLOSED: [(Closed, &str); 8] = [
    (Closed::Client, "client"),
    (Closed::Idle, "idle"),
    (Closed::Protocol, "protocol"),
    (Closed::SlowReader, "slow_reader"),
    (Closed::NoRoom, "no_room"),
    (Closed::Upstream, "upstream"),
    (Closed::Stop, "stop"),
    (Closed::Told, "told"),
];

/// Counts of a door, since it was opened.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Commands that clients have sent.
    commands: AtomicU64,
    /// Of these: answered from the cache, within its time to live, and older.
    cached: AtomicU64,
    stale: AtomicU64,
    /// Of these: queued, or answered by what is queued.
    queued: AtomicU64,
    /// Of these: answered with nil because nothing is known, or because a command that waits has waited long enough.
    bypass: AtomicU64,
    empty: AtomicU64,
    /// Of these: answered by the door itself.
    local: AtomicU64,
    /// Of these: answered that they were not executed.
    refused: AtomicU64,
    connections: AtomicU64,
    /// Of these: with an upstream of their own.
    pinned: AtomicU64,
    closed: [AtomicU64; CLOSED.len()],
    /// Credentials that were nobody's.
    wrong_secrets: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    /// What is held of requests and of replies, in bytes.
    held: AtomicU64,
    owed: AtomicU64,
    /// Commands that wait for the server.
    parking: Parking,
}

fn add(counter: &AtomicU64, count: usize) {
    counter.fetch_add(count as u64, Relaxed);
}

impl Counters {
    pub(super) fn command(&self) {
        add(&self.commands, 1);
    }

    pub(super) fn answered(&self, source: Source) {
        match source {
            Source::Cache => add(&self.cached, 1),
            Source::Stale => add(&self.stale, 1),
            Source::Queued => add(&self.queued, 1),
            Source::Empty => add(&self.empty, 1),
            Source::Bypass => add(&self.bypass, 1),
            // What is left: it would cost something for each.
            Source::Live => {}
        }
    }

    pub(super) fn answered_here(&self, commands: usize) {
        add(&self.local, commands);
    }

    pub(super) fn refused(&self) {
        add(&self.refused, 1);
    }

    pub(super) fn came(&self) {
        add(&self.connections, 1);
    }

    pub(super) fn went(&self, why: Closed) {
        self.connections.fetch_sub(1, Relaxed);
        let at = CLOSED.iter().position(|(closed, _)| *closed == why);
        if let Some(counter) = at.and_then(|at| self.closed.get(at)) {
            add(counter, 1);
        }
    }

    pub(super) fn pinned(&self, pinned: usize) {
        self.pinned.store(pinned as u64, Relaxed);
    }

    /// A command waits for the server until what this returns is dropped.
    pub(super) fn park(&self) -> Parked {
        self.parking.park()
    }

    pub(super) fn holds(&self, held: usize, owed: usize) {
        self.held.store(held as u64, Relaxed);
        self.owed.store(owed as u64, Relaxed);
    }

    pub(super) fn wrong_secret(&self) {
        add(&self.wrong_secrets, 1);
    }

    pub(super) fn read(&self, bytes: usize) {
        add(&self.bytes_in, bytes);
    }

    pub(super) fn written(&self, bytes: usize) {
        add(&self.bytes_out, bytes);
    }

    /// Commands that clients have sent.
    #[cfg(test)]
    pub(crate) fn commands(&self) -> u64 {
        self.commands.load(Relaxed)
    }

    /// What is shown of it.
    pub(super) fn view(&self) -> DoorView {
        let of = |counter: &AtomicU64| counter.load(Relaxed);
        let others = [
            (Source::Cache.as_str(), of(&self.cached)),
            (Source::Stale.as_str(), of(&self.stale)),
            (Source::Queued.as_str(), of(&self.queued)),
            (Source::Empty.as_str(), of(&self.empty)),
            (Source::Bypass.as_str(), of(&self.bypass)),
            ("local", of(&self.local)),
        ];
        let refused = of(&self.refused);
        let elsewhere = others.iter().map(|(_, count)| count).sum::<u64>() + refused;
        let live = (Source::Live.as_str(), of(&self.commands).saturating_sub(elsewhere));
        let commands = [live].into_iter().chain(others).map(|(source, count)| DoorCommands {
            class: "command".into(),
            source: source.into(),
            count,
        });
        let pinned = of(&self.pinned);
        // A client has one at most.
        let parked = self.parking.count();
        let shared = of(&self.connections).saturating_sub(pinned + parked);
        let closed = CLOSED.iter().zip(&self.closed).map(|((_, word), count)| (*word, of(count)));
        DoorView {
            connections: DoorConnections { shared, pinned, parked },
            closed: counts(closed),
            commands: commands.collect(),
            refused_commands: counts([("unavailable", refused)]),
            auth_failures: of(&self.wrong_secrets),
            bytes_in: of(&self.bytes_in),
            bytes_out: of(&self.bytes_out),
            parked,
            oldest_parked_ms: self.parking.oldest().map(millis),
            buffered_in: of(&self.held),
            buffered_out: of(&self.owed),
        }
    }
}
