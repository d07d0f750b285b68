//! The door as the daemon opens it.

use std::{pin::Pin, sync::Arc, time::Duration};

use fusebox_actors::{Backend, trace::lasting_name, view::DoorView};
#[cfg(test)]
use tokio::runtime::Handle;

use super::{core::Core, serve, settings::Settings};
use crate::{
    config::DoorSettings,
    ingress::{
        door::{Connection, DoorStream, WireDoor},
        door_thread::DoorThread,
        gate::Part,
        peer::Who,
    },
    kinds::port::DoorSpec,
};

/// The answer to a client that finds no room: HTTP/2's GOAWAY with `ENHANCE_YOUR_CALM`, behind the settings that must
/// come first. Nothing of it was read.
const NO_ROOM: &[u8] = b"\0\0\0\x04\0\0\0\0\0\
    \0\0\x18\x07\0\0\0\0\0\
    \0\0\0\0\0\0\0\x0bfusebox: no room";

/// How long a request may take without one byte more of it.
const PARTIAL_MAX: Duration = Duration::from_secs(30);
/// See [`Settings::keep_alive`]: a client that is gone without a word is noticed within two minutes.
const KEEP_ALIVE: Duration = Duration::from_secs(60);

/// A door that is open.
pub(crate) struct FirestoreDoor {
    core: Arc<Core>,
    /// Ends with the door.
    _thread: Option<DoorThread>,
}

impl FirestoreDoor {
    /// Opens a door to a backend, on a thread of its own: see [`DoorThread`].
    ///
    /// # Errors
    /// The backend is of another kind, or there is no thread for the door.
    pub(crate) fn open(settings: Settings, backend: Arc<Backend>) -> Result<Self, String> {
        let thread = DoorThread::start(backend.name())?;
        let core = Core::open(settings, backend, thread.runtime().clone())?;
        Ok(Self { core, _thread: Some(thread) })
    }

    /// The same on the runtime of a test.
    ///
    /// # Errors
    /// The backend is of another kind.
    #[cfg(test)]
    pub(crate) fn open_here(settings: Settings, backend: Arc<Backend>) -> Result<Self, String> {
        Ok(Self { core: Core::open(settings, backend, Handle::current())?, _thread: None })
    }

    /// Serves a client, which is `who` by its connection; `None` if it must show a secret.
    pub(crate) fn serve(&self, stream: DoorStream, who: Option<Who>, place: Option<Part>) {
        let core = Arc::clone(&self.core);
        self.core.go_on(async move {
            match stream.moved_here() {
                Ok(stream) => serve::serve(core, stream, who).await,
                Err(error) => tracing::debug!(%error, "a connection cannot be served"),
            }
            drop(place);
        });
    }

    /// Takes no more calls, and resolves once those that run have ended.
    pub(crate) fn close(&self) -> impl Future<Output = ()> + Send + use<> {
        self.core.stop.cancel();
        self.core.tasks.close();
        let core = Arc::clone(&self.core);
        async move { core.tasks.wait().await }
    }
}

/// Opens the door of `spec`.
///
/// # Errors
/// Those of [`FirestoreDoor::open`].
pub(crate) fn open(spec: DoorSpec) -> Result<Arc<dyn WireDoor>, String> {
    Ok(Arc::new(FirestoreDoor::open(settings_of(&spec.settings), spec.backend)?))
}

fn settings_of(door: &DoorSettings) -> Settings {
    Settings {
        address: lasting_name(&door.listen.to_string()),
        deadline: door.deadline,
        min_ack: door.min_ack,
        priority: door.priority,
        in_bytes: door.in_bytes,
        out_bytes: door.out_bytes,
        idle_timeout: door.idle_timeout,
        projects: door.projects.clone(),
        callers: Arc::clone(&door.callers),
        partial_max: PARTIAL_MAX,
        keep_alive: KEEP_ALIVE,
    }
}

impl WireDoor for FirestoreDoor {
    fn take(&self, connection: Connection) {
        self.serve(connection.stream, connection.who, Some(connection.part));
    }

    fn no_room(&self) -> &'static [u8] {
        NO_ROOM
    }

    fn stop(&self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(self.close())
    }

    fn view(&self) -> DoorView {
        let (buffered_in, buffered_out) = self.core.buffered();
        DoorView { buffered_in, buffered_out, ..self.core.counters.view() }
    }
}

#[cfg(test)]
mod tests {
    use super::NO_ROOM;

    #[test]
    fn what_finds_no_room_is_told_so_in_two_frames() {
        let (settings, goaway) = NO_ROOM.split_at(9);
        assert_eq!(settings, b"\0\0\0\x04\0\0\0\0\0");
        assert_eq!(usize::from(goaway[2]), goaway.len() - 9);
        assert_eq!((goaway[3], goaway[16]), (7, 11));
    }
}
