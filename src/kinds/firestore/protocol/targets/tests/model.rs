//! Random histories of a server, a client that asks of it what it likes, and streams that break at any message.
//!
//! The server is a model of Firestore: it answers requests in their order, and goes on from a token if it knows it. The
//! client is one of Google's: it counts what it hears of a target's number, and believes what is said of it only once
//! as many `ADD`s and `REMOVE`s have come as it has asked for.

use std::collections::VecDeque;

use googleapis_tonic_google_firestore_v1::google::firestore::v1::DocumentRemove;
use proptest::prelude::*;

use super::*;

const NAMES: [&str; 4] = ["a", "b", "c", "d"];
const IDS: [i32; 2] = [1, 2];

/// Documents by name: the time of the last write.
type Documents = BTreeMap<String, i64>;

/// One thing that happens.
#[derive(Clone, Debug)]
enum Happens {
    /// A document is written, or deleted.
    Write(usize, bool),
    /// The server tells what is new, with a token at the end or without.
    Tell(bool),
    /// So many messages arrive.
    Arrive(usize),
    /// The stream breaks. Another one begins, now or later.
    Break(bool),
    /// The server forgets what its tokens mean.
    Forget,
    /// The client wants a target, or does not want it any more.
    Ask(usize),
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        4 => (0..NAMES.len(), prop::bool::weighted(0.7)).prop_map(|(name, put)| Happens::Write(name, put)),
        3 => any::<bool>().prop_map(Happens::Tell),
        6 => (1..6_usize).prop_map(Happens::Arrive),
        2 => any::<bool>().prop_map(Happens::Break),
        1 => Just(Happens::Forget),
        3 => (0..IDS.len()).prop_map(Happens::Ask),
    ]
}

fn of_target(kind: TargetChangeType, id: i32) -> Bytes {
    response(ResponseType::TargetChange(change(kind, &[id], b"")))
}

#[derive(Default)]
struct Server {
    now: i64,
    documents: Documents,
    tokens: BTreeMap<Bytes, Documents>,
    /// What it has sent of each target of the stream.
    stream: BTreeMap<i32, Documents>,
    /// What has not arrived yet.
    sent: VecDeque<Bytes>,
}

impl Server {
    fn token(&mut self) -> Bytes {
        let token = Bytes::from(self.now.to_string());
        self.tokens.insert(token.clone(), self.documents.clone());
        token
    }

    fn asked(&mut self, request: &Bytes) {
        match ListenRequest::decode(request.clone()).unwrap().target_change.unwrap() {
            Change::RemoveTarget(id) => {
                if self.stream.remove(&id).is_some() {
                    self.sent.push_back(of_target(Remove, id));
                }
            }
            Change::AddTarget(target) => {
                let id = target.target_id;
                let from = match &target.resume_type {
                    Some(ResumeType::ResumeToken(token)) => self.tokens.get(token).cloned(),
                    _ => Some(Documents::new()),
                };
                self.sent.push_back(of_target(Add, id));
                let Some(from) = from else {
                    let cause = Some(Status { code: 3, ..Status::default() });
                    let gone = TargetChange { cause, ..change(Remove, &[id], b"") };
                    return self.sent.push_back(response(ResponseType::TargetChange(gone)));
                };
                self.stream.insert(id, from);
                self.tells(id);
                let resume_token = self.token();
                let current = TargetChange { resume_token, ..change(Current, &[id], b"") };
                self.sent.push_back(response(ResponseType::TargetChange(current)));
            }
        }
    }

    /// Tells what is new of a target.
    fn tells(&mut self, id: i32) {
        let told = self.stream.insert(id, self.documents.clone()).unwrap();
        for (name, time) in &self.documents {
            if told.get(name) != Some(time) {
                let update_time = Some(prost_types::Timestamp { seconds: *time, nanos: 0 });
                let document = Document { name: name.clone(), update_time, ..Document::default() };
                let change = DocumentChange {
                    document: Some(document),
                    target_ids: vec![id],
                    ..DocumentChange::default()
                };
                self.sent.push_back(response(ResponseType::DocumentChange(change)));
            }
        }
        for name in told.keys().filter(|name| !self.documents.contains_key(*name)) {
            let gone = DocumentRemove {
                document: name.clone(),
                removed_target_ids: vec![id],
                ..DocumentRemove::default()
            };
            self.sent.push_back(response(ResponseType::DocumentRemove(gone)));
        }
    }

    fn tells_all(&mut self, with_token: bool) {
        let ids: Vec<i32> = self.stream.keys().copied().collect();
        for id in ids {
            self.tells(id);
        }
        if with_token {
            let resume_token = self.token();
            let all = TargetChange { resume_token, ..change(NoChange, &[], b"") };
            self.sent.push_back(response(ResponseType::TargetChange(all)));
        }
    }
}

/// What the client knows of a target's number.
#[derive(Default)]
struct Known {
    is_wanted: bool,
    /// So many answers to requests are to come.
    pending: usize,
    /// The last one was an `ADD`.
    is_added: bool,
    documents: Documents,
    /// The latest that it heard of each document, also of those that are gone.
    latest: Documents,
}

#[derive(Default)]
struct Client {
    known: BTreeMap<i32, Known>,
}

impl Client {
    fn hears(&mut self, message: &Bytes) {
        match ListenResponse::decode(message.clone()).unwrap().response_type.unwrap() {
            ResponseType::TargetChange(change) => {
                for id in &change.target_ids {
                    let known = self.known.get_mut(id).unwrap();
                    match change.target_change_type() {
                        Add => {
                            assert!(!known.is_added, "{id} is added twice");
                            known.pending = known.pending.checked_sub(1).expect("an ADD too much");
                            *known = Known { is_added: true, ..std::mem::take(known) };
                            (known.documents, known.latest) = Default::default();
                        }
                        Remove => {
                            assert!(known.is_added, "{id} is removed twice");
                            known.pending =
                                known.pending.checked_sub(1).expect("a REMOVE too much");
                            known.is_added = false;
                        }
                        Reset => {
                            assert!(known.is_added, "{id} is reset before it is added");
                            known.documents.clear();
                        }
                        Current | NoChange => {}
                    }
                }
            }
            ResponseType::DocumentChange(DocumentChange { document, target_ids, .. }) => {
                let document = document.unwrap();
                let time = document.update_time.unwrap().seconds;
                for id in &target_ids {
                    let known = self.known.get_mut(id).unwrap();
                    if known.pending > 0 {
                        continue;
                    }
                    known.documents.insert(document.name.clone(), time);
                    let latest = known.latest.insert(document.name.clone(), time);
                    assert!(latest <= Some(time), "{} goes backwards", document.name);
                }
            }
            ResponseType::DocumentRemove(gone) => {
                for id in &gone.removed_target_ids {
                    self.known.get_mut(id).unwrap().documents.remove(&gone.document);
                }
            }
            other => panic!("{other:?}"),
        }
    }
}

/// All of them.
#[derive(Default)]
struct Play {
    server: Server,
    client: Client,
    targets: Targets,
    is_open: bool,
}

impl Play {
    fn begin(&mut self) {
        let Begin { requests, told } = self.targets.begin();
        self.is_open = true;
        if let Some(message) = &told {
            self.client.hears(message);
        }
        for request in &requests {
            self.server.asked(request);
        }
    }

    fn breaks(&mut self) {
        if std::mem::take(&mut self.is_open) {
            self.server.sent.clear();
            self.server.stream.clear();
            for message in &self.targets.broke() {
                self.client.hears(message);
            }
        }
    }

    fn arrives(&mut self, most: usize) {
        for _ in 0..most {
            let Some(message) = self.server.sent.pop_front() else { return };
            match self.targets.hears(&message) {
                Heard::Pass => self.client.hears(&message),
                Heard::Hide => {}
                Heard::Anew => {
                    self.breaks();
                    self.begin();
                }
                Heard::Malformed => panic!("{message:?}"),
            }
        }
    }

    fn asks(&mut self, id: i32) {
        let known = self.client.known.entry(id).or_default();
        known.is_wanted = !known.is_wanted;
        known.pending += 1;
        let request = if known.is_wanted {
            add(id, b"")
        } else {
            let target_change = Some(Change::RemoveTarget(id));
            ListenRequest { target_change, ..ListenRequest::default() }
        };
        let request = bytes(&request);
        let told = self.targets.asks(&request, self.is_open).unwrap();
        for message in &told {
            self.client.hears(message);
        }
        if self.is_open {
            self.server.asked(&request);
        }
    }
}

proptest! {
    // 400, or as many as PROPTEST_CASES says.
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases.max(400)))]

    #[test]
    fn every_final_state_arrives_whatever_breaks(
        history in prop::collection::vec(happens(), 1..80),
    ) {
        let mut play = Play::default();
        play.begin();
        for happens in history {
            play.server.now += 1;
            match happens {
                Happens::Write(name, true) => {
                    play.server.documents.insert(NAMES[name].to_owned(), play.server.now);
                }
                Happens::Write(name, false) => drop(play.server.documents.remove(NAMES[name])),
                Happens::Tell(with_token) if play.is_open => play.server.tells_all(with_token),
                Happens::Arrive(most) => play.arrives(most),
                Happens::Break(begins) => {
                    play.breaks();
                    if begins {
                        play.begin();
                    }
                }
                Happens::Forget => play.server.tokens.clear(),
                Happens::Ask(id) => play.asks(IDS[id]),
                Happens::Tell(_) => {}
            }
        }
        if !play.is_open {
            play.begin();
        }
        play.server.tells_all(true);
        play.arrives(usize::MAX);
        for (id, known) in &play.client.known {
            prop_assert_eq!(known.pending, 0, "{} waits for an answer for ever", id);
            prop_assert_eq!(known.is_added, known.is_wanted, "{}", id);
            if known.is_wanted {
                prop_assert_eq!(&known.documents, &play.server.documents, "{}", id);
            }
        }
    }
}
