//! Opens sockets for the gRPC channel, which makes a new one when the last broke.

use hyper_util::rt::TokioIo;

use super::settings::FirestoreSettings;
use crate::connectors::dial::{Dial, Stream};

pub(super) use crate::connectors::dial::DialError;

/// What gRPC is spoken in.
const HTTP2: &[&str] = &["h2"];

/// Connects to the server of `settings`.
pub(super) async fn dial(
    settings: FirestoreSettings,
) -> Result<TokioIo<Box<dyn Stream>>, DialError> {
    let FirestoreSettings { url, ca_file, .. } = settings;
    let dial = Dial {
        address: url.authority(),
        host: &url.host,
        port: url.port,
        tls: url.tls,
        ca_file: ca_file.as_deref(),
        protocols: HTTP2,
        resets: false,
    };
    dial.connect().await.map(TokioIo::new)
}
