//! The first message of a call, read whole before anything else is done for it.
//!
//! So a client that sends slowly holds nothing but its bytes, a message that is too large is refused before the backend
//! hears of it, and what the server refuses unread can be sent again. Of a message that has come in part nothing goes
//! on before the rest of it is here.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::future::poll_immediate;
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};
use tokio::{
    sync::{Mutex, OwnedSemaphorePermit},
    time::timeout,
};

use super::{
    class::{Class, Method, Shape},
    core::Core,
    framing::{Framing, Gathered, PREFIX, first_message, framed_length},
    requests::Requests,
    telling::Told,
};

/// What came of a call so far.
pub(super) struct Begun {
    /// Its messages that are whole; of a stream of writes the first one.
    pub(super) pieces: Vec<Bytes>,
    /// What is still to come; `None` if the client has said that this is all.
    pub(super) rest: Option<Arc<Mutex<Requests>>>,
    /// The room that its bytes take.
    pub(super) held: Vec<OwnedSemaphorePermit>,
}

impl Begun {
    /// Its messages, framed, one behind the other.
    pub(super) fn messages(&self) -> Bytes {
        match self.pieces.as_slice() {
            [only] => only.clone(),
            pieces => {
                let mut whole = BytesMut::with_capacity(pieces.iter().map(Bytes::len).sum());
                for piece in pieces {
                    whole.extend_from_slice(piece);
                }
                whole.freeze()
            }
        }
    }
}

/// The first of messages, if it can be read.
pub(super) fn first_of(messages: &Bytes) -> Option<Bytes> {
    first_message(messages).map(|message| messages.slice_ref(message))
}

/// Takes the last `count` bytes of pieces.
fn tail(pieces: &mut Vec<Bytes>, mut count: usize) -> Gathered {
    let mut taken = Vec::new();
    while count > 0
        && let Some(mut last) = pieces.pop()
    {
        let before = last.len().saturating_sub(count);
        count -= last.len() - before;
        taken.push(last.split_off(before));
        if before > 0 {
            pieces.push(last);
        }
    }
    Gathered::of(taken.into_iter().rev())
}

/// How many bytes of pieces are behind the first message.
fn behind_first(pieces: &[Bytes]) -> usize {
    let all: usize = pieces.iter().map(Bytes::len).sum();
    let prefix: BytesMut = pieces.iter().flatten().copied().take(PREFIX).collect();
    all.saturating_sub(framed_length(&prefix).unwrap_or(all))
}

/// Reads the first message, and the end of the request if there is but one.
pub(super) async fn begin(core: &Core, method: Method, mut body: Incoming) -> Result<Begun, Told> {
    let (mut framing, mut pieces, mut held) = (Framing::default(), Vec::new(), Vec::new());
    let mut has_ended = body.is_end_stream();
    while !has_ended {
        let is_whole = framing.whole() > 0 && framing.is_between();
        let may_go = method.shape != Shape::One && framing.whole() > 0;
        let next = if may_go {
            // The end comes with the last bytes, or right behind them.
            match poll_immediate(body.frame()).await {
                Some(next) => next,
                None => break,
            }
        } else {
            let next = timeout(core.settings.partial_max, body.frame()).await;
            next.map_err(|_| Told::malformed("no more data of the request arrived"))?
        };
        let Some(next) = next else {
            has_ended = true;
            break;
        };
        let next = next.map_err(|_| Told::malformed("the request ended too early"))?;
        if let Ok(data) = next.into_data() {
            if is_whole && method.shape == Shape::One && !data.is_empty() {
                return Err(Told::malformed("this method needs exactly one message"));
            }
            framing.feed(&data).map_err(Told::too_long)?;
            if !data.is_empty() {
                held.push(core.hold(data.len()).await?);
                pieces.push(data);
            }
        }
        has_ended = body.is_end_stream();
    }
    if has_ended && !framing.is_between() {
        return Err(Told::malformed("the request ends within a message"));
    }
    let behind = if method.shape == Shape::Lasting && method.class == Class::Write {
        // Each message of it is asked for by itself.
        behind_first(&pieces)
    } else {
        framing.begun()
    };
    let rest = (!has_ended || behind > 0).then(|| {
        let gathered = tail(&mut pieces, behind);
        Arc::new(Mutex::new(Requests::new(body, gathered)))
    });
    Ok(Begun { pieces, rest, held })
}
