use std::time::{Duration, Instant};

use googleapis_tonic_google_firestore_v1::google::firestore::v1::{
    ExplainOptions, TransactionOptions, batch_get_documents_request::ConsistencySelector,
    document_transform::FieldTransform,
};

use super::*;

const TIME: Timestamp = Timestamp { seconds: 9, nanos: 0 };

struct Fixed;

impl Times for Fixed {
    fn now(&mut self) -> Timestamp {
        TIME
    }

    fn written(&mut self, _: &str, accepted_at: Option<Timestamp>) -> Timestamp {
        accepted_at.unwrap_or(TIME)
    }

    fn saw(&mut self, _: Timestamp) {}

    fn tell(&mut self, _: &str, _: Timestamp) {}
}

fn root() -> Root {
    Root::new("p", "(default)")
}

fn bytes(message: &impl Message) -> Bytes {
    message.encode_to_vec().into()
}

fn asked(paths: &[&str]) -> BatchGetDocumentsRequest {
    BatchGetDocumentsRequest {
        database: root().database,
        documents: paths.iter().map(|path| root().name(path)).collect(),
        ..BatchGetDocumentsRequest::default()
    }
}

fn integer(n: i64) -> Value {
    value::value(ValueType::IntegerValue(n))
}

#[test]
fn only_what_is_of_the_backends_own_database_and_of_now_is_understood() {
    let is_understood =
        |asked: &BatchGetDocumentsRequest| get(&bytes(asked), &root(), "").is_some();
    let usual = asked(&["u/a"]);
    assert!(is_understood(&usual));
    assert!(!is_understood(&asked(&[])), "nothing is asked");
    let foreign = "projects/q/databases/(default)";
    let other = BatchGetDocumentsRequest { database: foreign.into(), ..usual.clone() };
    assert!(!is_understood(&other));
    let documents = vec![format!("{foreign}/documents/u/a")];
    assert!(!is_understood(&BatchGetDocumentsRequest { documents, ..usual.clone() }));
    for selector in [
        ConsistencySelector::Transaction(Bytes::from_static(b"t")),
        ConsistencySelector::ReadTime(TIME),
        ConsistencySelector::NewTransaction(TransactionOptions::default()),
    ] {
        let consistency_selector = Some(selector);
        let other = BatchGetDocumentsRequest { consistency_selector, ..usual.clone() };
        assert!(!is_understood(&other));
    }
    let longer = [&bytes(&usual)[..], b"\xa2\x06\x01x"].concat().into();
    assert!(get(&longer, &root(), "").is_none(), "a field that is not known");
    assert!(get(&Bytes::from_static(b"\xff"), &root(), "").is_none());
    let plain = RunQueryRequest { parent: root().name("u/a"), ..RunQueryRequest::default() };
    let is_understood =
        |asked: &RunQueryRequest| query(Question::Query, &bytes(asked), &root(), "").is_some();
    assert!(is_understood(&plain));
    let explain_options = Some(ExplainOptions::default());
    assert!(!is_understood(&RunQueryRequest { explain_options, ..plain.clone() }));
    assert!(!is_understood(&RunQueryRequest { parent: foreign.into(), ..plain }));
}

#[test]
fn an_answer_is_kept_only_whole_and_a_mask_is_laid_over_it() {
    let understood = get(&bytes(&asked(&["u/a", "u/b", "u/a"])), &root(), "").unwrap();
    let fields: Fields = [("n".to_owned(), integer(1)), ("a.b".to_owned(), integer(2))].into();
    let document = Document {
        name: root().name("u/a"),
        fields,
        create_time: Some(TIME),
        update_time: Some(TIME),
    };
    let found = |result| {
        bytes(&BatchGetDocumentsResponse {
            result: Some(result),
            read_time: Some(TIME),
            ..BatchGetDocumentsResponse::default()
        })
    };
    let messages = [found(Got::Missing(root().name("u/b"))), found(Got::Found(document.clone()))];
    assert!(understood.form.reply(messages[..1].to_vec(), &root()).is_none());
    let reply = understood.form.reply(messages.to_vec(), &root()).unwrap();
    let told = read(&understood.form, &reply, &root(), TIME, &mut Fixed).unwrap();
    let each_once = [messages[1].clone(), messages[0].clone()];
    assert_eq!(told.messages, each_once, "as the server answers what is named twice");
    let mask = Some(DocumentMask { field_paths: vec!["`a.b`".into(), "none".into()] });
    let masked = BatchGetDocumentsRequest { mask, ..asked(&["u/a"]) };
    let masked = get(&bytes(&masked), &root(), "").unwrap();
    assert!(masked.form.reply(messages[1..].to_vec(), &root()).is_none(), "it is not all");
    let told = read(&masked.form, &reply, &root(), TIME, &mut Fixed).unwrap();
    let fields = [("a.b".to_owned(), integer(2))].into();
    assert_eq!(told.messages[0], found(Got::Found(Document { fields, ..document })));
}

#[test]
fn a_mask_keeps_what_it_names_and_may_name_it_as_often_as_it_likes() {
    let map = |fields: Fields| value::value(ValueType::MapValue(MapValue { fields }));
    let inner: Fields = ["x", "y", "z"].map(|name| (name.to_owned(), integer(1))).into();
    let empty = ("empty".to_owned(), map(Fields::new()));
    let large = value::value(ValueType::StringValue("x".repeat(100_000)));
    let fields: Fields = [
        ("a".to_owned(), map(inner)),
        ("large".to_owned(), large),
        empty,
        ("n".to_owned(), integer(2)),
    ]
    .into();
    let kept = |names: &[&str]| {
        let paths = names.iter().map(|name| path::fields(name).unwrap()).collect();
        value::fields_to_json(&masked(&fields, &path::outermost(paths), 0)).to_string()
    };
    assert_eq!(kept(&["a.y", "n", "a.x"]), r#"{"a":{"x":1,"y":1},"n":2}"#);
    assert_eq!(kept(&["a.z", "a", "a.none"]), r#"{"a":{"x":1,"y":1,"z":1}}"#);
    assert_eq!(kept(&["a.none", "n.none", "empty.none", "none"]), "{}");
    assert_eq!(kept(&["empty"]), r#"{"empty":{}}"#);
    let start = Instant::now();
    assert!(kept(&vec!["large"; 50_000]).len() > 100_000);
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

#[test]
fn an_answer_with_many_documents_is_kept_in_a_time_that_grows_with_their_number_alone() {
    let paths: Vec<String> = (0..50_000).map(|n| format!("u/{n}")).collect();
    let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
    let understood = get(&bytes(&asked(&paths)), &root(), "").unwrap();
    let missing = |path: &&str| {
        bytes(&BatchGetDocumentsResponse {
            result: Some(Got::Missing(root().name(path))),
            ..BatchGetDocumentsResponse::default()
        })
    };
    let messages = paths.iter().rev().map(missing).collect();
    let start = Instant::now();
    assert!(understood.form.reply(messages, &root()).is_some());
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

#[test]
fn every_write_has_its_result_and_names_its_document_by_its_path() {
    let update = |transforms: Vec<TransformType>| Write {
        operation: Some(Operation::Update(Document {
            name: root().name("u/a"),
            fields: [(
                "ref".to_owned(),
                value::value(ValueType::ReferenceValue("projects/q/x".into())),
            )]
            .into(),
            ..Document::default()
        })),
        update_transforms: transforms
            .into_iter()
            .map(|it| FieldTransform { field_path: "t".into(), transform_type: Some(it) })
            .collect(),
        ..Write::default()
    };
    let delete =
        Write { operation: Some(Operation::Delete(root().name("u/b"))), ..Write::default() };
    let writes = vec![
        update(vec![TransformType::SetToServerValue(1), TransformType::Increment(integer(1))]),
        delete,
    ];
    let asked = CommitRequest { database: root().database, writes, transaction: Bytes::new() };
    let understood = commit(&bytes(&asked), &root(), "").unwrap();
    let call: Call = wire::decode(&understood.body).unwrap();
    let Some(Op::Commit(Commit { mut writes, .. })) = call.op else { panic!("a commit") };
    assert_eq!(wire::document_of(&writes[0]), "u/a");
    for write in &mut writes {
        root().complete_write(write);
    }
    assert_eq!(writes, asked.writes, "nothing is lost on the way");
    let Form::Commit(made) = &understood.form else { panic!("a commit") };
    let committed = committed(made, None, &mut Fixed).unwrap();
    assert!(committed.estimated);
    let told = CommitResponse::decode(committed.message).unwrap();
    let [one, two] = told.write_results.as_slice() else { panic!("{told:?}") };
    assert_eq!((one.update_time, two.update_time), (Some(TIME), None));
    let results = [ValueType::TimestampValue(TIME), ValueType::NullValue(0)];
    assert_eq!(one.transform_results, results.map(value::value));
    let inside = CommitRequest { transaction: Bytes::from_static(b"t"), ..asked };
    assert!(commit(&bytes(&inside), &root(), "").is_none());
}
