//! The connector of a model backend.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use fusebox_state::{ErrorClass, LaneId, Lanes, OpId, Target, Verdict};
use tokio::sync::oneshot;

use super::{
    body::{Body, Word},
    overlay::LastWrite,
    scene::{BACKENDS, KEYS, ms},
    server::{Answer as Heard, Effect},
    world::{Panics, Shared},
};
use crate::connector::{
    Aboard, Access, Answer, Attempt, AttemptError, Attempted, Connector, ConnectorStatus,
    ErrorCode, Origin, Outage, Overlay, OwnCode, Plan, Read, Refused, Said, Slot, Write,
};

/// How queued calls go to a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    /// One by one.
    Alone,
    /// Several, each with its own end.
    Batches,
    /// Several as one.
    Groups,
}

/// See the [module](self).
pub(super) struct Model {
    world: Shared,
    at: usize,
    style: Style,
    timeout: Duration,
}

impl Model {
    /// The connector of the backend at that place, an attempt of which takes `timeout` at most.
    pub(super) fn new(world: Shared, at: usize, timeout: Duration) -> Self {
        let style = match at {
            0 => Style::Alone,
            1 => Style::Batches,
            _ => Style::Groups,
        };
        Self { world, at, style, timeout }
    }

    fn millis(&self) -> u64 {
        u64::try_from(self.timeout.as_millis()).unwrap_or(u64::MAX)
    }

    /// Waits until nothing that was given up can land at these keys.
    async fn fence(&self, keys: &[u8], patience: Duration) -> Result<(), AttemptError> {
        let until = self.world.now() + u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
        loop {
            let now = self.world.now();
            let lands = self.world.server(self.at).and_then(|it| it.lands_until(keys, now));
            let Some(lands) = lands else { return Ok(()) };
            if lands > until {
                return Err(fault(ErrorClass::NotExecuted, OwnCode::Fence));
            }
            tokio::time::sleep(ms(lands.saturating_sub(now).max(1))).await;
        }
    }

    /// Sends calls as one; what each came to.
    async fn carry(
        &self,
        calls: Vec<(Body, Option<OpId>)>,
        aboard: Vec<Aboard>,
        timeout: Duration,
    ) -> Result<Vec<Effect>, (Verdict, AttemptError)> {
        let (ended, heard) = oneshot::channel();
        let sending = {
            let Some(mut server) = self.world.server(self.at) else { return Ok(Vec::new()) };
            let (now, mut rng) = (self.world.now(), self.world.rng());
            server.send(&mut rng, now, self.millis(), calls)
        };
        let (world, at) = (Arc::clone(&self.world), self.at);
        // What is on the wire goes on without its caller.
        tokio::spawn(async move {
            tokio::time::sleep(ms(sending.ends_at.saturating_sub(world.now()))).await;
            let effects = world
                .server(at)
                .map(|mut server| server.take_effects(sending.ticket))
                .unwrap_or_default();
            let (verdict, end) = told(sending.answer, effects);
            for aboard in aboard {
                aboard.ended(verdict);
            }
            drop(ended.send(end));
        });
        match tokio::time::timeout(timeout, heard).await {
            Ok(Ok(end)) => end,
            Ok(Err(_)) => Err((Verdict::Neutral, fault(ErrorClass::Unknown, OwnCode::Timeout))),
            Err(_) => {
                let is_all = timeout >= self.timeout;
                let verdict = if is_all { Verdict::Failure } else { Verdict::Neutral };
                Err((verdict, fault(ErrorClass::Unknown, OwnCode::Timeout)))
            }
        }
    }

    async fn attempts(
        &self,
        attempts: Vec<Attempt<'_>>,
    ) -> Result<Vec<Effect>, (Verdict, AttemptError)> {
        let (mut calls, mut aboard) = (Vec::new(), Vec::new());
        let (mut timeout, mut patience, mut write) = (Duration::MAX, Duration::MAX, false);
        for attempt in &attempts {
            let Some(body) = Body::decode(attempt.body) else {
                return Err((
                    Verdict::Success,
                    fault(ErrorClass::Rejected, ErrorCode::OfKind("SYNTAX")),
                ));
            };
            calls.push((body, attempt.token));
            timeout = timeout.min(attempt.timeout);
            patience = patience.min(attempt.fence_patience);
            write |= attempt.write;
        }
        let is_replay = attempts.iter().any(|it| it.origin == Origin::Replay);
        if is_replay {
            self.panic_if_told(Panics::Before);
        }
        if write {
            let keys: Vec<u8> =
                calls.iter().filter(|(it, _)| it.word != Word::Row).map(|(it, _)| it.key).collect();
            self.fence(&keys, patience).await.map_err(|error| (Verdict::Neutral, error))?;
        }
        aboard.extend(attempts.iter().map(Attempt::board));
        let ended = self.carry(calls, aboard, timeout).await;
        if is_replay {
            self.panic_if_told(Panics::After);
        }
        ended
    }

    /// A replay panics, before it sends or after it was answered.
    fn panic_if_told(&self, when: Panics) {
        let told = self.world.panics.get(self.at);
        let it_is = told.is_some_and(|it| it.lock().take_if(|told| *told == when).is_some());
        assert!(!it_is, "told to panic by a simulation");
    }
}

/// What is heard of a sending.
fn told(
    heard: Heard,
    effects: Vec<Effect>,
) -> (Verdict, Result<Vec<Effect>, (Verdict, AttemptError)>) {
    let failed = |verdict, error| (verdict, Err((verdict, error)));
    let refused = |class, code| {
        let error = fault(class, ErrorCode::OfKind(code));
        failed(Verdict::Failure, AttemptError { reply: Some(code.into()), ..error })
    };
    match heard {
        Heard::Reply => (Verdict::Success, Ok(effects)),
        Heard::Broken => failed(Verdict::Failure, fault(ErrorClass::Unknown, OwnCode::Reset)),
        Heard::Silence => failed(Verdict::Failure, fault(ErrorClass::Unknown, OwnCode::Timeout)),
        Heard::Refused | Heard::NoConnection => {
            failed(Verdict::Failure, fault(ErrorClass::NotExecuted, OwnCode::Connect))
        }
        Heard::TooMuch => refused(ErrorClass::NotExecuted, "TOO_MUCH"),
        Heard::WrongPassword => refused(ErrorClass::BlockedServer, "WRONG_PASSWORD"),
        Heard::Strange => {
            let error = fault(ErrorClass::Unknown, ErrorCode::OfKind("STRANGE"));
            failed(Verdict::Success, AttemptError { unclassified: true, ..error })
        }
    }
}

fn fault(class: ErrorClass, code: impl Into<ErrorCode>) -> AttemptError {
    AttemptError::own(class, code, "simulated")
}

/// How one call ended that came to `effect`.
fn ended(effect: Option<&Effect>) -> Attempted {
    match effect {
        Some(Effect::Done(number)) => Attempted::answered(number.to_string().into()),
        Some(Effect::Recognised) => Attempted::recognised(Bytes::from_static(b"again")),
        Some(Effect::Rejected) => Attempted::failed(
            Verdict::Success,
            fault(ErrorClass::Rejected, ErrorCode::OfKind("BAD")),
        ),
        None => Attempted::failed(Verdict::Failure, fault(ErrorClass::Unknown, OwnCode::Reset)),
    }
}

/// What a write says of the key that it names.
fn says(write: &Bytes) -> Said {
    match Body::decode(write) {
        Some(Body { word: Word::Set | Word::All, id, .. }) => Said::Reply(id.to_string().into()),
        _ => Said::Nothing,
    }
}

impl Connector for Model {
    fn plan(&self, body: Bytes) -> Result<Plan, Refused> {
        let Some(call) = Body::decode(&body) else {
            let message = format!("no call of a simulation: {body:?}");
            return Err(Refused { code: "syntax", message, malformed: true });
        };
        let lanes = if call.word == Word::Row { Lanes::new([]) } else { Lanes::One(call.lane()) };
        let known = |outage| Write { absolute: call.word.is_absolute(), ..Write::new(outage) };
        let access = match call.word {
            Word::Get => {
                let slots = vec![Slot { lane: call.lane(), key: body.clone() }];
                Access::Read(Read { keyed: true, slots, miss: Some("0".into()) })
            }
            Word::Set | Word::All => Access::Write(Write {
                whole: call.word == Word::All,
                settled_reply: true,
                ..known(Outage::ReplyKnown(call.id.to_string().into()))
            }),
            Word::Add => Access::Write(known(Outage::EffectUnknown)),
            Word::Row => Access::Write(Write {
                free_token: true,
                settled_reply: true,
                gather: Some(1),
                ..known(Outage::EffectKnown)
            }),
            Word::Bad => Access::Write(known(Outage::EffectKnown)),
        };
        Ok(Plan { body, label: call.key.to_string(), lanes, admin: false, access })
    }

    fn attempt<'a>(&'a self, attempt: Attempt<'a>) -> Answer<'a, Attempted> {
        Box::pin(async move {
            match self.attempts(vec![attempt]).await {
                Ok(effects) => ended(effects.first()),
                Err((verdict, error)) => Attempted::failed(verdict, error),
            }
        })
    }

    fn group_max(&self) -> (usize, u64) {
        if self.style == Style::Groups { (16, 1 << 20) } else { (1, 0) }
    }

    fn attempt_group<'a>(&'a self, attempts: Vec<Attempt<'a>>) -> Answer<'a, Attempted> {
        Box::pin(async move {
            match self.attempts(attempts).await {
                Ok(effects) => ended(effects.first()),
                Err((verdict, error)) => Attempted::failed(verdict, error),
            }
        })
    }

    fn batch_max(&self) -> usize {
        if self.style == Style::Batches { 8 } else { 1 }
    }

    fn attempt_batch<'a>(&'a self, attempts: Vec<Attempt<'a>>) -> Answer<'a, Vec<Attempted>> {
        Box::pin(async move {
            let count = attempts.len();
            match self.attempts(attempts).await {
                Ok(effects) => (0..count).map(|at| ended(effects.get(at))).collect(),
                Err((verdict, error)) => {
                    (0..count).map(|_| Attempted::failed(verdict, error.clone())).collect()
                }
            }
        })
    }

    fn ping(&self, timeout: Duration) -> Answer<'_, Attempted> {
        Box::pin(async move {
            let asked = (Body { word: Word::Get, key: u8::MAX, id: 0 }, None);
            match self.carry(vec![asked], Vec::new(), timeout).await {
                Ok(effects) => ended(effects.first()),
                // Whatever it waited for, it was not answered in its time.
                Err((Verdict::Neutral, error)) => Attempted::failed(Verdict::Failure, error),
                Err((verdict, error)) => Attempted::failed(verdict, error),
            }
        })
    }

    fn overlay(&self, slot: &Slot) -> Option<Box<dyn Overlay>> {
        Some(LastWrite::of(slot, |write| Some(says(write))))
    }

    fn split(&self, _: &Bytes, _: &[Slot], reply: &Bytes) -> Option<Vec<Bytes>> {
        Some(vec![reply.clone()])
    }

    fn join(&self, _: &Bytes, mut parts: Vec<Bytes>) -> Bytes {
        parts.pop().unwrap_or_default()
    }

    fn may_land(&self, lane: LaneId) -> bool {
        let keys = (0..KEYS).filter(|key| LaneId::of(b"", &[*key]) == lane).collect::<Vec<_>>();
        let now = self.world.now();
        self.world.server(self.at).is_some_and(|server| server.lands_until(&keys, now).is_some())
    }

    fn forget_tokens(&self, tokens: Vec<OpId>) {
        if let Some(mut server) = self.world.server(self.at) {
            server.forget(&tokens);
        }
    }

    fn status(&self) -> ConnectorStatus {
        ConnectorStatus::default()
    }

    fn target(&self) -> Target {
        BACKENDS.get(self.at).copied().unwrap_or_default().into()
    }

    fn close(&self) -> Answer<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}
