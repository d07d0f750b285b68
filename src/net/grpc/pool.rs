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
    future,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures_util::future::BoxFuture;
use hyper::{Request, Response};
use parking_lot::Mutex;
use tokio::time::Instant;
use tonic::{Status, body::Body};

use super::{
    Answer, Channel, Home, NotSent, Ready, Windows, exchange,
    place::{Place, Places},
};
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
    places: Places,
    most: AtomicUsize,
}

/// A stream's place on a channel, and the connection that was found ready for it.
pub(crate) struct Lease {
    /// It is taken for as long as this lives.
    pub(crate) place: Place,
    /// The connection.
    pub(crate) ready: Ready,
}

impl Lease {
    /// A channel for one request, which has this place until its answer has ended.
    pub(crate) fn into_channel(self) -> Once {
        Once(Some(self))
    }
}

/// A channel for one request; see [`Lease::into_channel`].
pub(crate) struct Once(Option<Lease>);

impl tower::Service<Request<Body>> for Once {
    type Response = Response<Answer>;
    type Error = Status;
    type Future = BoxFuture<'static, Result<Response<Answer>, Status>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let lease = self.0.take();
        Box::pin(async move {
            let used = || NotSent::Refused("its place is used already".to_owned()).status();
            let Lease { place, ready } = lease.ok_or_else(used)?;
            exchange(request, future::ready(Ok(ready)), None, Some(place)).await
        })
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
            let (slot, place, number) = self.pick()?;
            let ready = slot.channel.ready().await?;
            let allowed = ready.streams_max().clamp(1, self.streams);
            slot.most.store(allowed, Relaxed);
            if number <= allowed {
                return Ok(Lease { place, ready });
            }
        }
    }

    /// How many connections there are.
    pub(crate) fn open(&self) -> usize {
        self.slots.lock().iter().filter(|used| used.slot.channel.is_open()).count()
    }

    /// A channel that may take one more stream, the place of that, and how many places are taken with it.
    fn pick(&self) -> Result<(Arc<Slot>, Place, usize), Status> {
        let now = self.rests_after.map(|_| Instant::now());
        let mut slots = self.slots.lock();
        // Of those that carry nothing one is kept.
        let mut spare = 0;
        for used in slots.iter_mut().filter(|it| it.slot.places.taken() == 0) {
            used.since = now;
        }
        slots.retain(|Used { slot, .. }| {
            let is_spare = slot.places.taken() == 0;
            spare += usize::from(is_spare);
            !is_spare || spare == 1
        });
        let is_resting = |used: &Used| match (self.rests_after, used.since) {
            (Some(after), Some(since)) => since.elapsed() > after,
            _ => false,
        };
        let takes_more = |used: &&Used| {
            used.slot.places.taken() < used.slot.most.load(Relaxed) && !is_resting(used)
        };
        let slot = if let Some(used) = slots.iter().find(takes_more) {
            Arc::clone(&used.slot)
        } else {
            let (server, resets) = (self.server.clone(), self.rests_after.is_some());
            let channel = Channel::with_windows(server, resets, self.windows, self.home.clone())
                .map_err(|error| Status::internal(format!("the url is not usable: {error}")))?;
            let (places, most) = (Places::default(), AtomicUsize::new(self.streams));
            let slot = Arc::new(Slot { channel, places, most });
            slots.push(Used { slot: Arc::clone(&slot), since: now });
            slot
        };
        // Under the lock: no two have the same number.
        let (place, number) = slot.places.take();
        Ok((slot, place, number))
    }
}
