//! Who raises the fence in the background: one task of a connector, for all who want it.
//!
//! ```text
//!  nobody ── wanted ──▶ whoever wants it first ── nobody has wanted it since its last look began ──▶ nobody
//! ```
//! Whoever wants it first gets the turn and looks at least once. All others leave it at wanting it, so there is one
//! task and one look at a time, however many there are. Who has the turn gives it back however it ends, and then sees
//! whether somebody wanted it in the last moment.

use std::{mem::replace, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{sync::Notify, time::timeout};

/// See the [module](self).
#[derive(Clone, Debug, Default)]
pub(super) struct Raising(Arc<State>);

#[derive(Debug, Default)]
struct State {
    stage: Mutex<Stage>,
    /// Notified when it is wanted while another one has the turn.
    wanted: Notify,
}

#[derive(Debug, Default)]
struct Stage {
    /// Somebody has the turn.
    is_taken: bool,
    /// Somebody has wanted it since the last look began.
    is_wanted: bool,
}

/// Held by whoever raises it.
pub(super) struct Turn(Raising);

impl Raising {
    /// It is wanted. Returns the turn, unless another one has that.
    pub(super) fn want(&self) -> Option<Turn> {
        self.0.stage.lock().is_wanted = true;
        let turn = self.turn();
        if turn.is_none() {
            self.0.wanted.notify_one();
        }
        turn
    }

    /// The turn, if it is wanted and nobody has it.
    fn turn(&self) -> Option<Turn> {
        let mut stage = self.0.stage.lock();
        let is_free = stage.is_wanted && !replace(&mut stage.is_taken, true);
        is_free.then(|| Turn(self.clone()))
    }
}

impl Turn {
    /// A look begins, for all who have wanted one by now.
    pub(super) fn begin(&self) {
        self.0.0.stage.lock().is_wanted = false;
    }

    /// Waits until another look is wanted, for as long as that at most.
    pub(super) async fn wanted(&self, time: Duration) {
        drop(timeout(time, self.0.0.wanted.notified()).await);
    }

    /// Gives the turn back. Returns it if another look was wanted since the last one began, unless another one has it.
    pub(super) fn over(self) -> Option<Self> {
        let raising = self.0.clone();
        drop(self);
        raising.turn()
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.0.stage.lock().is_taken = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_has_the_turn_looks_for_all() {
        let raising = Raising::default();
        let turn = raising.want().expect("nobody has it");
        turn.begin();
        assert!(raising.want().is_none() && raising.want().is_none());
        let turn = turn.over().expect("it was wanted while it looked");
        turn.begin();
        assert!(turn.over().is_none(), "and then by nobody");
        drop(raising.want().expect("nobody has it"));
        assert!(raising.want().is_some(), "it was given back");
    }
}
