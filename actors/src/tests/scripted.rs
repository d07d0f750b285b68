//! A connector that follows a script, over a backend in memory.
//!
//! Bodies are words: `SET k v`, `GET k`, `INCR k`, `BAD k` (rejected for good), `FLUSH` (a barrier that
//! never queues), `PUT k v` (an insert: it commutes with every other), `BIG k` (a read whose answer comes in
//! pieces), `KEEP k v` (sets `k` until 300 ms after it was accepted, which is judged along its lane: what ends its
//! life is `END k ms`), `MOVE k l` (renames). Replies are the value, `OK`, or `nil`.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use fusebox_state::{
    ErrorClass, LaneId, Lanes, OpId, Target, UnixMillis, Verdict,
    dependencies::{Fault, Shared},
};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::{
    connector::{
        Access, Answer, Attempt, AttemptError, Attempted, Connector, ConnectorStatus, ErrorCode,
        Outage, Overlay, OwnCode, Plan, QueuedWrite, Read, Refused, Residue, ResidueAfter, Said,
        Slot, Tail, Upload, Write,
    },
    simulation::overlay::LastWrite,
};

/// What the backend does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Answers.
    Up,
    /// Refuses connections.
    Down,
    /// Takes what is sent and never answers.
    Silent,
    /// The same, and nothing that is on the wire ends within a minute.
    Frozen,
    /// Answers everything but pings.
    Pingless,
    /// Applies what is sent and loses the answer.
    Deaf,
    /// Applies at once, answers after 80 ms.
    Slow,
    /// Refuses everybody: a rotated password.
    Blocked,
    /// Answers reads, and refuses every write: a replica.
    ReadOnly,
    /// Refuses connections, and its connector panics at a ping.
    Panicking,
    /// Applies half of what is sent and refuses the rest.
    Half,
    /// Applies what is sent and answers with an error that nobody knows.
    Strange,
    /// Connects, and refuses before anything is read.
    Full,
    /// Applies nothing that it is sent, and says so with an error that leaves it open, once its time is over.
    Late,
    /// This host has no network.
    Cut,
    /// Works on as many calls at once as there are `slots`, each for 40 ms.
    Slots,
    /// Does not accept connections, and does not refuse them either.
    Unreachable,
}

/// The connector.
pub(crate) struct Scripted {
    mode: Mutex<Mode>,
    data: Mutex<BTreeMap<String, String>>,
    /// Every write that was applied, in order.
    pub(crate) applied: Mutex<Vec<String>>,
    tokens: Mutex<Vec<OpId>>,
    pub(crate) name: Mutex<String>,
    pub(crate) closing: AtomicU32,
    pub(crate) attempts: AtomicU32,
    pub(crate) pings: AtomicU32,
    /// Calls that may go together.
    pub(crate) batch_max: AtomicU32,
    /// How often that was asked.
    pub(crate) asked: AtomicU32,
    /// The sizes of the batches that came.
    pub(crate) batches: Mutex<Vec<usize>>,
    /// Whether tokens protect nothing here.
    pub(crate) tokenless: AtomicBool,
    /// Keys that are closed to us.
    pub(crate) closed: Mutex<Vec<String>>,
    /// Whether inserts go together, and how many of them.
    pub(crate) gathers: AtomicU32,
    /// The sizes of the groups that came, and the tokens that they had.
    pub(crate) groups: Mutex<Vec<(usize, OpId)>>,
    /// What was known of attempts that came in doubt.
    pub(crate) evidence: Mutex<Vec<Bytes>>,
    /// How often it made ready.
    pub(crate) prepared: AtomicU32,
    /// How often it began to connect to a server that is unreachable.
    pub(crate) connecting: AtomicU32,
    /// How many calls it works on at once.
    pub(crate) slots: Semaphore,
    /// Whether it says of a SET that it sets the whole value of its key.
    pub(crate) wholes: AtomicBool,
    /// After how many questions about what a write changes of a residue it panics, once.
    pub(crate) residue_panics: AtomicU32,
    /// Whether it takes nothing more after the next batch: `batch_max` is 0 then.
    pub(crate) one_batch: AtomicBool,
    /// Attempts that the server has not ended, and the most that there ever were at once.
    pub(crate) on_wire: Arc<(AtomicU32, AtomicU32)>,
    /// Whether what a caller left on the wire bars its lanes.
    pub(crate) bars: AtomicBool,
}

impl Scripted {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            mode: Mutex::new(Mode::Up),
            data: Mutex::default(),
            applied: Mutex::default(),
            tokens: Mutex::default(),
            name: Mutex::new("scripted".into()),
            closing: AtomicU32::new(0),
            attempts: AtomicU32::new(0),
            pings: AtomicU32::new(0),
            batch_max: AtomicU32::new(1),
            asked: AtomicU32::new(0),
            batches: Mutex::default(),
            tokenless: AtomicBool::new(false),
            closed: Mutex::default(),
            gathers: AtomicU32::new(0),
            groups: Mutex::default(),
            evidence: Mutex::default(),
            prepared: AtomicU32::new(0),
            connecting: AtomicU32::new(0),
            slots: Semaphore::new(0),
            wholes: AtomicBool::new(false),
            residue_panics: AtomicU32::new(0),
            one_batch: AtomicBool::new(false),
            on_wire: Arc::default(),
            bars: AtomicBool::new(false),
        })
    }

    pub(crate) fn set(&self, mode: Mode) {
        *self.mode.lock() = mode;
    }

    pub(crate) fn get(&self, key: &str) -> Option<String> {
        self.data.lock().get(key).cloned()
    }

    /// Whether a repetition of that call would be recognised.
    pub(crate) fn recognises(&self, token: OpId) -> bool {
        self.tokens.lock().contains(&token)
    }

    fn apply(&self, body: &str, token: Option<OpId>) -> Attempted {
        if body.contains(';') {
            self.tokens.lock().extend(token);
            body.split(';').for_each(|body| drop(self.apply(body, None)));
            return Attempted::answered(Bytes::from_static(b"OK"));
        }
        let words: Vec<&str> = body.split(' ').collect();
        if words.get(1).is_some_and(|key| self.closed.lock().iter().any(|closed| closed == key)) {
            let error = fault(ErrorClass::BlockedObject, ErrorCode::OfKind("NO_SUCH_TABLE"));
            return Attempted::failed(Verdict::Success, error);
        }
        let mut data = self.data.lock();
        if let Some(token) = token {
            let mut tokens = self.tokens.lock();
            if tokens.contains(&token) {
                return Attempted::answered(Bytes::from_static(b"again"));
            }
            tokens.push(token);
        }
        let reply = match words.as_slice() {
            ["GET", key] => data.get(*key).cloned().unwrap_or_else(|| "nil".into()),
            ["BIG", _] => {
                let pieces = Pieces(vec!["b".into(), "c".into()]);
                let head = Attempted::answered(Bytes::from_static(b"a"));
                return Attempted { rest: Some(Box::new(pieces)), ..head };
            }
            ["PUT", _, "bad"] => {
                let error = AttemptError {
                    reply: Some("bad".into()),
                    ..fault(ErrorClass::Rejected, ErrorCode::OfKind("BAD_ROW"))
                };
                return Attempted::failed(Verdict::Success, error);
            }
            ["END", key, _] => {
                data.remove(*key);
                "OK".into()
            }
            ["MOVE", key, to] => {
                let Some(value) = data.remove(*key) else {
                    return Attempted::failed(
                        Verdict::Success,
                        fault(ErrorClass::Rejected, ErrorCode::OfKind("NO_SUCH_KEY")),
                    );
                };
                data.insert((*to).into(), value);
                "OK".into()
            }
            ["SET" | "PUT" | "KEEP", key, value] => {
                data.insert((*key).into(), (*value).into());
                "OK".into()
            }
            ["ADD", key, value] => {
                let held = data.entry((*key).into()).or_default();
                if !held.contains(value) {
                    held.push_str(value);
                }
                "1".into()
            }
            ["MALL", value] => {
                data.insert("a".into(), (*value).into());
                "OK".into()
            }
            ["INCR", key] => {
                let next = data.get(*key).and_then(|old| old.parse::<u64>().ok()).unwrap_or(0) + 1;
                data.insert((*key).into(), next.to_string());
                next.to_string()
            }
            ["FLUSH"] => {
                data.clear();
                "OK".into()
            }
            _ => {
                return Attempted::failed(
                    Verdict::Success,
                    fault(ErrorClass::Rejected, ErrorCode::OfKind("WRONGTYPE")),
                );
            }
        };
        if !matches!(words.first(), Some(&"GET" | &"BIG")) {
            self.applied.lock().push(body.to_owned());
        }
        Attempted::answered(reply.into())
    }

    /// What is on the wire goes on without its caller: a slow server answers it, a silent one does not within the
    /// backend's `timeout`.
    fn go_on(&self, attempt: &Attempt<'_>) {
        let (verdict, millis) = match *self.mode.lock() {
            Mode::Slow => (Verdict::Success, 80),
            Mode::Silent | Mode::Deaf => (Verdict::Failure, 100),
            Mode::Frozen => (Verdict::Failure, 60_000),
            _ => {
                // It is answered at once, and was on the wire for a moment.
                self.on_wire
                    .1
                    .fetch_max(self.on_wire.0.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
                return;
            }
        };
        let (aboard, on_wire) = (attempt.board(), Arc::clone(&self.on_wire));
        let now = on_wire.0.fetch_add(1, Ordering::Relaxed) + 1;
        on_wire.1.fetch_max(now, Ordering::Relaxed);
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(millis)).await;
            on_wire.0.fetch_sub(1, Ordering::Relaxed);
            aboard.ended(verdict);
        });
    }

    async fn carry(&self, body: Option<&str>, token: Option<OpId>, timeout: Duration) -> Attempted {
        let mode = *self.mode.lock();
        match mode {
            Mode::ReadOnly if body.is_some_and(|body| !body.starts_with("GET")) => {
                Attempted::failed(
                    Verdict::Failure,
                    fault(ErrorClass::BlockedServer, ErrorCode::OfKind("READONLY")),
                )
            }
            Mode::Up | Mode::Pingless | Mode::ReadOnly => match body {
                None if mode == Mode::Pingless => {
                    tokio::time::sleep(timeout).await;
                    Attempted::failed(
                        Verdict::Failure,
                        fault(ErrorClass::Unknown, OwnCode::Timeout),
                    )
                }
                Some(body) => self.apply(body, token),
                None => Attempted::answered(Bytes::from_static(b"PONG")),
            },
            Mode::Slow if body.is_some() && timeout < Duration::from_millis(80) => {
                drop(body.map(|body| self.apply(body, token)));
                tokio::time::sleep(timeout).await;
                Attempted::failed(Verdict::Neutral, fault(ErrorClass::Unknown, OwnCode::Timeout))
            }
            Mode::Slow => {
                let it = body.map(|b| self.apply(b, token));
                tokio::time::sleep(Duration::from_millis(80)).await;
                it.unwrap_or_else(|| Attempted::answered(Bytes::from_static(b"PONG")))
            }
            Mode::Panicking if body.is_none() => panic!("told to panic by a test"),
            Mode::Down | Mode::Panicking => Attempted::failed(
                Verdict::Failure,
                fault(ErrorClass::NotExecuted, OwnCode::Connect),
            ),
            Mode::Slots => {
                let slot = self.slots.acquire().await;
                tokio::time::sleep(Duration::from_millis(40)).await;
                drop(slot);
                let pong = || Attempted::answered(Bytes::from_static(b"PONG"));
                body.map_or_else(pong, |body| self.apply(body, token))
            }
            Mode::Cut => {
                let error = fault(ErrorClass::NotExecuted, OwnCode::Connect);
                Attempted::failed(Verdict::Failure, error.blaming(Fault::Here(Shared::Network)))
            }
            Mode::Unreachable => {
                tokio::time::sleep(timeout).await;
                Attempted::failed(
                    Verdict::Failure,
                    fault(ErrorClass::NotExecuted, OwnCode::Connect),
                )
            }
            Mode::Blocked => Attempted::failed(
                Verdict::Failure,
                fault(ErrorClass::BlockedServer, ErrorCode::OfKind("WRONGPASS")),
            ),
            Mode::Full => {
                let error = AttemptError {
                    reply: Some("full".into()),
                    ..fault(ErrorClass::NotExecuted, ErrorCode::OfKind("FULL"))
                };
                Attempted::failed(Verdict::Failure, error)
            }
            Mode::Late => {
                if body.is_none() {
                    return Attempted::answered(Bytes::from_static(b"PONG"));
                }
                tokio::time::sleep(timeout).await;
                let error = AttemptError {
                    reply: Some("late".into()),
                    ..fault(ErrorClass::Unknown, ErrorCode::OfKind("LATE"))
                };
                Attempted::failed(Verdict::Success, error)
            }
            Mode::Half | Mode::Strange => {
                let Some(body) = body else {
                    return Attempted::answered(Bytes::from_static(b"PONG"));
                };
                drop(self.apply(body, token));
                let class =
                    if mode == Mode::Half { ErrorClass::Rejected } else { ErrorClass::Unknown };
                let error = AttemptError {
                    doubt: Some(Bytes::from_static(b"live")),
                    unclassified: mode == Mode::Strange,
                    ..fault(class, ErrorCode::OfKind("ODD"))
                };
                Attempted::failed(Verdict::Success, error)
            }
            Mode::Silent | Mode::Deaf | Mode::Frozen => {
                if let (Mode::Deaf, Some(body)) = (mode, body) {
                    drop(self.apply(body, token));
                }
                tokio::time::sleep(timeout).await;
                let bare = token.is_some() && self.tokenless.load(Ordering::Relaxed);
                let class = if bare { ErrorClass::Ambiguous } else { ErrorClass::Unknown };
                Attempted::failed(Verdict::Failure, fault(class, OwnCode::Timeout))
            }
        }
    }
}

/// What is left of an answer.
pub(crate) struct Pieces(pub(crate) Vec<Bytes>);

impl Tail for Pieces {
    fn next(&mut self) -> Answer<'_, Option<Result<Bytes, AttemptError>>> {
        Box::pin(async { (!self.0.is_empty()).then(|| Ok(self.0.remove(0))) })
    }
}

/// What a write says of its key; a TOUCH leaves the value as it is.
fn says(write: &Bytes) -> Option<Said> {
    let words = text(write).split(' ').collect::<Vec<_>>();
    match words[0] {
        "SET" => Some(Said::Reply(Bytes::copy_from_slice(words[2].as_bytes()))),
        "TOUCH" => None,
        _ => Some(Said::Nothing),
    }
}

fn residue(key: &str, due: UnixMillis) -> Residue {
    let body = format!("END {key} {}", due.get()).into();
    Residue { body, lanes: Lanes::One(LaneId::of(b"", key.as_bytes())), due }
}

pub(crate) fn fault(class: ErrorClass, code: impl Into<ErrorCode>) -> AttemptError {
    AttemptError::own(class, code, "scripted")
}

fn text(body: &Bytes) -> &str {
    std::str::from_utf8(body).unwrap()
}

impl Connector for Scripted {
    fn plan(&self, body: Bytes) -> Result<Plan, Refused> {
        let words: Vec<&str> = text(&body).split(' ').collect();
        let key = words.get(1).copied().unwrap_or("").to_owned();
        let lane = LaneId::of(b"", key.as_bytes());
        let free_token = words[0] == "PUT";
        let gathers = self.gathers.load(Ordering::Relaxed) > 0;
        let gather = (free_token && gathers).then_some(1);
        let (whole, timed) = (
            matches!(words[0], "SET" | "KEEP") && self.wholes.load(Ordering::Relaxed),
            words[0] == "KEEP",
        );
        let write = |absolute, outage| {
            let new = Write::new(outage);
            Access::Write(Write {
                absolute,
                free_token,
                whole,
                timed,
                gather,
                settled_reply: matches!(words[0], "SET" | "MALL" | "PUT"),
                ..new
            })
        };
        let (lanes, access) = match words[0] {
            "GET" => {
                let slots = vec![Slot { lane, key: body.clone() }];
                (
                    Lanes::One(lane),
                    Access::Read(Read { keyed: true, slots, miss: Some("nil".into()) }),
                )
            }
            "SET" | "KEEP" => (Lanes::One(lane), write(true, Outage::ReplyKnown("OK".into()))),
            "MOVE" => {
                let to = LaneId::of(b"", words[2].as_bytes());
                (Lanes::new([lane, to]), write(false, Outage::EffectKnown))
            }
            "MALL" => (Lanes::All, write(true, Outage::ReplyKnown("OK".into()))),
            "FLUSH" => (Lanes::All, write(false, Outage::Never("a flush never queues"))),
            "PUT" => (Lanes::new([]), write(false, Outage::EffectKnown)),
            "BIG" => {
                let slots = vec![Slot { lane, key: body.clone() }];
                (Lanes::One(lane), Access::Read(Read { keyed: false, slots, miss: None }))
            }
            "INCR" => (Lanes::One(lane), write(false, Outage::EffectUnknown)),
            "ADD" | "BAD" | "TOUCH" => (Lanes::One(lane), write(true, Outage::EffectKnown)),
            other => {
                let message = format!("unknown command {other:?}");
                return Err(Refused { code: "unknown_command", message, malformed: true });
            }
        };
        Ok(Plan { body, label: key, lanes, admin: false, access })
    }

    fn attempt<'a>(&'a self, attempt: Attempt<'a>) -> Answer<'a, Attempted> {
        self.attempts.fetch_add(1, Ordering::Relaxed);
        Box::pin(async move {
            if let Some(doubt) = &attempt.doubt {
                self.evidence.lock().push(doubt.evidence.clone());
            }
            if attempt.doubt.is_some()
                && attempt.token.is_some()
                && self.tokenless.load(Ordering::Relaxed)
            {
                let error = fault(ErrorClass::Ambiguous, ErrorCode::OfKind("sent_before"));
                return Attempted::failed(Verdict::Neutral, error);
            }
            let mut body = text(attempt.body).to_owned();
            if let Some(mut rest) = attempt.upload.and_then(Upload::take) {
                while let Some(piece) = rest.next().await {
                    match piece {
                        Ok(piece) => body.push_str(text(&piece)),
                        Err(error) => return Attempted::failed(Verdict::Neutral, error),
                    }
                }
            }
            self.go_on(&attempt);
            let timed = body.starts_with("KEEP") && !attempt.following.is_empty();
            let mut ended = self.carry(Some(&body), attempt.token, attempt.timeout).await;
            if timed && ended.result.is_ok() {
                let key = body.split(' ').nth(1).unwrap();
                let due = attempt.accepted_at.plus(Duration::from_millis(300));
                ended.residue = Some(residue(key, due));
            }
            ended
        })
    }

    fn prepare<'a>(
        &'a self,
        attempts: &'a [Attempt<'a>],
    ) -> Answer<'a, Result<Vec<Bytes>, (Verdict, AttemptError)>> {
        Box::pin(async move {
            if *self.mode.lock() == Mode::Down {
                self.attempts.fetch_add(1, Ordering::Relaxed);
                return Err((Verdict::Failure, fault(ErrorClass::NotExecuted, OwnCode::Connect)));
            }
            if *self.mode.lock() == Mode::Unreachable {
                self.connecting.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_secs(1)).await;
                return Err((Verdict::Failure, fault(ErrorClass::NotExecuted, OwnCode::Connect)));
            }
            let number = self.prepared.fetch_add(1, Ordering::Relaxed);
            Ok(vec![Bytes::from(format!("prepared {number}")); attempts.len()])
        })
    }

    fn group_max(&self) -> (usize, u64) {
        (self.gathers.load(Ordering::Relaxed) as usize, 1 << 20)
    }

    fn attempt_group<'a>(&'a self, attempts: Vec<Attempt<'a>>) -> Answer<'a, Attempted> {
        let token = attempts[0].token.unwrap();
        self.groups.lock().push((attempts.len(), token));
        Box::pin(async move {
            let bodies: Vec<&str> = attempts.iter().map(|attempt| text(attempt.body)).collect();
            if let Some(doubt) = &attempts[0].doubt {
                self.evidence.lock().push(doubt.evidence.clone());
                if self.tokenless.load(Ordering::Relaxed) {
                    let error = fault(ErrorClass::Ambiguous, ErrorCode::OfKind("sent_before"));
                    return Attempted::failed(Verdict::Neutral, error);
                }
            }
            if bodies.iter().any(|body| body.ends_with("bad")) {
                return self.apply("PUT t bad", None);
            }
            let again = self.tokens.lock().contains(&token);
            let all = if again { "GET nothing".to_owned() } else { bodies.join(";") };
            self.carry(Some(&all), Some(token), attempts[0].timeout).await
        })
    }

    fn residue_after(&self, residue: &QueuedWrite, applied: &Bytes) -> ResidueAfter {
        let left = &self.residue_panics;
        let one_less = |left: u32| left.checked_sub(1);
        let asked = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less);
        assert_ne!(asked, Ok(1), "told to panic by a test");
        let words: Vec<&str> = text(applied).split(' ').collect();
        let key = text(&residue.body).split(' ').nth(1).unwrap();
        match words.as_slice() {
            ["SET" | "KEEP", ..] => ResidueAfter::Void,
            ["MOVE", from, to] if *from == key => {
                ResidueAfter::Changed(self::residue(to, residue.due.unwrap()))
            }
            _ => ResidueAfter::Kept,
        }
    }

    fn bars_what_is_left(&self) -> bool {
        self.bars.load(Ordering::Relaxed)
    }

    fn empty(&self, body: &Bytes) -> Option<Bytes> {
        text(body).starts_with("BIG").then(|| Bytes::from_static(b"[]"))
    }

    fn held(&self, beginning: &[u8]) -> Option<usize> {
        beginning.starts_with(b"PUT").then_some(3)
    }

    fn batch_max(&self) -> usize {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.batch_max.load(Ordering::Relaxed) as usize
    }

    fn attempt_batch<'a>(&'a self, attempts: Vec<Attempt<'a>>) -> Answer<'a, Vec<Attempted>> {
        self.batches.lock().push(attempts.len());
        if self.one_batch.swap(false, Ordering::Relaxed) {
            self.batch_max.store(0, Ordering::Relaxed);
        }
        Box::pin(async move {
            let mut ends = Vec::new();
            for attempt in attempts {
                ends.push(self.attempt(attempt).await);
            }
            ends
        })
    }

    fn ping(&self, timeout: Duration) -> Answer<'_, Attempted> {
        self.pings.fetch_add(1, Ordering::Relaxed);
        Box::pin(self.carry(None, None, timeout))
    }

    fn overlay(&self, slot: &Slot) -> Option<Box<dyn Overlay>> {
        Some(LastWrite::of(slot, says))
    }

    fn split(&self, _: &Bytes, _: &[Slot], reply: &Bytes) -> Option<Vec<Bytes>> {
        Some(vec![reply.clone()])
    }

    fn join(&self, _: &Bytes, mut parts: Vec<Bytes>) -> Bytes {
        parts.remove(0)
    }

    fn forget_tokens(&self, tokens: Vec<OpId>) {
        self.tokens.lock().retain(|token| !tokens.contains(token));
    }

    fn status(&self) -> ConnectorStatus {
        ConnectorStatus::default()
    }

    fn target(&self) -> Target {
        self.name.lock().as_str().into()
    }

    fn close(&self) -> Answer<'_, ()> {
        Box::pin(async {
            let ms = self.closing.load(Ordering::Relaxed);
            if ms > 0 {
                tokio::time::sleep(Duration::from_millis(ms.into())).await;
            }
        })
    }
}
