//! Whether a call may be sent now: the lanes that it touches, the fence, the breaker, the bulkhead.

use std::time::Duration;

use fusebox_actors::{
    Admission, Barred, OtherWay, PlainAccess, PlainPlan, Ticket,
    connector::Connector as _,
    trace::{AtDoor, CallTrace},
};
use fusebox_state::Lanes;
use hyper::HeaderMap;
use tokio::time::{Instant, sleep_until};

use super::{
    class::{Class, Method},
    core::Core,
    lanes::Touched,
    pool::Upstream,
    telling::Told,
    who::Principal,
};
use crate::{
    ingress::{
        callers::Right,
        peer::{NOBODY, Who},
    },
    kinds::firestore::transport::fence,
    net::trace_headers,
};

/// How long a call waits for a place in the bulkhead, and how often it looks.
const PLACE_PATIENCE: Duration = Duration::from_secs(1);
const LOOK_FOR_PLACE: Duration = Duration::from_millis(20);

/// What a call holds that may be sent.
pub(super) struct Entered {
    pub(super) ticket: Ticket,
    /// Of what may write: that somebody waits for it, and that it is on its way.
    pub(super) fence: Option<(fence::Wait, fence::Pass)>,
}

/// Whose call it is.
#[derive(Clone, Debug)]
pub(super) struct CalledBy {
    /// Who calls.
    pub(super) uid: u32,
    /// The trace of the call, as its client sent it.
    pub(super) trace: CallTrace,
}

/// A call that something else than the server may answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Otherwise {
    /// Whether it leaves the same state however often it is applied.
    pub(super) absolute: bool,
}

/// Why a call may not be sent now.
pub(super) enum Kept {
    /// The server may still carry out an earlier write to the same documents.
    Fence,
    /// The backend has another address or database since the request was read.
    Moved,
    Way(OtherWay),
}

impl Core {
    /// Whose call it is that comes with these headers.
    pub(super) fn caller(&self, who: Option<Who>, headers: &HeaderMap) -> CalledBy {
        let at = AtDoor { address: self.settings.address, ahead: 0 };
        CalledBy { uid: who.map_or(NOBODY, |who| who.uid), trace: trace_headers::of(headers, at) }
    }

    /// Whether `by` may do that at all.
    pub(super) fn allows(by: &Principal, method: Method) -> Result<(), Told> {
        if by.right == Right::Read && method.class == Class::Write {
            return Err(Told::denied("this caller may only read"));
        }
        Ok(())
    }

    /// Waits until the call may be sent, and lets it in.
    ///
    /// # Errors
    /// It may not be sent before `until`.
    pub(super) async fn enter(
        &self,
        upstream: &Upstream,
        method: Method,
        touched: &Touched,
        until: Instant,
        caller: &CalledBy,
    ) -> Result<Entered, Told> {
        let entered = self.admitted(upstream, method, touched, until, (caller, None)).await;
        entered.map_err(|why| self.kept(upstream, method, touched, (caller, &why)))
    }

    /// The same of a call that something else may answer: then it waits only for a place.
    ///
    /// # Errors
    /// Why it may not be sent, which was not counted yet.
    pub(super) async fn admitted(
        &self,
        upstream: &Upstream,
        method: Method,
        touched: &Touched,
        until: Instant,
        (caller, otherwise): (&CalledBy, Option<Otherwise>),
    ) -> Result<Entered, Kept> {
        let is_write = method.class == Class::Write;
        let plan = self.plan_of(method, touched, caller, otherwise);
        let fence = &upstream.connector.shared.fence;
        let mut for_place = until.min(Instant::now() + PLACE_PATIENCE);
        loop {
            if is_write {
                let passes = match otherwise {
                    Some(_) => fence.in_doubt_until(&touched.lanes).is_none(),
                    None => self.passes(fence, touched, until).await,
                };
                if !passes {
                    return Err(Kept::Fence);
                }
            }
            let why = match self.backend.admit(&plan) {
                Admission::Go(mut ticket) => {
                    // It is not sent before it has a connection.
                    ticket.waits();
                    if !ticket.is_for(&upstream.connector.target()) {
                        return Err(Kept::Moved);
                    }
                    if is_write && fence.in_doubt_until(&touched.lanes).is_some() {
                        // It was raised meanwhile: what this one held goes back.
                        continue;
                    }
                    let timeout = upstream.connector.shared.client.settings.timeout;
                    let names_any = touched.lanes != Lanes::None;
                    let fence = (is_write && names_any)
                        .then(|| fence.enter(touched.lanes.clone(), timeout));
                    return Ok(Entered { ticket, fence });
                }
                // Nothing of what a door reads is cached.
                Admission::Instead(instead) => OtherWay::Barred(instead.why),
                Admission::OtherWay(why) => why,
            };
            let waited = match why {
                OtherWay::Lanes if otherwise.is_none() => {
                    let left = until.saturating_duration_since(Instant::now());
                    let is_free = self.backend.wait_for(caller.uid, &touched.lanes, left).await;
                    for_place = until.min(Instant::now() + PLACE_PATIENCE);
                    is_free
                }
                OtherWay::Barred(Barred::Offline) if otherwise.is_none() => {
                    let left = until.saturating_duration_since(Instant::now());
                    let is_open = self.backend.wait_opened(caller.uid, left).await;
                    for_place = until.min(Instant::now() + PLACE_PATIENCE);
                    // It may have been opened just before.
                    is_open || self.backend.is_asked()
                }
                OtherWay::Full => self.place(for_place).await,
                OtherWay::Lanes | OtherWay::Barred(_) | OtherWay::Shed | OtherWay::Struck(_) => {
                    false
                }
            };
            if !waited {
                return Err(Kept::Way(why));
            }
        }
    }

    /// A call as the way in without a task reads it.
    fn plan_of<'a>(
        &self,
        method: Method,
        touched: &'a Touched,
        caller: &CalledBy,
        otherwise: Option<Otherwise>,
    ) -> PlainPlan<'a> {
        let keyed = touched.lanes != Lanes::None;
        let access = if method.class == Class::Write {
            PlainAccess::Write { absolute: otherwise.is_some_and(|it| it.absolute) }
        } else {
            PlainAccess::Read { keyed, slot: None, max_stale: None }
        };
        PlainPlan {
            lanes: &touched.lanes,
            access,
            priority: self.settings.priority,
            operation: method.operation,
            trace: caller.trace.clone(),
            // What nothing else may carry meets nothing on purpose.
            uid: caller.uid,
            may_be_struck: otherwise.is_some(),
        }
    }

    /// Counts a call that may not be sent; returns its client's answer.
    pub(super) fn kept(
        &self,
        upstream: &Upstream,
        method: Method,
        touched: &Touched,
        (caller, why): (&CalledBy, &Kept),
    ) -> Told {
        match *why {
            Kept::Way(why) => {
                self.backend.refuse(&self.plan_of(method, touched, caller, None), why);
                self.refused(why)
            }
            Kept::Fence => self.fenced(upstream, touched),
            Kept::Moved => self.moved(),
        }
    }

    fn moved(&self) -> Told {
        let why = "got another address or database while this request waited";
        Told::not_executed(self.backend.name(), why, Duration::ZERO)
    }

    fn fenced(&self, upstream: &Upstream, touched: &Touched) -> Told {
        let why = "may still carry out an earlier write whose outcome is not known";
        let end = upstream.connector.shared.fence.in_doubt_until(&touched.lanes);
        let retry = end.map(|end| end.saturating_duration_since(Instant::now()));
        Told::not_executed(self.backend.name(), why, retry.unwrap_or_default())
    }

    /// Waits until more may be sent of a call of `who` that has entered and may write anything.
    ///
    /// # Errors
    /// That is not so before `until`.
    pub(super) async fn follows(
        &self,
        upstream: &Upstream,
        who: u32,
        until: Instant,
    ) -> Result<(), Told> {
        let all = Touched { lanes: Lanes::All, transaction: false, database: None };
        if !self.passes(&upstream.connector.shared.fence, &all, until).await {
            return Err(self.fenced(upstream, &all));
        }
        while let Some(why) = self.backend.keeps_back(&all.lanes, self.settings.priority) {
            let left = until.saturating_duration_since(Instant::now());
            if why != OtherWay::Lanes || !self.backend.wait_for(who, &all.lanes, left).await {
                return Err(self.refused(why));
            }
        }
        self.backend.wrote(&all.lanes);
        Ok(())
    }

    /// Whether the fence lets it through before `until`; or the backend is not asked at all, which then says more.
    async fn passes(&self, fence: &fence::Fence, touched: &Touched, until: Instant) -> bool {
        match fence.in_doubt_until(&touched.lanes) {
            None => true,
            Some(_) if !self.backend.is_asked() => true,
            Some(end) if end > until => false,
            Some(_) => tokio::select! {
                biased;
                passes = fence.pass(&touched.lanes, until) => passes,
                () = self.backend.not_asked() => true,
            },
        }
    }

    /// Waits until there may be a place; false if it is late.
    async fn place(&self, until: Instant) -> bool {
        let now = Instant::now();
        tokio::select! {
            () = self.freed.notified() => {}
            () = sleep_until(until.min(now + LOOK_FOR_PLACE)) => {}
        }
        now < until
    }

    /// The answer to a call that may not be sent.
    fn refused(&self, why: OtherWay) -> Told {
        let name = self.backend.name();
        let words = match why {
            OtherWay::Full | OtherWay::Barred(Barred::Full) => {
                return Told::full("the limit of calls in flight is reached");
            }
            OtherWay::Lanes => "has earlier writes waiting in the queue",
            OtherWay::Barred(Barred::Open) => "is open",
            OtherWay::Barred(Barred::Offline) => "is offline",
            OtherWay::Shed => "gets fewer calls in this system state",
            OtherWay::Struck(_) => "is affected by a fault on purpose (chaos)",
        };
        Told::not_executed(name, words, self.backend.retry_after())
    }
}
