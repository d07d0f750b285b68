//! What a client sends behind its first message, sent on.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use bytes::Bytes;
use fusebox_state::Lanes;
use h2::{Reason, SendStream};
use http_body_util::BodyExt;
use parking_lot::Mutex;

use super::{
    class::{Class, Method},
    core::Core,
    framing::take_first,
    pool::LASTING_WINDOW,
    reading::{Rest, too_long},
    scope::Scope,
    telling::Told,
};

/// Sends messages on, each when it is whole, at the server's pace.
pub(super) struct Pump {
    pub(super) core: Arc<Core>,
    pub(super) method: Method,
    pub(super) scope: Scope,
    /// Set once anything was taken of what follows.
    pub(super) taken: Arc<AtomicBool>,
    pub(super) stream: SendStream<Bytes>,
}

impl Pump {
    /// Sends on all of it. If that ends on this side, `ended` is why.
    pub(super) async fn pumps(
        mut self,
        rest: &tokio::sync::Mutex<Rest>,
        ended: &Mutex<Option<Told>>,
    ) {
        let mut rest = rest.lock().await;
        match self.sends(&mut rest).await {
            Ok(()) => {}
            Err(told) => {
                *ended.lock() = told;
                self.stream.send_reset(Reason::CANCEL);
            }
        }
    }

    /// # Errors
    /// The client has left, or learns why nothing more of it is accepted.
    async fn sends(&mut self, rest: &mut Rest) -> Result<(), Option<Told>> {
        let (mut room, most) = (None, LASTING_WINDOW as usize);
        while let Some(next) = rest.body.frame().await {
            self.taken.store(true, Ordering::Release);
            let Ok(data) = next.map_err(|_| None)?.into_data() else { continue };
            let messages = rest.gathered.feed(data).map_err(|length| Some(too_long(length)))?;
            self.core.hold_above(&mut room, rest.gathered.wanted(), most).await?;
            if !self.onward(messages).await? {
                return Ok(());
            }
        }
        self.taken.store(true, Ordering::Release);
        if !rest.gathered.is_between() {
            return Err(Some(Told::malformed("the request ends within a message")));
        }
        if self.stream.send_data(Bytes::new(), true).is_err() {
            tracing::debug!("a stream ended before all of its request was sent");
        }
        Ok(())
    }

    /// Sends whole messages on; false if the server takes nothing any more.
    async fn onward(&mut self, mut messages: Bytes) -> Result<bool, Told> {
        let mut unread = messages.clone();
        while let Some((_, message)) = take_first(&mut unread) {
            self.core.may_send(&self.scope, self.method, message.as_deref())?;
        }
        if !messages.is_empty() && self.method.class == Class::Write {
            self.core.writes_more().await?;
        }
        while !messages.is_empty() {
            self.stream.reserve_capacity(messages.len());
            let room = std::future::poll_fn(|cx| self.stream.poll_capacity(cx)).await;
            let Some(Ok(room)) = room else { return Ok(false) };
            let now = messages.split_to(room.min(messages.len()));
            if self.stream.send_data(now, false).is_err() {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl Core {
    /// A stream that may write, anywhere, sends another message: what is queued goes first.
    async fn writes_more(&self) -> Result<(), Told> {
        let everything = Lanes::All;
        if !self.backend.wait_for(&everything, self.backend.timeout()).await {
            let name = self.backend.name();
            let why = "has earlier writes waiting in the queue";
            return Err(Told::not_executed(name, why, self.backend.retry_after()));
        }
        self.backend.wrote(&everything);
        Ok(())
    }
}
