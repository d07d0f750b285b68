//! How a connection ends, and what becomes of what was sent on it.

use std::{mem, sync::Arc, task::Context, time::Duration};

use fusebox_actors::connector::AttemptError;
use fusebox_state::Verdict;
use tokio::time::{Instant, sleep_until};

use super::{
    Inner, Lost, Sharing, State, Turn,
    cause::{Cause, not_up},
    ring::Unanswered,
};
use crate::kinds::redis::transport::handshake::Failed;

/// How much longer what was sent first waits for the connection than an attempt may take, so that the connect itself
/// says how it has ended.
const GRACE: Duration = Duration::from_millis(25);

impl Inner {
    /// The connection is not up yet. What waits for it has waited for too long if the oldest has; all of it has, as what
    /// a client has sent later must not overtake that.
    pub(super) fn waits(&mut self, context: &mut Context<'_>, turn: &mut Turn) {
        let limit = self.connector.links().shared.settings.timeout;
        if let Some(at) = self.ring.due(limit + GRACE)
            && self.rings(context, at)
        {
            self.fail(not_up(limit), turn);
        }
    }

    /// Sets the alarm, and whether it rings: it is as late as that.
    fn rings(&mut self, context: &mut Context<'_>, at: Instant) -> bool {
        let due = self.due.get_or_insert_with(|| Box::pin(sleep_until(at)));
        if due.deadline() > at {
            due.as_mut().reset(at);
        }
        // The alarm is set for an older one, usually: to set it again for each would cost more than to be woken once.
        while due.as_mut().poll(context).is_ready() {
            if at <= Instant::now() {
                return true;
            }
            due.as_mut().reset(at);
        }
        false
    }

    /// Whether the oldest reply is overdue; sets the alarm for when it would be.
    pub(super) fn overdue(&mut self, context: &mut Context<'_>) -> Option<Cause> {
        let limit = self.connector.links().shared.settings.timeout;
        let State::Up(up) = &self.state else { return None };
        let (piecewise, cut_at) = (up.piecewise, up.cut_at);
        let due = match piecewise {
            // Others wait behind it, who wait no longer than for their own `timeout`.
            Some(at) => Some(at + limit / 2),
            None => self.ring.due(limit),
        };
        let cut_at = cut_at.filter(|_| !self.ring.is_empty());
        let at = [due, cut_at].into_iter().flatten().min()?;
        if !self.rings(context, at) {
            return None;
        }
        let now = Instant::now();
        let slow =
            self.ring.oldest().filter(|it| piecewise.is_some() && it.client.is_behind(it.seq));
        let Some(slow) = slow else {
            let is_cut = cut_at.is_some_and(|cut_at| cut_at <= now);
            return Some(if is_cut { Cause::Shared } else { Cause::Overdue });
        };
        // What its client does not take is not the server's doing. Without it, the rest is read and dropped.
        slow.client.reads_too_slowly();
        if let State::Up(up) = &mut self.state {
            (up.piecewise, up.cut_at) = (Some(now), up.cut_at.map(|_| now + limit));
        }
        None
    }

    /// The connection has ended.
    pub(super) fn end(&mut self, cause: Cause, sharing: Sharing, turn: &mut Turn) {
        let down = State::Down { until: Instant::now(), failed: None };
        let State::Up(up) = mem::replace(&mut self.state, down) else { return };
        let shared = Arc::clone(&self.connector.links().shared);
        tracing::debug!(
            backend = shared.settings.name,
            name = up.living.name,
            ?cause,
            "connection ended"
        );
        // The socket is closed, and from here on the fence may kill what is left of it.
        drop(up);
        if self.ring.is_in_doubt() {
            shared.lost();
        }
        turn.ended = sharing == Sharing::Pinned;
        self.fail_with(
            |sent, first, overdue| cause.error(sent, first, overdue, shared.settings.timeout),
            turn,
        );
    }

    /// Nothing that waits was sent.
    pub(super) fn fail(&mut self, failed: Failed, turn: &mut Turn) {
        self.fail_with(
            |_, first, _| {
                let verdict = if first { failed.verdict } else { Verdict::Neutral };
                (verdict, failed.error.clone())
            },
            turn,
        );
    }

    fn fail_with(
        &mut self,
        error: impl Fn(bool, bool, bool) -> (Verdict, AttemptError),
        turn: &mut Turn,
    ) {
        let limit = self.connector.links().shared.settings.timeout;
        let now = Instant::now();
        let mut first = true;
        for Unanswered { entry, body, sent, begun } in self.ring.give_back() {
            let (verdict, error) = error(sent, first, begun + limit <= now);
            turn.lost.push(Lost { entry, body, verdict, error });
            first = false;
        }
        self.due = None;
    }
}
