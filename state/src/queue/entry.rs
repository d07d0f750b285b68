//! What the index knows of one call.

use bytes::Bytes;

use crate::{
    store::{CallHeader, DeadReason},
    trace::SpanRef,
    units::{Moment, UnixMillis},
    words::Words,
    write::WriteState,
};

/// The position of a queued call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Handed to the committer, not acknowledged.
    Committing,
    /// Durable; waits for its turn.
    Waiting,
    /// On the wire.
    Sending,
    /// Durable; tried, and waits until [`Details::until`].
    BackingOff,
    /// Applied; its removal is not synced yet.
    Removing,
}

/// What the index knows of a call: what every call has, and beside that what few have.
#[derive(Clone, Debug)]
pub struct Entry {
    /// What the store holds of it.
    pub header: CallHeader,
    /// Bytes of its body, unless [`Details::large`] says them.
    pub(super) bytes: u32,
    /// The digest of its label: calls to the same object have the same.
    pub object: u32,
    /// What may be done next.
    pub state: WriteState,
    /// Whether its name is the caller's own: then its marker, if it has one, outlives it.
    pub own_name: bool,
    /// It was in the store when this run began: an earlier one may have sent it.
    pub(super) from_earlier_run: bool,
    /// Its position; of no meaning for a dead letter.
    pub phase: Phase,
    pub(super) details: Option<Box<Details>>,
}

/// What is known of a call that was tried, sent with others, or recorded. A call that merely waits has the default.
#[derive(Clone, Debug)]
pub struct Details {
    /// What is noted of its sending, durably.
    pub noted: Option<Noted>,
    /// The calls that it was sent with as one: the sequence of the first.
    pub group: Option<u64>,
    /// The most calls that it may be sent with as one.
    pub group_max: u32,
    /// Bytes of a body of 4 GiB and more.
    pub(super) large: Option<u64>,
    /// Why replay has given up on it, if it could not become a dead letter yet.
    pub verdict: Option<(DeadReason, Words)>,
    /// Attempts of this run that have ended.
    pub(super) attempts: u32,
    /// Replies of no known class.
    pub unclassified: u32,
    /// How the last attempt ended, or why it is dead.
    pub last_error: Option<Words>,
    /// Its last backoff in milliseconds.
    pub backoff_ms: u64,
    /// When it may be tried again, if it backs off.
    pub until: Moment,
    /// Dead letters: whether its lane was written since. True after a restart.
    pub written_since: bool,
    /// The span that put it here, if that was recorded: its replay is recorded too.
    pub origin: Option<SpanRef>,
}

impl Details {
    const NONE: Self = Self {
        noted: None,
        group: None,
        group_max: u32::MAX,
        large: None,
        verdict: None,
        attempts: 0,
        unclassified: 0,
        last_error: None,
        backoff_ms: 0,
        until: Moment::from_millis(0),
        written_since: false,
        origin: None,
    };
}

static NO_DETAILS: Details = Details::NONE;

impl Entry {
    /// A call of `bytes` to an [object](crate::units::object_of) that was never tried.
    pub fn new(
        header: CallHeader,
        object: u32,
        state: WriteState,
        own_name: bool,
        bytes: u64,
    ) -> Self {
        let (phase, from_earlier_run) = (Phase::Committing, false);
        let mut entry = Self {
            header,
            bytes: 0,
            object,
            state,
            own_name,
            from_earlier_run,
            phase,
            details: None,
        };
        entry.resize(bytes);
        entry
    }

    /// Bytes of its body.
    pub fn size(&self) -> u64 {
        self.details().large.unwrap_or_else(|| self.bytes.into())
    }

    /// It has a body of so many bytes from now on.
    pub(super) fn resize(&mut self, bytes: u64) {
        let small = u32::try_from(bytes).ok();
        self.bytes = small.unwrap_or(u32::MAX);
        if small.is_none() || self.details.is_some() {
            self.details_mut().large = small.is_none().then_some(bytes);
        }
    }

    /// Whether it may have been applied without this run having heard so. Of an absolute call it is not noted that it is
    /// sent.
    pub fn may_be_applied(&self) -> bool {
        self.state.is_in_doubt() || self.from_earlier_run && self.is_absolute()
    }

    /// What few calls have.
    pub fn details(&self) -> &Details {
        self.details.as_deref().unwrap_or(&NO_DETAILS)
    }

    /// The same, to be changed. Takes memory from then on.
    pub fn details_mut(&mut self) -> &mut Details {
        self.details.get_or_insert_with(|| Box::new(Details::NONE))
    }

    /// Attempts of this run, with the one that is on the wire or was the last.
    pub fn attempts(&self) -> u32 {
        let on_the_way = matches!(self.phase, Phase::Sending | Phase::Removing);
        self.details().attempts + u32::from(on_the_way)
    }

    /// A dead letter has had so many in all.
    pub fn set_attempts(&mut self, attempts: u32) {
        if attempts > 0 || self.details.is_some() {
            self.details_mut().attempts = attempts;
        }
    }

    /// An operator has checked that it was not applied.
    pub fn cleared(&mut self) {
        self.state.cleared();
        self.from_earlier_run = false;
        if let Some(details) = &mut self.details {
            details.noted = None;
        }
    }

    /// When it may be tried again, if it backs off.
    pub(super) fn backs_off_until(&self) -> Option<Moment> {
        (self.phase == Phase::BackingOff).then(|| self.details().until)
    }

    /// It waits as one that was never tried; what is noted of it stays.
    pub(super) fn begins_again(&mut self) {
        if let Some(details) = &mut self.details {
            (details.attempts, details.unclassified, details.backoff_ms) = (0, 0, 0);
        }
    }
}

/// What is noted of a sending.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Noted {
    /// When it was first sent.
    pub at: UnixMillis,
    /// What a later proof must know.
    pub evidence: Bytes,
}
