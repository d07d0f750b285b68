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
    /// It broke a rule of HTTP.
    Protocol,
    /// The daemon stops.
    Stop,
}

const CLOSED: [(Closed, &str); 4] = [
    (Closed::Client, "client"),
    (Closed::Idle, "idle"),
    (Closed::Protocol, "protocol"),
    (Closed::Stop, "stop"),
];

/// Of what a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    Read,
    Write,
    Stream,
    Rest,
}

const FAMILIES: [(Family, &str); 4] = [
    (Family::Read, "read"),
    (Family::Write, "write"),
    (Family::Stream, "stream"),
    (Family::Rest, "rest"),
];

/// The sources of answers.
const SOURCES: [Source; 4] = [Source::Live, Source::Cache, Source::Stale, Source::Queued];

/// Why the door itself has answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// The backend is not to be asked.
    Unavailable,
    /// There is no room.
    NoRoom,
    /// It is too large, or is not a request.
    Malformed,
    /// Its caller may not do that.
    Denied,
}

const REFUSED: [(Refused, &str); 4] = [
    (Refused::Unavailable, "unavailable"),
    (Refused::NoRoom, "no_room"),
    (Refused::Malformed, "malformed"),
    (Refused::Denied, "denied"),
];

/// Counts of a door, since it was opened.
#[derive(Debug, Default)]
pub(super) struct Counters {
    connections: AtomicU64,
    /// Of these, such as wait for the backend.
    parked: AtomicU64,
    answered: [[AtomicU64; FAMILIES.len()]; SOURCES.len()],
    local: [AtomicU64; FAMILIES.len()],
    closed: [AtomicU64; CLOSED.len()],
    refused: [AtomicU64; REFUSED.len()],
    wrong_secrets: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    /// Requests that wait for the backend.
    parking: Parking,
}

fn add<W: PartialEq>(counters: &[AtomicU64], words: &[(W, &'static str)], word: W) {
    let at = words.iter().position(|(known, _)| *known == word);
    if let Some(counter) = at.and_then(|at| counters.get(at)) {
        counter.fetch_add(1, Relaxed);
    }
}

impl Counters {
    pub(super) fn came(&self) {
        self.connections.fetch_add(1, Relaxed);
    }

    pub(super) fn went(&self, why: Closed) {
        self.connections.fetch_sub(1, Relaxed);
        add(&self.closed, &CLOSED, why);
    }

    /// Something of a connection waits for the backend.
    pub(super) fn parked(&self) {
        self.parked.fetch_add(1, Relaxed);
    }

    pub(super) fn not_parked(&self) {
        self.parked.fetch_sub(1, Relaxed);
    }

    /// A request waits for the backend until what this returns is dropped.
    pub(super) fn park(&self) -> Parked {
        self.parking.park()
    }

    /// The server answers.
    pub(super) fn live(&self, family: Family) {
        self.answered(family, Source::Live);
    }

    /// It is answered, from there.
    pub(super) fn answered(&self, family: Family, source: Source) {
        let at = SOURCES.iter().position(|known| *known == source);
        if let Some(counters) = at.and_then(|at| self.answered.get(at)) {
            add(counters, &FAMILIES, family);
        }
    }

    /// The door answers.
    pub(super) fn local(&self, family: Family, why: Option<Refused>) {
        add(&self.local, &FAMILIES, family);
        if let Some(why) = why {
            add(&self.refused, &REFUSED, why);
        }
    }

    pub(super) fn wrong_secret(&self) {
        self.wrong_secrets.fetch_add(1, Relaxed);
    }

    pub(super) fn read(&self, bytes: usize) {
        self.bytes_in.fetch_add(bytes as u64, Relaxed);
    }

    pub(super) fn written(&self, bytes: usize) {
        self.bytes_out.fetch_add(bytes as u64, Relaxed);
    }

    /// What is shown of it.
    pub(super) fn view(&self) -> DoorView {
        let of = |counter: &AtomicU64| counter.load(Relaxed);
        let commands = |counters: &[AtomicU64], source: &'static str| {
            let each = FAMILIES.iter().zip(counters).map(|((_, word), count)| DoorCommands {
                class: (*word).into(),
                source: source.into(),
                count: of(count),
            });
            each.collect::<Vec<_>>()
        };
        let closed = CLOSED.iter().zip(&self.closed).map(|((_, word), count)| (*word, of(count)));
        let refused =
            REFUSED.iter().zip(&self.refused).map(|((_, word), count)| (*word, of(count)));
        let answered = SOURCES.iter().zip(&self.answered);
        let answered = answered.map(|(source, counters)| commands(counters, source.as_str()));
        let local = commands(&self.local, "local");
        let parked = of(&self.parked);
        let shared = of(&self.connections).saturating_sub(parked);
        DoorView {
            connections: DoorConnections { shared, pinned: 0, parked },
            closed: counts(closed),
            commands: answered.chain([local]).flatten().collect(),
            refused_commands: counts(refused),
            auth_failures: of(&self.wrong_secrets),
            bytes_in: of(&self.bytes_in),
            bytes_out: of(&self.bytes_out),
            parked: self.parking.count(),
            oldest_parked_ms: self.parking.oldest().map(millis),
            // Its core knows.
            buffered_in: 0,
            buffered_out: 0,
        }
    }
}
