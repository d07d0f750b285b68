//! A look at what is about to be queued ([`storable`](crate::kinds::clickhouse::protocol::storable)).
//!
//! A packed body is unpacked on a thread that may block, two of them at once, so that a flood of them leaves cores to
//! others. It is looked at for [`PATIENCE`] at most, the wait for its turn included: what takes longer is queued as it is.

use std::time::Duration;

use fusebox_actors::connector::{Answer, AttemptError};
use tokio::{sync::Semaphore, task::spawn_blocking, time::timeout};

use crate::kinds::clickhouse::protocol::{decoded::Packing, storable, wire::Call};

/// How long a call is held up by being looked at.
const PATIENCE: Duration = Duration::from_secs(2);
/// How many bodies are unpacked at once.
static UNPACKING: Semaphore = Semaphore::const_new(2);

/// Looks whether any server could take `call`; `None` if nothing speaks against it.
pub(crate) fn look(call: Call) -> Option<Answer<'static, Result<(), AttemptError>>> {
    if let Err(error) = storable::check(&call) {
        return Some(Box::pin(async { Err(error) }));
    }
    let packing = storable::packing(&call)?;
    Some(Box::pin(async move {
        let looked = timeout(PATIENCE, unpacked(packing, call)).await;
        looked.unwrap_or(Ok(()))
    }))
}

async fn unpacked(packing: Packing, call: Call) -> Result<(), AttemptError> {
    // It is never closed.
    let place = UNPACKING.acquire().await.ok();
    let looked = spawn_blocking(move || {
        let _place = place;
        storable::unpack(packing, &call.data)
    });
    // What a decoder fell over is for the server to say.
    looked.await.unwrap_or(Ok(()))
}
