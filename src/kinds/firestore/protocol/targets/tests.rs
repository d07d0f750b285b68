use std::collections::BTreeMap;

use googleapis_tonic_google_firestore_v1::google::{
    firestore::v1::{
        Document, DocumentChange, ExistenceFilter, Target,
        target::{DocumentsTarget, TargetType},
    },
    rpc::Status,
};

use super::*;

mod model;

fn add(id: i32, token: &'static [u8]) -> ListenRequest {
    let documents = DocumentsTarget { documents: vec![format!("d{id}")] };
    let resume = (!token.is_empty()).then(|| ResumeType::ResumeToken(Bytes::from_static(token)));
    let target = Target {
        target_id: id,
        target_type: Some(TargetType::Documents(documents)),
        resume_type: resume,
        ..Target::default()
    };
    ListenRequest {
        database: "base".to_owned(),
        target_change: Some(Change::AddTarget(target)),
        ..ListenRequest::default()
    }
}

fn bytes(message: &impl Message) -> Bytes {
    message.encode_to_vec().into()
}

fn change(kind: TargetChangeType, ids: &[i32], token: &'static [u8]) -> TargetChange {
    TargetChange {
        target_change_type: kind.into(),
        target_ids: ids.to_vec(),
        resume_token: Bytes::from_static(token),
        ..TargetChange::default()
    }
}

fn response(it: ResponseType) -> Bytes {
    bytes(&ListenResponse { response_type: Some(it) })
}

fn document() -> Bytes {
    let document = Some(Document { name: "d".into(), ..Document::default() });
    response(ResponseType::DocumentChange(DocumentChange { document, ..DocumentChange::default() }))
}

impl Targets {
    fn of(requests: &[ListenRequest]) -> Self {
        let mut targets = Self::default();
        for request in requests {
            assert_eq!(targets.asks(&bytes(request), true), Ok(vec![]));
        }
        targets.begin();
        targets
    }

    fn said(&mut self, kind: TargetChangeType, ids: &[i32], token: &'static [u8]) -> Heard {
        self.hears(&response(ResponseType::TargetChange(change(kind, ids, token))))
    }

    /// The point from which each goes on, and who gets `RESET`.
    fn goes_on(&mut self) -> (Vec<Bytes>, Vec<i32>) {
        assert!(self.broke().is_empty());
        let Begin { requests, told } = self.begin();
        let tokens = requests.iter().map(|request| {
            let request = ListenRequest::decode(request.clone()).unwrap();
            let Some(Change::AddTarget(target)) = request.target_change else { panic!() };
            match target.resume_type {
                Some(ResumeType::ResumeToken(token)) => token,
                _ => Bytes::new(),
            }
        });
        let reset = told.map_or_else(Vec::new, |told| {
            let told = ListenResponse::decode(told).unwrap().response_type;
            let Some(ResponseType::TargetChange(change)) = told else { panic!() };
            assert_eq!(change.target_change_type(), Reset);
            change.target_ids
        });
        (tokens.collect(), reset)
    }
}

#[test]
fn a_target_goes_on_from_its_last_token_if_nothing_came_since() {
    let mut targets = Targets::of(&[add(1, b"")]);
    assert_eq!(targets.goes_on(), (vec![Bytes::new()], vec![]), "nothing was heard of it");
    assert_eq!(targets.said(Add, &[1], b""), Heard::Pass);
    assert_eq!(targets.goes_on(), (vec![Bytes::new()], vec![]), "nothing but that it is there");
    assert_eq!(targets.said(Add, &[1], b""), Heard::Hide, "its client knows");
    assert_eq!(targets.hears(&document()), Heard::Pass);
    assert_eq!(targets.goes_on(), (vec![Bytes::new()], vec![1]), "it was never consistent");
    assert_eq!(targets.said(Add, &[1], b""), Heard::Hide);
    targets.hears(&document());
    targets.said(Current, &[1], b"one");
    targets.said(NoChange, &[], b"two");
    assert_eq!(targets.goes_on(), (vec!["two".into()], vec![]));
    targets.said(Add, &[1], b"");
    targets.hears(&document());
    assert_eq!(targets.goes_on(), (vec![Bytes::new()], vec![1]), "the document may be gone");
}

#[test]
fn a_token_of_the_client_itself_holds_until_something_came() {
    let mut targets = Targets::of(&[add(1, b"own")]);
    targets.said(Add, &[1], b"");
    assert_eq!(targets.goes_on(), (vec!["own".into()], vec![]));
    assert!(!targets.is_refused(), "what the server says of it the client is told");
    targets.said(Add, &[1], b"");
    targets.said(Reset, &[1], b"");
    assert_eq!(targets.goes_on(), (vec![Bytes::new()], vec![1]));
}

#[test]
fn another_server_is_asked_without_the_tokens_of_the_one_before() {
    let mut targets = Targets::of(&[add(1, b"own"), add(2, b"")]);
    assert_eq!(targets.asked().count(), 2);
    targets.said(Add, &[1, 2], b"");
    targets.said(Current, &[2], b"two");
    targets.moves();
    assert_eq!(targets.goes_on(), (vec!["own".into(), Bytes::new()], vec![2]));
}

#[test]
fn each_target_has_a_token_of_its_own() {
    let mut targets = Targets::of(&[add(1, b""), add(2, b"")]);
    targets.said(Add, &[1], b"");
    targets.said(NoChange, &[], b"a");
    assert_eq!(targets.goes_on().0, ["a".into(), Bytes::new()], "the second is not added yet");
    targets.said(Add, &[1], b"");
    targets.said(Add, &[2], b"");
    targets.said(Current, &[2], b"b");
    assert_eq!(targets.goes_on().0, [Bytes::from("a"), Bytes::from("b")]);
}

#[test]
fn a_token_that_is_refused_is_forgotten_and_a_target_that_is_refused_is_gone() {
    let cause = Some(Status { code: 3, ..Status::default() });
    let remove = TargetChange { cause, ..change(Remove, &[1], b"") };
    let remove = response(ResponseType::TargetChange(remove));
    let mut targets = Targets::of(&[add(1, b"")]);
    targets.said(Add, &[1], b"");
    targets.said(NoChange, &[], b"a");
    targets.goes_on();
    assert_eq!(targets.hears(&remove), Heard::Anew);
    assert_eq!(targets.goes_on(), (vec![Bytes::new()], vec![1]));
    assert_eq!(targets.hears(&remove), Heard::Pass);
    assert!(targets.is_empty());
    let mut targets = Targets::of(&[add(1, b"")]);
    targets.said(Add, &[1], b"");
    targets.said(NoChange, &[], b"a");
    targets.goes_on();
    assert!(targets.is_refused());
    assert!(!targets.is_refused());
    assert_eq!(targets.goes_on(), (vec![Bytes::new()], vec![1]));
}

#[test]
fn what_is_removed_in_an_outage_is_told_to_be_gone_once() {
    let request = |id| {
        let target_change = Some(Change::RemoveTarget(id));
        bytes(&ListenRequest { target_change, ..ListenRequest::default() })
    };
    let told = |kind, ids: &[i32]| response(ResponseType::TargetChange(change(kind, ids, b"")));
    let mut targets = Targets::of(&[add(1, b""), add(2, b""), add(3, b"")]);
    targets.said(Add, &[1], b"");
    assert_eq!(targets.asks(&request(1), true), Ok(vec![]), "the server will say so");
    assert_eq!(targets.broke(), [told(Remove, &[1])]);
    let never_added = vec![told(Add, &[2]), told(Remove, &[2])];
    assert_eq!(targets.asks(&request(2), false), Ok(never_added), "its client waits for both");
    assert_eq!(targets.asks(&request(2), false), Ok(vec![]));
    assert_eq!(targets.begin().requests, [bytes(&add(3, b""))]);
    assert_eq!(targets.asks(&request(3), true), Ok(vec![]));
    targets.said(Remove, &[3], b"");
    assert_eq!((targets.broke(), targets.is_empty()), (vec![], true));
}

#[test]
fn requests_pass_byte_for_byte_and_later_ones_get_what_only_the_first_said() {
    let labels = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
    let first = ListenRequest { labels: labels.clone(), ..add(1, b"") };
    let second = ListenRequest { database: String::new(), ..add(2, b"") };
    let mut targets = Targets::default();
    targets.asks(&bytes(&first), false).unwrap();
    assert_eq!(targets.begin().requests, [bytes(&first)]);
    targets.asks(&bytes(&second), true).unwrap();
    targets.said(Remove, &[1], b"");
    let begun = ListenRequest::decode(targets.begin().requests.remove(0)).unwrap();
    assert_eq!((begun.database.as_str(), begun.labels), ("base", labels));
    // What begins with no target says so as it came.
    let greeting = ListenRequest { target_change: None, ..first };
    let mut targets = Targets::default();
    targets.asks(&bytes(&greeting), false).unwrap();
    assert_eq!(targets.begin().requests, [bytes(&greeting)]);
}

#[test]
fn what_cannot_be_read_whole_is_not_kept_and_there_is_an_end_to_what_is() {
    let unknown = [&bytes(&add(1, b""))[..], &[0x9a, 6, 1, 7]].concat();
    for message in [Bytes::from(unknown), bytes(&add(0, b"")), Bytes::from_static(b"\xff")] {
        let mut targets = Targets::default();
        assert_eq!(targets.asks(&message, true), Ok(vec![]));
        assert!(targets.is_opaque(), "{message:?}");
    }
    let mut targets = Targets::default();
    let mut long = add(1, b"");
    long.database = "x".repeat(TARGETS_MAX / 4);
    assert_eq!(targets.asks(&bytes(&long), true), Ok(vec![]));
    assert_eq!(targets.asks(&bytes(&long), true), Ok(vec![]), "it is in the place of the first");
    let mut ended = None;
    for id in 2..10 {
        let Some(Change::AddTarget(target)) = &mut long.target_change else { panic!() };
        target.target_id = id;
        ended = ended.or(targets.asks(&bytes(&long), true).err());
    }
    let TooMuch(size) = ended.unwrap();
    assert!(size > TARGETS_MAX && targets.size() <= TARGETS_MAX);
}

#[test]
fn a_count_of_documents_changes_nothing() {
    let mut targets = Targets::of(&[add(1, b"")]);
    targets.said(Add, &[1], b"");
    targets.said(NoChange, &[], b"a");
    let filter = ExistenceFilter { target_id: 1, count: 3, ..ExistenceFilter::default() };
    assert_eq!(targets.hears(&response(ResponseType::Filter(filter))), Heard::Pass);
    assert_eq!(targets.goes_on(), (vec!["a".into()], vec![]));
}

#[test]
fn a_number_that_is_used_again_is_not_forgotten_with_its_earlier_target() {
    let target_change = Some(Change::RemoveTarget(1));
    let remove = bytes(&ListenRequest { target_change, ..ListenRequest::default() });
    for is_heard in [true, false] {
        let mut targets = Targets::of(&[add(1, b"")]);
        targets.said(Add, &[1], b"");
        assert_eq!(targets.asks(&remove, true), Ok(vec![]));
        assert_eq!(targets.asks(&bytes(&add(1, b"")), true), Ok(vec![]));
        if is_heard {
            targets.said(Remove, &[1], b"");
            targets.said(Add, &[1], b"");
        }
        assert_eq!(targets.broke().is_empty(), is_heard, "its client waits for a REMOVE");
        assert_eq!(targets.begin().requests, [bytes(&add(1, b""))]);
    }
}
