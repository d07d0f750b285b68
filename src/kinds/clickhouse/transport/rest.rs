//! The rest of an answer, which comes piece by piece.
//!
//! The end is looked at whatever came before it: an exception may follow rows that have left already. An answer
//! that is dropped before its end leaves something behind: a read is killed, a write is in doubt. If the connector is
//! closed, that happens at once, whoever reads the answer or does not.

use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use fusebox_actors::connector::{Answer, AttemptError, OwnCode, Tail};
use fusebox_state::{ErrorClass, Verdict};
use hyper::{
    body::Body as _,
    header::{HeaderMap, HeaderValue},
};
use tokio::time::{Instant, Sleep, sleep_until};

use super::{
    http::{self, Http},
    lent::Lent,
    reading::Reading,
    sessions::InSession,
    writing::Writing,
};
use crate::{
    kinds::clickhouse::protocol::{
        http_form::{self, Fields},
        outcome::{Asked, Came, Exception, Marks, WINDOW},
    },
    net::http1::Rows,
};

/// What of a rest is gathered into one piece: servers send chunks of 4 KiB, and each piece that is passed on
/// costs a system call. A socket takes about as much at once.
const PIECE: usize = 256 * 1024;
/// What is taken from the heap for a first piece, which is all of a small answer: a chunk of more than 64 KiB makes the
/// allocator tidy up when it is freed, for each answer.
const PIECE_SMALL: usize = 16 * 1024;
/// What is passed on as it came.
const PIECE_ENOUGH: usize = 64 * 1024;
/// Why an answer breaks off whose connector was closed.
const CLOSED: &str = "the connector was closed";
/// How an exception comes behind an answer that has begun.
pub(super) const LATE: Came = Came { late: true, handed_on: None };

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

/// The pieces of an answer.
struct Coming {
    body: Rows,
    buffer: BytesMut,
    /// A piece was larger than [`PIECE_SMALL`].
    is_large: bool,
    /// How it ended, once it has.
    end: Option<Result<(), hyper::Error>>,
    /// What followed it.
    trailers: Fields,
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
                    let piece = match frame.into_data() {
                        Ok(piece) => piece,
                        Err(frame) => {
                            let trailers = frame.trailers_ref().map(fields);
                            self.trailers.extend(trailers.into_iter().flatten());
                            continue;
                        }
                    };
                    if first.is_empty() && self.buffer.is_empty() {
                        first = piece;
                        continue;
                    }
                    let first = std::mem::take(&mut first);
                    self.make_room(first.len() + piece.len());
                    self.buffer.extend_from_slice(&first);
                    self.buffer.extend_from_slice(&piece);
                }
                Poll::Ready(Some(Err(error))) => self.end = Some(Err(error)),
                Poll::Ready(None) => self.end = Some(Ok(())),
            }
        }
        let gathered = self.buffer.split().freeze();
        Poll::Ready(if first.is_empty() { gathered } else { first })
    }

    /// Makes room for `more` bytes: little for the first ones, and then for a whole piece.
    fn make_room(&mut self, more: usize) {
        let held = self.buffer.len();
        self.is_large |= held + more > PIECE_SMALL;
        let room = if self.is_large { PIECE + PIECE_ENOUGH } else { PIECE_SMALL };
        if held == 0 || self.buffer.capacity() - held < more {
            self.buffer.reserve(more.max(room.saturating_sub(held)));
        }
    }
}

/// What must be seen to if an answer is not read to its end.
pub(super) struct Guard {
    of: Of,
    /// A session that something is in is used until then.
    session: Option<InSession>,
}

enum Of {
    /// It is killed.
    Read(Reading),
    /// It is in doubt.
    Write(Writing),
}

impl Guard {
    /// Of a read that is about to be sent.
    pub(super) fn read(reading: Reading, session: Option<InSession>) -> Self {
        Self::of(Of::Read(reading), session)
    }

    /// Of a write that is about to be sent.
    pub(super) fn write(writing: Writing, session: Option<InSession>) -> Self {
        Self::of(Of::Write(writing), session)
    }

    fn of(of: Of, mut session: Option<InSession>) -> Self {
        if let Some(session) = &mut session {
            session.sent();
        }
        Self { of, session }
    }

    /// The server has ended it, or never got it.
    pub(super) fn ended(&mut self) {
        match &mut self.of {
            Of::Read(reading) => reading.ended(),
            Of::Write(writing) => writing.ended(),
        }
        if let Some(session) = &mut self.session {
            session.ended();
        }
    }
}

/// What is known of an answer before its rest.
pub(super) struct Behind {
    /// The last bytes that came, in which an exception would be.
    pub(super) window: BytesMut,
    pub(super) marks: Marks,
    pub(super) asked: Asked,
    /// The longest without a piece.
    pub(super) idle: Duration,
    pub(super) guard: Option<Guard>,
}

/// What is at the server for as long as the rest comes. The connection goes first.
struct Held {
    coming: Coming,
    guard: Option<Guard>,
}

/// What follows the beginning of a large answer.
pub(super) struct Rest {
    held: Lent<Held>,
    /// The last bytes that came, in which an exception would be.
    window: BytesMut,
    marks: Marks,
    asked: Asked,
    /// The longest without a piece.
    idle: Duration,
    /// Goes off no later than that is over. It is set again only then: most pieces come at once.
    alarm: Pin<Box<Sleep>>,
    over: bool,
    /// It came to its end, and what followed it.
    whole: Option<Bytes>,
}

impl Rest {
    /// What follows of `body`, for as long as `http` is open.
    pub(super) fn new(http: &Http, body: Rows, behind: Behind) -> Self {
        let Behind { window, marks, asked, idle, guard } = behind;
        let (buffer, trailers) = (BytesMut::new(), Fields::new());
        let coming = Coming { body, buffer, is_large: false, end: None, trailers };
        let held = http.lend(Held { coming, guard });
        let alarm = Box::pin(sleep_until(Instant::now() + idle));
        Self { held, window, marks, asked, idle, alarm, over: false, whole: None }
    }

    async fn piece(&mut self) -> Option<Result<Bytes, AttemptError>> {
        if self.over {
            return None;
        }
        let until = Instant::now() + self.idle;
        let came = tokio::select! {
            biased;
            piece = poll_fn(|cx| self.held.poll(cx, |held, cx| held.coming.poll_piece(cx))) => {
                piece.ok_or_else(|| (OwnCode::Reset, CLOSED.to_owned()))
            }
            () = goes_off(self.alarm.as_mut(), until) => {
                Err((OwnCode::Timeout, format!("no data arrived for {:?}", self.idle)))
            }
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
        let Some(Held { coming, guard }) = self.held.take() else {
            return Some(Err(self.fail(OwnCode::Reset, CLOSED.to_owned())));
        };
        let exception = self.exception();
        match (coming.end, exception) {
            (Some(Err(error)), None) if self.marks.may_hide_one() => Some(Err(unread(&error))),
            (Some(Err(error)), None) => Some(Err(http::broken(&error).error)),
            (end, exception) => {
                if end.is_none_or(|end| end.is_ok()) {
                    self.whole = Some(http_form::trailers(&coming.trailers));
                }
                if let Some(mut guard) = guard {
                    guard.ended();
                }
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
        let found = Exception::at_end(&self.window, &self.marks)?;
        let ended = found.ends(500, None, &self.asked, LATE);
        let blames = ended.verdict == Verdict::Failure && !self.asked.elsewhere.is_named();
        ended.result.err().map(|error| if blames { error } else { blameless(error) })
    }

    fn fail(&mut self, code: OwnCode, message: String) -> AttemptError {
        self.over = true;
        drop(self.held.take());
        let error = AttemptError::own(ErrorClass::Unknown, code, message);
        if self.asked.elsewhere.is_named() { blameless(error) } else { error }
    }
}

/// What is packed has broken off, as it does behind an exception: it says nothing of the server. One that has died
/// takes no other request either.
fn unread(error: &hyper::Error) -> AttemptError {
    blameless(http::broken(error).error)
}

/// An error behind the head of an answer that says nothing against the backend.
fn blameless(error: AttemptError) -> AttemptError {
    AttemptError { class: ErrorClass::Rejected, ..error }
}

impl Tail for Rest {
    fn next(&mut self) -> Answer<'_, Option<Result<Bytes, AttemptError>>> {
        Box::pin(self.piece())
    }

    fn end(&self) -> Option<Bytes> {
        self.whole.clone()
    }
}

/// Headers as text.
pub(super) fn fields(headers: &HeaderMap) -> Fields {
    let text = |value: &HeaderValue| http_form::text_of(value.as_bytes()).into_owned();
    headers.iter().map(|(name, value)| (name.as_str().to_owned(), text(value))).collect()
}
