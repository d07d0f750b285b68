//! The bodies of requests, read within the bounds of the gate.

use std::{sync::Arc, time::Duration};

use axum::{
    body::{Body, HttpBody},
    http::StatusCode,
};
use bytes::{Bytes, BytesMut};
use fusebox_actors::connector::{Answer, AttemptError, OwnCode, Tail, Upload};
use fusebox_state::ErrorClass;
use http_body_util::BodyExt;
use parking_lot::Mutex;

use super::{encoding::NotDecoded, problem::Problem};
use crate::ingress::gate::{Account, Part, Pooled};

/// The largest JSON call, in bytes.
pub(crate) const JSON_MAX: u64 = 32 << 20;
/// A reply of less weighs nothing, in bytes: the number of connections bounds those.
const REPLY_LIGHT: usize = 64 << 10;
/// The longest that a body may take to arrive.
const BODY_TIME: Duration = Duration::from_secs(30);

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

    /// The call as it goes on: `body` is what the body that was read has become, and has its weight from now on.
    pub(crate) fn counted(&mut self, body: Bytes) -> Bytes {
        let part = std::mem::replace(&mut self.bytes, self.account.nothing(Pooled::Bytes));
        if part.is_nothing() {
            return body;
        }
        Bytes::from_owner(Counted { bytes: body, _part: part })
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
    /// are in flight, 408 if it takes too long, 400 if it breaks off.
    pub(crate) async fn read(&mut self, body: Body, limit: u64) -> Result<Bytes, Problem> {
        let limit = limit.min(self.account.body_max());
        let reading = self.read_on(body, limit);
        tokio::time::timeout(BODY_TIME, reading).await.unwrap_or_else(|_| Err(slow_body()))
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
        let mut first = BytesMut::new();
        while (first.len() as u64) < held {
            let data = match tokio::time::timeout(BODY_TIME, next_data(&mut body)).await {
                Ok(Some(Ok(data))) => data,
                Ok(None) => return Ok((first.freeze(), None)),
                Ok(Some(Err(problem))) => return Err(problem),
                Err(_) => return Err(slow_body()),
            };
            first.extend_from_slice(&data);
        }
        let left = limit.saturating_sub(first.len() as u64);
        let fault = Fault::default();
        self.fault = Some(Arc::clone(&fault));
        let rest = BodyRest { body: Mutex::new(body), left, limit, fault };
        Ok((first.freeze(), Some(Upload::new(Box::new(rest)))))
    }

    async fn read_on(&mut self, mut body: Body, limit: u64) -> Result<Bytes, Problem> {
        let announced = body.size_hint().exact();
        if announced.is_some_and(|length| length > limit) {
            return Err(Problem::too_large(limit));
        }
        let mut counted = announced.unwrap_or(0);
        self.bytes.hold_body(counted)?;
        let mut first = Bytes::new();
        let mut rest = BytesMut::new();
        let mut length = 0;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| broken(&error))?;
            let Ok(data) = frame.into_data() else { continue };
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
}

fn slow_body() -> Problem {
    let detail = "no data of the body arrived for 30 seconds";
    Problem::new(StatusCode::REQUEST_TIMEOUT, "slow_body", detail)
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
                Err(_) => slow_body(),
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
        read.map(|body| call.counted(body)).map_err(|problem| problem.status().as_u16())
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
    async fn a_body_in_small_pieces_weighs_as_much_as_in_one() {
        let gate = Gate::new(1 << 20);
        let held = read(&gate, chunks(1_000, 100), 1 << 20).await.unwrap();
        assert_eq!((held.len(), bytes_used(&gate)), (100_000, 200_000));
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
