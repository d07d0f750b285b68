//! A stream of writes: each of its messages is a write like any other.
//!
//! ```text
//!  message ─▶ admitted ─▶ under way ─┬─ its answer: applied
//!                                    ├─ the server ends the stream: what its status says
//!                                    └─ `timeout` is over, its client leaves, the stream breaks:
//!                                       unknown; the connection is closed, then it is in doubt
//! ```
//! Answers come in the order of the messages; each has the results of its writes. A stream has a connection to itself,
//! so that closing it ends nothing else.
//!
//! **Of other calls that are not one message** nobody knows what is answered: of a method that is not known, of a
//! pipeline that writes, and of a stream whose first message writes already or cannot be read. They may write anywhere and at any time while their
//! answer comes. So they are under way, over all documents, until that has ended, and with each piece of the answer the
//! whole cache goes.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use fusebox_actors::{Ticket, connector::OwnCode};
use fusebox_state::{ErrorClass, Lanes, Verdict};
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, OwnedSemaphorePermit},
    time::{Instant, sleep_until},
};
use tonic::{Code, Status};

use super::{
    blame::Blame,
    core::Core,
    entry::Entered,
    framing::{Gathered, take_first},
    outcome::{given_up, unknown},
    pool::{STREAM_WINDOW, Took},
};
use crate::kinds::firestore::{
    protocol::{
        fields::Fields,
        outcome::{Behalf, Failed},
        stock,
    },
    transport::fence,
};

/// The field of an answer that holds the results of writes.
const RESULTS: u32 = 3;

/// The writes of a stream that are under way, in their order.
pub(super) struct UnderWay {
    core: Arc<Core>,
    blame: Blame,
    state: Mutex<State>,
    /// Notified when there is one more.
    sent: Notify,
    /// Whether its client takes what is answered.
    is_read: AtomicBool,
    /// A place among the calls that have a connection to themselves.
    _place: OwnedSemaphorePermit,
}

#[derive(Default)]
struct State {
    writes: VecDeque<Write>,
    has_ended: bool,
    /// How it ended, if not by its client.
    failed: Option<Failed>,
}

/// A write under way.
struct Write {
    since: Instant,
    /// `None` for a call that was settled when its answer began.
    ticket: Option<Ticket>,
    wait: Option<fence::Wait>,
    pass: Option<fence::Pass>,
}

impl UnderWay {
    pub(super) fn new(core: &Arc<Core>, blame: Blame, place: OwnedSemaphorePermit) -> Arc<Self> {
        let (core, state, sent) = (Arc::clone(core), Mutex::default(), Notify::new());
        Arc::new(Self { core, blame, state, sent, is_read: AtomicBool::new(true), _place: place })
    }

    /// A message was admitted, and is about to be sent; false if the stream has ended: then it is not.
    pub(super) fn begins(&self, Entered { ticket, fence }: Entered) -> bool {
        let (wait, pass) = fence.unzip();
        let mut write = Write { since: Instant::now(), ticket: Some(ticket), wait, pass };
        let mut state = self.state.lock();
        if !state.writes.is_empty()
            && let Some(ticket) = &mut write.ticket
        {
            // The server comes to it when it has carried out those before it.
            ticket.is_kept_waiting();
        }
        if state.has_ended {
            drop(state);
            let message = "its stream has ended";
            let (neutral, class) = (Verdict::Neutral, ErrorClass::NotExecuted);
            write.ends(&self.core, Some(&Failed::own(neutral, class, OwnCode::Closed, message)));
            return false;
        }
        if let Some(ticket) = &write.ticket {
            ticket.departs();
        }
        state.writes.push_back(write);
        drop(state);
        self.sent.notify_one();
        true
    }

    /// Whether anything may have been executed that is not answered; nothing more is sent from here on.
    pub(super) fn stops(&self) -> bool {
        let mut state = self.state.lock();
        state.has_ended = true;
        !state.writes.is_empty()
    }

    /// Ends it if everything that was sent is answered: nothing more is sent from here on. Whether that is so.
    fn stops_if_answered(&self) -> bool {
        let mut state = self.state.lock();
        let is_answered = state.writes.is_empty();
        state.has_ended |= is_answered;
        is_answered
    }

    /// Resolves when the server has not answered the first of the messages in time, with which it has failed.
    pub(super) async fn overdue(&self) {
        loop {
            let timeout = self.core.backend.timeout();
            let first = self.state.lock().writes.front().map(|write| write.since);
            match first.map(|since| since + timeout) {
                None => self.sent.notified().await,
                Some(late) if late <= Instant::now() => {
                    let mut failed = self.blame.judges_silence(given_up(true, timeout));
                    if !self.is_read.load(Relaxed) {
                        // It may be answered long since.
                        failed.verdict = Verdict::Neutral;
                    }
                    return self.fails(failed);
                }
                Some(late) => sleep_until(late).await,
            }
        }
    }

    /// It ends so.
    fn fails(&self, failed: Failed) {
        self.state.lock().failed.get_or_insert(failed);
    }

    /// All of it is applied.
    fn succeeds(&self) {
        let writes = std::mem::take(&mut self.state.lock().writes);
        for write in writes {
            write.ends(&self.core, None);
        }
    }

    /// The first of the messages is answered.
    fn answered(&self) {
        let mut state = self.state.lock();
        let Some(write) = state.writes.pop_front() else { return };
        if let Some(next) = state.writes.front_mut() {
            next.since = Instant::now();
        }
        drop(state);
        write.ends(&self.core, None);
    }

    /// The stream is over. What failed it is how the first write that is not answered has ended; those behind that say
    /// nothing of the server. Returns what of them may still land.
    fn ends(&self) -> Vec<fence::Pass> {
        let mut state = self.state.lock();
        state.has_ended = true;
        let (writes, failed) = (std::mem::take(&mut state.writes), state.failed.take());
        drop(state);
        let mut failed =
            failed.unwrap_or_else(|| unknown(Verdict::Neutral, "the client closed the stream"));
        let mut left = Vec::new();
        for write in writes {
            left.extend(write.ends(&self.core, Some(&failed)));
            failed.verdict = Verdict::Neutral;
        }
        left
    }

    /// The stream is over. If anything of it may still land its connection is closed, and it is in doubt.
    pub(super) fn closes(&self, took: Option<Took>) {
        let left = self.ends();
        if left.is_empty() {
            return;
        }
        self.core.go_on(async move {
            if let Some(Took { carrier, place }) = took {
                carrier.reset().await;
                // Nothing else has come to that connection.
                drop(place);
            }
            drop(left);
        });
    }
}

impl Write {
    /// It is over. Returns its pass if it may still land: it is in doubt from here on.
    fn ends(self, core: &Core, failed: Option<&Failed>) -> Option<fence::Pass> {
        let Self { ticket, wait, pass, .. } = self;
        let has_ticket = ticket.is_some();
        if let Some(ticket) = ticket {
            core.ends(ticket, failed.cloned());
        }
        if failed.is_some_and(|failed| failed.error.doubt.is_some()) {
            drop(wait);
            if !has_ticket {
                // What was cached meanwhile may be older than what it has written.
                core.backend.wrote(&Lanes::All);
            }
            return pass;
        }
        if let Some(pass) = pass {
            pass.answered();
        }
        None
    }
}

/// The answers to a stream of writes. Dropped, it closes the connection if anything is not answered.
pub(super) struct Streamed {
    core: Arc<Core>,
    under_way: Arc<UnderWay>,
    took: Option<Took>,
    behalf: Behalf,
    answers: Answers,
}

enum Answers {
    /// One for each message.
    Counted(Gathered),
    /// One came that is not understood: nothing more counts.
    Unread,
    /// Nobody knows of what.
    Unknown,
}

impl Streamed {
    pub(super) fn new(
        core: &Arc<Core>,
        under_way: Arc<UnderWay>,
        took: Option<Took>,
        behalf: Behalf,
        is_counted: bool,
    ) -> Self {
        let answers =
            if is_counted { Answers::Counted(Gathered::default()) } else { Answers::Unknown };
        Self { core: Arc::clone(core), under_way, took, behalf, answers }
    }

    /// Whether its client takes what is answered.
    pub(super) fn is_read(&self, is_read: bool) {
        self.under_way.is_read.store(is_read, Relaxed);
    }

    /// The next bytes of the answers pass.
    pub(super) fn passes(&mut self, data: Bytes) {
        let gathered = match &mut self.answers {
            Answers::Counted(gathered) => gathered,
            Answers::Unread => return,
            Answers::Unknown => return self.core.backend.wrote(&Lanes::All),
        };
        let whole = gathered.feed(data);
        let Ok(mut messages) = whole else {
            self.answers = Answers::Unread;
            return;
        };
        if gathered.wanted() > STREAM_WINDOW as usize {
            self.answers = Answers::Unread;
        }
        while let Some((_, message)) = take_first(&mut messages) {
            let Some(message) = message else {
                self.answers = Answers::Unread;
                return;
            };
            if let Some(time) = stock::streamed_at(&message) {
                self.core.estimates.saw(time);
            }
            if has_results(&message) {
                self.under_way.answered();
            }
        }
    }

    /// The whole call may write until its answer has ended.
    pub(super) fn keep(&self, pass: Option<fence::Pass>) {
        let Some(pass) = pass else { return };
        let since = Instant::now();
        let wait = Some(pass.wait());
        let first = Write { since, ticket: None, wait, pass: Some(pass) };
        self.under_way.state.lock().writes.push_front(first);
    }

    /// The server has ended the stream.
    pub(super) fn ends(self, status: Option<Status>) {
        if let Answers::Unknown = self.answers {
            self.core.backend.wrote(&Lanes::All);
        }
        let status = status.unwrap_or_else(|| Status::internal("no status"));
        if status.code() == Code::Ok {
            self.under_way.succeeds();
        } else {
            let blame = &self.under_way.blame;
            self.fails(blame.judges(blame.failed(&status, self.behalf)));
        }
    }

    /// The stream broke, with an error or without a status.
    pub(super) fn breaks(&self, status: Option<&Status>) {
        let blame = &self.under_way.blame;
        let failed = status.map(|status| blame.failed(status, self.behalf));
        let verdict = failed.map_or(Verdict::Failure, |failed| failed.verdict);
        self.fails(blame.judges(unknown(verdict, "the stream broke")));
    }

    /// It ended so.
    pub(super) fn fails(&self, failed: Failed) {
        self.under_way.fails(failed);
    }

    /// Whether anything of it may have been executed that is not answered; nothing more is sent from here on.
    pub(super) fn stops(&self) -> bool {
        self.under_way.stops()
    }

    /// Ends it if everything that was sent is answered: nothing more is sent from here on. Whether that is so.
    pub(super) fn stops_if_answered(&self) -> bool {
        self.under_way.stops_if_answered()
    }
}

impl Drop for Streamed {
    fn drop(&mut self) {
        self.under_way.closes(self.took.take());
    }
}

fn has_results(message: &[u8]) -> bool {
    Fields(message).flatten().any(|(field, _)| field == RESULTS)
}
