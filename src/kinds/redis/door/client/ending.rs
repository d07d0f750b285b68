//! How a client's connection is to end.

use crate::kinds::redis::door::counters::Closed;

/// How a connection is to end. The later ones are stronger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Ending {
    Open,
    /// Once everything was answered.
    Answered,
    /// At once.
    Reset,
}

/// How a connection is to end, and why. Nothing weaker replaces what was decided: a connection that is to be reset may
/// have commands that nobody answers any more, so it would never be one on which everything was answered.
#[derive(Debug)]
pub(super) struct End {
    how: Ending,
    why: Closed,
}

impl End {
    /// Of a connection that stays open until its client leaves.
    pub(super) fn open() -> Self {
        Self { how: Ending::Open, why: Closed::Client }
    }

    pub(super) fn how(&self) -> Ending {
        self.how
    }

    pub(super) fn why(&self) -> Closed {
        self.why
    }

    pub(super) fn is_open(&self) -> bool {
        self.how == Ending::Open
    }

    pub(super) fn is_reset(&self) -> bool {
        self.how == Ending::Reset
    }

    /// It is to end so, if nothing stronger was decided, and not the same for another reason.
    pub(super) fn with(&mut self, how: Ending, why: Closed) {
        if how > self.how {
            (self.how, self.why) = (how, why);
        }
    }

    /// The same, for the reason for which it would have ended.
    pub(super) fn as_expected(&mut self, how: Ending) {
        self.with(how, self.why);
    }

    /// The daemon stops: if it ends for no other reason, that is why.
    pub(super) fn stops(&mut self) {
        if self.is_open() {
            self.why = Closed::Stop;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_weaker_replaces_how_a_connection_ends() {
        let mut end = End::open();
        end.stops();
        assert_eq!((end.how(), end.why()), (Ending::Open, Closed::Stop));
        end.with(Ending::Answered, Closed::Idle);
        end.stops();
        assert_eq!((end.how(), end.why()), (Ending::Answered, Closed::Idle));
        end.with(Ending::Reset, Closed::Told);
        for (how, why) in [(Ending::Answered, Closed::Upstream), (Ending::Reset, Closed::Client)] {
            end.with(how, why);
            assert_eq!((end.how(), end.why()), (Ending::Reset, Closed::Told));
        }
    }
}
