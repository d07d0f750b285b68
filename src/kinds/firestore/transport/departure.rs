//! Whether a commit may have left this host.
//!
//! Who carries it and who waits for it may each decide that, and the first of them does: it has departed, or it stays,
//! and never both. So what stays is known not to have been executed. Calls that are sent together have one passage for
//! all of their commits; this is of one commit alone.

use std::sync::{Arc, OnceLock};

/// See the [module](self). Clones are of the same commit.
#[derive(Clone, Debug, Default)]
pub(super) struct Departure(Arc<OnceLock<bool>>);

impl Departure {
    /// It is about to be sent. False if it [stays](Self::stays): then it must not be.
    pub(super) fn departs(&self) -> bool {
        *self.0.get_or_init(|| true)
    }

    /// Nobody waits for it any more. Whether nothing of it was sent: then nothing will be.
    pub(super) fn stays(&self) -> bool {
        !*self.0.get_or_init(|| false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_departs_or_stays_and_never_both() {
        let sent = Departure::default();
        assert!(sent.departs() && !sent.clone().stays() && sent.departs());
        let kept = Departure::default();
        assert!(kept.stays() && !kept.clone().departs() && kept.stays());
    }
}
