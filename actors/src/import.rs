//! Taking in calls that an export or a repair wrote: at the tail of the queue, under their own names.
//!
//! What is known of a call is kept. One that may have been sent is in doubt as before, and is sent only if the
//! backend is proven to recognise it; a dead letter stays one. A call that was sent with others as one cannot be
//! sent again as that one, so it comes back as a dead letter.
//!
//! Nobody knows what was written to a lane since a call of it was exported: another run, another host may have
//! done so. So a call that has a lane wants force.
//!
//! A crash in between leaves the calls that were stored; who imports the same lines again passes them over. A
//! dead letter is stored as a call and marked in the next breath: a crash between the two leaves a call that
//! waits, which was not acknowledged as imported.

use std::collections::HashSet;

use bytes::Bytes;
use fusebox_state::{
    LaneId, Lanes, OpId, SpanRef, Target, UnixMillis,
    queue::Refusal,
    store::{CallHeader, DeadMark, DeadReason, StoreError, TokenKind, Traits},
    write::{Repeat, WriteState},
};
use tokio::sync::oneshot;

use crate::{
    backend_handle::Backend,
    connector::{Access, Refused},
    queue::{AppendError, NewWrite},
};

/// What its connector would say of a call, as an export wrote it down.
#[derive(Clone, Debug)]
pub struct Known {
    /// The lanes that it touches.
    pub lanes: Lanes,
    /// Digest of the body as its caller sent it.
    pub digest: u64,
    /// What lets the backend recognise it.
    pub token: TokenKind,
    /// What else replay must know of it.
    pub traits: Traits,
}

/// A call to be imported.
#[derive(Clone, Debug)]
pub struct Import {
    /// Its name.
    pub op_id: OpId,
    /// Its lanes for people.
    pub label: String,
    /// What was written down of it; `None` if its connector is to be asked.
    pub known: Option<Known>,
    /// What is sent.
    pub body: Bytes,
    /// It was to go to another address, of another database or project perhaps.
    pub is_moved: bool,
    /// When it was accepted.
    pub accepted_at: UnixMillis,
    /// Who sent it.
    pub uid: u32,
    /// The span that queued it.
    pub traceparent: Option<String>,
    /// Whether it may have been sent.
    pub in_doubt: bool,
    /// What was noted of that sending.
    pub evidence: Bytes,
    /// Whether it was sent with others as one.
    pub in_group: bool,
    /// Why it is a dead letter, if it is one.
    pub dead: Option<DeadMark>,
}

/// What became of a call that was to be imported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Imported {
    /// It waits.
    Waits {
        /// It may have been applied.
        in_doubt: bool,
    },
    /// It is a dead letter.
    Dead,
    /// A call of that name is there already: it was passed over.
    Known,
    /// Its lane was, or may have been, written since it was exported.
    WantsForce,
    /// It was not taken, and neither was any after it: why.
    Refused(String),
}

/// Calls that were handed over and are not synced yet.
#[derive(Default)]
struct Ahead {
    calls: Vec<(usize, oneshot::Receiver<Result<(), StoreError>>)>,
    lanes: HashSet<LaneId>,
    /// One of them may touch anything.
    is_all: bool,
}

impl Ahead {
    fn add(
        &mut self,
        place: usize,
        lanes: Lanes,
        synced: oneshot::Receiver<Result<(), StoreError>>,
    ) {
        self.is_all |= lanes.is_all();
        self.lanes.extend(lanes.as_slice());
        self.calls.push((place, synced));
    }

    fn meets(&self, lanes: &Lanes) -> bool {
        let is_any = !self.calls.is_empty();
        is_any && (self.is_all || lanes.is_all())
            || lanes.as_slice().iter().any(|lane| self.lanes.contains(lane))
    }

    /// Waits for them. False if one was not stored, which its result says then.
    async fn synced(&mut self, results: &mut [Imported]) -> bool {
        let mut are_all = true;
        for (place, synced) in std::mem::take(&mut self.calls) {
            let why = match synced.await {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => error.to_string(),
                Err(_) => "the store was closed".to_owned(),
            };
            are_all = false;
            if let Some(result) = results.get_mut(place) {
                *result = Imported::Refused(why);
            }
        }
        (self.lanes, self.is_all) = (HashSet::new(), false);
        are_all
    }
}

impl Backend {
    /// Whether `import` could be taken, which its body must let its connector say.
    ///
    /// # Errors
    /// What its connector has against it.
    pub fn check_import(&self, import: &Import) -> Result<(), Refused> {
        self.known_of(import).map(drop)
    }

    /// Takes calls in, in this order, each once it is synced. After one that is refused no other is taken, so that
    /// none overtakes it: nothing is handed over that may touch what one before it touches, before that is synced.
    pub async fn import(&self, imports: Vec<Import>, force: bool) -> Vec<Imported> {
        let connector = self.connector();
        let is_for_us = || !self.entry.shared.has_moved(&connector);
        let mut results = Vec::with_capacity(imports.len());
        let mut ahead = Ahead::default();
        for import in imports {
            let known = match self.known_of(&import) {
                Ok(known) => known,
                Err(refused) => {
                    results.push(Imported::Refused(refused.to_string()));
                    break;
                }
            };
            // A dead letter overtakes nothing.
            let is_dead = import.dead.is_some();
            let lanes = if is_dead { Lanes::None } else { known.lanes.clone() };
            if ahead.meets(&lanes) && !ahead.synced(&mut results).await {
                break;
            }
            match self.begin_import(import, known, force, connector.target(), is_for_us) {
                Ok((result, synced)) => {
                    if let Some(synced) = synced {
                        ahead.add(results.len(), lanes, synced);
                    }
                    results.push(result);
                }
                Err(why) => {
                    results.push(Imported::Refused(why));
                    break;
                }
            }
        }
        ahead.synced(&mut results).await;
        results
    }

    /// What is known of a call: as it was written down, or as its connector reads it.
    fn known_of(&self, import: &Import) -> Result<Known, Refused> {
        if let Some(known) = &import.known {
            // What is written at another address meanwhile is of the lanes that the connector knows now.
            let moved = import.is_moved.then(|| self.connector().stored_lanes(&import.body));
            let lanes = moved.flatten().unwrap_or_else(|| known.lanes.clone());
            return Ok(Known { lanes, ..known.clone() });
        }
        let plan = self.connector().plan(import.body.clone())?;
        let Access::Write(write) = plan.access else {
            return Err(Refused {
                code: "not_a_write",
                message: "it is a read, which is never queued".to_owned(),
                malformed: true,
            });
        };
        Ok(Known {
            lanes: plan.lanes,
            digest: fusebox_state::digest(&import.body),
            token: if write.absolute { TokenKind::Absolute } else { TokenKind::Marker },
            traits: write
                .gather
                .map_or_else(|| Traits::of(write.whole, write.timed), Traits::gathered),
        })
    }

    /// Hands one call to the store; what resolves once that is synced, if anything was handed over.
    #[expect(clippy::type_complexity, reason = "a result and what to wait for")]
    fn begin_import(
        &self,
        import: Import,
        known: Known,
        force: bool,
        target: Target,
        is_for_us: impl Fn() -> bool,
    ) -> Result<(Imported, Option<oneshot::Receiver<Result<(), StoreError>>>), String> {
        let queue = &self.entry.shared.queue;
        match queue.index().known(import.op_id, known.digest) {
            Some(Refusal::Known { .. }) => return Ok((Imported::Known, None)),
            Some(refusal) => return Err(refusal.to_string()),
            None => {}
        }
        let has_lane = known.lanes.is_all() || !known.lanes.as_slice().is_empty();
        if has_lane && !force {
            return Ok((Imported::WantsForce, None));
        }
        let repeat = known.token.repeat();
        let own_name = known.token == TokenKind::OwnMarker;
        let in_doubt = import.in_doubt && repeat != Repeat::Absolute;
        let lost = in_doubt && (import.in_group || repeat == Repeat::Never);
        let dead = import.dead.or_else(|| {
            lost.then(|| DeadMark {
                reason: DeadReason::Ambiguous,
                detail: "it may have been applied before it was imported, and a repetition would not be recognised"
                    .into(),
                at: self.entry.shared.circuit.clock.unix(),
                attempts: 0,
            })
        });
        let span = import.traceparent.as_deref().and_then(SpanRef::parse);
        let write = NewWrite {
            header: CallHeader {
                op_id: import.op_id,
                digest: known.digest,
                uid: import.uid,
                lanes: known.lanes,
                token: TokenKind::of(repeat, own_name),
                // What is left to do of a call goes by its place now, not by when it is due: an export has it behind
                // those that come before it.
                traits: known.traits.due().map_or(known.traits, |_| Traits::default()),
                accepted_at: import.accepted_at,
            },
            target,
            label: import.label.into(),
            state: WriteState::restored(repeat, in_doubt),
            own_name,
            evidence: import.evidence,
            body: import.body,
            span: span.unwrap_or(SpanRef {
                trace_id: import.op_id.to_u128().max(1),
                span_id: 1,
                sampled: false,
            }),
            low_priority: false,
            claim: None,
        };
        let refused = |error: AppendError| error.to_string();
        if let Some(mark) = dead {
            let synced = queue.append_dead(write, mark, is_for_us).map_err(refused)?;
            return Ok((Imported::Dead, Some(synced)));
        }
        let appending = queue.append(write, is_for_us).map_err(refused)?;
        Ok((Imported::Waits { in_doubt }, Some(appending.synced)))
    }
}
