//! One statement on the wire, from its request to its answer.
//!
//! An answer is gathered up to a limit. If more follows, a caller that takes it piece by piece is given
//! the beginning and a [`Rest`]; any other gets the error that the result is too large. An exception may be at
//! the end of rows that have left already, so the end is always looked at, also of a rest.
//!
//! What becomes of a read whose answer nobody waits for any more is in [`super::reading`], and of a write it is the
//! [fence](super::fence)'s affair.

use std::{sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use fusebox_actors::connector::{Aboard, AttemptError, Attempted, Fate, HEAD_MAX, OwnCode};
use fusebox_state::{ErrorClass, Verdict};
use http_body_util::BodyExt;
use hyper::Response;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until};

use super::{
    http::{self, Failed, Http, Outgoing},
    reading::Reading,
    rest::{Behind, Guard, LATE, Rest},
    shared::Shared,
};
use crate::{
    kinds::clickhouse::protocol::{
        elsewhere::Elsewhere,
        outcome::{Asked, Came, Exception, Marks, WINDOW, handed_on},
        wire,
    },
    net::http1::Rows,
};

/// The largest result that is gathered for a caller who does not take it piece by piece.
const RESULT_MAX: usize = 32 << 20;
/// What is to be sent, and how its answer is read.
pub(crate) struct Sending {
    pub(crate) outgoing: Outgoing,
    /// The answer's format if the server does not name it.
    pub(crate) format: String,
    pub(crate) asked: Asked,
    pub(crate) write: bool,
    pub(crate) streams: bool,
    /// The longest that it may take; with `progress`, the longest without a piece of the upload.
    pub(crate) limit: Duration,
    pub(crate) progress: Option<Arc<Mutex<Instant>>>,
    /// Knows what becomes of the answer.
    pub(crate) aboard: Aboard,
}

/// How an exchange ended.
pub(crate) struct Exchanged {
    pub(crate) attempted: Attempted,
    /// Whether the server has ended the query, or never got it.
    pub(crate) known: bool,
}

impl Exchanged {
    pub(super) fn known(attempted: Attempted) -> Self {
        Self { attempted, known: true }
    }

    pub(super) fn lost(failed: Failed) -> Self {
        // Without an answer, a query that was sent may go on, whoever is to blame: the server, or a body that broke off.
        let known = failed.error.doubt.is_none();
        Self { attempted: Attempted::failed(failed.verdict, failed.error), known }
    }
}

/// Sends and reads the answer. `reading` guards a read.
pub(crate) async fn exchange(
    shared: &Arc<Shared>,
    sending: Sending,
    mut reading: Option<Reading>,
) -> Exchanged {
    let (limit, progress, write) = (sending.limit, sending.progress.clone(), sending.write);
    // A write has the backend's whole `timeout`, whatever its caller's deadline is.
    let had_time = sending.asked.whole || write && progress.is_none();
    let elsewhere = sending.asked.elsewhere.clone();
    let bounds = Bounds { limit, progress, had_time, elsewhere };
    let mut ended = bounded(shared, bounds, answered(shared, sending, &mut reading)).await;
    if let Some(reading) = reading.as_mut().filter(|_| ended.known) {
        reading.ended();
    }
    if let Err(error) = &mut ended.attempted.result
        && !write
    {
        error.doubt = None;
    }
    ended
}

/// How long an exchange may take.
pub(super) struct Bounds {
    /// The longest that it may take; with `progress`, the longest without a piece of the upload.
    pub(super) limit: Duration,
    pub(super) progress: Option<Arc<Mutex<Instant>>>,
    /// Whether that is all that a backend may take.
    pub(super) had_time: bool,
    /// Other servers that it may wait for.
    pub(super) elsewhere: Elsewhere,
}

/// The same as `answered`, until its time is up or the connector is closed.
pub(super) async fn bounded(
    shared: &Shared,
    Bounds { limit, progress, had_time, elsewhere }: Bounds,
    answered: impl Future<Output = Exchanged>,
) -> Exchanged {
    let mut under_way = shared.http.under_way();
    let overdue = overdue(limit, progress);
    tokio::select! {
        ended = answered => ended,
        () = overdue => {
            let message = format!("no answer within {limit:?}");
            let error = AttemptError::own(ErrorClass::Unknown, OwnCode::Timeout, message);
            Exchanged::lost(Failed { error, verdict: elsewhere.silence(had_time) })
        }
        _ = under_way.wait_for(|closed| *closed) => {
            let message = "the connector was closed";
            let error = AttemptError::own(ErrorClass::Unknown, OwnCode::Reset, message);
            Exchanged::lost(Failed { error, verdict: Verdict::Neutral })
        }
    }
}

/// Returns when the time is up, which begins again with each piece of an upload.
async fn overdue(limit: Duration, progress: Option<Arc<Mutex<Instant>>>) {
    let mut due = Instant::now() + limit;
    loop {
        sleep_until(due).await;
        let last = progress.as_ref().map(|progress| *progress.lock());
        match last.map(|last| last + limit).filter(|later| *later > Instant::now()) {
            // While a piece is waited for that is ahead.
            Some(later) => due = later.min(Instant::now() + limit),
            None => return,
        }
    }
}

async fn answered(
    shared: &Arc<Shared>,
    sending: Sending,
    reading: &mut Option<Reading>,
) -> Exchanged {
    let Sending { outgoing, format, asked, write, streams, limit, aboard, .. } = sending;
    let response = shared.http.send(outgoing).await;
    shared.http.note(&response).await;
    let response = match response {
        Ok(response) => response,
        Err(failed) => {
            // Who answers next may be another server.
            shared.forget_server();
            return Exchanged::lost(failed);
        }
    };
    let response = match taken_away(aboard.fate(), response).await {
        Ok(response) => response,
        Err(lost) => return lost,
    };
    drop(aboard);
    let (status, headers) = (response.status().as_u16(), response.headers());
    let header = |name: &str| headers.get(name)?.to_str().ok().map(str::to_owned);
    let (code, after) = (http::exception_code(headers), http::retry_after(headers));
    // The status line may have left before the exception.
    if status != 200 || code.is_some() {
        let summary = header("x-clickhouse-summary");
        let handed_on = summary.and_then(|summary| handed_on(&summary, asked.summary));
        let came = Came { late: status == 200, handed_on };
        let text = match http::text_of(response.into_body()).await {
            Ok(text) => text,
            Err(failed) => return Exchanged::lost(failed),
        };
        return Exchanged::known(
            exception(
                shared,
                Exception::of_body(code, None, text.as_bytes()),
                status,
                after,
                &asked,
                came,
            )
            .await,
        );
    }
    let format = header("x-clickhouse-format").unwrap_or(format);
    let summary = header("x-clickhouse-summary").filter(|_| write);
    let tag = header("x-clickhouse-exception-tag");
    let mut gathered = Gathered {
        reply: wire::begin_reply(&format, 1_024),
        marks: Marks::of(tag.as_deref(), Some(&format), false),
        start: 2 + format.len().min(255),
    };
    let most = if streams { HEAD_MAX } else { RESULT_MAX };
    let mut body = response.into_body();
    loop {
        match gathered.next(&mut body).await {
            Ok(true) if gathered.len() <= most => {}
            Ok(true) if streams && !write => {
                let reading = reading.take();
                let http = &shared.http;
                return Exchanged::known(gathered.into_parts(http, body, asked, limit, reading));
            }
            Ok(true) => return too_large(write),
            Ok(false) => break,
            Err(error) => match gathered.exception() {
                Some(found) => {
                    return Exchanged::known(
                        exception(shared, found, 500, None, &asked, LATE).await,
                    );
                }
                None => return Exchanged::lost(http::broken(&error)),
            },
        }
    }
    if let Some(found) = gathered.exception() {
        return Exchanged::known(exception(shared, found, 500, None, &asked, LATE).await);
    }
    let reply = match (write && gathered.len() == 0, summary) {
        (true, Some(summary)) => wire::reply(wire::SUMMARY, summary.as_bytes()),
        (true, None) => wire::reply("", b""),
        (false, _) => gathered.reply.freeze(),
    };
    Exchanged::known(Attempted::answered(reply))
}

/// The answer, unless a fault on purpose takes it away: it is read and nobody hears of it, as if the connection had
/// broken. One that is late is waited for in vain.
pub(super) async fn taken_away(
    fate: Fate,
    response: Response<Rows>,
) -> Result<Response<Rows>, Exchanged> {
    match fate {
        Fate::Told => Ok(response),
        Fate::Lost => {
            read_out(response).await;
            let error = AttemptError::own(ErrorClass::Unknown, OwnCode::Reset, Fate::LOST);
            Err(Exchanged::lost(Failed { error, verdict: Verdict::Failure }))
        }
        Fate::Late => {
            read_out(response).await;
            std::future::pending().await
        }
    }
}

/// Reads an answer to its end: its head may come before the statement has been carried out.
async fn read_out(response: Response<Rows>) {
    let mut body = response.into_body();
    while let Some(Ok(_)) = body.frame().await {}
}

/// How an attempt ended that the server answered with an exception.
async fn exception(
    shared: &Shared,
    found: Exception,
    status: u16,
    after: Option<Duration>,
    asked: &Asked,
    came: Came,
) -> Attempted {
    if found.code == 115 {
        // It may not know a setting that another server knew.
        shared.forget_server();
    }
    let ended = found.ends(status, after, asked, came);
    if let Err(error) = &ended.result {
        let failed: Result<(), Failed> =
            Err(Failed { error: error.clone(), verdict: ended.verdict });
        shared.http.note(&failed).await;
    }
    ended
}

fn too_large(write: bool) -> Exchanged {
    let message = format!(
        "the result is larger than {} MiB: use call/raw, which streams it",
        RESULT_MAX >> 20
    );
    let mut error = AttemptError::own(ErrorClass::Rejected, OwnCode::ResultTooLarge, message);
    // A read that goes on answering is killed; a write has been done.
    error.doubt = write.then(Bytes::new);
    Exchanged { attempted: Attempted::failed(Verdict::Success, error), known: write }
}

/// An answer as far as it has come, in wire form.
struct Gathered {
    reply: BytesMut,
    /// The beginning of the server's own bytes.
    start: usize,
    marks: Marks,
}

impl Gathered {
    fn len(&self) -> usize {
        self.reply.len().saturating_sub(self.start)
    }

    /// Takes the next piece; false at the end.
    async fn next(&mut self, body: &mut Rows) -> Result<bool, hyper::Error> {
        match body.frame().await {
            Some(frame) => {
                if let Ok(piece) = frame?.into_data() {
                    self.reply.extend_from_slice(&piece);
                }
                Ok(true)
            }
            None => Ok(false),
        }
    }

    fn exception(&self) -> Option<Exception> {
        let rows = self.reply.get(self.start..)?;
        let window = rows.get(rows.len().saturating_sub(WINDOW)..)?;
        Exception::at_end(window, &self.marks)
    }

    fn into_parts(
        self,
        http: &Http,
        body: Rows,
        asked: Asked,
        idle: Duration,
        reading: Option<Reading>,
    ) -> Attempted {
        let from = self.reply.len().saturating_sub(WINDOW).max(self.start);
        let window = BytesMut::from(self.reply.get(from..).unwrap_or_default());
        let guard = reading.map(|reading| Guard::read(reading, None));
        let marks = self.marks;
        let rest = Rest::new(http, body, Behind { window, marks, asked, idle, guard });
        let mut attempted = Attempted::answered(self.reply.freeze());
        attempted.rest = Some(Box::new(rest));
        attempted
    }
}
