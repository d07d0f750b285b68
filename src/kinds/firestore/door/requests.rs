//! What a client has still to say behind its first message, message by message.

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;

use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, timeout_at},
};

use super::{
    core::Core,
    framing::{Gathered, take_first},
    pool::LASTING_WINDOW,
    telling::Told,
};

/// A message, framed, and what is in it if it can be read.
pub(super) type Asked = (Bytes, Option<Bytes>);

/// See the [module](self).
pub(super) struct Requests {
    body: Option<Incoming>,
    gathered: Gathered,
    /// Messages that are here.
    here: Bytes,
    /// The room that a long message takes until it is here.
    room: Option<OwnedSemaphorePermit>,
    /// When something of it came last.
    came: Instant,
}

impl Requests {
    /// What follows in `body`, behind messages that are here and perhaps the beginning of one more.
    pub(super) fn new(body: Incoming, mut gathered: Gathered) -> Self {
        let here = gathered.feed(Bytes::new()).unwrap_or_default();
        Self { body: Some(body), gathered, here, room: None, came: Instant::now() }
    }

    /// Nothing follows.
    pub(super) fn none() -> Self {
        let (gathered, here) = (Gathered::default(), Bytes::new());
        Self { body: None, gathered, here, room: None, came: Instant::now() }
    }

    /// Whether the client has said all.
    pub(super) fn has_ended(&self) -> bool {
        self.body.is_none() && self.here.is_empty()
    }

    /// The next message; `None` at the end. Nothing is lost if it is dropped.
    ///
    /// # Errors
    /// What comes is not a message, or there is no room for it, or it does not go on.
    pub(super) async fn next(&mut self, core: &Core) -> Option<Result<Asked, Told>> {
        loop {
            if let Some(message) = take_first(&mut self.here) {
                return Some(Ok(message));
            }
            let (wanted, most) = (self.gathered.wanted(), LASTING_WINDOW as usize);
            if let Err(told) = core.hold_above(&mut self.room, wanted, most).await {
                return Some(Err(told));
            }
            let frame = self.body.as_mut()?.frame();
            let next = if self.gathered.is_between() {
                frame.await
            } else {
                match timeout_at(self.came + core.settings.partial_max, frame).await {
                    Ok(next) => next,
                    Err(_) => {
                        return Some(Err(Told::malformed("no more data of the request arrived")));
                    }
                }
            };
            self.came = Instant::now();
            let data = match next {
                Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
                Some(Err(_)) => return Some(Err(Told::malformed("the request ended too early"))),
                None if self.gathered.is_between() => {
                    self.body = None;
                    return None;
                }
                None => return Some(Err(Told::malformed("the request ends within a message"))),
            };
            match self.gathered.feed(data) {
                Ok(whole) => self.here = whole,
                Err(length) => return Some(Err(Told::too_long(length))),
            }
        }
    }
}
