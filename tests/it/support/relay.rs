//! A network between the daemon and a server that can be broken on demand.
//!
//! ```text
//! client ──► relay ──► server      held bytes wait here, as in a network that has stalled; released,
//!                                  they arrive even if their sender has long gone
//! ```

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use parking_lot::{Condvar, Mutex};

use super::port::Port;

/// A TCP relay on loopback in front of one server.
pub(crate) struct Relay {
    port: Port,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

struct Shared {
    server_port: u16,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    door: Door,
    /// Whether the port is bound: follows `door` once the acceptor has seen it.
    listening: bool,
    hold_new: bool,
    /// The answers of a connection over which this was sent are lost.
    lost: Option<String>,
    connections: HashMap<u64, Connection>,
    next_id: u64,
}

#[derive(Clone, Copy, PartialEq)]
enum Door {
    Open,
    /// The port answers nothing: who connects waits.
    Silent,
    Refusing,
    Stopped,
}

struct Connection {
    client: TcpStream,
    server: TcpStream,
    hold: bool,
    /// What the client sent and the server has not got yet.
    held: Vec<u8>,
    /// Whether the server's answers are lost.
    deaf: bool,
}

impl Relay {
    /// Relays to the server on loopback's `server_port`, holding nothing.
    pub(crate) fn start(server_port: u16) -> Self {
        let port = Port::lease();
        let state = State {
            door: Door::Open,
            listening: false,
            hold_new: false,
            lost: None,
            connections: HashMap::new(),
            next_id: 0,
        };
        let changed = Condvar::new();
        let shared = Arc::new(Shared { server_port, state: Mutex::new(state), changed });
        let acceptor = thread::spawn({
            let (shared, port) = (Arc::clone(&shared), port.number());
            move || accept(&shared, port)
        });
        let relay = Self { port, shared, acceptor: Some(acceptor) };
        relay.set_door(Door::Open);
        relay
    }

    /// The relay's own port, to be used instead of the server's.
    pub(crate) fn port(&self) -> u16 {
        self.port.number()
    }

    /// Holds what clients send from now on, over the connections that are there and over new ones.
    /// Answers still pass.
    pub(crate) fn hold_client_bytes(&self) {
        self.set_hold(true, true);
    }

    /// Lets connections that are opened from now on through; those that are held stay held.
    pub(crate) fn let_new_through(&self) {
        self.shared.state.lock().hold_new = false;
    }

    /// Delivers what is held, also what a client sent that has closed its connection since, and holds
    /// nothing any more.
    pub(crate) fn release(&self) {
        self.set_hold(false, false);
    }

    /// Loses the answers of a connection from the moment on at which `bytes` have been sent over it, until
    /// [`release`](Self::release): the server acts, and nobody learns of it.
    pub(crate) fn lose_answers_to(&self, bytes: &str) {
        self.shared.state.lock().lost = Some(bytes.to_owned());
    }

    /// Whether `bytes` are among what one connection holds.
    pub(crate) fn holds(&self, bytes: &str) -> bool {
        let state = self.shared.state.lock();
        state.connections.values().any(|connection| contain(&connection.held, bytes))
    }

    /// Breaks every connection; what they held is lost.
    pub(crate) fn drop_connections(&self) {
        for (_, connection) in self.shared.state.lock().connections.drain() {
            connection.break_off();
        }
        self.shared.changed.notify_all();
    }

    /// Refuses new connections; those that are there stay.
    pub(crate) fn refuse(&self) {
        self.set_door(Door::Refusing);
    }

    /// Loses everything, as a network does that has gone: what clients send over the connections that are there,
    /// and also whoever tries to open one. What was sent before is answered yet.
    pub(crate) fn lose_everything(&self) {
        self.hold_client_bytes();
        self.set_door(Door::Silent);
    }

    /// Accepts connections again.
    pub(crate) fn accept_again(&self) {
        self.set_door(Door::Open);
    }

    fn set_hold(&self, hold: bool, hold_new: bool) {
        let mut state = self.shared.state.lock();
        state.hold_new = hold_new;
        if !hold {
            state.lost = None;
        }
        state.connections.values_mut().for_each(|connection| connection.hold = hold);
        self.shared.changed.notify_all();
    }

    /// Sets the door and returns once the acceptor has followed.
    fn set_door(&self, door: Door) {
        let mut state = self.shared.state.lock();
        state.door = door;
        self.shared.changed.notify_all();
        if door != Door::Open && state.listening {
            // The acceptor waits in `accept`: one more connection makes it look.
            drop(TcpStream::connect(self.port.address()));
        }
        while state.listening != (door == Door::Open) {
            self.shared.changed.wait(&mut state);
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.set_door(Door::Stopped);
        self.drop_connections();
        if let Some(acceptor) = self.acceptor.take() {
            acceptor.join().expect("the relay's acceptor does not panic");
        }
    }
}

impl Connection {
    /// Closes both ends as they are; one that is closed already is what was wanted.
    fn break_off(&self) {
        self.client.shutdown(Shutdown::Both).ok();
        self.server.shutdown(Shutdown::Both).ok();
    }
}

impl Shared {
    /// Waits until the door is open; false once the relay has stopped.
    fn wait_for_door(&self) -> bool {
        let mut state = self.state.lock();
        while state.door == Door::Refusing {
            self.changed.wait(&mut state);
        }
        state.door == Door::Open
    }

    /// Waits until the port is to answer or to refuse.
    fn wait_in_silence(&self) {
        let mut state = self.state.lock();
        while state.door == Door::Silent {
            self.changed.wait(&mut state);
        }
    }

    fn set_listening(&self, listening: bool) {
        self.state.lock().listening = listening;
        self.changed.notify_all();
    }

    /// Takes `bytes` in and returns them once they may go on, or nothing once the connection is dropped.
    fn pass(&self, id: u64, bytes: &[u8]) -> Option<Vec<u8>> {
        let mut state = self.state.lock();
        state.connections.get_mut(&id)?.held.extend_from_slice(bytes);
        while state.connections.get(&id)?.hold {
            self.changed.wait(&mut state);
        }
        let lost = state.lost.clone();
        let connection = state.connections.get_mut(&id)?;
        connection.deaf |= lost.is_some_and(|lost| contain(&connection.held, &lost));
        Some(std::mem::take(&mut connection.held))
    }

    fn is_deaf(&self, id: u64) -> bool {
        self.state.lock().connections.get(&id).is_some_and(|connection| connection.deaf)
    }

    fn remove(&self, id: u64) {
        if let Some(connection) = self.state.lock().connections.remove(&id) {
            connection.break_off();
        }
    }
}

fn accept(shared: &Arc<Shared>, port: u16) {
    while shared.wait_for_door() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).expect("the leased port");
        shared.set_listening(true);
        for client in listener.incoming() {
            if shared.state.lock().door == Door::Silent {
                fall_silent(shared, &listener);
            }
            if shared.state.lock().door != Door::Open {
                break;
            }
            if let Ok(client) = client {
                relay(shared, client);
            }
        }
        drop(listener);
        shared.set_listening(false);
    }
}

/// Leaves the port without an answer until the door says otherwise. The kernel drops who knocks at a listener whose
/// queue is full, and one who waits in it fills this one's.
fn fall_silent(shared: &Shared, listener: &TcpListener) {
    let set_room = |room| uapi::listen(listener.as_raw_fd(), room).expect("a listening socket");
    let in_the_way = TcpStream::connect(listener.local_addr().expect("a bound socket"));
    set_room(0);
    shared.set_listening(false);
    shared.wait_in_silence();
    drop(in_the_way);
    set_room(128);
    shared.set_listening(true);
}

/// Connects a client to the server; if the server refuses, the client is closed.
fn relay(shared: &Arc<Shared>, client: TcpStream) {
    let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, shared.server_port)) else { return };
    client.set_nodelay(true).ok();
    server.set_nodelay(true).ok();
    let clone = |stream: &TcpStream| stream.try_clone().expect("a second handle to a socket");
    let upwards = (clone(&client), clone(&server));
    let downwards = (clone(&server), clone(&client));
    let mut state = shared.state.lock();
    let (id, hold) = (state.next_id, state.hold_new);
    state.next_id += 1;
    state
        .connections
        .insert(id, Connection { client, server, hold, held: Vec::new(), deaf: false });
    drop(state);
    let (up, down) = (Arc::clone(shared), Arc::clone(shared));
    thread::spawn(move || pump_up(&up, id, upwards.0, upwards.1));
    thread::spawn(move || pump_down(&down, id, downwards.0, downwards.1));
}

/// Carries what the client sends. That the client has gone reaches the server after its bytes.
fn pump_up(shared: &Shared, id: u64, mut client: TcpStream, mut server: TcpStream) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = client.read(&mut buffer).unwrap_or(0);
        let Some(bytes) = shared.pass(id, &buffer[..read]) else { return };
        if read == 0 || server.write_all(&bytes).is_err() {
            return shared.remove(id);
        }
    }
}

/// Carries answers. A client that has gone is not the server's to know of here: its bytes may be held.
fn pump_down(shared: &Shared, id: u64, mut server: TcpStream, mut client: TcpStream) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = server.read(&mut buffer).unwrap_or(0);
        if read == 0 {
            client.shutdown(Shutdown::Both).ok();
            return;
        }
        if !shared.is_deaf(id) && client.write_all(&buffer[..read]).is_err() {
            return;
        }
    }
}

fn contain(bytes: &[u8], part: &str) -> bool {
    bytes.windows(part.len()).any(|window| window == part.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::net::{TcpListener, TcpStream};
    use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
    use std::thread;
    use std::time::Duration;

    use super::Relay;
    use crate::support::poll::eventually;

    const LONG: Duration = Duration::from_secs(5);
    const SHORT: Duration = Duration::from_millis(100);

    /// A server that tells each line that it got, and the port that it has.
    fn server() -> (u16, Receiver<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (heard, lines) = channel();
        thread::spawn(move || {
            for client in listener.incoming() {
                let heard = heard.clone();
                thread::spawn(move || {
                    let lines = BufReader::new(client.unwrap()).lines().map_while(Result::ok);
                    lines.for_each(|line| drop(heard.send(line)));
                });
            }
        });
        (port, lines)
    }

    fn connect(relay: &Relay) -> TcpStream {
        TcpStream::connect(("127.0.0.1", relay.port())).unwrap()
    }

    #[test]
    fn held_bytes_arrive_after_newer_ones_though_their_sender_is_gone() {
        let (port, lines) = server();
        let relay = Relay::start(port);
        let mut old = connect(&relay);
        relay.hold_client_bytes();
        old.write_all(b"old\n").unwrap();
        eventually("the relay holds them", LONG, || relay.holds("old"));
        drop(old);
        relay.let_new_through();
        connect(&relay).write_all(b"new\n").unwrap();
        assert_eq!(lines.recv_timeout(LONG).unwrap(), "new");
        assert_eq!(lines.recv_timeout(SHORT), Err(RecvTimeoutError::Timeout));
        relay.release();
        assert_eq!(lines.recv_timeout(LONG).unwrap(), "old");
        eventually("nothing is held", LONG, || !relay.holds("old"));
    }

    #[test]
    fn what_a_dropped_connection_held_is_lost() {
        let (port, lines) = server();
        let relay = Relay::start(port);
        let mut client = connect(&relay);
        relay.hold_client_bytes();
        client.write_all(b"x\n").unwrap();
        eventually("the relay holds them", LONG, || relay.holds("x"));
        relay.drop_connections();
        relay.release();
        assert_eq!(lines.recv_timeout(SHORT), Err(RecvTimeoutError::Timeout));
        let mut answer = String::new();
        assert_eq!(BufReader::new(client).read_line(&mut answer).unwrap_or(0), 0, "{answer}");
    }

    #[test]
    fn who_connects_to_what_is_silent_waits_and_gets_through_once_it_is_back() {
        let (port, lines) = server();
        let relay = Relay::start(port);
        let mut old = connect(&relay);
        relay.lose_everything();
        old.write_all(b"old\n").unwrap();
        let address = ([127, 0, 0, 1], relay.port()).into();
        let tried = TcpStream::connect_timeout(&address, 3 * SHORT);
        assert_eq!(tried.unwrap_err().kind(), std::io::ErrorKind::TimedOut);
        assert_eq!(lines.recv_timeout(SHORT), Err(RecvTimeoutError::Timeout));
        relay.accept_again();
        relay.release();
        assert_eq!(lines.recv_timeout(LONG).unwrap(), "old");
        connect(&relay).write_all(b"new\n").unwrap();
        assert_eq!(lines.recv_timeout(LONG).unwrap(), "new");
        relay.lose_everything();
    }

    #[test]
    fn refuses_and_accepts_again() {
        let (port, lines) = server();
        let relay = Relay::start(port);
        relay.refuse();
        assert!(TcpStream::connect(("127.0.0.1", relay.port())).is_err());
        relay.accept_again();
        connect(&relay).write_all(b"x\n").unwrap();
        assert_eq!(lines.recv_timeout(LONG).unwrap(), "x");
    }
}
