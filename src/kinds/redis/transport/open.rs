//! Opens a connection, and raises the fence if writes are to pass over it.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::time::timeout;

use super::{
    fence::{self, Fenced},
    handshake::{self, Failed, Protocol, Ready},
    shared::{Living, Shared},
};
use crate::kinds::redis::settings::RedisSettings;

/// A connection that is ready for calls.
pub(crate) struct Opened {
    pub(crate) ready: Ready,
    pub(crate) living: Living,
    /// How many losses its fence covers: it may write while there are no more ([`Shared::losses`]).
    pub(crate) covers: u64,
}

/// Connects, for reads. Takes the backend's `timeout` at most.
pub(crate) async fn open(shared: &Arc<Shared>, protocol: Protocol) -> Result<Opened, Failed> {
    let living = shared.new_name();
    let limit = shared.settings.timeout;
    let ready = within(limit, "connection", handshake::connect(shared, &living.name, protocol));
    Ok(Opened { ready: ready.await?, living, covers: 0 })
}

/// Raises the fence on a new connection: from then on it may write.
pub(crate) async fn fenced(shared: &Shared, mut opened: Opened) -> Result<Opened, Failed> {
    // Read before: a loss from here on may not be seen by this fence.
    opened.covers = shared.losses();
    let Opened { ready, living, .. } = &mut opened;
    let limit = shared.settings.timeout;
    let fenced = if ready.named {
        within(limit, "fence", fence::raise(&mut ready.dialogue, shared, &living.name)).await?
    } else {
        Fenced::Refused("the server refuses CLIENT SETNAME".into())
    };
    let warning = match fenced {
        Fenced::Clear(0) => None,
        Fenced::Clear(killed) => {
            let backend = shared.settings.name.as_str();
            tracing::info!(backend, killed, "old connections killed");
            None
        }
        Fenced::Refused(why) => Some(why.within(|why| {
            format!(
                "fusebox cannot stop abandoned writes ({why}): instead, writes wait twice the timeout after a \
                 connection has broken"
            )
        })),
    };
    let refused = warning.is_some();
    shared.warn("fence", warning);
    if refused {
        let until = *shared.abandoned.lock() + limit * 2;
        tokio::time::sleep_until(until).await;
    }
    Ok(opened)
}

/// Asks one command on a connection of its own, which ends with that: commands on the others are not waited for.
///
/// # Errors
/// Nothing was sent. The inner error: the connection broke before the reply, or none came within `timeout`.
pub(crate) async fn ask_apart(
    settings: &RedisSettings,
    command: Bytes,
) -> Result<Result<Bytes, String>, Failed> {
    let limit = settings.timeout;
    let connected = within(limit, "connection", handshake::connect_apart(settings));
    let mut dialogue = connected.await?;
    Ok(match timeout(limit, dialogue.ask(&[command])).await {
        Ok(Ok(mut replies)) => replies.pop().ok_or_else(|| "no reply".to_owned()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no reply within {limit:?}")),
    })
}

async fn within<T>(
    limit: Duration,
    what: &str,
    step: impl Future<Output = Result<T, Failed>>,
) -> Result<T, Failed> {
    match timeout(limit, step).await {
        Ok(done) => done,
        Err(_) => Err(Failed::connect(format!("no {what} within {limit:?}"))),
    }
}
