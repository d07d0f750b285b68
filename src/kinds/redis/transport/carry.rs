//! Carries one attempt: which form of a call is sent, and what its answer proves.
//!
//! ```text
//!  read ──────────────────────────────────────────────────────────▶ link (reads)
//!  write, live ── its deadline is noted (live) ────────────────┬──▶ link (writes)
//!  write, replayed                                             │
//!    a residue ── protocol/residue ────────────────────────────┤
//!    sets a deadline: what remains of it, or the far time ─────┤
//!    inherits a deadline ────────────────────────┐             │
//!  a transaction ── multi ───────────────────────┤             │
//!  has a token ──────────────────────────────────┴─ the script (token)
//! ```

use std::sync::{Arc, OnceLock, atomic::Ordering};

use bytes::Bytes;
use fusebox_actors::connector::{
    Attempt, AttemptError, Attempted, ErrorCode, Origin, QueuedWrite, Residue,
};
use fusebox_state::{ErrorClass, LaneId, Lanes, UnixMillis, Verdict};
use futures_util::future::{join, join_all};

use super::{link::Link, shared::Shared};
use crate::kinds::redis::protocol::{
    commands::{Flags, Spec},
    deadlines::{self, Deadlines, Written},
    internal::{self, Ends, Form, Step},
    outcome::{self, Carrier},
    replay,
    residue::{self, Settled},
    resp::{self, Reply},
    rules::{self, Kind},
    token::{self, Ran, Wrapped},
    ttl,
};

/// How long a marker is relied upon: an hour less than it lives, for clocks that differ.
const MARKER_TRUST_MILLIS: u64 = (7 * 24 - 1) * 3600 * 1000;

/// The dialect of calls whose replies are to be in RESP2 ([`Attempt::dialect`]).
pub(crate) const RESP2: u8 = 2;

/// A write as it was read again for its attempt.
pub(super) struct Read<'a> {
    pub(super) spec: Arc<Spec>,
    pub(super) args: Vec<&'a [u8]>,
    places: Vec<usize>,
    /// It may write to keys that are not known.
    pub(super) touches_anything: bool,
}

impl<'a> Read<'a> {
    pub(super) fn written(&self) -> Written<'_, 'a> {
        Written { name: &self.spec.name, args: &self.args, places: &self.places }
    }

    pub(super) fn keys(&self) -> Vec<&'a [u8]> {
        self.places.iter().filter_map(|place| self.args.get(*place).copied()).collect()
    }
}

/// What a connector carries its calls over, and what it knows for that.
pub(crate) struct Links {
    pub(crate) shared: Arc<Shared>,
    pub(crate) reads: Arc<Link>,
    pub(crate) writes: Arc<Link>,
    /// For calls whose door wants replies in RESP2: reads and writes.
    pub(crate) second: Arc<Link>,
    /// The database's number as it is part of lanes.
    pub(crate) namespace: String,
    /// Made when it is first asked for, if it was not taken over.
    pub(crate) deadlines: OnceLock<Arc<Deadlines>>,
}

impl Links {
    /// What is known of deadlines.
    pub(crate) fn deadlines(&self) -> &Arc<Deadlines> {
        self.deadlines.get_or_init(|| Arc::new(Deadlines::new(&self.namespace)))
    }

    /// Shares what others know of deadlines, unless something has been asked here already.
    pub(crate) fn take_deadlines(&self, before: &Self) {
        self.deadlines.set(Arc::clone(before.deadlines())).ok();
    }

    /// The link for an attempt of a write.
    fn writes_of(&self, attempt: &Attempt<'_>) -> &Link {
        if attempt.dialect == RESP2 { &self.second } else { &self.writes }
    }

    /// Whether the server speaks RESP3 with us.
    pub(crate) fn resp3(&self) -> bool {
        self.shared.resp3.load(Ordering::Relaxed)
    }

    pub(crate) async fn carry(&self, attempt: Attempt<'_>) -> Attempted {
        if !attempt.write {
            let link = if attempt.dialect == RESP2 { &self.second } else { &self.reads };
            let ended = link.call(attempt.body.clone(), attempt.timeout, attempt.board()).await;
            return self.judged(attempt.body, ended);
        }
        if internal::is_multi(attempt.body) {
            return self.carry_multi(attempt).await;
        }
        match attempt.origin {
            Origin::Live => self.carry_live(attempt).await,
            Origin::Replay => self.carry_queued(attempt).await,
        }
    }

    /// Carries queued writes of different lanes. Those that are no more than a command each share a deadline and a wait.
    pub(crate) async fn carry_batch(&self, attempts: Vec<Attempt<'_>>) -> Vec<Attempted> {
        let Some(first) = attempts.first() else { return Vec::new() };
        let time = first.timeout;
        self.deadlines().tell(first.now);
        let plain: Vec<Option<Bytes>> =
            attempts.iter().map(|attempt| self.plain_command(attempt)).collect();
        let both = attempts.iter().zip(&plain);
        let board = |(attempt, command): (&Attempt<'_>, &Option<Bytes>)| {
            Some((command.clone()?, attempt.board()))
        };
        let together = both.clone().filter_map(board).collect();
        let others = both.filter(|(_, command)| command.is_none());
        let others = others.map(|(attempt, _)| self.carry(attempt.clone())).collect::<Vec<_>>();
        let (together, others) =
            join(self.writes.call_together(together, time), join_all(others)).await;
        let (mut together, mut others) = (together.into_iter(), others.into_iter());
        let end = |command: &Option<Bytes>| match command {
            Some(command) => together.next().map(|ended| self.judged(command, ended)),
            None => others.next(),
        };
        plain.iter().filter_map(end).collect()
    }

    /// What a queued write is sent as, if it is one command without a token, and sets and inherits no deadline.
    fn plain_command(&self, attempt: &Attempt<'_>) -> Option<Bytes> {
        let is_queued = attempt.write && matches!(attempt.origin, Origin::Replay);
        if !is_queued || attempt.token.is_some() || attempt.dialect == RESP2 {
            return None;
        }
        let Form::Call(Step { args, deadlines }) = Form::of(attempt.body)? else { return None };
        let spec = self.shared.commands.find(&args)?;
        let sets = ttl::carried(&spec.name, &args, attempt.accepted_at.get()).is_some();
        let words = replay::with_time_left(&args, attempt.accepted_at, attempt.now);
        let is_plain = deadlines.is_empty() && !sets && words.is_none();
        is_plain.then(|| attempt.body.clone())
    }

    pub(super) fn read<'a>(&self, args: Vec<&'a [u8]>) -> Option<Read<'a>> {
        let spec = self.shared.commands.find(&args)?;
        let places = spec.keys(&args);
        let touches_anything = match &*spec.name {
            "flushall" | "flushdb" | "swapdb" => true,
            // Without STORE it writes nothing.
            "sort" => args.iter().any(|arg| arg.eq_ignore_ascii_case(b"STORE")),
            _ if matches!(rules::kind(&spec), Kind::Script { reads: false }) => {
                places.is_none() || self.shared.settings.scripts_are_barriers
            }
            _ => spec.flags.has(Flags::WRITE) && places.is_none(),
        };
        Some(Read { spec, args, places: places.unwrap_or_default(), touches_anything })
    }

    async fn carry_queued(&self, attempt: Attempt<'_>) -> Attempted {
        self.deadlines().tell(attempt.now);
        match Form::of(attempt.body) {
            Some(Form::Ends(ends)) => self.settle_residue(&ends, attempt).await,
            Some(Form::Call(Step { args, deadlines })) if deadlines.is_empty() => {
                self.carry_timed(args, attempt).await
            }
            Some(Form::Call(Step { args, deadlines })) => {
                self.carry_inheriting(args, &deadlines, attempt).await
            }
            Some(Form::Multi(_)) | None => self.send(attempt.body, attempt.clone()).await,
        }
    }

    /// A queued write as its caller sent it, which may set a deadline.
    async fn carry_timed(&self, args: Vec<&[u8]>, attempt: Attempt<'_>) -> Attempted {
        let rewritten = || replay::rewrite(attempt.body, attempt.accepted_at, attempt.now);
        let Some(read) = self.read(args) else { return self.send(&rewritten(), attempt).await };
        let key = read.keys().first().copied();
        let at = ttl::carried(&read.spec.name, &read.args, attempt.accepted_at.get());
        let (Some(at), Some(key)) = (at, key) else {
            return self.send(&rewritten(), attempt.clone()).await;
        };
        let owner = self.deadlines().owner(attempt.body, 0);
        let _on_wire = self.deadlines().hold(&[read.written()], None);
        let begun = self.deadlines().replay(read.written(), owner, attempt.accepted_at);
        let with_far = self
            .someone_meets(key, at, &attempt)
            .then(|| replay::with_far_time(&read.args, residue::far(at)))
            .flatten();
        let Some(words) = with_far else {
            let ended = self.send(&rewritten(), attempt.clone()).await;
            if let Ok(reply) = &ended.result {
                self.deadlines().answered(read.written(), &begun, reply);
            }
            return ended;
        };
        match self.knows_far_times(&attempt).await {
            Ok(true) => {}
            Ok(false) => return self.send(&rewritten(), attempt.clone()).await,
            Err(failed) => return failed,
        }
        let mut ended = self.send(&resp::command(&words), attempt.clone()).await;
        if let Ok(reply) = &ended.result {
            self.deadlines().answered(read.written(), &begun, reply);
            let done = deadlines::work_done(read.written(), reply).filter(|_| !ended.reply_lost);
            if done != Some(false) {
                ended.residue = self.residue(&Ends { keys: vec![(key, at)], sure: done.is_some() });
            }
        }
        ended
    }

    /// Whether a write behind it is to meet `key` alive, which ends at `at`.
    pub(super) fn someone_meets(&self, key: &[u8], at: u64, attempt: &Attempt<'_>) -> bool {
        attempt.following.iter().any(|write| {
            write.due.is_none()
                && write.accepted_at.get() < at
                && residue::concerns(&self.shared.commands, &write.body, key)
        })
    }

    /// Whether a write behind it is to meet `key` alive, which ends at `at`, and one of them settles its time to live
    /// before another takes that along to another key.
    pub(super) fn someone_settles(&self, key: &[u8], at: u64, attempt: &Attempt<'_>) -> bool {
        let meet = |write: &&QueuedWrite| write.due.is_none() && write.accepted_at.get() < at;
        let behind = attempt.following.iter().filter(meet);
        residue::is_met(&self.shared.commands, behind.map(|write| &*write.body), key)
    }

    /// A queued write to keys that had deadlines when it was accepted, which the server may have met since.
    async fn carry_inheriting(
        &self,
        args: Vec<&[u8]>,
        inherited: &[(&[u8], u64)],
        attempt: Attempt<'_>,
    ) -> Attempted {
        let Some(read) = self.read(args) else { return self.send(attempt.body, attempt).await };
        if let Some(ended) = self.carry_past_its_end(&read, inherited, &attempt).await {
            return ended;
        }
        match self.knows_far_times(&attempt).await {
            Ok(true) => {}
            Ok(false) => return self.send(&resp::command(&read.args), attempt.clone()).await,
            Err(failed) => return failed,
        }
        let keys = read.keys();
        let far: Vec<(&[u8], u64)> =
            inherited.iter().map(|(key, at)| (*key, residue::far(*at))).collect();
        let token = attempt.token.map(|token| (token, attempt.digest));
        let wrapped = Wrapped { args: &read.args, keys: &keys, token, deadlines: &far };
        let mut ended = self.run(wrapped, attempt.clone()).await;
        if let Err(error) = &ended.result
            && token::is_script_refused(error)
            && attempt.token.is_none()
        {
            // Without a script it is sent as it is.
            ended = self.send(&resp::command(&read.args), attempt.clone()).await;
        }
        if let Ok(reply) = &ended.result {
            let done = deadlines::work_done(read.written(), reply).filter(|_| !ended.reply_lost);
            ended.residue = self.residue(&residue::given(read.written(), inherited, done));
        }
        ended
    }

    /// RENAME or COPY of a key that has ended since: what it moved has ended with it.
    async fn carry_past_its_end(
        &self,
        read: &Read<'_>,
        deadlines: &[(&[u8], u64)],
        attempt: &Attempt<'_>,
    ) -> Option<Attempted> {
        let reply: &'static [u8] = match &*read.spec.name {
            "rename" => b"+OK\r\n",
            "copy" if ttl::replaces(&read.args) => b":1\r\n",
            _ => return None,
        };
        let (source, target) = (*read.args.get(1)?, *read.args.get(2)?);
        let (_, at) = deadlines.iter().find(|(key, _)| *key == source)?;
        if attempt.now.get() < *at {
            return None;
        }
        let exists = resp::command(&[b"EXISTS", source]);
        let mut asked =
            self.writes_of(attempt).call(exists, attempt.timeout, attempt.board()).await;
        match &mut asked.result {
            Ok(found) if *found == b":0\r\n"[..] => {}
            Ok(_) => return None,
            Err(error) => {
                // Nothing but a question was sent.
                if error.class == ErrorClass::Unknown {
                    error.class = ErrorClass::NotExecuted;
                }
                error.doubt = None;
                return Some(asked);
            }
        }
        let removal = resp::command(&[&b"DEL"[..], source, target]);
        let mut ended = self.send(&removal, attempt.clone()).await;
        if ended.result.is_ok() {
            ended.result = Ok(Bytes::from_static(reply));
        }
        Some(ended)
    }

    /// What is left to do of keys that end: nothing if there are none.
    pub(crate) fn residue(&self, ends: &Ends<'_>) -> Option<Residue> {
        let lane = |(key, _): &(&[u8], u64)| LaneId::of(self.namespace.as_bytes(), key);
        Some(Residue {
            body: internal::ends(ends),
            lanes: Lanes::new(ends.keys.iter().map(lane)),
            due: UnixMillis::new(ends.keys.iter().map(|(_, at)| *at).min()?),
        })
    }

    /// Sends a residue: those of its keys that end first get what remains of their time, or end, if they still have the
    /// far one. The others are left.
    async fn settle_residue(&self, ends: &Ends<'_>, attempt: Attempt<'_>) -> Attempted {
        let first = ends.keys.iter().map(|(_, at)| *at).min().unwrap_or_default();
        let (due, later): (Vec<_>, Vec<_>) = ends.keys.iter().partition(|(_, at)| *at == first);
        let mut ended = self.settle_due(&due, Settled::Own, attempt).await;
        if ended.result.is_ok() {
            ended.residue = self.residue(&Ends { keys: later, sure: ends.sure });
        }
        ended
    }

    pub(super) async fn settle_due(
        &self,
        keys: &[(&[u8], u64)],
        settled: Settled,
        attempt: Attempt<'_>,
    ) -> Attempted {
        let now = attempt.now.get();
        let script = residue::script(keys, settled, now);
        let ended = self.writes_of(&attempt).call(script, attempt.timeout, attempt.board()).await;
        match &ended.result {
            Err(error) if token::is_script_refused(error) => {}
            Err(AttemptError { reply: Some(reply), .. }) => {
                return outcome::by(Carrier::Own, reply.clone());
            }
            _ => return ended,
        }
        for (key, at) in keys {
            let ask = resp::command(&[b"PEXPIRETIME", *key]);
            let asked = self.writes_of(&attempt).call(ask, attempt.timeout, attempt.board()).await;
            let time = match &asked.result {
                Ok(reply) => match Reply::of(reply) {
                    Some(Reply::Int(time)) => time,
                    _ => continue,
                },
                Err(_) => return asked,
            };
            if let Some(step) = residue::step((key, *at), time, settled, now) {
                let set =
                    self.writes_of(&attempt).call(step, attempt.timeout, attempt.board()).await;
                if set.result.is_err() {
                    return set;
                }
            }
        }
        Attempted::answered(Bytes::from_static(b"+OK\r\n"))
    }

    /// Whether the server knows `PEXPIRETIME`, by which a far time is recognised. An error says that it could not be
    /// asked.
    pub(super) async fn knows_far_times(&self, attempt: &Attempt<'_>) -> Result<bool, Attempted> {
        if self.shared.server.lock().is_none() {
            self.writes.ready(attempt.timeout).await?;
        }
        let server = self.shared.server.lock();
        let version = server.as_ref().and_then(|server| server.version.as_deref());
        let major = version.and_then(|version| version.split('.').next()?.parse::<u32>().ok());
        Ok(major.is_some_and(|major| major >= 7))
    }

    /// Sends a write in the form `body`, in the script if it has a token.
    pub(super) async fn send(&self, body: &Bytes, attempt: Attempt<'_>) -> Attempted {
        let Some(token) = attempt.token else {
            let ended =
                self.writes_of(&attempt).call(body.clone(), attempt.timeout, attempt.board()).await;
            return self.judged(body, ended);
        };
        let args = resp::arguments(body).unwrap_or_default();
        let read = self.read(args.clone());
        let keys = read.as_ref().map(Read::keys).unwrap_or_default();
        let token = Some((token, attempt.digest));
        self.run(Wrapped { args: &args, keys: &keys, token, deadlines: &[] }, attempt).await
    }

    /// How the attempt of `body` has ended that `reply` answered.
    pub(crate) fn ended(&self, body: &[u8], reply: Bytes) -> Attempted {
        let args = resp::arguments(body).unwrap_or_default();
        outcome::by(self.carrier(&args), reply)
    }

    /// What an error says of `body`, whose own it may be or the server's.
    fn judged(&self, body: &Bytes, ended: Attempted) -> Attempted {
        let Err(AttemptError { reply: Some(reply), .. }) = &ended.result else { return ended };
        let args = resp::arguments(body).unwrap_or_default();
        match self.carrier(&args) {
            Carrier::Command => ended,
            carrier => outcome::by(carrier, reply.clone()),
        }
    }

    fn carrier(&self, args: &[&[u8]]) -> Carrier {
        self.shared.commands.find(args).map_or(Carrier::Module, |spec| Carrier::of(&spec))
    }

    /// Runs `wrapped` within the script.
    async fn run(&self, wrapped: Wrapped<'_>, attempt: Attempt<'_>) -> Attempted {
        if wrapped.token.is_some()
            && let Some(expired) = self.marker_has_expired(&attempt)
        {
            return expired;
        }
        let resp3 = self.resp3() && attempt.dialect != RESP2;
        let Some(script) = wrapped.command(resp3) else {
            let message = format!(
                "a write with a token may have at most {} words, got {}",
                token::WORDS_MAX,
                wrapped.args.len()
            );
            let error = AttemptError::own(
                ErrorClass::Rejected,
                ErrorCode::OfKind("too_many_words"),
                message,
            );
            return Attempted::failed(Verdict::Success, error);
        };
        self.run_script(script, self.carrier(wrapped.args), resp3, attempt).await
    }

    /// Whether an attempt cannot rely on its marker: an earlier one may have left one that is gone by now.
    pub(super) fn marker_has_expired(&self, attempt: &Attempt<'_>) -> Option<Attempted> {
        self.shared.tokens_used.store(true, Ordering::Relaxed);
        let doubt = attempt.doubt?;
        if attempt.now.get() <= doubt.since.get().saturating_add(MARKER_TRUST_MILLIS) {
            return None;
        }
        let message = "an earlier attempt may have applied it, and its marker has expired by now";
        let code = ErrorCode::OfKind("marker_expired");
        let error = AttemptError::own(ErrorClass::Ambiguous, code, message);
        Some(Attempted::failed(Verdict::Neutral, error))
    }

    /// Runs a script that carries what `carrier` says.
    pub(super) async fn run_script(
        &self,
        script: Bytes,
        carrier: Carrier,
        resp3: bool,
        attempt: Attempt<'_>,
    ) -> Attempted {
        let ended = self.writes_of(&attempt).call(script, attempt.timeout, attempt.board()).await;
        let frame = match ended.result {
            Ok(frame) => frame,
            Err(AttemptError { reply: Some(reply), .. }) => {
                return self.not_run(outcome::by(Carrier::Own, reply), attempt.origin);
            }
            Err(_) => return ended,
        };
        let ended = match token::read(&frame, attempt.digest, resp3) {
            Ran::Ended(ended) => *ended,
            Ran::Failed(error) => outcome::by(carrier, error),
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
        self.without_token(ended, origin, "eval", token::is_script_refused, |error| {
            format!("the server refuses EVAL ({error}): writes cannot have tokens")
        })
    }

    /// The server refused the marker, so the command was not run.
    fn unmarked(&self, ended: Attempted, origin: Origin) -> Attempted {
        if let Err(error) = &ended.result
            && outcome::wants_another_connection(error)
        {
            self.writes.retire();
        }
        self.without_token(ended, origin, "marker", outcome::is_forbidden, |error| {
            format!(
                "the server refuses GET and SET of fusebox:* ({error}): writes cannot have tokens"
            )
        })
    }

    /// Nothing was applied. If a token is not possible at all, a live caller gets that answer, and a queued call
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
            let warning = error.message.within(warning);
            error.message =
                warning.within(|warning| format!("the write needs a token, and {warning}"));
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
