//! A server that speaks HTTP/2 as far as to take requests, and answers none.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use parking_lot::Mutex;

use super::port::Port;

/// A request with a body of so many bytes is a large one.
const LARGE: usize = 8 << 10;
const DATA: u8 = 0;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const ACK: u8 = 1;

/// Bytes of its body that each open request has sent, by connection and stream.
type Streams = Arc<Mutex<HashMap<(u64, u32), usize>>>;

/// The server; its threads end with their connections.
pub(crate) struct H2Sink {
    port: Port,
    streams: Streams,
}

impl H2Sink {
    /// Takes connections on a port of its own.
    pub(crate) fn start() -> Self {
        let port = Port::lease();
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, port.number())).expect("the leased port");
        let streams = Streams::default();
        let all = Arc::clone(&streams);
        thread::spawn(move || {
            for (number, connection) in (0..).zip(listener.incoming()) {
                let (Ok(connection), streams) = (connection, Arc::clone(&all)) else { return };
                thread::spawn(move || {
                    drop(swallow(connection, number, &streams));
                    streams.lock().retain(|(of, _), _| *of != number);
                });
            }
        });
        Self { port, streams }
    }

    /// Its address.
    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port.number())
    }

    /// How many requests with a large body are open.
    pub(crate) fn large_streams(&self) -> u64 {
        let streams = self.streams.lock();
        streams.values().filter(|bytes| **bytes >= LARGE).count() as u64
    }
}

/// Reads what comes over one connection until it ends.
fn swallow(mut connection: TcpStream, number: u64, streams: &Streams) -> io::Result<()> {
    connection.read_exact(&mut [0; 24])?;
    connection.write_all(&frame(SETTINGS, 0, 0, &[]))?;
    loop {
        let mut head = [0; 9];
        connection.read_exact(&mut head)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let mut payload = vec![0; length as usize];
        connection.read_exact(&mut payload)?;
        match (head[3], head[4] & ACK) {
            (DATA, _) => {
                *streams.lock().entry((number, stream)).or_default() += payload.len();
                if length > 0 {
                    let more = length.to_be_bytes();
                    connection.write_all(&frame(WINDOW_UPDATE, 0, 0, &more))?;
                    connection.write_all(&frame(WINDOW_UPDATE, 0, stream, &more))?;
                }
            }
            (RST_STREAM, _) => drop(streams.lock().remove(&(number, stream))),
            (SETTINGS, 0) => connection.write_all(&frame(SETTINGS, ACK, 0, &[]))?,
            (PING, 0) => connection.write_all(&frame(PING, ACK, 0, &payload))?,
            _ => {}
        }
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a small frame").to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}
