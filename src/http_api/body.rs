//! The bodies of requests, and answers that are not small, within the bounds of the gate.

use std::{sync::Arc, time::Duration};

use axum::{
    body::{Body, HttpBody},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::{Bytes, BytesMut};
use fusebox_actors::connector::{Answer, AttemptError, OwnCode, Tail, Upload};
use fusebox_state::ErrorClass;
use http_body_util::BodyExt;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::time::{Instant, timeout_at};

use super::{encoding::NotDecoded, problem::Problem};
use crate::{
    ingress::gate::{Account, Part, Pooled},
    kinds::port::SHOWN_MAX,
};

/// The largest JSON call, in bytes.
pub(crate) const JSON_MAX: u64 = 32 << 20;
/// A reply of less weighs nothing, in bytes: the number of connections bounds those.
const REPLY_LIGHT: usize = 64 << 10;
/// As so many bodies of its size a stored call counts while it is shown: as it was read, as a value, and as text. The
/// value is by far the largest if the call consists of small parts: 4 bytes of a Firestore call can be a geo point, whose
/// two objects take 1,400 bytes, and 7 bytes of a Redis command an argument that is no text, whose object takes 700.
const SHOWN: u64 = 200;
/// The longest that a body may pause. Without a pause, its first bytes may take as long.
const BODY_TIME: Duration = Duration::from_secs(30);
/// How fast what follows must arrive on average while it is held, in bytes a second: 128 kbit/s. Without this, a
/// caller who sends a byte now and then could hold its part of the gate for days.
const BODY_RATE: u64 = 16 << 10;

/// A call on its way in and out, as the gate sees it. Its bytes are given back when nobody has its body any more.
pub(crate) struct Admitted {
    account: Arc<Account>,
    /// What its body weighs, until that is [`counted`](Self::counted).
    bytes: Part,
    /// What was wrong with the body, if that was found out while it was being passed on.
    fault: Option<Fault>,
}

type Fault = Arc<Mutex<Option<Problem>>>;

/// Bytes that weigh for as long as anybody has them: the caller may have left, and they are still being sent.
struct Counted {
    bytes: Bytes,
    _part: Part,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Admitted {
    /// A call whose body is to be read.
    pub(crate) fn new(account: &Arc<Account>) -> Self {
        let bytes = account.nothing(Pooled::Bytes);
        Self { account: Arc::clone(account), bytes, fault: None }
    }

    /// The call as it goes on: `body` is what the body that was read has become. It has the weight of the larger of the
    /// two from now on.
    ///
    /// # Errors
    /// 429 if too many bytes are in flight, 413 if so many may never be.
    pub(crate) fn counted(&mut self, body: Bytes) -> Result<Bytes, Problem> {
        let (length, limit) = (body.len() as u64, self.account.body_max());
        if length > limit {
            return Err(Problem::too_large(limit));
        }
        self.bytes.hold_body(length)?;
        let part = std::mem::replace(&mut self.bytes, self.account.nothing(Pooled::Bytes));
        if part.is_nothing() {
            return Ok(body);
        }
        Ok(Bytes::from_owner(Counted { bytes: body, _part: part }))
    }

    /// The reply as it is written. One that is not small weighs until the caller has taken it.
    pub(crate) fn reply(self, bytes: Bytes) -> Bytes {
        if bytes.len() < REPLY_LIGHT {
            return bytes;
        }
        let mut part = self.account.nothing(Pooled::Bytes);
        part.add(bytes.len() as u64);
        Bytes::from_owner(Counted { bytes, _part: part })
    }

    /// The answer if a call ended with `problem`: that its body is too large, broken or slow,
    /// if that was why.
    pub(crate) fn blame(&self, problem: Problem) -> Problem {
        match self.fault.as_ref().and_then(|fault| fault.lock().take()) {
            Some(fault) => fault.in_place_of(problem),
            None => problem,
        }
    }

    /// Reads a body of at most `limit` bytes, counting it to the place. Copies nothing if it arrives
    /// in one piece.
    ///
    /// # Errors
    /// 413 above the limit (before reading if its length is announced), 429 if too many bytes
    /// are in flight, 408 if it pauses or is too slow, 400 if it breaks off.
    pub(crate) async fn read(&mut self, mut body: Body, limit: u64) -> Result<Bytes, Problem> {
        let limit = limit.min(self.account.body_max());
        let announced = body.size_hint().exact();
        if announced.is_some_and(|length| length > limit) {
            return Err(Problem::too_large(limit));
        }
        let mut counted = announced.unwrap_or(0);
        self.bytes.hold_body(counted)?;
        let mut arrival = Arrival::begin();
        let mut first = Bytes::new();
        let mut rest = BytesMut::new();
        let mut length = 0;
        while let Some(data) = arrival.next(&mut body).await {
            let data = data?;
            length += data.len() as u64;
            if length > limit {
                return Err(Problem::too_large(limit));
            }
            if length > counted {
                self.bytes.hold_body(length)?;
                counted = length;
            }
            if rest.is_empty() && first.is_empty() {
                first = data;
                continue;
            }
            if rest.is_empty() {
                rest.reserve(usize::try_from(counted).unwrap_or(0));
                rest.extend_from_slice(&first);
            }
            rest.extend_from_slice(&data);
        }
        Ok(if rest.is_empty() { first } else { rest.freeze() })
    }

    /// The largest stored call that is shown, in bytes: it takes half of what all callers share, or less.
    pub(crate) fn shown_max(&self) -> u64 {
        (self.account.body_max() / (2 * SHOWN)).min(SHOWN_MAX as u64)
    }

    /// Takes room for a stored call of so many bytes, which is to be read and shown.
    ///
    /// # Errors
    /// 429 if too many bytes are in flight.
    pub(crate) fn hold_shown(&mut self, bytes: u64) -> Result<(), Problem> {
        self.bytes.hold_body(bytes.saturating_mul(SHOWN)).map_err(Problem::from)
    }

    /// Reads the first `held` bytes of a body of at most `limit` bytes. `None` if that was all; else
    /// what follows, which is read as it is wanted and not counted.
    ///
    /// # Errors
    /// As [`Admitted::read`].
    pub(crate) async fn read_head(
        &mut self,
        mut body: Body,
        held: u64,
        limit: u64,
    ) -> Result<(Bytes, Option<Upload>), Problem> {
        let held = held.min(self.account.body_max());
        let announced = body.size_hint().exact();
        if announced.is_some_and(|length| length > limit) {
            return Err(Problem::too_large(limit));
        }
        if announced.is_some_and(|length| length <= held) {
            return Ok((self.read(body, held).await?, None));
        }
        self.bytes.hold_body(held)?;
        let mut arrival = Arrival::begin();
        let mut first = BytesMut::new();
        while (first.len() as u64) < held {
            match arrival.next(&mut body).await {
                Some(data) => first.extend_from_slice(&data?),
                None => return Ok((first.freeze(), None)),
            }
        }
        let left = limit.saturating_sub(first.len() as u64);
        let fault = Fault::default();
        self.fault = Some(Arc::clone(&fault));
        let rest = BodyRest { body: Mutex::new(body), left, limit, fault };
        Ok((first.freeze(), Some(Upload::new(Box::new(rest)))))
    }
}

/// The arrival of a body that is held.
struct Arrival {
    began: Instant,
    bytes: u64,
}

impl Arrival {
    fn begin() -> Self {
        Self { began: Instant::now(), bytes: 0 }
    }

    /// The next piece of the body; `None` at its end, an error if it breaks off, pauses or is too slow.
    async fn next(&mut self, body: &mut Body) -> Option<Result<Bytes, Problem>> {
        let pause = Instant::now() + BODY_TIME;
        let late = self.began + BODY_TIME + Duration::from_secs(self.bytes / BODY_RATE);
        match timeout_at(pause.min(late), next_data(body)).await {
            Ok(next) => {
                if let Some(Ok(data)) = &next {
                    self.bytes += data.len() as u64;
                }
                next
            }
            Err(_) if self.bytes > 0 && late < pause => {
                Some(Err(slow_body("the body arrived with less than 16 KiB a second")))
            }
            Err(_) => Some(Err(slow_body(PAUSED))),
        }
    }
}

/// The fault of a body that pauses for [`BODY_TIME`].
const PAUSED: &str = "no data of the body arrived for 30 seconds";

fn slow_body(detail: &str) -> Problem {
    Problem::new(StatusCode::REQUEST_TIMEOUT, "slow_body", detail)
}

/// The text of an answer in JSON.
///
/// # Errors
/// 500 if it cannot be written.
pub(crate) fn json_text(answer: &impl Serialize) -> Result<Bytes, Problem> {
    let text = serde_json::to_vec(answer);
    text.map(Bytes::from).map_err(|error| Problem::internal(error.to_string()))
}

/// The answer with this text, which is JSON.
pub(crate) fn json_response(text: Bytes) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}

/// An answer in JSON about more than one call or event. If it is not small, it takes room, and has it until the
/// caller has taken the answer.
///
/// # Errors
/// 429 if too many bytes are in flight, 500 if it cannot be written.
pub(crate) fn listing(
    account: &Arc<Account>,
    answer: &impl Serialize,
) -> Result<Response, Problem> {
    let bytes = json_text(answer)?;
    if bytes.len() < REPLY_LIGHT {
        return Ok(json_response(bytes));
    }
    let part = account.take(Pooled::Bytes, bytes.len() as u64)?;
    Ok(json_response(Bytes::from_owner(Counted { bytes, _part: part })))
}

/// A body that broke off, or that is not what its `Content-Encoding` says.
fn broken(error: &axum::Error) -> Problem {
    Problem::malformed(
        NotDecoded::in_error(error).unwrap_or_else(|| "the body ended too early".to_owned()),
    )
}

/// The next piece of a body; `None` at its end, an error if it breaks off.
async fn next_data(body: &mut Body) -> Option<Result<Bytes, Problem>> {
    loop {
        match body.frame().await? {
            Err(error) => return Some(Err(broken(&error))),
            Ok(frame) => {
                if let Ok(data) = frame.into_data() {
                    return Some(Ok(data));
                }
            }
        }
    }
}

/// What follows the head of a body. A piece that keeps one waiting for 30 seconds breaks it off.
struct BodyRest {
    /// Never contended: axum's body is not `Sync`, and a tail must be.
    body: Mutex<Body>,
    left: u64,
    limit: u64,
    /// Read by the call's door, which answers for what is wrong with it.
    fault: Fault,
}

impl Tail for BodyRest {
    fn next(&mut self) -> Answer<'_, Option<Result<Bytes, AttemptError>>> {
        Box::pin(async {
            let body = self.body.get_mut();
            let problem = match tokio::time::timeout(BODY_TIME, next_data(body)).await {
                Ok(None) => return None,
                Ok(Some(Ok(data))) if data.len() as u64 <= self.left => {
                    self.left -= data.len() as u64;
                    return Some(Ok(data));
                }
                Ok(Some(Ok(_))) => Problem::too_large(self.limit),
                Ok(Some(Err(problem))) => problem,
                Err(_) => slow_body(PAUSED),
            };
            let message = problem.detail().to_owned();
            *self.fault.lock() = Some(problem);
            Some(Err(AttemptError::own(ErrorClass::Rejected, OwnCode::BodyBrokenOff, message)))
        })
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;
    use crate::{
        http_api::encoding,
        ingress::gate::{
            Gate,
            testing::{bytes_used, user},
        },
    };

    fn call(gate: &Gate) -> Admitted {
        Admitted::new(&gate.account(user(1)))
    }

    async fn read(gate: &Gate, body: Body, limit: u64) -> Result<Bytes, u16> {
        let mut call = call(gate);
        let read = call.read(body, limit).await;
        read.and_then(|body| call.counted(body)).map_err(|problem| problem.status().as_u16())
    }

    fn chunks(count: usize, size: usize) -> Body {
        let chunk = Bytes::from(vec![b'x'; size]);
        Body::from_stream(stream::iter(
            (0..count).map(move |_| Ok::<_, std::convert::Infallible>(chunk.clone())),
        ))
    }

    #[tokio::test]
    async fn bodies_are_read_up_to_the_limit() {
        let gate = Gate::new(1 << 30);
        assert_eq!(read(&gate, Body::from("abc"), 3).await, Ok(Bytes::from("abc")));
        assert_eq!(read(&gate, Body::from("abcd"), 3).await, Err(413));
        assert_eq!(read(&gate, chunks(3, 4), 12).await.map(|bytes| bytes.len()), Ok(12));
        assert_eq!(read(&gate, chunks(4, 4), 12).await, Err(413));
        assert_eq!(read(&gate, Body::empty(), 12).await, Ok(Bytes::new()));
    }

    #[tokio::test]
    async fn what_is_wrong_with_a_body_that_is_passed_on_is_the_callers_answer() {
        let gate = Gate::new(1 << 30);
        let mut place = call(&gate);
        let (head, upload) = place.read_head(chunks(10, 4), 8, 30).await.unwrap();
        assert_eq!(head.len(), 8);
        let refused = || Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "body_broken_off", "");
        assert_eq!(place.blame(refused()).status(), 422, "nothing is wrong with it so far");
        let mut rest = upload.unwrap().take().unwrap();
        let mut passed_on = 0;
        let error = loop {
            match rest.next().await.expect("it is larger than the limit") {
                Ok(data) => passed_on += data.len(),
                Err(error) => break error,
            }
        };
        assert_eq!((passed_on, error.class), (20, ErrorClass::Rejected));
        assert_eq!(place.blame(refused()).status(), 413);
    }

    /// What is decoded on the way counts as what it becomes: held, passed on, and against the limit.
    #[tokio::test]
    async fn a_bomb_that_is_passed_on_ends_at_the_limit() {
        use flate2::{Compression, write::GzEncoder};
        let mut bomb = GzEncoder::new(Vec::new(), Compression::best());
        std::io::Write::write_all(&mut bomb, &vec![0; 24 << 20]).unwrap();
        let bomb = bomb.finish().unwrap();
        assert!(bomb.len() < 64 << 10);
        let gate = Gate::new(1 << 30);
        let mut place = call(&gate);
        let body = encoding::gunzipped(Body::from(bomb));
        let limit = 16 << 20;
        let (head, upload) = place.read_head(body, 1 << 20, limit).await.unwrap();
        let mut rest = upload.expect("it is more than is held").take().unwrap();
        let (mut passed_on, mut largest) = (head.len() as u64, 0);
        while let Some(Ok(data)) = rest.next().await {
            passed_on += data.len() as u64;
            largest = largest.max(data.len());
        }
        assert!((12 << 20..=limit).contains(&passed_on), "{passed_on}");
        assert!(largest <= 2 << 20, "{largest} at once");
        let refused = Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "body_broken_off", "");
        assert_eq!(place.blame(refused).status(), 413);
    }

    #[tokio::test]
    async fn a_full_gate_says_so_and_recovers() {
        let gate = Gate::new(16 << 10);
        let held = read(&gate, chunks(4, 1_024), 1 << 20).await.unwrap();
        assert_eq!((held.len(), bytes_used(&gate)), (4_096, 8 << 10));
        assert_eq!(read(&gate, chunks(8, 1_024), 1 << 20).await, Err(429));
        let larger = Body::from(vec![0; 9 << 10]);
        assert_eq!(read(&gate, larger, 1 << 20).await, Err(413), "it would never fit");
        // Its body weighs for as long as anybody has some of it.
        let sliced = held.slice(7..8);
        drop(held);
        assert_eq!(bytes_used(&gate), 8 << 10);
        drop(sliced);
        assert_eq!(bytes_used(&gate), 0);
    }

    #[tokio::test]
    async fn a_body_that_has_become_larger_weighs_as_much() {
        let gate = Gate::new(64 << 10);
        let becomes = async |size: usize| {
            let mut call = call(&gate);
            drop(call.read(chunks(4, 1_024), 1 << 20).await.unwrap());
            call.counted(Bytes::from(vec![0; size])).map_err(|problem| problem.status().as_u16())
        };
        let held = becomes(16 << 10).await.unwrap();
        assert_eq!((held.len(), bytes_used(&gate)), (16 << 10, 32 << 10));
        assert_eq!(becomes(15 << 10).await, Err(429));
        assert_eq!(becomes(33 << 10).await, Err(413), "it would never fit");
        drop(held);
        let held = becomes(1).await.unwrap();
        assert_eq!(bytes_used(&gate), 8 << 10, "what was read");
        drop(held);
        assert_eq!(bytes_used(&gate), 0);
    }

    #[tokio::test]
    async fn a_body_in_small_pieces_weighs_as_much_as_in_one() {
        let gate = Gate::new(1 << 20);
        let held = read(&gate, chunks(1_000, 100), 1 << 20).await.unwrap();
        assert_eq!((held.len(), bytes_used(&gate)), (100_000, 200_000));
    }

    /// A body of so many pieces of `size` bytes, with a time before each.
    fn slow(count: usize, size: usize, pause: Duration) -> Body {
        let chunk = Bytes::from(vec![b'x'; size]);
        Body::from_stream(stream::unfold(count, move |left| {
            let chunk = chunk.clone();
            async move {
                tokio::time::sleep(pause).await;
                (left > 0).then(|| (Ok::<_, std::convert::Infallible>(chunk), left - 1))
            }
        }))
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_may_take_long_if_it_goes_on_arriving() {
        let gate = Gate::new(1 << 30);
        let of_20_s = Duration::from_secs(20);
        let large = read(&gate, slow(8, 1 << 20, of_20_s), 32 << 20).await;
        assert_eq!(large.map(|body| body.len()), Ok(8 << 20), "three minutes at 52 KiB a second");
        let (head, rest) =
            call(&gate).read_head(slow(8, 1 << 20, of_20_s), 4 << 20, 32 << 20).await.unwrap();
        assert_eq!((head.len(), rest.is_some()), (4 << 20, true));
        assert_eq!(read(&gate, slow(8, 1, of_20_s), 1 << 20).await, Err(408), "a trickle");
        assert!(call(&gate).read_head(slow(8, 1, of_20_s), 1 << 10, 1 << 20).await.is_err());
        let pausing = slow(8, 4 << 20, Duration::from_secs(31));
        assert_eq!(read(&gate, pausing, 32 << 20).await, Err(408), "a pause");
        assert_eq!(bytes_used(&gate), 0);
    }

    #[tokio::test]
    async fn a_long_listing_takes_room_until_it_is_taken_or_is_refused() {
        let gate = Gate::new(1 << 20);
        let account = gate.account(user(1));
        let list = |length: usize| listing(&account, &vec![0; length]);
        let small = list(10).unwrap();
        assert_eq!(
            (small.headers()["content-type"].as_bytes(), bytes_used(&gate)),
            (&b"application/json"[..], 0)
        );
        let large = list(200_000).unwrap();
        assert_eq!(bytes_used(&gate), 400_001);
        let refused = (0..3).map(|_| list(200_000)).collect::<Result<Vec<_>, _>>().unwrap_err();
        assert_eq!(refused.status(), 429);
        assert_eq!(bytes_used(&gate), 400_001, "what is refused takes nothing");
        drop((small, large));
        assert_eq!(bytes_used(&gate), 0);
    }

    #[tokio::test]
    async fn a_large_reply_weighs_until_it_is_taken() {
        let gate = Gate::new(1 << 10);
        let small = call(&gate).reply(Bytes::from(vec![0; REPLY_LIGHT - 1]));
        assert_eq!(bytes_used(&gate), 0);
        let large = call(&gate).reply(Bytes::from(vec![0; REPLY_LIGHT]));
        assert_eq!(bytes_used(&gate), REPLY_LIGHT as u64);
        drop((small, large));
        assert_eq!(bytes_used(&gate), 0);
    }
}
