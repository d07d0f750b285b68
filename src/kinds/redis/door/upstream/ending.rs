//! How a connection ends, and what becomes of what was sent on it.

use std::{mem, sync::Arc, task::Context, time::Duration};

use fusebox_actors::connector::AttemptError;
use fusebox_state::Verdict;
use tokio::time::{Instant, sleep_until};

use super::{
    Inner, Lost, Sharing, State, Turn, Up,
    cause::{Cause, not_up},
    entry::Entry,
    ring::Unanswered,
};
use crate::kinds::redis::transport::handshake::Failed;

/// How much longer what was sent first waits for the connection than an attempt may take, so that the connect itself
/// says how it has ended.
const GRACE: Duration = Duration::from_millis(25);

impl Inner {
    /// The connection is not up, whatever the reason. What waits for it has waited for too long if the oldest has; all
    /// of it has, as what a client has sent later must not overtake that. Sets the alarm for then, and for `again` if
    /// that is earlier. Whether `again` has come.
    pub(super) fn waits(
        &mut self,
        context: &mut Context<'_>,
        again: Option<Instant>,
        turn: &mut Turn,
    ) -> bool {
        let limit = self.connector.links().shared.settings.timeout;
        let late = self.ring.due(limit + GRACE);
        let Some(at) = [late, again].into_iter().flatten().min() else { return false };
        if !self.rings(context, at) {
            return false;
        }
        let now = Instant::now();
        if late.is_some_and(|late| late <= now) {
            self.fail(not_up(limit), turn);
        }
        again.is_some_and(|again| again <= now)
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
        let cut_at = up.cut_at.filter(|_| !self.ring.is_empty());
        let due = match self.went_on() {
            // Others wait behind it, who wait no longer than for their own `timeout`.
            Some(at) => Some(at + limit / 2),
            None => self.ring.due(limit),
        };
        let at = [due, cut_at].into_iter().flatten().min()?;
        // What a client does not take is not the server's doing.
        if !self.rings(context, at) || self.give_up_client() {
            return None;
        }
        let is_cut = cut_at.is_some_and(|cut_at| cut_at <= Instant::now());
        Some(if is_cut { Cause::Shared } else { Cause::Overdue })
    }

    /// When a large reply last went on that is handed on piece by piece: a piece came, or its client took something
    /// that the rest had waited for. `None` if there is no such reply.
    pub(super) fn went_on(&self) -> Option<Instant> {
        let State::Up(up) = &self.state else { return None };
        let came = up.piecewise?;
        let took = self.ring.oldest().and_then(|oldest| oldest.client.took());
        Some(took.map_or(came, |took| took.max(came)))
    }

    /// The oldest request, if its reply is large and the rest of it waits until its client takes something.
    pub(super) fn held_up_by(&self) -> Option<&Entry> {
        let State::Up(Up { piecewise: Some(_), .. }) = &self.state else { return None };
        self.ring.oldest().filter(|oldest| oldest.client.is_behind(oldest.seq))
    }

    /// Disconnects the client for which the rest of a large reply waits. Without it, the rest is read and dropped, for
    /// which the server has its time. False if there is none.
    pub(super) fn give_up_client(&mut self) -> bool {
        let Some(slow) = self.held_up_by() else { return false };
        slow.client.reads_too_slowly();
        let (now, limit) = (Instant::now(), self.connector.links().shared.settings.timeout);
        if let State::Up(up) = &mut self.state {
            (up.piecewise, up.cut_at) = (Some(now), up.cut_at.map(|_| now + limit));
        }
        true
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
