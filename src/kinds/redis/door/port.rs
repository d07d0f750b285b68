//! The door as the daemon opens it: its settings, its listeners' connections, what is shown of it.

use std::{pin::Pin, sync::Arc, time::Duration};

use fusebox_actors::{AckLevel, trace::lasting_name, view::DoorView};

use super::{
    Accepted, RedisDoor,
    assumed::EffectReply,
    settings::{self, Guest, MinAck, Settings},
    telling,
};
use crate::{
    config::{self, DoorSettings, OnUnknown, Unavailable},
    ingress::{
        callers::{Callers, Right},
        door::{Connection, DoorStream, WireDoor},
        peer::{NOBODY, Who},
    },
    kinds::port::DoorSpec,
};

/// The answer to a client that finds no room: most clients take it for a broken connection.
const NO_ROOM: &[u8] = b"-ERR max number of clients reached\r\n";
/// How long a request may take without one byte more of it.
const PARTIAL_MAX: Duration = Duration::from_secs(30);
/// A request may take a fourth of what the door holds of requests.
const REQUEST_SHARE: u64 = 4;

impl settings::Callers for Callers {
    fn find(&self, user: Option<&[u8]>, secret: &[u8]) -> Option<Guest> {
        // What clients send if they were given no name.
        let name = user.filter(|user| *user != b"default");
        let known = Self::find(self, name, secret)?;
        let who = Who { uid: NOBODY, admin: known.right == Right::Admin, by_token: true };
        let (name, reads_only) = (known.name.clone(), known.right == Right::Read);
        Some(Guest { name, who, reads_only, is_backends_own: false })
    }
}

/// Opens the door of `spec`.
///
/// # Errors
/// As [`RedisDoor::open`].
pub(crate) fn open(spec: DoorSpec) -> Result<Arc<dyn WireDoor>, String> {
    let settings = settings_of(&spec.settings);
    let door = RedisDoor::open(settings, spec.backend, spec.kin, spec.runtime)?;
    Ok(Arc::new(door))
}

fn settings_of(door: &DoorSettings) -> Settings {
    let size = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    Settings {
        address: lasting_name(&door.listen.to_string()),
        min_ack: match door.min_ack {
            Some(AckLevel::Applied) => MinAck::Applied,
            Some(AckLevel::Durable) => MinAck::Durable,
            None => MinAck::AppliedOrDurable,
        },
        deadline: door.deadline,
        max_stale: None,
        priority: door.priority,
        unavailable: match door.unavailable {
            Unavailable::Loading => telling::Unavailable::Loading,
            Unavailable::Fusebox => telling::Unavailable::Fusebox,
            Unavailable::Close => telling::Unavailable::Close,
        },
        effect_reply: match door.effect_reply {
            config::EffectReply::Assume => EffectReply::Assume,
            config::EffectReply::All => EffectReply::All,
            config::EffectReply::Error => EffectReply::Error,
        },
        on_miss: door.on_miss,
        close_on_unknown: door.on_unknown == OnUnknown::Close,
        pinned: size(door.pinned.into()),
        in_bytes: size(door.in_bytes),
        out_bytes: size(door.out_bytes),
        out_client: size(door.out_client),
        request_max: size(door.in_bytes / REQUEST_SHARE),
        idle_timeout: door.idle_timeout,
        partial_max: PARTIAL_MAX,
        callers: Arc::clone(&door.callers) as Arc<dyn settings::Callers>,
    }
}

impl WireDoor for RedisDoor {
    fn take(&self, connection: Connection) {
        let Connection { stream, who, part, .. } = connection;
        let accepted = match stream {
            DoorStream::Unix(stream) => stream.into_std().map(Accepted::Unix),
            DoorStream::Tcp(stream) => stream.into_std().map(Accepted::Tcp),
        };
        match accepted {
            Ok(accepted) => self.serve(accepted, who, Some(part)),
            Err(error) => tracing::debug!(%error, "a connection cannot be served"),
        }
    }

    fn no_room(&self) -> &'static [u8] {
        NO_ROOM
    }

    fn stop(&self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(self.close())
    }

    fn view(&self) -> DoorView {
        self.counters.view()
    }
}
