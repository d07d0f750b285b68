//! What is said on a new connection before anybody's call.
//!
//! HELLO 3 with the credentials, or AUTH if a server knows no HELLO; SELECT; CLIENT SETNAME, without
//! whose acknowledgement no write is sent (the fence finds connections by name); CLIENT ID; INFO; SCRIPT LOAD of what
//! another run of the server knew ([`super::scripts`]).

use std::{io, sync::atomic::Ordering};

use bytes::{Bytes, BytesMut};
use fusebox_actors::connector::{AttemptError, ErrorCode, OwnCode};
use fusebox_state::{ErrorClass, Verdict, Words};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{server_info::ServerInfo, shared::Shared, stream};
use crate::{
    kinds::redis::{
        protocol::{
            outcome,
            resp::{self, FrameFinder, Reply},
            server_code::ServerCode,
        },
        settings::{RedisSettings, Secret},
    },
    net::dial::{DialError, Stream},
};

/// Why a connection could not be had; the answer to callers who waited for it.
#[derive(Clone, Debug)]
pub(crate) struct Failed {
    pub(crate) error: AttemptError,
    pub(crate) verdict: Verdict,
}

impl Failed {
    /// Nothing was sent on anybody's behalf, and the backend is to blame.
    pub(crate) fn connect(message: impl Into<Words>) -> Self {
        Self {
            error: AttemptError::own(ErrorClass::NotExecuted, OwnCode::Connect, message),
            verdict: Verdict::Failure,
        }
    }

    fn blocked(code: impl Into<ErrorCode>, message: impl Into<Words>) -> Self {
        let error = AttemptError::own(ErrorClass::BlockedServer, code, message);
        Self { error, verdict: Verdict::Failure }
    }
}

/// A connection in which one question is asked at a time.
pub(crate) struct Dialogue {
    pub(crate) stream: Box<dyn Stream>,
    pub(crate) inbox: BytesMut,
    pub(crate) finder: FrameFinder,
}

impl Dialogue {
    /// Sends `commands` together and reads as many replies.
    pub(crate) async fn ask(&mut self, commands: &[Bytes]) -> io::Result<Vec<Bytes>> {
        self.stream.write_all(&commands.concat()).await?;
        self.stream.flush().await?;
        let mut replies = Vec::with_capacity(commands.len());
        while replies.len() < commands.len() {
            match self.finder.next(&mut self.inbox).map_err(io::Error::other)? {
                Some(frame) if frame.starts_with(b">") => {}
                Some(frame) => replies.push(frame),
                None => {
                    if self.stream.read_buf(&mut self.inbox).await? == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
            }
        }
        Ok(replies)
    }

    /// Sends `command` and reads its reply; an error is one of the server's.
    async fn step(&mut self, command: Bytes) -> Result<Result<Bytes, Failed>, Failed> {
        let mut replies = self.ask(&[command]).await.map_err(|error| lost(&error))?;
        checked(replies.pop().unwrap_or_default())
    }
}

/// The connection broke before anything was sent on anybody's behalf.
pub(crate) fn lost(error: &io::Error) -> Failed {
    Failed::connect(format!("the connection was lost while it was being set up: {error}"))
}

/// What the server replies to fusebox's own question; the outer error is one that another connect may
/// not meet, such as BUSY.
pub(crate) fn checked(reply: Bytes) -> Result<Result<Bytes, Failed>, Failed> {
    let ended = outcome::of(reply);
    match ended.result {
        Ok(reply) => Ok(Ok(reply)),
        Err(error) if error.class == ErrorClass::NotExecuted => {
            Err(Failed { error, verdict: Verdict::Failure })
        }
        Err(error) => Ok(Err(Failed {
            error: AttemptError { class: ErrorClass::BlockedServer, ..error },
            verdict: Verdict::Failure,
        })),
    }
}

/// A connection that is ready for calls, as far as the server is concerned.
pub(crate) struct Ready {
    pub(crate) dialogue: Dialogue,
    /// Whether the server has acknowledged the connection's name.
    pub(crate) named: bool,
    /// The connection's number at the server, if that tells it.
    pub(crate) id: Option<i64>,
    pub(crate) info: ServerInfo,
}

/// Which protocol a connection is to speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// RESP2.
    Two,
    /// RESP3, or RESP2 if the server knows no other.
    Newest,
}

/// Connects and introduces itself as `name`.
pub(crate) async fn connect(
    shared: &Shared,
    name: &str,
    protocol: Protocol,
) -> Result<Ready, Failed> {
    let settings = &shared.settings;
    let password = password(settings).await?;
    let mut dialogue = dialled(settings).await?;
    let resp3 = match protocol {
        Protocol::Newest => {
            let resp3 = greet(&mut dialogue, settings, password.as_ref()).await?;
            shared.resp3.store(resp3, Ordering::Relaxed);
            resp3
        }
        Protocol::Two => {
            authenticate(&mut dialogue, settings, password.as_ref()).await?;
            false
        }
    };
    if settings.database != 0 {
        let select = resp::command(&["SELECT", &settings.database.to_string()]);
        dialogue.step(select).await?.map_err(|mut failed| {
            let database = settings.database;
            let told = |why: &str| format!("database {database} cannot be selected: {why}");
            failed.error.message = failed.error.message.within(told);
            failed
        })?;
    }
    let rest = [
        resp::command(&["CLIENT", "SETNAME", name]),
        resp::command(&["CLIENT", "ID"]),
        resp::command(&["INFO"]),
    ];
    let replies = dialogue.ask(&rest).await.map_err(|error| lost(&error))?;
    let replies: Vec<_> = replies.into_iter().map(checked).collect::<Result<_, _>>()?;
    let [named, id, info] = replies.as_slice() else {
        return Err(Failed::connect("the handshake's replies are incomplete"));
    };
    if let Err(failed) = named
        && outcome::server_code(&failed.error) == Some(ServerCode::NoAuth)
    {
        return Err(failed.clone());
    }
    let info = info.as_ref().map(|info| ServerInfo::read(info)).unwrap_or_default();
    if info.cluster {
        return Err(Failed::blocked(ErrorCode::OfKind("cluster"), outcome::CLUSTER));
    }
    load_scripts(&mut dialogue, shared, &info).await?;
    tracing::debug!(backend = settings.name, name, resp3, ?id, "connected");
    let id = id.as_ref().ok().and_then(|id| match Reply::of(id)? {
        Reply::Int(id) => Some(id),
        _ => None,
    });
    Ok(Ready { dialogue, named: named.is_ok(), id, info })
}

/// Sends the server the scripts that it may have forgotten. What it refuses it does not get.
async fn load_scripts(
    dialogue: &mut Dialogue,
    shared: &Shared,
    info: &ServerInfo,
) -> Result<(), Failed> {
    let scripts = shared.scripts.to_load(info.run_id.as_deref());
    if !scripts.is_empty() {
        let backend = shared.settings.name.as_str();
        tracing::info!(
            backend,
            scripts = scripts.len(),
            "scripts loaded on another run of the server"
        );
        let replies = dialogue.ask(&scripts).await.map_err(|error| lost(&error))?;
        // What it does not take at present, another handshake sends again.
        let waits = |reply: &Bytes| {
            [&b"-LOADING"[..], b"-BUSY", b"-MASTERDOWN"].iter().any(|code| reply.starts_with(code))
        };
        if replies.iter().any(waits) {
            return Ok(());
        }
    }
    shared.scripts.loaded(info.run_id.clone());
    Ok(())
}

/// Connects and says no more than who it is, which a server answers also while a script runs: for one command that
/// belongs to no database, such as SCRIPT KILL. It speaks RESP2.
pub(crate) async fn connect_apart(settings: &RedisSettings) -> Result<Dialogue, Failed> {
    let password = password(settings).await?;
    let mut dialogue = dialled(settings).await?;
    authenticate(&mut dialogue, settings, password.as_ref()).await?;
    Ok(dialogue)
}

async fn dialled(settings: &RedisSettings) -> Result<Dialogue, Failed> {
    let stream = stream::open(settings).await.map_err(|error| {
        let failed = match error {
            DialError::Connect(..) => Failed::connect(error.to_string()),
            DialError::Tls(..) => Failed::blocked(OwnCode::Tls, error.to_string()),
        };
        Failed { error: failed.error.blaming(error.fault()), ..failed }
    })?;
    Ok(Dialogue { stream, inbox: BytesMut::new(), finder: FrameFinder::default() })
}

/// Agrees on the protocol and authenticates; true for RESP3.
async fn greet(
    dialogue: &mut Dialogue,
    settings: &RedisSettings,
    password: Option<&Secret>,
) -> Result<bool, Failed> {
    let user = settings.username.as_deref();
    let mut hello = vec!["HELLO", "3"];
    if let Some(password) = password {
        hello.extend(["AUTH", user.unwrap_or("default"), password.expose()]);
    }
    let Err(refusal) = dialogue.step(resp::command(&hello)).await? else { return Ok(true) };
    // A server before version 6, one behind a proxy, or one whose rules forbid HELLO.
    let code = outcome::server_code(&refusal.error);
    if !matches!(code, Some(ServerCode::Err | ServerCode::NoProto | ServerCode::NoPerm)) {
        return Err(refusal);
    }
    authenticate(dialogue, settings, password).await?;
    Ok(false)
}

/// Authenticates as servers of every version understand it.
async fn authenticate(
    dialogue: &mut Dialogue,
    settings: &RedisSettings,
    password: Option<&Secret>,
) -> Result<(), Failed> {
    if let Some(password) = password {
        let auth = match settings.username.as_deref() {
            Some(user) => resp::command(&["AUTH", user, password.expose()]),
            None => resp::command(&["AUTH", password.expose()]),
        };
        let _ok = dialogue.step(auth).await??;
    }
    Ok(())
}

async fn password(settings: &RedisSettings) -> Result<Option<Secret>, Failed> {
    let Some(file) = &settings.password_file else { return Ok(settings.password.clone()) };
    match tokio::fs::read_to_string(file).await {
        Ok(text) => Ok(text.lines().next().map(Secret::new)),
        Err(error) => Err(Failed::blocked(
            ErrorCode::OfKind("password_file"),
            format!("password_file {} cannot be read: {error}", file.display()),
        )),
    }
}
