//! One statement on the wire, from its request to its answer.
//!
//! An answer is gathered up to a limit. Where more follows, a caller that takes it piece by piece is given
//! the beginning and a [`Rest`]; any other is told that the result is too large. An exception may stand at
//! the end of rows that have left already, so the end is always looked at, also of a rest.
//!
//! A read whose answer nobody waits for any more is killed, in the background, and keeps its place until
//! that is done: it says nothing of a server that ended it, and is a failure where neither it nor the kill was
//! answered within `timeout`. What becomes of a write is the [fence](super::fence)'s affair.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use fusebox_actors::connector::{Aboard, Answer, AttemptError, Attempted, HEAD_MAX, OwnCode, Tail};
use fusebox_state::{ErrorClass, Verdict};
use http_body_util::BodyExt;
use hyper::body::Body as _;
use parking_lot::Mutex;
use tokio::{
    sync::watch,
    time::{Instant, Sleep, sleep, sleep_until},
};

use super::{
    fence::{PAUSE, QueryId, SETTLE},
    http::{self, Failed, Outgoing},
    shared::Shared,
};
use crate::{
    kinds::clickhouse::protocol::{
        outcome::{Asked, Came, Exception, WINDOW, written_rows},
        wire,
    },
    net::http1::Rows,
};

/// The largest result that is gathered for a caller who does not take it piece by piece.
const RESULT_MAX: usize = 32 << 20;
/// What of a rest is gathered into one piece: servers send chunks of 4 KiB, and each piece that is passed on
/// costs a system call. A socket takes about as much at once.
const PIECE: usize = 256 * 1024;
/// What is passed on as it came.
const PIECE_ENOUGH: usize = 64 * 1024;
/// How an exception comes behind an answer that has begun.
const LATE: Came = Came { late: true, handed_on: None };
/// How long the background tries to kill a read.
const KILL_TIME: Duration = Duration::from_secs(5);

/// What is to be sent, and how its answer is read.
pub(crate) struct Sending {
    pub(crate) outgoing: Outgoing,
    /// The answer's format where the server does not name it.
    pub(crate) format: String,
    pub(crate) asked: Asked,
    pub(crate) write: bool,
    pub(crate) streams: bool,
    /// The longest that it may take; with `progress`, the longest without a piece of the upload.
    pub(crate) limit: Duration,
    pub(crate) progress: Option<Arc<Mutex<Instant>>>,
}

/// How an exchange ended.
pub(crate) struct Exchanged {
    pub(crate) attempted: Attempted,
    /// Whether the server has ended the query, or never got it.
    pub(crate) known: bool,
}

impl Exchanged {
    fn known(attempted: Attempted) -> Self {
        Self { attempted, known: true }
    }

    fn lost(failed: Failed) -> Self {
        let known = failed.error.class != ErrorClass::Unknown;
        Self { attempted: Attempted::failed(failed.verdict, failed.error), known }
    }
}

/// A read on the wire. Dropped before its answer has ended, it is killed.
pub(crate) struct Reading {
    shared: Arc<Shared>,
    id: QueryId,
    ended: bool,
    aboard: Aboard,
    /// When the backend's `timeout` has passed.
    due: Instant,
}

impl Reading {
    pub(crate) fn new(shared: &Arc<Shared>, id: QueryId, aboard: Aboard) -> Self {
        let due = Instant::now() + shared.settings.timeout;
        Self { shared: Arc::clone(shared), id, ended: false, aboard, due }
    }

    /// The query's id.
    pub(crate) fn id(&self) -> &str {
        &self.id.0
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if self.ended {
            return;
        }
        let shared = Arc::clone(&self.shared);
        let id = self.id.0.clone();
        let (aboard, due) = (std::mem::take(&mut self.aboard), self.due);
        let left = due.saturating_duration_since(Instant::now());
        // One that had its whole time has had its place for as long as it may.
        let aboard = (!left.is_zero()).then_some(aboard);
        runtime.spawn(async move {
            let time = if aboard.is_some() { left } else { KILL_TIME };
            let killed = end_read(&shared, &id, Instant::now() + time).await;
            if let Err(failed) = &killed {
                let backend = shared.settings.name.as_str();
                tracing::debug!(backend, error = %failed.error, "an abandoned read was not killed");
            }
            let Some(aboard) = aboard else { return };
            if let Err(failed) = killed
                && !shared.http.is_closed()
            {
                sleep_until(due).await;
                return aboard.ended(failed.verdict);
            }
            aboard.ended(Verdict::Neutral);
        });
    }
}

/// Kills a read. One that is not found is over after a second look: it may lie in the server's socket, and begin.
///
/// # Errors
/// It was not over by `until`, or the server does not let it be killed.
async fn end_read(shared: &Shared, id: &str, until: Instant) -> Result<(), Failed> {
    let mut missed = false;
    loop {
        let kill = format!("KILL QUERY WHERE query_id = '{id}' SYNC FORMAT TabSeparated");
        let left = until.saturating_duration_since(Instant::now());
        let answer = shared.http.ask(kill, left).await?;
        match answer.split('\t').next() {
            Some("finished") => return Ok(()),
            None | Some("") if missed => return Ok(()),
            None | Some("") => {
                missed = true;
                sleep(SETTLE).await;
            }
            Some(_) => sleep(PAUSE).await,
        }
    }
}

/// Sends and reads the answer. `reading` guards a read.
pub(crate) async fn exchange(
    shared: &Arc<Shared>,
    sending: Sending,
    mut reading: Option<Reading>,
) -> Exchanged {
    let mut under_way = shared.http.under_way();
    let (limit, progress, write) = (sending.limit, sending.progress.clone(), sending.write);
    // A write has the backend's whole `timeout`, whatever its caller's deadline is.
    let whole = sending.asked.whole || write && progress.is_none();
    let verdict = if whole { Verdict::Failure } else { Verdict::Neutral };
    let overdue = overdue(limit, progress);
    let mut ended = tokio::select! {
        ended = answered(shared, sending, &mut reading) => ended,
        () = overdue => {
            let message = format!("no answer within {limit:?}");
            let error = AttemptError::own(ErrorClass::Unknown, OwnCode::Timeout, message);
            Exchanged::lost(Failed { error, verdict })
        }
        _ = under_way.wait_for(|closed| *closed) => {
            let message = "the connector was closed";
            let error = AttemptError::own(ErrorClass::Unknown, OwnCode::Reset, message);
            Exchanged::lost(Failed { error, verdict: Verdict::Neutral })
        }
    };
    if let Some(reading) = reading.as_mut().filter(|_| ended.known) {
        reading.ended = true;
    }
    if let Err(error) = &mut ended.attempted.result
        && !write
    {
        error.doubt = None;
    }
    ended
}

/// Returns when the time is up, which begins anew with each piece of an upload.
async fn overdue(limit: Duration, progress: Option<Arc<Mutex<Instant>>>) {
    let mut due = Instant::now() + limit;
    loop {
        sleep_until(due).await;
        let last = progress.as_ref().map(|progress| *progress.lock());
        match last.map(|last| last + limit).filter(|later| *later > Instant::now()) {
            Some(later) => due = later,
            None => return,
        }
    }
}

/// Returns at `until`, by an alarm that may be set to an earlier time.
async fn goes_off(mut alarm: Pin<&mut Sleep>, until: Instant) {
    loop {
        alarm.as_mut().await;
        if Instant::now() >= until {
            return;
        }
        alarm.as_mut().reset(until);
    }
}

async fn answered(
    shared: &Arc<Shared>,
    sending: Sending,
    reading: &mut Option<Reading>,
) -> Exchanged {
    let Sending { outgoing, format, asked, write, streams, limit, .. } = sending;
    let response = shared.http.send(outgoing).await;
    shared.http.note(&response).await;
    let response = match response {
        Ok(response) => response,
        Err(failed) => {
            // Who answers next may be another server.
            shared.servers.forget();
            return Exchanged::lost(failed);
        }
    };
    let (status, headers) = (response.status().as_u16(), response.headers());
    let header = |name: &str| headers.get(name)?.to_str().ok().map(str::to_owned);
    if status != 200 {
        let (code, after) = (http::exception_code(headers), http::retry_after(headers));
        let summary = header("x-clickhouse-summary").filter(|_| asked.summary);
        let handed_on = summary.and_then(|summary| written_rows(&summary));
        let came = Came { late: false, handed_on };
        let text = match http::text_of(response.into_body()).await {
            Ok(text) => text,
            Err(failed) => return Exchanged::lost(failed),
        };
        return Exchanged::known(
            exception(
                shared,
                Exception::of_body(code, text.as_bytes()),
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
        tag,
        start: 2 + format.len().min(255),
    };
    let most = if streams { HEAD_MAX } else { RESULT_MAX };
    let mut body = response.into_body();
    loop {
        match gathered.next(&mut body).await {
            Ok(true) if gathered.len() <= most => {}
            Ok(true) if streams && !write => {
                let reading = reading.take();
                let under_way = shared.http.under_way();
                return Exchanged::known(
                    gathered.into_parts(body, asked, limit, reading, under_way),
                );
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
        shared.servers.forget();
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
        "the result is larger than {} MiB: call/raw passes it on piece by piece",
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
    /// Where the server's own bytes begin.
    start: usize,
    tag: Option<String>,
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
        Exception::at_end(window, self.tag.as_deref())
    }

    fn into_parts(
        self,
        body: Rows,
        asked: Asked,
        idle: Duration,
        reading: Option<Reading>,
        under_way: watch::Receiver<bool>,
    ) -> Attempted {
        let from = self.reply.len().saturating_sub(WINDOW).max(self.start);
        let window = BytesMut::from(self.reply.get(from..).unwrap_or_default());
        let rest = Rest {
            coming: Coming { body, buffer: BytesMut::new(), end: None },
            window,
            tag: self.tag,
            asked,
            idle,
            alarm: Box::pin(sleep_until(Instant::now() + idle)),
            reading,
            under_way,
            over: false,
        };
        let mut attempted = Attempted::answered(self.reply.freeze());
        attempted.rest = Some(Box::new(rest));
        attempted
    }
}

/// The pieces of an answer.
struct Coming {
    body: Rows,
    buffer: BytesMut,
    /// How it ended, once it has.
    end: Option<Result<(), hyper::Error>>,
}

impl Coming {
    /// The next piece: all that is there, up to about [`PIECE`]. An empty one is the last.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Bytes> {
        let mut first = Bytes::new();
        while self.end.is_none() && first.len() < PIECE_ENOUGH && self.buffer.len() < PIECE {
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Pending if first.is_empty() && self.buffer.is_empty() => {
                    return Poll::Pending;
                }
                Poll::Pending => break,
                Poll::Ready(Some(Ok(frame))) => {
                    let Ok(piece) = frame.into_data() else { continue };
                    if first.is_empty() && self.buffer.is_empty() {
                        first = piece;
                        continue;
                    }
                    if self.buffer.is_empty() {
                        self.buffer.reserve(PIECE + PIECE_ENOUGH);
                    }
                    self.buffer.extend_from_slice(&std::mem::take(&mut first));
                    self.buffer.extend_from_slice(&piece);
                }
                Poll::Ready(Some(Err(error))) => self.end = Some(Err(error)),
                Poll::Ready(None) => self.end = Some(Ok(())),
            }
        }
        let gathered = self.buffer.split().freeze();
        Poll::Ready(if first.is_empty() { gathered } else { first })
    }
}

/// What follows the beginning of a large answer.
struct Rest {
    coming: Coming,
    /// The last bytes that came, in which an exception would stand.
    window: BytesMut,
    tag: Option<String>,
    asked: Asked,
    /// The longest without a piece.
    idle: Duration,
    /// Goes off no later than that is over. It is set anew only then: most pieces come at once.
    alarm: Pin<Box<Sleep>>,
    reading: Option<Reading>,
    under_way: watch::Receiver<bool>,
    over: bool,
}

impl Rest {
    async fn piece(&mut self) -> Option<Result<Bytes, AttemptError>> {
        if self.over {
            return None;
        }
        let until = Instant::now() + self.idle;
        let closing = "the connector was closed";
        if *self.under_way.borrow() {
            return Some(Err(self.fail(OwnCode::Reset, closing.to_owned())));
        }
        let came = tokio::select! {
            biased;
            piece = poll_fn(|cx| self.coming.poll_piece(cx)) => Ok(piece),
            () = goes_off(self.alarm.as_mut(), until) => {
                Err((OwnCode::Timeout, format!("nothing came for {:?}", self.idle)))
            }
            _ = self.under_way.wait_for(|closed| *closed) => Err((OwnCode::Reset, closing.to_owned())),
        };
        let piece = match came {
            Ok(piece) => piece,
            Err((code, message)) => return Some(Err(self.fail(code, message))),
        };
        if !piece.is_empty() {
            self.remember(&piece);
            return Some(Ok(piece));
        }
        self.over = true;
        let exception = self.exception();
        match (self.coming.end.take(), exception) {
            (Some(Err(error)), None) => Some(Err(http::broken(&error).error)),
            (_, exception) => {
                self.has_ended();
                exception.map(Err)
            }
        }
    }

    fn remember(&mut self, piece: &Bytes) {
        let kept = WINDOW.saturating_sub(piece.len());
        let gone = self.window.len().saturating_sub(kept);
        drop(self.window.split_to(gone));
        let from = piece.len().saturating_sub(WINDOW);
        self.window.extend_from_slice(piece.get(from..).unwrap_or_default());
    }

    fn exception(&self) -> Option<AttemptError> {
        let found = Exception::at_end(&self.window, self.tag.as_deref())?;
        found.ends(500, None, &self.asked, LATE).result.err()
    }

    fn has_ended(&mut self) {
        if let Some(reading) = &mut self.reading {
            reading.ended = true;
        }
    }

    fn fail(&mut self, code: OwnCode, message: String) -> AttemptError {
        self.over = true;
        self.reading = None;
        AttemptError::own(ErrorClass::Unknown, code, message)
    }
}

impl Tail for Rest {
    fn next(&mut self) -> Answer<'_, Option<Result<Bytes, AttemptError>>> {
        Box::pin(self.piece())
    }
}
