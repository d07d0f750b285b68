//! Shared connections that hand on a large reply, at its client's pace: another one takes what others ask meanwhile.
//!
//! They take a part of what the door leaves to others of the server's connections, so they are not many. If one more is
//! needed, the one that has handed on for the longest time waits for no client any more. Until that has left, who shares
//! the one that is to be replaced waits.

use std::rc::Rc;

use tokio::time::Instant;

use super::Core;
use crate::kinds::redis::door::upstream::Upstream;

/// Of what is left to others of a server's connections, they take this part; one at least.
const LARGE_SHARE: usize = 2;
/// So many there are at most before a server that does not say how many connections it takes.
const LARGE_MAX: usize = 1_024;

impl Core {
    /// A connection hands on a large reply: from now on another one takes what others ask, if there may be one more.
    pub(super) fn replace(self: &Rc<Self>, upstream: &Rc<Upstream>) {
        if !self.links.borrow().iter().any(|link| Rc::ptr_eq(link, upstream)) {
            return;
        }
        let cores = self.whole.cores.borrow().clone();
        let leaving: Vec<(Instant, Rc<Upstream>)> =
            cores.iter().flat_map(|core| core.leaving.borrow().clone()).collect();
        if leaving.len() >= self.large_max() {
            let hurries = leaving.iter().any(|(_, link)| link.hurries());
            if !hurries && let Some((_, longest)) = leaving.iter().min_by_key(|(since, _)| *since) {
                longest.hurry();
            }
            return;
        }
        let fresh = Upstream::new(self.connector(), upstream.asked(), None, &self.whole.apart);
        for place in &mut *self.links.borrow_mut() {
            if Rc::ptr_eq(place, upstream) {
                *place = Rc::clone(&fresh);
            }
        }
        self.leaving.borrow_mut().push((Instant::now(), Rc::clone(upstream)));
        self.begin(fresh);
    }

    /// One has left: those that have waited for its place are replaced.
    pub(super) fn place_has_come(self: &Rc<Self>) {
        let links = self.links.borrow().clone();
        for link in links.iter().filter(|link| link.hands_on()) {
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
            self.leaving.borrow_mut().retain(|(_, link)| !is_it(link));
        }
        has_left
    }

    /// How many of them there may be.
    fn large_max(&self) -> usize {
        self.of_server().map_or(LARGE_MAX, |(_, others)| (others / LARGE_SHARE).max(1))
    }
}
