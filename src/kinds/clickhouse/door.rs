//! The ClickHouse door: stock clients of the HTTP interface connect here as they would to the server.
//!
//! ```text
//!  client ─▶ framing ─▶ hyper ─▶ who is it? ─▶ request in wire form ─▶ Backend::call ─▶ the server's own answer
//!              │ ambiguous        │ nobody                              │ breaker, bulkhead, deadline, fence
//!              ▼                  ▼                                     ▼
//!             400, closed        403, after a second                   an error in the server's form
//! ```
//! A door is a second way in and not a second semantics: a request is a call in the form of
//! [`http_form`](super::protocol::http_form), and goes the way of every call. The door itself decides who may call,
//! answers `/ping`, and says in the server's form what fusebox says.
//!
//! # Invariants
//! 1. The bytes of a body are never changed, in either direction: not decoded, not compressed, not completed. An answer
//!    that the server broke off is broken off here, one that it ended is ended, whatever is at its end.
//! 2. Credentials end here. The server sees those of the backend, and no log, trace or error sees any.
//! 3. What is held of a request is at most [`HELD`](request::HELD) bytes and the piece on its way (more of what is to be
//!    queued, and of a [packed](super::protocol::decoded::PACKED_MOST) one), and of an answer the piece on its way: who
//!    does not read or write stops the other side.
//! 4. Nothing is tried again here. A request whose body is longer than what is held is sent once.
//! 5. A request that two parsers could read in two ways is not read at all ([`framing`]).
//!
//! # Threads
//! A door has a thread of its own ([`DoorThread`]). A connection is a task there, with one request at a time. If its
//! client leaves, the request that is under way is dropped: a read is killed at the server, a write goes on as any
//! call's does.

use std::{io, pin::Pin, sync::Arc};

use fusebox_actors::view::DoorView;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    sync::watch,
};
use tokio_util::task::TaskTracker;

use self::{counters::Closed, service::Service, visitor::Visitor};
use crate::{
    ingress::{
        door::{Connection, DoorStream, WireDoor},
        door_thread::DoorThread,
    },
    kinds::port::DoorSpec,
};

mod answer;
mod body;
mod connection;
mod counters;
mod credentials;
mod flushes;
mod framing;
mod pages;
mod request;
mod service;
mod telling;
mod visitor;

/// The answer to a client that finds no room.
const NO_ROOM: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 1\r\n\
    Content-Type: text/plain; charset=UTF-8\r\nX-ClickHouse-Exception-Code: 202\r\nContent-Length: 103\r\n\r\n\
    Code: 202. DB::Exception: fusebox: too many connections; not executed. (TOO_MANY_SIMULTANEOUS_QUERIES)\n";

/// A door that is open.
pub(crate) struct ClickHouseDoor {
    service: Arc<Service>,
    tasks: TaskTracker,
    stopping: watch::Sender<bool>,
    thread: DoorThread,
}

impl ClickHouseDoor {
    /// Opens the door of `spec`.
    ///
    /// # Errors
    /// There is no thread for it.
    pub(crate) fn open(spec: DoorSpec) -> Result<Self, String> {
        let DoorSpec { settings, backend, .. } = spec;
        let thread = DoorThread::start(backend.name())?;
        let stopping = watch::Sender::new(false);
        let service = Arc::new(Service::new(settings, backend, stopping.subscribe()));
        Ok(Self { service, tasks: TaskTracker::new(), stopping, thread })
    }

    /// Serves the connection that `opened` makes of what was accepted.
    fn serve<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        &self,
        opened: impl FnOnce() -> io::Result<S> + Send + 'static,
        visitor: Visitor,
    ) {
        let service = Arc::clone(&self.service);
        service.counters.came();
        let serving = async move {
            let closed = match opened() {
                Ok(stream) => connection::serve(&service, stream, visitor).await,
                Err(error) => {
                    tracing::debug!(%error, "a connection cannot be served");
                    Closed::Client
                }
            };
            service.counters.went(closed);
        };
        drop(self.tasks.spawn_on(serving, self.thread.runtime()));
    }
}

impl WireDoor for ClickHouseDoor {
    fn take(&self, connection: Connection) {
        let Connection { stream, who, account, part } = connection;
        let visitor = |is_local| Visitor::new(who, is_local, account, part);
        match stream {
            // They are registered with the runtime that accepted them.
            DoorStream::Unix(stream) => {
                self.serve(|| UnixStream::from_std(stream.into_std()?), visitor(true));
            }
            DoorStream::Tcp(stream) => {
                self.serve(|| TcpStream::from_std(stream.into_std()?), visitor(false));
            }
        }
    }

    fn no_room(&self) -> &'static [u8] {
        NO_ROOM
    }

    fn stop(&self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        self.stopping.send_replace(true);
        self.tasks.close();
        let tasks = self.tasks.clone();
        Box::pin(async move { tasks.wait().await })
    }

    fn view(&self) -> DoorView {
        self.service.counters.view()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_finds_no_room_is_told_in_a_whole_answer() {
        let text = std::str::from_utf8(NO_ROOM).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("Content-Length: {}", body.len())), "{}", body.len());
    }
}
