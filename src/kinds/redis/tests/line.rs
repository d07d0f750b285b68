//! A queue in a few lines: the rules by which the core replays calls, for tests of the connector alone.
//!
//! - A queued write moves when no earlier write is left in its lanes, and no residue that was due before it was
//!   accepted.
//! - A residue moves when nothing is left in its lanes, before or behind it, that was accepted before it is due.
//! - A residue takes the place of the write that left it. After each write that was applied, the residues of
//!   its lanes are shown to the connector.

use fusebox_actors::connector::{QueuedWrite, ResidueAfter, Said};
use fusebox_state::Lanes;

use super::*;

#[derive(Clone)]
struct Queued {
    number: u128,
    write: QueuedWrite,
    lanes: Lanes,
    token: Option<OpId>,
}

impl Queued {
    fn meets(&self, lanes: &Lanes) -> bool {
        self.lanes.as_slice().iter().any(|lane| lanes.as_slice().contains(lane))
    }

    fn accepted_before(&self, due: UnixMillis) -> bool {
        self.write.due.is_none() && self.write.accepted_at < due
    }
}

/// A queue in front of a connector.
pub(super) struct Line<'a> {
    redis: &'a RedisConnector,
    calls: Vec<Queued>,
    /// What was rejected.
    pub(super) dead: Vec<Bytes>,
    tokens: u128,
}

impl<'a> Line<'a> {
    pub(super) fn new(redis: &'a RedisConnector, tokens: u128) -> Self {
        Self { redis, calls: Vec::new(), dead: Vec::new(), tokens: tokens << 64 }
    }

    /// The queue as it was synced, for a daemon that dies.
    pub(super) fn copy(&self) -> Self {
        Self { redis: self.redis, calls: self.calls.clone(), dead: Vec::new(), tokens: self.tokens }
    }

    pub(super) fn len(&self) -> usize {
        self.calls.len()
    }

    /// Whether a write of these lanes would have to wait.
    pub(super) fn occupied(&self, body: &Bytes) -> bool {
        let plan = self.redis.plan(body.clone()).unwrap();
        self.calls.iter().any(|call| call.meets(&plan.lanes))
    }

    /// Queues a call that was accepted then.
    pub(super) fn accept(&mut self, body: Bytes, accepted_at: UnixMillis) {
        let plan = self.redis.plan(body).unwrap();
        let Access::Write(write) = plan.access else { panic!("a write") };
        self.tokens += 1;
        let token = (!write.absolute).then(|| OpId::new(accepted_at, self.tokens));
        let body = self.redis.stored(&plan.body).map_or(plan.body, |stored| stored.body);
        let write = QueuedWrite { body, accepted_at, due: None };
        self.calls.push(Queued { number: self.tokens, write, lanes: plan.lanes, token });
    }

    /// What a read is answered from the queue, if it is.
    pub(super) fn overlay(&self, read: &Bytes, at: UnixMillis) -> Option<Bytes> {
        let plan = self.redis.plan(read.clone()).unwrap();
        let Access::Read(read) = plan.access else { panic!("a read") };
        let calls = self.calls.iter().filter(|call| call.meets(&plan.lanes));
        let mut overlay = self.redis.overlay(&read.slots[0])?;
        let mut writes = 0;
        for call in calls {
            overlay.write(&call.write);
            writes += 1;
        }
        match overlay.says(&read.slots[0], at) {
            Said::Reply(reply) if writes > 0 => Some(reply),
            _ => None,
        }
    }

    fn may_move(&self, place: usize) -> bool {
        let call = &self.calls[place];
        let others = self.calls.iter().enumerate();
        let mut others = others.filter(|(at, other)| *at != place && other.meets(&call.lanes));
        match call.write.due {
            Some(due) => !others.any(|(_, other)| other.accepted_before(due)),
            None => others.all(|(at, other)| {
                at > place || other.write.due.is_some_and(|due| call.write.accepted_at < due)
            }),
        }
    }

    /// Sends the first call that may move; false if there is none.
    pub(super) async fn step(&mut self) -> bool {
        let Some(place) = (0..self.calls.len()).find(|place| self.may_move(*place)) else {
            assert!(self.calls.is_empty(), "nothing can move");
            return false;
        };
        let call = self.calls[place].clone();
        let behind = self.calls[place + 1..].iter().filter(|other| other.meets(&call.lanes));
        let following: Vec<QueuedWrite> = behind.map(|other| other.write.clone()).collect();
        let ended = self
            .redis
            .attempt(Attempt {
                body: &call.write.body,
                lanes: &call.lanes,
                write: true,
                origin: Origin::Replay,
                token: call.token,
                digest: 7,
                doubt: None,
                following: &following,
                streams: false,
                upload: None,
                dialect: 0,
                passage: None,
                accepted_at: call.write.accepted_at,
                now: now(),
                timeout: testing::PATIENCE,
                left: testing::PATIENCE,
                fence_patience: testing::PATIENCE,
                trace: None,
            })
            .await;
        match ended.result {
            Ok(_) => {}
            Err(error) if error.class == ErrorClass::Rejected => {
                self.dead.push(self.calls.remove(place).write.body);
                return true;
            }
            Err(error) => panic!("{error}"),
        }
        match ended.residue {
            Some(residue) => {
                let due = Some(residue.due);
                let write = QueuedWrite { body: residue.body, due, ..call.write.clone() };
                self.calls[place] =
                    Queued { number: call.number, write, lanes: residue.lanes, token: None };
            }
            None => drop(self.calls.remove(place)),
        }
        if call.write.due.is_none() {
            self.show(&call);
        }
        true
    }

    /// Shows the residues of its lanes what was applied; not the one that it left itself.
    fn show(&mut self, applied: &Queued) {
        self.calls.retain_mut(|call| {
            if call.number == applied.number
                || call.write.due.is_none()
                || !call.meets(&applied.lanes)
            {
                return true;
            }
            match self.redis.residue_after(&call.write, &applied.write.body) {
                ResidueAfter::Kept => true,
                ResidueAfter::Void => false,
                ResidueAfter::Changed(residue) => {
                    (call.write.body, call.write.due) = (residue.body, Some(residue.due));
                    call.lanes = residue.lanes;
                    true
                }
            }
        });
    }

    /// Sends all that is there.
    pub(super) async fn drain(&mut self) {
        while self.step().await {}
    }
}
