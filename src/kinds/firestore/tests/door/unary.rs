//! Methods about one document, as clients use them that are not Google's for Python or Node.

use googleapis_tonic_google_firestore_v1::google::firestore::v1::{
    CreateDocumentRequest, DeleteDocumentRequest, Document, DocumentMask, GetDocumentRequest,
    UpdateDocumentRequest, value::ValueType,
};
use tonic::{Code, Response, Status};

use super::{
    clients::{DATABASE, commit, name, set, stub},
    understood::{Stub, got, said, world},
};
use crate::kinds::firestore::testing::Emulator;

async fn got_one(stub: &mut Stub, path: &str) -> Result<Response<Document>, Status> {
    stub.get_document(GetDocumentRequest { name: name(path), ..Default::default() }).await
}

fn text(document: &Document) -> Option<&str> {
    match &document.fields.get("t")?.value_type {
        Some(ValueType::StringValue(text)) => Some(text),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn one_document_is_got_and_deleted_in_an_outage() {
    let Some(mut emulator) = Emulator::google("methods about one document").await else { return };
    let world = world(&emulator, None).await;
    let mut stub = stub(&world).await;
    let all = ["u/a", "u/b", "u/c"].map(|path| set(path, path.to_owned()));
    commit(&mut stub, all.to_vec()).await;
    let live = got_one(&mut stub, "u/a").await.unwrap();
    assert_eq!(said(live.metadata(), "x-fusebox-source"), "");
    let live = live.into_inner();
    got(&mut stub, &["u/b", "u/c", "u/none"]).await.unwrap();
    emulator.kill();
    for _ in 0..2 {
        let seen = got_one(&mut stub, "u/a").await.unwrap();
        assert_eq!(said(seen.metadata(), "x-fusebox-source"), "cache");
        assert_eq!(seen.into_inner(), live, "as the server told it");
    }
    assert_eq!(got(&mut stub, &["u/a"]).await.unwrap().texts(), [Some("u/a".to_owned())]);
    let seen = got_one(&mut stub, "u/b").await.unwrap().into_inner();
    assert_eq!(text(&seen), Some("u/b"), "whichever way it was seen");
    let masked = GetDocumentRequest {
        name: name("u/b"),
        mask: Some(DocumentMask { field_paths: vec!["other".into()] }),
        ..Default::default()
    };
    let masked = stub.get_document(masked).await.unwrap().into_inner();
    assert!(masked.fields.is_empty() && masked.update_time == seen.update_time);
    let none = got_one(&mut stub, "u/none").await.unwrap_err();
    assert_eq!(none.code(), Code::NotFound, "{none}");
    assert_eq!(said(none.metadata(), "x-fusebox-source"), "cache");
    world.opens(&mut stub).await;
    let never = got_one(&mut stub, "u/never").await.unwrap_err();
    assert_eq!(never.code(), Code::Unknown, "{never}");

    let delete = DeleteDocumentRequest { name: name("u/a"), current_document: None };
    let deleted = stub.delete_document(delete).await.unwrap();
    assert_eq!(said(deleted.metadata(), "x-fusebox-ack"), "durable");
    let none = got_one(&mut stub, "u/a").await.unwrap_err();
    assert_eq!(none.code(), Code::NotFound, "{none}");
    assert_eq!(said(none.metadata(), "x-fusebox-source"), "queued");
    commit(&mut stub, vec![set("u/c", "new".into())]).await;
    let seen = got_one(&mut stub, "u/c").await.unwrap();
    assert_eq!(said(seen.metadata(), "x-fusebox-source"), "queued");
    assert_eq!(text(&seen.into_inner()), Some("new"));

    // Their answer is the document as it is then.
    let document = Some(Document { name: name("u/a"), ..Document::default() });
    let update = UpdateDocumentRequest { document: document.clone(), ..Default::default() };
    let create = CreateDocumentRequest {
        parent: format!("{DATABASE}/documents"),
        collection_id: "u".into(),
        document_id: "d".into(),
        document: Some(Document::default()),
        ..Default::default()
    };
    let refused =
        [stub.update_document(update).await.err(), stub.create_document(create).await.err()];
    for refused in refused.map(Option::unwrap) {
        assert_eq!(refused.code(), Code::Unknown, "{refused}");
        assert!(refused.message().contains("not executed"), "{refused}");
    }
    emulator.restart().await;
    world.recovers().await;
    assert_eq!(got(&mut stub, &["u/a", "u/c"]).await.unwrap().texts(), [None, Some("new".into())]);
    assert_eq!(world.in_flight(), 0);
}
