//! A network between two ends on one machine.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

/// A network of some length in front of a server, as long for many bytes as for few. Returns its port.
pub(crate) fn network(server: u16, one_way: Duration) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let port = listener.local_addr().expect("its address").port();
    thread::spawn(move || {
        for near in listener.incoming() {
            let near = near.expect("a connection");
            let far = TcpStream::connect((Ipv4Addr::LOCALHOST, server)).expect("the server");
            let clone = |stream: &TcpStream| {
                stream.set_nodelay(true).expect("no delay");
                stream.try_clone().expect("a second handle to a socket")
            };
            carry(clone(&near), clone(&far), one_way);
            carry(far, near, one_way);
        }
    });
    port
}

/// Carries bytes one way until either end has gone.
fn carry(mut from: TcpStream, mut to: TcpStream, one_way: Duration) {
    if one_way.is_zero() {
        thread::spawn(move || {
            io::copy(&mut from, &mut to).ok();
            to.shutdown(Shutdown::Both).ok();
        });
        return;
    }
    let (sender, receiver) = mpsc::channel::<(Instant, Vec<u8>)>();
    thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(read @ 1..) = from.read(&mut buffer) {
            let due = Instant::now() + one_way;
            if sender.send((due, buffer[..read].to_vec())).is_err() {
                return;
            }
        }
    });
    thread::spawn(move || {
        for (due, bytes) in receiver {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            if to.write_all(&bytes).is_err() {
                break;
            }
        }
        to.shutdown(Shutdown::Both).ok();
    });
}
