//! Tickets whose client leaves before their attempt has ended, or of which nothing is sent.

use fusebox_state::{Lanes, Verdict, write::End};

use super::{Onward, OtherWay, Ticket};
use crate::{
    backend_shared::BackendShared,
    call::Priority,
    refusal::{AttemptError, Barred},
};

impl BackendShared {
    /// Why no more is sent now of a call that was let in before, and may write to `lanes`. It gets no permit of its own.
    pub(crate) fn keeps_back(&self, lanes: &Lanes, priority: Priority) -> Option<OtherWay> {
        if self.sheds(priority, true) {
            Some(OtherWay::Shed)
        } else if !self.circuit.is_asked() {
            Some(OtherWay::Barred(Barred::Open))
        } else if self.queue.is_occupied(lanes) || self.flights.is_barred(lanes) {
            Some(OtherWay::Lanes)
        } else {
            None
        }
    }
}

impl Ticket {
    /// Nothing of its request is sent before it [departs](Self::departs): it has no connection yet, or the server has
    /// acted upon nothing of what was sent.
    pub fn waits(&mut self) {
        // Neither its client nor a call that has parted from it waits for it.
        self.passage.comes_back(!self.left && self.recorder.is_some());
    }

    /// Its request is about to be sent. False if it was given up: then it must not be.
    pub fn departs(&self) -> bool {
        self.passage.departs()
    }

    /// Its client has no more time. Whether nothing of its request was sent: then nothing will be.
    pub fn stays(&self) -> bool {
        self.passage.stays()
    }

    /// Its client has left; its attempt goes on, and is settled by its end. Returns whether nothing of it was sent: then
    /// nothing will be.
    pub fn abandon(&mut self) -> bool {
        self.left = true;
        self.fill = None;
        self.passage.give_up();
        let stays = self.passage.stays();
        if let Some(write) = self.write.as_ref().filter(|_| !stays) {
            self.shared.leave(&*self.connector, &self.passage, &write.lanes);
            self.shared.bar_fills(&write.lanes);
        }
        stays
    }

    /// Its client has no more time for the wire: its call goes on by itself, as if its attempt had ended with `error`.
    /// The attempt goes on as well, and is settled by its end, of which nothing follows. `None` if its client has left.
    pub fn part(&mut self, error: AttemptError) -> Option<Box<Onward>> {
        if self.left {
            return None;
        }
        if let (Some(write), Some(_)) = (&self.write, &error.doubt) {
            self.shared.leave(&*self.connector, &self.passage, &write.lanes);
        }
        let ended = self.ended(Verdict::Neutral, Some(&error))?;
        self.fill = None;
        self.passage.give_up();
        Some(Box::new(Onward { parted: true, ..self.onward(ended, error) }))
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        // One that is settled, or that its call has parted from, has none any more.
        let Some(write) = &mut self.write else { return };
        write.state.end(if self.passage.stays() { End::Nothing } else { End::Unknown });
    }
}
