//! What comes in its own time: the future of an answer, and the rest of what is too large to hold.

use std::{fmt, future::Future, pin::Pin};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::refusal::AttemptError;

/// A boxed future of a connector's answer.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What comes piece by piece: the rest of a large answer, or of a large call.
pub trait Tail: Send + Sync {
    /// The next piece; `None` at the end. After an error nothing more comes.
    fn next(&mut self) -> Answer<'_, Option<Result<Bytes, AttemptError>>>;

    /// What its sender put behind the last piece, in wire form; empty for nothing. `None` if it broke off before its
    /// end. To be asked once [`Tail::next`] has returned `None` or an error: what came whole may be an error all the
    /// same, which its last piece says.
    fn end(&self) -> Option<Bytes> {
        None
    }
}

/// The rest of a call that is too large to hold. It can be taken once: such a call is tried once.
pub struct Upload(Mutex<Option<Box<dyn Tail>>>);

impl Upload {
    /// The rest of a call.
    pub fn new(rest: Box<dyn Tail>) -> Self {
        Self(Mutex::new(Some(rest)))
    }

    /// Puts `wrap` around it, if it was not taken yet.
    pub(crate) fn wrap(&self, wrap: impl FnOnce(Box<dyn Tail>) -> Box<dyn Tail>) {
        let mut rest = self.0.lock();
        *rest = rest.take().map(wrap);
    }

    /// Takes it; `None` if it was taken.
    pub fn take(&self) -> Option<Box<dyn Tail>> {
        self.0.lock().take()
    }
}

impl fmt::Debug for Upload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Upload")
    }
}
