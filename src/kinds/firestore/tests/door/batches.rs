//! Batches whose writes are each answered by itself, as bulk writers send them.

use std::collections::HashMap;

use googleapis_tonic_google_firestore_v1::google::firestore::v1::{
    BatchWriteRequest, BatchWriteResponse, DocumentMask, Write,
    document_transform::field_transform::TransformType,
};
use tonic::{Code, Response, Status};

use super::{
    clients::{DATABASE, set, stub},
    understood::{Stub, committed, delete, existing, got, increment, said, transformed, world},
    *,
};
use crate::kinds::firestore::testing::{Emulator, Engine};

async fn written(
    stub: &mut Stub,
    writes: Vec<Write>,
) -> Result<Response<BatchWriteResponse>, Status> {
    let (database, labels) = (DATABASE.into(), HashMap::new().into_iter().collect());
    stub.batch_write(BatchWriteRequest { database, writes, labels }).await
}

#[tokio::test]
async fn a_batch_in_an_outage_is_kept_write_by_write() {
    let Some(mut emulator) = Emulator::google("batches over the door").await else { return };
    let world = world(&emulator, None).await;
    let mut stub = stub(&world).await;
    let first = vec![set("u/a", "old".into()), set("u/b", "old".into())];
    let live = written(&mut stub, first).await.unwrap();
    assert_eq!(said(live.metadata(), "x-fusebox-source"), "");
    emulator.kill();
    world.opens(&mut stub).await;
    let writes = vec![
        set("u/a", "new".into()),
        existing(false, set("u/made", "made".into())),
        delete("u/b"),
        transformed(set("u/n", "n".into()), vec![("n", increment(2))]),
    ];
    let answer = written(&mut stub, writes).await.unwrap();
    assert_eq!(said(answer.metadata(), "x-fusebox-source"), "queued");
    assert_eq!(said(answer.metadata(), "x-fusebox-estimated"), "1");
    let BatchWriteResponse { write_results, status } = answer.into_inner();
    let codes: Vec<i32> = status.iter().map(|status| status.code).collect();
    assert_eq!(codes, [0, Code::Unknown.into(), 0, 0], "{status:?}");
    assert!(status[1].message.contains("not executed"), "{status:?}");
    let times: Vec<bool> = write_results.iter().map(|it| it.update_time.is_some()).collect();
    assert_eq!(times, [true, false, true, true]);
    assert_eq!(write_results[3].transform_results.len(), 1);
    let seen = got(&mut stub, &["u/a", "u/b"]).await.unwrap();
    assert_eq!((seen.source(), seen.texts()), ("queued", vec![Some("new".into()), None]));
    emulator.restart().await;
    world.recovers().await;
    let seen = got(&mut stub, &["u/a", "u/b", "u/made", "u/n"]).await.unwrap();
    assert_eq!(seen.source(), "");
    assert_eq!(seen.texts(), [Some("new".into()), None, None, Some("n".into())]);
    assert_eq!(world.in_flight(), 0);
}

#[tokio::test]
async fn a_batch_is_no_commit_of_all_its_writes() {
    let (server, port) = Played::start().await;
    drop(server);
    let world = World::before(port).await;
    let mut stub = stub(&world).await;
    world.opens(&mut stub).await;
    let mut writes: Vec<Write> = (0..500).map(|n| set(&format!("u/{n}"), "new".into())).collect();
    writes[7] = transformed(set("u/7", "new".into()), vec![("n", increment(1))]);
    let answer = written(&mut stub, writes.clone()).await.unwrap();
    assert_eq!(said(answer.metadata(), "x-fusebox-source"), "queued");
    let codes: Vec<i32> = answer.into_inner().status.iter().map(|status| status.code).collect();
    assert_eq!(codes, [0; 500]);
    let waiting = || world.fusebox.backend("firestore").unwrap().view().queue.calls;
    assert_eq!(waiting(), 500);
    writes.push(set("u/500", "new".into()));
    let told = written(&mut stub, writes).await.unwrap_err();
    assert_eq!(told.code(), Code::ResourceExhausted, "{told}");
    assert_eq!(waiting(), 500);
}

#[tokio::test]
async fn what_no_server_takes_is_not_acknowledged_in_an_outage_and_told_why() {
    let mut emulator = Emulator::start(Engine::Npm).await;
    let world = world(&emulator, None).await;
    let mut stub = stub(&world).await;
    got(&mut stub, &["u/a"]).await.unwrap();
    emulator.kill();
    world.opens(&mut stub).await;
    let mut odd = set("u/a", "one".into());
    odd.update_mask = Some(DocumentMask { field_paths: vec!["a b".into()] });
    let nothing = TransformType::SetToServerValue(0);
    for (write, why) in [
        (odd, "a field's path must be such as a.b"),
        (transformed(set("u/a", "one".into()), vec![("n", nothing)]), "the server's value"),
        (set("u/__x__", "one".into()), "ids such as __x__ are reserved"),
    ] {
        for told in [
            committed(&mut stub, vec![write.clone()]).await.unwrap_err(),
            written(&mut stub, vec![write, set("u/b", "two".into())]).await.unwrap_err(),
        ] {
            assert_eq!(told.code(), Code::InvalidArgument, "{told}");
            assert!(told.message().contains(why), "{told}");
        }
    }
    let waiting = world.fusebox.backend("firestore").unwrap().view().queue.calls;
    assert_eq!(waiting, 0);
}
