//! Channels to one server, as many as their streams need.
//!
//! A channel takes as many streams as its server allows, and no more than its pool does; then another one is opened. A
//! stream above what the server allows would wait within the connection until another one ends, which may be never.
//!
//! **A connection that is closed for a write** without an answer ends what else it carries. So in a pool for writes a
//! connection takes new streams only for a while after it had none; then it rests until it has none again, and another
//! one takes its place. Whatever is cut off has waited for at least as long as the write that is given up, without that
//! while.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;
use tonic::Status;

use super::{Channel, Home, Windows};
use crate::net::endpoint::Server;

/// See the [module](self).
pub(crate) struct Pool {
    server: Server,
    windows: Windows,
    /// Streams at once over a channel.
    streams: usize,
    /// For how long a channel takes new streams after it had none; then closing it discards what it has not sent.
    rests_after: Option<Duration>,
    home: Home,
    slots: Mutex<Vec<Used>>,
}

/// A channel, and since when it has had a stream, if that matters.
struct Used {
    slot: Arc<Slot>,
    since: Option<Instant>,
}

/// A channel, and how many streams it has.
struct Slot {
    channel: Channel,
    used: AtomicUsize,
    most: AtomicUsize,
}

/// A stream's place on a channel, for as long as it lives.
pub(crate) struct Lease {
    slot: Arc<Slot>,
    /// It is so many-eth.
    number: usize,
}

impl Lease {
    pub(crate) fn channel(&self) -> &Channel {
        &self.slot.channel
    }

    /// The channel for one request, which has this place until its answer has ended.
    pub(crate) fn into_channel(self) -> Channel {
        let slot = Arc::clone(&self.slot);
        slot.channel.keeping(Arc::new(self))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.slot.used.fetch_sub(1, Relaxed);
    }
}

impl Pool {
    /// Channels to `server`, with at most so many `streams` each, driven at `home`. With `rests_after` they are for
    /// writes.
    pub(crate) fn new(
        server: Server,
        windows: Windows,
        streams: usize,
        rests_after: Option<Duration>,
        home: Home,
    ) -> Self {
        Self { server, windows, streams, rests_after, home, slots: Mutex::default() }
    }

    /// A stream's place on a connection, which is dialled if there is none.
    ///
    /// # Errors
    /// There is no connection; nothing was sent.
    pub(crate) async fn lease(&self) -> Result<Lease, Status> {
        loop {
            let lease = self.pick()?;
            let Slot { channel, most, .. } = &*lease.slot;
            channel.connect().await?;
            let allowed = channel.streams_max().unwrap_or(self.streams).clamp(1, self.streams);
            most.store(allowed, Relaxed);
            if lease.number <= allowed {
                return Ok(lease);
            }
        }
    }

    /// How many connections there are.
    pub(crate) fn open(&self) -> usize {
        self.slots.lock().iter().filter(|used| used.slot.channel.is_open()).count()
    }

    fn pick(&self) -> Result<Lease, Status> {
        let now = self.rests_after.map(|_| Instant::now());
        let mut slots = self.slots.lock();
        // Of those that carry nothing one is kept.
        let mut spare = 0;
        for used in slots.iter_mut().filter(|it| it.slot.used.load(Relaxed) == 0) {
            used.since = now;
        }
        slots.retain(|Used { slot, .. }| {
            let is_spare = slot.used.load(Relaxed) == 0;
            spare += usize::from(is_spare);
            !is_spare || spare == 1
        });
        let is_resting = |used: &Used| match (self.rests_after, used.since) {
            (Some(after), Some(since)) => since.elapsed() > after,
            _ => false,
        };
        let takes_more = |used: &&Used| {
            used.slot.used.load(Relaxed) < used.slot.most.load(Relaxed) && !is_resting(used)
        };
        let slot = if let Some(used) = slots.iter().find(takes_more) {
            Arc::clone(&used.slot)
        } else {
            let (server, resets) = (self.server.clone(), self.rests_after.is_some());
            let channel = Channel::with_windows(server, resets, self.windows, self.home.clone())
                .map_err(|error| Status::internal(format!("the url is not usable: {error}")))?;
            let (used, most) = (AtomicUsize::new(0), AtomicUsize::new(self.streams));
            let slot = Arc::new(Slot { channel, used, most });
            slots.push(Used { slot: Arc::clone(&slot), since: now });
            slot
        };
        // Under the lock: no two have the same number.
        let number = slot.used.fetch_add(1, Relaxed) + 1;
        Ok(Lease { slot, number })
    }
}
