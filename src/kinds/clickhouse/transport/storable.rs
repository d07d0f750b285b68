//! A look at what is about to be queued ([`storable`](crate::kinds::clickhouse::protocol::storable)).
//!
//! A packed body, and long rows of expressions, are looked at on a thread that may block, two of them at once, so that a
//! flood of them leaves cores to others. That takes [`PATIENCE`] at most, the wait for its turn included: what takes longer
//! is queued as it is.

use std::time::Duration;

use fusebox_actors::connector::{Answer, AttemptError};
use tokio::{sync::Semaphore, task::spawn_blocking, time::timeout};

use crate::kinds::clickhouse::protocol::{storable, wire::Call};

/// How long a call is held up by being looked at.
const PATIENCE: Duration = Duration::from_secs(2);
/// The longest call whose rows are looked at at once, in bytes.
const SHORT: usize = 16 << 10;
/// How many bodies are looked at at once.
static LOOKING: Semaphore = Semaphore::const_new(2);

/// Looks whether any server could take `call`; `None` if nothing speaks against it.
pub(crate) fn look(call: Call) -> Option<Answer<'static, Result<(), AttemptError>>> {
    if let Err(error) = storable::check(&call) {
        return Some(Box::pin(async { Err(error) }));
    }
    if storable::packing(&call).is_none() {
        if !storable::takes_expressions(&call) {
            return None;
        }
        if call.header.query.len() + call.data.len() <= SHORT {
            let error = storable::look_into(&call).err()?;
            return Some(Box::pin(async { Err(error) }));
        }
    }
    Some(Box::pin(async move {
        let looked = timeout(PATIENCE, looked_into(call)).await;
        looked.unwrap_or(Ok(()))
    }))
}

async fn looked_into(call: Call) -> Result<(), AttemptError> {
    // It is never closed.
    let place = LOOKING.acquire().await.ok();
    let looked = spawn_blocking(move || {
        let _place = place;
        storable::look_into(&call)
    });
    // What a decoder fell over is for the server to say.
    looked.await.unwrap_or(Ok(()))
}
