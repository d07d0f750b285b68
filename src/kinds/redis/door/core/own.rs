//! Upstreams that belong to one client each, and those that are nobody's and wait for the next one.

use std::{rc::Rc, time::Duration};

use tokio::time::{Instant, sleep};

use super::{Core, until};
use crate::kinds::redis::{
    door::{
        client::Client,
        telling::Protocol,
        upstream::{Turn, Upstream},
    },
    transport::handshake::Protocol as Spoken,
};

/// How long a connection is kept that no client needs.
const KEPT_FOR: Duration = Duration::from_secs(10);

/// Of the connections that a server takes, a door leaves this part to others (among them the daemon's other
/// connections), and so many at least; but never more than half.
const OTHERS_SHARE: usize = 8;
const OTHERS_MIN: usize = 16;

impl Core {
    /// An upstream of a client's own. `None` if there are as many as may be.
    pub(in crate::kinds::redis::door) fn pin(
        self: &Rc<Self>,
        client: &Rc<Client>,
        protocol: Protocol,
    ) -> Option<Rc<Upstream>> {
        let spoken = if protocol == Protocol::Resp2 { Spoken::Two } else { Spoken::Newest };
        if let Some(upstream) = self.pooled(spoken) {
            upstream.give_to(Some(Rc::clone(client)));
            return Some(upstream);
        }
        if self.whole.pinned.get() >= self.pinned_max() {
            // One that is nobody's makes room: of the other protocol, or of another database.
            let mut cores = self.whole.cores.borrow().clone();
            cores.sort_by_key(|core| !Rc::ptr_eq(core, self));
            let spare = cores.iter().find_map(|core| core.pool.borrow_mut().pop());
            spare?.1.close();
        }
        self.whole.pinned.set(self.whole.pinned.get() + 1);
        self.whole.count_pinned();
        let upstream =
            Upstream::new(self.connector(), spoken, Some(Rc::clone(client)), &self.whole.apart);
        let (core, driven) = (Rc::clone(self), Rc::clone(&upstream));
        tokio::task::spawn_local(async move {
            core.drive_pinned(Rc::clone(&driven)).await;
            core.pool.borrow_mut().retain(|(_, spare)| !Rc::ptr_eq(spare, &driven));
            core.whole.pinned.set(core.whole.pinned.get() - 1);
            core.whole.count_pinned();
        });
        Some(upstream)
    }

    /// How many connections may belong to one client each: as many as the door allows, and no more than leave some of
    /// the server's to others.
    fn pinned_max(&self) -> usize {
        let own = self.settings.pinned;
        self.of_server().map_or(own, |(all, others)| own.min(all - others))
    }

    /// How many connections the server takes, if it says so, and how many of them are left to others.
    pub(super) fn of_server(&self) -> Option<(usize, usize)> {
        let connector = self.connector.borrow();
        let server = connector.links().shared.server.lock();
        let all = server.as_ref()?.connections_max?;
        Some((all, (all / OTHERS_SHARE).max(OTHERS_MIN).min(all / 2)))
    }

    /// Takes back the connection of a client that needs it no more.
    pub(in crate::kinds::redis::door) fn unpin(&self, upstream: Rc<Upstream>) {
        upstream.give_to(None);
        self.pool.borrow_mut().push((Instant::now(), upstream));
        self.whole.count_pinned();
        if let Some(waker) = self.thinner.take() {
            waker.wake();
        }
    }

    /// A connection that is nobody's, the last that was given back.
    fn pooled(&self, spoken: Spoken) -> Option<Rc<Upstream>> {
        let connector = self.connector.borrow();
        let mut pool = self.pool.borrow_mut();
        let at = pool.iter().rposition(|(_, spare)| {
            spare.spoken() == spoken && spare.is_idle() && spare.is_of(&connector)
        })?;
        let (_, upstream) = pool.remove(at);
        drop(pool);
        self.whole.count_pinned();
        Some(upstream)
    }

    /// Closes what has been nobody's for long. Runs for as long as the door lives.
    pub(in crate::kinds::redis::door) async fn thin_pool(self: Rc<Self>) {
        loop {
            until(&self.thinner, || !self.pool.borrow().is_empty()).await;
            sleep(KEPT_FOR / 4).await;
            let (old, kept) = self
                .pool
                .take()
                .into_iter()
                .partition::<Vec<_>, _>(|(since, _)| since.elapsed() >= KEPT_FOR);
            self.pool.replace(kept);
            for (_, spare) in old {
                spare.close();
            }
        }
    }

    /// Ends connections over which nothing comes any more. If the server, or the way to it, is gone without a word,
    /// nobody would notice that of a connection whose client listens, or waits for something that may never come: no
    /// reply is overdue there. So once the backend is not asked any more, each of them has the time of one reply to let
    /// something be heard, also if the backend is asked again by then. Runs for as long as the door lives.
    pub(in crate::kinds::redis::door) async fn end_the_deaf(self: Rc<Self>) {
        loop {
            self.backend.not_asked().await;
            // Those that are nobody's would be given to clients that wait.
            for (_, spare) in self.pool.take() {
                spare.close();
            }
            let clients = self.whole.clients();
            let own = clients.iter().filter_map(|client| client.upstream_in(&self));
            let doubted: Vec<Rc<Upstream>> = own.filter(|it| it.may_be_deaf()).collect();
            // Nobody who leaves meanwhile is kept.
            drop(clients);
            for upstream in &doubted {
                upstream.doubt();
            }
            sleep(self.backend.timeout()).await;
            for upstream in doubted {
                upstream.give_up_if_deaf();
            }
            self.backend.until_asked().await;
        }
    }

    async fn drive_pinned(&self, upstream: Rc<Upstream>) {
        let (mut was_up, mut turn) = (false, Turn::default());
        loop {
            upstream.turn(&mut turn).await;
            if turn.went_up {
                was_up = true;
                self.pin_opened();
            }
            let closed = upstream.is_closed();
            for client in turn.touched.drain(..) {
                client.flush();
            }
            self.places_are_free();
            if turn.ended || !turn.lost.is_empty() || closed {
                if let Some(client) = upstream.owner() {
                    client.lost_its_upstream(turn.lost, was_up);
                }
                upstream.close();
                return;
            }
        }
    }
}
