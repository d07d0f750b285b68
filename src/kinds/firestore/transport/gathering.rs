//! An answer of several messages that is kept until it is whole.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message;
use tokio::time::Instant;
use tonic::{Status, Streaming};

/// The largest answer that is kept whole, in bytes.
pub(super) const ANSWER_MAX: usize = 32 << 20;

/// How far an answer has come, for whoever waits for its end.
#[derive(Clone, Debug, Default)]
pub(crate) struct Progress(Arc<Mutex<Option<Instant>>>);

impl Progress {
    /// When the last message came; `None` before the first.
    pub(crate) fn at(&self) -> Option<Instant> {
        *self.0.lock()
    }
}

/// Why an answer is not whole.
#[derive(Debug)]
pub(crate) enum NotWhole {
    /// It ended so.
    Ended(Status),
    /// It is larger than [`ANSWER_MAX`].
    TooLarge,
}

impl From<Status> for NotWhole {
    fn from(status: Status) -> Self {
        Self::Ended(status)
    }
}

/// Counts what is here of an answer.
#[derive(Debug, Default)]
pub(crate) struct Gathering {
    size: usize,
    progress: Progress,
}

impl Gathering {
    /// Of an answer that tells its progress so.
    pub(crate) fn new(progress: Progress) -> Self {
        Self { size: 0, progress }
    }

    /// The next message; `None` at the end.
    ///
    /// # Errors
    /// The answer ended with a status, or is too large.
    pub(super) async fn next<M: Message>(
        &mut self,
        answer: &mut Streaming<M>,
    ) -> Result<Option<M>, NotWhole> {
        let message = self.received(answer).await?;
        if let Some(message) = &message {
            self.takes(message.encoded_len())?;
        }
        Ok(message)
    }

    /// The same, encoded again.
    ///
    /// # Errors
    /// The same.
    pub(super) async fn next_encoded<M: Message>(
        &mut self,
        answer: &mut Streaming<M>,
    ) -> Result<Option<Bytes>, NotWhole> {
        let message =
            self.received(answer).await?.map(|message| Bytes::from(message.encode_to_vec()));
        if let Some(message) = &message {
            self.takes(message.len())?;
        }
        Ok(message)
    }

    /// Receives the next message, which is progress.
    async fn received<M: Message>(&self, answer: &mut Streaming<M>) -> Result<Option<M>, Status> {
        let message = answer.message().await?;
        *self.progress.0.lock() = Some(Instant::now());
        Ok(message)
    }

    /// Counts so many bytes more.
    ///
    /// # Errors
    /// The answer is too large.
    pub(super) fn takes(&mut self, bytes: usize) -> Result<(), NotWhole> {
        self.size = self.size.saturating_add(bytes);
        if self.size <= ANSWER_MAX { Ok(()) } else { Err(NotWhole::TooLarge) }
    }
}
