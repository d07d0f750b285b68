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
//! **A method that nobody knows** may write at any time while its answer comes. So what was sent of it is under way
//! until that has ended, and with each piece of the answer the whole cache goes.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use fusebox_actors::{Ticket, connector::OwnCode};
use fusebox_state::{ErrorClass, Lanes, Verdict};
use parking_lot::Mutex;
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};
use tonic::{Code, Status};

use super::{
    core::Core,
    entry::Entered,
    exchange::given_up,
    framing::{Gathered, take_first},
    pool::LASTING_WINDOW,
};
use crate::{
    kinds::firestore::{
        protocol::{
            fields::Fields,
            outcome::{self, Behalf, Failed},
            stock,
        },
        transport::{cause, fence},
    },
    net::grpc::Carrier,
};

/// The field of an answer that holds the results of writes.
const RESULTS: u32 = 3;

/// The writes of a stream that are under way, in their order.
pub(super) struct UnderWay {
    core: Arc<Core>,
    state: Mutex<State>,
    /// Notified when there is one more.
    sent: Notify,
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
    pub(super) fn new(core: &Arc<Core>) -> Arc<Self> {
        let (core, state, sent) = (Arc::clone(core), Mutex::default(), Notify::new());
        Arc::new(Self { core, state, sent })
    }

    /// A message was admitted, and is about to be sent; false if the stream has ended: then it is not.
    pub(super) fn begins(&self, Entered { ticket, fence }: Entered) -> bool {
        let (wait, pass) = fence.unzip();
        let write = Write { since: Instant::now(), ticket: Some(ticket), wait, pass };
        let mut state = self.state.lock();
        if state.has_ended {
            drop(state);
            let message = "its stream has ended";
            let (neutral, class) = (Verdict::Neutral, ErrorClass::NotExecuted);
            write.ends(&self.core, Some(&Failed::own(neutral, class, OwnCode::Closed, message)));
            return false;
        }
        state.writes.push_back(write);
        drop(state);
        self.sent.notify_one();
        true
    }

    /// Whether anything of it may have been executed that is not answered.
    pub(super) fn may_write(&self) -> bool {
        !self.state.lock().writes.is_empty()
    }

    /// Resolves when a message is not answered in time, with which it has failed.
    pub(super) async fn overdue(&self) {
        loop {
            let timeout = self.core.backend.timeout();
            let first = self.state.lock().writes.front().map(|write| write.since);
            match first.map(|since| since + timeout) {
                None => self.sent.notified().await,
                Some(late) if late <= Instant::now() => return self.fails(given_up(true, timeout)),
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

    /// So many messages are answered.
    fn answered(&self, count: usize) {
        for _ in 0..count {
            let Some(write) = self.state.lock().writes.pop_front() else { return };
            write.ends(&self.core, None);
        }
    }

    /// The stream is over. What failed it is how the first write that is not answered has ended; those behind that say
    /// nothing of the server. Returns what of them may still land.
    fn ends(&self) -> Vec<fence::Pass> {
        let mut state = self.state.lock();
        state.has_ended = true;
        let (writes, failed) = (std::mem::take(&mut state.writes), state.failed.take());
        drop(state);
        let mut failed = failed.unwrap_or_else(|| unknown(Verdict::Neutral, "its client has left"));
        let mut left = Vec::new();
        for write in writes {
            left.extend(write.ends(&self.core, Some(&failed)));
            failed.verdict = Verdict::Neutral;
        }
        left
    }
}

impl Write {
    /// It is over. Returns its pass if it may still land: it is in doubt from here on.
    fn ends(self, core: &Core, failed: Option<&Failed>) -> Option<fence::Pass> {
        let Self { ticket, wait, pass, .. } = self;
        if let Some(ticket) = ticket {
            core.ends(ticket, failed.cloned());
        }
        if failed.is_some_and(|failed| failed.error.doubt.is_some()) {
            drop(wait);
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
    carrier: Option<Carrier>,
    behalf: Behalf,
    answers: Answers,
}

enum Answers {
    /// One for each message.
    Counted(Gathered),
    /// One came that is not understood: nothing more counts.
    Unread,
    /// Of a method that nobody knows.
    Unknown,
}

impl Streamed {
    pub(super) fn new(
        core: &Arc<Core>,
        under_way: Arc<UnderWay>,
        carrier: Option<Carrier>,
        behalf: Behalf,
        is_known: bool,
    ) -> Self {
        let answers =
            if is_known { Answers::Counted(Gathered::default()) } else { Answers::Unknown };
        Self { core: Arc::clone(core), under_way, carrier, behalf, answers }
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
        if gathered.wanted() > LASTING_WINDOW as usize {
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
                self.under_way.answered(1);
            }
        }
    }

    /// The first message, by which the call entered, may write until the answer to that, or to all of it.
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
            self.under_way.fails(outcome::of(&status, cause::of(&status), self.behalf));
        }
    }

    /// The stream broke.
    pub(super) fn breaks(&self) {
        self.fails(unknown(Verdict::Failure, "the stream broke"));
    }

    /// It ended so.
    pub(super) fn fails(&self, failed: Failed) {
        self.under_way.fails(failed);
    }

    /// Whether anything of it may have been executed that is not answered.
    pub(super) fn may_write(&self) -> bool {
        self.under_way.may_write()
    }
}

/// A write of unknown outcome.
pub(super) fn unknown(verdict: Verdict, why: &str) -> Failed {
    let mut failed = Failed::own(verdict, ErrorClass::Unknown, OwnCode::Closed, why.to_owned());
    failed.error.doubt = Some(Bytes::new());
    failed
}

impl Drop for Streamed {
    fn drop(&mut self) {
        let left = self.under_way.ends();
        if left.is_empty() {
            return;
        }
        let carrier = self.carrier.take();
        self.core.go_on(async move {
            if let Some(carrier) = carrier {
                carrier.reset().await;
            }
            drop(left);
        });
    }
}

fn has_results(message: &[u8]) -> bool {
    Fields(message).flatten().any(|(field, _)| field == RESULTS)
}
