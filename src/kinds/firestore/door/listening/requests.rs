//! What a client has still to say on its Listen.

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;

use crate::kinds::firestore::door::{
    framing::{Gathered, take_first},
    reading::{Rest, too_long},
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
}

impl Requests {
    /// What follows the first messages; `None` if nothing does.
    pub(super) fn new(rest: Option<Rest>) -> Self {
        let (body, gathered) = rest.map(|Rest { body, gathered }| (body, gathered)).unzip();
        Self { body, gathered: gathered.unwrap_or_default(), here: Bytes::new() }
    }

    /// Whether the client has said all.
    pub(super) fn has_ended(&self) -> bool {
        self.body.is_none() && self.here.is_empty()
    }

    /// The next message; `None` at the end. Nothing is lost if it is dropped.
    ///
    /// # Errors
    /// What comes is not a message.
    pub(super) async fn next(&mut self) -> Option<Result<Asked, Told>> {
        loop {
            if let Some(message) = take_first(&mut self.here) {
                return Some(Ok(message));
            }
            let data = match self.body.as_mut()?.frame().await {
                Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
                Some(Err(_)) => return Some(Err(Told::malformed("the request broke off"))),
                None if self.gathered.is_between() => {
                    self.body = None;
                    return None;
                }
                None => return Some(Err(Told::malformed("the request ends within a message"))),
            };
            match self.gathered.feed(data) {
                Ok(whole) => self.here = whole,
                Err(length) => return Some(Err(too_long(length))),
            }
        }
    }
}
