//! The connections to Firestore, and requests on them.
//!
//! Reads and Listens share a [pool](crate::net::grpc::pool) of channels: however many Listens last, there is room for a
//! read. Writes go over [`WRITE_CHANNELS`] of their own, spread by lane: an abandoned commit's connection is reset, and
//! that must not cut every commit nor any Listen. What is asked here is what both emulators answer: Commit,
//! `BatchGetDocuments`, `RunQuery`, Listen, `BeginTransaction` and Rollback.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use fusebox_actors::{
    connector::{ErrorCode, OwnCode},
    trace::PassedOn,
};
use fusebox_state::{ErrorClass, Verdict};
use googleapis_tonic_google_firestore_v1::google::firestore::v1::{
    BatchGetDocumentsRequest, Document, RunAggregationQueryRequest, RunQueryRequest,
    StructuredQuery, batch_get_documents_request, batch_get_documents_response,
    firestore_client::FirestoreClient, run_query_request,
};
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;
use tonic::{
    Request, body::Body, client::GrpcService, codegen::StdError, metadata::AsciiMetadataValue,
};

use super::{
    auth::Auth,
    cause,
    gathering::{ANSWER_MAX, Gathering, NotWhole},
};
use crate::{
    kinds::firestore::{
        protocol::{
            names::Root,
            outcome::{self, Behalf, Failed},
            wire::{Asked, Question},
        },
        settings::FirestoreSettings,
    },
    net::grpc::{
        Carrier, Channel, Home, WINDOWS,
        pool::{Once, Pool},
    },
};

/// The largest message that is taken: Firestore's own are far smaller.
const MESSAGE_MAX: usize = 64 << 20;

/// Streams at once over a connection: as many as Firestore itself takes.
pub(crate) const STREAMS_MAX: usize = 100;

/// How many connections carry writes.
const WRITE_CHANNELS: usize = 4;

/// A stub on a connection.
pub(crate) type Stub = FirestoreClient<Channel>;

/// A stub for one request, which has a place on a connection.
pub(crate) type StubOnce = FirestoreClient<Once>;

tokio::task_local! {
    /// The headers of the trace that requests of this task belong to.
    static TRACE: Vec<(&'static str, AsciiMetadataValue)>;
}

/// Does what `asked` does, with requests that have `trace`.
pub(crate) async fn traced<T>(trace: Option<PassedOn<'_>>, asked: impl Future<Output = T>) -> T {
    // Of use once: marked so, neither side keeps it in its table of headers, from which it would push out others.
    let value = |text: &str| {
        let mut value = AsciiMetadataValue::try_from(text).ok()?;
        value.set_sensitive(true);
        Some(value)
    };
    let headers = trace.map(|trace| {
        trace.headers().filter_map(|(name, text)| Some((name, value(&text)?))).collect()
    });
    TRACE.scope(headers.unwrap_or_default(), asked).await
}

struct Channels {
    reads: Arc<Pool>,
    writes: [Channel; WRITE_CHANNELS],
}

/// See the [module](self).
pub(crate) struct Client {
    pub(crate) settings: FirestoreSettings,
    auth: Auth,
    /// The runtime that its maker is on. The doors, which ask too, have others, which end before it.
    pub(super) home: Home,
    channels: Mutex<Option<Channels>>,
    root: OnceCell<Root>,
    /// Cancelled when the connector is closed.
    pub(crate) closed: CancellationToken,
}

impl Client {
    /// A client for `settings`. Nothing is sent yet.
    pub(crate) fn new(settings: FirestoreSettings) -> Self {
        let root = settings.known_project().map(|project| Root::new(project, &settings.database));
        Self {
            auth: Auth::new(&settings),
            home: Home::current(),
            channels: Mutex::default(),
            root: OnceCell::new_with(root),
            closed: CancellationToken::new(),
            settings,
        }
    }

    /// The root of the database's documents. Asks for the project if it is not configured.
    pub(crate) async fn root(&self) -> Result<&Root, Failed> {
        let root = self.root.get_or_try_init(async || {
            let project = self.auth.project().await?;
            Ok(Root::new(&project, &self.settings.database))
        });
        root.await
    }

    /// The root, if it is known already.
    pub(crate) fn known_root(&self) -> Option<&Root> {
        self.root.get()
    }

    /// A stub for reads, and a request with its headers. `caller` is a caller's own token; empty for none.
    pub(crate) async fn request<T>(
        &self,
        message: T,
        caller: &str,
    ) -> Result<(StubOnce, Request<T>), Failed> {
        let request = self.addressed(message, caller).await?;
        let reads = self.channels(|channels| Arc::clone(&channels.reads))?;
        let lease = reads.lease().await.map_err(|status| unconnected(&status))?;
        Ok((stub(lease.into_channel()), request))
    }

    /// The same for a write, over the connection of `lane`, and what will know which connection took it.
    pub(crate) async fn write_request<T>(
        &self,
        message: T,
        caller: &str,
        lane: u64,
    ) -> Result<(Stub, Request<T>, Carrier), Failed> {
        let request = self.addressed(message, caller).await?;
        let (channel, carrier) = self.write_channel(lane)?.followed();
        Ok((stub(channel), request, carrier))
    }

    /// Makes ready to write on behalf of `caller` over the connection of `lane`: credentials, and a
    /// connection.
    pub(crate) async fn ready_to_write(&self, caller: &str, lane: u64) -> Result<(), Failed> {
        self.root().await?;
        self.auth.header(caller).await?;
        self.connect_to_write(lane).await
    }

    /// Connects to write over the connection of `lane`.
    pub(crate) async fn connect_to_write(&self, lane: u64) -> Result<(), Failed> {
        let connected = self.write_channel(lane)?.connect().await;
        connected.map_err(|status| unconnected(&status))
    }

    /// The daemon's own credential, as a header.
    pub(crate) async fn credential(&self) -> Result<AsciiMetadataValue, Failed> {
        self.auth.header("").await
    }

    async fn addressed<T>(&self, message: T, caller: &str) -> Result<Request<T>, Failed> {
        let root = self.root().await?;
        let mut request = Request::new(message);
        let headers = request.metadata_mut();
        headers.insert("authorization", self.auth.header(caller).await?);
        let trace = TRACE.try_with(Clone::clone).unwrap_or_default();
        for (name, value) in trace {
            headers.insert(name, value);
        }
        root.address(headers);
        Ok(request)
    }

    /// The documents of these full names; what does not exist is not among them.
    pub(crate) async fn get(
        &self,
        names: Vec<String>,
        transaction: &Bytes,
        caller: &str,
        gathering: &mut Gathering,
    ) -> Result<HashMap<String, Document>, Failed> {
        use batch_get_documents_request::ConsistencySelector;
        let behalf = Behalf { caller: !caller.is_empty(), transaction: !transaction.is_empty() };
        let selector = (!transaction.is_empty())
            .then(|| ConsistencySelector::Transaction(transaction.clone()));
        let message = BatchGetDocumentsRequest {
            database: self.root().await?.database.clone(),
            documents: names,
            mask: None,
            consistency_selector: selector,
        };
        let (mut stub, request) = self.request(message, caller).await?;
        let answered = async {
            let mut answers = stub.batch_get_documents(request).await?.into_inner();
            let mut found = HashMap::new();
            while let Some(answer) = gathering.next(&mut answers).await? {
                if let Some(batch_get_documents_response::Result::Found(document)) = answer.result {
                    found.insert(document.name.clone(), document);
                }
            }
            Ok::<_, NotWhole>(found)
        };
        match answered.await {
            Ok(found) => Ok(found),
            Err(why) => Err(self.not_whole(why, behalf).await.of_known()),
        }
    }

    /// Asks for a document of fusebox's own, whether or not it is there.
    pub(crate) async fn probe(&self) -> Result<(), Failed> {
        let name = self.root().await?.name("fusebox_markers/ping");
        self.get(vec![name], &Bytes::new(), "", &mut Gathering::default()).await.map(drop)
    }

    /// The documents that a query finds, in its order.
    pub(crate) async fn query(
        &self,
        parent: &str,
        mut query: StructuredQuery,
        transaction: &Bytes,
        caller: &str,
        gathering: &mut Gathering,
    ) -> Result<Vec<Document>, Failed> {
        use run_query_request::{ConsistencySelector, QueryType};
        let behalf = Behalf { caller: !caller.is_empty(), transaction: !transaction.is_empty() };
        let root = self.root().await?;
        root.complete_query(&mut query);
        let selector = (!transaction.is_empty())
            .then(|| ConsistencySelector::Transaction(transaction.clone()));
        let message = RunQueryRequest {
            parent: root.name(parent),
            explain_options: None,
            query_type: Some(QueryType::StructuredQuery(query)),
            consistency_selector: selector,
        };
        let (mut stub, request) = self.request(message, caller).await?;
        let answered = async {
            let mut answers = stub.run_query(request).await?.into_inner();
            let mut found = Vec::new();
            while let Some(answer) = gathering.next(&mut answers).await? {
                found.extend(answer.document);
            }
            Ok::<_, NotWhole>(found)
        };
        match answered.await {
            Ok(found) => Ok(found),
            Err(why) => Err(self.not_whole(why, behalf).await),
        }
    }

    /// What the server answers to what a client of the door asks.
    pub(crate) async fn asked(
        &self,
        asked: Asked,
        caller: &str,
        gathering: &mut Gathering,
    ) -> Result<Vec<Bytes>, Failed> {
        let behalf = Behalf { caller: !caller.is_empty(), transaction: false };
        let malformed = || {
            let (verdict, class) = (Verdict::Neutral, ErrorClass::Rejected);
            Failed::own(verdict, class, OwnCode::MalformedCall, "the call cannot be read")
        };
        let answered = match asked.question() {
            Question::Query => {
                let message = RunQueryRequest::decode(asked.message).map_err(|_| malformed())?;
                let (mut stub, request) = self.request(message, caller).await?;
                match stub.run_query(request).await {
                    Ok(answer) => all(answer.into_inner(), gathering).await,
                    Err(status) => Err(status.into()),
                }
            }
            Question::Aggregation => {
                let message =
                    RunAggregationQueryRequest::decode(asked.message).map_err(|_| malformed())?;
                let (mut stub, request) = self.request(message, caller).await?;
                match stub.run_aggregation_query(request).await {
                    Ok(answer) => all(answer.into_inner(), gathering).await,
                    Err(status) => Err(status.into()),
                }
            }
            Question::Unknown => return Err(malformed()),
        };
        match answered {
            Ok(messages) => Ok(messages),
            Err(why) => Err(self.not_whole(why, behalf).await),
        }
    }

    /// What an answer that is not whole says.
    pub(super) async fn not_whole(&self, why: NotWhole, behalf: Behalf) -> Failed {
        match why {
            NotWhole::Ended(status) => self.failed(&status, behalf).await,
            NotWhole::TooLarge => {
                let message = format!(
                    "the answer is larger than {} MiB, which is the most that fusebox collects",
                    ANSWER_MAX >> 20
                );
                let (verdict, class) = (Verdict::Success, ErrorClass::Rejected);
                Failed::own(verdict, class, OwnCode::ResultTooLarge, message)
            }
        }
    }

    /// What a status says. Credentials that were refused are read again the next time.
    pub(crate) async fn failed(&self, status: &tonic::Status, behalf: Behalf) -> Failed {
        if status.code() == tonic::Code::Unauthenticated && !behalf.caller {
            self.auth.forget().await;
        }
        self.says(status, behalf)
    }

    /// The same without a look at the credentials.
    pub(crate) fn says(&self, status: &tonic::Status, behalf: Behalf) -> Failed {
        outcome::of_backend(status, cause::of(status), behalf, self.known_root())
    }

    /// Gives the connections up: what is on them ends as it ends, what comes next dials again.
    pub(crate) fn give_up_connections(&self) {
        self.channels.lock().take();
    }

    /// Ends the connections for ever.
    pub(crate) fn close(&self) {
        self.closed.cancel();
        if let Some(channels) = self.channels.lock().take() {
            channels.writes.iter().for_each(Channel::reset);
        }
    }

    /// How many connections there are.
    pub(crate) fn open(&self) -> usize {
        let channels = self.channels.lock();
        let Some(Channels { reads, writes }) = &*channels else { return 0 };
        reads.open() + writes.iter().filter(|channel| channel.is_open()).count()
    }

    fn write_channel(&self, lane: u64) -> Result<Channel, Failed> {
        // The remainder of a division by a handful.
        let at = usize::try_from(lane % WRITE_CHANNELS as u64).unwrap_or_default();
        self.channels(|channels| channels.writes.get(at).unwrap_or(&channels.writes[0]).clone())
    }

    fn channels<T>(&self, wanted: impl FnOnce(&Channels) -> T) -> Result<T, Failed> {
        let mut channels = self.channels.lock();
        if self.closed.is_cancelled() {
            return Err(closed());
        }
        if let Some(channels) = &*channels {
            return Ok(wanted(channels));
        }
        let made = || {
            Channel::new(self.settings.server(), true, self.home.clone()).map_err(|error| {
                let why = format!("the url is not usable: {error}");
                let code = ErrorCode::OfKind("settings");
                Failed::own(Verdict::Failure, ErrorClass::BlockedServer, code, why)
            })
        };
        let writes = [made()?, made()?, made()?, made()?];
        let (server, home) = (self.settings.server(), self.home.clone());
        let reads = Arc::new(Pool::new(server, WINDOWS, STREAMS_MAX, None, home));
        Ok(wanted(channels.insert(Channels { reads, writes })))
    }
}

/// All messages of an answer.
async fn all<M: Message>(
    mut answer: tonic::Streaming<M>,
    gathering: &mut Gathering,
) -> Result<Vec<Bytes>, NotWhole> {
    let mut messages = Vec::new();
    while let Some(message) = gathering.next_encoded(&mut answer).await? {
        messages.push(message);
    }
    Ok(messages)
}

fn stub<C>(channel: C) -> FirestoreClient<C>
where
    C: GrpcService<
            Body,
            Error: Into<StdError>,
            ResponseBody: hyper::body::Body<Data = Bytes, Error: Into<StdError> + Send>
                              + Send
                              + 'static,
        >,
{
    FirestoreClient::new(channel)
        .max_decoding_message_size(MESSAGE_MAX)
        .max_encoding_message_size(MESSAGE_MAX)
}

/// There is no connection: nothing was sent.
fn unconnected(status: &tonic::Status) -> Failed {
    outcome::of(status, cause::of(status), Behalf::default())
}

/// The connector is closed: nothing was sent.
pub(crate) fn closed() -> Failed {
    let message = "the connector is closed";
    Failed::own(Verdict::Neutral, ErrorClass::NotExecuted, OwnCode::Closed, message)
}
