//! An answer that goes to its caller in pieces, and a copy of it for the cache.
//!
//! The copy is kept if the answer comes to its end and is no larger than an entry of the cache may be; a large one in a
//! file. All copies of one cache together take as many bytes as that cache itself may: an answer for which there is no
//! room left is not kept.
//!
//! A copy is held in memory until the answer is whole. That is simpler than a file that grows with it, and a disk that
//! hangs holds no caller up.

use bytes::{Bytes, BytesMut};
use fusebox_state::cache::{Cache, Copying};

use super::fills::{Fills, Keeper};
use crate::connector::{Answer, AttemptError, Read, Tail};

/// The pieces of an answer, each noted as it passes.
pub(super) struct Copied {
    rest: Box<dyn Tail>,
    copy: Option<Copy>,
}

/// What has come so far.
struct Copy {
    bytes: BytesMut,
    room: Copying,
    keeps: Keeps,
}

/// Where a copy is kept, and as the answer to what.
pub(super) struct Keeps {
    pub(super) fills: Fills,
    pub(super) read: Read,
    pub(super) body: Bytes,
    pub(super) keeper: Keeper,
}

impl Copied {
    /// An answer that begins so and goes on with `rest`.
    pub(super) fn new(beginning: &Bytes, rest: Box<dyn Tail>, keeps: Keeps) -> Self {
        let room = Cache::copying(keeps.fills.cache());
        let mut copy = Some(Copy { bytes: BytesMut::new(), room, keeps });
        note(&mut copy, beginning);
        Self { rest, copy }
    }
}

/// Adds a piece to a copy; there is none any more where that is too much.
fn note(copy: &mut Option<Copy>, piece: &Bytes) {
    if let Some(Copy { bytes, room, .. }) = copy {
        if room.takes(piece.len() as u64) {
            bytes.extend_from_slice(piece);
        } else {
            *copy = None;
        }
    }
}

impl Tail for Copied {
    fn next(&mut self) -> Answer<'_, Option<Result<Bytes, AttemptError>>> {
        Box::pin(async {
            let piece = self.rest.next().await;
            match &piece {
                Some(Ok(piece)) => note(&mut self.copy, piece),
                Some(Err(_)) => self.copy = None,
                None => {
                    if let Some(Copy { bytes, keeps, room }) = self.copy.take() {
                        keeps.keep(&bytes.freeze(), room);
                    }
                }
            }
            piece
        })
    }

    fn end(&self) -> Option<Bytes> {
        self.rest.end()
    }
}

impl Keeps {
    fn keep(&self, reply: &Bytes, room: Copying) {
        let Some(mut parts) = self.keeper.connector.split(&self.body, &self.read.slots, reply)
        else {
            return;
        };
        if let (Some(part), true) = (parts.pop(), parts.is_empty()) {
            self.fills.end_large(&self.read, part, &self.keeper, room);
        }
    }
}
