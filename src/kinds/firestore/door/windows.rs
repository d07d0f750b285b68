//! How much a client may send that nobody has read yet.
//!
//! HTTP/2 holds what has come until its request is read, as much as the windows of the request and of its connection
//! allow. That is not counted when it comes, so the window of the whole connection is counted while the connection
//! lives: in `in_bytes`, and together not so much of it that no room is left for a message as long as any may be. A
//! connection above that has the smallest window that there is in HTTP/2. So what is held unread is never more than that
//! smallest window for each connection, and besides a part of `in_bytes`.
//!
//! A request has a part of its connection's window, so that one that is not read does not stop the others.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::framing::MESSAGE_MAX;

/// The windows of a connection, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Windows {
    /// Of one request.
    pub(super) stream: u32,
    /// Of all of them together.
    pub(super) connection: u32,
}

/// The smallest. Less than this a connection cannot have: every client of HTTP/2 begins with it.
const NARROW: Windows = Windows { stream: 32 << 10, connection: (64 << 10) - 1 };
/// What is counted. A sender on this host does not wait for a larger one.
const WIDE: Windows = Windows { stream: 128 << 10, connection: 512 << 10 };
/// All wide windows take one in so many bytes of what a longest message leaves.
const SHARE: u64 = 4;

/// Wide windows that may still be given.
pub(super) struct Wide {
    places: Arc<Semaphore>,
    most: usize,
}

/// What a wide window takes, until this is dropped.
pub(super) struct Taken {
    _place: OwnedSemaphorePermit,
    _room: OwnedSemaphorePermit,
}

impl Wide {
    /// As many as a door of `in_bytes` gives.
    pub(super) fn of(in_bytes: u64) -> Self {
        let spare = in_bytes.saturating_sub(u64::from(MESSAGE_MAX)) / SHARE;
        let most = usize::try_from(spare / u64::from(WIDE.connection)).unwrap_or(usize::MAX);
        let most = most.min(Semaphore::MAX_PERMITS);
        Self { places: Arc::new(Semaphore::new(most)), most }
    }

    /// The windows of one more connection, and what they take of `requests`, whose permits are for `unit` bytes each.
    pub(super) fn next(&self, requests: &Arc<Semaphore>, unit: u64) -> (Windows, Option<Taken>) {
        let units = u32::try_from(u64::from(WIDE.connection) / unit).unwrap_or(u32::MAX);
        let place = Arc::clone(&self.places).try_acquire_owned();
        let room = Arc::clone(requests).try_acquire_many_owned(units);
        match (place, room) {
            (Ok(place), Ok(room)) => (WIDE, Some(Taken { _place: place, _room: room })),
            _ => (NARROW, None),
        }
    }

    /// How many bytes of room are taken.
    pub(super) fn taken(&self) -> u64 {
        let given = self.most.saturating_sub(self.places.available_permits());
        u64::try_from(given).unwrap_or(u64::MAX).saturating_mul(u64::from(WIDE.connection))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIT: u64 = 1 << 10;

    #[test]
    fn windows_are_wide_as_long_as_a_longest_message_and_more_has_room_besides() {
        for (mebibytes, expected) in [(1, 0), (11, 0), (12, 1), (256, 123)] {
            let in_bytes = mebibytes << 20;
            let units = usize::try_from(in_bytes / UNIT).unwrap();
            let (wide, requests) = (Wide::of(in_bytes), Arc::new(Semaphore::new(units)));
            let all: Vec<_> = (0..200).map(|_| wide.next(&requests, UNIT)).collect();
            let given = all.iter().filter(|(windows, _)| *windows == WIDE).count();
            assert_eq!(given, expected, "{mebibytes} MiB");
            let taken = u64::try_from(units - requests.available_permits()).unwrap() * UNIT;
            assert_eq!(taken, wide.taken());
            assert!(mebibytes < 10 || in_bytes - taken >= u64::from(MESSAGE_MAX));
            drop(all);
            assert_eq!((wide.taken(), requests.available_permits()), (0, units));
        }
    }

    #[test]
    fn windows_are_narrow_while_requests_take_the_room() {
        let (wide, requests) = (Wide::of(256 << 20), Arc::new(Semaphore::new(1_024)));
        let (first, held) = wide.next(&requests, UNIT);
        let (second, also_held) = wide.next(&requests, UNIT);
        assert_eq!((first, second), (WIDE, WIDE));
        assert_eq!(wide.next(&requests, UNIT).0, NARROW);
        drop((held, also_held));
        assert_eq!(wide.next(&requests, UNIT).0, WIDE);
    }
}
