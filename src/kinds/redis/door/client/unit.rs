//! A transaction that a client sends whole: MULTI, its commands and EXEC in one piece, as the pipelines of stock
//! clients are. It goes over the shared connection as one request, without anything of others between.
//!
//! # Invariants
//! 1. Only commands that are carried like any other are within; whatever else is (SELECT, WATCH, a subscription), is
//!    sent piece by piece over a connection of the client's own (`pinned.rs`), as is a transaction that comes in
//!    pieces.
//! 2. It is one call: one place, the lanes of all its commands, and the outcome of its EXEC. If the server has refused
//!    its MULTI and has run one of its commands by itself, it has answered the call.
//! 3. It is one entry of the ring and one slot of the client's: its replies are handed on together, as the server wrote
//!    them.
//! 4. It is never sent twice over the shared connection. If its replies are lost, EXEC is answered so. What it did to
//!    the deadlines of its keys is known by the reply to EXEC, as that of each command would be.
//! 5. What cannot be sent goes the way of any call (`slow.rs`) if there is a call that says the same: if it may be
//!    queued, one that is applied as a whole or not at all, once; of nothing but GET, an MGET. Of anything else each
//!    command is *unavailable*, and EXEC is EXECABORT.
//! 6. One that only reads counts as a read. The replies of one of nothing but GET are cached as those of MGET are.

use std::{iter, rc::Rc, time::Duration};

use bytes::Bytes;
use fusebox_actors::{
    Admission, OtherWay, Outcome, PlainAccess, PlainPlan, Settled, Ticket, connector::AttemptError,
};
use fusebox_state::{ErrorClass, LaneId, Lanes, Verdict};
use tokio::time::Instant;

use super::{
    Client, Ending, Failed, Inner, Stuck,
    pinned::{Said, Sent},
};
use crate::kinds::redis::{
    connector::RedisConnector,
    door::{
        class::{self, Class},
        core::Core,
        counters::Closed,
        local::Replies,
        pin::{Barred, Steps},
        request::{Found, Requests},
        telling,
        upstream::{Note, Unit, Unsettled, Upstream},
    },
    protocol::{
        internal::{self, Step},
        resp,
    },
};

/// The commands of a transaction that is sent as one, and its bytes, at most.
const COMMANDS_MAX: usize = 1_000;
const BYTES_MAX: usize = 1 << 20;
/// How long the rest of one that has begun is waited for while the server may be away: clients write a long pipeline in
/// pieces.
const REST_PATIENCE: Duration = Duration::from_millis(100);

/// What is behind a MULTI.
enum Behind {
    /// All of a transaction that is sent as one.
    Whole(Block),
    /// The beginning of what may be one.
    Begun,
    /// Something else.
    Other,
}

/// What a client has sent as one.
struct Block {
    /// Commands, MULTI and EXEC included.
    commands: usize,
    /// Its bytes behind MULTI.
    behind: usize,
    lanes: Lanes,
    /// The same one by one, however many; `None` if one of its commands touches all.
    exact: Option<Vec<LaneId>>,
    /// What of its commands decides what becomes of deadlines.
    steps: Steps,
    /// None of its commands writes.
    reads: bool,
}

impl Inner {
    /// Sends a transaction whose MULTI is at hand and whose other commands follow it. `None` if it is not one
    /// that goes so.
    pub(super) fn unit(
        &mut self,
        client: &Rc<Client>,
        said: Said<'_>,
        behind: &[u8],
    ) -> Option<Sent> {
        if self.pinned.is_some() || self.session.replies != Replies::All {
            return None;
        }
        let core = &client.core();
        let link = core.link(self.session.protocol);
        let block = match self.block(client, behind) {
            Behind::Whole(block) => block,
            Behind::Begun if core.backend.is_suspect() || !link.is_up() => {
                let waited = self.stuck_since.is_some_and(|it| said.now - it >= REST_PATIENCE);
                return (!waited).then_some(Err(Some(Stuck::Rest)));
            }
            Behind::Begun | Behind::Other => return None,
        };
        if self.is_elsewhere(&link) {
            return Some(Err(Some(Stuck::Others)));
        }
        let within = behind.get(..block.behind)?;
        let request = [said.request, within].concat();
        let late = self.has_tried(client, said.now);
        if !link.takes(request.len()) {
            core.asks_for_fence(&link);
            if late {
                return self.unit_otherwise(client, &block, within);
            }
            return Some(Err(Some(Stuck::Place)));
        }
        let plan = PlainPlan {
            lanes: &block.lanes,
            access: if block.reads {
                PlainAccess::Read { keyed: true, slot: None, max_stale: None }
            } else {
                PlainAccess::Write { absolute: false }
            },
            priority: core.settings.priority,
            operation: "EXEC",
            trace: self.trace(core),
            uid: self.uid(),
            may_be_struck: false,
        };
        let ticket = match core.backend.admit(&plan) {
            Admission::Go(ticket) => ticket,
            Admission::OtherWay(OtherWay::Full) if !self.is_late(client, said.now) => {
                return Some(Err(Some(Stuck::Place)));
            }
            // It is refused command by command.
            Admission::OtherWay(OtherWay::Full) => return None,
            Admission::OtherWay(OtherWay::Lanes) if !late => {
                let may_wait = core.backend.lanes_move(&block.lanes);
                let lanes = may_wait.then_some(Err(Some(Stuck::Lanes)));
                if block.reads && may_wait {
                    return lanes;
                }
                return self.unit_otherwise(client, &block, within).or(lanes);
            }
            _ => return self.unit_otherwise(client, &block, within),
        };
        let unit = if block.reads {
            let fills = mget_of(within).and_then(|mget| core.begins_fills(mget));
            Unit::that_reads(block.commands, block.lanes, fills)
        } else {
            let unsettled = core.unsettled((block.lanes, block.exact), block.steps, &link);
            Unit::that_writes(block.commands, unsettled)
        };
        let note = Note::Unit(Box::new(unit));
        let how = (Some(ticket), note, true);
        let sent = self.send(client, &link, how, &request, said.now);
        match sent {
            Ok(()) => {
                self.swallowed = block.behind;
                (2..=block.commands).for_each(|_| core.counters.command());
            }
            // Its MULTI was answered so; what follows that is no transaction, and must not be run one by one.
            Err(None) => self.bar(Barred::Transaction),
            Err(Some(_)) => {}
        }
        Some(sent)
    }

    /// Hands a transaction over to the core, if a call says the same. `None` for what is refused command by command.
    fn unit_otherwise(
        &mut self,
        client: &Rc<Client>,
        block: &Block,
        within: &[u8],
    ) -> Option<Sent> {
        let core = client.core();
        let body = core.call_of(within)?;
        if let Some(stuck) = self.carried_by_core(client, body, !block.reads, Some(block.commands))
        {
            return Some(Err(Some(stuck)));
        }
        self.swallowed = block.behind;
        (2..=block.commands).for_each(|_| core.counters.command());
        Some(Ok(()))
    }

    /// The transaction whose commands are at the beginning of `bytes`.
    fn block(&self, client: &Rc<Client>, bytes: &[u8]) -> Behind {
        let connector = client.core().connector();
        let commands = &connector.links().shared.commands;
        let now = Instant::now();
        let mut exact = Some(Vec::new());
        let (mut behind, mut count, mut reads) = (0, 1, true);
        let mut steps = Steps::default();
        loop {
            let rest = bytes.get(behind..BYTES_MAX.min(bytes.len())).unwrap_or_default();
            let mut reader = Requests::default();
            let length = match reader.next(rest, true) {
                Found::Request(length) => length,
                Found::Nothing if bytes.len() < BYTES_MAX => return Behind::Begun,
                _ => return Behind::Other,
            };
            let request = rest.get(..length).unwrap_or_default();
            let args: Vec<&[u8]> = reader.args(request).collect();
            (behind, count) = (behind + length, count + 1);
            let Some(spec) = commands.find(&args) else { return Behind::Other };
            if &*spec.name == "exec" && args.len() == 1 {
                let lanes = exact.clone().map_or(Lanes::All, Lanes::new);
                return Behind::Whole(Block {
                    commands: count,
                    behind,
                    lanes,
                    exact,
                    steps,
                    reads,
                });
            }
            let class = class::of_connection(&args).unwrap_or_else(|| class::of(&spec, &args));
            // One that only an admin may send is sent by itself, where it is logged.
            if class != Class::Carried
                || class::needs_admin(&spec)
                || count > COMMANDS_MAX
                || self.refusal(&spec, class, &args).is_some()
            {
                return Behind::Other;
            }
            let writes = class::writes(&spec, class);
            reads &= !writes;
            let timed = writes.then(|| Steps::timed(&spec, &args)).flatten();
            let said = Said { spec: &spec, class, args: &args, request, now };
            let of_command = self.lanes_of(client, said);
            steps.add(Steps::touches_any(&spec, &args, &of_command), timed);
            exact = exact.filter(|_| !of_command.is_all());
            if let Some(exact) = &mut exact {
                exact.extend_from_slice(of_command.as_slice());
            }
        }
    }

    /// A transaction that was sent as one has been answered, or the EXEC of one that came in pieces.
    pub(super) fn unit_answered(
        &mut self,
        core: &Core,
        connector: &RedisConnector,
        (seq, ticket): (u64, Option<Ticket>),
        unit: &Unit,
    ) {
        if let (Some((mget, read, fills)), Some(exec)) = (&unit.fills, unit.exec())
            && let Some(value) = telling::cacheable_list(exec, self.session.protocol)
        {
            core.backend.end_fills(fills, read, mget, &value);
        }
        if unit.refusal().is_none() {
            // What the server refused of this client before was not executed before it, and is not behind it.
            self.passes(&unit.lanes);
        }
        let exec = resp::command(&["EXEC"]);
        let failed = unit.refusal().and_then(|refusal| core.failed(connector, &exec, refusal));
        let outcome = failed.unwrap_or(Outcome::Answered { cached: None, until: None });
        if let Some(ticket) = ticket {
            // Nobody else can run it again: the server's answer is the answer.
            core.over(ticket.settle(outcome));
        }
        if unit.is_too_large {
            self.end.with(Ending::Reset, Closed::SlowReader);
            return;
        }
        let refused = unit.refusal().filter(|_| unit.commands == 1);
        if refused.is_some_and(|it| it.starts_with(b"-") && !it.starts_with(b"-EXECABORT")) {
            // What it was to end may not have ended.
            self.leaves_with_its_own();
        }
        self.reply(seq, &unit.replies);
    }

    /// The connection over which a transaction was sent as one has ended.
    pub(super) fn unit_lost(
        &mut self,
        client: &Client,
        (seq, ticket): (u64, Option<Ticket>),
        unit: &Unit,
        request: &[u8],
        (verdict, error): (Verdict, AttemptError),
    ) {
        let core = &client.core();
        let why = format!("{}: {}", core.backend.name(), error.words().whole());
        let may_have_run = error.class == ErrorClass::Unknown;
        let mut onward = match ticket.map(|it| it.settle(Outcome::Failed { verdict, error })) {
            Some(Settled::GoOn(onward)) => Some(onward),
            _ => None,
        };
        let writes = onward.as_ref().is_some_and(|onward| onward.lanes().is_some());
        let may_have_run = writes && may_have_run;
        if !may_have_run
            && !client.gone.get()
            && let Some(body) = behind_multi(request).and_then(|within| core.call_of(within))
            && let Some(mut onward) = onward.take()
        {
            core.backend.hold(&mut onward);
            let commands = Some(unit.commands);
            let held = core.whole.keeps(body);
            self.failed.push_back(Failed { seq, onward, held, commands, refusal: None });
            return;
        }
        if let Some(onward) = onward {
            core.backend.end(*onward);
        }
        if may_have_run {
            self.passes(&unit.lanes);
        }
        let answer = if may_have_run {
            telling::unknown(&why, core.settings.close_on_unknown)
        } else {
            core.unavailable(&why)
        };
        self.ended(client, seq, telling::of_transaction(unit.commands, answer, may_have_run));
    }
}

/// What is behind the first of several requests.
fn behind_multi(requests: &[u8]) -> Option<&[u8]> {
    let Found::Request(length) = Requests::default().next(requests, true) else { return None };
    requests.get(length..)
}

impl Core {
    /// What a transaction of these lanes does to the deadlines of its keys, from now until its EXEC is answered over
    /// that connection.
    pub(super) fn unsettled(
        &self,
        (lanes, exact): (Lanes, Option<Vec<LaneId>>),
        steps: Steps,
        link: &Upstream,
    ) -> Unsettled {
        let (connector, way) = (self.connector(), Some(link.way()));
        match steps.followed() {
            Some(followed) => {
                let now = self.backend.steady_unix();
                Unsettled::following(connector, lanes, followed, (now, way))
            }
            None => Unsettled::of(connector, (lanes, exact), way),
        }
    }

    /// A call that says what the transaction does whose commands these are, EXEC at their end: one that may be queued,
    /// or an MGET.
    fn call_of(&self, within: &[u8]) -> Option<Bytes> {
        let commands = commands_of(within)?;
        if let Some(mget) = mget(&commands) {
            return Some(mget);
        }
        let steps = commands.into_iter().map(|args| Step { args, deadlines: Vec::new() });
        let body = internal::multi(&steps.collect::<Vec<_>>());
        self.queues(&body).then_some(body)
    }
}

/// The commands of a transaction before its EXEC, at least one.
fn commands_of(within: &[u8]) -> Option<Vec<Vec<&[u8]>>> {
    let (mut commands, mut rest) = (Vec::new(), within);
    while !rest.is_empty() {
        let mut reader = Requests::default();
        let Found::Request(length) = reader.next(rest, true) else { return None };
        let (request, behind) = rest.split_at_checked(length)?;
        commands.push(reader.args(request).collect());
        rest = behind;
    }
    commands.pop();
    (!commands.is_empty()).then_some(commands)
}

/// The MGET that reads what a transaction does of nothing but GET.
fn mget_of(within: &[u8]) -> Option<Bytes> {
    mget(&commands_of(within)?)
}

fn mget(commands: &[Vec<&[u8]>]) -> Option<Bytes> {
    let keys = commands.iter().map(|args| match args.as_slice() {
        [name, key] if name.eq_ignore_ascii_case(b"GET") => Some(*key),
        _ => None,
    });
    let words: Option<Vec<&[u8]>> = iter::once(Some(&b"MGET"[..])).chain(keys).collect();
    words.map(|words| resp::command(&words))
}
