//! The door as the daemon opens it.

use std::{pin::Pin, sync::Arc, time::Duration};

use fusebox_actors::view::DoorView;

use super::{core::FirestoreDoor, settings::Settings};
use crate::{
    config::DoorSettings,
    ingress::door::{Connection, WireDoor},
    kinds::port::DoorSpec,
};

/// What a client is told that finds no room: HTTP/2's GOAWAY with `ENHANCE_YOUR_CALM`, behind the settings that must
/// come first. Nothing of it was read.
const NO_ROOM: &[u8] = b"\0\0\0\x04\0\0\0\0\0\
    \0\0\x18\x07\0\0\0\0\0\
    \0\0\0\0\0\0\0\x0bfusebox: no room";

/// How long a request may take without one byte more of it.
const PARTIAL_MAX: Duration = Duration::from_secs(30);

/// Opens the door of `spec`.
///
/// # Errors
/// The backend is of another kind.
pub(crate) fn open(spec: DoorSpec) -> Result<Arc<dyn WireDoor>, String> {
    let settings = settings_of(&spec.settings);
    Ok(Arc::new(FirestoreDoor::open(settings, spec.backend, spec.runtime)?))
}

fn settings_of(door: &DoorSettings) -> Settings {
    Settings {
        deadline: door.deadline,
        priority: door.priority,
        in_bytes: door.in_bytes,
        out_bytes: door.out_bytes,
        idle_timeout: door.idle_timeout,
        projects: door.projects.clone(),
        callers: Arc::clone(&door.callers),
        partial_max: PARTIAL_MAX,
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
        self.counted()
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
