//! The replies that a client is owed, in the order of its commands.
//!
//! Each command has a slot. Replies come in any order; what is at the front and answered goes to the output, and
//! nothing else does. A reply that comes in its turn is copied once, into the output.
//!
//! A client that is owed nothing keeps no buffer: the door's clients hand theirs to each other ([`Buffers`]).

use std::{cell::RefCell, collections::VecDeque, mem, rc::Rc};

use bytes::Bytes;

/// Buffers that are kept for the next client, and the room of the largest of them, in bytes.
const SPARE_MAX: usize = 64;
const SPARE_SIZE_MAX: usize = 64 << 10;
/// A client that is owed nothing keeps room for so many slots.
const SLOTS_KEPT: usize = 32;

/// Buffers that no client of a door uses now.
#[derive(Default)]
pub(in crate::kinds::redis::door) struct Buffers {
    spare: RefCell<Vec<Vec<u8>>>,
}

impl Buffers {
    fn take(&self) -> Vec<u8> {
        self.spare.borrow_mut().pop().unwrap_or_default()
    }

    fn give_back(&self, mut buffer: Vec<u8>) {
        let mut spare = self.spare.borrow_mut();
        if spare.len() < SPARE_MAX && (1..=SPARE_SIZE_MAX).contains(&buffer.capacity()) {
            buffer.clear();
            spare.push(buffer);
        }
    }
}

/// The place of a command's reply.
struct Slot {
    reply: Option<Bytes>,
    /// The client does not want it.
    silent: bool,
}

/// See the [module](self).
pub(super) struct Slots {
    waiting: VecDeque<Slot>,
    /// The number of the oldest slot.
    base: u64,
    out: Vec<u8>,
    /// How much of it was sent.
    sent: usize,
    /// The bytes of replies that wait for their turn.
    early: usize,
    /// The size of the largest reply that was not the server's, in bytes, since all was sent.
    given: usize,
    /// Nothing more is read of the client until something was answered, or sent.
    awaits_room: bool,
    /// The client has left.
    is_closed: bool,
    buffers: Rc<Buffers>,
}

impl Slots {
    pub(super) fn new(buffers: Rc<Buffers>) -> Self {
        Self {
            waiting: VecDeque::new(),
            base: 0,
            out: Vec::new(),
            sent: 0,
            early: 0,
            given: 0,
            awaits_room: false,
            is_closed: false,
            buffers,
        }
    }

    /// The client has left: it is owed nothing any more. What is answered from now on is dropped.
    pub(super) fn close(&mut self) {
        self.is_closed = true;
        self.waiting = VecDeque::new();
        (self.sent, self.early, self.given) = (0, 0, 0);
        self.buffers.give_back(mem::take(&mut self.out));
    }

    /// Whether every command was answered.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Commands that were not answered.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// A slot for the next command; its number. The reply of a `silent` one is dropped.
    pub(super) fn open(&mut self, silent: bool) -> u64 {
        let number = self.next();
        self.waiting.push_back(Slot { reply: None, silent });
        number
    }

    /// The number that the next slot will have.
    pub(super) fn next(&self) -> u64 {
        self.base + self.waiting.len() as u64
    }

    /// Answers a command at once. It needs no slot if nothing is before it.
    pub(super) fn answer(&mut self, silent: bool, answer: &[u8]) {
        self.gave(answer.len());
        if !self.waiting.is_empty() {
            let reply = Some(Bytes::copy_from_slice(answer));
            self.early += answer.len();
            self.waiting.push_back(Slot { reply, silent });
        } else if !silent {
            self.told(answer);
        }
    }

    /// The reply of slot `number`. A slot is answered once: what comes later is dropped.
    pub(super) fn reply(&mut self, number: u64, frame: &[u8]) {
        if number != self.base {
            let at = usize::try_from(number.wrapping_sub(self.base)).ok();
            if let Some(slot) = at.and_then(|at| self.waiting.get_mut(at))
                && slot.reply.is_none()
            {
                slot.reply = Some(Bytes::copy_from_slice(frame));
                self.early += frame.len();
            }
            return;
        }
        let Some(slot) = self.waiting.pop_front() else { return };
        self.base += 1;
        if !slot.silent {
            self.told(frame);
        }
        while let Some(Slot { reply: Some(_), .. }) = self.waiting.front()
            && let Some(Slot { reply: Some(reply), silent }) = self.waiting.pop_front()
        {
            self.base += 1;
            self.early -= reply.len();
            if !silent {
                self.told(&reply);
            }
        }
        if self.waiting.is_empty() {
            self.waiting.shrink_to(SLOTS_KEPT);
        }
    }

    /// Whether slot `number` was answered, and so were all before it.
    pub(super) fn is_over(&self, number: u64) -> bool {
        number < self.base
    }

    /// Whether slot `number` is the oldest.
    pub(super) fn is_oldest(&self, number: u64) -> bool {
        number == self.base && !self.waiting.is_empty()
    }

    /// A piece of the oldest slot's reply, which is not the last one.
    pub(super) fn piece(&mut self, piece: &[u8]) {
        if self.waiting.front().is_some_and(|slot| !slot.silent) {
            self.told(piece);
        }
    }

    /// Something that goes out at once: what answers no command, or the oldest one.
    pub(super) fn told(&mut self, frame: &[u8]) {
        if self.is_closed {
            return;
        }
        if self.out.capacity() == 0 {
            self.out = self.buffers.take();
        }
        self.out.extend_from_slice(frame);
    }

    /// What is held for the client, in bytes.
    pub(super) fn owed(&self) -> usize {
        self.out().len() + self.early
    }

    /// The bytes of replies that wait for their turn.
    pub(super) fn early(&self) -> usize {
        self.early
    }

    /// A reply was not the server's, and had so many bytes. Its command was taken while there was room, however large
    /// the reply has become: what it is too much is not its client's doing.
    pub(super) fn gave(&mut self, bytes: usize) {
        self.given = self.given.max(bytes);
    }

    /// The size of the largest of these, in bytes, since all was sent.
    pub(super) fn given(&self) -> usize {
        self.given
    }

    /// Whether its client, of which nothing is read because of what it is owed, is to look again once it is owed less.
    pub(super) fn awaits_room(&self) -> bool {
        self.awaits_room
    }

    /// It is, or is not any more.
    pub(super) fn await_room(&mut self, awaits: bool) {
        self.awaits_room = awaits;
    }

    /// What is to be sent to the client.
    pub(super) fn out(&self) -> &[u8] {
        self.out.get(self.sent..).unwrap_or_default()
    }

    /// So many bytes of [`Slots::out`] were sent.
    pub(super) fn sent(&mut self, count: usize) {
        self.sent += count;
        if self.sent >= self.out.len() {
            self.sent = 0;
            if self.early == 0 {
                self.given = 0;
            }
            self.buffers.give_back(mem::take(&mut self.out));
        } else if self.sent > SPARE_SIZE_MAX && self.sent > self.out.len() / 2 {
            self.out.drain(..mem::take(&mut self.sent));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever the order of the replies, they leave in the order of the commands, each once, but for the silent.
        #[test]
        fn replies_leave_in_the_order_of_the_commands(
            commands in prop::collection::vec((any::<bool>(), any::<bool>(), any::<u16>()), 0..40),
            sent in prop::collection::vec(0usize..20, 0..40),
        ) {
            let mut slots = Slots::new(Rc::default());
            let (mut expected, mut got) = (Vec::new(), Vec::new());
            let mut open = Vec::new();
            for (at, (silent, at_once, _)) in commands.iter().enumerate() {
                let text = format!("+{at}\r\n");
                if *at_once {
                    slots.answer(*silent, text.as_bytes());
                } else {
                    open.push((slots.open(*silent), text.clone()));
                }
                if !silent {
                    expected.extend_from_slice(text.as_bytes());
                }
            }
            let order: Vec<u16> = commands.iter().map(|(.., order)| *order).collect();
            open.sort_by_key(|(number, _)| order.get(usize::try_from(*number).unwrap()).copied());
            let mut sent = sent.into_iter();
            for (number, text) in open {
                slots.reply(number, text.as_bytes());
                let count = sent.next().unwrap_or(0).min(slots.out().len());
                got.extend_from_slice(&slots.out()[..count]);
                slots.sent(count);
            }
            got.extend_from_slice(slots.out());
            prop_assert!(slots.is_empty());
            prop_assert_eq!(got, expected);
        }
    }

    #[test]
    fn who_has_left_is_owed_nothing_whatever_is_answered_later() {
        let mut slots = Slots::new(Rc::default());
        let numbers = [slots.open(false), slots.open(false), slots.open(false)];
        slots.reply(numbers[2], b"+early\r\n");
        slots.piece(b"$5\r\nlar");
        slots.close();
        assert_eq!((slots.owed(), slots.out(), slots.is_empty()), (0, &b""[..], true));
        slots.piece(b"ge\r\n");
        for number in numbers {
            slots.reply(number, b"+late\r\n");
        }
        slots.told(b"+message\r\n");
        assert_eq!((slots.owed(), slots.out()), (0, &b""[..]));
    }
}
