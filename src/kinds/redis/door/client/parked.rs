//! A command that waits for others while the server is away.
//!
//! A worker asks for a job and waits: an empty queue says nothing for the time that it was given, and then nil. So does
//! the door while nobody can be asked. An error would end the workers of many job frameworks, and be asked again at
//! once by the clients of others.
//!
//! ```text
//!             sent                      answered
//!   dispatch ──────▶ on its upstream ───────────▶ the client
//!      │                │ lost       ▲
//!      │ nobody may     ▼            │ the breaker is closed: a few of them at a time
//!      └────────────▶ parked ────────┘
//!                       └──────────▶ nil, when its own time is over
//! ```
//! # Invariants
//! 1. It is sent with what is left of its time, which also runs while the command is held up before it is sent or
//!    parked. If nothing is left when it may be sent, it is sent with a millisecond. Parked, its time ends when the
//!    client said. At the server, it ends later by as long as its connection took to be opened; at one that is frozen,
//!    the backend's `timeout` after that.
//! 2. It holds no place, no permit and no connection while it is parked, and is never what finds out whether the server
//!    is back. In an EMERGENCY, one that may change data is parked though the server is there.
//! 3. A client with a parked command that hangs up is gone at once.
//! 4. What was popped on a connection that broke before the reply was read is lost, as it is without a door: the
//!    command was sent, and it is sent again only because it asks for another element.

use std::{
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use bytes::Bytes;
use fusebox_actors::Source;
use fusebox_state::Lanes;
use tokio::time::{Instant, Sleep, sleep_until};

use super::{
    Client, Inner,
    pinned::{Said, Sent},
};
use crate::ingress::parking;
use crate::kinds::redis::{
    door::{
        class::{Class, Pinned},
        held::Held,
        telling::Told,
        upstream::{Note, Unsettled, Upstream, Waited},
        waiting::{self, Waiting},
    },
    protocol::{
        deadlines::{self, Written},
        resp,
    },
};

/// See the [module](self).
pub(super) struct Parked {
    seq: u64,
    held: Held,
    /// When its time is over; `None` for never.
    until: Option<Instant>,
    alarm: Option<Pin<Box<Sleep>>>,
    /// It is counted among those that wait.
    _counted: parking::Parked,
}

impl Parked {
    /// The slot of its reply.
    pub(super) fn seq(&self) -> u64 {
        self.seq
    }

    /// Whether its time is over.
    fn is_over(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(until) = self.until else { return false };
        let alarm = self.alarm.get_or_insert_with(|| Box::pin(sleep_until(until)));
        matches!(alarm.as_mut().poll(cx), Poll::Ready(()))
    }
}

impl Inner {
    /// Parks the command at hand.
    pub(super) fn park(&mut self, client: &Rc<Client>, request: &[u8], until: Option<Instant>) {
        let seq = self.slot();
        self.park_in(client, seq, Bytes::copy_from_slice(request), until);
    }

    /// Parks the command of a slot.
    pub(super) fn park_in(
        &mut self,
        client: &Rc<Client>,
        seq: u64,
        body: Bytes,
        until: Option<Instant>,
    ) {
        let counted = client.core().counters.park();
        let held = client.core().whole.keeps(body);
        self.parked = Some(Parked { seq, held, until, alarm: None, _counted: counted });
        client.core().parks(client);
    }

    /// Sends what is parked if that may be, or ends it if its time is over. False if there is nothing to do now.
    pub(super) fn tend_parked(&mut self, client: &Rc<Client>, cx: &mut Context<'_>) -> bool {
        let Some(mut parked) = self.parked.take() else { return false };
        if parked.is_over(cx) {
            client.core().is_not_parked(client);
            self.nothing_came(client, parked.seq);
            return true;
        }
        if client.may_go.take() {
            if self.send_parked(client, &parked) {
                return true;
            }
            client.core().parks(client);
        }
        self.parked = Some(parked);
        self.look(client, cx)
    }

    /// The time of a slot's command is over, and nothing has come.
    pub(super) fn nothing_came(&mut self, client: &Client, seq: u64) {
        self.last = Told { source: Some(Source::Empty), ..Told::default() };
        client.core().counters.answered(Source::Empty);
        let nothing = waiting::nothing_came(self.session.protocol);
        self.reply(seq, nothing);
    }

    fn send_parked(&mut self, client: &Rc<Client>, parked: &Parked) -> bool {
        let Ok(args) = resp::arguments(&parked.held.body) else { return false };
        let connector = client.core().connector();
        let (Some(spec), Some(waiting)) =
            (connector.links().shared.commands.find(&args), Waiting::of(&args))
        else {
            return false;
        };
        let now = Instant::now();
        let left = parked.until.map(|until| until.saturating_duration_since(now));
        let request = waiting.with_time(&args, left);
        let class = Class::Pinned(Pinned::Blocks);
        let said = Said { spec: &spec, class, args: &args, request: &request, now };
        let lanes = self.lanes_of(client, said);
        if self.leave_to_wait(client, &lanes, said).is_err() {
            return false;
        }
        let Some(upstream) = self.own_upstream(client) else { return false };
        self.send_waiting(client, &upstream, (lanes, parked.until), said, Some(parked.seq)).is_ok()
    }

    /// Sends a command that waits for others, until then or for ever.
    pub(super) fn send_waiting(
        &mut self,
        client: &Rc<Client>,
        upstream: &Rc<Upstream>,
        (lanes, until): (Lanes, Option<Instant>),
        said: Said<'_>,
        seq: Option<u64>,
    ) -> Sent {
        // What may be of any key has its say once it is answered: it may well be refused.
        if !lanes.is_all() {
            client.core().backend.wrote(&lanes);
        }
        let unsettled = self.may_settle(client, lanes, said, Some(upstream.way()));
        let note = Note::Waited(Box::new(Waited { unsettled, until }));
        self.send_in(client, upstream, (None, note, true), (said.request, seq), said.now)
    }

    /// What a command that waits for others may do to the deadlines of keys while it is on the wire.
    fn may_settle(
        &self,
        client: &Client,
        lanes: Lanes,
        said: Said<'_>,
        way: deadlines::Way,
    ) -> Unsettled {
        let connector = client.core().connector();
        let here = client.core().database();
        let is_here = self.database(client).is_none_or(|database| database == here);
        if !is_here || !said.may_change() {
            return Unsettled::waiting(connector, lanes, None, way);
        }
        let Some(places) = said.spec.keys(said.args) else {
            return Unsettled::of(connector, (lanes, None), way);
        };
        let written = Written { name: &said.spec.name, args: said.args, places: &places };
        Unsettled::waiting(connector, lanes, Some(written), way)
    }
}
