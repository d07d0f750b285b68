//! What depends on what, and which of the backends that are down are the cause of the others.
//!
//! ```text
//!   settings ──▶ Graph: who needs whom, and in which order they recover
//!                  │
//!   a look at each backend ──▶ Causes ──▶ Findings: roots, what each impairs, what fell together
//!   (down? since when? with what      (remembers outages: when each began, when it ended)
//!    failure?)
//! ```
//!
//! **An outage** of a backend begins with the first failure after its last answer and lasts until it is operational
//! again. It *went* down when that began; if a probe failed since, then. So a backend that goes on failing after what
//! it needs has come back is sooner or later named itself.
//!
//! **A root** is down, and nothing that it needs, however indirectly, was down at any time from [`WITHIN`] before it
//! went until now. The 5 s are for what is noticed late: a busy backend is found down sooner than an idle one that it
//! needs. Whatever else is down either *follows* a root, or is *left over*: all that it needs is up again, and it is
//! not. Each root and each leftover *heads* those that are down for its sake, and everything that is down has a head.
//!
//! **Needs** are declared: only a required dependency takes a backend along, an optional one only explains.
//!
//! **A shared cause** is a part of this host that several backends rest on without saying so: its network, its
//! resolver, its sockets, the certificates that it trusts, its disk. It is raised when two backends see it fail within
//! [`WITHIN`] of each other, and holds for as long as two see it. Those that see it are impaired by it, and are no
//! roots. Seen, not declared: it explains, and does nothing else.
//!
//! **Together.** Roots without a declared edge between them that went within [`WITHIN`] of each other are shown as
//! having failed together. Which of them is to blame, if any, is not known, and not said.
//!
//! Nothing here changes a breaker or the system's state. One thing is done with what is found: what is left over is
//! tried at once when the last thing that it needs comes back ([`Findings::returned`]), once for each return.
//!
//! Nothing is remembered over a restart. A breaker that was open stays open; its outage begins again.

use std::time::Duration;

mod causes;
mod findings;
mod graph;
mod set;
#[cfg(test)]
mod tests;

pub use causes::{Causes, Down, Sight};
pub use findings::{Findings, Head, What};
pub use graph::{Declared, Graph};

/// How far apart two failures may be and still have to do with each other.
pub const WITHIN: Duration = Duration::from_secs(5);

/// A part of this host that several backends rest on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Shared {
    /// Its network: no route, no interface.
    Network,
    /// Its resolver: a name has no address.
    Dns,
    /// Its sockets: no descriptor, no port or no memory for another one.
    Sockets,
    /// The certificates that it trusts, or the clock that they are judged by.
    Certificates,
    /// Its disk: a store takes no writes.
    Disk,
}

impl Shared {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Network, Self::Dns, Self::Sockets, Self::Certificates, Self::Disk];

    /// The word of the API and the metrics. No backend is named like that: it has a colon.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Network => "host:network",
            Self::Dns => "host:dns",
            Self::Sockets => "host:sockets",
            Self::Certificates => "host:certificates",
            Self::Disk => "host:disk",
        }
    }

    /// That it fails, as a clause.
    pub const fn said(self) -> &'static str {
        match self {
            Self::Network => "this host's network is down",
            Self::Dns => "this host's DNS is down",
            Self::Sockets => "this host has no sockets left",
            Self::Certificates => "TLS fails on this host",
            Self::Disk => "this host's disk refuses writes",
        }
    }

    /// What those that it impairs have seen.
    pub const fn seen(self) -> &'static str {
        match self {
            Self::Network => "cannot reach the network",
            Self::Dns => "cannot resolve a host name",
            Self::Sockets => "cannot open a socket",
            Self::Certificates => "cannot use TLS",
            Self::Disk => "have stores that refuse writes",
        }
    }
}

/// What a failure says about the origin of the fault.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    /// Nothing: there was no answer, which may have any cause.
    #[default]
    Unclear,
    /// The backend, or the host that it is on: it answered with an error, or nobody listens there.
    Backend,
    /// The backend, which has too much to do.
    Overload,
    /// A part of this host.
    Here(Shared),
}
