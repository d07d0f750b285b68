//! A stream to the server that a Listen has open.

use bytes::Bytes;
use h2::SendStream;
use http_body_util::BodyExt;
use hyper::body::Frame;
use tokio::{sync::OwnedSemaphorePermit, time::Instant};
use tonic::Status;

use crate::kinds::firestore::door::{exchange::Coming, framing::Gathered};

/// What happens to it.
pub(super) enum Came {
    /// What the server says; `None` if its stream has ended without a status, or is of a server that was replaced.
    Frame(Option<Result<Frame<Bytes>, Status>>),
    /// What was to be sent is sent, or the answer says why not.
    Sent,
}

/// See the [module](self).
pub(super) struct Open {
    coming: Coming,
    onward: SendStream<Bytes>,
    /// What is to be sent.
    outbox: Bytes,
    /// What has come of a message.
    pub(super) gathered: Gathered,
    /// The room that it takes, if it is long.
    pub(super) room: Option<OwnedSemaphorePermit>,
    pub(super) since: Instant,
}

impl Open {
    pub(super) fn of(mut coming: Coming) -> Option<Self> {
        let onward = coming.onward.take()?;
        let (outbox, gathered) = (Bytes::new(), Gathered::default());
        Some(Self { coming, onward, outbox, gathered, room: None, since: Instant::now() })
    }

    /// Whether all was sent that was to be.
    pub(super) fn takes_more(&self) -> bool {
        self.outbox.is_empty()
    }

    /// Sends a message, at the server's pace. The last one must have gone.
    pub(super) fn send(&mut self, message: Bytes) {
        self.outbox = message;
    }

    /// Tells the server that nothing more comes.
    pub(super) fn end(&mut self) {
        if self.onward.send_data(Bytes::new(), true).is_err() {
            tracing::debug!("a stream ended before all of its request was sent");
        }
    }

    /// Waits for what the server says, or takes. Nothing is lost if it is dropped.
    pub(super) async fn next(&mut self) -> Came {
        let Self { coming, onward, outbox, .. } = self;
        let Coming { answer, over, .. } = coming;
        let has_more = !outbox.is_empty();
        let replaced = async {
            match over {
                Some(over) => over.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            // What it says from here on is said by a server that the backend does not have any more.
            () = replaced => Came::Frame(None),
            () = sent(onward, outbox), if has_more => Came::Sent,
            frame = answer.frame() => Came::Frame(frame),
        }
    }
}

/// Resolves once the server has taken all of it, or takes nothing any more: why, the answer says.
async fn sent(onward: &mut SendStream<Bytes>, outbox: &mut Bytes) {
    while !outbox.is_empty() {
        onward.reserve_capacity(outbox.len());
        let Some(Ok(room)) = std::future::poll_fn(|cx| onward.poll_capacity(cx)).await else {
            return outbox.clear();
        };
        let now = outbox.split_to(room.min(outbox.len()));
        if onward.send_data(now, false).is_err() {
            return outbox.clear();
        }
    }
}
