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
    copy: Option<AnswerCopy>,
}

/// A copy of an answer that passes, for the cache: what has come so far.
pub struct AnswerCopy {
    bytes: BytesMut,
    room: Copying,
    keeps: Keeps,
}

/// The cache that takes a copy, and the read that it answers.
pub(super) struct Keeps {
    pub(super) fills: Fills,
    pub(super) read: Read,
    pub(super) body: Bytes,
    pub(super) keeper: Keeper,
}

impl Copied {
    /// An answer that begins so and goes on with `rest`.
    pub(super) fn new(beginning: &Bytes, rest: Box<dyn Tail>, keeps: Keeps) -> Self {
        let mut copied = Self { rest, copy: Some(AnswerCopy::new(keeps)) };
        copied.note(beginning);
        copied
    }

    /// Adds a piece to the copy; if that is too much, the copy is dropped.
    fn note(&mut self, piece: &[u8]) {
        if !self.copy.as_mut().is_some_and(|copy| copy.note(piece)) {
            self.copy = None;
        }
    }
}

impl AnswerCopy {
    pub(super) fn new(keeps: Keeps) -> Self {
        let room = Cache::copying(keeps.fills.cache());
        Self { bytes: BytesMut::new(), room, keeps }
    }

    /// Adds a piece. False if that is too much: then it is of no use any more.
    #[must_use]
    pub fn note(&mut self, piece: &[u8]) -> bool {
        let takes = self.room.takes(piece.len() as u64);
        if takes {
            self.bytes.extend_from_slice(piece);
        }
        takes
    }

    /// What has come so far.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The answer has come to its end: keeps the reply that `made` makes of it, if that makes one.
    pub fn keep(self, made: impl FnOnce(Bytes) -> Option<Bytes>) {
        if let Some(reply) = made(self.bytes.freeze()) {
            self.keeps.keep(&reply, self.room);
        }
    }
}

impl Tail for Copied {
    fn next(&mut self) -> Answer<'_, Option<Result<Bytes, AttemptError>>> {
        Box::pin(async {
            let piece = self.rest.next().await;
            match &piece {
                Some(Ok(piece)) => self.note(piece),
                Some(Err(_)) => self.copy = None,
                None => {
                    if let Some(copy) = self.copy.take() {
                        copy.keep(Some);
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
        let Keeper { connector, clock } = &self.keeper;
        match connector.split(&self.body, &self.read.slots, reply).as_deref() {
            Some([part]) => self.fills.end_large(&self.read, part.clone(), &self.keeper, room),
            Some(parts) => self.fills.end(&self.read, parts, &**connector, clock.now()),
            None => {}
        }
    }
}
