//! Reads: overlay, live, cache, miss.

use std::{sync::atomic::Ordering, time::Duration};

use bytes::Bytes;
use fusebox_state::{UnixMillis, cache::Hit};

use super::{
    Context, NoAnswer,
    attempts::{Answered, AttemptSpec, Live},
    copied::{AnswerCopy, Copied, Keeps},
    error,
    filed::filed,
    fills::{Fills, Keeper, leave_to_fill},
};
use crate::{
    backend_shared::BackendShared,
    call::{CallError, CallErrorKind, Priority, Reply, Source},
    connector::{Read, SharedConnector, Slot, Tail},
    queue::Overlaid,
    trace::StepKind,
};

/// What the queue says of a keyed read.
enum Fence {
    /// No lane of it is occupied, or what is occupied is determined: the parts, slot by slot.
    Passed(Vec<Option<Bytes>>),
    /// The parts of which this is so; the others, of which some are occupied, are as they were before what waits.
    AsBefore(Vec<Option<Bytes>>),
    /// An occupied lane's value is not determined by what waits in it.
    Undetermined,
}

/// What queued writes are laid over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Base {
    /// Nothing is known of what was there before them.
    Nothing,
    /// What is cached, if they are not known without it.
    Cached,
}

/// How often what is cached is looked at again if it changes meanwhile.
const LOOKS: u32 = 3;

/// How a keyed read has passed the fence.
struct Fenced {
    /// The parts that the queue determines, slot by slot; none if nothing waits.
    parts: Vec<Option<Bytes>>,
    /// Writes wait that the backend must have before it can be asked: what was cached before them answers.
    cache_alone: bool,
}

impl BackendShared {
    /// Leave to fill the cache with what `read` will answer: for a ticket whose read has several slots. To be taken
    /// before it is sent.
    pub(crate) fn begin_fills(&self, read: &Read) -> Fills {
        let connector = self.connector.load();
        Fills::begin(self.cache.load_full(), read, &***connector, self.clock().now())
    }

    /// A copy for the cache of what `read`, which is `body`, will answer. To be taken before it is sent.
    pub(crate) fn copying(&self, read: &Read, body: &Bytes) -> AnswerCopy {
        let connector = SharedConnector::clone(&self.connector.load());
        let fills = self.begin_fills(read);
        let (read, body, clock) = (read.clone(), body.clone(), self.clock());
        AnswerCopy::new(Keeps { fills, read, body, keeper: Keeper { connector, clock } })
    }

    /// Fills the cache with what a read has answered.
    pub(crate) fn end_fills(&self, fills: &Fills, read: &Read, body: &Bytes, reply: &Bytes) {
        let connector = self.connector.load();
        if let Some(parts) = connector.split(body, &read.slots, reply) {
            fills.end(read, &parts, &***connector, self.clock().now());
        }
    }

    pub(super) async fn read(
        &self,
        context: &mut Context,
        read: &Read,
    ) -> Result<Reply, CallError> {
        let resumes = context.failed.is_some();
        // Also one that failed once: an earlier write may have been queued since.
        let Fenced { parts: overlaid, cache_alone } =
            if read.keyed && self.queue.is_occupied(&context.plan.lanes) {
                let began = self.clock().read();
                let passed = Box::pin(self.pass_fence(context, read)).await;
                context.read_at = self.clock().read();
                context.recorder.step(began, context.read_at, StepKind::Fence);
                passed?
            } else {
                Fenced { parts: Vec::new(), cache_alone: false }
            };
        if let Some(reply) = self.queued(context, &overlaid) {
            return Ok(reply);
        }
        let why = if cache_alone {
            let detail =
                "it is not asked before the queued writes to this lane are applied".to_owned();
            NoAnswer::Rejected { code: "lane_busy", detail }
        } else if !resumes && self.is_shed(context) {
            Self::shed()
        } else {
            let fills = Fills::begin(
                self.cache.load_full(),
                read,
                &*context.connector,
                context.read_at.moment(),
            );
            match self.attempts_or_cache(context, read).await {
                Live::Answered(Answered { reply, rest: None, .. }) => {
                    return Ok(self.live(context, read, &fills, overlaid, reply));
                }
                Live::Answered(Answered { reply, rest: Some(rest), .. }) => {
                    let rest = self.copied(context, read, fills, (&reply, rest));
                    let reply = self.reply(context, Source::Live, Some(reply));
                    return Ok(Reply { rest: Some(rest), ..reply });
                }
                Live::Refused(refusal) => return Err(Self::rejected(context, refusal, None)),
                Live::None(why) => why,
            }
        };
        // What was queued while it was on its way is newer than what is cached.
        let looks_again = read.keyed && !cache_alone;
        let overlaid = if looks_again && self.queue.is_occupied(&context.plan.lanes) {
            match self.overlay(context, read, Base::Cached).await {
                Fence::Passed(parts) => parts,
                Fence::AsBefore(parts) if self.is_cached_beside(context, read, &parts) => parts,
                Fence::AsBefore(_) | Fence::Undetermined => {
                    return Err(
                        self.lane_busy(context, "and were queued after this read had been sent")
                    );
                }
            }
        } else {
            overlaid
        };
        if let Some(reply) = self.queued(context, &overlaid) {
            return Ok(reply);
        }
        let began = self.clock().read();
        let max_stale = context.call.options.max_stale;
        let cache = self.cache.load();
        let look_up = |slot: &Slot| cache.get(slot.lane, &slot.key, max_stale, began.moment());
        let hits: Vec<Option<Hit>> = read.slots.iter().map(look_up).collect();
        let (hits, rest) = filed(hits, context.left(self.clock().now())).await;
        let hit = !hits.is_empty() && hits.iter().all(Option::is_some);
        let looked = self.clock().read();
        context.recorder.step(began, looked, StepKind::CacheLookup { hit });
        let mut result = self.fall_back(context, read, overlaid, hits, &why);
        if let (Ok(reply), Some(rest)) = (&mut result, rest) {
            reply.rest = Some(Box::new(rest));
        }
        let source = result.as_ref().ok().map(|reply| reply.source);
        context.recorder.step(began, looked, StepKind::Fallback(source));
        result
    }

    /// The rest of an answer, from which the cache is filled if the answer is a slot's without a change.
    fn copied(
        &self,
        context: &Context,
        read: &Read,
        fills: Fills,
        (beginning, rest): (&Bytes, Box<dyn Tail>),
    ) -> Box<dyn Tail> {
        if read.slots.len() != 1 || context.call.options.dialect != 0 {
            return rest;
        }
        let (body, connector) = (context.plan.body.clone(), context.connector.clone());
        let keeper = Keeper { connector, clock: self.clock() };
        let keeps = Keeps { fills, read: read.clone(), body, keeper };
        Box::new(Copied::new(beginning, rest, keeps))
    }

    /// The reply of a read all of whose parts the queue determines.
    fn queued(&self, context: &Context, overlaid: &[Option<Bytes>]) -> Option<Reply> {
        let parts: Vec<Bytes> = overlaid.iter().cloned().collect::<Option<_>>()?;
        (!parts.is_empty()).then(|| {
            let value = context.connector.join(&context.plan.body, parts);
            let mut reply = self.reply(context, Source::Queued, Some(value));
            reply.age = Duration::from_millis(context.base_age.load(Ordering::Relaxed));
            if !reply.age.is_zero() {
                let age = reply.age.as_secs();
                reply.warnings.push(format!(
                    "the part of the value that no queued write sets is {age} s old"
                ));
            }
            reply
        })
    }

    /// The attempts of a read. If it is cached, the cache answers instead of a backend that does not, and the attempt
    /// that is on its way is given up: a read by key does not wait for one that is suspect for longer than
    /// `cache.answer_after`; any other, which may take its time, waits until the backend is no longer asked.
    async fn attempts_or_cache(&self, context: &mut Context, read: &Read) -> Live {
        let max_stale = context.call.options.max_stale;
        let is_cached = || {
            let (cache, now) = (self.cache.load(), self.clock().now());
            let held = |slot: &Slot| cache.holds(slot.lane, &slot.key, max_stale, now);
            !read.slots.is_empty() && read.slots.iter().all(held)
        };
        let wait = || self.circuit.settings.load().answer_after;
        // First polled once an attempt is on its way: what is answered at once looks nothing up.
        let suspect = async {
            if !is_cached() {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(wait()).await;
            if read.keyed {
                self.circuit.suspect().await;
            } else {
                self.circuit.not_asked().await;
            }
            if !is_cached() {
                std::future::pending::<()>().await;
            }
        };
        let given_up = tokio::select! {
            biased;
            live = self.attempts(context, AttemptSpec::READ) => Ok(live),
            () = suspect => Err(()),
        };
        given_up.unwrap_or_else(|()| {
            let name = &self.circuit.name;
            let (code, detail) = if read.keyed {
                (
                    "suspect",
                    format!("{name} did not answer within {:?}, and did not answer a ping", wait()),
                )
            } else {
                (
                    "breaker_open",
                    format!(
                        "{name} has not answered, and its breaker is open now or it is offline"
                    ),
                )
            };
            Live::None(NoAnswer::Rejected { code, detail })
        })
    }

    /// Makes sure that the read sees its own host's queued writes: their values if these are
    /// determined, or else waits for the lanes while they move.
    async fn pass_fence(&self, context: &Context, read: &Read) -> Result<Fenced, CallError> {
        let lanes = &context.plan.lanes;
        let mut waiting = None;
        loop {
            let as_before = match self.overlay(context, read, Base::Nothing).await {
                Fence::Passed(parts) => return Ok(Fenced { parts, cache_alone: false }),
                Fence::AsBefore(parts) => Some(parts),
                Fence::Undetermined => None,
            };
            if let Some(why) = self.queue.shut() {
                return Err(self.store_closed(context, &why));
            }
            let left = context.left(self.clock().now());
            let held_up = if left.is_zero() {
                Some("and were not applied before the deadline")
            } else if !self.lanes_move(lanes) {
                Some("and cannot be replayed now")
            } else if waiting.is_none() {
                waiting = self.queue.may_wait(context.call.uid);
                waiting.is_none().then_some("and too many calls already wait for them")
            } else {
                None
            };
            if let Some(why) = held_up {
                let parts = match as_before {
                    Some(parts) => Some(parts),
                    None => match self.overlay(context, read, Base::Cached).await {
                        Fence::Passed(parts) => return Ok(Fenced { parts, cache_alone: false }),
                        Fence::AsBefore(parts) => Some(parts),
                        Fence::Undetermined => None,
                    },
                };
                let parts = parts.filter(|parts| self.is_cached_beside(context, read, parts));
                let fenced = parts.map(|parts| Fenced { parts, cache_alone: true });
                return fenced.ok_or_else(|| self.lane_busy(context, why));
            }
            if self.wait_a_while(lanes, left).await {
                return Ok(Fenced { parts: Vec::new(), cache_alone: false });
            }
        }
    }

    /// Whether each slot is cached that `parts` lacks.
    fn is_cached_beside(&self, context: &Context, read: &Read, parts: &[Option<Bytes>]) -> bool {
        let (cache, now) = (self.cache.load(), self.clock().now());
        let max_stale = context.call.options.max_stale;
        let held = |slot: &Slot| cache.holds(slot.lane, &slot.key, max_stale, now);
        read.slots.iter().zip(parts).all(|(slot, part)| part.is_some() || held(slot))
    }

    fn store_closed(&self, context: &Context, why: &str) -> CallError {
        let detail = format!(
            "the queue's store is not open ({why}), so it is not known which writes to {} wait in it",
            context.plan.label
        );
        CallError { retry_after: Some(self.retry_after()), ..error("store_closed", detail) }
    }

    /// Writes wait in its lanes, and how long for.
    fn lane_busy(&self, context: &Context, why: &str) -> CallError {
        let detail = format!(
            "this read depends on writes to {} that wait in the queue {why}",
            context.plan.label
        );
        CallError { retry_after: Some(self.retry_after()), ..error("lane_busy", detail) }
    }

    async fn overlay(&self, context: &Context, read: &Read, base: Base) -> Fence {
        if read.slots.is_empty() || self.queue.store().is_err() {
            return if self.queue.is_occupied(&context.plan.lanes) {
                Fence::Undetermined
            } else {
                Fence::Passed(Vec::new())
            };
        }
        let now = self.clock().steady_unix();
        let left = context.left(self.clock().now());
        let parts = async {
            let (mut parts, mut as_before) = (Vec::with_capacity(read.slots.len()), false);
            for slot in &read.slots {
                match self.queue.overlaid(&context.connector, slot, now).await {
                    Overlaid::Nothing => parts.push(None),
                    Overlaid::Value(part) => parts.push(Some(part)),
                    Overlaid::AsBefore => {
                        as_before = true;
                        parts.push(None);
                    }
                    Overlaid::Undetermined => match base {
                        Base::Nothing => return None,
                        Base::Cached => parts.push(Some(self.over_cached(context, slot).await?)),
                    },
                }
            }
            Some(if as_before { Fence::AsBefore(parts) } else { Fence::Passed(parts) })
        };
        let fence = tokio::time::timeout(left, parts).await.ok().flatten();
        fence.unwrap_or(Fence::Undetermined)
    }

    /// What the queued writes of its lane make of what is cached of `slot`: that is what the backend holds as long as
    /// none of them was sent.
    async fn over_cached(&self, context: &Context, slot: &Slot) -> Option<Bytes> {
        let connector = &context.connector;
        for _ in 0..LOOKS {
            // Of each look its own: a write takes what it replaces out of the cache that is in use then.
            let cache = self.cache.load_full();
            let now = self.clock().now();
            let mark = leave_to_fill(&cache, &**connector, slot.lane, now)?;
            let max_stale = context.call.options.max_stale;
            let hit = cache.get_if_held(slot.lane, &slot.key, max_stale, now)?;
            let before = connector.overlay_over(slot, &hit.value)?;
            let unix = self.clock().steady_unix();
            let age = u64::try_from(hit.age.as_millis()).unwrap_or(u64::MAX);
            let then = UnixMillis::new(unix.get().saturating_sub(age));
            let part = self.queue.over(slot, (before, then), unix).await;
            if cache.is_unchanged(mark) {
                context.base_age.fetch_max(age, Ordering::Relaxed);
                return part;
            }
        }
        None
    }

    fn live(
        &self,
        context: &Context,
        read: &Read,
        fills: &Fills,
        overlaid: Vec<Option<Bytes>>,
        reply: Bytes,
    ) -> Reply {
        let body = &context.plan.body;
        let mut value = reply;
        // What the cache holds is of the usual form.
        let is_usual = context.call.options.dialect == 0;
        if !read.slots.is_empty()
            && let Some(parts) = context.connector.split(body, &read.slots, &value)
        {
            if is_usual {
                fills.end(read, &parts, &*context.connector, self.clock().now());
            }
            if overlaid.iter().any(Option::is_some) {
                let merged = overlaid.into_iter().zip(parts);
                let merged = merged.map(|(queued, live)| queued.unwrap_or(live)).collect();
                value = context.connector.join(body, merged);
            }
        }
        self.reply(context, Source::Live, Some(value))
    }

    /// The backend could not answer: cache, stale, miss, error, in this order.
    fn fall_back(
        &self,
        context: &Context,
        read: &Read,
        overlaid: Vec<Option<Bytes>>,
        hits: Vec<Option<Hit<Bytes>>>,
        why: &NoAnswer,
    ) -> Result<Reply, CallError> {
        let queued = |index: usize| overlaid.get(index).cloned().flatten();
        let all = !hits.is_empty()
            && hits.iter().enumerate().all(|(index, hit)| hit.is_some() || queued(index).is_some());
        let counter =
            if all { &self.circuit.metrics.cache_hit } else { &self.circuit.metrics.cache_miss };
        counter.inc();
        let misses = if all {
            vec![None; hits.len()]
        } else if let Some(empty) = Self::empty(context) {
            let mut reply = self.reply(context, Source::Empty, Some(empty));
            reply.warnings.push(format!(
                "{} did not answer: {}",
                self.circuit.name,
                why.detail().whole()
            ));
            return Ok(reply);
        } else {
            let miss = read.miss.as_ref().ok_or_else(|| self.no_fallback(context, why))?;
            vec![Some(miss.clone()); hits.len()]
        };
        let age = hits.iter().flatten().map(|hit| hit.age).max().unwrap_or_default();
        let fresh = hits.iter().flatten().all(|hit| hit.fresh);
        let source = match (all, fresh) {
            (false, _) => Source::Bypass,
            (true, true) => Source::Cache,
            (true, false) => Source::Stale,
        };
        let parts: Vec<Bytes> = hits
            .into_iter()
            .zip(misses)
            .enumerate()
            .filter_map(|(index, (hit, miss))| {
                queued(index).or_else(|| hit.map(|hit| hit.value)).or(miss)
            })
            .collect();
        let value = if parts.is_empty() {
            read.miss.clone()
        } else {
            Some(context.connector.join(&context.plan.body, parts))
        };
        let mut reply = self.reply(context, source, value);
        reply.age = age;
        reply.warnings.push(format!(
            "{} did not answer: {}",
            self.circuit.name,
            why.detail().whole()
        ));
        if source == Source::Stale {
            reply.warnings.push(format!("the value is {} s old", age.as_secs()));
        }
        Ok(reply)
    }

    /// The empty structure for a read whose caller says that it is not critical.
    fn empty(context: &Context) -> Option<Bytes> {
        (context.call.options.priority == Priority::Low)
            .then(|| context.connector.empty(&context.plan.body))
            .flatten()
    }

    fn no_fallback(&self, context: &Context, why: &NoAnswer) -> CallError {
        match why {
            NoAnswer::Deadline => CallError {
                kind: CallErrorKind::TimedOut,
                attempts: context.attempts,
                ..error("deadline", "the deadline passed, and the cache has no answer".to_owned())
            },
            why => self.unavailable(context, why, "the cache has no answer"),
        }
    }
}
