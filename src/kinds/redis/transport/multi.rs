//! Carries a transaction: its commands within one script, as its token wants.
//!
//! Each command is judged as it would be alone ([`super::carry`]): its time to live is what remains of it, and it gets
//! the far one if a command behind it, in the transaction or in the line, is to meet its key alive. What is left to do
//! of all of them is one residue; a transaction that is refused after it was applied in part leaves none, and its far
//! times are settled at once.

use std::borrow::Cow;

use bytes::Bytes;
use fusebox_actors::connector::{Attempt, AttemptError, Attempted, ErrorCode, Origin};
use fusebox_state::{ErrorClass, Verdict};

use super::carry::{Links, Read};
use crate::kinds::redis::protocol::{
    deadlines::{self, Begun, Written},
    internal::{self, Ends, Form, Step},
    outcome::Carrier,
    replay,
    residue::{self, Settled},
    resp::Reply,
    token::{self, Running},
    ttl,
};

/// A command of the transaction, made ready.
struct Ready<'a> {
    read: Option<(Read<'a>, Begun)>,
    running: Running<'a>,
    /// Keys that have a far time by it.
    far: Vec<(&'a [u8], u64)>,
    /// It sets that itself, rather than being given it for one that the key had.
    sets: bool,
    /// The key to which an earlier attempt may have given a far time, and when that ends.
    perhaps: Option<(&'a [u8], u64)>,
}

impl Links {
    pub(super) async fn carry_multi(&self, attempt: Attempt<'_>) -> Attempted {
        self.deadlines().tell(attempt.now);
        let Some(Form::Multi(steps)) = Form::of(attempt.body) else {
            let code = ErrorCode::OfKind("malformed_command");
            let error = AttemptError::own(ErrorClass::Rejected, code, "it is not a transaction");
            return Attempted::failed(Verdict::Neutral, error);
        };
        if attempt.token.is_some()
            && let Some(expired) = self.marker_has_expired(&attempt)
        {
            return expired;
        }
        let follows = match attempt.origin {
            Origin::Live => false,
            Origin::Replay => match self.knows_far_times(&attempt).await {
                Ok(knows) => knows,
                Err(failed) => return failed,
            },
        };
        let original = internal::original(attempt.body);
        let parsed: Vec<Option<Read<'_>>> =
            steps.iter().map(|step| self.read(step.args.clone())).collect();
        let _on_wire = {
            let writes: Vec<Written<'_, '_>> = parsed.iter().flatten().map(Read::written).collect();
            self.deadlines().hold(&writes, None)
        };
        let ready: Vec<Ready<'_>> = steps
            .iter()
            .zip(parsed)
            .enumerate()
            .map(|(place, (step, read))| {
                let behind = steps.get(place + 1..).unwrap_or_default();
                let owner = self.deadlines().owner(&original, place);
                self.make_ready((step, read), behind, (follows, owner), &attempt)
            })
            .collect();
        let keys = ready.iter().filter_map(|it| it.read.as_ref()).flat_map(|(read, _)| read.keys());
        let keys: Vec<&[u8]> = keys.collect();
        let (ran, running): (Vec<_>, Vec<_>) = ready
            .into_iter()
            .map(|Ready { read, running, far, sets, perhaps }| {
                ((read, far, sets, perhaps), running)
            })
            .unzip();
        let was_sent_before = attempt.doubt.is_some();
        let token = attempt.token.map(|token| (token, attempt.digest));
        let script = token::multi(&running, &keys, token);
        let mut ended = self.run_script(script, Carrier::Command, false, attempt.clone()).await;
        let reply = match &ended.result {
            Ok(reply) => reply,
            Err(error) if error.code == ErrorCode::OfKind(token::APPLIED_IN_PART) => {
                let far = ran.iter().flat_map(|(_, far, _, perhaps)| {
                    far.iter().copied().chain(perhaps.filter(|_| was_sent_before))
                });
                return self.applied_in_part(ended, &far.collect::<Vec<_>>(), attempt).await;
            }
            Err(_) => return ended,
        };
        let replies = Reply::of(reply).filter(|_| !ended.reply_lost).and_then(|it| it.items());
        let mut replies = replies.into_iter().flatten();
        let mut ends = Ends { keys: Vec::new(), sure: true };
        for ((read, far, sets, perhaps), step) in ran.iter().zip(&steps) {
            ends = residue::after_step(&self.shared.commands, ends, step);
            let reply = replies.next();
            let done = read.as_ref().and_then(|(read, begun)| {
                let reply = reply?;
                self.deadlines().answered(read.written(), begun, reply);
                deadlines::work_done(read.written(), reply)
            });
            if was_sent_before && let Some(end) = perhaps {
                ends.sure = false;
                ends.keys.retain(|other| other != end);
                ends.keys.push(*end);
                continue;
            }
            if *sets && done == Some(false) {
                continue;
            }
            ends.sure &= far.is_empty() || !sets || done.is_some();
            match read {
                Some((read, _)) => {
                    let given = residue::given(read.written(), far, done);
                    ends.sure &= given.sure;
                    ends.keys.extend(given.keys);
                }
                None => ends.keys.extend(far),
            }
        }
        ended.residue = self.residue(&ends);
        ended
    }

    /// The transaction is refused, after commands of it have given these keys a far time. It leaves no residue, so they
    /// get their own time at once; but those whose time a write behind it settles, for which it must meet them alive,
    /// get a week, lest they stay for ever if that write is refused too.
    async fn applied_in_part(
        &self,
        ended: Attempted,
        far: &[(&[u8], u64)],
        attempt: Attempt<'_>,
    ) -> Attempted {
        let (met, own): (Vec<_>, Vec<_>) =
            far.iter().copied().partition(|(key, at)| self.someone_settles(key, *at, &attempt));
        for (keys, settled) in [(own, Settled::Own), (met, Settled::Week)] {
            if keys.is_empty() {
                continue;
            }
            let mut settling = self.settle_due(&keys, settled, attempt.clone()).await;
            if let Err(error) = &mut settling.result {
                // It is sent again, and recognised.
                (error.class, error.doubt) = (ErrorClass::Unknown, Some(Bytes::new()));
                return settling;
            }
        }
        ended
    }

    /// `step`, as it was read, as it is to be run now, before those `behind` it; `follows` if far times may be used.
    fn make_ready<'a>(
        &self,
        (step, read): (&Step<'a>, Option<Read<'a>>),
        behind: &[Step<'a>],
        (follows, owner): (bool, u64),
        attempt: &Attempt<'_>,
    ) -> Ready<'a> {
        let accepted = attempt.accepted_at;
        let as_it_is = || step.args.iter().map(|arg| Cow::Borrowed(*arg)).collect();
        let Some(read) = read else {
            let running = Running { words: as_it_is(), deadlines: Vec::new() };
            return Ready { read: None, running, far: Vec::new(), sets: false, perhaps: None };
        };
        let begun = match attempt.origin {
            Origin::Live => self.deadlines().begin(read.written(), accepted),
            Origin::Replay => self.deadlines().replay(read.written(), owner, accepted),
        };
        let carried = ttl::carried(&read.spec.name, &read.args, accepted.get());
        let perhaps = carried.zip(read.keys().first().copied()).filter(|_| follows);
        let sets = perhaps.filter(|(at, key)| {
            let meets = |it: &Step<'_>| residue::touches(&self.shared.commands, it, key);
            behind.iter().any(meets) || self.someone_meets(key, *at, attempt)
        });
        let with_far = sets.and_then(|(at, key)| {
            Some((replay::with_far_time(&step.args, residue::far(at))?, (key, at)))
        });
        let inherited = if follows { step.deadlines.clone() } else { Vec::new() };
        let deadlines = inherited.iter().map(|(key, at)| (*key, residue::far(*at))).collect();
        let (words, far, sets) = if let Some((words, end)) = with_far {
            (words, vec![end], true)
        } else {
            let left = replay::with_time_left(&step.args, accepted, attempt.now);
            (left.unwrap_or_else(as_it_is), inherited, false)
        };
        let (read, running) = (Some((read, begun)), Running { words, deadlines });
        let perhaps = perhaps.map(|(at, key)| (key, at));
        Ready { read, running, far, sets, perhaps }
    }
}
