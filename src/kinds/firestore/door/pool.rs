//! The door's own connections to the server.
//!
//! Four [pools](crate::net::grpc::pool): Listens, writes that are one message, everything else that may write, and what
//! only reads. What one client does not read is bounded by its stream's window, and the connection's window is that of
//! all its streams together: nobody stalls another.
//!
//! A connection for writes takes new ones only until half of `timeout` has passed since it had none. So whatever is cut
//! off with a write has waited for at least half of `timeout`: a server that is slow to answer one write ends no other
//! that it would have answered.
//!
//! **A reload closes the connector** of an upstream, and another one takes its place. Nothing is sent over the old one
//! from then on: a lease is refused, and what lasts ends or moves to the new one ([`Upstream::over`]). What is on the
//! wire by then is still answered.

use std::{pin::Pin, sync::Arc};

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::client::conn::http1::SendRequest;
use parking_lot::Mutex;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::Status;

use super::class::{Class, Method, Shape};
use crate::{
    kinds::firestore::{
        connector::FirestoreConnector,
        transport::{cause, client::STREAMS_MAX},
    },
    net::grpc::{
        Carrier, Home, Windows,
        place::Place,
        pool::{Lease, Pool},
    },
};

/// What may be here unread of an answer.
pub(super) const STREAM_WINDOW: u32 = 1 << 20;
/// The same of an answer that lasts.
pub(super) const LASTING_WINDOW: u32 = 64 << 10;

/// Why an upstream takes nothing more.
pub(super) const REPLACED: &str = "the settings of its connection have been changed";

/// So many connections of HTTP/1.1 are kept that nobody uses.
const IDLE_MAX: usize = 16;

const fn windows(stream: u32) -> Windows {
    Windows { stream, connection: stream * 128 }
}

/// Resolves once an upstream takes nothing more; see [`Upstream::over`].
pub(super) type Over = Pin<Box<WaitForCancellationFutureOwned>>;

/// A connection of HTTP/1.1.
type Plain = SendRequest<Full<Bytes>>;

/// The connections to one server.
pub(super) struct Upstream {
    pub(super) connector: Arc<FirestoreConnector>,
    reads: Pool,
    writes: Pool,
    lasting: Pool,
    /// Streams that may write, each with a connection to itself.
    alone: Pool,
    /// Connections of HTTP/1.1 that nobody uses.
    plain: Mutex<Vec<Plain>>,
}

impl Upstream {
    pub(super) fn new(connector: Arc<FirestoreConnector>) -> Self {
        let settings = &connector.shared.client.settings;
        let writes_for = settings.timeout / 2;
        let pool = |stream, streams, rests_after| {
            // The door's thread alone dials them.
            Pool::new(settings.server(), windows(stream), streams, rests_after, Home::default())
        };
        Self {
            reads: pool(STREAM_WINDOW, STREAMS_MAX, None),
            writes: pool(STREAM_WINDOW, STREAMS_MAX, Some(writes_for)),
            lasting: pool(LASTING_WINDOW, STREAMS_MAX, None),
            alone: pool(LASTING_WINDOW, 1, Some(writes_for)),
            plain: Mutex::default(),
            connector,
        }
    }

    /// Cancelled when its connector is closed.
    pub(super) fn closed(&self) -> &CancellationToken {
        &self.connector.shared.client.closed
    }

    /// Whether its connector is closed: nothing more is sent over it.
    pub(super) fn is_over(&self) -> bool {
        self.closed().is_cancelled()
    }

    /// Resolves once that is so, however often it is asked.
    pub(super) fn over(&self) -> Over {
        Box::pin(self.closed().clone().cancelled_owned())
    }

    /// Refuses what is to be sent once that is so.
    fn goes_on(&self) -> Result<(), Status> {
        if self.is_over() { Err(cause::not_sent(REPLACED)) } else { Ok(()) }
    }

    /// A connection of HTTP/1.1 that nobody uses.
    pub(super) fn idle(&self) -> Option<Plain> {
        self.plain.lock().pop()
    }

    /// A stream's place on a connection for calls of `method`.
    ///
    /// # Errors
    /// There is no connection, or it is [over](Self::is_over); nothing was sent.
    pub(super) async fn lease(&self, method: Method) -> Result<Lease, Status> {
        let pool = match (method.shape, method.class) {
            (Shape::Lasting, Class::Read) => &self.lasting,
            (Shape::Lasting | Shape::Unknown, Class::Write) => &self.alone,
            (Shape::One, Class::Write) => &self.writes,
            (Shape::One | Shape::Unknown, Class::Read) => &self.reads,
        };
        self.goes_on()?;
        let lease = pool.lease().await?;
        // That may have taken a while.
        self.goes_on()?;
        Ok(lease)
    }
}

/// A connection of HTTP/1.1, for one request at a time.
pub(super) struct Line {
    sender: Plain,
    upstream: Arc<Upstream>,
}

impl Line {
    pub(super) fn new(sender: Plain, upstream: &Arc<Upstream>) -> Self {
        Self { sender, upstream: Arc::clone(upstream) }
    }

    /// Its answer was read: others may use it.
    pub(super) fn give_back(self) {
        let mut idle = self.upstream.plain.lock();
        if idle.len() < IDLE_MAX {
            idle.push(self.sender);
        }
    }
}

/// What took a stream: it has its place until the connection is closed, if that is.
#[derive(Clone)]
pub(super) struct Took {
    pub(super) carrier: Carrier,
    pub(super) place: Arc<Place>,
}

#[cfg(test)]
mod tests {
    use fusebox_actors::connector::Connector as _;
    use tokio::net::TcpListener;

    use super::*;
    use crate::kinds::firestore::{
        door::class::method, protocol::outcome::Cause, testing::settings,
    };

    #[tokio::test]
    async fn nothing_is_sent_over_an_upstream_whose_connector_is_closed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let upstream = Upstream::new(FirestoreConnector::new(settings(port)));
        let get = method("/google.firestore.v1.Firestore/GetDocument");
        assert!(upstream.lease(get).await.is_ok());
        upstream.connector.close().await;
        let refused = upstream.lease(get).await.err().unwrap();
        assert!(matches!(cause::of(&refused), Cause::NotSent(_)), "{refused}");
        let mut over = upstream.over();
        for _ in 0..2 {
            over.as_mut().await;
        }
    }
}
