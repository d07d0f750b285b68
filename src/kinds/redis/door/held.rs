//! What a door holds of requests apart from its clients' input: it is counted for as long as it is there.

use std::{cell::Cell, rc::Rc};

use bytes::Bytes;

/// So many bytes, counted until this is dropped.
pub(super) struct Weight {
    bytes: usize,
    all: Rc<Cell<usize>>,
}

/// A request, with what it weighs.
pub(super) struct Held {
    pub(super) body: Bytes,
    pub(super) weight: Weight,
}

impl Weight {
    /// They are added to `all`.
    pub(super) fn new(bytes: usize, all: &Rc<Cell<usize>>) -> Self {
        all.set(all.get().saturating_add(bytes));
        Self { bytes, all: Rc::clone(all) }
    }
}

impl Drop for Weight {
    fn drop(&mut self) {
        self.all.set(self.all.get().saturating_sub(self.bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_counts_as_long_as_anything_of_it_is_held() {
        let all = Rc::<Cell<usize>>::default();
        let body = Bytes::from_static(b"12345");
        let held = Held { weight: Weight::new(body.len(), &all), body };
        let other = Weight::new(7, &all);
        assert_eq!(all.get(), 12);
        // Its body goes elsewhere, and it is still what the door waits for.
        let Held { body, weight } = held;
        drop(body);
        assert_eq!(all.get(), 12);
        drop(weight);
        assert_eq!(all.get(), 7);
        drop(other);
        assert_eq!(all.get(), 0);
    }
}
