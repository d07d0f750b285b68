//! The thread of a door.
//!
//! A door's connections, and what they call, run on one thread with a runtime of its own. On the daemon's own runtime
//! a task that wakes itself, as one that reads a body does, would wake another worker, which takes longer than what the
//! door itself does for a small call.
//!
//! What a call has begun may outlive its connection: a write goes on without its client. So the thread lives for as
//! long as its door, and not only until the last connection has ended.

use std::thread;

use tokio::{
    runtime::{Builder, Handle, Runtime},
    sync::oneshot,
};

/// A thread with a runtime, which ends when this is dropped, and with it what still runs there.
pub(crate) struct DoorThread {
    runtime: Handle,
    _alive: oneshot::Sender<()>,
}

impl DoorThread {
    /// Starts the thread of the door to the backend of that name.
    ///
    /// # Errors
    /// The system has no thread or no descriptors for it.
    pub(crate) fn start(backend: &str) -> Result<Self, String> {
        let (alive, ended) = oneshot::channel();
        let runtime = run(backend, |runtime| {
            // An error is that the other end was dropped, which is how it ends.
            drop(runtime.block_on(ended));
            // What blocks must not keep a stopped daemon alive.
            runtime.shutdown_background();
        })?;
        Ok(Self { runtime, _alive: alive })
    }

    /// The runtime of this thread.
    pub(crate) fn runtime(&self) -> &Handle {
        &self.runtime
    }
}

/// Starts the thread of the door to the backend of that name, which ends with `work`. `work` gets the runtime of that
/// thread, a handle of which is returned.
///
/// # Errors
/// The system has no thread or no descriptors for it.
pub(crate) fn run(
    backend: &str,
    work: impl FnOnce(Runtime) + Send + 'static,
) -> Result<Handle, String> {
    let runtime = Builder::new_current_thread().enable_all().build();
    let runtime =
        runtime.map_err(|error| format!("cannot start the runtime of a door: {error}"))?;
    let handle = runtime.handle().clone();
    let thread = thread::Builder::new().name(format!("door-{backend}")).spawn(|| work(runtime));
    thread.map_err(|error| format!("cannot start the thread of a door: {error}"))?;
    Ok(handle)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn what_runs_there_ends_with_it() {
        let thread = DoorThread::start("cache").unwrap();
        let (held, gone) = oneshot::channel::<()>();
        let name = thread.runtime().spawn(async { thread::current().name().map(str::to_owned) });
        let task = thread.runtime().spawn(async move {
            std::future::pending::<()>().await;
            drop(held);
        });
        assert_eq!(name.await.unwrap().as_deref(), Some("door-cache"));
        drop(thread);
        let gone = timeout(Duration::from_secs(5), gone).await.expect("it was dropped");
        assert!(gone.is_err() && task.await.unwrap_err().is_cancelled());
    }
}
