//! Carries one attempt: which form of a call is sent, and what its answer proves.
//!
//! ```text
//!  read ─────────────────────────────────────────────▶ link (reads)
//!  write ── replayed: its times to live rewritten ──┬─▶ link (writes)
//!                                     bears a token └─▶ the script (redis/token.rs) ─▶ link (writes)
//! ```

use std::sync::atomic::Ordering;

use bytes::Bytes;
use fusebox_actors::connector::{Attempt, AttemptError, Attempted, Origin};
use fusebox_state::{ErrorClass, OpId, Verdict};

use super::{
    RedisConnector,
    outcome::{self, Carrier},
    replay, resp,
    token::{self, Ran, Wrapped},
};

/// How long a marker is relied upon: an hour less than it stands, for clocks that differ.
const MARKER_TRUST_MILLIS: u64 = (7 * 24 - 1) * 3600 * 1000;

impl RedisConnector {
    pub(super) async fn carry(&self, attempt: Attempt<'_>) -> Attempted {
        if !attempt.write {
            let ended = self.reads.call(attempt.body.clone(), attempt.timeout, false).await;
            return self.judged(attempt.body, ended);
        }
        let body = match attempt.origin {
            Origin::Replay => replay::rewrite(attempt.body, attempt.accepted_at, attempt.now),
            Origin::Live => attempt.body.clone(),
        };
        if let Some(token) = attempt.token {
            return self.carry_once(&body, token, attempt).await;
        }
        let ended = self.writes.call(body, attempt.timeout, false).await;
        self.judged(attempt.body, ended)
    }

    /// What an error says of `body`, whose own it may be or the server's.
    fn judged(&self, body: &Bytes, ended: Attempted) -> Attempted {
        let Err(AttemptError { reply: Some(reply), .. }) = &ended.result else { return ended };
        match self.carrier(body) {
            Carrier::Command => ended,
            carrier => outcome::by(carrier, reply.clone()),
        }
    }

    fn carrier(&self, body: &Bytes) -> Carrier {
        let args = resp::arguments(body).unwrap_or_default();
        self.shared.commands.find(&args).map_or(Carrier::Module, |spec| Carrier::of(&spec))
    }

    /// Carries a write that is recognised by its token.
    async fn carry_once(&self, body: &Bytes, token: OpId, attempt: Attempt<'_>) -> Attempted {
        if let Some(doubt) = attempt.doubt
            && attempt.now.get() > doubt.since.get().saturating_add(MARKER_TRUST_MILLIS)
        {
            let message =
                "an earlier attempt may have applied it, and its marker has expired by now";
            let error = AttemptError::own(ErrorClass::Ambiguous, "marker_expired", message);
            return Attempted::failed(Verdict::Neutral, error);
        }
        self.shared.tokens_used.store(true, Ordering::Relaxed);
        let args = resp::arguments(body).unwrap_or_default();
        let positions = self.shared.commands.find(&args).and_then(|spec| spec.keys(&args));
        let keys: Vec<&[u8]> = positions
            .unwrap_or_default()
            .iter()
            .filter_map(|position| args.get(*position).copied())
            .collect();
        let token = Some((token, attempt.digest));
        self.run(Wrapped { args: &args, keys: &keys, token, deadlines: &[] }, attempt).await
    }

    /// Runs `wrapped` within the script.
    async fn run(&self, wrapped: Wrapped<'_>, attempt: Attempt<'_>) -> Attempted {
        let resp3 = self.resp3();
        let Some(script) = wrapped.command(resp3) else {
            let message = format!(
                "a write that bears a token takes at most {} words, got {}",
                token::WORDS_MAX,
                wrapped.args.len()
            );
            let error = AttemptError::own(ErrorClass::Rejected, "too_many_words", message);
            return Attempted::failed(Verdict::Success, error);
        };
        let ended = self.writes.call(script, attempt.timeout, false).await;
        let frame = match ended.result {
            Ok(frame) => frame,
            Err(AttemptError { reply: Some(reply), .. }) => {
                return self.not_run(outcome::by(Carrier::Own, reply), attempt.origin);
            }
            Err(_) => return ended,
        };
        let ended = match token::read(&frame, attempt.digest, resp3) {
            Ran::Ended(ended) => ended,
            Ran::Failed(error) => outcome::by(self.carrier(attempt.body), error),
            Ran::Unmarked(error) => {
                let ended = outcome::by(Carrier::Own, error);
                return self.unmarked(ended, attempt.origin);
            }
        };
        self.shared.warn("eval", None);
        self.shared.warn("marker", None);
        ended
    }

    /// The server did not run the script.
    fn not_run(&self, ended: Attempted, origin: Origin) -> Attempted {
        let refused = |error: &AttemptError| token::refused(&error.code, &error.message);
        self.without_token(ended, origin, "eval", refused, |error| {
            format!("the server refuses EVAL ({error}): writes cannot bear tokens")
        })
    }

    /// The server refused the marker, so the command was not run.
    fn unmarked(&self, ended: Attempted, origin: Origin) -> Attempted {
        if let Err(error) = &ended.result
            && matches!(&*error.code, "READONLY" | "NOAUTH")
        {
            self.writes.retire();
        }
        let refused = |error: &AttemptError| outcome::is_forbidden(&error.code, &error.message);
        self.without_token(ended, origin, "marker", refused, |error| {
            format!(
                "the server refuses GET and SET of fusebox:* ({error}): writes cannot bear tokens"
            )
        })
    }

    /// Nothing was applied. If a token cannot be borne at all, a live caller is told so, and a queued call
    /// waits for the operator.
    fn without_token(
        &self,
        mut ended: Attempted,
        origin: Origin,
        about: &'static str,
        is_refused: impl Fn(&AttemptError) -> bool,
        warning: impl Fn(&str) -> String,
    ) -> Attempted {
        if let Err(error) = &mut ended.result
            && is_refused(error)
        {
            let warning = warning(&error.message);
            error.message = format!("the write needs a token, and {warning}");
            error.class = match origin {
                Origin::Live => ErrorClass::Rejected,
                Origin::Replay => ErrorClass::BlockedObject,
            };
            ended.verdict = Verdict::Success;
            self.shared.warn(about, Some(warning));
        }
        ended
    }
}
