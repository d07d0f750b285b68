//! Shared connections that hand on a large reply, at its client's pace: another one takes what others ask meanwhile.
//!
//! They take a part of what the door leaves to others of the server's connections, so they are not many. If one more is
//! needed, the client that has taken nothing of its reply for the longest time is disconnected once that is a while;
//! and one more after each further while. Who goes on taking is never disconnected for that. Until one of them has
//! left, who shares the one that is to be replaced waits, or goes by the core.

use std::rc::Rc;

use tokio::time::Instant;

use super::Core;
use crate::kinds::redis::door::upstream::Upstream;

/// Of what is left to others of a server's connections, they take this part; one at least.
const LARGE_SHARE: usize = 2;
/// So many there are at most before a server that does not say how many connections it takes.
const LARGE_MAX: usize = 1_024;
/// If others need the place, a client has this part of the backend's `timeout` to take something of its large reply.
const PATIENCE_SHARE: u32 = 8;

impl Core {
    /// A connection hands on a large reply, and takes nothing more: from now on another one takes what others ask.
    /// False if there may not be one more now.
    pub(super) fn replace(self: &Rc<Self>, upstream: &Rc<Upstream>) -> bool {
        let is_shared = self.links.borrow().iter().any(|link| Rc::ptr_eq(link, upstream));
        if !is_shared || !upstream.is_retiring() {
            return true;
        }
        if self.all_leaving().len() >= self.large_max() {
            return false;
        }
        let fresh = Upstream::new(self.connector(), upstream.asked(), None, &self.whole.apart);
        for place in &mut *self.links.borrow_mut() {
            if Rc::ptr_eq(place, upstream) {
                *place = Rc::clone(&fresh);
            }
        }
        self.leaving.borrow_mut().push(Rc::clone(upstream));
        self.begin(fresh);
        true
    }

    /// There is no place for what is to take the place of a connection. If the client that has taken nothing for the
    /// longest time has had time enough, it is disconnected. Returns when to ask again.
    pub(super) fn make_place(&self, upstream: &Rc<Upstream>) -> Instant {
        let patience = self.backend.timeout() / PATIENCE_SHARE;
        let now = Instant::now();
        let mut links = self.all_leaving();
        links.push(Rc::clone(upstream));
        let held_up = links.iter().filter_map(|link| Some((link.held_up_since()?, link)));
        match held_up.min_by_key(|(since, _)| *since) {
            Some((since, _)) if since + patience > now => since + patience,
            longest => {
                if let Some((_, link)) = longest {
                    link.give_up_client();
                }
                now + patience
            }
        }
    }

    /// The connections that hand on large replies, or have done so, and take nothing more: of all databases.
    fn all_leaving(&self) -> Vec<Rc<Upstream>> {
        let cores = self.whole.cores.borrow();
        cores.iter().flat_map(|core| core.leaving.borrow().clone()).collect()
    }

    /// One has left: those that have waited for its place are replaced.
    pub(super) fn place_has_come(self: &Rc<Self>) {
        let links = self.links.borrow().clone();
        for link in &links {
            self.replace(link);
        }
        self.places_are_free();
    }

    /// Whether a connection was replaced, and has handed on all that it had.
    pub(super) fn has_left(&self, upstream: &Rc<Upstream>) -> bool {
        let is_it = |link: &Rc<Upstream>| Rc::ptr_eq(link, upstream);
        let was_replaced = !self.links.borrow().iter().any(is_it);
        let has_left = was_replaced && upstream.is_spent();
        if has_left {
            self.leaving.borrow_mut().retain(|link| !is_it(link));
        }
        has_left
    }

    /// How many of them there may be.
    fn large_max(&self) -> usize {
        self.of_server().map_or(LARGE_MAX, |(_, others)| (others / LARGE_SHARE).max(1))
    }
}
