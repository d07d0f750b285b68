//! What operators do with queued calls and dead letters.

use fusebox_state::OpId;

use super::{AdminError, Backend, failed};
use crate::{queue::NotRequeued, view};

impl Backend {
    /// A page of the queue: everything not dead, or the dead letters, in order of acceptance.
    pub async fn queue_page(
        &self,
        dead: bool,
        after: Option<view::Place>,
        limit: usize,
    ) -> view::QueuePage {
        let shared = std::sync::Arc::clone(&self.entry.shared);
        let ground = shared.queue.ground().clone();
        let reading = ground.run(move || shared.queue_page(dead, after, limit));
        reading.await.unwrap_or_default()
    }

    /// The place of a call in the list of everything not dead, or in that of the dead letters. `None` if it is not
    /// in that list.
    pub fn place_of(&self, dead: bool, op_id: OpId) -> Option<view::Place> {
        self.entry.shared.place_of(dead, op_id)
    }

    /// A queued call or dead letter, without its body.
    pub async fn queued_call(&self, op_id: OpId) -> Option<view::QueuedCallView> {
        let shared = std::sync::Arc::clone(&self.entry.shared);
        let ground = shared.queue.ground().clone();
        let reading = ground.run(move || shared.queued_call(op_id));
        reading.await.ok().flatten()
    }

    /// The body, in wire form, of the queued call or dead letter with that sequence. `None` if it cannot be read, or
    /// is no longer there. A body may be large: make room for it first. Blocks on the disk.
    pub fn queued_body(&self, sequence: u64) -> Option<bytes::Bytes> {
        self.entry.shared.queued_body(sequence)
    }

    /// Puts a dead letter back at the tail of its lane, with all that were sent with it as one. `force` is wanted
    /// if the lane was written since. One that may have been applied stays in doubt, and is sent only if the
    /// backend is proven to recognise it; `not_applied` says that somebody has checked that it was not.
    ///
    /// # Errors
    /// [`AdminError`] if there is none, or it needs `force`.
    pub async fn requeue(
        &self,
        op_id: OpId,
        force: bool,
        not_applied: bool,
    ) -> Result<(), AdminError> {
        let queue = &self.entry.shared.queue;
        let seq = {
            let index = queue.index();
            let found = index.find(op_id);
            let (seq, dead) = found.ok_or_else(|| no_call(op_id))?;
            if !dead {
                return Err(AdminError::Conflict(format!(
                    "{op_id} is not a dead letter: it already waits in the queue"
                )));
            }
            seq
        };
        let synced = queue.requeue(seq, force, not_applied).map_err(|why| match why {
            NotRequeued::Gone => no_call(op_id),
            NotRequeued::Written => AdminError::Conflict(format!(
                "the lane of {op_id} was, or may have been, written since: `--force` requeues the call after these \
                 writes, and it will overwrite them"
            )),
        })?;
        match synced.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(AdminError::Failed(error.to_string())),
            Err(_) => Err(failed("the store was closed")),
        }
    }

    /// Discards a queued call or dead letter for good.
    ///
    /// # Errors
    /// [`AdminError`] if there is none, or it is on the wire at this moment.
    pub async fn discard(&self, op_id: OpId) -> Result<(), AdminError> {
        let queue = &self.entry.shared.queue;
        let found = queue.index().find(op_id);
        let (seq, _) = found.ok_or_else(|| no_call(op_id))?;
        let synced = queue.discard(seq).ok_or_else(|| {
            AdminError::Conflict(format!("{op_id} is on the wire or being stored: try again"))
        })?;
        match synced.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) if error.outcome_unknown() => {
                return Err(AdminError::Failed(format!(
                    "it is not certain whether {op_id} is removed: {error}"
                )));
            }
            Ok(Err(error)) => return Err(AdminError::Failed(error.to_string())),
            Err(_) => return Err(failed("the store was closed")),
        }
        tracing::warn!(backend = self.name(), %op_id, "a queued call was discarded by an operator");
        Ok(())
    }

    /// Nudges replay: forgets backoffs, lifts a pause, tries again now. Returns how many calls wait.
    ///
    /// # Errors
    /// [`AdminError::Conflict`] if nothing may be replayed now, with the reason.
    pub fn replay(&self) -> Result<u64, AdminError> {
        let shared = &self.entry.shared;
        shared.queue.index().retry_all();
        shared.queue.resume.store(true, std::sync::atomic::Ordering::Release);
        shared.queue.work.notify_one();
        match shared.circuit.replay_barred() {
            Some(why) if shared.queue.waiting() > 0 => {
                Err(AdminError::Conflict(format!("nothing can be replayed now: {why}")))
            }
            _ => Ok(shared.queue.waiting()),
        }
    }
}

fn no_call(op_id: OpId) -> AdminError {
    AdminError::NotFound(format!("no queued call or dead letter {op_id}"))
}
