//! A transaction that a client sends whole: MULTI, its commands and EXEC in one piece, as the pipelines of stock clients
//! are. It goes over the shared connection as one request, without anything of others between.
//!
//! # Invariants
//! 1. Only commands that are carried like any other are within; whatever else is (SELECT, WATCH, a subscription), is
//!    sent piece by piece over a connection of the client's own (`pinned.rs`), as is a transaction that comes in pieces.
//! 2. It is one call: one place, the lanes of all its commands, and the outcome of its EXEC.
//! 3. It is one entry of the ring and one slot of the client's: its replies are handed on together, as the server wrote
//!    them.
//! 4. It is never sent twice. If its replies are lost it is told as such at EXEC; if it was not sent, each of its
//!    commands is *unavailable* and EXEC is EXECABORT.

use std::rc::Rc;

use bytes::{BufMut, Bytes, BytesMut};
use fusebox_actors::{
    Admission, OtherWay, Outcome, PlainAccess, PlainPlan, Settled, Ticket, connector::AttemptError,
    trace::CallTrace,
};
use fusebox_state::{ErrorClass, Lanes, Verdict};
use tokio::time::Instant;

use super::{
    Client, Ending, Inner, ROUTE, Stuck,
    pinned::{Said, Sent},
};
use crate::kinds::redis::{
    connector::RedisConnector,
    door::{
        class::{self, Class},
        core::Core,
        counters::Closed,
        lane_set::LaneSet,
        local::Replies,
        request::{Found, Requests},
        telling::{self, Answer},
        upstream::{Note, Unit, Unsettled},
    },
    protocol::resp,
};

/// The commands of a transaction that is sent as one, and its bytes, at most.
const COMMANDS_MAX: usize = 1_000;
const BYTES_MAX: usize = 1 << 20;

/// What a client has sent as one.
struct Block {
    /// Commands, MULTI and EXEC included.
    commands: usize,
    /// Its bytes behind MULTI.
    behind: usize,
    lanes: Lanes,
}

impl Inner {
    /// Sends a transaction whose MULTI is at hand and whose other commands stand behind it. `None` if it is not one that
    /// goes so.
    pub(super) fn unit(
        &mut self,
        client: &Rc<Client>,
        said: Said<'_>,
        behind: &[u8],
    ) -> Option<Sent> {
        if self.pinned.is_some() || self.session.replies != Replies::All {
            return None;
        }
        let block = self.block(client, behind)?;
        let core = &client.core();
        let link = core.link(self.session.protocol);
        if self.is_elsewhere(&link) {
            return Some(Err(Some(Stuck::Others)));
        }
        let request = [said.request, behind.get(..block.behind)?].concat();
        if !link.takes(request.len()) {
            core.asks_for_fence(&link);
            return (!self.is_late(client, said.now)).then_some(Err(Some(Stuck::Place)));
        }
        let plan = PlainPlan {
            lanes: &block.lanes,
            access: PlainAccess::Write { absolute: false },
            priority: core.settings.priority,
            operation: "EXEC",
            trace: CallTrace::new(ROUTE),
        };
        let late = self.is_late(client, said.now);
        let ticket = match core.backend.admit(&plan) {
            Admission::Go(ticket) => ticket,
            Admission::OtherWay(OtherWay::Full) if !late => return Some(Err(Some(Stuck::Place))),
            Admission::OtherWay(OtherWay::Lanes) if !late => return Some(Err(Some(Stuck::Lanes))),
            // It is refused command by command.
            _ => return None,
        };
        let unsettled = Unsettled::new(core.connector(), block.lanes);
        let note = Note::Unit(Box::new(Unit::of(block.commands, unsettled)));
        let how = (Some(ticket), note, true);
        let sent = self.send(client, &link, how, &request, said.now);
        if sent.is_ok() {
            self.swallowed = block.behind;
            (2..=block.commands).for_each(|_| core.counters.command());
        }
        Some(sent)
    }

    /// The transaction whose commands stand at the beginning of `bytes`, if all of it is there.
    fn block(&self, client: &Rc<Client>, bytes: &[u8]) -> Option<Block> {
        let connector = client.core().connector();
        let commands = &connector.links().shared.commands;
        let now = Instant::now();
        let mut lanes = LaneSet::default();
        let (mut behind, mut count) = (0, 1);
        loop {
            let rest = bytes.get(behind..BYTES_MAX.min(bytes.len()))?;
            let mut reader = Requests::default();
            let Found::Request(length) = reader.next(rest, true) else { return None };
            let request = rest.get(..length)?;
            let args: Vec<&[u8]> = reader.args(request).collect();
            (behind, count) = (behind + length, count + 1);
            let spec = commands.find(&args)?;
            if &*spec.name == "exec" && args.len() == 1 {
                return Some(Block { commands: count, behind, lanes: lanes.to_lanes() });
            }
            let class = class::of_connection(&args).unwrap_or_else(|| class::of(&spec, &args));
            if class != Class::Carried
                || count > COMMANDS_MAX
                || self.refusal(&spec, class, &args).is_some()
            {
                return None;
            }
            let said = Said { spec: &spec, class, args: &args, request, now };
            lanes.add(&self.lanes_of(client, said));
        }
    }

    /// A transaction that was sent as one has been answered.
    pub(super) fn unit_answered(
        &mut self,
        core: &Core,
        connector: &RedisConnector,
        (seq, ticket): (u64, Option<Ticket>),
        unit: &Unit,
    ) {
        let exec = resp::command(&["EXEC"]);
        let failed = unit.refusal().and_then(|refusal| core.failed(connector, &exec, refusal));
        let outcome = failed.unwrap_or(Outcome::Answered { cached: None, until: None });
        if let Some(ticket) = ticket {
            // Nobody else can run it again: the server's answer is the answer.
            drop(ticket.settle(outcome));
        }
        if unit.is_too_large {
            (self.ending, self.closed) = (Ending::Reset, Closed::SlowReader);
            return;
        }
        self.reply(seq, &unit.replies);
    }

    /// A transaction that was sent as one has no reply.
    pub(super) fn unit_lost(
        &mut self,
        core: &Core,
        (seq, ticket): (u64, Option<Ticket>),
        unit: &Unit,
        (verdict, error): (Verdict, AttemptError),
    ) {
        let why = format!("{}: {}", core.backend.name(), error.words().whole());
        let may_have_run = error.class == ErrorClass::Unknown;
        let failed = Outcome::Failed { verdict, error };
        let settled = ticket.map(|ticket| ticket.settle(failed));
        let writes = matches!(settled, Some(Settled::GoOn(onward)) if onward.lanes().is_some());
        let answer = if writes && may_have_run {
            ran_perhaps(unit, &why, core)
        } else {
            not_run(unit, &why, core)
        };
        self.ended(seq, answer);
    }
}

/// What is told of a transaction that may have run.
fn ran_perhaps(unit: &Unit, why: &str, core: &Core) -> Answer {
    let Answer::Reply(exec) = telling::unknown(why, core.settings.close_on_unknown) else {
        return Answer::Close;
    };
    let mut out = BytesMut::new();
    out.put_slice(b"+OK\r\n");
    (2..unit.commands).for_each(|_| out.put_slice(b"+QUEUED\r\n"));
    out.put_slice(&exec);
    Answer::Reply(out.freeze())
}

/// What is told of a transaction that has not run.
fn not_run(unit: &Unit, why: &str, core: &Core) -> Answer {
    let Answer::Reply(each) = core.unavailable(why) else { return Answer::Close };
    let mut out = BytesMut::new();
    (1..unit.commands).for_each(|_| out.put_slice(&each));
    let aborted = format!("EXECABORT Transaction discarded because of: fusebox: {why}");
    out.put_slice(&telling::error(&aborted));
    Answer::Reply(Bytes::from(out))
}
