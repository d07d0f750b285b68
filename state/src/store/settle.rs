//! The first commit of an open: what a commit that was not completed has written is settled.
//!
//! Of such a commit the raw log may hold values that sled does not show, under a number that no head vouches for. What
//! sled shows of these keys is written again under the open's own number, above all others, or said not to be there: so
//! a later reader of the raw log is not misled.

use std::io;

use super::{
    head::{self, Head},
    keys::HEAD_KEY,
    ledger::{Ledger, Says},
    pack, queue,
    raw::Key,
    record::{self, Draft, FORMAT},
    tree::Tree,
};

/// Writes the first commit of an open.
pub(super) struct Settling<'a, T> {
    pub(super) db: &'a T,
    pub(super) ledger: &'a mut Ledger,
    pub(super) commit: u64,
}

impl<T: Tree> Settling<'_, T> {
    /// What sled shows under a key that a commit above the head has written is what counts from now on.
    pub(super) fn settle(&mut self, key: &Key) -> io::Result<()> {
        let bytes = key.to_bytes();
        let shown = match key {
            Key::Call(seq) => pack::call_value(self.db, *seq).map_err(io::Error::from)?,
            Key::Note(_) | Key::Dead(_) | Key::Fact(_) => {
                self.db.get(&bytes).map_err(io::Error::from)?
            }
            Key::Chunk(..) | Key::History(_) => return Ok(()),
            Key::Gone(block) => {
                self.ledger.touch(*block);
                return Ok(());
            }
        };
        let again = shown.as_ref().and_then(|value| {
            let says = queue::says_of(&bytes, value);
            Some((record::seal_again(value, FORMAT)?, says))
        });
        match (key, again) {
            (_, Some((value, says))) => self.insert(&bytes, value, says),
            (Key::Call(seq), None) => {
                self.ledger.never_was(*seq);
                Ok(())
            }
            (Key::Note(seq) | Key::Dead(seq), None) if !self.ledger.is_live(*seq) => Ok(()),
            (_, None) => match record::void(&bytes) {
                Some(void) => self.insert(&bytes, void, Says::Nothing),
                None => Ok(()),
            },
        }
    }

    pub(super) fn insert(&mut self, key: &[u8], value: Draft, says: Says) -> io::Result<()> {
        self.ledger.written(key, says, self.commit);
        self.db.insert(key, value.stamp(self.commit)).map(drop).map_err(io::Error::from)
    }

    pub(super) fn finish(self, last_seq: u64) -> io::Result<Head> {
        for (key, value) in self.ledger.take_touched(self.commit) {
            self.db.insert(&key, value).map_err(io::Error::from)?;
        }
        for key in self.ledger.packs.take_emptied() {
            self.db.remove(&key).map_err(io::Error::from)?;
        }
        let head = self.ledger.head(self.commit, last_seq, None);
        if let Some(value) = head::encode(&head) {
            self.db.insert(HEAD_KEY, value).map_err(io::Error::from)?;
        }
        Ok(head)
    }
}
