//! Servers that cost next to nothing, each in one thread of its own.

use std::{net::Ipv4Addr, thread};

use bytes::Bytes;
use googleapis_tonic_google_firestore_v1::google::firestore::v1::{
    BatchGetDocumentsResponse, batch_get_documents_response::Result as Got,
};
use hyper::{HeaderMap, Request, Response, header::HeaderValue};
use prost::Message;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::Builder,
};

use crate::stub::{document, name};

/// How long the answer to `/large` is.
pub(crate) const LARGE: usize = 16 << 20;
const PIECE: usize = 64 << 10;

/// Serves connections on a thread of its own, until the process ends. Returns the port.
fn listen<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> u16
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let port = listener.local_addr().expect("its address").port();
    listener.set_nonblocking(true).expect("a listener that does not block");
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    thread::spawn(move || {
        runtime.block_on(async {
            let listener = TcpListener::from_std(listener).expect("a listener");
            while let Ok((stream, _)) = listener.accept().await {
                stream.set_nodelay(true).expect("no delay");
                drop(tokio::spawn(serve(stream)));
            }
        });
    });
    port
}

/// Answers every request over HTTP/1 as soon as it has read it.
pub(crate) fn http() -> u16 {
    listen(|stream| async { answer(stream).await.unwrap_or_default() })
}

async fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    let piece = vec![b'x'; PIECE];
    let mut read = Vec::with_capacity(1 << 12);
    loop {
        let end = loop {
            if let Some(at) = read.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            if stream.read_buf(&mut read).await? == 0 {
                return Ok(());
            }
        };
        let head = String::from_utf8_lossy(&read[..end]).to_ascii_lowercase();
        let (_, length) = head.split_once("content-length: ").expect("a length");
        let length: usize = length.lines().next().unwrap_or_default().parse().expect("a number");
        while read.len() < end + length {
            if stream.read_buf(&mut read).await? == 0 {
                return Ok(());
            }
        }
        read.drain(..end + length);
        if head.starts_with("post /pieces?") {
            // As ClickHouse answers a SELECT: its head, its rows, its end.
            let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
            for piece in [&head[..], b"2\r\n1\n\r\n", b"0\r\n\r\n"] {
                stream.write_all(piece).await?;
            }
        } else if head.starts_with("post /large ") {
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {LARGE}\r\n\r\n");
            stream.write_all(head.as_bytes()).await?;
            for _ in 0..LARGE / PIECE {
                stream.write_all(&piece).await?;
            }
        } else {
            // With the headers that ClickHouse sends.
            let answer = b"HTTP/1.1 200 OK\r\nDate: Sun, 29 Nov 2026 00:00:00 GMT\r\nConnection: Keep-Alive\r\n\
                Content-Type: text/tab-separated-values; charset=UTF-8\r\nContent-Length: 2\r\n\r\n1\n";
            stream.write_all(answer).await?;
        }
    }
}

/// Answers every request over gRPC with one document.
pub(crate) fn grpc() -> u16 {
    let got = BatchGetDocumentsResponse {
        result: Some(Got::Found(document(name("bench", 0), 1))),
        ..Default::default()
    };
    let got = got.encode_to_vec();
    let length = u32::try_from(got.len()).expect("a short message");
    let message: Bytes = [&[0][..], &length.to_be_bytes(), &got].concat().into();
    listen(move |stream| {
        let message = message.clone();
        async move {
            let mut connection = h2::server::handshake(stream).await.expect("a connection");
            while let Some(Ok((request, respond))) = connection.accept().await {
                let message = message.clone();
                drop(tokio::spawn(async move {
                    // Whoever has gone needs no answer.
                    drop(reply(request, respond, message).await);
                }));
            }
        }
    })
}

async fn reply(
    request: Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
    message: Bytes,
) -> Result<(), h2::Error> {
    let mut body = request.into_body();
    while let Some(piece) = body.data().await {
        body.flow_control().release_capacity(piece?.len())?;
    }
    let head = Response::builder().header("content-type", "application/grpc").body(());
    let mut stream = respond.send_response(head.expect("a head"), false)?;
    stream.send_data(message, false)?;
    let ok =
        [(hyper::header::HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"))];
    stream.send_trailers(HeaderMap::from_iter(ok))
}
