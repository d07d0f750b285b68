//! What a door counts.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use fusebox_actors::{
    Source,
    view::{DoorCommands, DoorConnections, DoorView, counts},
};

/// Why a connection has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Closed {
    /// Its client left, or asked for it.
    Client,
    /// It was silent for too long.
    Idle,
    /// It sent what is not a request.
    Protocol,
    /// It did not read what it had asked for.
    SlowReader,
    /// An answer broke off.
    Upstream,
    /// The daemon stops.
    Stop,
}

const CLOSED: [(Closed, &str); 6] = [
    (Closed::Client, "client"),
    (Closed::Idle, "idle"),
    (Closed::Protocol, "protocol"),
    (Closed::SlowReader, "slow_reader"),
    (Closed::Upstream, "upstream"),
    (Closed::Stop, "stop"),
];

/// Why a request was not carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// It was not executed: the breaker is open, say.
    Unavailable,
    /// It may have been executed.
    Unknown,
    /// Its caller may not do that.
    Forbidden,
    /// It cannot be read.
    Malformed,
    /// The door holds too much already.
    Full,
}

const REFUSED: [(Refused, &str); 5] = [
    (Refused::Unavailable, "unavailable"),
    (Refused::Unknown, "unknown"),
    (Refused::Forbidden, "forbidden"),
    (Refused::Malformed, "malformed"),
    (Refused::Full, "full"),
];

/// The sources of answers.
const SOURCES: [Source; 5] =
    [Source::Live, Source::Cache, Source::Stale, Source::Queued, Source::Empty];

/// Counts of a door, since it was opened.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    connections: AtomicU64,
    /// Requests that were answered, by the source of the answer.
    answered: [AtomicU64; SOURCES.len()],
    /// Requests that the door answered itself.
    local: AtomicU64,
    closed: [AtomicU64; CLOSED.len()],
    refused: [AtomicU64; REFUSED.len()],
    wrong_secrets: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
}

fn add(counter: &AtomicU64, count: usize) {
    counter.fetch_add(count as u64, Relaxed);
}

impl Counters {
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

    /// A request was answered, from there.
    pub(super) fn answered(&self, source: Source) {
        let at = SOURCES.iter().position(|known| *known == source);
        if let Some(counter) = at.and_then(|at| self.answered.get(at)) {
            add(counter, 1);
        }
    }

    pub(super) fn answered_here(&self) {
        add(&self.local, 1);
    }

    pub(super) fn refused(&self, why: Refused) {
        let at = REFUSED.iter().position(|(refused, _)| *refused == why);
        if let Some(counter) = at.and_then(|at| self.refused.get(at)) {
            add(counter, 1);
        }
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

    /// What is shown of it.
    pub(super) fn view(&self) -> DoorView {
        let of = |counter: &AtomicU64| counter.load(Relaxed);
        let answered = SOURCES.iter().zip(&self.answered);
        let answered = answered.map(|(source, count)| (source.as_str(), of(count)));
        let commands = answered.chain([("local", of(&self.local))]);
        let commands = commands.map(|(source, count)| DoorCommands {
            class: "request".into(),
            source: source.into(),
            count,
        });
        let closed = CLOSED.iter().zip(&self.closed).map(|((_, word), count)| (*word, of(count)));
        let refused =
            REFUSED.iter().zip(&self.refused).map(|((_, word), count)| (*word, of(count)));
        DoorView {
            connections: DoorConnections { shared: of(&self.connections), pinned: 0, parked: 0 },
            closed: counts(closed),
            commands: commands.collect(),
            refused_commands: counts(refused),
            auth_failures: of(&self.wrong_secrets),
            bytes_in: of(&self.bytes_in),
            bytes_out: of(&self.bytes_out),
            ..DoorView::default()
        }
    }
}
