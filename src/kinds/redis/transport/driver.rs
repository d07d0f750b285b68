//! Drives one connection: requests out, replies back in the same order.
//!
//! One task owns the socket. What callers hand over is gathered and written together; replies are given
//! out first in, first out. **A caller that left keeps its place**: its reply is read and thrown away,
//! so that no reply ever reaches another's call, and a connection whose oldest request has gone
//! unanswered for the backend's `timeout` is never used again but reset.
//!
//! **What it holds**: small commands are gathered in one buffer of [`OUTBOX_MAX`] bytes; a large one goes out of the
//! bytes that its caller brought, alone, and is not copied. While there is either, nothing more is taken. What waits
//! in the channel, and what was written and not answered, is bounded by the [link's room](super::link).

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use fusebox_actors::connector::{Aboard, Fate};
use fusebox_state::Verdict;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf},
    sync::{Notify, OwnedSemaphorePermit, mpsc, oneshot},
    time::{Instant, sleep_until},
};

use super::handshake::Dialogue;
use crate::{
    kinds::redis::protocol::{outcome, resp::FrameFinder},
    net::dial::Stream,
};

/// No more requests are taken while so many bytes wait to be written.
const OUTBOX_MAX: usize = 256 * 1024;
/// What is larger goes out as it came, without a copy.
const COPIED_MAX: usize = 16 * 1024;
/// So many orders are taken from the channel at once.
const TAKEN_MAX: usize = 64;
/// How much is read at once at least.
const READ_SIZE: usize = 16 * 1024;

/// What a connection is asked to do.
#[derive(Debug)]
pub(crate) enum Order {
    /// Carry this.
    Call(Request),
    /// Take no more and end once what was sent is answered.
    Retire,
}

/// A command, and the receiver of its reply.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) command: Bytes,
    pub(crate) reply: oneshot::Sender<Ended>,
    /// When it was handed over: it is overdue one `timeout` later.
    pub(crate) begun: Instant,
    /// What it holds until it is answered, whoever waits for it.
    pub(crate) aboard: Aboard,
    /// Its room on the link.
    pub(crate) room: Option<OwnedSemaphorePermit>,
}

/// How a request ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// With this reply, be it an error.
    Reply(Bytes),
    /// The connection ended first.
    Lost {
        /// Whether the whole command was handed to the kernel. If it was not, it is certain that it
        /// is never executed: a server runs only whole commands.
        sent: bool,
        cause: Cause,
    },
}

/// Why a connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// This very call was not answered within the backend's `timeout`.
    Overdue,
    /// It was reset for the sake of another call, or closed by the daemon.
    Shared,
    /// The other end closed it, or it broke.
    Broken(String),
}

struct Pending {
    reply: oneshot::Sender<Ended>,
    begun: Instant,
    /// The end of its bytes among all that were ever written here.
    end: u64,
    aboard: Aboard,
    room: Option<OwnedSemaphorePermit>,
}

/// One connection and what it owes.
pub(crate) struct Driver {
    reader: ReadHalf<Box<dyn Stream>>,
    writer: WriteHalf<Box<dyn Stream>>,
    inbox: BytesMut,
    finder: FrameFinder,
    orders: mpsc::UnboundedReceiver<Order>,
    /// Taken from the channel, and not begun.
    waiting: VecDeque<Order>,
    /// Notified when it is to end now.
    close: Arc<Notify>,
    debts: Debts,
    timeout: Duration,
}

/// What is owed to callers, once the socket is gone.
pub(crate) struct Debts {
    pending: VecDeque<Pending>,
    /// Came after the order to end.
    refused: Vec<Request>,
    outbox: BytesMut,
    /// What is left of a large command, which follows the outbox; empty for none.
    large: Bytes,
    appended: u64,
    cause: Cause,
    now: Instant,
    timeout: Duration,
}

enum Event {
    Orders(usize),
    /// Bytes were handed over, or (`None`) all that were are on their way.
    Written(std::io::Result<Option<usize>>),
    Read(std::io::Result<usize>),
    Due,
    Close,
}

impl Driver {
    pub(crate) fn new(
        dialogue: Dialogue,
        orders: mpsc::UnboundedReceiver<Order>,
        close: Arc<Notify>,
        timeout: Duration,
    ) -> Self {
        let Dialogue { stream, inbox, finder } = dialogue;
        let (reader, writer) = tokio::io::split(stream);
        let debts = Debts {
            pending: VecDeque::new(),
            refused: Vec::new(),
            outbox: BytesMut::new(),
            large: Bytes::new(),
            appended: 0,
            cause: Cause::Shared,
            now: Instant::now(),
            timeout,
        };
        let waiting = VecDeque::new();
        Self { reader, writer, inbox, finder, orders, waiting, close, debts, timeout }
    }

    /// Carries requests until the connection ends. The socket is closed when this returns; what is
    /// left is what [`Debts::settle`] tells the callers.
    pub(crate) async fn run(mut self) -> (Debts, mpsc::UnboundedReceiver<Order>) {
        let cause = self.carry().await;
        self.debts.cause = cause;
        self.debts.now = Instant::now();
        let refused = self.waiting.into_iter().filter_map(|order| match order {
            Order::Call(request) => Some(request),
            Order::Retire => None,
        });
        self.debts.refused.extend(refused);
        (self.debts, self.orders)
    }

    async fn carry(&mut self) -> Cause {
        let mut taken = Vec::with_capacity(TAKEN_MAX);
        let (mut flushed, mut retiring) = (true, false);
        let due = sleep_until(self.debts.now);
        tokio::pin!(due);
        let mut armed = false;
        loop {
            if let Some(oldest) = self.debts.pending.front()
                && !armed
            {
                due.as_mut().reset(oldest.begun + self.timeout);
                armed = true;
            } else if retiring && self.debts.pending.is_empty() {
                return Cause::Shared;
            }
            let outgoing = self.debts.outgoing() > 0;
            let taking = !retiring && self.debts.has_room() && self.waiting.is_empty();
            self.inbox.reserve(READ_SIZE);
            let event = tokio::select! {
                count = self.orders.recv_many(&mut taken, TAKEN_MAX), if taking => Event::Orders(count),
                written = write(&mut self.writer, &mut self.debts.outbox, &mut self.debts.large), if outgoing || !flushed => Event::Written(written),
                read = self.reader.read_buf(&mut self.inbox) => Event::Read(read),
                () = &mut due, if armed => Event::Due,
                () = self.close.notified() => Event::Close,
            };
            match event {
                Event::Orders(0) | Event::Close => return Cause::Shared,
                Event::Orders(_) => {
                    self.waiting.extend(taken.drain(..));
                    self.begin(&mut retiring);
                }
                Event::Written(Ok(Some(1..))) => {
                    flushed = false;
                    if self.debts.large.is_empty() {
                        // An empty remainder would hold on to the whole.
                        self.debts.large = Bytes::new();
                    }
                    self.begin(&mut retiring);
                }
                Event::Written(Ok(None)) => flushed = true,
                Event::Read(Ok(1..)) => {
                    if let Err(cause) = self.give_out() {
                        return cause;
                    }
                }
                Event::Read(Ok(0)) => {
                    return Cause::Broken("the server closed the connection".to_owned());
                }
                Event::Written(Ok(Some(0))) => {
                    return Cause::Broken("nothing can be written".to_owned());
                }
                Event::Written(Err(error)) | Event::Read(Err(error)) => {
                    return Cause::Broken(error.to_string());
                }
                Event::Due => {
                    armed = false;
                    let oldest = self.debts.pending.front();
                    if oldest.is_some_and(|oldest| oldest.begun + self.timeout <= Instant::now()) {
                        return Cause::Overdue;
                    }
                }
            }
        }
    }

    /// Begins what was taken, for as long as there is room for it.
    fn begin(&mut self, retiring: &mut bool) {
        while (self.debts.has_room() || *retiring)
            && let Some(order) = self.waiting.pop_front()
        {
            match order {
                Order::Call(request) if *retiring => self.debts.refused.push(request),
                Order::Call(request) => self.debts.take(request),
                Order::Retire => *retiring = true,
            }
        }
    }

    /// Gives the replies that have come to those who are owed them.
    fn give_out(&mut self) -> Result<(), Cause> {
        loop {
            match self.finder.next(&mut self.inbox) {
                Ok(Some(frame)) if frame.starts_with(b">") => {}
                Ok(Some(frame)) => {
                    let fate = self.debts.pending.front().map(|pending| pending.aboard.fate());
                    if fate == Some(Fate::Lost) {
                        // It has not come: the connection ends with it unanswered, as a broken one does.
                        return Err(Cause::Broken(Fate::LOST.to_owned()));
                    }
                    let Some(pending) = self.debts.pending.pop_front() else {
                        return Err(Cause::Broken("a reply to no request".to_owned()));
                    };
                    if fate == Some(Fate::Late) {
                        tokio::spawn(pending.never_answers(self.timeout));
                        continue;
                    }
                    let Pending { reply, aboard, room, .. } = pending;
                    aboard.ended(match frame.first() {
                        Some(b'-' | b'!') => outcome::of(frame.clone()).verdict,
                        _ => Verdict::Success,
                    });
                    drop(room);
                    // A caller that left has no need of it.
                    drop(reply.send(Ended::Reply(frame)));
                }
                Ok(None) => return Ok(()),
                Err(error) => return Err(Cause::Broken(error.to_string())),
            }
        }
    }
}

impl Pending {
    /// Its answer has come and been thrown away, so that nothing of it can land any more. Its caller hears that it was
    /// not answered when its time is over; until then it keeps what it holds.
    async fn never_answers(self, timeout: Duration) {
        let Self { reply, begun, aboard, room, .. } = self;
        sleep_until(begun + timeout).await;
        aboard.ended(Verdict::Failure);
        drop(room);
        drop(reply.send(Ended::Lost { sent: true, cause: Cause::Overdue }));
    }
}

/// Hands over what there is to write, or sees to it that what was handed over leaves.
async fn write(
    writer: &mut WriteHalf<Box<dyn Stream>>,
    outbox: &mut BytesMut,
    large: &mut Bytes,
) -> std::io::Result<Option<usize>> {
    if !outbox.is_empty() {
        return writer.write_buf(outbox).await.map(Some);
    }
    if !large.is_empty() {
        return writer.write_buf(large).await.map(Some);
    }
    writer.flush().await.map(|()| None)
}

impl Debts {
    fn take(&mut self, request: Request) {
        let Request { command, reply, begun, aboard, room } = request;
        self.appended += command.len() as u64;
        if command.len() > COPIED_MAX {
            self.large = command;
        } else {
            self.outbox.extend_from_slice(&command);
        }
        self.pending.push_back(Pending { reply, begun, end: self.appended, aboard, room });
    }

    /// Whether one more may be taken.
    fn has_room(&self) -> bool {
        self.large.is_empty() && self.outbox.len() < OUTBOX_MAX
    }

    /// Bytes that were not handed to the kernel yet.
    fn outgoing(&self) -> u64 {
        (self.outbox.len() + self.large.len()) as u64
    }

    /// Whether anything that was sent has not been answered.
    pub(crate) fn in_doubt(&self) -> bool {
        let handed = self.appended - self.outgoing();
        self.pending.iter().any(|pending| pending.end <= handed)
    }

    /// Why the connection ended.
    pub(crate) fn cause(&self) -> &Cause {
        &self.cause
    }

    /// Tells every caller how its request ended: those that were overdue that they were, those that
    /// merely shared the connection that they did.
    pub(crate) fn settle(self, mut orders: mpsc::UnboundedReceiver<Order>) {
        orders.close();
        let handed = self.appended - self.outgoing();
        for pending in self.pending {
            let cause = match &self.cause {
                Cause::Overdue if pending.begun + self.timeout > self.now => Cause::Shared,
                cause => cause.clone(),
            };
            let sent = pending.end <= handed;
            let Pending { reply, aboard, room, .. } = pending;
            aboard.ended(match (&self.cause, &cause) {
                (_, Cause::Overdue) => Verdict::Failure,
                // The server answered nobody for a whole `timeout`, and this one's caller did not wait for more.
                (Cause::Overdue, _) if reply.is_closed() => Verdict::Failure,
                (_, Cause::Broken(_)) if sent => Verdict::Failure,
                _ => Verdict::Neutral,
            });
            drop(room);
            drop(reply.send(Ended::Lost { sent, cause }));
        }
        let mut refused = self.refused;
        while let Ok(order) = orders.try_recv() {
            if let Order::Call(request) = order {
                refused.push(request);
            }
        }
        for request in refused {
            drop(request.reply.send(Ended::Lost { sent: false, cause: Cause::Shared }));
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{DuplexStream, duplex};

    use super::*;

    const LIMIT: Duration = Duration::from_millis(200);

    /// A driver on a pipe that holds `size` bytes, with its other end.
    fn driver(size: usize) -> (mpsc::UnboundedSender<Order>, DuplexStream, Running) {
        let (ours, theirs) = duplex(size);
        let dialogue = Dialogue {
            stream: Box::new(ours),
            inbox: BytesMut::new(),
            finder: FrameFinder::default(),
        };
        let (orders, received) = mpsc::unbounded_channel();
        let running = tokio::spawn(async move {
            let (debts, orders) =
                Driver::new(dialogue, received, Arc::default(), LIMIT).run().await;
            let in_doubt = debts.in_doubt();
            debts.settle(orders);
            in_doubt
        });
        (orders, theirs, running)
    }

    type Running = tokio::task::JoinHandle<bool>;

    fn send(orders: &mpsc::UnboundedSender<Order>, command: &[u8]) -> oneshot::Receiver<Ended> {
        let (reply, receiver) = oneshot::channel();
        let command = Bytes::copy_from_slice(command);
        let (begun, aboard) = (Instant::now(), Aboard::NOBODY);
        orders.send(Order::Call(Request { command, reply, begun, aboard, room: None })).unwrap();
        receiver
    }

    #[track_caller]
    fn lost(ended: Ended) -> (bool, Cause) {
        let Ended::Lost { sent, cause } = ended else { panic!("{ended:?}") };
        (sent, cause)
    }

    #[tokio::test]
    async fn what_was_not_handed_over_to_its_last_byte_was_not_sent() {
        let (orders, theirs, running) = driver(10);
        let whole = send(&orders, b"12345");
        let partly = send(&orders, b"123456");
        let not_at_all = send(&orders, b"1");
        assert_eq!(lost(whole.await.unwrap()), (true, Cause::Overdue));
        assert!(!lost(partly.await.unwrap()).0);
        assert!(!lost(not_at_all.await.unwrap()).0);
        assert!(running.await.unwrap(), "the first is in doubt");
        drop(theirs);
    }

    #[tokio::test]
    async fn what_is_large_is_written_whole_and_in_its_turn_and_no_more_is_taken_meanwhile() {
        let (orders, mut theirs, _running) = driver(1_024);
        let large = vec![b'l'; COPIED_MAX + 1];
        let calls = [&b"first"[..], &large, b"second", &large, b"third"];
        let waiting: Vec<_> = calls.iter().map(|call| send(&orders, call)).collect();
        let expected = calls.concat();
        let mut came = vec![0; expected.len()];
        theirs.read_exact(&mut came).await.unwrap();
        assert!(came == expected, "in another order, or something else");
        theirs.write_all(&b"+OK\r\n".repeat(calls.len())).await.unwrap();
        for reply in waiting {
            assert!(matches!(reply.await.unwrap(), Ended::Reply(_)));
        }
    }

    #[tokio::test]
    async fn what_holds_its_command_is_let_go_once_it_is_written() {
        struct Weighed {
            bytes: Vec<u8>,
            _held: Arc<()>,
        }
        impl AsRef<[u8]> for Weighed {
            fn as_ref(&self) -> &[u8] {
                &self.bytes
            }
        }
        let (orders, mut theirs, _running) = driver(1_024);
        let weight = Arc::new(());
        let command = Bytes::from_owner(Weighed {
            bytes: vec![0; COPIED_MAX + 1],
            _held: Arc::clone(&weight),
        });
        let ((reply, _receiver), aboard) = (oneshot::channel(), Aboard::NOBODY);
        let request = Request { command, reply, begun: Instant::now(), aboard, room: None };
        orders.send(Order::Call(request)).unwrap();
        theirs.read_exact(&mut vec![0; COPIED_MAX + 1]).await.unwrap();
        while Arc::strong_count(&weight) > 1 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_reply_that_trickles_without_end_is_overdue() {
        let (orders, mut theirs, running) = driver(4096);
        let call = send(&orders, b"1");
        let trickle = tokio::spawn(async move {
            theirs.write_all(b"$1000000\r\n").await.unwrap();
            while theirs.write_all(b"x").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        assert_eq!(lost(call.await.unwrap()), (true, Cause::Overdue));
        assert!(running.await.unwrap());
        trickle.await.unwrap();
    }

    #[tokio::test]
    async fn replies_go_out_in_order_past_those_that_left_and_past_what_is_pushed() {
        let (orders, mut theirs, _running) = driver(4096);
        let (first, second, third) =
            (send(&orders, b"1"), send(&orders, b"2"), send(&orders, b"3"));
        drop(second);
        theirs.read_exact(&mut [0; 3]).await.unwrap();
        theirs.write_all(b":1\r\n>1\r\n+news\r\n:2\r\n:3\r\n").await.unwrap();
        let Ended::Reply(reply) = first.await.unwrap() else { panic!("a reply") };
        assert_eq!(reply, ":1\r\n");
        let Ended::Reply(reply) = third.await.unwrap() else { panic!("a reply") };
        assert_eq!(reply, ":3\r\n");
    }

    #[tokio::test]
    async fn what_is_no_resp_or_answers_nothing_ends_the_connection() {
        for bytes in [&b"$-2\r\n"[..], b"+OK\r\n+OK\r\n"] {
            let (orders, mut theirs, running) = driver(4096);
            let call = send(&orders, b"1");
            theirs.read_u8().await.unwrap();
            theirs.write_all(bytes).await.unwrap();
            match call.await.unwrap() {
                Ended::Reply(reply) => assert_eq!(reply, "+OK\r\n"),
                ended @ Ended::Lost { .. } => assert!(matches!(lost(ended), (_, Cause::Broken(_)))),
            }
            running.await.unwrap();
            assert!(orders.is_closed());
        }
    }

    #[tokio::test]
    async fn one_that_retires_answers_what_was_sent_and_takes_no_more() {
        let (orders, mut theirs, running) = driver(4096);
        let sent = send(&orders, b"1");
        assert_eq!(theirs.read_u8().await.unwrap(), b'1');
        orders.send(Order::Retire).unwrap();
        let late = send(&orders, b"2");
        theirs.write_all(b":1\r\n").await.unwrap();
        assert!(matches!(sent.await.unwrap(), Ended::Reply(_)));
        assert!(!running.await.unwrap(), "nothing is in doubt");
        assert_eq!(lost(late.await.unwrap()), (false, Cause::Shared));
    }
}
