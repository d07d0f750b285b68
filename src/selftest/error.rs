//! What keeps a self-test from being run.

/// Why it could not be run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SelftestError {
    /// The folder, or a file in it.
    #[error("cannot write into {place}: {error}")]
    Place {
        /// Which.
        place: String,
        /// What the file system says.
        error: std::io::Error,
    },
    /// There is too little room, which a daemon beside it may need.
    #[error(
        "{place} has {free} free, but the test needs {wanted} free: it uses up to a quarter of that"
    )]
    Room {
        /// The path.
        place: String,
        /// What there is.
        free: String,
        /// What there must be.
        wanted: String,
    },
    /// The process that writes.
    #[error("the process that writes does not work: {0}")]
    Writer(String),
}
