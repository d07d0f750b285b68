//! What a client listens to, kept so that its Listen can be begun again without its knowledge.
//!
//! ```text
//!          AddTarget              ADD                     a document, RESET
//!  nothing ─────────▶ as asked ─────────▶ as asked, sent ─────────────────▶ from the beginning
//!                        ▲                      │ a token       ▲   │ a token
//!                        │                      ▼               │   ▼
//!                        │                   from a token ◀─────┴────
//!  REMOVE, and RemoveTarget in an outage, forget it.
//! ```
//! A target goes on from the last token that its client was handed, **if nothing was handed on since**. Otherwise its
//! client gets `RESET`, and it begins from the beginning: between two tokens the client may have heard of a document
//! that is gone before the target begins again, and no server knows that it would have to say so. So the view is right
//! with a server that gives tokens, and with one that gives none. A token that the server refuses is forgotten in the
//! same way, and so is every token if another server is asked ([`Targets::moves`]).
//!
//! # Invariants
//! 1. A token is kept only when its message is handed on.
//! 2. A client hears of a target's `ADD` once, and of its `REMOVE` once, however often the target was added.
//! 3. What cannot be read whole is not kept: see [`Targets::is_opaque`].

use std::collections::BTreeMap;

use bytes::Bytes;
use googleapis_tonic_google_firestore_v1::google::firestore::v1::{
    ListenRequest, ListenResponse, TargetChange,
    listen_request::TargetChange as Change,
    listen_response::ResponseType,
    target::ResumeType,
    target_change::TargetChangeType::{self, Add, Current, NoChange, Remove, Reset},
};
use prost::Message;

/// What the targets of one Listen may take, in bytes.
pub(crate) const TARGETS_MAX: usize = 1 << 20;
/// What a target takes besides its request.
const OVERHEAD: usize = 128;
/// What it takes that the client has to hear of an earlier one.
const OWED: usize = 16;
/// How a response begins that says something of targets, and not of documents.
const TARGET_CHANGE: u8 = 0x12;
/// The same of one that counts documents.
const FILTER: u8 = 0x2a;

/// More targets than are kept; so many bytes they would take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooMuch(pub(crate) usize);

/// See the [module](self).
#[derive(Debug, Default)]
pub(crate) struct Targets {
    database: String,
    labels: BTreeMap<String, String>,
    /// A first message that adds nothing.
    greeting: Option<Bytes>,
    kept: Vec<Kept>,
    is_opaque: bool,
}

/// A target.
#[derive(Debug)]
struct Kept {
    id: i32,
    /// The client's own message.
    asked: Bytes,
    from: From,
    /// Its client has heard of its `ADD`; if something is `owed`, of the one of the earliest target.
    is_told: bool,
    /// Its client wants it no more, and has not heard yet that it is gone.
    is_leaving: bool,
    /// So many `REMOVE`s are still to come of earlier targets of this number.
    owed: usize,
    stream: OnStream,
}

/// What is known of a target on the stream that there is now.
#[derive(Debug, Default)]
struct OnStream {
    /// The server has added it.
    is_added: bool,
    /// The server was given a token of ours, and has not said yet what it makes of it.
    is_tried: bool,
}

/// The point from which a target goes on.
#[derive(Debug, PartialEq, Eq)]
enum From {
    /// As its client has asked: nothing was handed on of it.
    Asked,
    Token(Bytes),
    Beginning,
}

/// What is to be done with a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// It is handed on.
    Pass,
    /// The client has heard that already.
    Hide,
    /// A token is refused: the Listen has to begin again.
    Anew,
    /// It is none, and nobody hears of it: the Listen has to begin again.
    Malformed,
}

/// A Listen that is begun again.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Begin {
    /// What the server is asked.
    pub(crate) requests: Vec<Bytes>,
    /// What the client receives once the server takes it, before anything else.
    pub(crate) told: Option<Bytes>,
}

fn of_targets(kind: TargetChangeType, target_ids: Vec<i32>) -> Option<Bytes> {
    let change = TargetChange {
        target_change_type: kind.into(),
        target_ids,
        cause: None,
        resume_token: Bytes::new(),
        read_time: None,
    };
    let is_any = !change.target_ids.is_empty();
    let response = ListenResponse { response_type: Some(ResponseType::TargetChange(change)) };
    is_any.then(|| response.encode_to_vec().into())
}

impl Targets {
    /// Takes a request of the client. While there is no stream to the server, `is_open` is false, and what the client
    /// is to receive is returned.
    ///
    /// # Errors
    /// It would be too much.
    pub(crate) fn asks(&mut self, message: &Bytes, is_open: bool) -> Result<Vec<Bytes>, TooMuch> {
        let Some(request) = read(message) else {
            self.is_opaque = true;
            return Ok(Vec::new());
        };
        if self.database.is_empty() {
            self.database.clone_from(&request.database);
        }
        if self.labels.is_empty() {
            self.labels.clone_from(&request.labels);
        }
        match request.target_change {
            Some(Change::AddTarget(target)) => {
                let earlier = self.kept.iter().find(|kept| kept.id == target.target_id);
                let owed = earlier.map_or(0, |it| it.owed + usize::from(it.is_leaving));
                let earlier = earlier.filter(|_| owed > 0);
                let is_told = earlier.is_some_and(|it| it.is_told);
                let is_tried = earlier.is_some_and(|it| it.stream.is_tried);
                self.kept.retain(|kept| kept.id != target.target_id);
                let size = self.size() + message.len() + OVERHEAD + owed * OWED;
                if size > TARGETS_MAX {
                    return Err(TooMuch(size));
                }
                self.greeting = None;
                self.kept.push(Kept {
                    id: target.target_id,
                    // Not a part of what came with it.
                    asked: Bytes::copy_from_slice(message),
                    from: From::Asked,
                    is_told,
                    is_leaving: false,
                    owed,
                    stream: OnStream { is_added: false, is_tried },
                });
                Ok(Vec::new())
            }
            Some(Change::RemoveTarget(id)) => {
                let Some(kept) = self.kept.iter_mut().find(|kept| kept.id == id) else {
                    return Ok(Vec::new());
                };
                kept.is_leaving = true;
                Ok(if is_open { Vec::new() } else { self.broke() })
            }
            None => {
                if self.kept.is_empty() {
                    self.greeting = Some(Bytes::copy_from_slice(message));
                }
                Ok(Vec::new())
            }
        }
    }

    /// Takes a response of the server that is about to be handed on.
    pub(crate) fn hears(&mut self, message: &[u8]) -> Heard {
        match message.first() {
            None | Some(&FILTER) => return Heard::Pass,
            Some(&TARGET_CHANGE) => {}
            Some(_) => {
                // Of what was not added on this stream nothing can come yet.
                for kept in self.kept.iter_mut().filter(|kept| kept.stream.is_added) {
                    (kept.from, kept.stream.is_tried) = (From::Beginning, false);
                }
                return Heard::Pass;
            }
        }
        match ListenResponse::decode(message) {
            Ok(ListenResponse { response_type: Some(ResponseType::TargetChange(change)) }) => {
                self.changes(&change)
            }
            Ok(_) => {
                self.is_opaque = true;
                Heard::Pass
            }
            Err(_) => Heard::Malformed,
        }
    }

    fn changes(&mut self, change: &TargetChange) -> Heard {
        let ids = &change.target_ids;
        let is_all = ids.is_empty();
        let kind = change.target_change_type();
        let is_meant = |kept: &Kept| is_all || ids.contains(&kept.id);
        let mut is_news = is_all || ids.iter().any(|id| self.kept.iter().all(|it| it.id != *id));
        match kind {
            Remove => {
                let mut meant = self.kept.iter_mut().filter(|kept| is_meant(kept));
                if change.cause.is_some() && meant.any(|kept| kept.stream.is_tried) {
                    self.is_refused();
                    return Heard::Anew;
                }
                self.kept.retain_mut(|kept| {
                    if !is_meant(kept) {
                        return true;
                    }
                    // It is of an earlier target of this number, and so was what came before.
                    let is_earlier = kept.owed > 0;
                    if is_earlier {
                        kept.owed -= 1;
                        (kept.from, kept.is_told) = (From::Asked, false);
                        kept.stream = OnStream::default();
                    }
                    is_earlier
                });
                return Heard::Pass;
            }
            Add => {
                for kept in self.kept.iter_mut().filter(|kept| is_meant(kept)) {
                    is_news |= !kept.is_told;
                    (kept.is_told, kept.stream.is_added) = (true, true);
                }
            }
            Reset => {
                for kept in self.kept.iter_mut().filter(|kept| is_meant(kept)) {
                    (kept.from, kept.stream.is_tried) = (From::Beginning, false);
                }
            }
            Current | NoChange => {}
        }
        if !change.resume_token.is_empty() {
            for kept in self.kept.iter_mut().filter(|kept| kept.stream.is_added && is_meant(kept)) {
                kept.from = From::Token(change.resume_token.clone());
                kept.stream.is_tried = false;
            }
        }
        if kind == Add && !is_news && change.resume_token.is_empty() {
            Heard::Hide
        } else {
            Heard::Pass
        }
    }

    /// The server refuses the stream. Whether that may be for a token of ours; it is forgotten then.
    pub(crate) fn is_refused(&mut self) -> bool {
        let mut is_any = false;
        for kept in self.kept.iter_mut().filter(|kept| kept.stream.is_tried) {
            (kept.from, kept.stream.is_tried, is_any) = (From::Beginning, false, true);
        }
        is_any
    }

    /// Another server is asked from here on, which knows nothing of the tokens that there are. Those that a client has
    /// brought itself are its own affair.
    pub(crate) fn moves(&mut self) {
        for kept in self.kept.iter_mut().filter(|kept| matches!(kept.from, From::Token(_))) {
            kept.from = From::Beginning;
        }
    }

    /// What the client has asked and the server is asked when the Listen begins again, as the client has said it.
    pub(crate) fn asked(&self) -> impl Iterator<Item = &Bytes> {
        self.greeting.iter().chain(self.kept.iter().map(|kept| &kept.asked))
    }

    /// There is no stream to the server any more: what the client is to receive of targets that it does not want. It
    /// counts what it hears of a number, so it hears what the server would have said: of each an `ADD` and a `REMOVE`.
    pub(crate) fn broke(&mut self) -> Vec<Bytes> {
        let mut told = Vec::new();
        loop {
            let owed = self.kept.iter().filter(|kept| kept.owed > 0 || kept.is_leaving);
            let removes: Vec<i32> = owed.clone().map(|kept| kept.id).collect();
            let adds = owed.filter(|kept| !kept.is_told).map(|kept| kept.id).collect();
            if removes.is_empty() {
                return told;
            }
            self.kept.retain_mut(|kept| {
                let is_gone = kept.owed == 0 && kept.is_leaving;
                if kept.owed > 0 {
                    kept.owed -= 1;
                    (kept.from, kept.is_told) = (From::Asked, false);
                }
                !is_gone
            });
            told.extend(of_targets(Add, adds));
            told.extend(of_targets(Remove, removes));
        }
    }

    /// Begins the Listen, on a stream of its own.
    pub(crate) fn begin(&mut self) -> Begin {
        let none = BTreeMap::new();
        let (mut requests, mut reset) = (Vec::new(), Vec::new());
        requests.extend(self.greeting.clone());
        for kept in &mut self.kept {
            let is_tried = matches!(kept.from, From::Token(_));
            kept.stream = OnStream { is_added: false, is_tried };
            if kept.from == From::Beginning {
                reset.push(kept.id);
            }
            // Only the first message of a stream has what describes it.
            let labels = if requests.is_empty() { &self.labels } else { &none };
            requests.push(kept.request(&self.database, labels));
        }
        Begin { requests, told: of_targets(Reset, reset) }
    }

    /// Whether there is anything to listen to.
    pub(crate) fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// Whether something came that cannot be read whole, or a target whose number the server chooses. Then the Listen
    /// cannot be begun again by anyone but its client.
    pub(crate) fn is_opaque(&self) -> bool {
        self.is_opaque
    }

    /// What was said is compressed, so that nobody can read it here.
    pub(crate) fn cannot_be_read(&mut self) {
        self.is_opaque = true;
    }

    /// What is kept, in bytes.
    pub(crate) fn size(&self) -> usize {
        let labels = self.labels.iter().map(|(name, value)| name.len() + value.len() + OVERHEAD);
        let once = self.database.len() + self.greeting.as_ref().map_or(0, Bytes::len);
        let kept = self.kept.iter().map(|kept| kept.asked.len() + OVERHEAD + kept.owed * OWED);
        once + labels.chain(kept).sum::<usize>()
    }
}

impl Kept {
    /// The request that adds it, from the point at which it goes on.
    fn request(&self, database: &str, labels: &BTreeMap<String, String>) -> Bytes {
        let Some(mut request) = read(&self.asked) else { return self.asked.clone() };
        let lacks_database = request.database.is_empty() && !database.is_empty();
        let lacks_labels = request.labels.is_empty() && !labels.is_empty();
        let Some(Change::AddTarget(target)) = &mut request.target_change else {
            return self.asked.clone();
        };
        let resume = match &self.from {
            From::Asked => target.resume_type.clone(),
            From::Token(token) => Some(ResumeType::ResumeToken(token.clone())),
            From::Beginning => None,
        };
        if !lacks_database && !lacks_labels && resume == target.resume_type {
            return self.asked.clone();
        }
        if self.from != From::Asked {
            // It is the client's count, at the client's token.
            target.expected_count = None;
        }
        target.resume_type = resume;
        if lacks_database {
            database.clone_into(&mut request.database);
        }
        if lacks_labels {
            request.labels.clone_from(labels);
        }
        request.encode_to_vec().into()
    }
}

/// A request, if nothing of it is lost by reading it.
fn read(message: &Bytes) -> Option<ListenRequest> {
    let request = ListenRequest::decode(message.clone()).ok()?;
    let is_whole = request.encoded_len() == message.len();
    let is_numbered = match &request.target_change {
        Some(Change::AddTarget(target)) => target.target_id != 0,
        Some(Change::RemoveTarget(_)) | None => true,
    };
    (is_whole && is_numbered).then_some(request)
}

#[cfg(test)]
mod tests;
