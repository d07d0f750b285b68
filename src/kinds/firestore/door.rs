//! The Firestore door: stock clients connect here as they would to an emulator.
//!
//! ```text
//!  client ──▶ preface ─┬─ HTTP/2 ─▶ call ─▶ first message ─▶ entry ─▶ exchange ─▶ pool of channels ─▶ server
//!                      │                          │ too large    │ may not      │ no answer
//!                      │                          │              └──────┬───────┘
//!                      │                          │                     ├─ understood ──▶ overlay, cache, queue
//!                      │                          └─────────────────────┴──▶ a status of the door's own
//!                      └─ HTTP/1.1, and HTTP/2 that is not gRPC ─▶ rest ─▶ a connection of its own ─▶ server
//! ```
//! Messages, metadata and trailers pass as they are, in both directions. Of most requests only the method is known
//! (`class.rs`), and of its first message which documents it names (`lanes.rs`), so that it keeps out of the way of
//! what is queued. Gets, queries, commits and deletes are understood besides (`understood.rs`): if the server does not
//! answer one, it goes on as the call that a JSON client would have made of it. A Listen survives an outage
//! ([`listening`]). Nothing else is cached, queued or tried again.
//!
//! # One call
//! ```text
//!  Arrived ─▶ Read: first message whole ─▶ Admitted ─▶ Sent ─▶ Settled: first byte of the answer, or its status ─▶ Relayed
//! ```
//! The door enters the call path by `admit` and `settle` ([`fusebox_actors::Ticket`]). A call has a permit, a place in
//! the bulkhead and, if it may write, its entry in the [fence](super::transport::fence) from *Admitted* to *Settled*.
//! Before that it holds nothing but its bytes, afterwards nothing but its share of the door (`core.rs`): a client that
//! sends or reads slowly does not cost the backend a place. Streams that are answered for as long as they live (Listen,
//! Write) are settled by their headers.
//!
//! # How a loss is answered
//! Of what is not understood, or cannot be answered otherwise. In a transaction *not executed* is `ABORTED`.
//!
//! | when | a read | what may write |
//! | --- | --- | --- |
//! | before *Sent*: breaker OPEN, offline, lanes that do not move | `UNKNOWN`, not executed | the same |
//! | no connection, or the server refused the stream twice | `UNAVAILABLE`, as directly; `UNKNOWN` once the breaker is OPEN | the same: nothing was executed |
//! | *Sent*: the connection broke | the same | `DEADLINE_EXCEEDED`, with the number under which it is logged |
//! | *Sent*: no answer in time | `DEADLINE_EXCEEDED` | the same, with its number |
//! | *Relayed*: the stream breaks | `UNAVAILABLE` in trailers; a Listen is begun again | `DEADLINE_EXCEEDED` in trailers |
//!
//! A write whose outcome is unknown is never `UNAVAILABLE`: clients try that again.
//!
//! # Invariants
//! 1. A permit and a place are given back when the wire is done with the call, not when its client leaves: a call whose
//!    client leaves before *Settled* goes on until it is answered, or the backend's `timeout` has passed, and its
//!    stream is reset then; but what was not *Sent* when its client left is not sent. After *Settled* a client that
//!    leaves resets its stream at once. A write whose answer is one message has the backend's `timeout` as its deadline,
//!    never its client's: if the client has less time, and the write may be queued, it is queued shortly before that,
//!    behind what it has sent itself.
//! 2. A call that is not understood is sent twice only if the server said that it has not acted upon it: by
//!    `REFUSED_STREAM`, or a GOAWAY whose last stream is an earlier one.
//! 3. Writes wait for the fence and enter it, as those of the connector do. One that is not answered in time closes the
//!    connection that took it.
//! 4. Nothing is read of a client that its door has no room for, and nothing of the server that the client does not
//!    read: HTTP/2's flow control says so to both. How much may come before it is read is bounded: [`windows`].
//! 5. What may be answered by the cache or stored by the queue has been read whole: see
//!    [`stock`](super::protocol::stock).
//! 6. `Bearer owner` is nobody's credential, and goes nowhere.
//! 7. No message goes on before it is whole, and before every name in it is one that its caller may name: [`scope`].
//! 8. Nothing is admitted by one connector and sent over the connections of another: once a connector is closed nothing
//!    more goes over its [`pool`]. What is under way there is answered there; then what lasts moves, or ends.
//! 9. A failure is the server's only if nobody else has ended the call: [`blame`].

mod answer;
mod blame;
mod busy;
mod call;
mod carrying;
mod class;
mod core;
mod counters;
mod entry;
mod exchange;
mod following;
pub(super) mod framing;
mod lanes;
mod listening;
mod metadata;
mod outcome;
mod pool;
mod port;
mod preface;
mod pumping;
mod reading;
mod requests;
mod rest;
mod scope;
mod serve;
mod settings;
mod streamed;
mod telling;
mod times;
mod understood;
mod who;
mod windows;

pub(crate) use self::port::open;
#[cfg(test)]
pub(crate) use self::{port::FirestoreDoor, settings::Settings};
