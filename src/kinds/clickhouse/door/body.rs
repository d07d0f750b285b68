//! The body of a request: its beginning is held, the rest comes as it is wanted.

use std::{sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use fusebox_actors::connector::{Answer, AttemptError, OwnCode, Tail, Upload};
use fusebox_state::ErrorClass;
use http_body_util::BodyExt;
use hyper::body::Body;
use parking_lot::Mutex;
use tokio::time::timeout;

use super::{counters::Counters, request::HELD};
use crate::{
    ingress::{
        gate::{Account, Part, Pooled},
        refusal::Full,
    },
    net::linger::Lent,
};

/// How long a body may stop.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// What is wrong with a body.
#[derive(Debug)]
pub(super) enum Fault {
    /// The door holds too much already.
    Full(Full),
    /// It stopped for too long.
    Slow,
    /// It broke off, or is not what it says it is.
    Broken,
}

/// A body as far as it is here.
pub(super) struct Taken {
    /// The whole of it, or its beginning.
    pub(super) beginning: Bytes,
    /// What follows.
    rest: Option<Lent>,
}

/// Bytes that weigh for as long as anybody has them.
struct Weighed {
    bytes: Bytes,
    _part: Part,
}

impl AsRef<[u8]> for Weighed {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Taken {
    /// Whether that is all of it.
    pub(super) fn is_whole(&self) -> bool {
        self.rest.is_none()
    }

    /// What follows.
    pub(super) fn upload(self, counters: &Arc<Counters>) -> Option<Upload> {
        let rest = Rest { body: Mutex::new(self.rest?), counters: Arc::clone(counters) };
        Some(Upload::new(Box::new(rest)))
    }

    /// Waits for the whole of a body that is not longer than `most`.
    pub(super) async fn wait_for(
        &mut self,
        most: usize,
        account: &Arc<Account>,
        counters: &Counters,
    ) -> Result<(), Fault> {
        let left = self.rest.as_ref().map_or(0, |body| body.size_hint().lower());
        if left.saturating_add(self.beginning.len() as u64) > most as u64 {
            return Ok(());
        }
        self.hold(most, account, counters).await
    }

    /// Waits until more than `most` bytes of a body are here, or all of it.
    pub(super) async fn hold(
        &mut self,
        most: usize,
        account: &Arc<Account>,
        counters: &Counters,
    ) -> Result<(), Fault> {
        let Some(body) = self.rest.as_mut().filter(|_| self.beginning.len() <= most) else {
            return Ok(());
        };
        let mut part = account.nothing(Pooled::Bytes);
        part.hold_body(self.beginning.len() as u64).map_err(Fault::Full)?;
        let mut all = BytesMut::from(&*self.beginning);
        let mut is_over = body.is_end_stream();
        while all.len() <= most && !is_over {
            let Some(data) = next_data(body, counters).await? else {
                is_over = true;
                break;
            };
            all.extend_from_slice(&data);
            part.hold_body(all.len() as u64).map_err(Fault::Full)?;
            is_over = body.is_end_stream();
        }
        self.beginning = all.freeze();
        if is_over {
            self.rest = None;
        }
        Ok(())
    }

    /// `bytes`, in which the beginning was copied, with its weight.
    pub(super) fn weighed(account: &Arc<Account>, bytes: Bytes) -> Result<Bytes, Full> {
        let mut part = account.nothing(Pooled::Bytes);
        part.hold_body(bytes.len() as u64)?;
        Ok(Bytes::from_owner(Weighed { bytes, _part: part }))
    }
}

/// Reads the beginning of a body, and all of one that is not longer than [`HELD`].
pub(super) async fn take(
    body: Option<Lent>,
    account: &Arc<Account>,
    counters: &Arc<Counters>,
) -> Result<Taken, Fault> {
    let Some(mut body) = body else {
        return Ok(Taken { beginning: Bytes::new(), rest: None });
    };
    let mut part = account.nothing(Pooled::Bytes);
    let announced = body.size_hint().exact().unwrap_or(HELD as u64);
    part.hold_body(announced.min(HELD as u64)).map_err(Fault::Full)?;
    let (mut first, mut all) = (Bytes::new(), BytesMut::new());
    while first.len() + all.len() < HELD && !body.is_end_stream() {
        let Some(data) = next_data(&mut body, counters).await? else { break };
        match (first.is_empty(), all.is_empty()) {
            (true, true) => first = data,
            (_, empty) => {
                if empty {
                    all.extend_from_slice(&std::mem::take(&mut first));
                }
                all.extend_from_slice(&data);
            }
        }
    }
    let beginning = if first.is_empty() { all.freeze() } else { first };
    if body.is_end_stream() || beginning.len() < HELD {
        return Ok(Taken { beginning, rest: None });
    }
    Ok(Taken { beginning, rest: Some(body) })
}

/// The next piece of a body; `None` at its end.
async fn next_data(body: &mut Lent, counters: &Counters) -> Result<Option<Bytes>, Fault> {
    loop {
        let frame = timeout(PAUSE_MAX, body.frame()).await.map_err(|_| Fault::Slow)?;
        let Some(frame) = frame else { return Ok(None) };
        if let Ok(data) = frame.map_err(|_| Fault::Broken)?.into_data() {
            counters.read(data.len());
            return Ok(Some(data));
        }
    }
}

/// What follows the beginning of a body.
struct Rest {
    /// Never contended: a body is not `Sync`, and a tail must be.
    body: Mutex<Lent>,
    counters: Arc<Counters>,
}

impl Tail for Rest {
    fn next(&mut self) -> Answer<'_, Option<Result<Bytes, AttemptError>>> {
        Box::pin(async {
            let why = match next_data(self.body.get_mut(), &self.counters).await {
                Ok(piece) => return piece.map(Ok),
                Err(Fault::Slow) => "no data of the body arrived for 30 seconds",
                Err(_) => "the body ended too early",
            };
            Some(Err(AttemptError::own(ErrorClass::Rejected, OwnCode::BodyBrokenOff, why)))
        })
    }
}
