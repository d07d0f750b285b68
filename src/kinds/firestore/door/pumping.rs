//! What a client sends behind its first message, sent on.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use bytes::Bytes;
use fusebox_state::Lanes;
use h2::{Reason, SendStream};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{
    class::Method,
    core::Core,
    entry::CalledBy,
    lanes::touched,
    pool::{REPLACED, Took, Upstream},
    requests::Requests,
    scope::Scope,
    streamed::UnderWay,
    telling::Told,
};

/// Sends messages on, each when it is whole, at the server's pace.
pub(super) struct Pump {
    pub(super) core: Arc<Core>,
    pub(super) upstream: Arc<Upstream>,
    pub(super) method: Method,
    pub(super) scope: Scope,
    pub(super) caller: CalledBy,
    /// Set once anything was taken of what follows.
    pub(super) taken: Arc<AtomicBool>,
    pub(super) stream: SendStream<Bytes>,
    /// Of what writes.
    pub(super) writes: Option<Writes>,
}

/// What a call that writes message by message has under way.
pub(super) struct Writes {
    pub(super) under_way: Arc<UnderWay>,
    /// Each message is admitted by itself, and answered.
    pub(super) is_counted: bool,
    pub(super) took: Took,
}

impl Pump {
    /// Sends on all of it. If that ends on this side, `ended` is why.
    pub(super) async fn pumps(
        mut self,
        rest: &tokio::sync::Mutex<Requests>,
        ended: &Mutex<Option<Told>>,
    ) {
        let mut rest = rest.lock().await;
        let core = Arc::clone(&self.core);
        let counted = self.writes.as_ref().filter(|writes| writes.is_counted);
        let counted = counted.map(|writes| Arc::clone(&writes.under_way));
        let late = async {
            match &counted {
                Some(under_way) => under_way.overdue().await,
                None => std::future::pending().await,
            }
        };
        let mut told = tokio::select! {
            biased;
            told = self.sends(&mut rest) => told,
            () = late => core.unknown_outcome("no answer in time"),
        };
        if let Some(writes) = &self.writes
            && writes.under_way.stops()
        {
            told = core.perhaps_executed(told);
        }
        *ended.lock() = Some(told);
        self.stream.send_reset(Reason::CANCEL);
        // Its client may not take its answer, which holds nothing from here on.
        if let Some(Writes { under_way, took, .. }) = self.writes.take() {
            under_way.closes(Some(took));
        }
    }

    /// Resolves if nothing more of it is accepted: then why.
    async fn sends(&mut self, rest: &mut Requests) -> Told {
        while let Some(next) = rest.next(&self.core).await {
            self.taken.store(true, Ordering::Release);
            let sent = match next {
                Ok((framed, message)) => self.onward(framed, message).await,
                Err(told) => Err(told),
            };
            match sent {
                Ok(true) => {}
                // The answer says why.
                Ok(false) => return std::future::pending().await,
                Err(told) => return told,
            }
        }
        self.taken.store(true, Ordering::Release);
        if self.stream.send_data(Bytes::new(), true).is_err() {
            tracing::debug!("a stream ended before all of its request was sent");
        }
        std::future::pending().await
    }

    /// Sends a message on; false if the server takes nothing any more.
    async fn onward(&mut self, mut framed: Bytes, message: Option<Bytes>) -> Result<bool, Told> {
        self.core.may_send(&self.scope, self.method, message.as_deref())?;
        if !self.begins(message.as_deref()).await? {
            return Ok(false);
        }
        while !framed.is_empty() {
            self.stream.reserve_capacity(framed.len());
            let room = std::future::poll_fn(|cx| self.stream.poll_capacity(cx)).await;
            let Some(Ok(room)) = room else { return Ok(false) };
            let now = framed.split_to(room.min(framed.len()));
            if self.stream.send_data(now, false).is_err() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// A message is about to be sent; false if nothing more is sent to this server, which ends the answer.
    async fn begins(&self, message: Option<&[u8]>) -> Result<bool, Told> {
        let (core, upstream, method) = (&self.core, &self.upstream, self.method);
        let Some(Writes { under_way, is_counted, .. }) = &self.writes else {
            return Ok(!upstream.is_over());
        };
        let until = Instant::now() + core.backend.timeout();
        if !is_counted {
            core.follows(upstream, self.caller.uid, until).await?;
            if upstream.is_over() {
                // Nobody knows when what was sent is answered, so that cannot be waited for.
                return Err(Told::lost(core.backend.name(), REPLACED));
            }
            return Ok(true);
        }
        if message.is_none() {
            let what =
                "a message of this stream cannot be read, although its first one could be read";
            return Err(Told::malformed(what));
        }
        let connector = &upstream.connector;
        let root = connector.shared.client.known_root();
        let touched = touched(method, message, root, connector.namespace());
        // What only acknowledges answers writes nothing.
        if touched.lanes == Lanes::None {
            return Ok(!upstream.is_over());
        }
        let entered = tokio::select! {
            biased;
            // From here on it would be admitted for another server.
            () = upstream.closed().cancelled() => return Ok(false),
            entered = core.enter(upstream, method, &touched, until, &self.caller) => entered?,
        };
        if under_way.begins(entered) {
            Ok(true)
        } else {
            Err(Told::lost(core.backend.name(), "its stream has ended"))
        }
    }
}
