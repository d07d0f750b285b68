//! Requests to the server's HTTP interface.
//!
//! A request is a statement and its data in the body, everything else in the query string. Connections
//! are kept and used again: see [`crate::net::http1`].

use std::{error::Error, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use fusebox_actors::connector::{AttemptError, ErrorCode, OwnCode, Tail};
use fusebox_state::{ErrorClass, Verdict, Words};
use futures_util::{StreamExt, stream};
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::{
    Method, Request, Response, Uri,
    body::Frame,
    header::{
        AUTHORIZATION, CONTENT_LENGTH, HOST, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER,
    },
};
use parking_lot::Mutex;
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};

use super::lent::{Lendings, Lent};
use crate::{
    kinds::clickhouse::{
        protocol::outcome::{Asked, Came, Exception},
        settings::ClickHouseSettings,
    },
    net::{
        http1::{Body, Heads, Lost, Pool, Rows},
        http1_dial::{DialError, Dialer},
        percent::encode,
    },
};

/// How long a password that was read from its file is used.
const PASSWORD_AGE_MAX: Duration = Duration::from_secs(1);
/// Longer than a body may stop.
const SENDERS_TURN: Duration = Duration::from_secs(3_600);
/// What is read of an error's text, and of the answer to a question of fusebox's own.
const TEXT_MAX: usize = 1 << 20;

/// How large the head of an answer to a client's request may be if many of its headers may be about progress, each of
/// about 150 bytes.
const LONG_HEADS: Heads = Heads { bytes: 1 << 20, headers: 8_192 };
/// Headers of an answer that are not about progress.
const USUAL_HEADERS: u128 = 64;
/// How often a server tells its progress unless it is asked for something else.
const PROGRESS: Duration = Duration::from_millis(100);

/// The rest of a call, and when its last piece was sent.
pub(crate) type Uploading = (Box<dyn Tail>, Arc<Mutex<Instant>>);

/// What is sent.
pub(crate) struct Outgoing {
    /// The query string's pairs.
    pub(crate) pairs: Vec<(String, String)>,
    /// The body, or its beginning.
    pub(crate) body: Vec<Bytes>,
    /// The body's rest, and the flag that a piece of it left.
    pub(crate) upload: Option<Uploading>,
    /// Headers: of the trace that it belongs to, and how the body is packed.
    pub(crate) headers: Vec<(&'static str, HeaderValue)>,
}

/// Why there is no response.
#[derive(Clone, Debug)]
pub(crate) struct Failed {
    pub(crate) error: AttemptError,
    pub(crate) verdict: Verdict,
}

impl Failed {
    /// Nothing was sent.
    pub(crate) fn not_executed(
        code: impl Into<ErrorCode>,
        message: impl Into<Words>,
        verdict: Verdict,
    ) -> Self {
        Self { error: AttemptError::own(ErrorClass::NotExecuted, code, message), verdict }
    }

    /// The connector is closed: nothing was sent.
    pub(crate) fn closed() -> Self {
        Self::not_executed(OwnCode::Closed, "the connector is closed", Verdict::Neutral)
    }

    /// No answer came within `time`.
    pub(crate) fn not_in_time(time: Duration) -> Self {
        let message = format!("no answer within {time:?}");
        Self {
            error: AttemptError::own(ErrorClass::Unknown, OwnCode::Timeout, message),
            verdict: Verdict::Failure,
        }
    }

    /// Of a question that had to be answered before the call could be sent: nothing of the call was.
    pub(crate) fn unsent(mut self) -> Self {
        self.error.doubt = None;
        if self.error.class == ErrorClass::Unknown {
            self.error.class = ErrorClass::NotExecuted;
        }
        self
    }
}

/// The way to one server.
pub(crate) struct Http {
    settings: Arc<ClickHouseSettings>,
    pool: Arc<Pool>,
    /// For requests of clients: the answers may have as large heads as [`heads`] says,
    of_clients: Arc<Pool>,
    /// or [`LONG_HEADS`].
    long_heads: Arc<Pool>,
    host: HeaderValue,
    password: tokio::sync::Mutex<Option<(Instant, HeaderValue)>>,
    closing: watch::Sender<bool>,
    /// What is under way and driven by others.
    lendings: Lendings,
}

/// How large the head of an answer may be that has to be here within `timeout`. It may be one that tells progress, if
/// the server does so unasked. Room for all its headers is made, and written to, for each answer.
fn heads(timeout: Duration) -> Heads {
    let headers = USUAL_HEADERS + timeout.as_millis() / PROGRESS.as_millis();
    let headers = usize::try_from(headers).unwrap_or(usize::MAX).min(LONG_HEADS.headers);
    Heads { headers, ..LONG_HEADS }
}

impl Http {
    /// Connects when it is first needed.
    pub(crate) fn new(settings: Arc<ClickHouseSettings>) -> Self {
        let pool = Pool::new(Dialer::new(settings.server()));
        let with_heads = |heads| Pool::with_heads(Dialer::new(settings.server()), heads);
        let (of_clients, long_heads) =
            (with_heads(heads(settings.timeout)), with_heads(LONG_HEADS));
        // The host of an address that was read is always a header's value.
        let host = HeaderValue::from_str(&settings.url.to_string())
            .unwrap_or(HeaderValue::from_static(""));
        let password = tokio::sync::Mutex::new(None);
        let closing = watch::Sender::new(false);
        let lendings = Lendings::default();
        Self { settings, pool, of_clients, long_heads, host, password, closing, lendings }
    }

    /// Connections that are open.
    pub(crate) fn connections(&self) -> usize {
        self.pools().into_iter().map(|pool| pool.connections()).sum()
    }

    /// Closes what is idle.
    pub(crate) fn give_up_idle(&self) {
        self.pools().into_iter().for_each(|pool| pool.give_up_idle());
    }

    fn pools(&self) -> [&Arc<Pool>; 3] {
        [&self.pool, &self.of_clients, &self.long_heads]
    }

    /// Held by whatever is under way and runs by itself, and notified when the connector is closed. What others drive is
    /// [lent](Self::lend): closing waits for nobody's reader.
    pub(crate) fn under_way(&self) -> watch::Receiver<bool> {
        self.closing.subscribe()
    }

    /// Lends something that is under way to whoever drives it: the connector ends it when it is closed.
    pub(super) fn lend<T: Send + 'static>(&self, value: T) -> Lent<T> {
        self.lendings.lend(value)
    }

    /// Whether it is closed.
    pub(crate) fn is_closed(&self) -> bool {
        *self.closing.borrow()
    }

    /// Ends what is under way, and returns once it has ended.
    pub(crate) async fn close(&self) {
        self.closing.send_replace(true);
        self.pools().into_iter().for_each(|pool| pool.close());
        self.lendings.end();
        self.closing.closed().await;
    }

    /// Sends a request and returns once the head of its response is here.
    ///
    /// # Errors
    /// [`ErrorClass::NotExecuted`] if nothing was sent, [`ErrorClass::Unknown`] if something may
    /// have been.
    pub(crate) async fn send(&self, outgoing: Outgoing) -> Result<Response<Rows>, Failed> {
        let Outgoing { pairs, body, upload, headers: more } = outgoing;
        let is_empty = upload.is_none() && body.iter().all(Bytes::is_empty);
        let mut request = Request::new(body_of(body, upload));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = format!("/?{}", query_string(&pairs)).parse().map_err(|error| {
            let message = format!("the parameters do not make a valid URL: {error}");
            Failed {
                error: AttemptError::own(
                    ErrorClass::Rejected,
                    ErrorCode::OfKind("parameters"),
                    message,
                ),
                verdict: Verdict::Success,
            }
        })?;
        let headers = request.headers_mut();
        headers.insert(HOST, self.host.clone());
        if is_empty {
            // The server wants to know that nothing comes; hyper says it of what is not empty only.
            headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
        headers
            .extend(more.into_iter().map(|(name, value)| (HeaderName::from_static(name), value)));
        if let Some(value) = self.authorization().await? {
            request.headers_mut().insert(AUTHORIZATION, value);
        }
        self.pool.send(request).await.map_err(|why| lost(&why))
    }

    /// Sends a request of a client, with our own host and credentials, and returns once the head of its response is
    /// here, which may be long if `has_long_head`.
    ///
    /// # Errors
    /// As [`Http::send`].
    pub(crate) async fn forward(
        &self,
        mut request: Request<Body>,
        has_long_head: bool,
    ) -> Result<Response<Rows>, Failed> {
        request.headers_mut().insert(HOST, self.host.clone());
        if let Some(value) = self.authorization().await? {
            request.headers_mut().insert(AUTHORIZATION, value);
        }
        let pool = if has_long_head { &self.long_heads } else { &self.of_clients };
        pool.send(request).await.map_err(|why| lost(&why))
    }

    /// Sees to it that there is a connection. Nothing is sent on it.
    ///
    /// # Errors
    /// Nobody accepts one within `time`.
    pub(crate) async fn connect(&self, time: Duration) -> Result<(), Failed> {
        let ended = timeout(time, self.pool.connect())
            .await
            .map_err(|_| Failed::not_in_time(time).unsent())?;
        ended.map_err(|why| lost(&why).unsent())
    }

    /// Whether the server takes requests at all.
    pub(crate) async fn ping(&self, time: Duration) -> Result<(), Failed> {
        let mut request = Request::new(body_of(Vec::new(), None));
        *request.uri_mut() = Uri::from_static("/ping");
        request.headers_mut().insert(HOST, self.host.clone());
        let answered = async {
            let response = self.pool.send(request).await.map_err(|why| lost(&why))?;
            let (status, retry_after) =
                (response.status().as_u16(), retry_after(response.headers()));
            let text = text_of(response.into_body()).await?;
            if status == 200 {
                return Ok(());
            }
            Err(failed(
                Exception::of_body(None, None, text.as_bytes()),
                status,
                retry_after,
                &Asked::default(),
            ))
        };
        timeout(time, answered).await.map_err(|_| Failed::not_in_time(time))?
    }

    /// Asks a question of fusebox's own within `time`; the answer is in `TabSeparated` unless the question
    /// says otherwise.
    pub(crate) async fn ask(&self, question: String, time: Duration) -> Result<String, Failed> {
        self.ask_in(Some("system"), question, time).await
    }

    /// The same in a database, or in the one that the server takes for us.
    pub(super) async fn ask_in(
        &self,
        database: Option<&str>,
        question: String,
        time: Duration,
    ) -> Result<String, Failed> {
        let database = database.map(|database| ("database".to_owned(), database.to_owned()));
        let outgoing = Outgoing {
            pairs: database.into_iter().collect(),
            body: vec![question.into()],
            upload: None,
            headers: Vec::new(),
        };
        let answered = async {
            let response = self.send(outgoing).await?;
            let (status, headers) = (response.status().as_u16(), response.headers().clone());
            let text = text_of(response.into_body()).await?;
            let asked = Asked { whole: true, ..Asked::default() };
            if status != 200 {
                let exception = Exception::of_body(exception_code(&headers), None, text.as_bytes());
                return Err(failed(exception, status, retry_after(&headers), &asked));
            }
            match Exception::behind_lines(&text) {
                Some(exception) => Err(failed(exception, status, None, &asked)),
                None => Ok(text),
            }
        };
        let ended = timeout(time, answered).await.map_err(|_| Failed::not_in_time(time))?;
        self.note(&ended).await;
        ended
    }

    /// Reads the password again if the server does not let us in.
    pub(crate) async fn note<T>(&self, ended: &Result<T, Failed>) {
        if ended.as_ref().is_err_and(|failed| failed.error.class == ErrorClass::BlockedServer) {
            *self.password.lock().await = None;
        }
    }

    async fn authorization(&self) -> Result<Option<HeaderValue>, Failed> {
        let settings = &self.settings;
        if settings.username.is_none()
            && settings.password.is_none()
            && settings.password_file.is_none()
        {
            return Ok(None);
        }
        let mut known = self.password.lock().await;
        let lasts =
            |read: Instant| settings.password_file.is_none() || read.elapsed() < PASSWORD_AGE_MAX;
        if let Some((_, header)) = known.as_ref().filter(|(read, _)| lasts(*read)) {
            return Ok(Some(header.clone()));
        }
        let password = match &settings.password_file {
            Some(path) => {
                let text = tokio::fs::read_to_string(path).await.map_err(|error| {
                    let message =
                        format!("password_file {} cannot be read: {error}", path.display());
                    let error = AttemptError::own(
                        ErrorClass::BlockedServer,
                        ErrorCode::OfKind("password_file"),
                        message,
                    );
                    Failed { error, verdict: Verdict::Failure }
                })?;
                text.lines().next().unwrap_or_default().to_owned()
            }
            None => settings.password.as_ref().map_or("", |secret| secret.expose()).to_owned(),
        };
        let user = settings.username.as_deref().unwrap_or("default");
        let header = format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
        // Base64 is always a header's value.
        let Ok(mut header) = HeaderValue::from_str(&header) else { return Ok(None) };
        header.set_sensitive(true);
        *known = Some((Instant::now(), header.clone()));
        Ok(Some(header))
    }
}

/// The exception's number that the response's head tells.
pub(crate) fn exception_code(headers: &HeaderMap) -> Option<u32> {
    headers.get("x-clickhouse-exception-code")?.to_str().ok()?.trim().parse().ok()
}

/// How long the server asks to be left alone.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

/// The connection broke while an answer came.
pub(crate) fn broken(error: &hyper::Error) -> Failed {
    let message = format!("the answer is incomplete: {}", causes(error));
    Failed {
        error: AttemptError::own(ErrorClass::Unknown, OwnCode::Reset, message),
        verdict: Verdict::Failure,
    }
}

fn failed(exception: Exception, status: u16, after: Option<Duration>, asked: &Asked) -> Failed {
    let ended = exception.ends(status, after, asked, Came::default());
    let unknown =
        || AttemptError::own(ErrorClass::Unknown, ErrorCode::OfKind("unknown"), "no error");
    Failed { verdict: ended.verdict, error: ended.result.err().unwrap_or_else(unknown) }
}

fn lost(why: &Lost) -> Failed {
    let error = match why {
        Lost::Dial(dial) => {
            let (class, code) = match dial {
                DialError::Connect(..) => (ErrorClass::NotExecuted, OwnCode::Connect),
                DialError::Tls(..) => (ErrorClass::BlockedServer, OwnCode::Tls),
            };
            let error = AttemptError::own(class, code, dial.to_string()).blaming(dial.fault());
            return Failed { error, verdict: Verdict::Failure };
        }
        Lost::Broken(error) => error,
    };
    let mut cause = error.source();
    while let Some(this) = cause {
        // The caller's own body broke: that says nothing of the server.
        if let Some(upload) = this.downcast_ref::<AttemptError>() {
            // What came before it was sent, and may have been written.
            let error = AttemptError { doubt: Some(Bytes::new()), ..upload.clone() };
            return Failed { error, verdict: Verdict::Neutral };
        }
        cause = this.source();
    }
    if error.is_parse_too_large() {
        // Most of them are about progress, for which its caller asked.
        let message = "the head of the answer is too large: it has too many headers";
        let mut error = AttemptError::own(ErrorClass::Rejected, OwnCode::HeadTooLarge, message);
        error.doubt = Some(Bytes::new());
        return Failed { error, verdict: Verdict::Neutral };
    }
    Failed {
        error: AttemptError::own(ErrorClass::Unknown, OwnCode::Reset, causes(error)),
        verdict: Verdict::Failure,
    }
}

/// An error with what caused it.
fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(this) = cause {
        text = format!("{text}: {this}");
        cause = this.source();
    }
    text
}

fn query_string(pairs: &[(String, String)]) -> String {
    let mut text = String::new();
    for (name, value) in pairs {
        if !text.is_empty() {
            text.push('&');
        }
        encode(name, &mut text);
        text.push('=');
        encode(value, &mut text);
    }
    text
}

/// A body of `pieces`, and of what comes behind them.
pub(crate) fn body_of(pieces: Vec<Bytes>, upload: Option<Uploading>) -> Body {
    let never = |never: std::convert::Infallible| match never {};
    let Some((rest, progress)) = upload else {
        let whole = match <[Bytes; 1]>::try_from(pieces) {
            Ok([only]) => only,
            Err(pieces) => pieces.concat().into(),
        };
        return Full::new(whole).map_err(never).boxed_unsync();
    };
    let begun = stream::iter(pieces.into_iter().filter(|piece| !piece.is_empty()).map(Ok));
    let rest = stream::unfold((rest, progress), |(mut rest, progress)| async move {
        // How long its sender may pause is for whoever reads it to say: it says nothing of the server.
        *progress.lock() = Instant::now() + SENDERS_TURN;
        let piece = rest.next().await;
        *progress.lock() = Instant::now();
        let piece = piece?;
        Some((piece, (rest, progress)))
    });
    StreamBody::new(begun.chain(rest).map(|piece| piece.map(Frame::data))).boxed_unsync()
}

/// An error's text, or the answer to a question of fusebox's own.
pub(crate) async fn text_of(body: Rows) -> Result<String, Failed> {
    match Limited::new(body, TEXT_MAX).collect().await {
        Ok(text) => Ok(String::from_utf8_lossy(&text.to_bytes()).into_owned()),
        Err(error) => {
            let message = format!("the answer is incomplete: {error}");
            let error = AttemptError::own(ErrorClass::Unknown, OwnCode::Reset, message);
            Err(Failed { error, verdict: Verdict::Failure })
        }
    }
}
