//! Pipelines, and other calls whose answer may be more than one message.

use googleapis_tonic_google_firestore_v1::google::firestore::v1::{
    ExecutePipelineRequest, Pipeline, StructuredPipeline, execute_pipeline_request::PipelineType,
    pipeline::Stage,
};
use prost::Message;
use tokio::{io::AsyncReadExt, sync::mpsc};

use super::{clients::DATABASE, passing::plain, *};

pub(super) const PIPELINE: &str = "/google.firestore.v1.Firestore/ExecutePipeline";
/// A method of a version that nobody knows.
const UNKNOWN: &str = "/google.firestore.v1beta1.Firestore/Commit";

/// A message that executes a pipeline of these stages.
pub(super) fn executes(stages: &[&str]) -> Vec<u8> {
    let stage = |name: &&str| Stage { name: (*name).to_owned(), ..Stage::default() };
    let pipeline = Some(Pipeline { stages: stages.iter().map(stage).collect() });
    let structured = StructuredPipeline { pipeline, ..StructuredPipeline::default() };
    let pipeline_type = Some(PipelineType::StructuredPipeline(structured));
    ExecutePipelineRequest { pipeline_type, ..ExecutePipelineRequest::default() }.encode_to_vec()
}

#[tokio::test]
async fn a_write_has_a_deadline_at_the_server_only_if_its_answer_is_one_message() {
    let (server, port) = Played::start().await;
    server.answer_all(|request, respond| async move {
        let time = request.headers().get("grpc-timeout");
        answer(respond, time.map_or(&[][..], |time| time.as_bytes()));
    });
    let world = World::before(port).await;
    let client = world.connect().await;
    for (path, message, time) in [
        (COMMIT, DELETE.to_vec(), "5000000u"),
        (UNKNOWN, Vec::new(), ""),
        (PIPELINE, executes(&["collection", "delete"]), ""),
    ] {
        let got = client.call(path, &[], &message).await;
        assert_eq!((got.status(), &*got.body), ("0", &*framed(time.as_bytes())), "{path}");
    }
}

#[tokio::test]
async fn a_pipeline_that_writes_over_rest_has_a_deadline_at_the_server() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let world = World::before(listener.local_addr().unwrap().port()).await;
    let body = r#"{"structuredPipeline":{"pipeline":{"stages":[{"name":"delete"}]}}}"#;
    let request = format!(
        "POST /v1/{DATABASE}/documents:executePipeline HTTP/1.1\r\nHost: 127.0.0.1\r\n\
         Connection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let calling = tokio::spawn(async move { plain(world.port, &request).await });
    // The other connections are pings.
    let mut stream = loop {
        let (mut stream, _) = timeout(PATIENCE, listener.accept()).await.unwrap().unwrap();
        let mut first = [0; 5];
        stream.read_exact(&mut first).await.unwrap();
        if &first == b"POST " {
            break stream;
        }
    };
    let mut seen = Vec::new();
    while !seen.ends_with(body.as_bytes()) {
        assert_ne!(timeout(PATIENCE, stream.read_buf(&mut seen)).await.unwrap().unwrap(), 0);
    }
    calling.abort();
    let seen = String::from_utf8(seen).unwrap().to_lowercase();
    assert!(seen.contains("\r\nx-server-timeout: 5\r\n"), "{seen}");
}

#[tokio::test]
async fn a_pipeline_that_writes_may_do_so_until_its_answer_has_ended() {
    let (server, port) = Played::start().await;
    let (hand, mut handed) = mpsc::unbounded_channel();
    server.answer_all(move |request, mut respond| {
        let hand = hand.clone();
        async move {
            if request.uri().path() != PIPELINE {
                return answer(respond, b"");
            }
            let mut body = respond.send_response(head(), false).unwrap();
            body.send_data(framed(b"first"), false).unwrap();
            hand.send(body).unwrap();
        }
    });
    let world = World::before(port).await;
    let client = world.connect().await;
    let written = async || client.call(COMMIT, &[], DELETE).await.status().to_owned();
    for ends in [true, false] {
        let (response, mut stream) = client.begin(PIPELINE, &[]).await;
        stream.send_data(framed(&executes(&["collection", "delete"])), true).unwrap();
        let mut got = timeout(PATIENCE, response).await.unwrap().unwrap().into_body();
        timeout(PATIENCE, got.data()).await.unwrap().unwrap().unwrap();
        let mut body = timeout(PATIENCE, handed.recv()).await.unwrap().unwrap();
        assert_eq!(written().await, "0", "its client waits for it");
        if ends {
            body.send_trailers(status("0")).unwrap();
            assert!(timeout(PATIENCE, got.data()).await.unwrap().is_none());
            assert_eq!(got.trailers().await.unwrap().unwrap()["grpc-status"], "0");
            assert_eq!(written().await, "0");
        } else {
            drop((got, stream));
            // Nothing says when the door has heard of it.
            let left = async { while written().await == "0" {} };
            timeout(PATIENCE, left).await.expect("it may still write");
            assert_eq!(written().await, "2");
        }
    }
}
