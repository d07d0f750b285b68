//! Ways to ask Firestore for a document.

use googleapis_tonic_google_firestore_v1::google::firestore::v1::{
    BatchGetDocumentsRequest, batch_get_documents_response::Result as Got,
    firestore_client::FirestoreClient,
};
use tonic::{
    Status,
    body::Body,
    codegen::{Bytes, StdError},
    transport::{Channel as Tonics, Endpoint},
};

use crate::{
    net::{
        grpc::{Channel, Home},
        testing::server,
    },
    stub::{DATABASE, name, owned},
};

/// As `src/net/grpc.rs` has them.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;

/// fusebox's own channel.
pub(crate) fn ours(port: u16) -> FirestoreClient<Channel> {
    FirestoreClient::new(Channel::new(server(port), false, Home::default()).expect("an address"))
}

/// tonic's.
pub(crate) fn tonics(port: u16) -> FirestoreClient<Tonics> {
    let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{port}")).expect("an address");
    let endpoint = endpoint
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW);
    FirestoreClient::new(endpoint.connect_lazy())
}

/// Gets a document.
pub(crate) async fn get<C>(mut client: FirestoreClient<C>)
where
    C: tonic::client::GrpcService<
            Body,
            Error: Into<StdError>,
            ResponseBody: hyper::body::Body<Data = Bytes, Error: Into<StdError> + Send>
                              + Send
                              + 'static,
        >,
{
    let request = BatchGetDocumentsRequest {
        database: DATABASE.into(),
        documents: vec![name("bench", 0)],
        ..Default::default()
    };
    let mut is_there = false;
    let answered = async {
        let mut got = client.batch_get_documents(owned(request)).await?.into_inner();
        while let Some(answer) = got.message().await? {
            is_there |= matches!(answer.result, Some(Got::Found(_)));
        }
        Ok::<_, Status>(())
    };
    answered.await.expect("an answer");
    assert!(is_there, "the document is there");
}
