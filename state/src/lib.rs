//! Decides and remembers.
//!
//! Every decision of fusebox is made here, in types that are handed the time and the random numbers
//! they need: whether a call is admitted, when it is retried, what answers instead, in which
//! order queued writes are replayed, what state the system is in. [`store`] is the only module that
//! touches a disk. Nothing here knows clocks, tasks, HTTP or a backend's protocol.

pub mod backoff;
pub mod breaker;
pub mod bulkhead;
pub mod cache;
pub mod chaos;
mod dense;
pub mod dependencies;
pub mod file;
pub mod flight;
pub mod lane;
pub mod limit;
pub mod outcome;
pub mod predict;
pub mod queue;
pub mod retry_budget;
mod schema;
mod seqs;
pub mod shares;
pub mod shelf;
pub mod store;
pub mod system;
pub mod target;
pub mod times;
pub mod trace;
pub mod units;
pub mod window;
pub mod words;
pub mod write;

pub use outcome::{ErrorClass, Outcome, Verdict};
pub use target::Target;
pub use trace::SpanRef;
pub use units::{
    ByteCount, LaneId, Lanes, Moment, OpId, OpIdError, Ratio, UnixMillis, digest, object_of,
};
pub use words::Words;
