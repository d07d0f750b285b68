//! Appending a call that is too large to hold: its body goes into the store as it arrives.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use fusebox_state::store::{CallStore, PIECE_BYTES, StoreError, StoredBody};
use tokio::sync::oneshot;

use super::{AppendError, Appending, NewWrite, Queue};
use crate::connector::Tail;

/// A body that is being put. Given up when dropped.
struct Putting<'a> {
    store: &'a dyn CallStore,
    seq: u64,
    body: StoredBody,
    held: BytesMut,
    done: bool,
}

impl Putting<'_> {
    /// Takes what arrived; puts every full piece.
    async fn take(&mut self, data: &[u8]) -> Result<(), StoreError> {
        self.held.extend_from_slice(data);
        while self.held.len() >= PIECE_BYTES {
            let piece = self.held.split_to(PIECE_BYTES).freeze();
            self.put(piece).await?;
        }
        Ok(())
    }

    async fn put(&mut self, piece: Bytes) -> Result<(), StoreError> {
        let index = self.body.add(&piece);
        let (sender, synced) = oneshot::channel();
        let done = Box::new(move |result| drop(sender.send(result)));
        self.store.put_piece(self.seq, index, piece, done);
        synced.await.unwrap_or(Err(StoreError::Closed))
    }

    /// Puts what is left and says what the header must.
    async fn finish(&mut self) -> Result<StoredBody, StoreError> {
        if !self.held.is_empty() {
            let last = self.held.split().freeze();
            self.put(last).await?;
        }
        Ok(self.body)
    }
}

impl Drop for Putting<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.store.drop_pieces(self.seq, self.body.pieces);
        }
    }
}

impl Queue {
    /// Makes a write durable whose body goes on with `rest`. What has come counts as if it was queued. Dropping the
    /// future gives it up.
    ///
    /// # Errors
    /// As [`Queue::append`], and if the store or the sender breaks off; nothing was queued.
    pub async fn append_upload(
        self: &Arc<Self>,
        write: NewWrite,
        mut rest: Box<dyn Tail>,
        is_for_us: impl Fn() -> bool,
    ) -> Result<Appending, AppendError> {
        let store = self.store()?;
        let (claim, _) = self.claim(&write.header.lanes);
        let mut putting = Putting {
            store,
            seq: claim.seq(),
            body: StoredBody::default(),
            held: BytesMut::new(),
            done: false,
        };
        let (mut next, mut arrived) = (Some(Ok(write.body.clone())), 0);
        while let Some(data) = next {
            let data = data.map_err(AppendError::BrokenOff)?;
            arrived += data.len() as u64;
            self.index().arrives(claim.seq(), arrived)?;
            putting.take(&data).await?;
            next = rest.next().await;
        }
        let body = putting.finish().await?;
        let write = NewWrite { body: Bytes::new(), claim: Some(claim.seq()), ..write };
        let appending = self.enter(write, body.len, is_for_us, |store, call, done| {
            store.append_stored(call, body, done);
        })?;
        putting.done = true;
        Ok(appending)
    }
}
