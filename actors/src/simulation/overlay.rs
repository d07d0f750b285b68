//! What queued writes say of a key if each write says it alone, as they do for the model backends, and for the scripted
//! one of the tests.

use bytes::Bytes;
use fusebox_state::UnixMillis;

use crate::connector::{Overlay, QueuedWrite, Said, Slot};

/// The last write of a lane says what its key holds.
#[derive(Clone)]
pub(crate) struct LastWrite {
    slot: Slot,
    said: Said,
    says: fn(&Bytes) -> Option<Said>,
}

impl LastWrite {
    /// An overlay without a write. `says` is what a write says of its key; `None` if it leaves the value as it is.
    pub(crate) fn of(slot: &Slot, says: fn(&Bytes) -> Option<Said>) -> Box<dyn Overlay> {
        Box::new(Self { slot: slot.clone(), said: Said::AsBefore, says })
    }
}

impl Overlay for LastWrite {
    fn write(&mut self, write: &QueuedWrite) -> bool {
        let said = (self.says)(&write.body);
        let is_news = said.is_some();
        self.said = said.unwrap_or_else(|| self.said.clone());
        is_news
    }

    fn serves(&self, slot: &Slot) -> bool {
        self.slot == *slot
    }

    fn says(&self, _: &Slot, _: UnixMillis) -> Said {
        self.said.clone()
    }

    fn fork(&self) -> Box<dyn Overlay> {
        Box::new(self.clone())
    }

    fn bytes(&self) -> u64 {
        if let Said::Reply(value) = &self.said { value.len() as u64 } else { 0 }
    }
}
