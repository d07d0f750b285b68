//! What the rules do not hold for yet. Whoever makes one of them hold takes it off its list.

use super::{circles::Known, rules::Exception};

pub(crate) const IN_PROTOCOLS: &[Exception] = &[
    Exception {
        file: "src/kinds/firestore/protocol/names.rs",
        import: "tonic::metadata",
        reason: "a database is named in a header of every request",
    },
    Exception {
        file: "src/kinds/firestore/protocol/outcome.rs",
        import: "tonic::Code",
        reason: "an answer's code, which is data",
    },
    Exception {
        file: "src/kinds/firestore/protocol/outcome.rs",
        import: "tonic::Status",
        reason: "an answer's failure, which is data",
    },
];

pub(crate) const IN_NET: &[Exception] = &[];

pub(crate) const OF_HTTP_API: &[Exception] = &[];

/// The circles that there are.
pub(crate) const CIRCLES: &[Known] = &[Known {
    files: &[
        "src/kinds/redis/door/client.rs",
        "src/kinds/redis/door/client/carried.rs",
        "src/kinds/redis/door/client/parked.rs",
        "src/kinds/redis/door/client/pinned.rs",
        "src/kinds/redis/door/core.rs",
        "src/kinds/redis/door/pin.rs",
        "src/kinds/redis/door/slow.rs",
        "src/kinds/redis/door/upstream.rs",
        "src/kinds/redis/door/upstream/entry.rs",
        "src/kinds/redis/door/upstream/listening.rs",
        "src/kinds/redis/door/upstream/ring.rs",
        "src/kinds/redis/door/whole.rs",
    ],
    reason: "a client and the connection that carries its commands tell each other of replies and losses",
}];
