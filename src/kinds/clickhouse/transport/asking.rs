//! What must be known before a call is sent: who answers, and that nothing old can land.

use std::{sync::Arc, time::Duration};

use fusebox_actors::connector::{Aboard, OwnCode};
use fusebox_state::Verdict;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::{
    fence::{Obstacle, PAUSE, Waits},
    http::Failed,
    question,
    server::{Server, described},
    shared::Shared,
};

/// The server, which is asked what it can do if it was not yet, in the place that `aboard` lends.
///
/// # Errors
/// It did not answer within `time`: nothing of the call was sent.
pub(crate) async fn server(
    shared: &Arc<Shared>,
    aboard: impl FnOnce() -> Aboard,
    time: Duration,
) -> Result<Arc<Server>, Failed> {
    if let Some(server) = shared.servers.known() {
        return Ok(server);
    }
    let limit = question::limit(time, shared.settings.timeout);
    let own = Arc::clone(shared);
    let describe = async move { Ok(own.servers.keep(described(&own.http, limit).await?)) };
    let asked = shared.servers.asking.ask((), &shared.http, aboard, describe);
    match timeout(time, asked).await {
        Ok(Some(described)) => described.map_err(Failed::unsent),
        Ok(None) => Err(Failed::closed()),
        Err(_) => {
            let message = format!("the server did not describe itself within {time:?}");
            Err(Failed::not_executed(OwnCode::Timeout, message, Verdict::Failure))
        }
    }
}

/// Waits until a write may be sent: until nothing old can land behind it. A round goes on when who waits for it leaves.
///
/// # Errors
/// Not before `until`, or the server cannot be asked. The write was not sent.
pub(super) async fn pass(
    shared: &Arc<Shared>,
    aboard: impl Fn() -> Aboard,
    waits: Waits,
    until: Instant,
) -> Result<(), Failed> {
    let fence = &shared.fence;
    loop {
        let changed = fence.changed();
        let Some(obstacle) = fence.obstacle(waits) else { return Ok(()) };
        let step = async {
            match obstacle {
                Obstacle::Departed => changed.await,
                Obstacle::Doubt => {
                    let time = until.saturating_duration_since(Instant::now());
                    let limit = question::limit(time, shared.settings.timeout);
                    let own = Arc::clone(shared);
                    let round =
                        async move { own.fence.round(&own.http, Instant::now() + limit).await };
                    let asked = fence.asking.ask((), &shared.http, &aboard, round).await;
                    asked.unwrap_or_else(|| Err(Failed::closed()))?;
                    if fence.obstacle(waits).is_some() {
                        sleep(PAUSE).await;
                    }
                }
            }
            Ok(())
        };
        match timeout_at(until, step).await {
            Ok(Ok(())) => {}
            Ok(Err(failed)) => return Err(failed),
            Err(_) => {
                let message =
                    "an abandoned write may still be applied: the server has not ended it yet";
                return Err(Failed::not_executed(OwnCode::Fence, message, Verdict::Neutral));
            }
        }
    }
}
