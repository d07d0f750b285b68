//! What the clients of a door share: the backend, the connections to the server, and the room that there is.

use std::{any::Any, sync::Arc, time::Duration};

use fusebox_actors::Backend;
use parking_lot::Mutex;
use tokio::{
    runtime::Handle,
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    class::{Method, Shape},
    counters::Counters,
    pool::Upstream,
    settings::Settings,
    telling::Told,
    times::Estimates,
    windows::{Taken, Wide, Windows},
};
use crate::kinds::firestore::connector::FirestoreConnector;

/// What is counted of requests: so many bytes at once.
const UNIT: u64 = 1 << 10;
/// What is counted of answers: as many bytes as may be here unread of a stream that lasts.
const SHARE: u64 = super::pool::LASTING_WINDOW as u64;
/// As many shares has any other answer.
const SHARES_OF_ONE: u32 = super::pool::STREAM_WINDOW / super::pool::LASTING_WINDOW;
/// As many calls may have a connection to the server to themselves.
const ALONE_MAX: usize = 64;
/// How long a request waits for room.
const ROOM_PATIENCE: Duration = Duration::from_secs(1);

/// See the [module](self).
pub(super) struct Core {
    pub(super) settings: Settings,
    pub(super) backend: Arc<Backend>,
    pub(super) counters: Counters,
    /// Times that are given instead of the server's.
    pub(super) estimates: Estimates,
    /// Notified when a place in the bulkhead may be free.
    pub(super) freed: Notify,
    /// The door stops.
    pub(super) stop: CancellationToken,
    /// What still runs for it.
    pub(super) tasks: TaskTracker,
    runtime: Handle,
    upstream: Mutex<Option<Arc<Upstream>>>,
    requests: Arc<Semaphore>,
    wide: Wide,
    answers: Arc<Semaphore>,
    /// Places for calls that have a connection to the server to themselves.
    pub(super) alone: Arc<Semaphore>,
}

/// So many of `bytes` in units.
fn units(bytes: u64, unit: u64) -> usize {
    usize::try_from(bytes / unit).unwrap_or(usize::MAX).clamp(1, Semaphore::MAX_PERMITS)
}

impl Core {
    /// What the clients of a door to that backend share.
    ///
    /// # Errors
    /// The backend is of another kind.
    pub(super) fn open(
        settings: Settings,
        backend: Arc<Backend>,
        runtime: Handle,
    ) -> Result<Arc<Self>, String> {
        let answers = units(settings.out_bytes, SHARE).max(SHARES_OF_ONE as usize);
        let core = Self {
            requests: Arc::new(Semaphore::new(units(settings.in_bytes, UNIT))),
            wide: Wide::of(settings.in_bytes),
            answers: Arc::new(Semaphore::new(answers)),
            alone: Arc::new(Semaphore::new(ALONE_MAX)),
            settings,
            backend,
            counters: Counters::default(),
            estimates: Estimates::default(),
            freed: Notify::new(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            runtime,
            upstream: Mutex::default(),
        };
        core.upstream()?;
        Ok(Arc::new(core))
    }

    /// The connections to the server that is the backend's now.
    pub(super) fn upstream(&self) -> Result<Arc<Upstream>, String> {
        let any: Arc<dyn Any + Send + Sync> = self.backend.connector();
        let connector: Arc<FirestoreConnector> =
            any.downcast().map_err(|_| "its backend is not a Firestore".to_owned())?;
        let mut upstream = self.upstream.lock();
        if let Some(upstream) = &*upstream
            && Arc::ptr_eq(&upstream.connector, &connector)
        {
            return Ok(Arc::clone(upstream));
        }
        let new = Arc::new(Upstream::new(connector));
        *upstream = Some(Arc::clone(&new));
        Ok(new)
    }

    /// Runs what a client has begun, and what outlives it.
    pub(super) fn go_on(&self, rest: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn_on(rest, &self.runtime);
    }

    /// Runs what takes its time, on a thread that may block.
    pub(super) fn work(&self, work: impl FnOnce() + Send + 'static) {
        self.tasks.spawn_blocking_on(work, &self.runtime);
    }

    /// How many bytes of requests are held, and for how many of answers room is kept.
    pub(super) fn buffered(&self) -> (u64, u64) {
        let requests = units(self.settings.in_bytes, UNIT);
        let answers = units(self.settings.out_bytes, SHARE).max(SHARES_OF_ONE as usize);
        let taken =
            |all: usize, room: &Semaphore| all.saturating_sub(room.available_permits()) as u64;
        // A window is room for what may come, and as a rule nothing of it is here.
        let held = (taken(requests, &self.requests) * UNIT).saturating_sub(self.wide.taken());
        (held, taken(answers, &self.answers) * SHARE)
    }

    /// The windows of a client's connection, and what they take of the room for requests while it lives.
    pub(super) fn windows(&self) -> (Windows, Option<Taken>) {
        self.wide.next(&self.requests, UNIT)
    }

    /// Room for an answer, for as long as anything of it may be here.
    pub(super) async fn share(&self, method: Method) -> Result<OwnedSemaphorePermit, Told> {
        let shares = if method.shape == Shape::Lasting { 1 } else { SHARES_OF_ONE };
        room(&self.answers, shares).await
    }

    /// A share that is room for an answer of so many bytes, all of which are here.
    pub(super) async fn larger(
        &self,
        mut share: OwnedSemaphorePermit,
        bytes: usize,
    ) -> Result<OwnedSemaphorePermit, Told> {
        let all = u64::try_from(bytes).unwrap_or(u64::MAX).div_ceil(SHARE);
        let most = units(self.settings.out_bytes, SHARE).max(SHARES_OF_ONE as usize);
        let wanted = usize::try_from(all).unwrap_or(usize::MAX).min(most);
        let more = wanted.saturating_sub(share.num_permits());
        if more > 0 {
            let more = room(&self.answers, u32::try_from(more).unwrap_or(u32::MAX)).await?;
            share.merge(more);
        }
        Ok(share)
    }

    /// Room for so many bytes of a request, until they are sent.
    pub(super) async fn hold(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Told> {
        let units = u64::try_from(bytes).unwrap_or(u64::MAX).div_ceil(UNIT);
        room(&self.requests, u32::try_from(units).unwrap_or(u32::MAX)).await
    }

    /// Room for the message that has begun, if it is longer than `most`: what is not is a part of its stream's share. A
    /// longer one behind it takes more.
    pub(super) async fn hold_above(
        &self,
        room: &mut Option<OwnedSemaphorePermit>,
        wanted: usize,
        most: usize,
    ) -> Result<(), Told> {
        if wanted <= most {
            *room = None;
            return Ok(());
        }
        self.hold_at_least(room, wanted).await
    }

    /// Room for so many bytes, with what is held of it already.
    pub(super) async fn hold_at_least(
        &self,
        room: &mut Option<OwnedSemaphorePermit>,
        wanted: usize,
    ) -> Result<(), Told> {
        let more = wanted.saturating_sub(room.as_ref().map_or(0, Self::held));
        if more > 0 {
            let more = self.hold(more).await?;
            match room {
                Some(room) => room.merge(more),
                None => *room = Some(more),
            }
        }
        Ok(())
    }

    /// How many bytes so much [room](Self::hold) is for.
    fn held(room: &OwnedSemaphorePermit) -> usize {
        room.num_permits().saturating_mul(usize::try_from(UNIT).unwrap_or(usize::MAX))
    }

    /// Whether the backend is asked at all now.
    pub(super) fn is_barred(&self) -> bool {
        !self.backend.is_asked()
    }
}

async fn room(room: &Arc<Semaphore>, units: u32) -> Result<OwnedSemaphorePermit, Told> {
    let waited = timeout(ROOM_PATIENCE, Arc::clone(room).acquire_many_owned(units)).await;
    waited.ok().and_then(Result::ok).ok_or_else(|| Told::full("this door has no room for it"))
}
